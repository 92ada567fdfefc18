//! The telemetry interface of the SERRANO platform: each operation is a question to the collector, or a setting.

use axum::response::Response;
use http::StatusCode;
use mesh_proto::{
    measurement::{SetMeasurement, UnsetMeasurement},
    telemetry::{AgentInfo, Filter, InventoryRequest, QueryReply, QueryRequest},
};
use mesh_rest::{
    body,
    http::{empty, json},
    problem::Problem,
};
use serde_json::json;

use crate::{
    domain::{
        present,
        serrano::{self, AgentSettings, Collection, Named, STREAMING, Session},
        table::Op,
    },
    shell::{
        gateway::{Admitted, Gateway},
        telemetry::{COLLECTOR, scope},
    },
};

/// What `…/metrics/{uuid}` looks back, milliseconds: as long as an agent of that platform keeps samples.
const KEPT_MS: i64 = 180_000;
/// Series of an answer.
const SERIES_MAX: u32 = 1_000;
/// Agents of one question, and questions.
const PAGE: u32 = 1_000;
const PAGES_MAX: usize = 10;

impl Gateway {
    /// Answers one operation.
    pub(crate) async fn serrano(&self, admitted: &mut Admitted) -> Result<Response, Problem> {
        let id = admitted.id(0);
        let scope = scope(admitted);
        let shown = match admitted.route.op {
            Op::SerranoProbeMonitor => serrano::samples(&self.newest("", "").await?, &scope),
            Op::SerranoProbeInventory => serrano::probes(&self.agents("").await?, &scope),
            Op::SerranoCollection => {
                let named = body::form::<Collection>(admitted.written())?.setting()?;
                return self.set(vec![named], StatusCode::OK).await;
            }
            Op::SerranoStreamEnd => return self.end_session(&id).await,
            Op::SerranoAgent => serrano::agent(self.agent(&id).await?.first().unwrap_or(&AgentInfo::default())),
            Op::SerranoChangeAgent => {
                let named = body::form::<AgentSettings>(admitted.written())?.setting(&id)?;
                return self.set(vec![named], StatusCode::OK).await;
            }
            Op::SerranoStreaming => {
                let session: Session = body::form(admitted.written())?;
                return match session.settings()? {
                    Some(settings) => self.set(settings, StatusCode::CREATED).await,
                    None => self.end_session(&session.cluster_uuid).await,
                };
            }
            Op::SerranoAgentMonitor | Op::SerranoClusterMonitor => {
                self.agent(&id).await?;
                serrano::samples(&self.newest(&id, "").await?, &scope)
            }
            Op::SerranoAgentInventory | Op::SerranoClusterInventory => serrano::probes(&self.agent(&id).await?, &scope),
            Op::SerranoEntities | Op::SerranoCentralInventory => {
                json!({"entities": self.agents("").await?.iter().map(serrano::agent).collect::<Vec<_>>()})
            }
            Op::SerranoCentral => {
                let settings = self.inner.in_force.read(|in_force| in_force.settings(None, None, PAGE as usize).0);
                json!({"settings": settings})
            }
            Op::SerranoInfrastructure => {
                json!({"clusters": self.clusters().await?.iter().map(present::cluster).collect::<Vec<_>>()})
            }
            Op::SerranoStorage => serrano::storage(&self.newest("", "storage").await?, &scope),
            Op::SerranoClusters => {
                let all = self.clusters().await?;
                let shown = all.iter().filter_map(|cluster| cluster.registered.as_ref()).map(
                    |cluster| json!({"name": cluster.cluster_id, "type": cluster.driver, "uuid": cluster.cluster_id}),
                );
                json!({"clusters": shown.collect::<Vec<_>>()})
            }
            Op::SerranoCluster => present::cluster(&self.cluster(&id).await?),
            Op::SerranoClusterMetrics => {
                self.agent(&id).await?;
                let now = self.inner.mesh.now();
                let filter = Filter { cluster_id: id, ..Filter::default() };
                let request = QueryRequest {
                    filter: Some(filter),
                    from: Some(now.plus_millis(-KEPT_MS)),
                    to: Some(now),
                    series_max: SERIES_MAX,
                    ..QueryRequest::default()
                };
                serrano::samples(&self.asked(request).await?, &scope)
            }
            Op::SerranoDeployments => {
                let all = self.instances(&admitted.owner()?).await?;
                json!({"deployments": all.iter().map(serrano::deployment).collect::<Vec<_>>()})
            }
            Op::SerranoDeployment => {
                let instance = self.instance(&admitted.owner()?, &id).await?;
                let filter = Filter {
                    entity_kind: "instance".into(),
                    entity_ids: vec![id],
                    metrics: serrano::OF_INSTANCE.map(str::to_owned).to_vec(),
                    ..Filter::default()
                };
                let request = QueryRequest { filter: Some(filter), ..QueryRequest::default() };
                serrano::usage(&instance, &self.asked(request).await?)
            }
            Op::SerranoAllocation => serrano::by_cluster(&self.instances(&admitted.owner()?).await?),
            // No kernels run here, so there is nothing to tell of them.
            Op::SerranoKernels => json!({"kernels": []}),
            other => return Err(serrano::refusal(other)),
        };
        Ok(json(StatusCode::OK, &shown))
    }

