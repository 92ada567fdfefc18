//! One intent as documents hold it: what the view holds of it in memory, read and written one at a time.
//!
//! Two documents of one id: one is the fold of the intent's facts, the other of its observations. So each follows one stream
//! alone, and replicas that write the same document write the same.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use mesh_core::{Derived, Key, Stored, query::Error};
use mesh_intent::types;
use mesh_proto::{
    Timestamp,
    deciders::intents::Fact,
    intent::{AchievedValue, IntentHistory, IntentList, IntentStanding, IntentView},
    observation::TargetObserved,
    query::ListRequest,
};
use prost::Message as _;

use super::{ANSWER_BYTES_MAX, Asked, Entry, Last, derived, tells, unknown};
use crate::domain::{Ended, Life, Row};

/// The document of an intent.
#[derive(Clone, PartialEq, prost::Message)]
struct Facts {
    /// The entity, in JSON: as its decider saves it.
    #[prost(bytes = "bytes", tag = "1")]
    entity: Bytes,
    /// The definition in force, if the entity does not hold it any more.
    #[prost(bytes = "bytes", optional, tag = "2")]
    document: Option<Bytes>,
    /// Sequence of its last fact in INTENT.
    #[prost(uint64, tag = "3")]
    sequence: u64,
    /// Time of its last fact.
    #[prost(message, optional, tag = "4")]
    updated: Option<Timestamp>,
}

/// The document of what its targets achieved.
#[derive(Clone, PartialEq, prost::Message)]
struct Achieved {
    /// The version that was observed.
    #[prost(uint64, tag = "1")]
    version: u64,
    #[prost(message, repeated, tag = "2")]
    targets: Vec<AchievedTarget>,
    /// Sequence of the last observation in OBSERVATION.
    #[prost(uint64, tag = "3")]
    sequence: u64,
    /// End of the last period.
    #[prost(message, optional, tag = "4")]
    updated: Option<Timestamp>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct AchievedTarget {
    #[prost(string, tag = "1")]
    expectation: String,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(uint64, tag = "3")]
    period: u64,
    #[prost(double, optional, tag = "4")]
    value: Option<f64>,
    #[prost(int32, tag = "5")]
    provenance: i32,
}

/// A document that is not one of an intent, or of a release that this one cannot read.
#[derive(Debug, thiserror::Error)]
#[error("the document of intent {id} cannot be read")]
pub(crate) struct Unreadable {
    id: String,
    #[source]
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// The id of an intent's documents.
pub(crate) fn document_id(owner: &str, intent_id: &str) -> String {
    format!("{owner}/{intent_id}")
}

/// Documents that a list may be of.
#[derive(Debug, PartialEq)]
pub(crate) struct Narrowed {
    /// Indexed values that all of them have.
    pub(crate) equal: BTreeMap<String, String>,
    /// Indexed values of which each has one.
    pub(crate) one_of: BTreeMap<String, BTreeSet<String>>,
    /// They come after this one; all if empty.
    pub(crate) after: String,
    /// Intents on the page, at most.
    pub(crate) page_size: usize,
    /// Is it asked how many there are?
    pub(crate) count: bool,
}

impl Narrowed {
    /// From a question for a page of an owner's intents.
    ///
    /// # Errors
    /// When a state is unknown or the page token is not one.
    pub(crate) fn read(request: &ListRequest) -> Result<Self, Error> {
        let Asked { owner, page, wanted } = Asked::read(request)?;
        let mut equal = BTreeMap::new();
        let mut one_of = BTreeMap::new();
        if !request.user_label.is_empty() {
            equal.insert("type".to_owned(), of(owner, type_of(&request.user_label)));
        }
        if !wanted.object.is_empty() {
            equal.insert(object(&wanted.object), owner.to_owned());
        }
        if let Some(rows) = wanted.rows {
            one_of.insert("state".to_owned(), rows.into_iter().map(|row| of(owner, &state(row))).collect());
        }
        if equal.is_empty() && one_of.is_empty() {
            equal.insert("owner".to_owned(), owner.to_owned());
        }
        let after = if page.after().is_empty() { String::new() } else { document_id(owner, page.after()) };
        Ok(Self { equal, one_of, after, page_size: page.size(), count: request.count })
    }

