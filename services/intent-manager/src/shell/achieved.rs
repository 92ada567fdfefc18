//! What targets achieved, period by period, as series: in memory for hours, in a database for as long as the configuration
//! says. Reports hold the last period of each target only.

use std::{collections::BTreeMap, sync::Arc};

use mesh_core::{Stored, query};
use mesh_intent::types;
use mesh_kit::{Mesh, Records};
use mesh_proto::{
    Event as _,
    intent::{AchievedReply, AchievedValue},
    observation::TargetObserved,
};
use mesh_store::{Point, Points, Range, Series, memory::WindowLimits};

use crate::{
    Config,
    domain::achieved::{Asked, Filling},
};

/// The least that a point takes in memory, bytes: as many of the newest observations are read at a start as memory has room
/// for points.
const POINT_BYTES: u64 = 30;
/// Series in memory: of each intent one. Their bytes are what limits them.
const LANES_MAX: usize = 100_000;

/// The series of achieved values. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Achieved(Arc<dyn Series>);

impl Achieved {
    /// Keeps achieved values where the configuration says, until the process stops.
    ///
    /// # Errors
    /// A URL that cannot be used for series.
    pub(crate) fn keep(mesh: &Mesh, config: &Config) -> anyhow::Result<Self> {
        let points_max = config.achieved_bytes_max / POINT_BYTES;
        let limits = WindowLimits {
            lanes_max: LANES_MAX,
            items_max: usize::try_from(points_max).unwrap_or(usize::MAX),
            bytes_max: config.achieved_bytes_max,
        };
        let store = mesh.series("achieved", &config.achieved, limits)?;
        let (keep_ms, newest_max) = match store.is_remote() {
            true => (config.achieved_keep_ms, u64::MAX),
            false => (config.achieved_window_ms, points_max),
        };
        let (name, stream) = (STORE, TargetObserved::STREAM);
        mesh.record(Records { name, stream, keep_ms, newest_max, store: store.clone(), rows });
        Ok(Self(store))
    }

    /// A page of values, the newest first; what was demanded of them is not written into them.
    ///
    /// # Errors
    /// Unavailable, while a database does not answer.
    pub(crate) async fn page(&self, asked: &Asked) -> Result<AchievedReply, query::Error> {
        let series = series(&asked.owner, &asked.intent_id);
        let mut page = Filling::new(asked);
        loop {
            let range = Range { from: asked.from, to: page.to, limit: asked.read_max() };
            let points = self.0.range(&series, range).await;
            let points = points.map_err(|error| mesh_kit::unanswered(error.into(), STORE))?;
            let are_all = points.len() < range.limit;
            if page.take(points.into_iter().filter_map(value).collect(), are_all) {
                return Ok(page.page());
            }
        }
    }
}

/// What these series are called in logs, answers and `/readyz`.
const STORE: &str = "series of achieved values";

/// The series of an intent.
fn series(owner: &str, intent_id: &str) -> String {
    format!("{owner}/{intent_id}")
}

/// What a point says. A point without a value is not of this service.
fn value(mut point: Point) -> Option<AchievedValue> {
    let mut label = |name| point.labels.remove(name).unwrap_or_default();
    let target_name = label("target");
    Some(AchievedValue {
        at: Some(point.at),
        expectation_id: label("expectation"),
        unit: types::target_of(&target_name).map(|target| target.sign.to_owned()).unwrap_or_default(),
        target_name,
        value: Some(*point.values.get("achieved")?),
        version: point.values.get("version").map_or(0, |version| *version as u64),
        instance_id: label("instance_id"),
        cluster_id: label("cluster_id"),
        ..AchievedValue::default()
    })
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
    vec![Points::of(series(&observation.owner, &observation.intent_id), points)]
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
