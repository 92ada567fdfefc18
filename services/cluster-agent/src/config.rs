//! What an agent is told, and what follows from it.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    ops::RangeInclusive,
    path::PathBuf,
    sync::Arc,
};

use mesh_proto::{cluster::ClusterRegistered, is_key};
use serde::{Deserialize, Serialize};

use crate::{
    domain::{
        Limits,
        measure::{
            budget, otlp,
            settings::{INTERVAL_MAX_MS, INTERVAL_MIN_MS},
        },
    },
    shell::{
        driver::{cgroup, model::Model, process, users},
        otlp::Door,
        probe,
    },
};

/// Series that an agent may be told to have.
const SERIES_MAX: u32 = 1_000_000;

/// One cluster and how its agent treats what runs there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Cluster: letters, digits, `_` and `-`, at most 64.
    pub cluster_id: String,
    /// Thousandths of a CPU core that workloads may use together.
    pub cpu_milli: u32,
    /// Bytes of memory that workloads may use together.
    pub memory_bytes: u64,
    /// Labels as `tier=edge,zone=north`.
    pub labels: String,
    /// `process` or `simulated`.
    pub driver: String,
    /// Are documents run as processes? They share the host and its network. Otherwise the `process` driver refuses them,
    /// and says why.
    pub process_documents: bool,
    /// Users of instances: `auto` for one each where the agent is root, `FROM-TO` for one each out of these ids and no
    /// start without, `off` to run all as the agent's own user, who can read what the agent can.
    pub workload_users: String,
    /// Parent of the folders of instances with users of their own; one for all agents of a host.
    pub workload_dir: String,
    /// Site in telemetry keys; the cluster when empty.
    pub site: String,
    /// Node in telemetry keys; the cluster when empty.
    pub node: String,
    /// Folder for what agents keep, each cluster in a folder of its own; the process's own data folder when empty, and
    /// `.continuum/clusters` if it has none.
    pub data_dir: String,
    /// Between two samples.
    pub sample_ms: u64,
    /// Time from asking a process to end to ending it.
    pub stop_grace_ms: u64,
    /// A replica counts as running once it has been up so long.
    pub ready_ms: u64,
    /// Restarts of one replica within `restart_window_ms`, after which its instance has failed.
    pub restarts_max: u32,
    /// The window in which restarts are counted.
    pub restart_window_ms: u64,
    /// Wait before the first restart; doubles with each.
    pub backoff_first_ms: u64,
    /// Longest wait before a restart.
    pub backoff_max_ms: u64,
    /// After so long up, the wait starts over.
    pub stable_ms: u64,
    /// How long a start waits for the bus before it goes on with the assignments it has kept.
    pub catch_up_ms: u64,
    /// Folders searched for commands, separated by `:`; the agent's own `PATH` when empty.
    pub path: String,
    /// `auto` to use control groups where that is permitted, `off` to use none.
    pub cgroup: String,
    /// Control group below which to make others; the agent's own when empty, if that is the root it sees.
    pub cgroup_parent: String,
    /// Seed of the simulated driver.
    pub sim_seed: u64,
    /// Mean time a simulated replica runs until it fails by itself; 0 for never.
    pub sim_mean_time_to_failure_ms: u64,
    /// Where network probes are answered, `address:port` (UDP and TCP); a free port beside the agent's own when empty,
    /// `off` to take no part.
    pub probe_listen: String,
    /// Where others reach that, `host:port`; as listened on when empty.
    pub probe_advertise: String,
    /// Length of a slot of the probe schedule; the same for all agents of a mesh.
    pub probe_slot_ms: u64,
    /// Echo requests in a probe.
    pub probe_echoes: u32,
    /// Bytes of a transfer that measures throughput; 0 for none.
    pub probe_bulk_bytes: u32,
    /// Bytes a second that this agent's probes may cost.
    pub probe_budget_bytes_per_s: u64,
    /// Are the host and its storage measured, under the name of the node? `auto` with the `process` driver, `on` always,
    /// `off` never. Where several agents share a host, one may do it for all.
    pub measure_host: String,
    /// Between two readings of the host and its energy, milliseconds; settings of measurement take its place.
    pub measure_ms: u32,
    /// Between two readings of storage, temperature, processes and control groups, milliseconds; as above.
    pub measure_slow_ms: u32,
    /// Between two readings of what workloads say of themselves, milliseconds; as above.
    pub measure_scrape_ms: u32,
    /// Folders that are storage locations beside the mounted file systems, as `name=/path,other=/path`.
    pub measure_folders: String,
    /// Values a second that the agent may send beside the samples of instances.
    pub measure_values_per_s: u32,
    /// Series that the agent may have; a series not sent for five minutes counts no more.
    pub measure_series_max: u32,
    /// Series that are taken of one workload's own metrics.
    pub measure_scrape_series_max: u32,
    /// Where workloads of the `process` driver may send metrics and traces by OTLP, over gRPC and HTTP on one port: `off`,
    /// `auto` for a free loopback port, or a loopback `address:port`. Instances find it in `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub otlp_listen: String,
    /// OTLP requests a second that are taken of one instance.
    pub otlp_requests_per_s: u32,
    /// Bytes a second of OTLP requests, uncompressed, that are taken of one instance.
    pub otlp_bytes_per_s: u32,
    /// IP prefixes of the site, as `10.1.0.0/16,2001:db8::/48`; only the node's address when empty.
    pub prefixes: String,
}

