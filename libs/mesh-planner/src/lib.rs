//! Where an instance could run: a pure filter and score over clusters.
//!
//! The problem in a few numbers. A cluster has an amount of CPU and memory, and placements have reserved a part. An
//! instance asks for an amount of both, for all its replicas together, and has bounds on what it will be measured to
//! use. A cluster is ruled out, with the figure, if it
//!
//! - is excluded by the caller (the instance failed there, its agent would not take it, its targets are missed there),
//! - is lost, lacks a label that the instance asks for, or has another driver than the instance needs,
//! - has less free CPU or memory than the instance asks for,
//! - is further than a bound allows from a site, a cluster or an instance, by measured latency, or the link is not measured
//!   or down, or
//! - would miss a target: *cpuUsage* is predicted as load · 100 / the cluster's CPU, where the load is what was
//!   measured or else what is requested; *ramUsage* is predicted as what was measured.
//!
//! Three choices behind this. A memory request is a reservation and not a prediction, and resident memory is the same
//! on every cluster: unmeasured, it rules out nothing. A hard limit caps a prediction, since a replica cannot use more;
//! a limit above the cluster's size does not rule the cluster out. A prediction is never exact, so `IS_EQUAL_TO`
//! rules out nothing. Nothing predicts how fast or how well a workload will answer on a cluster: such targets rule out
//! nothing either, and each candidate says so; a cluster where they were missed is one of those that the caller excludes.
//!
//! The others are scored from 0 to 100 and the best is chosen, the lowest id of equals. Nothing here knows time, order or
//! chance: the same figures give the same choice, in a service, in a replay and in a what-if.

use std::{collections::BTreeMap, fmt};

use mesh_intent::types;
use mesh_proto::{
    Timestamp,
    placement::{Candidate, LatenciesNoted, Load},
    workload::{LatencyBound, TargetBound, WorkloadDocument},
};
use serde::{Deserialize, Serialize};

/// Target name of the share of its cluster's CPU, in per cent.
pub const CPU_USAGE: &str = "cpuUsage";
/// Target name of the resident memory, in MB of 10⁶ bytes.
pub const RAM_USAGE: &str = "ramUsage";
/// Target name of the per cent of the time that a cluster declares itself available, by its label of the same name.
pub const AVAILABILITY: &str = "availability";

/// Why there is no prediction of a target that requests measure.
pub const UNPREDICTABLE: &str = "measured by requests to its exposed route, which nothing predicts";

/// Label of the clusters that run charts; its value is `true`.
pub const CHARTS: &str = "continuum.eu/charts";
/// Kind of the documents that are charts.
const CHART_KIND: &str = "chart";

/// What an instance needs its cluster to run it with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// Real processes.
    #[default]
    Process,
    /// A model of them: nothing runs.
    Simulated,
    /// Either of the two.
    Any,
    /// A driver for charts, which a cluster declares by the label [`CHARTS`].
    Charts,
}

impl Driver {
    /// The values of a document's `driver`; without one it is the first.
    pub const NAMES: [&str; 3] = [Self::Process.name(), Self::Simulated.name(), Self::Any.name()];

    /// What a document needs. A document without a driver, such as every one of an earlier release, needs `process`.
    pub fn of(document: &WorkloadDocument) -> Self {
        match document.driver.as_str() {
            _ if document.kind == CHART_KIND => Self::Charts,
            "simulated" => Self::Simulated,
            "any" => Self::Any,
            _ => Self::Process,
        }
    }

    /// Its name in a document.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Simulated => "simulated",
            Self::Any => "any",
            Self::Charts => "charts",
        }
    }

    /// What acceptance of such a document does not promise, in words; empty of one that runs as processes.
    pub fn statement(self) -> &'static str {
        match self {
            Self::Process => "",
            Self::Simulated => "it is only simulated: clusters model what it would use, and nothing runs",
            Self::Any => "it may be placed on a simulated cluster, where nothing runs",
            Self::Charts => {
                "no agent of this release runs charts: an instance of it waits for a cluster labelled \
                 continuum.eu/charts=true, whose agent has a driver for them"
            }
        }
    }

    /// What rules a cluster out for it, in words; `None` if the cluster has it.
    pub fn ruled_out(self, cluster: &Cluster) -> Option<String> {
        let wanted = self.name();
        match (self, cluster.driver()) {
            (Self::Charts, found) => {
                let runs_charts = cluster.labels.get(CHARTS).is_some_and(|value| value == "true");
                (!runs_charts).then(|| {
                    format!("has no driver for charts: its driver is {found} (one that runs charts is labelled {CHARTS}=true)")
                })
            }
            (Self::Any, "process" | "simulated") => None,
            (_, found) if found == wanted => None,
            (_, "simulated") => {
                Some(format!("its driver is simulated, which runs nothing; the workload needs driver {wanted}"))
            }
            (_, found) => Some(format!("its driver is {found}; the workload needs driver {wanted}")),
        }
    }
}

/// One cluster as the planner sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cluster {
    /// Thousandths of a core that workloads may use together.
    pub cpu_milli: u32,
    /// Bytes that workloads may use together.
    pub memory_bytes: u64,
    /// Labels, to be selected by.
    pub labels: BTreeMap<String, String>,
    /// What it runs workloads with, as its agent declares it: `process` or `simulated`. Empty of a cluster that joined
    /// before drivers were recorded; that counts as `process` until its agent starts again.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub driver: String,
    /// Does its agent answer?
    pub available: bool,
    /// When it joined, or was lost or returned last.
    pub since: Timestamp,
    /// Thousandths of a core reserved by placements.
    pub cpu_milli_reserved: u64,
    /// Bytes reserved by placements.
    pub memory_bytes_reserved: u64,
}

impl Cluster {
    fn driver(&self) -> &str {
        if self.driver.is_empty() { Driver::Process.name() } else { &self.driver }
    }
}

/// All clusters of a domain at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// By cluster id.
    pub clusters: BTreeMap<String, Cluster>,
    /// The network between them, as far as it is measured.
    #[serde(default, rename = "ways", skip_serializing_if = "Topology::is_empty")]
    pub topology: Topology,
}

