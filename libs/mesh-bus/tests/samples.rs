//! Samples over a real Zenoh router in this process: what travels, what is dropped, and what is seen to live.

#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "a test starts, waits for and measures real processes")]
#![allow(missing_docs)]

use std::time::Duration;

use bytes::Bytes;
use mesh_admin::samples_access;
use mesh_bus::{
    About, AliveStream, Encoded, SampleCounts, SampleStream, Samples, SamplesError, SamplesMode, SamplesOptions,
};
use mesh_proto::Timestamp;
use mesh_test::Authority;
use tokio::time::{Instant, timeout};

/// Every step ends within this, or the test fails.
const LIMIT: Duration = Duration::from_secs(20);

async fn router(listen: &str) -> Samples {
    let options = SamplesOptions { mode: SamplesMode::Router, listen: vec![listen.to_owned()], ..Default::default() };
    Samples::open(options).await.unwrap()
}

fn client_options(router: &Samples) -> SamplesOptions {
    SamplesOptions { connect: router.listening().to_vec(), ..Default::default() }
}

async fn client(router: &Samples) -> Samples {
    Samples::open(client_options(router)).await.unwrap()
}

fn about(id: &str) -> About {
    About {
        id: id.to_owned(),
        message: "continuum.telemetry.v1.InstanceSample".to_owned(),
        source: "cluster-agent".to_owned(),
        time: Timestamp::from_millis(1_795_318_929_462),
        traceparent: None,
    }
}

/// Publishes until the subscription, which the router learns of in its own time, receives it.
async fn until_received(from: &Samples, key: &str, stream: &mut SampleStream) {
    let deadline = Instant::now() + LIMIT;
    while Instant::now() < deadline {
        from.publish(key, "probe", &About::default()).await.unwrap();
        if timeout(Duration::from_millis(50), stream.next()).await.is_ok() {
            return;
        }
    }
    panic!("nothing published on {key} is received");
}

