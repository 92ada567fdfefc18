//! A person's connection to a running mesh: commands over the bus, questions over gRPC.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail};
use mesh_bus::{Bus, Options};
use mesh_core::{Outgoing, Stored};
use mesh_proto::{
    AnyEvent, Event as _, Timestamp,
    cluster::ClusterRegistered,
    lifecycle::ServiceChanged,
    query::{
        account_queries_client::AccountQueriesClient, agent_queries_client::AgentQueriesClient,
        anomaly_queries_client::AnomalyQueriesClient, intent_queries_client::IntentQueriesClient,
        learning_queries_client::LearningQueriesClient, network_queries_client::NetworkQueriesClient,
        orchestrator_queries_client::OrchestratorQueriesClient, remedy_queries_client::RemedyQueriesClient,
        storage_queries_client::StorageQueriesClient, telemetry_queries_client::TelemetryQueriesClient,
        twin_queries_client::TwinQueriesClient, validator_queries_client::ValidatorQueriesClient,
        workload_queries_client::WorkloadQueriesClient,
    },
};
use serde::{Deserialize, Serialize};
use tonic::transport::{Channel, Endpoint};

/// Whose objects a person's commands are about, on one machine.
pub(crate) const OWNER: &str = "local";

/// How long a command waits for its answer.
pub(crate) const ANSWER_WAIT: Duration = Duration::from_secs(20);

/// What a running mesh tells its clients, as `endpoints.json` in its data folder.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Endpoints {
    /// Process that runs the mesh.
    pub(crate) pid: u32,
    /// Start time of that process, clock ticks since boot: a pid that was given again is told apart.
    pub(crate) started_ticks: u64,
    /// `one process` or `one process per service`.
    pub(crate) mode: String,
    /// NATS address.
    pub(crate) nats: String,
    /// File with the NKey seed of the identity `person`.
    pub(crate) person_seed_file: PathBuf,
    /// Zenoh router.
    pub(crate) zenoh: String,
    /// Clusters, by name.
    pub(crate) clusters: Vec<String>,
}

impl Endpoints {
    /// Where the file is.
    pub(crate) fn path(data_dir: &Path) -> PathBuf {
        data_dir.join("endpoints.json")
    }

    /// Reads the file of a running mesh.
    pub(crate) fn read(data_dir: &Path) -> anyhow::Result<Self> {
        let path = Self::path(data_dir);
        let text = std::fs::read(&path).with_context(|| {
            format!("no mesh runs with the data folder {} (start one with `continuum up`)", data_dir.display())
        })?;
        let endpoints: Self = serde_json::from_slice(&text).with_context(|| format!("read {}", path.display()))?;
        if started_ticks(endpoints.pid) != Some(endpoints.started_ticks) {
            bail!(
                "the mesh of {} (process {}) is gone; start it again with `continuum up --data-dir {}`",
                data_dir.display(),
                endpoints.pid,
                data_dir.display()
            );
        }
        Ok(endpoints)
    }
}

/// Start time of a process, clock ticks since boot (`/proc/<pid>/stat`, field 22); `None` if there is no such process.
pub(crate) fn started_ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; what follows the last one is plain.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// A person's connection.
pub(crate) struct Client {
    /// The bus, as the identity `person`.
    pub(crate) bus: Bus,
    /// Where things are.
    pub(crate) endpoints: Endpoints,
}

impl Client {
    /// Connects to the mesh of a data folder.
    pub(crate) async fn connect(data_dir: &Path) -> anyhow::Result<Self> {
        let endpoints = Endpoints::read(data_dir)?;
        let seed = std::fs::read_to_string(&endpoints.person_seed_file)
            .with_context(|| format!("read {}", endpoints.person_seed_file.display()))?;
        let options = Options {
            url: endpoints.nats.clone(),
            service: "person".into(),
            seed: Some(seed.trim().to_owned()),
            ..Options::default()
        };
        let bus = Bus::connect(options).await.context("connect to the bus")?;
        Ok(Self { bus, endpoints })
    }

    /// Where a service answers gRPC.
    pub(crate) async fn endpoint(&self, service: &str) -> anyhow::Result<String> {
        let found = mesh_kit::peers::endpoint(&self.bus, service).await?;
        found.ok_or_else(|| anyhow!("{service} has not said where it answers; see `continuum status`"))
    }

    /// Which of these services and clusters have not said since `since` that they are ready.
    pub(crate) async fn not_ready(
        &self,
        services: &[&str],
        clusters: &[String],
        since: Timestamp,
    ) -> anyhow::Result<Vec<String>> {
        let mut waiting = vec![];
        for service in services {
            let subject = ServiceChanged::SUBJECT.replace("{service}", service);
            let last = self.bus.log(ServiceChanged::STREAM).last(&subject).await.context("read service notices")?;
            let ready =
                last.filter(|stored| stored.time >= since).and_then(|stored| stored.event::<ServiceChanged>().ok()?);
            if ready.is_none_or(|notice| notice.phase != "ready") {
                waiting.push((*service).to_owned());
            }
        }
        for cluster in clusters {
            let subject = ClusterRegistered::SUBJECT.replace("{cluster_id}", cluster);
            let last = self.bus.log(ClusterRegistered::STREAM).last(&subject).await.context("read clusters")?;
            if last.is_none_or(|stored| stored.time < since) {
                waiting.push(format!("cluster {cluster}"));
            }
        }
        Ok(waiting)
    }

    /// A channel to a service.
    pub(crate) async fn channel(&self, service: &str) -> anyhow::Result<Channel> {
        channel(&self.endpoint(service).await?).await
    }

