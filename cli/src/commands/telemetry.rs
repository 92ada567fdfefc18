//! `telemetry`: query, watch, inventory, set, unset; and `top`.

use std::process::ExitCode;

use anyhow::{Context as _, anyhow, bail};
use clap::{Args, Subcommand};
use mesh_client::{ANSWER_WAIT, Client};
use mesh_proto::{
    Timestamp,
    measurement::{Adaptive, Selector, SetMeasurement, Setting, UnsetMeasurement},
    telemetry::{
        AgentInfo, Entity, EntityInfo, Filter, Function, InventoryRequest, Metric, QueryReply, QueryRequest,
        SeriesValues, WatchRequest,
    },
};
use serde_json::{Value as Json, json};

use crate::{
    context::{Context, Watch, answer, checked, show, to_json},
    outcome::{Outcome, conclude},
    output::{self, Shown, clock, event},
};

/// Series that `top` asks for, and rows of each of its tables.
const TOP_SERIES: u32 = 1_000;
/// What `top` shows of a node, and of an instance; `telemetry query` shows the rest.
const TOP_OF_NODES: &[&str] =
    &["system.cpu.busy", "system.cpu.load_average.1m", "system.memory.utilization", "system.process.count"];
const TOP_OF_INSTANCES: &[&str] =
    &["container.cpu.usage", "container.memory.usage", "container.replicas", "container.restarts"];
/// How far back `top` looks for the newest value of a series, milliseconds, and in which steps, seconds.
const TOP_SPAN_MS: i64 = 60_000;
const TOP_STEP_S: u32 = 30;
/// Entities that are down which the inventory names of one agent.
const DOWN_NAMED: usize = 5;
/// Bytes of one answer.
const REPLY_MAX: usize = 64 << 20;

/// Subcommands of `telemetry`.
#[derive(Debug, Subcommand)]
pub enum TelemetryCommand {
    /// Values over time, each a row; a series a row with `--last`.
    Query {
        /// What is meant.
        #[command(flatten)]
        which: Which,
        /// A time (RFC 3339), or how long ago, as `-15m`.
        #[arg(long, default_value = "-10m", allow_hyphen_values = true)]
        from: String,
        /// The same; now when absent.
        #[arg(long, allow_hyphen_values = true)]
        to: Option<String>,
        /// Length of a step, as `30s`, `5m`, `1h`; values as they came when absent, as far back as those are kept.
        #[arg(long)]
        step: Option<String>,
        /// What makes one value of a step's; the mean of a gauge and the rate of a counter when absent.
        #[arg(long, requires = "step", value_parser = FUNCTIONS.map(|(name, _)| name))]
        function: Option<String>,
        /// Only the last value of each series.
        #[arg(long)]
        last: bool,
        /// Series at most.
        #[arg(long, default_value_t = 100)]
        series: u32,
    },
    /// Values as they come in, one line each.
    Watch {
        /// What is meant.
        #[command(flatten)]
        which: Which,
        /// Shortest time between two values of one series, milliseconds.
        #[arg(long, default_value_t = 0)]
        interval_ms: u32,
        /// Goes on after this position, which each line of JSON has.
        #[arg(long, default_value_t = 0)]
        after: u64,
        /// Ends after this number of values.
        #[arg(long)]
        count: Option<u64>,
    },
    /// Who measures, and what: agents, their probes and settings.
    Inventory {
        /// Only of this cluster.
        #[arg(long)]
        cluster: Option<String>,
        /// Whether to show again at every change.
        #[command(flatten)]
        watch: Watch,
    },
    /// Sets how something of a cluster is measured, from now on.
    Set {
        /// Cluster.
        cluster: String,
        /// Name of the setting: one that is there is replaced.
        setting: String,
        /// How.
        #[command(flatten)]
        how: How,
    },
    /// Takes a setting back.
    Unset {
        /// Cluster.
        cluster: String,
        /// Name of the setting.
        setting: String,
    },
}

