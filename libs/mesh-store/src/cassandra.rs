//! Histories in Cassandra 4 or newer: a keyspace, in which the tables of `schemas/cassandra` are.
//!
//! The versions of a thing lie in partitions of one hour, the newest first; a second table says in which hours it has
//! some. A version is one row whose key is what identifies it, so that to write it again changes nothing; the newest
//! version of a thing is remembered, or read, before one is written. Rows expire by TTL where a history says how long
//! it is kept.
//!
//! A driver of this age does not notice a node that is there and does not answer: every call has a limit, and after an
//! error the next one makes a new connection.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cdrs_tokio::{
    authenticators::StaticPasswordAuthenticatorProvider,
    cluster::{
        NodeTcpConfigBuilder, TcpConnectionManager,
        connection_pool::ConnectionPoolConfigBuilder,
        session::{Session, SessionBuilder, TcpSessionBuilder},
    },
    load_balancing::RoundRobinLoadBalancingStrategy,
    query::{PreparedQuery, QueryValues},
    statement::StatementParamsBuilder,
    transport::TransportTcp,
    types::{ByName as _, blob::Blob, rows::Row, value::Value},
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use mesh_proto::Timestamp;

use crate::{
    Answer, Applied, Entry, Error, Version, lost,
    remote::{Address, CALL_LIMIT, Connection, Positions, failed, signed, within},
};

const EXPECTED: &str = "cassandra://[user:password@]host[:9042]/keyspace[?replication=1]";
/// The migrations, each the schema version that it leads to.
const MIGRATIONS: &[(i64, &str)] = &[(1, include_str!("../../../schemas/cassandra/1.cql"))];
/// Length of a partition.
const HOUR_NANOS: i64 = 3_600_000_000_000;
/// The same.
const HOUR_SECONDS: i32 = 3_600;
/// Statements under way for one call.
const STATEMENTS_AT_ONCE: usize = 128;
/// Rows of one page.
const PAGE_ROWS: i32 = 1_000;
/// Hours of a thing that are looked up at once.
const HOURS_AT_ONCE: i32 = 48;
/// Things whose newest version is remembered; beyond, all are forgotten and read again.
const NEWEST_MAX: usize = 100_000;
/// Longest TTL that Cassandra takes: 20 years.
const TTL_MAX_SECONDS: i32 = 630_720_000;

type Link =
    Session<TransportTcp, TcpConnectionManager, RoundRobinLoadBalancingStrategy<TransportTcp, TcpConnectionManager>>;

/// A keyspace of histories.
pub(crate) struct Cassandra {
    address: Address,
    keyspace: String,
    replication: u32,
    connection: Connection<Connected>,
}

/// A session with its prepared statements.
struct Connected {
    link: Link,
    insert: PreparedQuery,
    insert_hour: PreparedQuery,
    hours: PreparedQuery,
    versions: PreparedQuery,
    versions_before: PreparedQuery,
    version_at: PreparedQuery,
    delete_versions: PreparedQuery,
    delete_hour: PreparedQuery,
    delete_in_hour: PreparedQuery,
    position: PreparedQuery,
    first_position: PreparedQuery,
    set_position: PreparedQuery,
}

impl Cassandra {
    /// Does not connect yet.
    pub(crate) fn open(url: &str) -> Result<Self, Error> {
        let address = Address::parse(url, 9042, EXPECTED)?;
        let wrong = || Error::Url { expected: EXPECTED };
        let [keyspace] = address.path.as_slice() else { return Err(wrong()) };
        let plain = keyspace.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        if !plain || keyspace.len() > 48 || !keyspace.starts_with(|c: char| c.is_ascii_lowercase()) {
            return Err(Error::Url {
                expected: "a keyspace of at most 48 small letters, digits and _, a letter first",
            });
        }
        if address.options.keys().any(|option| option != "replication") {
            return Err(wrong());
        }
        let replication = address.options.get("replication").map_or(Ok(1), |number| number.parse());
        let replication = replication.ok().filter(|number| (1..=100).contains(number)).ok_or_else(wrong)?;
        let keyspace = keyspace.clone();
        Ok(Self { address, keyspace, replication, connection: Connection::default() })
    }

