//! What others may ask: an instance's recent samples, and the streaming-telemetry channel.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use mesh_core::query;
use mesh_kit::{Follow, Look, View};
use mesh_proto::{
    Timestamp,
    telemetry::{
        ConditionsReply, ConditionsRequest, IngestReply, InstanceSample, InventoryReply, InventoryRequest, QueryReply,
        QueryRequest, RangeReply, RangeRequest, Readings, StreamRequest, WatchReply, WatchRequest,
        telemetry_queries_server::TelemetryQueries,
    },
};
use mesh_store::{Range, Series};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    domain::{Collector, feed::Cursor},
    shell::store,
};

/// Samples in an answer when the question names no limit.
const RANGE_DEFAULT: usize = 1_000;
/// Samples in any answer.
const RANGE_MAX: usize = 10_000;

/// The collector's answers.
pub(crate) struct Api {
    pub(crate) view: View<Collector>,
    pub(crate) series: Arc<dyn Series>,
    pub(crate) stopping: CancellationToken,
    /// Samples that slow readers of the channel lost.
    pub(crate) dropped: Arc<AtomicU64>,
}

#[tonic::async_trait]
impl TelemetryQueries for Api {
    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeReply>, Status> {
        let request = request.into_inner();
        let range = range_of(&request)?;
        let stored = self.series.range(&request.instance_id, range).await.map_err(mesh_kit::internal)?;
        let stored = stored.into_iter().map(|point| store::sample(&request.instance_id, point)).collect();
        let newest = self.view.read(|c| c.newest(&request.instance_id).cloned().collect());
        Ok(Response::new(RangeReply { samples: merge(stored, newest, range) }))
    }

    async fn query(&self, _: Request<QueryRequest>) -> Result<Response<QueryReply>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    type WatchStream = Follow<WatchReply>;

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn ingest(&self, _: Request<Streaming<Readings>>) -> Result<Response<IngestReply>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn inventory(&self, _: Request<InventoryRequest>) -> Result<Response<InventoryReply>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn conditions(&self, _: Request<ConditionsRequest>) -> Result<Response<ConditionsReply>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    type StreamStream = Follow<InstanceSample>;

    async fn stream(&self, request: Request<StreamRequest>) -> Result<Response<Self::StreamStream>, Status> {
        let instance_id = request.into_inner().instance_id;
        if !instance_id.is_empty() {
            query::check_key("instance id", &instance_id)?;
        }
        let (view, dropped) = (self.view.clone(), self.dropped.clone());
        let cursor = view.read(|c| c.follow(&instance_id));
        let read = reading(cursor, move |collector, cursor| {
            let samples = collector.read(cursor);
            dropped.fetch_add(samples.iter().map(|s| s.dropped).sum(), Relaxed);
            samples
        });
        Ok(Response::new(view.follow(self.stopping.clone(), read)))
    }
}

/// The range asked for; all that is kept where an end is absent.
fn range_of(request: &RangeRequest) -> Result<Range, query::Error> {
    query::check_key("instance id", &request.instance_id)?;
    let from = request.from.unwrap_or_default();
    let to = request.to.unwrap_or(Timestamp { seconds: i64::MAX, nanos: 0 });
    if from > to {
        return Err(query::Error::invalid(format!("from {from} is later than to {to}"), "exchange them"));
    }
    let limit = match request.limit as usize {
        0 => RANGE_DEFAULT,
        limit => limit.min(RANGE_MAX),
    };
    Ok(Range { from, to, limit })
}

/// What is stored, and what came in since and is not stored yet; each sample once, the newest kept.
fn merge(stored: Vec<InstanceSample>, newest: Vec<InstanceSample>, range: Range) -> Vec<InstanceSample> {
    let inside = |s: &InstanceSample| s.at.is_some_and(|at| (range.from..=range.to).contains(&at));
    let all = stored.into_iter().chain(newest).filter(inside);
    let by_identity: BTreeMap<_, _> = all.map(|s| ((s.at, s.generation, s.cluster_id.clone()), s)).collect();
    let surplus = by_identity.len().saturating_sub(range.limit);
    by_identity.into_values().skip(surplus).collect()
}

