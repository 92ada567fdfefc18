//! `bench backup`: what a backup costs the commands that come meanwhile, beside as many without one, and how long it and the
//! restoring take.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use futures::{StreamExt as _, stream};
use mesh_all::{Options, Up};
use mesh_backup::{Lock, Unlock};
use mesh_client::{Client, OWNER};
use mesh_proto::{derived_id, intent::SubmitIntent};

use crate::{
    report::{Bound, Row},
    whole,
};

/// A command is late once it is acknowledged after this.
const LATE: Duration = Duration::from_millis(100);
/// Commands a second.
const RATE: u32 = 50;
/// How long one may take before the measurement is given up.
const SEND_LIMIT: Duration = Duration::from_secs(30);

/// Takes all measurements.
pub(super) async fn measure(full: bool) -> anyhow::Result<Vec<Row>> {
    let folder = tempfile::Builder::new().prefix("continuum-bench-").tempdir().context("make a folder")?;
    let file = whole::spacious_clusters(folder.path())?;
    let data_dir = folder.path().join("mesh");
    let options = Options { clusters: Some(file), log: "error".into(), ..Options::default() };
    let up = Up::start(&data_dir, &options).await.context("start the mesh")?;
    let rows = within(folder.path(), &data_dir, full).await;
    up.stop().await.context("stop the mesh")?;
    rows
}

async fn within(folder: &Path, data_dir: &Path, full: bool) -> anyhow::Result<Vec<Row>> {
    let client = Client::connect(data_dir).await?;
    whole::register(&client).await?;
    let seconds = if full { 60 } else { 12 };
    let backups = if full { 3 } else { 1 };
    send(&client, "warm", 3).await?;
    let alone = send(&client, "alone", seconds).await?;
    let (text, recipient) = mesh_backup::generate();
    let key = folder.join("key");
    std::fs::write(&key, mesh_backup::text(&text)).context("write the key")?;
    let lock = Lock::recipients(&[recipient])?;
    let taking = async {
        let mut made = vec![];
        for n in 0..backups {
            tokio::time::sleep(Duration::from_secs(u64::from(seconds / (backups + 1)))).await;
            let (data, to) = (data_dir.to_owned(), folder.join(format!("{n}.age")));
            let lock = lock.clone();
            let options = mesh_backup::Options {
                pause_max: Duration::from_millis(90),
                keys_apart: None,
                server_stopped: false,
                // The benchmark has no command for it.
                helper: ["sh", "-c", "sleep 3; kill -CONT $0"].map(Into::into).to_vec(),
            };
            let begun = Instant::now();
            let one = tokio::task::spawn_blocking(move || mesh_backup::create(&data, &to, &lock, &options)).await;
            made.push((one.context("take a backup")??, begun.elapsed()));
        }
        anyhow::Ok(made)
    };
    let (during, made) = tokio::join!(send(&client, "during", seconds), taking);
    let (during, made) = (during?, made?);
    client.bus().close().await;
    let (last, took) = made.last().context("no backup")?;
    let begun = Instant::now();
    let from = folder.join(format!("{}.age", backups - 1));
    mesh_backup::restore(&from, None, &Unlock::identity(&key)?, &folder.join("restored"))?;
    let restored_s = begun.elapsed().as_secs_f64();
    let longest = made.iter().map(|(one, _)| one.pause_ms).fold(0.0, f64::max);
    let given_up: u32 = made.iter().map(|(one, _)| one.attempts.saturating_sub(1)).sum();
    let detail = format!(
        "{} of {} at {RATE}/s, {backups} backups; {:.2} % without one",
        late(&during),
        during.len(),
        share(&alone)
    );
    Ok(vec![
        Row::new(1, "commands later than 100 ms", Bound::AtMost(1.0), " %", share(&during), detail),
        Row::new(
            2,
            "longest pause",
            Bound::Limit(100.0),
            " ms",
            longest,
            format!("{given_up} given up, as there was more to copy"),
        ),
        Row::new(
            3,
            "a backup",
            Bound::AtMost(60.0),
            " s",
            took.as_secs_f64(),
            format!("{} files, {:.1} MB, {:.1} MB written", last.files, mb(last.bytes), mb(last.written_bytes)),
        ),
        Row::new(4, "a restore", Bound::AtMost(60.0), " s", restored_s, "read twice, synced".to_owned()),
    ])
}

/// Submits intents at a steady rate; how long after its time each was acknowledged.
async fn send(client: &Client, phase: &str, seconds: u32) -> anyhow::Result<Vec<Duration>> {
    let begun = Instant::now();
    let sending = (0..RATE * seconds).map(async |n| {
        let due = begun + Duration::from_secs(1) * n / RATE;
        tokio::time::sleep_until(due.into()).await;
        let intent_id = format!("{phase}-{n}");
        let id = derived_id(&["bench", "backup", &intent_id]);
        let command = SubmitIntent { owner: OWNER.into(), intent_id, intent: Some(whole::intent("bench", 60)?) };
        tokio::time::timeout(SEND_LIMIT, client.send(&command, id)).await.context("send an intent")??;
        anyhow::Ok(due.elapsed())
    });
    let all: Vec<anyhow::Result<Duration>> = stream::iter(sending).buffer_unordered(4_096).collect().await;
    all.into_iter().collect()
}

fn late(times: &[Duration]) -> usize {
    times.iter().filter(|time| **time > LATE).count()
}

fn share(times: &[Duration]) -> f64 {
    100.0 * late(times) as f64 / times.len().max(1) as f64
}

fn mb(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
