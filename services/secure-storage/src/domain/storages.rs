//! The decisions about policies, locations, buckets, and requests for scrubs.
//!
//! An entity is a name of an owner (`[owner, name]`), which may name a policy, a location and a scrub at once; or a
//! bucket (`["bucket", name]`), unique over all owners. Exactly one fact answers each command.
//!
//! The read model is the same facts over all entities: a policy is checked against the registered locations, and
//! nothing is removed that something else still names. It lags a little. What slips through fails later, where it
//! matters: a put under a policy with a missing location is refused.

use std::collections::BTreeMap;

use mesh_core::{Decider, Envelope, Key, ReadModel, Stored, Trigger};
use mesh_proto::{
    Refusal, Timestamp,
    deciders::storages::{Fact, Input, NAME},
    deciders::stream_storage::Event,
    storage::{
        BucketConfigured, BucketCreated, BucketDeleted, BucketSettings, CorsRule, Location, LocationRegistered,
        LocationRetired, Policy, PolicyDefined, PolicyDropped, Redundancy, ScrubWanted, Tag,
    },
};
use serde::{Deserialize, Serialize};

use super::{choose, event, policy};

/// The realm of bucket names.
pub const BUCKET_REALM: &str = "bucket";

/// Policies or locations of one owner at most.
pub const OF_OWNER_MAX: usize = 1_000;

/// Tags of one bucket at most, as in S3.
pub const TAGS_MAX: usize = 50;

/// CORS rules of one bucket at most, as in S3.
pub const CORS_RULES_MAX: usize = 100;

/// The decider of names.
#[derive(Clone, Copy, Debug, Default)]
pub struct Storages;

/// One name, folded from its facts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    policy: Option<Policy>,
    policy_version: u64,
    location: Option<Location>,
    generation: u64,
    bucket: Option<Bucket>,
    epoch: u64,
    scrub: bool,
}

/// Are versions kept that a put replaces or a delete hides?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Versioning {
    /// They never were.
    #[default]
    Off,
    /// They are.
    Enabled,
    /// Those that there are stay; new ones replace each other.
    Suspended,
}

impl Versioning {
    /// The word that S3 has for it; none while versions were never kept.
    pub fn word(self) -> Option<&'static str> {
        match self {
            Self::Off => None,
            Self::Enabled => Some("Enabled"),
            Self::Suspended => Some("Suspended"),
        }
    }

    /// By its word.
    pub fn named(word: &str) -> Option<Self> {
        [Self::Enabled, Self::Suspended].into_iter().find(|versioning| versioning.word() == Some(word))
    }
}

/// A bucket.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Bucket {
    /// Its owner.
    pub owner: String,
    /// Its policy.
    pub policy: String,
    /// Whose policy and locations these are.
    #[serde(default)]
    pub policy_owner: String,
    /// How many buckets of this name there were, this one included.
    pub epoch: u64,
    /// Are versions kept?
    #[serde(default)]
    pub versioning: Versioning,
    /// Its tags.
    #[serde(default)]
    pub tags: Vec<Tag>,
    /// Which pages of other origins may send requests.
    #[serde(default)]
    pub cors: Vec<CorsRule>,
}

impl Bucket {
    fn created(m: &BucketCreated) -> Self {
        let policy_owner = if m.policy_owner.is_empty() { &m.owner } else { &m.policy_owner };
        Self {
            owner: m.owner.clone(),
            policy: m.policy.clone(),
            policy_owner: policy_owner.clone(),
            epoch: m.epoch,
            ..Self::default()
        }
    }

    /// Whose policy and locations it uses. What an earlier release saved names nobody.
    pub fn provider(&self) -> &str {
        if self.policy_owner.is_empty() { &self.owner } else { &self.policy_owner }
    }

    fn configure(&mut self, settings: &BucketSettings) {
        if let Some(versioning) = Versioning::named(&settings.versioning) {
            self.versioning = versioning;
        }
        if let Some(tags) = &settings.tags {
            self.tags.clone_from(&tags.tags);
        }
        if let Some(cors) = &settings.cors {
            self.cors.clone_from(&cors.rules);
        }
    }
}

/// All policies, locations, buckets and requested scrubs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Known {
    /// By owner and name.
    pub policies: BTreeMap<(String, String), PolicyDefined>,
    /// By owner and name, with the generation.
    pub locations: BTreeMap<(String, String), (Location, u64)>,
    /// By name, with `.` as `_`.
    pub buckets: BTreeMap<String, Bucket>,
    /// Scrubs that were requested.
    pub scrubs: BTreeMap<(String, String), ScrubWanted>,
}

