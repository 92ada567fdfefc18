//! Library `linux`: layer-2 segments between network namespaces of this machine.

use std::net::Ipv4Addr;

use mesh_proto::{Refusal, is_key};
use serde::{Deserialize, Serialize};

use super::{
    catalogue::{Call, Library, Outcome, Tree, tree},
    document::{Expectation, NetworkIntent, refusal},
};

/// A segment: two endpoints on one Ethernet, each behind a bridge of its node, the bridges joined by VXLAN.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Its name; fixes the names of its interfaces.
    pub name: String,
    /// VXLAN network identifier, 1 to 2²⁴ − 1.
    pub vni: u32,
    /// Namespaces that stand for the nodes.
    pub nodes: [String; 2],
    /// Namespaces that are joined.
    pub endpoints: [String; 2],
    /// Their addresses, `10.9.0.1/24`.
    pub addresses: [String; 2],
}

impl Segment {
    /// An endpoint's address and prefix length.
    pub fn address(&self, end: usize) -> Option<(Ipv4Addr, u8)> {
        let (address, length) = self.addresses.get(end)?.split_once('/')?;
        let length: u8 = length.parse().ok()?;
        (1..=30).contains(&length).then_some((address.parse().ok()?, length))
    }

    fn check(self) -> Result<Self, Refusal> {
        for (attribute, value) in [
            ("name", &self.name),
            ("nodeSrc", &self.nodes[0]),
            ("nodeDst", &self.nodes[1]),
            ("endpointSrc", &self.endpoints[0]),
            ("endpointDst", &self.endpoints[1]),
        ] {
            if !is_key(value) {
                return Err(refusal(
                    format!("{attribute} {value:?} is not a name"),
                    "use 1 to 64 letters, digits, `_` and `-`",
                ));
            }
        }
        if self.nodes[0] == self.nodes[1] || self.endpoints[0] == self.endpoints[1] {
            return Err(refusal("both ends of the segment are the same", "name two nodes and two endpoints"));
        }
        let same = |(a, n): (Ipv4Addr, u8), (b, m): (Ipv4Addr, u8)| {
            n == m && a != b && (a.to_bits() ^ b.to_bits()).leading_zeros() >= u32::from(n)
        };
        if !self.address(0).zip(self.address(1)).is_some_and(|(a, b)| same(a, b)) {
            let reason = format!(
                "ipSrc {:?} and ipDst {:?} are no two addresses of one subnet",
                self.addresses[0], self.addresses[1]
            );
            return Err(refusal(reason, "write them as 10.9.0.1/24 and 10.9.0.2/24"));
        }
        Ok(self)
    }
}

pub(super) struct Linux;

impl Library for Linux {
    fn name(&self) -> &'static str {
        "linux"
    }

    fn tree(&self) -> Tree {
        tree("cloud_continuum", "DELIVER", &[("LINUX_L2_SEGMENT", "linux")])
    }

    fn translate(&self, _: &NetworkIntent, expectations: &[&Expectation]) -> Result<Outcome, Refusal> {
        let call = |expectation: &&Expectation| -> Result<Call, Refusal> {
            let text = |attribute: &str| expectation.object(attribute).map(ToOwned::to_owned);
            let vni = match expectation.object("vni")?.trim().parse() {
                Ok(vni @ 1..=0x00ff_ffff) => vni,
                _ => {
                    return Err(refusal(
                        format!("invalid vni {:?}", expectation.object("vni")?),
                        "use a number from 1 to 16777215",
                    ));
                }
            };
            let segment = Segment {
                name: expectation.object_instance.clone(),
                vni,
                nodes: [text("nodeSrc")?, text("nodeDst")?],
                endpoints: [text("endpointSrc")?, text("endpointDst")?],
                addresses: [text("ipSrc")?, text("ipDst")?],
            };
            let segment = segment.check()?;
            let body = serde_json::to_value(&segment).unwrap_or_default();
            Ok(Call {
                expectation_id: expectation.id.clone(),
                executioner: "linux".into(),
                operation: "create segment".into(),
                target: format!("{} - {}", segment.endpoints[0], segment.endpoints[1]),
                body: body.clone(),
                undo: Some(("delete segment".into(), body)),
            })
        };
        Ok(Outcome::Calls(expectations.iter().map(call).collect::<Result<_, _>>()?))
    }
}