/// The measured network: links by the cluster where they begin and the one where they end.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Topology(BTreeMap<String, BTreeMap<String, Link>>);

/// One measured link between two clusters.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Link {
    /// One way, milliseconds.
    pub latency_ms: f64,
    /// Site where it begins.
    pub from_site: String,
    /// Site where it ends.
    pub to_site: String,
}

impl From<&LatenciesNoted> for Topology {
    fn from(noted: &LatenciesNoted) -> Self {
        let mut topology = Self::default();
        for link in &noted.links {
            let measured =
                Link { latency_ms: link.latency_ms, from_site: link.from_site.clone(), to_site: link.to_site.clone() };
            topology.0.entry(link.from_cluster.clone()).or_default().insert(link.to_cluster.clone(), measured);
        }
        topology
    }
}

impl Topology {
    /// Is nothing measured?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The latency between two clusters, milliseconds: the worse of both directions, 0 to itself; `None` while it is not
    /// measured or the link is down.
    pub fn latency_ms(&self, one: &str, other: &str) -> Option<f64> {
        if one == other {
            return Some(0.0);
        }
        let link = |from: &str, to: &str| self.0.get(from)?.get(to).map(|link| link.latency_ms);
        link(one, other).zip(link(other, one)).map(|(there, back)| there.max(back))
    }

    /// The latency from a cluster to the nearest cluster of a site.
    fn latency_to_site_ms(&self, cluster_id: &str, site: &str) -> Option<f64> {
        let links = || self.0.values().flatten();
        let own = || self.0.get(cluster_id).into_iter().flat_map(BTreeMap::values);
        // A cluster that names no site is its own.
        if cluster_id == site || own().any(|link| link.from_site == site) {
            return Some(0.0);
        }
        let there = links().filter(|(_, link)| link.to_site == site).map(|(to, _)| to);
        let latencies = there.filter_map(|to| self.latency_ms(cluster_id, to));
        latencies.min_by(f64::total_cmp)
    }

    /// What a bound comes to on a cluster.
    fn latency_of(&self, cluster_id: &str, bound: &LatencyBound) -> Option<f64> {
        if bound.to_cluster.is_empty() {
            self.latency_to_site_ms(cluster_id, &bound.to_site)
        } else {
            self.latency_ms(cluster_id, &bound.to_cluster)
        }
    }

    /// The first latency bound that a cluster misses, in words; bounds to instances are looked at where those are known.
    pub fn missed_latency(&self, cluster_id: &str, spec: &Spec) -> Option<String> {
        let bounds = spec.latency_bounds.iter().filter(|bound| is_placed(bound));
        let mut missed = bounds.filter_map(|bound| {
            let value = self.latency_of(cluster_id, bound);
            let held = value.is_some_and(|value| value <= bound.max_latency_ms);
            (!held).then(|| Obstacle::Latency { bound, value }.to_string())
        });
        missed.next()
    }
}

/// Does a latency bound name a place? One to an instance does once it is known where that runs.
fn is_placed(bound: &LatencyBound) -> bool {
    !bound.to_cluster.is_empty() || !bound.to_site.is_empty()
}

/// What a whole instance asks for, all its replicas together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// Thousandths of a core to reserve.
    pub cpu_milli: u64,
    /// Bytes to reserve.
    pub memory_bytes: u64,
    /// Hard limit, thousandths of a core; 0 for none.
    pub cpu_limit_milli: u64,
    /// Hard limit in bytes; 0 for none.
    pub memory_limit_bytes: u64,
    /// Labels that its cluster must carry.
    pub selector: BTreeMap<String, String>,
    /// Must it never run twice at once?
    pub singleton: bool,
    /// Bounds on measured latency.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub latency_bounds: Vec<LatencyBound>,
    /// What its cluster must run it with.
    #[serde(default)]
    pub driver: Driver,
}

impl Spec {
    /// What this many replicas of a document ask for together; saturates.
    pub fn of(document: &WorkloadDocument, replicas: u32) -> Self {
        let one = document.resources.unwrap_or_default();
        let all = |one: u64| one.saturating_mul(replicas.into());
        Self {
            cpu_milli: all(one.cpu_milli.into()),
            memory_bytes: all(one.memory_bytes),
            cpu_limit_milli: all(one.cpu_limit_milli.into()),
            memory_limit_bytes: all(one.memory_limit_bytes),
            selector: document.cluster_selector.clone(),
            singleton: document.singleton,
            latency_bounds: document.latency_bounds.clone(),
            driver: Driver::of(document),
        }
    }

    /// Points the bounds to instances at the clusters where those are; where that is unknown, such a bound rules nothing
    /// out.
    pub fn resolve(&mut self, whereabouts: impl Fn(&str) -> Option<String>) {
        for bound in self.latency_bounds.iter_mut().filter(|bound| !bound.to_instance.is_empty()) {
            bound.to_cluster = whereabouts(&bound.to_instance).unwrap_or_default();
            bound.to_site.clear();
        }
    }
}

/// What an instance holds on the cluster where it is, and gives back if it is placed there again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Held<'a> {
    /// Where it is.
    pub cluster_id: &'a str,
    /// Thousandths of a core reserved there.
    pub cpu_milli: u64,
    /// Bytes reserved there.
    pub memory_bytes: u64,
}

/// One question to the planner.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// What is asked for.
    pub spec: &'a Spec,
    /// Bounds to be predicted to hold.
    pub targets: &'a [TargetBound],
    /// What the instance was last measured to use.
    pub measured: Option<&'a Load>,
    /// Where it is now.
    pub held: Option<Held<'a>>,
    /// Clusters that the caller rules out, and why.
    pub excluded: &'a BTreeMap<String, String>,
}

/// How the candidates left over are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preference {
    /// The more is left free, the better: loads are spread.
    #[default]
    Spread,
    /// The less is left free, the better: the smallest cluster that does, and large ones stay free for what needs them.
    Pack,
}

