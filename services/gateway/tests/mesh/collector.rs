//! A collector in small: it answers what it is asked in the contract's words, and decides about settings and conditions. The
//! gateway is tested on what it passes on and what it shows, not on what is measured.

use std::{pin::Pin, time::Duration};

use futures::{Stream, StreamExt as _, stream};
use mesh_core::{Decider, Envelope, Key, Trigger};
use mesh_kit::Mesh;
use mesh_proto::{
    Refusal, RefusalCode, Timestamp,
    deciders::measurements::{Fact, Input, NAME},
    measurement::{ConditionDefined, ConditionDropped, MeasurementRefused, MeasurementSet, MeasurementUnset, Setting},
    telemetry::{
        AgentInfo, ConditionsReply, ConditionsRequest, Entity, EntityInfo, Filter, IngestReply, InstanceSample,
        InventoryReply, InventoryRequest, Metric, MetricKind, ProbeInfo, QueryReply, QueryRequest, RangeReply,
        RangeRequest, Readings, SeriesValues, StreamRequest, WatchReply, WatchRequest,
        telemetry_queries_server::{TelemetryQueries, TelemetryQueriesServer},
    },
};
use tonic::{Request, Response, Status, Streaming};

/// Everything that it knows: entities, with their owner.
fn entities() -> Vec<Entity> {
    let of = |kind: &str, id: &str, owner: &str| Entity {
        kind: kind.into(),
        id: id.into(),
        cluster_id: "edge".into(),
        node: "edge-1".into(),
        owner: owner.into(),
    };
    vec![of("node", "edge-1", ""), of("instance", "adas", "ada"), of("instance", "bobs", "bob")]
}

fn metrics() -> Vec<Metric> {
    let of = |name: &str, unit: &str, kind: MetricKind, labels: &[(&str, &str)]| Metric {
        name: name.into(),
        unit: unit.into(),
        kind: kind.into(),
        labels: labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        probe: "host".into(),
        ..Metric::default()
    };
    vec![
        of("system.cpu.time", "s", MetricKind::Counter, &[("cpu.mode", "user")]),
        of("system.memory.usage", "By", MetricKind::Gauge, &[]),
    ]
}

/// Kind of entity, name, unit, counter or not, labels.
type Measured = (&'static str, &'static str, &'static str, bool, &'static [(&'static str, &'static str)]);

/// What a mesh measures, as its probes name it.
const MEASURED: [Measured; 21] = [
    ("node", "system.cpu.time", "s", true, &[("cpu.mode", "user"), ("cpu.logical_number", "0")]),
    ("node", "system.cpu.busy", "1", false, &[]),
    ("node", "system.cpu.load_average.1m", "{thread}", false, &[]),
    ("node", "system.memory.usage", "By", false, &[("system.memory.state", "used")]),
    ("node", "system.memory.utilization", "1", false, &[]),
    ("node", "system.disk.io", "By", true, &[("disk.io.direction", "read"), ("system.device", "vda")]),
    ("node", "system.network.io", "By", true, &[("network.io.direction", "receive"), ("network.interface.name", "lo")]),
    ("node", "system.network.errors", "{error}", true, &[("network.interface.name", "lo")]),
    ("cluster", "hw.power", "W", false, &[("hw.id", "model")]),
    ("storage", "system.filesystem.usage", "By", false, &[("system.filesystem.state", "free")]),
    ("storage", "system.filesystem.utilization", "1", false, &[]),
    ("instance", "container.cpu.usage", "{cpu}", false, &[]),
    ("instance", "container.cpu.utilization", "1", false, &[]),
    ("instance", "container.memory.usage", "By", false, &[]),
    ("instance", "container.disk.read.rate", "By/s", false, &[]),
    ("instance", "container.disk.write.rate", "By/s", false, &[]),
    ("instance", "container.restarts", "{restart}", false, &[]),
    ("instance", "container.replicas", "{replica}", false, &[]),
    ("instance", "process.cpu.time", "s", true, &[]),
    ("route", "http.server.request.count", "{request}", true, &[("http.response.status_code", "200")]),
    ("route", "http.server.request.duration", "s", false, &[("quantile", "0.99")]),
];

