//! Shows the other collectors that this one lives, sees who else does, and hands in what they store.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::Context as _;
use bytes::Bytes;
use mesh_bus::{AliveStream, AliveToken, Samples};
use mesh_core::Stored;
use mesh_kit::Mesh;
use mesh_proto::{
    Event as _, PACKED_SIGNAL, READINGS_SIGNAL, SHARING_SIGNAL, Timestamp, sample_key, sample_keys,
    telemetry::{Packed, Readings},
};
use tokio::sync::mpsc;

use crate::domain::sharing::{self, Members, Way};

/// How long a collector listens for others before it takes anything in.
const LISTEN: Duration = Duration::from_millis(500);
/// How often it is looked whether samples still come, and who writes.
const LOOK: Duration = Duration::from_millis(200);
/// How long after samples come again who lives is believed: the others have to be seen again first.
const RECONNECTED_MS: i64 = 2_000;

/// What the tasks of a collector know of the others.
#[derive(Clone, Default)]
pub(crate) struct Others {
    /// Is there any?
    exist: Arc<AtomicBool>,
    /// Does another write to a database that all share?
    write: Arc<AtomicBool>,
}

impl Others {
    /// Does another collector write to a database that all share?
    pub(crate) fn write(&self) -> bool {
        self.write.load(Relaxed)
    }

    #[cfg(test)]
    pub(crate) fn set_write(&self, write: bool) {
        self.write.store(write, Relaxed);
    }

    fn learn(&self, me: &str, members: &Members, now: Timestamp) {
        self.exist.store(members.keys().any(|process| process != me), Relaxed);
        let writer = sharing::writer_of(members, now);
        self.write.store(writer.is_some_and(|process| process != me), Relaxed);
    }
}

/// One collector's part in it.
pub(crate) struct Part {
    mesh: Mesh,
    samples: Samples,
    /// Ends with the process: then the others take over.
    token: AliveToken,
    own_key: String,
    alive: AliveStream,
    keys: BTreeSet<String>,
    others: Others,
    is_cut: bool,
    connected: Timestamp,
}

impl Part {
    /// Shows the token, and listens for others.
    ///
    /// # Errors
    /// When the session for samples does not open.
    pub(crate) async fn join(mesh: &Mesh, others: Others) -> anyhow::Result<Self> {
        let samples = mesh.samples().await?;
        let from = mesh.now().plus_millis(sharing::LEAD_MS);
        let own_key = sample_key(&from.as_millis().to_string(), mesh.name(), SHARING_SIGNAL, mesh.process());
        let mut alive = samples.watch_alive(&sample_keys(SHARING_SIGNAL)).await.context("watch other collectors")?;
        let token = samples.declare_alive(&own_key).await.context("show that this collector lives")?;
        let mut keys = BTreeSet::from([own_key.clone()]);
        let listened = async {
            while let Some((key, lives)) = alive.next().await {
                turn(&mut keys, key, lives);
            }
        };
        let _ = tokio::time::timeout(LISTEN, listened).await;
        let part = Self {
            mesh: mesh.clone(),
            samples,
            token,
            own_key,
            alive,
            keys,
            others,
            is_cut: false,
            connected: Timestamp::default(),
        };
        part.others.learn(mesh.process(), &part.members(), mesh.now());
        Ok(part)
    }

    /// Who takes part, by now.
    pub(crate) fn members(&self) -> Members {
        self.keys.iter().chain([&self.own_key]).filter_map(|key| member(key)).collect()
    }

