//! Networks: intents that are submitted and withdrawn, and adaptors that report late, twice, or again from the start.
//!
//! A network goes by the steps of its life only, each submission is a version of its own, no fact holds a secret, and
//! at rest nothing is under way.

use std::{collections::BTreeMap, sync::Arc};

use mesh_proto::{
    deciders::networks::Fact,
    network::{Connectivity, ReportConnectivity, SubmitNetworkIntent, WithdrawNetworkIntent},
};
use mncc_exposer::domain::{intents::standard, networks::Networks};

use super::{Area, Asker, fact, wrong};
use crate::sim::{bus::MemoryBus, rng::Rng};

const INTENT: &str = include_str!("../../../../examples/network/l2sm.yaml");
const SECRET: &str = "a.secret.token";
const OWNER: &str = "local";
const NETWORKS: [&str; 3] = ["n-1", "n-2", "n-3"];

/// The decider.
pub fn decider() -> Networks {
    Networks::new(Arc::new(standard()))
}

/// Those who want networks, and those who make them.
#[derive(Default)]
pub struct Adaptors {
    /// Facts looked at.
    read: usize,
    /// What is to be done: network, version, and whether it is to be withdrawn.
    tasks: Vec<(String, u64, bool)>,
    reports: u64,
}

impl Adaptors {
    fn observe(&mut self, bus: &MemoryBus) {
        for stored in bus.read("NETWORK").iter().skip(self.read) {
            self.read += 1;
            match fact::<Fact>(stored) {
                Ok(Fact::NetworkAccepted(m)) => self.tasks.push((m.network_id, m.version, false)),
                Ok(Fact::ConnectivityChanged(m)) if m.phase() == Connectivity::Withdrawing => {
                    self.tasks.push((m.network_id, m.version, true));
                }
                _ => {}
            }
        }
    }

    fn report(&mut self, bus: &mut MemoryBus, (network, version, withdraws): (String, u64, bool), fails: bool) {
        let phase = match (withdraws, fails) {
            (_, true) => Connectivity::NotConnected,
            (true, false) => Connectivity::Withdrawn,
            (false, false) => Connectivity::Connected,
        };
        self.reports += 1;
        let (owner, network_id) = (OWNER.to_owned(), network);
        let report = ReportConnectivity { owner, network_id, version, phase: phase.into(), ..Default::default() };
        bus.publish(&report, &format!("report-{}", self.reports));
    }
}

impl Area for Adaptors {
    fn name(&self) -> &'static str {
        "network"
    }

    fn happen(&mut self, bus: &mut MemoryBus, rng: &mut Rng, asker: &mut Asker) {
        let (owner, network_id) = (OWNER.to_owned(), (*rng.pick(&NETWORKS)).to_owned());
        match rng.below(10) {
            0..=2 => {
                let intent = if rng.percent(15) { "Intent: 7".to_owned() } else { INTENT.to_owned() };
                asker.ask(bus, rng, &SubmitNetworkIntent { owner, network_id, intent });
            }
            3 | 4 => {
                asker.ask(bus, rng, &WithdrawNetworkIntent { owner, network_id });
            }
            5 if rng.percent(20) => {
                // It starts again, and carries out what it finds from the first fact on.
                (self.read, self.tasks) = (0, vec![]);
            }
            _ => {
                self.observe(bus);
                if !self.tasks.is_empty() {
                    let task = self.tasks.swap_remove(rng.below(self.tasks.len()));
                    for _ in 0..=usize::from(rng.percent(20)) {
                        self.report(bus, task.clone(), rng.percent(25));
                    }
                }
            }
        }
    }

    fn settle(&mut self, bus: &mut MemoryBus) -> bool {
        self.observe(bus);
        let tasks = std::mem::take(&mut self.tasks);
        let any = !tasks.is_empty();
        for task in tasks {
            self.report(bus, task, false);
        }
        any
    }

    fn check(&self, bus: &MemoryBus) -> Result<(), String> {
        use Connectivity::{Connected, Executing, NotConnected, Unspecified, Withdrawing, Withdrawn};
        let mut networks: BTreeMap<String, (u64, Connectivity)> = BTreeMap::new();
        for stored in bus.read("NETWORK") {
            if stored.body.windows(SECRET.len()).any(|part| part == SECRET.as_bytes()) {
                return wrong(stored, "it holds a secret");
            }
            match fact::<Fact>(stored)? {
                Fact::NetworkAccepted(m) => {
                    let (version, phase) = networks.entry(m.network_id).or_insert((0, Unspecified));
                    if !matches!(*phase, Unspecified | NotConnected | Withdrawn) || m.version != *version + 1 {
                        return wrong(stored, format!("version {} follows {version} in {phase:?}", m.version));
                    }
                    (*version, *phase) = (m.version, Executing);
                }
                Fact::ConnectivityChanged(m) => {
                    let next = m.phase();
                    let (version, phase) = networks.entry(m.network_id).or_insert((0, Unspecified));
                    let steps = match *phase {
                        Executing => [Connected, NotConnected, Withdrawing].as_slice(),
                        Connected | NotConnected => &[Withdrawing],
                        Withdrawing => &[Withdrawn, NotConnected],
                        _ => &[],
                    };
                    if !steps.contains(&next) || m.version != *version {
                        return wrong(stored, format!("version {version} goes from {phase:?} to {next:?}"));
                    }
                    *phase = next;
                }
                Fact::NetworkRefused(_) => {}
            }
        }
        match networks.iter().find(|(_, (_, phase))| matches!(phase, Executing | Withdrawing)) {
            Some((network, (version, phase))) => Err(format!("{network} version {version} stays {phase:?}")),
            None => Ok(()),
        }
    }
}
