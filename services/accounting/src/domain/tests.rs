use mesh_proto::{
    account::{EntryKind, Formula, Outcome, Region, SetRegion, SetTariff, Tariff, TopUp},
    cluster::ClusterRegistered,
    telemetry::Provenance,
    usage::UsageClosed,
    workload::WorkloadRegistered,
};
use proptest::prelude::*;

use super::*;
use ledger::{
    BEHIND_MAX, TREASURY_ACCOUNT,
    files::{self, Proved},
    note::{Checkpoint, Signer},
    tariff::{TOKEN, TREASURY},
    tree::{Nodes as _, Tree},
};

const SERVICE: &str = "service/local/spinner";
const CLUSTER: &str = "cluster/edge";

/// The ledger under test: what was decided is folded at once, as the shell does.
#[derive(Default)]
struct Books {
    ledger: Ledger,
    facts: Vec<Fact>,
}

impl Books {
    fn new(formula: Formula) -> Self {
        let mut books = Self::default();
        books.on(tariff_of(formula)).unwrap();
        books.on(region("r")).unwrap();
        books
    }

    /// The entries that follow from an input.
    fn on(&mut self, input: impl Into<Input>) -> Result<Vec<Entry>, Refusal> {
        let envelope = Envelope {
            trigger: Trigger::Event(input.into()),
            at: Timestamp::from_millis(1_000_000_000),
            id: format!("id-{}", self.facts.len()),
            sequence: 1,
            body: Bytes::new(),
        };
        let facts = Accounting.decide(&Key::new([MAIN]), &self.ledger, &(), &envelope)?;
        for fact in &facts {
            self.ledger = Accounting.evolve(std::mem::take(&mut self.ledger), fact, envelope.at);
            let Fact::Posted(posted) = fact else { panic!("{fact:?}") };
            assert_eq!(posted.root, self.ledger.tree.root().as_slice(), "a fact names the root after it");
        }
        assert_eq!(self.ledger.sum(), 0, "units are neither lost nor made");
        self.facts.extend(facts.iter().cloned());
        Ok(facts.iter().map(entry).collect())
    }

    fn last(&mut self, input: impl Into<Input>) -> Entry {
        self.on(input).unwrap().pop().unwrap()
    }

    fn outcome(&mut self, usage: UsageClosed) -> Outcome {
        self.last(usage).charge.unwrap().outcome()
    }

    fn balance(&self, account: &str) -> i64 {
        self.ledger.balance(account)
    }

    fn text(&self, signer: &Signer) -> String {
        let head = Checkpoint { size: self.ledger.size(), root: self.ledger.tree.root() };
        let bytes: Vec<Bytes> = self.facts.iter().map(leaf).collect();
        files::ledger(bytes.iter().map(AsRef::as_ref), &signer.sign(&head))
    }
}

fn leaf(fact: &Fact) -> Bytes {
    let Fact::Posted(posted) = fact else { panic!("{fact:?}") };
    posted.entry.clone()
}

fn entry(fact: &Fact) -> Entry {
    Entry::decode(leaf(fact)).unwrap()
}

fn tariff_of(formula: Formula) -> SetTariff {
    let tariff = Tariff { formula: formula.into(), ..tariff::default_tariff() };
    SetTariff { ledger: MAIN.into(), tariff: Some(tariff) }
}

fn region(name: &str) -> SetRegion {
    SetRegion { ledger: MAIN.into(), region: Some(Region { name: name.into(), ..Default::default() }) }
}

fn surcharge(cost: u64) -> SetRegion {
    let region = Region { name: "r".into(), high_demand: true, high_demand_cost: cost, ..Default::default() };
    SetRegion { ledger: MAIN.into(), region: Some(region) }
}

fn top_up(account: &str, amount: u64) -> TopUp {
    TopUp { ledger: MAIN.into(), account: account.into(), amount }
}

fn workload() -> WorkloadRegistered {
    WorkloadRegistered { owner: "local".into(), name: "spinner".into(), ..Default::default() }
}

fn cluster() -> ClusterRegistered {
    ClusterRegistered { cluster_id: "edge".into(), ..Default::default() }
}

