//! What the collector knows, as Prometheus reads it: the OpenMetrics text format, and names as OpenTelemetry's rules map them
//! (dots become underscores, the unit and `_total` come last). One sample for each series, the newest; without its time, so that it
//! counts as of when it was read.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use mesh_intent::{types, view::names};
use mesh_proto::{
    intent::{FulfilmentStatus, StandingReply, State},
    telemetry::{Entity, Metric, MetricKind, Provenance, SeriesValues},
};

/// Bytes of a label's value; what is longer is cut.
const VALUE_MAX: usize = 128;
/// Own labels of a series; what comes after by name is left out, and counted.
const LABELS_MAX: usize = 8;

/// UCUM units and how Prometheus calls them.
const UNITS: [(&str, &str); 16] = [
    ("s", "seconds"),
    ("ms", "milliseconds"),
    ("By", "bytes"),
    ("KiBy", "kibibytes"),
    ("MiBy", "mebibytes"),
    ("Hz", "hertz"),
    ("W", "watts"),
    ("J", "joules"),
    ("V", "volts"),
    ("A", "amperes"),
    ("Cel", "celsius"),
    ("%", "percent"),
    ("bit", "bits"),
    ("d", "days"),
    ("h", "hours"),
    ("m", "meters"),
];

/// A name that Prometheus takes: letters, digits, `_`, not beginning with a digit.
fn plain(name: &str) -> String {
    let mut plain = String::with_capacity(name.len());
    for c in name.chars() {
        let c = if c.is_ascii_alphanumeric() { c } else { '_' };
        if !(c == '_' && plain.ends_with('_')) {
            plain.push(c);
        }
    }
    let plain = plain.trim_matches('_');
    if plain.starts_with(|c: char| c.is_ascii_digit()) { format!("_{plain}") } else { plain.to_owned() }
}

/// A unit as the end of a name: `By/s` is `bytes_per_second`; what stands in braces is a note, and `1` a ratio of a gauge.
fn unit(unit: &str, kind: MetricKind) -> String {
    let word = |part: &str| -> String {
        if part.starts_with('{') {
            return String::new();
        }
        UNITS.iter().find(|(ucum, _)| *ucum == part).map_or_else(|| plain(part), |(_, word)| (*word).to_owned())
    };
    match unit.split_once('/') {
        Some((above, below)) => {
            let (above, below) = (word(above), word(below));
            let below = below.strip_suffix('s').unwrap_or(&below);
            match (above.is_empty(), below.is_empty()) {
                (_, true) => above,
                (true, false) => format!("per_{below}"),
                (false, false) => format!("{above}_per_{below}"),
            }
        }
        None if unit == "1" => {
            if kind == MetricKind::Gauge {
                "ratio".to_owned()
            } else {
                String::new()
            }
        }
        None => word(unit),
    }
}

/// A family: series of one name.
#[derive(Default)]
struct Family {
    counter: bool,
    unit: String,
    of: BTreeSet<String>,
    /// By labels, so that none is there twice.
    samples: BTreeMap<String, f64>,
}

/// Names and values of labels, in order.
pub type Labels = Vec<(String, String)>;

/// A label's value, within its bound and on one line.
fn cut(value: &str) -> String {
    let mut end = value.len().min(VALUE_MAX);
    while !value.is_char_boundary(end) {
        end -= 1;
    }
    value.get(..end).unwrap_or_default().replace(['\n', '\r'], " ")
}

/// Labels of a series: what it is of, then its own. Whether some were left out.
fn labels(entity: &Entity, metric: &Metric) -> (Labels, bool) {
    let provenance = match metric.provenance() {
        Provenance::Modelled => "modelled",
        Provenance::Declared => "declared",
        Provenance::Measured | Provenance::Unspecified => "",
    };
    let of = [
        ("entity_kind", entity.kind.as_str()),
        ("entity_id", &entity.id),
        ("cluster", &entity.cluster_id),
        ("node", &entity.node),
        ("owner", &entity.owner),
        ("provenance", provenance),
    ];
    let mut own = BTreeMap::new();
    for (name, value) in &metric.labels {
        let name = plain(name);
        // A label of the measurement never takes the place of what it is of; `job` and `instance` are the scraper's.
        let taken =
            of.iter().any(|(of, _)| *of == name) || ["job", "instance", "le", "quantile"].contains(&name.as_str());
        let name = if taken || name.is_empty() { format!("measured_{name}") } else { name };
        own.entry(name).or_insert(value);
    }
    let is_cut = own.len() > LABELS_MAX;
    let of = of.into_iter().map(|(name, value)| (name.to_owned(), cut(value)));
    let own = own.into_iter().take(LABELS_MAX).map(|(name, value)| (name, cut(value)));
    (of.chain(own).filter(|(_, value)| !value.is_empty()).collect(), is_cut)
}