    /// The histories of a name, whose versions expire that long after they were written; never, if zero.
    pub(crate) fn history(self: &Arc<Self>, name: &str, keep: Duration) -> History {
        let seconds = i32::try_from(keep.as_secs()).unwrap_or(i32::MAX).min(TTL_MAX_SECONDS);
        // Not for ever, if it is for less than a second.
        let ttl = if keep.is_zero() { 0 } else { seconds.max(1) };
        let cassandra = self.clone();
        History { cassandra, name: name.to_owned(), ttl, positions: Positions::default(), newest: Mutex::default() }
    }

    async fn connected(&self) -> Result<Arc<Connected>, Error> {
        self.connection.get(self.connect()).await
    }

    async fn link(&self, keyspace: Option<&str>) -> Result<Link, Error> {
        let mut node = NodeTcpConfigBuilder::new()
            .with_contact_point(format!("{}:{}", self.address.host, self.address.port).into());
        if !self.address.user.is_empty() {
            let given = StaticPasswordAuthenticatorProvider::new(&self.address.user, &self.address.password);
            node = node.with_authenticator_provider(Arc::new(given));
        }
        let node = within("find Cassandra", node.build()).await?;
        let pool = ConnectionPoolConfigBuilder::new().with_connect_timeout(Some(CALL_LIMIT / 2)).build();
        let mut session = TcpSessionBuilder::new(RoundRobinLoadBalancingStrategy::new(), node)
            .with_connection_pool_config(pool)
            .with_transport_buffer_size(64 << 10);
        if let Some(keyspace) = keyspace {
            session = session.with_keyspace(keyspace.to_owned());
        }
        within("connect to Cassandra", session.build()).await
    }

    async fn connect(&self) -> Result<Connected, Error> {
        let link = self.link(None).await?;
        let known = "SELECT keyspace_name FROM system_schema.keyspaces WHERE keyspace_name = ?";
        let values: Vec<Value> = vec![self.keyspace.as_str().into()];
        let found = within("find keyspace", link.query_with_values(known, values)).await?;
        if rows("find keyspace", found)?.is_empty() {
            let make = format!(
                "CREATE KEYSPACE IF NOT EXISTS \"{}\" WITH replication = {{'class': 'SimpleStrategy', 'replication_factor': {}}}",
                self.keyspace, self.replication
            );
            within("make keyspace", link.query(make)).await?;
        }
        drop(link);
        let link = self.link(Some(&self.keyspace)).await?;
        migrate(&link).await?;
        let prepare = async |query: &str| within("prepare statement", link.prepare(query)).await;
        let of = "history = ? AND key = ? AND hour = ?";
        Ok(Connected {
            insert: prepare(
                "INSERT INTO versions (history, key, hour, at, version, body) VALUES (?, ?, ?, ?, ?, ?) USING TTL ?",
            )
            .await?,
            insert_hour: prepare("INSERT INTO hours (history, key, hour, first) VALUES (?, ?, ?, ?) USING TTL ?")
                .await?,
            hours: prepare("SELECT hour, first FROM hours WHERE history = ? AND key = ? AND hour < ? LIMIT ?").await?,
            versions: prepare(&format!("SELECT at, version, body FROM versions WHERE {of} LIMIT ?")).await?,
            // Within one partition.
            versions_before: prepare(&format!(
                "SELECT at, version, body FROM versions WHERE {of} AND version < ? LIMIT ? ALLOW FILTERING"
            ))
            .await?,
            version_at: prepare(&format!("SELECT at, version, body FROM versions WHERE {of} AND at <= ? LIMIT 1"))
                .await?,
            delete_versions: prepare(&format!("DELETE FROM versions WHERE {of}")).await?,
            delete_hour: prepare(&format!("DELETE FROM hours WHERE {of}")).await?,
            delete_in_hour: prepare(&format!("DELETE FROM versions WHERE {of} AND at < ?")).await?,
            position: prepare("SELECT sequence FROM positions WHERE history = ? AND stream = ?").await?,
            first_position: prepare("INSERT INTO positions (history, stream, sequence) VALUES (?, ?, 0) IF NOT EXISTS")
                .await?,
            set_position: prepare(
                "UPDATE positions SET sequence = ? WHERE history = ? AND stream = ? IF sequence >= ?",
            )
            .await?,
            link,
        })
    }
}

