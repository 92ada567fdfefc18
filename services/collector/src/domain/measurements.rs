//! The decider of measurement: settings of clusters, `[cluster, setting]`, and conditions of owners, `[owner, condition]`.
//! A cluster and an owner may bear one name, so an entity may be both.

use std::collections::{BTreeMap, BTreeSet};

use mesh_core::{Decider, Envelope, Key, ReadModel, Stored, Trigger};
use mesh_proto::{
    EventSet as _, Refusal, Timestamp,
    cluster::ClusterRegistered,
    deciders::measurements::{Fact, Input, NAME},
    is_key,
    measurement::{
        Condition, ConditionDefined, ConditionDropped, DefineCondition, MeasurementSet, MeasurementUnset,
        SetMeasurement, Setting, Side,
    },
};
use serde::{Deserialize, Serialize};

use super::select::{KINDS, is_label};

/// Settings of one cluster.
const SETTINGS_MAX: usize = 1_000;
/// Conditions of one owner.
const CONDITIONS_MAX: usize = 1_000;
/// Labels of a condition.
const LABELS_MAX: usize = 16;
/// Milliseconds between two samples.
const INTERVALS_MS: std::ops::RangeInclusive<u32> = 10..=3_600_000;
/// Longest retention of raw samples, seconds: ten years.
const RETAIN_MAX_S: u32 = 10 * 366 * 86_400;
/// Longest hold time, seconds: a day.
const HOLD_MAX_S: u32 = 86_400;
/// Bytes of a reason.
const REASON_MAX: usize = 256;

/// The decider of measurement.
#[derive(Clone, Copy, Debug, Default)]
pub struct Measurements;

/// What is in force under a key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// A setting of the cluster.
    pub set: bool,
    /// When it ends, milliseconds since 1970, if it does.
    pub until_ms: Option<i64>,
    /// A condition of the owner.
    pub defined: bool,
}

/// Clusters that ever registered, and how many settings and conditions there are.
#[derive(Clone, Debug, Default)]
pub struct Known {
    clusters: BTreeSet<String>,
    settings: BTreeMap<String, BTreeSet<String>>,
    conditions: BTreeMap<String, BTreeSet<String>>,
}

impl ReadModel for Known {
    fn apply(&mut self, fact: &Stored) {
        if let Ok(Some(cluster)) = fact.event::<ClusterRegistered>() {
            self.clusters.insert(cluster.cluster_id);
        }
        let Ok(body) = fact.protobuf() else { return };
        match Fact::decode(&fact.message, &body) {
            Ok(Fact::MeasurementSet(m)) => drop(self.settings.entry(m.cluster_id).or_default().insert(m.setting_id)),
            Ok(Fact::MeasurementUnset(m)) => {
                self.settings.entry(m.cluster_id).or_default().remove(&m.setting_id);
            }
            Ok(Fact::ConditionDefined(m)) => drop(self.conditions.entry(m.owner).or_default().insert(m.condition_id)),
            Ok(Fact::ConditionDropped(m)) => {
                self.conditions.entry(m.owner).or_default().remove(&m.condition_id);
            }
            Ok(Fact::MeasurementRefused(_)) | Err(_) => {}
        }
    }
}

fn refuse<T>(reason: impl Into<String>, hint: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::invalid(reason.into(), hint.into()))
}

fn count_of(all: &BTreeMap<String, BTreeSet<String>>, of: &str) -> usize {
    all.get(of).map_or(0, BTreeSet::len)
}

fn check_name(what: &str, name: &str) -> Result<(), Refusal> {
    match is_key(name) {
        true => Ok(()),
        false => refuse(format!("the {what} has no proper name"), "use 1 to 64 letters, digits, `_` and `-`"),
    }
}

