//! What each cluster is to run: one entity per cluster, so that its agent follows one subject.
//!
//! A decision makes the chosen cluster run the instance and the one it comes from leave it; a release makes a cluster end
//! what it has up to the released generation, and the cluster that it stays on run it as before. What is ended is
//! forgotten; an older generation than the known one changes nothing.

use std::collections::BTreeMap;

use mesh_core::{Decider, Envelope, Key, Trigger};
use mesh_proto::{
    Refusal, Timestamp,
    assignment::{Action, AssignmentChanged},
    deciders::assignments::{Fact, Input, NAME},
    placement::{PlacementDecided, PlacementReleased},
};
use serde::{Deserialize, Serialize};

/// One cluster's assignments: the newest of each instance that it is to run or leave.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// By instance id.
    pub instances: BTreeMap<String, AssignmentChanged>,
}

/// The decider of every cluster's assignments.
#[derive(Clone, Copy, Debug, Default)]
pub struct Assignments;

impl Decider for Assignments {
    const NAME: &'static str = NAME;
    type State = State;
    type ReadModel = ();
    type Input = Input;
    type Fact = Fact;

    fn initial(&self) -> State {
        State::default()
    }

    fn concerns(&self, input: &Input, _: &()) -> Vec<Key> {
        let (one, other) = match input {
            Input::PlacementDecided(decided) => (&decided.cluster_id, &decided.from_cluster_id),
            Input::PlacementReleased(released) => (&released.cluster_id, &released.stays_on),
        };
        let other = Some(other).filter(|other| *other != one);
        [Some(one), other].into_iter().flatten().filter(|c| !c.is_empty()).map(|c| Key::new([c.as_str()])).collect()
    }

    fn decide(&self, key: &Key, state: &State, _: &(), envelope: &Envelope<Input>) -> Result<Vec<Fact>, Refusal> {
        let changed = match &envelope.trigger {
            Trigger::Event(Input::PlacementDecided(decided)) => on_decided(key.token(0), state, decided),
            Trigger::Event(Input::PlacementReleased(released)) => on_released(key.token(0), state, released),
            Trigger::Due => None,
        };
        Ok(changed.into_iter().map(Fact::from).collect())
    }

    fn evolve(&self, mut state: State, fact: &Fact, _: Timestamp) -> State {
        let Fact::AssignmentChanged(changed) = fact;
        if changed.action() == Action::Stop {
            state.instances.remove(&changed.instance_id);
        } else {
            state.instances.insert(changed.instance_id.clone(), changed.clone());
        }
        state
    }

    fn due(&self, _: &State) -> Option<Timestamp> {
        None
    }
}

fn on_decided(cluster_id: &str, state: &State, decided: &PlacementDecided) -> Option<AssignmentChanged> {
    let known = state.instances.get(&decided.instance_id);
    if cluster_id != decided.cluster_id {
        return known.filter(|k| k.action() == Action::Run).map(|k| acting(k, Action::Leave));
    }
    known.is_none_or(|k| k.generation < decided.generation).then(|| AssignmentChanged {
        cluster_id: cluster_id.into(),
        owner: decided.owner.clone(),
        instance_id: decided.instance_id.clone(),
        generation: decided.generation,
        action: Action::Run.into(),
        replicas: decided.replicas,
        document: decided.document.clone(),
        intent_id: decided.intent_id.clone(),
    })
}

fn on_released(cluster_id: &str, state: &State, released: &PlacementReleased) -> Option<AssignmentChanged> {
    let known = state.instances.get(&released.instance_id)?;
    if cluster_id != released.cluster_id {
        return (known.action() == Action::Leave).then(|| acting(known, Action::Run));
    }
    (known.generation <= released.generation).then(|| AssignmentChanged {
        cluster_id: cluster_id.into(),
        owner: known.owner.clone(),
        instance_id: known.instance_id.clone(),
        generation: released.generation,
        action: Action::Stop.into(),
        replicas: 0,
        document: Default::default(),
        intent_id: known.intent_id.clone(),
    })
}

