//! What others may ask: the policy in use with its card, its advice, its rounds.

use mesh_core::query::{self, Error, Page};
use mesh_kit::View;
use mesh_proto::learning::{
    AdviceList, AdviceRequest, PolicyReply, PolicyRequest, RoundList, RoundsRequest,
    learning_queries_server::LearningQueries,
};
use tonic::{Request, Response, Status};

use crate::domain::{live::Advisor, policy::Current};

/// Rounds in an answer when the question does not say how many, and at most.
const ROUNDS: usize = 20;
const ROUNDS_MAX: usize = 100;

/// The learner's answers.
pub(crate) struct Api {
    pub(crate) view: View<Advisor>,
    pub(crate) current: Current,
}

#[tonic::async_trait]
impl LearningQueries for Api {
    async fn policy(&self, _: Request<PolicyRequest>) -> Result<Response<PolicyReply>, Status> {
        let policy = self.current.get();
        Ok(Response::new(PolicyReply { card: Some(policy.card.clone()), file: policy.to_file().into() }))
    }

    async fn advice(&self, request: Request<AdviceRequest>) -> Result<Response<AdviceList>, Status> {
        let AdviceRequest { owner, instance_id, page_size, page_token } = request.into_inner();
        let owner = query::owner(&owner);
        let page = Page::new(page_size, &page_token)?;
        let ((advice, next_page_token), totals) =
            self.view.read(|view| (view.advice(owner, &instance_id, &page), view.totals()));
        if advice.is_empty() && !instance_id.is_empty() {
            let hint = "no plan was made for it since this policy advises; check the instance id and its owner";
            return Err(Error::not_found(format!("advice about instance {owner}/{instance_id}"), hint).into());
        }
        Ok(Response::new(AdviceList {
            advice,
            next_page_token,
            regret_total: totals.regret,
            advised_total: totals.advised,
            agreed_total: totals.agreed,
        }))
    }

    async fn rounds(&self, request: Request<RoundsRequest>) -> Result<Response<RoundList>, Status> {
        let size = match request.into_inner().limit as usize {
            0 => ROUNDS,
            asked => asked.min(ROUNDS_MAX),
        };
        Ok(Response::new(RoundList { rounds: self.view.read(|view| view.rounds(size)) }))
    }
}
