//! The ledger in databases: accounts as documents, entries and tiles of the tree as histories. ACCOUNT is read from its
//! beginning at each start, since every entry is made again and compared; what a database has is not written again.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::Context as _;
use ledger::{
    note::Signer,
    tiles::{Edge, Tiled, wanted},
    tree::Nodes,
};
use mesh_core::Stored;
use mesh_kit::{Decided, Keeping, Kept, Mesh, Shelf, leave_out, outgoing};
use mesh_proto::{
    Event as _, Timestamp,
    account::{AccountList, AccountView, Entry, Posted},
};
use mesh_store::{Applied, Change, Document, Error, History, Query, Version, memory::WindowLimits};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::watch;

use crate::domain::{
    Accounting,
    fold::{Fold, Wanted, unknown},
    heads::Announced,
    kept::{self, BLOCK, Block, Following, Row},
};

/// Stream of the entries.
const STREAM: &str = Posted::STREAM;
/// Names of the metrics, and what they count.
pub(crate) const FAULTS: (&str, &str) =
    ("accounting_faults_total", "entries that are not what the ledger's rules make of what they are about");
/// The same.
pub(crate) const ENTRIES: (&str, &str) = ("accounting_entries", "entries in the ledger");
/// How long a question waits for the databases to hold what was decided before it was asked.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// The ledger in databases. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Stores {
    documents: Option<Kept>,
    history: Option<Arc<dyn History>>,
    decided: Decided<Accounting>,
    state: Arc<Mutex<State>>,
    reached: Arc<watch::Sender<Reached>>,
}

/// How far the databases are.
#[derive(Clone, Debug, Default)]
struct Reached {
    /// Facts up to this sequence are there.
    sequence: u64,
    /// The edge of the tree as it was then.
    edge: Arc<Edge>,
}

/// What the keeping task goes on from.
#[derive(Default)]
struct State {
    following: Following,
    /// The last fact that was taken in.
    sequence: u64,
    /// What is to be written of the facts taken in last.
    pending: Pending,
    /// What histories were brought to.
    history: u64,
}

/// What is to be written of one batch.
#[derive(Clone, Default)]
struct Pending {
    rows: Vec<(Applied, mesh_store::Entry)>,
    changes: Vec<(Applied, Change)>,
}

/// A database lacks something that was written to it.
fn lost(what: &str) -> anyhow::Error {
    Error::Engine { operation: "find what was written", source: format!("{what} is gone").into() }.into()
}

impl Stores {
    /// Where the configuration says that accounts and entries rest; `None` if both do in memory.
    ///
    /// # Errors
    /// A URL that cannot be used.
    pub(crate) fn open(
        mesh: &Mesh,
        documents: &str,
        history: &str,
        decided: Decided<Accounting>,
    ) -> anyhow::Result<Option<Self>> {
        let documents = Kept::open(mesh, ("accounts", "accounts"), documents, STREAM)?;
        let history = mesh.history("ledger", history, WindowLimits::default(), 0)?;
        let history = history.is_remote().then_some(history);
        let is_any = documents.is_some() || history.is_some();
        let stores = Self { documents, history, decided, state: Arc::default(), reached: Arc::default() };
        Ok(is_any.then_some(stores))
    }

    /// Do entries rest in a database?
    pub(crate) fn keep_entries(&self) -> bool {
        self.history.is_some()
    }

    /// Follows ACCOUNT into the databases until the process stops.
    pub(crate) fn keep(&self, mesh: &Mesh) {
        mesh.keep(Keeping::in_documents("ledger", STREAM), LedgerShelf { stores: self.clone() });
    }

