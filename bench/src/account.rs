//! `bench account`: windows folded in the ledger's core beside the hashing alone that a Merkle tree cannot do without,
//! verification and proofs, and windows posted through a bus that syncs every write.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use accounting::domain::Accounting;
use anyhow::{Context as _, bail};
use bytes::Bytes;
use ledger::{
    Ledger, MAIN, files,
    note::{Checkpoint, Signer},
    tree::{Frontier, Nodes as _, Tree, leaf_hash, verify_inclusion},
};
use mesh_core::Outgoing;
use mesh_core::{Decider as _, Envelope, Key, Trigger};
use mesh_kit::{Mesh, Settings};
use mesh_proto::{
    Event as _, Timestamp,
    account::{Posted, Region, SetRegion},
    deciders::ledger::{Fact, Input},
    usage::UsageClosed,
};

use crate::{
    report::{Bound, Row},
    rig::Rig,
};

/// Instances that take turns.
const INSTANCES: u64 = 1_000;
/// Length of a window, milliseconds.
const WINDOW_MS: u32 = 300_000;

/// Takes all measurements.
pub(super) async fn measure(full: bool) -> anyhow::Result<Vec<Row>> {
    let (folds, rounds, posts) = if full { (1_000_000, 5, 20_000) } else { (100_000, 3, 1_000) };
    let mut rows = vec![];
    let (mut ours, mut raw, mut entries) = (vec![], vec![], vec![]);
    for _ in 0..rounds {
        // In turn, so that whatever else the machine does is shared.
        let (per_second, leaves) = fold(folds)?;
        ours.push(per_second);
        raw.push(hash(&leaves));
        entries = leaves;
    }
    let (ours, raw) = (middle(ours), middle(raw));
    let bytes = entries.iter().map(Bytes::len).sum::<usize>() / entries.len().max(1);
    let detail = format!("{folds} windows of {INSTANCES} instances, {bytes} bytes each, middle of {rounds} rounds");
    rows.push(Row::new(1, "windows decided and folded in the core", Bound::AtLeast(100_000.0), "/s", ours, detail));
    let detail = format!("the tree's hashing alone: {raw:.0}/s");
    rows.push(Row::new(2, "of hashing alone", Bound::AtLeast(0.05), "", ours / raw, detail));
    rows.push(verification(&entries)?);
    rows.push(proofs(&entries)?);
    rows.push(posted(posts).await?);
    Ok(rows)
}

fn middle(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or_default()
}

fn window(number: u64) -> UsageClosed {
    let (instance, window) = (number % INSTANCES, 5_000_000 + number / INSTANCES);
    let begin = Timestamp::from_millis((window * u64::from(WINDOW_MS)).cast_signed());
    UsageClosed {
        cluster_id: format!("cluster-{}", instance % 10),
        instance_id: format!("7c9e6679-7425-40de-944b-{instance:012}"),
        owner: "local".into(),
        workload: format!("workload-{}", instance % 100),
        region: "plant".into(),
        window,
        window_ms: WINDOW_MS,
        begin: Some(begin),
        end: Some(begin.plus_millis(WINDOW_MS.into())),
        // Small enough that nobody runs out of tokens within a run.
        cpu_ms: 30 + number % 50,
        memory_byte_seconds: 3_000_000_000,
        samples: 300,
        cluster_cpu_ms: 30_000,
        cluster_memory_byte_seconds: 300_000_000_000,
        cluster_cpu_capacity_ms: 30_000,
        cluster_memory_capacity_byte_seconds: 300_000_000_000_000,
        ..UsageClosed::default()
    }
}

fn rates() -> SetRegion {
    let region = Region { name: "plant".into(), cpu_base_rate: 1_000, memory_base_rate: 1_000, ..Region::default() };
    SetRegion { ledger: MAIN.into(), region: Some(region) }
}

/// Windows per second through `decide` and `evolve`, and the leaves that they made.
fn fold(count: u64) -> anyhow::Result<(f64, Vec<Bytes>)> {
    let key = Key::new([MAIN]);
    let mut ledger = Ledger::default();
    let mut leaves = Vec::with_capacity(count as usize + 3);
    let mut take = |input: Input, number: u64| -> anyhow::Result<()> {
        let at = Timestamp::from_millis(1_700_000_000_000);
        let envelope =
            Envelope { trigger: Trigger::Event(input), at, id: String::new(), sequence: number, body: Bytes::new() };
        let facts = match Accounting.decide(&key, &ledger, &(), &envelope) {
            Ok(facts) => facts,
            Err(refusal) => bail!("a window is refused: {refusal}"),
        };
        for fact in &facts {
            ledger = Accounting.evolve(std::mem::take(&mut ledger), fact, at);
            if let Fact::Posted(posted) = fact {
                leaves.push(posted.entry.clone());
            }
        }
        Ok(())
    };
    take(rates().into(), 0)?;
    let windows: Vec<Input> = (0..count).map(|n| window(n).into()).collect();
    let begun = Instant::now();
    for (number, input) in windows.into_iter().enumerate() {
        take(input, number as u64)?;
    }
    let seconds = begun.elapsed().as_secs_f64();
    if ledger.sum() != 0 || ledger.size() != count + 2 {
        bail!("the ledger does not balance: {} entries, sum {}", ledger.size(), ledger.sum());
    }
    Ok((count as f64 / seconds, leaves))
}

