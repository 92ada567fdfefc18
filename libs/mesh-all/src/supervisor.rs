//! Keeps what runs running: the nats-server, and one process per service.

use std::{
    ffi::OsString,
    fs::File,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use mesh_admin::{Server, free_disk_bytes};
use tokio::process::Child;
use tokio_util::sync::CancellationToken;

use crate::Report;

/// How long a service may take to stop before it is killed.
pub(crate) const STOP_LIMIT: Duration = Duration::from_secs(15);
/// How often the nats-server is asked whether it can write.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Bytes that must be free before it is restarted.
const ROOM_BYTES: u64 = 16 << 20;
/// Shortest time between restarts of a server that cannot write for another reason than room.
const RESTART_MIN: Duration = Duration::from_secs(10);
/// First pause before something that ended is started again; it doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// What ran this long is started again at once.
const STEADY: Duration = Duration::from_secs(10);

/// Keeps the nats-server running: starts it again when it ends by itself, and when its disk has room again after it was
/// full, because until then it takes no writes.
pub(crate) async fn keep_server(mut server: Server, data_dir: PathBuf, report: Report, stopping: CancellationToken) {
    let mut pause = PAUSE_MIN;
    let mut look = tokio::time::interval(LOOK_EVERY);
    let mut reported = false;
    let mut begun = Instant::now();
    loop {
        tokio::select! {
            ended = server.ended() => {
                if begun.elapsed() > STEADY {
                    pause = PAUSE_MIN;
                }
                let status = ended.map_or_else(|error| error.to_string(), |status| status.to_string());
                report(&format!("nats-server ended ({status}); starting it again"));
            }
            _ = look.tick() => {
                let Some(error) = server.write_error().await else { continue };
                if !reported {
                    report(&format!(
                        "nats-server cannot write, so all writes wait: {error}; make room on the disk of {}",
                        data_dir.display()
                    ));
                    reported = true;
                }
                let is_full = free_disk_bytes(&data_dir).is_ok_and(|free| free < ROOM_BYTES);
                if is_full || begun.elapsed() < RESTART_MIN {
                    continue;
                }
                reported = false;
                report("the disk has room again; restarting nats-server");
            }
            () = stopping.cancelled() => {
                if let Err(error) = server.stop().await {
                    report(&format!("stop nats-server: {error}"));
                }
                return;
            }
        }
        while let Err(error) = server.restart().await {
            report(&format!("start nats-server again: {error}"));
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(PAUSE_MAX),
                () = stopping.cancelled() => return,
            }
        }
        begun = Instant::now();
    }
}

/// Keeps one service process running; started again with back-off when it ends by itself.
pub(crate) async fn keep_process(
    program: PathBuf,
    arguments: Vec<OsString>,
    log: PathBuf,
    report: Report,
    stopping: CancellationToken,
) {
    let mut pause = PAUSE_MIN;
    loop {
        let begun = Instant::now();
        let ended = match spawn(&program, &arguments, &log) {
            Ok(mut child) => tokio::select! {
                ended = child.wait() => ended.map_or_else(|error| error.to_string(), |status| status.to_string()),
                () = stopping.cancelled() => return end(child).await,
            },
            Err(error) => error.to_string(),
        };
        if begun.elapsed() > STEADY {
            pause = PAUSE_MIN;
        }
        report(&format!("{} ended ({ended}); starting it again; its log is {}", program.display(), log.display()));
        tokio::select! {
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(PAUSE_MAX),
            () = stopping.cancelled() => return,
        }
    }
}

fn spawn(program: &Path, arguments: &[OsString], log: &Path) -> std::io::Result<Child> {
    let log = File::options().create(true).append(true).open(log)?;
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
    // The command line holds every setting; the environment of this process is not for the services.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CONTINUUM_")) {
        command.env_remove(name);
    }
    // A terminal's interrupt is for this process; it stops the others in order.
    command.process_group(0);
    command.spawn()
}

async fn end(mut child: Child) {
    if let Some(pid) = child.id() {
        let _ =
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), nix::sys::signal::Signal::SIGTERM);
    }
    if tokio::time::timeout(STOP_LIMIT, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}