fn pair(owner: &str, name: &str) -> (String, String) {
    (owner.to_owned(), name.to_owned())
}

impl Known {
    /// An owner's locations.
    pub fn locations_of(&self, owner: &str) -> BTreeMap<String, Location> {
        let of_owner = self.locations.range(pair(owner, "")..).take_while(|((o, _), _)| o == owner);
        of_owner.map(|((_, name), (location, _))| (name.clone(), location.clone())).collect()
    }

    /// Takes in a fact of `STORAGE`.
    pub fn take(&mut self, event: Event) {
        match event {
            Event::PolicyDefined(m) => {
                self.policies.insert(pair(&m.owner, &m.policy), m);
            }
            Event::PolicyDropped(m) => {
                self.policies.remove(&pair(&m.owner, &m.policy));
            }
            Event::LocationRegistered(m) => {
                let at = pair(&m.owner, &m.location);
                self.locations.insert(at, (m.description.unwrap_or_default(), m.generation));
            }
            Event::LocationRetired(m) => {
                self.locations.remove(&pair(&m.owner, &m.location));
            }
            Event::BucketCreated(m) => {
                let bucket = Bucket::created(&m);
                self.buckets.insert(m.bucket, bucket);
            }
            Event::BucketConfigured(m) => {
                if let (Some(bucket), Some(settings)) = (self.buckets.get_mut(&m.bucket), &m.settings) {
                    bucket.configure(settings);
                }
            }
            Event::BucketDeleted(m) => {
                self.buckets.remove(&m.bucket);
            }
            Event::ScrubWanted(m) => {
                self.scrubs.insert(pair(&m.owner, &m.scrub), m);
            }
            Event::StorageRefused(_) => {}
        }
    }
}

impl ReadModel for Known {
    fn apply(&mut self, fact: &Stored) {
        if let Some(event) = event::<Event>(fact) {
            self.take(event);
        }
    }
}

fn refuse<T>(of: impl FnOnce(String, String) -> Refusal, reason: impl Into<String>, hint: &str) -> Result<T, Refusal> {
    Err(of(reason.into(), hint.into()))
}

