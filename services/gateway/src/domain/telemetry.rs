//! Measurements over REST: what is asked becomes a question to the collector, and its answer JSON, CSV or an event.

use std::{collections::BTreeMap, fmt::Write as _};

use mesh_proto::{
    Timestamp, is_key,
    telemetry::{
        Entity, Filter, Function, Metric, MetricKind, Provenance, QueryReply, QueryRequest, Readings, SeriesValues,
    },
};
use mesh_rest::problem::Problem;
use serde_json::{Value as Json, json};

/// Parameters that say which measurements are meant.
pub const FILTER: [&str; 8] = ["owner", "entity_kind", "entity_id", "cluster_id", "node", "metric", "label", "group"];
/// Those that may be there several times.
pub const LISTS: [&str; 4] = ["entity_id", "metric", "label", "group"];
/// Groups of metrics.
const GROUPS: [&str; 8] = ["general", "cpu", "memory", "network", "storage", "energy", "traffic", "application"];
/// Kinds of entities.
pub const KINDS: [&str; 6] = ["node", "cluster", "instance", "storage", "application", "route"];
/// Kinds that belong to the infrastructure, and to no owner.
const INFRASTRUCTURE: [&str; 3] = ["node", "cluster", "storage"];
/// Names of [`Function`], as they are asked for.
pub const FUNCTIONS: [(&str, Function); 11] = [
    ("mean", Function::Mean),
    ("min", Function::Min),
    ("max", Function::Max),
    ("sum", Function::Sum),
    ("count", Function::Count),
    ("first", Function::First),
    ("last", Function::Last),
    ("rate", Function::Rate),
    ("p50", Function::P50),
    ("p95", Function::P95),
    ("p99", Function::P99),
];
/// Values of a repeated parameter.
const VALUES_MAX: usize = 64;
/// Bytes of a metric's name, a label or an id.
const TEXT_MAX: usize = 256;
/// How far back is looked when `from` is absent, milliseconds: as far as values rest in memory as they came.
const SPAN_MS: i64 = 10 * 60 * 1_000;
/// Longest step, seconds: a week.
const STEP_MAX_S: u32 = 7 * 24 * 3_600;
/// Series and values of each that may be asked for, and values in all.
const SERIES_MAX: u32 = 1_000;
const POINTS_MAX: u32 = 100_000;
const ALL_MAX: u64 = 1_000_000;

/// Parameters of a request, by name.
pub type Query = BTreeMap<String, Vec<String>>;

/// Whose measurements may be seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everybody's.
    All,
    /// Those of one owner, and of the infrastructure.
    Of(String),
}

impl Scope {
    /// May this be seen? What belongs to the infrastructure has no owner.
    pub fn has(&self, owner: &str) -> bool {
        match self {
            Self::All => true,
            Self::Of(own) => owner.is_empty() || owner == own,
        }
    }
}

/// The form that an answer is asked for in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// JSON.
    Json,
    /// Comma-separated values (RFC 4180).
    Csv,
}

fn one<'a>(query: &'a Query, name: &str) -> &'a str {
    query.get(name).and_then(|values| values.first()).map(String::as_str).unwrap_or_default()
}

fn is_text(text: &str, more: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c) || more.contains(c);
    !text.is_empty() && text.len() <= TEXT_MAX && text.chars().all(plain)
}

fn many(query: &Query, name: &str, fits: impl Fn(&str) -> bool, hint: &str) -> Result<Vec<String>, Problem> {
    let values = query.get(name).cloned().unwrap_or_default();
    if values.len() > VALUES_MAX {
        return Err(Problem::field(
            name,
            format!("is there {} times", values.len()),
            format!("use at most {VALUES_MAX}"),
        ));
    }
    match values.iter().find(|value| !fits(value)) {
        Some(value) => Err(Problem::field(name, format!("is {:?}", shown(value)), hint)),
        None => Ok(values),
    }
}

fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}

