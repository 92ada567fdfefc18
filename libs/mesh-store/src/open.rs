//! The engine of a URL.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{Documents, Error, History, Series, memory};

/// An opened engine. Collections of one name are one collection.
#[derive(Clone)]
pub struct Store(Arc<Memory>);

#[derive(Default)]
struct Memory {
    documents: Mutex<BTreeMap<String, Arc<memory::Shared<memory::Documents>>>>,
    series: Mutex<BTreeMap<String, Arc<memory::Shared<memory::Series>>>>,
    history: Mutex<BTreeMap<String, Arc<memory::Shared<memory::History>>>>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("memory:")
    }
}

/// Opens the engine that a URL names. A URL may hold a password, so no error repeats it.
///
/// # Errors
/// [`Error::Later`] for engines that a later release brings, [`Error::UnknownEngine`] for anything else that is not
/// `memory:`.
pub fn open(url: &str) -> Result<Store, Error> {
    match url.split_once(':').map_or("", |(scheme, _)| scheme) {
        "memory" => Ok(Store(Arc::default())),
        "mongodb" | "mongodb+srv" => Err(Error::Later("mongodb")),
        "influxdb" | "influxdb2" => Err(Error::Later("influxdb")),
        "cassandra" => Err(Error::Later("cassandra")),
        // Without a colon the text may be anything, a bare password too.
        scheme => Err(Error::UnknownEngine(scheme.to_owned())),
    }
}

impl Store {
    /// The documents of a name. The limits are those of whoever asks first.
    pub fn documents(&self, name: &str, limits: memory::DocumentLimits) -> Arc<dyn Documents> {
        collection(&self.0.documents, name, || memory::Documents::new(limits))
    }

    /// The series of a name. The limits are those of whoever asks first.
    pub fn series(&self, name: &str, limits: memory::WindowLimits) -> Arc<dyn Series> {
        collection(&self.0.series, name, || memory::Series::new(limits))
    }

    /// The histories of a name. The limits are those of whoever asks first.
    pub fn history(&self, name: &str, limits: memory::WindowLimits) -> Arc<dyn History> {
        collection(&self.0.history, name, || memory::History::new(limits))
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
        let limits = memory::DocumentLimits::default();
        let document = Document { id: "a".into(), ..Default::default() };
        block_on(store.documents("x", limits).put(&Applied::new("S", 1), document.clone())).unwrap();
        assert_eq!(block_on(store.documents("x", limits).get("a")).unwrap(), Some(document));
        assert_eq!(block_on(store.documents("y", limits).get("a")).unwrap(), None);
    }

    #[test]
    fn an_engine_of_a_later_release_is_named_and_its_password_is_not() {
        for url in ["mongodb://u:secret@h/db", "influxdb://secret@h", "cassandra://u:secret@h"] {
            let text = open(url).unwrap_err().to_string();
            assert!(text.contains("arrives with the telemetry release"), "{text}");
            assert!(!text.contains("secret"), "{text}");
        }
        let text = open("secret").unwrap_err().to_string();
        assert!(text.contains("memory:") && !text.contains("secret"), "{text}");
    }
}
