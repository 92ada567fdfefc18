//! The telemetry interface of the SERRANO platform (D6.7 §4.4.3.1): its bodies, and its shapes. Its cluster, agent and probe ids
//! are ours; what it calls a session is the streaming of one cluster.

use std::collections::BTreeMap;

use mesh_proto::{
    measurement::{Selector, Setting},
    telemetry::{AgentInfo, Entity, Metric, QueryReply, SeriesValues},
    workload::InstanceView,
};
use mesh_rest::problem::{Kind, Problem};
use serde::Deserialize;
use serde_json::{Map, Value as Json, json};

use super::{present, table::Op, telemetry::Scope};

/// Names of the settings that this interface makes, before their number.
pub const COLLECTION: &str = "serrano-collection";
/// The same, of how long raw samples are kept.
pub const RETENTION: &str = "serrano-retention";
/// The same, of streaming.
pub const STREAMING: &str = "serrano-streaming";
/// Settings that one session may make: nodes times groups of metrics.
pub const SESSION_MAX: usize = 16;
/// Metrics of an instance: its share of cores, its memory, its restarts.
const CPU: &str = "container.cpu.usage";
const MEMORY: &str = "container.memory.usage";
const RESTARTS: &str = "container.restarts";
/// Metrics that an instance's samples are made of.
pub const OF_INSTANCE: [&str; 3] = [CPU, MEMORY, RESTARTS];

/// How often probes read.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Collection {
    cluster_uuid: String,
    #[serde(default)]
    probe: String,
    /// Seconds.
    query_interval: u32,
}

/// How an agent keeps and tells.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentSettings {
    /// Seconds.
    data_retain_period: u32,
    #[serde(default)]
    active_notifications: bool,
}

/// A session of streaming.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Session {
    /// Which cluster.
    pub cluster_uuid: String,
    action: String,
    /// Seconds.
    #[serde(default)]
    reporting_rate: u32,
    #[serde(default)]
    nodes: Vec<String>,
    #[serde(default)]
    metrics: Vec<String>,
}

fn key(path: &str, text: &str) -> Result<(), Problem> {
    if mesh_proto::is_key(text) {
        return Ok(());
    }
    Err(Problem::field(path, "is not a valid id", "use 1 to 64 letters, digits, `_` and `-`"))
}

fn interval_ms(path: &str, seconds: u32) -> Result<u32, Problem> {
    match seconds {
        1..=3_600 => Ok(seconds * 1_000),
        _ => Err(Problem::field(path, format!("is {seconds}"), "use 1 to 3600 seconds")),
    }
}

/// A setting with its cluster and name.
pub type Named = (String, String, Setting);

impl Collection {
    /// The setting that it is.
    ///
    /// # Errors
    /// When an id or the interval cannot be one.
    pub fn setting(self) -> Result<Named, Problem> {
        key("cluster_uuid", &self.cluster_uuid)?;
        let mut name = COLLECTION.to_owned();
        if !self.probe.is_empty() {
            key("probe", &self.probe)?;
            name = format!("{COLLECTION}-{}", self.probe).chars().take(64).collect();
        }
        let interval_ms = interval_ms("query_interval", self.query_interval)?;
        let selector = Some(Selector { probe: self.probe, ..Selector::default() });
        Ok((self.cluster_uuid, name, Setting { selector, interval_ms, ..Setting::default() }))
    }
}

impl AgentSettings {
    /// The setting of this agent's cluster.
    ///
    /// # Errors
    /// When nothing is to be kept, or notifications are asked for, which are conditions here.
    pub fn setting(self, cluster: &str) -> Result<Named, Problem> {
        if self.active_notifications {
            let hint = "leave it out; define a condition instead: PUT /api/v1/condition/{id}/";
            return Err(Problem::field("active_notifications", "is not set for a whole agent", hint));
        }
        if self.data_retain_period == 0 {
            return Err(Problem::field("data_retain_period", "is 0", "use seconds, at least 1"));
        }
        let setting = Setting { retain_seconds: self.data_retain_period, ..Setting::default() };
        Ok((cluster.to_owned(), RETENTION.to_owned(), setting))
    }
}

