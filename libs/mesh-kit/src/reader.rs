//! Reads each stream once per process, for all who follow it there.
//!
//! One task per stream reads what is stored from now on and keeps the newest messages in a bounded [`Ring`]; each
//! [`Follower`] has a position of its own and takes from the ring by reference. A follower that starts further back, or
//! lags so far that the ring has moved on, reads the log itself until it is back in the ring. So what holds for a
//! [`Tail`](mesh_bus::Tail) holds for every follower, however slow another is: it sees every message from its starting
//! position on, in the order of the stream, without a gap.
//!
//! In a process that runs all services, what it writes itself is not delivered back by the server: the connection tells
//! the reader what it has stored ([`Reader::alone`]). Such a stream is read only where its sequences show a gap, and once
//! in a while.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use futures::FutureExt as _;
use mesh_bus::{Bus, Echo, Log, LogError, State, Tail};
use mesh_core::{Outgoing, Stored};
use mesh_proto::{contract, contract::Kind};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::clock::clock;

/// Messages of one stream kept for its followers, at most: what all of them have taken leaves earlier,
const RING_MESSAGES_MAX: usize = 2_000;
/// but for the newest, for who begins to follow at the end of the stream.
const RING_MESSAGES_MIN: usize = 32;
/// Bytes of one stream kept for its followers, about; the newest message is always kept.
const RING_BYTES_MAX: usize = 1 << 20;
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

/// How soon a quiet stream whose messages the process writes itself is read nevertheless; each time that nothing is found
/// it takes twice as long, up to the second.
const QUIET: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(5)];
/// How long a gap among what the process has written waits for the missing acknowledgement before it is read.
const GAP: Duration = Duration::from_millis(50);

/// Reads streams over one connection, each once, for all who follow them. Cheap to clone; all clones are one reader.
#[derive(Clone)]
pub struct Reader {
    inner: Arc<Inner>,
}

