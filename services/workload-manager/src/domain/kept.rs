//! Documents and instances as a database keeps them: one document for each version, one for the versions that a name has,
//! and one for each instance. Each is the fold of its facts alone; ids sort as lists do.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use bytes::Bytes;
use mesh_core::Stored;
use mesh_proto::{
    EventSet as _,
    deciders::stream_workload::Event,
    workload::{InstancePhase, InstanceView, WorkloadView},
};
use prost::Message as _;

use super::{
    catalogue::ordered,
    entry::{About, about, awaits_checks, fold_instance, fold_version},
};

/// What ids of each kind begin with. A space separates parts: it sorts before every character of a name.
const VERSION: &str = "document ";
const NAME: &str = "name ";
const INSTANCE: &str = "instance ";
/// The index of the charts whose checks are to be made, and its only value.
pub(crate) const AWAITS: (&str, &str) = ("awaits", "checks");

/// What a database holds of one of them.
#[derive(Clone, PartialEq, prost::Message)]
struct Packed {
    /// Sequence of its last fact in WORKLOAD.
    #[prost(uint64, tag = "1")]
    sequence: u64,
    #[prost(message, optional, tag = "2")]
    version: Option<WorkloadView>,
    #[prost(message, optional, tag = "3")]
    instance: Option<InstanceView>,
    /// Versions of a name.
    #[prost(string, repeated, tag = "4")]
    versions: Vec<String>,
}

/// A document that is not of this kind or release.
#[derive(Debug, thiserror::Error)]
#[error("a document of workloads cannot be read")]
pub(crate) struct Unreadable(#[from] prost::DecodeError);

/// The id of a version's document.
pub(crate) fn version_id(owner: &str, name: &str, version: &str) -> String {
    format!("{VERSION}{owner} {name} {}", sorted(version))
}

/// The id of the document of a name's versions.
pub(crate) fn name_id(owner: &str, name: &str) -> String {
    format!("{NAME}{owner} {name}")
}

/// The id of an instance's document.
pub(crate) fn instance_id(owner: &str, instance_id: &str) -> String {
    format!("{INSTANCE}{owner} {instance_id}")
}

/// Is it the id of a version?
pub(crate) fn is_version(id: &str) -> bool {
    id.starts_with(VERSION)
}

/// The index of an owner's documents.
pub(crate) fn documents_of(owner: &str) -> (String, String) {
    ("documents".to_owned(), owner.to_owned())
}

/// The index of an owner's instances, or of those in one phase.
pub(crate) fn instances_of(owner: &str, phase: Option<InstancePhase>) -> (String, String) {
    match phase {
        None => ("instances".to_owned(), owner.to_owned()),
        Some(phase) => (format!("instances {}", phase.as_str_name()), owner.to_owned()),
    }
}

/// A version as text that sorts by precedence: as [`ordered`] does.
fn sorted(version: &str) -> String {
    let (Some(parsed), raw) = ordered(version) else { return format!("0{version}") };
    let mut text = format!("1{:020}{:020}{:020}", parsed.major, parsed.minor, parsed.patch);
    if parsed.pre.is_empty() {
        text.push('~');
    } else {
        parsed.pre.split('.').for_each(|part| push(&mut text, part));
    }
    text.push('!');
    if !parsed.build.is_empty() {
        parsed.build.split('.').for_each(|part| push(&mut text, part));
    }
    text.push('!');
    text + &raw
}

/// An identifier: numbers by their value, and before all others. `!` and `,` sort before what it is made of.
fn push(text: &mut String, part: &str) {
    if part.bytes().all(|b| b.is_ascii_digit()) {
        let value = part.trim_start_matches('0');
        let _ = write!(text, "0{:05}{value}{:05},", value.len(), part.len());
    } else {
        let _ = write!(text, "1{part},");
    }
}

/// What one of them has become, and up to which fact.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    sequence: u64,
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq)]
enum Kind {
    Version(Option<WorkloadView>),
    Name(BTreeSet<String>),
    Instance(Option<InstanceView>),
}

/// A message's fact and the ids of what it is about; `None` if nothing shows it, or a later version of this service wrote it.
pub(crate) fn fact(stored: &Stored) -> Option<(Vec<String>, Event)> {
    let event = Event::decode(&stored.message, &stored.body).ok()?;
    let ids = match about(&event)? {
        About::Version { owner, name, version } => {
            let counts = matches!(event, Event::WorkloadSubmitted(_) | Event::WorkloadDropped(_));
            let name_id = counts.then(|| name_id(owner, name));
            [version_id(owner, name, version)].into_iter().chain(name_id).collect()
        }
        About::Instance { owner, instance_id: id } => vec![instance_id(owner, id)],
    };
    Some((ids, event))
}