    /// Publishes a signed head now and then, until the process stops: of no ledger that is still being read.
    ///
    /// # Errors
    /// When the bus is closed.
    pub(crate) async fn announce(
        self,
        mesh: Mesh,
        signer: Arc<Signer>,
        (every_ms, tick_ms): (u64, u64),
    ) -> anyhow::Result<()> {
        let mut announced = Announced::new(every_ms);
        let stopping = mesh.stopping();
        while tokio::time::timeout(Duration::from_millis(tick_ms), stopping.cancelled()).await.is_err() {
            if self.reached.borrow().sequence < self.decided.position() {
                continue;
            }
            let head = self.read(|fold| {
                let head = (fold.ledger().size(), fold.ledger().tree.root());
                announced.next(mesh.now(), &signer, head, fold.at())
            });
            let Some(message) = head.and_then(|head| outgoing(&head, None)) else { continue };
            if let Err(error) = mesh.bus().publish_many(vec![message]).await {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "a head is not published; the next one will be");
            }
        }
        Ok(())
    }

    /// Says how many entries there are, and how many that the ledger's rules did not make.
    pub(crate) fn measure(&self, mesh: &Mesh) {
        let (of_faults, of_entries) = (self.clone(), self.clone());
        mesh.meter()
            .u64_observable_counter(FAULTS.0)
            .with_description(FAULTS.1)
            .with_callback(move |measured| measured.observe(of_faults.read(Fold::faults), &[]))
            .build();
        mesh.meter()
            .u64_observable_gauge(ENTRIES.0)
            .with_description(ENTRIES.1)
            .with_callback(move |measured| measured.observe(of_entries.read(|fold| fold.ledger().size()), &[]))
            .build();
    }

    /// Looks at what is known after the entries that were read.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&Fold) -> T) -> T {
        look(self.state.lock().following.fold())
    }

    /// Waits until the databases hold what had been decided when it was called, and gives the edge of the tree there;
    /// `None` if they do not in time, or have lost what they held.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn current(&self) -> anyhow::Result<Option<Arc<Edge>>> {
        let position = self.decided.position();
        let mut reached = self.reached.subscribe();
        let Some(reached) = within_limit(&mut reached, position).await else { return Ok(None) };
        // What histories have lost is missed where it is read.
        if let Some(kept) = &self.documents
            && kept.documents().position(STREAM).await? < reached.sequence
        {
            return Ok(None);
        }
        Ok(Some(reached.edge))
    }

    /// A page of the accounts in order of their names.
    ///
    /// # Errors
    /// Those of the store; a document that cannot be read.
    pub(crate) async fn list(&self, wanted: &Wanted) -> anyhow::Result<AccountList> {
        let Some(documents) = self.documents.as_ref().map(Kept::documents) else {
            return Ok(self.read(|fold| fold.list(fold.accounts(wanted))));
        };
        let Wanted { prefix, page } = wanted;
        let mut found = vec![];
        // Names in order: those after the prefix itself, or after the page before, as long as they begin with it.
        let mut after = page.after();
        if after < prefix.as_str() {
            found.extend(documents.get(prefix).await?);
            after = prefix;
        }
        let mut query = Query { limit: page.size() + 1, ..Query::default() }.after(after);
        while found.len() <= page.size() {
            let (next, before) = (documents.list(&query).await?, found.len());
            let all = next.documents.len();
            found.extend(next.documents.into_iter().take_while(|document| document.id.starts_with(prefix)));
            if next.next.is_empty() || found.len() - before < all {
                break;
            }
            query.token = next.next;
        }
        let (documents, next) = page.fill(found, |document| document.id.clone());
        let accounts: Result<_, _> = documents.into_iter().map(|document| kept::account(document.body)).collect();
        let accounts = accounts.context("decode an account")?;
        Ok(self.read(|fold| fold.list((accounts, next))))
    }

    /// An account as it stands; `None` if it was never opened.
    ///
    /// # Errors
    /// Those of the store; a document that cannot be read.
    pub(crate) async fn account(&self, account: &str) -> anyhow::Result<Result<AccountView, mesh_core::query::Error>> {
        let found = match self.documents.as_ref().map(Kept::documents) {
            None => self.read(|fold| fold.view(account)),
            Some(documents) => {
                let document = documents.get(account).await?;
                document.map(|document| kept::account(document.body)).transpose().context("decode an account")?
            }
        };
        Ok(found.ok_or_else(|| unknown(account)))
    }

    /// The entries from `from` on that name an account, at most `limit`, and the index of the next one; 0 at the end.
    ///
    /// # Errors
    /// Those of the store; something that it has lost.
    pub(crate) async fn statement(
        &self,
        account: &AccountView,
        from: u64,
        limit: usize,
    ) -> anyhow::Result<(Vec<Entry>, u64)> {
        let name = account.account.as_str();
        let all = account.entries;
        // The first block whose last entry is not before.
        let (mut low, mut high) = (0, all.div_ceil(BLOCK));
        while from > 0 && low < high {
            let middle = low + (high - low) / 2;
            let last = self.block(Block::Account(name, middle), block_size(all, middle)).await?.pop();
            if last.is_some_and(|last| last.version > from) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        let mut entries = vec![];
        for block in low..all.div_ceil(BLOCK) {
            for version in self.block(Block::Account(name, block), block_size(all, block)).await? {
                if version.version <= from {
                    continue;
                }
                if entries.len() == limit {
                    return Ok((entries, version.version - 1));
                }
                entries.push(Entry::decode(version.body).context("decode an entry")?);
            }
        }
        Ok((entries, 0))
    }

    /// The entries from `from` on of a ledger of this size, at most `limit`.
    ///
    /// # Errors
    /// Those of the store; something that it has lost.
    pub(crate) async fn entries(&self, from: u64, size: u64, limit: usize) -> anyhow::Result<Vec<Posted>> {
        let mut entries = vec![];
        for block in from / BLOCK..size.div_ceil(BLOCK) {
            let versions = self.block(Block::Entries(block), block_size(size, block)).await?;
            for version in versions.into_iter().filter(|version| version.version > from) {
                if entries.len() == limit {
                    return Ok(entries);
                }
                entries.push(Posted::decode(version.body).context("decode an entry")?);
            }
        }
        Ok(entries)
    }

    /// Makes something of the tree as it was at this edge, with the tiles that it takes.
    ///
    /// # Errors
    /// Those of the store; something that it has lost.
    pub(crate) async fn proved<T>(
        &self,
        edge: &Edge,
        looks: impl FnOnce(&dyn Nodes),
        make: impl FnOnce(&dyn Nodes) -> T,
    ) -> anyhow::Result<T> {
        let mut tiles = BTreeMap::new();
        for tile in wanted(edge, looks) {
            let found = self.block(Block::Tile(tile), 1).await?;
            let hashes = found.first().and_then(|version| kept::hashes(&version.body));
            tiles.insert(tile, hashes.with_context(|| format!("{} is not a tile", Block::Tile(tile).key()))?);
        }
        Ok(make(&Tiled { edge, tiles }))
    }

    /// The first versions of a block, as many as it is known to have, in order.
    async fn block(&self, block: Block<'_>, size: usize) -> anyhow::Result<Vec<Version>> {
        let history = self.history.as_ref().context("entries rest in memory")?;
        let key = block.key();
        let most = usize::try_from(BLOCK).unwrap_or(usize::MAX);
        let mut versions = history.list(&key, None, most).await?;
        if versions.len() < size {
            // What was taken in last may be on its way there.
            let taken = self.state.lock().sequence;
            let _ = within_limit(&mut self.reached.subscribe(), taken).await;
            versions = history.list(&key, None, most).await?;
        }
        if versions.len() < size {
            return Err(lost(&key));
        }
        versions.reverse();
        versions.truncate(size);
        Ok(versions)
    }
}

