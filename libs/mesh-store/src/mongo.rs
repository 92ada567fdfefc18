//! Documents in MongoDB 6 or newer: a collection per name, a document per id.
//!
//! `{_id, indexes: ["name=value", …], body, applied: {stream: sequence}}`, and for a deleted one, until its facts are
//! behind the position, `{_id, deleted: true, applied}`. Each write is one update whose filter asks whether a newer
//! fact has been applied: an upsert that then finds the id taken has nothing to do. Positions are written with the
//! journal, which holds what was written before them.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use futures::TryStreamExt as _;
use mongodb::{
    Client, Collection, Database,
    bson::{Binary, Bson, Document as Bsons, doc, spec::BinarySubtype},
    options::{ClientOptions, ConnectionString},
};
use tokio::sync::Semaphore;

use crate::{
    Answer, Applied, Change, Document, Error, Page, Query,
    documents::token_after,
    lost,
    memory::DocumentLimits,
    remote::{CALL_LIMIT, Connection, Positions, failed, late, signed},
};

const EXPECTED: &str = "mongodb://[user:password@]host[:port][,more]/database[?options]";
/// The schema that this release writes.
const SCHEMA: i64 = 1;
const SCHEMA_COLLECTION: &str = "continuum_schema";
const POSITIONS: &str = "continuum_positions";
/// Changes of one round trip.
const CHANGES_MAX: usize = 1_000;
/// Parts of a round trip that are written at the same time, and the fewest changes of one.
const PARTS: usize = 3;
const PART_MIN: usize = 100;
/// Bytes of the bodies of one round trip, about: a message may have 48 MB.
const BYTES_MAX: usize = 8 << 20;
/// Calls under way. One that is given up goes on in its task until the driver ends it, so that they are counted.
const CALLS_MAX: usize = 32;
/// Deleted documents that are kept before it is looked which of them are behind the positions.
const DELETED_MAX: u64 = 200;
/// Codes of the server: a key that is there already; a document or a key that is too large.
const DUPLICATE: i32 = 11_000;
const TOO_LARGE: [i32; 4] = [10_334, 17_280, 17_419, 17_420];

/// A database of documents.
pub(crate) struct Mongo {
    address: ConnectionString,
    database: String,
    connection: Connection<Database>,
    calls: Arc<Semaphore>,
}

impl Mongo {
    /// Does not connect yet.
    pub(crate) fn open(url: &str) -> Result<Self, Error> {
        let address = ConnectionString::parse(url).map_err(|_| Error::Url { expected: EXPECTED })?;
        let database = address.default_database.clone().unwrap_or_else(|| "continuum".to_owned());
        Ok(Self { address, database, connection: Connection::default(), calls: Arc::new(Semaphore::new(CALLS_MAX)) })
    }

    /// The documents of a name.
    pub(crate) fn documents(self: &Arc<Self>, name: &str, limits: DocumentLimits) -> Documents {
        let (mongo, positions) = (self.clone(), Positions::default());
        // What an earlier process left is looked at first.
        Documents { mongo, name: name.to_owned(), limits, positions, deleted: AtomicU64::new(DELETED_MAX) }
    }

