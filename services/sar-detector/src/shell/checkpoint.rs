//! Models in the data folder, so that a restart need not learn them again. Without a folder they are learned again from
//! the last hour of telemetry.

use std::{fs, io, path::Path, time::Duration};

use mesh_kit::{Mesh, ReadableBy, View, write_atomic};

use crate::domain::Sar;

/// The file's name in the data folder.
const FILE: &str = "models.bin";

/// Takes over what was stored. A file that cannot be read is told and left out: models can be learned again.
pub(crate) fn restore(mesh: &Mesh, sar: &mut Sar) {
    let Some(path) = mesh.data_dir().map(|folder| folder.join(FILE)) else { return };
    match fs::read(&path) {
        Ok(bytes) => match sar.restore(&bytes) {
            Ok(models) => tracing::info!(models, "models restored"),
            Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "stored models are left out"),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "stored models cannot be read"),
    }
}

/// Stores the models again and again, and once more at the end.
pub(crate) async fn keep(mesh: Mesh, view: View<Sar>, every_ms: u64) -> anyhow::Result<()> {
    let Some(folder) = mesh.data_dir().map(Path::to_path_buf) else { return Ok(()) };
    let stopping = mesh.stopping();
    let mut ticks = tokio::time::interval(Duration::from_millis(every_ms));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        let last = tokio::select! {
            _ = ticks.tick() => false,
            () = stopping.cancelled() => true,
        };
        let (view, folder) = (view.clone(), folder.clone());
        let stored = tokio::task::spawn_blocking(move || {
            write_atomic(&folder.join(FILE), &view.read(Sar::snapshot), ReadableBy::Anyone)
        })
        .await;
        match stored {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(error = &error as &dyn std::error::Error, "models cannot be stored"),
            Err(error) => tracing::warn!(%error, "models cannot be stored"),
        }
        if last {
            return Ok(());
        }
    }
}