/// Which measurements are meant; what is absent is all.
#[derive(Clone, Debug, Default, Args)]
pub struct Which {
    /// A metric's name, or a prefix as `system.cpu.*`; may be repeated.
    #[arg(long = "metric", value_name = "NAME")]
    pub metrics: Vec<String>,
    /// `node`, `cluster`, `instance`, `storage`, `application` or `route`.
    #[arg(long, value_parser = ["node", "cluster", "instance", "storage", "application", "route"])]
    pub kind: Option<String>,
    /// Id of what is measured; may be repeated.
    #[arg(long = "id")]
    pub ids: Vec<String>,
    /// Cluster that it is on.
    #[arg(long)]
    pub cluster: Option<String>,
    /// Node that it is on.
    #[arg(long)]
    pub node: Option<String>,
    /// A group of metrics, as `cpu` or `memory`; may be repeated.
    #[arg(long = "group")]
    pub groups: Vec<String>,
    /// A label that the measurement has; may be repeated.
    #[arg(long = "label", value_name = "NAME=VALUE")]
    pub labels: Vec<String>,
}

/// How something is measured.
#[derive(Clone, Debug, Default, Args)]
pub struct How {
    /// Kind of entity, as `node` or `instance`.
    #[arg(long)]
    pub kind: Option<String>,
    /// Id of one entity.
    #[arg(long)]
    pub id: Option<String>,
    /// Probe, as `cpu` or `energy`.
    #[arg(long)]
    pub probe: Option<String>,
    /// Between two samples, as `250ms`, `1s`, `1m`.
    #[arg(long, conflicts_with = "adaptive")]
    pub interval: Option<String>,
    /// The rate follows the signal: shortest interval, longest interval, and how far a value may be off, in per cent of
    /// its range, as `100ms,10s,2`.
    #[arg(long, value_name = "MIN,MAX,PERCENT")]
    pub adaptive: Option<String>,
    /// Measured, but neither sent nor stored.
    #[arg(long)]
    pub mute: bool,
    /// How long values are kept, raw and rolled up, as `10m` or `2h`; never longer than the collector keeps any.
    #[arg(long)]
    pub retain: Option<String>,
    /// Not in force from then on (RFC 3339).
    #[arg(long)]
    pub until: Option<Timestamp>,
    /// Why, for a reader.
    #[arg(long, default_value = "")]
    pub reason: String,
}

const FUNCTIONS: [(&str, Function); 11] = [
    ("mean", Function::Mean),
    ("min", Function::Min),
    ("max", Function::Max),
    ("sum", Function::Sum),
    ("count", Function::Count),
    ("first", Function::First),
    ("last", Function::Last),
    ("rate", Function::Rate),
    ("p50", Function::P50),
    ("p95", Function::P95),
    ("p99", Function::P99),
];

/// Options of `top`.
#[derive(Clone, Copy, Debug, Args)]
pub struct TopOptions {
    /// Shows once, and ends.
    #[arg(long)]
    pub once: bool,
}

