//! Samples: high-rate measurements and signs of life over Zenoh. The latest wins; under pressure the oldest are
//! dropped and counted. Nothing is decided or billed from one sample.
//!
//! Runs on a multi-threaded tokio runtime only, as Zenoh does.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use mesh_proto::Timestamp;
use serde_json::{Value, json};
use zenoh::{
    Session,
    bytes::Encoding,
    handlers::RingChannel,
    liveliness::LivelinessToken,
    qos::CongestionControl,
    query::QueryTarget,
    sample::{Sample as Arrived, SampleKind},
};

use crate::Tls;

mod number;
mod question;
mod stream;

use number::{Attached, Gaps, Number, Numbers};
pub use question::{Encoded, Question, QuestionStream};
pub use stream::{AliveStream, SampleStream};
use stream::{End, Ring, Seen, SeenEnd};

/// Batches of 64 KiB that wait for a link; Zenoh's most.
const QUEUED_BATCHES: usize = 16;
/// How long a sample waits for a place in that queue before it is dropped, microseconds.
const WAIT_BEFORE_DROP_US: i64 = 20_000;

/// The role of a Zenoh session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SamplesMode {
    /// Connects to a router; what services are.
    #[default]
    Client,
    /// Others connect to it.
    Router,
    /// Connects to others directly; only where no access control is wanted, as peers bypass a router's.
    Peer,
}

/// Certificate files of a Zenoh session; the certificate's common name is its identity.
pub type SamplesTls = Tls;

/// How a Zenoh session is opened.
#[derive(Clone, Debug)]
pub struct SamplesOptions {
    /// Its role.
    pub mode: SamplesMode,
    /// Routers to connect to, as `tcp/host:port` or `tls/host:port`.
    pub connect: Vec<String>,
    /// Addresses to listen on; port 0 takes a free one.
    pub listen: Vec<String>,
    /// Certificates, for `tls/` addresses.
    pub tls: Option<SamplesTls>,
    /// How long a client tries to reach its router before opening fails, milliseconds. Once connected, it connects
    /// again for ever.
    pub connect_ms: u64,
    /// Samples that a subscription holds before it drops the oldest.
    pub buffer_max: usize,
    /// Largest sample, bytes; a larger one is refused here and dropped by others.
    pub message_max_bytes: usize,
    /// Access control of a router: `mesh_admin::samples_access` makes it from the contract. Everything is allowed when absent.
    pub access: Option<Value>,
}

impl Default for SamplesOptions {
    fn default() -> Self {
        Self {
            mode: SamplesMode::Client,
            connect: vec![],
            listen: vec![],
            tls: None,
            connect_ms: 10_000,
            buffer_max: 10_000,
            message_max_bytes: 1024 * 1024,
            access: None,
        }
    }
}

/// Why samples do not travel.
#[derive(Debug, thiserror::Error)]
pub enum SamplesError {
    /// The session did not open.
    #[error("open a Zenoh session ({connect}): is a router listening there?")]
    Open {
        /// Where it should have connected or listened.
        connect: String,
        /// Why.
        #[source]
        source: zenoh::Error,
    },
    /// A client was given no router.
    #[error("a Zenoh client needs the address of a router, for example tcp/127.0.0.1:7447")]
    NoRouter,
    /// No port could be listened on.
    #[error("find a free port on {address}")]
    Port {
        /// Where.
        address: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A setting was not accepted.
    #[error("set {key} of the Zenoh session to {value}")]
    Setting {
        /// Its path.
        key: &'static str,
        /// Its value.
        value: String,
        /// Why.
        #[source]
        source: zenoh::Error,
    },
    /// A sample is larger than the limit.
    #[error("a sample of {bytes} bytes for {key} is larger than {limit}")]
    TooLarge {
        /// Its key.
        key: String,
        /// Its size.
        bytes: usize,
        /// The limit, bytes.
        limit: usize,
    },
    /// The session refused.
    #[error("{doing} {key}")]
    Refused {
        /// What was asked.
        doing: &'static str,
        /// For which key.
        key: String,
        /// Why.
        #[source]
        source: zenoh::Error,
    },
}

/// CloudEvents attributes of a sample.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct About {
    /// Its id.
    pub id: String,
    /// Full protobuf name of its body.
    #[serde(rename = "type")]
    pub message: String,
    /// Who measured.
    pub source: String,
    /// When, RFC 3339.
    #[serde(with = "rfc3339")]
    pub time: Timestamp,
    /// W3C trace context.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

mod rfc3339 {
    use mesh_proto::Timestamp;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(time)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// One sample as it arrived.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Key that it was published on.
    pub key: String,
    /// Body, mostly protobuf.
    pub body: Bytes,
    /// Its attributes; absent if it arrived without any, or with others.
    pub about: Option<About>,
}

/// What became of the samples of one service, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SampleCounts {
    /// Published here.
    pub published: u64,
    /// That its own subscriptions dropped for being full.
    pub dropped: u64,
    /// That were published on a key between two that came, and did not come: a link was behind, or away. Each subscription
    /// counts its own.
    pub lost: u64,
}

