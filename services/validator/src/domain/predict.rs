//! What would come of an intent: where the planner would put it, what its targets would come to there, with what power and
//! at what cost. The figures are the planner's and the tariff's own; nothing is changed.

use std::collections::BTreeMap;

use mesh_intent::{Bound, Measure, ObjectKind, types};
use mesh_planner::{self as plan, Preference, Request, Snapshot, Spec};
use mesh_proto::{
    intent::{Intent, IntentConflict, IntentExpectation, TargetState},
    telemetry::Provenance,
    validation::{CheckReply, Prediction},
    workload::TargetBound,
};
use mesh_scenes::tariff::Tariff;

use crate::domain::Known;

/// Seconds of the day that energy and cost are told for.
const DAY_SECONDS: f64 = 86_400.0;

/// What would come of an intent without problems.
pub(crate) fn predict(intent: &Intent, owner: &str, conflicts: Vec<IntentConflict>, known: &Known) -> CheckReply {
    let kind = types::of_label(&intent.user_label);
    let period = if intent.observation_period == 0 { 60 } else { intent.observation_period };
    let mut predictions = vec![];
    if kind.is_some_and(|k| k.kind() == ObjectKind::Workload) {
        for expectation in &intent.intent_expectations {
            let selector = kind.map(|k| k.selector(expectation)).unwrap_or_default();
            predictions.push(one(expectation, selector, owner, known, f64::from(period)));
        }
    }
    let starts = mesh_intent::window::Window::of(intent).ok().and_then(|w| w.start);
    let any = |feasibility: &str| predictions.iter().any(|p| p.feasibility == feasibility);
    let targets = || predictions.iter().flat_map(|p| &p.targets);
    let missed = targets().any(|t| t.measured && !t.fulfilled);
    let state = if intent.intent_admin_state == "DEACTIVATED" || mesh_intent::conflict::loses(&conflicts) {
        "SUSPENDED"
    } else if any("INFEASIBLE") {
        "FULFILMENTFAILED"
    } else if any("WAITING") || starts.is_some_and(|start| start > known.now()) {
        "ACKNOWLEDGED"
    } else if missed {
        "DEGRADED"
    } else if targets().any(|target| types::is_of_traffic(&target.target_name)) {
        // It waits for requests.
        "COMPLIANT"
    } else {
        "FULFILLED"
    };
    let sum = |of: fn(&Prediction) -> f64| predictions.iter().map(of).sum();
    CheckReply {
        problems: vec![],
        watts: sum(|p| p.watts),
        joules_per_day: sum(|p| p.joules_per_day),
        credits_per_day: sum(|p| p.credits_per_day),
        predicted_state: state.into(),
        predictions,
        conflicts,
        provenance: Provenance::Modelled.into(),
    }
}

fn one(
    expectation: &IntentExpectation,
    selector: BTreeMap<String, String>,
    owner: &str,
    known: &Known,
    period_seconds: f64,
) -> Prediction {
    let id = expectation.expectation_id.clone();
    let object = expectation.expectation_object.as_ref().map_or("", |o| o.object_instance.as_str());
    let waiting = |reason: String| Prediction {
        expectation_id: id.clone(),
        feasibility: "WAITING".into(),
        reason,
        ..Default::default()
    };
    let found = match object.contains('@') {
        true => known.spec_of_document(owner, object),
        false => known.spec_of_instance(owner, object),
    };
    let Some(mut spec) = found else {
        return waiting(match object.contains('@') {
            true => format!("workload document {object} is not registered"),
            false => format!("instance {object} does not exist"),
        });
    };
    // What runs stays where it is for now; only what is to be made is placed.
    let runs_on = known.cluster_of(owner, object);
    if runs_on.is_none() {
        spec.selector.extend(selector);
    }
    let snapshot = known.snapshot();
    let bounds = bounds(expectation);
    let excluded = BTreeMap::new();
    let mut request = Request { spec: &spec, targets: &bounds, measured: None, held: None, excluded: &excluded };
    let chosen = match &runs_on {
        Some(cluster) => Some(cluster.clone()),
        None => plan::choose(&snapshot, &request, Preference::Spread).chosen,
    };
    // Without its bounds it would run, and miss them.
    let (chosen, reason) = match chosen {
        Some(cluster) => (Some(cluster), String::new()),
        None => {
            let missed = plan::choose(&snapshot, &request, Preference::Spread).nearest;
            request.targets = &[];
            (plan::choose(&snapshot, &request, Preference::Spread).chosen, missed)
        }
    };
    let Some(cluster_id) = chosen else {
        let never = !snapshot.clusters.is_empty()
            && snapshot.clusters.iter().all(|(id, cluster)| plan::never(id, cluster, &request));
        let feasibility = if never { "INFEASIBLE" } else { "WAITING" };
        return Prediction { feasibility: feasibility.into(), ..waiting(reason) };
    };
    predicted_on(expectation, &spec, &snapshot, &cluster_id, reason, period_seconds)
}

