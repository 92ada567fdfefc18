//! The ledger: windows of usage from collectors that repeat and skip, regions, tariffs and top-ups.
//!
//! Every window is charged once, every registered workload and cluster has its account, each entry is what the rules
//! make of what it is about, and its transfers conserve what there is.

use std::collections::{BTreeMap, BTreeSet};

use ::ledger::{ISSUANCE, Ledger, MAIN, cluster_account, service_account, tariff::TOKEN, tree::leaf_hash};
use accounting::domain::Accounting;
use mesh_proto::{
    Timestamp,
    account::{Entry, EntryKind, Formula, Region, SetRegion, SetTariff, Tariff, TopUp},
    cluster::ClusterRegistered,
    deciders::ledger::Fact,
    usage::UsageClosed,
    workload::WorkloadRegistered,
};
use prost::Message as _;

use super::{Area, Asker, fact, wrong};
use crate::sim::{bus::MemoryBus, rng::Rng};

const WINDOW_MS: u32 = 60_000;
const CLUSTERS: [&str; 2] = ["cloud", "edge"];
const INSTANCES: [&str; 2] = ["i-1", "i-2"];

/// The decider.
pub fn decider() -> Accounting {
    Accounting
}

/// Those who use the ledger.
#[derive(Default)]
pub struct Ledgers {
    /// The next window of each cluster's instance.
    next: BTreeMap<(usize, usize), u64>,
}

impl Ledgers {
    /// A window as a collector closes it: mostly the next, sometimes an earlier one, sometimes a later one.
    fn window(&mut self, bus: &mut MemoryBus, rng: &mut Rng) {
        let place = (rng.below(CLUSTERS.len()), rng.below(INSTANCES.len()));
        let first = bus.now.as_millis() as u64 / u64::from(WINDOW_MS);
        let next = self.next.entry(place).or_insert(first);
        let window = match rng.below(10) {
            0 | 1 => next.saturating_sub(1 + rng.below(3) as u64),
            2 => *next + 1 + rng.below(2) as u64,
            _ => *next,
        };
        *next = (*next).max(window + 1);
        let (cluster, instance) = (CLUSTERS[place.0], INSTANCES[place.1]);
        let begin = i64::try_from(window * u64::from(WINDOW_MS)).unwrap_or_default();
        // What a window says does not depend on when it is said again.
        let mut rng = Rng::new(window * 31 + place.0 as u64 * 7 + place.1 as u64);
        let cpu_ms = rng.below(60_000) as u64;
        let usage = UsageClosed {
            cluster_id: cluster.into(),
            instance_id: instance.into(),
            owner: "local".into(),
            workload: (*rng.pick(&["alpha", "beta"])).into(),
            region: (*rng.pick(&["madrid", "madrid", "aachen", "nowhere"])).into(),
            window,
            window_ms: WINDOW_MS,
            begin: Some(Timestamp::from_millis(begin)),
            end: Some(Timestamp::from_millis(begin + i64::from(WINDOW_MS))),
            cpu_ms,
            memory_byte_seconds: rng.below(9_000) as u64 * 1_000_000,
            samples: if rng.percent(10) { 0 } else { 120 },
            cluster_cpu_ms: if rng.percent(10) { 0 } else { cpu_ms * 2 },
            cluster_memory_byte_seconds: 20_000_000_000,
            cluster_cpu_capacity_ms: 240_000,
            cluster_memory_capacity_byte_seconds: 60_000_000_000,
            ..UsageClosed::default()
        };
        bus.publish(&usage, &format!("usage-{cluster}-{instance}-{window}"));
    }
}

