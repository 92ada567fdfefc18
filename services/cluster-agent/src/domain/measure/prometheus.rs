//! The text format of Prometheus, version 0.0.4, as a workload offers it. Anything may come: all of it is bounded.
//!
//! The crates that read it are under the LGPL, or leave out lines that they do not understand without a word.

use std::{borrow::Cow, collections::BTreeSet};

use mesh_proto::telemetry::MetricKind;

use super::{
    Metric, Value,
    series::{self, LABELS_MAX, Labels, NAME_MAX, TEXT_MAX},
};

/// Types that are declared in one text; more are not known.
const TYPES_MAX: usize = 10_000;

/// What a text says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scrape {
    /// Its values, each series once.
    pub values: Vec<Value>,
    /// Series beyond the limit, too long, or named twice: left out.
    pub cut: usize,
}

/// Reads a text; at most `series_max` series of it.
///
/// # Errors
/// With the number of the first line that is not as it should be.
pub fn read(text: &str, series_max: usize) -> Result<Scrape, String> {
    let mut scrape = Scrape::default();
    let mut counters: BTreeSet<&str> = BTreeSet::new();
    let mut seen: BTreeSet<Metric> = BTreeSet::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if let Some(comment) = line.strip_prefix('#') {
            let mut words = comment.split_ascii_whitespace();
            if let (Some("TYPE"), Some(name), Some("counter" | "histogram")) =
                (words.next(), words.next(), words.next())
                && counters.len() < TYPES_MAX
            {
                counters.insert(name);
            }
            continue;
        }
        if line.is_empty() {
            continue;
        }
        let one = sample(line).map_err(|problem| format!("line {}: {problem}", number + 1))?;
        let Some((name, labels, value)) = one.filter(|_| scrape.values.len() < series_max) else {
            scrape.cut += 1;
            continue;
        };
        if !value.is_finite() {
            continue;
        }
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        let is_counter = counters.contains(name)
            || base.is_some_and(|base| counters.contains(base))
            || (name.ends_with("_total") && value >= 0.0);
        let kind = if is_counter { MetricKind::Counter } else { MetricKind::Gauge };
        let metric = series::metric(name.to_owned(), unit(name), kind, labels);
        if seen.insert(metric.clone()) {
            scrape.values.push(Value { metric, value, at: None });
        } else {
            scrape.cut += 1;
        }
    }
    Ok(scrape)
}

/// The unit that a name ends in, by the conventions of Prometheus.
fn unit(name: &str) -> &'static str {
    let base = ["_total", "_sum", "_bucket"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
    if name.ends_with("_count") || name.ends_with("_bucket") {
        return "1";
    }
    match base.rsplit('_').next() {
        Some("seconds") => "s",
        Some("bytes") => "By",
        Some("celsius") => "Cel",
        Some("joules") => "J",
        Some("watts") => "W",
        Some("volts") => "V",
        Some("amperes") => "A",
        Some("meters") => "m",
        Some("grams") => "g",
        Some("hertz") => "Hz",
        _ => "1",
    }
}

type Sample<'a> = (&'a str, Labels, f64);

/// One line; `None` if it is longer than what is taken.
fn sample(line: &str) -> Result<Option<Sample<'_>>, &'static str> {
    let end = line.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':')).unwrap_or(line.len());
    let (name, mut rest) = line.split_at(end);
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err("it does not begin with a name");
    }
    let mut labels: Labels = vec![];
    let mut fits = name.len() <= NAME_MAX;
    rest = rest.trim_start();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            rest = rest.trim_start();
            if let Some(after) = rest.strip_prefix('}') {
                rest = after;
                break;
            }
            let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
            let (label, after) = rest.split_at(end);
            if label.is_empty() || label.starts_with(|c: char| c.is_ascii_digit()) {
                return Err("a label has no name");
            }
            let after = after.trim_start().strip_prefix('=').ok_or("a label has no value")?;
            let after = after.trim_start().strip_prefix('"').ok_or("a label's value is not in quotes")?;
            let (text, after) = quoted(after)?;
            fits &= label.len() <= NAME_MAX && text.len() <= TEXT_MAX && labels.len() < LABELS_MAX;
            // A label without a text is as if it were not there.
            if fits && !text.is_empty() {
                labels.push((Cow::Owned(label.to_owned()), text));
            }
            rest = after.trim_start();
            if let Some(after) = rest.strip_prefix(',') {
                rest = after;
            } else if !rest.starts_with('}') {
                return Err("labels are not separated by commas");
            }
        }
    }
    let mut words = rest.split_ascii_whitespace();
    let value = match words.next() {
        Some("+Inf" | "Inf") => f64::INFINITY,
        Some("-Inf") => f64::NEG_INFINITY,
        Some(word) => word.parse::<f64>().map_err(|_| "its value is not a number")?,
        None => return Err("it has no value"),
    };
    if words.next().is_some_and(|time| time.parse::<i64>().is_err()) || words.next().is_some() {
        return Err("more than a time follows its value");
    }
    labels.sort_unstable();
    if labels.windows(2).any(|pair| matches!(pair, [a, b] if a.0 == b.0)) {
        return Err("a label is there twice");
    }
    Ok(fits.then_some((name, labels, value)))
}

