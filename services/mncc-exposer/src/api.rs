//! What others may ask: the network as it is measured, and network intents.

use std::sync::Arc;

use mesh_core::query;
use mesh_kit::View;
use mesh_proto::{
    network::{
        NetworkIntentList, NetworkIntentView, NetworkMapReply, NetworkMapRequest, TranslateReply, TranslateRequest,
        network_queries_server::NetworkQueries,
    },
    query::{GetRequest, ListRequest},
};
use tonic::{Request, Response, Status};

use crate::{
    domain::view::Networks,
    domain::{
        costs::Costs,
        intents::{Catalogue, parse},
        statements::statements,
    },
};

/// The exposer's answers.
pub(crate) struct Api {
    pub(crate) costs: View<Costs>,
    pub(crate) networks: View<Networks>,
    pub(crate) catalogue: Arc<Catalogue>,
    /// Where the ALTO directory is.
    pub(crate) url: String,
}

#[tonic::async_trait]
impl NetworkQueries for Api {
    async fn map(&self, _: Request<NetworkMapRequest>) -> Result<Response<NetworkMapReply>, Status> {
        let reply = self.costs.read(|costs| {
            let counts = costs.counts();
            NetworkMapReply {
                links: costs.links(),
                version: costs.version(),
                alto_url: self.url.clone(),
                metrics: costs.metrics().cloned(),
                samples_accepted: counts.accepted,
                samples_refused: counts.invalid + counts.strangers + counts.untimely,
            }
        });
        Ok(Response::new(reply))
    }

    async fn get_intent(&self, request: Request<GetRequest>) -> Result<Response<NetworkIntentView>, Status> {
        let GetRequest { owner: asked, id } = request.into_inner();
        let found = self.networks.read(|networks| networks.get(query::owner(&asked), &id).cloned());
        let missing =
            || query::Error::not_found(format!("network intent {id}"), "list them with `continuum network list`");
        Ok(Response::new(found.ok_or_else(missing)?))
    }

    async fn list_intents(&self, request: Request<ListRequest>) -> Result<Response<NetworkIntentList>, Status> {
        let request = request.into_inner();
        query::narrowed_by(&request, &["owner"])?;
        let page = query::Page::new(request.page_size, &request.page_token)?;
        let (intents, next_page_token) =
            self.networks.read(|networks| networks.list(query::owner(&request.owner), &page));
        Ok(Response::new(NetworkIntentList { intents, next_page_token }))
    }

    async fn translate(&self, request: Request<TranslateRequest>) -> Result<Response<TranslateReply>, Status> {
        let text = request.into_inner().intent;
        let plan = parse(&text).and_then(|intent| self.catalogue.plan(&intent));
        let plan = plan.map_err(|refusal| query::Error::invalid(refusal.reason, refusal.hint))?;
        let calls = plan.told();
        let statements = statements(calls.iter().map(|call| call.executioner.as_str()));
        Ok(Response::new(TranslateReply { calls, libraries: plan.libraries, statements }))
    }
}