    /// Runs a call of the driver to its end in a task of its own, and waits for it within the limit: its futures must not
    /// be dropped.
    async fn call<T: Send + 'static>(
        &self,
        operation: &'static str,
        call: impl Future<Output = mongodb::error::Result<T>> + Send + 'static,
    ) -> Result<T, Error> {
        let waiting = async {
            let permit = self.calls.clone().acquire_owned().await.map_err(|error| failed(operation, error))?;
            #[expect(
                clippy::disallowed_methods,
                reason = "a future of the driver that is dropped may spoil its connection"
            )]
            let task = tokio::spawn(async move {
                let answer = call.await;
                drop(permit);
                answer
            });
            task.await.map_err(|error| failed(operation, error))?.map_err(|error| failed(operation, error))
        };
        tokio::time::timeout(CALL_LIMIT, waiting).await.unwrap_or_else(|_| Err(failed(operation, late())))
    }

    async fn database(&self) -> Result<Arc<Database>, Error> {
        self.connection.get(self.connect()).await
    }

    async fn connect(&self) -> Result<Database, Error> {
        let (address, name) = (self.address.clone(), self.database.clone());
        let connecting = async move {
            let mut options = ClientOptions::parse(address).await?;
            options.app_name.get_or_insert_with(|| "continuum".to_owned());
            options.server_selection_timeout.get_or_insert(CALL_LIMIT / 2);
            options.connect_timeout.get_or_insert(CALL_LIMIT / 2);
            Ok(Client::with_options(options)?.database(&name))
        };
        let database = self.call("connect to MongoDB", connecting).await?;
        self.migrate(&database).await?;
        Ok(database)
    }

    /// Brings the database to the schema of this release; refuses that of a newer one.
    async fn migrate(&self, database: &Database) -> Result<(), Error> {
        let schema: Collection<Bsons> = database.collection(SCHEMA_COLLECTION);
        let finding = schema.clone();
        let found =
            self.call("read schema version", async move { finding.find_one(doc! { "_id": "documents" }).await });
        let found = found.await?.map_or(0, |found| number(found.get("version")));
        if found > SCHEMA {
            return Err(Error::Newer { engine: "MongoDB", found, known: SCHEMA });
        }
        if found < SCHEMA {
            // From nothing to 1: collections make themselves, and each makes its index when it is first used.
            let set = doc! { "$max": { "version": SCHEMA } };
            let writing = async move { schema.update_one(doc! { "_id": "documents" }, set).upsert(true).await };
            self.call("write schema version", writing).await?;
        }
        Ok(())
    }
}

/// A collection of documents.
pub(crate) struct Documents {
    mongo: Arc<Mongo>,
    name: String,
    limits: DocumentLimits,
    positions: Positions,
    /// Deleted documents since it was last looked which of them are behind the positions.
    deleted: AtomicU64,
}

impl Documents {
    async fn collection(&self) -> Result<Collection<Bsons>, Error> {
        Ok(self.mongo.database().await?.collection(&self.name))
    }

    async fn covers(&self, applied: &Applied) -> Result<bool, Error> {
        if let Some(covered) = self.positions.cover(applied) {
            return Ok(covered);
        }
        Ok(applied.sequence <= self.read_position(&applied.stream).await?)
    }

    async fn read_position(&self, stream: &str) -> Result<u64, Error> {
        let database = self.mongo.database().await?;
        self.mongo.migrate(&database).await?;
        // An emptied database has lost its indexes, too.
        let keys =
            doc! { "createIndexes": &self.name, "indexes": [{ "key": { "indexes": 1, "_id": 1 }, "name": "indexes" }] };
        let indexing = database.clone();
        self.mongo.call("make index", async move { indexing.run_command(keys).await }).await?;
        let position = match self.stored_position(stream).await? {
            Some(position) => position,
            None => {
                // From here on a database that is emptied lacks it, and advances nothing.
                let (id, first) = (self.position_id(stream), doc! { "$setOnInsert": { "sequence": 0_i64 } });
                let positions = database.collection::<Bsons>(POSITIONS);
                let writing = async move { positions.update_one(doc! { "_id": id }, first).upsert(true).await };
                self.mongo.call("write position", writing).await?;
                0
            }
        };
        self.positions.read(stream, position);
        Ok(position)
    }

    async fn stored_position(&self, stream: &str) -> Result<Option<u64>, Error> {
        let database = self.mongo.database().await?;
        let id = self.position_id(stream);
        let finding = async move { database.collection::<Bsons>(POSITIONS).find_one(doc! { "_id": id }).await };
        let found = self.mongo.call("read position", finding).await?;
        Ok(found.map(|found| number(found.get("sequence")).unsigned_abs()))
    }

