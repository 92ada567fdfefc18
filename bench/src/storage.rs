//! `bench storage`: put and get through the gateway, beside the parts they are made of, in one run on one disk.
//!
//! The bound of a put is its slowest part if all overlapped, and the sum of their times if none did; with the cores of
//! this machine the truth lies between. The same for a get.

use std::{
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use clap::Args;
use mesh_proto::storage::{DefinePolicy, Location, Policy, Redundancy, RegisterLocation};
use secure_storage::blob::{
    code::{Code, Scheme},
    fragment::Geometry,
    seal::{self, DataKey, Place},
};
use serde_json::json;

use continuum::{
    commands::storage,
    output::{self, Format},
};
use mesh_all::{Options, Up};
use mesh_client::{Client, OWNER};

/// Options of `bench storage`.
#[derive(Debug, Args)]
pub(crate) struct StorageOptions {
    /// More objects, of more sizes.
    #[arg(long)]
    full: bool,
}

const PIECE: usize = 256 << 10;
const EXTENT: usize = 8 << 20;
/// Fragments that suffice and that are redundant.
const SHAPE: (usize, usize) = (3, 1);

/// Runs it.
pub(crate) async fn run(options: StorageOptions, format: Format) -> anyhow::Result<ExitCode> {
    let folder = tempfile::Builder::new().prefix("continuum-bench-").tempdir().context("make a folder")?;
    let seconds = Duration::from_secs_f64(if options.full { 3.0 } else { 0.7 });
    let bytes: Vec<u8> = (0..EXTENT as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
    let parts = tokio::task::block_in_place(|| parts(folder.path(), &bytes, seconds))?;
    let up = Up::start(&folder.path().join("mesh"), &Options { log: "error".into(), ..Options::default() }).await?;
    let measured = through(&folder.path().join("mesh"), options.full).await;
    up.stop().await.context("stop the mesh")?;
    let measured = measured?;

    let speed = |name: &str| parts.iter().find(|(n, _)| *n == name).map_or(f64::NAN, |(_, speed)| *speed);
    // Bytes per second of the object's own bytes.
    let bound = |names: &[&str]| {
        let slowest = names.iter().map(|n| speed(n)).fold(f64::INFINITY, f64::min);
        let sum = 1.0 / names.iter().map(|n| 1.0 / speed(n)).sum::<f64>();
        (slowest, sum)
    };
    let put = bound(&["md5", "cipher", "code", "tags", "disk write"]);
    let get = bound(&["cipher", "tags", "disk read"]);
    let mut rows: Vec<Vec<String>> =
        parts.iter().map(|(name, speed)| vec![(*name).into(), mega(*speed), String::new(), String::new()]).collect();
    for (what, (slowest, sum)) in [("bound of a put", put), ("bound of a get", get)] {
        rows.push(vec![what.into(), mega(slowest), "all parts overlapped".into(), String::new()]);
        rows.push(vec![what.into(), mega(sum), "one part after the other".into(), String::new()]);
    }
    for m in &measured {
        let (slowest, sum) = if m.what.starts_with("put") { put } else { get };
        rows.push(vec![
            m.what.clone(),
            mega(m.bytes_per_second),
            format!(
                "{:.0} % of overlapped, {:.0} % of in turn",
                100.0 * m.bytes_per_second / slowest,
                100.0 * m.bytes_per_second / sum
            ),
            format!("p50 {:.2} ms", m.p50.as_secs_f64() * 1e3),
        ]);
    }
    let value = json!({
        "full": options.full,
        "shape": {"data": SHAPE.0, "redundant": SHAPE.1},
        "partsBytesPerSecond": parts.iter().map(|(n, s)| ((*n).to_owned(), json!(s))).collect::<serde_json::Map<_, _>>(),
        "putBound": {"overlapped": put.0, "inTurn": put.1},
        "getBound": {"overlapped": get.0, "inTurn": get.1},
        "measured": measured.iter().map(|m| json!({
            "what": m.what, "bytesPerSecond": m.bytes_per_second, "p50Ms": m.p50.as_secs_f64() * 1e3,
        })).collect::<Vec<_>>(),
    });
    output::show(format, &value, &["what", "MB/s", "share", "latency"], || rows);
    Ok(ExitCode::SUCCESS)
}

fn mega(bytes_per_second: f64) -> String {
    format!("{:.0}", bytes_per_second / 1e6)
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

struct Measured {
    what: String,
    bytes_per_second: f64,
    p50: Duration,
}

/// Puts and gets of several sizes through the S3 interface, one and four at a time.
async fn through(data_dir: &Path, full: bool) -> anyhow::Result<Vec<Measured>> {
    let client = Client::connect(data_dir).await?;
    let mut edge_devices = vec![];
    for number in 0..SHAPE.0 + SHAPE.1 {
        let location = format!("bench-{number}");
        let description = Some(Location { kind: "edge".into(), url: format!("dir:{location}"), ..Location::default() });
        storage::send(&client, &RegisterLocation { owner: OWNER.into(), location: location.clone(), description })
            .await?;
        edge_devices.push(location);
    }
    let redundancy = Some(Redundancy { scheme: "RS".into(), redundant_packets: SHAPE.1 as u32 });
    let definition = Some(Policy { edge_devices, redundancy, ..Policy::default() });
    storage::send(&client, &DefinePolicy { owner: OWNER.into(), policy: "bench".into(), definition }).await?;
    let bucket = storage::bucket(&client, data_dir, OWNER, "bench").await?;
    bucket.make_bucket("bench").await?;
    let sizes: &[(usize, usize)] = if full {
        &[(4 << 10, 200), (1 << 20, 100), (32 << 20, 16), (96 << 20, 6)]
    } else {
        &[(4 << 10, 60), (1 << 20, 30), (32 << 20, 4)]
    };
    let mut found = vec![];
    for &(size, count) in sizes {
        let body = bytes::Bytes::from(
            (0..size as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 9) as u8).collect::<Vec<_>>(),
        );
        for at_once in [1usize, 4] {
            for put in [true, false] {
                let (begun, mut times) = (Instant::now(), vec![]);
                let mut running = tokio::task::JoinSet::new();
                for number in 0..count {
                    while running.len() >= at_once {
                        times.push(running.join_next().await.context("a request")???);
                    }
                    let (bucket, body, key) = (bucket.clone(), body.clone(), format!("{size}/{at_once}/{number}"));
                    running.spawn(async move {
                        let begun = Instant::now();
                        if put {
                            bucket.put(&key, body).await?;
                        } else if bucket.get(&key, None).await?.len() != body.len() {
                            bail!("another length was read");
                        }
                        anyhow::Ok(begun.elapsed())
                    });
                }
                while let Some(done) = running.join_next().await {
                    times.push(done??);
                }
                let seconds = begun.elapsed().as_secs_f64();
                times.sort();
                let what = if put { "put" } else { "get" };
                found.push(Measured {
                    what: format!("{what} {} KiB, {at_once} at once", size >> 10),
                    bytes_per_second: (size * count) as f64 / seconds,
                    p50: times.get(times.len() / 2).copied().unwrap_or_default(),
                });
            }
        }
    }
    client.bus().close().await;
    Ok(found)
}
