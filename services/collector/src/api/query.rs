//! Values over time, from the store that answers best: raw, or rolled up by the minute, five minutes or the hour.

use std::collections::BTreeMap;

use mesh_core::query;
use mesh_proto::{
    Timestamp,
    telemetry::{Function, QueryReply, QueryRequest, SeriesValues},
};
use mesh_store::{Point, Range};

use crate::{
    domain::{
        catalog::Asked,
        readings::is_counter,
        rollup::{LENGTHS_MS, step_of},
        select,
        steps::Steps,
    },
    shell::store::Stores,
};

/// Series in an answer when the question names no limit, and in any answer.
const SERIES_DEFAULT: usize = 100;
const SERIES_MAX: usize = 10_000;
/// Values of a series in an answer when the question names no limit, and in any answer.
const VALUES_DEFAULT: usize = 10_000;
const VALUES_MAX: usize = 100_000;
/// Points that one question reads at most, of all series together.
const POINTS_MAX: usize = 2_000_000;
/// How much later a question may be answered than its beginning was reckoned, milliseconds: `-6h` is a little more by then.
const SLACK_MS: i64 = 5_000;
/// Longest step, seconds: a year.
const STEP_MAX_S: u32 = 366 * 86_400;

/// A question that makes sense.
#[derive(Debug, PartialEq)]
pub(super) struct Question {
    from: Timestamp,
    to: Timestamp,
    step_ms: i64,
    function: Function,
    series_max: usize,
    values_max: usize,
}

/// Whether the newest value of each series is asked for: neither beginning nor end is given.
pub(super) fn is_of_newest(request: &QueryRequest) -> bool {
    request.from.is_none() && request.to.is_none()
}

/// The most series that a question may be answered with.
pub(super) fn series_max(request: &QueryRequest) -> usize {
    match request.series_max as usize {
        0 => SERIES_DEFAULT,
        asked => asked.min(SERIES_MAX),
    }
}

impl Question {
    /// What a request asks.
    ///
    /// # Errors
    /// A function or filter that does not exist, a beginning after the end, a function without a step.
    pub(super) fn new(request: &QueryRequest, now: Timestamp) -> Result<Self, query::Error> {
        select::check(&request.filter.clone().unwrap_or_default())?;
        let function = Function::try_from(request.function).map_err(|_| {
            query::Error::invalid(format!("{} is not a function", request.function), "use one of the contract's")
        })?;
        let (from, to) = (request.from.unwrap_or_default(), request.to.unwrap_or(now));
        if from > to {
            return Err(query::Error::invalid(format!("from {from} is later than to {to}"), "exchange them"));
        }
        if request.step_seconds > STEP_MAX_S {
            return Err(query::Error::invalid("the step is longer than a year", "use a shorter one"));
        }
        if request.step_seconds == 0 && function != Function::Unspecified {
            return Err(query::Error::invalid(
                "a function needs steps to be applied to",
                "give step_seconds, or no function for the values as they are",
            ));
        }
        Ok(Self {
            from,
            to,
            step_ms: i64::from(request.step_seconds) * 1_000,
            function,
            series_max: series_max(request),
            values_max: match request.values_max as usize {
                0 => VALUES_DEFAULT,
                asked => asked.min(VALUES_MAX),
            },
        })
    }

    fn needs_values(&self) -> bool {
        matches!(self.function, Function::P50 | Function::P95 | Function::P99)
    }

    /// The coarsest store to read: 0 is raw, 1 to 3 are those of [`LENGTHS_MS`]. Finer ones fill its end.
    ///
    /// # Errors
    /// Quantiles of a time of which the raw values are gone.
    fn coarsest(&self, stores: &Stores, now: Timestamp) -> Result<usize, query::Error> {
        let covers = |level: usize| now.millis_since(self.from) <= stores.keep_ms[level] + SLACK_MS;
        if self.needs_values() {
            if !covers(0) && self.from != Timestamp::default() {
                return Err(query::Error::invalid(
                    format!("quantiles need raw values, which are kept for {} s", stores.keep_ms[0] / 1_000),
                    "ask about a later time, or for another function",
                ));
            }
            return Ok(0);
        }
        if self.step_ms == 0 && !stores.raw.is_remote() {
            // Whether those that are kept in memory are all there are, `falls_short` says.
            return Ok(0);
        }
        let fits = |level: usize| level == 0 || LENGTHS_MS[level - 1] <= self.step_ms;
        let coarsest = (0..=3).rev().find(|level| fits(*level) && covers(*level));
        Ok(coarsest.or_else(|| (0..=3).find(|level| covers(*level))).unwrap_or(3))
    }

