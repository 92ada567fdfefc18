//! `doctor`: ends in OK, or names each thing that is wrong and its hint.

use std::{collections::BTreeMap, process::ExitCode, time::Duration};

use anyhow::Context as _;
use mesh_admin::{VERSION_MIN, free_disk_bytes};
use mesh_client::{Client, Endpoints, now};
use mesh_proto::{Event as _, Timestamp, contract, lifecycle::ServiceChanged};
use serde::Serialize;
use serde_json::{Value as Json, json};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::TcpStream,
};

use super::{cluster, dead, status};
use crate::{
    context::Context,
    output::{self, Format, line, megabytes},
};

/// Free disk below which trouble is near.
const DISK_MIN_BYTES: u64 = 1 << 30;
/// Part of its limit from which a stream counts as full.
const FULL_PERCENT: u64 = 90;
/// How far clocks may be apart.
const SKEW_MAX_MS: i64 = 2_000;
/// How far a notice may be older than its storing. A process sends one for seconds, so a longer time is its clock's.
const BEHIND_MAX_MS: i64 = 120_000;
/// How long a consumer that has work may stand still.
const STALL: Duration = Duration::from_secs(2);
/// Dead letters younger than this are trouble; older ones are history.
const DEAD_AGE_MS: i64 = 24 * 3_600_000;
const LETTERS_READ: usize = 100;
const CONNECT_LIMIT: Duration = Duration::from_secs(3);

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Finding {
    what: String,
    ok: bool,
    #[serde(rename = "says")]
    found: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    hint: String,
}

fn good(what: &str, found: impl Into<String>) -> Finding {
    Finding { what: what.into(), ok: true, found: found.into(), hint: String::new() }
}

fn bad(what: &str, found: impl Into<String>, hint: impl Into<String>) -> Finding {
    Finding { what: what.into(), ok: false, found: found.into(), hint: hint.into() }
}

/// Looks at everything.
pub async fn run(context: &Context<'_>) -> anyhow::Result<ExitCode> {
    let findings = examine(context).await;
    let wrong = findings.iter().filter(|f| !f.ok).count();
    if context.format == Format::Table {
        for finding in &findings {
            line(format!("{} {}: {}", if finding.ok { "✓" } else { "✗" }, finding.what, finding.found));
            if !finding.hint.is_empty() {
                line(format!("    hint: {}", finding.hint));
            }
        }
        line(if wrong == 0 { "OK".to_owned() } else { format!("{wrong} thing(s) wrong") });
    } else {
        output::show(context.format, &json!({"ok": wrong == 0, "findings": findings}), &[], Vec::new);
    }
    Ok(ExitCode::from(u8::from(wrong > 0)))
}

