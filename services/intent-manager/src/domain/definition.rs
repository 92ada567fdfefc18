//! What an accepted document asks for, parsed once into values that can be judged.

use mesh_proto::{
    Timestamp,
    intent::{Intent, Problem, TargetState},
    is_key,
};
use prost::Message as _;
use serde::{Deserialize, Serialize};

use super::MISSED_MAX;

/// A comparison of a measured value with one number (TS 28.312, targetCondition).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Condition {
    /// `IS_LESS_THAN`
    Less,
    /// `IS_GREATER_THAN`
    Greater,
    /// `IS_EQUAL_TO`
    Equal,
    /// `IS_EQUAL_TO_OR_LESS_THAN`
    LessOrEqual,
    /// `IS_EQUAL_TO_OR_GREATER_THAN`
    GreaterOrEqual,
}

impl Condition {
    const ALL: [Self; 5] = [Self::Less, Self::Greater, Self::Equal, Self::LessOrEqual, Self::GreaterOrEqual];

    /// The condition of a name of TS 28.312.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|condition| condition.name() == name)
    }

    /// Its name in TS 28.312.
    pub fn name(self) -> &'static str {
        match self {
            Self::Less => "IS_LESS_THAN",
            Self::Greater => "IS_GREATER_THAN",
            Self::Equal => "IS_EQUAL_TO",
            Self::LessOrEqual => "IS_EQUAL_TO_OR_LESS_THAN",
            Self::GreaterOrEqual => "IS_EQUAL_TO_OR_GREATER_THAN",
        }
    }

    /// As a person says it, before the bound.
    pub fn words(self) -> &'static str {
        match self {
            Self::Less => "less than",
            Self::Greater => "greater than",
            Self::Equal => "equal to",
            Self::LessOrEqual => "at most",
            Self::GreaterOrEqual => "at least",
        }
    }

    /// Does the value meet the bound? Equality forgives what a decimal number cannot hold.
    pub fn holds(self, value: f64, bound: f64) -> bool {
        match self {
            Self::Less => value < bound,
            Self::Greater => value > bound,
            Self::Equal => (value - bound).abs() <= 1e-9 * bound.abs().max(1.0),
            Self::LessOrEqual => value <= bound,
            Self::GreaterOrEqual => value >= bound,
        }
    }
}

/// One target and how it stood when last judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Target {
    /// Expectation that it belongs to.
    pub expectation: String,
    /// `cpuUsage`, `ramUsage`.
    pub name: String,
    /// How the value is compared.
    pub condition: Condition,
    /// The bound, in the target's unit.
    #[serde(with = "as_text")]
    pub bound: f64,
    /// Value of the last recorded period, in the target's unit; meaningless without `measured`.
    #[serde(with = "as_text")]
    pub achieved: f64,
    /// Was the last recorded period measured?
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
            target_condition: self.condition.name().into(),
            bound: self.bound,
            achieved: self.achieved,
            measured: self.measured,
            fulfilled: self.fulfilled,
            missed: self.missed,
            period: self.period,
            unmeasured: self.unmeasured,
            missed_since: self.missed_since,
        }
    }

    /// Takes over how it stood from a fact. A value that is no number counts as 0.
    pub fn adopt(&mut self, fact: &TargetState) {
        self.achieved = if fact.achieved.is_finite() { fact.achieved } else { 0.0 };
        (self.measured, self.fulfilled) = (fact.measured, fact.fulfilled);
        (self.missed, self.unmeasured, self.period) = (fact.missed, fact.unmeasured, fact.period);
        self.missed_since = fact.missed_since;
    }

    /// `cpuUsage must be less than 20 %`
    pub fn demand(&self) -> String {
        format!("must be {} {}", self.condition.words(), figure(self.bound, &self.name))
    }

    /// `cpuUsage is 34.2 %, must be less than 20 %`
    pub fn figures(&self) -> String {
        format!("{} is {}, {}", self.name, figure(self.achieved, &self.name), self.demand())
    }
}

/// A value with its target's unit.
fn figure(value: f64, target: &str) -> String {
    let digits = format!("{value:.2}");
    let digits = digits.trim_end_matches('0').trim_end_matches('.');
    match target {
        "cpuUsage" => format!("{digits} %"),
        "ramUsage" => format!("{digits} MB"),
        _ => digits.to_owned(),
    }
}

/// What a document asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Definition {
    /// Its targets, in document order.
    pub targets: Vec<Target>,
    /// Each expectation's id and object instance.
    pub objects: Vec<(String, String)>,
    /// Is it to be suspended once acknowledged?
    pub deactivated: bool,
}

impl Definition {
    /// Parses an intent's protobuf bytes.
    ///
    /// # Errors
    /// Every part that cannot be judged. An accepted document has none, unless validator and intent manager are of
    /// versions that do not agree.
    pub fn parse(document: &[u8]) -> Result<Self, Vec<Problem>> {
        let problem = |path: String, reason: String, cure: &str| Problem { path, reason, cure: cure.into() };
        let intent = Intent::decode(document)
            .map_err(|error| vec![problem(String::new(), format!("it is not an intent: {error}"), "send an intent")])?;
        let (mut targets, mut objects, mut problems) = (vec![], vec![], vec![]);
        for (i, expectation) in intent.intent_expectations.iter().enumerate() {
            let path = format!("intentExpectations[{i}]");
            let object = expectation.expectation_object.as_ref().map_or("", |o| o.object_instance.as_str());
            if !object.contains('@') && !is_key(object) {
                let cure = "name a workload document as name@version, or a running instance";
                let reason = format!("{object:?} names no instance");
                problems.push(problem(format!("{path}.expectationObject.objectInstance"), reason, cure));
            }
            objects.push((expectation.expectation_id.clone(), object.to_owned()));
            for (j, target) in expectation.expectation_targets.iter().enumerate() {
                let path = format!("{path}.expectationTargets[{j}]");
                let condition = Condition::parse(&target.target_condition);
                let bound = target.target_value_range.parse::<f64>().ok().filter(|bound| bound.is_finite());
                match (condition, bound) {
                    (Some(condition), Some(bound)) => targets.push(Target {
                        expectation: expectation.expectation_id.clone(),
                        name: target.target_name.clone(),
                        condition,
                        bound,
                        achieved: 0.0,
                        measured: false,
                        fulfilled: false,
                        missed_since: None,
                        missed: 0,
                        unmeasured: 0,
                        period: 0,
                    }),
                    (None, _) => {
                        let reason = format!("the condition {:?} is not known here", target.target_condition);
                        problems.push(problem(
                            format!("{path}.targetCondition"),
                            reason,
                            "use one that takes one number",
                        ));
                    }
                    (_, None) => {
                        let reason = format!("{:?} is not a decimal number", target.target_value_range);
                        problems.push(problem(format!("{path}.targetValueRange"), reason, "give a decimal number"));
                    }
                }
            }
        }
        if objects.is_empty() {
            let reason = "the intent expects nothing".to_owned();
            problems.push(problem("intentExpectations".into(), reason, "add an expectation"));
        }
        let deactivated = intent.intent_admin_state == "DEACTIVATED";
        if problems.is_empty() { Ok(Self { targets, objects, deactivated }) } else { Err(problems) }
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
