//! What the aggregator counts beside what every consumer does.

use mesh_kit::{Mesh, View};

use crate::domain::{Counts, Twins};

/// Shows the aggregator's counts on `/metrics`: twins, and what came in and was not used.
pub(crate) fn show(mesh: &Mesh, view: &View<Twins>) {
    let left_out = "facts and samples that were not used, by reason";
    view.counters(mesh, "twin_left_out_total", left_out, "reason", |twins| {
        let Counts { undecodable, invalid, ahead, early, late, strangers, crowded } = twins.counts();
        [
            ("undecodable_fact", undecodable),
            ("invalid", invalid),
            ("ahead", ahead),
            ("early", early),
            ("late", late),
            ("stranger", strangers),
            ("crowded", crowded),
        ]
    });
    view.gauge(mesh, "twins", "twins published", |twins| twins.len() as u64);
}
