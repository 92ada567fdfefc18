//! What others may ask of twins.

use std::collections::BTreeMap;

use mesh_core::query;
use mesh_kit::{Follow, Look, Mesh, View};
use mesh_proto::{
    Timestamp, is_key,
    twin::{DiffReply, DiffRequest, Twin, TwinList, TwinRequest, twin_queries_server::TwinQueries},
};
use mesh_store::{Error, Query};
use prost::Message as _;
use tonic::{Request, Response, Status};

use crate::{
    domain::{Kind, Twins, diff::diff},
    shell::store::{self, Retention, Stores},
};

/// The aggregator's answers.
pub(crate) struct Api {
    pub(crate) mesh: Mesh,
    pub(crate) view: View<Twins>,
    pub(crate) stores: Stores,
    pub(crate) keep: Retention,
}

#[tonic::async_trait]
impl TwinQueries for Api {
    async fn get(&self, request: Request<TwinRequest>) -> Result<Response<Twin>, Status> {
        let request = request.into_inner();
        let kinds = one(&request)?;
        let found = match request.at {
            Some(time) => self.stores.at(kinds, &request.id, time, self.past()).await?,
            None => self.now(kinds, &request.id),
        };
        Ok(Response::new(found.ok_or_else(|| unknown(&request))?))
    }

    async fn list(&self, request: Request<TwinRequest>) -> Result<Response<TwinList>, Status> {
        Ok(Response::new(self.stores.list(request.into_inner()).await?))
    }

    async fn history(&self, request: Request<TwinRequest>) -> Result<Response<TwinList>, Status> {
        Ok(Response::new(self.stores.versions(request.into_inner()).await?))
    }

    async fn diff(&self, request: Request<DiffRequest>) -> Result<Response<DiffReply>, Status> {
        let DiffRequest { kind, id, from, to } = request.into_inner();
        let asked = TwinRequest { kind, id, at: from, ..TwinRequest::default() };
        let kinds = one(&asked)?;
        let Some(from) = from else {
            let hint = "name the time of the state that comes first, such as 2026-11-22T05:00:00Z";
            return Err(query::Error::invalid("a difference without `from`", hint).into());
        };
        if to.is_some_and(|to| to < from) {
            let what = format!("a difference from {from} back to {}", to.unwrap_or_default());
            return Err(query::Error::invalid(what, "give the earlier time first").into());
        }
        for kind in kinds {
            let kind = std::slice::from_ref(kind);
            let after = match to {
                Some(to) => self.stores.at(kind, &asked.id, to, self.past()).await?,
                None => self.now(kind, &asked.id),
            };
            let before = self.stores.at(kind, &asked.id, from, self.past()).await?;
            if before.is_some() || after.is_some() {
                let version = |twin: &Option<Twin>| twin.as_ref().map_or(0, |twin| twin.version);
                return Ok(Response::new(DiffReply {
                    from_version: version(&before),
                    to_version: version(&after),
                    differences: diff(before.as_ref(), after.as_ref()),
                }));
            }
        }
        Err(unknown(&asked).into())
    }

    type WatchStream = Follow<Twin>;

    async fn watch(&self, request: Request<TwinRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let request = request.into_inner();
        let mut kind = kind_of(&request)?;
        if !request.id.is_empty() {
            let (kinds, now) = (one(&request)?, self.mesh.now());
            let has = |twins: &Twins| kinds.iter().copied().find(|kind| twins.get(*kind, &request.id, now).is_some());
            // An id that several kinds bear is that of the first.
            kind = Some(self.view.read(has).ok_or_else(|| unknown(&request))?);
        }
        Ok(Response::new(self.view.follow(self.mesh.stopping(), published(kind, request.id))))
    }
}

impl Api {
    /// The time before which versions are forgotten, and what keeps more.
    fn past(&self) -> (Timestamp, &'static str) {
        (self.keep.oldest(self.mesh.now()), self.keep.hint())
    }

    /// The twin as it is, of the first kind that has it.
    fn now(&self, kinds: &[Kind], id: &str) -> Option<Twin> {
        let now = self.mesh.now();
        self.view.read(|twins| kinds.iter().find_map(|kind| twins.get(*kind, id, now)))
    }
}