/// Waits until the databases are that far, and says how far; `None` if they are not in time.
async fn within_limit(reached: &mut watch::Receiver<Reached>, sequence: u64) -> Option<Reached> {
    let there = reached.wait_for(|reached| reached.sequence >= sequence);
    Some(tokio::time::timeout(ANSWER_LIMIT, there).await.ok()?.ok()?.clone())
}

/// Entries of a block, where there are `all` in all blocks.
fn block_size(all: u64, block: u64) -> usize {
    usize::try_from(all.saturating_sub(block.saturating_mul(BLOCK)).min(BLOCK)).unwrap_or(usize::MAX)
}

impl State {
    /// Takes in the facts of a batch, unless it has them already: then what is pending is still to be written.
    fn take(&mut self, messages: &[Arc<Stored>]) {
        let new = messages.iter().filter(|stored| stored.sequence > self.sequence);
        let new: Vec<&Arc<Stored>> = new.collect();
        let Some(newest) = new.last().map(|stored| stored.sequence) else { return };
        let (mut rows, mut changed) = (vec![], BTreeMap::new());
        for stored in new {
            let applied = Applied::new(STREAM, stored.sequence);
            let (kept, accounts) = self.following.take(stored);
            rows.extend(kept.into_iter().map(|Row { key, version, body }| {
                let version = Version { version, at: stored.stored, body };
                (applied.clone(), mesh_store::Entry { key, version })
            }));
            changed.extend(accounts.into_iter().map(|account| (account, stored.sequence)));
        }
        let changes = changed.into_iter().filter_map(|(id, sequence)| {
            let (indexes, body) = kept::document(self.following.fold(), &id)?;
            Some((Applied::new(STREAM, sequence), Change::Put(Document { id, indexes, body })))
        });
        let changes = changes.collect();
        self.pending = Pending { rows, changes };
        self.sequence = newest;
    }
}

