//! Gives learned advice beside the planner, and learns, alone or together with the agents of other sites.
//!
//! - Consumes: the facts of placements; samples of instances and updates of other members (Zenoh); its own `RoundClosed`.
//! - Publishes: `LearningAdvised`, `RoundClosed`, `PolicyAdopted`; its signed weights (Zenoh).
//! - Owns: its policy, with its model card.
//! - Never: places anything. The planner may act on advice, if it is told to.

mod api;
mod config;
pub mod domain;
mod shell;

use anyhow::Context as _;
use mesh_kit::{Mesh, Sources};
use mesh_proto::{learning::learning_queries_server::LearningQueriesServer, sample_keys};

pub use config::Config;
use domain::{
    live::Advisor,
    policy::{Current, FILE_BYTES_MAX, Policy},
};
use learning::BUILT_IN;

/// Joins the mesh; returns once it advises.
///
/// # Errors
/// A setting that cannot work; a policy or key file that cannot be read; the bus or the samples away.
pub async fn start(mesh: Mesh, config: Config) -> anyhow::Result<()> {
    config.check()?;
    let current = Current::new(first(&mesh, &config)?);
    let federation = config.federation(current.get().network.widths())?;
    let rights = mesh_proto::contract().service(mesh.name()).context("find own rights in the contract")?;
    let instances =
        rights.samples_in.iter().map(String::as_str).filter(|key| mesh_proto::is_of_instances(key)).collect();
    let sources = Sources {
        streams: vec!["PLACEMENT", "LEARNING"],
        samples: instances,
        tick_ms: Some(u64::from(config.advise_ms.max(100))),
        pace_ms: 20,
        ..Sources::default()
    };
    let view = mesh.project("advice", Advisor::new(config.limits(), current.clone()), sources).await?;
    shell::metrics::show(&mesh, &view);
    mesh.serve(LearningQueriesServer::new(api::Api { view: view.clone(), current: current.clone() }));
    if config.round_ms == 0 {
        return Ok(());
    }
    let together = match federation {
        None => None,
        Some(federation) => {
            let path = config.key_file.display();
            let seed = std::fs::read_to_string(&config.key_file).with_context(|| format!("read key file {path}"))?;
            let keys = nkeys::KeyPair::from_seed(seed.trim()).with_context(|| format!("read the seed in {path}"))?;
            let own = federation.members.get(&config.site);
            anyhow::ensure!(
                own == Some(&keys.public_key()),
                "{path} is not the key that members give for {}",
                config.site
            );
            let samples = mesh.samples().await?;
            let updates =
                samples.subscribe(&sample_keys(shell::learn::UPDATES)).await.context("hear the other members")?;
            Some(shell::learn::Together { federation, keys, samples, updates })
        }
    };
    mesh.spawn(
        "learn",
        shell::learn::learn(shell::learn::Learner { mesh: mesh.clone(), config, current, view, together }),
    );
    Ok(())
}

/// The first policy: the configured file, else the saved one, else the built-in one.
fn first(mesh: &Mesh, config: &Config) -> anyhow::Result<Policy> {
    let read = |path: &std::path::Path| {
        let long = std::fs::metadata(path).with_context(|| format!("read policy file {}", path.display()))?.len();
        anyhow::ensure!(long <= FILE_BYTES_MAX as u64, "policy file {} has {long} bytes", path.display());
        let file = std::fs::read(path).with_context(|| format!("read policy file {}", path.display()))?;
        Policy::from_file(&file).with_context(|| format!("take the policy of {}", path.display()))
    };
    if !config.policy_file.as_os_str().is_empty() {
        return read(&config.policy_file);
    }
    if let Some(path) = shell::learn::snapshot(mesh).filter(|path| path.exists()) {
        match read(&path) {
            Ok(policy) => return Ok(policy),
            Err(error) => tracing::warn!(
                error = format!("{error:#}"),
                "ignoring the saved policy; starting from the built-in one"
            ),
        }
    }
    Policy::from_file(BUILT_IN.as_bytes()).context("read the policy that was built in")
}