    fn position_id(&self, stream: &str) -> Bsons {
        doc! { "collection": &self.name, "stream": stream }
    }

    async fn write_all(&self, changes: Vec<(Applied, Change)>) -> Result<(), Error> {
        let mut refused = Ok(());
        let mut batch = Batch::default();
        for (applied, change) in changes {
            if self.covers(&applied).await? {
                continue;
            }
            if let Err(error) = self.check(&change) {
                refused = refused.and(Err(error));
                continue;
            }
            if !batch.takes(&applied, &change) {
                refused = refused.and(self.send(std::mem::take(&mut batch)).await?);
            }
            batch.add(applied, change);
        }
        refused.and(self.send(batch).await?)
    }

    fn check(&self, change: &Change) -> Result<(), Error> {
        if let (Change::Put(document), limit) = (change, self.limits.body_bytes_max as u64) {
            if document.id.is_empty() {
                return Err(Error::Invalid("a document needs an id".into()));
            }
            let bytes = document.body.len() as u64;
            if bytes > limit {
                return Err(Error::TooLarge { id: document.id.clone(), bytes, limit });
            }
        }
        Ok(())
    }

    /// Sends a batch. Outer error: the engine's; inner: the first change that it refused.
    async fn send(&self, batch: Batch) -> Result<Result<(), Error>, Error> {
        if batch.changes.is_empty() {
            return Ok(Ok(()));
        }
        let deletes = batch.changes.iter().filter(|c| matches!(c.change, Change::Delete(_))).count();
        let ids: Vec<String> = batch.changes.iter().map(|c| c.change.id().to_owned()).collect();
        let updates = batch.changes.into_iter().map(update).collect::<Result<Vec<Bsons>, Error>>()?;
        // Each document is in it once: parts can be written at the same time, each on a core of the server.
        let part = updates.len().div_ceil(PARTS).max(PART_MIN);
        let sent = (updates.chunks(part).zip(ids.chunks(part))).map(|(updates, ids)| self.send_part(updates, ids));
        let refused = futures::future::try_join_all(sent).await?.into_iter().fold(Ok(()), Result::and);
        self.deleted.fetch_add(deletes as u64, Relaxed);
        Ok(refused)
    }

    /// Sends a part of a batch, of documents with these ids; answers as [`send`](Self::send).
    async fn send_part(&self, updates: &[Bsons], ids: &[String]) -> Result<Result<(), Error>, Error> {
        let command = doc! {
            "update": &self.name,
            "updates": updates,
            "ordered": false,
            "maxTimeMS": CALL_LIMIT.as_millis() as i64,
        };
        let database = self.mongo.database().await?;
        let answer = self.mongo.call("write documents", async move { database.run_command(command).await }).await?;
        let errors = answer.get_array("writeErrors").map(Vec::as_slice).unwrap_or_default();
        for error in errors.iter().filter_map(Bson::as_document) {
            let code = i32::try_from(number(error.get("code"))).unwrap_or_default();
            let id = usize::try_from(number(error.get("index"))).ok().and_then(|index| ids.get(index));
            let said = error.get_str("errmsg").unwrap_or("no reason given").to_owned();
            match code {
                // A newer fact is there.
                DUPLICATE => {}
                code if TOO_LARGE.contains(&code) => {
                    return Ok(Err(Error::Invalid(format!(
                        "MongoDB refuses {:?}: {said}",
                        id.map_or("", String::as_str)
                    ))));
                }
                _ => return Err(failed("write documents", said)),
            }
        }
        match answer.get_document("writeConcernError") {
            Ok(error) => {
                Err(failed("write documents", error.get_str("errmsg").unwrap_or("not written safely").to_owned()))
            }
            Err(_) => Ok(Ok(())),
        }
    }

