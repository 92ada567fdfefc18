//! The connection as services see it: a handle from which writers, logs, pulls and buckets are made.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use mesh_core::Outgoing;
use parking_lot::Mutex;
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    Bucket, ConnectError, Log, Options, Pull, PullError, PullInfo, State, Stats, Writer, gather::Gatherer, link::Link,
    writer::Core,
};

/// One connection to the bus. Cheap to clone; ends with [`Bus::close`] or its last clone.
#[derive(Clone)]
pub struct Bus {
    inner: Arc<Inner>,
}

struct Inner {
    link: Arc<Link>,
    /// `ce-source` of what it publishes.
    service: Arc<str>,
    writers: Mutex<BTreeMap<String, Arc<Core>>>,
    gatherers: Mutex<BTreeMap<String, Arc<Gatherer>>>,
    /// Closing has begun: nothing new is accepted.
    closing: CancellationToken,
    /// The bus whose connection this shares; `None` for the one that made it.
    lender: Option<Bus>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.closing.cancel();
        if self.lender.is_none() {
            self.link.closing.cancel();
            self.link.ended.cancel();
        }
    }
}

/// Learns what a connection has stored, as soon as the server has acknowledged it.
pub trait Echo: Send + Sync {
    /// This message of this source is stored with this sequence.
    fn stored(&self, message: &Outgoing, source: &str, sequence: u64);
}

impl Bus {
    /// Connects; tries again within the stated limit, and from then on reconnects for ever.
    pub async fn connect(options: Options) -> Result<Self, ConnectError> {
        let link = Link::connect(options).await?;
        let (service, closing) = (link.options.service.as_str().into(), link.closing.child_token());
        Ok(Self::over(link, service, closing, None))
    }

    fn over(link: Arc<Link>, service: Arc<str>, closing: CancellationToken, lender: Option<Self>) -> Self {
        let (writers, gatherers) = (Mutex::default(), Mutex::default());
        Self { inner: Arc::new(Inner { link, service, writers, gatherers, closing, lender }) }
    }

    /// The same connection for another service of this process: what that publishes bears its name. Closing it settles
    /// what that service has in hand; the connection stays until this bus is closed.
    pub fn for_service(&self, service: &str) -> Self {
        let link = self.link().clone();
        let closing = link.closing.child_token();
        Self::over(link, service.into(), closing, Some(self.clone()))
    }

    /// Reports every event (not commands) that is stored over this connection from now on. Only the first call counts.
    pub fn echo_to(&self, echo: Arc<dyn Echo>) {
        let _ = self.link().echo.set(echo);
    }

    pub(crate) fn link(&self) -> &Arc<Link> {
        &self.inner.link
    }

    /// Name of the service that connected.
    pub fn service(&self) -> &str {
        &self.inner.service
    }

    pub(crate) fn source(&self) -> &Arc<str> {
        &self.inner.service
    }

    /// The state of the connection, and each change of it.
    pub fn state(&self) -> watch::Receiver<State> {
        self.link().state.subscribe()
    }

    /// What the bus counts.
    pub fn stats(&self) -> &Stats {
        &self.link().stats
    }

    /// Messages from which on one atomic batch is quicker than a plain publish of each, as the disk is now: few where a sync
    /// takes long.
    pub fn batch_worth(&self) -> usize {
        self.link().disk.worth()
    }

    /// The writer of decisions to a stream; one batcher per stream and bus.
    pub fn writer(&self, stream: &str) -> Writer {
        let mut writers = self.inner.writers.lock();
        let core = writers.entry(stream.to_owned()).or_insert_with(|| self.start_writer(stream)).clone();
        drop(writers);
        Writer::new(core, self.clone())
    }

    fn start_writer(&self, stream: &str) -> Arc<Core> {
        Core::start(self.link().clone(), self.source().clone(), self.inner.closing.clone(), stream)
    }

    /// The gatherer of commands to a stream; one per stream and bus.
    pub(crate) fn gatherer(&self, stream: &str) -> Arc<Gatherer> {
        let mut gatherers = self.inner.gatherers.lock();
        if let Some(found) = gatherers.get(stream) {
            return found.clone();
        }
        let made = Gatherer::new(self.link().clone(), self.source().clone(), stream);
        gatherers.insert(stream.to_owned(), made.clone());
        made
    }

    /// Joins the readers of a durable: one of them gets its messages, the others stand by.
    pub async fn pull(&self, stream: &str, durable: &str) -> Result<Pull, PullError> {
        Pull::join(self.link().clone(), stream, durable).await
    }

    /// The state of a durable, without joining its readers.
    pub async fn durable(&self, stream: &str, durable: &str) -> Result<PullInfo, PullError> {
        Pull::look(self.link().clone(), stream, durable).await
    }

    /// A stream, to be read by sequence.
    pub fn log(&self, stream: &str) -> Log {
        Log::new(self.link().clone(), stream)
    }

    /// A key-value bucket.
    pub fn bucket(&self, name: &str) -> Bucket {
        Bucket::new(self.link().clone(), name)
    }

    /// Accepts nothing more, settles what is in hand, flushes and disconnects, all within the stated limit.
    /// Decisions that wait for a full stream fail at once.
    pub async fn close(&self) {
        let link = &self.inner.link;
        let limit = Duration::from_millis(link.options.close_limit_ms);
        self.inner.closing.cancel();
        let writers = std::mem::take(&mut *self.inner.writers.lock());
        let settle = futures::future::join_all(writers.values().map(|core| core.drained()));
        if timeout(limit, settle).await.is_err() {
            tracing::warn!(limit_ms = limit.as_millis() as u64, "closed the bus with decisions in hand");
        }
        if self.inner.lender.is_some() {
            return;
        }
        link.closing.cancel();
        if let Ok(client) = link.client() {
            // The pulls' last acknowledgements are already on their way when their tasks end.
            link.ended.cancel();
            link.tasks.close();
            let _ = timeout(limit, link.tasks.wait()).await;
            if link.is_connected() {
                let _ = timeout(limit, client.flush()).await;
            }
            let _ = timeout(limit, client.drain()).await;
        }
    }
}