    /// The answer.
    ///
    /// # Errors
    /// Those of [`coarsest`](Self::coarsest); a store that does not answer.
    pub(super) async fn answer(
        &self,
        stores: &Stores,
        request: &QueryRequest,
        now: Timestamp,
    ) -> Result<QueryReply, query::Error> {
        let mut coarsest = self.coarsest(stores, now)?;
        let filter = request.filter.clone().unwrap_or_default();
        let (asked, more) = stores.catalog.read().asked(&filter, self.series_max);
        let mut by_series: BTreeMap<&str, Vec<&Asked>> = BTreeMap::new();
        for one in &asked {
            by_series.entry(&one.series).or_default().push(one);
        }
        loop {
            if let Some(reply) = self.answer_from(coarsest, stores, &by_series).await? {
                return Ok(QueryReply { truncated: reply.truncated || more, ..reply });
            }
            coarsest += 1;
        }
    }

    /// The answer from a store and finer ones. `None` if a coarser one goes further back, and can answer.
    async fn answer_from(
        &self,
        coarsest: usize,
        stores: &Stores,
        by_series: &BTreeMap<&str, Vec<&Asked>>,
    ) -> Result<Option<QueryReply>, query::Error> {
        let resolution_ms = if coarsest == 0 { 0 } else { LENGTHS_MS[coarsest - 1] };
        let mut left = POINTS_MAX;
        let (mut found, mut truncated): (Vec<SeriesValues>, _) = (vec![], false);
        for (series, asked) in by_series {
            let read = self.read(stores, series, coarsest, &mut left).await?;
            if left == 0 {
                truncated = true;
            } else if self.falls_short(stores, series, coarsest, &read).await? {
                if !self.needs_values() {
                    return Ok(None);
                }
                truncated = true;
            }
            for one in asked {
                let mut values = self.values(one, &read, resolution_ms);
                let surplus = values.len().saturating_sub(self.values_max);
                truncated |= surplus > 0;
                values.drain(..surplus);
                if values.is_empty() {
                    continue;
                }
                let (at_ms, values) = values.into_iter().unzip();
                let (entity, metric) = (Some(one.entity.clone()), Some(one.metric.clone()));
                found.push(SeriesValues { entity, metric, at_ms, values });
            }
        }
        let resolution_seconds = u32::try_from(resolution_ms / 1_000).unwrap_or(u32::MAX);
        Ok(Some(QueryReply { series: found, truncated, resolution_seconds }))
    }

