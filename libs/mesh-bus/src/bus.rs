//! The connection as services see it: a handle from which writers, logs, pulls and buckets are made.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{sync::watch, time::timeout};

use crate::{
    Bucket, ConnectError, Log, Options, Pull, PullError, State, Stats, Writer, gather::Gatherer, link::Link,
    writer::Core,
};

/// One connection to the bus. Cheap to clone; ends with [`Bus::close`] or its last clone.
#[derive(Clone)]
pub struct Bus {
    inner: Arc<Inner>,
}

struct Inner {
    link: Arc<Link>,
    writers: Mutex<BTreeMap<String, Arc<Core>>>,
    gatherers: Mutex<BTreeMap<String, Arc<Gatherer>>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.link.closing.cancel();
        self.link.ended.cancel();
    }
}

impl Bus {
    /// Connects; tries again within the stated limit, and from then on reconnects for ever.
    pub async fn connect(options: Options) -> Result<Self, ConnectError> {
        let link = Link::connect(options).await?;
        Ok(Self { inner: Arc::new(Inner { link, writers: Mutex::default(), gatherers: Mutex::default() }) })
    }

    pub(crate) fn link(&self) -> &Arc<Link> {
        &self.inner.link
    }

    /// Name of the service that connected.
    pub fn service(&self) -> &str {
        &self.link().options.service
    }

    /// The state of the connection, and each change of it.
    pub fn state(&self) -> watch::Receiver<State> {
        self.link().state.subscribe()
    }

    /// What the bus counts.
    pub fn stats(&self) -> &Stats {
        &self.link().stats
    }

    /// The writer of decisions to a stream; one batcher per stream and bus.
    pub fn writer(&self, stream: &str) -> Writer {
        let mut writers = self.inner.writers.lock();
        let core = writers.entry(stream.to_owned()).or_insert_with(|| Core::start(self.link().clone(), stream)).clone();
        drop(writers);
        Writer::new(core, self.clone())
    }

    /// The gatherer of commands to a stream; one per stream and bus.
    pub(crate) fn gatherer(&self, stream: &str) -> Arc<Gatherer> {
        let mut gatherers = self.inner.gatherers.lock();
        if let Some(found) = gatherers.get(stream) {
            return found.clone();
        }
        let made = Gatherer::new(self.link().clone(), stream);
        gatherers.insert(stream.to_owned(), made.clone());
        made
    }

    /// Joins the readers of a durable: one of them gets its messages, the others stand by.
    pub async fn pull(&self, stream: &str, durable: &str) -> Result<Pull, PullError> {
        Pull::join(self.link().clone(), stream, durable).await
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
        link.closing.cancel();
        let writers = std::mem::take(&mut *self.inner.writers.lock());
        let settle = futures::future::join_all(writers.values().map(|core| core.drained()));
        if timeout(limit, settle).await.is_err() {
            tracing::warn!(limit_ms = limit.as_millis() as u64, "closed the bus with decisions in hand");
        }
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
