//! Synchronous questions about documents and instances.

use mesh_kit::View;
use mesh_proto::query::{
    GetRequest, InstanceView, ListRequest, WorkloadList, WorkloadView, workload_queries_server::WorkloadQueries,
};
use tonic::{Request, Response, Status};

use crate::view::Catalogue;

/// Answers `WorkloadQueries` from the view.
pub(crate) struct Api {
    pub(crate) view: View<Catalogue>,
}

#[tonic::async_trait]
impl WorkloadQueries for Api {
    async fn get_workload(&self, request: Request<GetRequest>) -> Result<Response<WorkloadView>, Status> {
        Ok(Response::new(self.view.read(|v| v.workload(request.get_ref()))?))
    }

    async fn get_instance(&self, request: Request<GetRequest>) -> Result<Response<InstanceView>, Status> {
        Ok(Response::new(self.view.read(|v| v.instance(request.get_ref()))?))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<WorkloadList>, Status> {
        Ok(Response::new(self.view.read(|v| v.list(request.get_ref()))?))
    }
}
