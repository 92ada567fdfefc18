//! What a decider has saved, read by a view of the same service, on a real nats-server: without a decider that runs.

#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "a test starts, waits for and measures real processes")]

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use mesh_core::{
    Decider, Derived, Envelope, Key, Outgoing, Projector, SharesFold, Stored,
    replica::{Replica, Step, snapshot_key},
};
use mesh_kit::{Mesh, Sources};
use mesh_proto::{
    Refusal, Timestamp,
    deciders::verdicts::{Fact, Input, NAME},
    derived_id,
    validation::IntentAccepted,
};
use mesh_test::TestBus;

/// More than two pages of the bucket.
const ENTITIES: usize = 2_100;
/// Facts of each entity.
const FACTS: u64 = 2;

/// Counts the facts of each intent.
#[derive(Clone, Copy)]
struct Counts;

impl Decider for Counts {
    const NAME: &'static str = NAME;
    type State = u64;
    type ReadModel = ();
    type Input = Input;
    type Fact = Fact;

    fn initial(&self) -> u64 {
        0
    }

    fn concerns(&self, _: &Input, (): &()) -> Vec<Key> {
        vec![]
    }

    fn decide(&self, _: &Key, _: &u64, (): &(), _: &Envelope<Input>) -> Result<Vec<Fact>, Refusal> {
        Ok(vec![])
    }

    fn evolve(&self, count: u64, _: &Fact, _: Timestamp) -> u64 {
        count + 1
    }

    fn due(&self, _: &u64) -> Option<Timestamp> {
        None
    }
}

fn fact(entity: usize, sequence: u64) -> Stored {
    let fact = IntentAccepted { owner: "local".into(), intent_id: format!("i-{entity}"), version: 1 };
    mesh_test::stored(&fact, sequence, Timestamp::from_millis(1_790_000_000_000))
}

/// Hands facts to a replica that has saved nothing yet.
fn fold(replica: &mut Replica<Counts>, facts: impl IntoIterator<Item = Stored>) {
    for fact in facts {
        replica.fact(fact);
        while let Some(step) = replica.next_step() {
            let Step::Load(key) = step else { panic!("nothing is asked of it") };
            replica.loaded(&key, None).unwrap();
        }
    }
}

