//! What people are shown, and what reports say.

use mesh_proto::{EventSet as _, telemetry::Provenance};
use mesh_test::stored;
use proptest::prelude::*;

use super::*;
use crate::domain::tests::{
    Bench, ID, OWNER, accept, acknowledged, compliant, degraded, fulfilled, held, histories, instance, missed,
    observed, plain, reject, running, submit, suspend, terminate, two,
};

/// A fact of an intent of this id, as the bus stores it.
fn stored_fact(fact: &Fact, id: &str, sequence: u64, at: Timestamp) -> Stored {
    let any = fact.any();
    let subject = any.subject().unwrap().replace(ID, id);
    Stored { subject, ..stored(any, sequence, at) }
}

/// The view after these inputs were decided; each fact's reports.
pub(crate) fn view(inputs: Vec<mesh_proto::deciders::intents::Input>) -> (IntentsView, Vec<Derived>) {
    let mut view = IntentsView::default();
    let reports = fill(&mut view, ID, inputs, 0);
    (view, reports)
}

fn fill(
    view: &mut IntentsView,
    id: &str,
    inputs: Vec<mesh_proto::deciders::intents::Input>,
    from: u64,
) -> Vec<Derived> {
    let facts = Bench::given(inputs).facts;
    (from + 1..)
        .zip(&facts)
        .flat_map(|(sequence, (fact, at))| view.apply(&stored_fact(fact, id, sequence, *at)))
        .collect()
}

fn report(derived: &Derived) -> ReportPublished {
    ReportPublished::decode(derived.event.body()).unwrap()
}

fn get(view: &IntentsView) -> IntentView {
    view.get(&GetRequest { owner: String::new(), id: ID.into() }).unwrap()
}

fn list(view: &IntentsView, page_size: u32, page_token: &str, state: &str) -> (Vec<String>, String) {
    let request = ListRequest {
        owner: String::new(),
        page_size,
        page_token: page_token.into(),
        state: state.into(),
        ..ListRequest::default()
    };
    let page = view.list(&request).unwrap();
    (page.intents.into_iter().map(|i| i.intent_id).collect(), page.next_page_token)
}

#[test]
fn an_intent_is_shown_as_its_facts_left_it() {
    let (view, _) = view(fulfilled());
    let shown = get(&view);
    assert_eq!((shown.owner.as_str(), shown.intent_id.as_str(), shown.version), (OWNER, ID, 1));
    assert_eq!(shown.intent, Some(plain()));
    assert_eq!(shown.state.unwrap().reason, "every target holds");
    assert_eq!(shown.instances[0].instance_id, instance("1"));
    assert_eq!(shown.sequence, 4, "submitted, acknowledged, COMPLIANT, FULFILLED");
    assert!(shown.targets.iter().all(|t| t.fulfilled));
}

#[test]
fn the_definition_in_force_is_shown_or_else_the_submitted_one() {
    let (waiting, _) = view(vec![submit(two())]);
    assert_eq!(get(&waiting).intent, Some(two()));
    let update = crate::domain::tests::update(two());
    let (updated, _) = view([acknowledged(), vec![update]].concat());
    assert_eq!(get(&updated).intent, Some(plain()), "the update awaits its verdict");
}

#[test]
fn each_change_has_one_report_with_an_id_of_its_cause() {
    let (_, reports) = view(degraded());
    let told: Vec<_> = reports
        .iter()
        .map(|r| report(r).intent_fulfilment_report.unwrap().intent_fulfilment_info.unwrap())
        .map(|info| (info.fulfilment_status(), info.not_fulfilled_state()))
        .collect();
    use NotFulfilledState::{Acknowledged, Compliant, Degraded};
    assert_eq!(
        told,
        [
            (FulfilmentStatus::NotFulfilled, Acknowledged),
            (FulfilmentStatus::NotFulfilled, Compliant),
            (FulfilmentStatus::Fulfilled, Compliant),
            (FulfilmentStatus::Fulfilled, Compliant),
            (FulfilmentStatus::NotFulfilled, Degraded),
        ]
    );
    assert_eq!(reports[0].id, derived_id(&["report", "INTENT-2"]));
    let (_, rejected) = view(vec![submit(plain()), reject(1)]);
    let report = report(&rejected[0]);
    assert_eq!(report.intent_feasibility_check_report, None);
    let reasons = report.intent_fulfilment_report.unwrap().intent_fulfilment_info.unwrap().not_fulfilled_reasons;
    assert!(reasons[0].starts_with("version 1 was rejected"), "{reasons:?}");
}