async fn examine(context: &Context<'_>) -> Vec<Finding> {
    let mut findings = vec![disk(context)];
    let endpoints = match Endpoints::read(context.data_dir) {
        Ok(endpoints) => endpoints,
        Err(error) => {
            findings.push(bad(
                "mesh",
                error.to_string(),
                "start it with `continuum up`, or name its folder with --data-dir",
            ));
            return findings;
        }
    };
    findings.push(good("mesh", format!("process {}, {}", endpoints.pid, endpoints.mode)));
    findings.push(match server(&endpoints.nats).await {
        Ok(info) => judge_server(&info),
        Err(error) => bad(
            "nats-server",
            format!("{error:#}"),
            "the mesh starts it again by itself; see `run/` in the data folder for its log",
        ),
    });
    let client = match context.client().await {
        Ok(client) => client,
        Err(error) => {
            findings.push(bad("bus", format!("{error:#}"), "stop the mesh with `continuum down` and start it again"));
            return findings;
        }
    };
    match status::read(&client).await {
        Ok(mesh) => {
            let read_at = now();
            // The same again, to distinguish what is stuck from what is busy.
            tokio::time::sleep(STALL).await;
            let later = status::read(&client).await.map(|m| m.consumers).unwrap_or_default();
            findings.extend(services(&mesh.services));
            findings.extend(streams(&mesh.streams));
            findings.extend(consumers(&mesh.consumers, &later));
            findings.push(server_clock(&mesh.streams, read_at));
        }
        Err(error) => findings.push(bad(
            "bus",
            format!("{error:#}"),
            "see `continuum status`; start the mesh again if it does not recover",
        )),
    }
    findings.push(match service_clocks(&client).await {
        Ok(ahead) => judge_clocks(&ahead),
        Err(error) => bad("service clocks", format!("{error:#}"), "see `continuum status`"),
    });
    findings.push(match letters(&client).await {
        Ok(finding) => finding,
        Err(error) => bad("dead letters", format!("{error:#}"), "see `continuum status`"),
    });
    match cluster::all(&client).await {
        Ok(clusters) => {
            let lost: Vec<String> = clusters
                .iter()
                .filter(|c| !c.available)
                .filter_map(|c| c.registered.as_ref().map(|r| r.cluster_id.clone()))
                .collect();
            let known =
                |name: &String| clusters.iter().filter_map(|c| c.registered.as_ref()).any(|r| r.cluster_id == *name);
            let absent: Vec<String> = endpoints.clusters.iter().filter(|name| !known(name)).cloned().collect();
            if !absent.is_empty() {
                findings.push(bad(
                    "clusters",
                    format!("never registered: {}", absent.join(", ")),
                    "see their agents' logs",
                ));
            }
            findings.push(match (lost.is_empty(), clusters.len()) {
                (true, 0) => bad("clusters", "none has registered", "start a cluster agent"),
                (true, n) => good("clusters", format!("{n} available")),
                (false, _) => bad(
                    "clusters",
                    format!("lost: {}", lost.join(", ")),
                    "start their agents again, or check their network",
                ),
            });
        }
        Err(error) => findings.push(bad(
            "clusters",
            format!("{error:#}"),
            "see that meta-orchestrator is ready in `continuum status`",
        )),
    }
    findings
}

fn disk(context: &Context<'_>) -> Finding {
    let folder = context.data_dir.display();
    match free_disk_bytes(context.data_dir) {
        Ok(free) if free >= DISK_MIN_BYTES => good("disk", format!("{} free for {folder}", megabytes(free))),
        Ok(free) => bad(
            "disk",
            format!("only {} free for {folder}", megabytes(free)),
            "free some space, or move the data folder",
        ),
        Err(error) => bad("disk", format!("{folder}: {error}"), "name the data folder of the mesh with --data-dir"),
    }
}

/// What the server sends to everyone who connects.
async fn server(url: &str) -> anyhow::Result<Json> {
    let address = url.split(',').next().unwrap_or(url).trim_start_matches("nats://");
    let greeting = async {
        let connection = TcpStream::connect(address).await.with_context(|| format!("connect to {address}"))?;
        let mut first = String::new();
        BufReader::new(connection).read_line(&mut first).await.context("read its greeting")?;
        anyhow::Ok(first)
    };
    let first =
        tokio::time::timeout(CONNECT_LIMIT, greeting).await.with_context(|| format!("{address} does not answer"))??;
    let info = first.strip_prefix("INFO ").with_context(|| format!("{address} is not a NATS server"))?;
    serde_json::from_str(info.trim()).context("read its greeting")
}

fn judge_server(info: &Json) -> Finding {
    let version = info["version"].as_str().unwrap_or_default();
    let numbers = |text: &str| -> Vec<u64> {
        let plain = text.split(['-', '+']).next().unwrap_or_default();
        plain.split('.').filter_map(|n| n.parse().ok()).collect()
    };
    let least = VERSION_MIN.to_string();
    if numbers(version) < numbers(&least) {
        return bad(
            "nats-server",
            format!("version {version} is older than {least}"),
            format!("install {least} or newer and start the mesh again"),
        );
    }
    if info["jetstream"] != true {
        return bad(
            "nats-server",
            "it runs without JetStream",
            "start it with the configuration that `continuum provision render` writes",
        );
    }
    good("nats-server", format!("version {version}, with JetStream"))
}

