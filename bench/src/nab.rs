//! The Numenta Anomaly Benchmark's score, for a part of its series that shaped nothing here.
//!
//! Written from the published definition (Lavin and Ahmad, *Evaluating Real-Time Anomaly Detection Algorithms: the Numenta
//! Anomaly Benchmark*, ICMLA 2015, and the benchmark's description of its scorer), standard profile; NAB's own scorer is a
//! Python program that no package registry holds. A row is a detection if its anomaly score reaches a threshold, one
//! threshold for all series. What counts, after the first 15 % of each series (at most 750 rows):
//!
//! - an anomaly window: its best detection, worth `σ(y) / σ(-1)` with `σ(y) = 2 / (1 + e^(5y)) - 1`, where `y` runs
//!   from -1 at its first row to 0 behind its last, so that early is better; -1 without any;
//! - a detection elsewhere: `0.11 · σ(y)`, where `y` is the distance behind the last window in window widths, and -0.11
//!   where there is none before or it is three widths away.
//!
//! The threshold is the one with the largest sum over all series, as NAB chooses it for every detector that it lists. The
//! score is that sum, scaled so that no detection at all is 0 and the first row of every window alone is 100.

use std::{collections::BTreeMap, ops::RangeInclusive, path::Path};

use anyhow::{Context as _, ensure};

/// Rows that are not scored, as a share of a series, and the longest series that the share is taken of.
const PROBATION: f64 = 0.15;
const PROBATION_ROWS_MAX: f64 = 5_000.0;
/// Cost of a false positive in the standard profile; what a hit brings and a miss costs is 1.
const FALSE_POSITIVE: f64 = 0.11;
/// Behind this many window widths a detection has nothing to do with the window.
const FAR: f64 = 3.0;

/// One labelled series.
#[derive(Debug)]
pub(super) struct Series {
    pub(super) values: Vec<f64>,
    /// Rows of each anomaly, in their order.
    pub(super) windows: Vec<RangeInclusive<usize>>,
}

/// What came of a detector on all series.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Verdict {
    /// 0 for no detection at all, 100 for a perfect one; below 0 for worse than none.
    pub(super) score: f64,
    /// Anomaly score from which a row is a detection.
    pub(super) threshold: f64,
    pub(super) windows: usize,
    /// Windows with a detection.
    pub(super) found: usize,
    /// Rows outside of windows that are scored, and how many of them are detections.
    pub(super) quiet_rows: usize,
    pub(super) false_rows: usize,
}

/// Reads every series of `DIR/data` with its windows in `DIR/labels/combined_windows.json`.
pub(super) fn read(folder: &Path) -> anyhow::Result<Vec<Series>> {
    let file = folder.join("labels/combined_windows.json");
    let text = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    let labels: BTreeMap<String, Vec<(String, String)>> =
        serde_json::from_str(&text).with_context(|| format!("read {}", file.display()))?;
    labels.iter().map(|(name, windows)| series(folder, name, windows)).collect()
}

fn series(folder: &Path, name: &str, windows: &[(String, String)]) -> anyhow::Result<Series> {
    let file = folder.join("data").join(name);
    let text = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    let (mut rows, mut values) = (BTreeMap::new(), vec![]);
    for line in text.lines().skip(1) {
        let (time, value) = line.split_once(',').with_context(|| format!("a row of {name} has no value"))?;
        let value: f64 = value.trim().parse().with_context(|| format!("read a value of {name}"))?;
        // A time that comes twice means its first row.
        rows.entry(time.to_owned()).or_insert(values.len());
        values.push(value);
    }
    // Labels write times with fractions of a second, series without.
    let row = |time: &str| {
        let whole = time.split('.').next().unwrap_or_default();
        rows.get(whole).copied().with_context(|| format!("{name} has no row at {time}"))
    };
    let windows = windows.iter().map(|(from, to)| Ok(row(from)?..=row(to)?)).collect::<anyhow::Result<Vec<_>>>()?;
    ensure!(windows.iter().all(|w| !w.is_empty()), "a window of {name} ends before it begins");
    Ok(Series { values, windows })
}