impl Decider for Storages {
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
            Input::DefinePolicy(m) => Key::new([&m.owner, &m.policy]),
            Input::DropPolicy(m) => Key::new([&m.owner, &m.policy]),
            Input::RegisterLocation(m) => Key::new([&m.owner, &m.location]),
            Input::RetireLocation(m) => Key::new([&m.owner, &m.location]),
            Input::CreateBucket(m) => Key::new([&m.realm, &m.bucket]),
            Input::ConfigureBucket(m) => Key::new([&m.realm, &m.bucket]),
            Input::DeleteBucket(m) => Key::new([&m.realm, &m.bucket]),
            Input::RequestScrub(m) => Key::new([&m.owner, &m.scrub]),
        }]
    }

    fn decide(
        &self,
        key: &Key,
        state: &State,
        world: &Known,
        envelope: &Envelope<Input>,
    ) -> Result<Vec<Fact>, Refusal> {
        let Trigger::Event(input) = &envelope.trigger else { return Ok(vec![]) };
        let (owner, name, command_id) = (key.token(0).to_owned(), key.token(1).to_owned(), envelope.id.clone());
        let fact: Fact = match input {
            Input::DefinePolicy(m) => {
                let definition = m.definition.clone().unwrap_or_default();
                let policy = define(&owner, &name, definition, state, world)?;
                PolicyDefined { owner, policy: name, command_id, ..policy }.into()
            }
            Input::DropPolicy(_) => {
                if state.policy.is_none() {
                    return refuse(
                        Refusal::not_found,
                        format!("policy {name} does not exist"),
                        "list the policies with `continuum storage policy list`",
                    );
                }
                let user = world.buckets.iter().find(|(_, b)| b.provider() == owner && b.policy == name);
                if let Some((bucket, _)) = user {
                    return refuse(
                        Refusal::in_use,
                        format!("bucket {bucket} uses policy {name}"),
                        "delete the bucket first",
                    );
                }
                PolicyDropped { owner, policy: name, command_id }.into()
            }
            Input::RegisterLocation(m) => {
                let mut description = m.description.clone().unwrap_or_default();
                if !description.name.is_empty() && description.name != name {
                    return refuse(
                        Refusal::invalid,
                        format!("the command names the location {name}, its description {}", description.name),
                        "use one name in both, or leave it out of the description",
                    );
                }
                policy::check_location(&description)?;
                if state.location.is_none() && world.locations_of(&owner).len() >= OF_OWNER_MAX {
                    return refuse(
                        Refusal::exhausted,
                        format!("the owner has {OF_OWNER_MAX} locations, the maximum"),
                        "retire a location first",
                    );
                }
                description.name = name.clone();
                if description.id == 0 {
                    description.id = number(&owner, &name);
                }
                let generation = state.generation + 1;
                LocationRegistered { owner, location: name, description: Some(description), generation, command_id }
                    .into()
            }
            Input::RetireLocation(_) => {
                if state.location.is_none() {
                    return refuse(
                        Refusal::not_found,
                        format!("location {name} does not exist"),
                        "list the locations with `continuum storage location list`",
                    );
                }
                let names = |p: &Policy| p.edge_devices.iter().chain(&p.backends).any(|l| *l == name);
                let user =
                    world.policies.values().find(|p| p.owner == owner && p.definition.as_ref().is_some_and(names));
                if let Some(policy) = user {
                    let reason = format!("policy {} uses location {name}", policy.policy);
                    return refuse(
                        Refusal::in_use,
                        reason,
                        "define the policy without the location first, then run `continuum storage scrub --repair`",
                    );
                }
                LocationRetired { owner, location: name, command_id }.into()
            }
            Input::CreateBucket(m) => {
                if owner != BUCKET_REALM {
                    return refuse(
                        Refusal::invalid,
                        format!("{owner} is not the realm of buckets"),
                        "use the realm `bucket`",
                    );
                }
                if let Some(bucket) = &state.bucket {
                    return match bucket.owner == m.owner {
                        true => refuse(Refusal::owned, format!("you already own the bucket {name}"), "use it as it is"),
                        false => {
                            refuse(Refusal::exists, format!("the bucket name {name} is taken"), "choose another name")
                        }
                    };
                }
                let provider = if m.policy_owner.is_empty() { &m.owner } else { &m.policy_owner };
                if !world.policies.contains_key(&pair(provider, &m.policy)) {
                    let reason = format!("{provider} has no storage policy {:?}", m.policy);
                    return refuse(
                        Refusal::not_found,
                        reason,
                        "define the policy, or name another one as LocationConstraint",
                    );
                }
                BucketCreated {
                    realm: BUCKET_REALM.into(),
                    bucket: name,
                    owner: m.owner.clone(),
                    policy: m.policy.clone(),
                    epoch: state.epoch + 1,
                    command_id,
                    policy_owner: m.policy_owner.clone(),
                }
                .into()
            }
            Input::ConfigureBucket(m) => {
                if state.bucket.as_ref().is_none_or(|bucket| bucket.owner != m.owner) {
                    return refuse(
                        Refusal::not_found,
                        format!("{} has no bucket {name}", m.owner),
                        "list your buckets",
                    );
                }
                let settings = m.settings.clone().unwrap_or_default();
                if !settings.versioning.is_empty() && Versioning::named(&settings.versioning).is_none() {
                    return refuse(
                        Refusal::invalid,
                        format!("the versioning status {:?} does not exist", settings.versioning),
                        "use Enabled or Suspended, or leave it out",
                    );
                }
                let tags = settings.tags.as_ref().map_or(0, |set| set.tags.len());
                let rules = settings.cors.as_ref().map_or(0, |cors| cors.rules.len());
                if tags > TAGS_MAX || rules > CORS_RULES_MAX {
                    return refuse(
                        Refusal::invalid,
                        format!("{tags} tags and {rules} CORS rules; at most {TAGS_MAX} and {CORS_RULES_MAX}"),
                        "send fewer",
                    );
                }
                let (owner, settings) = (m.owner.clone(), Some(settings));
                BucketConfigured { realm: BUCKET_REALM.into(), bucket: name, owner, settings, command_id }.into()
            }
            Input::DeleteBucket(m) => match &state.bucket {
                Some(bucket) if bucket.owner == m.owner => {
                    let owner = m.owner.clone();
                    BucketDeleted { realm: BUCKET_REALM.into(), bucket: name, owner, command_id }.into()
                }
                _ => {
                    return refuse(
                        Refusal::not_found,
                        format!("{} has no bucket {name}", m.owner),
                        "list your buckets",
                    );
                }
            },
            Input::RequestScrub(m) => {
                if state.scrub {
                    return refuse(Refusal::exists, format!("scrub {name} was requested before"), "use another id");
                }
                ScrubWanted { owner, scrub: name, repair: m.repair, rewrap: m.rewrap, command_id }.into()
            }
        };
        Ok(vec![fact])
    }

    fn evolve(&self, mut state: State, fact: &Fact, _: Timestamp) -> State {
        match fact {
            Fact::PolicyDefined(m) => (state.policy, state.policy_version) = (m.definition.clone(), m.version),
            Fact::PolicyDropped(_) => state.policy = None,
            Fact::LocationRegistered(m) => (state.location, state.generation) = (m.description.clone(), m.generation),
            Fact::LocationRetired(_) => state.location = None,
            Fact::BucketCreated(m) => {
                (state.bucket, state.epoch) = (Some(Bucket::created(m)), m.epoch);
            }
            Fact::BucketConfigured(m) => {
                if let (Some(bucket), Some(settings)) = (&mut state.bucket, &m.settings) {
                    bucket.configure(settings);
                }
            }
            Fact::BucketDeleted(_) => state.bucket = None,
            Fact::ScrubWanted(_) => state.scrub = true,
            Fact::StorageRefused(_) => {}
        }
        state
    }

    fn due(&self, _: &State) -> Option<Timestamp> {
        None
    }
}