/// A Zenoh session.
#[derive(Clone)]
pub struct Samples {
    inner: Arc<Inner>,
}

struct Inner {
    session: Session,
    options: SamplesOptions,
    listening: Vec<String>,
    /// Of all who share the session: they may publish on one key.
    numbers: Arc<Numbers>,
    published: AtomicU64,
    dropped: Arc<AtomicU64>,
    lost: Arc<AtomicU64>,
    /// Is the session another's, who closes it?
    is_lent: bool,
}

impl Samples {
    /// Opens a session. A client waits for its router up to the limit.
    pub async fn open(options: SamplesOptions) -> Result<Self, SamplesError> {
        if options.mode == SamplesMode::Client && options.connect.is_empty() {
            return Err(SamplesError::NoRouter);
        }
        crate::install_crypto();
        // Zenoh does not report the port it was given, so one is chosen first; another process may take it in between.
        let mut attempts = if options.listen.iter().any(|l| l.ends_with(":0")) { 5 } else { 1 };
        loop {
            attempts -= 1;
            let listening = options.listen.iter().map(|l| with_port(l)).collect::<Result<Vec<_>, _>>()?;
            match zenoh::open(config(&options, &listening)?).await {
                Ok(session) => {
                    return Ok(Self::over(session, options, listening, None));
                }
                Err(_) if attempts > 0 => {}
                Err(source) => {
                    let connect = options.connect.iter().chain(&listening).cloned().collect::<Vec<_>>().join(", ");
                    return Err(SamplesError::Open { connect, source });
                }
            }
        }
    }

    /// The same session for another service of this process, with counters of its own. Only this one closes it.
    pub fn share(&self) -> Self {
        let Inner { session, options, listening, numbers, .. } = &*self.inner;
        let (session, options, listening) = (session.clone(), options.clone(), listening.clone());
        Self::over(session, options, listening, Some(numbers.clone()))
    }

    /// Over a session; another's, if its numbers are given.
    fn over(session: Session, options: SamplesOptions, listening: Vec<String>, lent: Option<Arc<Numbers>>) -> Self {
        let is_lent = lent.is_some();
        let numbers = lent.unwrap_or_else(|| Arc::new(Numbers::new(session.zid().to_string())));
        let (published, dropped, lost) = (AtomicU64::new(0), Arc::default(), Arc::default());
        Self { inner: Arc::new(Inner { session, options, listening, numbers, published, dropped, lost, is_lent }) }
    }

    /// Addresses it listens on, with the ports taken.
    pub fn listening(&self) -> &[String] {
        &self.inner.listening
    }

    /// Is it connected to a router, or a router itself? Samples published while it is not reach nobody elsewhere.
    pub async fn is_connected(&self) -> bool {
        self.inner.options.mode == SamplesMode::Router || self.inner.session.info().routers_zid().await.next().is_some()
    }

    /// What became of samples.
    pub fn counts(&self) -> SampleCounts {
        let Inner { published, dropped, lost, .. } = &*self.inner;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        SampleCounts { published: read(published), dropped: read(dropped), lost: read(lost) }
    }

