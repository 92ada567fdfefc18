//! Where exposed workloads are: folded from what is wanted, where it runs, and where clusters are.
//!
//! Only instances whose document exposes a port are kept, so that memory grows with those and not with all.

use std::collections::BTreeMap;

use mesh_core::{Derived, Key, Projector, Stored};
use mesh_proto::{
    EventSet as _,
    cluster::ClusterRegistered,
    deciders::stream_workload::Event,
    workload::{Expose, InstancePhase, WorkloadDocument},
};
use prost::Message as _;

/// Exposed instances at most. More get no route, and a warning names them.
pub const ROUTES_MAX: usize = 100_000;

/// The way to one exposed instance.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// Whose it is.
    pub owner: String,
    /// How its document exposes it.
    pub expose: Expose,
    /// `host:port`, or the reason why there is none now.
    pub upstream: Result<String, String>,
    /// Cluster that it leads to; empty if none is known.
    pub cluster: String,
}

/// All of them, by owner and instance.
#[derive(Debug, Default)]
pub struct Routes {
    exposed: BTreeMap<(String, String), Exposed>,
    /// Host of each cluster, and the port of its agent, which no workload may expose.
    hosts: BTreeMap<String, (String, Option<u16>)>,
    unrouted: u64,
}

#[derive(Debug)]
struct Exposed {
    expose: Expose,
    cluster: String,
    phase: InstancePhase,
}

impl Routes {
    /// The way to an instance; `None` if it is not exposed.
    pub fn find(&self, owner: &str, instance: &str) -> Option<Route> {
        let found = self.exposed.get(&(owner.to_owned(), instance.to_owned()))?;
        let runs = matches!(found.phase, InstancePhase::Running | InstancePhase::Restarting | InstancePhase::Starting);
        let upstream = match self.hosts.get(&found.cluster) {
            _ if !runs => Err(format!("it is not running: it is {}", super::present::phase(found.phase))),
            None => Err(format!("its cluster {:?} has not announced its address", found.cluster)),
            Some((_, agent)) if agent.map(u32::from) == Some(found.expose.port) => {
                Err("the port that its document exposes is the agent's".to_owned())
            }
            Some((host, _)) => Ok(format!("{host}:{}", found.expose.port)),
        };
        let (expose, cluster) = (found.expose.clone(), found.cluster.clone());
        Some(Route { owner: owner.to_owned(), expose, upstream, cluster })
    }

    /// How often an exposed instance got no route, because [`ROUTES_MAX`] others had one.
    pub fn unrouted(&self) -> u64 {
        self.unrouted
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.exposed.len()
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.exposed.is_empty()
    }

    fn observe(&mut self, key: &Key, event: &Event) {
        let key = (key.token(0).to_owned(), key.token(1).to_owned());
        match event {
            Event::InstanceWanted(wanted) if wanted.replicas == 0 => {
                self.exposed.remove(&key);
            }
            Event::InstanceWanted(wanted) => {
                let document = WorkloadDocument::decode(wanted.document.clone()).unwrap_or_default();
                match document.expose.filter(|expose| (1..=65_535).contains(&expose.port)) {
                    None => {
                        self.exposed.remove(&key);
                    }
                    Some(expose) => {
                        let full = self.exposed.len() >= ROUTES_MAX;
                        if let Some(exposed) = self.exposed.get_mut(&key) {
                            exposed.expose = expose;
                        } else if full {
                            self.unrouted += 1;
                        } else {
                            let exposed = Exposed { expose, cluster: String::new(), phase: InstancePhase::Pending };
                            self.exposed.insert(key, exposed);
                        }
                    }
                }
            }
            Event::InstanceChanged(changed) => {
                if let Some(exposed) = self.exposed.get_mut(&key) {
                    exposed.phase = changed.phase();
                    exposed.cluster.clone_from(&changed.cluster_id);
                }
            }
            _ => {}
        }
    }