/// What an instance of this size comes to on a cluster.
fn predicted_on(
    expectation: &IntentExpectation,
    spec: &Spec,
    snapshot: &Snapshot,
    cluster_id: &str,
    reason: String,
    period_seconds: f64,
) -> Prediction {
    let Some(cluster) = snapshot.clusters.get(cluster_id) else { return Prediction::default() };
    let tariff = Tariff::of(&cluster.labels, cluster.cpu_milli);
    let load = plan::load_milli(spec, None) as f64;
    let share = load / f64::from(cluster.cpu_milli.max(1));
    // Idle power in proportion to the share of the cluster that it uses.
    let watts = tariff.idle_watts * share + tariff.watts_per_core * load / 1_000.0;
    let figure = |measure: Measure| match measure {
        Measure::CpuPercent => Some(share * 100.0),
        Measure::Joules => Some(watts * period_seconds),
        Measure::JoulesPerCoreSecond => (load > 0.0).then_some(watts / (load / 1_000.0)),
        Measure::GreenPercent => types::percent_of(&cluster.labels, types::GREEN_LABEL),
        Measure::AvailabilityPercent => types::percent_of(&cluster.labels, types::AVAILABILITY_LABEL),
        // A request is a reservation and no prediction of what will be resident; what requests will measure nothing foretells.
        Measure::MemoryMb | Measure::ResponseTimeMs(_) | Measure::ErrorPercent | Measure::Handed => None,
    };
    let target = |target: &mesh_proto::intent::ExpectationTarget| {
        let bound = Bound::of(target).ok()?;
        let measure = types::measure_of(&target.target_name);
        let value = measure.and_then(figure);
        // What is predicted is modelled at best; a label is what the cluster declares.
        let provenance = measure.filter(|_| value.is_some()).map(|measure| measure.provenance(Provenance::Modelled));
        Some(TargetState {
            expectation_id: expectation.expectation_id.clone(),
            target_name: target.target_name.clone(),
            target_condition: target.target_condition.clone(),
            bound: bound.single().unwrap_or_default(),
            target_value_range: target.target_value_range.clone(),
            achieved: value.unwrap_or_default(),
            measured: value.is_some(),
            fulfilled: value.is_some_and(|value| bound.holds(value)),
            provenance: provenance.unwrap_or_default().into(),
            ..Default::default()
        })
    };
    let names = expectation.expectation_targets.iter().map(|target| target.target_name.as_str());
    let of_traffic: Vec<&str> = names.filter(|name| types::is_of_traffic(name)).collect();
    let unpredicted = match of_traffic.as_slice() {
        [] => String::new(),
        names => format!("{}: {}", names.join(", "), plan::UNPREDICTABLE),
    };
    let reason = [reason, unpredicted].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join("; ");
    Prediction {
        expectation_id: expectation.expectation_id.clone(),
        cluster_id: cluster_id.to_owned(),
        feasibility: "FEASIBLE".into(),
        reason,
        targets: expectation.expectation_targets.iter().filter_map(target).collect(),
        watts,
        joules_per_day: watts * DAY_SECONDS,
        credits_per_day: tariff.credits_per_core_hour * spec.cpu_milli as f64 / 1_000.0 * 24.0,
        provenance: Provenance::Modelled.into(),
    }
}

fn bounds(expectation: &IntentExpectation) -> Vec<TargetBound> {
    let targets = expectation.expectation_targets.iter();
    let bounds = targets.filter_map(|target| {
        let bound = Bound::of(target).ok()?.single()?;
        let (target_name, target_condition) = (target.target_name.clone(), target.target_condition.clone());
        Some(TargetBound { target_name, target_condition, bound })
    });
    bounds.collect()
}
