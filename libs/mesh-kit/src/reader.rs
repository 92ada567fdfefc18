//! Reads each stream once per process, for all who follow it there.
//!
//! One task per stream reads what is stored from now on and keeps the newest messages in a bounded [`Ring`]; each
//! [`Follower`] has a position of its own and takes from the ring by reference. A follower that starts further back, or
//! lags so far that the ring has moved on, reads the log itself until it is back in the ring. So what holds for a
//! [`Tail`](mesh_bus::Tail) holds for every follower, however slow another is: it sees every message from its starting
//! position on, in the order of the stream, without a gap.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::Arc,
    time::Duration,
};

use futures::FutureExt as _;
use mesh_bus::{Bus, Log, LogError, State, Tail};
use mesh_core::Stored;
use mesh_proto::{contract, contract::Kind};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Messages of one stream kept for its followers, at most.
const RING_MESSAGES_MAX: usize = 8_192;
/// Bytes of one stream kept for its followers, about; the newest message is always kept.
const RING_BYTES_MAX: usize = 8 << 20;
/// Bytes that a message has besides its body, about.
const HEADER_BYTES: usize = 512;
/// Messages that a follower takes from the ring, or the reader from its stream, at once.
const TAKE_MAX: usize = 256;
/// Messages that a follower behind the ring reads at once.
const READ_MAX: usize = 1_000;
/// A message that the ring held and a read does not give: the replica that answered may lag, so it is read this often
/// before it is taken as deleted. Facts are never deleted.
const LAGGING_ATTEMPTS: usize = 50;
/// Between two reads of a replica that lags.
const LAGGING_PAUSE: Duration = Duration::from_millis(10);

/// Reads streams over one connection, each once, for all who follow them. Cheap to clone; all clones are one reader.
#[derive(Clone)]
pub struct Reader {
    inner: Arc<Inner>,
}

struct Inner {
    bus: Bus,
    channels: Mutex<BTreeMap<String, Arc<Channel>>>,
    /// Ends the tasks that read.
    ended: CancellationToken,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.ended.cancel();
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("streams", &self.streams()).finish_non_exhaustive()
    }
}

impl Reader {
    /// Reads over this connection, whose identity must be permitted to read what is followed.
    pub fn new(bus: Bus) -> Self {
        let (channels, ended) = (Mutex::default(), CancellationToken::new());
        Self { inner: Arc::new(Inner { bus, channels, ended }) }
    }

    /// Follows a whole stream: every message from a sequence on, in order.
    pub fn follow(&self, stream: &str, from: u64) -> Follower {
        let channel = self.channel(stream);
        let head = channel.head.subscribe();
        let position = from.max(1) - 1;
        Follower { channel, head, filter: None, position, buffer: VecDeque::new(), lagging: 0, _reader: self.clone() }
    }

    /// Streams that are being read.
    pub fn streams(&self) -> Vec<String> {
        self.inner.channels.lock().keys().cloned().collect()
    }

    /// Closes its connection; whoever still follows learns that it is closed.
    pub async fn close(&self) {
        self.inner.bus.close().await;
    }

    /// How its connection stands.
    pub fn state(&self) -> watch::Receiver<State> {
        self.inner.bus.state()
    }

    fn channel(&self, stream: &str) -> Arc<Channel> {
        let mut channels = self.inner.channels.lock();
        // One that failed is read again for those who come later.
        if let Some(channel) = channels.get(stream).filter(|channel| channel.head.borrow().failed.is_none()) {
            return channel.clone();
        }
        let channel = Arc::new(Channel {
            log: self.inner.bus.log(stream),
            keeps_all: contract().stream(stream).is_some_and(|s| s.kind == Kind::Facts),
            ring: RwLock::default(),
            head: watch::Sender::default(),
        });
        channels.insert(stream.to_owned(), channel.clone());
        let (reading, ended) = (Ending(channel.clone()), self.inner.ended.clone());
        tokio::spawn(async move {
            tokio::select! {
                Err(error) = reading.0.read() => reading.0.fail(error),
                () = ended.cancelled() => {}
            }
        });
        channel
    }
}

/// One stream as it is read.
struct Channel {
    log: Log,
    /// Does the stream keep all it ever stored?
    keeps_all: bool,
    ring: RwLock<Option<Ring>>,
    head: watch::Sender<Head>,
}

/// What followers wait for.
#[derive(Clone, Debug, Default)]
struct Head {
    /// Sequence of the newest message in the ring.
    sequence: u64,
    /// Why the stream is not read any more.
    failed: Option<LogError>,
}

