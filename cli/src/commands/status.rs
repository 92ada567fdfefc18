//! `status`: services, streams, consumers with their lag, dead letters.

use std::{collections::BTreeSet, process::ExitCode, time::Duration};

use anyhow::Context as _;
use bytes::Bytes;
use mesh_client::Client;
use mesh_proto::{contract, rights::API_PREFIX};
use serde::Serialize;
use serde_json::{Value as Json, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    context::{Context, Watch, show},
    output::{Shown, megabytes, table},
};

/// How long services have to answer.
const PING_WAIT: Duration = Duration::from_millis(400);
const ASK_LIMIT: Duration = Duration::from_secs(5);
const PAGE_BYTES_MAX: u64 = 64 * 1024;

/// How the mesh stands.
#[derive(Debug, Serialize)]
pub struct Mesh {
    /// Every process of every service.
    pub services: Vec<Service>,
    /// Every stream of the contract.
    pub streams: Vec<Stream>,
    /// Every durable consumer of the contract.
    pub consumers: Vec<Consumer>,
    /// Messages that were given up.
    #[serde(rename = "deadLetters")]
    pub dead_letters: u64,
}

/// A process of a service.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// Service.
    pub name: String,
    /// Process; empty if nobody answers.
    pub process: String,
    /// Version.
    pub version: String,
    /// Where it answers gRPC and HTTP.
    pub endpoint: String,
    /// Does it have all that it needs?
    pub ready: bool,
    /// What it lacks, each with its hint.
    pub unmet: Vec<String>,
}

/// A stream.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Stream {
    /// Name.
    pub name: String,
    /// Does it exist?
    pub exists: bool,
    /// Messages kept.
    pub messages: u64,
    /// Bytes kept.
    pub bytes: u64,
    /// Bytes that it may keep.
    pub max_bytes: i64,
    /// Sequence of its last message.
    pub last_sequence: u64,
    /// The server's clock when it answered, RFC 3339.
    pub server_time: String,
}

/// A durable consumer.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Consumer {
    /// Stream that it reads.
    pub stream: String,
    /// Name.
    pub name: String,
    /// Does it exist?
    pub exists: bool,
    /// Messages not yet delivered.
    pub pending: u64,
    /// Messages delivered and not yet settled.
    pub ack_pending: u64,
    /// Messages delivered again.
    pub redelivered: u64,
    /// Everything up to this sequence is settled.
    pub ack_floor: u64,
    /// How long ago the oldest message was stored that it has in hand, milliseconds.
    pub age_ms: u64,
}

impl Consumer {
    /// Messages that wait for it.
    pub fn lag(&self) -> u64 {
        self.pending + self.ack_pending
    }
}

/// Shows how the mesh stands.
pub async fn run(context: &Context<'_>, watch: Watch) -> anyhow::Result<ExitCode> {
    let client = context.client().await?;
    show(context, watch.watch, async || {
        let mesh = read(&client).await?;
        Ok(Shown { value: json!(mesh), text: text(&mesh) })
    })
    .await
}

/// Asks everybody.
pub async fn read(client: &Client) -> anyhow::Result<Mesh> {
    let (services, streams, consumers) = tokio::join!(services(client), streams(client), consumers(client));
    let (services, streams, consumers) = (services?, streams?, consumers?);
    let dead_letters = streams.iter().find(|s| s.name == "DEAD").map_or(0, |s| s.messages);
    Ok(Mesh { services, streams, consumers, dead_letters })
}

async fn services(client: &Client) -> anyhow::Result<Vec<Service>> {
    let answers = client.bus().request_all("$SRV.PING", Bytes::new(), PING_WAIT).await.context("ask the services")?;
    let text = |value: &Json| value.as_str().unwrap_or_default().to_owned();
    let found = answers.iter().filter_map(|a| serde_json::from_slice::<Json>(&a.body).ok()).map(|answer| Service {
        name: text(&answer["name"]),
        process: text(&answer["id"]),
        version: text(&answer["version"]),
        endpoint: text(&answer["metadata"]["endpoint"]),
        ..Service::default()
    });
    let asked = found.map(|mut service| async move {
        match readiness(&service.endpoint).await {
            Ok(unmet) => {
                service.ready = unmet.is_empty();
                service.unmet = unmet;
            }
            Err(error) => service.unmet = vec![format!("{error:#}")],
        }
        service
    });
    let mut services = futures::future::join_all(asked).await;
    let there: BTreeSet<String> = services.iter().map(|s| s.name.clone()).collect();
    let absent = contract().services.iter().filter(|s| !there.contains(&s.name)).map(|s| Service {
        name: s.name.clone(),
        unmet: vec![format!("nobody answers as {}; start it", s.name)],
        ..Service::default()
    });
    services.extend(absent);
    services.sort_by(|a, b| (&a.name, &a.endpoint).cmp(&(&b.name, &b.endpoint)));
    Ok(services)
}

