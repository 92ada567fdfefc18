//! `bench sar`: the detector beside river's on Shuttle in stream order, each row scored before it is learned; all in one
//! run on one machine, all scores judged by the same code.

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

use crate::output::{self, Format, note};

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
}

/// What the script says of one detector.
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
    if !options.python.is_file() {
        note(format!("SKIPPED: bench sar: no {} (run `make setup-test`)", options.python.display()));
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
    let mut told = vec![ours(&data, &labels, 42)?];
    for seed in [1, 2] {
        told.push(ours(&data, &labels, seed)?);
    }
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let theirs: Theirs = serde_json::from_str(line).context("read what the script says")?;
        let text = std::fs::read_to_string(folder.path().join(&theirs.file)).context("read scores")?;
        let scores: Vec<f64> = text.lines().map(str::parse).collect::<Result<_, _>>().context("read scores")?;
        let (roc_auc, pr_auc) = areas(&scores, &labels);
        let samples_a_second = scores.len() as f64 / theirs.seconds;
        told.push(Row {
            name: theirs.name,
            roc_auc,
            pr_auc,
            samples_a_second,
            detail: "min-max scaled, seed 42".into(),
        });
    }
    let best = |of: fn(&Row) -> f64| {
        let (own, others) = told.split_at(3);
        own.iter().all(|own| others.iter().all(|other| of(own) > of(other)))
    };
    let holds = best(|row| row.roc_auc) && best(|row| row.pr_auc);
    let anomalies = labels.iter().filter(|label| **label).count();
    let value = json!({
        "full": options.full, "rows": data.len(), "anomalies": anomalies, "holds": holds,
        "detectors": told.iter().map(|row| json!({
            "name": row.name, "rocAuc": row.roc_auc, "prAuc": row.pr_auc,
            "samplesPerSecond": row.samples_a_second, "detail": row.detail,
        })).collect::<Vec<_>>(),
    });
    output::show(format, &value, &["detector", "ROC-AUC", "PR-AUC", "samples/s", "detail"], || {
        let cells = |row: &Row| {
            let (roc, pr) = (format!("{:.4}", row.roc_auc), format!("{:.4}", row.pr_auc));
            vec![row.name.clone(), roc, pr, format!("{:.0}", row.samples_a_second), row.detail.clone()]
        };
        told.iter().map(cells).collect()
    });
    let verdict = if holds { "ahead of both by both areas, with every seed" } else { "NOT ahead by both areas" };
    note(format!("{} rows in stream order, {anomalies} anomalies; {verdict}", data.len()));
    Ok(ExitCode::from(u8::from(!holds)))
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
    let begun = Instant::now();
    let mut scores = Vec::with_capacity(data.len());
    for (point, _) in data {
        scores.push(forest.score(point));
        forest.learn(point);
    }
    let seconds = begun.elapsed().as_secs_f64();
    let bytes = snapshot::write_forest(&forest);
    let again = snapshot::read_forest(&bytes).context("restore the forest")?;
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