/// A window of five seconds in which a tenth of the cluster's CPU was used: 0.1 tokens.
fn window(number: u64) -> UsageClosed {
    UsageClosed {
        cluster_id: "edge".into(),
        instance_id: "i".into(),
        owner: "local".into(),
        workload: "spinner".into(),
        region: "r".into(),
        window: number,
        window_ms: 5_000,
        begin: Some(Timestamp::from_millis(number as i64 * 5_000)),
        end: Some(Timestamp::from_millis((number as i64 + 1) * 5_000)),
        cpu_ms: 500,
        samples: 5,
        cluster_cpu_ms: 1_000,
        cluster_memory_byte_seconds: 1_000_000,
        cluster_cpu_capacity_ms: 5_000,
        cluster_memory_capacity_byte_seconds: 1_000_000_000,
        ..Default::default()
    }
}

#[test]
fn an_entry_keeps_whether_its_usage_was_measured_or_modelled() {
    let mut books = Books::default();
    books.on(workload()).unwrap();
    books.on(cluster()).unwrap();
    let entry = books.last(UsageClosed { provenance: Provenance::Modelled.into(), ..window(1) });
    assert_eq!(entry.charge.unwrap().usage.unwrap().provenance(), Provenance::Modelled);
}

#[test]
fn the_printed_example_comes_out_to_the_unit() {
    let mut books = Books::default();
    books.on(tariff_of(Formula::Faithful)).unwrap();
    books.on(workload()).unwrap();
    books.on(cluster()).unwrap();
    books.on(surcharge(1_000_000)).unwrap();
    // Zero CPU and memory parts: 56,000 and 23,500 of very large totals.
    let printed = |number| UsageClosed {
        cpu_ms: 56_000,
        memory_byte_seconds: 23_500_000_000,
        cluster_cpu_ms: 1_000_000_000_000,
        cluster_memory_byte_seconds: 1_000_000_000_000 * 1_000_000,
        ..window(number)
    };
    let mut seen = vec![];
    for number in 1..=3 {
        let entry = books.last(printed(number));
        let charge = entry.charge.unwrap();
        assert_eq!((charge.tokens, charge.outcome()), (1_000, Outcome::Paid));
        seen.extend(
            entry.transfers.into_iter().map(|t| (t.from, t.to, t.amount, t.from_balance, t.to_balance, t.action_id)),
        );
    }
    let step = |from: &str, to: &str, amount, from_balance, to_balance, id| {
        (from.to_owned(), to.to_owned(), amount, from_balance, to_balance, id)
    };
    assert_eq!(seen[0], step(SERVICE, TREASURY_ACCOUNT, 1_000, 499_999_000, 10_000_001_000, 2));
    assert_eq!(seen[1], step(TREASURY_ACCOUNT, CLUSTER, 1_000, 10_000_000_000, 1_000_001_000, 3));
    assert_eq!(seen[2], step(CLUSTER, TREASURY_ACCOUNT, 200_000, 999_801_000, 10_000_200_000, 4));
    assert_eq!(seen[5], step(CLUSTER, TREASURY_ACCOUNT, 199_960, 999_602_040, 10_000_399_960, 7));
    assert_eq!(seen[8], step(CLUSTER, TREASURY_ACCOUNT, 199_920, 999_403_120, 10_000_599_880, 10));
    assert_eq!((books.balance(SERVICE), books.ledger.actions), (499_997_000, 11));
    assert_eq!(books.balance(ledger::ISSUANCE), -11_500_000_000);
}

#[test]
fn the_faithful_formula_fails_where_the_contract_does() {
    let mut books = Books::new(Formula::Faithful);
    books.on(workload()).unwrap();
    let given_up = |books: &mut Books, usage: UsageClosed| {
        let before = books.balance(SERVICE);
        let charge = books.last(usage).charge.unwrap();
        assert_eq!((charge.outcome(), charge.paid, books.balance(SERVICE)), (Outcome::Reverted, 0, before));
        charge.reason
    };
    assert!(given_up(&mut books, UsageClosed { cluster_cpu_ms: 0, ..window(1) }).contains("division by zero"));
    // Alone on the cluster: 2 tokens of 5, twice; then the last one is not enough.
    let alone = |n| UsageClosed { cluster_cpu_ms: 500, memory_byte_seconds: 1_000_000, ..window(n) };
    assert_eq!(books.outcome(alone(2)), Outcome::Paid);
    assert_eq!(books.outcome(alone(3)), Outcome::Paid);
    assert_eq!(given_up(&mut books, alone(4)), "Customer is out of funds!!!");
    // The last unit cannot be spent.
    books.on(surcharge(1_000 * TOKEN)).unwrap();
    assert_eq!(given_up(&mut books, UsageClosed { cpu_ms: 0, ..window(5) }), "Customer is out of funds!!!");
    // A charge of nothing still costs the cluster its fee.
    books.on(region("r")).unwrap();
    let entry = books.last(UsageClosed { cpu_ms: 0, ..window(6) });
    assert_eq!(entry.charge.unwrap().tokens, 0);
    assert!(entry.transfers.last().unwrap().amount > 0);
}