    async fn asked(&self, request: QueryRequest) -> Result<QueryReply, Problem> {
        let answer = self.collector().await?.query(request).await;
        self.reply(COLLECTOR, answer)
    }

    /// The newest value of each series of a cluster and a kind; empty for all.
    async fn newest(&self, cluster: &str, kind: &str) -> Result<QueryReply, Problem> {
        let filter = Filter { cluster_id: cluster.to_owned(), entity_kind: kind.to_owned(), ..Filter::default() };
        self.asked(QueryRequest { filter: Some(filter), series_max: SERIES_MAX, ..QueryRequest::default() }).await
    }

    async fn agents(&self, cluster: &str) -> Result<Vec<AgentInfo>, Problem> {
        let (mut found, mut page_token) = (vec![], String::new());
        for _ in 0..PAGES_MAX {
            let request = InventoryRequest { cluster_id: cluster.to_owned(), page_size: PAGE, page_token };
            let answer = self.collector().await?.inventory(request).await;
            let page = self.reply(COLLECTOR, answer)?;
            found.extend(page.agents);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        Ok(found)
    }

    /// The agents of one cluster, of which there is at least one.
    async fn agent(&self, cluster: &str) -> Result<Vec<AgentInfo>, Problem> {
        let found = self.agents(cluster).await?;
        if found.is_empty() { Err(Problem::not_found(format!("agent {cluster}"))) } else { Ok(found) }
    }

    async fn set(&self, settings: Vec<Named>, done: StatusCode) -> Result<Response, Problem> {
        let mut made = vec![];
        for (cluster_id, setting_id, setting) in settings {
            made.push(json!({"cluster_uuid": cluster_id, "setting": setting_id}));
            let command = SetMeasurement { cluster_id, setting_id, setting: Some(setting) };
            let id = uuid::Uuid::now_v7().to_string();
            self.inner.answers.ask(&command, &id, self.limit_of_commands()).await?;
        }
        let session = made.first().map(|first| first["cluster_uuid"].clone()).unwrap_or_default();
        Ok(json(done, &json!({"sessionId": session, "settings": made})))
    }

    /// Takes the settings of a session back.
    async fn end_session(&self, cluster: &str) -> Result<Response, Problem> {
        let names = self.inner.in_force.read(|in_force| in_force.named(cluster, STREAMING));
        if names.is_empty() {
            return Err(Problem::not_found(format!("streaming session {cluster}")));
        }
        for setting_id in names {
            let command = UnsetMeasurement { cluster_id: cluster.to_owned(), setting_id };
            let id = uuid::Uuid::now_v7().to_string();
            match self.inner.answers.ask(&command, &id, self.limit_of_commands()).await {
                Ok(_) => {}
                // It was taken back in the meantime, which is what is wanted.
                Err(problem) if problem.refusal.is_some() => {}
                Err(problem) => return Err(problem),
            }
        }
        Ok(empty(StatusCode::NO_CONTENT))
    }
}
