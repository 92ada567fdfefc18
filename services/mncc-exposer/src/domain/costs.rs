//! What the network costs: probe samples in, smoothed links and changes that matter out.
//!
//! A link's latency is the median of its last three probes, so that one outlier says nothing and a real change is seen
//! with its second probe. `CostsChanged` is published when a link's latency moved by more than a share *and* by more than
//! a floor since it was last published, when a link went down or came up, or when links joined or left. Between two
//! publications lies a least time, so that a start of many agents is one change and not hundreds.

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, SocketAddr},
};

use bytes::Bytes;
use mesh_core::Stored;
use mesh_core::{Derived, Projector};
use mesh_proto::{
    Timestamp,
    cluster::ClusterRegistered,
    cost::{
        CostsChanged, LinkCost, LinkMetrics, MetricDeclaration, MetricsLink, MetricsMetadata, MetricsNode,
        NetworkMetricsBody, NetworkMetricsPublished, ProbeSample,
    },
    derived_id,
    telemetry::Provenance,
};
use prost::Message as _;

use super::{
    alto::{Link as AltoLink, Maps, Node},
    prefix::Prefix,
};

/// Watts for each 10⁶ bits per second: the ratio that all four published measurements of the specification agree on
/// (0.13199 to 0.13202). A model: nothing here meters power.
pub const WATTS_PER_MBPS: f64 = 0.132;
/// Members that are followed.
pub const MEMBERS_MAX: usize = 256;
/// Probes of a link that are kept.
const KEPT: usize = 10;
/// Probes whose median is the latency.
const MEDIAN_OF: usize = 3;
/// Largest believable latency, milliseconds.
const LATENCY_MAX_MS: f64 = 60_000.0;
/// Largest believable throughput, 10⁶ bits per second.
const THROUGHPUT_MAX_MBPS: f64 = 1e7;
/// How far ahead of the exposer's clock a sample may be, milliseconds.
const AHEAD_MS: i64 = 5_000;

/// When a change matters, and when it is told.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Domain that the costs are of.
    pub domain: String,
    /// Share of its published latency by which a link must move.
    pub change_ratio: f64,
    /// Milliseconds by which a link must move as well.
    pub change_floor_ms: f64,
    /// Least time between two publications of changes, milliseconds.
    pub interval_ms: i64,
    /// A link without a probe for so long is down, milliseconds.
    pub silent_ms: i64,
    /// Between two publications of the metrics, milliseconds; 0 for never.
    pub metrics_ms: i64,
    /// Are metrics published only if they changed?
    pub metrics_on_change: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            domain: "default".into(),
            change_ratio: 0.3,
            change_floor_ms: 2.0,
            interval_ms: 500,
            silent_ms: 60_000,
            metrics_ms: 60_000,
            metrics_on_change: false,
        }
    }
}

/// Samples, by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Taken in.
    pub accepted: u64,
    /// Undecodable, not finite, out of range, of another link than their key says.
    pub invalid: u64,
    /// From a stranger, or under the name of another member.
    pub strangers: u64,
    /// From the future, or older than what is known.
    pub untimely: u64,
    /// Members beyond the limit.
    pub over_limit: u64,
}

/// A cluster that takes part.
#[derive(Clone, Debug, Default, PartialEq)]
struct Member {
    site: String,
    node: String,
    address: Option<IpAddr>,
    prefixes: Vec<Prefix>,
}

#[derive(Clone, Debug, Default)]
struct Link {
    probes: VecDeque<ProbeSample>,
    throughput_mbps: Option<f64>,
    failures: u32,
    /// Failures when the metrics were last published.
    failures_told: u32,
    silent: bool,
    count: u32,
}

type LinkKey = (String, String);

/// The view of all costs.
#[derive(Debug, Default)]
pub struct Costs {
    limits: Limits,
    counts: Counts,
    now: Timestamp,
    members: BTreeMap<String, Member>,
    links: BTreeMap<LinkKey, Link>,
    version: u64,
    published: BTreeMap<LinkKey, LinkCost>,
    published_at: Timestamp,
    metrics_at: Timestamp,
    metrics: Option<NetworkMetricsPublished>,
    /// Rises with everything that may change the maps.
    revision: u64,
}