/// Which measurements are meant, and whose may be seen. Of owned things, those who may not see everybody's are asked for
/// their own alone; nodes, clusters and storage locations are nobody's.
///
/// # Errors
/// When a parameter has a value that it cannot have.
pub fn filter(query: &Query, own: &str, sees_all: bool) -> Result<(Filter, Scope), Problem> {
    let owner = one(query, "owner");
    if !owner.is_empty() && !is_key(owner) || query.contains_key("owner") && owner.is_empty() {
        return Err(Problem::field("owner", "is not a valid owner", "use 1 to 64 letters, digits, `_` and `-`"));
    }
    if !sees_all && !owner.is_empty() && owner != own {
        return Err(Problem::not_found(format!("owner {owner}")));
    }
    let kind = one(query, "entity_kind");
    if query.contains_key("entity_kind") && !KINDS.contains(&kind) {
        return Err(Problem::field(
            "entity_kind",
            format!("is {:?}", shown(kind)),
            format!("use {}", KINDS.join(", ")),
        ));
    }
    let named = |name: &str| match one(query, name) {
        "" if !query.contains_key(name) => Ok(String::new()),
        text if is_text(text, "") => Ok(text.to_owned()),
        text => {
            Err(Problem::field(name, format!("is {:?}", shown(text)), "use letters, digits, `.`, `_`, `-` and `/`"))
        }
    };
    let metrics = many(
        query,
        "metric",
        |name| is_text(name.strip_suffix(".*").unwrap_or(name), ""),
        "use a metric's name, `system.cpu.time`, or a prefix, `system.cpu.*`",
    )?;
    let label = |text: &str| text.split_once('=').is_some_and(|(name, _)| is_text(name, "")) && text.len() <= TEXT_MAX;
    let labels = many(query, "label", label, "use `name=value`")?;
    let mut by_name = BTreeMap::new();
    for (name, value) in labels.iter().filter_map(|text| text.split_once('=')) {
        if by_name.insert(name.to_owned(), value.to_owned()).is_some_and(|other| other != value) {
            return Err(Problem::field("label", format!("asks two things of {}", shown(name)), "name each label once"));
        }
    }
    let groups = many(query, "group", |group| GROUPS.contains(&group), &format!("use {}", GROUPS.join(", ")))?;
    let filter = Filter {
        entity_kind: kind.to_owned(),
        entity_ids: many(query, "entity_id", |id| is_text(id, ":@ "), "use an entity's id")?,
        cluster_id: named("cluster_id")?,
        node: named("node")?,
        owner: match (owner, sees_all, INFRASTRUCTURE.contains(&kind)) {
            ("", true, _) | ("", false, true) => String::new(),
            ("", false, false) => own.to_owned(),
            (owner, ..) => owner.to_owned(),
        },
        metrics,
        labels: by_name.into_iter().collect(),
        groups,
    };
    Ok((filter, if sees_all { Scope::All } else { Scope::Of(own.to_owned()) }))
}

/// A time: RFC 3339, or how long ago, as `-90s`, `-15m`, `-2h`, `-1d`.
///
/// # Errors
/// When it is neither.
pub fn time(query: &Query, name: &str, now: Timestamp) -> Result<Option<Timestamp>, Problem> {
    let Some(text) = query.get(name).and_then(|values| values.first()) else { return Ok(None) };
    let ago = text.strip_prefix('-').and_then(seconds).map(|seconds| now.plus_millis(-i64::from(seconds) * 1_000));
    match ago.map_or_else(|| text.parse().ok(), Some) {
        Some(time) => Ok(Some(time)),
        None => Err(Problem::field(
            name,
            format!("is {:?}", shown(text)),
            "use a time as 2027-01-01T00:00:00Z, or how long ago, as -15m",
        )),
    }
}

/// A length of time: seconds, or with `s`, `m`, `h` or `d`.
fn seconds(text: &str) -> Option<u32> {
    let (number, unit) = match text.char_indices().last()? {
        (at, 's') => (text.get(..at)?, 1),
        (at, 'm') => (text.get(..at)?, 60),
        (at, 'h') => (text.get(..at)?, 3_600),
        (at, 'd') => (text.get(..at)?, 24 * 3_600),
        _ => (text, 1),
    };
    number.parse::<u32>().ok()?.checked_mul(unit)
}