    /// Has a coarser store a step that is over before what was read begins? A store in memory loses its oldest points when
    /// it is full, and what is older than its window.
    async fn falls_short(
        &self,
        stores: &Stores,
        series: &str,
        coarsest: usize,
        read: &[(usize, Point)],
    ) -> Result<bool, query::Error> {
        let coarser = stores.rolled.iter().zip(LENGTHS_MS).skip(coarsest);
        for (store, length_ms) in coarser.filter(|(store, _)| !store.is_remote()) {
            let to = read.first().map_or(self.to, |(_, first)| first.at.plus_millis(-length_ms));
            let range = Range { from: self.from, to, limit: 1 };
            if self.from <= to && !store.range(series, range).await.map_err(mesh_kit::internal)?.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The points of a series, each with the length of what it is of: from the coarsest store as far as that goes, then
    /// from finer ones.
    async fn read(
        &self,
        stores: &Stores,
        series: &str,
        coarsest: usize,
        left: &mut usize,
    ) -> Result<Vec<(usize, Point)>, query::Error> {
        let (mut from, mut read) = (self.from, vec![]);
        for level in (0..=coarsest).rev() {
            if from > self.to || *left == 0 {
                break;
            }
            let store = if level == 0 { &stores.raw } else { &stores.rolled[level - 1] };
            // A step that began before the beginning is not whole.
            let range = Range { from, to: self.to, limit: *left };
            let points = store.range(series, range).await.map_err(mesh_kit::internal)?;
            *left -= points.len();
            if let Some(last) = points.last() {
                let length = if level == 0 { 0 } else { LENGTHS_MS[level - 1] };
                from = last.at.plus_millis(length);
            }
            read.extend(points.into_iter().map(|point| (level, point)));
        }
        Ok(read)
    }

    /// The values of one metric, with their times in milliseconds since 1970.
    fn values(&self, asked: &Asked, read: &[(usize, Point)], resolution_ms: i64) -> Vec<(i64, f64)> {
        let labels = &asked.metric.labels;
        // The points of an instance's samples bear the cluster and the owner as labels, which are the entity's here.
        let mine = read.iter().filter(|(_, point)| asked.value != asked.metric.name || point.labels == *labels);
        if self.step_ms == 0 && resolution_ms == 0 {
            let value = |point: &Point| Some((point.at.as_millis(), point.values.get(&asked.value)? * asked.factor));
            return mine.filter_map(|(_, point)| value(point)).collect();
        }
        let mut steps = Steps::new(self.step_ms.max(resolution_ms), self.needs_values());
        for (level, point) in mine {
            if *level == 0 {
                if let Some(value) = point.values.get(&asked.value) {
                    steps.push(point.at.as_millis(), *value);
                }
            } else if let Some(step) = step_of(point.at, &point.values, &asked.value) {
                steps.merge(&step);
            }
        }
        let kind = asked.metric.kind();
        let function = match self.step_ms {
            // The values as they are: of a counter what it stood at, not how fast it rose.
            0 if is_counter(&asked.metric) => Function::Last,
            _ => self.function,
        };
        let counts = function == Function::Count;
        let factor = if counts { 1.0 } else { asked.factor };
        let rate_of_gauge = function == Function::Rate && !is_counter(&asked.metric);
        let steps = steps.done().into_iter().filter(|_| !rate_of_gauge);
        steps.filter_map(|step| Some((step.begin_ms, step.value(function, kind)? * factor))).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::executor::block_on;
    use mesh_proto::telemetry::{Entity, Filter, InstanceSample, Metric, MetricKind, Readings};
    use mesh_store::{Applied, Points, memory::WindowLimits};
    use parking_lot::RwLock;

    use super::*;
    use crate::{
        domain::{
            catalog::Catalog,
            rollup::{Rollup, Row},
        },
        shell::store::tests::Shared,
    };

    const NOW: Timestamp = Timestamp::from_millis(7_200_000);

    /// Two hours of a gauge that counts seconds and of a counter that rises by 3 a second; raw for ten minutes.
    fn stores() -> Stores {
        let store = mesh_store::open("memory:").unwrap();
        let limits = WindowLimits { items_max: 10_000, ..WindowLimits::default() };
        let series = |name: &str| store.series(name, limits).unwrap();
        let (raw, rolled) = (series("raw"), [series("1m"), series("5m"), series("1h")]);
        let mut catalog = Catalog::new(100);
        let entity = Entity { kind: "node".into(), id: "n".into(), cluster_id: "edge".into(), ..Entity::default() };
        let metric =
            |name: &str, kind: MetricKind| Metric { name: name.into(), kind: kind.into(), ..Metric::default() };
        let metrics = vec![metric("gauge", MetricKind::Gauge), metric("counter", MetricKind::Counter)];
        catalog.readings(&Readings { entities: vec![entity], metrics, ..Readings::default() }, NOW);
        let (mut rollup, applied) = (Rollup::default(), Applied::new("TELEMETRY", 1));
        let labels = BTreeMap::new();
        for second in 0..=7_200 {
            let values = [("gauge", second as f64), ("counter", 3.0 * second as f64)];
            rollup.lane(1, "node/edge/n").push(&labels, second * 1_000, values);
            if second > 6_600 {
                let at = Timestamp::from_millis(second * 1_000);
                let values = values.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
                let point = Point { at, labels: labels.clone(), values };
                block_on(raw.append(&applied, "node/edge/n", vec![point])).unwrap();
            }
            for (store, points) in rolled.iter().zip(rollup.close(Timestamp::from_millis(second * 1_000))) {
                for (series, Row { at, labels, names, values }) in points {
                    let mut points = Points { series: series.to_string(), columns: vec![] };
                    points.push(&labels, &names, at.as_nanos(), values);
                    block_on(store.write(vec![(applied.clone(), points)])).unwrap();
                }
            }
        }
        let keep_ms = [600_000, 21_600_000, 172_800_000, 7_776_000_000];
        Stores {
            raw,
            rolled,
            keep_ms,
            catalog: Arc::new(RwLock::new(catalog)),
            recent: Arc::default(),
            others: Default::default(),
        }
    }

    fn ask(stores: &Stores, metric: &str, from_s: i64, step_seconds: u32, function: Function) -> QueryReply {
        let request = QueryRequest {
            filter: Some(Filter { metrics: vec![metric.into()], ..Filter::default() }),
            from: Some(Timestamp::from_millis(from_s * 1_000)),
            step_seconds,
            function: function.into(),
            ..QueryRequest::default()
        };
        block_on(Question::new(&request, NOW).unwrap().answer(stores, &request, NOW)).unwrap()
    }

    #[test]
    fn each_resolution_answers_where_it_is_enough_and_finer_ones_fill_its_end() {
        let stores = stores();
        let raw = ask(&stores, "gauge", 7_190, 0, Function::Unspecified);
        assert_eq!((raw.resolution_seconds, &raw.series[0].values), (0, &(7_190..=7_200).map(f64::from).collect()));
        let minutes = ask(&stores, "gauge", 3_600, 60, Function::Max);
        assert_eq!(minutes.resolution_seconds, 60);
        let (at_ms, values) = (&minutes.series[0].at_ms, &minutes.series[0].values);
        assert_eq!(at_ms.len(), 61);
        assert!(at_ms.iter().zip(values).take(60).all(|(at, value)| *value == (at / 1_000 + 59) as f64));
        assert_eq!(values.last(), Some(&7_200.0), "the minute under way is read raw");
        let hours = ask(&stores, "gauge", 0, 3_600, Function::Count);
        assert_eq!((hours.resolution_seconds, &hours.series[0].values[..2]), (3_600, &[3_600.0, 3_600.0][..]));
        // Finer than is kept of that time: what there is, and it says so.
        let coarse = ask(&stores, "gauge", 3_600, 10, Function::Mean);
        assert_eq!((coarse.resolution_seconds, coarse.series[0].at_ms[1] - coarse.series[0].at_ms[0]), (60, 60_000));
    }

    #[test]
    fn values_older_than_raw_ones_are_answered_by_the_finest_step() {
        let stores = stores();
        let old = ask(&stores, "gauge", 3_600, 0, Function::Unspecified);
        let (at_ms, values) = (&old.series[0].at_ms, &old.series[0].values);
        assert_eq!((old.resolution_seconds, old.truncated, at_ms.len(), at_ms[0]), (60, false, 61, 3_600_000));
        assert_eq!(values[0], 3_629.5, "the mean of its minute");
        let counter = ask(&stores, "counter", 3_600, 0, Function::Unspecified);
        assert_eq!((counter.resolution_seconds, counter.series[0].values[0]), (60, 3.0 * 3_659.0), "what it stood at");
        // Where nothing older was ever measured, the raw values are all there are.
        block_on(stores.rolled[0].forget(Timestamp::from_millis(6_600_000))).unwrap();
        let all = ask(&stores, "gauge", 6_601, 0, Function::Unspecified);
        assert_eq!((all.resolution_seconds, all.series[0].values.len()), (0, 600));
        // The minutes of then are gone: five minutes, and at last hours, reach that far.
        assert_eq!(ask(&stores, "gauge", 3_600, 0, Function::Unspecified).resolution_seconds, 300);
        assert_eq!(ask(&stores, "gauge", 3_600, 60, Function::Max).resolution_seconds, 300);
        block_on(stores.rolled[1].forget(NOW)).unwrap();
        let hour = ask(&stores, "gauge", 0, 0, Function::Unspecified);
        assert_eq!((hour.resolution_seconds, hour.series[0].at_ms[0]), (3_600, 0));
    }

    #[test]
    fn raw_values_that_left_a_full_memory_early_are_not_passed_over() {
        let stores = stores();
        block_on(stores.raw.forget(Timestamp::from_millis(7_140_000))).unwrap();
        for step in [0, 10] {
            let reply = ask(&stores, "gauge", 6_900, step, Function::Unspecified);
            assert_eq!((reply.resolution_seconds, reply.series[0].at_ms[0]), (60, 6_900_000), "{step}");
        }
        let quantiles = ask(&stores, "gauge", 6_900, 60, Function::P95);
        assert!(quantiles.truncated && quantiles.series[0].at_ms[0] == 7_140_000, "{quantiles:?}");
    }

    #[test]
    fn a_database_is_asked_by_the_times_that_it_keeps() {
        let stores = stores();
        let level = |from_s: i64, step_seconds: u32, remote: bool| {
            let from = Some(Timestamp::from_millis(from_s * 1_000));
            let request = QueryRequest { from, step_seconds, ..QueryRequest::default() };
            let raw = if remote { Arc::new(Shared(stores.raw.clone())) } else { stores.raw.clone() };
            Question::new(&request, NOW).unwrap().coarsest(&Stores { raw, ..stores.clone() }, NOW).unwrap()
        };
        // A question about the last ten minutes is answered a moment later.
        assert_eq!([level(6_600, 0, true), level(6_598, 0, true), level(6_590, 0, true)], [0, 0, 1]);
        assert_eq!([level(0, 0, true), level(0, 0, false)], [1, 0]);
        assert_eq!([level(6_590, 10, true), level(3_600, 3_600, true)], [1, 3]);
    }

    #[test]
    fn a_counter_is_read_as_its_rate_at_every_resolution() {
        let stores = stores();
        for (from, step) in [(6_900, 10), (3_600, 60), (0, 300), (0, 3_600)] {
            let reply = ask(&stores, "counter", from, step, Function::Unspecified);
            let values = &reply.series[0].values;
            assert!(values.iter().all(|rate| (rate - 3.0).abs() < 1e-9), "{step}: {values:?}");
        }
    }

    #[test]
    fn quantiles_of_what_is_only_rolled_up_are_refused() {
        let stores = stores();
        let reply = ask(&stores, "gauge", 7_140, 60, Function::P95);
        assert_eq!(reply.series[0].values[0], 7_196.0);
        let request = QueryRequest {
            from: Some(Timestamp::from_millis(60_000)),
            step_seconds: 60,
            function: Function::P95.into(),
            ..QueryRequest::default()
        };
        let question = Question::new(&request, NOW).unwrap();
        assert!(matches!(question.coarsest(&stores, NOW), Err(query::Error::InvalidArgument { .. })));
    }

    #[test]
    fn samples_are_in_base_units_and_a_senseless_question_is_refused() {
        let stores = stores();
        let sample = InstanceSample {
            instance_id: "i".into(),
            cluster_id: "edge".into(),
            cpu_milli: 250.0,
            at: Some(NOW),
            ..Default::default()
        };
        stores.catalog.write().sample(&sample, NOW);
        let points = crate::shell::store::of_samples(&[Arc::new(sample)]);
        let applied = Applied::new("TELEMETRY", 2);
        block_on(stores.raw.write(points.into_iter().map(|points| (applied.clone(), points)).collect())).unwrap();
        assert_eq!(ask(&stores, "container.cpu.usage", 7_000, 0, Function::Unspecified).series[0].values, [0.25]);

        let wrong = [
            QueryRequest { function: 99, ..QueryRequest::default() },
            QueryRequest { function: Function::Max.into(), ..QueryRequest::default() },
            QueryRequest { step_seconds: u32::MAX, ..QueryRequest::default() },
            QueryRequest { from: Some(NOW), to: Some(Timestamp::from_millis(1)), ..QueryRequest::default() },
            QueryRequest {
                filter: Some(Filter { entity_kind: "x".into(), ..Filter::default() }),
                ..QueryRequest::default()
            },
        ];
        for request in wrong {
            assert!(matches!(Question::new(&request, NOW), Err(query::Error::InvalidArgument { .. })), "{request:?}");
        }
    }
}
