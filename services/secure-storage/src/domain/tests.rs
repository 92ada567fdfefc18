use mesh_proto::{
    EventSet as _, FactSet as _,
    storage::{
        CreateBucket, DefinePolicy, DeleteBucket, DropPolicy, Goals, RegisterLocation, RequestScrub, RetireLocation,
    },
};

use super::*;

/// The decider with its World and its entities.
#[derive(Default)]
struct Mesh {
    world: Known,
    states: BTreeMap<Key, State>,
    asked: u64,
}

impl Mesh {
    fn tell(&mut self, input: impl Into<Input>) -> Fact {
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
        self.tell(RegisterLocation { owner: "local".into(), location: name.into(), description: Some(description) })
    }

    fn policy(&mut self, name: &str, policy: Policy) -> Fact {
        self.tell(DefinePolicy { owner: "local".into(), policy: name.into(), definition: Some(policy) })
    }

    fn bucket(&mut self, owner: &str, name: &str, policy: &str) -> Fact {
        let [realm, bucket, owner, policy] = [BUCKET_REALM, name, owner, policy].map(Into::into);
        self.tell(CreateBucket { realm, bucket, owner, policy })
    }

    fn with_three() -> Self {
        let mut mesh = Self::default();
        for name in ["a", "b", "c"] {
            assert!(matches!(mesh.location(name, "edge"), Fact::LocationRegistered(_)));
        }
        mesh
    }
}

fn two_and_one() -> Policy {
    Policy {
        edge_devices: ["a", "b", "c"].map(Into::into).into(),
        redundancy: Some(Redundancy { scheme: "RS".into(), redundant_packets: 1 }),
        ..Policy::default()
    }
}

fn refused(fact: &Fact) -> &str {
    match fact {
        Fact::StorageRefused(m) => {
            assert!(!m.hint.is_empty() && !m.command_id.is_empty());
            &m.reason
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_in_use_is_not_removed_and_what_is_not_there_is_not_used() {
    let mut mesh = Mesh::with_three();
    let mut missing = two_and_one();
    missing.edge_devices.push("d".into());
    assert!(refused(&mesh.policy("p", missing)).contains("no location d"));
    assert!(matches!(mesh.policy("p", two_and_one()), Fact::PolicyDefined(p) if p.version == 1));
    assert!(refused(&mesh.bucket("local", "photos", "q")).contains("no storage policy"));
    assert!(matches!(mesh.bucket("local", "photos", "p"), Fact::BucketCreated(b) if b.epoch == 1));
    let retire = RetireLocation { owner: "local".into(), location: "a".into() };
    assert!(refused(&mesh.tell(retire.clone())).contains("policy p"));
    let drop = DropPolicy { owner: "local".into(), policy: "p".into() };
    assert!(refused(&mesh.tell(drop.clone())).contains("bucket photos"));
    let delete =
        |owner: &str| DeleteBucket { realm: BUCKET_REALM.into(), bucket: "photos".into(), owner: owner.into() };
    assert!(refused(&mesh.tell(delete("mallory"))).contains("no bucket"));
    assert!(matches!(mesh.tell(delete("local")), Fact::BucketDeleted(_)));
    assert!(matches!(mesh.tell(drop), Fact::PolicyDropped(_)));
    assert!(matches!(mesh.tell(retire), Fact::LocationRetired(_)));
}

#[test]
fn a_bucket_name_belongs_to_one_owner_and_each_life_of_it_to_one_epoch() {
    let mut mesh = Mesh::with_three();
    mesh.policy("p", two_and_one());
    mesh.bucket("local", "photos", "p");
    assert!(refused(&mesh.bucket("local", "photos", "p")).contains("yours"));
    assert!(refused(&mesh.bucket("other", "photos", "p")).contains("taken"));
    mesh.tell(DeleteBucket { realm: BUCKET_REALM.into(), bucket: "photos".into(), owner: "local".into() });
    assert!(matches!(mesh.bucket("local", "photos", "p"), Fact::BucketCreated(b) if b.epoch == 2));
    let [realm, bucket, owner, policy] = ["elsewhere", "photos", "local", "p"].map(Into::into);
    assert!(refused(&mesh.tell(CreateBucket { realm, bucket, owner, policy })).contains("realm"));
}

#[test]
fn a_policy_of_goals_gets_locations_and_says_why() {
    let mut mesh = Mesh::with_three();
    mesh.location("cloud", "cloud");
    let goals = Some(Goals { latency: 1.0, ..Goals::default() });
    let Fact::PolicyDefined(defined) = mesh.policy("p", Policy { goals, ..Policy::default() }) else { panic!() };
    let policy = defined.definition.unwrap();
    assert!(policy.edge_devices.len() + policy.backends.len() >= 3);
    assert_eq!(defined.candidates.len(), 4);
    assert!(defined.reason.contains("redundant"));
    let named = mesh.policy("q", Policy { name: "r".into(), ..two_and_one() });
    assert!(refused(&named).contains("called"));
    let wrong = Policy { edge_devices: ["a", "b", "cloud"].map(Into::into).into(), ..two_and_one() };
    assert!(refused(&mesh.policy("q", wrong)).contains("kind cloud"));
}

#[test]
fn a_replaced_location_is_of_a_new_generation_and_keeps_its_number() {
    let mut mesh = Mesh::with_three();
    let (Fact::LocationRegistered(first), Fact::LocationRegistered(second)) =
        (mesh.location("z", "edge"), mesh.location("z", "edge"))
    else {
        panic!()
    };
    assert_eq!((first.generation, second.generation), (1, 2));
    assert_eq!(first.description.as_ref().unwrap().id, second.description.unwrap().id);
    assert!(first.description.unwrap().id < 1 << 53);
}

#[test]
fn a_scrub_is_asked_for_once() {
    let mut mesh = Mesh::default();
    let scrub = RequestScrub { owner: "local".into(), scrub: "s".into(), repair: true, rewrap: false };
    assert!(matches!(mesh.tell(scrub.clone()), Fact::ScrubWanted(s) if s.repair));
    assert!(refused(&mesh.tell(scrub)).contains("already"));
}
