//! `l2sm`: calls a multi-domain link-layer network manager over gRPC.

use std::time::Duration;

use mesh_proto::l2sm::{
    AddClusterRequest, CreateNetworkRequest, DeleteNetworkRequest, RemoveClusterRequest,
    l2sm_multi_domain_client::L2smMultiDomainClient,
};
use serde::de::DeserializeOwned;
use tonic::transport::Endpoint;

use super::{Adaptor, Call, Error};

const LIMIT: Duration = Duration::from_secs(30);

pub(super) struct L2sm;

fn read<M: DeserializeOwned>(call: &Call<'_>) -> Result<M, Error> {
    serde_json::from_value(snake(call.body)).map_err(|error| Error::Invalid(format!("{}: {error}", call.operation)))
}

/// The generated types have field names in snake case.
fn snake(value: &serde_json::Value) -> serde_json::Value {
    match value {
        serde_json::Value::Object(fields) => {
            let name = |name: &String| if name == "apiEndpoint" { "api_endpoint".to_owned() } else { name.clone() };
            serde_json::Value::Object(fields.iter().map(|(key, value)| (name(key), snake(value))).collect())
        }
        other => other.clone(),
    }
}

#[tonic::async_trait]
impl Adaptor for L2sm {
    fn name(&self) -> &'static str {
        "l2sm"
    }

    async fn call(&self, call: &Call<'_>) -> Result<String, Error> {
        let endpoint = Endpoint::from_shared(call.target.to_owned())
            .map_err(|error| Error::Invalid(format!("{:?} is not an address: {error}", call.target)))?;
        let channel = endpoint.connect_timeout(LIMIT).timeout(LIMIT).connect().await;
        let channel = channel.map_err(|error| Error::Unreachable(format!("{}: {error}", call.target)))?;
        let mut client = L2smMultiDomainClient::new(channel);
        let reply = match call.operation {
            "CreateNetwork" => client.create_network(read::<CreateNetworkRequest>(call)?).await,
            "DeleteNetwork" => client.delete_network(read::<DeleteNetworkRequest>(call)?).await,
            "AddCluster" => client.add_cluster(read::<AddClusterRequest>(call)?).await,
            "RemoveCluster" => client.remove_cluster(read::<RemoveClusterRequest>(call)?).await,
            other => return Err(Error::Invalid(format!("no operation {other:?}"))),
        };
        match reply {
            Ok(reply) => Ok(reply.into_inner().message),
            Err(status) => Err(Error::Refused(format!("{:?}: {}", status.code(), status.message()))),
        }
    }
}
