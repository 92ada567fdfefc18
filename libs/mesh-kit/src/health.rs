//! `grpc.health.v1.Health/List`: the health of every service at once. tonic-health answers `Check` and `Watch` only.

use std::{collections::BTreeMap, sync::Arc};

use axum::{body::Body, extract::Request, response::Response};
use prost::Message as _;
use prost_types::{
    DescriptorProto, FieldDescriptorProto, FileDescriptorSet, MessageOptions, MethodDescriptorProto,
    field_descriptor_proto::{Label, Type},
};
use tonic::{Status, server::UnaryService};
use tonic_health::pb::{HealthCheckResponse, health_check_response::ServingStatus};
use tonic_prost::ProstCodec;

/// Where it is asked.
pub(crate) const PATH: &str = "/grpc.health.v1.Health/List";

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct ListRequest {}

#[derive(Clone, PartialEq, prost::Message)]
struct ListReply {
    #[prost(btree_map = "string, message", tag = "1")]
    statuses: BTreeMap<String, HealthCheckResponse>,
}

/// Says of each service what `Check` says of it: what `/readyz` says of the process.
#[derive(Clone)]
pub(crate) struct List {
    pub(crate) ready: Arc<dyn Fn() -> bool + Send + Sync>,
    pub(crate) names: Arc<[&'static str]>,
}

impl List {
    pub(crate) async fn answer(self, request: Request) -> Response {
        let answered = tonic::server::Grpc::new(ProstCodec::default()).unary(self, request).await;
        answered.map(Body::new)
    }
}

impl UnaryService<ListRequest> for List {
    type Response = ListReply;
    type Future = std::future::Ready<Result<tonic::Response<ListReply>, Status>>;

    fn call(&mut self, _: tonic::Request<ListRequest>) -> Self::Future {
        let status = if (self.ready)() { ServingStatus::Serving } else { ServingStatus::NotServing };
        let names = std::iter::once(&"").chain(self.names.iter());
        let statuses = names.map(|name| ((*name).to_owned(), HealthCheckResponse { status: status.into() })).collect();
        std::future::ready(Ok(tonic::Response::new(ListReply { statuses })))
    }
}

/// What tonic-health says of itself by reflection, with `List`.
///
/// # Errors
/// When tonic-health describes another service than it did.
pub(crate) fn described() -> Result<FileDescriptorSet, prost::DecodeError> {
    const REQUEST: &str = ".grpc.health.v1.HealthListRequest";
    const REPLY: &str = ".grpc.health.v1.HealthListResponse";
    let field = |name: &str, number, label: Label, kind: Type, type_name: &str| FieldDescriptorProto {
        name: Some(name.into()),
        json_name: Some(name.into()),
        number: Some(number),
        label: Some(label.into()),
        r#type: Some(kind.into()),
        type_name: (!type_name.is_empty()).then(|| type_name.to_owned()),
        ..FieldDescriptorProto::default()
    };
    let message = |name: &str, field: Vec<FieldDescriptorProto>, nested_type: Vec<DescriptorProto>| DescriptorProto {
        name: Some(name.into()),
        field,
        nested_type,
        ..DescriptorProto::default()
    };
    let value = ".grpc.health.v1.HealthCheckResponse";
    let mut entry = message(
        "StatusesEntry",
        vec![
            field("key", 1, Label::Optional, Type::String, ""),
            field("value", 2, Label::Optional, Type::Message, value),
        ],
        vec![],
    );
    entry.options = Some(MessageOptions { map_entry: Some(true), ..MessageOptions::default() });
    let statuses = field("statuses", 1, Label::Repeated, Type::Message, &format!("{REPLY}.StatusesEntry"));
    let mut set = FileDescriptorSet::decode(tonic_health::pb::FILE_DESCRIPTOR_SET)?;
    for file in &mut set.file {
        let Some(service) = file.service.iter_mut().find(|service| service.name() == "Health") else { continue };
        if service.method.iter().any(|method| method.name() == "List") {
            continue;
        }
        service.method.push(MethodDescriptorProto {
            name: Some("List".into()),
            input_type: Some(REQUEST.into()),
            output_type: Some(REPLY.into()),
            ..MethodDescriptorProto::default()
        });
        file.message_type.push(message("HealthListRequest", vec![], vec![]));
        file.message_type.push(message("HealthListResponse", vec![statuses.clone()], vec![entry.clone()]));
    }
    Ok(set)
}
