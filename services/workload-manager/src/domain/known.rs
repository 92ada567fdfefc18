//! What the manager knows of all entities together: the World, folded from its own area.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use mesh_core::ReadModel;
use mesh_core::Stored;
use mesh_proto::{
    EventSet as _,
    deciders::stream_workload::Event,
    workload::{InstanceUnavailable, InstanceUnwanted, InstanceWanted},
};

use super::documents::{head, listed, split};

/// Documents and who waits for them, and which intent has to do with which instance.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Known {
    /// By owner and name, then by version.
    documents: BTreeMap<(String, String), BTreeMap<String, Standing>>,
    /// By owner and instance.
    instances: BTreeMap<(String, String), Links>,
    /// By owner and `name@version`: instances that wait for it.
    waiting: BTreeMap<(String, String), BTreeSet<String>>,
    /// By owner and intent: instances that it wants, governs or waits for.
    of_intent: BTreeMap<(String, String), BTreeSet<String>>,
}

/// How far a document has come.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Standing {
    /// Waits for its verdict.
    Pending,
    /// Can run; the document as it came in.
    Registered(Bytes),
    /// Failed validation, and why.
    Rejected(String),
}

/// What ties an instance to intents.
#[derive(Clone, Debug, Default, PartialEq)]
struct Links {
    /// Intents that govern it, by the version that does.
    governors: BTreeMap<String, u64>,
    /// By intent that waits: its version and the document it waits for, if it is one.
    waiting: BTreeMap<String, (u64, String)>,
}

impl Known {
    /// How far a document `name@version` has come; `None` if nobody submitted it.
    pub(super) fn document(&self, owner: &str, workload: &str) -> Option<&Standing> {
        let (name, version) = split(workload)?;
        self.documents.get(&(owner.to_owned(), name.to_owned()))?.get(version)
    }

    /// Registered versions of a document, `name@version`.
    pub(super) fn registered(&self, owner: &str, name: &str) -> Vec<String> {
        let versions = self.documents.get(&(owner.to_owned(), name.to_owned()));
        let registered = versions.into_iter().flatten().filter(|(_, s)| matches!(s, Standing::Registered(_)));
        registered.map(|(version, _)| format!("{name}@{version}")).collect()
    }

    /// Names of an owner's documents of which some version is registered.
    pub(super) fn names<'a>(&'a self, owner: &'a str) -> impl Iterator<Item = &'a str> {
        let of_owner =
            self.documents.range((owner.to_owned(), String::new())..).take_while(move |((o, _), _)| o == owner);
        of_owner
            .filter(|(_, versions)| versions.values().any(|s| matches!(s, Standing::Registered(_))))
            .map(|((_, name), _)| name.as_str())
    }

    /// Instances that wait for a document.
    pub(super) fn waiting_for<'a>(&'a self, owner: &str, workload: &str) -> impl Iterator<Item = &'a String> + use<'a> {
        self.waiting.get(&(owner.to_owned(), workload.to_owned())).into_iter().flatten()
    }

    /// Instances that an intent wants, governs or waits for.
    pub(super) fn of_intent<'a>(&'a self, owner: &str, intent_id: &str) -> impl Iterator<Item = &'a String> + use<'a> {
        self.of_intent.get(&(owner.to_owned(), intent_id.to_owned())).into_iter().flatten()
    }

    fn stands(&mut self, owner: String, name: String, version: String, standing: Standing) {
        self.documents.entry((owner, name)).or_default().insert(version, standing);
    }

    fn relink(&mut self, owner: &str, instance_id: &str, change: impl FnOnce(&mut Links)) {
        let key = (owner.to_owned(), instance_id.to_owned());
        let before = self.instances.remove(&key).unwrap_or_default();
        let mut after = before.clone();
        change(&mut after);
        for intent in before.intents() {
            drop_member(&mut self.of_intent, owner, intent, instance_id);
        }
        for workload in before.workloads() {
            drop_member(&mut self.waiting, owner, workload, instance_id);
        }
        for intent in after.intents() {
            let members = self.of_intent.entry((owner.to_owned(), intent.to_owned())).or_default();
            members.insert(instance_id.to_owned());
        }
        for workload in after.workloads() {
            let members = self.waiting.entry((owner.to_owned(), workload.to_owned())).or_default();
            members.insert(instance_id.to_owned());
        }
        if after != Links::default() {
            self.instances.insert(key, after);
        }
    }

    fn wanted(&mut self, fact: &InstanceWanted) {
        self.relink(&fact.owner, &fact.instance_id, |links| {
            links.governors = fact.governors.iter().map(|g| (g.intent_id.clone(), g.intent_version)).collect();
            let governors = &links.governors;
            links.waiting.retain(|intent, (version, _)| governors.get(intent).is_none_or(|served| served < version));
        });
    }

    fn unavailable(&mut self, fact: InstanceUnavailable) {
        self.relink(&fact.owner, &fact.instance_id, |links| {
            links.waiting.insert(fact.intent_id, (fact.intent_version, fact.workload));
        });
    }

    fn unwanted(&mut self, fact: &InstanceUnwanted) {
        self.relink(&fact.owner, &fact.instance_id, |links| drop(links.waiting.remove(&fact.intent_id)));
    }
}

