//! Measurements as they come, and a twin as it was.

use anyhow::Context as _;
use continuum::output::table;
use mesh_client::Client;
use mesh_proto::{
    Timestamp,
    telemetry::{Filter, Readings, WatchRequest},
    twin::{DiffRequest, Twin, TwinRequest},
};
use tokio::{sync::mpsc, task::JoinHandle};

/// Values that wait to be shown; a demo sees a few a second.
const WAITING_MAX: usize = 1_000;
/// What instances use of a CPU, in cores.
const CPU: &str = "container.cpu.usage";
/// Fields of a twin that are shown.
const SHOWN: [&str; 4] = ["cluster_id", "cpu_percent", "memory_bytes", "generation"];

/// A value and its time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    pub(crate) at: Timestamp,
    /// Cores.
    pub(crate) cores: f64,
}

/// A subscription to what one instance uses of a CPU.
pub(crate) struct Live {
    arrivals: mpsc::Receiver<Measured>,
    task: JoinHandle<()>,
}

impl Live {
    /// Subscribes; values come from now on.
    pub(crate) async fn subscribe(client: &Client, instance: &str) -> anyhow::Result<Self> {
        let filter = Filter {
            entity_kind: "instance".into(),
            entity_ids: vec![instance.to_owned()],
            metrics: vec![CPU.into()],
            ..Filter::default()
        };
        let request = WatchRequest { filter: Some(filter), ..WatchRequest::default() };
        let mut replies = client.telemetry().await?.watch(request).await.context("watch telemetry")?.into_inner();
        let (sender, arrivals) = mpsc::channel(WAITING_MAX);
        let task = tokio::spawn(async move {
            while let Ok(Some(reply)) = replies.message().await {
                for one in reply.readings.iter().flat_map(measured) {
                    if sender.send(one).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Self { arrivals, task })
    }

    /// Everything that has come; the subscription ends.
    pub(crate) fn end(mut self) -> Vec<Measured> {
        self.task.abort();
        let mut all = vec![];
        while let Ok(one) = self.arrivals.try_recv() {
            all.push(one);
        }
        all
    }
}

fn measured(pack: &Readings) -> impl Iterator<Item = Measured> + '_ {
    let sent = pack.at.unwrap_or_default();
    let of = |metric: &u32| pack.metrics.get(usize::try_from(*metric).ok()?);
    let columns = pack.metric.iter().zip(&pack.after_ms).zip(&pack.values);
    columns
        .filter(move |((metric, _), _)| of(metric).is_some_and(|metric| metric.name == CPU))
        .map(move |((_, after_ms), value)| Measured { at: sent.plus_millis(i64::from(*after_ms)), cores: *value })
}

fn workload(instance: &str) -> TwinRequest {
    TwinRequest { kind: "workload".into(), id: instance.to_owned(), ..TwinRequest::default() }
}

/// The twin of an instance as it was at a time.
pub(crate) async fn twin_at(client: &Client, instance: &str, at: Timestamp) -> anyhow::Result<Twin> {
    let request = TwinRequest { at: Some(at), ..workload(instance) };
    Ok(client.twins().await?.get(request).await.context("get the twin at a past time")?.into_inner())
}

/// Versions of the twin of an instance, newest first.
pub(crate) async fn history(client: &Client, instance: &str) -> anyhow::Result<Vec<Twin>> {
    let reply = client.twins().await?.history(workload(instance)).await.context("read the history of the twin")?;
    Ok(reply.into_inner().twins)
}

/// What differs in the twin between a time and now: a table, and whether a field does.
pub(crate) async fn difference(
    client: &Client,
    instance: &str,
    from: Timestamp,
) -> anyhow::Result<(String, impl Fn(&str) -> bool + use<>)> {
    let request = DiffRequest { kind: "workload".into(), id: instance.to_owned(), from: Some(from), to: None };
    let differences = client.twins().await?.diff(request).await.context("compare the twin")?.into_inner().differences;
    let shown = differences.iter().filter(|d| SHOWN.contains(&d.field.as_str()));
    let rows = shown.map(|d| vec![d.field.clone(), d.before.clone(), d.after.clone()]).collect();
    let differs = move |field: &str| differences.iter().any(|d| d.field == field);
    Ok((table(&["field", "before the load", "now"], rows), differs))
}