#[test]
fn a_fair_window_is_paid_to_the_cluster_and_the_fee_is_on_the_reward() {
    let mut books = Books::new(Formula::Fair);
    let entry = books.last(window(1));
    let charge = entry.charge.unwrap();
    assert_eq!((charge.tokens, charge.paid, charge.outcome()), (TOKEN / 10, TOKEN / 10, Outcome::Paid));
    let moved: Vec<_> = entry.transfers.iter().map(|t| (t.from.as_str(), t.to.as_str(), t.amount)).collect();
    let paid = [
        ("issuance", CLUSTER, 10 * TOKEN),
        ("issuance", SERVICE, 5 * TOKEN),
        (SERVICE, CLUSTER, TOKEN / 10),
        (CLUSTER, TREASURY_ACCOUNT, 2_000),
    ];
    assert_eq!(moved, paid);
    let idle = books.last(UsageClosed { cpu_ms: 0, ..window(2) });
    assert_eq!((idle.charge.unwrap().outcome(), idle.transfers.len()), (Outcome::Free, 0));
}

#[test]
fn accounts_are_granted_once_in_any_order_of_inputs() {
    let mut ends = vec![];
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0], [2, 0, 1]] {
        let mut books = Books::new(Formula::Fair);
        for what in order.into_iter().chain(order) {
            match what {
                0 => drop(books.on(workload()).unwrap()),
                1 => drop(books.on(cluster()).unwrap()),
                _ => drop(books.on(window(7)).unwrap()),
            }
        }
        ends.push(books.ledger.accounts);
    }
    assert!(ends.iter().all(|accounts| *accounts == ends[0]), "{ends:?}");
    assert_eq!(ends[0][SERVICE], (5 * TOKEN - TOKEN / 10) as i64);
}

#[test]
fn a_window_is_charged_once_however_often_and_however_late_it_comes() {
    let mut books = Books::new(Formula::Fair);
    assert_eq!(books.outcome(window(100)), Outcome::Paid);
    assert_eq!(books.on(window(100)).unwrap(), []);
    let late = books.last(window(103)).charge.unwrap();
    assert_eq!(late.missed_windows, 2);
    assert_eq!(books.outcome(window(101)), Outcome::Paid);
    for again in [100, 101, 103] {
        assert_eq!(books.on(window(again)).unwrap(), []);
    }
    books.on(window(103 + BEHIND_MAX)).unwrap();
    let refused = books.on(window(103)).unwrap_err();
    assert!(refused.reason.contains("too old"), "{refused:?}");
    // Another length is another count: what overlaps is not charged again.
    let longer = |number: u64| UsageClosed {
        window_ms: 300_000,
        begin: Some(Timestamp::from_millis(number as i64 * 300_000)),
        end: Some(Timestamp::from_millis((number as i64 + 1) * 300_000)),
        ..window(number)
    };
    assert!(books.on(longer(2)).is_err(), "it began before window 167 ended");
    assert_eq!(books.outcome(longer(3)), Outcome::Paid);
    assert_eq!(books.on(longer(3)).unwrap(), []);
}

