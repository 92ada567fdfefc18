//! What people ask about: every intent as it stands, and its report (TS 28.312) at each change and each period.

mod index;
mod kept;
mod standing;
#[cfg(test)]
pub(crate) mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use mesh_core::{
    Decider as _, Derived, Key, Projector, Saved, SharesFold, Stored,
    query::{Error, Page, owner},
};
use mesh_intent::{secret, types};
use mesh_proto::{
    EventSet as _, Timestamp,
    deciders::intents::Fact,
    derived_id,
    intent::{
        AchievedValue, FulfilmentStatus, Intent, IntentHistory, IntentList, IntentVersion, IntentView,
        NotFulfilledState, State, TargetState,
    },
    is_key,
    observation::TargetObserved,
    query::{GetRequest, ListRequest},
    report::{
        ExpectationFulfilmentResult, FulfilmentInfo, IntentFeasibilityCheckReport, IntentFulfilmentReport,
        ReportPublished, TargetFulfilmentResult,
    },
};
use prost::Message as _;

use self::index::{Class, Index, Noted, Wanted, kind_of};
pub(crate) use self::{
    kept::{Kept, Narrowed, document_id},
    standing::Gathering,
};
use crate::domain::{Ended, Entity, InForce, Instance, Intents, Life, Row, Target, Verdict, achieved::Demands};

/// Bytes after which a page ends, and after which a history leaves older documents out: a gRPC client takes 4 MiB at once.
const ANSWER_BYTES_MAX: usize = 2 << 20;
/// States that a list can be narrowed to.
const STATES: [&str; 9] = [
    "SUBMITTED",
    "ACKNOWLEDGED",
    "COMPLIANT",
    "FULFILLED",
    "NOT_FULFILLED",
    "DEGRADED",
    "FULFILMENTFAILED",
    "SUSPENDED",
    "TERMINATED",
];

/// Rows of the state table.
const ROWS: [Row; 8] = [
    Row::Submitted,
    Row::Acknowledged,
    Row::Compliant,
    Row::Fulfilled,
    Row::Degraded,
    Row::Failed,
    Row::Suspended,
    Row::Terminated,
];

/// Every intent, by owner and id. Bounded by the number of intents; the past of each is in the stream.
#[derive(Debug, Default)]
pub struct IntentsView {
    owners: BTreeMap<Arc<str>, Owned>,
    /// Of what was stored before, every report is published.
    reported: Timestamp,
}

/// The intents of one owner.
#[derive(Debug, Default)]
struct Owned {
    intents: BTreeMap<Arc<str>, Entry>,
    index: Index,
}

#[derive(Debug, Default)]
struct Entry {
    /// Shared with the decider, which folds it.
    entity: Arc<Entity>,
    /// The document in force; before the first, none.
    document: Option<Bytes>,
    /// The type and the object instances of what is shown, so that a list need not read every document.
    label: String,
    objects: Vec<Arc<str>>,
    /// What the index holds of it.
    noted: Noted,
    /// The last measured period of each target of the version in force, by expectation and name.
    last: BTreeMap<(String, String), Last>,
    /// Sequence of its last fact.
    sequence: u64,
    /// Up to here it was restored, and nothing reported; 0 if it was not.
    restored: u64,
    /// When something was last heard of it.
    updated: Timestamp,
    /// Rises with every change of what is shown.
    shown: u64,
}

#[derive(Debug)]
struct Last {
    period: u64,
    /// `None` without a value.
    value: Option<f64>,
    /// Where it comes from, a `Provenance`.
    provenance: i32,
}

impl Projector for IntentsView {
    fn apply(&mut self, stored: &Stored) -> Vec<Derived> {
        match stored.event::<TargetObserved>() {
            Ok(Some(observation)) => return self.observe(stored, &observation).into_iter().collect(),
            Ok(None) => {}
            Err(_) => return vec![],
        }
        self.folded(stored, None)
    }
}

impl SharesFold<Entity> for IntentsView {
    fn folded(&mut self, stored: &Stored, state: Option<&Arc<Entity>>) -> Vec<Derived> {
        let Ok(fact) = stored.protobuf().and_then(|body| Fact::decode(&stored.message, &body)) else { return vec![] };
        self.take_in(stored, &fact, state).into_iter().collect()
    }
}

