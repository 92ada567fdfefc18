//! `bench sar`: the detector on two data sets, each row scored before it is learned, all scores judged by the same code.
//!
//! The shape of its forest was chosen on Shuttle, where it is set beside river's detectors: those figures flatter it. A
//! part of the Numenta Anomaly Benchmark shaped nothing: what it says is reported as it is, good or bad, and bounds nothing.

use std::{
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    time::Instant,
};

use anyhow::{Context as _, bail};
use clap::Args;
use sar_detector::domain::{
    forest::{Forest, Shape},
    snapshot,
};
use serde::Deserialize;
use serde_json::json;

use continuum::output::{self, Format, note};

use crate::nab;

/// Options of `bench sar`.
#[derive(Debug, Args)]
pub(crate) struct SarOptions {
    /// All 49,097 rows; without it the first 10,000.
    #[arg(long)]
    full: bool,
    /// Python with river.
    #[arg(long, value_name = "FILE", default_value = ".tools/test/bin/python")]
    python: PathBuf,
    /// The script that holds river's side.
    #[arg(long, value_name = "FILE", default_value = "infra/test/shuttle.py")]
    script: PathBuf,
    /// Folder of the part of the Numenta Anomaly Benchmark.
    #[arg(long, value_name = "DIR", default_value = "infra/test/data/nab")]
    nab: PathBuf,
}

/// The script's figures for one detector.
#[derive(Deserialize)]
struct Theirs {
    name: String,
    file: String,
    seconds: f64,
}

/// One detector's figures.
struct Row {
    name: String,
    roc_auc: f64,
    pr_auc: f64,
    samples_a_second: f64,
    detail: String,
}

const FEATURES: usize = 9;

/// Runs it; exit code 1 if the detector is not the best by either area.
pub(crate) async fn run(options: SarOptions, format: Format) -> anyhow::Result<ExitCode> {
    let unseen = unseen(&options.nab)?;
    if !options.python.is_file() {
        output::show(format, &json!({"nab": unseen.value}), &NAB_HEADER, || unseen.rows);
        note(format!("SKIPPED: bench sar on Shuttle: no {} (run `make setup-test`)", options.python.display()));
        return Ok(ExitCode::SUCCESS);
    }
    let rows = if options.full { 49_097 } else { 10_000 };
    let folder = tempfile::tempdir().context("make a folder for the data")?;
    note(format!("river's detectors on {rows} rows of Shuttle; this takes up to a minute or two"));
    let output = tokio::process::Command::new(&options.python)
        .arg(&options.script)
        .arg(folder.path())
        .arg(rows.to_string())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("run {}", options.script.display()))?;
    if !output.status.success() {
        bail!("{}: {}", options.script.display(), String::from_utf8_lossy(&output.stderr));
    }
    let data = read(&folder.path().join("shuttle.csv"))?;
    let labels: Vec<bool> = data.iter().map(|(_, label)| *label).collect();
    let mut detectors = vec![ours(&data, &labels, 42)?];
    for seed in [1, 2] {
        detectors.push(ours(&data, &labels, seed)?);
    }
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let theirs: Theirs = serde_json::from_str(line).context("read the script's output")?;
        let text = std::fs::read_to_string(folder.path().join(&theirs.file)).context("read scores")?;
        let scores: Vec<f64> = text.lines().map(str::parse).collect::<Result<_, _>>().context("read scores")?;
        let (roc_auc, pr_auc) = areas(&scores, &labels);
        let samples_a_second = scores.len() as f64 / theirs.seconds;
        detectors.push(Row {
            name: theirs.name,
            roc_auc,
            pr_auc,
            samples_a_second,
            detail: "min-max scaled, seed 42".into(),
        });
    }
    let best = |of: fn(&Row) -> f64| {
        let (own, others) = detectors.split_at(3);
        own.iter().all(|own| others.iter().all(|other| of(own) > of(other)))
    };
    let holds = best(|row| row.roc_auc) && best(|row| row.pr_auc);
    let anomalies = labels.iter().filter(|label| **label).count();
    let value = json!({
        "full": options.full, "rows": data.len(), "anomalies": anomalies, "holds": holds, "nab": unseen.value,
        "detectors": detectors.iter().map(|row| json!({
            "name": row.name, "rocAuc": row.roc_auc, "prAuc": row.pr_auc,
            "samplesPerSecond": row.samples_a_second, "detail": row.detail,
        })).collect::<Vec<_>>(),
    });
    output::show(format, &value, &["detector", "ROC-AUC", "PR-AUC", "samples/s", "detail"], || {
        let cells = |row: &Row| {
            let (roc, pr) = (format!("{:.4}", row.roc_auc), format!("{:.4}", row.pr_auc));
            vec![row.name.clone(), roc, pr, format!("{:.0}", row.samples_a_second), row.detail.clone()]
        };
        detectors.iter().map(cells).collect()
    });
    let verdict = if holds { "ahead of both by both areas, with every seed" } else { "NOT ahead by both areas" };
    note(format!("Shuttle, on which the forest was shaped: {} rows, {anomalies} anomalies; {verdict}", data.len()));
    if format == Format::Table {
        output::line(format!("\n{}", output::table(&NAB_HEADER, unseen.rows)));
        note(
            "NAB, which shaped nothing: 0 is no detection at all, 100 a perfect detector; one threshold for all series",
        );
    }
    Ok(ExitCode::from(u8::from(!holds)))
}