fn acting(known: &AssignmentChanged, action: Action) -> AssignmentChanged {
    AssignmentChanged { action: action.into(), ..known.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Cluster(&'static str, State);

    impl Cluster {
        /// What the cluster is told on an input, as `action generation`.
        fn on(&mut self, input: impl Into<Input>) -> Vec<String> {
            let (input, key) = (input.into(), Key::new([self.0]));
            if !Assignments.concerns(&input, &()).contains(&key) {
                return vec!["not concerned".into()];
            }
            let envelope = Envelope {
                trigger: Trigger::Event(input),
                at: Timestamp::default(),
                id: "i".into(),
                sequence: 1,
                body: Default::default(),
            };
            let facts = Assignments.decide(&key, &self.1, &(), &envelope).unwrap();
            let told = facts.iter().map(|Fact::AssignmentChanged(c)| {
                assert_eq!(c.cluster_id, self.0);
                format!("{} {} x{}", c.action().as_str_name(), c.generation, c.replicas)
            });
            let told = told.collect();
            self.1 = facts.iter().fold(self.1.clone(), |s, f| Assignments.evolve(s, f, Timestamp::default()));
            told
        }
    }

    fn decided(generation: u64, to: &str, from: &str) -> PlacementDecided {
        PlacementDecided {
            owner: "local".into(),
            instance_id: "i".into(),
            generation,
            cluster_id: to.into(),
            from_cluster_id: from.into(),
            replicas: 2,
            document: bytes::Bytes::from_static(b"document"),
            ..Default::default()
        }
    }

    fn released(generation: u64, cluster: &str, stays_on: &str) -> PlacementReleased {
        PlacementReleased {
            instance_id: "i".into(),
            generation,
            cluster_id: cluster.into(),
            stays_on: stays_on.into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_move_leaves_the_source_running_until_it_is_released() {
        let (mut a, mut b) = (Cluster("a", State::default()), Cluster("b", State::default()));
        assert_eq!(a.on(decided(1, "a", "")), ["RUN 1 x2"]);
        assert_eq!(b.on(decided(1, "a", "")), ["not concerned"]);
        assert_eq!(a.on(decided(2, "b", "a")), ["LEAVE 1 x2"]);
        assert_eq!(b.on(decided(2, "b", "a")), ["RUN 2 x2"]);
        assert_eq!(a.on(released(1, "a", "")), ["STOP 1 x0"]);
        assert_eq!(a.1, State::default());
        assert_eq!(b.1.instances["i"].document, "document");
    }

    #[test]
    fn a_move_given_up_lets_the_source_run_as_before() {
        let (mut a, mut b) = (Cluster("a", State::default()), Cluster("b", State::default()));
        a.on(decided(1, "a", ""));
        a.on(decided(2, "b", "a"));
        b.on(decided(2, "b", "a"));
        assert_eq!(b.on(released(2, "b", "a")), ["STOP 2 x0"]);
        assert_eq!(a.on(released(2, "b", "a")), ["RUN 1 x2"]);
        assert_eq!(a.on(released(2, "b", "a")), Vec::<String>::new());
    }

    #[test]
    fn an_older_generation_changes_nothing() {
        let mut a = Cluster("a", State::default());
        a.on(decided(3, "a", ""));
        assert_eq!(a.on(decided(3, "a", "")), Vec::<String>::new());
        assert_eq!(a.on(decided(2, "a", "")), Vec::<String>::new());
        assert_eq!(a.on(released(2, "a", "")), Vec::<String>::new());
        assert_eq!(a.on(decided(4, "a", "")), ["RUN 4 x2"]);
        assert_eq!(a.on(released(4, "a", "")), ["STOP 4 x0"]);
        assert_eq!(a.on(released(4, "a", "")), Vec::<String>::new());
    }

    #[test]
    fn an_end_from_nowhere_concerns_no_cluster() {
        let input = Input::from(PlacementReleased { r#final: true, ..Default::default() });
        assert!(Assignments.concerns(&input, &()).is_empty());
    }
}
