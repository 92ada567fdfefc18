//! What is done about anomalies: the decider of remedies.
//!
//! All remedies of an owner are one entity, so that the rate limit holds however many anomalies come at once. What
//! invariants hold:
//!
//! - nothing is requested unless a policy that is not a dry run says so; without a policy, the default one is a dry run;
//! - an instance has at most one remedy that is not settled, and none within the cool-down after one;
//! - an episode's actions are tried in the order of its rule, each once, while it goes on;
//! - every episode heard of gets an answer (`RemedyRequested` or `RemedyWithheld` with why), and every remedy is settled
//!   once: effective if the anomaly cleared as normal in a newer generation than it was seen in, else not.

use std::collections::BTreeMap;

use mesh_core::Stored;
use mesh_core::{Decider, Envelope, Key, ReadModel, Trigger};
use mesh_proto::{
    Refusal, Timestamp,
    anomaly::{AnomalyCleared, AnomalyDetected, Direction, Ending},
    deciders::remedies::{Fact, Input, NAME},
    derived_id,
    remedy::{
        Action, PolicyRule, RemedyPolicy, RemedyPolicySet, RemedyRequested, RemedySettled, RemedyWithheld,
        SetRemedyPolicy, Withheld,
    },
    workload::InstanceChanged,
};
use serde::{Deserialize, Serialize};

/// Rules of a policy.
pub const RULES_MAX: usize = 64;
/// Actions of a rule.
pub const ACTIONS_MAX: usize = 8;
/// Remedies and waiting episodes of an owner at once.
pub const CROWD_MAX: usize = 1_000;
/// Remedies that a rate can be of.
pub const RATE_MAX: u32 = 1_000;
/// Longest of a policy's times, seconds.
pub const SECONDS_MAX: u32 = 86_400;

/// Where each instance is, as the workload manager last said.
#[derive(Clone, Debug, Default)]
pub struct Places(BTreeMap<(String, String), (String, u64)>);

impl ReadModel for Places {
    fn apply(&mut self, fact: &Stored) {
        let Ok(Some(changed)) = fact.event::<InstanceChanged>() else { return };
        self.hear(&changed);
    }
}

impl Places {
    fn hear(&mut self, changed: &InstanceChanged) {
        use mesh_proto::workload::InstancePhase;
        let key = (changed.owner.clone(), changed.instance_id.clone());
        if changed.phase() == InstancePhase::Stopped {
            self.0.remove(&key);
        } else if !changed.cluster_id.is_empty() {
            self.0.insert(key, (changed.cluster_id.clone(), changed.generation));
        }
    }
}

/// All remedies of one owner.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    policy: Option<RemedyPolicy>,
    /// Remedies that are not settled, by instance, with the time of their request.
    under_way: BTreeMap<String, (RemedyRequested, Timestamp)>,
    /// Episodes that wait to be looked at again, with when.
    waiting: BTreeMap<String, (RemedyRequested, Timestamp)>,
    /// When each instance had its last remedy.
    last: BTreeMap<String, Timestamp>,
    /// Times of the last remedies, at most [`RATE_MAX`].
    recent: Vec<Timestamp>,
    /// Time of the last fact.
    at: Timestamp,
}

/// The decider.
#[derive(Clone, Copy, Debug, Default)]
pub struct Remedies;

/// The policy of an owner who set none: it says what would be done, and does nothing.
pub fn default_policy() -> RemedyPolicy {
    let rule = |metric: &str, direction: &str, actions: &[Action]| PolicyRule {
        metric: metric.into(),
        direction: direction.into(),
        actions: actions.iter().map(|a| *a as i32).collect(),
        ..PolicyRule::default()
    };
    RemedyPolicy {
        dry_run: true,
        rules: vec![
            rule("cpu_milli", "", &[Action::Restart, Action::Migrate]),
            rule("cpu_percent", "ABOVE", &[Action::Scale, Action::Migrate]),
            rule("memory_bytes", "ABOVE", &[Action::Restart]),
        ],
        ..RemedyPolicy::default()
    }
}

fn or(value: u32, default: u32) -> u32 {
    if value == 0 { default } else { value }
}

fn cooldown_ms(policy: &RemedyPolicy) -> i64 {
    i64::from(or(policy.cooldown_seconds, 120)) * 1_000
}

fn rate(policy: &RemedyPolicy) -> (usize, i64) {
    (or(policy.rate_max, 10) as usize, i64::from(or(policy.rate_seconds, 600)) * 1_000)
}

fn settle_ms(policy: &RemedyPolicy) -> i64 {
    i64::from(or(policy.settle_seconds, 60)) * 1_000
}

