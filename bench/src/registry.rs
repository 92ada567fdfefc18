//! `bench registry`: reading archives beside decompressing them alone, what hostile ones cost, and charts pushed through a
//! mesh of this process.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use chart::{archive, sha256, structure};
use mesh_proto::{
    chart::UploadChart,
    query::GetRequest,
    workload::{ChartSpec, CheckChartRequest, CheckOutcome, RegisterWorkload, WorkloadDocument},
};

use crate::report::{Bound, Row};
use mesh_all::{Options, Up};
use mesh_client::{ANSWER_WAIT, Client, OWNER};

/// Files of the chart that is read: about what a chart of the usual size has.
const FILES: usize = 40;

/// Measures it.
pub(super) async fn measure(full: bool) -> anyhow::Result<Vec<Row>> {
    let mut rows = tokio::task::block_in_place(|| parts(full))?;
    let folder = tempfile::Builder::new().prefix("continuum-bench-").tempdir().context("make a folder")?;
    let set = vec!["workload-manager.images=false".to_owned()];
    let options = Options { log: "error".into(), set, ..Options::default() };
    let up = Up::start(&folder.path().join("mesh"), &options).await?;
    let measured = through(&folder.path().join("mesh"), full).await;
    up.stop().await.context("stop the mesh")?;
    rows.extend(measured?);
    Ok(rows)
}

/// A chart of some version.
fn chart(version: usize) -> anyhow::Result<Bytes> {
    let mut files: BTreeMap<String, Bytes> = BTreeMap::new();
    let head = format!("apiVersion: v2\nname: bench\nversion: 1.0.{version}\n");
    files.insert("Chart.yaml".into(), head.into());
    files.insert("values.yaml".into(), "a: 1\n".into());
    for number in 0..FILES {
        let lines = (0..60).map(|n| format!("  key-{n}: \"{}\"\n", sha256(format!("{number} {n}").as_bytes())));
        let head = format!("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: c-{number}\ndata:\n");
        let text = format!("{head}{}", lines.collect::<String>());
        files.insert(format!("templates/{number}.yaml"), text.into());
    }
    Ok(archive::pack("bench", &files).context("pack a chart")?.into())
}

fn parts(full: bool) -> anyhow::Result<Vec<Row>> {
    let limit = Duration::from_secs_f64(if full { 5.0 } else { 1.0 });
    let packed = chart(0)?;
    let alone = rate(limit, || {
        let mut sink = std::io::sink();
        std::io::copy(&mut flate2::read::MultiGzDecoder::new(&packed[..]), &mut sink).is_ok()
    })?;
    let read = rate(limit, || {
        archive::read(&packed).is_ok_and(|files| structure::check(&files, Some(("bench", "1.0.0"))).is_ok())
    })?;
    let detail = format!("{read:.0}/s of {} kB, decompressing alone {alone:.0}/s", packed.len() / 1_000);
    let mut rows = vec![Row::new(
        1,
        "archive read and its structure checked, ratio",
        Bound::AtLeast(0.3),
        "",
        read / alone,
        detail,
    )];

    let zeros = Bytes::from(vec![0u8; 5 << 20]);
    let files: BTreeMap<String, Bytes> = (0..40).map(|n| (n.to_string(), zeros.clone())).collect();
    let bomb = archive::pack("bomb", &files).context("pack a bomb")?;
    drop((files, zeros));
    let before = peak_reset()?;
    let begun = Instant::now();
    let Err(error) = archive::read(&bomb) else { bail!("a bomb of 200 MB was read") };
    let (millis, peak) = (begun.elapsed().as_secs_f64() * 1e3, peak_bytes()?.saturating_sub(before));
    let detail = format!("{} bytes that unpack to 200 MB: {}", bomb.len(), error.reason);
    rows.push(Row::new(2, "memory to refuse a bomb", Bound::AtMost(64.0), " MB", peak as f64 / 1e6, detail));
    rows.push(Row::new(3, "time to refuse it", Bound::AtMost(500.0), " ms", millis, String::new()));
    Ok(rows)
}

fn rate(limit: Duration, mut work: impl FnMut() -> bool) -> anyhow::Result<f64> {
    let (begun, mut count) = (Instant::now(), 0u32);
    while begun.elapsed() < limit {
        if !work() {
            bail!("what is measured does not work");
        }
        count += 1;
    }
    Ok(f64::from(count) / begun.elapsed().as_secs_f64())
}

/// Sets the peak of the resident memory back to what it is now; gives that.
fn peak_reset() -> anyhow::Result<u64> {
    std::fs::write("/proc/self/clear_refs", "5").context("reset the peak of the memory")?;
    peak_bytes()
}

fn peak_bytes() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/self/status").context("read the peak of the memory")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("find the peak of the memory")?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").trim().parse().context("read the peak of the memory")?;
    Ok(kilobytes * 1024)
}

/// Charts through the mesh: uploaded, registered, checked; and the time of one rendering.
async fn through(folder: &std::path::Path, full: bool) -> anyhow::Result<Vec<Row>> {
    let client = Client::connect(folder).await?;
    let mut queries = client.workloads().await?;
    let mut taken = vec![];
    for version in 0..if full { 100 } else { 15 } {
        let archive = chart(version)?;
        let begun = Instant::now();
        let digest = sha256(&archive);
        let upload = UploadChart { owner: OWNER.into(), sha256: digest.clone(), archive };
        let id = || uuid::Uuid::now_v7().to_string();
        client.ask(&upload, id(), ANSWER_WAIT).await?;
        let document = WorkloadDocument {
            name: "bench".into(),
            version: format!("1.0.{version}"),
            kind: "chart".into(),
            chart: Some(ChartSpec { sha256: digest, ..ChartSpec::default() }),
            ..WorkloadDocument::default()
        };
        let of = format!("bench@{}", document.version);
        let register = RegisterWorkload { owner: OWNER.into(), name: "bench".into(), document: Some(document) };
        client.ask(&register, id(), ANSWER_WAIT).await?;
        loop {
            let request = GetRequest { owner: OWNER.into(), id: of.clone() };
            let status = queries.get_workload(request).await.map(|view| view.into_inner().status).unwrap_or_default();
            match status.as_str() {
                "accepted" => break,
                "rejected" => bail!("{of} was rejected"),
                _ if begun.elapsed() > Duration::from_secs(60) => bail!("{of} is not checked within 60 s"),
                _ => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
        taken.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    taken.sort_by(f64::total_cmp);
    let detail = format!("{} charts of {} files, one after the other", taken.len(), FILES + 2);
    let p50 = taken[taken.len() / 2];
    let mut rows =
        vec![Row::new(4, "a chart from upload to accepted, p50", Bound::AtMost(1_500.0), " ms", p50, detail)];
    let request = CheckChartRequest { archive: chart(0)?, document: None };
    let report = queries.check_chart(request).await?.into_inner();
    let template = report.steps.get(1).cloned().unwrap_or_default();
    let rendered = (template.outcome() == CheckOutcome::CheckPassed).then_some(f64::from(template.took_ms));
    rows.push(Row {
        number: 5,
        what: "of that, rendering by helm".into(),
        bound: Bound::AtMost(1_000.0),
        unit: " ms",
        measured: rendered,
        detail: template.reason,
    });
    client.bus().close().await;
    Ok(rows)
}