/// Leaves per second, hashed into a tree.
fn hash(leaves: &[Bytes]) -> f64 {
    let begun = Instant::now();
    let mut frontier = Frontier::default();
    for leaf in leaves {
        frontier.push(leaf_hash(leaf));
    }
    black_box(frontier.root());
    leaves.len() as f64 / begun.elapsed().as_secs_f64()
}

fn verification(entries: &[Bytes]) -> anyhow::Result<Row> {
    let signer = Signer::from_seed([7; 32])?;
    let mut frontier = Frontier::default();
    entries.iter().for_each(|entry| frontier.push(leaf_hash(entry)));
    let head = Checkpoint { size: frontier.size(), root: frontier.root() };
    let text = files::ledger(entries.iter().map(AsRef::as_ref), &signer.sign(&head));
    let begun = Instant::now();
    files::verify(&text, signer.verifier()).context("verify the export")?;
    let per_second = entries.len() as f64 / begun.elapsed().as_secs_f64();
    let detail = format!("{} entries, {:.1} MB", entries.len(), text.len() as f64 / 1e6);
    Ok(Row::new(3, "entries of an export made again and compared", Bound::AtLeast(50_000.0), "/s", per_second, detail))
}

fn proofs(entries: &[Bytes]) -> anyhow::Result<Row> {
    let mut tree = Tree::default();
    entries.iter().for_each(|entry| tree.push(leaf_hash(entry)));
    let (size, count) = (tree.size(), 10_000);
    let root = tree.root(size).context("the tree has a root")?;
    let begun = Instant::now();
    for number in 0..count {
        let index = number * 7_919 % size;
        let path = tree.inclusion(index, size).context("prove an entry")?;
        let leaf = leaf_hash(&entries[usize::try_from(index)?]);
        if !verify_inclusion(leaf, index, size, &path, &root) {
            bail!("entry {index} is not proved");
        }
    }
    let micros = begun.elapsed().as_secs_f64() * 1e6 / count as f64;
    let detail = format!("in a ledger of {size} entries");
    Ok(Row::new(4, "an inclusion proof made and verified", Bound::AtMost(100.0), " µs", micros, detail))
}

/// Windows posted by the running service on a bus of its own.
async fn posted(count: u64) -> anyhow::Result<Row> {
    let rig = Rig::start().await?;
    let settings = Settings {
        bus_url: rig.server.url(),
        bus_seed_file: Some(mesh_kit::Secret::at(rig.key("accounting")?)),
        ..Settings::default()
    };
    let config = accounting::Config::default();
    let start = |mesh: Mesh, config| accounting::start(mesh, config);
    let person = rig.bus("person").await?;
    person.publish(&Outgoing::new(&rates(), "rates", Timestamp::default())?).await.context("set rates")?;
    let collector = rig.bus("collector").await?;
    let mut messages = vec![];
    for number in 0..count {
        let usage = window(number);
        let at = usage.end.unwrap_or_default();
        messages.push(Outgoing::new(&usage, format!("window-{number}"), at)?);
    }
    collector.publish_many(messages).await.context("publish windows")?;
    // All are there: what is measured is the ledger.
    let begun = Instant::now();
    let running = mesh_kit::join("accounting", settings, config, start).await?;
    let log = person.log(Posted::STREAM);
    let deadline = begun + Duration::from_secs(120);
    while log.last_sequence().await.context("read the ledger")? < count + 2 {
        if Instant::now() > deadline {
            bail!("{count} windows are not posted within 120 s");
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let per_second = count as f64 / begun.elapsed().as_secs_f64();
    running.stop().await;
    let detail = format!("{count} windows, one entity, each synced to disk before the next; start included");
    let needed = 10_000.0 / (f64::from(WINDOW_MS) / 1e3);
    let what = "windows posted through the bus";
    let detail = format!("{detail}; 10,000 instances need {needed:.0}/s");
    Ok(Row::new(5, what, Bound::AtLeast(200.0), "/s", per_second, detail))
}