    async fn find(&self, query: &Query) -> Result<Page, Error> {
        let size = query.page_size();
        let filter = filter(query)?;
        let collection = self.collection().await?;
        // One more than a page, so that its end is known.
        let limit = size as i64 + 1;
        let finding = async move {
            let found = collection.find(filter).sort(doc! { "_id": 1 }).limit(limit).max_time(CALL_LIMIT);
            found.await?.try_collect::<Vec<Bsons>>().await
        };
        let found = self.mongo.call("list documents", finding).await?;
        let mut documents = found.into_iter().map(read).collect::<Result<Vec<_>, _>>()?;
        let more = documents.len() > size;
        documents.truncate(size);
        let next = match documents.last() {
            Some(last) if more => token_after(&last.id),
            _ => String::new(),
        };
        Ok(Page { documents, next })
    }

    async fn count_all(&self, query: &Query) -> Result<u64, Error> {
        let filter = filter(query)?;
        let collection = self.collection().await?;
        let counting = async move { collection.count_documents(filter).max_time(CALL_LIMIT).await };
        self.mongo.call("count documents", counting).await
    }

    async fn find_many(&self, ids: &BTreeSet<String>) -> Result<Vec<Document>, Error> {
        let mut documents = Vec::with_capacity(ids.len());
        let ids: Vec<&String> = ids.iter().collect();
        for chunk in ids.chunks(CHANGES_MAX) {
            let chunk: Vec<&str> = chunk.iter().map(|id| id.as_str()).collect();
            let filter = doc! { "_id": { "$in": chunk }, "deleted": { "$exists": false } };
            let collection = self.collection().await?;
            let finding =
                async move { collection.find(filter).max_time(CALL_LIMIT).await?.try_collect::<Vec<Bsons>>().await };
            for found in self.mongo.call("get documents", finding).await? {
                documents.push(read(found)?);
            }
        }
        Ok(documents)
    }

    async fn find_one(&self, id: &str) -> Result<Option<Document>, Error> {
        let filter = doc! { "_id": id, "deleted": { "$exists": false } };
        let collection = self.collection().await?;
        let finding = async move { collection.find_one(filter).max_time(CALL_LIMIT).await };
        self.mongo.call("get document", finding).await?.map(read).transpose()
    }

    async fn move_on(&self, from: u64, applied: &Applied) -> Result<(), Error> {
        if self.covers(applied).await? {
            return Ok(());
        }
        let command = doc! {
            "update": POSITIONS,
            "updates": [{
                "q": { "_id": self.position_id(&applied.stream), "sequence": { "$gte": signed(from)? } },
                "u": { "$max": { "sequence": signed(applied.sequence)? } },
            }],
            "writeConcern": { "w": "majority", "j": true, "wtimeout": CALL_LIMIT.as_millis() as i64 },
        };
        let database = self.mongo.database().await?;
        let answer = self.mongo.call("write position", async move { database.run_command(command).await }).await?;
        for wrong in ["writeErrors", "writeConcernError"] {
            if let Some(error) = answer.get(wrong) {
                return Err(failed("write position", error.to_string()));
            }
        }
        if number(answer.get("n")) == 0 {
            return Err(lost(applied, from, self.stored_position(&applied.stream).await?.unwrap_or_default()));
        }
        self.positions.read(&applied.stream, applied.sequence);
        if self.deleted.load(Relaxed) >= DELETED_MAX {
            self.deleted.store(0, Relaxed);
            self.sweep().await?;
        }
        Ok(())
    }

