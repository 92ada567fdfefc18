//! Library `l2vpn`: layer-2 VPNs, whoever provides them. Here that is a TeraFlowSDN controller.

use mesh_proto::Refusal;

use super::{
    catalogue::{Library, Outcome, Tree, tree},
    document::{Expectation, NetworkIntent},
};

pub(super) struct L2Vpn;

impl Library for L2Vpn {
    fn name(&self) -> &'static str {
        "l2vpn"
    }

    fn tree(&self) -> Tree {
        tree("cloud_continuum", "DELIVER", &[("L2VPN", "l2vpn")])
    }

    fn translate(&self, _: &NetworkIntent, expectations: &[&Expectation]) -> Result<Outcome, Refusal> {
        let rewrite = |e: &&Expectation| Expectation { object_type: "L2VPN_TFS".into(), ..(*e).clone() };
        Ok(Outcome::Rewritten(expectations.iter().map(rewrite).collect()))
    }
}