impl Default for Config {
    fn default() -> Self {
        let limits = Limits::default();
        Self {
            cluster_id: "local".into(),
            cpu_milli: limits.cpu_milli,
            memory_bytes: limits.memory_bytes,
            labels: String::new(),
            driver: "process".into(),
            process_documents: true,
            workload_users: "auto".into(),
            workload_dir: users::FOLDER.into(),
            site: String::new(),
            node: String::new(),
            data_dir: String::new(),
            sample_ms: 1_000,
            stop_grace_ms: limits.stop_grace_ms.unsigned_abs(),
            ready_ms: limits.ready_ms.unsigned_abs(),
            restarts_max: limits.restarts_max,
            restart_window_ms: limits.restart_window_ms.unsigned_abs(),
            backoff_first_ms: limits.backoff_first_ms.unsigned_abs(),
            backoff_max_ms: limits.backoff_max_ms.unsigned_abs(),
            stable_ms: limits.stable_ms.unsigned_abs(),
            catch_up_ms: 5_000,
            path: String::new(),
            cgroup: "auto".into(),
            cgroup_parent: String::new(),
            sim_seed: 0,
            sim_mean_time_to_failure_ms: 0,
            probe_listen: String::new(),
            probe_advertise: String::new(),
            probe_slot_ms: 1_000,
            probe_echoes: 5,
            probe_bulk_bytes: 256 * 1024,
            probe_budget_bytes_per_s: 128 * 1024,
            measure_host: "auto".into(),
            measure_ms: 1_000,
            measure_slow_ms: 5_000,
            measure_scrape_ms: 15_000,
            measure_folders: String::new(),
            measure_values_per_s: 5_000,
            measure_series_max: 20_000,
            measure_scrape_series_max: 1_000,
            otlp_listen: "off".into(),
            otlp_requests_per_s: 20,
            otlp_bytes_per_s: 1 << 20,
            prefixes: String::new(),
        }
    }
}

/// What runs replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Real processes.
    Process,
    /// A model.
    Simulated,
}

