//! What the learner counts beside what every consumer does.

use mesh_kit::{Mesh, View};
use opentelemetry::metrics::AsyncInstrument;

use crate::domain::live::Advisor;

/// Shows on `/metrics` how often the policy was asked and agreed, and its regret.
pub(crate) fn show(mesh: &Mesh, view: &View<Advisor>) {
    type Read = fn(&Advisor) -> u64;
    let counters: [(&'static str, &'static str, Read); 2] = [
        ("learning_advised_total", "decisions of the planner that the policy was asked about", |a| a.totals().advised),
        ("learning_agreed_total", "of these, how often both said the same", |a| a.totals().agreed),
    ];
    for (name, description, read) in counters {
        let of = view.clone();
        let observe = move |counter: &dyn AsyncInstrument<u64>| counter.observe(of.read(read), &[]);
        mesh.meter().u64_observable_counter(name).with_description(description).with_callback(observe).build();
    }
    let of = view.clone();
    let observe = move |gauge: &dyn AsyncInstrument<f64>| gauge.observe(of.read(|a| a.totals().regret), &[]);
    mesh.meter()
        .f64_observable_counter("learning_regret_points_total")
        .with_description("sum of the regret of the planner's choices, discounted points")
        .with_callback(observe)
        .build();
}
