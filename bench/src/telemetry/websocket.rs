//! A subscriber over NATS WebSocket, as a browser is one: the handshake, frames and the four commands that it takes. Only for
//! measuring: it knows one subject and answers pings.

use anyhow::{Context as _, bail, ensure};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::{Buf as _, Bytes, BytesMut};
use nkeys::KeyPair;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// Bytes of one frame that are taken at most.
const FRAME_BYTES_MAX: u64 = 16 << 20;

/// Messages of one subject.
pub(super) struct Subscriber {
    stream: TcpStream,
    /// As they came: frames.
    raw: BytesMut,
    /// What was in them: the NATS protocol.
    text: BytesMut,
}

impl Subscriber {
    /// Connects with a key and subscribes.
    ///
    /// # Errors
    /// When the server cannot be reached, or refuses.
    pub(super) async fn open(url: &str, seed: &str, subject: &str) -> anyhow::Result<Self> {
        let address = url.trim_start_matches("ws://").trim_end_matches('/');
        let stream = TcpStream::connect(address).await.with_context(|| format!("connect to {url}"))?;
        stream.set_nodelay(true)?;
        let mut subscriber = Self { stream, raw: BytesMut::new(), text: BytesMut::new() };
        let hello = format!(
            "GET / HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        );
        subscriber.stream.write_all(hello.as_bytes()).await?;
        loop {
            if let Some(end) = find(&subscriber.raw, b"\r\n\r\n") {
                let head = subscriber.raw.split_to(end + 4);
                ensure!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
                break;
            }
            subscriber.receive().await?;
        }
        let info = subscriber.line().await?;
        let info: Value = serde_json::from_str(info.trim_start_matches("INFO "))?;
        let key = KeyPair::from_seed(seed).context("read the key")?;
        let nonce = info["nonce"].as_str().context("the server asks for no signature")?;
        let signature = URL_SAFE_NO_PAD.encode(key.sign(nonce.as_bytes()).context("sign")?);
        let connect = json!({
            "verbose": false, "pedantic": false, "headers": true, "no_responders": true, "lang": "bench", "version": "1",
            "protocol": 1, "nkey": key.public_key(), "sig": signature,
        });
        subscriber.send(&format!("CONNECT {connect}\r\nSUB {subject} 1\r\nPING\r\n")).await?;
        loop {
            let line = subscriber.line().await?;
            match line.as_str() {
                "PONG" => return Ok(subscriber),
                _ if line.starts_with("-ERR") => bail!("the server refuses: {line}"),
                _ => {}
            }
        }
    }

    /// The body of the next message.
    ///
    /// # Errors
    /// When the connection ends.
    pub(super) async fn next(&mut self) -> anyhow::Result<Bytes> {
        loop {
            let line = self.line().await?;
            let mut words = line.split(' ');
            let command = words.next().unwrap_or_default();
            let sizes: Vec<usize> = words.skip(2).filter_map(|word| word.parse().ok()).collect();
            match (command, &sizes[..]) {
                ("MSG", [.., size]) => return self.body(*size).await,
                ("HMSG", [.., headers, size]) => {
                    let mut all = self.body(*size).await?;
                    all.advance((*headers).min(all.len()));
                    return Ok(all);
                }
                ("PING", _) => self.send("PONG\r\n").await?,
                ("-ERR", _) => bail!("the server says {line}"),
                _ => {}
            }
        }
    }

    async fn body(&mut self, size: usize) -> anyhow::Result<Bytes> {
        while self.text.len() < size + 2 {
            self.frame().await?;
        }
        let body = self.text.split_to(size).freeze();
        self.text.advance(2);
        Ok(body)
    }

    async fn line(&mut self) -> anyhow::Result<String> {
        loop {
            if let Some(end) = find(&self.text, b"\r\n") {
                let line = self.text.split_to(end + 2);
                return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            self.frame().await?;
        }
    }

    async fn receive(&mut self) -> anyhow::Result<()> {
        let count = self.stream.read_buf(&mut self.raw).await?;
        ensure!(count > 0, "the server has closed the connection");
        Ok(())
    }

    /// Takes one frame in.
    async fn frame(&mut self) -> anyhow::Result<()> {
        loop {
            let size = match self.raw.get(1).map(|byte| byte & 0x7f) {
                Some(126) if self.raw.len() >= 4 => {
                    Some((4, u64::from(u16::from_be_bytes([self.raw[2], self.raw[3]]))))
                }
                Some(127) if self.raw.len() >= 10 => {
                    let mut size = [0; 8];
                    size.copy_from_slice(&self.raw[2..10]);
                    Some((10, u64::from_be_bytes(size)))
                }
                Some(126 | 127) | None => None,
                Some(short) => Some((2, u64::from(short))),
            };
            if let Some((head, size)) = size {
                ensure!(size <= FRAME_BYTES_MAX, "a frame of {size} bytes");
                let size = usize::try_from(size)?;
                if self.raw.len() >= head + size {
                    let kind = self.raw[0] & 0x0f;
                    self.raw.advance(head);
                    let payload = self.raw.split_to(size);
                    ensure!(kind != 8, "the server has closed the connection");
                    if kind <= 2 {
                        self.text.extend_from_slice(&payload);
                    }
                    return Ok(());
                }
            }
            self.receive().await?;
        }
    }

    /// Sends as one frame. A client masks what it sends; zeros are a mask, too.
    async fn send(&mut self, text: &str) -> anyhow::Result<()> {
        let mut frame = vec![0x82, 0x80 | 126];
        frame.extend(u16::try_from(text.len())?.to_be_bytes());
        frame.extend([0; 4]);
        frame.extend(text.as_bytes());
        Ok(self.stream.write_all(&frame).await?)
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}
