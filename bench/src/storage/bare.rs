//! A bare server of files beside the gateway, and a client that costs next to nothing and is the same for both: it sends
//! bytes that were made before, and throws away what it gets.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use axum::{Router, body::Body, response::IntoResponse as _, routing::get, serve::ListenerExt};
use http::{Request, StatusCode, header};
use tokio::{
    fs::File,
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
};
use tokio_util::io::ReaderStream;

/// Bytes that the bare server reads at once, as `ServeFile` of tower-http does.
const READ_BYTES: usize = 64 << 10;
/// Bytes that the client reads at once.
const TAKE_BYTES: usize = 256 << 10;

/// The bare server as a process of its own, as the gateway is.
pub(super) struct Bare {
    _child: Child,
    pub(super) address: String,
}

impl Bare {
    pub(super) async fn start(folder: &Path) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe().context("find this program")?)
            .arg("bare-files")
            .arg(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("start the bare server")?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("read its address")?).read_line(&mut line).await?;
        ensure!(!line.is_empty(), "the bare server has ended");
        Ok(Self { _child: child, address: line.trim().to_owned() })
    }
}

/// Serves the files of a folder and prints its address.
pub(crate) async fn serve(folder: PathBuf) -> anyhow::Result<()> {
    let file = move |axum::extract::Path(name): axum::extract::Path<String>| {
        let path = folder.join(name);
        async move {
            let opened = async {
                let file = File::open(&path).await?;
                let bytes = file.metadata().await?.len();
                std::io::Result::Ok((file, bytes))
            };
            match opened.await {
                Ok((file, bytes)) => {
                    let body = Body::from_stream(ReaderStream::with_capacity(file, READ_BYTES));
                    ([(header::CONTENT_LENGTH, bytes.to_string())], body).into_response()
                }
                Err(_) => StatusCode::NOT_FOUND.into_response(),
            }
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.context("listen")?;
    let address = listener.local_addr()?.to_string();
    let router = Router::new().route("/{name}", get(file));
    writeln!(std::io::stdout(), "{address}").context("print the address")?;
    let listener = listener.tap_io(|socket| {
        let _as_it_is = socket.set_nodelay(true);
    });
    axum::serve(listener, router).await.context("serve files")
}

/// A request as it is sent.
pub(super) fn written<B>(request: &Request<B>) -> anyhow::Result<Arc<[u8]>> {
    let target = request.uri().path_and_query().context("a request has a path")?;
    let mut bytes = format!("{} {target} HTTP/1.1\r\n", request.method()).into_bytes();
    for (name, value) in request.headers() {
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
    Ok(bytes.into())
}

/// A request to the bare server.
pub(super) fn plain(address: &str, name: &str) -> anyhow::Result<Arc<[u8]>> {
    written(&Request::get(format!("/{name}")).header(header::HOST, address).body(())?)
}

/// A connection that throws away what it gets.
pub(super) struct Taker {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Taker {
    pub(super) async fn connect(address: &str) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("connect to {address}"))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: vec![0; TAKE_BYTES] })
    }

    /// Asks, and gives each piece of the body to `take`; gives the number of bytes.
    pub(super) async fn get(&mut self, request: &[u8], mut take: impl FnMut(&[u8])) -> anyhow::Result<u64> {
        self.stream.write_all(request).await?;
        let (mut have, head) = (0, loop_head());
        let (head_bytes, length) = loop {
            let room = self.buffer.get_mut(have..).unwrap_or_default();
            let read = self.stream.read(room).await?;
            ensure!(read > 0, "the connection ended before an answer");
            have += read;
            if let Some(found) = head(&self.buffer[..have])? {
                break found;
            }
        };
        take(&self.buffer[head_bytes..have]);
        let mut left = length.checked_sub((have - head_bytes) as u64).context("more came than was announced")?;
        while left > 0 {
            let room = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let read = self.stream.read(&mut self.buffer[..room]).await?;
            ensure!(read > 0, "the connection ended with {left} bytes missing");
            take(&self.buffer[..read]);
            left -= read as u64;
        }
        Ok(length)
    }
}

/// Finds the end of a head and the length that it announces.
fn loop_head() -> impl Fn(&[u8]) -> anyhow::Result<Option<(usize, u64)>> {
    |bytes| {
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
        let head = std::str::from_utf8(&bytes[..end])?;
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap_or_default();
        if !status.contains(" 200 ") {
            bail!("answered {status}: {}", String::from_utf8_lossy(&bytes[end..]));
        }
        let length = lines.find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
        });
        Ok(Some((end + 4, length.context("the answer has no length")?)))
    }
}

/// What reading many times gave.
pub(super) struct Reads {
    pub(super) bytes_per_second: f64,
    /// The time of each read, sorted.
    pub(super) times: Vec<Duration>,
}

/// Reads these in turn, again and again, over this many connections for a time.
pub(super) async fn read(
    address: &str,
    requests: &Arc<Vec<Arc<[u8]>>>,
    size: u64,
    at_once: usize,
    time: Duration,
) -> anyhow::Result<Reads> {
    let mut takers = vec![];
    for _ in 0..at_once {
        takers.push(Taker::connect(address).await?);
    }
    let begun = Instant::now();
    let mut running = tokio::task::JoinSet::new();
    for (number, mut taker) in takers.into_iter().enumerate() {
        let requests = requests.clone();
        running.spawn(async move {
            let mut times = vec![];
            for request in requests.iter().cycle().skip(number * requests.len() / at_once) {
                let asked = Instant::now();
                ensure!(taker.get(request, |_| ()).await? == size, "another length was read");
                times.push(asked.elapsed());
                if begun.elapsed() >= time {
                    break;
                }
            }
            anyhow::Ok(times)
        });
    }
    let mut times = vec![];
    while let Some(done) = running.join_next().await {
        times.extend(done??);
    }
    let bytes_per_second = (times.len() as u64 * size) as f64 / begun.elapsed().as_secs_f64();
    times.sort();
    Ok(Reads { bytes_per_second, times })
}

/// Writes the same bytes as a file for the bare server.
pub(super) fn file(folder: &Path, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder)?;
    std::fs::write(folder.join(name), bytes).with_context(|| format!("write {name}"))
}
