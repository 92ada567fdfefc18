//! Keys of samples on Zenoh: `continuum/<site>/<node>/<signal>/<id>`. They are written here and nowhere else.

use bytes::Bytes;
use prost::Message as _;

use crate::telemetry::{InstanceSample, Packed};

/// The signal under which an agent sends the samples of all its instances, packed.
pub const PACKED_SIGNAL: &str = "instances";
/// The signal under which one sample of one instance travels.
const INSTANCE_SIGNAL: &str = "instance";

/// The samples of instances in a message on Zenoh: of a pack, or the one of one instance. `None` if it is neither, or says
/// of another cluster or instance than its key.
pub fn instance_samples(key: &str, body: &Bytes) -> Option<Vec<InstanceSample>> {
    let mut tokens = key.rsplit('/');
    let (id, signal) = (tokens.next()?, tokens.next()?);
    match signal {
        PACKED_SIGNAL => {
            let pack = Packed::decode(body.clone()).ok().filter(|pack| pack.cluster_id == id)?;
            pack.samples.iter().all(|sample| sample.cluster_id == id).then_some(pack.samples)
        }
        INSTANCE_SIGNAL => {
            let sample = InstanceSample::decode(body.clone()).ok().filter(|sample| sample.instance_id == id)?;
            Some(vec![sample])
        }
        _ => None,
    }
}

/// Does this key expression of the contract name samples of instances?
pub fn is_of_instances(key: &str) -> bool {
    matches!(key.split('/').nth(3), Some(PACKED_SIGNAL | INSTANCE_SIGNAL))
}

/// The key of one sample or liveness token.
pub fn sample_key(site: &str, node: &str, signal: &str, id: &str) -> String {
    format!("continuum/{site}/{node}/{signal}/{id}")
}

/// The keys of one signal, of every site and node.
pub fn sample_keys(signal: &str) -> String {
    sample_key("*", "*", signal, "*")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_names_site_node_signal_and_id() {
        assert_eq!(sample_key("s", "n", "alive", "c"), "continuum/s/n/alive/c");
        assert_eq!(sample_keys("alive"), "continuum/*/*/alive/*");
    }

    #[test]
    fn samples_come_alone_or_packed_and_never_under_a_foreign_key() {
        let sample = |instance: &str, cluster: &str| InstanceSample {
            instance_id: instance.into(),
            cluster_id: cluster.into(),
            ..InstanceSample::default()
        };
        let one: Bytes = sample("i", "c").encode_to_vec().into();
        assert_eq!(instance_samples("continuum/s/n/instance/i", &one), Some(vec![sample("i", "c")]));
        assert_eq!(instance_samples("continuum/s/n/instance/j", &one), None);
        let pack = |samples| Bytes::from(Packed { cluster_id: "c".into(), samples }.encode_to_vec());
        let two = vec![sample("i", "c"), sample("j", "c")];
        assert_eq!(instance_samples("continuum/s/n/instances/c", &pack(two.clone())), Some(two.clone()));
        assert_eq!(instance_samples("continuum/s/n/instances/d", &pack(two)), None);
        assert_eq!(instance_samples("continuum/s/n/instances/c", &pack(vec![sample("i", "d")])), None);
        assert_eq!(instance_samples("continuum/s/n/cluster/c", &one), None);
        assert_eq!(instance_samples("instance", &one), None);
        assert_eq!(instance_samples("continuum/s/n/instances/c", &Bytes::from_static(b"\xff")), None);
    }

    #[test]
    fn every_key_of_the_contract_is_one_of_a_signal() {
        let contract = crate::contract();
        let keys: Vec<&String> =
            contract.services.iter().flat_map(|s| s.samples_in.iter().chain(&s.samples_out)).collect();
        assert!(!keys.is_empty());
        for key in keys {
            assert_eq!(key.split('/').count(), 5, "{key}");
            assert!(key.starts_with("continuum/"), "{key}");
        }
    }
}
