//! What others may ask: values over time, agents and conditions, and the streaming-telemetry channel, in and out.

mod query;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use mesh_core::query::{Error, check_key, size};
use mesh_kit::{Follow, Look, Mesh, View};
use mesh_proto::{
    READINGS_SIGNAL, Timestamp, is_key,
    telemetry::{
        AgentInfo, ConditionsReply, ConditionsRequest, IngestReply, InstanceSample, InventoryReply, InventoryRequest,
        QueryReply, QueryRequest, RangeReply, RangeRequest, Readings, StreamRequest, WatchReply, WatchRequest,
        telemetry_queries_server::TelemetryQueries,
    },
};
use mesh_store::Range;
use prost::Message as _;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming};

use self::query::Question;
use crate::{
    domain::{
        Collector,
        feed::Cursor,
        recent::{Held, Recent},
        select,
        sharing::Way,
    },
    shell::store::{self, Stores},
};

/// Samples in an answer when the question names no limit.
const RANGE_DEFAULT: usize = 1_000;
/// Samples in any answer.
const RANGE_MAX: usize = 10_000;

/// Readings that one call may send before it is answered for good; further ones are refused.
const INGEST_BYTES_MAX: usize = 4 << 20;
/// Where readings of the channel come from, in their keys.
const INGEST_SITE: &str = "grpc";

/// The collector's answers.
pub(crate) struct Api {
    pub(crate) mesh: Mesh,
    pub(crate) view: View<Collector>,
    pub(crate) stores: Stores,
    /// Into the view.
    pub(crate) feed: mpsc::Sender<(String, Bytes)>,
    /// What goes there, decoded.
    pub(crate) ingested: Arc<Recent>,
    /// Samples that slow readers of the channel lost.
    pub(crate) dropped: Arc<AtomicU64>,
}

#[tonic::async_trait]
impl TelemetryQueries for Api {
    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeReply>, Status> {
        let request = request.into_inner();
        let range = range_of(&request)?;
        let stored = self.stores.raw.range(&request.instance_id, range).await.map_err(mesh_kit::internal)?;
        let stored = stored.into_iter().map(|point| store::sample(&request.instance_id, point)).collect();
        let newest = self.view.read(|c| c.newest(&request.instance_id).cloned().collect());
        Ok(Response::new(RangeReply { samples: merge(stored, newest, range) }))
    }

    async fn query(&self, request: Request<QueryRequest>) -> Result<Response<QueryReply>, Status> {
        let request = request.into_inner();
        let now = self.mesh.now();
        let question = Question::new(&request, now)?;
        if query::is_of_newest(&request) {
            let filter = request.filter.clone().unwrap_or_default();
            let max = query::series_max(&request);
            let mut series = self.view.read(|collector| collector.newest_of(&filter, max + 1));
            let truncated = series.len() > max;
            series.truncate(max);
            return Ok(Response::new(QueryReply { series, truncated, resolution_seconds: 0 }));
        }
        Ok(Response::new(question.answer(&self.stores, &request, now).await?))
    }

