//! One consistent version of the network map and all costs.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use mesh_proto::derived_id;
use serde_json::{Map, Value, json};

use crate::domain::prefix::Prefix;

/// Resource id of the network map.
pub const MAP_ID: &str = "network-map";
/// PID of every address that belongs to no site. No site can be named so: their names have no colon.
pub const DEFAULT_PID: &str = "other:any";

/// Cost metrics. All but `routingcost` (RFC 7285) and the private ones are registered by RFC 9439, whose units they have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Metric {
    /// One-way delay in microseconds divided by the share that arrives: what a packet takes with its repeats.
    RoutingCost,
    /// One-way delay, microseconds: half of the measured round trip.
    DelayOneWay,
    /// Round-trip delay, microseconds.
    DelayRoundTrip,
    /// Delay variation, microseconds.
    DelayVariation,
    /// Loss, per cent.
    LossRate,
    /// TCP throughput, bytes per second.
    Throughput,
    /// Power that the measured throughput would take, watts: a model.
    EnergyModelled,
    /// Times that the link went down.
    LinkFailures,
}

impl Metric {
    /// Every metric.
    pub const ALL: [Self; 8] = [
        Self::RoutingCost,
        Self::DelayOneWay,
        Self::DelayRoundTrip,
        Self::DelayVariation,
        Self::LossRate,
        Self::Throughput,
        Self::EnergyModelled,
        Self::LinkFailures,
    ];

    /// Identifier in the protocol.
    pub fn id(self) -> &'static str {
        match self {
            Self::RoutingCost => "routingcost",
            Self::DelayOneWay => "delay-ow",
            Self::DelayRoundTrip => "delay-rt",
            Self::DelayVariation => "delay-variation",
            Self::LossRate => "lossrate",
            Self::Throughput => "tput",
            Self::EnergyModelled => "priv:continuum-energy-modelled",
            Self::LinkFailures => "priv:continuum-link-failures",
        }
    }

    /// For a person.
    pub fn description(self) -> &'static str {
        match self {
            Self::RoutingCost => "one-way delay in microseconds, divided by the share of packets that arrive",
            Self::DelayOneWay => "one-way delay in microseconds, half of the measured round trip",
            Self::DelayRoundTrip => "round-trip delay in microseconds, measured",
            Self::DelayVariation => "one-way delay variation in microseconds, measured",
            Self::LossRate => "packets lost in per cent, measured",
            Self::Throughput => "TCP throughput in bytes per second, measured by short transfers",
            Self::EnergyModelled => "watts by a model: 0.132 W for each Mbit/s of measured throughput; not metered",
            Self::LinkFailures => "times that the link went down while watched",
        }
    }

    fn parse(id: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|metric| metric.id() == id)
    }

    /// Is more of it better?
    fn more_is_better(self) -> bool {
        self == Self::Throughput
    }

    /// Its value for a link; none where it is not defined.
    fn of(self, link: &Link) -> Option<f64> {
        let arrives = 1.0 - link.loss_percent / 100.0;
        let value = match self {
            Self::LossRate => return Some(link.loss_percent),
            Self::LinkFailures => return Some(f64::from(link.failures)),
            _ if !link.up => return None,
            Self::RoutingCost => (arrives > 0.0).then(|| link.latency_ms * 1e3 / arrives)?,
            Self::DelayOneWay => link.latency_ms * 1e3,
            Self::DelayRoundTrip => link.latency_ms * 2e3,
            Self::DelayVariation => link.jitter_ms * 1e3,
            Self::Throughput => link.throughput_mbps.filter(|mbps| *mbps >= 0.0)? * 1e6 / 8.0,
            Self::EnergyModelled => link.energy_watts?,
        };
        value.is_finite().then_some((value * 1e3).round() / 1e3)
    }

    /// What it costs to reach oneself.
    fn to_itself(self) -> Option<f64> {
        (!self.more_is_better()).then_some(0.0)
    }
}

/// Cost modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// The measured value.
    Numerical,
    /// Its rank among all values of the same answer, from 1; equal values have equal ranks.
    Ordinal,
}

impl Mode {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Numerical, Self::Ordinal];

    /// Identifier in the protocol.
    pub fn id(self) -> &'static str {
        match self {
            Self::Numerical => "numerical",
            Self::Ordinal => "ordinal",
        }
    }

    fn parse(id: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.id() == id)
    }
}