    /// Follows who lives, until the process stops.
    ///
    /// # Errors
    /// When the session for samples was closed.
    pub(crate) async fn follow(mut self, feed: mpsc::Sender<(String, Bytes)>) -> anyhow::Result<()> {
        let stopping = self.mesh.stopping();
        let mut looks = tokio::time::interval(LOOK);
        let mut told = (self.members(), self.is_cut);
        loop {
            tokio::select! {
                () = stopping.cancelled() => break,
                seen = self.alive.next() => match seen {
                    Some((key, lives)) => turn(&mut self.keys, key, lives),
                    None if stopping.is_cancelled() => break,
                    None => anyhow::bail!("the session that shows which collectors live was closed"),
                },
                _ = looks.tick() => {}
            }
            let now = self.mesh.now();
            let was_cut = self.is_cut;
            if !self.samples.is_connected().await {
                (self.is_cut, self.connected) = (true, now);
            } else if now.millis_since(self.connected) >= RECONNECTED_MS {
                self.is_cut = false;
            }
            // Whom one sees that is cut off says nothing of who lives.
            let members = if self.is_cut { told.0.clone() } else { self.members() };
            self.others.learn(self.mesh.process(), &members, now);
            if (&members, self.is_cut) != (&told.0, told.1) {
                tracing::info!(collectors = members.len(), is_cut = self.is_cut, was_cut, "collectors changed");
                told = (members, self.is_cut);
                let body = sharing::write_members(&told.0, told.1);
                if feed.send((Way::MEMBERS.to_owned(), body)).await.is_err() {
                    break;
                }
            }
        }
        drop(self.token);
        Ok(())
    }
}

fn turn(keys: &mut BTreeSet<String>, key: String, lives: bool) {
    match lives {
        true => keys.insert(key),
        false => keys.remove(&key),
    };
}

/// Who shows a token, and from when it takes part.
fn member(key: &str) -> Option<(String, Timestamp)> {
    let mut tokens = key.split('/').skip(1);
    let from = tokens.next()?.parse().ok()?;
    Some((tokens.nth(2)?.to_owned(), Timestamp::from_millis(from)))
}

/// Hands in what others store, from now on and while there are any, until the process stops.
///
/// # Errors
/// When the stream must not be read.
pub(crate) async fn stored(mesh: Mesh, others: Others, feed: mpsc::Sender<(String, Bytes)>) -> anyhow::Result<()> {
    let stopping = mesh.stopping();
    let end = loop {
        match mesh.bus().log(Packed::STREAM).last_sequence().await {
            Ok(end) => break end,
            Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "waiting for the stream"),
        }
        tokio::select! {
            () = stopping.cancelled() => return Ok(()),
            () = tokio::time::sleep(LOOK) => {}
        }
    };
    let mut follower = mesh.follow(Packed::STREAM, end + 1);
    loop {
        let stored = tokio::select! {
            () = stopping.cancelled() => return Ok(()),
            stored = follower.next() => stored.context("read what other collectors stored")?,
        };
        if !others.exist.load(Relaxed) {
            continue;
        }
        let Some(key) = stored_key(&stored) else { continue };
        if feed.send((key, stored.body.clone())).await.is_err() {
            return Ok(());
        }
    }
}

/// The key under which a stored message is handed in.
fn stored_key(stored: &Stored) -> Option<String> {
    let signal = match stored.message.as_str() {
        Readings::MESSAGE => READINGS_SIGNAL,
        Packed::MESSAGE => PACKED_SIGNAL,
        _ => return None,
    };
    let cluster_id = stored.subject.rsplit('.').next()?;
    Some([Way::STORED, &stored.id, "-", signal, cluster_id].join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_says_who_takes_part_and_from_when() {
        let key = sample_key("1700000000000", "collector", SHARING_SIGNAL, "a-b");
        assert_eq!(member(&key), Some(("a-b".to_owned(), Timestamp::from_millis(1_700_000_000_000))));
        assert_eq!(member("continuum/soon/collector/sharing/a"), None);
        assert_eq!(member("continuum/1"), None);
    }

    #[test]
    fn what_is_stored_is_handed_in_under_its_id_and_cluster() {
        let pack = Packed { cluster_id: "edge".into(), samples: vec![] };
        let stored = mesh_test::stored(&pack, 7, Timestamp::default());
        let key = stored_key(&stored).unwrap();
        assert_eq!(key, format!("stored/{}/-/instances/edge", stored.id));
        assert_eq!(Way::of(&key), Way::Stored);
        assert_eq!(stored_key(&Stored { message: String::new(), ..stored }), None);
    }
}
