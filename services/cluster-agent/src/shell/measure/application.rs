//! What workloads say of themselves, in the text format of Prometheus, where their documents say so.
//!
//! A workload chooses the port, so it is asked only if one of its own processes listens there: nobody can have the agent ask
//! others of its host on their behalf.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::stream::{self, StreamExt as _};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, StatusCode, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use mesh_proto::Timestamp;
use procfs::{
    net::{TcpNetEntry, TcpState},
    process::{FDTarget, Process},
};
use tokio::{net::TcpStream, sync::watch};

use super::{Entity, Probe, Reading, Running, process::instances};
use crate::{
    domain::measure::{Scraped, prometheus},
    shell::driver::Journal,
};

/// How long a workload may take to answer, all of it.
const LIMIT: Duration = Duration::from_secs(2);
/// Bytes of an answer.
const BYTES_MAX: usize = 4 << 20;
/// Workloads asked at once.
const AT_ONCE: usize = 8;

/// Asks workloads.
pub struct Applications {
    journal: Arc<Journal>,
    running: watch::Receiver<Running>,
    series_max: usize,
}

impl Applications {
    /// Of an agent whose driver keeps this journal; at most `series_max` series of each workload.
    pub fn new(journal: Arc<Journal>, running: watch::Receiver<Running>, series_max: usize) -> Self {
        Self { journal, running, series_max }
    }

    /// Where it is asked, if one of its processes listens there.
    fn address(&self, instance: &str, port: u16, listening: &[TcpNetEntry]) -> Result<SocketAddr, String> {
        let members = self.journal.members(instance).unwrap_or_default();
        let own: BTreeSet<u64> = members.pids.iter().flat_map(|pid| sockets(*pid)).collect();
        let on_port = || listening.iter().filter(|entry| entry.local_address.port() == port);
        match on_port().find(|entry| own.contains(&entry.inode)) {
            Some(entry) => Ok(reached(entry.local_address)),
            None if on_port().next().is_some() => {
                Err(format!("port {port} is another's: none of its processes listens there"))
            }
            None => Err(format!("nothing listens on port {port}")),
        }
    }
}

/// Sockets that a process holds, by inode.
fn sockets(pid: i32) -> Vec<u64> {
    let files = Process::new(pid).and_then(|process| process.fd());
    let files = files.into_iter().flatten().filter_map(Result::ok);
    files.filter_map(|file| if let FDTarget::Socket(inode) = file.target { Some(inode) } else { None }).collect()
}

/// Sockets that listen on this host.
fn listening() -> Result<Vec<TcpNetEntry>, String> {
    let mut all = procfs::net::tcp().map_err(|error| format!("read /proc/net/tcp: {error}"))?;
    // There is no such file without IPv6.
    all.extend(procfs::net::tcp6().unwrap_or_default());
    all.retain(|entry| entry.state == TcpState::Listen);
    Ok(all)
}

/// Where a socket that listens there is reached from its host.
fn reached(listens: SocketAddr) -> SocketAddr {
    let ip = match listens.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listens.port())
}

/// Asks one workload; at most `series_max` series of it are taken.
pub async fn read(address: SocketAddr, path: &str, series_max: usize) -> Reading {
    let asked = tokio::time::timeout(LIMIT, ask(address, path)).await;
    let text = match asked {
        Ok(text) => text,
        Err(_) => Err(format!("it did not answer within {} s", LIMIT.as_secs())),
    };
    let scrape = text.and_then(|text| prometheus::read(&text, series_max));
    match scrape {
        Ok(scrape) => {
            let cut = scrape.cut;
            let why = format!(
                "{cut} series left out: too many (measure_scrape_series_max is {series_max}), too long, or there twice"
            );
            Reading { values: scrape.values, failure: (cut > 0).then_some(why) }
        }
        Err(why) => Reading { values: vec![], failure: Some(format!("GET {path}: {why}")) },
    }
}

async fn ask(address: SocketAddr, path: &str) -> Result<String, String> {
    let stream = TcpStream::connect(address).await.map_err(|error| format!("connect to {address}: {error}"))?;
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(64 << 10)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|e| e.to_string())?;
    let request = Request::get(path)
        .header(header::HOST, address.to_string())
        .header(header::ACCEPT, "text/plain;version=0.0.4")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        if response.status() != StatusCode::OK {
            return Err(format!("it answered {}", response.status()));
        }
        let body = Limited::new(response.into_body(), BYTES_MAX).collect().await;
        let body = body.map_err(|error| format!("read up to {BYTES_MAX} bytes: {error}"))?.to_bytes();
        String::from_utf8(body.into()).map_err(|_| "its answer is not UTF-8".to_owned())
    };
    tokio::pin!(answer);
    tokio::select! {
        biased;
        answer = &mut answer => answer,
        // What was sent before it closed is read still.
        _ = connection => answer.await,
    }
}