/// A metric in a mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct CostType {
    /// What is measured.
    pub(super) metric: Metric,
    /// How it is told.
    pub(super) mode: Mode,
}

impl CostType {
    /// Every cost type.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        Metric::ALL.into_iter().flat_map(|metric| Mode::ALL.into_iter().map(move |mode| Self { metric, mode }))
    }

    /// By the protocol's identifiers.
    pub(super) fn parse(metric: &str, mode: &str) -> (Option<Metric>, Option<Mode>) {
        (Metric::parse(metric), Mode::parse(mode))
    }

    /// Its name in the directory.
    pub(super) fn name(self) -> String {
        format!("{}-{}", &self.mode.id()[..3], self.metric.id().trim_start_matches("priv:"))
    }

    /// As the protocol writes it.
    pub(super) fn json(self) -> Value {
        json!({ "cost-mode": self.mode.id(), "cost-metric": self.metric.id() })
    }
}

/// One cluster as a place in the network.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    /// Cluster.
    pub cluster_id: String,
    /// Site: its PID.
    pub site: String,
    /// Where it answers probes.
    pub address: Option<IpAddr>,
    /// Addresses of its site.
    pub prefixes: Vec<Prefix>,
}

/// One measured way from one cluster to another.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Link {
    /// From this cluster.
    pub from: String,
    /// To this cluster.
    pub to: String,
    /// Does it answer now?
    pub up: bool,
    /// One way, milliseconds.
    pub latency_ms: f64,
    /// Milliseconds.
    pub jitter_ms: f64,
    /// Per cent.
    pub loss_percent: f64,
    /// 10⁶ bits per second, if measured.
    pub throughput_mbps: Option<f64>,
    /// Watts, by a model, if throughput is measured.
    pub energy_watts: Option<f64>,
    /// Times that it went down.
    pub failures: u32,
}

/// The network map with its version tag, and every cost.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Maps {
    pids: BTreeMap<String, BTreeSet<Prefix>>,
    owner: BTreeMap<Prefix, String>,
    tag: String,
    costs: BTreeMap<Metric, BTreeMap<(String, String), f64>>,
    /// Costs between node addresses, where they are known more closely than by PID.
    near: BTreeMap<Metric, BTreeMap<(IpAddr, IpAddr), f64>>,
    nodes: BTreeMap<IpAddr, String>,
    /// Prefixes that two sites claim: the first site by name has them.
    pub contested: Vec<(Prefix, String)>,
}

impl Maps {
    /// The maps of these nodes and links.
    pub fn new(nodes: &[Node], links: &[Link]) -> Self {
        let mut maps = Self::default();
        let mut sorted: Vec<&Node> = nodes.iter().collect();
        sorted.sort_by(|a, b| (&a.site, &a.cluster_id).cmp(&(&b.site, &b.cluster_id)));
        for node in &sorted {
            let own = node.address.map(Prefix::host);
            maps.pids.entry(node.site.clone()).or_default();
            for prefix in node.prefixes.iter().copied().chain(own) {
                maps.claim(prefix, &node.site);
            }
            if let Some(address) = node.address {
                maps.nodes.entry(address).or_insert_with(|| node.cluster_id.clone());
            }
        }
        // Completeness (§11.2.2): an address of either type always has a PID.
        maps.pids.entry(DEFAULT_PID.to_owned()).or_default();
        for all in [Prefix::ALL_V4, Prefix::ALL_V6] {
            if !maps.owner.contains_key(&all) {
                maps.claim(all, DEFAULT_PID);
            }
        }
        maps.tag = derived_id(&["alto", &maps.network_map(|_| true, |_| true).to_string()]);
        maps.measure(&sorted, links);
        maps
    }

    fn claim(&mut self, prefix: Prefix, pid: &str) {
        match self.owner.get(&prefix) {
            Some(owner) if owner == pid => {}
            Some(_) => self.contested.push((prefix, pid.to_owned())),
            None => {
                self.owner.insert(prefix, pid.to_owned());
                self.pids.entry(pid.to_owned()).or_default().insert(prefix);
            }
        }
    }

