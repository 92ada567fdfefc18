//! The dry run: what the verdict would be.

use mesh_proto::query::{CheckReply, CheckRequest, validator_queries_server::ValidatorQueries};
use tonic::{Request, Response, Status};

use crate::content;

/// Answers `ValidatorQueries` with the same checks that verdicts are made of.
pub(crate) struct Api;

#[tonic::async_trait]
impl ValidatorQueries for Api {
    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<CheckReply>, Status> {
        let Some(intent) = request.into_inner().intent else {
            return Err(Status::invalid_argument("the request holds no intent; put the document under `intent`"));
        };
        Ok(Response::new(CheckReply { problems: content::check(&intent) }))
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::intent::Intent;

    use super::*;

    #[tokio::test]
    async fn a_dry_run_finds_what_the_verdict_would() {
        let intent = Intent { user_label: "DeliverComputingWorklod".into(), ..Default::default() };
        let request = CheckRequest { intent: Some(intent.clone()) };
        let reply = Api.check(Request::new(request)).await.unwrap().into_inner();
        assert_eq!(reply.problems, content::check(&intent));
        assert!(!reply.problems.is_empty());
    }

    #[tokio::test]
    async fn a_dry_run_of_nothing_says_what_to_send() {
        let status = Api.check(Request::new(CheckRequest::default())).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        assert!(status.message().contains("`intent`"));
    }
}
