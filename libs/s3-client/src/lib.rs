//! A small client of S3 servers for locations and the command line: path style, Signature V4.

#![allow(clippy::disallowed_methods, reason = "requests are signed with the time, and connections driven by tasks")]

mod xml;

use std::{fmt::Write as _, io, ops::Range, time::Duration};

use aws_lc_rs::{digest, hmac};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{Client as Http, connect::HttpConnector},
    rt::TokioExecutor,
};
use mesh_proto::Timestamp;

/// Largest answer that is read, bytes.
pub const ANSWER_BYTES_MAX: u64 = 128 << 20;

/// Bytes of a part: what [`Client::upload`] sends and [`Client::download`] asks for at once.
pub const PART_BYTES: usize = 16 << 20;
/// Most parts of an upload: S3's own limit.
pub const PARTS_MAX: usize = 10_000;
/// How often a part is tried while the server is unavailable.
const TRIES: u32 = 3;
/// Wait between two tries.
const TRY_WAIT: Duration = Duration::from_secs(1);

/// The server did not carry out a request.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing has that name.
    #[error("{0} does not exist")]
    Missing(String),
    /// The server cannot be reached.
    #[error("{0}")]
    Unavailable(String),
    /// It answered, and refused or failed.
    #[error("{0}")]
    Failed(String),
}

/// What a bucket holds under one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The name.
    pub name: String,
    /// When it was written.
    pub modified: Timestamp,
}

/// An access key and its secret. Prints nothing.
#[derive(Clone)]
pub struct Credentials {
    /// Access key.
    pub access: String,
    /// Secret key.
    pub secret: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("access", &self.access).finish_non_exhaustive()
    }
}

/// One bucket, or a prefix of it, on one server. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    http: Http<HttpsConnector<HttpConnector>, Full<Bytes>>,
    /// `http://host:port`.
    server: String,
    host: String,
    /// `/bucket/prefix/`, with a slash at its end.
    base: String,
    region: String,
    credentials: Credentials,
    limit: Duration,
}

/// One request.
struct Ask<'a> {
    method: Method,
    /// Below the base; `None` for the bucket itself.
    name: Option<&'a str>,
    query: Vec<(&'a str, String)>,
    headers: Vec<(header::HeaderName, String)>,
    body: Bytes,
}