impl Probe for Applications {
    fn name(&self) -> &'static str {
        "application"
    }

    fn entities(&mut self) -> Vec<Entity> {
        instances(&self.running, "application", |_, watched| watched.scraped.is_some())
    }

    fn read(&mut self, due: &[Entity], _now: Timestamp) -> Vec<Reading> {
        if due.is_empty() {
            return vec![];
        }
        let listening = listening();
        let scraped: BTreeMap<String, Scraped> = {
            let running = self.running.borrow();
            let all = running.instances.iter();
            all.filter_map(|(id, watched)| Some((id.clone(), watched.scraped.clone()?))).collect()
        };
        let asked: Vec<Result<(SocketAddr, String), String>> = due
            .iter()
            .map(|entity| {
                let scraped = scraped.get(&entity.id).ok_or("it runs no more")?;
                let listening = listening.as_ref().map_err(Clone::clone)?;
                Ok((self.address(&entity.id, scraped.port, listening)?, scraped.path.clone()))
            })
            .collect();
        let series_max = self.series_max;
        let answers = stream::iter(asked).map(|asked| async move {
            match asked {
                Ok((address, path)) => read(address, &path, series_max).await,
                Err(why) => Reading { values: vec![], failure: Some(why) },
            }
        });
        // This thread is one that may wait.
        tokio::runtime::Handle::current().block_on(answers.buffered(AT_ONCE).collect())
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a workload of a test answers beside it")]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;
    use crate::{domain::measure::Watched, shell::driver::journal::Members};

    /// Answers one request with these bytes, and closes.
    async fn workload(answer: Vec<u8>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::task::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4_096];
            let _read = stream.read(&mut request).await;
            let _closed = stream.write_all(&answer).await;
        });
        address
    }

    fn ok(body: &str) -> Vec<u8> {
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
    }

    #[tokio::test]
    async fn what_a_workload_says_is_read_and_what_is_wrong_is_said() {
        let body = "# TYPE jobs_total counter\njobs_total{kind=\"a\"} 3\n";
        let read_of = async |answer: Vec<u8>| read(workload(answer).await, "/metrics", 2).await;
        let said = read_of(ok(body)).await;
        assert_eq!((said.values.len(), said.values[0].value, said.failure), (1, 3.0, None));
        let bomb = read_of(ok("a 1\nb 1\nc 1\nd 1\n")).await;
        assert_eq!(bomb.values.len(), 2);
        assert!(bomb.failure.unwrap().starts_with("2 series left out"));
        for (answer, problem) in [
            (b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_vec(), "404"),
            (b"garbage\r\n\r\n".to_vec(), "GET /metrics"),
            (ok("<html>"), "line 1"),
            (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n\xff\xfe".to_vec(), "UTF-8"),
            ([b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), vec![b'a'; BYTES_MAX + 1]].concat(), "read up to"),
        ] {
            let said = read_of(answer).await;
            assert!(said.values.is_empty());
            let failure = said.failure.unwrap();
            assert!(failure.contains(problem), "{failure}");
        }
    }

    #[tokio::test]
    async fn a_workload_that_does_not_answer_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let said = read(listener.local_addr().unwrap(), "/metrics", 2).await;
        assert!(said.failure.unwrap().contains("within 2 s"));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_port_of_another_is_not_asked() {
        let address = workload(ok("mine 1\n")).await;
        let scraped = Some(Scraped { port: address.port(), path: "/metrics".into() });
        let watched = Watched { owner: "eve".into(), scraped };
        let running = Running { instances: [("a".to_owned(), watched)].into(), load_milli: 0.0 };
        let journal = Arc::new(Journal::default());
        let (_tell, running) = watch::channel(running);
        let ask = async |pids: Vec<i32>| {
            journal.found([("a".to_owned(), Members { pids, groups: vec![] })].into());
            let mut probe = Applications::new(journal.clone(), running.clone(), 10);
            let read = move || {
                let entities = probe.entities();
                assert_eq!((entities[0].kind, entities[0].owner.as_str()), ("application", "eve"));
                probe.read(&entities, Timestamp::default()).remove(0)
            };
            tokio::task::spawn_blocking(read).await.unwrap()
        };
        let refused = ask(vec![]).await;
        assert!(refused.failure.unwrap().contains("another's"));
        let own = i32::try_from(std::process::id()).unwrap();
        let said = ask(vec![own]).await;
        assert_eq!((said.failure, said.values.len()), (None, 1));
    }
}