/// A series as Prometheus calls it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Name without `_total`.
    pub family: String,
    /// Is it a counter?
    pub counter: bool,
    /// End of the name, if that is a unit.
    unit: String,
    /// What it is of, then its own.
    pub labels: Labels,
    /// Were some left out?
    is_cut: bool,
}

/// What a series is called; `None` if nothing of its name can be one.
pub fn named(series: &SeriesValues) -> Option<Named> {
    let (entity, metric) = (series.entity.as_ref()?, series.metric.as_ref()?);
    let counter = metric.kind() == MetricKind::Counter;
    let unit = unit(&metric.unit, metric.kind());
    let mut family = plain(&metric.name);
    if family.is_empty() {
        return None;
    }
    let ends = |name: &str| name == unit || name.ends_with(&format!("_{unit}"));
    if !unit.is_empty() && !ends(&family) {
        family = format!("{family}_{unit}");
    }
    // OpenMetrics has the suffix at the sample, not in the name of the family.
    if counter {
        family = family.strip_suffix("_total").unwrap_or(&family).to_owned();
    }
    let unit = if ends(&family) { unit } else { String::new() };
    let (labels, is_cut) = labels(entity, metric);
    Some(Named { family, counter, unit, labels, is_cut })
}

/// Labels as they are written.
fn written(labels: &Labels) -> String {
    let escaped = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"");
    labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect::<Vec<_>>().join(",")
}

fn number(value: f64) -> String {
    match value {
        value if value.is_nan() => "NaN".to_owned(),
        f64::INFINITY => "+Inf".to_owned(),
        f64::NEG_INFINITY => "-Inf".to_owned(),
        value => value.to_string(),
    }
}

/// The page: the newest value of each series, at most `series_max` of them, and how many were left out.
pub fn page(series: &[SeriesValues], series_max: usize, own: &str) -> String {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let (mut shown, mut left_out, mut cut) = (0_usize, 0_u64, 0_u64);
    for found in series {
        let Some(value) = found.values.last() else { continue };
        let Some(named) = named(found).filter(|_| shown < series_max) else {
            left_out += 1;
            continue;
        };
        let family = families.entry(named.family).or_insert_with(|| Family {
            counter: named.counter,
            unit: named.unit,
            ..Family::default()
        });
        if family.counter != named.counter {
            // Of one name there is one kind: the first that came.
            left_out += 1;
            continue;
        }
        family.of.extend(found.metric.iter().map(|metric| metric.name.clone()));
        cut += u64::from(named.is_cut);
        if family.samples.insert(written(&named.labels), *value).is_none() {
            shown += 1;
        }
    }
    let mut text = String::new();
    for (name, family) in &families {
        let kind = if family.counter { "counter" } else { "gauge" };
        let of = family.of.iter().map(|name| name.replace(['\\', '\n', '\r', '"'], " ")).collect::<Vec<_>>().join(", ");
        // Writing to a String cannot fail.
        let _ = writeln!(text, "# TYPE {name} {kind}");
        if !family.unit.is_empty() {
            let _ = writeln!(text, "# UNIT {name} {}", family.unit);
        }
        let _ = writeln!(text, "# HELP {name} {of}");
        let suffix = if family.counter { "_total" } else { "" };
        for (labels, value) in &family.samples {
            let _ = writeln!(text, "{name}{suffix}{{{labels}}} {}", number(*value));
        }
    }
    text.push_str(own);
    for (name, what, value) in [
        ("continuum_metrics_series", "series on this page", shown as u64),
        ("continuum_metrics_left_out", "series that are not on this page because there are too many", left_out),
        ("continuum_metrics_labels_cut", "series with more labels than are shown", cut),
    ] {
        let _ = writeln!(text, "# TYPE {name} gauge\n# HELP {name} {what}\n{name} {value}");
    }
    text.push_str("# EOF\n");
    text
}

/// What is said of intents: each a gauge.
const OF_INTENTS: [(&str, &str); 5] = [
    ("continuum_intent_fulfilled", "is the intent fulfilled?"),
    ("continuum_intent_state", "1 at the state that the intent is in"),
    ("continuum_intent_target_achieved", "what the target achieved in the last measured period, in its unit"),
    ("continuum_intent_target_bound", "the number that the target demands, in its unit, where it is one number"),
    ("continuum_intent_target_held", "did what was achieved meet what is demanded?"),
];