impl IntentsView {
    /// An empty view that derives no reports of what was stored before a time: those are published, and of a long past
    /// most of the work.
    pub fn reporting_since(reported: Timestamp) -> Self {
        Self { reported, ..Self::default() }
    }

    /// Takes over an intent as the decider saved it, instead of its facts up to there. Gives its key back if what was
    /// saved does not tell all: then the view needs its facts.
    #[must_use]
    pub fn restore(&mut self, key: Key, saved: Saved<Entity>) -> Option<Key> {
        // What was refused of an intent that never was leaves nothing.
        saved.state.submission.as_ref()?;
        let restored = saved.last;
        let entry = Entry::restored(saved);
        let partly = entry.is_none().then(|| key.clone());
        let entry = Entry { restored, ..entry.unwrap_or_default() };
        let owned = self.owners.entry(key.token(0).into()).or_default();
        let id: Arc<str> = key.token(1).into();
        let was = owned.intents.get(&id).map(|entry| entry.noted.clone()).unwrap_or_default();
        owned.index.note(&id, &was, &entry.noted);
        owned.intents.insert(id, entry);
        partly
    }

    fn take_in(&mut self, stored: &Stored, fact: &Fact, state: Option<&Arc<Entity>>) -> Option<Derived> {
        let key = Key::new(stored.subject.split('.').skip(3));
        let (owner, id) = (key.token(0), key.token(1));
        // What was refused of an intent that never was leaves nothing.
        if matches!(fact, Fact::IntentRefused(_)) && self.entry(owner, id).is_none() {
            return None;
        }
        if !self.owners.contains_key(owner) {
            self.owners.insert(owner.into(), Owned::default());
        }
        let owned = self.owners.get_mut(owner)?;
        if !owned.intents.contains_key(id) {
            owned.intents.insert(id.into(), Entry::default());
        }
        let entry = owned.intents.get_mut(id)?;
        let tells = tells(fact) && stored.stored >= self.reported;
        if stored.sequence <= entry.sequence {
            // It was restored with this fact in it, whose report may not have been published.
            return (tells && stored.sequence <= entry.restored)
                .then(|| derived(entry.report(&key, stored.time), stored, stored.time));
        }
        entry.take_in(stored, fact, state);
        let told = tells.then(|| derived(entry.report(&key, stored.time), stored, stored.time));
        let now = entry.to_note();
        if now != entry.noted {
            let id = owned.intents.get_key_value(id).map(|(id, _)| id.clone())?;
            let entry = owned.intents.get_mut(&id)?;
            let was = std::mem::replace(&mut entry.noted, now);
            owned.index.note(&id, &was, &entry.noted);
        }
        told
    }

    fn entry(&self, owner: &str, id: &str) -> Option<&Entry> {
        self.owners.get(owner)?.intents.get(id)
    }

    /// The intent of this id, if it was ever submitted.
    fn find(&self, owner: &str, id: &str) -> Result<&Entry, Error> {
        self.entry(owner, id).filter(|entry| entry.exists()).ok_or_else(|| unknown(owner, id))
    }

    fn observe(&mut self, stored: &Stored, observation: &TargetObserved) -> Option<Derived> {
        let entry = self.owners.get_mut(&*observation.owner)?.intents.get_mut(&*observation.intent_id)?;
        if !entry.observe(observation) {
            return None;
        }
        let at = observation.end.unwrap_or(stored.time);
        entry.shown += 1;
        entry.updated = entry.updated.max(at);
        if stored.stored < self.reported {
            return None;
        }
        let key = Key::new([&observation.owner, &observation.intent_id]);
        Some(derived(entry.report(&key, at), stored, at))
    }

    /// One intent as it stands.
    ///
    /// # Errors
    /// When no intent has this id.
    pub fn get(&self, request: &GetRequest) -> Result<IntentView, Error> {
        let owner = owner(&request.owner);
        Ok(self.find(owner, &request.id)?.view(owner, &request.id))
    }

    /// Every version of an intent that it can go back to, the first first. Where there is more than an answer holds, the
    /// oldest come without their documents.
    ///
    /// # Errors
    /// When no intent has this id.
    pub fn history(&self, request: &GetRequest) -> Result<IntentHistory, Error> {
        Ok(self.find(owner(&request.owner), &request.id)?.history())
    }

    /// Writes into values of an intent what was demanded of them, and whether it was met.
    ///
    /// # Errors
    /// When no intent has this id.
    pub(crate) fn judge(&self, owner: &str, id: &str, values: &mut [AchievedValue]) -> Result<(), Error> {
        self.find(owner, id)?.judge(values);
        Ok(())
    }