impl Decider for Remedies {
    const NAME: &'static str = NAME;
    type State = State;
    type ReadModel = Places;
    type Input = Input;
    type Fact = Fact;

    fn initial(&self) -> State {
        State::default()
    }

    fn concerns(&self, input: &Input, _: &Places) -> Vec<Key> {
        let owner = match input {
            Input::SetRemedyPolicy(m) => &m.owner,
            Input::AnomalyDetected(m) => &m.owner,
            Input::AnomalyCleared(m) => &m.owner,
        };
        vec![Key::new([owner])]
    }

    fn decide(
        &self,
        key: &Key,
        state: &State,
        world: &Places,
        envelope: &Envelope<Input>,
    ) -> Result<Vec<Fact>, Refusal> {
        match &envelope.trigger {
            Trigger::Event(Input::SetRemedyPolicy(m)) => set(key, m, &envelope.id),
            Trigger::Event(Input::AnomalyDetected(m)) if state.knows(&m.episode_id) => Ok(vec![]),
            Trigger::Event(Input::AnomalyDetected(m)) => Ok(vec![state.consider(wish(m), envelope.at)]),
            Trigger::Event(Input::AnomalyCleared(m)) => Ok(state.cleared(m, envelope.at)),
            Trigger::Due => Ok(state.due(world, envelope.at)),
        }
    }

    fn evolve(&self, mut state: State, fact: &Fact, at: Timestamp) -> State {
        state.at = state.at.max(at);
        match fact {
            Fact::RemedyPolicySet(m) => state.policy = Some(m.policy.clone().unwrap_or_default()),
            Fact::RemedyRequested(m) => {
                state.waiting.remove(&m.episode_id);
                state.under_way.insert(m.instance_id.clone(), (m.clone(), at));
                state.last.insert(m.instance_id.clone(), at);
                state.recent.push(at);
                state.forget(at);
            }
            Fact::RemedyWithheld(m) => {
                state.waiting.remove(&m.episode_id);
                if let (Some(pending), Some(again)) = (&m.pending, m.again) {
                    state.waiting.insert(m.episode_id.clone(), (pending.clone(), again));
                }
            }
            Fact::RemedySettled(m) => {
                state.waiting.remove(&m.episode_id);
                if state.under_way.get(&m.instance_id).is_some_and(|(r, _)| r.remedy_id == m.remedy_id) {
                    state.under_way.remove(&m.instance_id);
                }
            }
            Fact::RemedyRefused(_) => {}
        }
        state
    }

    fn due(&self, state: &State) -> Option<Timestamp> {
        let settles = state.under_way.values().filter_map(|(r, _)| r.settles_by);
        let again = state.waiting.values().map(|(_, again)| *again);
        // Always later than the last fact, so that a decision is asked for once.
        settles.chain(again).min().map(|due| due.max(state.at.plus_millis(1)))
    }
}

impl State {
    /// The policy that holds.
    fn policy(&self) -> RemedyPolicy {
        self.policy.clone().unwrap_or_else(default_policy)
    }

    fn knows(&self, episode_id: &str) -> bool {
        self.waiting.contains_key(episode_id) || self.under_way.values().any(|(r, _)| r.episode_id == episode_id)
    }

    fn forget(&mut self, at: Timestamp) {
        let policy = self.policy();
        let (_, rate_ms) = rate(&policy);
        // A policy may be made stricter later, so more than is needed now is kept, up to a limit.
        let keep_ms = cooldown_ms(&policy).max(rate_ms).max(3_600_000);
        self.recent.retain(|then| at.millis_since(*then) < keep_ms);
        let surplus = self.recent.len().saturating_sub(RATE_MAX as usize);
        self.recent.drain(..surplus);
        self.last.retain(|_, then| at.millis_since(*then) < keep_ms);
    }