fn services(services: &[status::Service]) -> Vec<Finding> {
    let wrong: Vec<Finding> = services
        .iter()
        .filter(|s| !s.ready)
        .map(|s| {
            let name = format!("service {}", s.name);
            let hint = "restart the mesh if it does not recover by itself; its log has the details";
            bad(&name, if s.unmet.is_empty() { "not ready".to_owned() } else { s.unmet.join("; ") }, hint)
        })
        .collect();
    if wrong.is_empty() { vec![good("services", format!("{} processes ready", services.len()))] } else { wrong }
}

fn streams(streams: &[status::Stream]) -> Vec<Finding> {
    let mut wrong = vec![];
    for stream in streams {
        let name = format!("stream {}", stream.name);
        let limit = u64::try_from(stream.max_bytes).unwrap_or(u64::MAX);
        // Only facts and commands stop when they are full; the rest lets its oldest go.
        let stops = contract()
            .stream(&stream.name)
            .is_some_and(|s| matches!(s.kind, contract::Kind::Facts | contract::Kind::Commands));
        if !stream.exists {
            wrong.push(bad(&name, "it is missing", "make it with `continuum provision`, or start the mesh again"));
        } else if stops && stream.bytes >= limit / 100 * FULL_PERCENT {
            let found = format!("{} of {} used", megabytes(stream.bytes), megabytes(limit));
            wrong.push(bad(
                &name,
                found,
                "give it more disk: what is refused while it is full is sent again by its writers",
            ));
        }
    }
    if wrong.is_empty() { vec![good("streams", format!("{} there, none full", streams.len()))] } else { wrong }
}

fn consumers(before: &[status::Consumer], after: &[status::Consumer]) -> Vec<Finding> {
    let after: BTreeMap<(&str, &str), &status::Consumer> =
        after.iter().map(|c| ((c.stream.as_str(), c.name.as_str()), c)).collect();
    let mut wrong = vec![];
    for consumer in before {
        let name = format!("consumer {} of {}", consumer.name, consumer.stream);
        let later = after.get(&(consumer.stream.as_str(), consumer.name.as_str()));
        let stands = |later: &&status::Consumer| later.ack_floor == consumer.ack_floor && later.lag() >= consumer.lag();
        if !consumer.exists {
            wrong.push(bad(&name, "it is missing", "make it with `continuum provision`, or start the mesh again"));
        } else if consumer.lag() > 0 && later.is_none_or(stands) {
            let found = format!("{} messages wait, and none was settled in {} s", consumer.lag(), STALL.as_secs());
            wrong.push(bad(&name, found, "run `continuum status` to see whether its service is ready, and why not"));
        }
    }
    let lag: u64 = before.iter().map(status::Consumer::lag).sum();
    if wrong.is_empty() {
        vec![good("consumers", format!("{} there, {lag} messages on their way", before.len()))]
    } else {
        wrong
    }
}

fn server_clock(streams: &[status::Stream], here: Timestamp) -> Finding {
    let server = streams.iter().filter_map(|s| s.server_time.parse::<Timestamp>().ok()).max();
    let Some(server) = server else {
        return bad("server clock", "the server does not send its time", "use a newer nats-server");
    };
    let skew = here.millis_since(server);
    match skew.abs() <= SKEW_MAX_MS {
        true => good("server clock", "agrees with this machine's"),
        false => bad(
            "server clock",
            format!("{skew} ms away from this machine's"),
            "synchronise both, for example with chrony",
        ),
    }
}

/// How far each service's clock was ahead of the server's when it last gave notice, milliseconds; less than 0 if behind.
async fn service_clocks(client: &Client) -> anyhow::Result<Vec<(String, i64)>> {
    let log = client.bus().log(ServiceChanged::STREAM);
    let mut found = vec![];
    for service in &contract().services {
        let subject = ServiceChanged::SUBJECT.replace("{service}", &service.name);
        if let Some(notice) = log.last(&subject).await.context("read service notices")? {
            found.push((service.name.clone(), notice.time.millis_since(notice.stored)));
        }
    }
    Ok(found)
}