    fn declare(&mut self, cluster: &ClusterRegistered) {
        let uri = cluster.endpoint.parse::<http::Uri>().ok();
        match uri.as_ref().and_then(|uri| Some((uri.host()?.to_owned(), uri.port_u16()))) {
            Some(host) => self.hosts.insert(cluster.cluster_id.clone(), host),
            None => self.hosts.remove(&cluster.cluster_id),
        };
    }
}

impl Projector for Routes {
    fn apply(&mut self, stored: &Stored) -> Vec<Derived> {
        match stored.event::<ClusterRegistered>() {
            Ok(Some(cluster)) => self.declare(&cluster),
            Ok(None) => {
                let event = stored.protobuf().and_then(|body| Event::decode(&stored.message, &body));
                if let Ok(event) = event {
                    self.observe(&Key::new(stored.subject.split('.').skip(3)), &event);
                }
            }
            // Malformed: what it announces is not known.
            Err(_) => {}
        }
        vec![]
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::workload::{InstanceChanged, InstanceWanted};

    use super::*;

    fn key() -> Key {
        Key::new(["local", "i"])
    }

    fn wanted(port: u32, replicas: u32) -> Event {
        let expose = Some(Expose { port, users: vec!["ada".into()], ..Expose::default() });
        let document = WorkloadDocument { expose, ..WorkloadDocument::default() };
        InstanceWanted { replicas, document: document.encode_to_vec().into(), ..InstanceWanted::default() }.into()
    }

    fn changed(cluster: &str, phase: InstancePhase) -> Event {
        InstanceChanged { cluster_id: cluster.into(), phase: phase.into(), ..InstanceChanged::default() }.into()
    }

    fn cluster(name: &str, endpoint: &str) -> ClusterRegistered {
        ClusterRegistered { cluster_id: name.into(), endpoint: endpoint.into(), ..ClusterRegistered::default() }
    }

    #[test]
    fn a_route_leads_where_the_instance_runs_and_follows_it() {
        let mut routes = Routes::default();
        routes.observe(&key(), &changed("edge", InstancePhase::Running));
        assert!(routes.is_empty(), "what is not exposed is not kept");
        routes.observe(&key(), &wanted(8080, 1));
        let upstream = |routes: &Routes| routes.find("local", "i").unwrap().upstream;
        assert!(upstream(&routes).unwrap_err().contains("pending"));
        routes.observe(&key(), &changed("edge", InstancePhase::Running));
        assert!(upstream(&routes).unwrap_err().contains("edge"));
        routes.declare(&cluster("edge", "http://10.0.0.7:5000"));
        assert_eq!(upstream(&routes), Ok("10.0.0.7:8080".into()));
        routes.declare(&cluster("cloud", "http://[fd00::1]:5000"));
        routes.observe(&key(), &changed("cloud", InstancePhase::Running));
        assert_eq!(upstream(&routes), Ok("[fd00::1]:8080".into()));
        routes.observe(&key(), &changed("cloud", InstancePhase::Lost));
        assert!(upstream(&routes).is_err());
        assert_eq!(routes.find("other", "i"), None, "another owner has no such instance");
        routes.observe(&key(), &wanted(5000, 1));
        routes.observe(&key(), &changed("cloud", InstancePhase::Running));
        assert!(upstream(&routes).unwrap_err().contains("agent's"), "a workload does not expose its agent");
        routes.observe(&key(), &wanted(8080, 0));
        assert!(routes.is_empty());
    }

    #[test]
    fn a_port_that_cannot_be_gives_no_route() {
        let mut routes = Routes::default();
        for port in [0, 65_536, u32::MAX] {
            routes.observe(&key(), &wanted(port, 1));
            assert!(routes.is_empty(), "{port}");
        }
        routes.observe(&key(), &wanted(1, 1));
        routes.observe(&key(), &wanted(0, 1));
        assert!(routes.is_empty(), "a later version may expose it no more");
    }
}