/// Intents as a part of the page; `None` if the intent manager did not answer.
pub fn intents(standing: Option<&StandingReply>) -> String {
    let mut families: [BTreeMap<String, f64>; OF_INTENTS.len()] = Default::default();
    let [fulfilled, states, achieved, bounds, held] = &mut families;
    for intent in standing.iter().flat_map(|reply| &reply.intents) {
        let labels = |more: &[(&str, &str)]| {
            let of = [("owner", intent.owner.as_str()), ("intent", &intent.intent_id)];
            let all = of.iter().chain(more).map(|(name, value)| ((*name).to_owned(), cut(value)));
            written(&all.filter(|(_, value)| !value.is_empty()).collect())
        };
        let is_fulfilled = intent.fulfilment_status() == FulfilmentStatus::Fulfilled;
        fulfilled.insert(labels(&[]), f64::from(is_fulfilled));
        let state = State {
            fulfilment_status: intent.fulfilment_status,
            not_fulfilled_state: intent.not_fulfilled_state,
            ..State::default()
        };
        let (fulfilment, not_fulfilled) = names(&state);
        states.insert(labels(&[("state", if is_fulfilled { fulfilment } else { not_fulfilled })]), 1.0);
        for target in intent.targets.iter().filter(|target| target.measured) {
            let of = [("expectation", target.expectation_id.as_str()), ("target", &target.target_name)];
            let sign = types::target_of(&target.target_name).map_or("", |target| target.sign);
            let in_unit = labels(&[of[0], of[1], ("unit", sign)]);
            // Several demands on one target have one value; it holds if it meets all.
            achieved.insert(in_unit.clone(), target.achieved);
            if target.bound > 0.0 {
                bounds.entry(in_unit).or_insert(target.bound);
            }
            let meets = f64::from(target.fulfilled);
            held.entry(labels(&of)).and_modify(|all| *all = all.min(meets)).or_insert(meets);
        }
    }
    let mut text = String::new();
    // Writing to a String cannot fail.
    for ((name, what), samples) in OF_INTENTS.iter().zip(&families) {
        let _ = writeln!(text, "# TYPE {name} gauge\n# HELP {name} {what}");
        for (labels, value) in samples {
            let _ = writeln!(text, "{name}{{{labels}}} {}", number(*value));
        }
    }
    for (name, what, value) in [
        ("continuum_metrics_intents", "intents on this page", families[0].len() as u64),
        (
            "continuum_metrics_intents_left_out",
            "1 if there are intents that are not on this page because there are too many",
            u64::from(standing.is_some_and(|reply| reply.truncated)),
        ),
        ("continuum_metrics_intents_answered", "1 if the intent manager answered", u64::from(standing.is_some())),
    ] {
        let _ = writeln!(text, "# TYPE {name} gauge\n# HELP {name} {what}\n{name} {value}");
    }
    text
}

#[cfg(test)]
mod tests {
    use mesh_proto::intent::{IntentStanding, NotFulfilledState, TargetState};

    use super::*;

    fn series(name: &str, unit: &str, kind: MetricKind, labels: &[(&str, &str)], value: f64) -> SeriesValues {
        SeriesValues {
            entity: Some(Entity {
                kind: "node".into(),
                id: "edge-1".into(),
                cluster_id: "edge".into(),
                ..Entity::default()
            }),
            metric: Some(Metric {
                name: name.into(),
                unit: unit.into(),
                kind: kind.into(),
                labels: labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
                ..Metric::default()
            }),
            at_ms: vec![1_000, 2_500],
            values: vec![0.0, value],
        }
    }

    #[test]
    fn names_are_as_opentelemetry_maps_them() {
        let page = page(
            &[
                series("system.cpu.time", "s", MetricKind::Counter, &[("cpu.mode", "user")], 7.0),
                series("system.memory.usage", "By", MetricKind::Gauge, &[], 8.0),
                series("system.memory.utilization", "1", MetricKind::Gauge, &[], 0.5),
                series("system.disk.io", "By/s", MetricKind::Gauge, &[], 1.0),
                series("http.server.requests", "{request}", MetricKind::Counter, &[], 3.0),
                series("hw.temperature", "Cel", MetricKind::Gauge, &[], f64::INFINITY),
                series("things_total", "", MetricKind::Counter, &[], 4.0),
            ],
            100,
            "",
        );
        for line in [
            "# TYPE system_cpu_time_seconds counter",
            "# UNIT system_cpu_time_seconds seconds",
            "# HELP system_cpu_time_seconds system.cpu.time",
            "system_cpu_time_seconds_total{entity_kind=\"node\",entity_id=\"edge-1\",cluster=\"edge\",cpu_mode=\"user\"} 7",
            "system_memory_usage_bytes{entity_kind=\"node\",entity_id=\"edge-1\",cluster=\"edge\"} 8",
            "# UNIT system_memory_utilization_ratio ratio",
            "# UNIT system_disk_io_bytes_per_second bytes_per_second",
            "http_server_requests_total{entity_kind=\"node\",entity_id=\"edge-1\",cluster=\"edge\"} 3",
            "hw_temperature_celsius{entity_kind=\"node\",entity_id=\"edge-1\",cluster=\"edge\"} +Inf",
            "things_total{entity_kind=\"node\",entity_id=\"edge-1\",cluster=\"edge\"} 4",
            "continuum_metrics_series 7",
        ] {
            assert!(page.lines().any(|known| known == line), "{line}\nis not in\n{page}");
        }
        assert!(page.ends_with("# EOF\n"));
    }