#[test]
fn who_has_not_enough_owes_the_rest_and_pays_it_first() {
    let mut books = Books::new(Formula::Fair);
    books.on(surcharge(1_000 * 4 * TOKEN)).unwrap();
    let free = |n, cluster: &str| UsageClosed { cpu_ms: 0, cluster_id: cluster.into(), ..window(n) };
    assert_eq!(books.outcome(free(1, "edge")), Outcome::Paid);
    let short = books.last(free(2, "edge")).charge.unwrap();
    assert_eq!((short.outcome(), short.tokens, short.paid), (Outcome::Owed, 4 * TOKEN, TOKEN));
    assert_eq!(books.outcome(free(3, "cloud")), Outcome::Owed);
    assert_eq!((books.balance(SERVICE), books.ledger.debt(SERVICE)), (0, 7 * TOKEN));
    books.on(top_up(SERVICE, 5 * TOKEN)).unwrap();
    assert_eq!((books.balance(SERVICE), books.ledger.debt(SERVICE)), (0, 2 * TOKEN));
    assert_eq!(books.ledger.owes[SERVICE].keys().collect::<Vec<_>>(), [CLUSTER], "cloud comes first by name");
    books.on(top_up(SERVICE, 3 * TOKEN)).unwrap();
    assert_eq!((books.balance(SERVICE), books.ledger.debt(SERVICE)), (TOKEN as i64, 0));
    assert!(books.ledger.owes.is_empty());
}

#[test]
fn what_cannot_be_charged_says_why_and_moves_nothing() {
    let mut books = Books::new(Formula::Fair);
    books.on(workload()).unwrap();
    books.on(cluster()).unwrap();
    let before = books.ledger.accounts.clone();
    assert_eq!(books.outcome(UsageClosed { region: "nowhere".into(), ..window(1) }), Outcome::UnknownRegion);
    assert_eq!(books.outcome(UsageClosed { region: String::new(), ..window(2) }), Outcome::UnknownRegion);
    let silent = |n| UsageClosed { samples: 0, cpu_ms: 0, gap_ms: 5_000, ..window(n) };
    assert_eq!(books.outcome(silent(3)), Outcome::NoTelemetry);
    let ahead = books.on(silent(40_000)).unwrap_err();
    assert!(ahead.hint.contains("clock"), "{ahead:?}");
    let wrong = [
        UsageClosed { owner: String::new(), ..window(4) },
        UsageClosed { owner: "a.b".into(), ..window(4) },
        UsageClosed { window_ms: 0, ..window(4) },
        UsageClosed { window_ms: u32::MAX, ..window(4) },
        UsageClosed { window: u64::MAX, ..window(4) },
        UsageClosed { window: 5, ..window(4) },
        UsageClosed { end: None, ..window(4) },
        UsageClosed { gap_ms: 5_001, ..window(4) },
        UsageClosed { region: "x/y".into(), ..window(4) },
    ];
    for usage in wrong {
        let refused = books.on(usage.clone());
        assert!(refused.is_err(), "{usage:?}");
    }
    assert_eq!(books.ledger.accounts, before);
    let huge = UsageClosed { cpu_ms: u64::MAX, memory_byte_seconds: u64::MAX, cluster_cpu_capacity_ms: 1, ..window(9) };
    assert_eq!(books.outcome(huge), Outcome::Paid, "no share is more than all");
}

#[test]
fn commands_that_cannot_be_done_are_refused_with_a_hint() {
    let mut books = Books::new(Formula::Fair);
    books.on(workload()).unwrap();
    let wrong: Vec<Input> = vec![
        region("").into(),
        region("a b").into(),
        SetRegion { ledger: MAIN.into(), region: None }.into(),
        SetTariff { ledger: MAIN.into(), tariff: Some(Tariff::default()) }.into(),
        SetTariff { ledger: MAIN.into(), tariff: Some(Tariff { fee_rate: TOKEN + 1, ..tariff::default_tariff() }) }
            .into(),
        top_up("service/local/nobody", 1).into(),
        top_up("treasury", 1).into(),
        top_up("issuance", 1).into(),
        top_up(SERVICE, 0).into(),
        top_up(SERVICE, TREASURY + 1).into(),
        top_up(SERVICE, u64::MAX).into(),
    ];
    let before = books.ledger.clone();
    for input in wrong {
        let refused = books.on(input.clone()).unwrap_err();
        assert!(!refused.reason.is_empty() && !refused.hint.is_empty(), "{input:?}");
    }
    assert_eq!(books.ledger, before);
    let key = Key::new(["other"]);
    let envelope = Envelope {
        trigger: Trigger::Event(Input::from(TopUp { ledger: "other".into(), ..top_up(SERVICE, 1) })),
        at: Timestamp::default(),
        id: "i".into(),
        sequence: 1,
        body: Bytes::new(),
    };
    assert!(Accounting.decide(&key, &Ledger::default(), &(), &envelope).unwrap_err().hint.contains(MAIN));
    // All of the treasury, to the last unit.
    books.on(top_up(SERVICE, TREASURY)).unwrap();
    assert_eq!(books.balance(TREASURY_ACCOUNT), 0);
}