/// The newest value of each series, as of now; counters grow with the time.
fn newest(filter: &Filter, now_ms: i64) -> Vec<SeriesValues> {
    let infrastructure =
        ["cluster", "storage"].map(|kind| Entity { kind: kind.into(), id: "edge".into(), ..entities().remove(0) });
    let route = Entity { kind: "route".into(), node: String::new(), ..entities().remove(1) };
    let all = entities().into_iter().chain(infrastructure).chain([route]).filter(|entity| fits(filter, entity));
    all.flat_map(|entity| {
        MEASURED
            .into_iter()
            .filter(|(kind, ..)| *kind == entity.kind)
            .map(|(_, name, unit, counter, labels)| SeriesValues {
                entity: Some(entity.clone()),
                metric: Some(Metric {
                    name: name.into(),
                    unit: unit.into(),
                    kind: if counter { MetricKind::Counter } else { MetricKind::Gauge }.into(),
                    labels: labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
                    ..Metric::default()
                }),
                at_ms: vec![now_ms],
                values: vec![if counter { now_ms as f64 / 1_000.0 } else { 0.5 }],
            })
            .collect::<Vec<_>>()
    })
    .filter(|series| series.metric.as_ref().is_some_and(|metric| named(filter, metric)))
    .collect()
}

fn fits(filter: &Filter, entity: &Entity) -> bool {
    let is = |wanted: &str, is: &str| wanted.is_empty() || wanted == is;
    is(&filter.entity_kind, &entity.kind)
        && is(&filter.owner, &entity.owner)
        && is(&filter.cluster_id, &entity.cluster_id)
        && (filter.entity_ids.is_empty() || filter.entity_ids.contains(&entity.id))
}

fn named(filter: &Filter, metric: &Metric) -> bool {
    let is = |wanted: &String| match wanted.strip_suffix(".*") {
        Some(prefix) => metric.name.starts_with(prefix),
        None => metric.name == *wanted,
    };
    filter.metrics.is_empty() || filter.metrics.iter().any(is)
}

struct Answers;