    /// A page of an owner's intents, by id.
    ///
    /// # Errors
    /// When a state is unknown or the page token is not one.
    pub fn list(&self, request: &ListRequest) -> Result<IntentList, Error> {
        let Asked { owner, page, wanted } = Asked::read(request)?;
        let Some(owned) = self.owners.get(owner) else { return Ok(IntentList::default()) };
        // Labels of no type are not told apart by the index.
        let of_no_type = wanted.kind == Some(None);
        let ids = owned.index.after(&wanted, page.after());
        let mut found = ids
            .filter_map(|id| Some((id, owned.intents.get(id)?)))
            .filter(|(_, entry)| !of_no_type || entry.label == request.user_label);
        let (mut intents, mut bytes) = (vec![], 0);
        while intents.len() < page.size() && bytes < ANSWER_BYTES_MAX {
            let Some((id, entry)) = found.next() else { break };
            let view = entry.view(owner, id);
            bytes += view.encoded_len();
            intents.push(view);
        }
        let shown = intents.len() as u64;
        let (next_page_token, more) = match (found.next(), intents.last()) {
            (Some(_), Some(last)) => (last.intent_id.clone(), 1),
            _ => (String::new(), 0),
        };
        let total = if request.count { shown + more + found.count() as u64 } else { 0 };
        Ok(IntentList { intents, next_page_token, total })
    }
}

/// Follows one intent: shows it now, again at every change, and no more once it has ended.
pub(crate) struct Follow {
    pub(crate) request: GetRequest,
    /// Is nothing to come?
    pub(crate) ended: bool,
    /// Revision last shown.
    shown: u64,
}

impl Follow {
    pub(crate) fn new(request: GetRequest) -> Self {
        Self { request, ended: false, shown: 0 }
    }

    /// What the caller has not seen yet, if anything.
    pub(crate) fn look(&mut self, view: &IntentsView) -> Option<Result<IntentView, Error>> {
        let entry = view.entry(owner(&self.request.owner), &self.request.id).filter(|entry| entry.exists());
        let shown = entry.map_or(0, |entry| entry.shown);
        if self.ended || (entry.is_some() && shown == self.shown) {
            return None;
        }
        self.shown = shown;
        self.ended = entry.is_none_or(Entry::has_ended);
        Some(view.get(&self.request))
    }
}

/// What a list asks for, checked.
struct Asked<'a> {
    owner: &'a str,
    page: Page,
    wanted: Wanted,
}

impl<'a> Asked<'a> {
    fn read(request: &'a ListRequest) -> Result<Self, Error> {
        let named = request.states.iter().chain([&request.state]).filter(|state| !state.is_empty());
        let states: Vec<String> = named.map(|state| state.to_uppercase()).collect();
        if let Some(unknown) = states.iter().find(|state| !STATES.contains(&state.as_str())) {
            let what = format!("{unknown:?} is not a state of an intent");
            return Err(Error::invalid(what, format!("use one of {}", STATES.join(", "))));
        }
        let page = Page::new(request.page_size, &request.page_token)?;
        if !page.after().is_empty() && !is_key(page.after()) {
            return Err(page.invalid());
        }
        let rows = || ROWS.into_iter().filter(|row| states.iter().any(|state| is(*row, state))).collect();
        let wanted = Wanted {
            rows: (!states.is_empty()).then(rows),
            kind: (!request.user_label.is_empty()).then(|| kind_of(&request.user_label)),
            object: request.object_instance.clone(),
        };
        Ok(Self { owner: owner(&request.owner), page, wanted })
    }
}

fn unknown(owner: &str, id: &str) -> Error {
    let what = format!("intent {id} of {owner}");
    Error::not_found(what, "list the intents that there are: continuum intent list")
}

/// A document as people see it: without its secrets.
fn shown(document: &Bytes) -> Option<Intent> {
    Intent::decode(document.clone()).ok().map(secret::redact)
}

/// Has this row a state of this name?
fn is(row: Row, state: &str) -> bool {
    let (fulfilment, not_fulfilled) = row.values();
    match state {
        "SUBMITTED" => row == Row::Submitted,
        _ => state == fulfilment.as_str_name() || state == not_fulfilled.as_str_name(),
    }
}