#[test]
fn any_changed_byte_of_an_exported_ledger_is_found() {
    let signer = Signer::from_seed([3; 32]).unwrap();
    let mut books = Books::new(Formula::Fair);
    for number in 1..=3 {
        books.on(window(number)).unwrap();
    }
    let text = books.text(&signer);
    let Proved::Ledger { ledger, .. } = files::verify(&text, signer.verifier()).unwrap() else { panic!() };
    assert_eq!(*ledger, books.ledger);
    let bytes = text.as_bytes();
    for at in 0..bytes.len() {
        for flip in [0x01, 0x02, 0x20, 0x40, 0x80] {
            let mut changed = bytes.to_vec();
            changed[at] ^= flip;
            if let Ok(changed) = String::from_utf8(changed) {
                assert!(files::verify(&changed, signer.verifier()).is_err(), "byte {at} xor {flip:#x}");
            }
        }
        let shorter = [&bytes[..at], &bytes[at + 1..]].concat();
        if let Ok(shorter) = String::from_utf8(shorter) {
            assert!(files::verify(&shorter, signer.verifier()).is_err(), "without byte {at}");
        }
    }
    for line in 1..text.lines().count() {
        let kept: Vec<&str> = text.lines().enumerate().filter(|(n, _)| *n != line).map(|(_, l)| l).collect();
        assert!(files::verify(&(kept.join("\n") + "\n"), signer.verifier()).is_err(), "without line {line}");
    }
    assert!(files::verify(&text, Signer::from_seed([4; 32]).unwrap().verifier()).is_err(), "another's key");
}

#[test]
fn a_ledger_that_breaks_its_own_rules_is_found_though_its_head_is_signed() {
    let signer = Signer::from_seed([3; 32]).unwrap();
    let mut books = Books::new(Formula::Fair);
    books.on(window(1)).unwrap();
    let forge = |change: &dyn Fn(&mut Entry)| {
        let mut forged = entry(books.facts.last().unwrap());
        change(&mut forged);
        let mut leaves: Vec<Vec<u8>> = books.facts.iter().map(|f| leaf(f).to_vec()).collect();
        *leaves.last_mut().unwrap() = forged.encode_to_vec();
        let mut tree = Tree::default();
        leaves.iter().for_each(|l| tree.push(leaf_hash(l)));
        let head = Checkpoint { size: tree.size(), root: tree.root(tree.size()).unwrap() };
        let text = files::ledger(leaves.iter().map(Vec::as_slice), &signer.sign(&head));
        files::verify(&text, signer.verifier())
    };
    assert!(forge(&|_| {}).is_ok());
    assert!(forge(&|e| e.charge.as_mut().unwrap().tokens += 1).is_err());
    assert!(forge(&|e| e.transfers[2].amount -= 1).is_err());
    assert!(forge(&|e| e.transfers[2].to = "cluster/mine".into()).is_err());
    assert!(forge(&|e| e.transfers.clear()).is_err());
    assert!(forge(&|e| e.index += 1).is_err());
    assert!(forge(&|e| e.at = None).is_err());
    assert!(forge(&|e| e.kind = EntryKind::Opened.into()).is_err());
    assert!(forge(&|e| e.charge.as_mut().unwrap().usage.as_mut().unwrap().cpu_ms += 1_000).is_err());
}