fn set(ask: &SetMeasurement, known: &Known, command_id: &str) -> Result<Fact, Refusal> {
    check_name("setting", &ask.setting_id)?;
    if !known.clusters.contains(&ask.cluster_id) {
        return Err(Refusal::not_found(
            format!("cluster {} has never registered", ask.cluster_id),
            "`continuum cluster list` names those that have",
        ));
    }
    let Some(setting) = &ask.setting else { return refuse("nothing is set", "give `setting`") };
    check_setting(setting)?;
    let others = known.settings.get(&ask.cluster_id).is_some_and(|names| names.contains(&ask.setting_id));
    if !others && count_of(&known.settings, &ask.cluster_id) >= SETTINGS_MAX {
        return Err(Refusal::exhausted(
            format!("cluster {} has {SETTINGS_MAX} settings, which is the limit", ask.cluster_id),
            "unset some first",
        ));
    }
    let (cluster_id, setting_id) = (ask.cluster_id.clone(), ask.setting_id.clone());
    Ok(MeasurementSet { cluster_id, setting_id, setting: Some(setting.clone()), command_id: command_id.into() }.into())
}

/// What is wrong with a setting, if anything is.
fn check_setting(setting: &Setting) -> Result<(), Refusal> {
    let selector = setting.selector.clone().unwrap_or_default();
    if !selector.entity_kind.is_empty() && !KINDS.contains(&selector.entity_kind.as_str()) {
        return refuse(
            format!("{:?} is not a kind of entity", shown(&selector.entity_kind)),
            format!("use one of {}, or none for all", KINDS.join(", ")),
        );
    }
    for (what, text) in [("entity id", &selector.entity_id), ("probe", &selector.probe)] {
        if !text.is_empty() && !is_label(text) {
            return refuse(format!("the {what} {:?} cannot be one", shown(text)), "use up to 128 printable characters");
        }
    }
    if setting.interval_ms != 0 && !INTERVALS_MS.contains(&setting.interval_ms) {
        return refuse(
            format!("an interval of {} ms cannot be kept", setting.interval_ms),
            "use 10 to 3600000 ms, or 0 for the default",
        );
    }
    if let Some(adaptive) = &setting.adaptive {
        let (min, max) = (adaptive.interval_min_ms, adaptive.interval_max_ms);
        if !INTERVALS_MS.contains(&min) || !INTERVALS_MS.contains(&max) || min > max {
            return refuse(
                format!("adaptive intervals of {min} to {max} ms are not a range"),
                "give interval_min_ms and interval_max_ms between 10 and 3600000, the first not above the second",
            );
        }
        if !(adaptive.error_percent > 0.0 && adaptive.error_percent <= 100.0) {
            return refuse("adaptive sampling needs an error above 0 and up to 100 per cent", "give error_percent");
        }
        if setting.interval_ms != 0 {
            return refuse("an interval and an adaptive one exclude each other", "give one of them");
        }
    }
    if setting.retain_seconds > RETAIN_MAX_S {
        return refuse(format!("retain_seconds is more than {RETAIN_MAX_S}"), "ten years are the limit");
    }
    if setting.reason.len() > REASON_MAX {
        return refuse(format!("the reason has more than {REASON_MAX} bytes"), "shorten it");
    }
    if setting.retain_seconds != 0 && !selector.probe.is_empty() {
        return refuse(
            format!("values of one probe ({:?}) are not kept apart from those of others", shown(&selector.probe)),
            "set retain_seconds for an entity, a kind of entity or the whole cluster, and the probe's interval by itself",
        );
    }
    let says = setting.interval_ms != 0 || setting.muted || setting.adaptive.is_some() || setting.retain_seconds != 0;
    if says {
        Ok(())
    } else {
        refuse("the setting changes nothing", "give interval_ms, adaptive, muted or retain_seconds")
    }
}

fn define(ask: &DefineCondition, known: &Known, command_id: &str) -> Result<Fact, Refusal> {
    check_name("condition", &ask.condition_id)?;
    let Some(given) = &ask.condition else { return refuse("no condition is given", "give `condition`") };
    for (what, inner, outer) in
        [("owner", &given.owner, &ask.owner), ("condition_id", &given.condition_id, &ask.condition_id)]
    {
        if !inner.is_empty() && inner != outer {
            return refuse(
                format!("the condition's {what} is another than the command's"),
                "leave it out, or give the same",
            );
        }
    }
    let condition = Condition { owner: ask.owner.clone(), condition_id: ask.condition_id.clone(), ..given.clone() };
    check_condition(&condition)?;
    let others = known.conditions.get(&ask.owner).is_some_and(|names| names.contains(&ask.condition_id));
    if !others && count_of(&known.conditions, &ask.owner) >= CONDITIONS_MAX {
        return Err(Refusal::exhausted(
            format!("{} has {CONDITIONS_MAX} conditions, which is the limit", ask.owner),
            "drop some first",
        ));
    }
    let (owner, condition_id) = (ask.owner.clone(), ask.condition_id.clone());
    Ok(ConditionDefined { owner, condition_id, condition: Some(condition), command_id: command_id.into() }.into())
}

