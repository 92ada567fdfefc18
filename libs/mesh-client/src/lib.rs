//! How the outside asks: commands over the bus, queries over gRPC.
//!
//! - [`Endpoints`]: where a mesh on this machine answers;
//! - [`Client`]: over a bus; [`Client::ask`] sends a command and waits for the one fact that answers it, and one method
//!   per query service connects to it where it announced that it answers;
//! - [`Peers`]: channels to services that are kept, for those who ask often.
//!
//! The command line connects with [`Client::connect`]; a service that has a bus already uses [`Client::new`].

#![allow(clippy::disallowed_methods, reason = "a client waits for answers and measures how long")]

mod ask;
pub mod endpoints;
mod peers;
mod queries;

use std::{path::Path, time::Duration};

use mesh_bus::{Bus, LogError, Options};
use mesh_core::Stored;
use mesh_proto::{
    AnyEvent, Event as _, Refusal, RefusalCode, Timestamp, cluster::ClusterRegistered, contract,
    lifecycle::ServiceChanged,
};

pub use ask::{Answer, Answers, Error, Following};
pub use endpoints::Endpoints;
pub use peers::{Error as PeerError, Peers, connect, endpoint};

/// Whose objects a person's commands are about, on one machine.
pub const OWNER: &str = "local";
/// How long a command waits for its answer.
pub const ANSWER_WAIT: Duration = Duration::from_secs(20);

/// A mesh on this machine cannot be connected to.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No mesh runs there.
    #[error(transparent)]
    Endpoints(#[from] endpoints::Error),
    /// The key of the identity `person` cannot be read.
    #[error("read {path}")]
    Seed {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The bus does not answer.
    #[error("connect to the bus")]
    Bus(#[source] mesh_bus::ConnectError),
}

/// A connection to a mesh.
pub struct Client {
    bus: Bus,
    answers: Answers,
}

impl Client {
    /// Over a bus that is connected already.
    pub fn new(bus: Bus) -> Self {
        Self { answers: Answers::new(bus.clone()), bus }
    }

    /// Connects to the mesh of a data folder, as the identity `person`.
    ///
    /// # Errors
    /// When no mesh runs there, or its bus does not answer.
    pub async fn connect(data_dir: &Path) -> Result<Self, ConnectError> {
        let endpoints = Endpoints::read(data_dir)?;
        let path = &endpoints.person_seed_file;
        let seed = std::fs::read_to_string(path)
            .map_err(|source| ConnectError::Seed { path: path.display().to_string(), source })?;
        let options = Options {
            url: endpoints.nats,
            service: "person".into(),
            seed: Some(seed.trim().to_owned()),
            ..Options::default()
        };
        Ok(Self::new(Bus::connect(options).await.map_err(ConnectError::Bus)?))
    }

    /// The bus.
    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    /// Sends a command; gives its sequence once it is stored.
    ///
    /// # Errors
    /// When the bus does not store it.
    pub async fn send(&self, command: &dyn AnyEvent, id: impl AsRef<str>) -> Result<u64, Error> {
        self.answers.send(command, id.as_ref(), ANSWER_WAIT).await
    }

    /// Sends a command and waits for the one fact that answers it. The same id again gives the same answer.
    ///
    /// # Errors
    /// [`Error::Refused`] when the answer is a refusal; other variants when there is no answer.
    pub async fn ask(&self, command: &dyn AnyEvent, id: impl AsRef<str>, limit: Duration) -> Result<Stored, Error> {
        Ok(self.answers.ask(command, id.as_ref(), limit).await?.fact)
    }

    /// Commands with what follows from their answers.
    pub fn answers(&self) -> &Answers {
        &self.answers
    }

    /// Which of these services and clusters have not announced since `since` that they are ready.
    ///
    /// # Errors
    /// When the notices cannot be read.
    pub async fn not_ready(
        &self,
        services: &[&str],
        clusters: &[String],
        since: Timestamp,
    ) -> Result<Vec<String>, LogError> {
        let mut waiting = vec![];
        for service in services {
            let subject = ServiceChanged::SUBJECT.replace("{service}", service);
            let last = self.bus.log(ServiceChanged::STREAM).last(&subject).await?;
            let ready =
                last.filter(|stored| stored.time >= since).and_then(|stored| stored.event::<ServiceChanged>().ok()?);
            if ready.is_none_or(|notice| notice.phase != "ready") {
                waiting.push((*service).to_owned());
            }
        }
        for cluster in clusters {
            let subject = ClusterRegistered::SUBJECT.replace("{cluster_id}", cluster);
            let last = self.bus.log(ClusterRegistered::STREAM).last(&subject).await?;
            if last.is_none_or(|stored| stored.time < since) {
                waiting.push(format!("cluster {cluster}"));
            }
        }
        Ok(waiting)
    }
}

/// The refusal that a stored fact carries: any fact that the contract marks as its area's refusal.
pub fn refusal(stored: &Stored) -> Option<Refusal> {
    let marked = contract().event(&stored.message).is_some_and(|event| event.refusal);
    if !marked {
        return None;
    }
    let body = stored.protobuf().ok()?;
    let value = mesh_proto::json::to_value(&stored.message, &body).ok()?;
    let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
    let code = RefusalCode::from_str_name(&text("code")).unwrap_or_default();
    Some(Refusal::new(code, text("reason"), text("hint")))
}

/// The time now, for commands that a person sends.
pub fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_nanos(since.as_nanos().cast_signed())
}

#[cfg(test)]
mod tests {
    use mesh_proto::{
        intent::{IntentRefused, IntentUnchanged},
        storage::StorageRefused,
    };

    use super::*;

    fn stored(event: &dyn AnyEvent) -> Stored {
        mesh_test::stored(event, 1, Timestamp::default())
    }

    #[test]
    fn a_refusal_of_any_area_is_read_with_its_code() {
        let (owner, intent_id) = ("local".to_owned(), "a".to_owned());
        let fact = IntentRefused {
            owner,
            intent_id,
            code: RefusalCode::NotFound.into(),
            reason: "no such intent".into(),
            hint: "see `continuum intent list`".into(),
            ..IntentRefused::default()
        };
        assert_eq!(refusal(&stored(&fact)), Refusal::of(&fact));
        assert_eq!(refusal(&stored(&fact)).unwrap().code, RefusalCode::NotFound);
        let fact = StorageRefused {
            owner: "local".into(),
            key: "a".into(),
            reason: "full".into(),
            ..StorageRefused::default()
        };
        assert_eq!(refusal(&stored(&fact)), Refusal::of(&fact));
    }

    #[test]
    fn a_fact_that_refuses_nothing_is_an_answer() {
        let fact = IntentUnchanged { owner: "local".into(), intent_id: "a".into(), ..IntentUnchanged::default() };
        assert_eq!(refusal(&stored(&fact)), None);
    }
}