    fn measure(&mut self, nodes: &[&Node], links: &[Link]) {
        let by_id: BTreeMap<&str, &Node> = nodes.iter().map(|n| (n.cluster_id.as_str(), *n)).collect();
        for metric in Metric::ALL {
            let mut sums: BTreeMap<(String, String), (f64, u32)> = BTreeMap::new();
            for link in links {
                let (Some(from), Some(to)) = (by_id.get(link.from.as_str()), by_id.get(link.to.as_str())) else {
                    continue;
                };
                let Some(value) = metric.of(link) else { continue };
                let sum = sums.entry((from.site.clone(), to.site.clone())).or_default();
                *sum = (sum.0 + value, sum.1 + 1);
                if let (Some(a), Some(b)) = (from.address, to.address)
                    && a != b
                {
                    self.near.entry(metric).or_default().insert((a, b), value);
                }
            }
            let costs = self.costs.entry(metric).or_default();
            if let Some(zero) = metric.to_itself() {
                costs.extend(nodes.iter().map(|n| ((n.site.clone(), n.site.clone()), zero)));
            }
            costs.extend(sums.into_iter().map(|(pair, (sum, count))| (pair, sum / f64::from(count))));
        }
    }

    /// PIDs by name.
    pub fn pids(&self) -> impl Iterator<Item = &String> {
        self.pids.keys()
    }

    /// The version tag of the network map: another whenever its content is.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// Version tag as the protocol writes it.
    pub fn vtag(&self) -> Value {
        json!({ "resource-id": MAP_ID, "tag": self.tag })
    }

    /// The PID of an address, by the longest prefix that holds it.
    pub fn pid_of(&self, address: IpAddr) -> Option<&String> {
        let holding = self.owner.iter().filter(|(prefix, _)| prefix.holds(address));
        holding.max_by_key(|(prefix, _)| prefix.length()).map(|(_, pid)| pid)
    }

    /// The cluster at an address.
    pub fn cluster_at(&self, address: IpAddr) -> Option<&String> {
        self.nodes.get(&address.to_canonical())
    }

    /// The network map's data for some PIDs and address types.
    pub fn network_map(&self, pid: impl Fn(&str) -> bool, kind: impl Fn(&str) -> bool) -> Value {
        let mut data = Map::new();
        for (name, prefixes) in self.pids.iter().filter(|(name, _)| pid(name)) {
            let mut groups: BTreeMap<&str, Vec<String>> = BTreeMap::new();
            for prefix in prefixes.iter().filter(|p| kind(p.kind())) {
                groups.entry(prefix.kind()).or_default().push(prefix.to_string());
            }
            data.insert(name.clone(), json!(groups));
        }
        Value::Object(data)
    }

    /// The cost between two PIDs, where one is defined.
    pub fn cost(&self, metric: Metric, from: &str, to: &str) -> Option<f64> {
        self.costs.get(&metric)?.get(&(from.to_owned(), to.to_owned())).copied()
    }

    /// The cost between two addresses: of the link between their nodes, or else between their PIDs.
    pub fn endpoint_cost(&self, metric: Metric, from: IpAddr, to: IpAddr) -> Option<f64> {
        let (from, to) = (from.to_canonical(), to.to_canonical());
        if from == to {
            return metric.to_itself();
        }
        if let Some(near) = self.near.get(&metric).and_then(|costs| costs.get(&(from, to))) {
            return Some(*near);
        }
        self.cost(metric, self.pid_of(from)?, self.pid_of(to)?)
    }
}

/// Costs in an answer: numbers, or ranks among them.
pub(super) fn told<K: Clone + Ord>(cost_type: CostType, values: Vec<(K, K, f64)>) -> BTreeMap<K, BTreeMap<K, Value>> {
    let mut ranks: Vec<f64> = values.iter().map(|(_, _, value)| *value).collect();
    ranks.sort_by(f64::total_cmp);
    ranks.dedup();
    let rank = |value: f64| {
        let below = ranks.partition_point(|rank| *rank < value);
        if cost_type.metric.more_is_better() { ranks.len() - below } else { below + 1 }
    };
    let mut rows: BTreeMap<K, BTreeMap<K, Value>> = BTreeMap::new();
    for (from, to, value) in values {
        let told = match cost_type.mode {
            Mode::Numerical => json!(value),
            Mode::Ordinal => json!(rank(value)),
        };
        rows.entry(from).or_default().insert(to, told);
    }
    rows
}