    /// A page of what was found, in order: as many as one answer holds. `more`: are there others behind it?
    pub(crate) fn page(&self, found: &[Kept], more: bool, total: u64) -> IntentList {
        let (mut intents, mut bytes) = (vec![], 0);
        for kept in found {
            if intents.len() >= self.page_size || bytes >= ANSWER_BYTES_MAX {
                break;
            }
            let view = kept.view();
            bytes += view.encoded_len();
            intents.push(view);
        }
        let more = more || intents.len() < found.len();
        let next_page_token = intents.last().filter(|_| more).map(|last| last.intent_id.clone()).unwrap_or_default();
        IntentList { intents, next_page_token, total }
    }
}

/// Indexed values are of one owner each: what one looks for is then not among all others'.
fn of(owner: &str, value: &str) -> String {
    format!("{owner}/{value}")
}

/// The index of those about an object.
fn object(instance: &str) -> String {
    format!("object {instance}")
}

/// A row as indexes hold it.
fn state(row: Row) -> String {
    let (fulfilment, state) = row.values();
    format!("{} {}", fulfilment.as_str_name(), state.as_str_name())
}

/// A type as indexes hold it; of a label of no type, the label.
fn type_of(label: &str) -> &str {
    types::of_label(label).map_or(label, |kind| kind.label)
}

/// One intent, out of its documents.
#[derive(Debug)]
pub(crate) struct Kept {
    key: Key,
    entry: Entry,
    achieved: Achieved,
}

impl Kept {
    /// From the documents of this id, as far as there are any.
    ///
    /// # Errors
    /// When one of them is of another kind or release.
    pub(crate) fn read(id: &str, facts: Option<&Bytes>, achieved: Option<&Bytes>) -> Result<Self, Unreadable> {
        let unreadable = |source| Unreadable { id: id.to_owned(), source };
        let (owner, intent_id) = id.split_once('/').unwrap_or((id, ""));
        let achieved = achieved.map(|bytes| Achieved::decode(bytes.clone())).transpose();
        let achieved = achieved.map_err(|error| unreadable(error.into()))?.unwrap_or_default();
        let mut kept = Self { key: Key::new([owner, intent_id]), entry: Entry::default(), achieved };
        let Some(facts) = facts else { return Ok(kept) };
        let facts = Facts::decode(facts.clone()).map_err(|error| unreadable(error.into()))?;
        let entity = serde_json::from_slice(&facts.entity).map_err(|error| unreadable(error.into()))?;
        let entry = &mut kept.entry;
        entry.entity = std::sync::Arc::new(entity);
        entry.document = facts.document.or_else(|| entry.document_in_force());
        entry.sequence = facts.sequence;
        entry.updated = facts.updated.unwrap_or_default();
        entry.note();
        if entry.entity.in_force().is_some_and(|in_force| in_force.version == kept.achieved.version) {
            let last = |t: &AchievedTarget| Last { period: t.period, value: t.value, provenance: t.provenance };
            let targets = kept.achieved.targets.iter();
            entry.last = targets.map(|t| ((t.expectation.clone(), t.name.clone()), last(t))).collect();
        }
        Ok(kept)
    }

    /// Was it ever submitted?
    pub(crate) fn exists(&self) -> bool {
        self.entry.exists()
    }

    /// Takes in a fact of it, and gives the report that the fact leads to, if it changes one. `None` if the fact is in it
    /// already, or leaves nothing.
    pub(crate) fn fold(&mut self, stored: &Stored, fact: &Fact) -> Option<Option<Derived>> {
        // What was refused of an intent that never was leaves nothing.
        let nothing = matches!(fact, Fact::IntentRefused(_)) && !self.exists();
        if nothing || stored.sequence <= self.entry.sequence {
            return None;
        }
        self.entry.take_in(stored, fact, None);
        Some(tells(fact).then(|| derived(self.entry.report(&self.key, stored.time), stored, stored.time)))
    }

    /// Takes in what was observed of it, and gives the report of that period. `None` if that is not news.
    pub(crate) fn observe(&mut self, stored: &Stored, observation: &TargetObserved) -> Option<Derived> {
        if stored.sequence <= self.achieved.sequence || !self.entry.observe(observation) {
            return None;
        }
        let at = observation.end.unwrap_or(stored.time);
        let targets = self.entry.last.iter().map(|((expectation, name), last)| AchievedTarget {
            expectation: expectation.clone(),
            name: name.clone(),
            period: last.period,
            value: last.value,
            provenance: last.provenance,
        });
        let updated = Some(self.achieved.updated.unwrap_or_default().max(at));
        self.achieved =
            Achieved { version: observation.version, targets: targets.collect(), sequence: stored.sequence, updated };
        Some(derived(self.entry.report(&self.key, at), stored, at))
    }

