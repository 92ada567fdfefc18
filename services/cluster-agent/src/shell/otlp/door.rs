//! Which replica a sender is: each has a token of its own in its environment, from its start to its end.
//!
//! Each agent draws new tokens, and its processes end with it, so none is ever written down. As with anything in a
//! process's environment, what runs as the same user can read it.

#![expect(clippy::disallowed_methods, reason = "a token is drawn, not derived: nobody else may know it")]

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use sha2::{Digest as _, Sha256};

use super::super::driver::{ReplicaId, ReplicaSpec};

/// The header that carries the token.
pub const TOKEN_HEADER: &str = "continuum-instance-token";
/// Variables of this beginning say where telemetry goes; a document that sets one has a receiver of its own.
const EXPORTER: &str = "OTEL_EXPORTER_OTLP_";

type Hash = [u8; 32];

/// Lets replicas in.
pub struct Door {
    endpoint: String,
    cluster_id: String,
    /// By the hash of its token: how long a search takes says nothing about a token.
    replicas: Mutex<BTreeMap<Hash, Admitted>>,
}

/// A replica that was let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// Which.
    pub id: ReplicaId,
    /// Whose.
    pub owner: String,
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

fn hash(token: &str) -> Hash {
    Sha256::digest(token).into()
}

impl Door {
    /// Of a cluster, reached at an endpoint.
    pub fn new(endpoint: String, cluster_id: String) -> Self {
        Self { endpoint, cluster_id, replicas: Mutex::default() }
    }

    /// Tokens are only put in and taken out, so what a panicking writer leaves behind can be read.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Hash, Admitted>> {
        self.replicas.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a replica that is started finds in its environment; nothing if its document says where telemetry goes.
    pub fn admit(&self, spec: &ReplicaSpec) -> Vec<(&'static str, String)> {
        let own = &spec.process.environment;
        if own.keys().any(|name| name.starts_with(EXPORTER)) {
            return vec![];
        }
        let random = || uuid::Uuid::new_v4().simple().to_string();
        let token = random() + &random();
        let id = &spec.id;
        let attributes = format!(
            "service.instance.id={id},continuum.instance.id={},continuum.cluster.id={}",
            id.instance_id, self.cluster_id
        );
        let mut all = vec![
            ("OTEL_EXPORTER_OTLP_ENDPOINT", self.endpoint.clone()),
            ("OTEL_EXPORTER_OTLP_HEADERS", format!("{TOKEN_HEADER}={token}")),
            ("OTEL_SERVICE_NAME", spec.workload.clone()),
            ("OTEL_RESOURCE_ATTRIBUTES", attributes),
        ];
        all.retain(|(name, _)| !own.contains_key(*name));
        let mut replicas = self.lock();
        replicas.retain(|_, other| other.id != *id);
        replicas.insert(hash(&token), Admitted { id: id.clone(), owner: spec.owner.clone() });
        all
    }

    /// A replica has ended.
    pub fn dismiss(&self, id: &ReplicaId) {
        self.lock().retain(|_, other| other.id != *id);
    }

    /// Whose token this is.
    pub fn replica(&self, token: &str) -> Option<Admitted> {
        self.lock().get(&hash(token)).cloned()
    }

    /// Instances that have a replica here, with their owners.
    pub fn instances(&self) -> BTreeMap<String, String> {
        self.lock().values().map(|admitted| (admitted.id.instance_id.clone(), admitted.owner.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::workload::{ProcessSpec, Resources};

    use super::*;

    fn spec(replica: u32, environment: &[(&str, &str)]) -> ReplicaSpec {
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        ReplicaSpec {
            id: ReplicaId { instance_id: "a".into(), generation: 1, replica },
            owner: "local".into(),
            workload: "shop".into(),
            process: ProcessSpec { environment, ..ProcessSpec::default() },
            resources: Resources::default(),
        }
    }

    fn token(environment: &[(&'static str, String)]) -> String {
        let headers = environment.iter().find(|(name, _)| *name == "OTEL_EXPORTER_OTLP_HEADERS").unwrap();
        headers.1.strip_prefix("continuum-instance-token=").unwrap().to_owned()
    }

    #[test]
    fn a_token_is_of_one_replica_from_its_start_to_its_end() {
        let door = Door::new("http://127.0.0.1:4317".into(), "edge".into());
        let (first, second) = (spec(0, &[]), spec(1, &[]));
        let tokens = [token(&door.admit(&first)), token(&door.admit(&second))];
        let of = |token: &str| door.replica(token).map(|admitted| (admitted.id, admitted.owner));
        assert_eq!(of(&tokens[0]), Some((first.id.clone(), "local".into())));
        assert_eq!(of(&tokens[1]), Some((second.id, "local".into())));
        assert_eq!((of(""), of(&tokens[0][1..])), (None, None));
        assert_eq!(door.instances(), BTreeMap::from([("a".into(), "local".into())]));
        let again = token(&door.admit(&first));
        assert_eq!((of(&tokens[0]), of(&again)), (None, Some((first.id.clone(), "local".into()))));
        door.dismiss(&first.id);
        assert_eq!(of(&again), None);
        assert!(!format!("{door:?}").contains(&again));
    }

    #[test]
    fn a_document_that_names_its_own_receiver_gets_nothing() {
        let door = Door::new("http://127.0.0.1:4317".into(), "edge".into());
        assert_eq!(door.admit(&spec(0, &[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://other")])), []);
        let named = door.admit(&spec(0, &[("OTEL_SERVICE_NAME", "mine")]));
        let names: Vec<&str> = named.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_HEADERS", "OTEL_RESOURCE_ATTRIBUTES"]);
    }
}