/// A number in a range.
fn count(query: &Query, name: &str, default: u32, most: u32) -> Result<u32, Problem> {
    match mesh_rest::body::number(query, name, default, most)? {
        0 => Err(Problem::field(name, "is 0", format!("use 1 to {most}"))),
        number => Ok(number),
    }
}

/// The question that a request for values over time asks.
///
/// # Errors
/// When a parameter has a value that it cannot have.
pub fn question(query: &Query, own: &str, sees_all: bool, now: Timestamp) -> Result<(QueryRequest, Scope), Problem> {
    let (filter, scope) = filter(query, own, sees_all)?;
    let to = time(query, "to", now)?.unwrap_or(now);
    let from = time(query, "from", now)?.unwrap_or(to.plus_millis(-SPAN_MS));
    if from >= to {
        return Err(Problem::field("from", "is not before `to`", "ask for a time that passes"));
    }
    let step_seconds = match query.get("step").and_then(|values| values.first()) {
        None => 0,
        Some(text) => seconds(text).filter(|step| (1..=STEP_MAX_S).contains(step)).ok_or_else(|| {
            Problem::field(
                "step",
                format!("is {:?}", shown(text)),
                "use seconds, or a length as 30s, 5m, 1h; at most 7d",
            )
        })?,
    };
    let name = one(query, "function");
    let function = match FUNCTIONS.iter().find(|(known, _)| *known == name) {
        Some((_, function)) => *function,
        None if !query.contains_key("function") => Function::Unspecified,
        None => {
            let known: Vec<&str> = FUNCTIONS.iter().map(|(name, _)| *name).collect();
            return Err(Problem::field(
                "function",
                format!("is {:?}", shown(name)),
                format!("use {}", known.join(", ")),
            ));
        }
    };
    if function != Function::Unspecified && step_seconds == 0 {
        return Err(Problem::field("function", "needs steps to work on", "give `step`, or leave the function out"));
    }
    let (series_max, values_max) =
        (count(query, "series_max", 100, SERIES_MAX)?, count(query, "values_max", 10_000, POINTS_MAX)?);
    if u64::from(series_max) * u64::from(values_max) > ALL_MAX {
        let hint = format!("ask for at most {ALL_MAX} values in all");
        return Err(Problem::field("values_max", format!("times {series_max} series is too much"), hint));
    }
    let request = QueryRequest {
        filter: Some(filter),
        from: Some(from),
        to: Some(to),
        step_seconds,
        function: function.into(),
        series_max,
        values_max,
    };
    Ok((request, scope))
}

/// The form of an answer: by `format`, else by what is accepted.
///
/// # Errors
/// When the form is unknown.
pub fn format(query: &Query, accept: Option<&str>) -> Result<Format, Problem> {
    match one(query, "format") {
        "json" => Ok(Format::Json),
        "csv" => Ok(Format::Csv),
        "" if !query.contains_key("format") => {
            let csv = accept
                .into_iter()
                .flat_map(|accept| accept.split(','))
                .any(|kind| kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("text/csv"));
            Ok(if csv { Format::Csv } else { Format::Json })
        }
        other => Err(Problem::field("format", format!("is {:?}", shown(other)), "use json or csv")),
    }
}

/// Where a stream of events goes on: after the last one that was seen, by the header that a browser sends, else by `after`.
///
/// # Errors
/// When it is not a position.
pub fn after(query: &Query, last_event_id: Option<&str>) -> Result<Option<u64>, Problem> {
    if let Some(text) = last_event_id.map(str::trim).filter(|text| !text.is_empty()) {
        let wrong = |_| Problem::malformed("Last-Event-ID is not an id of this stream", "leave it out to begin now");
        return text.parse().map(Some).map_err(wrong);
    }
    match query.get("after").and_then(|values| values.first()) {
        None => Ok(None),
        Some(text) => text.parse().map(Some).map_err(|_| {
            Problem::field(
                "after",
                format!("is {:?}", shown(text)),
                "use the id of an event, or 0 for all that is kept",
            )
        }),
    }
}