    /// The document of its facts: its content, and what it is searched by.
    ///
    /// # Errors
    /// When the entity cannot be written as JSON.
    pub(crate) fn facts(&self) -> Result<(BTreeMap<String, String>, Bytes), Unreadable> {
        let unreadable = |source| Unreadable { id: document_id(self.key.token(0), self.key.token(1)), source };
        let entity = serde_json::to_vec(&*self.entry.entity).map_err(|error| unreadable(error.into()))?;
        let is_saved = self.entry.document_in_force() == self.entry.document;
        let facts = Facts {
            entity: entity.into(),
            document: self.entry.document.clone().filter(|_| !is_saved),
            sequence: self.entry.sequence,
            updated: Some(self.entry.updated),
        };
        Ok((self.indexes(), facts.encode_to_vec().into()))
    }

    /// The document of what its targets achieved.
    pub(crate) fn achieved(&self) -> Bytes {
        self.achieved.encode_to_vec().into()
    }

    fn indexes(&self) -> BTreeMap<String, String> {
        let owner = self.key.token(0);
        let plain = [
            ("owner", owner.to_owned()),
            ("type", of(owner, type_of(&self.entry.label))),
            ("state", of(owner, &state(self.entry.entity.row()))),
        ];
        let objects = self.entry.to_note().objects.into_iter().map(|name| (object(&name), owner.to_owned()));
        plain.into_iter().map(|(name, value)| (name.to_owned(), value)).chain(objects).collect()
    }

    /// As people see it.
    pub(crate) fn view(&self) -> IntentView {
        let updated = self.entry.updated.max(self.achieved.updated.unwrap_or_default());
        self.entry.view_updated(self.key.token(0), self.key.token(1), updated)
    }

    /// Its versions.
    pub(crate) fn history(&self) -> IntentHistory {
        self.entry.history()
    }

    /// Writes into values of it what was demanded of them, and whether it was met.
    pub(crate) fn judge(&self, values: &mut [AchievedValue]) {
        self.entry.judge(values);
    }

    /// How it stands, if it is accepted and not terminated.
    pub(crate) fn standing(&self) -> Option<IntentStanding> {
        self.entry.standing(self.key.token(0), self.key.token(1))
    }

    /// Does nothing follow any more?
    pub(crate) fn has_ended(&self) -> bool {
        self.entry.has_ended()
    }

