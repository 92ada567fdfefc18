//! Read access to what a projector holds: look, wait, follow, count.

use std::{
    collections::{BTreeMap, VecDeque},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use futures::Stream;
use mesh_core::query;
use opentelemetry::{KeyValue, metrics::AsyncInstrument};
use parking_lot::RwLock;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::mesh::Mesh;

/// Read access to a projector's view. Cheap to clone; all clones are one view.
pub struct View<P> {
    source: Arc<dyn Source<P>>,
    changes: watch::Receiver<u64>,
}

/// Where what is looked at rests.
pub(crate) trait Source<P>: Send + Sync {
    /// Calls `look` once.
    fn look(&self, look: &mut dyn FnMut(&P));

    /// Sequence up to which a stream is in it; 0 for one that it does not read.
    fn position(&self, stream: &str) -> u64;
}

/// A projector, and how far it has read.
pub(crate) struct Shown<P> {
    pub(crate) projector: P,
    positions: BTreeMap<String, u64>,
}

impl<P> Shown<P> {
    pub(crate) fn new(projector: P) -> Self {
        Self { projector, positions: BTreeMap::new() }
    }

    /// It has taken in this message of a stream, and all before it.
    pub(crate) fn reached(&mut self, stream: &str, sequence: u64) {
        match self.positions.get_mut(stream) {
            Some(position) => *position = sequence,
            None => {
                self.positions.insert(stream.to_owned(), sequence);
            }
        }
    }
}

impl<P: Send + Sync> Source<P> for RwLock<Shown<P>> {
    fn look(&self, look: &mut dyn FnMut(&P)) {
        look(&self.read().projector);
    }

    fn position(&self, stream: &str) -> u64 {
        self.read().positions.get(stream).copied().unwrap_or_default()
    }
}

impl<P> Clone for View<P> {
    fn clone(&self) -> Self {
        Self { source: self.source.clone(), changes: self.changes.clone() }
    }
}

impl<P> View<P> {
    pub(crate) fn of(source: Arc<dyn Source<P>>, changes: watch::Receiver<u64>) -> Self {
        Self { source, changes }
    }

    /// Looks at the view; keep it short, the projector waits.
    pub fn read<T>(&self, look: impl FnOnce(&P) -> T) -> T {
        let (mut look, mut found) = (Some(look), None);
        self.source.look(&mut |seen| found = look.take().map(|look| look(seen)));
        #[allow(clippy::expect_used)]
        found.expect("a source calls `look`")
    }

    /// Rises with every change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    /// Sequence up to which it has taken in a stream; 0 for one that it does not read.
    pub fn position(&self, stream: &str) -> u64 {
        self.source.position(stream)
    }

    /// Waits until it has taken in a stream up to this sequence: who wrote something then finds what followed from it.
    ///
    /// # Errors
    /// When it has not within the limit.
    pub async fn at_least(&self, stream: &str, sequence: u64, limit: Duration) -> Result<(), query::Error> {
        let reached = self.wait_until(|view| (view.position(stream) >= sequence).then_some(()));
        tokio::time::timeout(limit, reached).await.map_err(|_| {
            let what = format!("the view has not read {stream} up to {sequence} within {} ms", limit.as_millis());
            query::Error::unavailable(what, "ask again")
        })
    }

    /// What a look finds, as soon as it finds something. It looks again at every change.
    pub async fn wait_for<T>(&self, mut look: impl FnMut(&P) -> Option<T>) -> T {
        self.wait_until(|view| view.read(&mut look)).await
    }

    async fn wait_until<T>(&self, mut look: impl FnMut(&Self) -> Option<T>) -> T {
        let mut changes = self.changes.clone();
        loop {
            changes.mark_unchanged();
            if let Some(found) = look(self) {
                return found;
            }
            // Its sender is gone once the process stops: whoever waits has a limit of its own.
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// A stream of answers over gRPC: what a look finds now and at every later change, until the process stops or a look
    /// says that there is no more. It looks only as fast as its reader takes, and nothing is kept for a slow one beyond
    /// what one look found: what a look skips is for the look to count.
    pub fn follow<T, L>(&self, stopping: CancellationToken, mut look: L) -> Follow<T>
    where
        P: Send + Sync + 'static,
        T: Send + 'static,
        L: FnMut(&P) -> Look<T> + Send + 'static,
    {
        let view = self.clone();
        follow(self.changes(), stopping, move || view.read(&mut look))
    }

    /// Shows a number of the view on `/metrics` that only rises.
    pub fn counter(&self, mesh: &Mesh, name: &'static str, description: &'static str, read: fn(&P) -> u64)
    where
        P: Send + Sync + 'static,
    {
        let counter = mesh.meter().u64_observable_counter(name).with_description(description);
        counter.with_callback(self.observer(move |view| [(None, read(view))])).build();
    }

    /// Shows numbers of the view on `/metrics` that only rise, told apart by a label: `reason`, `outcome`.
    pub fn counters<const N: usize>(
        &self,
        mesh: &Mesh,
        name: &'static str,
        description: &'static str,
        label: &'static str,
        read: fn(&P) -> [(&'static str, u64); N],
    ) where
        P: Send + Sync + 'static,
    {
        let counter = mesh.meter().u64_observable_counter(name).with_description(description);
        let read = move |view: &P| read(view).map(|(value, count)| (Some(KeyValue::new(label, value)), count));
        counter.with_callback(self.observer(read)).build();
    }

    /// Shows a number of the view on `/metrics` that rises and falls.
    pub fn gauge(&self, mesh: &Mesh, name: &'static str, description: &'static str, read: fn(&P) -> u64)
    where
        P: Send + Sync + 'static,
    {
        let gauge = mesh.meter().u64_observable_gauge(name).with_description(description);
        gauge.with_callback(self.observer(move |view| [(None, read(view))])).build();
    }

    fn observer<const N: usize>(
        &self,
        read: impl Fn(&P) -> [(Option<KeyValue>, u64); N] + Send + Sync + 'static,
    ) -> impl Fn(&dyn AsyncInstrument<u64>) + Send + Sync + 'static
    where
        P: Send + Sync + 'static,
    {
        let view = self.clone();
        move |instrument| {
            for (label, count) in view.read(&read) {
                instrument.observe(count, label.as_slice());
            }
        }
    }
}

/// What one look at a view found for whoever [follows](View::follow) it.
pub enum Look<T> {
    /// These, in order; none means to look again at the next change.
    Next(Vec<T>),
    /// These for now, and perhaps more: look again as soon as they are taken.
    More(Vec<T>),
    /// These, and nothing more will come.
    Last(Vec<T>),
    /// The question itself cannot be answered any more.
    Failed(query::Error),
}

/// A stream of answers over gRPC.
pub type Follow<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What [`View::follow`] is, for whatever changes: it looks now and at every later change.
pub fn follow<T, L>(changes: watch::Receiver<u64>, stopping: CancellationToken, look: L) -> Follow<T>
where
    T: Send + 'static,
    L: FnMut() -> Look<T> + Send + 'static,
{
    let start = Following { changes, stopping, look, found: VecDeque::new(), ended: false };
    Box::pin(futures::stream::unfold(start, Following::next))
}

struct Following<L, T> {
    changes: watch::Receiver<u64>,
    stopping: CancellationToken,
    look: L,
    found: VecDeque<T>,
    ended: bool,
}

impl<T, L: FnMut() -> Look<T>> Following<L, T> {
    async fn next(mut self) -> Option<(Result<T, Status>, Self)> {
        loop {
            if self.stopping.is_cancelled() && !self.ended {
                self.ended = true;
                self.found.clear();
                return Some((Err(Status::unavailable("the service is stopping; ask again")), self));
            }
            if let Some(next) = self.found.pop_front() {
                return Some((Ok(next), self));
            }
            if self.ended {
                return None;
            }
            self.changes.mark_unchanged();
            match (self.look)() {
                Look::Next(found) => {
                    if found.is_empty() {
                        tokio::select! {
                            changed = self.changes.changed() => changed.ok()?,
                            () = self.stopping.cancelled() => {}
                        }
                    }
                    self.found.extend(found);
                }
                Look::More(found) => self.found.extend(found),
                Look::Last(found) => {
                    self.found.extend(found);
                    self.ended = true;
                }
                Look::Failed(error) => {
                    self.ended = true;
                    return Some((Err(error.into()), self));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt as _, StreamExt as _};

    use super::*;

    /// A view of a number, and what changes it.
    fn view(number: u64) -> (View<u64>, impl Fn(u64)) {
        let (changed, changes) = watch::channel(0);
        let shown = Arc::new(RwLock::new(Shown::new(number)));
        let view = View::of(shown.clone(), changes);
        let set = move |number| {
            let mut shown = shown.write();
            shown.projector = number;
            shown.reached("INTENT", number);
            drop(shown);
            changed.send_modify(|version| *version += 1);
        };
        (view, set)
    }

    #[tokio::test]
    async fn who_wrote_waits_until_the_view_has_read_it() {
        let (view, set) = view(0);
        let limit = Duration::from_secs(60);
        let mut waiting = Box::pin(view.at_least("INTENT", 7, limit));
        assert!(waiting.as_mut().now_or_never().is_none());
        set(6);
        assert!(waiting.as_mut().now_or_never().is_none());
        set(8);
        waiting.await.unwrap();
        let late = view.at_least("INTENT", 9, Duration::from_millis(1)).await.unwrap_err();
        assert!(late.to_string().contains("INTENT up to 9"), "{late}");
        assert_eq!((view.position("INTENT"), view.position("CLUSTER")), (8, 0));
    }

    #[tokio::test]
    async fn a_follower_sees_each_change_until_the_last() {
        let (view, set) = view(1);
        let mut seen = 0;
        let mut stream = Box::pin(view.follow(CancellationToken::new(), move |number| {
            let found = if *number > seen { vec![*number] } else { vec![] };
            seen = *number;
            if *number == 3 { Look::Last(found) } else { Look::Next(found) }
        }));
        assert_eq!(stream.next().await.unwrap().unwrap(), 1);
        assert!(stream.next().now_or_never().is_none());
        set(2);
        assert_eq!(stream.next().await.unwrap().unwrap(), 2);
        set(3);
        assert_eq!(stream.next().await.unwrap().unwrap(), 3);
        assert!(stream.next().await.is_none());
    }

    #[tokio::test]
    async fn a_follower_is_told_that_the_process_stops() {
        let (view, _set) = view(1);
        let stopping = CancellationToken::new();
        let mut stream = Box::pin(view.follow(stopping.clone(), |_: &u64| Look::<u64>::Next(vec![])));
        assert!(stream.next().now_or_never().is_none());
        stopping.cancel();
        assert_eq!(stream.next().await.unwrap().unwrap_err().code(), tonic::Code::Unavailable);
        assert!(stream.next().await.is_none());
    }
}
