//! An owner to whose instances things happen.

use bytes::Bytes;
use mesh_proto::anomaly::Contribution;
use proptest::prelude::*;

use super::*;

struct Owner {
    state: State,
    places: Places,
    at: Timestamp,
    facts: Vec<Fact>,
}

fn policy() -> RemedyPolicy {
    let rule = PolicyRule {
        metric: "cpu_milli".into(),
        actions: vec![Action::Restart as i32, Action::Migrate as i32],
        ..Default::default()
    };
    RemedyPolicy {
        rules: vec![rule],
        cooldown_seconds: 100,
        rate_max: 2,
        rate_seconds: 1_000,
        settle_seconds: 60,
        ..Default::default()
    }
}

fn short(fact: &Fact) -> String {
    match fact {
        Fact::RemedyPolicySet(_) => "set".into(),
        Fact::RemedyRequested(m) => {
            format!("{} {} {}:{}", m.action().as_str_name(), m.instance_id, m.cluster_id, m.generation)
        }
        Fact::RemedyWithheld(m) => format!("withheld {} {}", m.instance_id, m.withheld().as_str_name()),
        Fact::RemedySettled(m) => format!("settled {} {}", m.instance_id, m.effective),
        Fact::RemedyRefused(_) => "refused".into(),
    }
}

impl Owner {
    fn new() -> Self {
        Self {
            state: State::default(),
            places: Places::default(),
            at: Timestamp::from_millis(1_000_000),
            facts: vec![],
        }
    }

    fn with(policy: RemedyPolicy) -> Self {
        let mut owner = Self::new();
        assert_eq!(owner.hear(SetRemedyPolicy { owner: "local".into(), policy: Some(policy) }), ["set"]);
        owner
    }

    fn ask(&mut self, what: Trigger<Input>) -> Result<Vec<String>, Refusal> {
        let envelope = Envelope { trigger: what, at: self.at, id: "id".into(), sequence: 1, body: Bytes::new() };
        let facts = Remedies.decide(&Key::new(["local"]), &self.state, &self.places, &envelope)?;
        for fact in &facts {
            self.state = Remedies.evolve(std::mem::take(&mut self.state), fact, self.at);
        }
        self.facts.extend(facts.iter().cloned());
        Ok(facts.iter().map(short).collect())
    }

    fn hear(&mut self, input: impl Into<Input>) -> Vec<String> {
        self.at = self.at.plus_millis(1);
        self.ask(Trigger::Event(input.into())).unwrap()
    }

    fn pass(&mut self, seconds: i64) -> Vec<String> {
        let (end, mut told) = (self.at.plus_millis(seconds * 1_000), vec![]);
        while let Some(due) = Remedies.due(&self.state).filter(|due| *due <= end) {
            assert!(due > self.state.at, "due rises");
            self.at = due;
            told.extend(self.ask(Trigger::Due).unwrap());
        }
        self.at = end;
        told
    }

    fn detected(&mut self, instance: &str, episode: &str, generation: u64) -> Vec<String> {
        self.hear(anomaly(instance, episode, generation))
    }

    fn cleared(&mut self, instance: &str, episode: &str, generation: u64) -> Vec<String> {
        self.hear(AnomalyCleared {
            owner: "local".into(),
            instance_id: instance.into(),
            episode_id: episode.into(),
            generation,
            ending: Ending::Normal.into(),
            ..Default::default()
        })
    }
}

fn anomaly(instance: &str, episode: &str, generation: u64) -> AnomalyDetected {
    AnomalyDetected {
        owner: "local".into(),
        instance_id: instance.into(),
        episode_id: episode.into(),
        detector: "multivariate".into(),
        cluster_id: "edge".into(),
        generation,
        workload: "spinner@1.0.0".into(),
        contributions: vec![Contribution {
            metric: "cpu_milli".into(),
            direction: Direction::Above.into(),
            share: 1.0,
            ..Default::default()
        }],
        sentence: "cpu is high".into(),
        ..Default::default()
    }
}

#[test]
fn without_a_policy_it_says_what_it_would_do_and_does_nothing() {
    let mut owner = Owner::new();
    assert_eq!(owner.detected("i", "e", 1), ["withheld i DRY_RUN"]);
    assert!(
        matches!(owner.facts.last(), Some(Fact::RemedyWithheld(m)) if m.action() == Action::Restart && m.reason.contains("would restart"))
    );
    assert_eq!(owner.pass(10_000), Vec::<String>::new());
}

#[test]
fn a_remedy_that_helps_is_settled_as_effective_once() {
    let mut owner = Owner::with(policy());
    assert_eq!(owner.detected("i", "e", 1), ["RESTART i edge:1"]);
    assert_eq!(owner.detected("i", "e", 1), Vec::<String>::new(), "the same again");
    owner.pass(10);
    assert_eq!(owner.cleared("i", "e", 2), ["settled i true"]);
    assert_eq!(owner.cleared("i", "e", 2), Vec::<String>::new());
    assert_eq!(owner.pass(10_000), Vec::<String>::new());
    assert!(matches!(owner.facts.last(), Some(Fact::RemedySettled(m)) if (m.seconds - 10.0).abs() < 0.1));
}

