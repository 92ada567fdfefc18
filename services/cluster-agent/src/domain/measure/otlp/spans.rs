//! Spans of a workload, before they are forwarded.

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value},
    trace::v1::Span,
};

use super::{OWN, Refused, claimed};

/// Whose spans they are; each attribute of the mesh that is put to them.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Instance.
    pub instance_id: String,
    /// Its replica.
    pub replica: u32,
    /// Its owner.
    pub owner: String,
    /// Its cluster.
    pub cluster_id: String,
}

fn attribute(name: &str, value: any_value::Value) -> KeyValue {
    KeyValue { key: format!("{OWN}{name}"), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

/// Puts the mesh's attributes to the resource of all spans, in place of any that the workload sent under their names.
/// Returns how many spans are left, and what was taken out.
pub fn mark(request: &mut ExportTraceServiceRequest, identity: &Identity) -> (u64, Refused) {
    let (mut left, mut refused) = (0, Refused::default());
    let text = |text: &str| any_value::Value::StringValue(text.to_owned());
    request.resource_spans.retain_mut(|of_resource| {
        let resource = of_resource.resource.get_or_insert_default();
        let spans = || of_resource.scope_spans.iter().map(|scope| scope.spans.len() as u64).sum();
        if let Err(forged) = claimed(&resource.attributes, &identity.instance_id) {
            refused.add(spans(), forged);
            return false;
        }
        resource.attributes.retain(|attribute| !attribute.key.starts_with(OWN));
        resource.attributes.extend([
            attribute("instance.id", text(&identity.instance_id)),
            attribute("replica", any_value::Value::IntValue(identity.replica.into())),
            attribute("owner", text(&identity.owner)),
            attribute("cluster.id", text(&identity.cluster_id)),
        ]);
        for scope in &mut of_resource.scope_spans {
            scope.spans.retain(|span| {
                let sound = is_sound(span);
                if !sound {
                    refused.add(1, "a span lacks a trace id of 16 bytes or a span id of 8".into());
                }
                sound
            });
            left += scope.spans.len() as u64;
        }
        true
    });
    (left, refused)
}

fn is_sound(span: &Span) -> bool {
    let is_id = |id: &[u8], bytes: usize| id.len() == bytes && id.iter().any(|byte| *byte != 0);
    is_id(&span.trace_id, 16) && is_id(&span.span_id, 8)
}