/// Runs a subcommand of `telemetry`.
pub async fn run(context: &Context<'_>, command: TelemetryCommand) -> anyhow::Result<ExitCode> {
    let client = context.client().await?;
    match command {
        TelemetryCommand::Query { which, from, to, step, function, last, series } => {
            let now = mesh_client::now();
            let step_ms = step.as_deref().map(|text| length("--step", text)).transpose()?.unwrap_or_default();
            if step_ms % 1_000 != 0 {
                bail!("--step: use whole seconds");
            }
            let function = function.as_deref().and_then(|name| FUNCTIONS.iter().find(|(known, _)| *known == name));
            let request = QueryRequest {
                filter: Some(which.filter()?),
                from: Some(time("--from", &from, now)?),
                to: Some(to.map(|to| time("--to", &to, now)).transpose()?.unwrap_or(now)),
                step_seconds: u32::try_from(step_ms / 1_000).context("--step is too long")?,
                function: function.map_or(Function::Unspecified, |(_, function)| *function).into(),
                series_max: series,
                values_max: 0,
            };
            show(context, false, async || {
                let reply = query(&client, request.clone()).await?;
                if let Some(coarser) = coarser(&request, &reply) {
                    output::note(coarser);
                }
                Ok(values(&reply, last))
            })
            .await
        }
        TelemetryCommand::Watch { which, interval_ms, after, count } => {
            let request = WatchRequest { filter: Some(which.filter()?), interval_ms, after };
            watch(context, &client, request, count).await
        }
        TelemetryCommand::Inventory { cluster, watch } => {
            let cluster = cluster.unwrap_or_default();
            show(context, watch.watch, async || Ok(inventory(&agents(&client, &cluster).await?))).await
        }
        TelemetryCommand::Set { cluster, setting, how } => {
            checked("cluster", &cluster)?;
            checked("setting", &setting)?;
            let command = SetMeasurement {
                cluster_id: cluster,
                setting_id: setting.clone(),
                setting: Some(how.setting().context("read the setting")?),
            };
            let outcome = match client.ask(&command, uuid::Uuid::now_v7().to_string(), ANSWER_WAIT).await {
                Ok(_) => Outcome { ok: true, result: "set".into(), ..Outcome::of(&setting) },
                Err(error) => Outcome::of(&setting).refused(error.into_refusal()?),
            };
            Ok(conclude(context.format, "setting", &[outcome]))
        }
        TelemetryCommand::Unset { cluster, setting } => {
            checked("cluster", &cluster)?;
            checked("setting", &setting)?;
            let command = UnsetMeasurement { cluster_id: cluster, setting_id: setting.clone() };
            let outcome = match client.ask(&command, uuid::Uuid::now_v7().to_string(), ANSWER_WAIT).await {
                Ok(_) => Outcome { ok: true, result: "taken back".into(), ..Outcome::of(&setting) },
                Err(error) => Outcome::of(&setting).refused(error.into_refusal()?),
            };
            Ok(conclude(context.format, "setting", &[outcome]))
        }
    }
}

/// Runs `top`: agents, nodes and instances with their newest values, again and again.
pub async fn top(context: &Context<'_>, options: TopOptions) -> anyhow::Result<ExitCode> {
    let client = context.client().await?;
    show(context, !options.once, async || {
        let now = mesh_client::now();
        let request = |kind: &str, metrics: &[&str]| QueryRequest {
            filter: Some(Filter {
                entity_kind: kind.to_owned(),
                metrics: metrics.iter().map(|name| (*name).to_owned()).collect(),
                ..Filter::default()
            }),
            from: Some(now.plus_millis(-TOP_SPAN_MS)),
            to: Some(now),
            step_seconds: TOP_STEP_S,
            function: Function::Unspecified.into(),
            series_max: TOP_SERIES,
            values_max: 0,
        };
        let agents = agents(&client, "").await?;
        let nodes = query(&client, request("node", TOP_OF_NODES)).await?;
        let instances = query(&client, request("instance", TOP_OF_INSTANCES)).await?;
        let text = format!(
            "{}\n\n{}\n\n{}",
            inventory(&agents).text,
            by_entity("node", &nodes),
            by_entity("instance", &instances)
        );
        let value = json!({
            "agents": inventory(&agents).value, "nodes": values(&nodes, true).value,
            "instances": values(&instances, true).value,
        });
        Ok(Shown { value, text })
    })
    .await
}

impl Which {
    fn filter(&self) -> anyhow::Result<Filter> {
        let mut labels = std::collections::HashMap::new();
        for text in &self.labels {
            let (name, value) =
                text.split_once('=').with_context(|| format!("--label {text}: write NAME=VALUE, as cpu.mode=user"))?;
            labels.insert(name.to_owned(), value.to_owned());
        }
        Ok(Filter {
            entity_kind: self.kind.clone().unwrap_or_default(),
            entity_ids: self.ids.clone(),
            cluster_id: self.cluster.clone().unwrap_or_default(),
            node: self.node.clone().unwrap_or_default(),
            owner: String::new(),
            metrics: self.metrics.clone(),
            labels: labels.into_iter().collect(),
            groups: self.groups.clone(),
        })
    }
}