async fn until_alive(stream: &mut AliveStream, key: &str, wanted: bool) {
    let seen = async {
        while let Some((found, alive)) = stream.next().await {
            if found == key && alive == wanted {
                return true;
            }
        }
        false
    };
    assert!(timeout(LIMIT, seen).await.unwrap_or(false), "{key} never became alive: {wanted}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sample_arrives_with_its_key_body_and_what_it_says_about_itself() {
    let router = router("tcp/127.0.0.1:0").await;
    let (agent, collector) = (client(&router).await, client(&router).await);
    assert!(agent.is_connected().await);
    let mut received = collector.subscribe("continuum/*/*/instance/*").await.unwrap();
    until_received(&agent, "continuum/s/n/instance/probe", &mut received).await;
    agent.publish("continuum/s/n/cluster/c", "not asked for", &about("0")).await.unwrap();
    agent.publish("continuum/s/n/instance/i", "body", &about("1")).await.unwrap();
    let sample = timeout(LIMIT, async {
        loop {
            let sample = received.next().await.unwrap();
            if sample.key != "continuum/s/n/instance/probe" {
                return sample;
            }
        }
    });
    let sample = sample.await.unwrap();
    assert_eq!((sample.key.as_str(), &sample.body[..]), ("continuum/s/n/instance/i", &b"body"[..]));
    assert_eq!(sample.about, Some(about("1")));
    for session in [&agent, &collector, &router] {
        session.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_loses_the_oldest_and_every_loss_is_counted() {
    let router = router("tcp/127.0.0.1:0").await;
    let agent = client(&router).await;
    let slow = Samples::open(SamplesOptions { buffer_max: 10, ..client_options(&router) }).await.unwrap();
    let mut received = slow.subscribe("continuum/**").await.unwrap();
    until_received(&agent, "continuum/a", &mut received).await;
    // Written one by one, seen to have gone through by a second subscription of the same session.
    let mut witness = slow.subscribe("continuum/last").await.unwrap();
    for number in 0..100 {
        agent.publish("continuum/a", number.to_string(), &About::default()).await.unwrap();
    }
    until_received(&agent, "continuum/last", &mut witness).await;
    let SampleCounts { dropped, lost, .. } = slow.counts();
    assert!(dropped >= 90 && lost == 0, "{dropped} {lost}");
    assert_eq!(received.dropped() + witness.dropped(), dropped);
    let mut kept = vec![];
    while let Ok(Some(sample)) = timeout(Duration::from_millis(200), received.next()).await {
        if sample.key == "continuum/a" && sample.body != "probe" {
            kept.push(String::from_utf8(sample.body.to_vec()).unwrap().parse::<u32>().unwrap());
        }
    }
    assert!(kept.len() <= 10 && kept.last() == Some(&99), "{kept:?}");
    assert!(kept.windows(2).all(|w| w[0] + 1 == w[1]), "the newest, in order: {kept:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lives_is_seen_from_before_and_seen_to_end() {
    let router = router("tcp/127.0.0.1:0").await;
    let (agent, other, watcher) = (client(&router).await, client(&router).await, client(&router).await);
    let (edge, cloud) = ("continuum/s/n/alive/edge", "continuum/s/n/alive/cloud");
    let token = agent.declare_alive(edge).await.unwrap();
    let mut seen = watcher.watch_alive("continuum/*/*/alive/*").await.unwrap();
    until_alive(&mut seen, edge, true).await;
    let _cloud = other.declare_alive(cloud).await.unwrap();
    until_alive(&mut seen, cloud, true).await;
    drop(token);
    until_alive(&mut seen, edge, false).await;
    // A process that ends takes its tokens with it.
    other.close().await.unwrap();
    until_alive(&mut seen, cloud, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_successor_with_the_same_key_keeps_it_alive() {
    let router = router("tcp/127.0.0.1:0").await;
    let (before, after, watcher) = (client(&router).await, client(&router).await, client(&router).await);
    let key = "continuum/s/n/alive/edge";
    let old = before.declare_alive(key).await.unwrap();
    let mut seen = watcher.watch_alive(key).await.unwrap();
    until_alive(&mut seen, key, true).await;
    let _new = after.declare_alive(key).await.unwrap();
    drop(old);
    before.close().await.unwrap();
    // Whatever was said in between, a watcher that starts now, and the old one in the end, see it alive.
    let mut fresh = watcher.watch_alive(key).await.unwrap();
    until_alive(&mut fresh, key, true).await;
    let mut last = true;
    while let Ok(Some((_, alive))) = timeout(Duration::from_millis(200), seen.next()).await {
        last = alive;
    }
    assert!(last, "the successor's sign of life was lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_router_comes_back_samples_do_too_and_the_lost_are_counted() {
    // An address of its own: nobody else is given its port while it is away.
    let first = router(&format!("tcp/{}:0", mesh_test::loopback())).await;
    let address = first.listening()[0].clone();
    // Much shorter than the outage: the limit is for the first connection only.
    let options = SamplesOptions { connect_ms: 500, ..client_options(&first) };
    let agent = Samples::open(options.clone()).await.unwrap();
    let watcher = Samples::open(options).await.unwrap();
    let key = "continuum/s/n/alive/edge";
    let _token = agent.declare_alive(key).await.unwrap();
    let mut seen = watcher.watch_alive(key).await.unwrap();
    let mut received = watcher.subscribe("continuum/a").await.unwrap();
    until_alive(&mut seen, key, true).await;
    until_received(&agent, "continuum/a", &mut received).await;
    first.close().await.unwrap();
    drop(first);
    until_alive(&mut seen, key, false).await;
    let gone = timeout(LIMIT, async {
        while agent.is_connected().await {
            tokio::task::yield_now().await;
        }
    });
    gone.await.unwrap();
    let out_until = Instant::now() + Duration::from_millis(1_500);
    let mut lost = 0;
    while Instant::now() < out_until {
        agent.publish("continuum/a", "lost", &About::default()).await.unwrap();
        lost += 1;
        let _ = timeout(Duration::from_millis(50), received.next()).await;
    }
    assert_eq!(watcher.counts().lost, 0, "nobody knows yet");
    let _second = router(&address).await;
    until_alive(&mut seen, key, true).await;
    until_received(&agent, "continuum/a", &mut received).await;
    assert!(watcher.counts().lost >= lost, "{} of {lost}", watcher.counts().lost);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_work_is_an_error_that_says_so() {
    let none = Samples::open(SamplesOptions::default()).await;
    assert!(matches!(none, Err(SamplesError::NoRouter)));
    let nobody = SamplesOptions { connect: vec!["tcp/127.0.0.1:1".to_owned()], connect_ms: 200, ..Default::default() };
    assert!(matches!(Samples::open(nobody).await, Err(SamplesError::Open { .. })));
    let router = router("tcp/127.0.0.1:0").await;
    let agent = client(&router).await;
    let large = agent.publish("continuum/a", vec![0; 1024 * 1024 + 1], &About::default()).await;
    assert!(matches!(large, Err(SamplesError::TooLarge { limit: 1_048_576, .. })));
    agent.publish("continuum/a", vec![0; 1024 * 1024], &About::default()).await.unwrap();
    assert!(agent.publish("continuum//a", "x", &About::default()).await.is_err());
}

/// A client with a certificate in this name.
async fn named(router: &Samples, authority: &Authority, name: &str) -> Samples {
    Samples::open(SamplesOptions { tls: Some(authority.sign(name)), ..client_options(router) }).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_is_answered_for_each_key_or_refused_with_its_reason() {
    let router = router("tcp/127.0.0.1:0").await;
    let (service, person) = (client(&router).await, client(&router).await);
    let mut questions = service.questions("continuum/twin/*/*", 8).await.unwrap();
    let answering = tokio::spawn(async move {
        while let Some(question) = questions.next().await {
            let parameters: Vec<String> =
                question.parameters().map(|(name, value)| format!("{name} is {value}")).collect();
            for key in ["continuum/twin/node/a", "continuum/twin/node/b"] {
                match (question.asks_for(key), parameters.is_empty()) {
                    (true, true) => question.answer(key, key.into(), Encoded::Json).await.unwrap(),
                    (true, false) => question.refuse(&parameters.join(", ")).await.unwrap(),
                    (false, _) => assert!(question.answer(key, Bytes::new(), Encoded::Json).await.is_err()),
                }
            }
        }
    });
    let ask = async |selector: &str| {
        timeout(LIMIT, async {
            loop {
                let found = person.ask(selector, Duration::from_secs(5)).await.unwrap();
                if !found.is_empty() {
                    return found;
                }
            }
        })
        .await
        .unwrap()
    };
    let answer = |id: &str| (format!("continuum/twin/node/{id}"), Ok(format!("continuum/twin/node/{id}").into()));
    assert_eq!(ask("continuum/twin/node/b").await, [answer("b")]);
    let mut all = ask("continuum/twin/*/*").await;
    all.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(all, [answer("a"), answer("b")]);
    let refused = ask("continuum/twin/node/a?x=1;_own=2").await;
    assert_eq!(refused, [("continuum/twin/node/a?x=1;_own=2".to_owned(), Err("x is 1".to_owned()))]);
    assert!(person.ask("continuum//a", Duration::from_millis(1)).await.is_err());
    answering.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn with_certificates_a_service_writes_and_reads_only_by_its_contract() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path(), "authority");
    let router = Samples::open(SamplesOptions {
        mode: SamplesMode::Router,
        listen: vec!["tls/127.0.0.1:0".to_owned()],
        tls: Some(authority.sign("router")),
        access: Some(samples_access(mesh_proto::contract(), &["person".to_owned()])),
        ..Default::default()
    });
    let router = router.await.unwrap();
    let agent = named(&router, &authority, "cluster-agent").await;
    let collector = named(&router, &authority, "collector").await;
    let orchestrator = named(&router, &authority, "meta-orchestrator").await;
    let validator = named(&router, &authority, "validator").await;
    let twins = named(&router, &authority, "cmdt-aggregator").await;
    let person = named(&router, &authority, "person").await;
    let instance = "continuum/s/n/instance/i";

    let mut collected = collector.subscribe("continuum/*/*/instance/*").await.unwrap();
    until_received(&agent, instance, &mut collected).await;
    // A session receives itself whatever the router says, so the judge is one that publishes nothing.
    let mut received = twins.subscribe("continuum/*/*/instance/*").await.unwrap();
    until_received(&agent, instance, &mut received).await;
    let mut watched = person.subscribe("continuum/*/*/cluster/*").await.unwrap();
    until_received(&agent, "continuum/s/n/cluster/c", &mut watched).await;
    let key = "continuum/s/n/alive/edge";
    let mut seen = orchestrator.watch_alive("continuum/*/*/alive/*").await.unwrap();
    let _token = agent.declare_alive(key).await.unwrap();
    until_alive(&mut seen, key, true).await;

    // Who may not write is received by nobody; who may not read hears nothing.
    let outsider = named(&router, &authority, "workload-manager").await;
    let mut deaf = outsider.subscribe("continuum/**").await.unwrap();
    let _forged = validator.declare_alive("continuum/s/n/alive/forged").await.unwrap();
    for _ in 0..20 {
        for forger in [&validator, &collector, &person] {
            forger.publish(instance, "forged", &About::default()).await.unwrap();
        }
        agent.publish("continuum/s/n/other/x", "forged", &About::default()).await.unwrap();
    }
    agent.publish(instance, "last", &About::default()).await.unwrap();
    let last = timeout(LIMIT, async {
        loop {
            let sample = received.next().await.unwrap();
            assert_ne!(sample.body, "forged", "{}", sample.key);
            if sample.body == "last" {
                break;
            }
        }
    });
    last.await.unwrap();
    assert!(timeout(Duration::from_millis(100), deaf.next()).await.is_err());
    while let Ok(Some((key, _))) = timeout(Duration::from_millis(100), seen.next()).await {
        assert_ne!(key, "continuum/s/n/alive/forged");
    }
    // Twins are answered for by the aggregator alone, and asked for by readers.
    let key = mesh_proto::twin_key("workload", "i");
    let mut asked = twins.questions("continuum/twin/*/*", 8).await.unwrap();
    let mut forged = validator.questions("continuum/twin/*/*", 8).await.unwrap();
    let answering = tokio::spawn(async move {
        while let Some(question) = asked.next().await {
            question.answer(&key, "a twin".into(), Encoded::Protobuf).await.unwrap();
        }
    });
    let forging = tokio::spawn(async move { forged.next().await.is_some() });
    let found = timeout(LIMIT, async {
        loop {
            let found = person.ask("continuum/twin/workload/i", Duration::from_secs(2)).await.unwrap();
            if !found.is_empty() {
                return found;
            }
        }
    });
    let found = found.await.unwrap();
    assert_eq!(found, [("continuum/twin/workload/i".to_owned(), Ok("a twin".into()))]);
    let outside = outsider.ask("continuum/twin/workload/i", Duration::from_millis(300)).await.unwrap();
    assert!(outside.iter().all(|(_, answer)| answer.is_err()), "{outside:?}");
    assert!(!forging.is_finished(), "a service that may not answer is asked");
    answering.abort();
    forging.abort();
    // A stranger's certificate opens nothing.
    let other = tempfile::tempdir().unwrap();
    let files = Authority::new(other.path(), "stranger").sign("cluster-agent");
    let tls = Some(files);
    let stranger = Samples::open(SamplesOptions { tls, connect_ms: 1_000, ..client_options(&router) }).await;
    assert!(stranger.is_err());
}