/// Does this fact change what a report tells?
fn tells(fact: &Fact) -> bool {
    match fact {
        Fact::IntentAcknowledged(_) | Fact::IntentStateChanged(_) | Fact::IntentRejected(_) => true,
        Fact::IntentSubmitted(_)
        | Fact::IntentUnchanged(_)
        | Fact::IntentRemedyWanted(_)
        | Fact::IntentRemedyUnwanted(_)
        | Fact::IntentRefused(_) => false,
    }
}

fn derived(report: ReportPublished, cause: &Stored, at: Timestamp) -> Derived {
    Derived::new(report, derived_id(&["report", &cause.id]), at)
}

impl Entry {
    /// An entry as its facts up to the saved one leave it; `None` if the document in force is not saved any more.
    fn restored(saved: Saved<Entity>) -> Option<Self> {
        let Saved { state: entity, last, time } = saved;
        let mut entry = Self { entity: Arc::new(entity), sequence: last, updated: time, shown: 1, ..Self::default() };
        entry.document = entry.document_in_force();
        let had_one = matches!(entry.entity.life, Life::InForce(_) | Life::Terminated(Ended { version: 1.., .. }));
        if had_one && entry.document.is_none() {
            return None;
        }
        entry.note();
        entry.noted = entry.to_note();
        Some(entry)
    }

    /// Takes in the next of its facts, with the state that the decider folded from it. Without one, of a past that the
    /// decider had saved, the fold is made up for here.
    fn take_in(&mut self, stored: &Stored, fact: &Fact, state: Option<&Arc<Entity>>) {
        self.entity = state.cloned().unwrap_or_else(|| {
            let before = Arc::unwrap_or_clone(std::mem::take(&mut self.entity));
            Arc::new(Intents::default().evolve(before, fact, stored.time))
        });
        self.sequence = stored.sequence;
        self.shown += 1;
        self.updated = self.updated.max(stored.time);
        match fact {
            Fact::IntentAcknowledged(acknowledged) => {
                let submitted = self.entity.submitted(acknowledged.version).map(|s| s.content.document.clone());
                let same = submitted.filter(|document| *document == acknowledged.document);
                self.document = Some(same.unwrap_or_else(|| Bytes::copy_from_slice(&acknowledged.document)));
                self.last.clear();
                self.note();
            }
            Fact::IntentSubmitted(_) if self.document.is_none() => self.note(),
            _ => {}
        }
    }

    /// Takes in what was observed of its targets. False if that is no news, or not of what is in force.
    fn observe(&mut self, observation: &TargetObserved) -> bool {
        let in_force = self.entity.in_force().filter(|f| f.version == observation.version && !f.is_suspended());
        let Some(in_force) = in_force else { return false };
        let observed: Vec<&Instance> = in_force.instances.iter().filter(|i| i.id == observation.instance_id).collect();
        let mut news = false;
        for target in &observation.targets {
            let value = (target.samples > 0 && target.value.is_finite()).then_some(target.value);
            let current = |i: &&Instance| {
                i.expectation == target.expectation_id && (value.is_none() || i.generation == observation.generation)
            };
            let key = (target.expectation_id.clone(), target.target_name.clone());
            let newer = self.last.get(&key).is_none_or(|last| last.period < observation.period);
            if newer && observed.iter().any(current) {
                self.last.insert(key, Last { period: observation.period, value, provenance: target.provenance });
                news = true;
            }
        }
        news
    }

    /// Does nothing follow any more? A terminated intent lives again only with an update that is accepted.
    fn has_ended(&self) -> bool {
        self.entity.row() == Row::Terminated && self.entity.awaited().is_none()
    }

    fn history(&self) -> IntentHistory {
        let mut room = ANSWER_BYTES_MAX;
        let mut shown = |document: &Bytes| {
            room = room.saturating_sub(document.len());
            if room > 0 { shown(document) } else { None }
        };
        let newest_first = self.entity.submission.iter().chain(self.entity.history.iter().rev());
        let versions = newest_first.map(|submission| IntentVersion {
            version: submission.content.version,
            intent: shown(&submission.content.document),
            verdict: match submission.verdict {
                Verdict::Awaited => "awaited",
                Verdict::Accepted => "accepted",
                Verdict::Rejected => "rejected",
                Verdict::Dropped => "dropped",
            }
            .into(),
            problems: submission.problems.clone(),
            submitted_at: Some(submission.at),
            rolled_back_to: submission.content.rolled_back_to,
        });
        let mut versions: Vec<IntentVersion> = versions.collect();
        versions.reverse();
        let in_force = self.entity.in_force().map_or(0, |in_force| in_force.version);
        IntentHistory { versions, in_force }
    }