/// A value that cannot be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{key} {value:?} {problem}")]
pub struct Error {
    /// Its key.
    pub key: &'static str,
    /// The value.
    pub value: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

fn wrong(key: &'static str, value: impl ToString, problem: &'static str) -> Error {
    Error { key, value: value.to_string(), problem }
}

impl Config {
    /// Which driver.
    ///
    /// # Errors
    /// If any value cannot be; the first is named.
    pub fn check(&self) -> Result<Kind, Error> {
        for (key, value) in [("cluster_id", &self.cluster_id), ("site", self.site()), ("node", self.node())] {
            if !is_key(value) {
                return Err(wrong(key, value, "is not 1 to 64 letters, digits, `_` and `-`"));
            }
        }
        if self.cpu_milli == 0 {
            return Err(wrong("cpu_milli", 0, "leaves nothing to run on"));
        }
        if self.memory_bytes == 0 {
            return Err(wrong("memory_bytes", 0, "leaves nothing to run in"));
        }
        if !(10..=3_600_000).contains(&self.sample_ms) {
            return Err(wrong("sample_ms", self.sample_ms, "is not 10 to 3600000"));
        }
        self.labels()?;
        if !(20..=3_600_000).contains(&self.probe_slot_ms) {
            return Err(wrong("probe_slot_ms", self.probe_slot_ms, "is not 20 to 3600000"));
        }
        if !(1..=1_000).contains(&self.probe_echoes) {
            return Err(wrong("probe_echoes", self.probe_echoes, "is not 1 to 1000"));
        }
        if self.probe_bulk_bytes > 16 * 1024 * 1024 {
            return Err(wrong("probe_bulk_bytes", self.probe_bulk_bytes, "is more than 16777216"));
        }
        if !matches!(self.measure_host.as_str(), "auto" | "on" | "off") {
            return Err(wrong("measure_host", &self.measure_host, "is neither `auto`, `on` nor `off`"));
        }
        for (key, value) in [
            ("measure_ms", self.measure_ms),
            ("measure_slow_ms", self.measure_slow_ms),
            ("measure_scrape_ms", self.measure_scrape_ms),
        ] {
            if !(INTERVAL_MIN_MS..=INTERVAL_MAX_MS).contains(&value) {
                return Err(wrong(key, value, "is not 10 to 3600000"));
            }
        }
        if self.measure_values_per_s == 0 {
            return Err(wrong("measure_values_per_s", 0, "leaves nothing to say"));
        }
        if self.measure_series_max > SERIES_MAX {
            return Err(wrong("measure_series_max", self.measure_series_max, "is more than 1000000"));
        }
        self.otlp_address()?;
        for (key, value) in
            [("otlp_requests_per_s", self.otlp_requests_per_s), ("otlp_bytes_per_s", self.otlp_bytes_per_s)]
        {
            if value == 0 {
                return Err(wrong(key, 0, "takes nothing in; use `off` for otlp_listen instead"));
            }
        }
        for (name, folder) in self.folders_written() {
            if name.is_empty() || !folder.starts_with('/') {
                let wrote = format!("{name}={folder}");
                return Err(wrong("measure_folders", wrote, "is not `name=/path`"));
            }
        }
        self.workload_range()?;
        if !self.workload_dir.starts_with('/') {
            return Err(wrong("workload_dir", &self.workload_dir, "is not an absolute path"));
        }
        if !matches!(self.cgroup.as_str(), "auto" | "off") {
            return Err(wrong("cgroup", &self.cgroup, "is neither `auto` nor `off`"));
        }
        match self.driver.as_str() {
            "process" => Ok(Kind::Process),
            "simulated" => Ok(Kind::Simulated),
            other => Err(wrong("driver", other, "is neither `process` nor `simulated`")),
        }
    }

    /// Site in telemetry keys.
    pub fn site(&self) -> &String {
        if self.site.is_empty() { &self.cluster_id } else { &self.site }
    }

    /// Node in telemetry keys.
    pub fn node(&self) -> &String {
        if self.node.is_empty() { &self.cluster_id } else { &self.node }
    }

    /// Key of a sample or token.
    pub fn key(&self, signal: &str, id: &str) -> String {
        mesh_proto::sample_key(self.site(), self.node(), signal, id)
    }

    /// Labels by name.
    ///
    /// # Errors
    /// If one is not `name=value`.
    pub fn labels(&self) -> Result<BTreeMap<String, String>, Error> {
        let parts = self.labels.split(',').map(str::trim).filter(|part| !part.is_empty());
        parts
            .map(|part| {
                let (name, value) = part.split_once('=').ok_or_else(|| wrong("labels", part, "is not `name=value`"))?;
                Ok((name.trim().to_owned(), value.trim().to_owned()))
            })
            .collect()
    }

