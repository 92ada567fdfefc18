//! The clusters that `up` runs.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context as _, bail};
use mesh_proto::Written;
use serde::{Deserialize, Serialize};

/// One cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// Its id: letters, digits, `_` and `-`.
    pub name: String,
    /// Thousandths of a CPU core that workloads may use together.
    pub cpu_milli: u32,
    /// Megabytes (10^6 bytes) that workloads may use together.
    pub memory_mb: u64,
    /// Labels for selection.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// `process` (default) or `simulated`.
    #[serde(default = "process")]
    pub driver: String,
    /// Site in its telemetry keys; the name when absent.
    #[serde(default)]
    pub site: String,
}

fn process() -> String {
    "process".into()
}

/// The three clusters of a mesh for one machine: a load that is 60 % of the device is 10 % of the cloud.
pub fn defaults() -> Vec<Cluster> {
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
    let text = std::fs::read_to_string(path).with_context(|| format!("read clusters from {}", path.display()))?;
    let read = Written::yaml(&text).and_then(|mut written| {
        let inner = written.take(&["clusters"])?;
        if let (Some(_), Some(name)) = (&inner, written.names().next()) {
            return Err(serde::de::Error::custom(format!("{name} is not known beside `clusters`")));
        }
        inner.unwrap_or(written).read::<Vec<Cluster>>()
    });
    let clusters = read.map_err(|e| {
        anyhow::anyhow!("{} is not a list of clusters with `name`, `cpu_milli` and `memory_mb`: {e}", path.display())
    })?;
    if clusters.is_empty() {
        bail!("{} does not name any cluster; a mesh needs at least one", path.display());
    }
    for cluster in &clusters {
        if !mesh_proto::is_key(&cluster.name) {
            bail!("invalid cluster name {:?}: use 1 to 64 letters, digits, `_` and `-`", cluster.name);
        }
        if !matches!(cluster.driver.as_str(), "process" | "simulated") {
            bail!("cluster {}: unknown driver {:?}: use `process` or `simulated`", cluster.name, cluster.driver);
        }
        if clusters.iter().filter(|c| c.name == cluster.name).count() > 1 {
            bail!("cluster name {:?} is used twice", cluster.name);
        }
    }
    Ok(clusters)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> anyhow::Result<Vec<Cluster>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        read(file.path())
    }

    #[test]
    fn clusters_are_a_list_or_an_object_with_a_list() {
        let one = "name: a\n  cpu_milli: 100\n  memory_mb: 64\n";
        let list = read_text(&format!("- {one}")).unwrap();
        assert_eq!((list[0].name.as_str(), list[0].driver.as_str()), ("a", "process"));
        assert_eq!(read_text(&format!("clusters:\n- {one}")).unwrap(), list);
    }

    #[test]
    fn names_and_labels_are_as_they_are_spelt() {
        let read = read_text("- {name: no, cpu_milli: 0x64, memory_mb: 64, labels: {zone: on, rack: 010}}\n").unwrap();
        assert_eq!((read[0].name.as_str(), read[0].cpu_milli), ("no", 100));
        assert_eq!(read[0].labels, BTreeMap::from([("rack".into(), "010".into()), ("zone".into(), "on".into())]));
    }

    #[test]
    fn a_file_that_cannot_be_used_is_refused_with_what_is_wrong() {
        let cluster =
            |name: &str, driver: &str| format!("- {{name: {name}, cpu_milli: 1, memory_mb: 1, driver: {driver}}}\n");
        for (text, part) in [
            ("[]".to_owned(), "at least one"),
            (cluster("a.b", "process"), "invalid cluster name"),
            (cluster("a", "docker"), "unknown driver"),
            (cluster("a", "process") + &cluster("a", "process"), "used twice"),
            ("{name: a}".to_owned(), "not a list of clusters"),
            ("clusters: []\nmore: 1\n".to_owned(), "more is not known"),
            (
                "- {name: a, cpu_milli: 1, cpu_milli: 2, memory_mb: 1}".to_owned(),
                "line 1 column 13 and at line 1 column 27",
            ),
        ] {
            let error = read_text(&text).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
