//! The memory of one gateway, a process of its own on a bus of its own, with 64 clients at once: puts and gets, of each
//! half by quick clients, a quarter by slow ones, and a quarter by silent ones, that stop in the middle.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use mesh_admin::free_disk_bytes;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
};

use super::{SHAPE, bare, bytes, process::Gateway};
use crate::report::{Bound, Row};

/// Clients at once.
const CLIENTS: usize = 64;
/// What a gateway is shipped with, MiB.
const LIMIT_MIB: f64 = 256.0;
/// Bytes a second of a slow client.
const SLOW: u64 = 4 << 20;
/// A silent client stops after this part of its bytes.
const SILENT_AFTER: u64 = 8;

/// How a client behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Quick,
    Slow,
    Silent,
}

/// What became of a client.
struct Ended {
    kind: Kind,
    is_put: bool,
    after: Duration,
    /// Was it served whole?
    whole: bool,
    /// What a client that was not served whole was told.
    told: String,
}

/// A body that is sent as its client behaves; gives what was answered.
async fn put(address: &str, head: &[u8], kind: Kind, size: u64, block: &[u8]) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(head).await?;
    let (begun, mut sent) = (Instant::now(), 0);
    let until = if kind == Kind::Silent { size / SILENT_AFTER } else { size };
    while sent < until {
        let piece = block.len().min(usize::try_from(until - sent).unwrap_or(usize::MAX));
        // One that is cut off learns why from the answer.
        if stream.write_all(&block[..piece]).await.is_err() {
            break;
        }
        sent += piece as u64;
        paced(kind, begun, sent).await;
    }
    let mut answer = vec![];
    let mut piece = [0; 4_096];
    // The connection stays open after a good answer.
    while !answer.windows(4).any(|four| four == b"\r\n\r\n") {
        match stream.read(&mut piece).await {
            Ok(read) if read > 0 => answer.extend_from_slice(&piece[..read]),
            _ => break,
        }
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

async fn paced(kind: Kind, begun: Instant, moved: u64) {
    if kind == Kind::Slow {
        let due = begun + Duration::from_secs_f64(moved as f64 / SLOW as f64);
        tokio::time::sleep_until(due.into()).await;
    }
}

/// An answer that is taken as its client behaves; gives the number of bytes of its body that came.
async fn get(address: &str, request: &[u8], kind: Kind, size: u64, silence: Duration) -> anyhow::Result<u64> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(request).await?;
    let mut buffer = vec![0; 64 << 10];
    let (begun, mut taken, mut head) = (Instant::now(), 0u64, None::<usize>);
    let mut silence = (kind == Kind::Silent).then_some(silence);
    loop {
        if taken > size / SILENT_AFTER
            && let Some(silence) = silence.take()
        {
            // What is in the kernel's hands when the gateway closes the connection is not all.
            tokio::time::sleep(silence).await;
        }
        let read = match stream.read(&mut buffer).await {
            Ok(read) if read > 0 => read,
            _ => return Ok(taken),
        };
        taken += read as u64;
        if head.is_none() {
            let end = buffer[..read].windows(4).position(|four| four == b"\r\n\r\n").context("a head in one piece")?;
            ensure!(buffer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&buffer[..read]));
            taken -= (end + 4) as u64;
            head = Some(end);
        }
        if taken >= size {
            return Ok(taken);
        }
        paced(kind, begun, taken).await;
    }
}

/// Takes the measurement.
pub(super) async fn measure(full: bool) -> anyhow::Result<Vec<Row>> {
    let (size, wait_ms) = if full { (1u64 << 30, 60_000) } else { (64 << 20, 5_000) };
    // Every put that ends well is deleted; all of them may end at once.
    let needed = (CLIENTS as u64 * 3 / 8 + 1) * size * (SHAPE.0 + SHAPE.1) as u64 / SHAPE.0 as u64;
    let free = free_disk_bytes(&std::env::temp_dir()).context("ask for the free disk")?;
    ensure!(free > needed, "{free} bytes of disk are free, and the measurement takes up to {needed}; make room");
    let gateway = Gateway::start(&["linger_ms=0", &format!("client_wait_ms={wait_ms}")]).await?;
    let bucket = gateway.bucket().await?;
    let block: std::sync::Arc<[u8]> = bytes(1 << 20).into();
    let source = bare::written(&bucket.signed_put("source", size)?)?;
    let stored = put(&gateway.address, &source, Kind::Quick, size, &block).await?;
    ensure!(stored.starts_with("HTTP/1.1 200"), "{stored}");
    let before = gateway.most_held()?;
    let mut running = JoinSet::new();
    let (begun, silence) = (Instant::now(), 2 * Duration::from_millis(wait_ms) + Duration::from_secs(5));
    for client in 0..CLIENTS {
        let kind = [Kind::Quick, Kind::Silent, Kind::Quick, Kind::Slow][client / 2 % 4];
        let is_put = client % 2 == 0;
        let (bucket, address, block) = (bucket.clone(), gateway.address.clone(), block.clone());
        running.spawn(async move {
            let key = format!("put-{client}");
            let (whole, told) = if is_put {
                let head = bare::written(&bucket.signed_put(&key, size)?)?;
                let answer = put(&address, &head, kind, size, &block).await?;
                let whole = answer.starts_with("HTTP/1.1 200");
                if whole {
                    bucket.delete(&key).await?;
                }
                (whole, answer.lines().next().unwrap_or("closed").to_owned())
            } else {
                let request = bare::written(&bucket.signed_get("source")?)?;
                let taken = get(&address, &request, kind, size, silence).await?;
                (taken == size, format!("closed after {taken} bytes"))
            };
            anyhow::Ok(Ended { kind, is_put, after: begun.elapsed(), whole, told })
        });
    }
    let mut ended = vec![];
    while let Some(done) = running.join_next().await {
        ended.push(done??);
    }
    let most = gateway.most_held()?;
    let of = |kind: Kind| ended.iter().filter(move |client| client.kind == kind);
    let served = ended.iter().filter(|client| client.kind != Kind::Silent && client.whole).count();
    let cut = of(Kind::Silent)
        .filter(|client| !client.whole && (!client.is_put || client.told.starts_with("HTTP/1.1 400")))
        .count();
    let latest = |kind: Kind| of(kind).map(|client| client.after.as_secs_f64()).fold(0.0, f64::max);
    let mib = size >> 20;
    let wrong = ended.iter().find(|client| client.whole == (client.kind == Kind::Silent));
    let wrong = wrong.map_or(String::new(), |client| {
        format!("; {:?} {} {}", client.kind, if client.is_put { "put" } else { "get" }, client.told)
    });
    Ok(vec![
        Row::new(
            4,
            "memory of one gateway, 64 clients at once, half of them slow or silent",
            Bound::Limit(LIMIT_MIB),
            " MiB",
            most,
            format!("puts and gets of {mib} MiB each; {before:.0} MiB after the first put"),
        ),
        Row::new(
            4,
            "quick and slow clients that were served whole",
            Bound::Exactly((CLIENTS * 3 / 4) as f64),
            "",
            served as f64,
            format!(
                "the last quick one after {:.1} s, the last slow one after {:.1} s{wrong}",
                latest(Kind::Quick),
                latest(Kind::Slow)
            ),
        ),
        Row::new(
            4,
            "silent clients that were cut off, those who put with RequestTimeout",
            Bound::Exactly((CLIENTS / 4) as f64),
            "",
            cut as f64,
            format!("after {} s of silence; the last after {:.1} s", wait_ms / 1_000, latest(Kind::Silent)),
        ),
    ])
}