    /// Is the host measured?
    pub fn measures_host(&self, kind: Kind) -> bool {
        match self.measure_host.as_str() {
            "on" => true,
            "off" => false,
            _ => kind == Kind::Process,
        }
    }

    /// Where OTLP is received; nowhere if `None`.
    ///
    /// # Errors
    /// If it is not a loopback address.
    pub fn otlp_address(&self) -> Result<Option<SocketAddr>, Error> {
        let address = match self.otlp_listen.as_str() {
            "off" => return Ok(None),
            "auto" => SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            text => text
                .parse()
                .map_err(|_| wrong("otlp_listen", text, "is neither `off`, `auto` nor a loopback `address:port`"))?,
        };
        if !address.ip().is_loopback() {
            return Err(wrong(
                "otlp_listen",
                address,
                "is not a loopback address; tokens would cross the network in clear",
            ));
        }
        Ok(Some(address))
    }

    /// What an instance may send by OTLP.
    pub fn otlp_limits(&self) -> otlp::Limits {
        otlp::Limits {
            requests_per_s: self.otlp_requests_per_s,
            bytes_per_s: self.otlp_bytes_per_s,
            series: self.measure_scrape_series_max as usize,
        }
    }

    /// User ids of instances; `None` if all run as the agent's user.
    fn workload_range(&self) -> Result<Option<RangeInclusive<u32>>, Error> {
        let text = match self.workload_users.as_str() {
            "auto" => return Ok(Some(users::RANGE)),
            "off" => return Ok(None),
            text => text,
        };
        let ends =
            text.split_once('-').and_then(|(from, to)| Some((from.parse::<u32>().ok()?, to.parse::<u32>().ok()?)));
        // The last number stands for no user at all.
        match ends {
            Some((from, to)) if 0 < from && from <= to && to < u32::MAX => Ok(Some(from..=to)),
            _ => Err(wrong(
                "workload_users",
                text,
                "is neither `auto`, `off` nor `FROM-TO` with ids from 1 to 4294967294",
            )),
        }
    }

    fn folders_written(&self) -> impl Iterator<Item = (&str, &str)> {
        let parts = self.measure_folders.split(',').map(str::trim).filter(|part| !part.is_empty());
        parts.map(|part| part.split_once('=').map_or(("", part), |(name, folder)| (name.trim(), folder.trim())))
    }

    /// Folders that are storage locations, by name.
    pub fn folders(&self) -> BTreeMap<String, PathBuf> {
        self.folders_written().map(|(name, folder)| (name.to_owned(), PathBuf::from(folder))).collect()
    }

    /// What the agent may say beside the samples of instances.
    pub fn measure_limits(&self) -> budget::Limits {
        budget::Limits { values_per_s: self.measure_values_per_s, series: self.measure_series_max }
    }

    /// How patient the agent is.
    pub fn limits(&self) -> Limits {
        let ms = |value: u64| i64::try_from(value).unwrap_or(i64::MAX / 2_000_000);
        Limits {
            cpu_milli: self.cpu_milli,
            memory_bytes: self.memory_bytes,
            restarts_max: self.restarts_max,
            restart_window_ms: ms(self.restart_window_ms),
            backoff_first_ms: ms(self.backoff_first_ms),
            backoff_max_ms: ms(self.backoff_max_ms),
            stable_ms: ms(self.stable_ms),
            ready_ms: ms(self.ready_ms),
            stop_grace_ms: ms(self.stop_grace_ms),
            process_documents: self.process_documents || self.driver != "process",
        }
    }

    /// Folder below which each cluster has its own.
    pub fn folder(&self, of_process: Option<&std::path::Path>) -> PathBuf {
        match of_process {
            _ if !self.data_dir.is_empty() => PathBuf::from(&self.data_dir),
            Some(folder) => folder.join("clusters"),
            None => PathBuf::from(".continuum/clusters"),
        }
    }

    /// The simulated world.
    pub fn model(&self) -> Model {
        Model { seed: self.sim_seed, mean_time_to_failure_ms: self.sim_mean_time_to_failure_ms }
    }