impl Entry {
    /// From the document of this id, if there is one.
    ///
    /// # Errors
    /// When it is of another kind or release.
    pub(crate) fn read(id: &str, body: Option<&Bytes>) -> Result<Self, Unreadable> {
        let Packed { sequence, version, instance, versions } =
            body.map(|body| Packed::decode(body.clone())).transpose()?.unwrap_or_default();
        let kind = if id.starts_with(VERSION) {
            Kind::Version(version)
        } else if id.starts_with(NAME) {
            Kind::Name(versions.into_iter().collect())
        } else {
            Kind::Instance(instance)
        };
        Ok(Self { sequence, kind })
    }

    /// Takes in a fact about it. False if it stays as it is.
    pub(crate) fn fold(&mut self, stored: &Stored, event: &Event) -> bool {
        if stored.sequence <= self.sequence {
            return false;
        }
        let before = self.kind.clone();
        match &mut self.kind {
            Kind::Version(view) => fold_version(view, event.clone(), stored.time),
            Kind::Instance(view) => fold_instance(view, event.clone(), stored.time),
            Kind::Name(versions) => match event {
                Event::WorkloadSubmitted(m) => drop(versions.insert(m.version.clone())),
                Event::WorkloadDropped(m) => drop(versions.remove(&m.version)),
                _ => {}
            },
        }
        let changes = self.kind != before;
        if changes {
            self.sequence = stored.sequence;
        }
        changes
    }

    /// What it is searched by, and its content; `None` if nothing of it is left.
    pub(crate) fn content(&self) -> Option<(BTreeMap<String, String>, Bytes)> {
        let mut packed = Packed { sequence: self.sequence, ..Packed::default() };
        let indexes = match &self.kind {
            Kind::Version(view) => {
                let view = view.as_ref()?;
                packed.version = Some(view.clone());
                let awaits = awaits_checks(view).then(|| (AWAITS.0.to_owned(), AWAITS.1.to_owned()));
                [documents_of(&view.owner)].into_iter().chain(awaits).collect()
            }
            Kind::Name(versions) if versions.is_empty() => return None,
            Kind::Name(versions) => {
                packed.versions = versions.iter().cloned().collect();
                BTreeMap::new()
            }
            Kind::Instance(view) => {
                let view = view.as_ref()?;
                packed.instance = Some(view.clone());
                [instances_of(&view.owner, None), instances_of(&view.owner, Some(view.phase()))].into()
            }
        };
        Some((indexes, packed.encode_to_vec().into()))
    }

    /// The version that it is.
    pub(crate) fn version(self) -> Option<WorkloadView> {
        if let Kind::Version(view) = self.kind { view } else { None }
    }

    /// The instance that it is.
    pub(crate) fn instance(self) -> Option<InstanceView> {
        if let Kind::Instance(view) = self.kind { view } else { None }
    }

