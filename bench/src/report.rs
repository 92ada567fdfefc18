//! Figures beside their bounds, and the verdict.

use std::{process::ExitCode, time::Instant};

use clap::Args;
use continuum::output::{self, Format, note};
use serde::Serialize;
use serde_json::json;

/// How long a benchmark takes.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Length {
    /// Full lengths, and the bounds as they are; without it under a minute, and bounds three times as wide.
    #[arg(long)]
    pub(crate) full: bool,
}

/// How much wider bounds are in the short form, which shows direction only.
pub(crate) const LOOSE: f64 = 3.0;
/// By how much a guarded counter may grow.
const GROWTH: f64 = 1.1;

/// How a figure must compare with its bound.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bound {
    AtLeast(f64),
    AtMost(f64),
    /// Not widened in the short form.
    Exactly(f64),
    /// At most, and not widened either.
    Limit(f64),
    /// A counter that does not depend on the machine, as it was recorded: it must not grow by more than a tenth, in any
    /// form.
    Guard(f64),
}

impl Bound {
    fn holds(self, measured: f64, loose: f64) -> bool {
        match self {
            Self::AtLeast(bound) => measured >= bound / loose,
            Self::AtMost(bound) => measured <= bound * loose,
            Self::Limit(bound) => measured <= bound,
            Self::Exactly(bound) => (measured - bound).abs() < f64::EPSILON,
            Self::Guard(recorded) => measured <= recorded * GROWTH,
        }
    }

    fn text(self, unit: &str) -> String {
        match self {
            Self::AtLeast(bound) => format!(">= {bound}{unit}"),
            Self::AtMost(bound) | Self::Limit(bound) => format!("<= {bound}{unit}"),
            Self::Exactly(bound) => format!("{bound}{unit}"),
            Self::Guard(recorded) => format!("<= {:.1}{unit}", recorded * GROWTH),
        }
    }
}

/// One measured figure.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    /// Number of the measurement.
    pub(crate) number: u8,
    pub(crate) what: String,
    pub(crate) bound: Bound,
    pub(crate) unit: &'static str,
    /// `None` if it could not be measured; `detail` then gives the reason.
    pub(crate) measured: Option<f64>,
    pub(crate) detail: String,
}

impl Row {
    pub(crate) fn new(number: u8, what: &str, bound: Bound, unit: &'static str, measured: f64, detail: String) -> Self {
        Self { number, what: what.to_owned(), bound, unit, measured: Some(measured), detail }
    }
}

/// MiB that a process has held at most, as the kernel counts them.
pub(crate) fn most_held(process: &str) -> Option<f64> {
    status(process, "VmHWM:")
}

/// MiB that a process holds.
pub(crate) fn held(process: &str) -> Option<f64> {
    status(process, "VmRSS:")
}

fn status(process: &str, name: &str) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.split_whitespace().next()?.parse::<f64>().ok()? / 1_024.0)
}

/// Shows what was measured; exit code 1 if a bound does not hold.
pub(crate) fn conclude(format: Format, full: bool, begun: Instant, rows: Vec<Row>) -> ExitCode {
    let loose = if full { 1.0 } else { LOOSE };
    let holds = |row: &Row| row.measured.is_some_and(|measured| row.bound.holds(measured, loose));
    let seconds = begun.elapsed().as_secs_f64();
    let value = json!({
        "full": full,
        "bounds_widened": loose,
        "seconds": seconds,
        "most_held_mib": most_held("self"),
        "rows": rows.iter().map(|row| {
            let mut value = serde_json::to_value(row).unwrap_or_default();
            value["holds"] = json!(holds(row));
            value
        }).collect::<Vec<_>>(),
    });
    output::show(format, &value, &["", "what", "bound", "measured", "holds", "detail"], || {
        let text = |row: &Row| match row.measured {
            Some(measured) => format!("{measured:.2}{}", row.unit),
            None => "-".to_owned(),
        };
        let cells = |row: &Row| {
            let verdict = if holds(row) { "yes" } else { "NO" };
            vec![
                row.number.to_string(),
                row.what.clone(),
                row.bound.text(row.unit),
                text(row),
                verdict.to_owned(),
                row.detail.clone(),
            ]
        };
        rows.iter().map(cells).collect()
    });
    // Of whatever ran in this process: the mesh, if it was one, and those who put load on it.
    let held = most_held("self").map_or(String::new(), |mib| format!("{mib:.0} MiB held at most; "));
    note(format!(
        "{seconds:.1} s; {held}bounds {}",
        if full { "as they are".to_owned() } else { format!("{loose} times as wide: direction only, see --full") }
    ));
    ExitCode::from(u8::from(!rows.iter().all(holds)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_wider_in_the_short_form_in_the_right_direction() {
        assert!(!Bound::AtLeast(0.6).holds(0.5, 1.0) && Bound::AtLeast(0.6).holds(0.5, LOOSE));
        assert!(!Bound::AtMost(1.3).holds(1.5, 1.0) && Bound::AtMost(1.3).holds(1.5, LOOSE));
        assert!(!Bound::AtMost(1.3).holds(4.0, LOOSE) && !Bound::Exactly(0.0).holds(1.0, LOOSE));
        assert!(Bound::Guard(30.0).holds(32.9, LOOSE) && !Bound::Guard(30.0).holds(33.1, LOOSE));
    }
}