impl Client {
    /// For `http(s)://host[:port]/bucket[/prefix]`; the region is `local` when empty.
    ///
    /// # Errors
    /// When the URL is not of this form.
    pub fn new(url: &str, region: &str, credentials: Credentials, limit: Duration) -> Result<Self, Error> {
        let uri: Uri = url
            .parse()
            .map_err(|_| Error::Failed(format!("{url:?} is not a URL; use http(s)://host[:port]/bucket[/prefix]")))?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(Error::Failed(format!("{url:?} names no server; use http(s)://host[:port]/bucket[/prefix]")));
        };
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_native_roots()
            .map_err(|error| Error::Failed(format!("read the system's certificates: {error}")))?
            .https_or_http()
            .enable_http1()
            .build();
        Ok(Self {
            http: Http::builder(TokioExecutor::new()).build(connector),
            server: format!("{scheme}://{authority}"),
            host: authority.to_string(),
            base: format!("/{}/", uri.path().trim_matches('/')),
            region: if region.is_empty() { "local".into() } else { region.into() },
            credentials,
            limit,
        })
    }

    /// A signed request.
    fn signed(&self, ask: Ask<'_>) -> Result<Request<Full<Bytes>>, Error> {
        let at = Timestamp::from_nanos(now_nanos()).to_string();
        let stamp: String = at.split('.').next().unwrap_or_default().chars().filter(|c| !"-:Z".contains(*c)).collect();
        let stamp = format!("{stamp}Z");
        let path = match ask.name {
            Some(name) => format!("{}{}", self.base, escape(name, true)),
            None => format!("/{}", self.base.trim_matches('/').split('/').next().unwrap_or_default()),
        };
        let mut query: Vec<String> =
            ask.query.iter().map(|(key, value)| format!("{key}={}", escape(value, false))).collect();
        query.sort();
        let query = query.join("&");
        let signed = "host;x-amz-content-sha256;x-amz-date";
        // Fragments carry tags of their own; hashing them once more would halve the speed.
        let payload = "UNSIGNED-PAYLOAD";
        let canonical = format!(
            "{}\n{path}\n{query}\nhost:{}\nx-amz-content-sha256:{payload}\nx-amz-date:{stamp}\n\n{signed}\n{payload}",
            ask.method, self.host
        );
        let day = stamp.get(..8).unwrap_or_default();
        let scope = format!("{day}/{}/s3/aws4_request", self.region);
        let hash = hex::encode(digest::digest(&digest::SHA256, canonical.as_bytes()).as_ref());
        let text = format!("AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hash}");
        let first = format!("AWS4{}", self.credentials.secret).into_bytes();
        let key = [day, &self.region, "s3", "aws4_request"].iter().fold(first, |key, part| mac(&key, part));
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={signed}, Signature={}",
            self.credentials.access,
            hex::encode(mac(&key, &text))
        );
        let target = if query.is_empty() { path } else { format!("{path}?{query}") };
        let mut request = Request::builder()
            .method(ask.method)
            .uri(format!("{}{target}", self.server))
            .header(header::HOST, &self.host)
            .header("x-amz-content-sha256", payload)
            .header("x-amz-date", stamp)
            .header(header::AUTHORIZATION, authorization);
        for (name, value) in ask.headers {
            request = request.header(name, value);
        }
        request.body(Full::new(ask.body)).map_err(|error| Error::Failed(error.to_string()))
    }

    /// The request that gets a name, signed now, for those who send it themselves.
    ///
    /// # Errors
    /// When the name makes no request.
    pub fn signed_get(&self, name: &str) -> Result<Request<Full<Bytes>>, Error> {
        let (query, headers) = (vec![], vec![]);
        self.signed(Ask { method: Method::GET, name: Some(name), query, headers, body: Bytes::new() })
    }

    /// The request that puts under a name, signed now, whose body those send who send it themselves: this many bytes.
    ///
    /// # Errors
    /// When the name makes no request.
    pub fn signed_put(&self, name: &str, bytes: u64) -> Result<Request<Full<Bytes>>, Error> {
        let headers = vec![(header::CONTENT_LENGTH, bytes.to_string())];
        self.signed(Ask { method: Method::PUT, name: Some(name), query: vec![], headers, body: Bytes::new() })
    }

    async fn send(&self, ask: Ask<'_>) -> Result<Response<Incoming>, Error> {
        let request = self.signed(ask)?;
        match tokio::time::timeout(self.limit, self.http.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(Error::Unavailable(format!("{}: {}", self.server, chain(&error)))),
            Err(_) => {
                Err(Error::Unavailable(format!("{} did not answer within {} ms", self.server, self.limit.as_millis())))
            }
        }
    }

    async fn body(&self, response: Response<Incoming>) -> Result<Bytes, Error> {
        let collect = Limited::new(response.into_body(), ANSWER_BYTES_MAX as usize).collect();
        match tokio::time::timeout(self.limit, collect).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) => Err(Error::Unavailable(format!("{}: {error}", self.server))),
            Err(_) => Err(Error::Unavailable(format!("{} stopped in the middle of its answer", self.server))),
        }
    }

    /// The error that an answer other than success means. The code in the body decides, not its text.
    async fn refused(&self, name: &str, response: Response<Incoming>) -> Error {
        let status = response.status();
        let body = self.body(response).await.unwrap_or_default();
        let body = xml::parse(&String::from_utf8_lossy(&body));
        let text = |tag| body.as_ref().and_then(|body| body.text(tag)).unwrap_or_default();
        let (code, message) = (text("Code"), text("Message"));
        match (status, code) {
            (StatusCode::NOT_FOUND, "NoSuchBucket") => {
                Error::Unavailable(format!("{} has no bucket {}", self.server, self.base))
            }
            (StatusCode::NOT_FOUND, _) => Error::Missing(name.to_owned()),
            (status, code) => {
                let text = format!("{} answered {status} {code} {message}", self.server);
                if status.is_server_error() { Error::Unavailable(text) } else { Error::Failed(text) }
            }
        }
    }

    /// Stores bytes under a name.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses.
    pub async fn put(&self, name: &str, body: Bytes) -> Result<(), Error> {
        let ask = Ask { method: Method::PUT, name: Some(name), query: vec![], headers: vec![], body };
        let response = self.send(ask).await?;
        match response.status() {
            StatusCode::OK => self.body(response).await.map(|_| ()),
            _ => Err(self.refused(name, response).await),
        }
    }

    /// Stores a large object under a name, in parts of [`PART_BYTES`] of which the last may be smaller. The name has all of
    /// it afterwards, or what it had before. A part that the server does not take for a moment is sent again.
    ///
    /// # Errors
    /// When a part cannot be read, there are more than [`PARTS_MAX`], or the server cannot be reached or refuses. The server
    /// is then asked to drop the parts that it has.
    pub async fn upload(&self, name: &str, parts: impl IntoIterator<Item = io::Result<Bytes>>) -> Result<(), Error> {
        let started = self.post(name, vec![("uploads", String::new())], Bytes::new()).await?;
        let id = started
            .text("UploadId")
            .ok_or_else(|| Error::Failed(format!("{} started an upload without an id", self.server)))?;
        let outcome = self.upload_parts(name, id, parts).await;
        if outcome.is_err() {
            let query = vec![("uploadId", id.to_owned())];
            let ask = Ask { method: Method::DELETE, name: Some(name), query, headers: vec![], body: Bytes::new() };
            // The first error is the one to show.
            let _dropped = self.send(ask).await;
        }
        outcome
    }

    async fn upload_parts(
        &self,
        name: &str,
        id: &str,
        parts: impl IntoIterator<Item = io::Result<Bytes>>,
    ) -> Result<(), Error> {
        let mut list = String::from("<CompleteMultipartUpload>");
        for (number, part) in (1..).zip(parts) {
            if number > PARTS_MAX {
                let limit = PARTS_MAX * PART_BYTES;
                return Err(Error::Failed(format!(
                    "{name} has more than {limit} bytes, the most that one upload holds"
                )));
            }
            let part = part.map_err(|error| Error::Failed(format!("read what is stored as {name}: {error}")))?;
            let tag = again(async || self.upload_part(name, id, number, part.clone()).await).await?;
            let _ = write!(list, "<Part><PartNumber>{number}</PartNumber><ETag>{tag}</ETag></Part>");
        }
        list.push_str("</CompleteMultipartUpload>");
        let completed = self.post(name, vec![("uploadId", id.to_owned())], list.into()).await?;
        // The status is sent before the parts are put together, so it is 200 even if that fails.
        if completed.name() == "Error" {
            let text = |tag| completed.text(tag).unwrap_or_default();
            return Err(Error::Failed(format!("{} answered {} {}", self.server, text("Code"), text("Message"))));
        }
        Ok(())
    }

    /// Sends one part; returns its tag.
    async fn upload_part(&self, name: &str, id: &str, number: usize, body: Bytes) -> Result<String, Error> {
        let query = vec![("partNumber", number.to_string()), ("uploadId", id.to_owned())];
        let ask = Ask { method: Method::PUT, name: Some(name), query, headers: vec![], body };
        let response = self.send(ask).await?;
        if response.status() != StatusCode::OK {
            return Err(self.refused(name, response).await);
        }
        let tag = response.headers().get(header::ETAG).and_then(|tag| tag.to_str().ok()).map(str::to_owned);
        self.body(response).await?;
        tag.ok_or_else(|| Error::Failed(format!("{} stored a part without a tag", self.server)))
    }

    /// Sends a request whose answer is XML.
    async fn post(&self, name: &str, query: Vec<(&str, String)>, body: Bytes) -> Result<xml::Element, Error> {
        let ask = Ask { method: Method::POST, name: Some(name), query, headers: vec![], body };
        let response = self.send(ask).await?;
        if response.status() != StatusCode::OK {
            return Err(self.refused(name, response).await);
        }
        let body = self.body(response).await?;
        xml::parse(&String::from_utf8_lossy(&body))
            .ok_or_else(|| Error::Failed(format!("{} sent an answer that is not XML", self.server)))
    }

    /// Does a name exist?
    ///
    /// # Errors
    /// When the server cannot be reached or refuses.
    pub async fn exists(&self, name: &str) -> Result<bool, Error> {
        match self.get(name, Some(0..1)).await {
            Ok(_) => Ok(true),
            Err(Error::Missing(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Reads a large object in pieces of at most [`PART_BYTES`], in order. A piece that the server does not send for a
    /// moment is asked for again.
    ///
    /// # Errors
    /// When the name does not exist, the server cannot be reached or refuses, or `store` fails.
    pub async fn download(&self, name: &str, mut store: impl FnMut(&[u8]) -> io::Result<()>) -> Result<(), Error> {
        let mut at = 0;
        loop {
            let (is_part, piece) = again(async || self.range(name, at..at + PART_BYTES as u64).await).await?;
            // A server without ranges sends everything each time.
            if !is_part && at > 0 {
                return Err(Error::Failed(format!("{} sent all of {name} when asked for a part", self.server)));
            }
            store(&piece).map_err(|error| Error::Failed(format!("write what was read of {name}: {error}")))?;
            at += piece.len() as u64;
            if !is_part || piece.len() < PART_BYTES {
                return Ok(());
            }
        }
    }

    /// Reads a range. Beyond the end there is nothing. `false` if the server sent everything instead.
    async fn range(&self, name: &str, range: Range<u64>) -> Result<(bool, Bytes), Error> {
        let headers = vec![(header::RANGE, format!("bytes={}-{}", range.start, range.end.saturating_sub(1)))];
        let response =
            self.send(Ask { method: Method::GET, name: Some(name), query: vec![], headers, body: Bytes::new() });
        let response = response.await?;
        match response.status() {
            StatusCode::OK => Ok((false, self.body(response).await?)),
            StatusCode::PARTIAL_CONTENT => Ok((true, self.body(response).await?)),
            StatusCode::RANGE_NOT_SATISFIABLE => Ok((true, Bytes::new())),
            _ => Err(self.refused(name, response).await),
        }
    }

    /// Reads a range, or all.
    ///
    /// # Errors
    /// When the name does not exist, or the server cannot be reached or refuses.
    pub async fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Bytes, Error> {
        if let Some(range) = range {
            return Ok(self.range(name, range).await?.1);
        }
        let (query, headers) = (vec![], vec![]);
        let ask = Ask { method: Method::GET, name: Some(name), query, headers, body: Bytes::new() };
        let response = self.send(ask).await?;
        match response.status() {
            StatusCode::OK => self.body(response).await,
            _ => Err(self.refused(name, response).await),
        }
    }

    /// Removes a name.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses.
    pub async fn delete(&self, name: &str) -> Result<(), Error> {
        let (query, headers) = (vec![], vec![]);
        let ask = Ask { method: Method::DELETE, name: Some(name), query, headers, body: Bytes::new() };
        let response = self.send(ask).await?;
        match response.status() {
            StatusCode::OK | StatusCode::NO_CONTENT => Ok(()),
            _ => match self.refused(name, response).await {
                Error::Missing(_) => Ok(()),
                error => Err(error),
            },
        }
    }

    /// The names that begin with this.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses.
    pub async fn list(&self, prefix: &str) -> Result<Vec<Found>, Error> {
        let base = self.base.trim_matches('/').split_once('/').map(|(_, rest)| format!("{rest}/")).unwrap_or_default();
        let (mut found, mut token) = (vec![], None::<String>);
        loop {
            let mut query = vec![("list-type", "2".to_owned()), ("prefix", format!("{base}{prefix}"))];
            query.extend(token.take().map(|token| ("continuation-token", token)));
            let ask = Ask { method: Method::GET, name: None, query, headers: vec![], body: Bytes::new() };
            let response = self.send(ask).await?;
            if response.status() != StatusCode::OK {
                return Err(self.refused(prefix, response).await);
            }
            let body = self.body(response).await?;
            let page = xml::parse(&String::from_utf8_lossy(&body))
                .ok_or_else(|| Error::Failed(format!("{} answered a listing that is not XML", self.server)))?;
            for entry in page.children("Contents") {
                let key = entry.text("Key").unwrap_or_default();
                let modified = entry.text("LastModified").and_then(|t| t.parse().ok()).unwrap_or_default();
                found.extend(key.strip_prefix(&base).map(|name| Found { name: name.to_owned(), modified }));
            }
            token = page.text("NextContinuationToken").map(ToOwned::to_owned);
            if token.is_none() {
                return Ok(found);
            }
        }
    }

    /// Makes the bucket, under a storage policy if one is named.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses.
    pub async fn make_bucket(&self, policy: &str) -> Result<(), Error> {
        let body = match policy {
            "" => String::new(),
            policy => format!(
                "<CreateBucketConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><LocationConstraint>{policy}</LocationConstraint></CreateBucketConfiguration>"
            ),
        };
        let (query, headers) = (vec![], vec![]);
        let ask = Ask { method: Method::PUT, name: None, query, headers, body: body.into() };
        let response = self.send(ask).await?;
        match response.status() {
            StatusCode::OK => Ok(()),
            _ => Err(self.refused("bucket", response).await),
        }
    }
}

/// Tries again while the server is unavailable.
async fn again<T>(attempt: impl AsyncFn() -> Result<T, Error>) -> Result<T, Error> {
    for _ in 1..TRIES {
        match attempt().await {
            Err(Error::Unavailable(_)) => tokio::time::sleep(TRY_WAIT).await,
            outcome => return outcome,
        }
    }
    attempt().await
}

/// The only clock of this client: a signature is of the time it is made.
fn now_nanos() -> i128 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    since.as_nanos() as i128
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec()
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

/// Percent-encoding as signatures want it.
fn escape(text: &str, slash: bool) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) || (slash && byte == b'/') {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}
