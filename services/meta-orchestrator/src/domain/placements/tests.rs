//! Sentences about what holds, told as a domain to which things happen.

use bytes::Bytes;
use mesh_proto::{
    cluster::ClusterRegistered,
    cost::{CostsChanged, LinkCost},
    instance::{InstanceRejected, InstanceStatusChanged},
    intent::{IntentRemedyUnwanted, IntentRemedyWanted, TargetState},
    learning::LearningAdvised,
    placement::ReportLiveness,
    workload::{InstancePhase, LatencyBound, MigrationWanted, Resources, TargetBound},
};

use super::*;

mod world;

/// A domain to which things happen; each answers with the facts in short: `decided i 2 b from a`.
struct Domain {
    planner: Placements,
    state: State,
    at: Timestamp,
    facts: Vec<(Fact, Timestamp)>,
}

fn wanted(id: &str, cpu_milli: u32, memory_mb: u64) -> InstanceWanted {
    InstanceWanted {
        owner: "local".into(),
        instance_id: id.into(),
        intent_id: "intent".into(),
        replicas: 1,
        document: document(cpu_milli, memory_mb, false),
        ..Default::default()
    }
}

fn singleton(id: &str, cpu_milli: u32) -> InstanceWanted {
    InstanceWanted { document: document(cpu_milli, 1, true), ..wanted(id, cpu_milli, 1) }
}

fn document(cpu_milli: u32, memory_mb: u64, singleton: bool) -> Bytes {
    let resources = Resources { cpu_milli, memory_bytes: memory_mb * 1_000_000, ..Default::default() };
    let document = WorkloadDocument { resources: Some(resources), singleton, ..Default::default() };
    document.encode_to_vec().into()
}

fn below(percent: f64) -> Vec<TargetBound> {
    let (target_name, target_condition) = ("cpuUsage".to_owned(), "IS_LESS_THAN".to_owned());
    vec![TargetBound { target_name, target_condition, bound: percent }]
}

