//! A domain as snapshots keep it: each document once, and nothing that follows from the rest.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use mesh_proto::{
    Timestamp,
    placement::{Load, Missed},
    wire::as_base64,
    workload::{InstanceWanted, TargetBound},
};
use serde::{Deserialize, Serialize};

use super::{Hold, Instance, State, Unplaced, read_spec};
use crate::plan::Snapshot;

/// [`State`] without its indexes.
#[derive(Serialize, Deserialize)]
pub(super) struct Checkpoint {
    /// Every document of an instance, once, in the order of their bytes.
    documents: Vec<Document>,
    snapshot: Snapshot,
    instances: BTreeMap<String, Entry>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    displaced: BTreeSet<String>,
    more: bool,
    clusters_changed: Timestamp,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    ending: BTreeMap<String, Entry>,
    ended_generation: u64,
    last: Timestamp,
}

#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct Document(#[serde(with = "as_base64")] Bytes);

/// [`Instance`], named by its key.
#[derive(Serialize, Deserialize)]
struct Entry {
    owner: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    intent_id: String,
    replicas: u32,
    /// Its place among the documents.
    document: usize,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    targets: Vec<TargetBound>,
    revision: u32,
    generation: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    at: Option<Hold>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    to: Option<Hold>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    measured: Option<Load>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    tried: BTreeSet<String>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    rejected: BTreeSet<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    missed: Vec<Missed>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    asked_by: BTreeSet<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    moved: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unplaced: Option<Unplaced>,
}

impl From<State> for Checkpoint {
    fn from(state: State) -> Self {
        let all = || state.instances.values().chain(state.ending.values());
        let documents: BTreeSet<Bytes> = all().map(|i| i.wanted.document.clone()).collect();
        let documents: Vec<Document> = documents.into_iter().map(Document).collect();
        let entries = |instances: BTreeMap<String, Instance>| {
            instances.into_iter().map(|(id, instance)| (id, Entry::of(instance, &documents))).collect()
        };
        let (instances, ending) = (entries(state.instances), entries(state.ending));
        Self {
            snapshot: state.snapshot,
            instances,
            displaced: state.displaced,
            more: state.more,
            clusters_changed: state.clusters_changed,
            ending,
            ended_generation: state.ended_generation,
            last: state.last,
            documents,
        }
    }
}

impl From<Checkpoint> for State {
    fn from(saved: Checkpoint) -> Self {
        let documents = saved.documents;
        let instances = |entries: BTreeMap<String, Entry>| {
            let instance = |(id, entry): (String, Entry)| (id.clone(), entry.instance(id, &documents));
            entries.into_iter().map(instance).collect()
        };
        let mut state = Self {
            snapshot: saved.snapshot,
            instances: instances(saved.instances),
            displaced: saved.displaced,
            more: saved.more,
            clusters_changed: saved.clusters_changed,
            ending: instances(saved.ending),
            ended_generation: saved.ended_generation,
            last: saved.last,
            ..Self::default()
        };
        for (id, instance) in std::mem::take(&mut state.instances) {
            state.index(&id, &instance);
            state.instances.insert(id, instance);
        }
        state
    }
}

impl Entry {
    fn of(instance: Instance, documents: &[Document]) -> Self {
        let InstanceWanted { owner, intent_id, replicas, document, targets, .. } = instance.wanted;
        Self {
            owner,
            intent_id,
            replicas,
            document: documents.binary_search_by(|d| d.0.cmp(&document)).unwrap_or(usize::MAX),
            targets,
            revision: instance.revision,
            generation: instance.generation,
            at: instance.at,
            to: instance.to,
            measured: instance.measured,
            tried: instance.tried,
            rejected: instance.rejected,
            missed: instance.missed.into_values().collect(),
            asked_by: instance.asked_by,
            moved: instance.moved,
            unplaced: instance.unplaced,
        }
    }

    fn instance(self, instance_id: String, documents: &[Document]) -> Instance {
        let wanted = InstanceWanted {
            owner: self.owner,
            instance_id,
            intent_id: self.intent_id,
            replicas: self.replicas,
            document: documents.get(self.document).map(|d| d.0.clone()).unwrap_or_default(),
            targets: self.targets,
            ..Default::default()
        };
        Instance {
            // What has ended asks for nothing.
            spec: if self.revision == 0 { None } else { read_spec(&wanted) },
            wanted,
            revision: self.revision,
            generation: self.generation,
            at: self.at,
            to: self.to,
            measured: self.measured,
            tried: self.tried,
            rejected: self.rejected,
            missed: self.missed.into_iter().map(|m| (m.cluster_id.clone(), m)).collect(),
            asked_by: self.asked_by,
            moved: self.moved,
            unplaced: self.unplaced,
        }
    }
}