impl How {
    fn setting(&self) -> anyhow::Result<Setting> {
        let millis = |option: &str, text: &str| -> anyhow::Result<u32> {
            u32::try_from(length(option, text)?).with_context(|| format!("{option} {text} is too long"))
        };
        let adaptive = match &self.adaptive {
            None => None,
            Some(text) => {
                let parts: Vec<&str> = text.split(',').collect();
                let [shortest, longest, percent] = parts[..] else {
                    bail!("--adaptive {text}: write MIN,MAX,PERCENT, as 100ms,10s,2");
                };
                Some(Adaptive {
                    interval_min_ms: millis("--adaptive", shortest)?,
                    interval_max_ms: millis("--adaptive", longest)?,
                    error_percent: percent.parse().with_context(|| format!("--adaptive: {percent} is not a number"))?,
                })
            }
        };
        Ok(Setting {
            selector: Some(Selector {
                entity_kind: self.kind.clone().unwrap_or_default(),
                entity_id: self.id.clone().unwrap_or_default(),
                probe: self.probe.clone().unwrap_or_default(),
            }),
            interval_ms: self.interval.as_deref().map(|text| millis("--interval", text)).transpose()?.unwrap_or(0),
            muted: self.mute,
            adaptive,
            retain_seconds: self.retain.as_deref().map(|text| millis("--retain", text)).transpose()?.unwrap_or(0)
                / 1_000,
            until: self.until,
            reason: self.reason.clone(),
        })
    }
}

/// A length of time, milliseconds: `250ms`, `30s`, `5m`, `1h`, `2d`; a bare number is seconds.
fn length(option: &str, text: &str) -> anyhow::Result<i64> {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let unit_ms = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => bail!("{option} {text}: use a length as 250ms, 30s, 5m, 1h or 2d"),
    };
    let number: i64 = number.parse().with_context(|| format!("{option} {text}: use a length as 250ms, 30s or 5m"))?;
    number.checked_mul(unit_ms).with_context(|| format!("{option} {text} is too long"))
}

/// A time, or how long ago.
pub(super) fn time(option: &str, text: &str, now: Timestamp) -> anyhow::Result<Timestamp> {
    match text.strip_prefix('-') {
        Some(ago) => Ok(now.plus_millis(-length(option, ago)?)),
        None => text.parse().map_err(|error| anyhow!("{option}: {error}; or write how long ago, as -15m")),
    }
}

async fn query(client: &Client, request: QueryRequest) -> anyhow::Result<QueryReply> {
    let mut telemetry = client.telemetry().await?.max_decoding_message_size(REPLY_MAX);
    answer("ask for values", telemetry.query(request).await)
}

async fn agents(client: &Client, cluster: &str) -> anyhow::Result<Vec<AgentInfo>> {
    let (mut agents, mut page_token) = (vec![], String::new());
    let mut telemetry = client.telemetry().await?.max_decoding_message_size(REPLY_MAX);
    loop {
        let request = InventoryRequest { cluster_id: cluster.to_owned(), page_size: 1_000, page_token };
        let page = answer("list what measures", telemetry.inventory(request).await)?;
        agents.extend(page.agents);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(agents);
        }
    }
}

fn named(entity: &Entity) -> String {
    format!("{} {}", entity.kind, entity.id)
}

/// A metric with its labels: `system.cpu.time{cpu.mode=user}`.
fn metric(metric: &Metric) -> String {
    let mut labels: Vec<String> = metric.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    labels.sort_unstable();
    match labels.is_empty() {
        true => metric.name.clone(),
        false => format!("{}{{{}}}", metric.name, labels.join(",")),
    }
}

