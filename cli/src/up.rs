//! `up`: starts the mesh of `mesh-all` in this process, and keeps it running.

use std::{path::Path, process::ExitCode, time::Instant};

use anyhow::bail;
use continuum::{
    commands::{login, up::UpOptions},
    examples, nats_context,
    output::{line, note},
};
use mesh_all::{Options, Up};
use mesh_client::Endpoints;

/// Starts a mesh, waits until it is ready, and keeps it running until a signal comes or a part of it fails.
pub(crate) async fn up(data_dir: &Path, options: UpOptions) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    let context = options.nats_context.clone();
    let options = options_of(options);
    let mut up = tokio::select! {
        up = Up::start(data_dir, &options) => up?,
        () = signal() => bail!("stopped before the mesh was ready"),
    };
    line(format!(
        "continuum is up in {:.1} s ({}), clusters: {}",
        begun.elapsed().as_secs_f64(),
        up.endpoints.mode,
        up.endpoints.clusters.join(", ")
    ));
    line(format!("  bus    {}  (person's key: {})", up.endpoints.nats, up.endpoints.person_seed_file.display()));
    if !context.is_empty() {
        line(format!("  nats   {}", nats(data_dir, &context, &up.endpoints)));
    }
    let (websocket, seed) = (&up.endpoints.websocket, up.endpoints.dashboard_seed_file.display());
    line(format!("  boards {websocket}  (read-only; dashboard's key: {seed})"));
    line(format!("  zenoh  {}", up.endpoints.zenoh));
    if let Ok(url) = login::gateway_of(data_dir) {
        line(format!("  REST   {url}  (sign in: continuum login)"));
    }
    let flag =
        if data_dir == Path::new(".continuum") { String::new() } else { format!(" --data-dir {}", data_dir.display()) };
    line("Try next, in another terminal:");
    line(format!("  continuum{flag} cluster list"));
    let examples = examples::folder();
    let examples = examples.display();
    line(format!("  continuum{flag} workload push {examples}/spinner.workload.yaml"));
    line(format!("  continuum{flag} intent submit {examples}/spinner.intent.yaml --wait fulfilled"));
    line(format!("  continuum{flag} down"));
    // Where a service manager waits for it.
    if let Err(error) = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]) {
        note(format!("continuum: the service manager could not be notified: {error}"));
    }
    let failure = tokio::select! {
        () = signal() => None,
        failure = up.failed() => Some(failure),
    };
    if let Some(failure) = &failure {
        note(format!("continuum: {failure}; stopping the mesh"));
    }
    up.stop().await?;
    Ok(ExitCode::from(if failure.is_some() { 70 } else { 0 }))
}

/// Writes a context for the NATS command line, and says how to use it, or why it was not written.
fn nats(data_dir: &Path, name: &str, endpoints: &Endpoints) -> String {
    let Some(home) = nats_context::config_home(|variable| std::env::var_os(variable)) else {
        return "no context is written: neither XDG_CONFIG_HOME nor HOME is set".into();
    };
    match nats_context::write(&home, name, data_dir, endpoints) {
        Ok(path) => format!("nats --context {name} micro ls  (context: {})", path.display()),
        Err(error) => format!("no context is written: {error:#}"),
    }
}

fn options_of(options: UpOptions) -> Options {
    let UpOptions {
        processes, clusters, nats_port, websocket_port, zenoh_port, set, without, otlp, log, relays, ..
    } = options;
    Options {
        processes,
        clusters,
        nats_port,
        websocket_port,
        zenoh_port,
        set,
        without,
        otlp,
        log,
        relays,
        ..Options::default()
    }
}

async fn signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