/// Most points of each score part; together 100.
const FREE_CPU_POINTS: f64 = 30.0;
const FREE_MEMORY_POINTS: f64 = 20.0;
const BALANCE_POINTS: f64 = 20.0;
const STAY_POINTS: f64 = 30.0;

/// The planner's answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// The best cluster that qualifies, if any.
    pub chosen: Option<String>,
    /// Every cluster, in the order of its id, with its score or with what ruled it out.
    pub candidates: Vec<Candidate>,
    /// If none qualifies: the nearest miss, with its cluster and by how much. Else empty.
    pub nearest: String,
}

/// Chooses a cluster for an instance.
pub fn choose(snapshot: &Snapshot, request: &Request<'_>, preference: Preference) -> Choice {
    let mut best: Option<(f64, &str)> = None;
    let mut nearest: Option<(f64, usize)> = None;
    let mut candidates = Vec::with_capacity(snapshot.clusters.len());
    for (id, cluster) in &snapshot.clusters {
        let mut candidate = Candidate {
            cluster_id: id.clone(),
            predicted: predicted(cluster, request),
            unpredicted: unpredicted(request),
            ..Default::default()
        };
        let mut short = Some(0.0f64);
        obstacles(&snapshot.topology, id, cluster, request, &mut |obstacle| {
            let separator = if candidate.ruled_out.is_empty() { "" } else { "; " };
            candidate.ruled_out = format!("{}{separator}{obstacle}", candidate.ruled_out);
            short = short.zip(obstacle.short()).map(|(a, b)| a.max(b));
        });
        if candidate.ruled_out.is_empty() {
            candidate.parts = parts(id, cluster, request, preference);
            candidate.score = hundredths(candidate.parts.values().sum());
            if best.is_none_or(|(score, _)| candidate.score > score) {
                best = Some((candidate.score, id));
            }
        } else if let Some(short) = short
            && nearest.is_none_or(|(least, _)| short < least)
        {
            nearest = Some((short, candidates.len()));
        }
        candidates.push(candidate);
    }
    let nearest = match (best, nearest) {
        (Some(_), _) => String::new(),
        (None, Some((_, index))) => candidates
            .get(index)
            .map(|c: &Candidate| format!("nearest miss: {}: {}", c.cluster_id, c.ruled_out))
            .unwrap_or_default(),
        (None, None) if candidates.is_empty() => "no cluster has joined".to_owned(),
        (None, None) => none_qualifies(&candidates),
    };
    Choice { chosen: best.map(|(_, id)| id.to_owned()), candidates, nearest }
}

/// Could some cluster take it? The same answer as [`choose`] gives, without saying why.
pub fn fits(snapshot: &Snapshot, request: &Request<'_>) -> bool {
    snapshot.clusters.iter().any(|(id, cluster)| admits(&snapshot.topology, id, cluster, request))
}

/// What a cluster would have to have free for the instance, thousandths of a core and bytes, if room is all that it may
/// lack; `None` if something else is in the way. Reservations make no difference.
pub fn room(snapshot: &Snapshot, id: &str, cluster: &Cluster, request: &Request<'_>) -> Option<(u64, u64)> {
    let mut only_room = true;
    obstacles(&snapshot.topology, id, cluster, request, &mut |obstacle| {
        only_room &= matches!(obstacle, Obstacle::Cpu { .. } | Obstacle::Memory { .. });
    });
    let held = request.held.filter(|h| h.cluster_id == id);
    let (cpu, memory) = held.map_or((0, 0), |h| (h.cpu_milli, h.memory_bytes));
    let needs = (request.spec.cpu_milli.saturating_sub(cpu), request.spec.memory_bytes.saturating_sub(memory));
    only_room.then_some(needs)
}

/// Can the cluster never take the instance, were it empty and its agent there: by its labels, its size, or what is predicted?
pub fn never(id: &str, cluster: &Cluster, request: &Request<'_>) -> bool {
    let empty = Cluster { available: true, cpu_milli_reserved: 0, memory_bytes_reserved: 0, ..cluster.clone() };
    let mut never = false;
    let alone = Request { held: None, ..request.clone() };
    // Latencies change: nothing that they rule out is ruled out for ever.
    obstacles(&Topology::default(), id, &empty, &alone, &mut |obstacle| {
        never |= !matches!(obstacle, Obstacle::Excluded { .. } | Obstacle::Latency { .. });
    });
    never
}

/// Could this cluster take it? The same answer as [`choose`] gives for it, without saying why.
pub fn admits(topology: &Topology, id: &str, cluster: &Cluster, request: &Request<'_>) -> bool {
    let mut free = true;
    obstacles(topology, id, cluster, request, &mut |_| free = false);
    free
}

/// Does a value hold a bound? `None` for a condition that is not a comparison with one number.
pub fn holds(condition: &str, value: f64, bound: f64) -> Option<bool> {
    match condition {
        "IS_LESS_THAN" => Some(value < bound),
        "IS_EQUAL_TO_OR_LESS_THAN" => Some(value <= bound),
        "IS_GREATER_THAN" => Some(value > bound),
        "IS_EQUAL_TO_OR_GREATER_THAN" => Some(value >= bound),
        "IS_EQUAL_TO" => Some(value == bound),
        _ => None,
    }
}

/// At most this many clusters are named when none qualifies.
const NAMED_MAX: usize = 5;

fn none_qualifies(candidates: &[Candidate]) -> String {
    let named: Vec<String> =
        candidates.iter().take(NAMED_MAX).map(|c| format!("{}: {}", c.cluster_id, c.ruled_out)).collect();
    let rest = candidates.len().saturating_sub(NAMED_MAX);
    let rest = if rest == 0 { String::new() } else { format!("; and {rest} more") };
    format!("no cluster qualifies: {}{rest}", named.join("; "))
}

