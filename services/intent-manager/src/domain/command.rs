//! What people ask for, and what the validator says of it.

use bytes::Bytes;
use mesh_core::Decider as _;
use mesh_intent::secret;
use mesh_proto::{
    Refusal, RefusalCode,
    deciders::intents::{Fact, Input},
    derived_id,
    intent::{
        GovernedInstance, Intent, IntentAcknowledged, IntentRejected, IntentStateChanged, IntentSubmitted,
        IntentUnchanged, Problem,
    },
    wire,
};
use prost::Message as _;

use super::{
    Case, Definition, InForce, Instance, Intents, Life, Object, Row, Standing, Submission, Target, Verdict, row,
};

impl Submission {
    pub(super) fn version(&self) -> u64 {
        self.content.version
    }

    /// Is this the same content? Other bytes for the same values are; fields that this version does not know are not
    /// overlooked.
    fn same(&self, document: &Bytes) -> bool {
        if self.content.document == *document {
            return true;
        }
        let known = |bytes: &Bytes| Intent::decode(bytes.clone()).ok().filter(|i| i.encoded_len() == bytes.len());
        matches!((known(&self.content.document), known(document)), (Some(a), Some(b)) if a == b)
    }
}

impl Case<'_> {
    /// The intent of a submit or update command, as it came in.
    fn document(&self) -> Bytes {
        wire::field(self.body, 3).unwrap_or_default()
    }

    fn refusal(&self, code: RefusalCode, what: &str, hint: &str) -> Refusal {
        let state = &self.entity.state;
        let reason = if state.reason.is_empty() { String::new() } else { format!(" ({})", state.reason) };
        let text = format!("intent {} is {}{reason}; {what}", self.intent_id(), self.entity.row().name());
        Refusal::new(code, text, hint)
    }

    fn absent(&self) -> Refusal {
        Refusal::not_found(
            format!("there is no intent {} of {}", self.intent_id(), self.owner()),
            "submit it, or list the intents that there are: continuum intent list",
        )
    }

    fn submitted(&self, document: Bytes, rolled_back_to: u64) -> Vec<Fact> {
        let version = self.entity.submission.as_ref().map_or(0, Submission::version) + 1;
        vec![
            IntentSubmitted {
                owner: self.owner(),
                intent_id: self.intent_id(),
                version,
                document,
                command_id: self.id.to_owned(),
                rolled_back_to,
            }
            .into(),
        ]
    }

    fn unchanged(&self, submission: &Submission) -> Vec<Fact> {
        vec![
            IntentUnchanged {
                owner: self.owner(),
                intent_id: self.intent_id(),
                version: submission.version(),
                command_id: self.id.to_owned(),
                state: Some(self.entity.state.clone()),
            }
            .into(),
        ]
    }

    /// A command on condition is refused once the intent has moved on.
    pub(super) fn unmoved(&self, input: &Input) -> Result<(), Refusal> {
        let expected = match input {
            Input::UpdateIntent(command) => command.if_revision,
            Input::SuspendIntent(command) => command.if_revision,
            Input::ResumeIntent(command) => command.if_revision,
            Input::RollbackIntent(command) => command.if_revision,
            Input::TerminateIntent(command) => command.if_revision,
            _ => 0,
        };
        let revision = self.entity.revision;
        if expected == 0 || expected == revision {
            return Ok(());
        }
        Err(self.refusal(
            RefusalCode::Stale,
            &format!("it is at revision {revision}, and this was for revision {expected}"),
            "read it again, and decide again",
        ))
    }

    pub(super) fn submit(&self) -> Result<Vec<Fact>, Refusal> {
        let document = self.document();
        match &self.entity.submission {
            None => Ok(self.submitted(document, 0)),
            Some(_) if self.entity.row() == Row::Terminated => Err(self.refusal(
                RefusalCode::WrongState,
                "it cannot be submitted again",
                "update it: the update starts its next version",
            )),
            Some(last) if last.same(&document) => Ok(self.unchanged(last)),
            Some(_) => Err(self.refusal(
                RefusalCode::AlreadyExists,
                "it exists with other content",
                "use update to change it, or submit this content under another id",
            )),
        }
    }

    pub(super) fn update(&self) -> Result<Vec<Fact>, Refusal> {
        self.define(self.with_what_it_keeps(self.document()), 0)
    }

    /// People see fingerprints in place of secrets; in a document that they read, changed and sent back the secrets of the
    /// version before are put in their place. What TMF921 has around an intent is kept where the document does not have it:
    /// other faces do not speak of it. Any other document stays as it came.
    fn with_what_it_keeps(&self, document: Bytes) -> Bytes {
        let decoded = |bytes: &Bytes| Intent::decode(bytes.clone()).ok();
        let (Some(mut intent), Some(last)) = (decoded(&document), &self.entity.submission) else { return document };
        let Some(earlier) = decoded(&last.content.document) else { return document };
        let restored = secret::holds(&intent) && secret::restore(&mut intent, &earlier);
        let kept = intent.resource.is_empty() && !earlier.resource.is_empty();
        if kept {
            intent.resource = earlier.resource;
        }
        if restored || kept { intent.encode_to_vec().into() } else { document }
    }

    /// An earlier version again, as a next one.
    pub(super) fn rollback(&self, version: u64) -> Result<Vec<Fact>, Refusal> {
        let Some(last) = &self.entity.submission else { return Err(self.absent()) };
        let oldest = self.entity.history.first().unwrap_or(last).version();
        let versions = format!("versions {oldest} to {} can be gone back to", last.version());
        match self.entity.submitted(version) {
            None => Err(self.refusal(RefusalCode::NotFound, &format!("it has no version {version}"), &versions)),
            Some(found) if found.verdict == Verdict::Rejected => Err(self.refusal(
                RefusalCode::WrongState,
                &format!("its version {version} was rejected"),
                "go back to one that was accepted",
            )),
            Some(found) => self.define(found.content.document.clone(), version),
        }
    }

    fn define(&self, document: Bytes, rolled_back_to: u64) -> Result<Vec<Fact>, Refusal> {
        let Some(last) = &self.entity.submission else { return Err(self.absent()) };
        let row = self.entity.row();
        // The same content again restarts what has ended or failed, and changes nothing otherwise.
        let alive = last.verdict == Verdict::Awaited
            || (last.verdict == Verdict::Accepted && !matches!(row, Row::Failed | Row::Terminated));
        if alive && last.same(&document) {
            return Ok(self.unchanged(last));
        }
        let what = "its definition may change only while it is ACKNOWLEDGED, FULFILMENTFAILED or TERMINATED";
        match row {
            Row::Acknowledged | Row::Failed | Row::Terminated => Ok(self.submitted(document, rolled_back_to)),
            Row::Submitted => Err(self.refusal(
                RefusalCode::WrongState,
                what,
                "wait for the verdict, or terminate it and update it then",
            )),
            Row::Compliant | Row::Fulfilled | Row::Degraded | Row::Suspended => Err(self.refusal(
                RefusalCode::WrongState,
                what,
                "terminate it and update it then, or submit the new definition under another id",
            )),
        }
    }

    pub(super) fn suspend(&self) -> Result<Vec<Fact>, Refusal> {
        match (&self.entity.submission, &self.entity.life) {
            (None, _) => Err(self.absent()),
            (_, Life::InForce(in_force)) => {
                let mut facts = self.settle(InForce { suspended: true, ..in_force.clone() }, self.id);
                facts.extend(self.unwanted(in_force, |_| true, "it is suspended"));
                Ok(facts)
            }
            (_, Life::Terminated(_)) => Err(self.refusal(
                RefusalCode::WrongState,
                "it can only be updated",
                "nothing is left to suspend; update it to start it again",
            )),
            (_, Life::Submitted | Life::Rejected) => Err(self.refusal(
                RefusalCode::WrongState,
                "only an acknowledged version can be suspended",
                "suspend it once it is acknowledged, submit it with intentAdminState DEACTIVATED, or terminate it",
            )),
        }
    }

    pub(super) fn resume(&self) -> Result<Vec<Fact>, Refusal> {
        match (&self.entity.submission, &self.entity.life) {
            (None, _) => Err(self.absent()),
            (_, Life::InForce(in_force)) if mesh_intent::conflict::loses(&in_force.conflicts) => {
                let lost = in_force.conflicts.iter().find(|c| c.loses);
                let hint = lost.map(|c| c.hint.as_str()).unwrap_or_default();
                Err(self.refusal(
                    RefusalCode::WrongState,
                    "it cannot be resumed while it gives way to another intent",
                    hint,
                ))
            }
            (_, Life::InForce(in_force)) if in_force.suspended => {
                let mut now = InForce { suspended: false, ..in_force.clone() };
                now.watch_again(self.at);
                Ok(self.settle(now, self.id))
            }
            (_, Life::Terminated(_)) => {
                Err(self.refusal(RefusalCode::WrongState, "it can only be updated", "update it to start it again"))
            }
            _ => Err(self.refusal(
                RefusalCode::WrongState,
                "only a SUSPENDED intent can be resumed",
                "nothing is to be done: it is not suspended",
            )),
        }
    }

    pub(super) fn terminate(&self) -> Result<Vec<Fact>, Refusal> {
        if self.entity.submission.is_none() {
            return Err(self.absent());
        }
        Ok(self.terminated("terminated by command", self.id))
    }

    /// The intent ends, and its instances with it.
    pub(super) fn terminated(&self, reason: &str, command: &str) -> Vec<Fact> {
        let to = Row::Terminated.state(reason, "", "");
        let since = if self.entity.row() == Row::Terminated { self.entity.since } else { self.at };
        let targets =
            self.entity.in_force().map(|f| f.targets.iter().map(Target::to_fact).collect()).unwrap_or_default();
        let fact = IntentStateChanged {
            owner: self.owner(),
            intent_id: self.intent_id(),
            version: self.entity.version(),
            from: Some(self.entity.state.clone()),
            to: Some(to),
            targets,
            command_id: command.to_owned(),
            since: Some(since),
            instances: self.entity.instances().iter().map(Instance::to_fact).collect(),
            infeasible: String::new(),
            suspended_by: String::new(),
            conflicts: vec![],
        };
        let mut facts = vec![fact.into()];
        facts.extend(self.entity.in_force().into_iter().flat_map(|f| self.unwanted(f, |_| true, "it is terminated")));
        facts
    }

    /// The start time of the version in force has come: it gets its instances.
    pub(super) fn started(&self, version: u64) -> Vec<Fact> {
        let Some(found) = self.entity.submitted(version) else { return vec![] };
        let Ok(definition) = Definition::parse(&found.content.document) else { return vec![] };
        let instances: Vec<Instance> = definition.objects.iter().map(|object| self.instance(object, None)).collect();
        let acknowledged = IntentAcknowledged {
            owner: self.owner(),
            intent_id: self.intent_id(),
            version,
            document: found.content.document.clone(),
            state: None,
            instances: instances.iter().map(Instance::to_fact).collect(),
            released: vec![],
            starts_at: None,
        };
        let fact: Fact = self.in_words(acknowledged);
        let entity = Intents::default().evolve(self.entity.clone(), &fact, self.at);
        let next = Case { entity: &entity, ..*self };
        let now = entity.in_force().cloned();
        [vec![fact], now.map(|now| next.settle(now, "")).unwrap_or_default()].concat()
    }

    /// With the state that it leads to.
    fn in_words(&self, acknowledged: IntentAcknowledged) -> Fact {
        let bare = Fact::from(IntentAcknowledged {
            state: Some(Row::Acknowledged.state("accepted", "", "")),
            ..acknowledged.clone()
        });
        let entity = Intents::default().evolve(self.entity.clone(), &bare, self.at);
        let state = entity.in_force().map(|f| row::describe(f, Row::Acknowledged).state);
        IntentAcknowledged { state, ..acknowledged }.into()
    }

    pub(super) fn accepted(&self, version: u64) -> Vec<Fact> {
        let Some(last) = self.entity.submission.as_ref().filter(|_| self.entity.awaited() == Some(version)) else {
            return vec![];
        };
        let document = last.content.document.clone();
        let definition = match Definition::parse(&document) {
            Ok(definition) => definition,
            // It cannot be judged, so it must not come into force.
            Err(problems) => return self.rejected(version, &problems, ""),
        };
        let earlier = self.entity.in_force();
        let starts_at = definition.window.start.filter(|start| *start > self.at);
        let instances: Vec<Instance> = match starts_at {
            Some(_) => vec![],
            None => definition.objects.iter().map(|object| self.instance(object, earlier)).collect(),
        };
        let released = self.entity.in_force().map(|f| f.instances.as_slice()).unwrap_or_default();
        let released: Vec<GovernedInstance> = released
            .iter()
            .filter(|old| !old.network && instances.iter().all(|new| new.id != old.id))
            .map(Instance::to_fact)
            .collect();
        let suspended = definition.deactivated || earlier.is_some_and(|f| f.suspended);
        let acknowledged = IntentAcknowledged {
            owner: self.owner(),
            intent_id: self.intent_id(),
            version,
            document,
            state: None,
            instances: instances.iter().map(Instance::to_fact).collect(),
            released,
            starts_at,
        };
        let fact = self.in_words(acknowledged);
        // What follows is decided as if the acknowledgement were stored, which it is: they are one write.
        let entity = Intents::default().evolve(self.entity.clone(), &fact, self.at);
        let next = Case { entity: &entity, ..*self };
        let mut facts = vec![fact];
        if let Some(in_force) = entity.in_force() {
            facts.extend(next.settle(InForce { suspended, ..in_force.clone() }, ""));
        }
        facts.extend(earlier.into_iter().flat_map(|f| self.unwanted(f, |_| true, "a new version is in force")));
        facts
    }

    /// The instance of an expectation in a new version. One that runs the same already goes on.
    fn instance(&self, object: &Object, earlier: Option<&InForce>) -> Instance {
        let Object { expectation, instance, selector } = object;
        let created = instance.contains('@');
        let id = match created {
            true => derived_id(&[self.key.token(0), self.key.token(1), expectation]),
            false => instance.clone(),
        };
        let workload = if created { instance.clone() } else { String::new() };
        let runs = |i: &&Instance| {
            i.standing == Standing::Running
                && i.id == id
                && i.workload == workload
                && i.expectation == *expectation
                && i.selector == *selector
        };
        let selector = selector.clone();
        match earlier.and_then(|f| f.instances.iter().find(runs)) {
            Some(running) => Instance { running_since: Some(self.at), stuck: String::new(), ..running.clone() },
            None => Instance { expectation: expectation.clone(), id, workload, selector, ..Instance::default() },
        }
    }

    pub(super) fn rejected(&self, version: u64, problems: &[Problem], infeasible: &str) -> Vec<Fact> {
        if self.entity.awaited() != Some(version) {
            return vec![];
        }
        let words =
            |p: &Problem| if p.path.is_empty() { p.reason.clone() } else { format!("{}: {}", p.path, p.reason) };
        let text = problems.iter().map(words).collect::<Vec<_>>().join("; ");
        let state = match &self.entity.life {
            Life::Submitted | Life::Rejected => {
                let hints = problems.iter().filter(|p| !p.hint.is_empty()).map(|p| match p.path.as_str() {
                    "" => p.hint.clone(),
                    path => format!("{path}: {}", p.hint),
                });
                let hint = format!("update it with: {}", hints.collect::<Vec<_>>().join("; "));
                Row::Failed.state(format!("version {version} was rejected: {text}"), "an update", hint)
            }
            // The version in force goes on as it was.
            Life::InForce(in_force) => row::describe(in_force, self.entity.row()).state,
            Life::Terminated(_) => Row::Terminated.state(
                format!("terminated; its update, version {version}, was rejected: {text}"),
                "",
                "",
            ),
        };
        let fact = IntentRejected {
            owner: self.owner(),
            intent_id: self.intent_id(),
            version,
            problems: problems.to_vec(),
            state: Some(state),
            infeasible: infeasible.to_owned(),
        };
        vec![fact.into()]
    }
}
