//! Synchronous questions about documents, archives and instances.

use std::sync::Arc;

use mesh_kit::Mesh;
use mesh_proto::{
    json,
    query::{GetRequest, ListRequest},
    workload::{
        ChartReply, CheckChartRequest, CheckReport, InstanceView, ManifestsReply, WorkloadDocument, WorkloadList,
        WorkloadView, workload_queries_server::WorkloadQueries,
    },
};
use prost::Message as _;
use tonic::{Request, Response, Status};

use chart::ARCHIVE_BYTES_MAX;

use crate::{
    domain::CHART,
    shell::{
        checks::{Checks, Unrendered, archive_of},
        store::Shown,
    },
};

/// Answers `WorkloadQueries` from the view or its documents, and from the archives.
pub(crate) struct Api {
    pub(crate) mesh: Mesh,
    pub(crate) shown: Shown,
    pub(crate) checks: Arc<Checks>,
}

impl Api {
    async fn document(&self, owner: &str, workload: &str) -> Result<WorkloadView, Status> {
        let request = GetRequest { owner: owner.to_owned(), id: workload.to_owned() };
        Ok(self.shown.workload(&request).await?)
    }

    async fn archive(&self, view: &WorkloadView) -> Result<bytes::Bytes, Status> {
        let of = format!("{}@{}", view.name, view.version);
        if view.sha256.is_empty() {
            return Err(Status::failed_precondition(format!("{of} has no archive; attach one to it")));
        }
        let found = archive_of(&self.mesh, &view.owner, &view.sha256).await;
        let found = found.map_err(|error| Status::unavailable(format!("read the archive of {of}: {error:#}")))?;
        let missing = || Status::not_found(format!("the archive of {of} is not stored; upload it"));
        found.ok_or_else(missing)
    }
}

#[tonic::async_trait]
impl WorkloadQueries for Api {
    async fn check_chart(&self, request: Request<CheckChartRequest>) -> Result<Response<CheckReport>, Status> {
        let CheckChartRequest { archive, document } = request.into_inner();
        if archive.len() > ARCHIVE_BYTES_MAX {
            let text = format!("the archive has {} bytes; at most {ARCHIVE_BYTES_MAX} are checked", archive.len());
            return Err(Status::invalid_argument(text));
        }
        let mut report = self.checks.check(&archive, &document.unwrap_or_default()).await;
        report.at = Some(self.mesh.now());
        Ok(Response::new(report))
    }

    async fn manifests(&self, request: Request<GetRequest>) -> Result<Response<ManifestsReply>, Status> {
        let instance = self.shown.instance(request.get_ref()).await?;
        let view = self.document(&instance.owner, &instance.workload).await?;
        let document = view.document.clone().unwrap_or_default();
        if document.kind != CHART {
            let yaml = as_yaml(&document);
            return Ok(Response::new(ManifestsReply { yaml, renderer: String::new() }));
        }
        let archive = self.archive(&view).await?;
        let release = instance.release.unwrap_or_default();
        let rendered = self.checks.render(&archive, &document, &release, &instance.instance_id).await;
        let rendered = rendered.map_err(|error| match error {
            Unrendered::Refused(_) | Unrendered::Away(_) => Status::failed_precondition(error.to_string()),
        })?;
        Ok(Response::new(ManifestsReply { yaml: rendered.yaml, renderer: rendered.renderer }))
    }

    async fn chart(&self, request: Request<GetRequest>) -> Result<Response<ChartReply>, Status> {
        let request = request.into_inner();
        let view = self.document(&request.owner, &request.id).await?;
        let archive = self.archive(&view).await?;
        Ok(Response::new(ChartReply { sha256: view.sha256, archive }))
    }

    async fn get_workload(&self, request: Request<GetRequest>) -> Result<Response<WorkloadView>, Status> {
        Ok(Response::new(self.shown.workload(request.get_ref()).await?))
    }

    async fn get_instance(&self, request: Request<GetRequest>) -> Result<Response<InstanceView>, Status> {
        Ok(Response::new(self.shown.instance(request.get_ref()).await?))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<WorkloadList>, Status> {
        Ok(Response::new(self.shown.list(request.get_ref()).await?))
    }
}

/// What an agent is told of a process: its document.
fn as_yaml(document: &WorkloadDocument) -> String {
    let value = json::to_value("continuum.workload.v1.WorkloadDocument", &document.encode_to_vec());
    value.ok().and_then(|value| serde_saphyr::to_string(&value).ok()).unwrap_or_default()
}