/// Text up to its closing quote, and what follows.
fn quoted(rest: &str) -> Result<(String, &str), &'static str> {
    let mut text = String::new();
    let mut chars = rest.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((text, rest.get(at + 1..).unwrap_or_default())),
            '\\' => match chars.next() {
                Some((_, 'n')) => text.push('\n'),
                Some((_, c @ ('\\' | '"'))) => text.push(c),
                _ => return Err("a label's value has an escape that is not known"),
            },
            c => text.push(c),
        }
    }
    Err("a label's value does not end")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = r#"
# HELP http_requests_total Requests.
# TYPE http_requests_total counter
http_requests_total{method="post", code="200",} 1027 1395066363000
http_requests_total{code="400",method="say \"hi\"\\\n"} 3
# TYPE rpc_seconds histogram
rpc_seconds_bucket{le="+Inf"} 7
rpc_seconds_sum 1.5e1
rpc_seconds_count 7
temperature_celsius -3.5
missing NaN
"#;

    #[test]
    fn names_labels_kinds_and_units_are_read() {
        let scrape = read(TEXT, 100).unwrap();
        let said: Vec<(&str, &str, MetricKind, f64)> =
            scrape.values.iter().map(|v| (&*v.metric.name, &*v.metric.unit, v.metric.kind, v.value)).collect();
        assert_eq!(
            said,
            [
                ("http_requests_total", "1", MetricKind::Counter, 1027.0),
                ("http_requests_total", "1", MetricKind::Counter, 3.0),
                ("rpc_seconds_bucket", "1", MetricKind::Counter, 7.0),
                ("rpc_seconds_sum", "s", MetricKind::Counter, 15.0),
                ("rpc_seconds_count", "1", MetricKind::Counter, 7.0),
                ("temperature_celsius", "Cel", MetricKind::Gauge, -3.5),
            ]
        );
        let labels = &scrape.values[1].metric.labels;
        assert_eq!((&*labels[0].0, labels[1].1.as_str()), ("code", "say \"hi\"\\\n"));
    }

    #[test]
    fn what_is_too_much_is_cut_and_counted() {
        let bomb: String = (0..5_000).map(|n| format!("a{{id=\"{n}\"}} 1\n")).collect();
        let scrape = read(&bomb, 1_000).unwrap();
        assert_eq!((scrape.values.len(), scrape.cut), (1_000, 4_000));
        let long = format!("a{{b=\"{}\"}} 1\na 2\na 3\n", "x".repeat(5_000));
        let scrape = read(&long, 10).unwrap();
        assert_eq!((scrape.values.len(), scrape.cut), (1, 2), "too long, and named twice");
        let wide: String = (0..100).map(|n| format!("l{n}=\"x\",")).collect();
        assert_eq!(read(&format!("a{{{wide}}} 1"), 10).unwrap().cut, 1);
    }

    #[test]
    fn a_line_that_is_wrong_is_named() {
        for (text, problem) in [
            ("ok 1\n{a=\"b\"} 1", "line 2: it does not begin"),
            ("a{b=\"c} 1", "does not end"),
            ("a{b=c} 1", "not in quotes"),
            ("a{b=\"c\"d=\"e\"} 1", "commas"),
            ("a{b=\"c\",b=\"d\"} 1", "twice"),
            ("a{b=\"\\x\"} 1", "escape"),
            ("a", "no value"),
            ("a one", "not a number"),
            ("a 1 2 3", "more than a time"),
            ("<html>", "name"),
        ] {
            let said = read(text, 10).unwrap_err();
            assert!(said.contains(problem), "{text}: {said}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic_or_give_too_much(text in "[a-z{}\"=,\\\\ \n0-9#.]{0,300}", max in 0usize..5) {
            if let Ok(scrape) = read(&text, max) {
                prop_assert!(scrape.values.len() <= max && scrape.values.iter().all(|v| v.value.is_finite()));
            }
        }
    }
}