impl Area for Ledgers {
    fn name(&self) -> &'static str {
        "account"
    }

    fn happen(&mut self, bus: &mut MemoryBus, rng: &mut Rng, asker: &mut Asker) {
        let ledger = if rng.percent(5) { "other".to_owned() } else { MAIN.to_owned() };
        match rng.below(10) {
            0 => {
                let name = (*rng.pick(&["madrid", "aachen", "not.a.key"])).to_owned();
                let region = Region {
                    name,
                    high_demand: rng.percent(30),
                    high_demand_cost: *rng.pick(&[0, TOKEN * 1_000]),
                    cpu_threshold: *rng.pick(&[0, 20]),
                    cpu_base_rate: *rng.pick(&[0, TOKEN / 10]),
                    ..Region::default()
                };
                let region = (!rng.percent(8)).then_some(region);
                asker.ask(bus, rng, &SetRegion { ledger, region });
            }
            1 => {
                let formula = *rng.pick(&[Formula::Fair, Formula::Fair, Formula::Faithful, Formula::Unspecified]);
                let tariff = Tariff {
                    formula: formula.into(),
                    fee_rate: *rng.pick(&[0, TOKEN / 100, 2 * TOKEN]),
                    workload_grant: *rng.pick(&[0, 5 * TOKEN]),
                    cluster_grant: TOKEN,
                };
                let tariff = (!rng.percent(8)).then_some(tariff);
                asker.ask(bus, rng, &SetTariff { ledger, tariff });
            }
            2 | 3 => {
                let account = *rng.pick(&["service/local/alpha", "service/local/beta", "cluster/cloud", "treasury"]);
                let amount = *rng.pick(&[0, 5, TOKEN, 20 * TOKEN, 500 * TOKEN]);
                asker.ask(bus, rng, &TopUp { ledger, account: account.into(), amount });
            }
            _ => self.window(bus, rng),
        }
    }

    fn check(&self, bus: &MemoryBus) -> Result<(), String> {
        let mut audited = Ledger::default();
        let mut balances: BTreeMap<String, i128> = BTreeMap::new();
        let mut charged: BTreeSet<(String, String, u64)> = BTreeSet::new();
        for stored in bus.read("ACCOUNT") {
            let Fact::Posted(posted) = fact::<Fact>(stored)? else { continue };
            let entry = Entry::decode(posted.entry.clone()).map_err(|error| error.to_string())?;
            if let Err(fault) = audited.audit(&entry) {
                return wrong(stored, fault);
            }
            let leaf = leaf_hash(&posted.entry);
            if audited.tree.root_after(leaf)[..] != posted.root[..] {
                return wrong(stored, "its root is not that of the entries up to it");
            }
            audited.fold(&entry, leaf);
            for transfer in &entry.transfers {
                for (account, moved, told) in [
                    (&transfer.from, -i128::from(transfer.amount), transfer.from_balance),
                    (&transfer.to, i128::from(transfer.amount), transfer.to_balance),
                ] {
                    let balance = balances.entry(account.clone()).or_default();
                    *balance += moved;
                    if *balance != i128::from(told) || (*balance < 0 && account != ISSUANCE) {
                        return wrong(stored, format!("{account} has {balance}, and {told} is posted"));
                    }
                }
            }
            if balances.values().sum::<i128>() != 0 {
                return wrong(stored, "the balances do not add up to zero");
            }
            if entry.kind() == EntryKind::Window {
                let usage = entry.charge.and_then(|charge| charge.usage).unwrap_or_default();
                let window = (usage.cluster_id, usage.instance_id, usage.window);
                if !charged.insert(window.clone()) {
                    return wrong(stored, format!("{window:?} is charged twice"));
                }
            }
        }
        for stored in bus.read("USAGE") {
            let usage = UsageClosed::decode(stored.body.clone()).map_err(|error| error.to_string())?;
            if !charged.contains(&(usage.cluster_id, usage.instance_id, usage.window)) {
                return wrong(stored, "the window is never charged");
            }
        }
        let workloads = bus.read("WORKLOAD").iter().filter_map(|m| m.event::<WorkloadRegistered>().ok().flatten());
        let clusters = bus.read("CLUSTER").iter().filter_map(|m| m.event::<ClusterRegistered>().ok().flatten());
        let mut registered = workloads
            .map(|m| service_account(&m.owner, &m.name))
            .chain(clusters.map(|m| cluster_account(&m.cluster_id)));
        match registered.find(|account| !audited.accounts.contains_key(account)) {
            Some(account) => Err(format!("{account} was registered and has no account")),
            None => Ok(()),
        }
    }
}