    /// Writes into values what the versions that are kept demanded of them.
    fn judge(&self, values: &mut [AchievedValue]) {
        let versions: BTreeSet<u64> = values.iter().map(|value| value.version).collect();
        let mut demands = Demands::default();
        for version in versions {
            let submitted = self.entity.submitted(version).map(|submission| submission.content.document.clone());
            let in_force = || self.document.clone().filter(|_| version == self.entity.version());
            let document = submitted.or_else(in_force).and_then(|document| Intent::decode(document).ok());
            demands.add(version, document.unwrap_or_default());
        }
        values.iter_mut().for_each(|value| demands.judge(value));
    }

    /// What the index is to hold of it.
    fn to_note(&self) -> Noted {
        if !self.exists() {
            return Noted::default();
        }
        let class = Class { row: self.entity.row(), kind: kind_of(&self.label) };
        let mut objects = self.objects.clone();
        for instance in self.entity.instances() {
            if !objects.iter().any(|object| **object == *instance.id) {
                objects.push(instance.id.as_str().into());
            }
        }
        Noted { class: Some(class), objects }
    }

    /// Was it ever submitted? Commands about what never was are refused and leave no intent.
    fn exists(&self) -> bool {
        self.entity.submission.is_some()
    }

    /// Notes what lists are narrowed by.
    fn note(&mut self) {
        let intent = Intent::decode(self.current()).unwrap_or_default();
        self.label = intent.user_label;
        let named = intent.intent_expectations.into_iter().filter_map(|e| e.expectation_object);
        let mut objects: Vec<Arc<str>> = named.map(|o| o.object_instance.into()).collect();
        objects.sort();
        objects.dedup();
        self.objects = objects;
    }

    /// The document in force; before the first, the one submitted last.
    fn current(&self) -> Bytes {
        let submitted = || self.entity.submission.as_ref().map(|s| s.content.document.clone());
        self.document.clone().or_else(submitted).unwrap_or_default()
    }

    fn view(&self, owner: &str, intent_id: &str) -> IntentView {
        self.view_updated(owner, intent_id, self.updated)
    }

    fn view_updated(&self, owner: &str, intent_id: &str, updated: Timestamp) -> IntentView {
        let in_force = self.entity.in_force();
        IntentView {
            owner: owner.to_owned(),
            intent_id: intent_id.to_owned(),
            version: self.entity.version(),
            intent: shown(&self.current()),
            state: Some(self.entity.state.clone()),
            since: Some(self.entity.since),
            targets: in_force.map(|f| f.targets.iter().map(|t| self.target(t)).collect()).unwrap_or_default(),
            instances: self.entity.instances().iter().map(Instance::to_fact).collect(),
            report: Some(self.report(&Key::new([owner, intent_id]), updated)),
            sequence: self.sequence,
            revision: self.entity.revision,
        }
    }

    /// How a target stood in its last observed period, which the intent's facts need not record.
    fn target(&self, target: &Target) -> TargetState {
        let mut told = target.to_fact();
        let last = self.last.get(&(target.expectation.clone(), target.name.clone()));
        if let Some(last) = last.filter(|last| last.period >= target.period) {
            told.period = last.period;
            told.measured = last.value.is_some();
            told.provenance = last.provenance;
            told.achieved = last.value.unwrap_or(told.achieved);
            told.fulfilled = last.value.is_some_and(|value| target.bound.holds(value));
        }
        told
    }