    /// What follows from a wish for a remedy: it is requested, or withheld with the reason.
    fn consider(&self, wish: RemedyRequested, at: Timestamp) -> Fact {
        let policy = self.policy();
        let withheld =
            |wish: &RemedyRequested, action: Action, why: Withheld, reason: String, again: Option<Timestamp>| {
                RemedyWithheld {
                    owner: wish.owner.clone(),
                    instance_id: wish.instance_id.clone(),
                    episode_id: wish.episode_id.clone(),
                    action: action.into(),
                    withheld: why.into(),
                    reason,
                    again,
                    pending: again.map(|_| wish.clone()),
                }
                .into()
            };
        let Some(rule) = policy.rules.iter().find(|rule| fits(rule, &wish)).filter(|rule| !rule.actions.is_empty())
        else {
            let reason =
                format!("no rule of the policy acts on {} {} by {}", wish.metric, wish.direction, wish.detector);
            return withheld(&wish, Action::Unspecified, Withheld::NoRule, reason, None);
        };
        let Some(action) = rule.actions.get(wish.attempt as usize - 1).and_then(|a| Action::try_from(*a).ok()) else {
            let reason = format!("all {} actions of the rule were tried, and it goes on", rule.actions.len());
            return withheld(&wish, Action::Unspecified, Withheld::Exhausted, reason, None);
        };
        let would = format!("would {}: {}", action.as_str_name().to_lowercase(), wish.reason);
        if policy.dry_run {
            return withheld(&wish, action, Withheld::DryRun, format!("dry run, {would}"), None);
        }
        if self.waiting.len() + self.under_way.len() >= CROWD_MAX && !self.knows(&wish.episode_id) {
            let reason = format!("{CROWD_MAX} remedies and episodes are in hand; {would}");
            return withheld(&wish, action, Withheld::Crowded, reason, None);
        }
        if let Some((other, _)) = self.under_way.get(&wish.instance_id).filter(|(r, _)| r.episode_id != wish.episode_id)
        {
            let again = other.settles_by.unwrap_or(at).max(at).plus_millis(1_000);
            let reason = format!("remedy {} of the instance is not settled; {would}", other.remedy_id);
            return withheld(&wish, action, Withheld::UnderWay, reason, Some(again));
        }
        let cool = self.last.get(&wish.instance_id).map(|last| last.plus_millis(cooldown_ms(&policy)));
        if let Some(again) = cool.filter(|until| at < *until) {
            let reason = format!("cooling down until {again}; {would}");
            return withheld(&wish, action, Withheld::CoolDown, reason, Some(again));
        }
        let (rate_max, rate_ms) = rate(&policy);
        let lately: Vec<Timestamp> = self.recent.iter().filter(|t| at.millis_since(**t) < rate_ms).copied().collect();
        if let Some(oldest) = lately.len().checked_sub(rate_max).and_then(|n| lately.get(n)) {
            let again = oldest.plus_millis(rate_ms);
            let reason = format!("{} remedies in {} s, as many as allowed; {would}", lately.len(), rate_ms / 1_000);
            return withheld(&wish, action, Withheld::RateLimit, reason, Some(again));
        }
        RemedyRequested {
            remedy_id: derived_id(&["remedy", &wish.episode_id, &wish.attempt.to_string()]),
            action: action.into(),
            settles_by: Some(at.plus_millis(settle_ms(&policy))),
            ..wish
        }
        .into()
    }

    fn cleared(&self, m: &AnomalyCleared, at: Timestamp) -> Vec<Fact> {
        if let Some((remedy, since)) = self.under_way.values().find(|(r, _)| r.episode_id == m.episode_id) {
            let newer = m.generation > remedy.generation;
            let normal = m.ending() == Ending::Normal;
            let reason = match (normal, newer) {
                (true, true) => format!("cleared in generation {}: {}", m.generation, m.reason),
                (true, false) => "cleared by itself, before the remedy was carried out".to_owned(),
                (false, _) => format!("not cleared as normal ({}): {}", m.ending().as_str_name(), m.reason),
            };
            return vec![settled(remedy, *since, at, normal && newer, reason)];
        }
        let Some((wish, _)) = self.waiting.get(&m.episode_id) else { return vec![] };
        vec![settled(wish, at, at, false, "cleared without a remedy".to_owned())]
    }

    fn due(&self, world: &Places, at: Timestamp) -> Vec<Fact> {
        let mut facts = vec![];
        // One step a fact: what was decided counts for what is decided next.
        let mut state = self.clone();
        let mut say = |state: &mut State, fact: Fact| {
            *state = Remedies.evolve(std::mem::take(state), &fact, at);
            facts.push(fact);
        };
        let overdue = self.under_way.values().filter(|(r, _)| r.settles_by.is_none_or(|by| at >= by));
        for (remedy, since) in overdue.take(100) {
            let reason = "the anomaly had not cleared in time".to_owned();
            say(&mut state, settled(remedy, *since, at, false, reason));
            let next = state.consider(next_try(remedy, world), at);
            say(&mut state, next);
        }
        let again: Vec<RemedyRequested> =
            self.waiting.values().filter(|(_, again)| at >= *again).take(100).map(|(wish, _)| wish.clone()).collect();
        for wish in again {
            let fact = state.consider(placed(wish, world), at);
            say(&mut state, fact);
        }
        facts
    }
}

