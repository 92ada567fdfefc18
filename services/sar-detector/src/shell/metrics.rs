//! What the detector counts beside what every consumer does.

use mesh_kit::{Mesh, View};
use opentelemetry::{KeyValue, metrics::AsyncInstrument};

use crate::domain::{Counts, Sar};

/// Shows the detector's counts on `/metrics`: models, open episodes, samples, and what was not used.
pub(crate) fn show(mesh: &Mesh, view: &View<Sar>) {
    let meter = mesh.meter();
    let of = view.clone();
    let observe = move |counter: &dyn AsyncInstrument<u64>| {
        let Counts { invalid, ahead, crowded, known, .. } = of.read(Sar::counts);
        for (reason, count) in [("invalid", invalid), ("ahead", ahead), ("crowded", crowded), ("known", known)] {
            counter.observe(count, &[KeyValue::new("reason", reason)]);
        }
    };
    let left_out = meter.u64_observable_counter("sar_left_out_total");
    left_out.with_description("facts and samples that were not used, by reason").with_callback(observe).build();
    let of = view.clone();
    let observe = move |counter: &dyn AsyncInstrument<u64>| counter.observe(of.read(Sar::counts).samples, &[]);
    let samples = meter.u64_observable_counter("sar_samples_total");
    samples.with_description("samples judged or learned").with_callback(observe).build();
    let of = view.clone();
    let observe = move |gauge: &dyn AsyncInstrument<u64>| gauge.observe(of.read(Sar::open) as u64, &[]);
    meter.u64_observable_gauge("sar_open").with_description("anomalies that go on").with_callback(observe).build();
    let of = view.clone();
    let observe = move |gauge: &dyn AsyncInstrument<u64>| gauge.observe(of.read(Sar::models).0 as u64, &[]);
    meter.u64_observable_gauge("sar_models").with_description("instances with a model").with_callback(observe).build();
}