    /// Publishes a sample. Waits 20 ms at most for a link that is behind; then the sample is dropped, and the next ones
    /// at once until the link has caught up. Who subscribes counts what is dropped so, by its number.
    pub async fn publish(&self, key: &str, body: impl Into<Bytes>, about: &About) -> Result<(), SamplesError> {
        let body: Bytes = body.into();
        let limit = self.inner.options.message_max_bytes;
        if body.len() > limit {
            return Err(SamplesError::TooLarge { key: key.to_owned(), bytes: body.len(), limit });
        }
        let attached = Attached { about, number: self.inner.numbers.next(key) };
        let attributes = serde_json::to_vec(&attached).unwrap_or_default();
        let put = self.inner.session.put(key, body).encoding(Encoding::APPLICATION_PROTOBUF);
        let put = put.attachment(attributes).congestion_control(CongestionControl::Drop);
        put.await.map_err(|source| refused("publish on", key, source))?;
        self.inner.published.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Subscribes to every sample whose key matches, from now on.
    pub async fn subscribe(&self, key: &str) -> Result<SampleStream, SamplesError> {
        let ring = Arc::new(Ring::new(self.inner.options.buffer_max.max(1), self.inner.dropped.clone()));
        let (end, gaps) = (End(ring.clone()), Gaps::new(self.inner.lost.clone()));
        let declared = self.inner.session.declare_subscriber(key).callback(move |arrived| {
            if arrived.kind() == SampleKind::Put {
                let attached = arrived.attachment().map(|attached| attached.to_bytes());
                let number = attached.and_then(|attached| serde_json::from_slice::<Number>(&attached).ok());
                number.into_iter().for_each(|number| gaps.arrived(arrived.key_expr().as_str(), number));
                end.0.push(read(&arrived));
            }
        });
        let subscriber = declared.await.map_err(|source| refused("subscribe to", key, source))?;
        Ok(SampleStream { ring, _subscriber: subscriber })
    }

    /// Takes questions on every key that matches, from now on, and holds up to `held_max` until they are read.
    ///
    /// # Errors
    /// When the key is not a key expression, or the session is closed.
    pub async fn questions(&self, key: &str, held_max: usize) -> Result<QuestionStream, SamplesError> {
        let declared = self.inner.session.declare_queryable(key).with(RingChannel::new(held_max.max(1)));
        let queryable = declared.await.map_err(|source| refused("take questions on", key, source))?;
        Ok(QuestionStream { queryable })
    }

    /// Asks, and gives the answers, each with its key, as they come within a limit: bodies, or why there is none.
    ///
    /// # Errors
    /// When the selector is not one, or the session is closed.
    pub async fn ask(
        &self,
        selector: &str,
        limit: std::time::Duration,
    ) -> Result<Vec<(String, Result<Bytes, String>)>, SamplesError> {
        let asked = self.inner.session.get(selector).timeout(limit).target(QueryTarget::All);
        let replies = asked.await.map_err(|source| refused("ask for", selector, source))?;
        let mut found = vec![];
        while let Ok(reply) = replies.recv_async().await {
            found.push(match reply.result() {
                Ok(arrived) => {
                    let body = Bytes::from(arrived.payload().to_bytes().into_owned());
                    (arrived.key_expr().as_str().to_owned(), Ok(body))
                }
                Err(why) => {
                    let why = String::from_utf8_lossy(&why.payload().to_bytes()).into_owned();
                    (selector.to_owned(), Err(why))
                }
            });
        }
        Ok(found)
    }

    /// Shows that something lives, until the answer is dropped or this process ends.
    pub async fn declare_alive(&self, key: &str) -> Result<AliveToken, SamplesError> {
        let token = self.inner.session.liveliness().declare_token(key).await;
        Ok(AliveToken { _token: token.map_err(|source| refused("declare alive", key, source))? })
    }

    /// Watches signs of life: first everything that lives now, then each that appears or disappears.
    pub async fn watch_alive(&self, key: &str) -> Result<AliveStream, SamplesError> {
        let seen = Arc::new(Seen::default());
        let end = SeenEnd(seen.clone());
        let declared = self.inner.session.liveliness().declare_subscriber(key).history(true);
        let declared = declared.callback(move |arrived: Arrived| {
            end.0.set(arrived.key_expr().as_str().to_owned(), arrived.kind() == SampleKind::Put);
        });
        let subscriber = declared.await.map_err(|source| refused("watch alive", key, source))?;
        Ok(AliveStream { seen, _subscriber: subscriber })
    }

    /// Closes the session: its tokens end, its subscriptions too.
    pub async fn close(&self) -> Result<(), SamplesError> {
        if self.inner.is_lent {
            return Ok(());
        }
        self.inner.session.close().await.map_err(|source| refused("close", "session", source))
    }
}

fn refused(doing: &'static str, key: &str, source: zenoh::Error) -> SamplesError {
    SamplesError::Refused { doing, key: key.to_owned(), source }
}

fn read(arrived: &Arrived) -> Sample {
    Sample {
        key: arrived.key_expr().as_str().to_owned(),
        body: Bytes::from(arrived.payload().to_bytes().into_owned()),
        about: arrived.attachment().and_then(|a| serde_json::from_slice(&a.to_bytes()).ok()),
    }
}

/// Shows that something lives for as long as it exists.
pub struct AliveToken {
    _token: LivelinessToken,
}

/// `tcp/127.0.0.1:0` with a port that is free now.
fn with_port(address: &str) -> Result<String, SamplesError> {
    let Some(host) = address.strip_suffix(":0") else { return Ok(address.to_owned()) };
    let bind = format!("{}:0", host.split_once('/').map_or(host, |(_, host)| host));
    let found = std::net::TcpListener::bind(&bind).and_then(|l| l.local_addr());
    let found = found.map_err(|source| SamplesError::Port { address: address.to_owned(), source })?;
    Ok(format!("{host}:{}", found.port()))
}

fn config(options: &SamplesOptions, listening: &[String]) -> Result<zenoh::Config, SamplesError> {
    let mut config = zenoh::Config::default();
    let mut set = |key: &'static str, value: Value| {
        let value = value.to_string();
        config.insert_json5(key, &value).map_err(|source| SamplesError::Setting { key, value, source })
    };
    let mode = match options.mode {
        SamplesMode::Client => "client",
        SamplesMode::Router => "router",
        SamplesMode::Peer => "peer",
    };
    set("mode", json!(mode))?;
    set("connect/endpoints", json!(options.connect))?;
    set("connect/timeout_ms", json!({"client": options.connect_ms, "router": -1, "peer": -1}))?;
    set("connect/retry", json!({"period_init_ms": 50, "period_max_ms": 1_000, "period_increase_factor": 2}))?;
    set("listen/endpoints", json!(listening))?;
    // Peers that are found by scouting bypass access control.
    set("scouting/multicast/enabled", json!(false))?;
    set("scouting/gossip/enabled", json!(false))?;
    set("transport/unicast/compression/enabled", json!(false))?;
    // A burst waits in a megabyte for each link, and for a moment more, before any of it is dropped. The defaults, two
    // batches and a millisecond, lose packs whenever the thread that sends is not scheduled at once.
    set("transport/link/tx/queue/size/data", json!(QUEUED_BATCHES))?;
    set("transport/link/tx/queue/congestion_control/drop/wait_before_drop", json!(WAIT_BEFORE_DROP_US))?;
    // Headroom for the key and the attributes.
    set("transport/link/rx/max_message_size", json!(options.message_max_bytes + 64 * 1024))?;
    if let Some(tls) = &options.tls {
        let (ca, cert, key) = (tls.ca.to_string_lossy(), tls.cert.to_string_lossy(), tls.key.to_string_lossy());
        set(
            "transport/link/tls",
            json!({
                "root_ca_certificate": ca, "enable_mtls": true, "verify_name_on_connect": true,
                "close_link_on_expiration": true, "listen_certificate": cert, "listen_private_key": key,
                "connect_certificate": cert, "connect_private_key": key,
            }),
        )?;
    }
    if let Some(access) = &options.access {
        set("access_control", access.clone())?;
    }
    Ok(config)
}