fn set(key: &Key, m: &SetRemedyPolicy, command_id: &str) -> Result<Vec<Fact>, Refusal> {
    let Some(policy) = &m.policy else {
        return Err(Refusal::invalid("the command holds no policy", "put it under `policy`"));
    };
    if policy.rules.len() > RULES_MAX {
        let reason = format!("the policy has {} rules", policy.rules.len());
        return Err(Refusal::exhausted(reason, format!("use at most {RULES_MAX}; the first that fits holds")));
    }
    for (number, rule) in policy.rules.iter().enumerate() {
        let wrong = |reason: String, hint: &str| Err(Refusal::invalid(format!("rule {}: {reason}", number + 1), hint));
        if rule.actions.len() > ACTIONS_MAX {
            return wrong(format!("{} actions", rule.actions.len()), "use at most 8, tried in this order");
        }
        let known = |a: &i32| Action::try_from(*a).is_ok_and(|a| a != Action::Unspecified);
        if !rule.actions.iter().all(known) {
            return wrong("an action is unknown".into(), "use RESTART, SCALE or MIGRATE");
        }
        if [&rule.detector, &rule.metric, &rule.workload].iter().any(|text| text.len() > 128) {
            return wrong(
                "a name is longer than 128 bytes".into(),
                "name a detector, metric or workload, or none for any",
            );
        }
        if !matches!(rule.direction.as_str(), "" | "ABOVE" | "BELOW") {
            return wrong("its direction is unknown".into(), "use ABOVE, BELOW, or none for either");
        }
    }
    let times = [
        ("cooldownSeconds", policy.cooldown_seconds),
        ("rateSeconds", policy.rate_seconds),
        ("settleSeconds", policy.settle_seconds),
    ];
    if let Some((name, value)) = times.into_iter().find(|(_, value)| *value > SECONDS_MAX) {
        return Err(Refusal::invalid(format!("{name} is {value}"), format!("use at most {SECONDS_MAX}, a day")));
    }
    if policy.rate_max > RATE_MAX {
        return Err(Refusal::invalid(format!("rateMax is {}", policy.rate_max), format!("use at most {RATE_MAX}")));
    }
    let (owner, command_id) = (key.token(0).to_owned(), command_id.to_owned());
    Ok(vec![RemedyPolicySet { owner, policy: Some(policy.clone()), command_id }.into()])
}

/// The wish that an anomaly is repaired, as its first attempt.
fn wish(m: &AnomalyDetected) -> RemedyRequested {
    let first = m.contributions.first();
    let direction = first.map_or(Direction::Unspecified, |c| c.direction());
    RemedyRequested {
        owner: m.owner.clone(),
        instance_id: m.instance_id.clone(),
        episode_id: m.episode_id.clone(),
        cluster_id: m.cluster_id.clone(),
        generation: m.generation,
        workload: m.workload.clone(),
        reason: m.sentence.clone(),
        attempt: 1,
        detector: m.detector.clone(),
        metric: first.map(|c| c.metric.clone()).unwrap_or_default(),
        direction: if direction == Direction::Unspecified { String::new() } else { direction.as_str_name().into() },
        ..RemedyRequested::default()
    }
}

/// The same where the instance is now.
fn placed(mut wish: RemedyRequested, world: &Places) -> RemedyRequested {
    if let Some((cluster_id, generation)) = world.0.get(&(wish.owner.clone(), wish.instance_id.clone()))
        && *generation >= wish.generation
    {
        (wish.cluster_id, wish.generation) = (cluster_id.clone(), *generation);
    }
    wish
}

fn next_try(remedy: &RemedyRequested, world: &Places) -> RemedyRequested {
    let wish =
        RemedyRequested { attempt: remedy.attempt + 1, remedy_id: String::new(), settles_by: None, ..remedy.clone() };
    placed(RemedyRequested { action: Action::Unspecified.into(), ..wish }, world)
}

fn fits(rule: &PolicyRule, wish: &RemedyRequested) -> bool {
    let name = wish.workload.split('@').next().unwrap_or_default();
    let is = |wanted: &str, found: &str| wanted.is_empty() || wanted == found;
    is(&rule.detector, &wish.detector)
        && is(&rule.metric, &wish.metric)
        && is(&rule.direction, &wish.direction)
        && is(&rule.workload, name)
}

fn settled(remedy: &RemedyRequested, since: Timestamp, at: Timestamp, effective: bool, reason: String) -> Fact {
    RemedySettled {
        owner: remedy.owner.clone(),
        remedy_id: remedy.remedy_id.clone(),
        instance_id: remedy.instance_id.clone(),
        episode_id: remedy.episode_id.clone(),
        action: remedy.action,
        effective,
        reason,
        seconds: at.millis_since(since) as f64 / 1e3,
    }
    .into()
}

#[cfg(test)]
mod tests;