    /// Removes what is left of deleted documents whose facts are all behind the positions.
    async fn sweep(&self) -> Result<(), Error> {
        let mut after = None;
        loop {
            let mut filter = doc! { "deleted": true };
            if let Some(after) = after.take() {
                filter.insert("_id", doc! { "$gt": Bson::String(after) });
            }
            let collection = self.collection().await?;
            let finding = async move {
                let found =
                    collection.find(filter).sort(doc! { "_id": 1 }).limit(CHANGES_MAX as i64).max_time(CALL_LIMIT);
                found.await?.try_collect::<Vec<Bsons>>().await
            };
            let found = self.mongo.call("find deleted documents", finding).await?;
            let full = found.len() == CHANGES_MAX;
            after = found.last().and_then(|last| last.get_str("_id").ok()).map(str::to_owned);
            let mut over = vec![];
            for deleted in found {
                let applied = deleted.get_document("applied").cloned().unwrap_or_default();
                let is_over = |(stream, sequence): (&String, &Bson)| {
                    let position = self.positions.of(&unescaped(stream)).unwrap_or_default();
                    number(Some(sequence)).unsigned_abs() <= position
                };
                if applied.iter().all(is_over) {
                    over.push(
                        doc! { "_id": deleted.get_str("_id").unwrap_or_default(), "applied": applied, "deleted": true },
                    );
                }
            }
            if !over.is_empty() {
                let deletes: Vec<Bsons> = over.into_iter().map(|q| doc! { "q": q, "limit": 1 }).collect();
                let command = doc! { "delete": &self.name, "deletes": deletes, "ordered": false };
                let database = self.mongo.database().await?;
                self.mongo.call("remove deleted documents", async move { database.run_command(command).await }).await?;
            }
            if !full {
                return Ok(());
            }
        }
    }
}

/// What matches a query, from where it begins.
fn filter(query: &Query) -> Result<Bsons, Error> {
    let mut filter = doc! { "deleted": { "$exists": false } };
    if let Some(after) = query.begin()? {
        filter.insert("_id", doc! { "$gt": after });
    }
    let equal = query.equal.iter().map(|(name, value)| doc! { "indexes": index(name, value) });
    let one_of = query.one_of.iter().map(|(name, values)| {
        let values: Vec<String> = values.iter().map(|value| index(name, value)).collect();
        doc! { "indexes": { "$in": values } }
    });
    let all: Vec<Bsons> = equal.chain(one_of).collect();
    if !all.is_empty() {
        filter.insert("$and", all);
    }
    Ok(filter)
}

/// Changes of one round trip, each of another document: the server may apply them in any order.
#[derive(Default)]
struct Batch {
    changes: Vec<Last>,
    places: BTreeMap<String, usize>,
    bytes: usize,
}

/// The last change of a document in a batch.
struct Last {
    applied: Applied,
    change: Change,
    /// Does it take the place of a change that would have made the document?
    made: bool,
}

impl Batch {
    fn takes(&self, applied: &Applied, change: &Change) -> bool {
        let fits = self.changes.len() < CHANGES_MAX && self.bytes + bytes(change) <= BYTES_MAX;
        let before = self.places.get(change.id()).and_then(|place| self.changes.get(*place));
        fits && before.is_none_or(|before| before.applied.stream == applied.stream)
    }

    /// Only what the batch [`takes`](Self::takes).
    fn add(&mut self, applied: Applied, change: Change) {
        self.bytes += bytes(&change);
        match self.places.get(change.id()).and_then(|place| self.changes.get_mut(*place)) {
            // The facts of a stream are applied in order.
            Some(before) if before.applied.sequence >= applied.sequence => {}
            Some(before) => {
                before.made |= matches!(before.change, Change::Put(_));
                before.applied = applied;
                before.change = change;
            }
            None => {
                self.places.insert(change.id().to_owned(), self.changes.len());
                self.changes.push(Last { applied, change, made: false });
            }
        }
    }
}

fn bytes(change: &Change) -> usize {
    match change {
        Change::Put(document) => {
            document.body.len() + document.indexes.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>()
        }
        Change::Delete(id) => id.len(),
    }
}

