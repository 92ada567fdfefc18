//! What targets achieved, period by period, as series in a database: for dashboards and other programs. Reports hold the last
//! period of each target only.

use std::collections::BTreeMap;

use mesh_core::Stored;
use mesh_kit::{Mesh, Records};
use mesh_proto::{Event as _, observation::TargetObserved};
use mesh_store::{Point, Points, memory::WindowLimits};

/// Keeps achieved values in the database that the configuration names; in memory nothing is kept of them.
///
/// # Errors
/// A URL that cannot be used for series.
pub(crate) fn keep(mesh: &Mesh, own: &str, keep_ms: u64) -> anyhow::Result<()> {
    let store = mesh.series("achieved", own, WindowLimits::default())?;
    if store.is_remote() {
        let stream = TargetObserved::STREAM;
        mesh.record(Records { name: "series of achieved values", stream, keep_ms, store, rows });
    }
    Ok(())
}

/// The points of an observation, in the series of its intent: of each target that was measured, its value at the end of the
/// period. The intent is told by the series, the rest by labels.
fn rows(stored: &Stored) -> Vec<Points> {
    let Ok(Some(observation)) = stored.event::<TargetObserved>() else { return vec![] };
    let measured = observation.targets.iter().filter(|target| target.samples > 0 && target.value.is_finite());
    let points = measured.map(|target| {
        let labels = [
            ("expectation", &target.expectation_id),
            ("target", &target.target_name),
            ("instance_id", &observation.instance_id),
            ("cluster_id", &observation.cluster_id),
        ];
        let values = [("achieved", target.value), ("version", observation.version as f64)];
        Point {
            at: observation.end.unwrap_or(stored.time),
            labels: labels.map(|(name, value)| (name.to_owned(), value.clone())).into(),
            values: BTreeMap::from(values.map(|(name, value)| (name.to_owned(), value))),
        }
    });
    let points: Vec<Point> = points.collect();
    if points.is_empty() {
        return vec![];
    }
    vec![Points::of(format!("{}/{}", observation.owner, observation.intent_id), points)]
}

#[cfg(test)]
mod tests {
    use mesh_proto::Timestamp;
    use mesh_test::stored;

    use super::*;
    use crate::domain::tests::observed;

    #[test]
    fn each_measured_target_is_a_point_and_what_was_not_measured_none() {
        let at = Timestamp::from_millis(1);
        let observation = observed(7, 1, Some((12.5, 64.0)));
        let [found] = &rows(&stored(&observation, 1, at))[..] else { panic!("one series") };
        let points: Vec<Point> = found.points().collect();
        assert_eq!((found.series.as_str(), points.len()), ("local/plant", 2));
        assert!(points.iter().all(|point| Some(point.at) == observation.end));
        assert_eq!((points[0].values["achieved"], points[0].labels["target"].as_str()), (12.5, "cpuUsage"));
        assert_eq!(rows(&stored(&observed(7, 1, None), 1, at)), []);
        assert_eq!(rows(&stored(&observed(7, 1, Some((f64::NAN, f64::INFINITY))), 1, at)), []);
    }
}