    /// The newest version of the name that it is.
    pub(crate) fn newest(self) -> Option<String> {
        let Kind::Name(versions) = self.kind else { return None };
        versions.into_iter().max_by_key(|version| ordered(version))
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::Projector as _;
    use mesh_proto::{
        AnyEvent, Timestamp,
        query::GetRequest,
        workload::{
            InstanceChanged, InstanceDeleted, InstanceUnavailable, InstanceUnwanted, InstanceWanted, WorkloadDropped,
            WorkloadOnboarding, WorkloadRegistered, WorkloadSubmitted,
        },
    };
    use mesh_test::stored;
    use proptest::prelude::*;

    use super::*;
    use crate::domain::catalogue::Catalogue;

    /// Each fact through its documents: read, folded and written, as a database would have it; and each a second time.
    fn through_documents(facts: &[Stored]) -> BTreeMap<String, Bytes> {
        let mut documents = BTreeMap::<String, Bytes>::new();
        for stored in facts {
            let Some((ids, event)) = fact(stored) else { continue };
            for id in ids {
                let mut entry = Entry::read(&id, documents.get(&id)).unwrap();
                if !entry.fold(stored, &event) {
                    continue;
                }
                match entry.content() {
                    Some((_, body)) => {
                        let mut again = Entry::read(&id, Some(&body)).unwrap();
                        assert_eq!(again, entry);
                        assert!(!again.fold(stored, &event), "a fact counts once");
                        documents.insert(id, body);
                    }
                    None => drop(documents.remove(&id)),
                }
            }
        }
        documents
    }

    fn event((kind, name, version, more): (u8, u8, u8, i32)) -> Box<dyn AnyEvent> {
        let (owner, name, version) = ("local".to_owned(), format!("w{name}"), format!("1.{version}.0"));
        let instance_id = name.clone();
        let event: Box<dyn AnyEvent> = match kind {
            0 => Box::new(WorkloadSubmitted { owner, name, version, ..Default::default() }),
            1 => Box::new(WorkloadRegistered { owner, name, version, ..Default::default() }),
            2 => Box::new(WorkloadDropped { owner, name, version, ..Default::default() }),
            3 => Box::new(WorkloadOnboarding { owner, name, version, sha256: "a".repeat(64), ..Default::default() }),
            4 => Box::new(InstanceDeleted { owner, instance_id, ..Default::default() }),
            5 => Box::new(InstanceUnavailable { owner, instance_id, reason: "r".into(), ..Default::default() }),
            6 => Box::new(InstanceUnwanted { owner, instance_id, ..Default::default() }),
            7 => {
                Box::new(InstanceWanted { owner, instance_id, replicas: more.unsigned_abs() % 2, ..Default::default() })
            }
            _ => Box::new(InstanceChanged { owner, instance_id, phase: more, ..Default::default() }),
        };
        event
    }

    fn facts() -> impl Strategy<Value = Vec<Stored>> {
        prop::collection::vec((0..10u8, 0..2u8, 0..3u8, 0..9i32), 0..40).prop_map(|events| {
            let at = |sequence| Timestamp::from_millis(i64::try_from(sequence).unwrap());
            let facts = (1..).zip(events);
            facts.map(|(sequence, of)| stored(&*event(of), sequence, at(sequence))).collect()
        })
    }

    proptest! {
        #[test]
        fn documents_hold_what_the_view_in_memory_holds(facts in facts()) {
            let mut catalogue = Catalogue::default();
            facts.iter().for_each(|fact| drop(catalogue.apply(fact)));
            let documents = through_documents(&facts);
            let read = |id: String| documents.get(&id).map(|body| Entry::read(&id, Some(body)).unwrap());
            let (mut awaiting, owner) = (vec![], String::new());
            for name in ["w0", "w1"] {
                let asked = |id: String| GetRequest { owner: owner.clone(), id };
                let newest = read(name_id("local", name)).and_then(Entry::newest);
                let expected = catalogue.workload(&asked(name.to_owned())).ok();
                prop_assert_eq!(newest, expected.map(|view| view.version));
                for version in ["1.0.0", "1.1.0", "1.2.0"] {
                    let found = read(version_id("local", name, version)).and_then(Entry::version);
                    let expected = catalogue.workload(&asked(format!("{name}@{version}"))).ok();
                    awaiting.extend(found.clone().filter(awaits_checks));
                    prop_assert_eq!(found, expected);
                }
                let found = read(instance_id("local", name)).and_then(Entry::instance);
                prop_assert_eq!(found, catalogue.instance(&asked(name.to_owned())).ok());
            }
            prop_assert_eq!(awaiting, catalogue.onboarding().cloned().collect::<Vec<_>>());
        }

        #[test]
        fn ids_of_versions_sort_by_precedence(
            a in "v?(0|[1-9][0-9]?)\\.[01]\\.[01](-[0-9a-cA-]{1,2}(\\.[0-9a-c-]{1,3}){0,2})?(\\+[0-9a-c]{1,3}(\\.[0-9a-c]{1,2})?)?",
            b in "v?(0|[1-9][0-9]?)\\.[01]\\.[01](-[0-9a-cA-]{1,2}(\\.[0-9a-c-]{1,3}){0,2})?(\\+[0-9a-c]{1,3}(\\.[0-9a-c]{1,2})?)?",
        ) {
            prop_assert_eq!(sorted(&a).cmp(&sorted(&b)), ordered(&a).cmp(&ordered(&b)), "{} and {}", a, b);
        }
    }

    #[test]
    fn ids_sort_by_owner_then_name_then_version() {
        let ids = [("a", "w", "1.0.0"), ("a", "w", "1.10.0"), ("a", "w-x", "0.1.0"), ("a-b", "a", "1.0.0")]
            .map(|(owner, name, version)| version_id(owner, name, version));
        assert!(ids.is_sorted(), "{ids:?}");
        let versions =
            ["1.0.0-1", "1.0.0-2", "1.0.0-10", "1.0.0-a", "1.0.0-a.1", "1.0.0-a.b", "1.0.0-a-", "1.0.0", "1.0.0+1"];
        assert!(versions.map(sorted).is_sorted(), "{:?}", versions.map(sorted));
    }

    #[test]
    fn a_document_of_something_else_is_refused() {
        let bytes = Bytes::from_static(&[0xff; 9]);
        assert!(Entry::read(&name_id("a", "b"), Some(&bytes)).is_err());
    }
}
