//! Library `l2sm`: link-layer networks across Kubernetes clusters.
//!
//! The calls that the source made are lost; these are ours, from the operations and inputs it lists: a cluster is added
//! with what it takes to manage it, then the network is made over the clusters that name it. Names are normalised to
//! what Kubernetes allows, `_` to `-`, which is also how two spellings of one network meet.

use mesh_proto::Refusal;
use serde_json::json;

use super::{
    catalogue::{Call, Library, Outcome, Tree, tree},
    document::{Expectation, NetworkIntent, refusal},
};

pub(super) struct L2sm;

impl Library for L2sm {
    fn name(&self) -> &'static str {
        "l2sm"
    }

    fn tree(&self) -> Tree {
        tree("cloud_continuum", "DELIVER", &[("L2SM_NETWORK", "l2sm"), ("L2SM_NEW_CLUSTER", "l2sm")])
    }

    fn translate(&self, _: &NetworkIntent, expectations: &[&Expectation]) -> Result<Outcome, Refusal> {
        let mut calls = vec![];
        let mut joined: Vec<(String, String)> = vec![];
        for expectation in expectations.iter().filter(|e| e.object_type == "L2SM_NEW_CLUSTER") {
            let cluster = name(expectation.object("name")?)?;
            let network = name(expectation.context("k8s_l2_network")?)?;
            let api = expectation.object("api_key")?;
            if !api.starts_with("https://") {
                return Err(refusal(
                    format!("api_key {api:?} is not an https URL"),
                    "give the URL of the Kubernetes API",
                ));
            }
            let token = expectation.object.get("bearer_token").or_else(|| expectation.object.get("beare_token"));
            let token = token.filter(|token| !token.is_empty());
            let token = token.ok_or_else(|| {
                refusal(
                    format!("expectation {:?} has no bearer_token", expectation.id),
                    "add the object context bearer_token",
                )
            })?;
            calls.push(Call {
                expectation_id: expectation.id.clone(),
                executioner: "l2sm".into(),
                operation: "AddCluster".into(),
                target: expectation.context("url")?.to_owned(),
                body: json!({
                    "overlay": network,
                    "cluster": {"name": cluster, "apiEndpoint": api, "bearer_token": token},
                }),
                undo: Some(("RemoveCluster".into(), json!({"overlay": network, "cluster": cluster}))),
            });
            joined.push((network, cluster));
        }
        for expectation in expectations.iter().filter(|e| e.object_type == "L2SM_NETWORK") {
            let network = name(expectation.object("name")?)?;
            let clusters: Vec<&String> = joined.iter().filter(|(of, _)| *of == network).map(|(_, c)| c).collect();
            calls.push(Call {
                expectation_id: expectation.id.clone(),
                executioner: "l2sm".into(),
                operation: "CreateNetwork".into(),
                target: expectation.context("url")?.to_owned(),
                body: json!({
                    "name": network,
                    "provider": {"name": expectation.object("providerName")?, "domain": expectation.object("domain")?},
                    "clusters": clusters,
                }),
                undo: Some(("DeleteNetwork".into(), json!({"name": network, "clusters": clusters}))),
            });
        }
        Ok(Outcome::Calls(calls))
    }
}

/// A name as Kubernetes allows it (RFC 1123 label).
fn name(text: &str) -> Result<String, Refusal> {
    let name = text.to_ascii_lowercase().replace('_', "-");
    let inside = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let legal =
        (1..=63).contains(&name.len()) && name.bytes().all(inside) && !name.starts_with('-') && !name.ends_with('-');
    if legal {
        Ok(name)
    } else {
        Err(refusal(format!("{text:?} is not a name that Kubernetes allows"), "use letters, digits and `-`"))
    }
}
