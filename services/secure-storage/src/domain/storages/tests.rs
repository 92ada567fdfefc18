use mesh_proto::{
    EventSet as _, FactSet as _, RefusalCode,
    storage::{
        ConfigureBucket, CreateBucket, DefinePolicy, DeleteBucket, DropPolicy, Goals, RegisterLocation, RequestScrub,
        RetireLocation, TagSet,
    },
};

use super::*;

/// The decider with its read model and its entities.
#[derive(Default)]
struct Scenario {
    world: Known,
    states: BTreeMap<Key, State>,
    asked: u64,
}

impl Scenario {
    fn ask(&mut self, input: impl Into<Input>) -> Fact {
        let input = input.into();
        self.asked += 1;
        let key = Storages.concerns(&input, &self.world).remove(0);
        let state = self.states.get(&key).cloned().unwrap_or_default();
        let (id, command) = (format!("c{}", self.asked), input.any().message());
        let envelope = Envelope {
            trigger: Trigger::Event(input),
            at: Timestamp::from_millis(self.asked as i64),
            id: id.clone(),
            sequence: self.asked,
            body: bytes::Bytes::new(),
        };
        let fact = match Storages.decide(&key, &state, &self.world, &envelope) {
            Ok(mut facts) => facts.remove(0),
            Err(refusal) => Fact::refused(&key.0, &id, command, &refusal).unwrap(),
        };
        self.states.insert(key, Storages.evolve(state, &fact, envelope.at));
        self.world.take(Event::decode(fact.any().message(), &fact.any().body()).unwrap());
        fact
    }

    fn location(&mut self, name: &str, kind: &str) -> Fact {
        let description = Location { kind: kind.into(), url: format!("dir:{name}"), ..Location::default() };
        self.ask(RegisterLocation { owner: "local".into(), location: name.into(), description: Some(description) })
    }

    fn policy(&mut self, name: &str, policy: Policy) -> Fact {
        self.ask(DefinePolicy { owner: "local".into(), policy: name.into(), definition: Some(policy) })
    }

    fn bucket(&mut self, owner: &str, name: &str, policy: &str) -> Fact {
        let [realm, bucket, owner, policy] = [BUCKET_REALM, name, owner, policy].map(Into::into);
        self.ask(CreateBucket { realm, bucket, owner, policy, ..CreateBucket::default() })
    }

    fn with_three() -> Self {
        let mut scenario = Self::default();
        for name in ["a", "b", "c"] {
            assert!(matches!(scenario.location(name, "edge"), Fact::LocationRegistered(_)));
        }
        scenario
    }
}

fn two_and_one() -> Policy {
    Policy {
        edge_devices: ["a", "b", "c"].map(Into::into).into(),
        redundancy: Some(Redundancy { scheme: "RS".into(), redundant_packets: 1 }),
        ..Policy::default()
    }
}