/// What is wrong with a condition, if anything is.
fn check_condition(condition: &Condition) -> Result<(), Refusal> {
    if !KINDS.contains(&condition.entity_kind.as_str()) {
        return refuse(
            format!("{:?} is not a kind of entity", shown(&condition.entity_kind)),
            format!("use one of {}", KINDS.join(", ")),
        );
    }
    if !is_label(&condition.metric) {
        return refuse("the condition has no metric", "give its name, for example system.memory.utilization");
    }
    let texts = [("entity id", &condition.entity_id), ("cluster id", &condition.cluster_id)];
    if let Some((what, text)) = texts.into_iter().find(|(_, text)| !text.is_empty() && !is_label(text)) {
        return refuse(format!("the {what} {:?} cannot be one", shown(text)), "use up to 128 printable characters");
    }
    if condition.labels.len() > LABELS_MAX || !condition.labels.iter().all(|(k, v)| is_label(k) && is_label(v)) {
        return refuse(
            format!("labels are at most {LABELS_MAX}, each of up to 128 printable characters"),
            "correct them",
        );
    }
    let side = condition.side();
    if side == Side::Unspecified {
        return refuse("the condition does not say on which side of its line it holds", "give side ABOVE or BELOW");
    }
    let clear = condition.clear.unwrap_or(condition.threshold);
    if !condition.threshold.is_finite() || !clear.is_finite() {
        return refuse("threshold and clear must be finite numbers", "correct them");
    }
    let within = if side == Side::Above { clear <= condition.threshold } else { clear >= condition.threshold };
    if !within {
        return refuse(
            "clear lies on the side where the condition holds",
            "for ABOVE give one not above the threshold, for BELOW one not below",
        );
    }
    if condition.hold_seconds > HOLD_MAX_S {
        return refuse(format!("hold_seconds is more than {HOLD_MAX_S}"), "a day is the limit");
    }
    Ok(())
}

fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}

impl Decider for Measurements {
    const NAME: &'static str = NAME;
    type State = State;
    type ReadModel = Known;
    type Input = Input;
    type Fact = Fact;

    fn initial(&self) -> State {
        State::default()
    }

    fn concerns(&self, input: &Input, _: &Known) -> Vec<Key> {
        vec![match input {
            Input::SetMeasurement(m) => Key::new([&m.cluster_id, &m.setting_id]),
            Input::UnsetMeasurement(m) => Key::new([&m.cluster_id, &m.setting_id]),
            Input::DefineCondition(m) => Key::new([&m.owner, &m.condition_id]),
            Input::DropCondition(m) => Key::new([&m.owner, &m.condition_id]),
        }]
    }

    fn decide(
        &self,
        key: &Key,
        state: &State,
        known: &Known,
        envelope: &Envelope<Input>,
    ) -> Result<Vec<Fact>, Refusal> {
        let (first, second, command_id) = (key.token(0).to_owned(), key.token(1).to_owned(), envelope.id.clone());
        let Trigger::Event(input) = &envelope.trigger else {
            let over = state.set && state.until_ms.is_some_and(|until| until <= envelope.at.as_millis());
            let unset = || MeasurementUnset { cluster_id: first, setting_id: second, command_id: String::new() };
            return Ok(over.then(|| unset().into()).into_iter().collect());
        };
        let fact = match input {
            Input::SetMeasurement(ask) => set(ask, known, &envelope.id)?,
            Input::DefineCondition(ask) => define(ask, known, &envelope.id)?,
            Input::UnsetMeasurement(_) if state.set => {
                MeasurementUnset { cluster_id: first, setting_id: second, command_id }.into()
            }
            Input::DropCondition(_) if state.defined => {
                ConditionDropped { owner: first, condition_id: second, command_id }.into()
            }
            Input::UnsetMeasurement(_) => {
                let reason = format!("cluster {first} has no setting {second}");
                return Err(Refusal::not_found(reason, "`continuum telemetry inventory` shows those in force"));
            }
            Input::DropCondition(_) => {
                let reason = format!("{first} has no condition {second}");
                return Err(Refusal::not_found(reason, "list conditions to see those that are watched"));
            }
        };
        Ok(vec![fact])
    }

