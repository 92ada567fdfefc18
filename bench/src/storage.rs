//! `bench storage`: puts through the gateway beside the parts they are made of, gets beside a bare server of files, and
//! the memory of one gateway with many clients, in one run on one disk.

pub(crate) mod bare;
mod memory;
mod process;

use std::{
    path::Path,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use clap::{Args, ValueEnum};
use s3_client::Client as S3;
use secure_storage::blob::{
    code::{Code, Scheme},
    fragment::Geometry,
    seal::{self, DataKey, Place},
};

use continuum::output::Format;
use process::Gateway;

use crate::{
    report::{Bound, Row, conclude},
    rig::median,
};

/// Options of `bench storage`.
#[derive(Debug, Args)]
pub(crate) struct StorageOptions {
    /// Full lengths, and the bounds as they are; without it fewer and smaller objects, and bounds three times as wide.
    #[arg(long)]
    full: bool,
    /// Only these measurements.
    #[arg(long, value_enum, value_name = "WHAT,…", value_delimiter = ',')]
    only: Vec<What>,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// Each part alone, and puts.
    Puts,
    /// Gets beside a bare server of files.
    Gets,
    /// The memory of one gateway with 64 clients, half of them slow or silent.
    Memory,
}

const PIECE: usize = 256 << 10;
const EXTENT: usize = 8 << 20;
/// Fragments that suffice and that are redundant.
const SHAPE: (usize, usize) = (3, 1);

/// Runs it.
pub(crate) async fn run(options: StorageOptions, format: Format) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    let wanted = |what: What| options.only.is_empty() || options.only.contains(&what);
    let mut rows = vec![];
    if wanted(What::Puts) {
        let folder = tempfile::Builder::new().prefix("continuum-bench-").tempdir().context("make a folder")?;
        let seconds = Duration::from_secs_f64(if options.full { 3.0 } else { 0.7 });
        let parts = tokio::task::block_in_place(|| parts(folder.path(), &bytes(EXTENT), seconds))?;
        let gateway = Gateway::start(&[]).await?;
        rows.extend(puts(&gateway.bucket().await?, options.full, &parts).await?);
    }
    if wanted(What::Gets) {
        let folder = tempfile::Builder::new().prefix("continuum-bench-").tempdir().context("make a folder")?;
        let gateway = Gateway::start(&[]).await?;
        rows.extend(gets(&gateway.bucket().await?, folder.path(), options.full).await?);
    }
    if wanted(What::Memory) {
        rows.extend(memory::measure(options.full).await?);
    }
    Ok(conclude(format, options.full, begun, rows))
}

/// Bytes that do not repeat soon.
fn bytes(size: usize) -> Vec<u8> {
    (0..size as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8).collect()
}

/// Both schemes where they differ, with more than one redundant shard: coding, and decoding without two data shards.
fn schemes(bytes: &[u8], time: Duration) -> anyhow::Result<Vec<(&'static str, f64)>> {
    let mut found = vec![];
    for (scheme, coding, decoding) in [
        (Scheme::ReedSolomon, "code, Reed-Solomon 4 + 2", "decode, Reed-Solomon 4 + 2, 2 lost"),
        (Scheme::Rlnc, "code, RLNC 4 + 2", "decode, RLNC 4 + 2, 2 lost"),
    ] {
        let code = Code::new(scheme, 4, 2)?;
        let (mut shards, mut piece) = (vec![vec![]; code.shards()], vec![]);
        let encoded = rate(time, bytes.len(), || {
            for plain in bytes.chunks(PIECE) {
                shards.iter_mut().for_each(Vec::clear);
                code.encode(plain, &mut shards)?;
            }
            Ok(())
        })?;
        let left: Vec<Option<&[u8]>> =
            shards.iter().enumerate().map(|(n, s)| (n > 1).then_some(s.as_slice())).collect();
        let decoded = rate(time, bytes.len(), || {
            for _ in bytes.chunks(PIECE) {
                piece.clear();
                code.decode(&left, PIECE, &mut piece)?;
            }
            Ok(())
        })?;
        found.extend([(coding, encoded), (decoding, decoded)]);
    }
    Ok(found)
}

/// Bytes per second of something done to an extent again and again.
fn rate(time: Duration, bytes: usize, mut work: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    work()?;
    let (begun, mut done) = (Instant::now(), 0usize);
    while begun.elapsed() < time {
        work()?;
        done += bytes;
    }
    Ok(done as f64 / begun.elapsed().as_secs_f64())
}

