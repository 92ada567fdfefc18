//! What a view is given, and what stays in memory.

use mesh_proto::{
    AnyEvent as _, Event, Refusal,
    deciders::verdicts::{Fact, Input, NAME},
    intent::IntentSubmitted,
    validation::IntentAccepted,
};

use super::*;

struct Accepts;

impl Decider for Accepts {
    const NAME: &'static str = NAME;
    type State = u64;
    type ReadModel = ();
    type Input = Input;
    type Fact = Fact;

    fn initial(&self) -> u64 {
        0
    }

    fn concerns(&self, input: &Input, _: &()) -> Vec<Key> {
        let Input::IntentSubmitted(submitted) = input else { return vec![] };
        vec![Key::new([&submitted.owner, &submitted.intent_id])]
    }

    fn decide(&self, key: &Key, accepted: &u64, _: &(), _: &Envelope<Input>) -> Result<Vec<Fact>, Refusal> {
        let (owner, intent_id) = (key.token(0).to_owned(), key.token(1).to_owned());
        let fact = |version| IntentAccepted { owner: owner.clone(), intent_id: intent_id.clone(), version };
        Ok(vec![fact(accepted + 1).into(), fact(accepted + 2).into()])
    }

    fn evolve(&self, accepted: u64, _: &Fact, _: Timestamp) -> u64 {
        accepted + 1
    }

    fn due(&self, _: &u64) -> Option<Timestamp> {
        None
    }

    fn urgency(&self, input: &Input) -> Option<u32> {
        let Input::IntentSubmitted(submitted) = input else { return None };
        u32::try_from(submitted.version).ok()
    }

    /// Its first decision is two facts; a third, of somebody else, ends what it set in motion.
    fn is_under_way(&self, accepted: &u64) -> bool {
        *accepted == 2
    }
}

fn stored(event: &impl Event, stream: &str, sequence: u64) -> Stored {
    let at = Timestamp::from_millis(1);
    Stored {
        stream: stream.into(),
        sequence,
        subject: event.subject().unwrap(),
        id: format!("{stream}-{sequence}"),
        message: event.message().into(),
        time: at,
        stored: at,
        cause: None,
        traceparent: None,
        world: vec![],
        content_type: None,
        source: None,
        previous_on_subject: None,
        delivered: 1,
        body: event.body(),
    }
}

fn changes(replica: &mut Replica<Accepts>) -> Vec<(u64, Option<u64>)> {
    std::iter::from_fn(|| replica.next_change()).map(|c| (c.fact.sequence, c.state.as_deref().copied())).collect()
}

#[test]
fn a_view_is_given_each_fact_with_the_state_right_after_it() {
    let mut replica = Replica::new(Accepts, Some(Index { position: 2, ..Index::default() }));
    replica.share();
    let accepted = |version| IntentAccepted { owner: "local".into(), intent_id: "a".into(), version };
    replica.fact(stored(&accepted(1), "VALIDATION", 2));
    assert_eq!(changes(&mut replica), [(2, None)], "it is in what was saved");
    for stream in replica.world_streams() {
        replica.world_fact(&stored(&accepted(1), &stream, 9));
    }
    let submitted = IntentSubmitted { owner: "local".into(), intent_id: "a".into(), ..IntentSubmitted::default() };
    replica.input(stored(&submitted, "INTENT", 1));
    let Some(Step::Load(key)) = replica.next_step() else { panic!("it asks for the entity") };
    replica.loaded(&key, None).unwrap();
    let Some(Step::Write { ticket, .. }) = replica.next_step() else { panic!("it decides") };
    replica.written(ticket, Outcome::Stored(4));
    assert_eq!(replica.state(&key), Some(&2), "folded");
    assert_eq!(changes(&mut replica), [], "and not read yet");
    replica.fact(stored(&accepted(1), "VALIDATION", 3));
    assert_eq!(changes(&mut replica), [(3, Some(1))]);
    replica.fact(stored(&accepted(2), "VALIDATION", 4));
    replica.fact(stored(&accepted(3), "VALIDATION", 5));
    assert_eq!(changes(&mut replica), [(4, Some(2)), (5, Some(3))]);
    replica.unshare();
    replica.fact(stored(&accepted(4), "VALIDATION", 6));
    assert_eq!(changes(&mut replica), []);
}