fn update(last: Last) -> Result<Bsons, Error> {
    let Last { applied, change, made } = last;
    let sequence = signed(applied.sequence)?;
    let mark = format!("applied.{}", escaped(&applied.stream));
    // Also true where the mark is missing.
    let older = doc! { "$not": { "$gte": sequence } };
    Ok(match change {
        Change::Put(Document { id, indexes, body }) => {
            let indexes: Vec<String> = indexes.iter().map(|(name, value)| index(name, value)).collect();
            let body = Binary { subtype: BinarySubtype::Generic, bytes: body.into() };
            doc! {
                "q": { "_id": id, &mark: older },
                "u": { "$set": { mark: sequence, "indexes": indexes, "body": body }, "$unset": { "deleted": "" } },
                "upsert": true,
            }
        }
        Change::Delete(id) => {
            let mut filter = doc! { "_id": id, &mark: older };
            if !made {
                filter.insert("deleted", doc! { "$exists": false });
            }
            let set = doc! { mark: sequence, "deleted": true };
            doc! { "q": filter, "u": { "$set": set, "$unset": { "indexes": "", "body": "" } }, "upsert": made }
        }
    })
}

fn read(mut found: Bsons) -> Result<Document, Error> {
    let strange =
        |what: &'static str| failed("read document", format!("{what} of a document is not what this program writes"));
    let Some(Bson::String(id)) = found.remove("_id") else { return Err(strange("the id")) };
    let Some(Bson::Binary(body)) = found.remove("body") else { return Err(strange("the body")) };
    let Some(Bson::Array(all)) = found.remove("indexes") else { return Err(strange("an index")) };
    let pair = |index: &Bson| {
        let (name, value) = index.as_str()?.split_once('=')?;
        Some((unescaped(name), value.to_owned()))
    };
    let indexes = all.iter().map(|index| pair(index).ok_or_else(|| strange("an index"))).collect::<Result<_, _>>()?;
    Ok(Document { id, indexes, body: body.bytes.into() })
}

/// A value that a document is searched by; the name ends at the first `=`.
fn index(name: &str, value: &str) -> String {
    format!("{}={value}", escaped(name))
}

/// A name without what means something in the name of a field, and not empty.
fn escaped(name: &str) -> String {
    if name.is_empty() {
        return "%".to_owned();
    }
    let mut escaped = String::with_capacity(name.len());
    for c in name.chars() {
        match c {
            '%' | '.' | '$' | '=' | '\0' => escaped.push_str(&format!("%{:02X}", u32::from(c))),
            c => escaped.push(c),
        }
    }
    escaped
}

fn unescaped(name: &str) -> String {
    if name == "%" {
        return String::new();
    }
    percent_encoding::percent_decode_str(name).decode_utf8_lossy().into_owned()
}

/// A number however the server writes it.
fn number(value: Option<&Bson>) -> i64 {
    match value {
        Some(Bson::Int32(number)) => i64::from(*number),
        Some(Bson::Int64(number)) => *number,
        Some(Bson::Double(number)) => *number as i64,
        _ => 0,
    }
}

impl crate::Documents for Documents {
    fn write<'a>(&'a self, changes: Vec<(Applied, Change)>) -> Answer<'a, ()> {
        Box::pin(self.write_all(changes))
    }

    fn get<'a>(&'a self, id: &'a str) -> Answer<'a, Option<Document>> {
        Box::pin(self.find_one(id))
    }

    fn get_many<'a>(&'a self, ids: &'a BTreeSet<String>) -> Answer<'a, Vec<Document>> {
        Box::pin(self.find_many(ids))
    }

    fn count<'a>(&'a self, query: &'a Query) -> Answer<'a, u64> {
        Box::pin(self.count_all(query))
    }

    fn list<'a>(&'a self, query: &'a Query) -> Answer<'a, Page> {
        Box::pin(self.find(query))
    }

    fn advance<'a>(&'a self, from: u64, applied: &'a Applied) -> Answer<'a, ()> {
        Box::pin(self.move_on(from, applied))
    }

    fn position<'a>(&'a self, stream: &'a str) -> Answer<'a, u64> {
        Box::pin(self.read_position(stream))
    }

    fn is_remote(&self) -> bool {
        true
    }
}