    #[test]
    fn intents_are_shown_with_each_of_their_measured_targets_once() {
        let target = |name: &str, achieved: f64, bound: f64, fulfilled: bool, measured: bool| TargetState {
            expectation_id: "1".into(),
            target_name: name.into(),
            achieved,
            bound,
            fulfilled,
            measured,
            ..TargetState::default()
        };
        let intent = |id: &str, targets: Vec<TargetState>, state: NotFulfilledState| IntentStanding {
            owner: "ada".into(),
            intent_id: id.into(),
            fulfilment_status: FulfilmentStatus::NotFulfilled.into(),
            not_fulfilled_state: state.into(),
            targets,
        };
        // Between two bounds: two demands on one target.
        let between = vec![
            target("cpuUsage", 12.5, 10.0, true, true),
            target("cpuUsage", 12.5, 5.0, false, true),
            target("ramUsage", 7.0, 8.0, true, false),
        ];
        let fulfilled = IntentStanding {
            fulfilment_status: FulfilmentStatus::Fulfilled.into(),
            ..intent("b", vec![], NotFulfilledState::Compliant)
        };
        let reply = StandingReply {
            intents: vec![intent("a", between, NotFulfilledState::Degraded), fulfilled],
            truncated: true,
        };
        let page = intents(Some(&reply));
        let of = "owner=\"ada\",intent=\"a\",expectation=\"1\",target=\"cpuUsage\"";
        for line in [
            "continuum_intent_fulfilled{owner=\"ada\",intent=\"a\"} 0".to_owned(),
            "continuum_intent_fulfilled{owner=\"ada\",intent=\"b\"} 1".to_owned(),
            "continuum_intent_state{owner=\"ada\",intent=\"a\",state=\"DEGRADED\"} 1".to_owned(),
            "continuum_intent_state{owner=\"ada\",intent=\"b\",state=\"FULFILLED\"} 1".to_owned(),
            format!("continuum_intent_target_achieved{{{of},unit=\"%\"}} 12.5"),
            format!("continuum_intent_target_bound{{{of},unit=\"%\"}} 10"),
            format!("continuum_intent_target_held{{{of}}} 0"),
            "continuum_metrics_intents 2".to_owned(),
            "continuum_metrics_intents_left_out 1".to_owned(),
            "continuum_metrics_intents_answered 1".to_owned(),
        ] {
            assert_eq!(page.lines().filter(|known| *known == line).count(), 1, "{line}\n{page}");
        }
        assert!(!page.contains("ramUsage"), "it was not measured: {page}");
        assert!(intents(None).contains("continuum_metrics_intents_answered 0"));
    }

    #[test]
    fn hostile_text_stays_within_its_quotes_and_the_page_within_its_bounds() {
        let label: Vec<(String, String)> = (0..20).map(|n| (format!("label.{n:02}"), "v".into())).collect();
        let label: Vec<(&str, &str)> = label.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let long = "é".repeat(500);
        let many = [
            series("a\n# EOF\nb", "}{\n", MetricKind::Gauge, &[("x\"} 1\ny", "a\"b\\c\nd"), ("cluster", "mine")], 1.0),
            series("b", "", MetricKind::Gauge, &label, 1.0),
            series("b", "", MetricKind::Counter, &[], 1.0),
            series("c", "", MetricKind::Gauge, &[("long", &long)], 1.0),
            series("...", "", MetricKind::Gauge, &[], 1.0),
            series("c", "", MetricKind::Gauge, &[("z", "1")], 1.0),
        ];
        let page = page(&many, 3, "");
        assert_eq!(page.matches("# EOF").count(), 2, "one stands within a note: {page}");
        assert!(page.contains("x_1_y=\"a\\\"b\\\\c d\"") && page.contains("measured_cluster=\"mine\""), "{page}");
        for line in ["continuum_metrics_series 3", "continuum_metrics_left_out 3", "continuum_metrics_labels_cut 1"] {
            assert!(page.lines().any(|known| known == line), "{line}: {page}");
        }
        assert!(page.lines().all(|line| line.len() < 1_000), "{page}");
    }
}
