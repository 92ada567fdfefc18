#![allow(clippy::all, clippy::unwrap_used, clippy::print_stdout, missing_docs)]
use std::time::{Duration, Instant};
use bytes::Bytes;
use mesh_bus::{Bus, Cause, Decision, Options, Outgoing, Written};
use mesh_proto::Timestamp;
use async_nats::jetstream::{self, stream::*};

fn facts(name: &str) -> Config {
    let area = name.to_lowercase();
    Config {
        name: name.to_owned(),
        subjects: vec![format!("w.{area}.>")],
        subject_transform: Some(SubjectTransform { source: format!("w.{area}.>"), destination: format!("{area}.>") }),
        republish: Some(Republish { source: format!("{area}.*.v1.>"), destination: format!("{area}.{{{{wildcard(1)}}}}.v1.>"), headers_only: false }),
        allow_direct: true, allow_atomic_publish: true, deny_delete: true, deny_purge: true,
        discard: DiscardPolicy::New, max_bytes: 8 << 30, ..Config::default()
    }
}
fn cpu() -> f64 { let s = std::fs::read_to_string("/proc/self/stat").unwrap(); let f: Vec<&str> = s.rsplit(')').next().unwrap().split_whitespace().collect(); (f[11].parse::<f64>().unwrap() + f[12].parse::<f64>().unwrap()) * 10_000.0 }
async fn raw(client: &async_nats::Client, round: usize, batches: usize, size: usize, in_flight: usize) -> f64 {
    let t = Instant::now();
    let body = Bytes::from(vec![7u8; 256]);
    use futures::StreamExt as _;
    futures::stream::iter(0..batches).map(|b| { let client = client.clone(); let body = body.clone(); async move {
        let id = format!("{round}-{b}-{}", std::process::id());
        for i in 0..size {
            let mut h = async_nats::HeaderMap::new();
            h.insert("Nats-Batch-Id", id.as_str());
            h.insert("Nats-Batch-Sequence", (i + 1).to_string().as_str());
            let subject = format!("w.intent.submitted.v1.local.r{}", (b * size + i) % 10_000);
            if i + 1 == size {
                h.insert("Nats-Batch-Commit", "1");
                let r = client.request_with_headers(subject, h, body.clone()).await.unwrap();
                assert!(std::str::from_utf8(&r.payload).unwrap().contains("\"seq\""), "{:?}", r.payload);
            } else {
                client.publish_with_headers(subject, h, body.clone()).await.unwrap();
            }
        }
    }}).buffer_unordered(in_flight).collect::<Vec<_>>().await;
    (batches * size) as f64 / t.elapsed().as_secs_f64()
}
fn dec(key: &str, expected: u64, id: String, body: Bytes) -> Decision {
    Decision { entity: format!("intent.*.*.local.{key}"), expected, messages: vec![Outgoing {
        id, message: "continuum.intent.v1.IntentSubmitted".into(), stream: "INTENT".into(),
        subject: format!("intent.submitted.v1.local.{key}"), time: Timestamp::from_millis(1_795_318_929_462),
        cause: Some(Cause { stream: "INTENT_ASK".into(), sequence: 123456, id: "0af76519-16cd-43dd-8448-eb211c80319c".into() }),
        traceparent: if std::env::var("TRACE").is_ok() { Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()) } else { None }, world: vec![], body }] }
}
async fn ours(bus: &Bus, round: usize, tasks: usize, each: usize) -> f64 {
    let body = Bytes::from(vec![7u8; 256]);
    let t = Instant::now();
    let mut js = vec![];
    for k in 0..tasks {
        let (w, body) = (bus.writer("INTENT"), body.clone());
        js.push(tokio::spawn(async move {
            let key = format!("o{round}-{k}");
            let mut last = 0;
            for i in 0..each {
                let id = mesh_proto::derived_id(&[&key, &i.to_string()]);
                match w.write(dec(&key, last, id, body.clone())).await.unwrap() { Written::Stored { last: l } => last = l, s => panic!("{s:?}") }
            }
        }));
    }
    for j in js { j.await.unwrap(); }
    (tasks * each) as f64 / t.elapsed().as_secs_f64()
}
#[tokio::main]
async fn main() {
    let url = std::env::args().nth(1).unwrap();
    let client = async_nats::connect(&url).await.unwrap();
    let mut js = jetstream::new(client.clone());
    js.set_timeout(Duration::from_secs(10));
    if std::env::var("KEEP").is_err() { let _ = js.delete_stream("INTENT").await;
    js.create_stream(facts("INTENT")).await.unwrap(); }
    let bus = Bus::connect(Options { url: url.clone(), service: "bench".into(), api_prefix: "$JS.API".into(), ..Options::default() }).await.unwrap();
    // at rest
    if std::env::var("KEEP").is_err() { for _ in 0..3 {
        let mut a = vec![]; 
        for i in 0..1000 { let t = Instant::now(); js.publish(format!("w.intent.submitted.v1.local.p{i}"), Bytes::from(vec![7u8;256])).await.unwrap().await.unwrap(); a.push(t.elapsed()); }
        let mut b = vec![]; let w = bus.writer("INTENT"); let mut last = 0;
        let key = format!("q{}", uuid::Uuid::new_v4().simple());
        for i in 0..1000 { let d = dec(&key, last, format!("{key}-{i}"), Bytes::from(vec![7u8;256])); let t = Instant::now(); match w.write(d).await.unwrap() { Written::Stored{last:l} => last = l, _ => panic!() } b.push(t.elapsed()); }
        a.sort(); b.sort();
        println!("at rest p50 raw {:?} ours {:?} ratio {:.2}; p99 {:?} {:?}", a[500], b[500], b[500].as_secs_f64()/a[500].as_secs_f64(), a[990], b[990]);
    }
    let tasks: usize = std::env::var("TASKS").ok().and_then(|t| t.parse().ok()).unwrap_or(4000);
    let only = std::env::var("ONLY").unwrap_or_default();
    for round in 0..5 {
        let r = if only == "ours" { 1.0 } else { raw(&client, round, 40, 1000, 1).await };
        let r2 = if only == "ours" { 1.0 } else { raw(&client, round + 100, 40, 1000, 2).await };
        let s0 = (bus.stats().batches.load(std::sync::atomic::Ordering::SeqCst), bus.stats().batch_messages.load(std::sync::atomic::Ordering::SeqCst));
        let c0 = cpu(); let o = ours(&bus, round, tasks, 60_000 / tasks).await;
        let c1 = cpu(); let s1 = (bus.stats().batches.load(std::sync::atomic::Ordering::SeqCst), bus.stats().batch_messages.load(std::sync::atomic::Ordering::SeqCst));
        println!("raw {r:.0}/s raw2 {r2:.0}/s ours {o:.0}/s ratio {:.2} (to raw2 {:.2}); {} batches of mean {}, cpu us {:.1}", o / r, o/r2, s1.0 - s0.0, (s1.1-s0.1) / (s1.0-s0.0).max(1), (c1-c0)/60000.0);
    }
    println!("{:?}", bus.stats());
    }
    use futures::StreamExt as _;
    use async_nats::jetstream::consumer::{AckPolicy, PriorityPolicy, pull};
    let n = 150_000;
    for round in 0..3 {
        let stream = js.get_stream("INTENT").await.unwrap();
        let c = stream.create_consumer(pull::Config { durable_name: Some(format!("raw{round}")), ack_policy: AckPolicy::Explicit, max_ack_pending: 10_000, ..Default::default() }).await.unwrap();
        let mut ms = c.stream().max_messages_per_batch(1000).heartbeat(Duration::from_secs(5)).messages().await.unwrap();
        let t = Instant::now(); let c0 = cpu();
        for _ in 0..n { let m = ms.next().await.unwrap().unwrap(); m.ack().await.unwrap(); }
        let raw = n as f64 / t.elapsed().as_secs_f64();
        let c1 = cpu(); drop(ms); stream.delete_consumer(&format!("raw{round}")).await.unwrap();
        stream.create_consumer(pull::Config { durable_name: Some(format!("our{round}")), ack_policy: AckPolicy::All, max_ack_pending: 10_000, priority_policy: PriorityPolicy::PinnedClient, priority_groups: vec!["g".into()], priority_timeout: Duration::from_secs(5), ..Default::default() }).await.unwrap();
        let mut pull = bus.pull("INTENT", &format!("our{round}")).await.unwrap();
        let t = Instant::now(); let c2 = cpu();
        for _ in 0..n { let m = pull.next().await.unwrap(); pull.ack_through(m.sequence); }
        let our = n as f64 / t.elapsed().as_secs_f64();
        let c3 = cpu(); println!("consume raw {raw:.0}/s ours {our:.0}/s ratio {:.2}; cpu us/msg raw {:.1} ours {:.1}", our / raw, (c1-c0)/n as f64, (c3-c2)/n as f64);
        stream.delete_consumer(&format!("our{round}")).await.unwrap();
        let t = Instant::now(); let c0 = cpu();
        let got = bus.log("INTENT").read(">", 1, n).await.unwrap();
        println!("log.read {:.0}/s cpu {:.1}", got.len() as f64 / t.elapsed().as_secs_f64(), (cpu()-c0)/n as f64);
    }
}