impl Costs {
    /// Costs of nothing yet.
    pub fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// What became of samples.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Version last published.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Another whenever the maps may be.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Metrics last published.
    pub fn metrics(&self) -> Option<&NetworkMetricsPublished> {
        self.metrics.as_ref()
    }

    /// Every link as it is now.
    pub fn links(&self) -> Vec<LinkCost> {
        self.links.keys().filter_map(|way| self.cost(way)).collect()
    }

    /// The ALTO maps as they are now.
    pub fn maps(&self) -> Maps {
        let nodes: Vec<Node> = self
            .members
            .iter()
            .map(|(id, member)| Node {
                cluster_id: id.clone(),
                site: member.site.clone(),
                address: member.address,
                prefixes: member.prefixes.clone(),
            })
            .collect();
        let links: Vec<AltoLink> = self
            .links()
            .into_iter()
            .map(|cost| {
                let throughput = (cost.throughput_mbps >= 0.0).then_some(cost.throughput_mbps);
                AltoLink {
                    from: cost.from_cluster,
                    to: cost.to_cluster,
                    up: cost.up,
                    latency_ms: cost.latency_ms,
                    jitter_ms: cost.jitter_ms,
                    loss_percent: cost.loss_percent,
                    throughput_mbps: throughput,
                    energy_watts: throughput.map(|_| cost.energy_watts),
                    failures: cost.failures,
                }
            })
            .collect();
        Maps::new(&nodes, &links)
    }

    fn cost(&self, way: &LinkKey) -> Option<LinkCost> {
        let (link, from, to) = (self.links.get(way)?, self.members.get(&way.0)?, self.members.get(&way.1)?);
        let newest = link.probes.back()?;
        let answered: Vec<&ProbeSample> = link.probes.iter().rev().filter(|p| p.answered > 0).take(MEDIAN_OF).collect();
        let mut latencies: Vec<f64> = answered.iter().map(|p| p.latency_ms).collect();
        latencies.sort_by(f64::total_cmp);
        let latency_ms = latencies.get(latencies.len() / 2).copied().unwrap_or(0.0);
        let mean = |values: &mut dyn Iterator<Item = f64>| {
            let (sum, count) = values.fold((0.0, 0u32), |(sum, count), value| (sum + value, count + 1));
            if count == 0 { 0.0 } else { sum / f64::from(count) }
        };
        let sent: u64 = link.probes.iter().map(|p| u64::from(p.sent)).sum();
        let lost: u64 = link.probes.iter().map(|p| u64::from(p.sent - p.answered)).sum();
        let throughput_mbps = link.throughput_mbps.unwrap_or(-1.0);
        Some(LinkCost {
            from_cluster: way.0.clone(),
            to_cluster: way.1.clone(),
            from_site: from.site.clone(),
            to_site: to.site.clone(),
            at: newest.at,
            latency_ms,
            jitter_ms: mean(&mut answered.iter().map(|p| p.jitter_ms)),
            loss_percent: if sent == 0 { 0.0 } else { lost as f64 * 100.0 / sent as f64 },
            throughput_mbps,
            energy_watts: throughput_mbps.max(0.0) * WATTS_PER_MBPS,
            energy_provenance: Provenance::Modelled.into(),
            failures: link.failures,
            up: !newest.failed && !link.silent,
            probes: link.count,
        })
    }

    fn register(&mut self, fact: ClusterRegistered) {
        if !self.members.contains_key(&fact.cluster_id) && self.members.len() >= MEMBERS_MAX {
            self.counts.over_limit += 1;
            return;
        }
        let address = fact.probe_endpoint.parse::<SocketAddr>().ok().map(|a| a.ip().to_canonical());
        let prefixes = fact.prefixes.iter().take(64).filter_map(|p| p.parse().ok()).collect();
        let member = Member { site: fact.site, node: fact.node, address, prefixes };
        if self.members.insert(fact.cluster_id, member.clone()).as_ref() != Some(&member) {
            self.revision += 1;
        }
    }