    type WatchStream = Follow<WatchReply>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let WatchRequest { filter, interval_ms, after } = request.into_inner();
        let filter = filter.unwrap_or_default();
        select::check(&filter)?;
        let mut cursor = self.view.read(|collector| collector.watch(filter, interval_ms, after));
        let dropped = self.dropped.clone();
        let look = move |collector: &Collector| match collector.watched_values(&mut cursor) {
            None => Look::Next(vec![]),
            Some(reply) => {
                dropped.fetch_add(reply.missed, Relaxed);
                Look::More(vec![reply])
            }
        };
        Ok(Response::new(self.view.follow(self.mesh.stopping(), look)))
    }

    async fn ingest(&self, request: Request<Streaming<Readings>>) -> Result<Response<IngestReply>, Status> {
        let mut packs = request.into_inner();
        let mut reply = IngestReply::default();
        while let Some(pack) = packs.message().await? {
            let values = pack.values.len() as u64;
            let node = pack.entities.first().map(|entity| entity.node.clone()).filter(|node| is_key(node));
            let body = Bytes::from(pack.encode_to_vec());
            let why = if !is_key(&pack.cluster_id) {
                Some("cluster_id is not a key")
            } else if !pack.fits() {
                Some("columns do not fit together")
            } else if body.len() > INGEST_BYTES_MAX {
                Some("pack is larger than 4 MiB")
            } else if !pack.traffic.is_empty() {
                Some("what went through on routes is taken from gateways only")
            } else {
                None
            };
            if let Some(why) = why {
                *reply.refused.entry(why.to_owned()).or_default() += values.max(1);
                continue;
            }
            let node = node.unwrap_or_else(|| pack.cluster_id.clone());
            let key = [Way::INGESTED, INGEST_SITE, &node, READINGS_SIGNAL, &pack.cluster_id].join("/");
            self.ingested.keep(body.clone(), Held::Readings(Arc::new(pack)), 1);
            if self.feed.send((key, body)).await.is_err() {
                return Err(Status::unavailable("the collector is stopping; send again to another, or later"));
            }
            reply.accepted += values;
        }
        Ok(Response::new(reply))
    }

    async fn inventory(&self, request: Request<InventoryRequest>) -> Result<Response<InventoryReply>, Status> {
        let InventoryRequest { cluster_id, page_size, page_token } = request.into_inner();
        if !cluster_id.is_empty() {
            check_key("cluster id", &cluster_id)?;
        }
        if !page_token.is_empty() {
            check_key("page token", &page_token)?;
        }
        let size = size(page_size);
        let mut agents: Vec<AgentInfo> =
            self.view.read(|collector| collector.agents(&cluster_id, &page_token).take(size + 1).collect());
        let more = agents.len() > size;
        agents.truncate(size);
        let next_page_token = agents.last().filter(|_| more).map_or(String::new(), |agent| agent.cluster_id.clone());
        Ok(Response::new(InventoryReply { agents, next_page_token }))
    }

    async fn conditions(&self, request: Request<ConditionsRequest>) -> Result<Response<ConditionsReply>, Status> {
        let ConditionsRequest { owner, page_size, page_token } = request.into_inner();
        let after = match page_token.split_once('.') {
            Some((owner, id)) if is_key(owner) && is_key(id) => Some((owner.to_owned(), id.to_owned())),
            None if page_token.is_empty() => None,
            _ => {
                let what = format!("{:?} is not a page token", page_token.chars().take(64).collect::<String>());
                return Err(Error::invalid(what, "list again from the first page").into());
            }
        };
        let size = size(page_size);
        let reply = self.view.read(|collector| {
            let all = collector.conditions();
            let mut reply = ConditionsReply::default();
            let mut last = None;
            for (name, condition) in all.list(&owner, after.as_ref()) {
                if reply.conditions.len() == size {
                    let (owner, id): &(String, String) = last.unwrap_or(name);
                    reply.next_page_token = format!("{owner}.{id}");
                    break;
                }
                reply.conditions.push(condition.clone());
                reply.crossings.extend(all.crossings(name));
                last = Some(name);
            }
            reply
        });
        Ok(Response::new(reply))
    }

    type StreamStream = Follow<InstanceSample>;

    async fn stream(&self, request: Request<StreamRequest>) -> Result<Response<Self::StreamStream>, Status> {
        let instance_id = request.into_inner().instance_id;
        if !instance_id.is_empty() {
            check_key("instance id", &instance_id)?;
        }
        let (view, dropped) = (self.view.clone(), self.dropped.clone());
        let cursor = view.read(|c| c.follow(&instance_id));
        let read = reading(cursor, move |collector, cursor| {
            let samples = collector.read(cursor);
            dropped.fetch_add(samples.iter().map(|s| s.dropped).sum(), Relaxed);
            samples
        });
        Ok(Response::new(view.follow(self.mesh.stopping(), read)))
    }
}

/// The range asked for; all that is kept where an end is absent.
fn range_of(request: &RangeRequest) -> Result<Range, Error> {
    check_key("instance id", &request.instance_id)?;
    let from = request.from.unwrap_or_default();
    let to = request.to.unwrap_or(Timestamp { seconds: i64::MAX, nanos: 0 });
    if from > to {
        return Err(Error::invalid(format!("from {from} is later than to {to}"), "exchange them"));
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
    use tokio::sync::watch;
    use tokio_util::sync::CancellationToken;

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
        assert!(matches!(ask("", None, None, 0), Err(Error::InvalidArgument { .. })));
        assert!(matches!(ask("a.b", None, None, 0), Err(Error::InvalidArgument { .. })));
        assert!(matches!(ask("a", at(2), at(1), 0), Err(Error::InvalidArgument { .. })));
        let all = ask("a", None, None, 0).unwrap();
        assert_eq!((all.from, all.limit), (Timestamp::default(), RANGE_DEFAULT));
        assert!(all.to > Timestamp::from_millis(i64::MAX / 2));
        assert_eq!(ask("a", at(1), at(1), u32::MAX).unwrap().limit, RANGE_MAX);
    }
}