/// What a process lacks, from its `/readyz`.
async fn readiness(endpoint: &str) -> anyhow::Result<Vec<String>> {
    let host = endpoint.strip_prefix("http://").with_context(|| format!("ask {endpoint:?} over plain HTTP"))?;
    let host = host.trim_end_matches('/');
    let page = async {
        let mut connection = TcpStream::connect(host).await.with_context(|| format!("connect to {host}"))?;
        let request = format!("GET /readyz HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        connection.write_all(request.as_bytes()).await.context("ask /readyz")?;
        let mut page = String::new();
        connection.take(PAGE_BYTES_MAX).read_to_string(&mut page).await.context("read /readyz")?;
        anyhow::Ok(page)
    };
    let page =
        tokio::time::timeout(ASK_LIMIT, page).await.with_context(|| format!("{host} does not answer /readyz"))??;
    unmet(&page)
}

/// The conditions that a `/readyz` page names.
fn unmet(page: &str) -> anyhow::Result<Vec<String>> {
    let start = page.find('{').context("read /readyz: it holds no JSON")?;
    let end = page.rfind('}').context("read /readyz: it holds no JSON")?;
    let page: Json = serde_json::from_str(&page[start..=end]).context("read /readyz")?;
    let text = |u: &Json| {
        let text = |name: &str| u[name].as_str().unwrap_or_default().to_owned();
        format!("{}: {} since {}; {}", text("condition"), text("reason"), text("since"), text("hint"))
    };
    let unmet: Vec<String> = page["unmet"].as_array().map(|list| list.iter().map(text).collect()).unwrap_or_default();
    Ok(match page["ready"] == true || !unmet.is_empty() {
        true => unmet,
        false => vec!["not ready, without a reason".to_owned()],
    })
}

/// Asks the JetStream API; `None` if what is asked for does not exist.
async fn api(client: &Client, call: &str) -> anyhow::Result<Option<Json>> {
    let answer = client.bus().request(&format!("{API_PREFIX}.{call}"), Bytes::new(), ASK_LIMIT).await;
    let answer: Json = serde_json::from_slice(&answer.with_context(|| format!("ask the bus for {call}"))?.body)?;
    match answer["error"]["code"].as_u64() {
        None => Ok(Some(answer)),
        Some(404) => Ok(None),
        Some(_) => anyhow::bail!("ask the bus for {call}: {}", answer["error"]["description"]),
    }
}

async fn streams(client: &Client) -> anyhow::Result<Vec<Stream>> {
    let asked = contract().streams.iter().map(|spec| async move {
        let info = api(client, &format!("STREAM.INFO.{}", spec.name)).await?;
        let exists = info.is_some();
        let info = info.unwrap_or_default();
        anyhow::Ok(Stream {
            name: spec.name.clone(),
            exists,
            messages: info["state"]["messages"].as_u64().unwrap_or_default(),
            bytes: info["state"]["bytes"].as_u64().unwrap_or_default(),
            max_bytes: info["config"]["max_bytes"].as_i64().unwrap_or(-1),
            last_sequence: info["state"]["last_seq"].as_u64().unwrap_or_default(),
            server_time: info["ts"].as_str().unwrap_or_default().to_owned(),
        })
    });
    futures::future::try_join_all(asked).await
}

async fn consumers(client: &Client) -> anyhow::Result<Vec<Consumer>> {
    let stats = client.bus().request_all("$SRV.STATS", Bytes::new(), PING_WAIT).await.context("ask the services")?;
    let stats: Vec<Json> = stats.iter().filter_map(|answer| serde_json::from_slice(&answer.body).ok()).collect();
    let reported = |name: &str| {
        let endpoints = stats.iter().filter_map(|answer| answer["endpoints"].as_array()).flatten();
        let data = endpoints.map(|endpoint| &endpoint["data"]).filter(|data| data["consumer"] == name);
        data.max_by_key(|data| data["ageMs"].as_u64()).cloned().unwrap_or_default()
    };
    let reported = &reported;
    let deciders = contract().services.iter().flat_map(|s| &s.deciders);
    let asked = deciders.flat_map(|d| contract().durables(d)).map(|durable| async move {
        let info = api(client, &format!("CONSUMER.INFO.{}.{}", durable.stream, durable.name)).await?;
        let exists = info.is_some();
        let info = info.unwrap_or_default();
        let data = reported(&format!("{} from {}", durable.name, durable.stream));
        let number = |name: &str| data[name].as_u64().unwrap_or_default();
        if data["follows"] == true {
            // A process that alone runs the decider follows the stream, and leaves the durable as it is.
            let (pending, ack_floor, age_ms) = (number("lag"), number("floor"), number("ageMs"));
            let (stream, name) = (durable.stream, durable.name);
            return anyhow::Ok(Consumer { stream, name, exists, pending, ack_floor, age_ms, ..Consumer::default() });
        }
        anyhow::Ok(Consumer {
            age_ms: number("ageMs"),
            stream: durable.stream,
            name: durable.name,
            exists,
            pending: info["num_pending"].as_u64().unwrap_or_default(),
            ack_pending: info["num_ack_pending"].as_u64().unwrap_or_default(),
            redelivered: info["num_redelivered"].as_u64().unwrap_or_default(),
            ack_floor: info["ack_floor"]["stream_seq"].as_u64().unwrap_or_default(),
        })
    });
    futures::future::try_join_all(asked).await
}

fn text(mesh: &Mesh) -> String {
    let services = mesh.services.iter().map(|s| {
        let state = match (s.process.is_empty(), s.ready) {
            (true, _) => "absent",
            (_, true) => "ready",
            (_, false) => "not ready",
        };
        vec![s.name.clone(), state.to_owned(), s.version.clone(), s.endpoint.clone(), s.unmet.join("; ")]
    });
    let streams = mesh.streams.iter().map(|s| {
        let limit = if s.max_bytes < 0 { "no limit".to_owned() } else { megabytes(s.max_bytes.cast_unsigned()) };
        let name = if s.exists { s.name.clone() } else { format!("{} (missing)", s.name) };
        vec![name, s.messages.to_string(), megabytes(s.bytes), limit, s.last_sequence.to_string()]
    });
    let consumers = mesh.consumers.iter().map(|c| {
        let name = if c.exists { c.name.clone() } else { format!("{} (missing)", c.name) };
        let numbers = [c.lag(), c.pending, c.ack_pending, c.redelivered].map(|n| n.to_string());
        let age = if c.age_ms == 0 { String::new() } else { format!("{:.1} s", c.age_ms as f64 / 1e3) };
        [vec![name, c.stream.clone()], numbers.to_vec(), vec![age]].concat()
    });
    let letters = match mesh.dead_letters {
        0 => "no dead letters".to_owned(),
        n => format!("{n} dead letter(s); see `continuum dead list`"),
    };
    [
        table(&["service", "state", "version", "endpoint", "lacks"], services.collect()),
        table(&["stream", "messages", "size", "limit", "last"], streams.collect()),
        table(&["consumer", "stream", "lag", "pending", "in hand", "redelivered", "oldest"], consumers.collect()),
        letters,
    ]
    .join("\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_readiness_page_gives_each_unmet_condition_with_its_hint() {
        let head = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n\r\n";
        let page =
            r#"{"ready":false,"unmet":[{"condition":"bus","reason":"away","since":"now","hint":"start nats-server"}]}"#;
        assert_eq!(unmet(&format!("{head}{page}\n")).unwrap(), vec!["bus: away since now; start nats-server"]);
        assert!(unmet(&format!("{head}{{\"ready\":true,\"unmet\":[]}}")).unwrap().is_empty());
        assert_eq!(unmet(&format!("{head}{{\"ready\":false,\"unmet\":[]}}")).unwrap().len(), 1);
        assert!(unmet(head).is_err());
    }

    #[test]
    fn the_tables_name_what_is_missing() {
        let mesh = Mesh {
            services: vec![Service { name: "validator".into(), ..Service::default() }],
            streams: vec![Stream { name: "INTENT".into(), ..Stream::default() }],
            consumers: vec![Consumer {
                name: "intents".into(),
                stream: "WORKLOAD".into(),
                pending: 2,
                ack_pending: 3,
                exists: true,
                ..Consumer::default()
            }],
            dead_letters: 4,
        };
        let text = text(&mesh);
        assert!(
            text.contains("absent") && text.contains("INTENT (missing)") && text.contains("4 dead letter(s)"),
            "{text}"
        );
        let row = text.lines().find(|l| l.contains("intents")).unwrap_or_default();
        assert_eq!(row.split_whitespace().nth(2), Some("5"), "{row}");
    }
}