struct Inner {
    bus: Bus,
    channels: Mutex<BTreeMap<String, Arc<Channel>>>,
    /// Streams that only this process writes, over this connection; `None` if others may run the same services.
    own: Option<BTreeSet<String>>,
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
        Self::over(bus, None)
    }

    /// Reads for a process that alone runs its services and writes these streams over this connection. What it writes is
    /// not read back, and its deciders follow their inputs here instead of pulling durables.
    pub fn alone(bus: Bus, own: BTreeSet<String>) -> Self {
        let reader = Self::over(bus, Some(own));
        let echo = Arc::new(EchoTo(Arc::downgrade(&reader.inner)));
        reader.inner.bus.echo_to(echo);
        reader
    }

    fn over(bus: Bus, own: Option<BTreeSet<String>>) -> Self {
        let (channels, ended) = (Mutex::default(), CancellationToken::new());
        Self { inner: Arc::new(Inner { bus, channels, own, ended }) }
    }

    /// Do deciders follow their inputs here?
    pub(crate) fn is_alone(&self) -> bool {
        self.inner.own.is_some()
    }

    /// Follows a whole stream: every message from a sequence on, in order.
    pub fn follow(&self, stream: &str, from: u64) -> Follower {
        let channel = self.channel(stream);
        let head = channel.head.subscribe();
        let position = from.max(1) - 1;
        let taken = Arc::new(AtomicU64::new(position));
        channel.taken.lock().push(Arc::downgrade(&taken));
        let buffer = VecDeque::new();
        Follower { channel, head, filter: None, position, taken, buffer, lagging: 0, _reader: self.clone() }
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
            is_own: self.inner.own.as_ref().is_some_and(|own| own.contains(stream)),
            early: Mutex::default(),
            gap: Notify::new(),
            listeners: Mutex::default(),
            taken: Mutex::default(),
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

/// Tells a reader what its connection has stored.
struct EchoTo(Weak<Inner>);

impl Echo for EchoTo {
    fn stored(&self, message: &Outgoing, source: &str, sequence: u64) {
        let Some(inner) = self.0.upgrade() else { return };
        let channel = inner.channels.lock().get(&message.stream).filter(|channel| channel.is_own).cloned();
        if let Some(channel) = channel {
            channel.echo(Arc::new(message.stored(source, sequence, clock())));
        }
    }
}

/// One stream as it is read.
struct Channel {
    log: Log,
    /// Does the stream keep all it ever stored?
    keeps_all: bool,
    /// Does the process write it itself?
    is_own: bool,
    /// What was written behind a gap, by sequence.
    early: Mutex<BTreeMap<u64, Arc<Stored>>>,
    /// There is a gap.
    gap: Notify,
    /// Who is woken beside those who watch the head.
    listeners: Mutex<Vec<Weak<Notify>>>,
    /// Up to where each follower has taken messages.
    taken: Mutex<Vec<Weak<AtomicU64>>>,
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
        if self.is_own {
            return self.read_own().await;
        }
        let subject = contract().stream(self.log.stream()).map_or_else(|| ">".to_owned(), |spec| spec.subject.clone());
        let mut tail = self.log.tail(&subject, end + 1);
        loop {
            let first = tail.next().await?;
            self.take_in(first, &mut tail)?;
        }
    }

    /// Reads what the connection did not tell: what others wrote, and what was stored while nobody listened.
    async fn read_own(&self) -> Result<(), LogError> {
        let mut quiet = QUIET[0];
        loop {
            let position = self.head.borrow().sequence;
            match self.log.read(">", position + 1, READ_MAX).await {
                Err(LogError::Unanswered { stream, .. }) => tracing::warn!(stream, "waiting for the stream"),
                found => {
                    let found = found?;
                    let count = found.len();
                    self.push(found.into_iter().map(Arc::new));
                    quiet = if count == 0 { (quiet * 2).min(QUIET[1]) } else { QUIET[0] };
                    if count == READ_MAX {
                        continue;
                    }
                }
            }
            // While the connection tells of message after message, only a gap is a reason to read.
            loop {
                let before = self.head.borrow().sequence;
                if tokio::time::timeout(quiet, self.gap.notified()).await.is_ok() {
                    tokio::time::sleep(GAP).await;
                    if !self.early.lock().is_empty() {
                        break;
                    }
                } else if self.head.borrow().sequence == before {
                    break;
                }
            }
        }
    }

    /// Takes in messages in order, and those that were early behind them.
    fn push(&self, messages: impl IntoIterator<Item = Arc<Stored>>) {
        let mut guard = self.ring.write();
        let Some(ring) = guard.as_mut() else { return };
        messages.into_iter().for_each(|message| ring.push(message));
        let mut early = self.early.lock();
        while let Some(next) = early.first_entry().filter(|next| *next.key() <= ring.head + 1) {
            ring.push(next.remove());
        }
        ring.leave(self.taken());
        let sequence = ring.head;
        drop(early);
        drop(guard);
        self.moved_to(sequence);
    }

    /// The connection has stored this message.
    fn echo(&self, message: Arc<Stored>) {
        let sequence = message.sequence;
        let head = self.head.borrow().sequence;
        if sequence == head + 1 && self.ring.read().is_some() {
            return self.push([message]);
        }
        let mut early = self.early.lock();
        if sequence > head && early.len() < RING_MESSAGES_MAX {
            early.insert(sequence, message);
        }
        drop(early);
        self.push([]);
        if !self.early.lock().is_empty() {
            self.gap.notify_one();
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
        ring.leave(self.taken());
        let sequence = ring.head;
        drop(guard);
        self.moved_to(sequence);
        ended
    }

    /// Up to where all followers have taken messages.
    fn taken(&self) -> u64 {
        let mut least = u64::MAX;
        self.taken.lock().retain(|taken| {
            let taken = taken.upgrade();
            least = taken.as_ref().map_or(least, |taken| least.min(taken.load(Relaxed)));
            taken.is_some()
        });
        least
    }

    fn moved_to(&self, sequence: u64) {
        // Two that push at once may come here in either order.
        let moved = self.head.send_if_modified(|head| {
            let moved = sequence > head.sequence;
            head.sequence = head.sequence.max(sequence);
            moved
        });
        if moved {
            self.wake();
        }
    }

    fn wake(&self) {
        self.listeners.lock().retain(|listener| listener.upgrade().inspect(|wake| wake.notify_one()).is_some());
    }

    fn fail(&self, error: LogError) {
        self.head.send_if_modified(|head| {
            let first = head.failed.is_none();
            if first {
                head.failed = Some(error);
            }
            first
        });
        self.wake();
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

    /// Forgets what all followers have taken.
    fn leave(&mut self, taken: u64) {
        while self.messages.len() > RING_MESSAGES_MIN
            && let Some(oldest) = self.messages.pop_front_if(|oldest| oldest.sequence <= taken)
        {
            self.bytes -= size(&oldest);
            self.base = oldest.sequence;
        }
    }

    fn find(&self, position: u64) -> Found {
        if position < self.base {
            return Found::Behind(self.base);
        }
        // Mostly the sequences have no holes.
        let behind = usize::try_from(self.head.saturating_sub(position)).unwrap_or(usize::MAX);
        let guess = self.messages.len().saturating_sub(behind);
        let is_first = guess == 0 || self.messages.get(guess - 1).is_some_and(|message| message.sequence == position);
        let first =
            if is_first { guess } else { self.messages.partition_point(|message| message.sequence <= position) };
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
    /// Up to where it needs nothing of the ring.
    taken: Arc<AtomicU64>,
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
                Some(Found::Next(messages)) if !messages.is_empty() => self.hold(messages),
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

    /// Takes messages out of the ring, or what was read instead.
    fn hold(&mut self, messages: impl IntoIterator<Item = Arc<Stored>>) {
        self.buffer.extend(messages);
        if let Some(newest) = self.buffer.back() {
            self.taken.store(newest.sequence, Relaxed);
        }
    }

    /// What is there to be taken, without waiting.
    fn take(&mut self) -> Result<Taken, LogError> {
        if self.buffer.is_empty() {
            let failed = self.head.borrow_and_update().failed.clone();
            let found = self.channel.ring.read().as_ref().map(|ring| ring.find(self.position));
            match (found, failed) {
                (Some(Found::Next(messages)), _) if !messages.is_empty() => self.hold(messages),
                (_, Some(error)) => return Err(error),
                (Some(Found::Behind(base)), None) => return Ok(Taken::Behind(base)),
                _ => return Ok(Taken::Nothing),
            }
        }
        self.position = self.buffer.back().map_or(self.position, |message| message.sequence);
        let matches = |message: &Arc<Stored>| {
            self.filter.as_ref().is_none_or(|filter| contract::matches(filter, &message.subject))
        };
        Ok(Taken::Messages(std::mem::take(&mut self.buffer).into_iter().filter(matches).collect()))
    }

    /// Reads the sequence of the stream's newest message, as far as the reader knows.
    pub(crate) fn head(&self) -> impl Fn() -> u64 + Send + Sync + use<> {
        let head = self.head.clone();
        move || head.borrow().sequence
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
        self.hold(found.into_iter().map(Arc::new));
        if !is_all || read_to >= base {
            self.lagging = 0;
        } else if self.buffer.is_empty() {
            self.lagging += 1;
            if self.channel.keeps_all || self.lagging < LAGGING_ATTEMPTS {
                tokio::time::sleep(LAGGING_PAUSE).await;
            } else {
                (self.position, self.lagging) = (base, 0);
                self.taken.store(base, Relaxed);
            }
        }
        Ok(())
    }
}

/// What a follower finds.
enum Taken {
    Messages(Vec<Arc<Stored>>),
    Nothing,
    /// It lags behind the ring, which begins after this sequence.
    Behind(u64),
}

/// Several followers as one, in one task: it is woken once, however many streams have moved.
pub(crate) struct Merged {
    followers: Vec<Follower>,
    /// Whose turn it is to be looked at first.
    turn: usize,
    wake: Arc<Notify>,
}

impl Merged {
    pub(crate) fn new() -> Self {
        Self { followers: vec![], turn: 0, wake: Arc::default() }
    }

    pub(crate) fn add(&mut self, follower: Follower) {
        follower.channel.listeners.lock().push(Arc::downgrade(&self.wake));
        self.followers.push(follower);
        self.wake.notify_one();
    }

    /// The next messages of one of the streams, in their order there. Waits while there are none. Dropped before its end,
    /// nothing is lost.
    ///
    /// # Errors
    /// When the bus is closed, or a stream must not be read.
    pub(crate) async fn next(&mut self) -> Result<Vec<Arc<Stored>>, LogError> {
        loop {
            if let Some(messages) = self.take().await? {
                return Ok(messages);
            }
            self.wake.notified().await;
        }
    }

    /// The messages that are there of one of the streams; `None` if there are none.
    pub(crate) async fn take(&mut self) -> Result<Option<Vec<Arc<Stored>>>, LogError> {
        let count = self.followers.len();
        for step in 0..count {
            let at = (self.turn + step) % count;
            let Some(follower) = self.followers.get_mut(at) else { continue };
            loop {
                match follower.take()? {
                    Taken::Messages(messages) if messages.is_empty() => {}
                    Taken::Messages(messages) => {
                        self.turn = at + 1;
                        return Ok(Some(messages));
                    }
                    Taken::Behind(base) => follower.read_up_to(base).await?,
                    Taken::Nothing => break,
                }
            }
        }
        Ok(None)
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
    fn a_ring_forgets_what_all_have_taken_but_for_the_newest() {
        let mut ring = Ring::default();
        (1..=100).for_each(|sequence| ring.push(message(sequence, 1)));
        ring.leave(40);
        assert_eq!((ring.messages.len(), ring.base, ring.head), (60, 40, 100));
        assert_eq!(ring.find(39), Found::Behind(40));
        assert_eq!(sequences(ring.find(40))[0], 41);
        ring.leave(u64::MAX);
        assert_eq!((ring.messages.len(), ring.base), (RING_MESSAGES_MIN, 100 - RING_MESSAGES_MIN as u64));
        assert_eq!(ring.bytes, RING_MESSAGES_MIN * (HEADER_BYTES + 1));
        ring.push(message(101, 1));
        assert_eq!(sequences(ring.find(100)), [101]);
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
