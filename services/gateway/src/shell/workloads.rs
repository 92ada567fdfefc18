//! Workload documents, their instances, and the clusters they run on.

use std::time::Duration;

use axum::{body::Body, response::Response};
use http::{StatusCode, header};
use mesh_proto::{
    AnyEvent, Event as _, RefusalCode,
    chart::UploadChart,
    derived_id,
    placement::{ClusterView, orchestrator_queries_client::OrchestratorQueriesClient},
    query::{GetRequest, ListRequest},
    workload::{
        AttachChart, ChartSpec, DropWorkload, InstancePhase, InstanceView, MigrateInstance, RegisterWorkload,
        RollbackInstance, RunInstance, StopInstance, UpgradeInstance, WorkloadDocument, WorkloadRegistered,
        WorkloadRejected, WorkloadUnchanged, WorkloadView, workload_queries_client::WorkloadQueriesClient,
    },
};
use mesh_rest::{
    body,
    http::{empty, json, with},
    problem::{Fault, Kind, Problem},
};
use prost::Message as _;
use serde_json::{Value as Json, json};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use crate::{
    domain::{
        forms::{self, ClusterInput, MigrateInput, RevisionInput, TemplateInput, UpgradeInput},
        present,
    },
    shell::{
        gateway::{Admitted, Gateway},
        intents::{self, RestView},
    },
};

const MANAGER: &str = "workload-manager";
const ORCHESTRATOR: &str = "meta-orchestrator";
/// Entries of a page that is asked for.
const PAGE: u32 = 1_000;
/// The kind of documents that have an archive.
const CHART: &str = "chart";
/// Place that the checks of a chart report if its archive is not stored.
const NO_ARCHIVE: &str = "chart.structure: sha256";
/// How often a chart is registered again if its archive was not stored yet when its checks looked for it.
const REGISTERED_AGAIN_MAX: usize = 5;

/// Is it a `chart`, by its document?
fn is_chart(view: &WorkloadView) -> bool {
    view.document.as_ref().is_some_and(|document| document.kind == CHART)
}

impl Gateway {
    async fn registry(&self) -> Result<WorkloadQueriesClient<tonic::transport::Channel>, Problem> {
        Ok(WorkloadQueriesClient::new(self.channel(MANAGER).await?))
    }

    async fn document(&self, owner: &str, id: &str) -> Result<WorkloadView, Problem> {
        let answer = self.registry().await?.get_workload(GetRequest { owner: owner.into(), id: id.into() }).await;
        self.reply(MANAGER, answer)
    }