fn refused(fact: &Fact) -> RefusalCode {
    match fact {
        Fact::StorageRefused(m) => {
            assert!(!m.reason.is_empty() && !m.hint.is_empty() && !m.command_id.is_empty());
            m.code()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_used_stays_and_what_does_not_exist_is_not_used() {
    let mut scenario = Scenario::with_three();
    let mut missing = two_and_one();
    missing.edge_devices.push("d".into());
    assert_eq!(refused(&scenario.policy("p", missing)), RefusalCode::NotFound);
    assert!(matches!(scenario.policy("p", two_and_one()), Fact::PolicyDefined(p) if p.version == 1));
    assert_eq!(refused(&scenario.bucket("local", "photos", "q")), RefusalCode::NotFound);
    assert!(matches!(scenario.bucket("local", "photos", "p"), Fact::BucketCreated(b) if b.epoch == 1));
    let retire = RetireLocation { owner: "local".into(), location: "a".into() };
    assert_eq!(refused(&scenario.ask(retire.clone())), RefusalCode::InUse);
    let drop = DropPolicy { owner: "local".into(), policy: "p".into() };
    assert_eq!(refused(&scenario.ask(drop.clone())), RefusalCode::InUse);
    let delete =
        |owner: &str| DeleteBucket { realm: BUCKET_REALM.into(), bucket: "photos".into(), owner: owner.into() };
    assert_eq!(refused(&scenario.ask(delete("mallory"))), RefusalCode::NotFound);
    assert!(matches!(scenario.ask(delete("local")), Fact::BucketDeleted(_)));
    assert!(matches!(scenario.ask(drop), Fact::PolicyDropped(_)));
    assert!(matches!(scenario.ask(retire), Fact::LocationRetired(_)));
}

#[test]
fn a_bucket_name_has_one_owner_and_each_life_of_it_one_epoch() {
    let mut scenario = Scenario::with_three();
    scenario.policy("p", two_and_one());
    scenario.bucket("local", "photos", "p");
    assert_eq!(refused(&scenario.bucket("local", "photos", "p")), RefusalCode::AlreadyOwned);
    assert_eq!(refused(&scenario.bucket("other", "photos", "p")), RefusalCode::AlreadyExists);
    scenario.ask(DeleteBucket { realm: BUCKET_REALM.into(), bucket: "photos".into(), owner: "local".into() });
    assert!(matches!(scenario.bucket("local", "photos", "p"), Fact::BucketCreated(b) if b.epoch == 2));
    let [realm, bucket, owner, policy] = ["elsewhere", "photos", "local", "p"].map(Into::into);
    assert_eq!(
        refused(&scenario.ask(CreateBucket { realm, bucket, owner, policy, ..CreateBucket::default() })),
        RefusalCode::Invalid
    );
}

#[test]
fn a_policy_of_goals_gets_locations_with_reasons() {
    let mut scenario = Scenario::with_three();
    scenario.location("cloud", "cloud");
    let goals = Some(Goals { latency: 1.0, ..Goals::default() });
    let Fact::PolicyDefined(defined) = scenario.policy("p", Policy { goals, ..Policy::default() }) else { panic!() };
    let policy = defined.definition.unwrap();
    assert!(policy.edge_devices.len() + policy.backends.len() >= 3);
    assert_eq!(defined.candidates.len(), 4);
    assert!(defined.reason.contains("redundant"));
    let one_parity = Redundancy { scheme: "RLNC".into(), redundant_packets: 1 };
    let one_parity = scenario.policy("xor", Policy { redundancy: Some(one_parity), ..two_and_one() });
    assert!(matches!(one_parity, Fact::PolicyDefined(p) if p.reason.contains("an exclusive or, the same code as RS")));
    let named = scenario.policy("q", Policy { name: "r".into(), ..two_and_one() });
    assert_eq!(refused(&named), RefusalCode::Invalid);
    let wrong = Policy { edge_devices: ["a", "b", "cloud"].map(Into::into).into(), ..two_and_one() };
    assert_eq!(refused(&scenario.policy("q", wrong)), RefusalCode::Invalid);
}

#[test]
fn a_replaced_location_is_of_a_new_generation_and_keeps_its_number() {
    let mut scenario = Scenario::with_three();
    let (Fact::LocationRegistered(first), Fact::LocationRegistered(second)) =
        (scenario.location("z", "edge"), scenario.location("z", "edge"))
    else {
        panic!()
    };
    assert_eq!((first.generation, second.generation), (1, 2));
    assert_eq!(first.description.as_ref().unwrap().id, second.description.unwrap().id);
    assert!(first.description.unwrap().id < 1 << 53);
}

#[test]
fn a_scrub_is_requested_once() {
    let mut scenario = Scenario::default();
    let scrub = RequestScrub { owner: "local".into(), scrub: "s".into(), repair: true, rewrap: false };
    assert!(matches!(scenario.ask(scrub.clone()), Fact::ScrubWanted(s) if s.repair));
    assert_eq!(refused(&scenario.ask(scrub)), RefusalCode::AlreadyExists);
}

fn configured(scenario: &mut Scenario, owner: &str, settings: BucketSettings) -> Fact {
    let [realm, bucket, owner] = [BUCKET_REALM, "b", owner].map(Into::into);
    scenario.ask(ConfigureBucket { realm, bucket, owner, settings: Some(settings) })
}

#[test]
fn settings_of_a_bucket_are_its_owners_and_change_one_at_a_time() {
    let mut scenario = Scenario::with_three();
    scenario.policy("p", Policy { edge_devices: vec!["a".into(), "b".into()], ..Policy::default() });
    scenario.bucket("local", "b", "p");
    let versioning = |word: &str| BucketSettings { versioning: word.into(), ..BucketSettings::default() };
    assert_eq!(refused(&configured(&mut scenario, "other", versioning("Enabled"))), RefusalCode::NotFound);
    assert_eq!(refused(&configured(&mut scenario, "local", versioning("On"))), RefusalCode::Invalid);
    let many = vec![Tag::default(); TAGS_MAX + 1];
    let many = BucketSettings { tags: Some(TagSet { tags: many }), ..BucketSettings::default() };
    assert_eq!(refused(&configured(&mut scenario, "local", many)), RefusalCode::Invalid);
    assert_eq!(scenario.world.buckets["b"].versioning, Versioning::Off);
    assert!(matches!(configured(&mut scenario, "local", versioning("Enabled")), Fact::BucketConfigured(_)));
    let tags = Some(TagSet { tags: vec![Tag { key: "a".into(), value: "b".into() }] });
    configured(&mut scenario, "local", BucketSettings { tags, ..BucketSettings::default() });
    let bucket = &scenario.world.buckets["b"];
    assert_eq!((bucket.versioning, bucket.tags.len()), (Versioning::Enabled, 1));
    configured(&mut scenario, "local", BucketSettings { tags: Some(TagSet::default()), ..versioning("Suspended") });
    let bucket = &scenario.world.buckets["b"];
    assert_eq!((bucket.versioning, bucket.tags.len()), (Versioning::Suspended, 0));
}

#[test]
fn a_bucket_may_use_the_policy_of_another_owner_who_then_keeps_it() {
    let mut scenario = Scenario::with_three();
    scenario.policy("p", Policy { edge_devices: vec!["a".into(), "b".into()], ..Policy::default() });
    assert_eq!(refused(&scenario.bucket("new", "b", "p")), RefusalCode::NotFound);
    let [realm, bucket, owner, policy, policy_owner] = [BUCKET_REALM, "b", "new", "p", "local"].map(Into::into);
    let fact = scenario.ask(CreateBucket { realm, bucket, owner, policy, policy_owner });
    assert!(matches!(fact, Fact::BucketCreated(_)));
    assert_eq!((scenario.world.buckets["b"].owner.as_str(), scenario.world.buckets["b"].provider()), ("new", "local"));
    let drop = DropPolicy { owner: "local".into(), policy: "p".into() };
    assert_eq!(refused(&scenario.ask(drop)), RefusalCode::InUse);
}
