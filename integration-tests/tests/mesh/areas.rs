//! Commands to every area beside the life of an intent, while processes die: each is answered by one fact, and what
//! follows from them is whole.

use std::collections::{BTreeMap, BTreeSet};

use ledger::{Ledger, MAIN, tree::leaf_hash};
use mesh_proto::{
    AnyEvent,
    account::{Entry, Posted, Region, SetRegion, TopUp},
    derived_id,
    identity::{CloseSession, DefineAccount, OpenSession, RenewSession, SessionRenewed},
    network::{Connectivity, ConnectivityChanged, NetworkAccepted, SubmitNetworkIntent, WithdrawNetworkIntent},
    remedy::{RemedyPolicy, SetRemedyPolicy},
    storage::{DefinePolicy, Location, Policy, RegisterLocation, RequestScrub},
    subscription::{Subscribe, Unsubscribe},
};
use prost::Message as _;

use crate::support::{self, MeshRun, OWNER};

/// Areas of the deciders that are asked here.
const AREAS: [&str; 6] = ["account", "remedy", "network", "storage", "identity", "subscription"];
const NETWORK: &str = include_str!("../../../examples/network/l2sm.yaml");
const HASH: &str = "$argon2id$v=19$m=1,t=1,p=1$c2FsdHNhbHQ$aGFzaA";

/// What was commanded.
#[derive(Default)]
pub struct Commands {
    /// Ids, by area.
    ids: BTreeMap<&'static str, BTreeSet<String>>,
    cycles: usize,
}

impl Commands {
    /// Commands each area once or more; in every second cycle each command is sent twice.
    pub async fn send(&mut self, mesh: &MeshRun, cycle: usize) {
        self.cycles = self.cycles.max(cycle + 1);
        let times = 1 + cycle % 2;
        for command in commands(cycle) {
            let command = command.as_ref();
            let area = AREAS.into_iter().find(|area| *area == command.area()).expect("an area of these");
            let id = derived_id(&["kill9", &cycle.to_string(), command.message(), &command.keys().join(".")]);
            for _ in 0..times {
                mesh.send(command, &id).await;
            }
            self.ids.entry(area).or_default().insert(id);
        }
    }

    /// Waits until each is answered, then holds every area against what must be true; gives the number of commands.
    ///
    /// # Panics
    /// With what does not hold.
    pub async fn check(&self, mesh: &MeshRun) -> usize {
        for area in AREAS {
            let ids = &self.ids[area];
            let answers = mesh
                .until(&format!("every command to {area} is answered"), async || {
                    let answers = answers(mesh, area).await;
                    ids.iter().all(|id| answers.contains_key(id)).then_some(answers)
                })
                .await;
            let twice: Vec<_> = answers.iter().filter(|(_, facts)| facts.len() > 1).collect();
            assert!(twice.is_empty(), "answered more than once: {twice:?}");
        }
        ledger(mesh).await;
        networks(mesh, self.cycles).await;
        let renewed: BTreeSet<String> =
            events::<SessionRenewed>(mesh, "IDENTITY").await.into_iter().map(|m| m.name).collect();
        let wanted: BTreeSet<String> = (0..self.cycles).map(|cycle| format!("session-{cycle}")).collect();
        assert_eq!(renewed, wanted, "each session is renewed by its token");
        self.ids.values().map(BTreeSet::len).sum()
    }
}

