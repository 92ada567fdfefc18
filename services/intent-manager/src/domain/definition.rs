//! What an accepted document asks for, parsed once into values that can be judged.

use std::collections::BTreeMap;

use mesh_intent::{Bound, BoundError, Measure, ObjectKind, condition::figure, types, window::Window};
use mesh_proto::{
    Timestamp,
    intent::{Intent, Problem, TargetState},
    is_key,
    telemetry::Provenance,
};
use prost::Message as _;
use serde::{Deserialize, Serialize};

use super::MISSED_MAX;

/// One target and how it stood when last judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Target {
    /// Expectation that it belongs to.
    pub expectation: String,
    /// `cpuUsage`, `ramUsage`.
    pub name: String,
    /// What is asked of the value.
    pub bound: Bound,
    /// Value of the last recorded period, in the target's unit; meaningless without `measured`.
    #[serde(with = "as_text")]
    pub achieved: f64,
    /// Where that value comes from, a [`Provenance`]; 0 when not stated.
    #[serde(default)]
    pub provenance: i32,
    /// Did the last recorded period have a value?
    pub measured: bool,
    /// Did it hold in the last recorded period?
    pub fulfilled: bool,
    /// Missed periods in a row, not counted beyond [`MISSED_MAX`].
    pub missed: u32,
    /// Begin of the first of them.
    #[serde(default)]
    pub missed_since: Option<Timestamp>,
    /// Periods in a row without a measurement, not counted beyond [`UNMEASURED_MAX`](super::UNMEASURED_MAX).
    pub unmeasured: u32,
    /// Number of the last recorded period; periods that changed nothing are not recorded.
    pub period: u64,
}

impl Target {
    /// Forgets how it stood: what comes is judged afresh.
    pub fn reset(&mut self) {
        (self.measured, self.fulfilled, self.missed, self.unmeasured) = (false, false, 0, 0);
        self.missed_since = None;
    }

    /// Is this standing news against an earlier one? A new value alone is not.
    pub fn differs(&self, before: &Self) -> bool {
        // Also not news: the first statement of where the value comes from, after facts of an earlier release.
        let sources = [self.provenance, before.provenance];
        if sources[0] != sources[1] && !sources.contains(&0) {
            return true;
        }
        let standing = |t: &Self| (t.measured, t.fulfilled, t.missed, t.unmeasured);
        // Which period was missed first tells whether the next one is in a row with it.
        let open = self.missed > 0 && self.missed < MISSED_MAX;
        standing(self) != standing(before) || (open && self.period != before.period)
    }

    /// As facts carry it.
    pub fn to_fact(&self) -> TargetState {
        TargetState {
            expectation_id: self.expectation.clone(),
            target_name: self.name.clone(),
            target_condition: self.bound.condition().name().into(),
            bound: self.bound.single().unwrap_or_default(),
            target_value_range: self.bound.text().to_owned(),
            achieved: self.achieved,
            measured: self.measured,
            fulfilled: self.fulfilled,
            missed: self.missed,
            period: self.period,
            unmeasured: self.unmeasured,
            missed_since: self.missed_since,
            provenance: self.provenance,
        }
    }

    /// Takes over how it stood from a fact. A value that is not a number counts as 0.
    pub fn adopt(&mut self, fact: &TargetState) {
        self.achieved = if fact.achieved.is_finite() { fact.achieved } else { 0.0 };
        (self.measured, self.fulfilled) = (fact.measured, fact.fulfilled);
        (self.missed, self.unmeasured, self.period) = (fact.missed, fact.unmeasured, fact.period);
        self.missed_since = fact.missed_since;
        self.provenance = fact.provenance;
    }

    /// Is it measured by requests, so that it has no value while none come?
    pub fn is_of_traffic(&self) -> bool {
        types::is_of_traffic(&self.name)
    }

    /// `modelled` or `declared` if its value was not measured.
    pub fn unmeasured_source(&self) -> Option<&'static str> {
        types::unmeasured(Provenance::try_from(self.provenance).unwrap_or_default()).filter(|_| self.measured)
    }

    /// `compEnergyConsumption is modelled, not measured`, of a value that is not measured.
    pub fn remark(&self) -> Option<String> {
        self.unmeasured_source().map(|source| format!("{} is {source}, not measured", self.name))
    }

    /// `cpuUsage must be less than 20 %`
    pub fn demand(&self) -> String {
        format!("must be {}", self.bound.words(sign(&self.name)))
    }

    /// `cpuUsage is 34.2 %, must be less than 20 %`; of a value that is not measured `34.2 % (modelled)`.
    pub fn figures(&self) -> String {
        let source = self.unmeasured_source().map(|source| format!(" ({source})")).unwrap_or_default();
        format!("{} is {}{source}, {}", self.name, figure(self.achieved, sign(&self.name)), self.demand())
    }
}