    /// Instances of an owner; at most as many as a list looks through.
    pub(crate) async fn instances(&self, owner: &str) -> Result<Vec<InstanceView>, Problem> {
        // Instances follow the documents in the registry's list.
        let (mut found, mut page_token) = (vec![], "instance/".to_owned());
        for _ in 0..intents::SCAN_PAGES {
            let request = ListRequest { owner: owner.into(), page_size: PAGE, page_token, ..ListRequest::default() };
            let answer = self.registry().await?.list(request).await;
            let page = self.reply(MANAGER, answer)?;
            found.extend(page.instances);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        Ok(found)
    }

    /// One instance.
    pub(crate) async fn instance(&self, owner: &str, id: &str) -> Result<InstanceView, Problem> {
        let answer = self.registry().await?.get_instance(GetRequest { owner: owner.into(), id: id.into() }).await;
        self.reply(MANAGER, answer)
    }

    /// Reads an instance until it is as wanted, or for two seconds.
    async fn instance_once(
        &self,
        owner: &str,
        id: &str,
        fits: impl Fn(&InstanceView) -> bool,
    ) -> Result<InstanceView, Problem> {
        let until = Instant::now() + Duration::from_secs(2);
        loop {
            match self.instance(owner, id).await {
                Ok(view) if fits(&view) || Instant::now() > until => return Ok(view),
                Err(problem) if problem.kind != Kind::NotFound || Instant::now() > until => return Err(problem),
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    /// Registers a document, and waits for its verdict.
    pub(crate) async fn register(&self, admitted: &mut Admitted) -> Result<Response, Problem> {
        let owner = admitted.owner()?;
        let document = forms::workload(admitted.written())?;
        let until = Instant::now() + Duration::from_millis(self.inner.config.verdict_limit_ms.into());
        let (view, new) = self.registered(&owner, document, "", until).await?;
        Ok(registration(&view, new))
    }

    /// Sends a document and waits for its verdict; whether it is a new one.
    async fn registered(
        &self,
        owner: &str,
        document: WorkloadDocument,
        again: &str,
        until: Instant,
    ) -> Result<(WorkloadView, bool), Problem> {
        let (name, version) = (document.name.clone(), document.version.clone());
        let bytes: String = document.encode_to_vec().iter().map(|byte| format!("{byte:02x}")).collect();
        let command_id = derived_id(&["register", owner, &name, &bytes, again]);
        let waits = document.chart.as_ref().is_some_and(|chart| chart.sha256.is_empty());
        let command = RegisterWorkload { owner: owner.to_owned(), name: name.clone(), document: Some(document) };
        self.judged(owner, &name, &version, &command, &command_id, waits, until).await
    }

    /// Sends a command about a document, and waits for the verdict on the document, unless it waits for its archive
    /// first; whether it was news.
    #[allow(clippy::too_many_arguments)]
    async fn judged(
        &self,
        owner: &str,
        name: &str,
        version: &str,
        command: &dyn AnyEvent,
        command_id: &str,
        waits: bool,
        until: Instant,
    ) -> Result<(WorkloadView, bool), Problem> {
        let id = format!("{name}@{version}");
        let faults = |problems: Vec<mesh_proto::intent::Problem>| {
            let fault = |p: mesh_proto::intent::Problem| Fault { path: p.path, reason: p.reason, hint: p.hint };
            Problem::faults(problems.into_iter().map(fault).collect()).at(format!("/api/v1/workload/{id}/"))
        };
        let (answer, mut following) = self.inner.answers.ask(command, command_id, self.limit_of_commands()).await?;
        let new = answer.message != WorkloadUnchanged::MESSAGE;
        let mut accepted = !new || following.is_late;
        while !accepted {
            let Some(fact) = following.next(until.min(Instant::now() + Duration::from_millis(500))).await else {
                break;
            };
            if let Ok(Some(rejected)) = fact.event::<WorkloadRejected>()
                && rejected.version == version
            {
                return Err(faults(rejected.problems));
            }
            accepted = matches!(fact.event::<WorkloadRegistered>(), Ok(Some(fact)) if fact.version == version);
        }
        let settled = |view: &WorkloadView| match view.status.as_str() {
            "accepted" | "rejected" => true,
            // It waits for its archive, and not for a verdict.
            "onboarding" | "pending" => waits,
            _ => false,
        };
        loop {
            match self.document(owner, &id).await {
                Ok(view) if new && view.status == "rejected" => return Err(faults(view.problems)),
                Ok(view) if settled(&view) || Instant::now() > until => return Ok((view, new)),
                Err(problem) if problem.kind != Kind::NotFound || Instant::now() > until => return Err(problem),
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    /// Takes a chart's archive in, and registers it under its name and version: the document that waits for one gets
    /// it, and without one a document is made.
    pub(crate) async fn upload(&self, admitted: &mut Admitted) -> Result<Response, Problem> {
        let owner = admitted.owner()?;
        let upload = admitted.upload.take().unwrap_or_default();
        upload.check()?;
        let (name, version) = (upload.name, upload.version);
        let id = format!("{name}@{version}");
        let sha256: String = Sha256::digest(&upload.file).iter().map(|byte| format!("{byte:02x}")).collect();
        let command = UploadChart { owner: owner.clone(), sha256: sha256.clone(), archive: upload.file };
        // A new id each time: an upload that the bus takes for a repeated one would be stored once, too.
        let command_id = uuid::Uuid::now_v7().to_string();
        self.inner.answers.send(&command, &command_id, self.limit_of_commands()).await?;
        let until = Instant::now() + Duration::from_millis(self.inner.config.verdict_limit_ms.into());
        let known = match self.document(&owner, &id).await {
            Ok(view) => Some(view),
            Err(problem) if problem.kind == Kind::NotFound => None,
            Err(problem) => return Err(problem),
        };
        let mut document = match &known {
            Some(view) if is_chart(view) => view.document.clone().unwrap_or_default(),
            _ => WorkloadDocument {
                name: name.clone(),
                version: version.clone(),
                kind: CHART.into(),
                ..WorkloadDocument::default()
            },
        };
        document.chart.get_or_insert_with(ChartSpec::default).sha256.clone_from(&sha256);
        let mut judged = match &known {
            Some(view) if view.status != "rejected" => {
                let command_id = derived_id(&["attach", &owner, &name, &version, &sha256]);
                let command = AttachChart {
                    owner: owner.clone(),
                    name: name.clone(),
                    version: version.clone(),
                    sha256: sha256.clone(),
                };
                self.judged(&owner, &name, &version, &command, &command_id, false, until).await
            }
            _ => self.registered(&owner, document.clone(), &uuid::Uuid::now_v7().to_string(), until).await,
        };
        // Archives and documents are decided on apart: a document may be checked before its archive is stored.
        for _ in 0..REGISTERED_AGAIN_MAX {
            let early = matches!(&judged, Err(problem) if problem.faults.iter().any(|fault| fault.path == NO_ARCHIVE));
            if !early || Instant::now() > until {
                break;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
            let again = uuid::Uuid::now_v7().to_string();
            judged = self.registered(&owner, document.clone(), &again, until).await;
        }
        let (view, new) = judged?;
        Ok(registration(&view, new))
    }

    /// Removes a document that never could run.
    pub(crate) async fn drop_document(&self, admitted: &Admitted) -> Result<Response, Problem> {
        let owner = admitted.owner()?;
        let view = self.document(&owner, &admitted.id(0)).await?;
        let (name, version) = (view.name.clone(), view.version.clone());
        let command = DropWorkload { owner: owner.clone(), name, version };
        let command_id = uuid::Uuid::now_v7().to_string();
        self.inner.answers.ask(&command, &command_id, self.limit_of_commands()).await?;
        // So that the caller does not see it any more.
        let until = Instant::now() + Duration::from_secs(2);
        let id = format!("{}@{}", view.name, view.version);
        while Instant::now() < until && self.document(&owner, &id).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(empty(StatusCode::NO_CONTENT))
    }

    /// Shows a document.
    pub(crate) async fn show_document(&self, admitted: &Admitted) -> Result<Response, Problem> {
        let view = self.document(&admitted.owner()?, &admitted.id(0)).await?;
        Ok(json(StatusCode::OK, &present::workload(&view)))
    }

    /// Shows an instance.
    pub(crate) async fn show_instance(&self, admitted: &Admitted) -> Result<Response, Problem> {
        let view = self.instance(&admitted.owner()?, &admitted.id(0)).await?;
        Ok(json(StatusCode::OK, &present::instance(&view)))
    }

    /// What an instance runs, as YAML.
    pub(crate) async fn manifests(&self, admitted: &Admitted) -> Result<Response, Problem> {
        let request = GetRequest { owner: admitted.owner()?, id: admitted.id(0) };
        let answer = self.registry().await?.manifests(request).await;
        let reply = self.reply(MANAGER, answer)?;
        let mut response = Response::new(Body::from(reply.yaml));
        let yaml = header::HeaderValue::from_static("application/yaml");
        response.headers_mut().insert(header::CONTENT_TYPE, yaml);
        Ok(response)
    }

    /// Sends a command about an instance, and shows the instance once it is as it should be.
    async fn instructed(
        &self,
        command: &dyn AnyEvent,
        before: &InstanceView,
        fits: impl Fn(&InstanceView) -> bool,
    ) -> Result<InstanceView, Problem> {
        let command_id = uuid::Uuid::now_v7().to_string();
        let answered = self.inner.answers.ask(command, &command_id, self.limit_of_commands()).await;
        answered.map_err(Problem::of_existing)?;
        self.instance_once(&before.owner, &before.instance_id, fits).await
    }

    /// Gives an instance another version of its document, or other values.
    pub(crate) async fn upgrade(&self, admitted: &mut Admitted) -> Result<Response, Problem> {
        let owner = admitted.owner()?;
        let input = UpgradeInput::read(admitted.written())?;
        let before = self.instance(&owner, &admitted.id(0)).await?;
        let workload =
            if input.workload_document.is_empty() { before.workload.clone() } else { input.workload_document.clone() };
        // A name alone means the newest version, which the caller may not have meant.
        if !workload.contains('@') {
            return Err(Problem::field("workload_document", "names no version", "write it as name@version"));
        }
        let document = self.document(&owner, &workload).await?;
        let release = input.release(is_chart(&document), before.release.clone())?;
        let command = UpgradeInstance {
            owner,
            instance_id: before.instance_id.clone(),
            workload,
            replicas: input.replicas,
            release,
            atomic: input.atomic,
        };
        let view = self.instructed(&command, &before, |view| view.revision > before.revision).await?;
        Ok(json(StatusCode::OK, &present::instance(&view)))
    }

    /// Goes back to an earlier revision.
    pub(crate) async fn revert(&self, admitted: &mut Admitted) -> Result<Response, Problem> {
        let owner = admitted.owner()?;
        let input: RevisionInput = body::form(admitted.written())?;
        let before = self.instance(&owner, &admitted.id(0)).await?;
        let command = RollbackInstance { owner, instance_id: before.instance_id.clone(), revision: input.revision };
        let view = self.instructed(&command, &before, |view| view.revision > before.revision).await?;
        Ok(json(StatusCode::OK, &present::instance(&view)))
    }

    /// Asks for an instance to be moved. Its planner decides whether it moves: follow the instance.
    pub(crate) async fn migrate(&self, admitted: &mut Admitted) -> Result<Response, Problem> {
        let owner = admitted.owner()?;
        let input: MigrateInput = body::form(admitted.written())?;
        if !input.cluster_name.is_empty() && !mesh_proto::is_key(&input.cluster_name) {
            return Err(Problem::field(
                "cluster_name",
                "is not a valid name",
                "use 1 to 64 letters, digits, `_` and `-`",
            ));
        }
        let before = self.instance(&owner, &admitted.id(0)).await?;
        let command =
            MigrateInstance { owner, instance_id: before.instance_id.clone(), to_cluster_id: input.cluster_name };
        let view = self.instructed(&command, &before, |_| true).await?;
        Ok(json(StatusCode::ACCEPTED, &present::instance(&view)))
    }

    /// Makes an instance, and its intents.
    pub(crate) async fn run(&self, admitted: &mut Admitted) -> Result<Response, Problem> {
        let (owner, key) = (admitted.owner()?, admitted.idempotency_key()?);
        let input = TemplateInput::read(admitted.written())?;
        let document = self.document(&owner, &admitted.id(0)).await?;
        if document.status != "accepted" {
            let detail = format!("document {} is {}", admitted.id(0), document.status);
            return Err(Problem::new(Kind::Conflict, detail, "register a document that is accepted"));
        }
        let release = input.release(is_chart(&document))?;
        let workload = format!("{}@{}", document.name, document.version);
        let id = match &key {
            Some(key) => derived_id(&["instance", &owner, key]),
            None => uuid::Uuid::now_v7().to_string(),
        };
        // Before anything is done.
        let intents = input.intents.into_iter().map(|template| template.expand(Some(&id)));
        let intents = intents.collect::<Result<Vec<_>, _>>()?;
        let wanted = release.as_ref().map(|r| format!("{:?}", r.encode_to_vec())).unwrap_or_default();
        let command_id = derived_id(&["run", &owner, &id, &workload, &input.replicas.to_string(), &wanted]);
        let command =
            RunInstance { owner: owner.clone(), instance_id: id.clone(), workload, replicas: input.replicas, release };
        let answered = self.inner.answers.ask(&command, &command_id, self.limit_of_commands()).await;
        answered.map_err(|problem| match &key {
            Some(_) if problem.refusal == Some(RefusalCode::WrongState) => Problem::new(
                Kind::Replayed,
                format!("this key made instance {id} from another body"),
                "use another key for another instance",
            ),
            _ => problem,
        })?;
        let view = self.instance_once(&owner, &id, |_| true).await?;
        let mut made = vec![];
        for (number, intent) in intents.into_iter().enumerate() {
            let intent_id = derived_id(&["intent-of", &owner, &id, &number.to_string()]);
            made.push(match self.create(admitted, (Some(intent_id.clone()), intent), RestView::Rest).await {
                Ok(response) => json!({"id": intent_id, "status": response.status().as_u16()}),
                // The instance runs all the same: the answer shows what is wrong with the intent.
                Err(problem) => problem.document(&format!("/api/v1/intent/{intent_id}/")),
            });
        }
        let mut shown = present::instance(&view);
        shown["intents"] = json!(made);
        let response = json(StatusCode::CREATED, &shown);
        Ok(with(response, header::LOCATION, &format!("/api/v1/workload/instance/{id}/")))
    }

    /// Ends an instance.
    pub(crate) async fn stop(&self, admitted: &Admitted) -> Result<Response, Problem> {
        let (owner, id) = (admitted.owner()?, admitted.id(0));
        let before = self.instance(&owner, &id).await?;
        if before.phase() == InstancePhase::Stopped {
            return Ok(json(StatusCode::OK, &present::instance(&before)));
        }
        let command = StopInstance { owner: owner.clone(), instance_id: id.clone() };
        let command_id = uuid::Uuid::now_v7().to_string();
        self.inner.answers.ask(&command, &command_id, self.limit_of_commands()).await?;
        let view = self.instance_once(&owner, &id, |view| view.replicas_wanted == 0).await?;
        Ok(json(StatusCode::OK, &present::instance(&view)))
    }

    /// Lists documents, or instances.
    pub(crate) async fn list_workloads(&self, admitted: &Admitted, instances: bool) -> Result<Response, Problem> {
        let owner = admitted.owner()?;
        let size = intents::page_size(admitted)? as usize;
        let mut token = admitted.value("page_token").unwrap_or_default().to_owned();
        if token.is_empty() && instances {
            // Instances follow the documents in the registry's list.
            token = "instance/".into();
        }
        let fits = match token.split_once('/') {
            Some((kind, id)) if instances => kind == "instance" && (id.is_empty() || mesh_proto::is_key(id)),
            Some((kind, id)) => kind == "document" && id.contains('@'),
            None => token.is_empty(),
        };
        if !fits {
            return Err(intents::other_page());
        }
        let state = admitted.value("status").unwrap_or_default();
        if !state.is_empty() && InstancePhase::from_str_name(&state.to_uppercase()).is_none() {
            return Err(Problem::field("status", "is not a phase of an instance", "see the values in /openapi.json"));
        }
        let one = |name: &str, value: &str| admitted.value(name).is_none_or(|wanted| wanted == value);
        let mut found: Vec<Json> = vec![];
        for _ in 0..intents::SCAN_PAGES {
            let request = ListRequest {
                owner: owner.clone(),
                page_size: PAGE.min((size - found.len()) as u32),
                page_token: token.clone(),
                state: state.to_owned(),
                ..ListRequest::default()
            };
            let answer = self.registry().await?.list(request).await;
            let page = self.reply(MANAGER, answer)?;
            token = page.next_page_token;
            if instances {
                let fits = |i: &&InstanceView| {
                    one("release_name", &i.release_name)
                        && one("cluster_name", &i.cluster_id)
                        && one("workload_document", &i.workload)
                };
                found.extend(page.instances.iter().filter(fits).map(present::instance));
            } else {
                let fits = |w: &&WorkloadView| one("name", &w.name) && one("version", &w.version);
                found.extend(page.workloads.iter().filter(fits).map(present::workload));
                // What follows is instances.
                if !page.instances.is_empty() || token.starts_with("instance/") {
                    token.clear();
                }
            }
            if token.is_empty() || found.len() >= size {
                break;
            }
        }
        Ok(intents::linked(admitted, json(StatusCode::OK, &Json::Array(found)), &token))
    }

    /// All clusters.
    pub(crate) async fn clusters(&self) -> Result<Vec<ClusterView>, Problem> {
        let (mut found, mut token) = (vec![], String::new());
        loop {
            let request = ListRequest { page_size: PAGE, page_token: token, ..ListRequest::default() };
            let mut client = OrchestratorQueriesClient::new(self.channel(ORCHESTRATOR).await?);
            let answer = client.list_clusters(request).await;
            let page = self.reply(ORCHESTRATOR, answer)?;
            found.extend(page.clusters);
            token = page.next_page_token;
            if token.is_empty() || found.len() >= 10_000 {
                return Ok(found);
            }
        }
    }

    /// Lists clusters.
    pub(crate) async fn list_clusters(&self) -> Result<Response, Problem> {
        let all = self.clusters().await?;
        Ok(json(StatusCode::OK, &all.iter().map(present::cluster).collect()))
    }

    /// One cluster.
    pub(crate) async fn cluster(&self, id: &str) -> Result<ClusterView, Problem> {
        let mut client = OrchestratorQueriesClient::new(self.channel(ORCHESTRATOR).await?);
        let answer = client.get_cluster(GetRequest { owner: String::new(), id: id.into() }).await;
        self.reply(ORCHESTRATOR, answer)
    }

    /// Shows a cluster.
    pub(crate) async fn show_cluster(&self, admitted: &Admitted) -> Result<Response, Problem> {
        Ok(json(StatusCode::OK, &present::cluster(&self.cluster(&admitted.id(0)).await?)))
    }

    /// Checks that a cluster is there and has what is asked for. It registers nothing: a cluster's agent declares it, since
    /// nobody else can know what it has.
    pub(crate) async fn confirm_cluster(&self, admitted: &mut Admitted) -> Result<Response, Problem> {
        let input = body::form::<ClusterInput>(admitted.written())?.check()?;
        if !mesh_proto::is_key(&input.cluster_name) {
            return Err(Problem::field(
                "cluster_name",
                "is not a valid name",
                "use 1 to 64 letters, digits, `_` and `-`",
            ));
        }
        match self.cluster(&input.cluster_name).await {
            Ok(view) => {
                let has = view.registered.unwrap_or_default();
                let enough = u64::from(has.cpu_milli) >= u64::from(input.cpus) * 1_000
                    && has.memory_bytes >= u64::from(input.memory) * 1_000_000_000;
                if enough {
                    return Ok(empty(StatusCode::NO_CONTENT));
                }
                let detail = format!(
                    "cluster {} has {} thousandths of a CPU and {} bytes of memory",
                    has.cluster_id, has.cpu_milli, has.memory_bytes
                );
                Err(Problem::new(Kind::Conflict, detail, "state what it has, or start its agent with more"))
            }
            Err(problem) if problem.kind == Kind::NotFound => Err(Problem::new(
                Kind::Conflict,
                format!("no agent has declared cluster {}", input.cluster_name),
                "start `cluster-agent` there: it declares what the cluster has",
            )),
            Err(problem) => Err(problem),
        }
    }
}

/// A document with its verdict, or without one as yet.
fn registration(view: &WorkloadView, new: bool) -> Response {
    let status = match (&*view.status, new) {
        ("accepted" | "rejected", true) => StatusCode::CREATED,
        ("accepted" | "rejected", false) => StatusCode::OK,
        _ => StatusCode::ACCEPTED,
    };
    let response = json(status, &present::workload(view));
    with(response, header::LOCATION, &format!("/api/v1/workload/{}@{}/", view.name, view.version))
}