type Answered<T> = Result<Response<T>, Status>;
type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl TelemetryQueries for Answers {
    async fn range(&self, _: Request<RangeRequest>) -> Answered<RangeReply> {
        Ok(Response::new(Default::default()))
    }

    type StreamStream = Replies<InstanceSample>;

    async fn stream(&self, _: Request<StreamRequest>) -> Answered<Self::StreamStream> {
        Ok(Response::new(stream::empty().boxed()))
    }

    async fn query(&self, request: Request<QueryRequest>) -> Answered<QueryReply> {
        let request = request.into_inner();
        let filter = request.filter.unwrap_or_default();
        let (from, step_ms) = (request.from.unwrap_or_default(), i64::from(request.step_seconds.max(1)) * 1_000);
        if request.from.is_none() && request.to.is_none() {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
            let series = newest(&filter, i64::try_from(now).unwrap());
            return Ok(Response::new(QueryReply { series, ..QueryReply::default() }));
        }
        let mut series = vec![];
        for entity in entities().into_iter().filter(|entity| fits(&filter, entity)) {
            for metric in metrics().into_iter().filter(|metric| named(&filter, metric)) {
                series.push(SeriesValues {
                    entity: Some(entity.clone()),
                    metric: Some(metric),
                    at_ms: vec![from.as_millis(), from.as_millis() + step_ms],
                    values: vec![1.0, 2.5],
                });
            }
        }
        series.truncate(request.series_max as usize);
        Ok(Response::new(QueryReply { series, truncated: false, resolution_seconds: request.step_seconds }))
    }

    type WatchStream = Replies<WatchReply>;

    /// Ten packs after the position, then one more each second.
    async fn watch(&self, request: Request<WatchRequest>) -> Answered<Self::WatchStream> {
        let WatchRequest { filter, after, .. } = request.into_inner();
        let filter = filter.unwrap_or_default();
        let begin = if after == 0 { 100 } else { after };
        let replies = stream::unfold(begin + 1, move |position| {
            let filter = filter.clone();
            async move {
                if position > begin + 10 {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                let entities: Vec<Entity> = entities().into_iter().filter(|entity| fits(&filter, entity)).collect();
                let count = u32::try_from(entities.len()).unwrap();
                let metric = |entity| Metric { entity, ..metrics().remove(1) };
                let readings = Readings {
                    cluster_id: "edge".into(),
                    at: Some(Timestamp { seconds: i64::try_from(position).unwrap(), nanos: 0 }),
                    entities,
                    metrics: (0..count).map(metric).collect(),
                    metric: (0..count).collect(),
                    after_ms: vec![0; count as usize],
                    values: vec![position as f64; count as usize],
                    ..Readings::default()
                };
                let missed = u64::from(position == begin + 3) * 7;
                Some((Ok(WatchReply { readings: Some(readings), position, missed }), position + 1))
            }
        });
        Ok(Response::new(replies.boxed()))
    }

    async fn ingest(&self, _: Request<Streaming<Readings>>) -> Answered<IngestReply> {
        Ok(Response::new(Default::default()))
    }

    async fn inventory(&self, request: Request<InventoryRequest>) -> Answered<InventoryReply> {
        let request = request.into_inner();
        let probe = |entity| ProbeInfo { entity: Some(entity), ..ProbeInfo::default() };
        let measured = |entity| EntityInfo { entity: Some(entity), up: true, ..EntityInfo::default() };
        let agent = |cluster: &str| AgentInfo {
            cluster_id: cluster.into(),
            node: format!("{cluster}-1"),
            up: true,
            probes: entities().into_iter().map(probe).collect(),
            entities: entities().into_iter().map(measured).collect(),
            ..AgentInfo::default()
        };
        let known = ["cloud", "edge"].into_iter().filter(|name| {
            (request.cluster_id.is_empty() || request.cluster_id == **name) && *name > request.page_token.as_str()
        });
        let size = if request.page_size == 0 { 100 } else { request.page_size as usize };
        let found: Vec<&str> = known.collect();
        let next = if found.len() > size { found[size - 1].to_owned() } else { String::new() };
        let agents = found.into_iter().take(size).map(agent).collect();
        Ok(Response::new(InventoryReply { agents, next_page_token: next }))
    }

    async fn conditions(&self, _: Request<ConditionsRequest>) -> Answered<ConditionsReply> {
        Ok(Response::new(Default::default()))
    }
}

/// Does whatever is asked, unless it is too quick.
struct Measurements;

impl Decider for Measurements {
    const NAME: &'static str = NAME;
    type State = ();
    type ReadModel = ();
    type Input = Input;
    type Fact = Fact;

    fn initial(&self) {}

    fn concerns(&self, input: &Input, _: &()) -> Vec<Key> {
        vec![match input {
            Input::SetMeasurement(of) => Key::new([&of.cluster_id, &of.setting_id]),
            Input::UnsetMeasurement(of) => Key::new([&of.cluster_id, &of.setting_id]),
            Input::DefineCondition(of) => Key::new([&of.owner, &of.condition_id]),
            Input::DropCondition(of) => Key::new([&of.owner, &of.condition_id]),
        }]
    }

    fn decide(&self, _: &Key, (): &(), _: &(), envelope: &Envelope<Input>) -> Result<Vec<Fact>, Refusal> {
        let Trigger::Event(input) = envelope.trigger.clone() else { return Ok(vec![]) };
        let command_id = envelope.id.clone();
        Ok(vec![match input {
            Input::SetMeasurement(of) if (1..10).contains(&of.setting.as_ref().map_or(0, |set| set.interval_ms)) => {
                MeasurementRefused {
                    scope: of.cluster_id,
                    name: of.setting_id,
                    command_id,
                    command: "SetMeasurement".into(),
                    reason: "interval_ms is below 10".into(),
                    hint: "use 10 to 3600000".into(),
                    code: RefusalCode::Invalid.into(),
                }
                .into()
            }
            Input::SetMeasurement(of) => MeasurementSet {
                cluster_id: of.cluster_id,
                setting_id: of.setting_id,
                setting: Some(of.setting.unwrap_or_else(Setting::default)),
                command_id,
            }
            .into(),
            Input::UnsetMeasurement(of) => {
                MeasurementUnset { cluster_id: of.cluster_id, setting_id: of.setting_id, command_id }.into()
            }
            Input::DefineCondition(of) => {
                ConditionDefined { owner: of.owner, condition_id: of.condition_id, condition: of.condition, command_id }
                    .into()
            }
            Input::DropCondition(of) => {
                ConditionDropped { owner: of.owner, condition_id: of.condition_id, command_id }.into()
            }
        }])
    }

    fn evolve(&self, (): (), _: &Fact, _: Timestamp) {}

    fn due(&self, (): &()) -> Option<Timestamp> {
        None
    }
}

/// It needs no configuration.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub(crate) struct Config {}

/// Joins the mesh in the place of the collector.
pub(crate) async fn start(mesh: Mesh, _: Config) -> anyhow::Result<()> {
    mesh.serve(TelemetryQueriesServer::new(Answers));
    mesh.decide(Measurements).await?;
    Ok(())
}