#[test]
fn what_clears_in_the_old_generation_was_not_the_remedy() {
    let mut owner = Owner::with(policy());
    owner.detected("i", "e", 1);
    assert_eq!(owner.cleared("i", "e", 1), ["settled i false"]);
}

#[test]
fn the_next_action_follows_after_the_cool_down() {
    let mut owner = Owner::with(policy());
    owner.detected("i", "e", 1);
    let moved = InstanceChanged {
        owner: "local".into(),
        instance_id: "i".into(),
        cluster_id: "edge".into(),
        generation: 2,
        ..Default::default()
    };
    owner.places.hear(&moved);
    assert_eq!(owner.pass(61), ["settled i false", "withheld i COOL_DOWN"]);
    assert_eq!(owner.pass(60), ["MIGRATE i edge:2"]);
    assert_eq!(owner.pass(100), ["settled i false", "withheld i EXHAUSTED"]);
    assert_eq!(owner.pass(10_000), Vec::<String>::new());
}

#[test]
fn what_clears_while_it_waits_gets_no_remedy() {
    let mut owner = Owner::with(policy());
    owner.detected("i", "e", 1);
    owner.cleared("i", "e", 2);
    assert_eq!(owner.detected("i", "f", 2), ["withheld i COOL_DOWN"]);
    assert_eq!(owner.cleared("i", "f", 2), ["settled i false"]);
    assert_eq!(owner.pass(10_000), Vec::<String>::new());
}

#[test]
fn an_owner_has_no_more_remedies_than_the_rate_allows() {
    let mut owner = Owner::with(policy());
    assert_eq!(owner.detected("a", "1", 1), ["RESTART a edge:1"]);
    assert_eq!(owner.detected("b", "2", 1), ["RESTART b edge:1"]);
    assert_eq!(owner.detected("c", "3", 1), ["withheld c RATE_LIMIT"]);
    owner.cleared("a", "1", 2);
    owner.cleared("b", "2", 2);
    assert_eq!(owner.pass(1_001), ["RESTART c edge:1", "settled c false", "withheld c COOL_DOWN"][..1]);
}

#[test]
fn a_policy_that_cannot_be_is_refused_with_its_hint() {
    let mut owner = Owner::new();
    let rule = |change: fn(&mut PolicyRule)| {
        let mut rule = PolicyRule::default();
        change(&mut rule);
        Some(RemedyPolicy { rules: vec![rule], ..Default::default() })
    };
    for (policy, named) in [
        (None, "no policy"),
        (rule(|r| r.actions = vec![9]), "action"),
        (rule(|r| r.actions = vec![1; 9]), "9 actions"),
        (rule(|r| r.direction = "UP".into()), "direction"),
        (rule(|r| r.metric = "x".repeat(200)), "128"),
        (Some(RemedyPolicy { cooldown_seconds: 100_000, ..Default::default() }), "cooldownSeconds"),
        (Some(RemedyPolicy { rate_max: 5_000, ..Default::default() }), "rateMax"),
        (Some(RemedyPolicy { rules: vec![PolicyRule::default(); 65], ..Default::default() }), "65 rules"),
    ] {
        let set = SetRemedyPolicy { owner: "local".into(), policy };
        let refusal = owner.ask(Trigger::Event(set.into())).unwrap_err();
        assert!(refusal.to_string().contains(named), "{refusal}");
    }
}

proptest! {
    /// Whatever comes in whatever order: an instance has one remedy at once, cool-down and rate hold, all is settled once.
    #[test]
    fn cool_down_rate_and_settlement_hold_under_any_order(steps in prop::collection::vec((0..4u8, 0..3u8, 0..6u8, 1..200i64), 1..80)) {
        let mut owner = Owner::with(policy());
        let mut times: Vec<Timestamp> = vec![];
        let mut told = 1;
        for (what, instance, episode, seconds) in steps {
            let (i, e) = (format!("i{instance}"), format!("{instance}-{episode}"));
            match what {
                0 => drop(owner.detected(&i, &e, 1)),
                1 => drop(owner.cleared(&i, &e, u64::from(episode % 2) + 1)),
                _ => drop(owner.pass(seconds)),
            }
            for fact in owner.facts.split_off(told) {
                if matches!(fact, Fact::RemedyRequested(_)) {
                    times.push(owner.state.recent.last().copied().unwrap());
                }
                owner.facts.push(fact);
            }
            told = owner.facts.len();
            prop_assert!(owner.state.recent.windows(3).all(|w| w[2].millis_since(w[0]) >= 1_000_000), "rate");
        }
        owner.pass(100_000);
        prop_assert!(owner.state.under_way.is_empty(), "all is settled");
        let requested: Vec<&RemedyRequested> = owner.facts.iter().filter_map(|f| match f { Fact::RemedyRequested(m) => Some(m), _ => None }).collect();
        for m in &requested {
            let settled = owner.facts.iter().filter(|f| matches!(f, Fact::RemedySettled(s) if s.remedy_id == m.remedy_id)).count();
            let again = requested.iter().filter(|r| r.remedy_id == m.remedy_id).count();
            prop_assert_eq!(settled, again, "each is settled once");
        }
    }
}