    fn take(&mut self, key: &str, body: &Bytes) -> Result<(), fn(&mut Counts) -> &mut u64> {
        let sample = ProbeSample::decode(body.clone()).map_err(|_| invalid as fn(&mut Counts) -> &mut u64)?;
        let mut tokens = key.split('/');
        let (site, node, to) = (tokens.nth(1), tokens.next(), tokens.nth(1));
        let in_range = |value: f64, max: f64| value.is_finite() && (0.0..=max).contains(&value);
        let believable = in_range(sample.latency_ms, LATENCY_MAX_MS)
            && in_range(sample.jitter_ms, LATENCY_MAX_MS)
            && in_range(sample.loss_percent, 100.0)
            && sample.throughput_mbps.is_finite()
            && sample.throughput_mbps <= THROUGHPUT_MAX_MBPS
            && sample.answered <= sample.sent
            && sample.sent <= 10_000
            && sample.from_cluster != sample.to_cluster
            && to == Some(sample.to_cluster.as_str());
        if !believable {
            return Err(invalid);
        }
        let from = self.members.get(&sample.from_cluster).ok_or(strangers as fn(&mut Counts) -> &mut u64)?;
        if !self.members.contains_key(&sample.to_cluster) || site != Some(&from.site) || node != Some(&from.node) {
            return Err(strangers);
        }
        let way = (sample.from_cluster.clone(), sample.to_cluster.clone());
        let newest = self.links.get(&way).and_then(|link| link.probes.back()).and_then(|p| p.at);
        let at = sample.at.ok_or(invalid as fn(&mut Counts) -> &mut u64)?;
        if newest.is_some_and(|newest| at <= newest) || at.millis_since(self.now) > AHEAD_MS {
            return Err(untimely);
        }
        let link = self.links.entry(way).or_default();
        let was_up = link.probes.back().is_none_or(|p| !p.failed) && !link.silent;
        if sample.failed && was_up {
            link.failures += 1;
        }
        if sample.throughput_mbps >= 0.0 {
            link.throughput_mbps = Some(sample.throughput_mbps);
        }
        link.silent = false;
        link.count = link.count.saturating_add(1);
        link.probes.push_back(sample);
        while link.probes.len() > KEPT {
            link.probes.pop_front();
        }
        self.revision += 1;
        Ok(())
    }

    /// What changed since the last publication, in words.
    fn changes(&self, links: &[LinkCost]) -> Vec<String> {
        let mut said = vec![];
        for link in links {
            let name = format!("{} -> {}", link.from_cluster, link.to_cluster);
            match self.published.get(&(link.from_cluster.clone(), link.to_cluster.clone())) {
                None => said.push(format!("{name} is measured: {:.2} ms", link.latency_ms)),
                Some(before) if before.up != link.up => {
                    said.push(format!("{name} is {}", if link.up { "up again" } else { "down" }));
                }
                Some(before) => {
                    let moved = (link.latency_ms - before.latency_ms).abs();
                    if moved > self.limits.change_floor_ms && moved > self.limits.change_ratio * before.latency_ms {
                        said.push(format!("{name} latency {:.2} -> {:.2} ms", before.latency_ms, link.latency_ms));
                    }
                }
            }
        }
        said
    }

    fn tell_changes(&mut self) -> Option<Derived> {
        if self.now.millis_since(self.published_at) < self.limits.interval_ms {
            return None;
        }
        let links = self.links();
        let changes = self.changes(&links);
        if changes.is_empty() {
            return None;
        }
        self.version += 1;
        self.published_at = self.now;
        let domain = self.limits.domain.clone();
        let fact = CostsChanged { domain, version: self.version, links, changes, at: Some(self.now) };
        self.published = by_link(&fact);
        let id = derived_id(&["costs", &fact.domain, &self.version.to_string()]);
        Some(Derived::new(fact, id, self.now))
    }