/// Checks a policy, and chooses its locations if it gives goals instead of locations.
fn define(owner: &str, name: &str, mut policy: Policy, state: &State, world: &Known) -> Result<PolicyDefined, Refusal> {
    if !policy.name.is_empty() && policy.name != name {
        return refuse(
            Refusal::invalid,
            format!("the command names the policy {name}, its definition {}", policy.name),
            "use one name in both, or leave it out of the definition",
        );
    }
    let of_owner = world.policies.keys().filter(|(o, _)| o == owner).count();
    if state.policy.is_none() && of_owner >= OF_OWNER_MAX {
        return refuse(
            Refusal::exhausted,
            format!("the owner has {OF_OWNER_MAX} policies, the maximum"),
            "drop a policy first",
        );
    }
    policy.name = name.to_owned();
    let locations = world.locations_of(owner);
    let (mut candidates, mut reason) = (vec![], String::new());
    if let (Some(goals), true) = (&policy.goals, policy.edge_devices.is_empty() && policy.backends.is_empty()) {
        let choice = choose::choose(goals, &locations)?;
        let scheme = policy.redundancy.as_ref().map_or_else(|| "RS".to_owned(), |r| r.scheme.clone());
        policy.redundancy = Some(Redundancy { scheme, redundant_packets: choice.redundant });
        (policy.edge_devices, policy.backends) = (choice.edge, choice.cloud);
        (candidates, reason) = (choice.candidates, choice.reason);
    }
    let recipe = policy::recipe(&policy)?;
    for (names, kind) in [(&policy.edge_devices, "edge"), (&policy.backends, "cloud")] {
        for location in names {
            match locations.get(location) {
                Some(l) if l.kind == kind => {}
                Some(l) => {
                    return refuse(
                        Refusal::invalid,
                        format!("location {location} is of kind {}, not {kind}", l.kind),
                        "list edge locations under edge_devices and cloud locations under backends",
                    );
                }
                None => {
                    let reason = format!("location {location} does not exist");
                    return refuse(
                        Refusal::not_found,
                        reason,
                        "register it, or name one of `continuum storage location list`",
                    );
                }
            }
        }
    }
    if reason.is_empty() {
        reason = format!("{} locations with {} redundant, as requested", recipe.locations.len(), recipe.redundant);
    }
    let code = recipe.scheme.describe(recipe.data, recipe.redundant);
    let reason = format!("{reason}; the redundancy is {code}");
    let version = state.policy_version + 1;
    Ok(PolicyDefined { definition: Some(policy), version, candidates, reason, ..PolicyDefined::default() })
}

/// A number for a name, of 53 bits so that every JSON reader keeps it whole, never 0.
pub fn number(owner: &str, name: &str) -> u64 {
    let id = mesh_proto::derived_id(&["storage", owner, name]);
    let bits = uuid::Uuid::try_parse(&id).map_or(1, |id| id.as_u128());
    (bits as u64 & ((1 << 53) - 1)).max(1)
}

#[cfg(test)]
mod tests;
