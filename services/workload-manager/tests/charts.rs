//! Charts on a real bus, rendered by the real helm, with images looked up in a real registry (the CNCF distribution).
//! The validator's and the planner's parts are played here, with their own rights.

#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "a test starts, waits for and measures real processes")]
#![allow(unreachable_pub, missing_docs)]

mod support;

use std::time::Duration;

use chart::sha256;
use mesh_bus::Bus;
use mesh_core::Outgoing;
use mesh_kit::{Running, Stopped};
use mesh_proto::{
    AnyEvent, Event as _,
    chart::{ChartRefused, ChartStored, ChartUnchanged, UploadChart},
    derived_id,
    query::GetRequest,
    validation::WorkloadAccepted,
    workload::{
        AttachChart, ChartSpec, CheckChartRequest, CheckOutcome, CheckReport, InstanceWanted, ManifestsReply,
        RegisterWorkload, Release, RunInstance, WorkloadDocument, WorkloadRefused, WorkloadView,
        workload_queries_client::WorkloadQueriesClient,
    },
};
use mesh_test::{TestBus, now, says, soon, until};
use support::{Registry, Tokens, chart, chart_with, tool};
use tonic::transport::Channel;
use workload_manager::Config;

/// The manager on a bus of its own.
struct World {
    test_bus: TestBus,
    manager: Running,
    person: Bus,
    validator: Bus,
}

impl World {
    async fn start(suite: &str, config: Config) -> Option<Self> {
        let test_bus = TestBus::start(suite).await?;
        let settings = test_bus.settings("workload-manager");
        let manager = mesh_kit::join("workload-manager", settings, config, workload_manager::start).await.unwrap();
        let (person, validator) = (test_bus.connect("person").await, test_bus.connect("validator").await);
        Some(Self { test_bus, manager, person, validator })
    }

    async fn queries(&self) -> WorkloadQueriesClient<Channel> {
        WorkloadQueriesClient::connect(self.manager.endpoint()).await.unwrap()
    }

    /// Sends a command; gives the message that answers it.
    async fn ask(&self, command: &dyn AnyEvent, answer: &str) -> mesh_core::Stored {
        let id = derived_id(&["ask", &now().to_string()]);
        let log = self.person.log(&command.area().to_uppercase());
        let from = log.last_sequence().await.unwrap() + 1;
        self.person.publish(&Outgoing::new(command, id.clone(), now()).unwrap()).await.unwrap();
        let mut tail = log.tail(&format!("{}.*.*.{}", command.area(), command.keys().join(".")), from);
        soon(answer, async {
            loop {
                let stored = tail.next().await.unwrap();
                if stored.cause.as_ref().is_some_and(|cause| cause.id == id) {
                    return stored;
                }
            }
        })
        .await
    }

    async fn upload(&self, archive: &[u8]) -> String {
        let digest = sha256(archive);
        let upload = upload(&digest, archive);
        let answer = self.ask(&upload, "an upload is answered").await;
        assert_eq!(answer.message, ChartStored::MESSAGE, "{:?}", answer.event::<ChartRefused>());
        digest
    }

    /// Registers a chart's document, which the validator finds well formed.
    async fn register(&self, chart: ChartSpec) {
        let document = WorkloadDocument {
            name: "web".into(),
            version: "1.2.3".into(),
            kind: "chart".into(),
            chart: Some(chart),
            ..Default::default()
        };
        let command = RegisterWorkload { owner: "local".into(), name: "web".into(), document: Some(document) };
        self.ask(&command, "a document is submitted").await;
        let accepted = WorkloadAccepted { owner: "local".into(), name: "web".into(), version: "1.2.3".into() };
        let id = derived_id(&["accepted", &now().to_string()]);
        self.validator.publish(&Outgoing::new(&accepted, id, now()).unwrap()).await.unwrap();
    }