    fn report(&self, key: &Key, at: Timestamp) -> ReportPublished {
        let results = match &self.entity.life {
            Life::InForce(in_force) => in_force.instances.iter().flat_map(|i| self.expectations(in_force, i)).collect(),
            Life::Submitted | Life::Rejected | Life::Terminated(_) => vec![],
        };
        // Content that is not a sound intent is not checked for feasibility; what no cluster was found too small for is
        // feasible.
        let rejected = self.entity.submission.iter().filter(|_| self.entity.life == Life::Rejected);
        let never = rejected.map(|s| s.infeasible.clone()).find(|reason| !reason.is_empty());
        let reason = self.entity.in_force().map(|in_force| in_force.infeasible.clone()).or(never);
        let feasibility = reason.map(|reason| IntentFeasibilityCheckReport {
            feasibility_check_type: if reason.is_empty() { "FEASIBLE" } else { "INFEASIBLE" }.into(),
            infeasibility_reason: reason,
            id: 0,
            last_updated_time: Some(at),
        });
        ReportPublished {
            owner: key.token(0).to_owned(),
            intent_id: key.token(1).to_owned(),
            version: self.entity.version(),
            intent_fulfilment_report: Some(IntentFulfilmentReport {
                intent_fulfilment_info: Some(FulfilmentInfo { remarks: self.remarks(), ..info(&self.entity.state) }),
                expectation_fulfilment_results: results,
                id: 0,
            }),
            intent_feasibility_check_report: feasibility,
            last_updated_time: Some(at),
            intent_conflict_reports: self.entity.in_force().map(|f| f.conflicts.clone()).unwrap_or_default(),
        }
    }

    /// What an instance means for its expectation; connectivity is that of all expectations of its intent.
    fn expectations(&self, in_force: &InForce, instance: &Instance) -> Vec<ExpectationFulfilmentResult> {
        let result = self.expectation(in_force, instance);
        if !instance.network {
            return vec![result];
        }
        let expectations = Intent::decode(self.current()).unwrap_or_default().intent_expectations;
        let each = expectations.into_iter().map(|e| e.expectation_id);
        each.map(|expectation_id| ExpectationFulfilmentResult { expectation_id, ..result.clone() }).collect()
    }

    fn expectation(&self, in_force: &InForce, instance: &Instance) -> ExpectationFulfilmentResult {
        let state = in_force.state_of(instance, self.entity.row());
        let targets = in_force.targets.iter().filter(|t| t.expectation == instance.expectation);
        ExpectationFulfilmentResult {
            expectation_id: instance.expectation.clone(),
            target_fulfilment_results: targets.map(|target| self.target_result(target, &state)).collect(),
            expectation_fulfilment_info: Some(info(&state)),
        }
    }

    /// What its status rests on besides measurements: what nothing proves of its type, and values that no meter read.
    fn remarks(&self) -> Vec<String> {
        let statement = types::of_label(&self.label).map(|kind| kind.statement).filter(|text| !text.is_empty());
        let in_force = self.entity.in_force();
        let targets = in_force.iter().flat_map(|in_force| &in_force.targets).filter_map(|target| {
            let mut judged = target.clone();
            judged.adopt(&self.target(target));
            judged.remark()
        });
        statement.map(str::to_owned).into_iter().chain(targets).collect()
    }

    fn target_result(&self, target: &Target, expectation: &State) -> TargetFulfilmentResult {
        let told = self.target(target);
        let mut judged = target.clone();
        judged.adopt(&told);
        let (status, state, reason) = match (told.measured, told.fulfilled) {
            (true, true) => (FulfilmentStatus::Fulfilled, NotFulfilledState::Compliant, String::new()),
            (true, false) => (FulfilmentStatus::NotFulfilled, NotFulfilledState::Degraded, judged.figures()),
            (false, _) => (
                FulfilmentStatus::NotFulfilled,
                expectation.not_fulfilled_state(),
                if target.is_of_traffic() {
                    "not observed in the last period: no request came".into()
                } else {
                    "not measured in the last period".into()
                },
            ),
        };
        TargetFulfilmentResult {
            target: target.name.clone(),
            target_achieved_value: if told.measured { told.achieved.to_string() } else { String::new() },
            value_provenance: if told.measured { told.provenance } else { 0 },
            target_fulfilment_info: Some(FulfilmentInfo {
                fulfilment_status: status.into(),
                not_fulfilled_state: state.into(),
                not_fulfilled_reasons: if reason.is_empty() { vec![] } else { vec![reason] },
                remarks: judged.remark().into_iter().collect(),
            }),
        }
    }
}

fn info(state: &State) -> FulfilmentInfo {
    let fulfilled = state.fulfilment_status() == FulfilmentStatus::Fulfilled;
    FulfilmentInfo {
        fulfilment_status: state.fulfilment_status,
        not_fulfilled_state: state.not_fulfilled_state,
        not_fulfilled_reasons: if fulfilled || state.reason.is_empty() { vec![] } else { vec![state.reason.clone()] },
        remarks: vec![],
    }
}
