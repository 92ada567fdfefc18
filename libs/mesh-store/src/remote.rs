//! What the engines that are asked over a network share: every call ends within a limit, a connection is made when it
//! is first needed and again after it failed, and positions are remembered.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use url::Url;

use crate::{Applied, Error};

/// Longest wait for one call of a database.
pub(crate) const CALL_LIMIT: Duration = Duration::from_secs(10);

/// An error of the engine.
pub(crate) fn failed(operation: &'static str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Engine { operation, source: source.into() }
}

/// A call that ends within the limit. Not for drivers whose futures must not be dropped.
pub(crate) async fn within<T, E>(operation: &'static str, call: impl Future<Output = Result<T, E>>) -> Result<T, Error>
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    match tokio::time::timeout(CALL_LIMIT, call).await {
        Ok(answer) => answer.map_err(|error| failed(operation, error)),
        Err(_) => Err(failed(operation, late())),
    }
}

/// Says that an answer did not come in time.
pub(crate) fn late() -> String {
    format!("no answer within {} s", CALL_LIMIT.as_secs())
}

/// A connection, made when it is first needed.
pub(crate) struct Connection<T>(tokio::sync::Mutex<Option<Arc<T>>>);

impl<T> Default for Connection<T> {
    fn default() -> Self {
        Self(tokio::sync::Mutex::new(None))
    }
}

impl<T> Connection<T> {
    /// The connection, made now if there is none.
    pub(crate) async fn get(&self, connect: impl Future<Output = Result<T, Error>>) -> Result<Arc<T>, Error> {
        let mut held = self.0.lock().await;
        if let Some(connection) = &*held {
            return Ok(connection.clone());
        }
        Ok(held.insert(Arc::new(connect.await?)).clone())
    }

    /// Passes an answer on. After an error of the engine the next call makes a new connection, and looks at the schema.
    pub(crate) async fn after<A>(&self, answer: Result<A, Error>) -> Result<A, Error> {
        if let Err(Error::Engine { .. }) = &answer {
            self.0.lock().await.take();
        }
        answer
    }
}

/// Positions as last read or written, by stream.
#[derive(Default)]
pub(crate) struct Positions(Mutex<BTreeMap<String, u64>>);

impl Positions {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does a known position cover this fact? `None` if the position of its stream is not known.
    pub(crate) fn cover(&self, applied: &Applied) -> Option<bool> {
        self.lock().get(&applied.stream).map(|position| applied.sequence <= *position)
    }

    /// The database said so.
    pub(crate) fn read(&self, stream: &str, position: u64) {
        self.lock().insert(stream.to_owned(), position);
    }

    /// The known position of a stream.
    pub(crate) fn of(&self, stream: &str) -> Option<u64> {
        self.lock().get(stream).copied()
    }
}

/// The parts of a URL like `cassandra://user:password@host:port/path?key=value`. It has no `Debug`: it holds a password.
pub(crate) struct Address {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) user: String,
    pub(crate) password: String,
    /// Parts of the path.
    pub(crate) path: Vec<String>,
    pub(crate) options: BTreeMap<String, String>,
}

impl Address {
    /// Takes a URL apart. `expected` says in the error what it should look like; the URL itself is not shown.
    pub(crate) fn parse(url: &str, port: u16, expected: &'static str) -> Result<Self, Error> {
        let wrong = |_| Error::Url { expected };
        let url = Url::parse(url).map_err(|_| Error::Url { expected })?;
        let decoded = |text: &str| {
            percent_encoding::percent_decode_str(text).decode_utf8().map(std::borrow::Cow::into_owned).map_err(wrong)
        };
        let path = url.path_segments().into_iter().flatten().filter(|part| !part.is_empty());
        Ok(Self {
            host: url.host_str().filter(|host| !host.is_empty()).ok_or(Error::Url { expected })?.to_owned(),
            port: url.port().unwrap_or(port),
            user: decoded(url.username())?,
            password: decoded(url.password().unwrap_or_default())?,
            path: path.map(decoded).collect::<Result<_, _>>()?,
            options: url.query_pairs().map(|(key, value)| (key.into_owned(), value.into_owned())).collect(),
        })
    }
}

/// What a sequence is to databases, which have no unsigned integers.
pub(crate) fn signed(number: u64) -> Result<i64, Error> {
    i64::try_from(number).map_err(|_| Error::Invalid(format!("{number} is beyond what a database can count")))
}