    fn tell_metrics(&mut self) -> Option<Derived> {
        if self.limits.metrics_ms == 0 || self.now.millis_since(self.metrics_at) < self.limits.metrics_ms {
            return None;
        }
        self.metrics_at = self.now;
        if self.links.is_empty() {
            return None;
        }
        let body = self.body();
        if self.limits.metrics_on_change
            && self.metrics.as_ref().is_some_and(|before| before.network_metrics.as_ref() == Some(&body))
        {
            return None;
        }
        self.links.values_mut().for_each(|link| link.failures_told = link.failures);
        let domain = self.limits.domain.clone();
        let metadata = MetricsMetadata {
            name: "network-metrics".into(),
            cluster: domain.clone(),
            timestamp: self.now.seconds,
            metrics: declarations(),
        };
        let fact = NetworkMetricsPublished { domain, metadata: Some(metadata), network_metrics: Some(body) };
        self.metrics = Some(fact.clone());
        let id = derived_id(&["metrics", &fact.domain, &self.now.to_string()]);
        Some(Derived::new(fact, id, self.now))
    }

    fn body(&self) -> NetworkMetricsBody {
        let ip = |member: &Member| member.address.map(|a| a.to_string()).unwrap_or_default();
        let nodes = self.members.iter().map(|(name, member)| MetricsNode { name: name.clone(), ip: ip(member) });
        let links = self.links.keys().filter_map(|way| {
            let cost = self.cost(way)?;
            let told = self.links.get(way).map_or(0, |link| link.failures_told);
            let metrics = LinkMetrics {
                link_failure: i32::try_from(cost.failures.saturating_sub(told)).unwrap_or(i32::MAX),
                link_energy: cost.energy_watts.round() as i32,
                packet_loss: cost.loss_percent.ceil() as i32,
                bandwidth: cost.throughput_mbps.max(0.0),
                latency: cost.latency_ms,
            };
            Some(MetricsLink {
                name: format!("{}-{}", way.0, way.1),
                source: way.0.clone(),
                destination: way.1.clone(),
                metrics: vec![metrics],
            })
        });
        NetworkMetricsBody { nodes: nodes.collect(), links: links.collect() }
    }
}

fn invalid(counts: &mut Counts) -> &mut u64 {
    &mut counts.invalid
}

fn strangers(counts: &mut Counts) -> &mut u64 {
    &mut counts.strangers
}

fn untimely(counts: &mut Counts) -> &mut u64 {
    &mut counts.untimely
}

fn by_link(fact: &CostsChanged) -> BTreeMap<LinkKey, LinkCost> {
    fact.links.iter().map(|l| ((l.from_cluster.clone(), l.to_cluster.clone()), l.clone())).collect()
}

/// The metrics of the data model (its Table 9), each with its type, unit and meaning.
fn declarations() -> Vec<MetricDeclaration> {
    [
        ("latency", "float", "ms, one way: half of the measured round trip"),
        ("bandwidth", "float", "Mbps, measured by a short transfer"),
        ("packet-loss", "integer", "%, since the last ten probes, rounded up"),
        ("link-energy", "integer", "W, modelled as 0.132 W per Mbps, not metered"),
        ("link-failure", "integer", "fails, since the last publication"),
    ]
    .map(|(name, kind, metric)| MetricDeclaration { name: name.into(), r#type: kind.into(), metric: metric.into() })
    .into()
}

impl Projector for Costs {
    fn apply(&mut self, fact: &Stored) -> Vec<Derived> {
        if let Ok(Some(registered)) = fact.event::<ClusterRegistered>() {
            self.register(registered);
        } else if let Ok(Some(changed)) = fact.event::<CostsChanged>()
            && changed.domain == self.limits.domain
            && changed.version > self.version
        {
            self.version = changed.version;
            self.published = by_link(&changed);
        }
        vec![]
    }

    fn sample(&mut self, key: &str, body: &Bytes) -> Vec<Derived> {
        match self.take(key, body) {
            Ok(()) => self.counts.accepted += 1,
            Err(count) => *count(&mut self.counts) += 1,
        }
        vec![]
    }

    fn tick(&mut self, now: Timestamp) -> Vec<Derived> {
        self.now = now;
        for link in self.links.values_mut() {
            let newest = link.probes.back().and_then(|p| p.at).unwrap_or_default();
            if !link.silent && now.millis_since(newest) > self.limits.silent_ms {
                link.silent = true;
                link.failures += u32::from(link.probes.back().is_none_or(|p| !p.failed));
                self.revision += 1;
            }
        }
        self.tell_changes().into_iter().chain(self.tell_metrics()).collect()
    }
}

#[cfg(test)]
mod tests;
