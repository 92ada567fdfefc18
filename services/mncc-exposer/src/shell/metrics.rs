//! What the exposer counts beside what every consumer does.

use mesh_kit::{Mesh, View};
use opentelemetry::{KeyValue, metrics::AsyncInstrument};

use crate::domain::costs::{Costs, Counts};

/// Shows probe samples by what became of them, and the links that are measured.
pub(crate) fn show(mesh: &Mesh, costs: &View<Costs>) {
    let of = costs.clone();
    let observe = move |counter: &dyn AsyncInstrument<u64>| {
        let Counts { accepted, invalid, strangers, untimely, over_limit } = of.read(Costs::counts);
        let outcomes = [
            ("accepted", accepted),
            ("invalid", invalid),
            ("stranger", strangers),
            ("untimely", untimely),
            ("over_limit", over_limit),
        ];
        for (outcome, count) in outcomes {
            counter.observe(count, &[KeyValue::new("outcome", outcome)]);
        }
    };
    let samples = mesh.meter().u64_observable_counter("network_probe_samples_total");
    samples.with_description("probe samples, by what became of them").with_callback(observe).build();
    let of = costs.clone();
    let observe = move |gauge: &dyn AsyncInstrument<u64>| gauge.observe(of.read(Costs::links).len() as u64, &[]);
    mesh.meter()
        .u64_observable_gauge("network_links")
        .with_description("links measured")
        .with_callback(observe)
        .build();
}