/// Samples from the cursor on, for one who follows them. What its reader was too slow for is gone, and counted.
fn reading(
    mut cursor: Cursor,
    read: impl Fn(&Collector, &mut Cursor) -> Vec<InstanceSample>,
) -> impl FnMut(&Collector) -> Look<InstanceSample> {
    move |collector| Look::Next(read(collector, &mut cursor))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures::{FutureExt as _, StreamExt as _};
    use mesh_core::Projector as _;
    use mesh_kit::follow;
    use prost::Message as _;
    use tokio::sync::watch;

    use super::*;
    use crate::domain::Limits;

    fn sample(instance_id: &str, millis: i64) -> InstanceSample {
        InstanceSample {
            instance_id: instance_id.into(),
            cluster_id: "edge".into(),
            at: Some(Timestamp::from_millis(1_000 + millis)),
            ..Default::default()
        }
    }

    fn give(collector: &Mutex<Collector>, sample: &InstanceSample) {
        let key = format!("continuum/site/node/instance/{}", sample.instance_id);
        collector.lock().unwrap().sample(&key, &sample.encode_to_vec().into());
    }

    fn millis(samples: &[InstanceSample]) -> Vec<i64> {
        samples.iter().map(|s| s.at.unwrap().as_millis() - 1_000).collect()
    }

    #[tokio::test]
    async fn a_follower_gets_samples_as_they_come_and_learns_what_it_lost() {
        let limits = Limits { feed_max: 4, ..Limits::default() };
        let collector = Arc::new(Mutex::new(Collector::new(limits)));
        collector.lock().unwrap().tick(Timestamp::from_millis(1_000));
        give(&collector, &sample("a", 0));
        let (changed, changes) = watch::channel(0);
        let stopping = CancellationToken::new();
        let cursor = collector.lock().unwrap().follow("a");
        let of = collector.clone();
        let mut read = reading(cursor, Collector::read);
        let mut stream = follow(changes, stopping.clone(), move || read(&of.lock().unwrap()));
        assert!(stream.next().now_or_never().is_none(), "nothing from before it began");
        give(&collector, &sample("a", 1));
        give(&collector, &sample("b", 1));
        changed.send_replace(1);
        assert_eq!(millis(&[stream.next().await.unwrap().unwrap()]), [1]);
        assert!(stream.next().now_or_never().is_none(), "none of another instance");
        for number in 2..9 {
            give(&collector, &sample("a", number));
        }
        changed.send_replace(2);
        let first = stream.next().await.unwrap().unwrap();
        assert_eq!((millis(std::slice::from_ref(&first)), first.dropped), (vec![5], 3));
        assert_eq!(stream.next().await.unwrap().unwrap().dropped, 0);
        stopping.cancel();
        assert_eq!(stream.next().await.unwrap().unwrap_err().code(), tonic::Code::Unavailable);
        assert!(stream.next().await.is_none(), "the channel ends with the process");
    }

    #[tokio::test]
    async fn a_follower_that_waits_is_woken_and_ends_with_the_view() {
        let collector = Arc::new(Mutex::new(Collector::new(Limits::default())));
        collector.lock().unwrap().tick(Timestamp::from_millis(1_000));
        let (changed, changes) = watch::channel(0);
        let cursor = collector.lock().unwrap().follow("");
        let of = collector.clone();
        let mut read = reading(cursor, Collector::read);
        let stream = follow(changes, CancellationToken::new(), move || read(&of.lock().unwrap()));
        let feed = async move {
            for number in 0..50 {
                give(&collector, &sample(&format!("i{}", number % 3), number));
                changed.send_replace(number as u64);
                tokio::task::yield_now().await;
            }
        };
        let (all, ()) = tokio::join!(stream.map(Result::unwrap).collect::<Vec<_>>(), feed);
        assert_eq!(millis(&all), (0..50).collect::<Vec<_>>());
    }

    #[test]
    fn a_range_holds_each_sample_once_and_keeps_the_newest() {
        let range = Range { from: Timestamp::from_millis(1_001), to: Timestamp::from_millis(1_004), limit: 3 };
        let stored = (0..3).map(|n| sample("a", n)).collect();
        let newest = (2..6).map(|n| sample("a", n)).collect();
        assert_eq!(millis(&merge(stored, newest, range)), [2, 3, 4]);
    }

    #[test]
    fn a_question_that_makes_no_sense_is_refused() {
        let ask = |instance_id: &str, from, to, limit| {
            range_of(&RangeRequest { instance_id: instance_id.into(), from, to, limit })
        };
        let at = |millis| Some(Timestamp::from_millis(millis));
        assert!(matches!(ask("", None, None, 0), Err(query::Error::InvalidArgument { .. })));
        assert!(matches!(ask("a.b", None, None, 0), Err(query::Error::InvalidArgument { .. })));
        assert!(matches!(ask("a", at(2), at(1), 0), Err(query::Error::InvalidArgument { .. })));
        let all = ask("a", None, None, 0).unwrap();
        assert_eq!((all.from, all.limit), (Timestamp::default(), RANGE_DEFAULT));
        assert!(all.to > Timestamp::from_millis(i64::MAX / 2));
        assert_eq!(ask("a", at(1), at(1), u32::MAX).unwrap().limit, RANGE_MAX);
    }
}
