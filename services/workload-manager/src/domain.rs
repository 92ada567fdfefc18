//! The decisions about workload documents and instances.
//!
//! An entity is a document name (`[owner, name]`) or an instance (`[owner, instance id]`); a name never is a UUID and
//! an instance's id always is one, so the two do not meet. What invariants hold:
//!
//! - a registered document never changes; every command is answered by exactly one fact;
//! - a chart is registered once its archive has passed its checks, and only the archive that it was registered with;
//! - revisions of an instance rise by one with every other document or release, going back included;
//! - an instance is wanted by the newest word of whoever wants it, with the bounds of every intent that governs it;
//! - `InstanceChanged` says where it runs now: while it moves, that is the source until the target runs;
//! - the planner's and the agents' facts come by different streams: in whatever order they are heard, the same
//!   place, generation and phase follow. A newer generation outweighs an older one, and a released one is not heard.

pub mod catalogue;
pub mod charts;

mod documents;
mod entry;
mod instance;
mod instances;
pub(crate) mod kept;
mod known;
mod life;
mod releases;

use mesh_core::{Decider, Envelope, Key, Trigger};
use mesh_proto::{
    Refusal, Timestamp,
    deciders::workloads::{Fact, Input, NAME},
    intent::{GovernedInstance, NotFulfilledState},
    remedy::Action,
};
use serde::{Deserialize, Serialize};

pub use documents::{CHART, DOCUMENT_MAX_BYTES, VERSIONS_MAX};
pub use instance::{REPLICAS_MAX, REVISIONS_MAX};
pub use instances::RECHECK_MS;
pub use known::Known;
pub use life::STOP_CONFIRM_MS;
pub use releases::{RELEASE_VALUES_BYTES_MAX, release_name, release_of};

/// The decider of documents and instances.
#[derive(Clone, Copy, Debug, Default)]
pub struct Workloads;

/// One entity: of a document name the versions, of an instance its life.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    versions: documents::Versions,
    instance: instance::Instance,
}

impl Decider for Workloads {
    const NAME: &'static str = NAME;
    type State = State;
    type ReadModel = Known;
    type Input = Input;
    type Fact = Fact;

    fn initial(&self) -> State {
        State::default()
    }

    fn concerns(&self, input: &Input, world: &Known) -> Vec<Key> {
        let one = |owner: &String, token: &String| vec![Key::new([owner, token])];
        let instances = |owner: &String, listed: &[&[GovernedInstance]], intent: &str| {
            let listed = listed.iter().copied().flatten().map(|g| &g.instance_id);
            listed.chain(world.of_intent(owner, intent)).map(|id| Key::new([owner, id])).collect()
        };
        match input {
            Input::RegisterWorkload(m) => one(&m.owner, &m.name),
            Input::RunInstance(m) => one(&m.owner, &m.instance_id),
            Input::StopInstance(m) => one(&m.owner, &m.instance_id),
            Input::WorkloadAccepted(m) => one(&m.owner, &m.name),
            Input::WorkloadRejected(m) => {
                let waiting = world.waiting_for(&m.owner, &format!("{}@{}", m.name, m.version));
                [&m.name].into_iter().chain(waiting).map(|token| Key::new([&m.owner, token])).collect()
            }
            Input::WorkloadRegistered(m) => {
                let waiting = world.waiting_for(&m.owner, &format!("{}@{}", m.name, m.version));
                waiting.map(|id| Key::new([&m.owner, id])).collect()
            }
            Input::IntentAcknowledged(m) => instances(&m.owner, &[&m.instances, &m.released], &m.intent_id),
            Input::IntentStateChanged(m) if terminated(m.to.as_ref()) => {
                instances(&m.owner, &[&m.instances], &m.intent_id)
            }
            Input::IntentStateChanged(_) => vec![],
            Input::PlacementDecided(m) => one(&m.owner, &m.instance_id),
            Input::PlacementUnplaced(m) => one(&m.owner, &m.instance_id),
            Input::PlacementReleased(m) => one(&m.owner, &m.instance_id),
            // Of what runs, its agent speaks.
            Input::PlacementSettled(m) if m.failed && !m.owner.is_empty() => one(&m.owner, &m.instance_id),
            Input::PlacementSettled(_) => vec![],
            Input::InstanceStatusChanged(m) => one(&m.owner, &m.instance_id),
            Input::RemedyRequested(m) if m.action() == Action::Scale => one(&m.owner, &m.instance_id),
            Input::RemedyRequested(_) => vec![],
            Input::AttachChart(m) => one(&m.owner, &m.name),
            Input::DropWorkload(m) => one(&m.owner, &m.name),
            Input::ReportChecks(m) => one(&m.owner, &m.name),
            Input::UpgradeInstance(m) => one(&m.owner, &m.instance_id),
            Input::RollbackInstance(m) => one(&m.owner, &m.instance_id),
            Input::MigrateInstance(m) => one(&m.owner, &m.instance_id),
            Input::DeleteInstance(m) => one(&m.owner, &m.instance_id),
            Input::MigrationDeclined(m) => one(&m.owner, &m.instance_id),
        }
    }

