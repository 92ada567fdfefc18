//! What links cost, as series in a database: for dashboards and other programs.

use std::collections::BTreeMap;

use mesh_core::Stored;
use mesh_kit::{Mesh, Records};
use mesh_proto::{Event as _, cost::CostsChanged};
use mesh_store::{Point, Points, memory::WindowLimits};

/// Keeps costs in the database that the configuration names; in memory the newest are all that is kept.
///
/// # Errors
/// A URL that cannot be used for series.
pub(crate) fn keep(mesh: &Mesh, own: &str, keep_ms: u64) -> anyhow::Result<()> {
    let store = mesh.series("costs", own, WindowLimits::default())?;
    if store.is_remote() {
        let (name, stream) = ("series of costs", CostsChanged::STREAM);
        mesh.record(Records { name, stream, keep_ms, newest_max: u64::MAX, store, rows });
    }
    Ok(())
}

/// A point for each link, in the series `<from>/<to>`, at the time of its newest probe. What was never measured is left out.
fn rows(stored: &Stored) -> Vec<Points> {
    let Ok(Some(changed)) = stored.event::<CostsChanged>() else { return vec![] };
    let of_link = |link: mesh_proto::cost::LinkCost| {
        let values = [
            ("latency_ms", link.latency_ms),
            ("jitter_ms", link.jitter_ms),
            ("loss_percent", link.loss_percent),
            ("throughput_mbps", link.throughput_mbps),
            ("energy_watts", link.energy_watts),
            ("failures", f64::from(link.failures)),
            ("up", f64::from(u8::from(link.up))),
        ];
        let known = values.into_iter().filter(|(_, value)| value.is_finite() && *value >= 0.0);
        let labels = [("domain", changed.domain.clone()), ("from_site", link.from_site), ("to_site", link.to_site)];
        let point = Point {
            at: link.at.or(changed.at).unwrap_or(stored.time),
            labels: labels.map(|(name, value)| (name.to_owned(), value)).into(),
            values: known.map(|(name, value)| (name.to_owned(), value)).collect::<BTreeMap<_, _>>(),
        };
        Points::of(format!("{}/{}", link.from_cluster, link.to_cluster), [point])
    };
    changed.links.into_iter().map(of_link).collect()
}

#[cfg(test)]
mod tests {
    use mesh_proto::{Timestamp, cost::LinkCost};
    use mesh_test::stored;

    use super::*;

    #[test]
    fn each_link_is_a_point_without_what_was_never_measured() {
        let at = Timestamp::from_millis(5);
        let link = LinkCost {
            from_cluster: "a".into(),
            to_cluster: "b".into(),
            latency_ms: 3.5,
            throughput_mbps: -1.0,
            up: true,
            at: Some(at),
            ..LinkCost::default()
        };
        let changed = CostsChanged { domain: "d".into(), links: vec![link], ..CostsChanged::default() };
        let [found] = &rows(&stored(&changed, 1, Timestamp::from_millis(9)))[..] else { panic!("one series") };
        let points: Vec<Point> = found.points().collect();
        assert_eq!((found.series.as_str(), points[0].at), ("a/b", at));
        assert_eq!((points[0].values["latency_ms"], points[0].values["up"]), (3.5, 1.0));
        assert!(!points[0].values.contains_key("throughput_mbps"));
    }
}