/// Shortest time between two values of one series, milliseconds.
///
/// # Errors
/// When it is not a number in range.
pub fn interval_ms(query: &Query) -> Result<u32, Problem> {
    mesh_rest::body::number(query, "interval_ms", 0, 3_600_000)
}

fn entity(entity: &Entity) -> Json {
    json!({"kind": entity.kind, "id": entity.id, "cluster_id": entity.cluster_id, "node": entity.node, "owner": entity.owner})
}

fn kind(metric: &Metric) -> &'static str {
    match metric.kind() {
        MetricKind::Unspecified => "unspecified",
        MetricKind::Gauge => "gauge",
        MetricKind::Counter => "counter",
    }
}

fn provenance(metric: &Metric) -> &'static str {
    match metric.provenance() {
        Provenance::Unspecified => "unspecified",
        Provenance::Measured => "measured",
        Provenance::Modelled => "modelled",
        Provenance::Declared => "declared",
    }
}

fn labels(metric: &Metric) -> BTreeMap<&String, &String> {
    metric.labels.iter().collect()
}

fn metric(metric: &Metric) -> Json {
    json!({"name": metric.name, "unit": metric.unit, "kind": kind(metric), "labels": labels(metric),
        "provenance": provenance(metric), "probe": metric.probe})
}

fn series(of: &Entity, what: &Metric, values: Vec<Json>) -> Json {
    json!({"entity": entity(of), "metric": metric(what), "values": values})
}

/// Series that may be seen, each with what it is of.
fn seen<'a>(reply: &'a QueryReply, scope: &Scope) -> impl Iterator<Item = (&'a Entity, &'a Metric, &'a SeriesValues)> {
    reply.series.iter().filter_map(|series| {
        let (entity, metric) = (series.entity.as_ref()?, series.metric.as_ref()?);
        scope.has(&entity.owner).then_some((entity, metric, series))
    })
}

/// Values over time as JSON: each a time, milliseconds since 1970, and a number.
pub fn reply(reply: &QueryReply, scope: &Scope) -> Json {
    let all = seen(reply, scope).map(|(of, what, found)| {
        series(of, what, found.at_ms.iter().zip(&found.values).map(|(at, value)| json!([at, value])).collect())
    });
    json!({"resolution_seconds": reply.resolution_seconds, "truncated": reply.truncated, "series": all.collect::<Vec<_>>()})
}

/// A field of a comma-separated line (RFC 4180).
pub(crate) fn quoted(text: &str) -> String {
    match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}

/// Values over time as lines: one for each value.
pub fn csv(reply: &QueryReply, scope: &Scope) -> String {
    let mut text = "time,entity_kind,entity_id,cluster_id,node,owner,metric,unit,labels,value\r\n".to_owned();
    for (entity, metric, found) in seen(reply, scope) {
        let labels: Vec<String> = labels(metric).iter().map(|(name, value)| format!("{name}={value}")).collect();
        let labels = labels.join(" ");
        let head = [&entity.kind, &entity.id, &entity.cluster_id, &entity.node, &entity.owner];
        let head = head.into_iter().chain([&metric.name, &metric.unit, &labels]).map(|field| quoted(field));
        let head = head.collect::<Vec<_>>().join(",");
        for (at, value) in found.at_ms.iter().zip(&found.values) {
            // Writing to a String cannot fail.
            let _ = write!(text, "{},{head},{value}\r\n", Timestamp::from_millis(*at));
        }
    }
    text
}