    fn decide(
        &self,
        key: &Key,
        state: &State,
        world: &Known,
        envelope: &Envelope<Input>,
    ) -> Result<Vec<Fact>, Refusal> {
        let instance = &state.instance;
        let Trigger::Event(input) = &envelope.trigger else {
            let facts = match life::unconfirmed(key, instance, envelope.at) {
                facts if facts.is_empty() => instances::recheck(key, instance, world, envelope.at),
                facts => facts,
            };
            return Ok(releases::consequences(key, instance, world, facts));
        };
        let facts = match input {
            Input::RegisterWorkload(m) => {
                vec![documents::register(key, &state.versions, m, &envelope.id, &envelope.body)?]
            }
            Input::RunInstance(m) => vec![instances::run(key, instance, world, m, &envelope.id)?],
            Input::StopInstance(_) => vec![instances::stop(key, instance, &envelope.id)?],
            Input::WorkloadAccepted(m) => documents::accepted(&state.versions, m),
            Input::WorkloadRejected(m) if key.token(1) == m.name => documents::rejected(&state.versions, m),
            Input::WorkloadRejected(m) => instances::document_rejected(instance, m),
            Input::WorkloadRegistered(m) => instances::document_registered(key, instance, world, m),
            Input::IntentAcknowledged(m) => instances::acknowledged(key, instance, world, m),
            Input::IntentStateChanged(m) => instances::ended(key, instance, &m.intent_id),
            Input::PlacementDecided(m) => life::decided(key, instance, m, envelope.at),
            Input::PlacementUnplaced(m) => life::unplaced(key, instance, m, envelope.at),
            Input::PlacementReleased(m) => life::released(key, instance, m, envelope.at),
            Input::PlacementSettled(m) => life::settled(key, instance, m, envelope.at),
            Input::InstanceStatusChanged(m) => life::status(key, instance, m, envelope.at),
            Input::RemedyRequested(_) => instances::scale(instance),
            Input::AttachChart(m) => documents::attach(key, &state.versions, m, &envelope.id)?,
            Input::DropWorkload(m) => vec![documents::drop_version(key, &state.versions, m, &envelope.id)?],
            Input::ReportChecks(m) => documents::checked(&state.versions, m),
            Input::UpgradeInstance(m) => vec![releases::upgrade(key, instance, world, m, &envelope.id)?],
            Input::RollbackInstance(m) => vec![releases::roll_back(key, instance, world, m, &envelope.id)?],
            Input::MigrateInstance(m) => vec![releases::migrate(key, instance, m, &envelope.id)?],
            Input::DeleteInstance(_) => vec![releases::delete(key, instance, &envelope.id)?],
            Input::MigrationDeclined(m) => life::declined(key, instance, m, envelope.at),
        };
        Ok(releases::consequences(key, instance, world, facts))
    }

    fn evolve(&self, mut state: State, fact: &Fact, at: Timestamp) -> State {
        match fact {
            Fact::WorkloadSubmitted(_)
            | Fact::WorkloadRegistered(_)
            | Fact::WorkloadRejected(_)
            | Fact::WorkloadOnboarding(_)
            | Fact::WorkloadDropped(_)
            | Fact::ChartAttached(_) => documents::evolve(&mut state.versions, fact, at),
            Fact::InstanceWanted(m) => state.instance.want(m, at),
            Fact::InstanceUnavailable(m) => state.instance.wait(m, at),
            Fact::InstanceUnwanted(m) => state.instance.wait_no_more(&m.intent_id),
            Fact::InstanceChanged(m) => state.instance.change(m, at),
            Fact::InstanceDeleted(_) => state.instance.forget(),
            Fact::MigrationWanted(_) => state.instance.asked_to_move = true,
            Fact::WorkloadUnchanged(_) | Fact::WorkloadRefused(_) | Fact::WorkloadChecked(_) => {}
        }
        state
    }

    fn due(&self, state: &State) -> Option<Timestamp> {
        life::due(&state.instance).or_else(|| instances::due(&state.instance))
    }
}

fn terminated(state: Option<&mesh_proto::intent::State>) -> bool {
    state.is_some_and(|s| s.not_fulfilled_state() == NotFulfilledState::Terminated)
}

fn is_uuid(text: &str) -> bool {
    uuid::Uuid::try_parse(text).is_ok()
}

#[cfg(test)]
mod tests;