/// Whatever ends the task that reads, its followers learn that it ended.
struct Ending(Arc<Channel>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.fail(LogError::Closed { stream: self.0.log.stream().to_owned() });
    }
}

impl Channel {
    /// Reads what is stored from now on, until the bus is closed or refuses.
    async fn read(&self) -> Result<(), LogError> {
        let end = loop {
            match self.log.last_sequence().await {
                Err(LogError::Unanswered { .. }) => {
                    tracing::warn!(stream = self.log.stream(), "waiting for the stream")
                }
                end => break end?,
            }
        };
        *self.ring.write() = Some(Ring::after(end));
        self.head.send_modify(|head| head.sequence = end);
        let subject = contract().stream(self.log.stream()).map_or_else(|| ">".to_owned(), |spec| spec.subject.clone());
        let mut tail = self.log.tail(&subject, end + 1);
        loop {
            let first = tail.next().await?;
            self.take_in(first, &mut tail)?;
        }
    }

    /// Takes in a message, and those that are there already behind it.
    fn take_in(&self, first: Stored, tail: &mut Tail) -> Result<(), LogError> {
        let mut arrived = vec![Arc::new(first)];
        let mut ended = Ok(());
        // Only what comes live: a read that is begun here would be dropped before its answer.
        while tail.is_live() && arrived.len() < TAKE_MAX {
            match tail.next().now_or_never() {
                Some(Ok(message)) => arrived.push(Arc::new(message)),
                Some(Err(error)) => {
                    ended = Err(error);
                    break;
                }
                None => break,
            }
        }
        let mut guard = self.ring.write();
        let ring = guard.get_or_insert_default();
        arrived.into_iter().for_each(|message| ring.push(message));
        let sequence = ring.head;
        drop(guard);
        self.head.send_modify(|head| head.sequence = sequence);
        ended
    }

    fn fail(&self, error: LogError) {
        self.head.send_if_modified(|head| {
            let first = head.failed.is_none();
            if first {
                head.failed = Some(error);
            }
            first
        });
    }
}

/// The newest messages of a stream, without a gap, as many as fit.
#[derive(Debug, Default)]
struct Ring {
    /// Every message stored after this sequence, up to the head, is here.
    base: u64,
    /// Sequence of the newest.
    head: u64,
    messages: VecDeque<Arc<Stored>>,
    bytes: usize,
}

/// What a ring has for a position.
#[derive(Debug, PartialEq)]
enum Found {
    /// The messages that follow, perhaps not all; empty at the head.
    Next(Vec<Arc<Stored>>),
    /// It was too long ago: what lies before this base is to be read.
    Behind(u64),
}

impl Ring {
    /// An empty one, for a stream whose last message so far has this sequence.
    fn after(end: u64) -> Self {
        Self { base: end, head: end, ..Self::default() }
    }

    fn push(&mut self, message: Arc<Stored>) {
        if message.sequence <= self.head {
            return;
        }
        self.head = message.sequence;
        self.bytes += size(&message);
        self.messages.push_back(message);
        while self.messages.len() > RING_MESSAGES_MAX || (self.bytes > RING_BYTES_MAX && self.messages.len() > 1) {
            let Some(oldest) = self.messages.pop_front() else { break };
            self.bytes -= size(&oldest);
            self.base = oldest.sequence;
        }
    }

    fn find(&self, position: u64) -> Found {
        if position < self.base {
            return Found::Behind(self.base);
        }
        let first = self.messages.partition_point(|message| message.sequence <= position);
        Found::Next(self.messages.iter().skip(first).take(TAKE_MAX).cloned().collect())
    }
}

fn size(message: &Stored) -> usize {
    message.body.len() + HEADER_BYTES
}

/// One who follows a stream: sees every message from its starting position on, in order and without a gap.
pub struct Follower {
    channel: Arc<Channel>,
    head: watch::Receiver<Head>,
    filter: Option<String>,
    /// All up to here was given, or does not match.
    position: u64,
    buffer: VecDeque<Arc<Stored>>,
    /// Reads in a row that did not give what the ring held.
    lagging: usize,
    /// The reader reads while anybody follows.
    _reader: Reader,
}

impl Follower {
    /// Gives only what is stored on subjects that this filter matches.
    #[must_use]
    pub fn matching(mut self, filter: &str) -> Self {
        self.filter = Some(filter.to_owned());
        self
    }

