//! A complete toy service: it accepts a limited number of versions of each intent, and its HTTP page shows how many.
//!
//! It runs in the place of the validator, because a decider needs its row in the contract (`proto/continuum/mesh/v1`).
//! To begin a service, copy this file: `domain` becomes `src/domain/`, `start` becomes `src/lib.rs`, `main` becomes
//! `src/main.rs`. It shows each part once:
//!
//! - [`Config`]: a flat struct, read whole before anything starts; `--print-config` shows it.
//! - [`domain::Limited`]: the decider. Pure: no clock, no I/O, no randomness.
//! - [`domain::Tally`]: a projector, a view that is folded from facts and can be folded again at any time.
//! - [`start`]: joins the mesh and wires them.
//!
//! Run it against the bus of a mesh: `cargo run -p mesh-kit --example toy -- --help`.

use axum::{Router, extract::Path, routing::get};
use mesh_kit::{Mesh, Sources};
use serde::{Deserialize, Serialize};

mesh_kit::allocator!();

/// What is decided and what is shown.
pub mod domain {
    use std::collections::BTreeMap;

    use mesh_core::{Decider, Derived, Envelope, Key, Projector, Stored, Trigger};
    use mesh_proto::{
        Refusal, Timestamp,
        deciders::verdicts::{Fact, Input, NAME},
        intent::Problem,
        validation::{IntentAccepted, IntentRejected},
    };

    /// Accepts the first versions of each intent.
    pub struct Limited {
        /// Versions of one intent that are accepted.
        pub versions_max: u64,
    }

    impl Decider for Limited {
        const NAME: &'static str = NAME;
        /// How many versions of an intent were judged.
        type State = u64;
        type ReadModel = ();
        type Input = Input;
        type Fact = Fact;

        fn initial(&self) -> u64 {
            0
        }

        fn concerns(&self, input: &Input, _: &()) -> Vec<Key> {
            match input {
                Input::IntentSubmitted(submitted) => vec![Key::new([&submitted.owner, &submitted.intent_id])],
                _ => vec![],
            }
        }

        fn decide(&self, key: &Key, judged: &u64, _: &(), envelope: &Envelope<Input>) -> Result<Vec<Fact>, Refusal> {
            let Trigger::Event(Input::IntentSubmitted(submitted)) = &envelope.trigger else { return Ok(vec![]) };
            let (owner, intent_id, version) = (key.token(0).to_owned(), key.token(1).to_owned(), submitted.version);
            if *judged < self.versions_max {
                return Ok(vec![IntentAccepted { owner, intent_id, version }.into()]);
            }
            let problem = Problem {
                path: String::new(),
                reason: format!("{judged} versions were judged already"),
                hint: "submit it under another id".into(),
            };
            let rejected = IntentRejected { owner, intent_id, version, problems: vec![problem], ..Default::default() };
            Ok(vec![rejected.into()])
        }

        fn evolve(&self, judged: u64, _: &Fact, _: Timestamp) -> u64 {
            judged + 1
        }

        fn due(&self, _: &u64) -> Option<Timestamp> {
            None
        }
    }

    /// By owner: how many versions were accepted.
    #[derive(Debug, Default)]
    pub struct Tally(BTreeMap<String, u64>);

    impl Tally {
        /// Of one owner.
        pub fn accepted(&self, owner: &str) -> u64 {
            self.0.get(owner).copied().unwrap_or_default()
        }

        /// Of all owners.
        pub fn total(&self) -> u64 {
            self.0.values().sum()
        }
    }

    impl Projector for Tally {
        fn apply(&mut self, fact: &Stored) -> Vec<Derived> {
            if let Ok(Some(accepted)) = fact.event::<IntentAccepted>() {
                *self.0.entry(accepted.owner).or_default() += 1;
            }
            vec![]
        }
    }
}

/// Settings of the toy.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Versions of one intent that are accepted.
    pub versions_max: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { versions_max: 3 }
    }
}

/// Joins the mesh; returns once the view is caught up, the decider runs and the page is served.
///
/// # Errors
/// When the bus does not let it join.
pub async fn start(mesh: Mesh, config: Config) -> anyhow::Result<()> {
    let sources = Sources { streams: vec!["VALIDATION"], ..Sources::default() };
    let tally = mesh.project("tally", domain::Tally::default(), sources).await?;
    tally.counter(&mesh, "toy_accepted_total", "versions of intents that were accepted", domain::Tally::total);
    let page = async move |Path(owner): Path<String>| format!("{}\n", tally.read(|tally| tally.accepted(&owner)));
    mesh.serve_http(Router::new().route("/toy/{owner}", get(page)));
    mesh.decide(domain::Limited { versions_max: config.versions_max }).await?;
    Ok(())
}

#[allow(dead_code)] // The test that runs the toy includes this file as a module.
fn main() -> std::process::ExitCode {
    mesh_kit::run("validator", start)
}