/// Brings the keyspace to the schema of this release; refuses that of a newer one.
async fn migrate(link: &Link) -> Result<(), Error> {
    let ask = async |query: String| within("bring schema up to date", link.query(query)).await;
    ask("CREATE TABLE IF NOT EXISTS schema_version (kind text PRIMARY KEY, version bigint)".into()).await?;
    let found = ask("SELECT version FROM schema_version WHERE kind = 'history'".into()).await?;
    let found = rows("read schema version", found)?;
    let found: i64 = found.first().map_or(Ok(0), |row| number(row, "version"))?;
    let known = MIGRATIONS.last().map_or(0, |(version, _)| *version);
    if found > known {
        return Err(Error::Newer { engine: "Cassandra", found, known });
    }
    for (version, text) in MIGRATIONS.iter().filter(|(version, _)| *version > found) {
        for statement in statements(text) {
            ask(statement).await?;
        }
        ask(format!("INSERT INTO schema_version (kind, version) VALUES ('history', {version})")).await?;
    }
    Ok(())
}

/// The statements of a file of CQL, without its comments.
fn statements(text: &str) -> Vec<String> {
    let code: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("--")).collect();
    code.join("\n").split(';').map(|s| s.trim().to_owned()).filter(|s| !s.is_empty()).collect()
}

fn rows(operation: &'static str, answer: cdrs_tokio::frame::Envelope) -> Result<Vec<Row>, Error> {
    let body = answer.response_body().map_err(|error| failed(operation, error))?;
    Ok(body.into_rows().unwrap_or_default())
}

fn number(row: &Row, column: &str) -> Result<i64, Error> {
    row.r_by_name(column).map_err(|error| failed("read row", error))
}

/// Did a statement with a condition change anything?
fn is_applied(row: &Row) -> bool {
    row.r_by_name("[applied]").unwrap_or(false)
}

fn version(row: &Row) -> Result<Version, Error> {
    let body: Blob = row.r_by_name("body").map_err(|error| failed("read row", error))?;
    Ok(Version {
        version: number(row, "version")?.unsigned_abs(),
        at: Timestamp::from_nanos(i128::from(number(row, "at")?)),
        body: body.into_vec().into(),
    })
}

impl Connected {
    async fn run(
        &self,
        operation: &'static str,
        statement: &PreparedQuery,
        values: Vec<Value>,
    ) -> Result<Vec<Row>, Error> {
        // All of them may be repeated.
        let parameters = StatementParamsBuilder::new().with_values(QueryValues::SimpleValues(values)).idempotent(true);
        rows(operation, within(operation, self.link.exec_with_params(statement, &parameters.build())).await?)
    }

    /// Rows page by page, until there are no more.
    async fn pages(
        &self,
        operation: &'static str,
        statement: &PreparedQuery,
        values: Vec<Value>,
    ) -> Result<Vec<Row>, Error> {
        let (mut found, mut state) = (vec![], None);
        loop {
            let mut parameters = StatementParamsBuilder::new()
                .with_values(QueryValues::SimpleValues(values.clone()))
                .with_page_size(PAGE_ROWS)
                .idempotent(true);
            if let Some(state) = state.take() {
                parameters = parameters.with_paging_state(state);
            }
            let answer = within(operation, self.link.exec_with_params(statement, &parameters.build())).await?;
            let body = answer.response_body().map_err(|error| failed(operation, error))?;
            state = body.as_rows_metadata().and_then(|metadata| metadata.paging_state.clone());
            found.extend(body.into_rows().unwrap_or_default());
            if state.is_none() {
                return Ok(found);
            }
        }
    }
}

/// The histories of a name.
pub(crate) struct History {
    cassandra: Arc<Cassandra>,
    name: String,
    /// Seconds; 0 for ever.
    ttl: i32,
    positions: Positions,
    newest: Mutex<BTreeMap<String, Newest>>,
}

/// The newest version of a thing.
#[derive(Clone, Copy)]
struct Newest {
    version: i64,
    /// Nanoseconds since 1970.
    at: i64,
}

