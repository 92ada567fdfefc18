//! What the aggregator counts beside what every consumer does.

use mesh_kit::{Mesh, View};
use opentelemetry::{KeyValue, metrics::AsyncInstrument};

use crate::domain::{Counts, Twins};

/// Shows the aggregator's counts on `/metrics`: twins, and what came in and was not used.
pub(crate) fn show(mesh: &Mesh, view: &View<Twins>) {
    let of = view.clone();
    let observe = move |counter: &dyn AsyncInstrument<u64>| {
        let Counts { undecodable, invalid, ahead, early, strangers } = of.read(Twins::counts);
        let reasons = [
            ("undecodable_fact", undecodable),
            ("invalid", invalid),
            ("ahead", ahead),
            ("early", early),
            ("stranger", strangers),
        ];
        for (reason, count) in reasons {
            counter.observe(count, &[KeyValue::new("reason", reason)]);
        }
    };
    let left_out = mesh.meter().u64_observable_counter("twin_left_out_total");
    left_out.with_description("facts and samples that were not used, by reason").with_callback(observe).build();
    let of = view.clone();
    let observe = move |gauge: &dyn AsyncInstrument<u64>| gauge.observe(of.read(Twins::len) as u64, &[]);
    mesh.meter().u64_observable_gauge("twins").with_description("twins published").with_callback(observe).build();
}