    /// The document once it fits.
    async fn document(&self, what: &str, fits: impl Fn(&WorkloadView) -> bool) -> WorkloadView {
        let ask = async || {
            let request = GetRequest { owner: String::new(), id: "web@1.2.3".into() };
            self.queries().await.get_workload(request).await.ok().map(tonic::Response::into_inner)
        };
        until(what, ask, |view| view.as_ref().is_some_and(&fits)).await.unwrap()
    }

    async fn decided(&self) -> WorkloadView {
        let decided = |view: &WorkloadView| matches!(view.status.as_str(), "accepted" | "rejected");
        self.document("the chart's checks are made", decided).await
    }

    async fn check(&self, archive: &[u8], spec: ChartSpec) -> CheckReport {
        let document = Some(WorkloadDocument { chart: Some(spec), ..Default::default() });
        let request = CheckChartRequest { archive: archive.to_vec().into(), document };
        self.queries().await.check_chart(request).await.unwrap().into_inner()
    }

    async fn stop(self) {
        assert_eq!(self.manager.stop().await, Stopped::Settled);
        drop(self.test_bus);
    }
}

fn upload(digest: &str, archive: &[u8]) -> UploadChart {
    UploadChart { owner: "local".into(), sha256: digest.into(), archive: archive.to_vec().into() }
}

/// Each check with how it ended.
fn outcomes(report: &CheckReport) -> Vec<(&str, CheckOutcome)> {
    report.steps.iter().map(|step| (step.name.as_str(), step.outcome())).collect()
}

fn step<'a>(report: &'a CheckReport, name: &str) -> &'a mesh_proto::workload::CheckStep {
    report.steps.iter().find(|step| step.name == name).unwrap()
}

use CheckOutcome::{CheckFailed as FAILED, CheckPassed as PASSED, NotChecked as UNCHECKED};