/// An hour of a thing with its first version.
struct Hour {
    hour: i64,
    first: i64,
}

impl History {
    fn newest(&self) -> MutexGuard<'_, BTreeMap<String, Newest>> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn values(&self, key: &str, hour: i64) -> Vec<Value> {
        vec![self.name.as_str().into(), key.into(), hour.into()]
    }

    async fn covers(&self, applied: &Applied) -> Result<bool, Error> {
        if let Some(covered) = self.positions.cover(applied) {
            return Ok(covered);
        }
        Ok(applied.sequence <= self.read_position(&applied.stream).await?)
    }

    async fn stored_position(&self, on: &Connected, stream: &str) -> Result<Option<u64>, Error> {
        let values = vec![self.name.as_str().into(), stream.into()];
        let found = on.run("read position", &on.position, values).await?;
        found.first().map(|row| Ok(number(row, "sequence")?.unsigned_abs())).transpose()
    }

    async fn read_position(&self, stream: &str) -> Result<u64, Error> {
        let on = self.cassandra.connected().await?;
        let position = match self.stored_position(&on, stream).await? {
            Some(position) => position,
            None => {
                // From here on a database that is emptied lacks it, and advances nothing.
                let values = vec![self.name.as_str().into(), stream.into()];
                on.run("write position", &on.first_position, values).await?;
                0
            }
        };
        self.positions.read(stream, position);
        // What was there may be gone.
        self.newest().clear();
        Ok(position)
    }

    /// Hours of a thing before this one, the newest first.
    async fn hours(&self, on: &Connected, key: &str, before: i64, limit: i32) -> Result<Vec<Hour>, Error> {
        let mut values = self.values(key, before);
        values.push(limit.into());
        let found = on.run("find hours", &on.hours, values).await?;
        found.iter().map(|row| Ok(Hour { hour: number(row, "hour")?, first: number(row, "first")? })).collect()
    }

    /// The newest versions of these things, as remembered or read.
    async fn newest_of(&self, on: &Connected, keys: BTreeSet<&str>) -> Result<BTreeMap<String, Newest>, Error> {
        let (mut found, mut unknown) = (BTreeMap::new(), vec![]);
        {
            let newest = self.newest();
            for key in keys {
                match newest.get(key) {
                    Some(known) => drop(found.insert(key.to_owned(), *known)),
                    None => unknown.push(key.to_owned()),
                }
            }
        }
        let read = |key: String| async move {
            let newest = self.find(on, &key, None, 1).await?;
            let Some(newest) = newest.first() else { return Ok(None) };
            Ok::<_, Error>(Some((key, Newest { version: signed(newest.version)?, at: nanos(newest.at)? })))
        };
        let reading = stream::iter(unknown).map(read).buffer_unordered(STATEMENTS_AT_ONCE);
        let read: Vec<Option<(String, Newest)>> = reading.try_collect().await?;
        found.extend(read.into_iter().flatten());
        Ok(found)
    }

    async fn write_all(&self, entries: Vec<(Applied, Entry)>) -> Result<(), Error> {
        let answer = self.write_rows(entries).await;
        if let Err(Error::Engine { .. }) = &answer {
            // Some of what is remembered as written may not be.
            self.newest().clear();
        }
        answer
    }

    async fn write_rows(&self, entries: Vec<(Applied, Entry)>) -> Result<(), Error> {
        let on = self.cassandra.connected().await?;
        let mut refused = Ok(());
        let mut new = Vec::with_capacity(entries.len());
        for (applied, entry) in entries {
            if !self.covers(&applied).await? {
                new.push(entry);
            }
        }
        let keys = new.iter().map(|entry| entry.key.as_str()).filter(|key| !key.is_empty());
        let mut newest = self.newest_of(&on, keys.collect()).await?;
        let (mut hours, mut versions) = (vec![], vec![]);
        for Entry { key, version } in new {
            let numbers = match (key.is_empty(), signed(version.version), nanos(version.at)) {
                (true, ..) => Err(Error::Invalid("a history needs a key".into())),
                (_, Err(error), _) | (_, _, Err(error)) => Err(error),
                (_, Ok(number), Ok(at)) => Ok((number, at)),
            };
            let (number, at) = match numbers {
                Ok(numbers) => numbers,
                Err(error) => {
                    refused = refused.and(Err(error));
                    continue;
                }
            };
            let before = newest.get(&key);
            if before.is_some_and(|before| before.version >= number) {
                continue;
            }
            // Things come about in order.
            let at = before.map_or(at, |before| before.at.max(at));
            let hour = at.div_euclid(HOUR_NANOS);
            if before.is_none_or(|before| before.at.div_euclid(HOUR_NANOS) != hour) {
                let mut values = self.values(&key, hour);
                // The versions of the hour are written after it, and expire after it.
                let ttl = if self.ttl == 0 { 0 } else { self.ttl.saturating_add(HOUR_SECONDS).min(TTL_MAX_SECONDS) };
                values.extend([number.into(), ttl.into()]);
                hours.push(values);
            }
            let mut values = self.values(&key, hour);
            values.extend([at.into(), number.into(), Blob::from(Vec::from(version.body)).into(), self.ttl.into()]);
            versions.push(values);
            newest.insert(key, Newest { version: number, at });
        }
        // Hours first. Versions are not found without theirs: as long as one of these fails, all of them are written again.
        let hours = hours.into_iter().map(|values| (true, values));
        let all = hours.chain(versions.into_iter().map(|values| (false, values)));
        let on = &on;
        let run = |(is_hour, values)| {
            let statement = if is_hour { &on.insert_hour } else { &on.insert };
            on.run("write versions", statement, values)
        };
        stream::iter(all).map(run).buffer_unordered(STATEMENTS_AT_ONCE).try_for_each(|_| async { Ok(()) }).await?;
        let mut all = self.newest();
        if all.len() + newest.len() > NEWEST_MAX {
            all.clear();
        }
        all.append(&mut newest);
        drop(all);
        refused
    }

    async fn find(&self, on: &Connected, key: &str, before: Option<u64>, limit: usize) -> Result<Vec<Version>, Error> {
        let before = before.map(|before| i64::try_from(before).unwrap_or(i64::MAX));
        let mut found = vec![];
        let mut last = i64::MAX;
        let mut at_once = 2;
        while found.len() < limit {
            let hours = self.hours(on, key, last, at_once).await?;
            let Some(oldest) = hours.last() else { break };
            last = oldest.hour;
            at_once = HOURS_AT_ONCE;
            for hour in hours {
                // All of this hour is newer.
                if before.is_some_and(|before| hour.first >= before) {
                    continue;
                }
                let left = i32::try_from(limit - found.len()).unwrap_or(i32::MAX);
                let mut values = self.values(key, hour.hour);
                let statement = match before {
                    Some(before) => {
                        values.push(before.into());
                        &on.versions_before
                    }
                    None => &on.versions,
                };
                values.push(left.into());
                for row in on.pages("list versions", statement, values).await? {
                    found.push(version(&row)?);
                }
                if found.len() >= limit {
                    break;
                }
            }
        }
        Ok(found)
    }

    async fn list_all(&self, key: &str, before: Option<u64>, limit: usize) -> Result<Vec<Version>, Error> {
        let on = self.cassandra.connected().await?;
        self.find(&on, key, before, limit).await
    }

    async fn find_at(&self, key: &str, time: Timestamp) -> Result<Option<Version>, Error> {
        let on = self.cassandra.connected().await?;
        let time = clamped(time);
        let mut before = time.div_euclid(HOUR_NANOS) + 1;
        // Mostly the first hour has it: all others are looked at only where the first lost theirs to their TTL.
        loop {
            let hours = self.hours(&on, key, before, 2).await?;
            let Some(oldest) = hours.last() else { return Ok(None) };
            before = oldest.hour;
            for hour in hours {
                let mut values = self.values(key, hour.hour);
                values.push(time.into());
                if let Some(row) = on.run("find version", &on.version_at, values).await?.first() {
                    return Ok(Some(version(row)?));
                }
            }
        }
    }

    async fn remove(&self, before: Timestamp) -> Result<(), Error> {
        let on = self.cassandra.connected().await?;
        let before = clamped(before);
        let last = before.div_euclid(HOUR_NANOS);
        let mut state = None;
        loop {
            let mut parameters = StatementParamsBuilder::new().with_page_size(PAGE_ROWS);
            if let Some(state) = state.take() {
                parameters = parameters.with_paging_state(state);
            }
            let things = on.link.query_with_params("SELECT DISTINCT history, key FROM hours", parameters.build());
            let body = within("find things", things).await?.response_body();
            let body = body.map_err(|error| failed("find things", error))?;
            state = body.as_rows_metadata().and_then(|metadata| metadata.paging_state.clone());
            for thing in body.into_rows().unwrap_or_default() {
                let text = |column| -> Result<String, Error> {
                    thing.r_by_name(column).map_err(|error| failed("read row", error))
                };
                if text("history")? == self.name {
                    self.remove_of(&on, &text("key")?, last, before).await?;
                }
            }
            if state.is_none() {
                break;
            }
        }
        self.newest().clear();
        Ok(())
    }

    async fn remove_of(&self, on: &Connected, key: &str, last: i64, before: i64) -> Result<(), Error> {
        let mut values = self.values(key, last);
        values.push(before.into());
        let mut from = last;
        loop {
            let hours = self.hours(on, key, from, HOURS_AT_ONCE).await?;
            let Some(oldest) = hours.last() else { break };
            from = oldest.hour;
            for hour in &hours {
                on.run("forget versions", &on.delete_versions, self.values(key, hour.hour)).await?;
                on.run("forget versions", &on.delete_hour, self.values(key, hour.hour)).await?;
            }
        }
        if self.hours(on, key, last + 1, 1).await?.is_empty() {
            return Ok(());
        }
        on.run("forget versions", &on.delete_in_hour, values).await.map(|_| ())
    }

    async fn move_on(&self, from: u64, applied: &Applied) -> Result<(), Error> {
        if self.covers(applied).await? {
            return Ok(());
        }
        let on = self.cassandra.connected().await?;
        let sequence = signed(applied.sequence)?;
        let stream = applied.stream.as_str();
        let values = vec![sequence.into(), self.name.as_str().into(), stream.into(), signed(from)?.into()];
        let answer = on.run("write position", &on.set_position, values).await?;
        if !answer.first().is_some_and(is_applied) {
            // Of a statement that was sent twice, the second may have found what the first wrote.
            let position = self.stored_position(&on, stream).await?;
            if position.is_none_or(|position| position < applied.sequence) {
                return Err(lost(applied, from, position.unwrap_or_default()));
            }
        }
        self.positions.read(&applied.stream, applied.sequence);
        Ok(())
    }
}