    fn evolve(&self, mut state: State, fact: &Fact, _: Timestamp) -> State {
        match fact {
            Fact::MeasurementSet(m) => {
                state.set = true;
                state.until_ms = m.setting.as_ref().and_then(|setting| setting.until).map(|until| until.as_millis());
            }
            Fact::MeasurementUnset(_) => (state.set, state.until_ms) = (false, None),
            Fact::ConditionDefined(_) => state.defined = true,
            Fact::ConditionDropped(_) => state.defined = false,
            Fact::MeasurementRefused(_) => {}
        }
        state
    }

    fn due(&self, state: &State) -> Option<Timestamp> {
        state.until_ms.map(Timestamp::from_millis)
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::{
        measurement::{Adaptive, DropCondition, Selector, UnsetMeasurement},
        refusal::RefusalCode,
    };

    use super::*;

    fn known() -> Known {
        let mut known = Known::default();
        let registered = ClusterRegistered { cluster_id: "edge".into(), ..ClusterRegistered::default() };
        known.apply(&mesh_test::stored(&registered, 1, Timestamp::from_millis(1)));
        known
    }

    fn ask(state: &State, known: &Known, input: impl Into<Input>) -> Result<Fact, Refusal> {
        let input = input.into();
        let key = Measurements.concerns(&input, known).remove(0);
        let at = Timestamp::from_millis(1);
        let envelope =
            Envelope { trigger: Trigger::Event(input), at, id: "c".into(), sequence: 1, body: bytes::Bytes::new() };
        Measurements.decide(&key, state, known, &envelope).map(|mut facts| facts.remove(0))
    }

    fn setting(setting: Setting) -> SetMeasurement {
        SetMeasurement { cluster_id: "edge".into(), setting_id: "s".into(), setting: Some(setting) }
    }

    fn condition(condition: Condition) -> DefineCondition {
        DefineCondition { owner: "local".into(), condition_id: "hot".into(), condition: Some(condition) }
    }

    fn good() -> Condition {
        Condition {
            entity_kind: "node".into(),
            metric: "system.memory.utilization".into(),
            side: Side::Above.into(),
            threshold: 0.9,
            clear: Some(0.8),
            ..Condition::default()
        }
    }

    #[test]
    fn what_is_set_can_be_taken_back_once() {
        let known = known();
        let mut state = State::default();
        let fact = ask(&state, &known, setting(Setting { interval_ms: 100, ..Setting::default() })).unwrap();
        assert!(matches!(&fact, Fact::MeasurementSet(m) if m.command_id == "c"));
        state = Measurements.evolve(state, &fact, Timestamp::from_millis(1));
        let unset = UnsetMeasurement { cluster_id: "edge".into(), setting_id: "s".into() };
        let fact = ask(&state, &known, unset.clone()).unwrap();
        state = Measurements.evolve(state, &fact, Timestamp::from_millis(2));
        assert_eq!(ask(&state, &known, unset).unwrap_err().code, RefusalCode::NotFound);

        let fact = ask(&state, &known, condition(good())).unwrap();
        assert!(matches!(&fact, Fact::ConditionDefined(m) if m.condition.as_ref().unwrap().owner == "local"));
        state = Measurements.evolve(state, &fact, Timestamp::from_millis(3));
        let drop = DropCondition { owner: "local".into(), condition_id: "hot".into() };
        let fact = ask(&state, &known, drop.clone()).unwrap();
        state = Measurements.evolve(state, &fact, Timestamp::from_millis(4));
        assert_eq!(ask(&state, &known, drop).unwrap_err().code, RefusalCode::NotFound);
    }

    #[test]
    fn a_setting_ends_when_it_said_it_would() {
        let until = Some(Timestamp::from_millis(50));
        let fact =
            ask(&State::default(), &known(), setting(Setting { muted: true, until, ..Setting::default() })).unwrap();
        let state = Measurements.evolve(State::default(), &fact, Timestamp::from_millis(1));
        assert_eq!(Measurements.due(&state), until);
        let key = Key::new(["edge", "s"]);
        let due = |at_ms| {
            let at = Timestamp::from_millis(at_ms);
            let envelope =
                Envelope { trigger: Trigger::Due, at, id: String::new(), sequence: 0, body: bytes::Bytes::new() };
            Measurements.decide(&key, &state, &known(), &envelope).unwrap()
        };
        assert!(due(49).is_empty());
        let ended = due(50).remove(0);
        assert!(matches!(ended, Fact::MeasurementUnset(_)));
        assert_eq!(Measurements.due(&Measurements.evolve(state.clone(), &ended, Timestamp::from_millis(50))), None);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let (state, known) = (State::default(), known());
        let adaptive =
            |min, max, error_percent| Some(Adaptive { interval_min_ms: min, interval_max_ms: max, error_percent });
        let kind = Some(Selector { entity_kind: "planet".into(), ..Selector::default() });
        let settings = [
            Setting::default(),
            Setting { interval_ms: 9, ..Setting::default() },
            Setting { interval_ms: 3_600_001, ..Setting::default() },
            Setting { adaptive: adaptive(10, 9, 1.0), ..Setting::default() },
            Setting { adaptive: adaptive(10, 100, f64::NAN), ..Setting::default() },
            Setting { adaptive: adaptive(10, 100, 0.0), ..Setting::default() },
            Setting { adaptive: adaptive(10, 100, 1.0), interval_ms: 100, ..Setting::default() },
            Setting { selector: kind, muted: true, ..Setting::default() },
            Setting { retain_seconds: u32::MAX, ..Setting::default() },
            Setting { muted: true, reason: "x".repeat(257), ..Setting::default() },
        ];
        for wrong in settings {
            let refusal = ask(&state, &known, setting(wrong.clone())).unwrap_err();
            assert_eq!(refusal.code, RefusalCode::Invalid, "{wrong:?}");
        }
        let elsewhere =
            SetMeasurement { cluster_id: "mars".into(), ..setting(Setting { muted: true, ..Setting::default() }) };
        assert_eq!(ask(&state, &known, elsewhere).unwrap_err().code, RefusalCode::NotFound);

        let conditions = [
            Condition { side: Side::Unspecified.into(), ..good() },
            Condition { threshold: f64::INFINITY, ..good() },
            Condition { clear: Some(0.95), ..good() },
            Condition { side: Side::Below.into(), ..good() },
            Condition { entity_kind: String::new(), ..good() },
            Condition { metric: String::new(), ..good() },
            Condition { hold_seconds: 86_401, ..good() },
            Condition { owner: "ann".into(), ..good() },
            Condition { labels: BTreeMap::from([("a".into(), "\n".into())]), ..good() },
        ];
        for wrong in conditions {
            let refusal = ask(&state, &known, condition(wrong.clone())).unwrap_err();
            assert_eq!(refusal.code, RefusalCode::Invalid, "{wrong:?}");
        }
    }

    #[test]
    fn settings_of_a_cluster_are_limited_and_a_replaced_one_counts_once() {
        let mut known = known();
        for number in 0..SETTINGS_MAX {
            let setting = MeasurementSet {
                cluster_id: "edge".into(),
                setting_id: format!("s{number}"),
                ..MeasurementSet::default()
            };
            known.apply(&mesh_test::stored(&setting, 2, Timestamp::from_millis(1)));
        }
        let more = |id: &str| SetMeasurement {
            setting_id: id.into(),
            ..setting(Setting { muted: true, ..Setting::default() })
        };
        assert!(ask(&State::default(), &known, more("s1")).is_ok());
        assert_eq!(ask(&State::default(), &known, more("new")).unwrap_err().code, RefusalCode::Exhausted);
    }
}
