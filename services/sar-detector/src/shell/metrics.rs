//! What the detector counts beside what every consumer does.

use mesh_kit::{Mesh, View};

use crate::domain::Sar;

/// Shows the detector's counts on `/metrics`: models, open episodes, samples, and what was not used.
pub(crate) fn show(mesh: &Mesh, view: &View<Sar>) {
    let left_out = "facts and samples that were not used, by reason";
    view.counters(mesh, "sar_left_out_total", left_out, "reason", |sar| {
        let counts = sar.counts();
        [("invalid", counts.invalid), ("ahead", counts.ahead), ("crowded", counts.crowded), ("known", counts.known)]
    });
    view.counter(mesh, "sar_samples_total", "samples judged or learned", |sar| sar.counts().samples);
    view.gauge(mesh, "sar_open", "anomalies that go on", |sar| sar.open() as u64);
    view.gauge(mesh, "sar_models", "instances with a model", |sar| sar.models().0 as u64);
}