const NAB_HEADER: [&str; 5] = ["detector", "NAB score", "windows found", "false rows", "threshold"];

/// The detectors on the part of the Numenta Anomaly Benchmark.
struct Unseen {
    value: serde_json::Value,
    rows: Vec<Vec<String>>,
}

fn unseen(folder: &Path) -> anyhow::Result<Unseen> {
    let all = nab::read(folder)?;
    let forest = |seed: u64| {
        all.iter()
            .map(|series| {
                // The series' one value as it is, as on Shuttle: no scaling, no grain.
                let mut forest = Forest::new(Shape::of(1), vec![0.0], seed);
                forest.wake();
                series
                    .values
                    .iter()
                    .map(|value| {
                        let score = forest.score(&[*value]);
                        forest.learn(&[*value]);
                        score
                    })
                    .collect()
            })
            .collect::<Vec<Vec<f64>>>()
    };
    let gaussian: Vec<Vec<f64>> = all.iter().map(|series| nab::gaussian(&series.values, 256)).collect();
    let mut judged: Vec<(String, nab::Verdict)> =
        [42, 1, 2].map(|seed| (format!("sar-detector, seed {seed}"), nab::judge(&all, &forest(seed), None))).to_vec();
    judged.push(("distance from the mean of the last 256".into(), nab::judge(&all, &gaussian, None)));
    let value = judged.iter().map(|(name, v)| {
        json!({"name": name, "score": v.score, "threshold": v.threshold, "windows": v.windows, "found": v.found,
            "quietRows": v.quiet_rows, "falseRows": v.false_rows})
    });
    let cells = |(name, v): &(String, nab::Verdict)| {
        let (found, wrong) = (format!("{} of {}", v.found, v.windows), format!("{} of {}", v.false_rows, v.quiet_rows));
        vec![name.clone(), format!("{:.1}", v.score), found, wrong, format!("{:.3}", v.threshold)]
    };
    Ok(Unseen { value: value.collect(), rows: judged.iter().map(cells).collect() })
}

fn read(file: &Path) -> anyhow::Result<Vec<(Vec<f64>, bool)>> {
    let text = std::fs::read_to_string(file).context("read Shuttle")?;
    let row = |line: &str| {
        let mut values: Vec<f64> = line.split(',').map(str::parse).collect::<Result<_, _>>().context("read a row")?;
        let label = values.pop().context("a row without a label")?;
        anyhow::ensure!(values.len() == FEATURES, "a row has {} features, not {FEATURES}", values.len());
        Ok((values, label > 0.5))
    };
    text.lines().map(row).collect()
}

fn ours(data: &[(Vec<f64>, bool)], labels: &[bool], seed: u64) -> anyhow::Result<Row> {
    let mut forest = Forest::new(Shape::of(FEATURES), vec![0.0; FEATURES], seed);
    forest.wake();
    let begun = Instant::now();
    let mut scores = Vec::with_capacity(data.len());
    for (point, _) in data {
        scores.push(forest.score(point));
        forest.learn(point);
    }
    let seconds = begun.elapsed().as_secs_f64();
    let bytes = snapshot::write_forest(&forest);
    let mut again = snapshot::read_forest(&bytes).context("restore the forest")?;
    again.wake();
    let same = data.iter().all(|(point, _)| again.score(point).to_bits() == forest.score(point).to_bits());
    anyhow::ensure!(same, "a restored forest scores otherwise");
    let (roc_auc, pr_auc) = areas(&scores, labels);
    Ok(Row {
        name: "sar-detector".into(),
        roc_auc,
        pr_auc,
        samples_a_second: data.len() as f64 / seconds,
        detail: format!(
            "not scaled, seed {seed}, {} kB at most; {} kB stored, restored with identical scores",
            forest.shape().bytes() / 1_000,
            bytes.len() / 1_000
        ),
    })
}

/// Areas under the ROC curve (equal scores count half) and under the precision-recall curve (average precision).
fn areas(scores: &[f64], labels: &[bool]) -> (f64, f64) {
    let mut ranked: Vec<(f64, bool)> = scores.iter().copied().zip(labels.iter().copied()).collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
    let positives = labels.iter().filter(|label| **label).count() as f64;
    let negatives = labels.len() as f64 - positives;
    let (mut found, mut wrong, mut roc, mut precision) = (0.0, 0.0, 0.0, 0.0);
    for equal in ranked.chunk_by(|a, b| a.0.total_cmp(&b.0).is_eq()) {
        let good = equal.iter().filter(|(_, label)| *label).count() as f64;
        let bad = equal.len() as f64 - good;
        roc += bad * (found + good / 2.0);
        (found, wrong) = (found + good, wrong + bad);
        precision += good * found / (found + wrong);
    }
    (roc / (positives * negatives), precision / positives)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_are_those_of_the_textbook() {
        let labels = [true, false, true, false];
        assert_eq!(areas(&[4.0, 3.0, 2.0, 1.0], &labels), (0.75, (1.0 + 2.0 / 3.0) / 2.0));
        assert_eq!(areas(&[1.0; 4], &labels), (0.5, 0.5));
        assert_eq!(areas(&[2.0, 1.0, 2.0, 1.0], &labels), (1.0, 1.0));
    }
}