/// What a detection is worth at a distance from a window's end, in window widths.
fn sigma(distance: f64) -> f64 {
    if distance >= FAR { -1.0 } else { 2.0 / (1.0 + (5.0 * distance).exp()) - 1.0 }
}

/// One row that counts: its anomaly score, what its detection is worth, and the window that it is in.
struct Scored {
    anomaly: f64,
    worth: f64,
    window: Option<usize>,
}

/// The rows of a series that count; windows are numbered from `first` on.
fn scored(series: &Series, anomalies: &[f64], first: usize) -> Vec<Scored> {
    let count = series.values.len() as f64;
    let skipped = (PROBATION * count).floor().min(PROBATION * PROBATION_ROWS_MAX);
    let mut rows = vec![];
    for (row, anomaly) in anomalies.iter().enumerate().filter(|(row, _)| *row as f64 >= skipped) {
        let within = series.windows.iter().position(|window| window.contains(&row));
        let worth = match within.and_then(|index| Some((index, series.windows.get(index)?))) {
            Some((_, window)) => {
                let width = (window.end() - window.start() + 1) as f64;
                sigma(-((window.end() + 1 - row) as f64) / width) / sigma(-1.0)
            }
            None => {
                let before = series.windows.iter().rev().find(|window| *window.end() < row);
                let distance = before.map_or(FAR, |window| {
                    (row - window.end()) as f64 / ((window.end() - window.start()) as f64).max(1.0)
                });
                FALSE_POSITIVE * sigma(distance)
            }
        };
        rows.push(Scored { anomaly: *anomaly, worth, window: within.map(|index| first + index) });
    }
    rows
}

/// Judges a detector's anomaly scores, one list for each series. Without a threshold the best one is taken.
pub(super) fn judge(all: &[Series], anomalies: &[Vec<f64>], threshold: Option<f64>) -> Verdict {
    let mut rows = vec![];
    let mut first = 0;
    for (series, anomalies) in all.iter().zip(anomalies) {
        rows.extend(scored(series, anomalies, first));
        first += series.windows.len();
    }
    rows.sort_by(|a, b| b.anomaly.total_cmp(&a.anomaly));
    // Of a window that lies in the rows that are not scored nothing is asked.
    let mut best_of: BTreeMap<usize, f64> = rows.iter().filter_map(|row| Some((row.window?, -1.0))).collect();
    let windows = best_of.len();
    let quiet_rows = rows.iter().filter(|row| row.window.is_none()).count();
    let (mut sum, mut found, mut false_rows) = (-(windows as f64), 0, 0);
    let verdict = |sum: f64, threshold: f64, found: usize, false_rows: usize| Verdict {
        score: 100.0 * (sum + windows as f64) / (2.0 * windows.max(1) as f64),
        threshold,
        windows,
        found,
        quiet_rows,
        false_rows,
    };
    // Above every score: no detection.
    let mut best = verdict(sum, f64::INFINITY, 0, 0);
    for equal in rows.chunk_by(|a, b| a.anomaly.total_cmp(&b.anomaly).is_eq()) {
        let anomaly = equal.first().map_or(f64::INFINITY, |row| row.anomaly);
        if threshold.is_some_and(|threshold| anomaly < threshold) {
            break;
        }
        for row in equal {
            match row.window.and_then(|window| best_of.get_mut(&window)) {
                Some(best) => {
                    found += usize::from(*best <= -1.0);
                    sum += (row.worth - *best).max(0.0);
                    *best = best.max(row.worth);
                }
                None => {
                    false_rows += 1;
                    sum += row.worth;
                }
            }
        }
        let now = verdict(sum, anomaly, found, false_rows);
        if threshold.is_some() || now.score > best.score {
            best = now;
        }
    }
    Verdict { threshold: threshold.unwrap_or(best.threshold), ..best }
}