impl Links {
    fn intents(&self) -> impl Iterator<Item = &str> {
        self.governors.keys().chain(self.waiting.keys()).map(String::as_str)
    }

    fn workloads(&self) -> impl Iterator<Item = &str> {
        self.waiting.values().map(|(_, workload)| workload.as_str()).filter(|w| !w.is_empty())
    }
}

fn drop_member(index: &mut BTreeMap<(String, String), BTreeSet<String>>, owner: &str, token: &str, instance_id: &str) {
    let key = (owner.to_owned(), token.to_owned());
    if let Some(members) = index.get_mut(&key) {
        members.remove(instance_id);
        if members.is_empty() {
            index.remove(&key);
        }
    }
}

impl ReadModel for Known {
    fn apply(&mut self, fact: &Stored) {
        // A fact of a later version of this service is ignored here.
        let Ok(event) = Event::decode(&fact.message, &fact.body) else { return };
        match event {
            Event::WorkloadSubmitted(m) => self.stands(m.owner, m.name, m.version, Standing::Pending),
            Event::WorkloadRegistered(m) => self.stands(m.owner, m.name, m.version, Standing::Registered(m.document)),
            Event::WorkloadRejected(m) => {
                let reason = listed(&m.problems);
                self.stands(m.owner, m.name, m.version, Standing::Rejected(reason));
            }
            Event::InstanceWanted(m) => self.wanted(&m),
            Event::InstanceUnavailable(m) => self.unavailable(m),
            Event::InstanceUnwanted(m) => self.unwanted(&m),
            Event::WorkloadDropped(m) => {
                if let Some(versions) = self.documents.get_mut(&(m.owner, m.name)) {
                    versions.remove(&m.version);
                }
            }
            Event::WorkloadUnchanged(_)
            | Event::WorkloadRefused(_)
            | Event::WorkloadOnboarding(_)
            | Event::WorkloadChecked(_)
            | Event::ChartAttached(_)
            | Event::InstanceChanged(_)
            | Event::InstanceDeleted(_)
            | Event::MigrationWanted(_) => {}
        }
    }
}

/// Why a document cannot run, and what to do.
pub(super) fn missing(world: &Known, owner: &str, workload: &str, standing: Option<&Standing>) -> (String, String) {
    match standing {
        Some(Standing::Pending | Standing::Registered(_)) => (
            format!("workload document {workload} waits for its validation"),
            "wait for the validator's verdict".into(),
        ),
        Some(Standing::Rejected(why)) => rejected(workload, why),
        None => {
            let reason = format!("workload document {:?} is not registered", head(workload));
            let Some((name, _)) = split(workload) else {
                return (reason, "name it as name@version, such as spinner@1.0.0".into());
            };
            let versions = world.registered(owner, name);
            if let Some(newest) =
                versions.iter().max_by_key(|w| chart::structure::version(split(w).map_or("", |s| s.1)).ok())
            {
                return (reason, format!("push it, or use {newest}"));
            }
            let distance = |known: &&str| strsim::levenshtein(known, &head(name));
            match world.names(owner).min_by_key(distance).filter(|known| distance(known) <= 3.max(known.len() / 3)) {
                Some(nearest) => (reason, format!("push it, or did you mean {nearest}?")),
                None => (reason, "push it".into()),
            }
        }
    }
}

/// Why a rejected document cannot run, and what to do.
pub(super) fn rejected(workload: &str, why: &str) -> (String, String) {
    let hint = "correct the document and push it again";
    (format!("workload document {workload} was rejected: {why}"), hint.into())
}
