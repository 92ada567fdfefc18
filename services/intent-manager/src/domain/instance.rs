//! One expectation's instance: where it is in its life, and what is heard of it.

use std::collections::BTreeMap;

use mesh_proto::{
    Timestamp,
    deciders::intents::Fact,
    intent::{GovernedInstance, InstanceStanding},
    network::{Connectivity, ConnectivityChanged, NetworkRefused},
    placement::PlacementUnplaced,
    workload::{InstanceChanged, InstancePhase, InstanceUnavailable},
};
use serde::{Deserialize, Serialize};

use super::{Case, Row};

/// One expectation's instance, as far as the intent has heard.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Instance {
    /// Expectation that it belongs to.
    pub expectation: String,
    /// Its id.
    pub id: String,
    /// Workload document to run, `name@version`; empty when an existing instance is governed.
    pub workload: String,
    /// Where it is in its life.
    pub standing: Standing,
    /// Cluster it was last heard of on.
    pub cluster: String,
    /// Generation of its placement there.
    pub generation: u64,
    /// Cluster that it is moving to; empty when it is not moving.
    pub to_cluster: String,
    /// What was said about its standing.
    pub reason: String,
    /// What a person can do about it.
    pub hint: String,
    /// Periods that begin earlier do not judge it; `None` unless it runs.
    pub running_since: Option<Timestamp>,
    /// Why no other cluster would do; empty while a remedy may come.
    pub stuck: String,
    /// Labels that its cluster must carry, beside those of its document.
    pub selector: BTreeMap<String, String>,
    /// Is it connectivity, carried out by the network exposer?
    pub network: bool,
}

/// Where an instance is in its life, as its intent sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// Nothing was heard of it yet.
    #[default]
    Unheard,
    /// It cannot be made.
    Unavailable,
    /// Wanted, no cluster chosen.
    Pending,
    /// No cluster can take it.
    Unplaced,
    /// A cluster is chosen.
    Assigned,
    /// It is being started.
    Starting,
    /// All wanted replicas run.
    Running,
    /// Down and being started again.
    Restarting,
    /// Failed where it was.
    Failed,
    /// Would fail anywhere.
    Hopeless,
    /// Stopped.
    Stopped,
    /// Its cluster is lost.
    Lost,
}

impl Standing {
    const ALL: [(Self, InstanceStanding); 12] = [
        (Self::Unheard, InstanceStanding::Unspecified),
        (Self::Unavailable, InstanceStanding::Unavailable),
        (Self::Pending, InstanceStanding::Pending),
        (Self::Unplaced, InstanceStanding::Unplaced),
        (Self::Assigned, InstanceStanding::Assigned),
        (Self::Starting, InstanceStanding::Starting),
        (Self::Running, InstanceStanding::Running),
        (Self::Restarting, InstanceStanding::Restarting),
        (Self::Failed, InstanceStanding::Failed),
        (Self::Hopeless, InstanceStanding::Hopeless),
        (Self::Stopped, InstanceStanding::Stopped),
        (Self::Lost, InstanceStanding::Lost),
    ];

    /// What a report about an instance says; `None` if it says nothing about its phase.
    fn reported(report: &InstanceChanged) -> Option<Self> {
        let unplaced = report.event.as_ref().is_some_and(|event| event.r#type == "unplaced");
        Some(match report.phase() {
            InstancePhase::Unspecified => return None,
            InstancePhase::Pending if unplaced => Self::Unplaced,
            InstancePhase::Pending => Self::Pending,
            InstancePhase::Assigned => Self::Assigned,
            InstancePhase::Starting => Self::Starting,
            InstancePhase::Running => Self::Running,
            InstancePhase::Restarting => Self::Restarting,
            InstancePhase::Failed if report.hopeless => Self::Hopeless,
            InstancePhase::Failed => Self::Failed,
            InstancePhase::Stopped => Self::Stopped,
            InstancePhase::Lost => Self::Lost,
        })
    }
}

impl From<Standing> for InstanceStanding {
    fn from(standing: Standing) -> Self {
        Standing::ALL.into_iter().find(|(own, _)| *own == standing).map_or(Self::Unspecified, |(_, told)| told)
    }
}

impl From<InstanceStanding> for Standing {
    fn from(told: InstanceStanding) -> Self {
        Standing::ALL.into_iter().find(|(_, other)| *other == told).map_or(Self::Unheard, |(own, _)| own)
    }
}

impl Instance {
    /// As facts carry it.
    pub fn to_fact(&self) -> GovernedInstance {
        GovernedInstance {
            expectation_id: self.expectation.clone(),
            instance_id: self.id.clone(),
            workload: self.workload.clone(),
            standing: InstanceStanding::from(self.standing).into(),
            cluster_id: self.cluster.clone(),
            generation: self.generation,
            reason: self.reason.clone(),
            hint: self.hint.clone(),
            running_since: self.running_since,
            stuck: self.stuck.clone(),
            to_cluster_id: self.to_cluster.clone(),
            cluster_selector: self.selector.clone(),
            network: self.network,
        }
    }

    /// The connectivity of an intent about networks.
    pub(super) fn network(intent_id: &str) -> Self {
        Self { id: intent_id.to_owned(), network: true, ..Self::default() }
    }

    pub(super) fn from_fact(fact: &GovernedInstance) -> Self {
        Self {
            expectation: fact.expectation_id.clone(),
            id: fact.instance_id.clone(),
            workload: fact.workload.clone(),
            standing: fact.standing().into(),
            cluster: fact.cluster_id.clone(),
            generation: fact.generation,
            to_cluster: fact.to_cluster_id.clone(),
            reason: fact.reason.clone(),
            hint: fact.hint.clone(),
            running_since: fact.running_since,
            stuck: fact.stuck.clone(),
            selector: fact.cluster_selector.clone(),
            network: fact.network,
        }
    }

