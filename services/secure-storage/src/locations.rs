//! The registered locations as this process uses them: opened once, measured, and asked last while they do not answer.

use std::{
    collections::{BTreeMap, VecDeque},
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use mesh_kit::{Mesh, View};
use mesh_proto::Timestamp;
use tokio::time::timeout;

use crate::{
    backend::{self, Backend, Folder, Opener},
    objects::catalogue::Catalogue,
};

/// A location that did not answer is asked last for this long.
const ASKED_LAST_MS: i64 = 5_000;
/// Readings kept of each measurement.
const READINGS: usize = 30;
/// Bytes of the larger measurement.
const LARGE_BYTES: usize = 1_000_000;

/// Owner and name of a location.
pub(crate) type Id = (String, String);

/// How a location answered, the last 30 times.
#[derive(Clone, Debug, Default)]
pub(crate) struct Measured {
    /// Milliseconds: 1 byte written, 1 byte read, 1 MB written, 1 MB read.
    pub(crate) rtt_ms: [VecDeque<u32>; 4],
    /// Why it is unavailable; empty if it answers.
    pub(crate) problem: String,
    /// Was it measured at all?
    pub(crate) measured: bool,
}

struct Opened {
    generation: u64,
    backend: Backend,
    unavailable_since: Option<Timestamp>,
}

/// The locations.
pub(crate) struct Locations {
    mesh: Mesh,
    view: View<Catalogue>,
    opener: Opener,
    opened: Mutex<BTreeMap<Id, Opened>>,
    measured: Mutex<BTreeMap<Id, Measured>>,
}

impl Locations {
    /// As the view knows them; each is opened when it is first used.
    pub(crate) fn new(mesh: Mesh, view: View<Catalogue>, opener: Opener) -> Self {
        Self { mesh, view, opener, opened: Mutex::default(), measured: Mutex::default() }
    }

    fn opened(&self) -> MutexGuard<'_, BTreeMap<Id, Opened>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn measurements(&self) -> MutexGuard<'_, BTreeMap<Id, Measured>> {
        self.measured.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A registered location, ready for use.
    pub(crate) async fn backend(&self, owner: &str, name: &str) -> Result<Backend, backend::Error> {
        let id = (owner.to_owned(), name.to_owned());
        let found = self.view.read(|view| view.known.locations.get(&id).cloned());
        let Some((location, generation)) = found else {
            return Err(backend::Error::Unavailable(format!("the location {name} is not registered")));
        };
        if let Some(opened) = self.opened().get(&id)
            && opened.generation == generation
        {
            return Ok(opened.backend.clone());
        }
        let backend = self.opener.open(&location);
        backend.prepare(generation).await?;
        self.opened().insert(id, Opened { generation, backend: backend.clone(), unavailable_since: None });
        Ok(backend)
    }

    /// Does something with a location, within its limit, and remembers whether it answered.
    pub(crate) async fn within_limit<T>(
        &self,
        owner: &str,
        name: &str,
        work: impl Future<Output = Result<T, backend::Error>>,
    ) -> Result<T, backend::Error> {
        let limit = self.opener.limit;
        let done = timeout(limit, work).await.unwrap_or_else(|_| Err(no_answer(limit)));
        self.observe(owner, name, !matches!(done, Err(backend::Error::Unavailable(_))));
        done
    }

    /// Writes one fragment.
    pub(crate) async fn put(
        &self,
        owner: &str,
        location: &str,
        name: &str,
        bytes: Bytes,
    ) -> Result<(), backend::Error> {
        let put = async { self.backend(owner, location).await?.put(name, bytes).await };
        self.within_limit(owner, location, put).await
    }

    /// A registered location that is a folder and answered when it was last asked.
    pub(crate) async fn folder(&self, owner: &str, name: &str) -> Option<Folder> {
        match self.backend(owner, name).await {
            Ok(Backend::Folder(folder)) if !self.is_unavailable(owner, name) => Some(folder),
            _ => None,
        }
    }

    /// Where fragments wait until they are sent.
    pub(crate) fn spool(&self) -> PathBuf {
        self.opener.spool()
    }

    /// Removes what a gateway that is gone left in the spool.
    pub(crate) fn clear_spool(&self) {
        for entry in std::fs::read_dir(self.spool()).into_iter().flatten().flatten() {
            let age = entry.metadata().and_then(|m| m.modified()).ok().and_then(|m| m.elapsed().ok());
            if age.is_some_and(|age| age > backend::STAGED_LIMIT) {
                let _removed_before = std::fs::remove_file(entry.path());
            }
        }
    }

    fn observe(&self, owner: &str, name: &str, available: bool) {
        let now = self.mesh.now();
        if let Some(opened) = self.opened().get_mut(&(owner.to_owned(), name.to_owned())) {
            opened.unavailable_since = (!available).then_some(now);
        }
    }

    /// Did it fail to answer a moment ago?
    pub(crate) fn is_unavailable(&self, owner: &str, name: &str) -> bool {
        let now = self.mesh.now();
        let opened = self.opened();
        let since = opened.get(&(owner.to_owned(), name.to_owned())).and_then(|opened| opened.unavailable_since);
        since.is_some_and(|since| now.millis_since(since) < ASKED_LAST_MS)
    }

    /// What was measured of a location.
    pub(crate) fn measured(&self, id: &Id) -> Measured {
        self.measurements().get(id).cloned().unwrap_or_default()
    }

    /// Writes and reads back one byte, and 1 MB if `large`; remembers how long it took, or why it failed.
    pub(crate) async fn probe(&self, owner: &str, name: &str, large: bool) {
        let mut found = [None; 4];
        let problem = self.probe_once(owner, name, large, &mut found).await.err().unwrap_or_default();
        self.observe(owner, name, problem.is_empty());
        let mut measurements = self.measurements();
        let entry = measurements.entry((owner.to_owned(), name.to_owned())).or_default();
        (entry.problem, entry.measured) = (problem, true);
        for (readings, found) in entry.rtt_ms.iter_mut().zip(found) {
            readings.extend(found);
            while readings.len() > READINGS {
                readings.pop_front();
            }
        }
    }

    #[allow(clippy::disallowed_methods)]
    async fn probe_once(
        &self,
        owner: &str,
        name: &str,
        large: bool,
        found: &mut [Option<u32>; 4],
    ) -> Result<(), String> {
        let limit = self.opener.limit;
        let probe = format!("probe/{}", self.mesh.process());
        let measure = async {
            let backend = self.backend(owner, name).await?;
            for (at, bytes) in [(0, 1), (2, LARGE_BYTES)].into_iter().take(if large { 2 } else { 1 }) {
                let begun = Instant::now();
                backend.put(&probe, Bytes::from(vec![b'p'; bytes])).await?;
                found[at] = Some(begun.elapsed().as_millis() as u32);
                let begun = Instant::now();
                backend.get(&probe, None).await?;
                found[at + 1] = Some(begun.elapsed().as_millis() as u32);
            }
            backend.delete(&probe).await
        };
        let measured = timeout(limit, measure).await.unwrap_or_else(|_| Err(no_answer(limit)));
        measured.map_err(|error| error.to_string())
    }

    /// Measures every location again and again, until the process stops.
    pub(crate) async fn probe_all(&self, every: Duration) -> anyhow::Result<()> {
        let stopping = self.mesh.stopping();
        loop {
            tokio::select! {
                () = tokio::time::sleep(every) => {}
                () = stopping.cancelled() => return Ok(()),
            }
            let known: Vec<Id> = self.view.read(|view| view.known.locations.keys().cloned().collect());
            self.measurements().retain(|id, _| known.contains(id));
            for (owner, name) in known {
                self.probe(&owner, &name, true).await;
            }
        }
    }
}

fn no_answer(limit: Duration) -> backend::Error {
    backend::Error::Unavailable(format!("did not answer within {} ms", limit.as_millis()))
}
