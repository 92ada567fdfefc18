//! The clusters that `up` runs.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

/// One cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Cluster {
    /// Its id: letters, digits, `_` and `-`.
    pub(crate) name: String,
    /// Thousandths of a CPU core that workloads may use together.
    pub(crate) cpu_milli: u32,
    /// Megabytes (10^6 bytes) that workloads may use together.
    pub(crate) memory_mb: u64,
    /// Labels for selection.
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
    /// `process` (default) or `simulated`.
    #[serde(default = "process")]
    pub(crate) driver: String,
    /// Site in its telemetry keys; the name when absent.
    #[serde(default)]
    pub(crate) site: String,
}

fn process() -> String {
    "process".into()
}

/// The three clusters of a mesh for one machine: a load that is 60 % of the device is 10 % of the cloud.
pub(crate) fn defaults() -> Vec<Cluster> {
    let cluster = |name: &str, cpu_milli, memory_mb| Cluster {
        name: name.into(),
        cpu_milli,
        memory_mb,
        labels: BTreeMap::from([("tier".into(), name.into())]),
        driver: process(),
        site: String::new(),
    };
    vec![cluster("cloud", 1_500, 2_048), cluster("edge", 500, 512), cluster("device", 250, 256)]
}

/// Reads clusters from a YAML or JSON file: a list, or an object with a list `clusters`.
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<Cluster>> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum File {
        List(Vec<Cluster>),
        Object { clusters: Vec<Cluster> },
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("read clusters from {}", path.display()))?;
    let file: File = serde_saphyr::from_str(&text).map_err(|e| {
        anyhow::anyhow!("{} is not a list of clusters with `name`, `cpu_milli` and `memory_mb`: {e}", path.display())
    })?;
    let (File::List(clusters) | File::Object { clusters }) = file;
    if clusters.is_empty() {
        bail!("{} names no cluster; a mesh needs at least one", path.display());
    }
    for cluster in &clusters {
        if !mesh_proto::is_key(&cluster.name) {
            bail!("cluster name {:?} is not 1 to 64 letters, digits, `_` and `-`", cluster.name);
        }
        if !matches!(cluster.driver.as_str(), "process" | "simulated") {
            bail!("cluster {}: driver {:?} is neither `process` nor `simulated`", cluster.name, cluster.driver);
        }
        if clusters.iter().filter(|c| c.name == cluster.name).count() > 1 {
            bail!("cluster name {:?} is used twice", cluster.name);
        }
    }
    Ok(clusters)
}