fn nanos(at: Timestamp) -> Result<i64, Error> {
    i64::try_from(at.as_nanos()).map_err(|_| Error::Invalid(format!("{at} is beyond the times that a history keeps")))
}

fn clamped(at: Timestamp) -> i64 {
    at.as_nanos().clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
}

impl crate::History for History {
    fn write<'a>(&'a self, entries: Vec<(Applied, Entry)>) -> Answer<'a, ()> {
        Box::pin(async move { self.cassandra.connection.after(self.write_all(entries).await).await })
    }

    fn at<'a>(&'a self, key: &'a str, time: Timestamp) -> Answer<'a, Option<Version>> {
        Box::pin(async move { self.cassandra.connection.after(self.find_at(key, time).await).await })
    }

    fn list<'a>(&'a self, key: &'a str, before: Option<u64>, limit: usize) -> Answer<'a, Vec<Version>> {
        Box::pin(async move { self.cassandra.connection.after(self.list_all(key, before, limit).await).await })
    }

    fn forget(&self, before: Timestamp) -> Answer<'_, ()> {
        Box::pin(async move { self.cassandra.connection.after(self.remove(before).await).await })
    }

    fn advance<'a>(&'a self, from: u64, applied: &'a Applied) -> Answer<'a, ()> {
        Box::pin(async move { self.cassandra.connection.after(self.move_on(from, applied).await).await })
    }

    fn position<'a>(&'a self, stream: &'a str) -> Answer<'a, u64> {
        Box::pin(async move { self.cassandra.connection.after(self.read_position(stream).await).await })
    }

    fn is_remote(&self) -> bool {
        true
    }
}