struct LedgerShelf {
    stores: Stores,
}

/// Fails if a store has lost what it was brought to: what follows would hide that.
fn has_kept(position: u64, brought_to: u64) -> Result<(), Error> {
    if position >= brought_to {
        return Ok(());
    }
    let source = format!("it is at {position} of {STREAM} and was at {brought_to}").into();
    Err(Error::Engine { operation: "go on from what was written", source })
}

impl Shelf for LedgerShelf {
    async fn apply(&self, messages: &[Arc<Stored>]) -> Result<(), Error> {
        let Some(newest) = messages.last() else { return Ok(()) };
        let newest = Applied::new(STREAM, newest.sequence);
        let (Pending { mut rows, mut changes }, in_history, edge) = {
            let mut state = self.stores.state.lock();
            state.take(messages);
            (state.pending.clone(), state.history, Arc::new(state.following.edge().clone()))
        };
        if let Some(history) = self.stores.history.as_ref().filter(|_| newest.sequence > in_history) {
            // Before the write: versions come in order, and none before one that is there.
            has_kept(history.position(STREAM).await?, in_history)?;
            rows.retain(|(applied, _)| applied.sequence > in_history);
            leave_out(history.write(rows).await, "ledger", newest.sequence)?;
            history.advance(in_history, &newest).await?;
            self.stores.state.lock().history = newest.sequence;
        }
        if let Some(kept) = self.stores.documents.as_ref().filter(|kept| newest.sequence > kept.advanced()) {
            changes.retain(|(applied, _)| applied.sequence > kept.advanced());
            kept.write(changes, newest.sequence).await?;
        }
        self.stores.reached.send_replace(Reached { sequence: newest.sequence, edge });
        Ok(())
    }

    async fn position(&self) -> Result<u64, Error> {
        let documents = match &self.stores.documents {
            Some(kept) => kept.position().await?,
            None => u64::MAX,
        };
        let history = match &self.stores.history {
            Some(history) => history.position(STREAM).await?,
            None => u64::MAX,
        };
        self.stores.state.lock().history = history;
        Ok(documents.min(history))
    }

    /// From the first entry: each is made again from those before it.
    fn begin(&self, _: u64) -> u64 {
        let mut state = self.stores.state.lock();
        *state = State { history: state.history, ..State::default() };
        self.stores.reached.send_replace(Reached::default());
        1
    }

    async fn sweep(&self, _: Timestamp) -> Result<(), Error> {
        Ok(())
    }
}