impl Session {
    /// The settings that begin it, one for each node and group of metrics; none if it is to end.
    ///
    /// # Errors
    /// When an id, the rate or the action cannot be one, or it is too much for one session.
    pub fn settings(&self) -> Result<Option<Vec<Named>>, Problem> {
        key("cluster_uuid", &self.cluster_uuid)?;
        for (path, texts) in [("nodes", &self.nodes), ("metrics", &self.metrics)] {
            texts.iter().try_for_each(|text| key(path, text))?;
        }
        match self.action.as_str() {
            "stop" => return Ok(None),
            "start" => {}
            other => {
                let shown: String = other.chars().take(64).collect();
                return Err(Problem::field("action", format!("is {shown:?}"), "use start or stop"));
            }
        }
        let interval_ms = interval_ms("reporting_rate", self.reporting_rate)?;
        let each = |texts: &[String]| if texts.is_empty() { vec![String::new()] } else { texts.to_vec() };
        let (nodes, probes) = (each(&self.nodes), each(&self.metrics));
        if nodes.len() * probes.len() > SESSION_MAX {
            let reason = format!("times metrics are {}", nodes.len() * probes.len());
            return Err(Problem::field("nodes", reason, format!("use at most {SESSION_MAX}")));
        }
        let pairs = nodes.iter().flat_map(|node| probes.iter().map(move |probe| (node, probe)));
        let named = pairs.enumerate().map(|(number, (node, probe))| {
            let kind = if node.is_empty() { "" } else { "node" };
            let selector = Selector { entity_kind: kind.into(), entity_id: node.clone(), probe: probe.clone() };
            let reason = "streaming".to_owned();
            let setting = Setting { selector: Some(selector), interval_ms, reason, ..Setting::default() };
            (self.cluster_uuid.clone(), format!("{STREAMING}-{number}"), setting)
        });
        Ok(Some(named.collect()))
    }
}

/// What this mesh does without being told, or does not have.
pub fn refusal(op: Op) -> Problem {
    let (detail, hint) = match op {
        Op::SerranoRegister | Op::SerranoUnregister => (
            "agents are not registered by hand: each declares its cluster when it starts, and is down when it stops",
            "start or stop the cluster-agent; see GET /api/v1/telemetry/agent/entities/",
        ),
        Op::SerranoChangeCentral => (
            "there is no configuration of the whole platform: measurement is set cluster by cluster",
            "use PUT /api/v1/measurement/{cluster}/{setting}/",
        ),
        _ => (
            "deployments are not registered by hand: each instance is measured from its start",
            "see GET /api/v1/telemetry/central/deployments/",
        ),
    };
    Problem::new(Kind::Conflict, detail, hint)
}

/// An agent as a telemetry entity.
pub fn agent(agent: &AgentInfo) -> Json {
    json!({
        "uuid": agent.cluster_id, "type": "Agent", "cluster_uuid": agent.cluster_id, "node": agent.node,
        "status": if agent.up { "UP" } else { "DOWN" },
        "timestamp": agent.heard.map(|heard| heard.seconds),
        "probes": agent.probes.len(),
    })
}

/// The probes of agents, as far as they may be seen.
pub fn probes(agents: &[AgentInfo], scope: &Scope) -> Json {
    let all = agents.iter().flat_map(|agent| agent.probes.iter().map(move |probe| (agent, probe)));
    let shown = all.filter_map(|(agent, probe)| {
        let entity = probe.entity.as_ref().filter(|entity| scope.has(&entity.owner))?;
        let status = probe.status.clone().unwrap_or_default();
        Some(json!({
            "type": format!("Probe.{}", status.probe), "cluster_uuid": agent.cluster_id, "node": entity.node,
            "entity": entity.id, "entity_kind": entity.kind, "query_interval": f64::from(status.interval_ms) / 1_000.0,
            "failure": status.failure,
        }))
    });
    json!({"probes": shown.collect::<Vec<_>>()})
}