/// What stands against a candidate.
enum Obstacle<'a> {
    Excluded { why: &'a str },
    Lost,
    Driver { why: String },
    Label { name: &'a str, wanted: &'a str, found: Option<&'a str> },
    Cpu { needs: u64, free: u64 },
    Memory { needs: u64, free: u64 },
    Target { bound: &'a TargetBound, value: f64 },
    Undeclared { bound: &'a TargetBound },
    Latency { bound: &'a LatencyBound, value: Option<f64> },
}

impl Obstacle<'_> {
    /// By how much, relative to what is asked for; `None` if no amount of capacity would help.
    fn short(&self) -> Option<f64> {
        match self {
            Self::Excluded { .. }
            | Self::Lost
            | Self::Driver { .. }
            | Self::Label { .. }
            | Self::Latency { .. }
            | Self::Undeclared { .. } => None,
            Self::Cpu { needs, free } | Self::Memory { needs, free } => {
                Some((needs - free) as f64 / (*needs).max(1) as f64)
            }
            Self::Target { bound, value } => {
                Some((value - bound.bound).abs() / bound.bound.abs().max(f64::MIN_POSITIVE))
            }
        }
    }
}

impl fmt::Display for Obstacle<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mb = |bytes: u64| bytes as f64 / 1e6;
        match self {
            Self::Excluded { why } => f.write_str(why),
            Self::Driver { why } => f.write_str(why),
            Self::Lost => f.write_str("cluster lost"),
            Self::Label { name, wanted, found: None } => write!(f, "has no label {name}={wanted}"),
            Self::Label { name, wanted, found: Some(found) } => write!(f, "label {name} is {found}, not {wanted}"),
            Self::Cpu { needs, free } => write!(f, "needs {needs} mCPU, {free} free: {} short", needs - free),
            Self::Memory { needs, free } => {
                write!(f, "needs {:.1} MB, {:.1} free: {:.1} short", mb(*needs), mb(*free), mb(needs - free))
            }
            Self::Latency { bound, value } => {
                let to = match (bound.to_cluster.as_str(), bound.to_instance.as_str()) {
                    ("", _) => format!("site {}", bound.to_site),
                    (cluster, "") => format!("cluster {cluster}"),
                    (cluster, instance) => format!("instance {instance} on {cluster}"),
                };
                let max = bound.max_latency_ms;
                match value {
                    Some(value) => {
                        write!(f, "latency to {to} is {value:.1} ms, wanted at most {max}: {:.1} over", value - max)
                    }
                    None => write!(f, "latency to {to} is not measured, wanted at most {max} ms"),
                }
            }
            Self::Undeclared { bound } => {
                let (name, condition, wanted) = (&bound.target_name, &bound.target_condition, bound.bound);
                write!(f, "declares no {name} by a label of that name, wanted {condition} {wanted}")
            }
            Self::Target { bound, value } => {
                let side = if *value >= bound.bound { "over" } else { "under" };
                let unit = if bound.target_name == RAM_USAGE { " MB" } else { " %" };
                let (name, condition, by) = (&bound.target_name, &bound.target_condition, (value - bound.bound).abs());
                write!(f, "{name} would be {value:.1}{unit}, wanted {condition} {}: {by:.1} {side}", bound.bound)
            }
        }
    }
}

fn obstacles<'a>(
    topology: &Topology,
    id: &str,
    cluster: &'a Cluster,
    request: &'a Request<'_>,
    found: &mut dyn FnMut(Obstacle<'a>),
) {
    for bound in request.spec.latency_bounds.iter().filter(|bound| is_placed(bound)) {
        let value = topology.latency_of(id, bound);
        if value.is_none_or(|value| value > bound.max_latency_ms) {
            found(Obstacle::Latency { bound, value });
        }
    }
    if let Some(why) = request.excluded.get(id) {
        found(Obstacle::Excluded { why });
    }
    if !cluster.available {
        found(Obstacle::Lost);
    }
    if let Some(why) = request.spec.driver.ruled_out(cluster) {
        found(Obstacle::Driver { why });
    }
    for (name, wanted) in &request.spec.selector {
        let label = cluster.labels.get(name).map(String::as_str);
        if label != Some(wanted) {
            found(Obstacle::Label { name, wanted, found: label });
        }
    }
    let (cpu_reserved, memory_reserved) = reserved_without(id, cluster, request);
    let cpu_free = u64::from(cluster.cpu_milli).saturating_sub(cpu_reserved);
    if request.spec.cpu_milli > cpu_free {
        found(Obstacle::Cpu { needs: request.spec.cpu_milli, free: cpu_free });
    }
    let memory_free = cluster.memory_bytes.saturating_sub(memory_reserved);
    if request.spec.memory_bytes > memory_free {
        found(Obstacle::Memory { needs: request.spec.memory_bytes, free: memory_free });
    }
    for bound in request.targets {
        let value = match bound.target_name.as_str() {
            CPU_USAGE => Some(cpu_percent(cluster, request)),
            RAM_USAGE => memory_mb(request),
            AVAILABILITY => match types::percent_of(&cluster.labels, types::AVAILABILITY_LABEL) {
                Some(percent) => Some(percent),
                None => {
                    found(Obstacle::Undeclared { bound });
                    continue;
                }
            },
            _ => None,
        };
        let Some(value) = value else { continue };
        // What a cluster declares is exact, and as much as is wanted is at least that much.
        if bound.target_name == AVAILABILITY && bound.target_condition == "IS_EQUAL_TO" {
            if value < bound.bound {
                found(Obstacle::Target { bound, value });
            }
            continue;
        }
        if bound.target_condition != "IS_EQUAL_TO" && holds(&bound.target_condition, value, bound.bound) == Some(false)
        {
            found(Obstacle::Target { bound, value });
        }
    }
}

/// What the others have reserved: an instance that stays gives its own back.
fn reserved_without(id: &str, cluster: &Cluster, request: &Request<'_>) -> (u64, u64) {
    let held = request.held.filter(|h| h.cluster_id == id);
    let (cpu, memory) = held.map_or((0, 0), |h| (h.cpu_milli, h.memory_bytes));
    (cluster.cpu_milli_reserved.saturating_sub(cpu), cluster.memory_bytes_reserved.saturating_sub(memory))
}

/// The load to expect, thousandths of a core: measured, or else requested; never above the hard limit.
pub fn load_milli(spec: &Spec, measured: Option<&Load>) -> u64 {
    let load = measured.map_or(spec.cpu_milli, |m| u64::from(m.cpu_milli));
    if spec.cpu_limit_milli == 0 { load } else { load.min(spec.cpu_limit_milli) }
}

fn cpu_percent(cluster: &Cluster, request: &Request<'_>) -> f64 {
    load_milli(request.spec, request.measured) as f64 * 100.0 / f64::from(cluster.cpu_milli.max(1))
}

fn memory_mb(request: &Request<'_>) -> Option<f64> {
    let bytes = request.measured.map(|m| m.memory_bytes).filter(|bytes| *bytes > 0)?;
    let limit = request.spec.memory_limit_bytes;
    Some(if limit == 0 { bytes } else { bytes.min(limit) } as f64 / 1e6)
}

fn predicted(cluster: &Cluster, request: &Request<'_>) -> BTreeMap<String, f64> {
    let cpu = Some((CPU_USAGE.to_owned(), hundredths(cpu_percent(cluster, request))));
    let memory = memory_mb(request).map(|mb| (RAM_USAGE.to_owned(), hundredths(mb)));
    cpu.into_iter().chain(memory).collect()
}

/// The targets that nothing predicts, and why.
fn unpredicted(request: &Request<'_>) -> Vec<String> {
    let of_traffic = request.targets.iter().filter(|bound| types::is_of_traffic(&bound.target_name));
    of_traffic.map(|bound| format!("{}: {UNPREDICTABLE}", bound.target_name)).collect()
}

fn parts(id: &str, cluster: &Cluster, request: &Request<'_>, preference: Preference) -> BTreeMap<String, f64> {
    let (cpu_reserved, memory_reserved) = reserved_without(id, cluster, request);
    let used = |reserved: u64, asked: u64, size: u64| ((reserved + asked) as f64 / size.max(1) as f64).min(1.0);
    let cpu = used(cpu_reserved, request.spec.cpu_milli, cluster.cpu_milli.into());
    let memory = used(memory_reserved, request.spec.memory_bytes, cluster.memory_bytes);
    let room = |used: f64| if preference == Preference::Spread { 1.0 - used } else { used };
    let stays = request.held.is_some_and(|h| h.cluster_id == id);
    BTreeMap::from([
        ("free_cpu".to_owned(), hundredths(FREE_CPU_POINTS * room(cpu))),
        ("free_memory".to_owned(), hundredths(FREE_MEMORY_POINTS * room(memory))),
        ("balance".to_owned(), hundredths(BALANCE_POINTS * (1.0 - (cpu - memory).abs()))),
        ("stay".to_owned(), if stays { STAY_POINTS } else { 0.0 }),
    ])
}

fn hundredths(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use mesh_proto::workload::Resources;
    use proptest::prelude::*;

    use super::*;

    fn cluster(cpu_milli: u32, memory_mb: u64) -> Cluster {
        Cluster { cpu_milli, memory_bytes: memory_mb * 1_000_000, available: true, ..Default::default() }
    }

    fn spec(cpu_milli: u64, memory_mb: u64) -> Spec {
        Spec { cpu_milli, memory_bytes: memory_mb * 1_000_000, ..Default::default() }
    }

    fn below(name: &str, bound: f64) -> TargetBound {
        TargetBound { target_name: name.into(), target_condition: "IS_LESS_THAN".into(), bound }
    }

    fn link(snapshot: &mut Snapshot, one: &str, other: &str, latency_ms: f64) {
        for (from, to) in [(one, other), (other, one)] {
            let measured = Link { latency_ms, from_site: format!("s-{from}"), to_site: format!("s-{to}") };
            snapshot.topology.0.entry(from.into()).or_default().insert(to.into(), measured);
        }
    }

    fn near(to_site: &str, to_cluster: &str, max_latency_ms: f64) -> LatencyBound {
        LatencyBound { to_site: to_site.into(), to_cluster: to_cluster.into(), max_latency_ms, ..Default::default() }
    }

    #[test]
    fn a_document_asks_for_all_its_replicas_together() {
        let resources =
            Resources { cpu_milli: 100, memory_bytes: 1 << 20, cpu_limit_milli: 200, memory_limit_bytes: u64::MAX / 2 };
        let document = WorkloadDocument {
            kind: CHART_KIND.into(),
            resources: Some(resources),
            cluster_selector: [("zone".to_owned(), "north".to_owned())].into(),
            singleton: true,
            latency_bounds: vec![LatencyBound { max_latency_ms: 5.0, ..Default::default() }],
            ..Default::default()
        };
        let spec = Spec::of(&document, 3);
        let sizes = (spec.cpu_milli, spec.memory_bytes, spec.cpu_limit_milli, spec.memory_limit_bytes);
        assert_eq!(sizes, (300, 3 << 20, 600, u64::MAX), "a product that is too large is the largest");
        assert!(
            spec.singleton
                && spec.driver == Driver::Charts
                && spec.selector["zone"] == "north"
                && spec.latency_bounds.len() == 1
        );
        assert_eq!(Spec::of(&WorkloadDocument::default(), 3), Spec::default(), "who names nothing asks for nothing");
    }

    #[test]
    fn a_measured_latency_rules_a_cluster_out_with_its_figure() {
        let mut snapshot = Snapshot::default();
        for id in ["a", "b", "c"] {
            snapshot.clusters.insert(id.into(), cluster(1_000, 1_000));
        }
        link(&mut snapshot, "a", "c", 31.25);
        link(&mut snapshot, "b", "c", 1.0);
        let bound = near("s-c", "", 20.0);
        let spec = Spec { latency_bounds: vec![bound, near("", "b", 5.0)], ..spec(100, 100) };
        let excluded = BTreeMap::new();
        let request = Request { spec: &spec, targets: &[], measured: None, held: None, excluded: &excluded };
        let choice = choose(&snapshot, &request, Preference::Spread);
        let ruled: Vec<&str> = choice.candidates.iter().map(|c| c.ruled_out.as_str()).collect();
        let far = "latency to site s-c is 31.2 ms, wanted at most 20: 11.2 over";
        let both = format!("{far}; latency to cluster b is not measured, wanted at most 5 ms");
        assert_eq!(ruled, [both.as_str(), "", ""]);
        assert_eq!(snapshot.topology.missed_latency("a", &spec).as_deref(), Some(far));
        assert_eq!(snapshot.topology.missed_latency("c", &spec), None, "a site is near to itself");
        // One direction is as good as the worse of both.
        if let Some(link) = snapshot.topology.0.get_mut("c").and_then(|links| links.get_mut("b")) {
            link.latency_ms = 25.0;
        }
        assert_eq!(choose(&snapshot, &request, Preference::Spread).chosen, None);
        let unplaced = Spec {
            latency_bounds: vec![LatencyBound { to_instance: "x".into(), max_latency_ms: 1.0, ..Default::default() }],
            ..spec.clone()
        };
        assert_eq!(snapshot.topology.missed_latency("a", &unplaced), None, "an instance that runs nowhere is not far");
    }

    #[test]
    fn a_cluster_that_declares_less_availability_than_is_wanted_is_ruled_out() {
        let mut snapshot = three();
        for (id, label) in [("device", "90%"), ("edge", " 99.95 % ")] {
            let cluster = snapshot.clusters.get_mut(id).unwrap();
            cluster.labels.insert("availability".into(), label.into());
        }
        let (spec, excluded) = (spec(10, 10), BTreeMap::new());
        for condition in ["IS_EQUAL_TO", "IS_EQUAL_TO_OR_GREATER_THAN"] {
            let (target_name, target_condition) = (AVAILABILITY.to_owned(), condition.to_owned());
            let targets = [TargetBound { target_name, target_condition, bound: 99.9 }];
            let request = Request { spec: &spec, targets: &targets, measured: None, held: None, excluded: &excluded };
            let choice = choose(&snapshot, &request, Preference::Spread);
            assert_eq!(choice.chosen.as_deref(), Some("edge"), "{condition}");
            let ruled = |id: &str| choice.candidates.iter().find(|c| c.cluster_id == id).unwrap().ruled_out.clone();
            assert_eq!(ruled("device"), format!("availability would be 90.0 %, wanted {condition} 99.9: 9.9 under"));
            assert!(ruled("cloud").starts_with("declares no availability"), "{}", ruled("cloud"));
        }
    }

    #[test]
    fn targets_of_requests_rule_nothing_out_and_each_candidate_says_so() {
        let (spec, excluded) = (spec(10, 10), BTreeMap::new());
        let bound = |name: &str| TargetBound {
            target_name: name.into(),
            target_condition: "IS_LESS_THAN".into(),
            bound: 0.001,
        };
        let targets = [bound("responseTimeP95"), bound("errorRate"), bound("cpuUsage")];
        let request = Request { spec: &spec, targets: &targets[..2], measured: None, held: None, excluded: &excluded };
        let choice = choose(&three(), &request, Preference::Spread);
        assert!(choice.candidates.iter().all(|c| c.ruled_out.is_empty()), "{choice:?}");
        let said = |choice: &Choice| choice.candidates[0].unpredicted.clone();
        let why = |name: &str| format!("{name}: {UNPREDICTABLE}");
        assert_eq!(said(&choice), [why("responseTimeP95"), why("errorRate")]);
        let none = choose(&three(), &Request { targets: &targets[2..], ..request }, Preference::Spread);
        assert_eq!(said(&none), [""; 0]);
    }

    fn three() -> Snapshot {
        let named = [("cloud", cluster(4000, 8000)), ("device", cluster(500, 500)), ("edge", cluster(1000, 2000))];
        Snapshot { clusters: named.into_iter().map(|(id, c)| (id.to_owned(), c)).collect(), ..Default::default() }
    }

    fn ask<'a>(spec: &'a Spec, targets: &'a [TargetBound], excluded: &'a BTreeMap<String, String>) -> Request<'a> {
        Request { spec, targets, measured: None, held: None, excluded }
    }

    fn ruled_out<'a>(choice: &'a Choice, id: &str) -> &'a str {
        choice.candidates.iter().find(|c| c.cluster_id == id).map_or("no such candidate", |c| &c.ruled_out)
    }

    #[test]
    fn a_load_that_is_too_much_for_the_device_is_little_for_the_cloud() {
        let (spec, targets, none) = (spec(50, 50), [below(CPU_USAGE, 20.0)], BTreeMap::new());
        let load = Load { cpu_milli: 300, memory_bytes: 0 };
        let request = Request { measured: Some(&load), ..ask(&spec, &targets, &none) };
        let choice = choose(&three(), &request, Preference::Pack);
        assert_eq!(choice.chosen.as_deref(), Some("cloud"));
        assert_eq!(ruled_out(&choice, "device"), "cpuUsage would be 60.0 %, wanted IS_LESS_THAN 20: 40.0 over");
        assert_eq!(ruled_out(&choice, "edge"), "cpuUsage would be 30.0 %, wanted IS_LESS_THAN 20: 10.0 over");
        assert_eq!(choice.candidates.first().and_then(|c| c.predicted.get(CPU_USAGE)), Some(&7.5));
    }

    #[test]
    fn a_refusal_names_the_nearest_miss_and_by_how_much() {
        let (spec, none) = (spec(4500, 100), BTreeMap::new());
        let choice = choose(&three(), &ask(&spec, &[], &none), Preference::Spread);
        assert_eq!(choice.chosen, None);
        assert_eq!(choice.nearest, "nearest miss: cloud: needs 4500 mCPU, 4000 free: 500 short");
        let choice = choose(&Snapshot::default(), &ask(&spec, &[], &none), Preference::Spread);
        assert_eq!(choice.nearest, "no cluster has joined");
    }

    #[test]
    fn a_chart_runs_only_where_there_is_a_driver_for_charts() {
        let mut snapshot = Snapshot::default();
        for id in ["a", "b"] {
            let cluster = Cluster { cpu_milli: 1_000, memory_bytes: 1 << 30, available: true, ..Default::default() };
            snapshot.clusters.insert(id.into(), cluster);
        }
        let (chart, excluded) = (Spec { driver: Driver::Charts, ..spec(10, 10) }, BTreeMap::new());
        let request = Request { spec: &chart, targets: &[], measured: None, held: None, excluded: &excluded };
        let choice = choose(&snapshot, &request, Preference::Spread);
        assert_eq!(choice.chosen, None);
        assert!(choice.nearest.contains("has no driver for charts"), "{}", choice.nearest);
        let labels = &mut snapshot.clusters.get_mut("b").unwrap().labels;
        labels.insert(CHARTS.into(), "true".into());
        let request = Request { spec: &chart, targets: &[], measured: None, held: None, excluded: &excluded };
        assert_eq!(choose(&snapshot, &request, Preference::Spread).chosen.as_deref(), Some("b"));
    }

    #[test]
    fn nothing_real_is_placed_on_a_cluster_that_only_simulates() {
        let mut snapshot = three();
        snapshot.clusters.retain(|id, _| id == "cloud" || id == "edge");
        snapshot.clusters.get_mut("cloud").unwrap().driver = "simulated".into();
        let none = BTreeMap::new();
        let choose_for = |snapshot: &Snapshot, driver: &str| {
            let document = WorkloadDocument { kind: "process".into(), driver: driver.into(), ..Default::default() };
            let spec = Spec { cpu_milli: 10, ..Spec::of(&document, 1) };
            choose(snapshot, &ask(&spec, &[], &none), Preference::Spread)
        };
        // The cloud has more room, but is not a candidate for a document that does not allow it.
        let real = choose_for(&snapshot, "");
        assert_eq!(real.chosen.as_deref(), Some("edge"));
        let why = "its driver is simulated, which runs nothing; the workload needs driver process";
        assert_eq!(ruled_out(&real, "cloud"), why);
        assert_eq!(choose_for(&snapshot, "process"), real, "process is the default");
        assert_eq!(choose_for(&snapshot, "any").chosen.as_deref(), Some("cloud"));
        let simulated = choose_for(&snapshot, "simulated");
        assert_eq!(simulated.chosen.as_deref(), Some("cloud"));
        assert_eq!(ruled_out(&simulated, "edge"), "its driver is process; the workload needs driver simulated");
        // With nothing but a simulation there, it waits and the reason names the driver.
        snapshot.clusters.remove("edge");
        let waiting = choose_for(&snapshot, "process");
        assert_eq!((waiting.chosen, waiting.nearest), (None, format!("no cluster qualifies: cloud: {why}")));
        let spec = Spec::of(&WorkloadDocument::default(), 1);
        assert!(never("cloud", &snapshot.clusters["cloud"], &ask(&spec, &[], &none)), "no room would help");
    }

    #[test]
    fn a_chart_is_refused_by_a_driver_in_words_that_name_it() {
        let mut snapshot = three();
        snapshot.clusters.retain(|id, _| id == "cloud");
        let (spec, none) = (Spec { driver: Driver::Charts, ..spec(10, 10) }, BTreeMap::new());
        let choice = choose(&snapshot, &ask(&spec, &[], &none), Preference::Spread);
        assert!(ruled_out(&choice, "cloud").contains("its driver is process"), "{}", choice.nearest);
        assert!(Driver::Charts.statement().contains(&format!("{CHARTS}=true")));
    }

    #[test]
    fn clusters_saved_before_drivers_were_recorded_are_read_as_process() {
        let saved = Cluster { cpu_milli: 1, ..Cluster::default() };
        let qualifies =
            [Driver::Process, Driver::Any, Driver::Simulated].map(|driver| driver.ruled_out(&saved).is_none());
        assert_eq!(qualifies, [true, true, false]);
    }

    #[test]
    fn labels_loss_and_exclusion_rule_out_and_are_not_near_misses() {
        let mut snapshot = three();
        let selector = BTreeMap::from([("tier".to_owned(), "edge".to_owned())]);
        for (id, cluster) in &mut snapshot.clusters {
            cluster.labels.insert("tier".into(), id.clone());
        }
        let spec = Spec { selector, ..spec(10, 10) };
        let none = BTreeMap::new();
        let choice = choose(&snapshot, &ask(&spec, &[], &none), Preference::Spread);
        assert_eq!(choice.chosen.as_deref(), Some("edge"));
        assert_eq!(ruled_out(&choice, "cloud"), "label tier is cloud, not edge");
        snapshot.clusters.entry("edge".into()).or_default().available = false;
        let excluded = BTreeMap::from([("device".to_owned(), "failed here".to_owned())]);
        let choice = choose(&snapshot, &ask(&spec, &[], &excluded), Preference::Spread);
        assert_eq!(ruled_out(&choice, "edge"), "cluster lost");
        assert_eq!(ruled_out(&choice, "device"), "failed here; label tier is device, not edge");
        assert!(choice.nearest.starts_with("no cluster qualifies: cloud: label tier"), "{}", choice.nearest);
    }

    #[test]
    fn memory_is_predicted_from_measurement_only_and_limits_cap_predictions() {
        let none = BTreeMap::new();
        let targets = [below(RAM_USAGE, 200.0), below(CPU_USAGE, 60.0)];
        let asked = spec(10, 400);
        let mut request = ask(&asked, &targets, &none);
        assert!(choose(&three(), &request, Preference::Spread).chosen.is_some());
        let load = Load { cpu_milli: 1000, memory_bytes: 300_000_000 };
        request.measured = Some(&load);
        let choice = choose(&three(), &request, Preference::Spread);
        assert_eq!(
            choice.nearest,
            "nearest miss: cloud: ramUsage would be 300.0 MB, wanted IS_LESS_THAN 200: 100.0 over"
        );
        let limited = Spec { cpu_limit_milli: 250, memory_limit_bytes: 150_000_000, ..spec(10, 10) };
        request.spec = &limited;
        let choice = choose(&three(), &request, Preference::Spread);
        assert_eq!(ruled_out(&choice, "device"), "");
        assert_eq!(choice.candidates[1].predicted.get(CPU_USAGE), Some(&50.0));
    }

    #[test]
    fn where_it_is_wins_unless_another_is_much_better_and_equals_go_by_id() {
        let none = BTreeMap::new();
        let spec = spec(100, 100);
        let mut request = ask(&spec, &[], &none);
        assert_eq!(choose(&three(), &request, Preference::Spread).chosen.as_deref(), Some("cloud"));
        assert_eq!(choose(&three(), &request, Preference::Pack).chosen.as_deref(), Some("device"));
        request.held = Some(Held { cluster_id: "edge", cpu_milli: 100, memory_bytes: 100_000_000 });
        assert_eq!(choose(&three(), &request, Preference::Spread).chosen.as_deref(), Some("edge"));
        let twins = Snapshot {
            clusters: [("b", cluster(10, 10)), ("a", cluster(10, 10))].map(|(i, c)| (i.to_owned(), c)).into(),
            ..Default::default()
        };
        let small = Spec::default();
        assert_eq!(choose(&twins, &ask(&small, &[], &none), Preference::Spread).chosen.as_deref(), Some("a"));
    }

    #[test]
    fn an_instance_that_stays_gives_back_what_it_holds() {
        let none = BTreeMap::new();
        let mut snapshot = Snapshot { clusters: [("a".to_owned(), cluster(500, 500))].into(), ..Default::default() };
        snapshot.clusters.entry("a".into()).and_modify(|c| c.cpu_milli_reserved = 400);
        let spec = spec(450, 0);
        let held = Held { cluster_id: "a", cpu_milli: 400, memory_bytes: 0 };
        let request = Request { held: Some(held), ..ask(&spec, &[], &none) };
        assert!(fits(&snapshot, &request));
        assert!(!fits(&snapshot, &ask(&spec, &[], &none)));
    }

    /// The simpler model: a cluster does if every one of five plain comparisons says so.
    fn does(id: &str, c: &Cluster, r: &Request<'_>) -> bool {
        let own = r.held.filter(|h| h.cluster_id == id).map_or((0, 0), |h| (h.cpu_milli, h.memory_bytes));
        let load = r.measured.map_or(r.spec.cpu_milli as f64, |m| f64::from(m.cpu_milli));
        c.available
            && !r.excluded.contains_key(id)
            && r.spec.selector.iter().all(|(k, v)| c.labels.get(k) == Some(v))
            // What asks for nothing of a resource finds room where more of it is reserved than there is.
            && (r.spec.cpu_milli == 0 || c.cpu_milli_reserved + r.spec.cpu_milli <= u64::from(c.cpu_milli) + own.0)
            && (r.spec.memory_bytes == 0 || c.memory_bytes_reserved + r.spec.memory_bytes <= c.memory_bytes + own.1)
            && r.targets.iter().all(|t| load * 100.0 / f64::from(c.cpu_milli) < t.bound)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]
        #[test]
        fn the_choice_is_feasible_and_no_feasible_candidate_scores_higher(
            clusters in prop::collection::vec((1u32..2000, 1u64..2000, any::<bool>(), 0u64..1500, 0u64..1500, 0usize..2), 0..6),
            (cpu, memory, select, bound, measured, held, excluded, pack) in
                (0u64..1500, 0u64..1500, 0usize..3, 1f64..200.0, prop::option::of(0u32..2000), prop::option::of((0usize..6, 0u64..800)), 0usize..8, any::<bool>()),
        ) {
            let label = |n: usize| BTreeMap::from([("tier".to_owned(), n.to_string())]);
            let snapshot = Snapshot { clusters: clusters.iter().enumerate().map(|(i, (cpu, memory, available, used, used_memory, tier))| (format!("c{i}"), Cluster {
                cpu_milli: *cpu, memory_bytes: *memory, available: *available, labels: label(*tier),
                cpu_milli_reserved: *used, memory_bytes_reserved: *used_memory, ..Default::default()
            })).collect(), ..Default::default() };
            let spec = Spec { cpu_milli: cpu, memory_bytes: memory, selector: if select < 2 { label(select) } else { BTreeMap::new() }, ..Default::default() };
            let load = measured.map(|cpu_milli| Load { cpu_milli, memory_bytes: 0 });
            let held_id = held.map(|(n, _)| format!("c{n}"));
            let excluded = BTreeMap::from([(format!("c{excluded}"), "excluded".to_owned())]);
            let targets = [below(CPU_USAGE, bound)];
            let request = Request {
                spec: &spec, targets: &targets, measured: load.as_ref(), excluded: &excluded,
                held: held_id.as_deref().zip(held).map(|(cluster_id, (_, own))| Held { cluster_id, cpu_milli: own, memory_bytes: own }),
            };
            // What is held is part of what is reserved.
            prop_assume!(request.held.is_none_or(|h| snapshot.clusters.get(h.cluster_id).is_none_or(|c| c.cpu_milli_reserved >= h.cpu_milli && c.memory_bytes_reserved >= h.memory_bytes)));
            let choice = choose(&snapshot, &request, if pack { Preference::Pack } else { Preference::Spread });
            prop_assert_eq!(choice.candidates.len(), snapshot.clusters.len());
            for candidate in &choice.candidates {
                let expected = does(&candidate.cluster_id, &snapshot.clusters[&candidate.cluster_id], &request);
                prop_assert_eq!(candidate.ruled_out.is_empty(), expected, "{:?}", candidate);
                prop_assert!((0.0..=100.0).contains(&candidate.score));
            }
            prop_assert_eq!(fits(&snapshot, &request), choice.chosen.is_some());
            prop_assert_eq!(choice.chosen.is_none(), !choice.nearest.is_empty());
            if let Some(chosen) = &choice.chosen {
                let own = choice.candidates.iter().find(|c| c.cluster_id == *chosen);
                prop_assert!(own.is_some_and(|c| c.ruled_out.is_empty()));
                for other in choice.candidates.iter().filter(|c| c.ruled_out.is_empty()) {
                    let own = own.map_or(0.0, |c| c.score);
                    prop_assert!(own > other.score || (own == other.score && *chosen <= other.cluster_id));
                }
            }
        }
    }
}