#[test]
fn an_entity_that_is_kept_in_memory_is_not_forgotten() {
    let mut replica = Replica::new(Accepts, None);
    let keys = ["a", "b"].map(|id| Key::new(["local", id]));
    assert!(replica.pin(&keys[1]));
    let accepted = |id: &str| IntentAccepted { owner: "local".into(), intent_id: id.into(), version: 1 };
    replica.fact(stored(&accepted("a"), "VALIDATION", 1));
    replica.fact(stored(&accepted("b"), "VALIDATION", 2));
    while replica.snapshot(10, 0).is_some_and(|(entries, _)| !entries.is_empty()) {}
    replica.evict(0, 2);
    assert_eq!((replica.state(&keys[0]), replica.state(&keys[1])), (None, Some(&1)));
}

fn fact(intent: &str, sequence: u64) -> Stored {
    let accepted = IntentAccepted { owner: "local".into(), intent_id: intent.into(), version: 1 };
    stored(&accepted, "VALIDATION", sequence)
}

fn replica(facts: &[(&str, u64)]) -> Replica<Accepts> {
    let mut replica = Replica::new(Accepts, None);
    for (intent, sequence) in facts {
        replica.fact(fact(intent, *sequence));
    }
    replica
}

fn names(snapshot: Option<Snapshot>) -> Vec<String> {
    let mut names: Vec<String> = snapshot.into_iter().flat_map(|(entries, _)| entries).map(|(key, _)| key).collect();
    names.sort_unstable();
    names
}

#[test]
fn a_replica_that_is_behind_what_is_saved_saves_nothing() {
    let mut behind = replica(&[("a", 1)]);
    assert_eq!(behind.snapshot(usize::MAX, 2), None, "its entity would replace a newer one");
    behind.fact(fact("a", 2));
    assert_eq!(names(behind.snapshot(usize::MAX, 2)), ["e.local.a"], "nothing was forgotten meanwhile");
}

#[test]
fn what_another_replica_may_have_replaced_is_saved_again() {
    let mut ahead = replica(&[("a", 1), ("b", 2), ("a", 3)]);
    assert_eq!(names(ahead.snapshot(usize::MAX, 0)), ["e.local.a", "e.local.b"]);
    assert_eq!(names(ahead.snapshot(usize::MAX, 3)), [""; 0], "all of it is saved");
    // The other replica's snapshots hold the facts up to 2: its `a` lacks the third.
    ahead.overtaken(2);
    let (entries, index) = ahead.snapshot(usize::MAX, 2).unwrap();
    assert_eq!(entries.len(), 1);
    assert_eq!(Saved::<u64>::read(&entries[0].0, &entries[0].1).unwrap().unwrap().1.last, 3);
    assert_eq!(index.unwrap().position, 3);
}

/// A replica whose read model is at its end, with one entity that may be under way.
fn narrow() -> Replica<Accepts> {
    let mut replica = Replica::new(Accepts, None);
    replica.limit_under_way(1);
    for stream in replica.world_streams() {
        replica.world_fact(&stored(
            &IntentAccepted { owner: "o".into(), intent_id: "i".into(), version: 1 },
            &stream,
            99,
        ));
    }
    replica
}

fn submit(replica: &mut Replica<Accepts>, sequence: u64, owner: &str, id: &str, urgency: u64) {
    let (owner, intent_id) = (owner.to_owned(), id.to_owned());
    let submitted = IntentSubmitted { owner, intent_id, version: urgency, ..IntentSubmitted::default() };
    let at = Timestamp::from_millis(sequence as i64);
    replica.input(Stored { stored: at, ..stored(&submitted, "INTENT", sequence) });
}

/// What it decides now: ticket and entity.
fn writes(replica: &mut Replica<Accepts>) -> Vec<(u64, String)> {
    let mut found = vec![];
    while let Some(step) = replica.next_step() {
        if let Step::Write { ticket, decision } = step {
            found.push((ticket, decision.entity.trim_start_matches("validation.*.*.").to_owned()));
        }
    }
    found
}

