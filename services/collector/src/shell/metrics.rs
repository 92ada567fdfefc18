//! What the collector counts beside what every consumer does.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use mesh_kit::{Mesh, View};
use opentelemetry::{KeyValue, metrics::AsyncInstrument};

use crate::domain::{Collector, Counts};

/// Shows the collector's counts on `/metrics`: samples by outcome, and what was left out of observations.
pub(crate) fn show(mesh: &Mesh, view: &View<Collector>, dropped: Arc<AtomicU64>) {
    let meter = mesh.meter();
    let of = view.clone();
    let observe = move |counter: &dyn AsyncInstrument<u64>| {
        for (outcome, count) in outcomes(&of.read(Collector::counts)) {
            counter.observe(count, &[KeyValue::new("outcome", outcome)]);
        }
    };
    let samples = meter.u64_observable_counter("collector_samples_total");
    samples.with_description("samples that came in, by what became of them").with_callback(observe).build();
    let of = view.clone();
    let observe = move |counter: &dyn AsyncInstrument<u64>| {
        let Counts { late, superseded, periods_skipped, undecodable, .. } = of.read(Collector::counts);
        let usage = of.read(Collector::usage_counts);
        let reasons = [
            ("usage_window_skipped", usage.skipped),
            ("usage_late", usage.late),
            ("usage_unknown_instance", usage.unknown),
            ("late", late),
            ("superseded", superseded),
            ("period_skipped", periods_skipped),
            ("undecodable_fact", undecodable),
        ];
        for (reason, count) in reasons {
            counter.observe(count, &[KeyValue::new("reason", reason)]);
        }
    };
    let left_out = meter.u64_observable_counter("collector_left_out_total");
    left_out.with_description("what was left out of observations and usage, by reason").with_callback(observe).build();
    let observe = move |counter: &dyn AsyncInstrument<u64>| counter.observe(dropped.load(Relaxed), &[]);
    let lost = meter.u64_observable_counter("collector_stream_dropped_total");
    lost.with_description("samples that slow readers of the channel lost").with_callback(observe).build();
    let of = view.clone();
    let observe = move |gauge: &dyn AsyncInstrument<u64>| gauge.observe(of.read(Collector::watched) as u64, &[]);
    let watched = meter.u64_observable_gauge("collector_watched_intents");
    watched.with_description("intents under watch").with_callback(observe).build();
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
