//! The smallest possible decider: every submitted intent is accepted. `bench bus` runs the shell around it, so that what is
//! measured is the shell.

use mesh_proto::{
    Refusal, Timestamp,
    deciders::verdicts::{Fact, Input, NAME},
    validation::IntentAccepted,
};

use mesh_core::{Decider, Envelope, Key, Trigger};
use mesh_kit::Mesh;

/// Joins as a replica of the verdicts' decider that accepts everything.
///
/// # Errors
/// When the bus does not let it join.
pub(crate) async fn accept_all(mesh: Mesh) -> anyhow::Result<()> {
    mesh.decide(Accepts).await?;
    Ok(())
}

/// Accepts.
struct Accepts;

impl Decider for Accepts {
    const NAME: &'static str = NAME;
    /// Accepted versions.
    type State = u64;
    type ReadModel = ();
    type Input = Input;
    type Fact = Fact;

    fn initial(&self) -> u64 {
        0
    }

    fn concerns(&self, input: &Input, _: &()) -> Vec<Key> {
        match input {
            Input::IntentSubmitted(m) => vec![Key::new([m.owner.as_str(), m.intent_id.as_str()])],
            _ => vec![],
        }
    }

    fn decide(&self, key: &Key, accepted: &u64, _: &(), envelope: &Envelope<Input>) -> Result<Vec<Fact>, Refusal> {
        let Trigger::Event(Input::IntentSubmitted(_)) = &envelope.trigger else { return Ok(vec![]) };
        let (owner, intent_id) = (key.token(0).to_owned(), key.token(1).to_owned());
        Ok(vec![IntentAccepted { owner, intent_id, version: accepted + 1 }.into()])
    }

    fn evolve(&self, accepted: u64, _: &Fact, _: Timestamp) -> u64 {
        accepted + 1
    }

    fn due(&self, _: &u64) -> Option<Timestamp> {
        None
    }
}