fn seen<'a>(
    reply: &'a QueryReply,
    scope: &'a Scope,
) -> impl Iterator<Item = (&'a Entity, &'a Metric, &'a SeriesValues)> {
    reply.series.iter().filter_map(|series| {
        let (entity, metric) = (series.entity.as_ref()?, series.metric.as_ref()?);
        scope.has(&entity.owner).then_some((entity, metric, series))
    })
}

/// What was measured at one time: by thing, each metric.
type State = BTreeMap<String, Map<String, Json>>;

/// Samples as the operational database has them: by cluster and time, each metric of each thing.
pub fn samples(reply: &QueryReply, scope: &Scope) -> Json {
    let mut records: BTreeMap<(&str, i64), State> = BTreeMap::new();
    for (entity, metric, series) in seen(reply, scope) {
        let mut labels: Vec<String> = metric.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        labels.sort_unstable();
        let name =
            if labels.is_empty() { metric.name.clone() } else { format!("{}{{{}}}", metric.name, labels.join(",")) };
        for (at_ms, value) in series.at_ms.iter().zip(&series.values) {
            let of = records.entry((&entity.cluster_id, at_ms.div_euclid(1_000))).or_default();
            of.entry(format!("{}/{}", entity.kind, entity.id)).or_default().insert(name.clone(), json!(value));
        }
    }
    let records = records
        .into_iter()
        .map(|((cluster, timestamp), state)| json!({"cluster_uuid": cluster, "timestamp": timestamp, "state": state}));
    json!({"samples": records.collect::<Vec<_>>()})
}

/// Storage locations: each with the newest value of each of its metrics.
pub fn storage(reply: &QueryReply, scope: &Scope) -> Json {
    let mut all: BTreeMap<(&str, &str), Map<String, Json>> = BTreeMap::new();
    for (entity, metric, series) in seen(reply, scope) {
        let state = metric.labels.values().map(|value| format!("_{value}")).collect::<String>();
        let location = all.entry((&entity.cluster_id, &entity.id)).or_default();
        location.insert("node".into(), json!(entity.node));
        location.insert(format!("{}{state}", metric.name.replace('.', "_")), json!(series.values.last()));
    }
    let shown = all.into_iter().map(|((cluster, name), mut fields)| {
        fields.insert("cluster_uuid".into(), json!(cluster));
        fields.insert("name".into(), json!(name));
        Json::Object(fields)
    });
    json!({"storage_locations": shown.collect::<Vec<_>>()})
}

/// A deployment: an instance.
pub fn deployment(instance: &InstanceView) -> Json {
    let clusters: Vec<&str> = Some(instance.cluster_id.as_str()).filter(|id| !id.is_empty()).into_iter().collect();
    json!({"deployment_uuid": instance.instance_id, "clusters": clusters,
        "timestamp": instance.created.map(|created| created.seconds)})
}

/// Which deployments run on which cluster.
pub fn by_cluster(instances: &[InstanceView]) -> Json {
    let mut clusters: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for instance in instances.iter().filter(|instance| !instance.cluster_id.is_empty()) {
        clusters.entry(&instance.cluster_id).or_default().push(&instance.instance_id);
    }
    json!({"clusters": clusters})
}

