//! The engine of a URL.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use crate::{Documents, Error, History, Series, cassandra::Cassandra, influx::Influx, memory, mongo::Mongo};

/// An opened engine. Collections of one name are one collection.
#[derive(Clone)]
pub struct Store(Engine);

#[derive(Clone)]
enum Engine {
    Memory(Arc<Memory>),
    Mongo(Arc<Mongo>),
    Influx(Arc<Influx>),
    Cassandra(Arc<Cassandra>),
}

#[derive(Default)]
struct Memory {
    documents: Mutex<BTreeMap<String, Arc<memory::Shared<memory::Documents>>>>,
    series: Mutex<BTreeMap<String, Arc<memory::Shared<memory::Series>>>>,
    history: Mutex<BTreeMap<String, Arc<memory::Shared<memory::History>>>>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.engine())
    }
}

/// Opens the engine that a URL names. Nothing is connected yet: a database that is away, or refuses, says so when it is
/// first asked. A URL may hold a password, so no error repeats it.
///
/// # Errors
/// [`Error::UnknownEngine`] for a scheme that is not `memory`, `mongodb`, `influxdb` or `cassandra`; [`Error::Url`] for the
/// rest of the URL.
pub fn open(url: &str) -> Result<Store, Error> {
    let engine = match url.split_once(':').map_or("", |(scheme, _)| scheme) {
        "memory" => Engine::Memory(Arc::default()),
        "mongodb" | "mongodb+srv" => Engine::Mongo(Arc::new(Mongo::open(url)?)),
        "influxdb" | "influxdb2" => Engine::Influx(Arc::new(Influx::open(url)?)),
        "cassandra" => Engine::Cassandra(Arc::new(Cassandra::open(url)?)),
        // Without a colon the text may be anything, a bare password too.
        scheme => return Err(Error::UnknownEngine(scheme.to_owned())),
    };
    Ok(Store(engine))
}

impl Store {
    /// The scheme of its URL, with the colon.
    pub fn engine(&self) -> &'static str {
        match self.0 {
            Engine::Memory(_) => "memory:",
            Engine::Mongo(_) => "mongodb:",
            Engine::Influx(_) => "influxdb:",
            Engine::Cassandra(_) => "cassandra:",
        }
    }

    /// Does it keep what it has in the memory of this process, and only as long as that runs?
    pub fn is_memory(&self) -> bool {
        matches!(self.0, Engine::Memory(_))
    }

    /// The documents of a name. The limits are those of whoever asks first; a database counts no documents.
    ///
    /// # Errors
    /// [`Error::Kind`] if the engine keeps none.
    pub fn documents(&self, name: &str, limits: memory::DocumentLimits) -> Result<Arc<dyn Documents>, Error> {
        match &self.0 {
            Engine::Memory(memory) => {
                Ok(collection(&memory.documents, name, || memory::Documents::new(limits)) as Arc<dyn Documents>)
            }
            Engine::Mongo(mongo) => Ok(Arc::new(mongo.documents(name, limits))),
            Engine::Influx(_) | Engine::Cassandra(_) => Err(self.unfit("documents", "mongodb")),
        }
    }

    /// The series of a name. The limits are those of whoever asks first; a database has none.
    ///
    /// # Errors
    /// [`Error::Kind`] if the engine keeps none.
    pub fn series(&self, name: &str, limits: memory::WindowLimits) -> Result<Arc<dyn Series>, Error> {
        match &self.0 {
            Engine::Memory(memory) => {
                Ok(collection(&memory.series, name, || memory::Series::new(limits)) as Arc<dyn Series>)
            }
            Engine::Influx(influx) => Ok(Arc::new(influx.series(name))),
            Engine::Mongo(_) | Engine::Cassandra(_) => Err(self.unfit("series", "influxdb")),
        }
    }

    /// The histories of a name, kept at least this long, or for ever if zero. The limits are those of whoever asks first;
    /// a database has none, and removes by itself what is older.
    ///
    /// # Errors
    /// [`Error::Kind`] if the engine keeps none.
    pub fn history(&self, name: &str, limits: memory::WindowLimits, keep: Duration) -> Result<Arc<dyn History>, Error> {
        match &self.0 {
            Engine::Memory(memory) => {
                Ok(collection(&memory.history, name, || memory::History::new(limits)) as Arc<dyn History>)
            }
            Engine::Cassandra(cassandra) => Ok(Arc::new(cassandra.history(name, keep))),
            Engine::Mongo(_) | Engine::Influx(_) => Err(self.unfit("histories", "cassandra")),
        }
    }

    fn unfit(&self, wanted: &'static str, instead: &'static str) -> Error {
        let (engine, keeps) = match self.0 {
            Engine::Memory(_) => ("memory", "everything"),
            Engine::Mongo(_) => ("mongodb", "documents"),
            Engine::Influx(_) => ("influxdb", "series"),
            Engine::Cassandra(_) => ("cassandra", "histories"),
        };
        Error::Kind { engine, keeps, wanted, instead }
    }
}

