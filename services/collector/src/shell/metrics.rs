//! What the collector counts beside what every consumer does.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use mesh_kit::{Mesh, View};
use opentelemetry::metrics::AsyncInstrument;

use crate::domain::{Collector, Counts, readings::REASONS};

/// Shows the collector's counts on `/metrics`: samples by outcome, and what was left out of observations.
pub(crate) fn show(mesh: &Mesh, view: &View<Collector>, dropped: Arc<AtomicU64>, late: Arc<AtomicU64>) {
    let samples = "samples that came in, by what became of them";
    view.counters(mesh, "collector_samples_total", samples, "outcome", |collector| outcomes(&collector.counts()));
    let left_out = "what was left out of observations and usage, by reason";
    view.counters(mesh, "collector_left_out_total", left_out, "reason", |collector| {
        let (counts, usage) = (collector.counts(), collector.usage_counts());
        [
            ("usage_window_skipped", usage.skipped),
            ("usage_late", usage.late),
            ("usage_unknown_instance", usage.unknown),
            ("late", counts.late),
            ("superseded", counts.superseded),
            ("period_skipped", counts.periods_skipped),
            ("undecodable_fact", counts.undecodable),
        ]
    });
    let values = "values of readings that came in, by what became of them";
    view.counters(mesh, "collector_values_total", values, "outcome", |collector| {
        let (accepted, out_of_order) = collector.intake().accepted();
        let refused = collector.intake().refused();
        let taken = [("accepted", accepted - out_of_order), ("out_of_order", out_of_order)];
        std::array::from_fn::<_, { 2 + REASONS.len() }, _>(|n| if n < 2 { taken[n] } else { refused[n - 2] })
    });
    let shared = "messages of clusters that are another collector's, by what became of them";
    view.counters(mesh, "collector_sharing_total", shared, "outcome", |collector| {
        let counts = collector.sharing_counts();
        [("others", counts.others), ("taken_over", counts.taken_over), ("let_go", counts.let_go)]
    });
    view.gauge(mesh, "collector_members", "collectors that share the clusters", |c| c.sharing_members() as u64);
    view.gauge(mesh, "collector_series", "series of readings", |collector| collector.intake().sizes().0);
    view.gauge(mesh, "collector_agents", "agents that send readings", |collector| collector.intake().sizes().1);
    view.gauge(mesh, "collector_conditions_raised", "places where a condition holds", |c| c.conditions().raised());
    view.counter(mesh, "collector_unwatched_total", "values of places beyond what one condition watches", |c| {
        c.conditions().unwatched()
    });
    let observe = move |counter: &dyn AsyncInstrument<u64>| counter.observe(dropped.load(Relaxed), &[]);
    let lost = mesh.meter().u64_observable_counter("collector_stream_dropped_total");
    lost.with_description("samples that slow readers of the channel lost").with_callback(observe).build();
    let observe = move |counter: &dyn AsyncInstrument<u64>| counter.observe(late.load(Relaxed), &[]);
    let too_late = mesh.meter().u64_observable_counter("collector_rollup_late_total");
    too_late.with_description("values that came too late to be rolled up").with_callback(observe).build();
    view.gauge(mesh, "collector_watched_intents", "intents under watch", |collector| collector.watched() as u64);
}

fn outcomes(counts: &Counts) -> [(&'static str, u64); 6] {
    [
        ("accepted", counts.accepted),
        ("duplicate", counts.duplicate),
        ("ahead", counts.ahead),
        ("invalid", counts.invalid),
        ("early", counts.early),
        ("over_limit", counts.over_limit),
    ]
}
