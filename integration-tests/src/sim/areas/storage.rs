//! Storage: policies, locations, buckets and scrubs of two owners that get in each other's way.
//!
//! A bucket's name belongs to one owner at a time, generations and versions rise by one, what is removed was there, and
//! a policy names locations that its decision knew.

use std::collections::{BTreeMap, BTreeSet};

use mesh_proto::{
    deciders::storages::Fact,
    storage::{
        BucketSettings, ConfigureBucket, CreateBucket, DefinePolicy, DeleteBucket, DropPolicy, Goals, Location, Policy,
        Redundancy, RegisterLocation, RequestScrub, RetireLocation,
    },
};
use secure_storage::domain::storages::{BUCKET_REALM, Storages};

use super::{Area, Asker, fact, wrong};
use crate::sim::{bus::MemoryBus, rng::Rng};

const OWNERS: [&str; 2] = ["local", "other"];
const LOCATIONS: [&str; 3] = ["near", "middle", "far"];
const POLICIES: [&str; 2] = ["quick", "safe"];

/// The decider.
pub fn decider() -> Storages {
    Storages
}

/// Those who arrange storage.
pub struct Storage;

fn policy(rng: &mut Rng) -> Policy {
    let some = |rng: &mut Rng| LOCATIONS.into_iter().filter(|_| rng.percent(60)).map(str::to_owned).collect::<Vec<_>>();
    let redundancy = Redundancy { scheme: (*rng.pick(&["RS", "RS", "MAGIC"])).into(), redundant_packets: 1 };
    let mut policy = Policy { redundancy: Some(redundancy), ..Policy::default() };
    match rng.below(5) {
        0 => policy.goals = Some(Goals { locations_min: 2, ..Goals::default() }),
        1 => policy.edge_devices = some(rng),
        _ => policy.backends = some(rng),
    }
    policy
}

impl Area for Storage {
    fn name(&self) -> &'static str {
        "storage"
    }

    fn happen(&mut self, bus: &mut MemoryBus, rng: &mut Rng, asker: &mut Asker) {
        let owner = (*rng.pick(&OWNERS)).to_owned();
        let location = (*rng.pick(&LOCATIONS)).to_owned();
        let policy_ = (*rng.pick(&POLICIES)).to_owned();
        let realm = if rng.percent(5) { owner.clone() } else { BUCKET_REALM.to_owned() };
        let bucket = (*rng.pick(&["films", "books"])).to_owned();
        match rng.below(15) {
            0..=3 => {
                let kind = (*rng.pick(&["cloud", "cloud", "cloud", "edge", "sky"])).to_owned();
                let description = Location { kind, url: format!("dir:{location}"), ..Location::default() };
                asker.ask(bus, rng, &RegisterLocation { owner, location, description: Some(description) });
            }
            4 => {
                asker.ask(bus, rng, &RetireLocation { owner, location });
            }
            5..=7 => {
                let definition = Some(policy(rng));
                asker.ask(bus, rng, &DefinePolicy { owner, policy: policy_, definition });
            }
            8 => {
                asker.ask(bus, rng, &DropPolicy { owner, policy: policy_ });
            }
            9..=11 => {
                let bucket = CreateBucket { realm, bucket, owner, policy: policy_, ..CreateBucket::default() };
                asker.ask(bus, rng, &bucket);
            }
            14 => {
                let versioning = (*rng.pick(&["Enabled", "Suspended", "On"])).to_owned();
                let settings = Some(BucketSettings { versioning, ..BucketSettings::default() });
                asker.ask(bus, rng, &ConfigureBucket { realm, bucket, owner, settings });
            }
            12 => {
                asker.ask(bus, rng, &DeleteBucket { realm, bucket, owner });
            }
            _ => {
                let scrub = (*rng.pick(&["s-1", "s-2", "s-3"])).to_owned();
                asker.ask(bus, rng, &RequestScrub { owner, scrub, repair: true, rewrap: false });
            }
        }
    }

    fn check(&self, bus: &MemoryBus) -> Result<(), String> {
        let mut generations: BTreeMap<(String, String), u64> = BTreeMap::new();
        let mut versions: BTreeMap<(String, String), u64> = BTreeMap::new();
        let (mut locations, mut policies, mut scrubs) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
        let mut buckets: BTreeMap<String, String> = BTreeMap::new();
        let mut epochs: BTreeMap<String, u64> = BTreeMap::new();
        // The kind of every location after each fact, to be looked at as a decision saw it.
        let mut then: Vec<BTreeMap<(String, String), String>> = vec![BTreeMap::new()];
        for stored in bus.read("STORAGE") {
            match fact::<Fact>(stored)? {
                Fact::LocationRegistered(m) => {
                    let key = (m.owner, m.location);
                    let generation = generations.entry(key.clone()).or_default();
                    *generation += 1;
                    if m.generation != *generation {
                        return wrong(stored, format!("generation {} instead of {generation}", m.generation));
                    }
                    locations.insert(key, m.description.unwrap_or_default().kind);
                }
                Fact::LocationRetired(m) => {
                    if locations.remove(&(m.owner, m.location)).is_none() {
                        return wrong(stored, "no such location was there");
                    }
                }
                Fact::PolicyDefined(m) => {
                    let version = versions.entry((m.owner.clone(), m.policy.clone())).or_default();
                    *version += 1;
                    if m.version != *version {
                        return wrong(stored, format!("version {} instead of {version}", m.version));
                    }
                    let known = stored.world.iter().find(|(stream, _)| stream == "STORAGE").map_or(0, |(_, end)| *end);
                    let Some(known) = then.get(known as usize) else {
                        return wrong(stored, "it knew what was to come");
                    };
                    let definition = m.definition.unwrap_or_default();
                    for (names, kind) in [(definition.edge_devices, "edge"), (definition.backends, "cloud")] {
                        for name in names {
                            if known.get(&(m.owner.clone(), name.clone())).is_none_or(|found| found != kind) {
                                return wrong(stored, format!("{name} was not a known {kind} location"));
                            }
                        }
                    }
                    policies.insert((m.owner, m.policy));
                }
                Fact::PolicyDropped(m) => {
                    if !policies.remove(&(m.owner, m.policy)) {
                        return wrong(stored, "no such policy was there");
                    }
                }
                Fact::BucketCreated(m) => {
                    let epoch = epochs.entry(m.bucket.clone()).or_default();
                    *epoch += 1;
                    if m.epoch != *epoch {
                        return wrong(stored, format!("epoch {} instead of {epoch}", m.epoch));
                    }
                    if let Some(owner) = buckets.insert(m.bucket, m.owner) {
                        return wrong(stored, format!("the bucket was {owner}'s"));
                    }
                }
                Fact::BucketConfigured(m) => {
                    if buckets.get(&m.bucket) != Some(&m.owner) {
                        return wrong(stored, "the bucket was not its owner's");
                    }
                    if m.settings.is_some_and(|settings| settings.versioning == "On") {
                        return wrong(stored, "there is no such setting");
                    }
                }
                Fact::BucketDeleted(m) => {
                    if buckets.remove(&m.bucket) != Some(m.owner) {
                        return wrong(stored, "the bucket was not its owner's");
                    }
                }
                Fact::ScrubWanted(m) => {
                    if !scrubs.insert((m.owner, m.scrub)) {
                        return wrong(stored, "the scrub was asked for before");
                    }
                }
                Fact::StorageRefused(_) => {}
            }
            then.push(locations.clone());
        }
        Ok(())
    }
}