type Named<T> = Mutex<BTreeMap<String, Arc<memory::Shared<T>>>>;

fn collection<T>(all: &Named<T>, name: &str, new: impl FnOnce() -> T) -> Arc<memory::Shared<T>> {
    let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
    all.entry(name.to_owned()).or_insert_with(|| Arc::new(memory::Shared::new(new()))).clone()
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;

    use super::*;
    use crate::{Applied, Document};

    #[test]
    fn collections_of_one_name_are_one_and_of_two_names_two() {
        let store = open("memory:").unwrap();
        let of = |name| store.documents(name, memory::DocumentLimits::default()).unwrap();
        let document = Document { id: "a".into(), ..Default::default() };
        block_on(of("x").put(&Applied::new("S", 1), document.clone())).unwrap();
        assert_eq!(block_on(of("x").get("a")).unwrap(), Some(document));
        assert_eq!(block_on(of("y").get("a")).unwrap(), None);
    }

    const MONGODB: &str = "mongodb://u:secret@h/db";
    const INFLUXDB: &str = "influxdb://:secret@h/org/bucket";
    const CASSANDRA: &str = "cassandra://u:secret@h/continuum?replication=3";

    #[test]
    fn each_engine_keeps_its_kind_and_says_which_keeps_the_others() {
        let limits = memory::WindowLimits::default();
        for url in [MONGODB, INFLUXDB, CASSANDRA, "memory:"] {
            let store = open(url).unwrap();
            assert!(url.starts_with(&format!("{store:?}")), "{store:?}");
            let errors = [
                ("documents", "mongodb:", store.documents("a", memory::DocumentLimits::default()).err()),
                ("series", "influxdb:", store.series("a", limits).err()),
                ("histories", "cassandra:", store.history("a", limits, Duration::ZERO).err()),
            ];
            let refused = if store.is_memory() { 0 } else { 2 };
            assert_eq!(errors.iter().filter(|(.., error)| error.is_some()).count(), refused, "{url}");
            for (wanted, instead, error) in errors.into_iter().filter_map(|(w, i, e)| Some((w, i, e?.to_string()))) {
                assert!(error.contains(&format!("not {wanted}; use {instead}")), "{error}");
                assert!(!url.starts_with(instead) && !error.contains("secret"), "{error}");
            }
        }
    }

    #[test]
    fn a_url_that_cannot_be_used_is_refused_and_its_password_is_not_shown() {
        let wrong = [
            "secret",
            "secret:secret@h",
            "mongodb://u:secret@h:port/db",
            "mongodb://u:secret@",
            "influxdb://:secret@h",
            "influxdb://:secret@h/org",
            "influxdb://:secret@h/org/a%22b",
            "influxdb://:secret@/org/bucket",
            "cassandra://u:secret@h",
            "cassandra://u:secret@h/Drop",
            "cassandra://u:secret@h/a;b",
            "cassandra://u:secret@h/k?replication=0",
            "cassandra://u:secret@h/k?secret=1",
            "cassandra://u:secret@h:99999/k",
        ];
        for url in wrong {
            let error = open(url).unwrap_err();
            assert!(matches!(error, Error::Url { .. } | Error::UnknownEngine(_)), "{url}: {error:?}");
            let shown = format!("{error} {error:?}").replace("\"secret\"", "");
            assert!(!shown.contains("secret"), "{url}: {shown}");
        }
    }
}