/// The sign of a target's unit; empty for a target of no type.
fn sign(target: &str) -> &'static str {
    types::target_of(target).map_or("", |t| t.sign)
}

/// What one expectation is about.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// The expectation.
    pub expectation: String,
    /// `name@version` of a workload document, or the id of an instance.
    pub instance: String,
    /// Labels that its cluster must carry, beside those of the document.
    pub selector: BTreeMap<String, String>,
}

/// What a document asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Definition {
    /// Its targets that are measured, in document order.
    pub targets: Vec<Target>,
    /// What each expectation is about; none of an intent about networks, which is carried out as one.
    pub objects: Vec<Object>,
    /// Is it about networks?
    pub network: bool,
    /// Is it to be suspended once acknowledged?
    pub deactivated: bool,
    /// When it begins and ends.
    pub window: Window,
}

impl Definition {
    /// Asks for nothing: of a document that another version of this service could read.
    pub(super) fn empty() -> Self {
        Self { targets: vec![], objects: vec![], network: false, deactivated: false, window: Window::default() }
    }

    /// Parses an intent's protobuf bytes.
    ///
    /// # Errors
    /// Every part that cannot be judged. An accepted document has none, unless validator and intent manager are of
    /// versions that do not agree.
    pub fn parse(document: &[u8]) -> Result<Self, Vec<Problem>> {
        let problem = |path: String, reason: String, hint: &str| Problem { path, reason, hint: hint.into() };
        let intent = Intent::decode(document)
            .map_err(|error| vec![problem(String::new(), format!("it is not an intent: {error}"), "send an intent")])?;
        let (mut targets, mut objects, mut problems) = (vec![], vec![], vec![]);
        let kind = types::of_label(&intent.user_label);
        let network = kind.is_some_and(|k| k.kind() == ObjectKind::Network);
        for (i, expectation) in intent.intent_expectations.iter().enumerate() {
            let path = format!("intentExpectations[{i}]");
            let object = expectation.expectation_object.as_ref().map_or("", |o| o.object_instance.as_str());
            if !network && !object.contains('@') && !is_key(object) {
                let hint = "name a workload document as name@version, or a running instance";
                let reason = format!("{object:?} names no instance");
                problems.push(problem(format!("{path}.expectationObject.objectInstance"), reason, hint));
            }
            objects.push(Object {
                expectation: expectation.expectation_id.clone(),
                instance: object.to_owned(),
                selector: kind.map(|k| k.selector(expectation)).unwrap_or_default(),
            });
            for (j, target) in expectation.expectation_targets.iter().enumerate() {
                let path = format!("{path}.expectationTargets[{j}]");
                if types::measure_of(&target.target_name) == Some(Measure::Handed) {
                    continue;
                }
                match Bound::of(target) {
                    Ok(bound) => targets.push(Target {
                        expectation: expectation.expectation_id.clone(),
                        name: target.target_name.clone(),
                        bound,
                        achieved: 0.0,
                        provenance: 0,
                        measured: false,
                        fulfilled: false,
                        missed_since: None,
                        missed: 0,
                        unmeasured: 0,
                        period: 0,
                    }),
                    Err(BoundError::Condition) => {
                        let reason = format!("the condition {:?} is not known here", target.target_condition);
                        let hint = "use a condition of TS 28.312";
                        problems.push(problem(format!("{path}.targetCondition"), reason, hint));
                    }
                    Err(error) => {
                        problems.push(problem(format!("{path}.targetValueRange"), error.to_string(), "give numbers"));
                    }
                }
            }
        }
        if objects.is_empty() {
            let reason = "the intent expects nothing".to_owned();
            problems.push(problem("intentExpectations".into(), reason, "add an expectation"));
        }
        if network {
            objects.clear();
        }
        let window = Window::of(&intent).unwrap_or_else(|wrong| {
            problems.extend(wrong.into_iter().map(|w| problem(w.path, w.reason, "give times as RFC 3339")));
            Window::default()
        });
        let deactivated = intent.intent_admin_state == "DEACTIVATED";
        if !problems.is_empty() {
            return Err(problems);
        }
        Ok(Self { targets, objects, network, deactivated, window })
    }
}

/// A number as its shortest text, so that a snapshot gives back the very same one.
mod as_text {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}
