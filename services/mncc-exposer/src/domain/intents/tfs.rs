//! Library `tfs_controller`: L2VPN services of ETSI TeraFlowSDN.
//!
//! Ours where the source is silent: `circuit_id` is the VLAN id as text; `service_uuid` is the object instance, so that
//! two intents are two services.

use mesh_proto::Refusal;
use serde_json::{Value, json};

use super::{
    catalogue::{Call, Library, Outcome, Tree, tree},
    document::{Expectation, NetworkIntent, decimal, refusal},
};

/// Prefix of endpoint names at the controller.
const ENDPOINT_PREFIX: &str = "0/0/1-";
/// Context of services, unless the intent names one.
const CONTEXT_UUID: &str = "admin";

pub(super) struct TfsController;

impl Library for TfsController {
    fn name(&self) -> &'static str {
        "tfs_controller"
    }

    fn tree(&self) -> Tree {
        tree("cloud_continuum", "DELIVER", &[("L2VPN_TFS", "tfs_controller")])
    }

    fn translate(&self, _: &NetworkIntent, expectations: &[&Expectation]) -> Result<Outcome, Refusal> {
        let mut calls = vec![];
        for expectation in expectations {
            let descriptor = descriptor(expectation)?;
            let call = |executioner: &str, operation: &str, target: &str| Call {
                expectation_id: expectation.id.clone(),
                executioner: executioner.into(),
                operation: operation.into(),
                target: target.into(),
                body: descriptor.clone(),
                undo: None,
            };
            // Two adaptors for one translation: the print of it first.
            calls.push(call("sys_out", "print", ""));
            calls.push(call("tfs_controller", "create service", expectation.context("url")?));
        }
        Ok(Outcome::Calls(calls))
    }
}

/// The service descriptor of an expectation.
fn descriptor(expectation: &Expectation) -> Result<Value, Refusal> {
    let vlan: u16 = match expectation.object("vlanId")?.trim().parse() {
        Ok(vlan @ 1..=4094) => vlan,
        _ => {
            let found = expectation.object("vlanId")?;
            return Err(refusal(format!("vlanId {found:?} is not a VLAN"), "use a number from 1 to 4094"));
        }
    };
    let target = |name: &str| -> Result<String, Refusal> {
        let text = expectation.targets.get(name).map_or("", String::as_str);
        match decimal(text) {
            Some(value) if value > 0.0 => Ok(format!("{value:?}")),
            _ => Err(refusal(format!("target {name} {text:?} is not a positive number"), "write it as 10.0")),
        }
    };
    let (bandwidth, latency) = (target("bandwidth")?, target("latency")?);
    let name = |attribute: &str, default: &str| {
        expectation.object.get(attribute).cloned().unwrap_or_else(|| default.to_owned())
    };
    let (context, service) = (name("contextUuid", CONTEXT_UUID), name("serviceUuid", &expectation.object_instance));
    if service.is_empty() {
        return Err(refusal("the service has no name", "give the expectation an objectInstance"));
    }
    let (node_src, node_dst) = (expectation.object("nodeSrc")?, expectation.object("nodeDst")?);
    let end = |attribute: &str| expectation.object(attribute).map(|endpoint| format!("{ENDPOINT_PREFIX}{endpoint}"));
    let (end_src, end_dst) = (end("endpointSrc")?, end("endpointDst")?);
    let ni_name = expectation.object("niName")?;
    let endpoint =
        |node: &str, end: &str| json!({"device_id": {"device_uuid": {"uuid": node}}, "endpoint_uuid": {"uuid": end}});
    let constraint = |kind: &str, value: &str| json!({"custom": {"constraint_type": kind, "constraint_value": value}});
    let rule = |key: &str, value: Value| json!({"action": 1, "custom": {"resource_key": key, "resource_value": value}});
    let settings = |remote: &str| {
        json!({
            "sub_interface_index": 0, "ni_name": ni_name, "vlan_id": vlan,
            "circuit_id": vlan.to_string(), "remote_router": remote,
        })
    };
    Ok(json!({"services": [{
        "service_id": {"context_id": {"context_uuid": {"uuid": context}}, "service_uuid": {"uuid": service}},
        "service_type": 2,
        "service_status": {"service_status": 1},
        "service_endpoint_ids": [endpoint(node_src, &end_src), endpoint(node_dst, &end_dst)],
        "service_constraints": [constraint("bandwidth[gbps]", &bandwidth), constraint("latency[ms]", &latency)],
        "service_config": {"config_rules": [
            rule("/settings", json!({})),
            rule(&format!("/device[{node_src}]/endpoint[{end_src}]/settings"), settings(node_dst)),
            rule(&format!("/device[{node_dst}]/endpoint[{end_dst}]/settings"), settings(node_src)),
        ]},
    }]}))
}
