//! What the learner counts beside what every consumer does.

use mesh_kit::{Mesh, View};
use opentelemetry::metrics::AsyncInstrument;

use crate::domain::live::Advisor;

/// Shows on `/metrics` how often the policy was asked and agreed, and its regret.
pub(crate) fn show(mesh: &Mesh, view: &View<Advisor>) {
    let advised = "decisions of the planner that the policy was asked about";
    view.counter(mesh, "learning_advised_total", advised, |advisor| advisor.totals().advised);
    let agreed = "of these, how often the policy and the planner agreed";
    view.counter(mesh, "learning_agreed_total", agreed, |advisor| advisor.totals().agreed);
    let of = view.clone();
    let observe = move |gauge: &dyn AsyncInstrument<f64>| gauge.observe(of.read(|a| a.totals().regret), &[]);
    mesh.meter()
        .f64_observable_counter("learning_regret_points_total")
        .with_description("sum of the regret of the planner's choices, discounted points")
        .with_callback(observe)
        .build();
}