    /// The next message. Waits while there is none and while the bus is away. Dropped before its end, nothing is lost.
    ///
    /// # Errors
    /// When the bus is closed, or the stream must not be read.
    pub async fn next(&mut self) -> Result<Arc<Stored>, LogError> {
        loop {
            while let Some(message) = self.buffer.pop_front() {
                self.position = message.sequence;
                if self.filter.as_ref().is_none_or(|filter| contract::matches(filter, &message.subject)) {
                    return Ok(message);
                }
            }
            // Before the ring is looked at: what comes after the look wakes the wait below.
            let failed = self.head.borrow_and_update().failed.clone();
            let found = self.channel.ring.read().as_ref().map(|ring| ring.find(self.position));
            match found {
                Some(Found::Next(messages)) if !messages.is_empty() => self.buffer.extend(messages),
                Some(Found::Behind(base)) if failed.is_none() => self.read_up_to(base).await?,
                _ => {
                    if let Some(error) = failed {
                        return Err(error);
                    }
                    // Its sender lives as long as the channel, which this follower holds.
                    let _ = self.head.changed().await;
                }
            }
        }
    }

    /// Sequence up to which all was given that matches.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Reads on from the position, towards what the ring holds.
    async fn read_up_to(&mut self, base: u64) -> Result<(), LogError> {
        let found = match self.channel.log.read(">", self.position + 1, READ_MAX).await {
            Err(LogError::Unanswered { stream, .. }) => {
                tracing::warn!(stream, "waiting for the stream");
                return Ok(());
            }
            found => found?,
        };
        let is_all = found.len() < READ_MAX;
        let read_to = found.last().map_or(self.position, |message| message.sequence);
        self.buffer.extend(found.into_iter().map(Arc::new));
        if !is_all || read_to >= base {
            self.lagging = 0;
        } else if self.buffer.is_empty() {
            self.lagging += 1;
            if self.channel.keeps_all || self.lagging < LAGGING_ATTEMPTS {
                tokio::time::sleep(LAGGING_PAUSE).await;
            } else {
                (self.position, self.lagging) = (base, 0);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use mesh_proto::Timestamp;

    use super::*;

    fn message(sequence: u64, bytes: usize) -> Arc<Stored> {
        Arc::new(Stored {
            stream: "INTENT".into(),
            sequence,
            subject: "intent.submitted.v1.local.a".into(),
            id: sequence.to_string(),
            message: String::new(),
            time: Timestamp::default(),
            stored: Timestamp::default(),
            cause: None,
            traceparent: None,
            world: vec![],
            content_type: None,
            source: None,
            previous_on_subject: None,
            delivered: 1,
            body: Bytes::from(vec![0; bytes]),
        })
    }

    fn sequences(found: Found) -> Vec<u64> {
        match found {
            Found::Next(messages) => messages.iter().map(|message| message.sequence).collect(),
            Found::Behind(base) => panic!("behind {base}"),
        }
    }

    #[test]
    fn a_ring_gives_what_follows_a_position() {
        let mut ring = Ring::after(10);
        assert_eq!(ring.find(10), Found::Next(vec![]));
        assert_eq!(ring.find(9), Found::Behind(10), "what was stored before it began is not in it");
        // 12 was deleted.
        [11, 13, 14].into_iter().for_each(|sequence| ring.push(message(sequence, 1)));
        ring.push(message(13, 1));
        assert_eq!(sequences(ring.find(10)), [11, 13, 14]);
        assert_eq!(sequences(ring.find(12)), [13, 14]);
        assert_eq!(sequences(ring.find(14)), [0; 0]);
    }

    #[test]
    fn a_ring_is_bounded_by_messages_and_by_bytes() {
        let mut ring = Ring::default();
        let count = RING_MESSAGES_MAX as u64 + 10;
        (1..=count).for_each(|sequence| ring.push(message(sequence, 1)));
        assert_eq!((ring.messages.len(), ring.base), (RING_MESSAGES_MAX, 10));
        assert_eq!(ring.find(9), Found::Behind(10));
        assert_eq!(sequences(ring.find(10))[..2], [11, 12]);
        ring.push(message(count + 1, RING_BYTES_MAX * 2));
        assert_eq!((ring.messages.len(), ring.base, ring.head), (1, count, count + 1), "the newest is always kept");
        ring.push(message(count + 2, 1));
        assert_eq!((ring.messages.len(), ring.bytes), (1, HEADER_BYTES + 1));
    }
}