/// What a view of the service is given: states and last sequences by key, how often something was given, and the
/// position.
async fn saved(mesh: &Mesh) -> anyhow::Result<(BTreeMap<Key, (u64, u64)>, usize, u64)> {
    let (mut given, mut times) = (BTreeMap::new(), 0);
    let position = mesh
        .saved::<Counts>(|key, saved| {
            times += 1;
            given.insert(key, (saved.state, saved.last));
        })
        .await?;
    Ok((given, times, position))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_is_given_every_saved_entity_once_and_reads_on_from_there() {
    let Some(test_bus) = TestBus::start("mesh-kit, saved entities").await else { return };
    let nothing = async |_: Mesh, (): ()| Ok(());
    let service = mesh_kit::join("validator", test_bus.settings("validator"), (), nothing).await.unwrap();
    let mesh = service.mesh();
    assert_eq!(saved(mesh).await.unwrap(), (BTreeMap::new(), 0, 0), "nothing was saved yet");

    // As the decider's shell saves: the entities first, then the index that covers them.
    let mut replica = Replica::new(Counts, None);
    let each = |round: u64| (0..ENTITIES).map(move |n| fact(n, round * ENTITIES as u64 + n as u64 + 1));
    fold(&mut replica, (0..FACTS).flat_map(each));
    let (entries, index) = replica.snapshot(usize::MAX, 0).unwrap();
    let index = index.unwrap();
    assert_eq!(index.position, FACTS * ENTITIES as u64);
    let bucket = mesh.bus().bucket(&format!("snapshot-{NAME}"));
    let bytes = |entries: Vec<(String, Vec<u8>)>| entries.into_iter().map(|(key, value)| (key, value.into())).collect();
    bucket.put_all(bytes(entries)).await.unwrap();
    assert_eq!(saved(mesh).await.unwrap().1, 0, "without an index nothing counts as saved");
    bucket.put_all(vec![("index".to_owned(), serde_json::to_vec(&index).unwrap().into())]).await.unwrap();

    let (given, times, position) = saved(mesh).await.unwrap();
    assert_eq!((given.len(), times, position), (ENTITIES, ENTITIES, index.position));
    for n in 0..ENTITIES {
        let last = (FACTS - 1) * ENTITIES as u64 + n as u64 + 1;
        assert_eq!(given[&Key::new(["local", &format!("i-{n}")])], (FACTS, last), "i-{n}");
    }

    // An entity that is saved after the index is newer than it: the view passes over the facts that it has.
    let newer = Key::new(["local", "i-7"]);
    fold(&mut replica, [fact(7, index.position + 1)]);
    let (entries, _) = replica.snapshot(usize::MAX, index.position).unwrap();
    assert_eq!(entries.len(), 1);
    bucket.put_all(bytes(entries)).await.unwrap();
    // And one that was removed from the bucket is gone.
    let removed = Key::new(["local", "i-8"]);
    bucket.delete(&snapshot_key(&removed)).await.unwrap();
    let (given, times, position) = saved(mesh).await.unwrap();
    assert_eq!((given.len(), times, position), (ENTITIES - 1, ENTITIES - 1, index.position));
    assert_eq!((given[&newer], given.get(&removed)), ((FACTS + 1, position + 1), None));

    // An entity that this version cannot read is an error that names it.
    bucket.put_all(vec![(snapshot_key(&removed), "{}".into())]).await.unwrap();
    let error = saved(mesh).await.unwrap_err();
    assert!(format!("{error:#}").contains("e.local.i-8"), "{error:#}");
    service.stop().await;
}

/// A view that shares the fold of [`Counts`], and was restored from all of it.
struct Restored;

impl Projector for Restored {
    fn apply(&mut self, _: &Stored) -> Vec<Derived> {
        vec![]
    }
}

impl SharesFold<u64> for Restored {
    fn folded(&mut self, fact: &Stored, _: Option<&Arc<u64>>) -> Vec<Derived> {
        panic!("{} was in what it was restored from", fact.sequence)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_restored_from_everything_waits_for_nothing() {
    let Some(test_bus) = TestBus::start("mesh-kit, everything saved").await else { return };
    let start = async |mesh: Mesh, (): ()| {
        let accepted = |n: u64| {
            let fact = IntentAccepted { owner: "local".into(), intent_id: format!("i-{n}"), version: 1 };
            Outgoing::new(&fact, derived_id(&["saved test", &n.to_string()]), Timestamp::default()).unwrap()
        };
        mesh.bus().publish_many((0..3).map(accepted).collect()).await?;
        let end = mesh.bus().log("VALIDATION").last_sequence().await?;
        anyhow::ensure!(end == 3, "{end} facts are stored");
        // As after a restart of a mesh that was quiet: nothing was decided since the last snapshot.
        let mut replica = Replica::new(Counts, None);
        fold(&mut replica, (1..=end).map(|sequence| fact(sequence as usize - 1, sequence)));
        let (entries, index) = replica.snapshot(usize::MAX, 0).unwrap();
        let bucket = mesh.bus().bucket(&format!("snapshot-{NAME}"));
        bucket.put_all(entries.into_iter().map(|(key, value)| (key, value.into())).collect()).await?;
        bucket.put_all(vec![("index".to_owned(), serde_json::to_vec(&index)?.into())]).await?;
        let (_, view) = mesh.decide_and_show(Counts, "restored", Restored, end + 1, Sources::default()).await?;
        view.at_least("VALIDATION", end, Duration::ZERO).await?;
        Ok(())
    };
    let started = mesh_kit::join("validator", test_bus.settings("validator"), (), start);
    let service = mesh_test::soon("the view is caught up", started).await.unwrap();
    service.stop().await;
}