/// A notice cannot be from the future; one from the past may have been sent again, for seconds.
fn judge_clocks(ahead: &[(String, i64)]) -> Finding {
    let wrong: Vec<String> = ahead
        .iter()
        .filter_map(|(name, ms)| match *ms {
            ms if ms > SKEW_MAX_MS => Some(format!("{name} is {ms} ms ahead")),
            ms if ms < -BEHIND_MAX_MS => Some(format!("{name} is {} s behind", -ms / 1_000)),
            _ => None,
        })
        .collect();
    match wrong.is_empty() {
        true => good("service clocks", "agree with the server's"),
        false => bad(
            "service clocks",
            format!("differ from the server's: {}", wrong.join(", ")),
            "synchronise their machines, for example with chrony, and start the services again",
        ),
    }
}

async fn letters(client: &Client) -> anyhow::Result<Finding> {
    let letters = dead::newest(client, LETTERS_READ).await?;
    let now = now();
    let mut young = vec![];
    for letter in letters.iter().filter(|l| now.millis_since(l.given_up_at()) < DEAD_AGE_MS) {
        if !dead::is_settled(client, letter).await? {
            young.push(letter);
        }
    }
    Ok(match (young.last(), letters.len()) {
        (None, 0) => good("dead letters", "none"),
        (None, n) => good("dead letters", format!("{n}, all answered by a replay or older than a day")),
        (Some(last), _) => bad(
            "dead letters",
            format!("{} within a day, the last: {}", young.len(), last.reason()),
            format!(
                "look at it with `continuum dead show {}`; once its cause is gone, `continuum dead replay {}`",
                last.number(),
                last.number()
            ),
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn consumer(pending: u64, ack_floor: u64) -> status::Consumer {
        status::Consumer {
            stream: "INTENT".into(),
            name: "c".into(),
            exists: true,
            pending,
            ack_floor,
            ..Default::default()
        }
    }

    #[test]
    fn an_old_server_or_one_without_jetstream_is_named() {
        assert!(judge_server(&json!({"version": "2.15.1", "jetstream": true})).ok);
        assert!(judge_server(&json!({"version": "2.14.4-beta", "jetstream": true})).ok);
        assert!(!judge_server(&json!({"version": "2.9.25", "jetstream": true})).ok);
        assert!(!judge_server(&json!({"version": "2.15.1"})).ok);
    }

    #[test]
    fn lag_counts_only_where_nothing_moves() {
        assert!(!consumers(&[consumer(3, 5)], &[consumer(3, 5)])[0].ok);
        assert!(consumers(&[consumer(3, 5)], &[consumer(4, 9)])[0].ok);
        assert!(consumers(&[consumer(3, 5)], &[consumer(1, 5)])[0].ok);
        assert!(consumers(&[consumer(0, 5)], &[consumer(9, 5)])[0].ok);
    }

    #[test]
    fn missing_and_full_streams_are_wrong_unless_the_stream_lets_go() {
        let stream = |name: &str, bytes| status::Stream {
            name: name.into(),
            exists: true,
            bytes,
            max_bytes: 1_000,
            ..Default::default()
        };
        assert!(streams(&[stream("INTENT", 100), stream("TELEMETRY", 1_000)])[0].ok);
        assert!(!streams(&[stream("INTENT", 950)])[0].ok);
        assert!(!streams(&[status::Stream { name: "INTENT".into(), ..Default::default() }])[0].ok);
    }

    #[test]
    fn a_notice_from_the_future_or_long_past_betrays_a_clock() {
        assert!(judge_clocks(&[("validator".into(), -60_000)]).ok);
        assert!(!judge_clocks(&[("validator".into(), 5_000)]).ok);
        let behind = judge_clocks(&[("validator".into(), 0), ("gateway".into(), -86_400_000)]);
        assert!(!behind.ok && behind.found.contains("gateway is 86400 s behind"), "{behind:?}");
    }
}