#[test]
fn proofs_are_files_that_stand_alone() {
    let signer = Signer::from_seed([3; 32]).unwrap();
    let mut books = Books::new(Formula::Fair);
    for number in 1..=9 {
        books.on(window(number)).unwrap();
    }
    let mut tree = Tree::default();
    books.facts.iter().for_each(|fact| tree.push(leaf_hash(&leaf(fact))));
    let note = |size| signer.sign(&Checkpoint { size, root: tree.root(size).unwrap() });
    let size = tree.size();
    for (index, fact) in books.facts.iter().enumerate() {
        let index = index as u64;
        let path = tree.inclusion(index, size).unwrap();
        let text = files::inclusion(index, &leaf(fact), &path, &note(size));
        let Proved::Inclusion { entry: proved, .. } = files::verify(&text, signer.verifier()).unwrap() else {
            panic!()
        };
        assert_eq!(*proved, entry(fact));
        for at in 0..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[at] ^= 1;
            if let Ok(changed) = String::from_utf8(changed) {
                assert!(files::verify(&changed, signer.verifier()).is_err(), "byte {at} of\n{text}");
            }
        }
    }
    for from in 1..=size {
        let text = files::consistency(&note(from), &tree.consistency(from, size).unwrap(), &note(size));
        assert!(matches!(files::verify(&text, signer.verifier()), Ok(Proved::Consistency { .. })), "{from}\n{text}");
    }
    let mixed = files::consistency(&note(3), &tree.consistency(4, size).unwrap(), &note(size));
    assert!(files::verify(&mixed, signer.verifier()).is_err());
    for junk in ["", "\n\n", "x\n\ny", "continuum ledger v1\n\n", "c2sp.org/tlog-proof@v1\n\n"] {
        assert!(files::verify(junk, signer.verifier()).is_err());
    }
}

fn any_input() -> impl Strategy<Value = Input> {
    let usage = (0..3u8, 0..3u8, 0..90u64, 0..20_000u64, 0..4u32, 0..4u8);
    let usage = usage.prop_map(|(cluster, instance, number, cpu_ms, samples, region)| UsageClosed {
        cluster_id: format!("c{cluster}"),
        instance_id: format!("i{instance}"),
        workload: format!("w{instance}"),
        cpu_ms,
        samples,
        region: ["r", "s", "", "nowhere"][usize::from(region)].into(),
        ..window(number)
    });
    prop_oneof![
        20 => usage.prop_map(Input::from),
        1 => (0..3u8).prop_map(|n| WorkloadRegistered { name: format!("w{n}"), ..workload() }.into()),
        1 => (0..3u8).prop_map(|n| ClusterRegistered { cluster_id: format!("c{n}"), ..cluster() }.into()),
        1 => any::<u64>().prop_map(|n| surcharge(n).into()),
        1 => (0..5_000_000_000u64).prop_map(|n| surcharge(n * 200).into()),
        1 => Just(region("s").into()),
        2 => (0..3u8, 0..4 * TOKEN).prop_map(|(n, amount)| top_up(&format!("service/local/w{n}"), amount).into()),
        1 => any::<u64>().prop_map(|amount| top_up("cluster/c0", amount).into()),
        1 => any::<bool>().prop_map(|fair| {
            tariff_of(if fair { Formula::Fair } else { Formula::Faithful }).into()
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Any inputs, in any order, some again: units are conserved, balances are never below zero, nobody owes who
    /// has, no window is charged twice; whoever has only the facts has the same ledger, at every cut (a crash); and the
    /// export is the same ledger again.
    #[test]
    fn money_is_conserved_under_any_order_repeat_and_crash(
        inputs in proptest::collection::vec((any_input(), 1..3usize), 1..80),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut books = Books::default();
        let mut charged = std::collections::BTreeSet::new();
        for (number, (input, times)) in inputs.iter().enumerate() {
            if number == cut.index(inputs.len()) {
                // A crash: what was in memory is gone; the snapshot and the facts are there.
                let json = serde_json::to_string(&books.ledger).unwrap();
                let snapshot: Ledger = serde_json::from_str(&json).unwrap();
                prop_assert_eq!(&snapshot, &books.ledger);
                let at = Timestamp::default();
                let folded = books.facts.iter().fold(Ledger::default(), |l, f| Accounting.evolve(l, f, at));
                prop_assert_eq!(&folded, &books.ledger);
                books.ledger = snapshot;
            }
            for _ in 0..*times {
                for entry in books.on(input.clone()).unwrap_or_default() {
                    if let Some(usage) = entry.charge.and_then(|c| c.usage) {
                        prop_assert!(charged.insert((usage.cluster_id, usage.instance_id, usage.window)));
                    }
                }
            }
            for (account, balance) in &books.ledger.accounts {
                prop_assert!(*balance >= 0 || account == "issuance", "{} has {}", account, balance);
            }
        }
        let signer = Signer::from_seed([1; 32]).unwrap();
        let Ok(Proved::Ledger { ledger, .. }) = files::verify(&books.text(&signer), signer.verifier()) else {
            return Err(TestCaseError::fail("the export does not verify"));
        };
        prop_assert_eq!(*ledger, books.ledger);
    }
}
