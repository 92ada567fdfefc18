//! Histories in ordered maps.

use bytes::Bytes;
use mesh_proto::Timestamp;
use prost::Message as _;

use super::{
    Positions, Shared, first_refusal,
    window::{Item, Window, WindowLimits},
};
use crate::{Answer, Applied, Entry, Error, Version, Written};

/// A set of histories; the oldest versions leave at the limits.
#[derive(Clone, Debug, PartialEq)]
pub struct History {
    window: Window<u64, Bytes>,
    positions: Positions,
}

/// What a version takes beside its body, bytes.
const VERSION_BYTES: u64 = 96;

impl History {
    /// An empty set.
    pub fn new(limits: WindowLimits) -> Self {
        Self { window: Window::new(limits), positions: Positions::default() }
    }

    /// As [`crate::History::append`]; says whether it changed anything.
    pub fn append(&mut self, applied: &Applied, key: &str, version: Version) -> Result<Written, Error> {
        if key.is_empty() {
            return Err(Error::Invalid("a history needs a key".into()));
        }
        let newest = self.window.lane(key).and_then(|lane| lane.last_key_value()).map(|(version, _)| *version);
        if self.positions.covers(applied) || newest.is_some_and(|newest| newest >= version.version) {
            return Ok(Written::Already);
        }
        self.insert(key, version);
        Ok(Written::Stored)
    }

    /// As [`crate::History::at`].
    pub fn at(&self, key: &str, time: Timestamp) -> Option<Version> {
        self.window.lane(key)?.iter().rev().find(|(_, item)| item.at <= time).map(version)
    }

    /// As [`crate::History::list`].
    pub fn list(&self, key: &str, before: Option<u64>, limit: usize) -> Vec<Version> {
        let Some(lane) = self.window.lane(key) else { return vec![] };
        match before {
            Some(before) => lane.range(..before).rev().take(limit).map(version).collect(),
            None => lane.iter().rev().take(limit).map(version).collect(),
        }
    }

    /// As [`crate::History::forget`]; answers how many there were.
    pub fn forget(&mut self, before: Timestamp) -> u64 {
        self.window.forget(before)
    }

    /// As [`crate::History::advance`].
    ///
    /// # Errors
    /// [`Error::Engine`] if the position is before `from`.
    pub fn advance(&mut self, from: u64, applied: &Applied) -> Result<(), Error> {
        self.positions.advance(from, applied)
    }

    /// As [`crate::History::position`].
    pub fn position(&self, stream: &str) -> u64 {
        self.positions.of(stream)
    }

    /// Versions that left to make room.
    pub fn evicted(&self) -> u64 {
        self.window.evicted()
    }

    /// Everything, as bytes.
    pub fn snapshot(&self) -> Bytes {
        let histories = self.window.lanes().map(|(key, lane)| snapshot::Lane {
            key: key.to_string(),
            versions: lane
                .iter()
                .map(version)
                .map(|Version { version, at, body }| snapshot::Version { version, at: Some(at), body })
                .collect(),
        });
        let positions = self.positions.0.clone();
        snapshot::History { histories: histories.collect(), positions }.encode_to_vec().into()
    }

    /// What a snapshot holds, as far as the limits allow.
    ///
    /// # Errors
    /// [`Error::Snapshot`] if the bytes are not a snapshot.
    pub fn restore(bytes: &[u8], limits: WindowLimits) -> Result<Self, Error> {
        let read = snapshot::History::decode(bytes).map_err(Error::Snapshot)?;
        let mut restored = Self::new(limits);
        for lane in read.histories {
            for snapshot::Version { version, at, body } in lane.versions {
                restored.insert(&lane.key, Version { version, at: at.unwrap_or_default(), body });
            }
        }
        restored.positions = Positions(read.positions);
        Ok(restored)
    }

    fn insert(&mut self, key: &str, version: Version) {
        let bytes = VERSION_BYTES + version.body.len() as u64;
        self.window.insert(key, version.version, version.at, bytes, version.body);
    }
}

fn version((version, item): (&u64, &Item<Bytes>)) -> Version {
    Version { version: *version, at: item.at, body: item.value.clone() }
}

mod snapshot {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use mesh_proto::Timestamp;

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct History {
        #[prost(message, repeated, tag = "1")]
        pub(super) histories: Vec<Lane>,
        #[prost(btree_map = "string, uint64", tag = "2")]
        pub(super) positions: BTreeMap<String, u64>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Lane {
        #[prost(string, tag = "1")]
        pub(super) key: String,
        #[prost(message, repeated, tag = "2")]
        pub(super) versions: Vec<Version>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Version {
        #[prost(uint64, tag = "1")]
        pub(super) version: u64,
        #[prost(message, optional, tag = "2")]
        pub(super) at: Option<Timestamp>,
        #[prost(bytes = "bytes", tag = "3")]
        pub(super) body: Bytes,
    }
}

impl crate::History for Shared<History> {
    fn write<'a>(&'a self, entries: Vec<(Applied, Entry)>) -> Answer<'a, ()> {
        Box::pin(async move {
            let mut history = self.lock();
            let of = |(applied, of): (Applied, Entry)| history.append(&applied, &of.key, of.version).map(|_| ());
            first_refusal(entries.into_iter().map(of))
        })
    }

    fn at<'a>(&'a self, key: &'a str, time: Timestamp) -> Answer<'a, Option<Version>> {
        Box::pin(async move { Ok(self.lock().at(key, time)) })
    }

    fn list<'a>(&'a self, key: &'a str, before: Option<u64>, limit: usize) -> Answer<'a, Vec<Version>> {
        Box::pin(async move { Ok(self.lock().list(key, before, limit)) })
    }

    fn forget(&self, before: Timestamp) -> Answer<'_, ()> {
        Box::pin(async move {
            self.lock().forget(before);
            Ok(())
        })
    }

    fn advance<'a>(&'a self, from: u64, applied: &'a Applied) -> Answer<'a, ()> {
        Box::pin(async move { self.lock().advance(from, applied) })
    }

    fn position<'a>(&'a self, stream: &'a str) -> Answer<'a, u64> {
        Box::pin(async move { Ok(self.lock().position(stream)) })
    }
}