    /// The answer where there is no such intent.
    pub(crate) fn unknown(owner: &str, intent_id: &str) -> Error {
        unknown(owner, intent_id)
    }
}

impl Entry {
    /// The definition in force, if the entity still holds it.
    pub(super) fn document_in_force(&self) -> Option<Bytes> {
        match self.entity.life {
            Life::InForce(_) | Life::Terminated(Ended { version: 1.., .. }) => {
                Some(self.entity.submitted(self.entity.version())?.content.document.clone())
            }
            Life::Submitted | Life::Rejected | Life::Terminated(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::Projector as _;
    use mesh_proto::{EventSet as _, query::GetRequest};
    use mesh_test::stored;
    use proptest::prelude::*;

    use super::*;
    use crate::domain::{
        tests::{Bench, ID, OWNER, fulfilled, histories, observed, plain, submit},
        view::IntentsView,
    };

    /// Reads, folds and writes again, as each fact of a stream does; the reports.
    fn through_documents(facts: &[Stored], observations: &[(Stored, TargetObserved)]) -> (Kept, Vec<Derived>) {
        let id = document_id(OWNER, ID);
        let (mut reports, mut document) = (vec![], None);
        for stored in facts {
            let fact = Fact::decode(&stored.message, &stored.body).unwrap();
            let mut kept = Kept::read(&id, document.as_ref(), None).unwrap();
            if let Some(report) = kept.fold(stored, &fact) {
                reports.extend(report);
                document = Some(kept.facts().unwrap().1);
            }
            let mut again = Kept::read(&id, document.as_ref(), None).unwrap();
            assert!(again.fold(stored, &fact).is_none(), "a fact counts once");
        }
        let mut achieved: Option<Bytes> = None;
        for (stored, observation) in observations {
            let mut kept = Kept::read(&id, document.as_ref(), achieved.as_ref()).unwrap();
            reports.extend(kept.observe(stored, observation));
            achieved = Some(kept.achieved());
        }
        (Kept::read(&id, document.as_ref(), achieved.as_ref()).unwrap(), reports)
    }

    fn facts_of(inputs: Vec<mesh_proto::deciders::intents::Input>) -> Vec<Stored> {
        let facts = Bench::given(inputs).facts;
        (1..).zip(&facts).map(|(sequence, (fact, at))| stored(fact.any(), sequence, *at)).collect()
    }

    fn told(reports: &[Derived]) -> Vec<(String, Bytes)> {
        reports.iter().map(|report| (report.id.clone(), report.event.body())).collect()
    }

    /// What documents lead to is what the view in memory holds and reports.
    fn same(facts: &[Stored], observations: &[(Stored, TargetObserved)]) {
        let (kept, reports) = through_documents(facts, observations);
        let mut view = IntentsView::default();
        let all = facts.iter().chain(observations.iter().map(|(stored, _)| stored));
        let expected: Vec<Derived> = all.flat_map(|stored| view.apply(stored)).collect();
        assert_eq!(told(&reports), told(&expected));
        let request = GetRequest { owner: OWNER.into(), id: ID.into() };
        assert_eq!(view.get(&request).ok(), kept.exists().then(|| kept.view()));
        assert_eq!(view.history(&request).ok(), kept.exists().then(|| kept.history()));
    }

    #[test]
    fn observations_are_kept_beside_the_facts() {
        let at = Timestamp::from_millis(1);
        let periods = [(7, Some((12.5, 64.0))), (8, None), (6, Some((1.0, 1.0)))];
        let observations = (40..).zip(periods).map(|(sequence, (period, values))| {
            let observation = observed(period, 1, values);
            (stored(&observation, sequence, at), observation)
        });
        same(&facts_of(fulfilled()), &observations.collect::<Vec<_>>());
    }

    #[test]
    fn a_list_asks_for_the_values_that_documents_are_indexed_by() {
        let (kept, _) = through_documents(&facts_of(fulfilled()), &[]);
        let indexes = kept.indexes();
        let request = ListRequest {
            owner: OWNER.into(),
            states: vec!["fulfilled".into(), "DEGRADED".into()],
            user_label: plain().user_label,
            object_instance: "spinner@1.0.0".into(),
            page_token: "before".into(),
            ..ListRequest::default()
        };
        let narrowed = Narrowed::read(&request).unwrap();
        assert_eq!((narrowed.equal.len(), narrowed.one_of.len()), (2, 1));
        assert!(narrowed.equal.iter().all(|(name, value)| indexes.get(name) == Some(value)), "{indexes:?}");
        assert!(narrowed.one_of.iter().all(|(name, values)| values.contains(&indexes[name])), "{indexes:?}");
        assert_eq!(narrowed.after, format!("{OWNER}/before"));
        let others = ListRequest { owner: "else".into(), ..request.clone() };
        let narrowed = Narrowed::read(&others).unwrap();
        assert!(narrowed.equal.iter().all(|(name, value)| indexes.get(name) != Some(value)), "{narrowed:?}");
        let all = Narrowed::read(&ListRequest { owner: OWNER.into(), ..ListRequest::default() }).unwrap();
        assert_eq!(all.equal["owner"], indexes["owner"]);
        assert!(Narrowed::read(&ListRequest { state: "JOLLY".into(), ..request.clone() }).is_err());
        assert!(Narrowed::read(&ListRequest { page_token: "a/b".into(), ..request }).is_err());
    }

    #[test]
    fn a_document_of_something_else_is_refused() {
        let bytes = Bytes::from_static(&[0xff; 9]);
        assert!(Kept::read("a/b", Some(&bytes), None).is_err());
        assert!(Kept::read("a/b", None, Some(&bytes)).is_err());
        assert!(!Kept::read("a/b", None, None).unwrap().exists());
        let (kept, _) = through_documents(&facts_of(vec![submit(plain())]), &[]);
        let observations = kept.facts().unwrap().1;
        assert!(Kept::read("a/b", None, Some(&observations)).is_err());
    }

    proptest! {
        #[test]
        fn documents_answer_and_report_as_the_view_in_memory(inputs in histories()) {
            same(&facts_of(inputs), &[]);
        }
    }
}