/// What a deployment uses: cores in billionths, memory in KiB, as texts with their unit.
pub fn usage(instance: &InstanceView, reply: &QueryReply) -> Json {
    let newest = |name: &str| {
        let series =
            reply.series.iter().find(|series| series.metric.as_ref().is_some_and(|metric| metric.name == name));
        series.and_then(|series| Some((*series.at_ms.last()?, *series.values.last()?)))
    };
    let mut usage = Map::new();
    if let Some((_, cores)) = newest(CPU) {
        usage.insert("cpu".into(), json!(format!("{:.0}n", cores * 1e9)));
    }
    if let Some((_, bytes)) = newest(MEMORY) {
        usage.insert("memory".into(), json!(format!("{:.0}Ki", bytes / 1_024.0)));
    }
    json!({"metrics": [{
        "deployment_uuid": instance.instance_id, "cluster_uuid": instance.cluster_id, "name": instance.workload,
        "phase": present::phase(instance.phase()), "restarts": newest(RESTARTS).map(|(_, value)| value),
        "creation_timestamp": instance.created.map(|created| created.seconds),
        "timestamp": newest(CPU).map(|(at_ms, _)| at_ms.div_euclid(1_000)), "usage": usage,
    }]})
}

#[cfg(test)]
mod tests {
    use mesh_rest::body;

    use super::*;

    #[test]
    fn a_session_is_a_setting_for_each_node_and_group() {
        let sent = json!({"cluster_uuid": "edge", "action": "start", "reporting_rate": 5, "nodes": ["worker-02"],
            "metrics": ["cpu", "memory"]});
        let session: Session = body::form(sent.clone()).unwrap();
        let settings = session.settings().unwrap().unwrap();
        assert_eq!(settings.len(), 2);
        let (cluster, name, setting) = &settings[1];
        assert_eq!((cluster.as_str(), name.as_str(), setting.interval_ms), ("edge", "serrano-streaming-1", 5_000));
        let selector = setting.selector.clone().unwrap();
        assert_eq!((selector.entity_id.as_str(), selector.probe.as_str()), ("worker-02", "memory"));
        let stop: Session = body::form(json!({"cluster_uuid": "edge", "action": "stop"})).unwrap();
        assert_eq!(stop.settings(), Ok(None));
        for (member, wrong) in [
            ("cluster_uuid", json!("a.b")),
            ("action", json!("pause")),
            ("reporting_rate", json!(0)),
            ("nodes", json!(vec!["n"; 9])),
            ("metrics", json!(["*"])),
        ] {
            let mut sent = sent.clone();
            sent[member] = wrong;
            let refused = body::form::<Session>(sent).unwrap().settings().unwrap_err();
            assert_eq!(refused.faults[0].path, member);
        }
    }

    #[test]
    fn usage_is_written_as_the_platform_writes_it() {
        let series = |name: &str, value: f64| SeriesValues {
            entity: Some(Entity::default()),
            metric: Some(Metric { name: name.into(), ..Metric::default() }),
            at_ms: vec![1_695_371_235_500],
            values: vec![value],
        };
        let reply = QueryReply {
            series: vec![series(CPU, 1.002310835), series(MEMORY, 154_288_128.0)],
            ..QueryReply::default()
        };
        let instance = InstanceView { instance_id: "i".into(), cluster_id: "edge".into(), ..InstanceView::default() };
        let shown = usage(&instance, &reply);
        assert_eq!(shown["metrics"][0]["usage"], json!({"cpu": "1002310835n", "memory": "150672Ki"}));
        assert_eq!(shown["metrics"][0]["timestamp"], 1_695_371_235);
        let samples = samples(&reply, &Scope::All);
        assert_eq!(samples["samples"][0]["timestamp"], 1_695_371_235);
    }

    #[test]
    fn an_agent_keeps_for_as_long_as_it_is_told() {
        let of = |sent: Json| body::form::<AgentSettings>(sent).unwrap().setting("edge");
        let (_, name, setting) = of(json!({"data_retain_period": 180, "active_notifications": false})).unwrap();
        assert_eq!((name.as_str(), setting.retain_seconds), (RETENTION, 180));
        assert_eq!(of(json!({"data_retain_period": 0})).unwrap_err().faults[0].path, "data_retain_period");
        let refused = of(json!({"data_retain_period": 1, "active_notifications": true})).unwrap_err();
        assert_eq!(refused.faults[0].path, "active_notifications");
    }
}