fn number(value: f64) -> String {
    let short = format!("{value:.3}");
    short.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn known(series: &SeriesValues) -> (Entity, Metric) {
    (series.entity.clone().unwrap_or_default(), series.metric.clone().unwrap_or_default())
}

/// What to say when an answer is coarser than what was asked for.
fn coarser(request: &QueryRequest, reply: &QueryReply) -> Option<String> {
    let step = reply.resolution_seconds;
    (step > request.step_seconds).then(|| {
        format!(
            "one value per {step} s: what is finer is not kept of a time so far back; ask for a later --from to see it"
        )
    })
}

/// Values, each a row; or of each series the last.
fn values(reply: &QueryReply, last: bool) -> Shown {
    let value = reply.series.iter().map(|series| to_json("continuum.telemetry.v1.SeriesValues", series)).collect();
    let mut rows = vec![];
    for series in &reply.series {
        let (entity, of) = known(series);
        let mut all: Vec<(&i64, &f64)> = series.at_ms.iter().zip(&series.values).collect();
        if last {
            all.drain(..all.len().saturating_sub(1));
        }
        for (at, value) in all {
            rows.push(vec![
                output::date(Timestamp::from_millis(*at)),
                named(&entity),
                entity.cluster_id.clone(),
                metric(&of),
                number(*value),
                of.unit.clone(),
                output::provenance(of.provenance()),
            ]);
        }
    }
    let mut shown = Shown::table(value, &["time", "of", "cluster", "metric", "value", "unit", "source"], rows);
    if reply.truncated {
        shown.text.push_str("\nsome were left out: ask for less time, fewer series, or longer steps");
    }
    shown
}

/// What a node or an instance measures, each entity a row with its most telling values.
fn by_entity(kind: &str, reply: &QueryReply) -> String {
    let mut rows: std::collections::BTreeMap<(String, String), Vec<String>> = std::collections::BTreeMap::new();
    for series in &reply.series {
        let (entity, of) = known(series);
        let Some(value) = series.values.last() else { continue };
        let row = rows.entry((entity.cluster_id.clone(), entity.id.clone())).or_default();
        row.push(format!("{} {} {}", metric(&of), number(*value), of.unit).trim_end().to_owned());
    }
    let shown = rows.into_iter().map(|((cluster, id), mut values)| {
        values.sort_unstable();
        vec![id, cluster, values.join("; ")]
    });
    let header = [kind, "cluster", "values"];
    output::table(&header, shown.collect())
}

/// How many of an agent's entities are up, and which are down since when.
fn entities(agent: &AgentInfo) -> String {
    let down: Vec<&EntityInfo> = agent.entities.iter().filter(|info| !info.up).collect();
    let mut text = format!("{} up", agent.entities.len() - down.len());
    let mut named: Vec<String> = down
        .iter()
        .take(DOWN_NAMED)
        .map(|info| {
            let since = info.heard.map_or_else(|| "no value yet".to_owned(), |heard| format!("since {}", clock(heard)));
            format!("{} {since}", info.entity.as_ref().map(named).unwrap_or_default())
        })
        .collect();
    if down.len() > DOWN_NAMED {
        named.push(format!("{} more", down.len() - DOWN_NAMED));
    }
    if !named.is_empty() {
        text = format!("{text}; down: {}", named.join(", "));
    }
    match agent.entities_left_out {
        0 => text,
        more => format!("{text}; {more} not listed"),
    }
}

fn inventory(agents: &[AgentInfo]) -> Shown {
    let value = agents.iter().map(|agent| to_json("continuum.telemetry.v1.AgentInfo", agent)).collect::<Json>();
    let rows = agents.iter().map(|agent| {
        let failing: Vec<String> = agent
            .probes
            .iter()
            .filter_map(|probe| {
                let status = probe.status.as_ref().filter(|status| !status.failure.is_empty())?;
                Some(format!("{}: {}", status.probe, status.failure))
            })
            .collect();
        let mut settings: Vec<&str> = agent.settings.keys().map(String::as_str).collect();
        settings.sort_unstable();
        vec![
            agent.cluster_id.clone(),
            agent.node.clone(),
            if agent.up { "up" } else { "down" }.into(),
            agent.heard.map(clock).unwrap_or_else(|| "-".into()),
            format!("{:.1}", agent.values_per_second),
            entities(agent),
            agent.probes.len().to_string(),
            if failing.is_empty() { "-".into() } else { failing.join("; ") },
            settings.join(" "),
            format!("{} ms", agent.skew_ms),
        ]
    });
    let header =
        ["cluster", "node", "state", "heard", "values/s", "entities", "probes", "failing", "settings", "clock"];
    Shown::table(value, &header, rows.collect())
}

/// Prints values as they come in.
async fn watch(
    context: &Context<'_>,
    client: &Client,
    request: WatchRequest,
    count: Option<u64>,
) -> anyhow::Result<ExitCode> {
    let mut packs = answer("watch values", client.telemetry().await?.watch(request).await)?;
    let mut shown = 0;
    loop {
        let next = tokio::select! {
            next = packs.message() => next.map_err(|status| anyhow!("watch values: {}", status.message()))?,
            _ = tokio::signal::ctrl_c() => None,
        };
        let Some(reply) = next else { return Ok(ExitCode::SUCCESS) };
        if reply.missed > 0 {
            output::note(format!("{} values were missed just before these", reply.missed));
        }
        let pack = reply.readings.unwrap_or_default();
        if !pack.fits() {
            bail!("watch values: the collector sent columns of different lengths; see its log");
        }
        let begin_ms = pack.at.unwrap_or_default().as_millis();
        for ((index, after_ms), value) in pack.metric.iter().zip(&pack.after_ms).zip(&pack.values) {
            let Some(of) = pack.metrics.get(*index as usize) else { continue };
            let entity = pack.entities.get(of.entity as usize).cloned().unwrap_or_default();
            let at = Timestamp::from_millis(begin_ms + i64::from(*after_ms));
            let line = json!({
                "at": at.to_string(), "entity": to_json("continuum.telemetry.v1.Entity", &entity), "metric": metric(of),
                "unit": of.unit, "value": value, "position": reply.position,
            });
            event(context.format, &line, || {
                format!("{} {} {} {} {}", clock(at), named(&entity), metric(of), number(*value), of.unit)
                    .trim_end()
                    .to_owned()
            })?;
            shown += 1;
            if count.is_some_and(|count| shown >= count) {
                return Ok(ExitCode::SUCCESS);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::telemetry::{MetricKind, ProbeInfo, ProbeStatus};

    use super::*;

    #[test]
    fn lengths_and_times_are_read_or_refused() {
        for (text, ms) in [("250ms", 250), ("30s", 30_000), ("30", 30_000), ("5m", 300_000), ("2d", 172_800_000)] {
            assert_eq!(length("--step", text).unwrap(), ms, "{text}");
        }
        for text in ["", "ms", "5y", "-5s", "1.5s", "99999999999999999999s", "9223372036854775807d"] {
            let refused = length("--step", text).unwrap_err().to_string();
            assert!(refused.starts_with("--step"), "{refused}");
        }
        let now = Timestamp { seconds: 1_000, nanos: 0 };
        assert_eq!(time("--from", "-15m", now).unwrap(), Timestamp { seconds: 100, nanos: 0 });
        assert_eq!(time("--from", "1970-01-01T00:00:07Z", now).unwrap().seconds, 7);
        assert!(time("--from", "yesterday", now).unwrap_err().to_string().contains("-15m"));
    }

    #[test]
    fn a_setting_says_what_was_asked_for() {
        let how = How {
            kind: Some("node".into()),
            probe: Some("cpu".into()),
            adaptive: Some("100ms,10s,2.5".into()),
            retain: Some("10m".into()),
            ..How::default()
        };
        let setting = how.setting().unwrap();
        let adaptive = setting.adaptive.unwrap();
        assert_eq!((adaptive.interval_min_ms, adaptive.interval_max_ms, adaptive.error_percent), (100, 10_000, 2.5));
        assert_eq!((setting.retain_seconds, setting.interval_ms), (600, 0));
        for wrong in ["100ms", "1,2", "1s,2s,x", "1s,2s,3,4"] {
            let how = How { adaptive: Some(wrong.into()), ..How::default() };
            assert!(how.setting().unwrap_err().to_string().contains("--adaptive"), "{wrong}");
        }
    }

    fn reply() -> QueryReply {
        let series = SeriesValues {
            entity: Some(Entity {
                kind: "node".into(),
                id: "edge-1".into(),
                cluster_id: "edge".into(),
                ..Entity::default()
            }),
            metric: Some(Metric {
                name: "system.cpu.time".into(),
                unit: "s".into(),
                kind: MetricKind::Counter.into(),
                labels: [("cpu.mode".to_owned(), "user".to_owned())].into(),
                ..Metric::default()
            }),
            at_ms: vec![1_000, 2_000],
            values: vec![0.5, 0.75],
        };
        QueryReply { series: vec![series], truncated: true, ..QueryReply::default() }
    }

    #[test]
    fn values_are_rows_and_what_was_left_out_is_said() {
        let shown = values(&reply(), false);
        assert!(shown.text.contains("system.cpu.time{cpu.mode=user}") && shown.text.contains("0.75"), "{}", shown.text);
        assert!(shown.text.contains("were left out"), "{}", shown.text);
        assert_eq!(values(&reply(), true).text.matches("edge-1").count(), 1);
        assert!(by_entity("node", &reply()).contains("system.cpu.time{cpu.mode=user} 0.75 s"));
    }

    #[test]
    fn an_answer_that_is_coarser_than_asked_is_said_to_be() {
        let answer = |step_seconds, resolution_seconds| {
            let request = QueryRequest { step_seconds, ..QueryRequest::default() };
            coarser(&request, &QueryReply { resolution_seconds, ..QueryReply::default() })
        };
        assert!(answer(0, 60).is_some_and(|note| note.contains("60 s")));
        assert!(answer(30, 60).is_some());
        assert_eq!([answer(0, 0), answer(60, 60), answer(300, 60)], [None, None, None]);
    }

    #[test]
    fn entities_that_are_down_are_named_with_their_last_value() {
        let info = |id: &str, up: bool, heard: Option<i64>| EntityInfo {
            entity: Some(Entity { kind: "instance".into(), id: id.into(), ..Entity::default() }),
            up,
            heard: heard.map(Timestamp::from_millis),
            ..EntityInfo::default()
        };
        let mut agent = AgentInfo {
            entities: vec![info("a", true, Some(1)), info("b", false, Some(1_000)), info("c", false, None)],
            ..AgentInfo::default()
        };
        assert_eq!(
            entities(&agent),
            format!("1 up; down: instance b since {}, instance c no value yet", clock(Timestamp::from_millis(1_000)))
        );
        agent.entities.extend((0..9).map(|number| info(&number.to_string(), false, None)));
        agent.entities_left_out = 3;
        let many = entities(&agent);
        assert!(many.ends_with("instance 2 no value yet, 6 more; 3 not listed"), "{many}");
        assert!(inventory(&[agent]).text.contains("1 up; down: instance b"));
    }

    #[test]
    fn an_agents_failing_probes_are_named() {
        let status = ProbeStatus { probe: "energy".into(), failure: "no meter".into(), ..ProbeStatus::default() };
        let probe = ProbeInfo { status: Some(status), ..ProbeInfo::default() };
        let agent = AgentInfo { cluster_id: "edge".into(), up: true, probes: vec![probe], ..AgentInfo::default() };
        assert!(inventory(&[agent]).text.contains("energy: no meter"));
    }
}
