//! What the exposer counts beside what every consumer does.

use mesh_kit::{Mesh, View};

use crate::domain::costs::{Costs, Counts};

/// Shows probe samples by what became of them, and the links that are measured.
pub(crate) fn show(mesh: &Mesh, costs: &View<Costs>) {
    let samples = "probe samples, by what became of them";
    costs.counters(mesh, "network_probe_samples_total", samples, "outcome", |costs| {
        let Counts { accepted, invalid, strangers, untimely, over_limit } = costs.counts();
        [
            ("accepted", accepted),
            ("invalid", invalid),
            ("stranger", strangers),
            ("untimely", untimely),
            ("over_limit", over_limit),
        ]
    });
    costs.gauge(mesh, "network_links", "links measured", |costs| costs.links().len() as u64);
}