fn short(fact: &Fact) -> String {
    let with = |word: &str, value: &str| if value.is_empty() { String::new() } else { format!(" {word} {value}") };
    let flag = |word: &str, set: bool| if set { format!(" {word}") } else { String::new() };
    match fact {
        Fact::PlacementDecided(f) => {
            let (from, more) = (with("from", &f.from_cluster_id), flag("more", f.more));
            format!("decided {} {} {}{from}{more}", f.instance_id, f.generation, f.cluster_id)
        }
        Fact::PlacementUnplaced(f) => {
            format!("unplaced {}{}{}", f.instance_id, with("stays", &f.stays_on), flag("more", f.more))
        }
        Fact::PlacementReleased(f) => {
            let (stays, how) = (
                with("stays", &f.stays_on),
                flag("final", f.r#final) + &flag("awaited", f.awaited) + &flag("more", f.more),
            );
            format!("released {} {} {}{stays}{how}", f.instance_id, f.generation, f.cluster_id)
        }
        Fact::PlacementSettled(f) => {
            format!("settled {} {} {}{}", f.instance_id, f.generation, f.cluster_id, flag("failed", f.failed))
        }
        Fact::MigrationDeclined(f) => format!("declined {} {} {}", f.instance_id, f.generation, f.cluster_id),
        Fact::ClusterJoined(f) => format!("joined {}", f.cluster_id),
        Fact::ClusterLost(f) => format!("lost {}", f.cluster_id),
        Fact::ClusterReturned(f) => format!("returned {}", f.cluster_id),
        Fact::LatenciesNoted(f) => format!("noted {}{}", f.links.len(), flag("more", f.more)),
    }
}

impl Domain {
    fn new(limits: Limits) -> Self {
        let planner = Placements::new(limits);
        let state = planner.initial();
        Self { planner, state, at: Timestamp::from_millis(1_000_000), facts: vec![] }
    }

    /// Three clusters of 4, 1 and half a core.
    fn three() -> Self {
        let mut domain = Self::new(Limits { preference: Preference::Pack, ..Default::default() });
        for (id, cpu_milli) in [("cloud", 4000), ("edge", 1000), ("device", 500)] {
            domain.join(id, cpu_milli);
        }
        domain
    }

    fn ask(&mut self, what: Trigger<Input>) -> Vec<String> {
        let key = Key::new(["default"]);
        let envelope = Envelope { trigger: what, at: self.at, id: "id".into(), sequence: 1, body: Bytes::new() };
        let facts = self.planner.decide(&key, &self.state, &(), &envelope).unwrap();
        for fact in &facts {
            self.state = self.planner.evolve(std::mem::take(&mut self.state), fact, self.at);
            self.facts.push((fact.clone(), self.at));
        }
        facts.iter().map(short).collect()
    }

    fn hear(&mut self, input: impl Into<Input>) -> Vec<String> {
        self.at = self.at.plus_millis(1);
        self.ask(Trigger::Event(input.into()))
    }

    /// Lets time pass; what fell due is decided at its time.
    fn pass(&mut self, millis: i64) -> Vec<String> {
        let end = self.at.plus_millis(millis);
        let mut told = vec![];
        while let Some(due) = self.planner.due(&self.state).filter(|due| *due <= end) {
            assert!(due > self.state.last, "due rises");
            self.at = due;
            let facts = self.ask(Trigger::Due);
            assert!(!facts.is_empty(), "what fell due is answered");
            told.extend(facts);
        }
        self.at = end;
        told
    }

    fn join(&mut self, id: &str, cpu_milli: u32) -> Vec<String> {
        self.hear(ClusterRegistered {
            cluster_id: id.into(),
            cpu_milli,
            memory_bytes: 1_000_000_000,
            ..Default::default()
        })
    }

    /// The network as it is measured: both directions of each way, each cluster a site of its name.
    fn network(&mut self, ways: &[(&str, &str, f64)]) -> Vec<String> {
        let link = |from: &str, to: &str, latency_ms: f64| LinkCost {
            from_cluster: from.into(),
            to_cluster: to.into(),
            from_site: from.into(),
            to_site: to.into(),
            latency_ms: latency_ms.abs(),
            up: latency_ms >= 0.0,
            ..Default::default()
        };
        let links = ways.iter().flat_map(|(a, b, ms)| [link(a, b, *ms), link(b, a, *ms)]).collect();
        self.hear(CostsChanged { domain: "default".into(), version: 1, links, ..Default::default() })
    }

    fn alive(&mut self, id: &str, alive: bool) -> Vec<String> {
        self.hear(ReportLiveness { domain: "default".into(), cluster_id: id.into(), alive })
    }

    fn status(&mut self, cluster: &str, id: &str, generation: u64, phase: InstancePhase) -> Vec<String> {
        self.hear(said(cluster, id, generation, phase))
    }

    fn runs(&mut self, cluster: &str, id: &str, generation: u64) -> Vec<String> {
        self.status(cluster, id, generation, InstancePhase::Running)
    }

    fn fails(&mut self, cluster: &str, id: &str, generation: u64) -> Vec<String> {
        self.status(cluster, id, generation, InstancePhase::Failed)
    }

    fn remedy(&mut self, cluster: &str, id: &str, generation: u64, load_milli: u32) -> Vec<String> {
        self.hear(IntentRemedyWanted {
            owner: "local".into(),
            instance_id: id.into(),
            cluster_id: cluster.into(),
            generation,
            load_milli,
            memory_bytes: 1_000_000,
            reason: "cpuUsage missed twice".into(),
            targets: vec![TargetState { target_name: "cpuUsage".into(), missed: 2, ..Default::default() }],
            intent_id: "intent".into(),
            ..Default::default()
        })
    }

    fn unwanted(&mut self, id: &str, intent_id: &str) -> Vec<String> {
        self.hear(IntentRemedyUnwanted {
            owner: "local".into(),
            instance_id: id.into(),
            intent_id: intent_id.into(),
            ..Default::default()
        })
    }

    /// What the newest decision or refusal of one says of a cluster.
    fn ruled_out(&self, cluster: &str) -> String {
        let candidates = self.facts.iter().rev().find_map(|(fact, _)| match fact {
            Fact::PlacementDecided(f) => Some(&f.candidates),
            Fact::PlacementUnplaced(f) => Some(&f.candidates),
            _ => None,
        });
        let found = candidates.into_iter().flatten().find(|c| c.cluster_id == cluster);
        found.map(|c| c.ruled_out.clone()).unwrap()
    }

    /// Was it last said to have failed wherever it could run?
    fn used_up(&self) -> bool {
        let said = self.facts.iter().rev().find_map(|(fact, _)| match fact {
            Fact::PlacementUnplaced(f) => Some(f.used_up),
            _ => None,
        });
        said.unwrap()
    }

    fn advised(&mut self, id: &str, generation: u64, from: &str, to: &str) -> Vec<String> {
        let advised = LearningAdvised {
            domain: "default".into(),
            owner: "local".into(),
            instance_id: id.into(),
            generation,
            planned_cluster_id: from.into(),
            cluster_id: to.into(),
            reason: "cheaper".into(),
            ..Default::default()
        };
        let concerned = self.planner.concerns(&Input::LearningAdvised(advised.clone()), &());
        if concerned.is_empty() { vec![] } else { self.hear(advised) }
    }

    /// Somebody asks that it be moved from where it was heard to be.
    fn migrate(&mut self, from: &str, generation: u64, to: &str) -> Vec<String> {
        self.hear(MigrationWanted {
            owner: "local".into(),
            instance_id: "i".into(),
            cluster_id: from.into(),
            generation,
            to_cluster_id: to.into(),
            ..Default::default()
        })
    }

    /// The reason of the newest fact that has one.
    fn reason(&self) -> &str {
        let mut reasons = self.facts.iter().rev().filter_map(|(fact, _)| match fact {
            Fact::PlacementDecided(f) => Some(f.reason.as_str()),
            Fact::PlacementUnplaced(f) => Some(&f.reason),
            Fact::PlacementReleased(f) => Some(&f.reason),
            Fact::PlacementSettled(f) if f.failed => Some(&f.reason),
            Fact::MigrationDeclined(f) => Some(&f.reason),
            _ => None,
        });
        reasons.next().unwrap_or_default()
    }

    fn reserved(&self, cluster: &str) -> u64 {
        self.state.snapshot.clusters[cluster].cpu_milli_reserved
    }
}

fn said(cluster: &str, id: &str, generation: u64, phase: InstancePhase) -> InstanceStatusChanged {
    InstanceStatusChanged {
        cluster_id: cluster.into(),
        instance_id: id.into(),
        generation,
        phase: phase.into(),
        reason: "why".into(),
        ..Default::default()
    }
}

/// Nothing.
const SILENCE: Vec<String> = vec![];

#[test]
fn a_load_too_large_moves_to_the_cloud_and_frees_the_device() {
    let mut domain = Domain::three();
    let want = InstanceWanted { targets: below(20.0), ..wanted("i", 50, 50) };
    assert_eq!(domain.hear(want.clone()), ["decided i 1 device"]);
    assert_eq!(domain.reason(), "wanted by intent intent");
    assert_eq!(domain.hear(want), SILENCE, "the same again changes nothing");
    assert_eq!(domain.runs("device", "i", 1), ["settled i 1 device"]);
    assert_eq!(domain.runs("device", "i", 1), SILENCE);
    assert_eq!(domain.remedy("device", "i", 1, 300), ["decided i 2 cloud from device"]);
    assert_eq!((domain.reserved("device"), domain.reserved("cloud")), (50, 50));
    let decided = domain.facts.iter().rev().find_map(|(f, _)| match f {
        Fact::PlacementDecided(f) => Some(f.clone()),
        _ => None,
    });
    let decided = decided.unwrap();
    assert_eq!(decided.load_milli, 300);
    let ruled_out = |id: &str| decided.candidates.iter().find(|c| c.cluster_id == id).unwrap().ruled_out.clone();
    assert_eq!(ruled_out("edge"), "cpuUsage would be 30.0 %, wanted IS_LESS_THAN 20: 10.0 over");
    assert!(ruled_out("device").starts_with("its targets are missed here; cpuUsage would be 60.0 %"));
    assert_eq!(domain.remedy("device", "i", 1, 300), SILENCE, "a move is under way");
    assert_eq!(domain.runs("cloud", "i", 2), ["settled i 2 cloud", "released i 1 device"]);
    assert_eq!((domain.reserved("device"), domain.reserved("cloud")), (0, 50));
    assert_eq!(domain.remedy("device", "i", 1, 300), SILENCE, "an older generation missed");
    assert_eq!(domain.pass(1_000_000), SILENCE, "nothing is due");
}

#[test]
fn advice_counts_only_if_enabled_and_within_constraints() {
    let told = |acts_on_advice| {
        let mut domain = Domain::three();
        domain.planner = Placements::new(Limits { acts_on_advice, preference: Preference::Pack, ..Default::default() });
        domain.hear(InstanceWanted { targets: below(50.0), ..wanted("i", 300, 10) });
        assert_eq!(domain.reason(), "wanted by intent intent");
        let at = domain.state.instances["i"].at.as_ref().unwrap().cluster_id.clone();
        assert_eq!(at, "edge", "60 % of the device would miss the target");
        assert_eq!(domain.advised("i", 1, "edge", "cloud"), SILENCE, "it does not run yet");
        domain.runs("edge", "i", 1);
        assert_eq!(domain.advised("i", 1, "edge", "device"), SILENCE, "the planner rules the device out");
        assert_eq!(domain.advised("i", 1, "edge", "nowhere"), SILENCE);
        assert_eq!(domain.advised("i", 1, "edge", "edge"), SILENCE);
        assert_eq!(domain.advised("i", 2, "edge", "cloud"), SILENCE, "about another decision");
        assert_eq!(domain.advised("i", 1, "device", "cloud"), SILENCE, "about another place");
        domain.advised("i", 1, "edge", "cloud")
    };
    assert_eq!(told(false), SILENCE);
    assert_eq!(told(true), ["decided i 2 cloud from edge"]);
}

#[test]
fn advice_to_a_cluster_that_missed_is_not_acted_on() {
    let mut domain = Domain::three();
    let limits = Limits { acts_on_advice: true, preference: Preference::Pack, ..Default::default() };
    domain.planner = Placements::new(limits);
    domain.hear(InstanceWanted { targets: below(20.0), ..wanted("i", 50, 50) });
    domain.runs("device", "i", 1);
    assert_eq!(domain.remedy("device", "i", 1, 150), ["decided i 2 edge from device"]);
    domain.runs("edge", "i", 2);
    domain.pass(60_000);
    assert_eq!(domain.advised("i", 2, "edge", "device"), SILENCE, "its targets were missed there");
    assert_eq!(domain.advised("i", 2, "edge", "cloud"), ["decided i 3 cloud from edge"]);
}

#[test]
fn a_requested_move_goes_where_asked_or_to_the_best_other() {
    let mut domain = Domain::three();
    domain.hear(wanted("i", 300, 50));
    domain.runs("device", "i", 1);
    assert_eq!(domain.migrate("device", 1, "cloud"), ["decided i 2 cloud from device"]);
    assert_eq!(domain.reason(), "moved because its owner asked for it");
    assert_eq!(domain.migrate("device", 1, "edge"), ["declined i 1 device"], "it is moving");
    domain.runs("cloud", "i", 2);
    assert_eq!(domain.migrate("cloud", 2, ""), ["decided i 3 device from cloud"], "the smallest that does, not here");
}

#[test]
fn a_move_that_cannot_be_is_declined_with_the_reason_and_changes_nothing() {
    let mut domain = Domain::three();
    domain.hear(wanted("i", 800, 50));
    assert_eq!(domain.migrate("edge", 1, "cloud"), ["declined i 1 edge"], "it does not run yet");
    domain.runs("edge", "i", 1);
    let before = domain.state.clone();
    for (generation, to, why) in [
        (1, "device", "device: needs 800 mCPU, 500 free: 300 short"),
        (1, "nowhere", "there is no cluster nowhere"),
        (7, "cloud", "it has moved since"),
    ] {
        assert_eq!(domain.migrate("edge", generation, to), [format!("declined i {generation} edge")], "{to}");
        assert!(domain.reason().contains(why), "{}", domain.reason());
    }
    domain.alive("cloud", false);
    assert_eq!(domain.migrate("edge", 1, ""), ["declined i 1 edge"]);
    assert!(domain.reason().contains("no other cluster can take it"), "{}", domain.reason());
    domain.alive("cloud", true);
    assert_eq!(domain.state.instances, before.instances);
    assert_eq!(domain.pass(1_000_000), SILENCE, "nothing is due");
    let stranger = MigrationWanted { owner: "other".into(), instance_id: "i".into(), ..Default::default() };
    assert_eq!(domain.hear(stranger), SILENCE, "an instance of another owner is not touched");
}

#[test]
fn a_chart_waits_for_a_cluster_with_a_driver_for_charts() {
    let mut domain = Domain::three();
    let chart = WorkloadDocument { kind: "chart".into(), ..Default::default() };
    domain.hear(InstanceWanted { document: chart.encode_to_vec().into(), ..wanted("i", 0, 0) });
    assert!(domain.reason().contains("has no driver for charts"), "{}", domain.reason());
    let labels = [(plan::CHARTS.to_owned(), "true".to_owned())].into();
    let cluster_id = "k8s".to_owned();
    let k8s = ClusterRegistered { cluster_id, cpu_milli: 100, memory_bytes: 1_000_000, labels, ..Default::default() };
    assert_eq!(domain.hear(k8s), ["joined k8s", "decided i 1 k8s"]);
}

#[test]
fn a_migration_to_nowhere_better_changes_nothing() {
    use mesh_proto::remedy::Action;
    let mut domain = Domain::three();
    domain.hear(wanted("i", 2_000, 50));
    domain.runs("cloud", "i", 1);
    assert_eq!(domain.hear(remedy_of(Action::Migrate, "cloud", 1)), SILENCE, "it fits nowhere else");
    assert!(domain.state.instances["i"].unplaced.is_none());
    assert_eq!(domain.pass(1_000_000), SILENCE, "nothing is due");
}

#[test]
fn a_remedy_waits_for_the_cool_down_of_the_move_before() {
    let mut domain = Domain::three();
    domain.hear(InstanceWanted { targets: below(20.0), ..wanted("i", 50, 50) });
    domain.runs("device", "i", 1);
    domain.remedy("device", "i", 1, 150);
    assert_eq!(domain.reason(), "cpuUsage missed twice");
    domain.runs("edge", "i", 2);
    assert_eq!(domain.remedy("edge", "i", 2, 300), SILENCE);
    domain.pass(60_000);
    assert_eq!(domain.remedy("edge", "i", 2, 300), ["decided i 3 cloud from edge"]);
}

#[test]
fn it_stays_with_the_nearest_miss_until_a_cluster_would_do() {
    let mut domain = Domain::three();
    domain.hear(InstanceWanted { targets: below(20.0), ..wanted("i", 50, 50) });
    domain.runs("device", "i", 1);
    assert_eq!(domain.remedy("device", "i", 1, 2000), ["unplaced i stays device"]);
    let miss = "nearest miss: cloud: cpuUsage would be 50.0 %, wanted IS_LESS_THAN 20: 30.0 over";
    assert_eq!(domain.reason(), format!("no cluster would do better than device; {miss}"));
    assert_eq!(domain.remedy("device", "i", 1, 3000), ["unplaced i stays device"], "what is asked is answered");
    let miss = "nearest miss: cloud: cpuUsage would be 75.0 %, wanted IS_LESS_THAN 20: 55.0 over";
    assert_eq!(domain.reason(), format!("no cluster would do better than device; {miss}"));
    assert_eq!(domain.pass(1_000_000), SILENCE, "unasked, nothing is said");
    assert_eq!(domain.join("tiny", 10), ["joined tiny"], "it changes nothing");
    assert_eq!(domain.join("huge", 100_000), ["joined huge", "decided i 2 huge from device"]);
}

#[test]
fn a_withdrawn_remedy_moves_nothing_when_capacity_appears() {
    let mut domain = Domain::three();
    domain.hear(InstanceWanted { targets: below(20.0), ..wanted("i", 50, 50) });
    domain.runs("device", "i", 1);
    assert_eq!(domain.unwanted("i", "intent"), SILENCE, "nothing was asked for");
    domain.remedy("device", "i", 1, 2000);
    assert_eq!(domain.unwanted("i", "another"), SILENCE, "another intent's word");
    assert_eq!(domain.unwanted("i", "intent"), ["settled i 1 device"]);
    assert_eq!(domain.unwanted("i", "intent"), SILENCE);
    assert_eq!(domain.join("huge", 100_000), ["joined huge"]);
    assert_eq!(domain.remedy("device", "i", 1, 2000), ["decided i 2 huge from device"]);
}

#[test]
fn a_remedy_of_two_intents_is_wanted_until_both_withdraw_it() {
    let mut domain = Domain::three();
    domain.hear(InstanceWanted { targets: below(20.0), ..wanted("i", 50, 50) });
    domain.runs("device", "i", 1);
    domain.remedy("device", "i", 1, 2000);
    domain.hear(IntentRemedyWanted {
        owner: "local".into(),
        intent_id: "governor".into(),
        instance_id: "i".into(),
        cluster_id: "device".into(),
        generation: 1,
        ..Default::default()
    });
    assert_eq!(domain.unwanted("i", "intent"), ["unplaced i stays device"]);
    assert_eq!(domain.join("huge", 100_000), ["joined huge", "decided i 2 huge from device"]);
    assert_eq!(domain.unwanted("i", "governor"), SILENCE, "it has moved");
}

#[test]
fn a_remedy_for_what_waits_for_room_is_answered_with_that() {
    let mut domain = Domain::three();
    domain.hear(wanted("i", 50, 1));
    domain.runs("device", "i", 1);
    assert_eq!(domain.hear(InstanceWanted { replicas: 90, ..wanted("i", 50, 1) }), ["unplaced i stays device"]);
    let miss = "nearest miss: cloud: needs 4500 mCPU, 4000 free: 500 short";
    assert_eq!(domain.reason(), miss);
    assert_eq!(domain.remedy("device", "i", 1, 300), ["unplaced i stays device"]);
    assert_eq!(domain.reason(), miss);
    let asked_by = domain.facts.iter().rev().find_map(|(fact, _)| match fact {
        Fact::PlacementUnplaced(f) => Some(f.asked_by.clone()),
        _ => None,
    });
    assert_eq!(asked_by, Some(vec!["intent".to_owned()]), "who asked hears it");
    assert_eq!(domain.unwanted("i", "intent"), SILENCE, "it still waits for room");
    assert_eq!(domain.join("huge", 100_000), ["joined huge", "decided i 2 huge from device"]);
}

#[test]
fn clusters_that_missed_are_gone_to_once_and_each_says_why_it_is_out() {
    let mut domain = Domain::new(Limits::default());
    domain.join("a", 1000);
    domain.join("b", 1000);
    // Predicted to hold everywhere, and missed everywhere.
    let want = InstanceWanted { targets: below(50.0), ..wanted("i", 100, 50) };
    domain.hear(want.clone());
    domain.runs("a", "i", 1);
    assert_eq!(domain.remedy("a", "i", 1, 400), ["decided i 2 b from a"]);
    domain.runs("b", "i", 2);
    domain.pass(60_000);
    assert_eq!(domain.remedy("b", "i", 2, 410), ["unplaced i stays b"]);
    assert_eq!(domain.ruled_out("a"), "its targets were missed here: cpuUsage missed twice");
    assert_eq!(domain.ruled_out("b"), "its targets are missed here");
    assert!(domain.reason().contains("a: its targets were missed here: cpuUsage missed twice"), "{}", domain.reason());
    assert_eq!(domain.alive("a", false), ["lost a", "unplaced i stays b"]);
    assert_eq!(domain.alive("a", true), ["returned a", "unplaced i stays b"], "its return alone makes it no better");
    assert_eq!(domain.join("c", 1000), ["joined c", "decided i 3 c from b"]);
    domain.runs("c", "i", 3);
    domain.pass(60_000);
    assert_eq!(domain.remedy("c", "i", 3, 400), ["unplaced i stays c"], "all were gone to");
    assert_eq!(domain.pass(10_000_000), SILENCE);
    // A cluster of another size is another cluster.
    assert_eq!(domain.join("b", 1200), ["joined b", "decided i 4 b from c"]);
    domain.runs("b", "i", 4);
    domain.pass(60_000);
    assert_eq!(domain.remedy("b", "i", 4, 361), ["unplaced i stays b"], "less, but not by more than a tenth");
    assert_eq!(
        domain.remedy("b", "i", 4, 359),
        ["decided i 5 a from b"],
        "a load that has fallen by more than a tenth"
    );
    domain.runs("a", "i", 5);
    // Another definition is another matter.
    assert_eq!(domain.hear(InstanceWanted { targets: below(45.0), ..want }), ["decided i 6 a"]);
    domain.runs("a", "i", 6);
    assert!(domain.state.instances["i"].missed.is_empty());
}

#[test]
fn what_was_missed_elsewhere_is_forgotten_once_the_targets_held_for_long() {
    let mut domain = Domain::new(Limits::default());
    domain.join("a", 1000);
    domain.join("b", 1000);
    domain.hear(InstanceWanted { targets: below(50.0), ..wanted("i", 100, 50) });
    domain.runs("a", "i", 1);
    domain.remedy("a", "i", 1, 400);
    domain.runs("b", "i", 2);
    domain.pass(1_000_000);
    let missed = |domain: &Domain, since: Timestamp| IntentRemedyWanted {
        owner: "local".into(),
        instance_id: "i".into(),
        cluster_id: "b".into(),
        generation: 2,
        load_milli: 400,
        missed_since: Some(since.max(domain.state.instances["i"].at.as_ref().unwrap().since)),
        ..Default::default()
    };
    let all_along = missed(&domain, Timestamp::default());
    assert_eq!(domain.hear(all_along), ["unplaced i stays b"]);
    let lately = missed(&domain, domain.at);
    assert_eq!(domain.hear(lately), ["decided i 3 a from b"]);
}

#[test]
fn freed_room_goes_to_the_smallest_that_waited_and_no_other() {
    let mut domain = Domain::new(Limits::default());
    domain.join("a", 1000);
    domain.join("b", 100);
    domain.hear(wanted("holder", 900, 50));
    for (id, cpu_milli) in [("large", 950), ("medium", 400), ("small", 300), ("too-large", 2_000)] {
        assert_eq!(domain.hear(wanted(id, cpu_milli, 50)), [format!("unplaced {id}")]);
    }
    let bound = InstanceWanted { targets: below(1.0), ..wanted("bound", 200, 50) };
    assert_eq!(domain.hear(bound), ["unplaced bound"]);
    let names = |domain: &Domain, cluster: &str| -> Vec<String> {
        domain.state.rooms[cluster].iter().map(|(_, _, id)| id.clone()).collect()
    };
    assert_eq!(names(&domain, "a"), ["small", "medium", "large", "too-large"], "room alone does not help `bound`");
    let ended = InstanceWanted { replicas: 0, ..wanted("holder", 900, 50) };
    assert_eq!(domain.hear(ended), ["released holder 1 a final", "decided small 1 a", "decided medium 1 a"]);
    assert_eq!(names(&domain, "a"), ["large", "too-large"]);
}

#[test]
fn a_snapshot_holds_each_document_once_and_gives_the_very_same_state() {
    let mut domain = Domain::three();
    for n in 0..40 {
        domain.hear(InstanceWanted { targets: below(90.0), ..wanted(&format!("i{n:02}"), 10 + n % 2, 50) });
    }
    domain.hear(wanted("waits", 100_000, 50));
    domain.hear(singleton("once", 50));
    domain.hear(InstanceWanted { replicas: 0, ..singleton("once", 50) });
    domain.runs("device", "i00", 1);
    domain.remedy("device", "i00", 1, 400);
    let bytes = serde_json::to_vec(&domain.state).unwrap();
    let read: State = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(read, domain.state);
    assert_eq!(serde_json::to_vec(&read).unwrap(), bytes);
    let value: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(value["documents"].as_array().unwrap().len(), 4, "two, one that waits, none of what has ended");
}

#[test]
fn a_failed_or_silent_target_is_released_and_the_source_stays() {
    let mut domain = Domain::three();
    domain.hear(InstanceWanted { targets: below(40.0), ..wanted("i", 50, 50) });
    domain.runs("device", "i", 1);
    assert_eq!(domain.remedy("device", "i", 1, 300), ["decided i 2 edge from device"]);
    assert_eq!(domain.fails("edge", "i", 2), ["released i 2 edge stays device"]);
    assert_eq!((domain.reserved("device"), domain.reserved("edge")), (50, 0));
    assert_eq!(domain.runs("edge", "i", 2), SILENCE, "too late");
    assert_eq!(domain.remedy("device", "i", 1, 300), SILENCE, "the cool-down counts from the decision");
    domain.pass(60_000);
    assert_eq!(
        domain.remedy("device", "i", 1, 300),
        ["decided i 3 cloud from device"],
        "edge failed, and 2 is used up"
    );
    assert_eq!(domain.pass(29_999), SILENCE);
    assert_eq!(domain.pass(1), ["released i 3 cloud stays device"]);
    assert_eq!(domain.reason(), "not running on cloud within 30000 ms");
    domain.pass(60_000);
    assert_eq!(domain.remedy("device", "i", 1, 300), ["unplaced i stays device"], "both failed");
    domain.pass(600_000);
    assert_eq!(
        domain.remedy("device", "i", 1, 300),
        ["decided i 4 edge from device"],
        "failures are forgotten in time"
    );
}

#[test]
fn a_source_that_fails_during_a_move_leaves_the_target_alone() {
    let mut domain = Domain::three();
    domain.hear(InstanceWanted { targets: below(40.0), ..wanted("i", 50, 50) });
    domain.runs("device", "i", 1);
    domain.remedy("device", "i", 1, 300);
    assert_eq!(domain.fails("device", "i", 1), ["released i 1 device"]);
    assert_eq!(domain.fails("edge", "i", 2), ["decided i 3 cloud", "released i 2 edge"]);
}

#[test]
fn what_must_never_run_twice_is_stopped_before_it_starts_elsewhere() {
    let mut domain = Domain::three();
    let want = InstanceWanted { targets: below(40.0), ..singleton("i", 50) };
    domain.hear(want);
    domain.runs("device", "i", 1);
    assert_eq!(domain.remedy("device", "i", 1, 300), ["released i 1 device awaited", "unplaced i"]);
    assert_eq!(domain.reason(), "never runs twice: waits until device has stopped it");
    assert_eq!(domain.reserved("device"), 50, "it still runs");
    assert_eq!(domain.join("more", 9_000), ["joined more"], "more capacity does not hurry it");
    assert_eq!(domain.alive("device", false), ["lost device"], "a cluster cut off may be running it");
    assert_eq!(domain.pass(1_000_000), SILENCE);
    assert_eq!(domain.alive("device", true), ["returned device"]);
    assert_eq!(domain.status("device", "i", 1, InstancePhase::Stopped), ["decided i 2 edge"]);
    assert_eq!((domain.reserved("device"), domain.reserved("edge")), (0, 50));
}

#[test]
fn what_must_never_run_twice_waits_for_its_lost_cluster() {
    let mut domain = Domain::three();
    domain.hear(singleton("i", 50));
    domain.runs("device", "i", 1);
    assert_eq!(domain.alive("device", false), ["lost device", "unplaced i stays device"]);
    assert_eq!(domain.reason(), "cluster lost: device; never runs twice, so it waits for its return");
    assert_eq!(domain.join("more", 9_000), ["joined more"]);
    assert_eq!(domain.alive("device", true), ["returned device", "decided i 2 device"]);
}

#[test]
fn what_must_never_run_twice_waits_for_the_end_of_who_had_its_id_before() {
    let mut domain = Domain::three();
    domain.hear(singleton("i", 50));
    domain.runs("device", "i", 1);
    let none = InstanceWanted { replicas: 0, ..singleton("i", 50) };
    assert_eq!(domain.hear(none.clone()), ["released i 1 device final"]);
    assert_eq!(domain.hear(none), SILENCE);
    assert_eq!(domain.reserved("device"), 0);
    assert_eq!(domain.hear(singleton("i", 60)), ["unplaced i"]);
    assert_eq!(domain.reason(), "never runs twice: waits until device has stopped it");
    assert_eq!(domain.status("device", "i", 1, InstancePhase::Stopped), ["decided i 2 device"]);
    let none = InstanceWanted { replicas: 0, ..singleton("i", 60) };
    assert_eq!(domain.hear(none), ["released i 2 device final"]);
    assert_eq!(domain.status("device", "i", 2, InstancePhase::Stopped), ["released i 2 device final"]);
    assert_eq!((domain.state.ending.len(), domain.state.instances.len()), (0, 0));
}

#[test]
fn what_was_stopped_for_a_better_place_that_is_gone_runs_where_it_was() {
    let mut domain = Domain::new(Limits::default());
    domain.join("a", 1000);
    domain.join("b", 1000);
    domain.hear(InstanceWanted { targets: below(50.0), ..singleton("i", 100) });
    domain.runs("a", "i", 1);
    assert_eq!(domain.remedy("a", "i", 1, 400), ["released i 1 a awaited", "unplaced i"]);
    domain.alive("b", false);
    assert_eq!(domain.status("a", "i", 1, InstancePhase::Stopped), ["decided i 2 a"]);
}

#[test]
fn a_first_placement_that_does_not_start_in_time_is_planned_elsewhere() {
    let mut domain = Domain::three();
    domain.hear(wanted("i", 50, 50));
    domain.status("device", "i", 1, InstancePhase::Starting);
    assert_eq!(domain.pass(29_998), SILENCE);
    assert_eq!(domain.pass(1), ["decided i 2 edge", "released i 1 device"]);
    assert_eq!(domain.pass(30_000), ["decided i 3 cloud", "released i 2 edge"]);
    assert_eq!(domain.pass(30_000), ["unplaced i stays cloud"], "all were tried");
    assert!(domain.reason().starts_with("not started on cloud; no cluster qualifies: cloud: failed"));
    assert_eq!(domain.pass(1_000_000), SILENCE);
    assert_eq!(domain.join("new", 100), ["joined new", "decided i 4 new", "released i 3 cloud"]);
    assert_eq!(domain.runs("new", "i", 4), ["settled i 4 new"]);
}

#[test]
fn a_cluster_that_answers_late_after_all_keeps_the_instance() {
    let mut domain = Domain::new(Limits::default());
    domain.join("a", 1000);
    domain.hear(wanted("i", 50, 50));
    assert_eq!(domain.pass(60_000), ["unplaced i stays a"]);
    assert_eq!(domain.runs("a", "i", 1), ["settled i 1 a"]);
    assert_eq!(domain.join("b", 1000), ["joined b"], "it runs where it is");
}

#[test]
fn a_failure_is_tried_elsewhere_at_most_three_times_and_then_stays() {
    let mut domain = Domain::new(Limits::default());
    for id in ["a", "b", "c", "d", "e", "f"] {
        domain.join(id, 1000);
    }
    domain.hear(wanted("i", 50, 50));
    assert_eq!(domain.fails("a", "i", 1), ["decided i 2 b", "released i 1 a"]);
    assert_eq!(domain.runs("b", "i", 2), ["settled i 2 b"]);
    assert_eq!(domain.fails("b", "i", 2), ["decided i 3 c", "released i 2 b"], "having run does not reset the count");
    assert_eq!(domain.fails("c", "i", 3), ["decided i 4 d", "released i 3 c"]);
    assert_eq!(domain.fails("d", "i", 4), ["settled i 4 d failed"]);
    assert_eq!(domain.reason(), "failed on d: why; tried on a, b, c, d and not further");
    assert_eq!(domain.fails("d", "i", 4), SILENCE);
    assert_eq!(domain.pass(1_000_000), SILENCE);
    assert_eq!(domain.hear(wanted("i", 50, 50)), ["decided i 5 d"], "asked for again, it is tried again");
}

#[test]
fn a_failure_long_after_the_last_starts_anew() {
    let mut domain = Domain::new(Limits { attempts_elsewhere: 1, ..Default::default() });
    domain.join("a", 1000);
    domain.join("b", 1000);
    domain.hear(wanted("i", 50, 50));
    domain.runs("a", "i", 1);
    assert_eq!(domain.fails("a", "i", 1), ["decided i 2 b", "released i 1 a"]);
    domain.runs("b", "i", 2);
    domain.pass(600_000);
    assert_eq!(domain.fails("b", "i", 2), ["decided i 3 a", "released i 2 b"]);
    domain.runs("a", "i", 3);
    assert_eq!(domain.fails("a", "i", 3), ["settled i 3 a failed"]);
}

#[test]
fn a_failure_with_nowhere_to_go_stays_to_be_seen_until_a_cluster_joins() {
    let mut domain = Domain::new(Limits::default());
    domain.join("a", 1000);
    domain.hear(wanted("i", 50, 50));
    domain.join("tiny", 10);
    domain.runs("a", "i", 1);
    assert_eq!(domain.fails("a", "i", 1), ["unplaced i stays a"]);
    assert_eq!(domain.reason(), "failed on a: why; tried on a, and no other cluster could take it");
    assert!(domain.used_up());
    assert_eq!(domain.fails("a", "i", 1), SILENCE);
    assert_eq!(domain.join("small", 20), ["joined small"], "too small ever to take it");
    assert_eq!(domain.join("b", 1000), ["joined b", "decided i 2 b", "released i 1 a"]);
}

#[test]
fn while_another_cluster_may_yet_take_it_a_failure_is_not_the_end() {
    let mut domain = Domain::new(Limits::default());
    domain.join("a", 1000);
    domain.join("b", 1000);
    domain.hear(wanted("full", 1000, 50));
    domain.hear(wanted("i", 50, 50));
    assert_eq!(domain.fails("b", "i", 1), ["unplaced i stays b"]);
    assert!(!domain.used_up(), "room may come free on a");
    assert_eq!(domain.join("a", 30), ["joined a", "unplaced i stays b"]);
    assert!(domain.used_up(), "it is too small now");
    assert_eq!(domain.reason(), "failed on b; tried on b, and no other cluster could take it");
    assert_eq!(domain.hear(wanted("i", 50, 50)), ["decided i 2 b"], "asked for again, it is tried again");
}

#[test]
fn a_hopeless_failure_is_not_tried_elsewhere() {
    let mut domain = Domain::three();
    domain.hear(wanted("i", 50, 50));
    let failed = InstanceStatusChanged { hopeless: true, ..said("device", "i", 1, InstancePhase::Failed) };
    assert_eq!(domain.hear(failed.clone()), ["settled i 1 device failed"]);
    assert_eq!(domain.hear(failed), SILENCE);
    assert_eq!(domain.pass(1_000_000), SILENCE);
    assert_eq!(domain.join("new", 1000), ["joined new"]);
    let fixed = InstanceWanted { document: document(60, 50, false), ..wanted("i", 60, 50) };
    assert_eq!(domain.hear(fixed), ["decided i 2 device"], "a new document is");
}

#[test]
fn a_cluster_that_would_not_take_it_is_asked_again_after_a_while() {
    let mut domain = Domain::new(Limits::default());
    domain.join("a", 1000);
    domain.join("b", 1000);
    domain.hear(wanted("i", 50, 50));
    let no = |cluster: &str, generation| InstanceRejected {
        cluster_id: cluster.into(),
        instance_id: "i".into(),
        generation,
        reason: "over capacity".into(),
        ..Default::default()
    };
    assert_eq!(domain.hear(no("a", 1)), ["decided i 2 b", "released i 1 a"]);
    assert_eq!(domain.hear(no("a", 1)), SILENCE, "of an older generation");
    assert_eq!(domain.hear(no("b", 2)), ["released i 2 b", "unplaced i"]);
    assert_eq!((domain.reserved("a"), domain.reserved("b")), (0, 0));
    assert_eq!(domain.pass(29_999), SILENCE);
    assert_eq!(domain.pass(1), ["decided i 3 a"]);
}

#[test]
fn instances_of_a_lost_cluster_are_planned_elsewhere() {
    let mut domain = Domain::three();
    domain.hear(wanted("i", 50, 50));
    domain.hear(wanted("j", 50, 50));
    domain.runs("device", "i", 1);
    let told = domain.alive("device", false);
    let planned = ["decided i 2 edge", "released i 1 device", "decided j 2 edge", "released j 1 device"];
    assert_eq!(told, [&["lost device"][..], &planned].concat());
    assert_eq!(domain.reason(), "planned on edge: cluster lost: device");
    assert_eq!(domain.alive("device", false), SILENCE, "no news");
    assert_eq!(domain.alive("device", true), ["returned device"]);
    assert_eq!(domain.alive("nobody", false), SILENCE, "never joined");
}

#[test]
fn what_only_a_lost_cluster_can_run_waits_for_its_return() {
    let mut domain = Domain::new(Limits::default());
    domain.join("a", 1000);
    domain.join("small", 10);
    domain.hear(wanted("i", 50, 50));
    domain.runs("a", "i", 1);
    assert_eq!(domain.alive("a", false), ["lost a", "unplaced i stays a"]);
    assert_eq!(domain.reason(), "cluster lost: a; nearest miss: small: needs 50 mCPU, 10 free: 40 short");
    assert_eq!(domain.alive("a", true), ["returned a", "decided i 2 a"]);
}

#[test]
fn losing_source_or_target_of_a_move_keeps_the_other() {
    let mut domain = Domain::three();
    domain.hear(InstanceWanted { targets: below(40.0), ..wanted("i", 50, 50) });
    domain.runs("device", "i", 1);
    domain.remedy("device", "i", 1, 300);
    assert_eq!(domain.alive("edge", false), ["lost edge", "released i 2 edge stays device"]);
    domain.pass(60_000);
    assert_eq!(domain.remedy("device", "i", 1, 300), ["decided i 3 cloud from device"]);
    assert_eq!(domain.alive("device", false), ["lost device", "released i 1 device"]);
    assert_eq!(domain.runs("cloud", "i", 3), ["settled i 3 cloud"]);
}

#[test]
fn more_than_one_decision_holds_is_gone_on_with_at_once() {
    let mut domain = Domain::new(Limits::default());
    domain.join("a", 100_000);
    for n in 0..250 {
        domain.hear(wanted(&format!("i{n:03}"), 10, 1));
    }
    domain.join("b", 100_000);
    assert_eq!(domain.alive("a", false).len(), 1 + 2 * ACTIONS_MAX);
    assert_eq!(domain.pass(1).len(), 2 * ACTIONS_MAX);
    assert_eq!(domain.pass(1).len(), 2 * 50);
    assert_eq!((domain.reserved("a"), domain.reserved("b")), (0, 2_500));
    // And the same for those who wait for capacity.
    domain.alive("b", false);
    domain.pass(10);
    assert_eq!(domain.state.unplaced.len(), 250);
    let told = domain.join("c", 2_000);
    assert_eq!((told.len(), told.last().is_some_and(|t| t.ends_with(" more"))), (1 + 2 * ACTIONS_MAX, true));
    let placed = domain.pass(1);
    assert_eq!(placed.iter().filter(|t| t.starts_with("decided")).count(), 100);
    domain.pass(10);
    assert_eq!((domain.reserved("c"), domain.state.unplaced.len(), domain.state.more), (2_000, 50, false));
    assert_eq!(domain.pass(29_000), SILENCE);
}

#[test]
fn the_unplaced_name_what_is_missing_and_wait_for_capacity() {
    let mut domain = Domain::new(Limits::default());
    assert_eq!(domain.hear(wanted("i", 500, 50)), ["unplaced i"]);
    assert_eq!(domain.reason(), "no cluster has joined");
    assert_eq!(domain.join("a", 400), ["joined a", "unplaced i"]);
    assert_eq!(domain.reason(), "nearest miss: a: needs 500 mCPU, 400 free: 100 short");
    assert_eq!(domain.join("a", 400), SILENCE, "registered again, the same");
    assert_eq!(domain.join("a", 600), ["joined a", "decided i 1 a"]);
    assert_eq!(domain.hear(wanted("j", 300, 50)), ["unplaced j"]);
    assert_eq!(domain.hear(wanted("k", 550, 50)), ["unplaced k"]);
    let ended = InstanceWanted { replicas: 0, ..wanted("i", 500, 50) };
    assert_eq!(domain.hear(ended.clone()), ["released i 1 a final", "decided j 1 a"]);
    assert_eq!(domain.hear(ended), SILENCE);
    assert_eq!(domain.hear(wanted("i", 100, 50)), ["decided i 2 a"], "its old id, a new generation");
}

#[test]
fn an_instance_that_ends_is_released_wherever_it_is() {
    let mut domain = Domain::three();
    domain.hear(InstanceWanted { targets: below(40.0), ..wanted("i", 50, 50) });
    domain.runs("device", "i", 1);
    domain.remedy("device", "i", 1, 300);
    let none = InstanceWanted { replicas: 0, ..wanted("i", 50, 50) };
    assert_eq!(domain.hear(none), ["released i 2 edge", "released i 1 device final"]);
    assert_eq!(domain.state.instances.len(), 0);
    domain.hear(wanted("big", 50_000, 50));
    let none = InstanceWanted { replicas: 0, ..wanted("big", 50, 50) };
    assert_eq!(domain.hear(none), ["released big 2  final"]);
}

#[test]
fn a_new_definition_stays_if_it_can_and_moves_if_it_must() {
    let mut domain = Domain::three();
    domain.hear(wanted("i", 50, 50));
    domain.runs("device", "i", 1);
    assert_eq!(domain.hear(InstanceWanted { replicas: 2, ..wanted("i", 50, 50) }), ["decided i 2 device"]);
    assert_eq!(domain.reserved("device"), 100);
    domain.runs("device", "i", 2);
    let larger = InstanceWanted { replicas: 12, ..wanted("i", 50, 50) };
    assert_eq!(domain.hear(larger), ["decided i 3 edge from device"]);
    let again = InstanceWanted { replicas: 30, ..wanted("i", 50, 50) };
    let told = domain.hear(again);
    assert_eq!(told, ["released i 3 edge stays device", "unplaced i stays device"], "{}", domain.reason());
    assert_eq!(domain.reserved("device"), 100, "the old definition runs on");
    assert_eq!(domain.runs("device", "i", 2), SILENCE);
    let targeted = InstanceWanted { targets: below(5.0), replicas: 2, ..wanted("i", 50, 50) };
    assert_eq!(domain.hear(targeted), ["decided i 4 cloud from device"]);
}

#[test]
fn a_new_definition_that_cannot_move_fails_while_the_old_runs() {
    let on = |cpu: u32, n: u32| InstanceWanted { replicas: n, ..wanted("i", cpu, 50) };
    let mut domain = Domain::three();
    domain.hear(on(50, 1));
    domain.runs("device", "i", 1);
    assert_eq!(domain.hear(on(60, 10)), ["decided i 2 edge from device"]);
    assert_eq!(domain.fails("edge", "i", 2), ["released i 2 edge stays device", "decided i 3 cloud from device"]);
    assert_eq!(domain.fails("cloud", "i", 3), ["released i 3 cloud stays device", "unplaced i stays device"]);
    assert!(domain.used_up(), "device is too small for it");
    assert!(domain.reason().contains("tried on cloud, edge"), "{}", domain.reason());
    assert_eq!(domain.runs("device", "i", 1), SILENCE, "the old one runs on");
    assert_eq!(domain.join("more", 5_000), ["joined more"], "and is left alone");
    assert_eq!(domain.hear(on(60, 10)).len(), 1, "until it is asked for again");
    let mut domain = Domain::three();
    domain.hear(on(50, 1));
    domain.runs("device", "i", 1);
    domain.hear(on(60, 10));
    let hopeless = InstanceStatusChanged { hopeless: true, ..said("edge", "i", 2, InstancePhase::Failed) };
    assert_eq!(domain.hear(hopeless), ["released i 2 edge stays device", "unplaced i stays device"]);
    assert!(domain.used_up(), "it would fail anywhere");
    assert_eq!(domain.hear(on(50, 1)), ["decided i 3 device"], "the old definition again");
    let mut domain = Domain::three();
    domain.hear(on(50, 1));
    domain.runs("device", "i", 1);
    domain.hear(on(60, 10));
    assert_eq!(domain.pass(30_000), ["released i 2 edge stays device", "decided i 3 cloud from device"], "too slow");
    assert_eq!(
        domain.alive("cloud", false),
        ["lost cloud", "released i 3 cloud stays device", "unplaced i stays device"],
        "edge was tried, device is too small"
    );
    assert!(!domain.used_up(), "cloud may come back");
}

#[test]
fn what_was_measured_follows_the_replicas_and_ends_with_the_document() {
    let mut domain = Domain::three();
    domain.hear(InstanceWanted { targets: below(40.0), ..wanted("i", 50, 50) });
    domain.runs("device", "i", 1);
    domain.remedy("device", "i", 1, 300);
    domain.runs("edge", "i", 2);
    domain.hear(InstanceWanted { targets: below(40.0), replicas: 3, ..wanted("i", 50, 50) });
    let measured = |domain: &Domain| domain.state.instances["i"].measured;
    assert_eq!(measured(&domain), Some(Load { cpu_milli: 900, memory_bytes: 3_000_000 }));
    assert_eq!(domain.state.instances["i"].to.as_ref().unwrap().cluster_id, "cloud");
    domain.hear(wanted("i", 60, 50));
    assert_eq!(measured(&domain), None);
}

#[test]
fn an_instance_of_another_owner_is_not_touched_by_its_id() {
    let mut domain = Domain::three();
    domain.hear(wanted("i", 50, 50));
    let before = domain.state.instances.clone();
    let theirs = InstanceWanted { owner: "other".into(), ..wanted("i", 70, 50) };
    assert_eq!(domain.hear(theirs.clone()), ["unplaced i"]);
    assert_eq!(domain.reason(), "another owner's instance has this id; choose another");
    let ended = domain.hear(InstanceWanted { replicas: 0, ..theirs });
    assert_eq!(ended, ["released i 0  final"], "theirs is over; it never was anywhere");
    assert_eq!(domain.state.instances, before);
    assert_eq!(domain.reserved("device"), 50);
}

#[test]
fn an_unreadable_document_is_said_and_harms_nobody() {
    let mut domain = Domain::three();
    let garbage = InstanceWanted { document: Bytes::from_static(b"\xff\xff\xff"), ..wanted("i", 1, 1) };
    assert_eq!(domain.hear(garbage), ["unplaced i"]);
    assert_eq!(domain.reason(), "its workload document cannot be read");
    assert_eq!(domain.join("new", 1000), ["joined new"]);
    assert_eq!(domain.hear(wanted("i", 1, 1)), ["decided i 1 device"]);
}

#[test]
fn a_report_about_another_domain_is_ignored() {
    let report = ReportLiveness { domain: "other".into(), cluster_id: "a".into(), alive: false };
    assert!(Placements::default().concerns(&report.into(), &()).is_empty());
}

fn remedy_of(
    action: mesh_proto::remedy::Action,
    cluster: &str,
    generation: u64,
) -> mesh_proto::remedy::RemedyRequested {
    mesh_proto::remedy::RemedyRequested {
        owner: "local".into(),
        instance_id: "i".into(),
        cluster_id: cluster.into(),
        generation,
        action: action.into(),
        reason: "memory leaks".into(),
        ..Default::default()
    }
}

#[test]
fn a_requested_restart_is_a_new_generation_under_the_same_cool_down() {
    use mesh_proto::remedy::Action;
    let mut domain = Domain::three();
    domain.hear(InstanceWanted { targets: below(20.0), ..wanted("i", 50, 50) });
    domain.runs("device", "i", 1);
    assert_eq!(domain.hear(remedy_of(Action::Restart, "edge", 1)), SILENCE, "not where it is");
    assert_eq!(domain.hear(remedy_of(Action::Restart, "device", 7)), SILENCE, "not the generation that runs");
    let stranger =
        mesh_proto::remedy::RemedyRequested { owner: "other".into(), ..remedy_of(Action::Restart, "device", 1) };
    assert_eq!(domain.hear(stranger), SILENCE, "not its owner's");
    assert_eq!(domain.hear(remedy_of(Action::Scale, "device", 1)), SILENCE, "that comes as a new definition");
    assert_eq!(domain.hear(remedy_of(Action::Restart, "device", 1)), ["decided i 2 device"]);
    assert_eq!(domain.reason(), "restarted: memory leaks");
    assert_eq!(domain.reserved("device"), 50, "it is reserved once");
    assert_eq!(domain.hear(remedy_of(Action::Restart, "device", 2)), SILENCE, "it does not run yet");
    domain.runs("device", "i", 2);
    assert_eq!(domain.remedy("device", "i", 2, 300), SILENCE, "an intent's remedy waits for the cool-down");
    assert_eq!(domain.hear(remedy_of(Action::Migrate, "device", 2)), SILENCE, "and so does another");
    domain.pass(60_000);
    assert_eq!(domain.hear(remedy_of(Action::Migrate, "device", 2)), ["decided i 3 edge from device"]);
}

fn near(id: &str, cpu_milli: u32, bound: LatencyBound) -> InstanceWanted {
    let resources = Resources { cpu_milli, memory_bytes: 1_000_000, ..Default::default() };
    let document = WorkloadDocument { resources: Some(resources), latency_bounds: vec![bound], ..Default::default() };
    InstanceWanted { document: document.encode_to_vec().into(), ..wanted(id, cpu_milli, 1) }
}

fn to_site(site: &str, max_latency_ms: f64) -> LatencyBound {
    LatencyBound { to_site: site.into(), max_latency_ms, ..Default::default() }
}

#[test]
fn latency_bounds_wait_for_measurements_and_follow_the_network() {
    let mut domain = Domain::three();
    assert_eq!(domain.hear(near("i", 600, to_site("device", 10.0))), ["unplaced i"]);
    assert!(domain.ruled_out("edge").contains("is not measured"));
    let fast = [("cloud", "edge", 1.0), ("cloud", "device", 5.0), ("edge", "device", 1.0)];
    assert_eq!(domain.network(&fast), ["noted 6", "decided i 1 edge"]);
    domain.runs("edge", "i", 1);
    assert_eq!(domain.network(&fast), Vec::<String>::new(), "the same figures are no news");
    let slow = [("cloud", "edge", 31.0), ("cloud", "device", 5.0), ("edge", "device", 31.0)];
    assert_eq!(domain.network(&slow), ["noted 6", "decided i 2 cloud from edge"]);
    assert!(domain.reason().contains("latency to site device is 31.0 ms, wanted at most 10: 21.0 over"));
    assert_eq!(domain.runs("cloud", "i", 2), ["settled i 2 cloud", "released i 1 edge"]);
}

#[test]
fn what_becomes_too_far_while_it_starts_moves_once_it_runs() {
    let mut domain = Domain::three();
    let ways = |edge: f64| [("cloud", "device", 5.0), ("edge", "device", edge), ("cloud", "edge", 5.0)];
    domain.network(&ways(1.0));
    assert_eq!(domain.hear(near("i", 600, to_site("device", 10.0))), ["decided i 1 edge"]);
    assert_eq!(domain.network(&ways(40.0)), ["noted 6"]);
    assert_eq!(domain.runs("edge", "i", 1), ["settled i 1 edge", "decided i 2 cloud from edge"]);
}

#[test]
fn where_nobody_is_near_enough_it_stays_and_is_settled_when_that_changes() {
    let mut domain = Domain::three();
    let ways = |edge: f64| [("cloud", "device", 50.0), ("edge", "device", edge), ("cloud", "edge", 50.0)];
    domain.network(&ways(1.0));
    domain.hear(near("i", 600, to_site("device", 10.0)));
    domain.runs("edge", "i", 1);
    // A way that is down is not near.
    assert_eq!(domain.network(&ways(-1.0)), ["noted 4", "unplaced i stays edge"]);
    assert!(domain.reason().starts_with("too far from its peer on edge"));
    assert_eq!(domain.network(&ways(2.0)), ["noted 6", "settled i 1 edge"], "nothing restarts");
}

#[test]
fn a_dependency_is_followed_to_where_it_runs() {
    let mut domain = Domain::three();
    domain.network(&[("cloud", "edge", 1.0), ("cloud", "device", 40.0), ("edge", "device", 40.0)]);
    assert_eq!(domain.hear(wanted("peer", 2_000, 1)), ["decided peer 1 cloud"]);
    let bound = LatencyBound { to_instance: "peer".into(), max_latency_ms: 10.0, ..Default::default() };
    assert_eq!(domain.hear(near("i", 100, bound)), ["decided i 1 cloud"], "beside its peer");
    assert!(domain.ruled_out("device").contains("latency to instance peer on cloud is 40.0 ms"));
}

#[test]
fn what_must_be_near_an_instance_follows_when_that_moves() {
    let mut domain = Domain::three();
    domain.network(&[("cloud", "edge", 40.0), ("cloud", "device", 40.0), ("edge", "device", 40.0)]);
    assert_eq!(
        domain.hear(InstanceWanted { targets: below(20.0), ..wanted("peer", 50, 50) }),
        ["decided peer 1 device"]
    );
    domain.runs("device", "peer", 1);
    let bound = LatencyBound { to_instance: "peer".into(), max_latency_ms: 10.0, ..Default::default() };
    assert_eq!(domain.hear(near("i", 50, bound)), ["decided i 1 device"]);
    domain.runs("device", "i", 1);
    assert_eq!(domain.remedy("device", "peer", 1, 150), ["decided peer 2 edge from device"]);
    let moved = ["settled peer 2 edge", "released peer 1 device", "decided i 2 edge from device"];
    assert_eq!(domain.runs("edge", "peer", 2), moved);
    assert!(
        domain.reason().contains("latency to instance peer on device is 40.0 ms")
            || domain.reason().contains("on edge")
    );
}

#[test]
fn costs_of_another_domain_concern_nobody_here() {
    let costs = CostsChanged { domain: "other".into(), ..Default::default() };
    assert_eq!(Placements::default().concerns(&costs.into(), &()), []);
}