    /// The intent manager.
    pub(crate) async fn intents(&self) -> anyhow::Result<IntentQueriesClient<Channel>> {
        Ok(IntentQueriesClient::new(self.channel("intent-manager").await?))
    }

    /// The validator.
    pub(crate) async fn validator(&self) -> anyhow::Result<ValidatorQueriesClient<Channel>> {
        Ok(ValidatorQueriesClient::new(self.channel("validator").await?))
    }

    /// The workload manager.
    pub(crate) async fn workloads(&self) -> anyhow::Result<WorkloadQueriesClient<Channel>> {
        Ok(WorkloadQueriesClient::new(self.channel("workload-manager").await?))
    }

    /// The meta-orchestrator.
    pub(crate) async fn orchestrator(&self) -> anyhow::Result<OrchestratorQueriesClient<Channel>> {
        Ok(OrchestratorQueriesClient::new(self.channel("meta-orchestrator").await?))
    }

    /// The collector.
    pub(crate) async fn telemetry(&self) -> anyhow::Result<TelemetryQueriesClient<Channel>> {
        Ok(TelemetryQueriesClient::new(self.channel("collector").await?))
    }

    /// The twin aggregator.
    pub(crate) async fn twins(&self) -> anyhow::Result<TwinQueriesClient<Channel>> {
        Ok(TwinQueriesClient::new(self.channel("cmdt-aggregator").await?))
    }

    /// The storage gateway.
    pub(crate) async fn storage(&self) -> anyhow::Result<StorageQueriesClient<Channel>> {
        Ok(StorageQueriesClient::new(self.channel("secure-storage").await?))
    }

    /// Accounting.
    pub(crate) async fn accounts(&self) -> anyhow::Result<AccountQueriesClient<Channel>> {
        Ok(AccountQueriesClient::new(self.channel("accounting").await?))
    }

    /// The learner.
    pub(crate) async fn learner(&self) -> anyhow::Result<LearningQueriesClient<Channel>> {
        Ok(LearningQueriesClient::new(self.channel("cfdrl-agent").await?))
    }

    /// The detector's anomalies.
    pub(crate) async fn anomalies(&self) -> anyhow::Result<AnomalyQueriesClient<Channel>> {
        Ok(AnomalyQueriesClient::new(self.channel("sar-detector").await?))
    }

    /// The detector's remedies.
    pub(crate) async fn remedies(&self) -> anyhow::Result<RemedyQueriesClient<Channel>> {
        Ok(RemedyQueriesClient::new(self.channel("sar-detector").await?))
    }

    /// The network exposer.
    pub(crate) async fn network(&self) -> anyhow::Result<NetworkQueriesClient<Channel>> {
        Ok(NetworkQueriesClient::new(self.channel("mncc-exposer").await?))
    }

    /// A cluster's agent, at the endpoint that it registered.
    pub(crate) async fn agent(&self, endpoint: &str) -> anyhow::Result<AgentQueriesClient<Channel>> {
        Ok(AgentQueriesClient::new(channel(endpoint).await?))
    }

    /// Sends a command; returns once it is stored.
    pub(crate) async fn send(&self, command: &dyn AnyEvent, id: String) -> anyhow::Result<u64> {
        let message = Outgoing::new(command, id, now())?;
        self.bus.publish(&message).await.context("send the command")
    }

    /// Sends a command and waits for the one fact that answers it.
    pub(crate) async fn ask(&self, command: &dyn AnyEvent, id: String, wait: Duration) -> anyhow::Result<Stored> {
        let area = command.area().to_owned();
        let stream = area.to_uppercase();
        let log = self.bus.log(&stream);
        let entity = format!("{area}.*.*.{}", command.keys().join("."));
        let from = log.last_sequence().await.context("read the bus")? + 1;
        let mut tail = log.tail(&entity, from);
        let message = Outgoing::new(command, id.clone(), now())?;
        self.bus.publish(&message).await.context("send the command")?;
        let answered = |stored: &Stored| stored.cause.as_ref().is_some_and(|cause| cause.id == id);
        let live = async {
            loop {
                let stored = tail.next().await.context("wait for the answer")?;
                if answered(&stored) {
                    return anyhow::Ok(stored);
                }
            }
        };
        // A command that was answered before is not answered again: its answer is among the entity's facts.
        let earlier = async {
            loop {
                tokio::time::sleep(Duration::from_millis(500)).await;
                let facts = mesh_why::facts(&self.bus, &stream, &entity).await.context("read the answer")?;
                if let Some(stored) = facts.into_iter().find(|f| answered(f)) {
                    return anyhow::Ok(stored);
                }
            }
        };
        tokio::select! {
            answer = live => answer,
            answer = earlier => answer,
            () = tokio::time::sleep(wait) => bail!(
                "no answer to {} within {} s; the command is stored and will be answered when its service is back \
                 (see `continuum status`)",
                command.message(),
                wait.as_secs()
            ),
        }
    }
}

/// A channel to a gRPC address, `http://host:port`.
pub(crate) async fn channel(endpoint: &str) -> anyhow::Result<Channel> {
    Endpoint::from_shared(endpoint.to_owned())
        .with_context(|| format!("read address {endpoint}"))?
        .connect_timeout(Duration::from_secs(3))
        .connect()
        .await
        .with_context(|| format!("connect to {endpoint}"))
}

/// The time now; the command line is a shell, not a domain.
pub(crate) fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_nanos(since.as_nanos() as i128)
}
