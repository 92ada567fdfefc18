//! Chapter: something goes wrong with a workload, is found with its cause, and repaired.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use anyhow::{Context as _, bail};
use continuum::{
    commands::{anomaly::cause, remedy},
    output::{line, table},
};
use mesh_client::{ANSWER_WAIT, Client, OWNER};
use mesh_proto::{
    anomaly::{AnomalyCleared, AnomalyDetected, ExplainInstanceRequest},
    remedy::{Action, PolicyRule, RemedyPolicy, RemedyRequested, RemedySettled},
    workload::{ProcessSpec, Resources, RunInstance, WorkloadDocument},
};

use crate::{STEP_LIMIT, facts::follow, story::Story, workloads::register};

/// A workload that will go wrong, started early so that what is usual for it is known by then.
pub(crate) struct Patient {
    instance: String,
    faults: tempfile::TempDir,
}

/// Starts the workload.
pub(crate) async fn begin(client: &Client) -> anyhow::Result<Patient> {
    let faults = tempfile::Builder::new().prefix("continuum-faults-").tempdir().context("make a folder for faults")?;
    // The workload removes what it has read, and may have another user.
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(faults.path(), everybody).context("open the folder of faults")?;
    let document = WorkloadDocument {
        name: "patient".into(),
        version: format!("1.0.{}", std::process::id()),
        kind: "process".into(),
        process: Some(ProcessSpec {
            command: "spinner".into(),
            arguments: ["--load-milli", "40", "--memory-mb", "20", "--faults", &faults.path().display().to_string()]
                .map(str::to_owned)
                .to_vec(),
            ..ProcessSpec::default()
        }),
        resources: Some(Resources { cpu_milli: 60, memory_bytes: 50_000_000, ..Resources::default() }),
        cluster_selector: [("tier".to_owned(), "cloud".to_owned())].into(),
        replicas: 1,
        ..WorkloadDocument::default()
    };
    let (name, version) = (&document.name, &document.version);
    let (_, registered) = register(client, &document).await?;
    if registered != "accepted" {
        bail!("{name}@{version} is {registered}");
    }
    let instance = uuid::Uuid::new_v4().to_string();
    let workload = format!("{name}@{version}");
    let run = RunInstance { owner: OWNER.into(), instance_id: instance.clone(), workload, replicas: 0, release: None };
    client.ask(&run, uuid::Uuid::now_v7().to_string(), ANSWER_WAIT).await?;
    Ok(Patient { instance, faults })
}

/// Makes it go wrong, and shows what follows.
pub(crate) async fn chapter(story: &mut Story, client: &Client, patient: Patient) -> anyhow::Result<()> {
    let Patient { instance, faults } = patient;
    story.chapter("a fault is found, explained and repaired");
    story.step("the detector has learned what is usual for a second workload");
    let deadline = tokio::time::Instant::now() + STEP_LIMIT * 2;
    loop {
        let asked = ExplainInstanceRequest { instance_id: instance.clone() };
        let model = client.anomalies().await?.explain(asked).await.map(tonic::Response::into_inner);
        if let Ok(model) = model
            && model.learned >= model.warm
        {
            story.detail(format!("{} samples learned; the last scores {:.2}", model.learned, model.score));
            break;
        }
        if tokio::time::Instant::now() > deadline {
            bail!("timed out after {} s waiting for a model of instance {instance}", STEP_LIMIT.as_secs() * 2);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    story.step("a workload begins to leak 8 MB a second; the policy of its owner allows a restart");
    let rule = PolicyRule { actions: vec![Action::Restart.into()], ..PolicyRule::default() };
    let policy = RemedyPolicy { rules: vec![rule], settle_seconds: 60, ..RemedyPolicy::default() };
    remedy::set(client, OWNER, policy).await?;
    let mut arrivals = follow(client, &["ANOMALY", "REMEDY"]).await?;
    let fault: PathBuf = faults.path().join(&instance);
    let staged = faults.path().join("staged");
    std::fs::write(&staged, "leak 8\n").and_then(|()| std::fs::rename(&staged, &fault)).context("write the fault")?;

    // Facts of one stream are in order, those of two streams are not: what settles the remedy may come before what it was
    // settled by.
    let (mut detected, mut cleared) = (BTreeMap::new(), BTreeMap::new());
    let (mut requested, mut settled) = (None::<RemedyRequested>, None::<RemedySettled>);
    let is_over = |cleared: &BTreeMap<String, AnomalyCleared>, settled: &Option<RemedySettled>| {
        settled.as_ref().is_some_and(|s| !s.effective || cleared.contains_key(&s.episode_id))
    };
    let deadline = tokio::time::Instant::now() + STEP_LIMIT * 2;
    while !is_over(&cleared, &settled) {
        let Ok(Some(stored)) = tokio::time::timeout_at(deadline, arrivals.recv()).await else { break };
        let mut concerns = false;
        if let Ok(Some(m)) = stored.event::<AnomalyDetected>()
            && m.instance_id == instance
        {
            concerns = true;
            detected.insert(m.episode_id.clone(), m);
        } else if let Ok(Some(m)) = stored.event::<RemedyRequested>()
            && m.instance_id == instance
        {
            (concerns, requested) = (true, Some(m));
        } else if let Ok(Some(m)) = stored.event::<AnomalyCleared>()
            && m.instance_id == instance
        {
            concerns = true;
            cleared.insert(m.episode_id.clone(), m);
        } else if let Ok(Some(m)) = stored.event::<RemedySettled>()
            && m.instance_id == instance
        {
            (concerns, settled) = (true, Some(m));
        }
        if concerns {
            story.fact(&stored);
        }
    }
    // A leak may be found by more than one detector: what is shown is the episode that was repaired.
    let episode = requested.as_ref().map(|r| r.episode_id.clone()).unwrap_or_default();
    let (detected, cleared) = (detected.remove(&episode), cleared.remove(&episode));
    if let Some(detected) = &detected {
        let rows =
            detected.contributions.iter().map(|c| vec![cause(c), format!("{:.1}", c.value), format!("{:.1}", c.usual)]);
        line(table(&["metric", "value", "usual"], rows.collect()));
    }
    let first = detected.as_ref().and_then(|d| d.contributions.first()).map(|c| c.metric.as_str());
    story.expect("the anomaly is found, and memory is named first", first == Some("memory_bytes"));
    story.expect("a restart is requested by policy", requested.is_some_and(|r| r.action() == Action::Restart));
    let (old, new) = (detected.map(|d| d.generation), cleared.map(|c| c.generation));
    story.expect("a new generation behaves as usual: the anomaly is cleared", new > old && old.is_some());
    story.expect("the remedy is recorded as effective", settled.is_some_and(|s| s.effective));
    let stop = mesh_proto::workload::StopInstance { owner: OWNER.into(), instance_id: instance };
    client.ask(&stop, uuid::Uuid::now_v7().to_string(), ANSWER_WAIT).await?;
    story.close(
        "a leak was found from its measurements, memory was named as the cause, and a restart cured it",
        "the detector learned what is usual by itself, and did only what the owner's policy allows.",
    );
    Ok(())
}