#[test]
fn what_was_reported_before_a_restart_is_known_and_not_reported_again() {
    let facts = Bench::given(fulfilled()).facts;
    let last = facts.last().unwrap().1;
    let mut view = IntentsView::reporting_since(last);
    let reported: Vec<usize> = (1..)
        .zip(&facts)
        .map(|(sequence, (fact, at))| view.apply(&stored_fact(fact, ID, sequence, *at)).len())
        .collect();
    let (all, _) = self::view(fulfilled());
    assert_eq!(get(&view), get(&all), "it is known all the same");
    let expected: Vec<usize> =
        facts.iter().map(|(fact, at)| usize::from(*at >= last && !matches!(fact, Fact::IntentSubmitted(_)))).collect();
    assert_eq!(reported, expected);
    assert!(reported.contains(&1) && reported.contains(&0), "{reported:?}");
}

#[test]
fn each_period_has_a_report_with_the_values_achieved() {
    let (mut view, _) = view(fulfilled());
    let period = stored(&observed(7, 1, Some((12.5, 64.0))), 40, Timestamp::from_millis(1));
    let reports = view.apply(&period);
    assert_eq!(reports.len(), 1);
    assert_eq!(reports[0].id, derived_id(&["report", "OBSERVATION-40"]));
    let told = report(&reports[0]);
    assert_eq!(told.last_updated_time, observed(7, 1, None).end);
    let feasibility = told.intent_feasibility_check_report.unwrap();
    assert_eq!(
        (feasibility.feasibility_check_type.as_str(), feasibility.infeasibility_reason.as_str()),
        ("FEASIBLE", "")
    );
    let results = told.intent_fulfilment_report.unwrap().expectation_fulfilment_results;
    let fulfilled = FulfilmentInfo {
        fulfilment_status: FulfilmentStatus::Fulfilled.into(),
        not_fulfilled_state: NotFulfilledState::Compliant.into(),
        not_fulfilled_reasons: vec![],
        remarks: vec![],
    };
    let target = |name: &str, value: &str| TargetFulfilmentResult {
        target: name.into(),
        target_achieved_value: value.into(),
        value_provenance: Provenance::Measured.into(),
        target_fulfilment_info: Some(fulfilled.clone()),
    };
    assert_eq!(
        results,
        [ExpectationFulfilmentResult {
            expectation_id: "1".into(),
            expectation_fulfilment_info: Some(fulfilled.clone()),
            target_fulfilment_results: vec![target("cpuUsage", "12.5"), target("ramUsage", "64")],
        }]
    );
    assert_eq!(get(&view).targets[0].achieved, 12.5, "no fact records it, and it is shown");
    assert!(view.apply(&period).is_empty(), "a period is reported once");
}