#[test]
fn while_much_is_under_way_the_urgent_go_first_and_owners_take_turns() {
    let mut replica = narrow();
    submit(&mut replica, 1, "loud", "a", 1);
    submit(&mut replica, 2, "loud", "b", 1);
    submit(&mut replica, 3, "loud", "c", 1);
    submit(&mut replica, 4, "quiet", "d", 1);
    submit(&mut replica, 5, "loud", "e", 9);
    let (mut sequence, mut order) = (0, vec![]);
    assert_eq!((replica.waiting(), replica.low_water("INTENT")), (4, 0));
    assert_eq!(replica.oldest("INTENT"), Some(Timestamp::from_millis(1)));
    loop {
        let mut now = writes(&mut replica);
        let Some((ticket, entity)) = now.pop() else { break };
        assert_eq!(now, [], "one at a time");
        sequence += 2;
        replica.written(ticket, Outcome::Stored(sequence));
        assert_eq!(writes(&mut replica), [], "{entity} has not come back");
        sequence += 1;
        let (owner, intent_id) = entity.split_once('.').map(|(o, i)| (o.to_owned(), i.to_owned())).unwrap();
        replica.fact(stored(&IntentAccepted { owner, intent_id, version: 3 }, "VALIDATION", sequence));
        order.push(entity);
    }
    assert_eq!(order, ["loud.a", "loud.e", "loud.b", "quiet.d", "loud.c"]);
    assert_eq!((replica.waiting(), replica.came_back(), replica.low_water("INTENT")), (0, 5, 5));
    assert_eq!(replica.oldest("INTENT"), None);
}

#[test]
fn what_does_not_come_back_stops_nobody_for_long() {
    let mut replica = narrow();
    replica.look(Timestamp::from_millis(0));
    submit(&mut replica, 1, "o", "a", 1);
    submit(&mut replica, 2, "o", "b", 1);
    let [(ticket, _)] = writes(&mut replica)[..] else { panic!("one is decided") };
    replica.written(ticket, Outcome::Stored(2));
    replica.look(Timestamp::from_millis(1_900));
    assert_eq!(writes(&mut replica), []);
    replica.look(Timestamp::from_millis(2_000));
    assert_eq!(writes(&mut replica).len(), 1);
}

#[test]
fn the_index_says_how_far_inputs_are_done_once_that_is_kept() {
    let mut replica = narrow();
    replica.limit_under_way(10);
    let (_, index) = replica.snapshot(10, 0).unwrap_or((vec![], Some(Index::default())));
    assert_eq!(index.unwrap_or_default().inputs, BTreeMap::new());
    replica.keep_marks();
    submit(&mut replica, 7, "o", "a", 1);
    submit(&mut replica, 9, "o", "b", 1);
    let tickets: Vec<u64> = writes(&mut replica).into_iter().map(|(ticket, _)| ticket).collect();
    replica.written(tickets[0], Outcome::Stored(102));
    let (_, index) = replica.snapshot(10, 0).unwrap();
    assert_eq!(index.unwrap().inputs, BTreeMap::from([("INTENT".to_owned(), 8)]));
    replica.written(tickets[1], Outcome::Stored(104));
    let (_, index) = replica.snapshot(10, 0).unwrap();
    assert_eq!(index.unwrap().inputs, BTreeMap::from([("INTENT".to_owned(), 9)]));
}

/// An input that sets nothing in motion elsewhere.
fn tell(replica: &mut Replica<Accepts>, sequence: u64) {
    submit(replica, sequence, "o", "a", u64::MAX);
}

fn decision(replica: &mut Replica<Accepts>) -> (u64, Decision) {
    let Some(Step::Write { ticket, decision }) = replica.next_step() else { panic!("it decides") };
    assert!(replica.next_step().is_none(), "one write of an entity at a time");
    (ticket, decision)
}

fn causes(decision: &Decision) -> Vec<u64> {
    decision.messages.iter().filter_map(|message| Some(message.cause.as_ref()?.sequence)).collect()
}

#[test]
fn inputs_that_wait_for_one_entity_are_decided_together() {
    let mut replica = narrow();
    replica.decide_together_from(2);
    (1..=4).for_each(|sequence| tell(&mut replica, sequence));
    let (ticket, first) = decision(&mut replica);
    assert_eq!((causes(&first), first.expected), (vec![1, 1], 0), "the first finds nobody before it");
    replica.written(ticket, Outcome::Stored(2));
    let (ticket, rest) = decision(&mut replica);
    assert_eq!((causes(&rest), rest.expected), (vec![2, 2, 3, 3, 4, 4], 2));
    let versions = rest.messages.iter().map(|message| match Fact::decode(&message.message, &message.body) {
        Ok(Fact::IntentAccepted(accepted)) => accepted.version,
        other => panic!("{other:?}"),
    });
    assert_eq!(versions.collect::<Vec<_>>(), [3, 4, 5, 6, 7, 8], "each on the state after the one before it");
    assert_eq!(replica.low_water("INTENT"), 1);
    // Its first fact is read before the answer comes.
    replica.fact(stored(&IntentAccepted { owner: "o".into(), intent_id: "a".into(), version: 3 }, "VALIDATION", 3));
    replica.written(ticket, Outcome::Stored(8));
    assert_eq!((replica.low_water("INTENT"), replica.state(&Key::new(["o", "a"]))), (4, Some(&8)));
    tell(&mut replica, 4);
    assert!(replica.next_step().is_none(), "it was answered");
}

