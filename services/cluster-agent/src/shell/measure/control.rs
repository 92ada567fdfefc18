//! The settings of measurement of one cluster, as they change.

use anyhow::Context as _;
use mesh_core::Stored;
use mesh_kit::Mesh;
use mesh_proto::{
    Event as _,
    measurement::{MeasurementSet, MeasurementUnset},
};
use tokio::sync::watch;

use crate::domain::measure::settings::Settings;

/// Follows what is set and unset of a cluster, from the beginning on, until the process stops.
///
/// # Errors
/// If the stream cannot be read at all; a bus that is away is waited for.
pub async fn run(mesh: Mesh, cluster_id: String, tell: watch::Sender<Settings>) -> anyhow::Result<()> {
    let mut follower = mesh.follow(MeasurementSet::STREAM, 1);
    let stopping = mesh.stopping();
    let mut settings = Settings::default();
    loop {
        let message = tokio::select! {
            message = follower.next() => message.context("follow settings of measurement")?,
            () = stopping.cancelled() => return Ok(()),
        };
        if fold(&mut settings, &cluster_id, &message) {
            tell.send_replace(settings.clone());
        }
    }
}

/// `true` if the message changes the settings of the cluster. What cannot be read is left out, as by its writer.
fn fold(settings: &mut Settings, cluster_id: &str, message: &Stored) -> bool {
    if let Ok(Some(set)) = message.event::<MeasurementSet>() {
        let Some(setting) = set.setting.filter(|_| set.cluster_id == cluster_id) else { return false };
        settings.set(set.setting_id, setting);
        return true;
    }
    if let Ok(Some(unset)) = message.event::<MeasurementUnset>()
        && unset.cluster_id == cluster_id
    {
        settings.unset(&unset.setting_id);
        return true;
    }
    false
}