#[test]
fn a_report_states_what_its_verdict_rests_on_besides_measurements() {
    let (mut view, _) = view(fulfilled());
    let mut observation = observed(7, 1, Some((34.25, 64.0)));
    observation.targets[0].provenance = Provenance::Modelled.into();
    let reports = view.apply(&stored(&observation, 40, Timestamp::from_millis(1)));
    let told = report(&reports[0]).intent_fulfilment_report.unwrap();
    let remark = "cpuUsage is modelled, not measured";
    assert_eq!(told.intent_fulfilment_info.unwrap().remarks, [remark]);
    let [cpu, ram] = told.expectation_fulfilment_results[0].target_fulfilment_results.as_slice() else { panic!() };
    assert_eq!((cpu.value_provenance(), ram.value_provenance()), (Provenance::Modelled, Provenance::Measured));
    let info = cpu.target_fulfilment_info.as_ref().unwrap();
    assert_eq!(info.not_fulfilled_reasons, ["cpuUsage is 34.25 % (modelled), must be less than 20 %"]);
    assert_eq!(info.remarks, [remark]);
    assert_eq!(ram.target_fulfilment_info.as_ref().unwrap().remarks, [""; 0]);
    assert_eq!(get(&view).targets[0].provenance(), Provenance::Modelled);
}

#[test]
fn an_intent_that_trusts_a_label_reports_that_nothing_proves_it() {
    for (label, proof) in [("SecureExecution", "nothing attests"), ("FederatedLearning", "nothing runs federated")] {
        let intent = Intent { user_label: label.into(), ..plain() };
        let (view, reports) = view(vec![submit(intent), accept(1)]);
        let reports = reports.iter().map(report).chain(get(&view).report);
        for report in reports {
            let info = report.intent_fulfilment_report.unwrap().intent_fulfilment_info.unwrap();
            assert!(info.remarks[0].starts_with(proof) && info.remarks[0].contains("declares itself"), "{info:?}");
        }
    }
}

#[test]
fn a_missed_and_an_unmeasured_target_say_why() {
    let (mut view, _) = view(fulfilled());
    let reports = view.apply(&stored(&observed(7, 1, Some((34.25, 64.0))), 40, Timestamp::from_millis(1)));
    let results = |derived: &Derived| {
        let report = report(derived).intent_fulfilment_report.unwrap();
        report.expectation_fulfilment_results[0].target_fulfilment_results.clone()
    };
    let info = results(&reports[0])[0].target_fulfilment_info.clone().unwrap();
    assert_eq!(info.not_fulfilled_state(), NotFulfilledState::Degraded);
    assert_eq!(info.not_fulfilled_reasons, ["cpuUsage is 34.25 %, must be less than 20 %"]);
    let reports = view.apply(&stored(&observed(8, 1, None), 41, Timestamp::from_millis(1)));
    let result = results(&reports[0])[1].clone();
    assert_eq!(result.target_achieved_value, "");
    assert_eq!(result.target_fulfilment_info.unwrap().not_fulfilled_reasons, ["not measured in the last period"]);
}

#[test]
fn an_observation_that_does_not_judge_is_not_reported() {
    for (given, observation) in [
        (fulfilled(), mesh_proto::observation::TargetObserved { version: 2, ..observed(7, 1, Some((1.0, 1.0))) }),
        (fulfilled(), observed(7, 2, Some((1.0, 1.0)))),
        ([fulfilled(), vec![suspend()]].concat(), observed(7, 1, Some((1.0, 1.0)))),
        ([fulfilled(), vec![terminate()]].concat(), observed(7, 1, Some((1.0, 1.0)))),
        (vec![], observed(7, 1, Some((1.0, 1.0)))),
    ] {
        let (mut view, _) = view(given);
        assert!(view.apply(&stored(&observation, 40, Timestamp::from_millis(1))).is_empty(), "{observation:?}");
    }
}

#[test]
fn an_expectation_that_does_well_is_not_blamed_for_another() {
    let (view, _) = view(vec![submit(two()), accept(1), running("edge", 1)]);
    let results = get(&view).report.unwrap().intent_fulfilment_report.unwrap().expectation_fulfilment_results;
    let states: Vec<_> = results
        .iter()
        .map(|r| r.expectation_fulfilment_info.clone().unwrap())
        .map(|info| (info.not_fulfilled_state(), info.not_fulfilled_reasons))
        .collect();
    assert_eq!(
        states,
        [
            (NotFulfilledState::Compliant, vec!["all replicas run".to_owned()]),
            (NotFulfilledState::Acknowledged, vec!["waiting for a cluster".to_owned()]),
        ]
    );
}

