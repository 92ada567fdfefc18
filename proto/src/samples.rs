//! Keys on Zenoh: of samples `continuum/<site>/<node>/<signal>/<id>`, of questions about twins `continuum/twin/<kind>/<id>`.
//! They are written here and nowhere else.

use bytes::Bytes;
use prost::Message as _;

use crate::telemetry::{InstanceSample, Packed, Readings, RouteTraffic};

/// The signal under which an agent sends the samples of all its instances, packed.
pub const PACKED_SIGNAL: &str = "instances";
/// The signal under which readings travel, packed.
pub const READINGS_SIGNAL: &str = "readings";
/// The signal under which a collector shows that it shares the clusters with others; the site is the time from which it
/// does, milliseconds since 1970, and the id its process.
pub const SHARING_SIGNAL: &str = "sharing";
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

/// The readings in a message on Zenoh. `None` if its key is of another signal, or it says of another cluster than its key,
/// or its columns do not fit together: one of another length, a metric or an entity that the pack does not have.
pub fn readings(key: &str, body: &Bytes) -> Option<Readings> {
    let mut tokens = key.rsplit('/');
    let (id, signal) = (tokens.next()?, tokens.next()?);
    if signal != READINGS_SIGNAL {
        return None;
    }
    Readings::decode(body.clone()).ok().filter(|pack| pack.cluster_id == id && pack.fits())
}

impl Readings {
    /// Do the columns fit together: one metric and one time for each value, and every index within its table?
    pub fn fits(&self) -> bool {
        let (entities, metrics) = (self.entities.len(), self.metrics.len());
        let within = |index: &u32, len: usize| usize::try_from(*index).is_ok_and(|index| index < len);
        self.metric.len() == self.values.len()
            && self.after_ms.len() == self.values.len()
            && self.metric.iter().all(|metric| within(metric, metrics))
            && self.metrics.iter().all(|metric| within(&metric.entity, entities))
            && self.probes.iter().all(|probe| within(&probe.entity, entities))
            && self.traffic.iter().all(|route| within(&route.entity, entities) && route.fits())
    }
}

impl RouteTraffic {
    /// Most requests of one.
    pub const REQUESTS_MAX: u64 = 1_000_000_000;
    /// Most different times of one.
    pub const TIMES_MAX: usize = 2_048;

    /// Do its columns fit together, and are its numbers ones that can be?
    fn fits(&self) -> bool {
        let sound = |seconds: &f64| (0.0..f64::INFINITY).contains(seconds);
        let answers = self.answers.iter().fold(0, |sum: u64, more| sum.saturating_add(*more));
        self.seconds.len() == self.answers.len()
            && self.seconds.len() <= Self::TIMES_MAX
            && self.seconds.iter().all(sound)
            && self.requests <= Self::REQUESTS_MAX
            && self.errors.max(answers) <= self.requests
    }
}

/// Does this key expression of the contract name readings?
pub fn is_of_readings(key: &str) -> bool {
    key.split('/').nth(3) == Some(READINGS_SIGNAL)
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

/// The key that answers for one twin; `*` for either asks for several.
pub fn twin_key(kind: &str, id: &str) -> String {
    format!("continuum/twin/{kind}/{id}")
}

/// Kind and id in a key expression of twins; either may be `*`. `None` if it is of something else.
pub fn twin_of_key(key: &str) -> Option<(&str, &str)> {
    let (kind, id) = key.strip_prefix("continuum/twin/")?.split_once('/')?;
    (!kind.is_empty() && !id.is_empty() && !id.contains('/')).then_some((kind, id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::{Entity, Metric, ProbeStatus};

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
    fn readings_come_under_their_cluster_and_with_columns_that_fit() {
        let pack = Readings {
            cluster_id: "c".into(),
            entities: vec![Entity::default()],
            metrics: vec![Metric::default()],
            metric: vec![0, 0],
            after_ms: vec![0, 1],
            values: vec![1.0, 2.0],
            probes: vec![ProbeStatus::default()],
            traffic: vec![RouteTraffic {
                requests: 3,
                errors: 1,
                seconds: vec![0.1, 0.2],
                answers: vec![2, 1],
                ..RouteTraffic::default()
            }],
            ..Readings::default()
        };
        let read = |pack: &Readings| readings("continuum/s/n/readings/c", &pack.encode_to_vec().into());
        assert_eq!(read(&pack), Some(pack.clone()));
        assert_eq!(readings("continuum/s/n/readings/d", &pack.encode_to_vec().into()), None);
        assert_eq!(readings("continuum/s/n/instances/c", &pack.encode_to_vec().into()), None);
        let breaks: [fn(&mut Readings); 13] = [
            |pack| pack.values.truncate(1),
            |pack| pack.after_ms.push(0),
            |pack| pack.metric[1] = 1,
            |pack| pack.metrics[0].entity = 1,
            |pack| pack.probes[0].entity = 9,
            |pack| pack.entities.clear(),
            |pack| pack.traffic[0].entity = 1,
            |pack| pack.traffic[0].errors = 4,
            |pack| pack.traffic[0].answers[0] = u64::MAX,
            |pack| pack.traffic[0].answers.truncate(1),
            |pack| pack.traffic[0].seconds[0] = f64::NAN,
            |pack| pack.traffic[0].seconds[0] = -1.0,
            |pack| pack.traffic[0].requests = RouteTraffic::REQUESTS_MAX + 1,
        ];
        for wrong in breaks {
            let mut pack = pack.clone();
            wrong(&mut pack);
            assert_eq!(read(&pack), None, "{pack:?}");
        }
        assert_eq!(readings("continuum/s/n/readings/c", &Bytes::from_static(b"\xff")), None);
    }

    #[test]
    fn a_key_of_twins_names_kind_and_id_and_is_no_key_of_samples() {
        assert_eq!(twin_of_key(&twin_key("workload", "i")), Some(("workload", "i")));
        assert_eq!(twin_of_key("continuum/twin/*/*"), Some(("*", "*")));
        for other in
            ["continuum/twin/node", "continuum/twin//a", "continuum/twin/a/", "continuum/twin/a/b/c", "twin/a/b"]
        {
            assert_eq!(twin_of_key(other), None, "{other}");
        }
        for answered in crate::contract().services.iter().flat_map(|s| &s.answers) {
            assert!(twin_of_key(answered).is_some(), "{answered}");
        }
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
