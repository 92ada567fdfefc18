//! Library `nemo`: the vocabulary of the cloud continuum, above technologies.

use mesh_proto::Refusal;

use super::{
    catalogue::{Library, Outcome, Tree, tree},
    document::{Expectation, NetworkIntent},
};

pub(super) struct Nemo;

impl Library for Nemo {
    fn name(&self) -> &'static str {
        "nemo"
    }

    fn tree(&self) -> Tree {
        let leaves = [
            ("K8S_L2_NETWORK", "nemo"),
            ("5G_NETWORK_SLICE", "nemo"),
            ("K8S_CLUSTER_CONFIG", "nemo"),
            ("L2_VPN", "l2vpn"),
        ];
        tree("cloud_continuum", "DELIVER", &leaves)
    }

    fn translate(&self, _: &NetworkIntent, expectations: &[&Expectation]) -> Result<Outcome, Refusal> {
        let rewrite = |expectation: &&Expectation| {
            let mut less = (*expectation).clone();
            let (verb, object_type) = match less.object_type.as_str() {
                "K8S_L2_NETWORK" => ("DELIVER", "L2SM_NETWORK"),
                "K8S_CLUSTER_CONFIG" => ("DELIVER", "L2SM_NEW_CLUSTER"),
                _ => ("CREATE", "5G_SLICE_FLOW"),
            };
            (less.verb, less.object_type) = (verb.into(), object_type.into());
            less
        };
        Ok(Outcome::Rewritten(expectations.iter().map(rewrite).collect()))
    }
}