#[test]
fn what_is_not_there_says_where_to_look() {
    let (view, _) = view(fulfilled());
    let error = view.get(&GetRequest { owner: "someone".into(), id: ID.into() }).unwrap_err();
    assert_eq!(
        error.to_string(),
        "intent plant of someone not found; list the intents that there are: continuum intent list"
    );
    assert!(matches!(error, Error::NotFound { .. }));
}

#[test]
fn pages_follow_one_another_without_gap_or_repetition() {
    let mut view = IntentsView::default();
    let ids: Vec<String> = (0..25).map(|n| format!("i{n:02}")).collect();
    for (n, id) in ids.iter().enumerate() {
        let given = if n % 2 == 0 { fulfilled() } else { compliant() };
        fill(&mut view, id, given, n as u64 * 10);
    }
    let mut found = vec![];
    let mut token = String::new();
    loop {
        let (page, next) = list(&view, 10, &token, "");
        assert!(page.len() <= 10);
        found.extend(page);
        token = next;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(found, ids);
    let (page, next) = list(&view, 5, "i24", "");
    assert!(page.is_empty() && next.is_empty());
    let (page, next) = list(&view, 13, "", "fulfilled");
    assert_eq!((page.len(), next.as_str()), (13, ""), "exactly one full page has no next");
    assert_eq!(list(&view, 0, "", "NOT_FULFILLED").0.len(), 12);
    assert_eq!(list(&view, 0, "", "COMPLIANT").0.len(), 25, "a fulfilled intent is COMPLIANT too");
    assert!(list(&view, 0, "", "TERMINATED").0.is_empty());
}

#[test]
fn an_intent_of_which_only_commands_were_refused_is_not_there() {
    let mut view = IntentsView::default();
    let refused = mesh_proto::intent::IntentRefused {
        owner: OWNER.into(),
        intent_id: ID.into(),
        command_id: "c".into(),
        command: "SuspendIntent".into(),
        ..Default::default()
    };
    view.apply(&stored(&refused, 1, Timestamp::default()));
    let request = GetRequest { owner: String::new(), id: ID.into() };
    assert!(matches!(view.get(&request), Err(Error::NotFound { .. })), "{:?}", view.get(&request));
    assert!(view.owners.is_empty(), "nothing is kept of what never was");
    assert!(view.list(&ListRequest::default()).unwrap().intents.is_empty());
    let mut follow = Follow::new(request);
    assert!(matches!(follow.look(&view), Some(Err(_))));
    assert!(follow.ended);
}

#[test]
fn a_list_refuses_what_it_does_not_understand() {
    let (view, _) = view(fulfilled());
    let error = view.list(&ListRequest { state: "RUNNING".into(), ..Default::default() }).unwrap_err();
    assert!(matches!(&error, Error::InvalidArgument { hint, .. } if hint.contains("FULFILMENTFAILED")), "{error}");
    let error = view.list(&ListRequest { page_token: "a.b".into(), ..Default::default() }).unwrap_err();
    assert!(matches!(error, Error::InvalidArgument { .. }));
}

#[test]
fn a_watcher_sees_each_change_once_and_the_end() {
    let (mut view, _) = view(fulfilled());
    let mut follow = Follow::new(GetRequest { owner: String::new(), id: ID.into() });
    let mut seen = |view: &IntentsView| follow.look(view).map(|shown| shown.unwrap().targets.first().map(|t| t.period));
    assert_eq!(seen(&view), Some(Some(1)), "as it stands");
    assert_eq!(seen(&view), None);
    view.apply(&stored(&observed(7, 1, Some((1.0, 1.0))), 40, Timestamp::from_millis(1)));
    assert_eq!(seen(&view), Some(Some(7)));
    view.apply(&stored(&observed(6, 1, Some((1.0, 1.0))), 41, Timestamp::from_millis(1)));
    assert_eq!(seen(&view), None, "an older period");
    let ended = Bench::given([fulfilled(), vec![terminate()]].concat()).facts;
    view.apply(&stored_fact(&ended[4].0, ID, 5, ended[4].1));
    assert_eq!(seen(&view), Some(None), "the end");
    assert!(follow.ended && follow.look(&view).is_none());

    let mut nobody = Follow::new(GetRequest { owner: String::new(), id: "other".into() });
    assert!(matches!(nobody.look(&view), Some(Err(Error::NotFound { .. }))));
    assert!(nobody.ended && nobody.look(&view).is_none());
}

#[test]
fn a_watcher_of_a_terminated_intent_waits_for_the_verdict_on_its_update() {
    let update = crate::domain::tests::update(plain());
    let (view, _) = view([acknowledged(), vec![terminate(), update]].concat());
    let mut follow = Follow::new(GetRequest { owner: String::new(), id: ID.into() });
    assert!(follow.look(&view).is_some() && !follow.ended);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn the_view_shows_the_deciders_own_state_however_often_facts_come(history in histories(), twice in any::<bool>()) {
        let bench = Bench::given(history);
        let mut view = IntentsView::default();
        let mut reports = 0;
        for _ in 0..=usize::from(twice) {
            for (sequence, (fact, at)) in (1..).zip(&bench.facts) {
                reports += view.apply(&stored_fact(fact, ID, sequence, *at)).len();
            }
        }
        let told = |fact: &Fact| matches!(
            fact,
            Fact::IntentAcknowledged(_) | Fact::IntentStateChanged(_) | Fact::IntentRejected(_)
        );
        prop_assert_eq!(reports, bench.facts.iter().filter(|(fact, _)| told(fact)).count());
        match view.entry(OWNER, ID) {
            Some(entry) => prop_assert_eq!(&*entry.entity, &bench.entity),
            None => prop_assert!(bench.facts.is_empty()),
        }
    }
}

/// Every page of a list, and the ids on them.
fn pages(view: &IntentsView, request: &ListRequest) -> Vec<String> {
    let (mut found, mut request) = (vec![], ListRequest { count: true, ..request.clone() });
    let mut counted = None;
    loop {
        let page = view.list(&request).unwrap();
        // Each page says how many there are from it on.
        assert_eq!(*counted.get_or_insert(page.total), found.len() as u64 + page.total);
        assert!(
            page.intents.len() <= request.page_size as usize
                && (page.next_page_token.is_empty() || !page.intents.is_empty())
        );
        found.extend(page.intents.into_iter().map(|i| i.intent_id));
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            assert_eq!(counted, Some(found.len() as u64));
            return found;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Against a second, simpler model: look at every intent.
    #[test]
    fn a_list_is_what_a_look_at_every_intent_finds(
        histories in prop::collection::vec(histories(), 1..12),
        states in prop::collection::vec(prop::sample::select(&STATES[..]), 0..3),
        label in prop::sample::select(vec!["", "DeliverComputingWorkload", "cloud_continuum", "CloudContinuumNetwork", "none"]),
        object in prop_oneof![
            2 => Just(String::new()),
            1 => Just("spinner@1.0.0".to_owned()),
            1 => Just(instance("1")),
            1 => Just("l2vpn".to_owned()),
        ],
        page_size in 1..5u32,
    ) {
        let mut view = IntentsView::default();
        for (n, history) in histories.into_iter().enumerate() {
            fill(&mut view, &format!("i{n:02}"), history, n as u64 * 1_000);
        }
        let states: Vec<String> = states.into_iter().map(str::to_owned).collect();
        let request = ListRequest {
            states: states.clone(),
            user_label: label.into(),
            object_instance: object.clone(),
            page_size,
            ..Default::default()
        };
        let fits = |entry: &Entry| {
            let intent = Intent::decode(entry.current()).unwrap_or_default();
            let of_type = match mesh_intent::types::of_label(label) {
                Some(kind) => mesh_intent::types::of_label(&intent.user_label) == Some(kind),
                None => label.is_empty() || intent.user_label == label,
            };
            let named = intent.intent_expectations.iter().filter_map(|e| e.expectation_object.as_ref());
            entry.exists()
                && (states.is_empty() || states.iter().any(|state| is(entry.entity.row(), state)))
                && of_type
                && (object.is_empty()
                    || named.map(|o| &o.object_instance).any(|o| *o == object)
                    || entry.entity.instances().iter().any(|i| i.id == object))
        };
        let all = view.owners.get(OWNER).map(|owned| &owned.intents);
        let expected: Vec<String> =
            all.into_iter().flatten().filter(|(_, entry)| fits(entry)).map(|(id, _)| id.to_string()).collect();
        prop_assert_eq!(pages(&view, &request), expected);
    }
}

#[test]
fn a_page_ends_before_it_is_more_than_a_client_takes() {
    let mut view = IntentsView::default();
    let mut large = plain();
    large.intent_expectations[0].expectation_id = "x".repeat(300_000);
    for n in 0..12 {
        fill(&mut view, &format!("i{n:02}"), vec![submit(large.clone())], n * 10);
    }
    let request = ListRequest { page_size: 1_000, ..Default::default() };
    let page = view.list(&request).unwrap();
    assert!(page.encoded_len() < 4 << 20 && page.intents.len() > 1, "{} on one page", page.intents.len());
    assert_eq!(pages(&view, &request).len(), 12);
}

#[test]
fn secrets_are_not_shown_and_survive_being_sent_back() {
    let mut cluster = crate::domain::tests::network();
    cluster.intent_expectations[0].expectation_object.as_mut().unwrap().object_contexts =
        vec![mesh_proto::intent::Context {
            context_attribute: "bearer_token".into(),
            context_value_range: "a.secret.token".into(),
            ..Default::default()
        }];
    let given = vec![submit(cluster.clone()), accept(1)];
    let (view, reports) = view(given.clone());
    let shown = get(&view);
    let history = view.history(&GetRequest { owner: String::new(), id: ID.into() }).unwrap();
    let listed = view.list(&ListRequest::default()).unwrap();
    let told: Vec<String> = reports.iter().map(|r| format!("{:?}", report(r))).collect();
    let text = format!("{shown:?} {history:?} {listed:?} {told:?}");
    assert!(!text.contains("a.secret.token") && text.contains("secret:"), "{text}");

    // The same content, and the same as it was shown, change nothing; another definition keeps the secret.
    let mut bench = Bench::given(given);
    let unchanged = |facts: Vec<Fact>| matches!(facts.as_slice(), [Fact::IntentUnchanged(_)]);
    assert!(unchanged(bench.when(submit(cluster.clone())).unwrap()));
    let mut read = shown.intent.unwrap();
    assert_ne!(read, cluster);
    assert!(unchanged(bench.when(crate::domain::tests::update(read.clone())).unwrap()));
    read.intent_priority = 7;
    let facts = bench.when(crate::domain::tests::update(read)).unwrap();
    let [Fact::IntentSubmitted(submitted)] = facts.as_slice() else { panic!("{facts:?}") };
    let next = Intent::decode(submitted.document.clone()).unwrap();
    assert_eq!(next, Intent { intent_priority: 7, ..cluster });
}

/// The pairs of fulfilment and state that the state table has.
fn in_the_table(info: &FulfilmentInfo) -> bool {
    use NotFulfilledState::{Acknowledged, Compliant, Degraded, Fulfilmentfailed, Suspended, Terminated};
    match info.fulfilment_status() {
        FulfilmentStatus::Fulfilled => info.not_fulfilled_state() == Compliant && info.not_fulfilled_reasons.is_empty(),
        FulfilmentStatus::NotFulfilled => {
            let known = [Acknowledged, Compliant, Degraded, Fulfilmentfailed, Suspended, Terminated];
            known.contains(&info.not_fulfilled_state()) && !info.not_fulfilled_reasons.is_empty()
        }
        FulfilmentStatus::Unspecified => false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// No history leads to a report that the state table forbids, of the intent or of an expectation; and an intent whose
    /// report says FULFILLED has no expectation that is not.
    #[test]
    fn no_report_leaves_the_state_table(history in histories()) {
        let mut view = IntentsView::default();
        for (sequence, (fact, at)) in (1..).zip(Bench::given(history).facts) {
            for derived in view.apply(&stored_fact(&fact, ID, sequence, at)) {
                let told = report(&derived).intent_fulfilment_report.unwrap();
                let info = told.intent_fulfilment_info.unwrap();
                prop_assert!(in_the_table(&info), "{info:?} after {fact:?}");
                let fulfilled = info.fulfilment_status() == FulfilmentStatus::Fulfilled;
                for result in told.expectation_fulfilment_results {
                    let of = result.expectation_fulfilment_info.unwrap();
                    prop_assert!(in_the_table(&of), "{of:?} after {fact:?}");
                    prop_assert!(!fulfilled || of.fulfilment_status() == FulfilmentStatus::Fulfilled, "{of:?}");
                }
            }
        }
    }
}

#[test]
fn a_history_tells_each_version_its_verdict_and_where_it_came_from() {
    use crate::domain::tests::{rollback, update};
    let other = two();
    let (view, _) = view(vec![
        submit(plain()),
        accept(1),
        update(other),
        reject(2),
        rollback(1),
        update(two()),
        accept(3),
        rollback(1),
    ]);
    let history = view.history(&GetRequest { owner: String::new(), id: ID.into() }).unwrap();
    let told: Vec<(u64, &str, u64)> =
        history.versions.iter().map(|v| (v.version, v.verdict.as_str(), v.rolled_back_to)).collect();
    assert_eq!(told[..2], [(1, "accepted", 0), (2, "rejected", 0)]);
    assert!(!history.versions[1].problems.is_empty());
    assert_eq!(told.last().map(|v| v.0), Some(history.versions.len() as u64));
    assert!(told.iter().any(|v| v.2 == 1), "{told:?}");
    assert!(view.history(&GetRequest { owner: String::new(), id: "other".into() }).is_err());
}

#[test]
fn a_list_is_narrowed_by_states_type_and_object() {
    let (view, _) = view(fulfilled());
    let found = |request: ListRequest| view.list(&request).unwrap().intents.len();
    let states =
        |states: &[&str]| ListRequest { states: states.iter().map(|s| (*s).into()).collect(), ..Default::default() };
    assert_eq!(found(states(&["DEGRADED", "compliant"])), 1);
    assert_eq!(found(states(&["DEGRADED", "SUSPENDED"])), 0);
    let label = |label: &str| ListRequest { user_label: label.into(), ..Default::default() };
    assert_eq!((found(label("DeliverComputingWorkload")), found(label("SecureExecution"))), (1, 0));
    let object = |object: &str| ListRequest { object_instance: object.into(), ..Default::default() };
    assert_eq!((found(object("spinner@1.0.0")), found(object(&instance("1"))), found(object("x"))), (1, 1, 0));
}

#[test]
fn a_held_and_a_missed_period_show_their_targets() {
    let (view, _) = view([compliant(), vec![held(1), missed(2)]].concat());
    let shown = get(&view);
    assert_eq!(shown.targets.iter().map(|t| (t.fulfilled, t.missed)).collect::<Vec<_>>(), [(false, 1), (true, 0)]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_view_goes_on_from_what_was_saved_as_if_it_had_read_every_fact(
        history in histories(), cut in any::<prop::sample::Index>(), again in 0..3_usize,
    ) {
        let bench = Bench::given(history);
        let facts: Vec<Stored> = (1..).zip(&bench.facts).map(|(n, (fact, at))| stored_fact(fact, ID, n, *at)).collect();
        let mut whole = IntentsView::default();
        facts.iter().for_each(|fact| drop(whole.apply(fact)));
        let cut = cut.index(facts.len() + 1);
        let state = bench.facts[..cut].iter().fold(Entity::default(), |entity, (fact, at)| {
            Intents::default().evolve(entity, fact, *at)
        });
        let saved = Saved {
            state,
            last: cut as u64,
            time: bench.facts[..cut].iter().map(|(_, at)| *at).max().unwrap_or_default(),
        };
        let mut view = IntentsView::default();
        let partly = view.restore(Key::new([OWNER, ID]), saved);
        // Fewer versions than are kept: the document in force is always among them.
        prop_assert_eq!(partly, None);
        // Some of what is known is read again: each of its reports is told, in words of now.
        let again = cut.saturating_sub(again);
        let told: Vec<_> = facts[again..cut].iter().flat_map(|fact| view.apply(fact)).map(|told| told.id).collect();
        let kinds = ["IntentAcknowledged", "IntentStateChanged", "IntentRejected"];
        let due = facts[again..cut].iter().filter(|fact| kinds.iter().any(|kind| fact.message.ends_with(kind)));
        let due: Vec<_> = due.map(|fact| derived_id(&["report", &fact.id])).collect();
        prop_assert_eq!(told, due);
        facts[cut..].iter().for_each(|fact| drop(view.apply(fact)));
        let request = GetRequest { owner: OWNER.into(), id: ID.into() };
        let shown = |view: &IntentsView| view.get(&request).map_err(|error| error.to_string());
        prop_assert_eq!(shown(&view), shown(&whole));
        prop_assert_eq!(view.history(&request).ok(), whole.history(&request).ok());
        for state in STATES {
            prop_assert_eq!(list(&view, 0, "", state), list(&whole, 0, "", state));
        }
    }

    #[test]
    fn what_is_saved_without_the_document_in_force_is_asked_for_and_read(history in histories()) {
        // After each, an update awaits its verdict, or what came then decides which version is in force.
        for given in [vec![], history.clone(), [history, vec![crate::domain::tests::update(two())]].concat()] {
            let certain = given.is_empty();
            let bench = Bench::given([acknowledged(), vec![crate::domain::tests::update(two())], given].concat());
            let (state, last) = (bench.entity.clone(), bench.facts.len() as u64);
            let mut saved = Saved { state, last, time: Timestamp::default() };
            saved.state.history.clear();
            let known = saved.state.submitted(saved.state.version()).is_some();
            prop_assert!(!(certain && known), "an update that awaits its verdict is not in force");
            let mut view = IntentsView::default();
            prop_assert_eq!(view.restore(Key::new([OWNER, ID]), saved).is_none(), known);
            if known {
                continue;
            }
            let mut whole = IntentsView::default();
            for (sequence, (fact, at)) in (1..).zip(&bench.facts) {
                view.apply(&stored_fact(fact, ID, sequence, *at));
                whole.apply(&stored_fact(fact, ID, sequence, *at));
            }
            prop_assert_eq!(get(&view), get(&whole));
        }
    }
}

proptest! {
    /// Given the states that the decider folded, or folding them itself: the view answers and reports the same.
    #[test]
    fn a_view_that_shares_the_fold_shows_the_same(inputs in histories()) {
        let (mut folds, mut shares, mut state) = (IntentsView::default(), IntentsView::default(), Entity::default());
        for (sequence, (fact, at)) in (1..).zip(&Bench::given(inputs).facts) {
            let stored = stored_fact(fact, ID, sequence, *at);
            state = Intents::default().evolve(state, fact, *at);
            let apart: Vec<_> = folds.apply(&stored).iter().map(report).collect();
            let shared: Vec<_> = shares.folded(&stored, Some(&Arc::new(state.clone()))).iter().map(report).collect();
            prop_assert_eq!(apart, shared);
            let request = GetRequest { owner: String::new(), id: ID.into() };
            prop_assert_eq!(folds.get(&request).ok(), shares.get(&request).ok());
        }
    }
}