    /// Makes it an instance that runs there since then, with nothing known against it.
    pub(super) fn run(&mut self, cluster: &str, generation: u64, since: Timestamp) {
        self.standing = Standing::Running;
        self.cluster = cluster.to_owned();
        self.generation = generation;
        self.running_since = Some(since);
        self.reason.clear();
        self.hint.clear();
        self.stuck.clear();
        self.to_cluster.clear();
    }
}

impl Case<'_> {
    /// What the network exposer achieved.
    pub(super) fn connectivity_changed(&self, report: &ConnectivityChanged) -> Vec<Fact> {
        let standing = match report.phase() {
            Connectivity::Unspecified => return vec![],
            Connectivity::Executing => Standing::Starting,
            Connectivity::Connected => Standing::Running,
            // It is not tried again by itself.
            Connectivity::NotConnected => Standing::Hopeless,
            Connectivity::Withdrawing | Connectivity::Withdrawn => Standing::Stopped,
        };
        self.connectivity(standing, &report.reason, &report.hint)
    }

    /// The network exposer cannot carry it out. Refusals of people's own commands are no concern.
    pub(super) fn network_refused(&self, refused: &NetworkRefused) -> Vec<Fact> {
        match refused.command.as_str() {
            "IntentAcknowledged" => self.connectivity(Standing::Hopeless, &refused.reason, &refused.hint),
            _ => vec![],
        }
    }

    fn connectivity(&self, standing: Standing, reason: &str, hint: &str) -> Vec<Fact> {
        let Some(in_force) = self.entity.in_force() else { return vec![] };
        let mut now = in_force.clone();
        for instance in now.instances.iter_mut().filter(|i| i.network && i.standing != standing) {
            instance.standing = standing;
            instance.running_since = (standing == Standing::Running).then_some(self.at);
            instance.reason = reason.to_owned();
            instance.hint = hint.to_owned();
        }
        self.settle(now, "")
    }

    pub(super) fn instance_changed(&self, report: &InstanceChanged) -> Vec<Fact> {
        let Some(in_force) = self.entity.in_force() else { return vec![] };
        let Some(standing) = Standing::reported(report) else { return vec![] };
        let mut now = in_force.clone();
        let mut renewed = vec![];
        for instance in now.instances.iter_mut().filter(|i| !i.network && i.id == report.instance_id) {
            let same_place = instance.generation == report.generation && instance.cluster == report.cluster_id;
            if standing == Standing::Running {
                let event = report.event.as_ref().map_or("", |event| event.r#type.as_str());
                if !same_place || instance.standing != Standing::Running || matches!(event, "migrated" | "restarted") {
                    instance.run(&report.cluster_id, report.generation, self.at);
                    renewed.push(instance.expectation.clone());
                }
                if !report.to_cluster_id.is_empty() {
                    // Somewhere would do better after all; should that come to nothing, it may be asked for again.
                    instance.stuck.clear();
                }
            } else {
                instance.running_since = None;
                instance.standing = standing;
                instance.cluster.clone_from(&report.cluster_id);
                instance.generation = report.generation;
                instance.reason.clone_from(&report.reason);
                instance.hint.clear();
                instance.stuck.clear();
                renewed.push(instance.expectation.clone());
            }
            instance.to_cluster.clone_from(&report.to_cluster_id);
        }
        renewed.iter().for_each(|expectation| now.reset_targets(expectation));
        self.settle(now, "")
    }

    pub(super) fn instance_unavailable(&self, report: &InstanceUnavailable) -> Vec<Fact> {
        let Some(in_force) = self.entity.in_force().filter(|f| f.version == report.intent_version) else {
            return vec![];
        };
        let mut now = in_force.clone();
        for instance in now.instances.iter_mut().filter(|i| !i.network && i.id == report.instance_id) {
            *instance = Instance {
                expectation: instance.expectation.clone(),
                id: instance.id.clone(),
                workload: instance.workload.clone(),
                selector: instance.selector.clone(),
                standing: Standing::Unavailable,
                reason: report.reason.clone(),
                hint: report.hint.clone(),
                ..Instance::default()
            };
        }
        let gone: Vec<String> = now
            .instances
            .iter()
            .filter(|i| i.standing == Standing::Unavailable)
            .map(|i| i.expectation.clone())
            .collect();
        gone.iter().for_each(|expectation| now.reset_targets(expectation));
        self.settle(now, "")
    }

    /// Plans and instance reports travel apart: a plan is believed only where it cannot be older than what the report
    /// says.
    pub(super) fn unplaced(&self, report: &PlacementUnplaced) -> Vec<Fact> {
        let Some(in_force) = self.entity.in_force() else { return vec![] };
        let degraded = self.entity.row() == Row::Degraded;
        let mut now = in_force.clone();
        for instance in now.instances.iter_mut().filter(|i| !i.network && i.id == report.instance_id) {
            match instance.standing {
                Standing::Running
                    if degraded
                        && !report.stays_on.is_empty()
                        && report.stays_on == instance.cluster
                        && in_force.wants_remedy(instance) =>
                {
                    instance.stuck.clone_from(&report.reason);
                }
                Standing::Unheard | Standing::Pending | Standing::Unplaced | Standing::Lost | Standing::Failed
                    if report.stays_on.is_empty() =>
                {
                    instance.standing = Standing::Unplaced;
                    instance.reason.clone_from(&report.reason);
                }
                _ => {}
            }
        }
        self.settle(now, "")
    }
}