impl Stores {
    /// The twin as it was at a time, of the first kind that has it; `None` if it was not there. Of a time before `oldest`
    /// that cannot be said, unless a version of then is still there.
    async fn at(
        &self,
        kinds: &[Kind],
        id: &str,
        time: Timestamp,
        (oldest, hint): (Timestamp, &str),
    ) -> Result<Option<Twin>, query::Error> {
        let decode = |body| Twin::decode(body).map_err(mesh_kit::internal);
        let mut is_known = false;
        for kind in kinds {
            let key = store::key(kind.name(), id);
            if let Some(version) = self.history.at(&key, time).await.map_err(mesh_kit::internal)? {
                return Ok(Some(decode(version.body)?));
            }
            // One that has not changed for longer than versions are kept has none in the history.
            if let Some(newest) = self.documents.get(&key).await.map_err(mesh_kit::internal)? {
                is_known = true;
                let newest = decode(newest.body)?;
                if newest.at.is_some_and(|at| at <= time) {
                    return Ok(Some(newest));
                }
            }
        }
        if is_known && time < oldest {
            let what = format!("twin {id} at {time} (what was before {oldest} is not kept)");
            return Err(query::Error::not_found(what, hint));
        }
        Ok(None)
    }

    /// Twins as last published, by kind and id.
    async fn list(&self, request: TwinRequest) -> Result<TwinList, query::Error> {
        let kind = kind_of(&request)?;
        let owned = |twin: &Twin| request.owner.is_empty() || twin.owner == request.owner;
        if !request.id.is_empty() {
            let mut twins = vec![];
            for kind in one(&request)? {
                let key = store::key(kind.name(), &request.id);
                let found = self.documents.get(&key).await.map_err(mesh_kit::internal)?;
                twins.extend(found.map(|d| Twin::decode(d.body)).transpose().map_err(mesh_kit::internal)?);
            }
            twins.retain(owned);
            return Ok(TwinList { twins, next_page_token: String::new() });
        }
        let mut equal = BTreeMap::new();
        equal.extend(kind.map(|kind| ("kind".to_owned(), kind.name().to_owned())));
        equal.extend((!request.owner.is_empty()).then(|| ("owner".to_owned(), request.owner)));
        let page = query::Page::new(request.page_size, &request.page_token)?;
        let query = Query { equal, limit: page.size(), token: request.page_token, ..Query::default() };
        let found = self.documents.list(&query).await.map_err(|error| match error {
            Error::Token(_) => page.invalid(),
            other => mesh_kit::internal(other),
        })?;
        let twins = found.documents.into_iter().map(|d| Twin::decode(d.body)).collect::<Result<_, _>>();
        Ok(TwinList { twins: twins.map_err(mesh_kit::internal)?, next_page_token: found.next })
    }

    /// Published versions of one twin, newest first.
    async fn versions(&self, request: TwinRequest) -> Result<TwinList, query::Error> {
        let kinds = one(&request)?;
        let page = query::Page::new(request.page_size, &request.page_token)?;
        let before = match page.after() {
            "" => None,
            token => Some(token.parse().map_err(|_| page.invalid())?),
        };
        for kind in kinds {
            let key = store::key(kind.name(), &request.id);
            // One more than a page, so that its end is known.
            let found = self.history.list(&key, before, page.size() + 1).await.map_err(mesh_kit::internal)?;
            if found.is_empty() && before.is_none() {
                continue;
            }
            let (found, next_page_token) = page.fill(found, |version| version.version.to_string());
            let twins = found.into_iter().map(|v| Twin::decode(v.body)).collect::<Result<_, _>>();
            return Ok(TwinList { twins: twins.map_err(mesh_kit::internal)?, next_page_token });
        }
        Err(unknown(&request))
    }
}

/// The kind asked for; `None` for all.
fn kind_of(request: &TwinRequest) -> Result<Option<Kind>, query::Error> {
    if request.kind.is_empty() {
        return Ok(None);
    }
    let kind = Kind::named(&request.kind);
    let hint = "use workload, cluster, node, network, continuum or nothing";
    let wrong = || query::Error::invalid(format!("kind {:?}", request.kind), hint);
    kind.map(Some).ok_or_else(wrong)
}