/// Each part alone, on one core, bytes of the object per second.
fn parts(folder: &Path, bytes: &[u8], time: Duration) -> anyhow::Result<Vec<(&'static str, f64)>> {
    let keys = DataKey::new([7; 32]).blob(&[1; 16], true)?;
    let code = Code::new(Scheme::ReedSolomon, SHAPE.0, SHAPE.1)?;
    let place = |piece: usize, fragment: u32| Place { extent: 0, piece: piece as u32, fragment };
    let mut found = vec![];
    found.push((
        "md5",
        rate(time, bytes.len(), || {
            std::hint::black_box(seal::md5(bytes));
            Ok(())
        })?,
    ));
    found.push((
        "sha256",
        rate(time, bytes.len(), || {
            std::hint::black_box(seal::sha256(bytes));
            Ok(())
        })?,
    ));
    let mut piece = vec![];
    found.push((
        "cipher",
        rate(time, bytes.len(), || {
            for (index, plain) in bytes.chunks(PIECE).enumerate() {
                piece.clear();
                piece.extend_from_slice(plain);
                keys.seal(place(index, 0), &mut piece)?;
            }
            Ok(())
        })?,
    ));
    let mut shards = vec![vec![]; code.shards()];
    found.push((
        "code",
        rate(time, bytes.len(), || {
            for plain in bytes.chunks(PIECE) {
                shards.iter_mut().for_each(Vec::clear);
                code.encode(plain, &mut shards)?;
            }
            Ok(())
        })?,
    ));
    found.extend(schemes(&bytes[..bytes.len() / PIECE * PIECE], time)?);
    let size = code.shard_bytes(PIECE);
    found.push((
        "tags",
        rate(time, bytes.len(), || {
            for index in 0..bytes.len() / PIECE {
                for fragment in 0..code.shards() {
                    let from = (fragment * size).min(bytes.len() - size);
                    keys.tag(place(index, fragment as u32), &bytes[from..from + size])?;
                }
            }
            Ok(())
        })?,
    ));
    let geometry = Geometry::new(Scheme::ReedSolomon, SHAPE.0, SHAPE.1, EXTENT as u32, PIECE as u32, 0)?;
    let fragments = geometry.write(&keys, 0, bytes)?;
    let mut number = 0u64;
    let write = rate(time, bytes.len(), || {
        for fragment in &fragments {
            number += 1;
            let path = folder.join(format!("{}", number % 64));
            let mut file = std::fs::File::create(&path)?;
            std::io::Write::write_all(&mut file, fragment)?;
            file.sync_all()?;
        }
        Ok(())
    })?;
    found.push(("disk write", write));
    let read = rate(time, bytes.len(), || {
        for (index, _) in fragments.iter().take(SHAPE.0).enumerate() {
            std::fs::read(folder.join(format!("{}", (number as usize - index) % 64)))?;
        }
        Ok(())
    })?;
    found.push(("disk read", read));
    Ok(found)
}