    /// How processes are run, by the agent of this name and folder, which has these keys.
    ///
    /// # Errors
    /// If the range of users cannot be read.
    pub fn processes(
        &self,
        agent: String,
        agent_folder: PathBuf,
        keys: Vec<PathBuf>,
        otlp: Option<Arc<Door>>,
    ) -> Result<process::Options, Error> {
        let parent = Some(self.cgroup_parent.clone()).filter(|parent| !parent.is_empty());
        Ok(process::Options {
            users: users::Options {
                range: self.workload_range()?,
                required: self.workload_users != "auto",
                folder: PathBuf::from(&self.workload_dir),
                agent_folder,
                keys,
            },
            cluster_id: self.cluster_id.clone(),
            agent,
            cpu_milli: self.cpu_milli,
            memory_bytes: self.memory_bytes,
            path: self.path.clone(),
            cgroups: (self.cgroup == "auto").then(|| cgroup::System::read(parent)),
            otlp,
        })
    }

    /// How the network is probed.
    pub fn probing(&self) -> probe::Options {
        probe::Options {
            slot_ms: self.probe_slot_ms,
            echoes: self.probe_echoes,
            bulk_bytes: self.probe_bulk_bytes,
            budget_bytes_per_s: self.probe_budget_bytes_per_s,
        }
    }

    /// The cluster as it declares itself.
    ///
    /// # Errors
    /// If the labels cannot be read.
    pub fn registration(
        &self,
        enforcement: String,
        endpoint: String,
        incarnation: u64,
        probe_endpoint: String,
    ) -> Result<ClusterRegistered, Error> {
        Ok(ClusterRegistered {
            cluster_id: self.cluster_id.clone(),
            cpu_milli: self.cpu_milli,
            memory_bytes: self.memory_bytes,
            labels: self.labels()?,
            driver: self.driver.clone(),
            site: self.site().clone(),
            node: self.node().clone(),
            enforcement,
            endpoint,
            incarnation,
            probe_endpoint,
            prefixes: self.prefixes.split(',').map(str::trim).filter(|p| !p.is_empty()).map(Into::into).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_value_is_named() {
        let key = |config: Config| config.check().unwrap_err().key;
        assert_eq!(key(Config { cluster_id: "a.b".into(), ..Config::default() }), "cluster_id");
        assert_eq!(key(Config { driver: "docker".into(), ..Config::default() }), "driver");
        assert_eq!(key(Config { labels: "tier".into(), ..Config::default() }), "labels");
        assert_eq!(key(Config { cpu_milli: 0, ..Config::default() }), "cpu_milli");
        assert_eq!(key(Config { measure_host: "yes".into(), ..Config::default() }), "measure_host");
        assert_eq!(key(Config { measure_slow_ms: 9, ..Config::default() }), "measure_slow_ms");
        assert_eq!(key(Config { measure_folders: "data=here".into(), ..Config::default() }), "measure_folders");
        assert_eq!(key(Config { measure_folders: "/srv".into(), ..Config::default() }), "measure_folders");
        assert_eq!(key(Config { otlp_listen: "0.0.0.0:4317".into(), ..Config::default() }), "otlp_listen");
        assert_eq!(key(Config { otlp_listen: "on".into(), ..Config::default() }), "otlp_listen");
        assert_eq!(key(Config { otlp_bytes_per_s: 0, ..Config::default() }), "otlp_bytes_per_s");
        for users in ["on", "0-5", "7-5", "1-4294967295", "1000", "a-b"] {
            assert_eq!(key(Config { workload_users: users.into(), ..Config::default() }), "workload_users");
        }
        assert_eq!(key(Config { workload_dir: "here".into(), ..Config::default() }), "workload_dir");
        assert_eq!(Config::default().check(), Ok(Kind::Process));
    }

    #[test]
    fn labels_are_read_and_empty_names_follow_the_cluster() {
        let config = Config { cluster_id: "edge".into(), labels: "tier=edge, zone=a=b".into(), ..Config::default() };
        let labels = config.labels().unwrap();
        assert_eq!((labels["tier"].as_str(), labels["zone"].as_str()), ("edge", "a=b"));
        assert_eq!(config.key("instance", "x"), "continuum/edge/edge/instance/x");
    }
}