/// The kinds in which to look for an id that must be there.
fn one(request: &TwinRequest) -> Result<&'static [Kind], query::Error> {
    if !is_key(&request.id) {
        let what = format!("twin id {:?}", request.id);
        return Err(query::Error::invalid(
            what,
            "use the id of an instance, a cluster, a node or a network's domain, or `continuum`",
        ));
    }
    Ok(match kind_of(request)? {
        None => &Kind::ALL,
        Some(Kind::Workload) => &[Kind::Workload],
        Some(Kind::Cluster) => &[Kind::Cluster],
        Some(Kind::Node) => &[Kind::Node],
        Some(Kind::Network) => &[Kind::Network],
        Some(Kind::Continuum) => &[Kind::Continuum],
    })
}

fn unknown(request: &TwinRequest) -> query::Error {
    let kind = if request.kind.is_empty() { "" } else { " of kind " };
    let when = request.at.map_or_else(String::new, |at| format!(" at {at}"));
    let what = format!("twin {}{kind}{}{when}", request.id, request.kind);
    query::Error::not_found(what, "list those there are with List, and their past with History")
}

/// Twins published so far and from here on. A slow reader skips what became old meanwhile.
fn published(kind: Option<Kind>, id: String) -> impl FnMut(&Twins) -> Look<Twin> {
    let mut order = 0;
    move |twins| {
        let seen = order;
        let found;
        (found, order) = twins.published_since(kind, &id, order);
        if order == seen { Look::Next(found) } else { Look::More(found) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use bytes::Bytes;
    use futures::{FutureExt as _, StreamExt as _, executor::block_on};
    use mesh_core::Projector as _;
    use mesh_kit::follow;
    use mesh_proto::telemetry::ClusterSample;
    use tokio::sync::watch;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        domain::Limits,
        shell::store::tests::{stores, twin, write},
    };

    fn asking(kind: &str, id: &str) -> TwinRequest {
        TwinRequest { kind: kind.into(), id: id.into(), ..Default::default() }
    }

    fn names(list: &TwinList) -> Vec<(&str, u64)> {
        list.twins.iter().map(|t| (t.id.as_str(), t.version)).collect()
    }

    fn full() -> Stores {
        let stores = stores();
        let mut other = twin("workload", "j", 13);
        other.owner = "ann".into();
        let (first, node) = (twin("workload", "i", 10), twin("node", "n", 11));
        write(&stores, 1, &[first, node, twin("workload", "i", 12), other, twin("workload", "i", 14)], None);
        stores
    }

    #[test]
    fn a_list_is_by_kind_owner_and_page() {
        let stores = full();
        let list = |request: TwinRequest| block_on(stores.list(request));
        assert_eq!(names(&list(asking("", "")).unwrap()), [("n", 11), ("i", 14), ("j", 13)]);
        assert_eq!(names(&list(asking("node", "")).unwrap()), [("n", 11)]);
        assert_eq!(names(&list(TwinRequest { owner: "ann".into(), ..asking("", "") }).unwrap()), [("j", 13)]);
        assert_eq!(names(&list(asking("", "i")).unwrap()), [("i", 14)]);
        assert_eq!(names(&list(TwinRequest { owner: "ann".into(), ..asking("", "i") }).unwrap()), []);
        let first = list(TwinRequest { page_size: 2, ..asking("", "") }).unwrap();
        let second = list(TwinRequest { page_size: 2, page_token: first.next_page_token, ..asking("", "") }).unwrap();
        assert_eq!((names(&second), second.next_page_token.as_str()), (vec![("j", 13)], ""));
        for wrong in [asking("planet", ""), TwinRequest { page_token: "x".into(), ..asking("", "") }] {
            assert!(matches!(list(wrong), Err(query::Error::InvalidArgument { .. })));
        }
    }

    #[test]
    fn a_history_goes_back_page_by_page_and_a_twin_is_known_at_a_time() {
        let stores = full();
        let versions = |request: TwinRequest| block_on(stores.versions(request));
        assert_eq!(names(&versions(asking("", "i")).unwrap()), [("i", 14), ("i", 12), ("i", 10)]);
        let first = versions(TwinRequest { page_size: 2, ..asking("workload", "i") }).unwrap();
        assert_eq!((names(&first), first.next_page_token.as_str()), (vec![("i", 14), ("i", 12)], "12"));
        let page = TwinRequest { page_size: 2, page_token: "12".into(), ..asking("workload", "i") };
        let second = versions(page).unwrap();
        assert_eq!((names(&second), second.next_page_token.as_str()), (vec![("i", 10)], ""));
        assert!(matches!(versions(asking("node", "i")), Err(query::Error::NotFound { .. })));
        assert!(matches!(versions(asking("", "")), Err(query::Error::InvalidArgument { .. })));
        let page = TwinRequest { page_token: "x".into(), ..asking("", "i") };
        assert!(matches!(versions(page), Err(query::Error::InvalidArgument { .. })));

        let time = Timestamp::from_millis;
        let at = |id, millis| block_on(stores.at(&Kind::ALL, id, time(millis), (time(0), ""))).unwrap();
        assert_eq!(at("i", 13).map(|t| t.version), Some(12));
        assert_eq!(at("n", 13).map(|t| t.kind), Some("node".to_owned()));
        assert_eq!(at("i", 9), None);
        let beyond = block_on(stores.at(&Kind::ALL, "i", time(5), (time(8), "keep more"))).unwrap_err().to_string();
        assert!(beyond.contains("before 1970-01-01T00:00:00.008Z is not kept"), "{beyond}");
        assert!(beyond.contains("keep more"), "{beyond}");
        block_on(stores.history.forget(time(100))).unwrap();
        assert_eq!(at("i", 20).map(|t| t.version), Some(14), "what has not changed since is what it was");
    }

    #[tokio::test]
    async fn a_watcher_sees_the_present_then_every_change() {
        let twins = Arc::new(Mutex::new(Twins::new(Limits::default())));
        let cluster = |id: &str| {
            let event =
                mesh_proto::cluster::ClusterRegistered { cluster_id: id.into(), cpu_milli: 1, ..Default::default() };
            crate::domain::tests::stored(&event, Timestamp::from_millis(1))
        };
        twins.lock().unwrap().apply(&cluster("a"));
        twins.lock().unwrap().tick(Timestamp::from_millis(1_000));
        let (changed, changes) = watch::channel(0);
        let stopping = CancellationToken::new();
        let of = twins.clone();
        let mut look = published(Some(Kind::Cluster), String::new());
        let mut stream = follow(changes, stopping.clone(), move || look(&of.lock().unwrap()));
        assert_eq!(stream.next().await.unwrap().unwrap().id, "a");
        assert!(stream.next().now_or_never().is_none());
        for (number, percent) in [(2, 10.0), (3, 50.0)] {
            let at = Some(Timestamp::from_millis(1_000 * number));
            let sample = ClusterSample { cluster_id: "a".into(), at, cpu_percent: percent, ..Default::default() };
            let body = Bytes::from(sample.encode_to_vec());
            twins.lock().unwrap().sample("continuum/s/n/cluster/a", &body);
            twins.lock().unwrap().tick(Timestamp::from_millis(1_000 * number));
        }
        changed.send_replace(1);
        let newest = stream.next().await.unwrap().unwrap();
        assert_eq!(newest.cpu_percent, 50.0, "a slow reader skips to the newest");
        assert!(stream.next().now_or_never().is_none());
        stopping.cancel();
        assert_eq!(stream.next().await.unwrap().unwrap_err().code(), tonic::Code::Unavailable);
        assert!(stream.next().await.is_none());
    }

    #[test]
    fn a_question_that_makes_no_sense_is_refused() {
        assert!(matches!(one(&asking("", "a.b")), Err(query::Error::InvalidArgument { .. })));
        assert!(matches!(one(&asking("planet", "a")), Err(query::Error::InvalidArgument { .. })));
        assert_eq!(one(&asking("", "a")).unwrap(), Kind::ALL);
        let unknown = unknown(&TwinRequest { at: Some(Timestamp::from_millis(0)), ..asking("node", "a") }).to_string();
        assert!(unknown.starts_with("twin a of kind node at 1970-01-01T00:00:00Z not found"), "{unknown}");
    }
}