/// Puts of several sizes through S3, one and four at a time, beside their parts.
///
/// The bound of a put is its slowest part if all overlapped, and the sum of their times if none did; with the cores of
/// this machine the truth lies between.
async fn puts(bucket: &S3, full: bool, parts: &[(&'static str, f64)]) -> anyhow::Result<Vec<Row>> {
    let speed = |name: &str| parts.iter().find(|(n, _)| *n == name).map_or(f64::NAN, |(_, speed)| *speed);
    let whole = ["md5", "cipher", "code", "tags", "disk write"];
    let slowest = whole.iter().map(|n| speed(n)).fold(f64::INFINITY, f64::min);
    let in_turn = 1.0 / whole.iter().map(|n| 1.0 / speed(n)).sum::<f64>();
    let mut rows: Vec<Row> = parts
        .iter()
        .map(|(name, speed)| Row::new(1, name, Bound::AtLeast(0.0), " MB/s", speed / 1e6, "alone, on one core".into()))
        .collect();
    let sizes: &[(usize, usize)] = match full {
        true => &[(4 << 10, 400), (1 << 20, 200), (32 << 20, 24), (96 << 20, 8)],
        false => &[(4 << 10, 60), (1 << 20, 30), (32 << 20, 4)],
    };
    for &(size, count) in sizes {
        let body = bytes::Bytes::from(bytes(size));
        for at_once in [1usize, 4] {
            let (begun, mut times) = (Instant::now(), vec![]);
            let mut running = tokio::task::JoinSet::new();
            for number in 0..count {
                while running.len() >= at_once {
                    times.push(running.join_next().await.context("a request")???);
                }
                let (bucket, body, key) = (bucket.clone(), body.clone(), format!("put/{size}/{at_once}/{number}"));
                running.spawn(async move {
                    let begun = Instant::now();
                    bucket.put(&key, body).await?;
                    anyhow::Ok(begun.elapsed())
                });
            }
            while let Some(done) = running.join_next().await {
                times.push(done??);
            }
            let speed = (size * count) as f64 / begun.elapsed().as_secs_f64();
            for number in 0..count {
                bucket.delete(&format!("put/{size}/{at_once}/{number}")).await?;
            }
            let what = format!("put of {} KiB, {at_once} at once", size >> 10);
            let detail = format!(
                "p50 {:.2} ms; {:.0} % of all parts overlapped, {:.0} % of parts in turn",
                median(&times).as_secs_f64() * 1e3,
                100.0 * speed / slowest,
                100.0 * speed / in_turn
            );
            rows.push(Row::new(2, &what, Bound::AtLeast(0.0), " MB/s", speed / 1e6, detail));
        }
    }
    Ok(rows)
}

/// Gets beside a bare server that sends the same bytes from files: the same client, in turn, in one run.
async fn gets(bucket: &S3, folder: &Path, full: bool) -> anyhow::Result<Vec<Row>> {
    let server = bare::Bare::start(folder).await?;
    let bare = &server.address;
    let time = Duration::from_secs_f64(if full { 4.0 } else { 0.8 });
    let rounds = if full { 5 } else { 2 };
    let mut rows = vec![];
    // More of the small ones than a moment reads, and more of the large ones than a gateway keeps in memory.
    for (size, count, bounded) in [(4 << 10, 400, true), (1 << 20, 160, false), (32 << 20, 10, true)] {
        let mut body = bytes(size);
        let (mut ours, mut files) = (vec![], vec![]);
        for number in 0..count {
            let name = format!("{size}-{number}");
            body[..8].copy_from_slice(&(number as u64).to_le_bytes());
            bare::file(folder, &name, &body)?;
            bucket.put(&name, body.clone().into()).await?;
            files.push(bare::plain(bare, &name)?);
            ours.push(bucket.signed_get(&name)?);
        }
        let gateway = ours[0].uri().authority().context("a request names its server")?.to_string();
        let ours: Vec<_> = ours.iter().map(bare::written).collect::<anyhow::Result<_>>()?;
        let (ours, files) = (Arc::new(ours), Arc::new(files));
        // First of all: are they the same bytes?
        let (mut of_ours, mut of_files) = (vec![], vec![]);
        let (mut taker, mut other) = (bare::Taker::connect(&gateway).await?, bare::Taker::connect(bare).await?);
        for (one, two) in ours.iter().zip(files.iter()).take(3) {
            taker.get(one, |bytes| of_ours.extend_from_slice(bytes)).await?;
            other.get(two, |bytes| of_files.extend_from_slice(bytes)).await?;
        }
        ensure!(of_ours == of_files, "the gateway gave other bytes than were put");
        for at_once in [1usize, 4] {
            let (mut shares, mut speeds, mut bares, mut times) = (vec![], vec![], vec![], (vec![], vec![]));
            for _ in 0..rounds {
                let from_bare = bare::read(bare, &files, size as u64, at_once, time).await?;
                let from_ours = bare::read(&gateway, &ours, size as u64, at_once, time).await?;
                shares.push(from_ours.bytes_per_second / from_bare.bytes_per_second);
                speeds.push(from_ours.bytes_per_second);
                bares.push(from_bare.bytes_per_second);
                times.0.extend(from_ours.times);
                times.1.extend(from_bare.times);
            }
            let middle = |values: &mut Vec<f64>| {
                values.sort_by(f64::total_cmp);
                values.get(values.len() / 2).copied().unwrap_or_default()
            };
            let detail = format!(
                "{:.0} MB/s of {:.0} MB/s, p50 {:.3} ms of {:.3} ms, {rounds} rounds of each in turn",
                middle(&mut speeds) / 1e6,
                middle(&mut bares) / 1e6,
                median(&times.0).as_secs_f64() * 1e3,
                median(&times.1).as_secs_f64() * 1e3,
            );
            let what = format!("get of {} KiB, {at_once} at once, to bare axum", size >> 10);
            let bound = Bound::AtLeast(if bounded { 0.5 } else { 0.0 });
            rows.push(Row::new(3, &what, bound, "", middle(&mut shares), detail));
        }
    }
    Ok(rows)
}