#[tokio::test(flavor = "multi_thread")]
async fn a_chart_without_helm_is_accepted_and_says_what_was_not_checked() {
    let config = Config { helm: "/nowhere/helm".into(), ..Config::default() };
    let Some(world) = World::start("charts, without helm", config).await else { return };
    let archive = chart("registry.invalid/app:1");
    let digest = world.upload(&archive).await;
    let again = world.ask(&upload(&digest, &archive), "the same upload is answered").await;
    assert_eq!(again.message, ChartUnchanged::MESSAGE);

    world.register(ChartSpec::default()).await;
    let pending = world.document("the verdict is heard", |v| v.created != v.modified).await;
    assert_eq!(pending.status, "pending", "it waits for its archive");
    let attach = AttachChart { owner: "local".into(), name: "web".into(), version: "1.2.3".into(), sha256: digest };
    world.ask(&attach, "an archive is attached").await;
    let view = world.decided().await;
    let report = view.report.unwrap();
    assert_eq!(view.status, "accepted");
    assert_eq!(
        outcomes(&report),
        [("structure", PASSED), ("template", UNCHECKED), ("images", UNCHECKED), ("ingress", UNCHECKED)]
    );
    let template = step(&report, "template");
    assert!(says(&template.reason, "helm is not installed"), "{}", template.reason);
    assert!(says(&template.hint, "make servers"), "{}", template.hint);
    let request = GetRequest { owner: String::new(), id: "web".into() };
    let stored = world.queries().await.chart(request).await.unwrap().into_inner();
    assert_eq!(stored.archive, archive, "the archive is read back as it was uploaded");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_chart_is_rejected_with_every_fault() {
    let Some(world) = World::start("charts, rejected", Config::default()).await else { return };
    // Another name than its document's, values that are no mapping, a definition that is not YAML.
    let bad = support::tgz(&[
        ("web/Chart.yaml", "apiVersion: v2\nname: other\nversion: 1.2.3\n"),
        ("web/templates/a.yaml", "a: 1"),
        ("web/values.yaml", "[1]"),
        ("web/crds/a.yaml", "a: ["),
    ]);
    let sha256_of_bad = world.upload(&bad).await;
    world.register(ChartSpec { sha256: sha256_of_bad, ..Default::default() }).await;
    let view = world.decided().await;
    assert_eq!(view.status, "rejected");
    let paths: Vec<&str> = view.problems.iter().map(|p| p.path.as_str()).collect();
    let all = ["chart.structure: Chart.yaml: name", "chart.structure: values.yaml", "chart.structure: crds/a.yaml"];
    assert_eq!(paths, all);
    // Pushed again with an archive that was never uploaded.
    world.register(ChartSpec { sha256: "0".repeat(64), ..Default::default() }).await;
    let view = world.document("it is checked again", |v| v.problems.len() == 1).await;
    assert!(says(&view.problems[0].reason, "no archive of SHA-256 0000"), "{:?}", view.problems);

    for (archive, why) in support::hostile() {
        let report = world.check(&archive, ChartSpec::default()).await;
        let structure = step(&report, "structure");
        assert_eq!(structure.outcome(), FAILED, "{why}");
        assert!(says(&structure.problems[0].reason, why), "{:?}", structure.problems);
    }
    let large = vec![0x1f; chart::ARCHIVE_BYTES_MAX + 1];
    let answer = world.ask(&upload(&sha256(&large), &large), "a large upload is answered").await;
    assert!(says(&answer.event::<ChartRefused>().unwrap().unwrap().reason, "at most"));
    let answer = world.ask(&upload(&"0".repeat(64), &bad), "a wrong digest is answered").await;
    assert!(says(&answer.event::<ChartRefused>().unwrap().unwrap().reason, "SHA-256 is"));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chart_is_rendered_by_helm_and_what_it_renders_to_is_checked() {
    let Some(helm) = tool("charts, rendered", "helm") else { return };
    let config = Config { helm: helm.display().to_string(), images: false, ..Config::default() };
    let Some(world) = World::start("charts, rendered", config).await else { return };
    let spec = |ingress: bool, values: &str| ChartSpec {
        ingress_support: ingress,
        values: values.into(),
        ..Default::default()
    };
    let good = chart("registry.invalid/app:1");
    let report = world.check(&good, spec(true, "")).await;
    assert_eq!(
        outcomes(&report),
        [("structure", PASSED), ("template", PASSED), ("images", UNCHECKED), ("ingress", PASSED)]
    );
    assert!(report.renderer.starts_with("helm v3."), "{}", report.renderer);
    assert_eq!(report.images, ["registry.invalid/app:1"]);
    assert_eq!(report.resources.as_ref().unwrap().cpu_milli, 2 * 150, "two replicas");
    assert!(says(&step(&report, "ingress").reason, "8080/shop"), "{:?}", step(&report, "ingress"));

    let hidden = world.check(&good, spec(true, "expose: false")).await;
    assert_eq!(step(&hidden, "ingress").outcome(), FAILED);
    assert_eq!(step(&world.check(&good, spec(false, "expose: false")).await, "ingress").outcome(), PASSED);

    for (template, why) in [
        ("{{ .Values.missing.deeper }}", "nil pointer"),
        ("{{ if }}", "missing value for if"),
        ("{{ required \"name it\" .Values.nothing }}", "name it"),
        ("apiVersion: v1\nkind: ConfigMap\nmetadata: {}", "no metadata.name"),
        ("a: [", "did not find expected"),
        ("{{ range until 100000000 }}a{{ end }}", "more time or memory"),
        ("{{ .Files.Get \"/etc/passwd\" | required \"not outside\" }}", "not outside"),
    ] {
        let report = world.check(&chart_with("registry.invalid/app:1", template), spec(false, "")).await;
        let template = step(&report, "template");
        assert_eq!(template.outcome(), FAILED, "{why}: {template:?}");
        let told = format!("{:?}", template.problems);
        assert!(says(&told, why) && !told.contains("/tmp/"), "{why}: {told}");
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_of_an_instance_are_rendered_with_its_values_and_carry_its_id() {
    let Some(helm) = tool("charts, manifests", "helm") else { return };
    let config = Config { helm: helm.display().to_string(), images: false, ..Config::default() };
    let Some(world) = World::start("charts, manifests", config).await else { return };
    let digest = world.upload(&chart("registry.invalid/app:1")).await;
    world.register(ChartSpec { sha256: digest, ingress_support: true, ..Default::default() }).await;
    assert_eq!(world.decided().await.status, "accepted");
    let instance_id = derived_id(&["instance"]);
    let release = Release { values: "replicas: 7".into(), ingress: true, ..Default::default() };
    let run = RunInstance {
        owner: "local".into(),
        instance_id: instance_id.clone(),
        workload: "web@1.2.3".into(),
        release: Some(release),
        ..Default::default()
    };
    let answer = world.ask(&run, "the chart is run").await;
    let wanted = answer.event::<InstanceWanted>().unwrap();
    assert!(wanted.is_some(), "{:?}", answer.event::<WorkloadRefused>());
    let request = GetRequest { owner: String::new(), id: instance_id.clone() };
    let mut queries = world.queries().await;
    let ask = async || queries.manifests(request.clone()).await.map(|r| r.into_inner()).map_err(|s| s.to_string());
    let reply: Result<ManifestsReply, String> =
        until("the instance's manifests are rendered", ask, |r| r.is_ok()).await;
    let yaml = reply.unwrap().yaml;
    for part in [
        "replicas: 7",
        &format!("nemo.eu/workload: {instance_id}"),
        "kind: Ingress",
        "path: /shop",
        &format!("name: web-{}", &instance_id.replace('-', "")[..8]),
    ] {
        assert!(yaml.contains(part), "no {part} in\n{yaml}");
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_looked_up_with_the_pull_secret_of_the_chart() {
    let Some(helm) = tool("charts, images", "helm") else { return };
    let Some(registry) = Registry::start("charts, images").await else { return };
    registry.push("team/app", "1.0").await;
    let address = registry.address();
    let config = Config {
        helm: helm.display().to_string(),
        registries_private: address.clone(),
        registries_plain: address.clone(),
        ..Config::default()
    };
    let Some(world) = World::start("charts, images", config).await else { return };
    let look = async |image: &str, values: &str| {
        let spec = ChartSpec { values: values.into(), ..Default::default() };
        let report = world.check(&chart(image), spec).await;
        assert_eq!(step(&report, "template").outcome(), PASSED, "{:?}", step(&report, "template"));
        step(&report, "images").clone()
    };
    let there = format!("{address}/team/app:1.0");
    let secret =
        |password: &str| format!("pull: {{registry: \"{address}\", user: {}, password: {password}}}", support::USER);
    let denied = look(&there, "").await;
    assert_eq!(denied.outcome(), FAILED);
    assert!(denied.problems[0].hint.contains("kubernetes.io/dockerconfigjson"), "{:?}", denied.problems);
    assert!(denied.problems[0].path.contains("Deployment/"), "{:?}", denied.problems);
    let wrong = look(&there, &secret("guess")).await;
    assert!(wrong.problems[0].reason.contains("with the credentials given"), "{:?}", wrong.problems);
    let fine = look(&there, &secret(support::PASSWORD)).await;
    assert_eq!(fine.outcome(), PASSED, "{fine:?}");
    let missing = look(&format!("{address}/team/app:2.0"), &secret(support::PASSWORD)).await;
    assert!(missing.problems[0].reason.contains("has no team/app:2.0"), "{:?}", missing.problems);
    let nonsense = look("Team/App:1", "").await;
    assert!(nonsense.problems[0].reason.contains("lower-case"), "{:?}", nonsense.problems);
    // Private addresses that are not listed are not asked, whatever the chart says.
    for private in ["127.0.0.1:1/app", "localhost:1/app", "169.254.169.254/latest", "[::1]:1/app"] {
        let step = look(private, "").await;
        assert_eq!(step.outcome(), UNCHECKED, "{private}");
        assert!(
            step.reason.contains("has a private address") || step.reason.contains("without TLS"),
            "{}",
            step.reason
        );
    }
    let away = format!("{address}/team/app:1.0");
    registry.stop().await;
    let step = look(&away, "").await;
    assert_eq!(step.outcome(), UNCHECKED, "a registry that is away rejects nothing: {step:?}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn registry_tokens_come_only_from_servers_that_may_be_asked() {
    let Some(helm) = tool("charts, tokens", "helm") else { return };
    let tokens = Tokens::start().await;
    let Some(registry) = Registry::start_with_tokens("charts, tokens", &tokens).await else { return };
    registry.push("team/app", "1.0").await;
    let address = registry.address();
    let config = |listed: &str| Config {
        helm: helm.display().to_string(),
        registries_private: listed.into(),
        registries_plain: listed.into(),
        ..Config::default()
    };
    let there = chart(&format!("{address}/team/app:1.0"));
    let secret = |password: &str| ChartSpec {
        values: format!("pull: {{registry: \"{address}\", user: {}, password: {password}}}", support::USER),
        ..Default::default()
    };
    let both = format!("{address},{}", tokens.address);
    let Some(world) = World::start("charts, tokens", config(&both)).await else { return };
    let report = world.check(&there, secret(support::PASSWORD)).await;
    assert_eq!(step(&report, "images").outcome(), PASSED, "{:?}", step(&report, "images"));
    for spec in [secret("guess"), ChartSpec::default()] {
        let report = world.check(&there, spec).await;
        assert_eq!(step(&report, "images").outcome(), FAILED, "{:?}", step(&report, "images"));
    }
    world.stop().await;
    // The registry may be asked, and names a server that may not.
    let Some(world) = World::start("charts, tokens of a stranger", config(&address)).await else { return };
    let report = world.check(&there, secret(support::PASSWORD)).await;
    let images = step(&report, "images");
    assert_eq!(images.outcome(), UNCHECKED);
    assert!(images.reason.contains(&format!("{} is not asked without TLS", tokens.address)), "{}", images.reason);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chart_whose_check_was_interrupted_is_checked_again() {
    let Some(world) = World::start("charts, restarted", Config::default()).await else { return };
    let World { test_bus, manager, person, validator } = world;
    assert_eq!(manager.stop().await, Stopped::Settled);
    // What comes while nobody is there.
    let archive = chart("registry.invalid/app:1");
    let upload = upload(&sha256(&archive), &archive);
    let document = WorkloadDocument {
        name: "web".into(),
        version: "1.2.3".into(),
        kind: "chart".into(),
        chart: Some(ChartSpec { sha256: sha256(&archive), ..Default::default() }),
        ..Default::default()
    };
    let register = RegisterWorkload { owner: "local".into(), name: "web".into(), document: Some(document) };
    for (number, command) in [&upload as &dyn AnyEvent, &register].into_iter().enumerate() {
        let id = derived_id(&["late", &number.to_string()]);
        person.publish(&Outgoing::new(command, id, now()).unwrap()).await.unwrap();
    }
    let settings = test_bus.settings("workload-manager");
    let config = Config { helm: "/nowhere/helm".into(), ..Config::default() };
    let manager = mesh_kit::join("workload-manager", settings, config, workload_manager::start).await.unwrap();
    let world = World { test_bus, manager, person, validator };
    let submitted = async || {
        let request = GetRequest { owner: String::new(), id: "web".into() };
        world.queries().await.get_workload(request).await.is_ok()
    };
    until("the document is submitted", submitted, |there| *there).await;
    let accepted = WorkloadAccepted { owner: "local".into(), name: "web".into(), version: "1.2.3".into() };
    let id = derived_id(&["accepted"]);
    world.validator.publish(&Outgoing::new(&accepted, id, now()).unwrap()).await.unwrap();
    assert_eq!(world.decided().await.status, "accepted");
    tokio::time::timeout(Duration::from_secs(30), world.stop()).await.unwrap();
}