/// The commands of one cycle; those that undo something undo what the cycle before made.
fn commands(cycle: usize) -> Vec<Box<dyn AnyEvent>> {
    let name = |what: &str| format!("{what}-{cycle}");
    let (owner, expires) = (OWNER.to_owned(), Some(support::now().plus_millis(3_600_000)));
    let session = || ("session".to_owned(), name("session"));
    let mut commands: Vec<Box<dyn AnyEvent>> = vec![
        Box::new(SetRegion { ledger: MAIN.into(), region: Some(Region { name: name("region"), ..Region::default() }) }),
        Box::new(TopUp { ledger: MAIN.into(), account: "cluster/sim-a".into(), amount: 1 + cycle as u64 }),
        Box::new(SetRemedyPolicy {
            owner: owner.clone(),
            policy: Some(RemedyPolicy { dry_run: true, settle_seconds: 1 + cycle as u32, ..RemedyPolicy::default() }),
        }),
        Box::new(SubmitNetworkIntent { owner: owner.clone(), network_id: name("network"), intent: NETWORK.to_owned() }),
        Box::new(RegisterLocation {
            owner: owner.clone(),
            location: name("location"),
            description: Some(Location { kind: "cloud".into(), url: "dir:kill9".into(), ..Location::default() }),
        }),
        // It may come before the location is known: then it is refused, and once.
        Box::new(DefinePolicy {
            owner: owner.clone(),
            policy: name("policy"),
            definition: Some(Policy { backends: vec![name("location")], ..Policy::default() }),
        }),
        Box::new(RequestScrub { owner: owner.clone(), scrub: name("scrub"), repair: false, rewrap: false }),
        Box::new(DefineAccount {
            realm: "account".into(),
            name: name("account"),
            password_hash: HASH.into(),
            roles: vec!["owner".into()],
            ..DefineAccount::default()
        }),
        Box::new(OpenSession {
            realm: session().0,
            name: session().1,
            account: name("account"),
            client_id: "kill9".into(),
            token_hash: "first".into(),
            expires,
        }),
        Box::new(RenewSession {
            realm: session().0,
            name: session().1,
            presented_hash: "first".into(),
            next_hash: "second".into(),
            expires,
        }),
        Box::new(Subscribe {
            owner: owner.clone(),
            subscription_id: name("listener"),
            callback: "https://listener.invalid/".into(),
            query: String::new(),
            // Beyond everything: nothing is due to it.
            after: u64::MAX / 2,
        }),
    ];
    if let Some(before) = cycle.checked_sub(1) {
        let name = |what: &str| format!("{what}-{before}");
        commands.push(Box::new(WithdrawNetworkIntent { owner: owner.clone(), network_id: name("network") }));
        commands.push(Box::new(CloseSession { realm: "session".into(), name: name("session") }));
        commands.push(Box::new(Unsubscribe { owner, subscription_id: name("listener") }));
    }
    commands
}

/// The facts of an area by the command that they name.
async fn answers(mesh: &MeshRun, area: &str) -> BTreeMap<String, Vec<String>> {
    let mut answers: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for fact in mesh.facts(&area.to_uppercase()).await {
        let body = mesh_proto::json::to_value(&fact.message, &fact.body).unwrap();
        if let Some(id) = body["commandId"].as_str().filter(|id| !id.is_empty()) {
            answers.entry(id.to_owned()).or_default().push(fact.subject);
        }
    }
    answers
}

async fn events<E: mesh_proto::Event>(mesh: &MeshRun, stream: &str) -> Vec<E> {
    mesh.facts(stream).await.iter().filter_map(|fact| fact.event::<E>().unwrap()).collect()
}

/// Every entry is what the rules make of it, and nothing is created or lost.
async fn ledger(mesh: &MeshRun) {
    let mut ledger = Ledger::default();
    for posted in events::<Posted>(mesh, "ACCOUNT").await {
        let entry = Entry::decode(posted.entry.clone()).unwrap();
        ledger.audit(&entry).unwrap_or_else(|fault| panic!("{fault}"));
        ledger.fold(&entry, leaf_hash(&posted.entry));
        assert_eq!(ledger.tree.root()[..], posted.root[..], "entry {}", posted.index);
    }
    assert_eq!(ledger.sum(), 0);
    for cluster in ["sim-a", "sim-b"] {
        assert!(ledger.accounts.contains_key(&format!("cluster/{cluster}")), "{cluster} has no account");
    }
}

/// Nothing stays under way: what was being done by a process that died is done by the next.
async fn networks(mesh: &MeshRun, cycles: usize) {
    let accepted = events::<NetworkAccepted>(mesh, "NETWORK").await;
    let networks: BTreeSet<String> = accepted.iter().map(|m| m.network_id.clone()).collect();
    assert_eq!((accepted.len(), networks.len()), (cycles, cycles), "each network is accepted once");
    mesh.until("no network is being connected or withdrawn", async || {
        let mut phases: BTreeMap<String, Connectivity> =
            networks.iter().map(|network| (network.clone(), Connectivity::Executing)).collect();
        for changed in events::<ConnectivityChanged>(mesh, "NETWORK").await {
            phases.insert(changed.network_id.clone(), changed.phase());
        }
        let under_way = |phase: &Connectivity| matches!(phase, Connectivity::Executing | Connectivity::Withdrawing);
        (!phases.values().any(under_way)).then_some(())
    })
    .await;
}