/// Distance from the mean of the last `window` values in their standard deviations, mapped to 0 to 1: what anyone would try
/// first, to set the others beside.
pub(super) fn gaussian(values: &[f64], window: usize) -> Vec<f64> {
    let score = |row: usize| {
        let last = values.get(row.saturating_sub(window)..row).unwrap_or_default();
        let (Some(value), false) = (values.get(row), last.len() < 2) else { return 0.0 };
        let mean = last.iter().sum::<f64>() / last.len() as f64;
        let variance = last.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / last.len() as f64;
        let distance = (value - mean).abs() / variance.sqrt().max(f64::MIN_POSITIVE);
        if distance.is_finite() { distance / (1.0 + distance) } else { 1.0 }
    };
    (0..values.len()).map(score).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hundred rows with an anomaly from row 40 to 59; the first 15 rows are not scored.
    fn series() -> Series {
        Series { values: vec![0.0; 100], windows: vec![40..=59] }
    }

    fn detected(rows: &[usize]) -> Verdict {
        let mut anomalies = vec![0.0; 100];
        rows.iter().for_each(|row| anomalies[*row] = 1.0);
        judge(&[series()], &[anomalies], Some(0.5))
    }

    #[test]
    fn no_detection_is_0_and_the_first_row_of_the_window_is_100() {
        assert_eq!((detected(&[]).score, detected(&[40]).score), (0.0, 100.0));
        assert_eq!((detected(&[40, 41, 59]).score, detected(&[40]).found), (100.0, 1), "only the earliest counts");
        assert_eq!(detected(&[3]).score, 0.0, "on probation");
    }

    #[test]
    fn a_later_detection_is_worth_less_and_a_false_one_costs() {
        // Half way through: the published table says 0.84828 of 0.98661.
        let half = detected(&[50]);
        assert!((half.score - 100.0 * (1.0 + 0.848_28 / 0.986_61) / 2.0).abs() < 1e-3, "{half:?}");
        // Before any window, and three widths behind one: the whole cost of 0.11, of the two that lie between 0 and 100.
        let early = detected(&[20, 40]);
        assert!((early.score - (100.0 - 50.0 * 0.11)).abs() < 1e-9, "{early:?}");
        assert_eq!((early.false_rows, early.quiet_rows), (1, 65));
        // Just behind the window it costs less: one row of nineteen.
        let behind = detected(&[40, 60]);
        let cost = 0.11 * (1.0 - 2.0 / (1.0 + (5.0f64 / 19.0).exp()));
        assert!((behind.score - (100.0 - 50.0 * cost)).abs() < 1e-9, "{behind:?}");
    }

    #[test]
    fn the_threshold_is_the_one_that_serves_all_series_best() {
        let mut anomalies = vec![0.1; 100];
        (anomalies[45], anomalies[20]) = (0.9, 0.8);
        let verdict = judge(&[series()], &[anomalies], None);
        assert_eq!((verdict.threshold, verdict.found, verdict.false_rows), (0.9, 1, 0));
        let same = [vec![0.5; 100]];
        assert!(judge(&[series()], &same, Some(0.5)).score < 0.0, "everything detected is worse than nothing");
        assert_eq!(judge(&[series()], &same, None).score, 0.0, "then no detection serves best");
    }

    #[test]
    fn every_series_of_the_part_is_read_with_its_windows() {
        let all = read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../infra/test/data/nab")).unwrap();
        assert_eq!(all.len(), 25);
        assert_eq!(all.iter().map(|s| s.windows.len()).sum::<usize>(), 39);
        assert!(all.iter().all(|s| s.windows.iter().all(|w| *w.end() < s.values.len())));
    }

    #[test]
    fn a_value_far_from_its_forerunners_scores_high() {
        let mut values: Vec<f64> = (0..50).map(|n| f64::from(n % 5)).collect();
        values.push(100.0);
        let scores = gaussian(&values, 32);
        assert!(scores[50] > 0.9 && scores[10..50].iter().all(|score| *score < 0.75));
    }
}