#[test]
fn what_cannot_be_stored_together_is_decided_again_in_order() {
    let mut replica = narrow();
    replica.decide_together_from(2);
    (1..=3).for_each(|sequence| tell(&mut replica, sequence));
    let (ticket, _) = decision(&mut replica);
    replica.written(ticket, Outcome::Stored(2));
    let (ticket, _) = decision(&mut replica);
    replica.written(ticket, Outcome::Moved(3));
    assert!(replica.next_step().is_none(), "the fact is to be read first");
    replica.fact(stored(&IntentAccepted { owner: "o".into(), intent_id: "a".into(), version: 3 }, "VALIDATION", 3));
    let (ticket, again) = decision(&mut replica);
    assert_eq!((causes(&again), again.expected), (vec![2, 2, 3, 3], 3));
    replica.written(ticket, Outcome::Impossible);
    let (ticket, alone) = decision(&mut replica);
    assert_eq!(causes(&alone), [2, 2], "one by one, to find the one that is impossible");
    replica.written(ticket, Outcome::Impossible);
    let Some(Step::DeadLetter { input, .. }) = replica.next_step() else { panic!("it is the input that is dead") };
    assert_eq!(input.sequence, 2);
}

/// Wants to be asked once, after its first fact.
struct Timed;

impl Decider for Timed {
    const NAME: &'static str = NAME;
    type State = u64;
    type ReadModel = ();
    type Input = Input;
    type Fact = Fact;

    fn initial(&self) -> u64 {
        0
    }

    fn concerns(&self, _: &Input, _: &()) -> Vec<Key> {
        vec![]
    }

    fn decide(&self, key: &Key, _: &u64, _: &(), _: &Envelope<Input>) -> Result<Vec<Fact>, Refusal> {
        let (owner, intent_id) = (key.token(0).to_owned(), key.token(1).to_owned());
        Ok(vec![IntentAccepted { owner, intent_id, version: 2 }.into()])
    }

    fn evolve(&self, facts: u64, _: &Fact, _: Timestamp) -> u64 {
        facts + 1
    }

    fn due(&self, facts: &u64) -> Option<Timestamp> {
        (*facts == 1).then(|| Timestamp::from_millis(10))
    }
}

#[test]
fn who_is_being_read_or_asked_is_still_in_the_saved_index() {
    let key = Key::new(["local", "a"]);
    let due = (Timestamp::from_millis(10), key.clone());
    let mut before = Replica::new(Timed, None);
    before.fact(fact("a", 1));
    let (entries, index) = before.snapshot(10, 0).unwrap();
    let index = index.unwrap();
    assert_eq!(index.due, std::slice::from_ref(&due));

    let mut replica = Replica::new(Timed, Some(index));
    let saved = |replica: &mut Replica<Timed>| replica.snapshot(10, 0).unwrap().1.unwrap().due;
    replica.pass(Timestamp::from_millis(20));
    let Some(Step::Load(loading)) = replica.next_step() else { panic!("it reads who is due") };
    assert_eq!((loading, replica.next_due()), (key.clone(), None));
    assert_eq!(saved(&mut replica), std::slice::from_ref(&due), "it is being read");
    replica.loaded(&key, Some(&entries[0].1)).unwrap();
    replica.pass(Timestamp::from_millis(20));
    let Some(Step::Write { ticket, .. }) = replica.next_step() else { panic!("it asks who is due") };
    assert_eq!(saved(&mut replica), std::slice::from_ref(&due), "the answer is not stored");
    replica.written(ticket, Outcome::Stored(2));
    assert_eq!(saved(&mut replica), []);
    replica.fact(fact("a", 2));
    replica.evict(0, 2);
    assert_eq!(saved(&mut replica), []);
}