/// Readings as they come in, as far as they may be seen: by series, as a query's answer has them. `None` if nothing may.
pub fn readings(pack: &Readings, missed: u64, scope: &Scope) -> Option<Json> {
    if !pack.fits() {
        return None;
    }
    let begin_ms = pack.at.unwrap_or_default().as_millis();
    let mut by_metric: BTreeMap<u32, Vec<Json>> = BTreeMap::new();
    for ((metric, after_ms), value) in pack.metric.iter().zip(&pack.after_ms).zip(&pack.values) {
        by_metric.entry(*metric).or_default().push(json!([begin_ms + i64::from(*after_ms), value]));
    }
    let mut all = vec![];
    for (index, values) in by_metric {
        let Some(what) = pack.metrics.get(index as usize) else { continue };
        let Some(of) = pack.entities.get(what.entity as usize).filter(|entity| scope.has(&entity.owner)) else {
            continue;
        };
        all.push(series(of, what, values));
    }
    (!all.is_empty() || missed > 0).then(|| json!({"missed": missed, "series": all}))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(pairs: &[(&str, &str)]) -> Query {
        let mut query = Query::new();
        for (name, value) in pairs {
            query.entry((*name).to_owned()).or_default().push((*value).to_owned());
        }
        query
    }

    fn now() -> Timestamp {
        Timestamp { seconds: 1_800_000_000, nanos: 0 }
    }

    #[test]
    fn a_question_says_what_when_and_how() {
        let asked = query(&[
            ("entity_kind", "node"),
            ("metric", "system.cpu.*"),
            ("metric", "system.memory.usage"),
            ("label", "cpu.mode=user"),
            ("group", "cpu"),
            ("from", "-2h"),
            ("to", "2027-01-15T07:59:00Z"),
            ("step", "5m"),
            ("function", "p95"),
            ("series_max", "7"),
        ]);
        let (request, scope) = question(&asked, "ada", false, now()).unwrap();
        let filter = request.filter.clone().unwrap();
        assert_eq!((filter.entity_kind.as_str(), filter.owner.as_str()), ("node", ""));
        assert_eq!(filter.metrics, ["system.cpu.*", "system.memory.usage"]);
        assert_eq!(filter.labels["cpu.mode"], "user");
        assert_eq!((request.step_seconds, request.function()), (300, Function::P95));
        assert_eq!((request.series_max, request.values_max), (7, 10_000));
        assert_eq!(request.from, Some(now().plus_millis(-7_200_000)));
        assert_eq!(scope, Scope::Of("ada".into()));
    }

    #[test]
    fn what_cannot_be_asked_is_refused_by_its_name() {
        for (name, value) in [
            ("owner", ""),
            ("owner", "a.b"),
            ("entity_kind", "pod"),
            ("entity_id", "a\nb"),
            ("cluster_id", "*"),
            ("node", ""),
            ("metric", "~~"),
            ("metric", "*"),
            ("label", "a"),
            ("label", "=b"),
            ("group", "everything"),
            ("from", "yesterday"),
            ("from", "2999-01-01T00:00:00Z"),
            ("to", "-5y"),
            ("step", "0"),
            ("step", "8d"),
            ("step", "99999999999h"),
            ("function", "median"),
            ("function", "mean"),
            ("series_max", "0"),
            ("values_max", "100001"),
        ] {
            let refused = question(&query(&[(name, value)]), "ada", true, now()).unwrap_err();
            assert_eq!((refused.status(), refused.faults[0].path.as_str()), (422, name), "{name}={value:?}");
        }
        let much = query(&[("series_max", "1000"), ("values_max", "10000")]);
        assert_eq!(question(&much, "ada", true, now()).unwrap_err().faults[0].path, "values_max");
        let two = query(&[("label", "a=1"), ("label", "a=2")]);
        assert_eq!(filter(&two, "ada", true).unwrap_err().faults[0].path, "label");
        assert_eq!(format(&query(&[("format", "xml")]), None).unwrap_err().faults[0].path, "format");
        assert_eq!(after(&query(&[("after", "x")]), None).unwrap_err().faults[0].path, "after");
        assert_eq!(after(&query(&[("after", "7")]), Some("x")).unwrap_err().status(), 400);
    }

    #[test]
    fn nobody_asks_for_what_is_anothers() {
        let owner =
            |pairs: &[(&str, &str)], sees_all: bool| filter(&query(pairs), "ada", sees_all).map(|(f, _)| f.owner);
        assert_eq!(owner(&[("entity_kind", "instance")], false).unwrap(), "ada");
        assert_eq!(owner(&[], false).unwrap(), "ada");
        assert_eq!(owner(&[("entity_kind", "cluster")], false).unwrap(), "");
        assert_eq!(owner(&[("owner", "bob")], false).unwrap_err().status(), 404);
        assert_eq!(owner(&[("owner", "bob")], true).unwrap(), "bob");
        assert_eq!(owner(&[], true).unwrap(), "");
    }

    fn answer() -> QueryReply {
        let series = |owner: &str, id: &str, value: f64| SeriesValues {
            entity: Some(Entity { kind: "instance".into(), id: id.into(), owner: owner.into(), ..Entity::default() }),
            metric: Some(Metric {
                name: "container.cpu.time".into(),
                unit: "s".into(),
                labels: [("mode".to_owned(), "a \"b\", c".to_owned())].into(),
                ..Metric::default()
            }),
            at_ms: vec![1_800_000_000_000],
            values: vec![value],
        };
        QueryReply { series: vec![series("ada", "one", 1.5), series("bob", "two", 2.5)], ..QueryReply::default() }
    }

    #[test]
    fn an_answer_shows_only_what_may_be_seen() {
        let own = reply(&answer(), &Scope::Of("ada".into()));
        assert_eq!(own["series"].as_array().unwrap().len(), 1);
        assert_eq!(own["series"][0]["values"], json!([[1_800_000_000_000_i64, 1.5]]));
        assert_eq!(reply(&answer(), &Scope::All)["series"].as_array().unwrap().len(), 2);
        let text = csv(&answer(), &Scope::Of("ada".into()));
        let lines: Vec<&str> = text.split("\r\n").collect();
        assert_eq!(
            lines[1],
            "2027-01-15T08:00:00Z,instance,one,,,ada,container.cpu.time,s,\"mode=a \"\"b\"\", c\",1.5"
        );
        assert_eq!(lines.len(), 3, "{text}");
    }

    #[test]
    fn readings_are_shown_by_series_and_only_what_may_be_seen() {
        let entity = |owner: &str| Entity { kind: "instance".into(), owner: owner.into(), ..Entity::default() };
        let pack = Readings {
            at: Some(Timestamp::from_millis(1_000)),
            entities: vec![entity("ada"), entity("bob"), entity("")],
            metrics: (0..3).map(|entity| Metric { entity, name: "m".into(), ..Metric::default() }).collect(),
            metric: vec![0, 1, 2, 0],
            after_ms: vec![0, 0, 0, -5],
            values: vec![1.0, 2.0, 3.0, 4.0],
            ..Readings::default()
        };
        let seen = readings(&pack, 0, &Scope::Of("ada".into())).unwrap();
        assert_eq!(seen["series"].as_array().unwrap().len(), 2);
        assert_eq!(seen["series"][0]["values"], json!([[1_000, 1.0], [995, 4.0]]));
        assert_eq!(readings(&pack, 0, &Scope::All).unwrap()["series"].as_array().unwrap().len(), 3);
        let broken = Readings { values: vec![], ..pack.clone() };
        assert_eq!(readings(&broken, 0, &Scope::All), None);
        let others = Readings { metric: vec![1], after_ms: vec![0], values: vec![2.0], ..pack };
        assert_eq!(readings(&others, 0, &Scope::Of("ada".into())), None, "an event with nothing in it is not sent");
        assert!(readings(&others, 3, &Scope::Of("ada".into())).is_some(), "what was missed is said");
    }

    #[test]
    fn the_form_follows_the_parameter_and_then_the_header() {
        assert_eq!(format(&query(&[]), Some("text/html, TEXT/CSV;q=0.5")), Ok(Format::Csv));
        assert_eq!(format(&query(&[("format", "json")]), Some("text/csv")), Ok(Format::Json));
        assert_eq!(format(&query(&[]), None), Ok(Format::Json));
    }
}
