//! Enforces what is assigned to one cluster, and measures it.
//!
//! - Consumes: `AssignmentChanged`, `MeasurementSet` and `MeasurementUnset` of its cluster.
//! - Receives: metrics and traces of its instances by OTLP, where configured; forwards the traces.
//! - Publishes: `ClusterRegistered`, `InstanceStatusChanged`, `InstanceRejected`; samples, readings and its liveness on
//!   Zenoh.
//! - Owns: the processes of its cluster, and what is said of them.
//! - Never: chooses what runs where.

pub mod api;
pub mod config;
pub mod domain;
pub mod shell;

use anyhow::Context as _;
use mesh_kit::Mesh;
use mesh_proto::{derived_id, instance::agent_queries_server::AgentQueriesServer};
use tokio::sync::watch;

pub use config::Config;
pub use domain::meter;
pub use shell::driver;

use config::Kind;
use domain::measure::{Running, settings::Settings};
use shell::agent::{Agent, Parts};
use shell::driver::{Driver, process::ProcessDriver, simulated::SimulatedDriver};

/// Joins the mesh with one cluster. Returns once everything that an earlier agent of the cluster left has ended; the
/// cluster is then declared, and what is assigned to it is started.
///
/// # Errors
/// When a value of the configuration cannot be, another agent uses the folder, a process of an earlier agent does not
/// end, or the samples' session does not open.
pub async fn start(mesh: Mesh, config: Config) -> anyhow::Result<()> {
    let kind = config.check()?;
    let folder = shell::state::Folder::open(&config.folder(mesh.data_dir()), &config.cluster_id)?;
    let receiver = match config.otlp_address()?.filter(|_| kind == Kind::Process) {
        Some(address) => {
            Some(shell::otlp::Receiver::bind(&mesh, address, &config.cluster_id, config.otlp_limits()).await?)
        }
        None => None,
    };
    let door = receiver.as_ref().map(shell::otlp::Receiver::door);
    let driver: Box<dyn Driver> = match kind {
        Kind::Simulated => Box::new(SimulatedDriver::new(config.model(), config.cpu_milli)),
        Kind::Process => {
            if let Some(data) = mesh.data_dir() {
                shell::state::close(data).with_context(|| format!("close {} to workloads", data.display()))?;
            }
            let settings = mesh.settings();
            let keys = [&settings.bus_seed_file, &settings.tls_key_file].into_iter().flatten();
            let keys = keys.map(|key| key.path().to_owned()).collect();
            let name = derived_id(&["agent", &config.cluster_id, &folder.path().to_string_lossy()]);
            let (options, clock) = (config.processes(name, folder.path().to_owned(), keys, door)?, mesh.clone());
            let opening = move || ProcessDriver::open(options, std::sync::Arc::new(move || clock.now()));
            Box::new(tokio::task::spawn_blocking(opening).await.context("open the process driver")??)
        }
    };
    mesh.serve(AgentQueriesServer::new(api::Api::new(&config.cluster_id, driver.journal())));
    let incarnation = u64::try_from(mesh.now().as_nanos()).unwrap_or_default();
    let responder = responder(&mesh, &config).await?;
    let reached = responder.as_ref().map_or_else(String::new, |(_, reached)| reached.clone());
    let registration = config.registration(driver.enforcement(), mesh.endpoint(), incarnation, reached)?;
    let samples = mesh.samples().await?;
    if let Some((responder, _)) = responder {
        let stopping = mesh.stopping();
        mesh.spawn("probe responder", async move {
            responder.run(stopping).await;
            Ok(())
        });
        let prober = shell::probe::Prober::new(mesh.clone(), samples.clone(), config.clone(), config.probing());
        mesh.spawn("prober", prober.run());
    }
    let (tell_settings, settings) = watch::channel(Settings::default());
    mesh.spawn(
        "settings of measurement",
        shell::measure::control::run(mesh.clone(), config.cluster_id.clone(), tell_settings),
    );
    let (tell_running, running) = watch::channel(Running::default());
    let received = receiver.as_ref().map(|receiver| (receiver.inbox(), receiver.door()));
    let probes = shell::measure::probes(&config, kind, &driver.journal(), &running, received);
    if let Some(receiver) = receiver {
        mesh.spawn("OTLP receiver", receiver.run());
    }
    let measurer =
        shell::measure::Measurer::new(mesh.clone(), samples.clone(), config.clone(), settings.clone(), probes);
    mesh.spawn("measurements", measurer.run());
    let parts = Parts { config, driver, samples, folder, registration, settings, running: tell_running };
    let agent = Agent::new(mesh.clone(), parts)?;
    mesh.spawn("agent", async move { Ok(agent.run().await?) });
    Ok(())
}

/// What answers probes, and where others reach it; none if this agent takes no part.
async fn responder(mesh: &Mesh, config: &Config) -> anyhow::Result<Option<(shell::probe::Responder, String)>> {
    let (endpoint, listen) = (mesh.endpoint(), &mesh.settings().listen);
    let address = match config.probe_listen.as_str() {
        "off" => return Ok(None),
        "" => format!("{}:0", listen.rsplit_once(':').map_or("127.0.0.1", |(host, _)| host)),
        address => address.to_owned(),
    };
    let responder = shell::probe::Responder::bind(&address, &config.cluster_id).await?;
    let bound = responder.address();
    let reached = if !config.probe_advertise.is_empty() {
        config.probe_advertise.clone()
    } else if bound.ip().is_unspecified() {
        let host = endpoint.rsplit_once(':').map_or("", |(host, _)| host);
        format!("{}:{}", host.split_once("://").map_or(host, |(_, host)| host), bound.port())
    } else {
        bound.to_string()
    };
    Ok(Some((responder, reached)))
}
