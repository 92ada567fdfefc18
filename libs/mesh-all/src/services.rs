//! The services that one machine runs, as tasks of this process or as processes of their own.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use mesh_kit::{Joint, Mesh, Running, Settings, config};
use serde::{Serialize, de::DeserializeOwned};
use tokio_util::sync::CancellationToken;

use crate::{clusters::Cluster, relay::Relay};

/// Slot of the probe schedule on one machine: three clusters probe each other, both ways, in 1.2 s.
const PROBE_SLOT_MS: u64 = 200;

/// One service to run.
pub(crate) struct Member {
    /// For people.
    pub(crate) title: String,
    /// Its service.
    pub(crate) service: &'static str,
    /// What every service has.
    pub(crate) settings: Settings,
    /// What only this one has.
    pub(crate) own: BTreeMap<String, String>,
}

impl Member {
    /// Its command line.
    pub(crate) fn arguments(&self) -> anyhow::Result<Vec<OsString>> {
        let mut arguments = config::arguments(&self.settings).context("write the settings")?;
        for (key, value) in &self.own {
            arguments.extend(["--set".to_owned(), format!("{key}={value}")]);
        }
        Ok(arguments.into_iter().map(OsString::from).collect())
    }

    /// Its program, beside this one.
    pub(crate) fn program(&self) -> anyhow::Result<PathBuf> {
        let path = std::env::current_exe().context("find this program")?.with_file_name(self.service);
        if !path.is_file() {
            bail!("{} does not exist; build every service with `make build`", path.display());
        }
        Ok(path)
    }

    /// Joins as tasks of this process, by the start function of its service.
    pub(crate) async fn join_as<C, F, S>(self, joint: &Joint, start: F) -> anyhow::Result<Running>
    where
        C: Serialize + DeserializeOwned + Default,
        F: FnOnce(Mesh, C) -> S,
        S: Future<Output = anyhow::Result<()>>,
    {
        let loaded = config::load::<C>(self.service, self.arguments()?, &BTreeMap::new())?;
        mesh_kit::join_sharing(joint, self.service, loaded.settings, loaded.config, start).await
    }
}

/// A cluster as its agent's configuration.
pub(crate) fn agent(cluster: &Cluster) -> anyhow::Result<BTreeMap<String, String>> {
    let labels = cluster.labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",");
    let site = if cluster.site.is_empty() { cluster.name.clone() } else { cluster.site.clone() };
    // Commands of workloads are found beside this program first: the examples are built there.
    let here = std::env::current_exe().context("find this program")?;
    let path = here.parent().map(|p| p.display().to_string()).into_iter();
    let path = path.chain(std::env::var("PATH").ok()).collect::<Vec<_>>().join(":");
    Ok(BTreeMap::from([
        ("path".into(), path),
        ("cluster_id".into(), cluster.name.clone()),
        ("cpu_milli".into(), cluster.cpu_milli.to_string()),
        ("memory_bytes".into(), (cluster.memory_mb * 1_000_000).to_string()),
        ("labels".into(), labels),
        ("driver".into(), cluster.driver.clone()),
        ("site".into(), site),
        ("node".into(), format!("{}-1", cluster.name)),
    ]))
}

/// Where an agent answers probes: an address of its own on this machine, so that the clusters are several places in the
/// network; behind a relay that can delay them, if `relayed`.
pub(crate) async fn probes(
    data_dir: &Path,
    cluster: &Cluster,
    number: usize,
    relayed: bool,
    stopping: &CancellationToken,
) -> anyhow::Result<BTreeMap<String, String>> {
    let address = |net: u8| {
        std::net::IpAddr::from([127, net, u8::try_from(number / 250).unwrap_or(255), (number % 250 + 1) as u8])
    };
    let own = address(1);
    let mut settings = BTreeMap::from([
        ("probe_listen".to_owned(), format!("{own}:0")),
        ("probe_slot_ms".to_owned(), PROBE_SLOT_MS.to_string()),
    ]);
    if relayed {
        let relay = Relay::bind(&address(2).to_string()).await?;
        let target = std::net::SocketAddr::new(own, relay.address.port());
        settings.insert("probe_listen".to_owned(), target.to_string());
        settings.insert("probe_advertise".to_owned(), relay.address.to_string());
        let control = mesh_client::endpoints::probe_delay_file(data_dir, &cluster.name);
        tokio::spawn(relay.run(target, control, stopping.clone()));
    }
    Ok(settings)
}
