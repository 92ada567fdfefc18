//! Measurements and what follows from them over REST: values over time, who measures, streams of events, settings and
//! conditions, and the page that Prometheus reads.

use axum::{body::Body, response::Response};
use futures::{future::join_all, stream};
use http::{StatusCode, header};
use mesh_core::Stored;
use mesh_proto::{
    intent::StandingRequest,
    measurement::{ConditionDefined, DefineCondition, DropCondition, MeasurementSet, SetMeasurement, UnsetMeasurement},
    telemetry::{
        ConditionsRequest, Entity, InventoryRequest, QueryRequest, WatchRequest,
        telemetry_queries_client::TelemetryQueriesClient,
    },
    twin::{TwinRequest, twin_queries_client::TwinQueriesClient},
};
use mesh_rest::{
    access::{Action, Reach},
    http::{empty, json, with},
    problem::Problem,
};
use serde_json::{Value as Json, json};
use tonic::transport::Channel;

use crate::{
    domain::{
        measurement, present, prometheus,
        telemetry::{self, Format, Scope},
    },
    shell::{
        events::{event, failure},
        gateway::{Admitted, Gateway, csv},
        intents::{MANAGER, linked, other_page, owner_of, page_size},
    },
};

pub(crate) const COLLECTOR: &str = "collector";
const AGGREGATOR: &str = "cmdt-aggregator";
/// Bytes of one answer of the collector.
const REPLY_MAX: usize = 64 * 1024 * 1024;
/// What is older is not on the page for Prometheus: it is not measured any more.
pub(crate) const STALE_MS: i64 = 5 * 60 * 1_000;

/// The content type of OpenMetrics.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

impl Gateway {
    /// The collector.
    pub(crate) async fn collector(&self) -> Result<TelemetryQueriesClient<Channel>, Problem> {
        Ok(TelemetryQueriesClient::new(self.channel(COLLECTOR).await?).max_decoding_message_size(REPLY_MAX))
    }

    /// Values over time, as JSON or CSV.
    pub(crate) async fn query_telemetry(&self, admitted: &Admitted) -> Result<Response, Problem> {
        let format = telemetry::format(&admitted.query, admitted.list("accept").as_deref())?;
        let now = self.inner.mesh.now();
        let (request, scope) = telemetry::question(&admitted.query, &admitted.caller.owner, sees_all(admitted), now)?;
        let answer = self.collector().await?.query(request).await;
        let reply = self.reply(COLLECTOR, answer)?;
        Ok(match format {
            Format::Json => json(StatusCode::OK, &telemetry::reply(&reply, &scope)),
            Format::Csv => csv(telemetry::csv(&reply, &scope)),
        })
    }

    /// Who measures, and what: agents with their probes, entities and settings. Of probes and entities, those who may not
    /// see everybody's are shown what is their own, and the infrastructure's.
    pub(crate) async fn inventory(&self, admitted: &Admitted) -> Result<Response, Problem> {
        let cluster = admitted.value("cluster_id").unwrap_or_default();
        if admitted.query.contains_key("cluster_id") && !mesh_proto::is_key(cluster) {
            return Err(Problem::field("cluster_id", "is not a valid id", "use 1 to 64 letters, digits, `_` and `-`"));
        }
        let request = InventoryRequest {
            cluster_id: cluster.to_owned(),
            page_size: page_size(admitted)?,
            page_token: page_token(admitted)?,
        };
        let answer = self.collector().await?.inventory(request).await;
        let reply = self.reply(COLLECTOR, answer)?;
        let scope = scope(admitted);
        let shown = reply.agents.into_iter().map(|mut agent| {
            let has = |entity: Option<&Entity>| entity.is_some_and(|entity| scope.has(&entity.owner));
            agent.probes.retain(|probe| has(probe.entity.as_ref()));
            agent.entities.retain(|info| has(info.entity.as_ref()));
            present::message("continuum.telemetry.v1.AgentInfo", &agent)
        });
        Ok(linked(admitted, json(StatusCode::OK, &shown.collect::<Vec<_>>().into()), &reply.next_page_token))
    }

    /// Values as they come in.
    pub(crate) async fn stream_telemetry(&self, admitted: &Admitted) -> Result<Response, Problem> {
        let (filter, scope) = telemetry::filter(&admitted.query, &admitted.caller.owner, sees_all(admitted))?;
        let request = WatchRequest {
            filter: Some(filter),
            interval_ms: telemetry::interval_ms(&admitted.query)?,
            after: after(admitted)?.unwrap_or_default(),
        };
        let permit = self.stream_permit()?;
        let answer = self.collector().await?.watch(request).await;
        let packs = self.reply(COLLECTOR, answer)?;
        let events = stream::unfold(Some((packs, scope)), |state| async move {
            let (mut packs, scope) = state?;
            loop {
                match packs.message().await {
                    Ok(Some(reply)) => {
                        let pack = reply.readings.unwrap_or_default();
                        let Some(shown) = telemetry::readings(&pack, reply.missed, &scope) else { continue };
                        return Some((event("readings", Some(reply.position), &shown), Some((packs, scope))));
                    }
                    Ok(None) => return None,
                    Err(status) => return Some((failure(status.message()), None)),
                }
            }
        });
        Ok(self.events(permit, events))
    }

    /// Facts of a stream as they are stored, from now on or after one that was seen: anomalies, observations.
    pub(crate) async fn stream_facts(&self, admitted: &Admitted, stream: &'static str) -> Result<Response, Problem> {
        let only = admitted.value("owner").map(|_| admitted.owner()).transpose()?;
        let (scope, after) = (scope(admitted), after(admitted)?);
        let permit = self.stream_permit()?;
        let last = self.inner.mesh.bus().log(stream).last_sequence().await;
        let last = last.map_err(|_| mesh_rest::http::unavailable("the bus does not answer"))?;
        // What is behind the end is of a bus before this one.
        let from = after.map_or(last, |after| after.min(last)) + 1;
        let tail = self.inner.mesh.follow(stream, from);
        let events = stream::unfold(Some((tail, scope, only)), |state| async move {
            let (mut tail, scope, only) = state?;
            loop {
                match tail.next().await {
                    Ok(stored) => {
                        let owner = owner_of(&stored).unwrap_or_default();
                        if !scope.has(&owner) || only.as_ref().is_some_and(|only| *only != owner) {
                            continue;
                        }
                        let Some((name, shown)) = shown(&stored) else { continue };
                        let text = event(&name, Some(stored.sequence), &shown);
                        return Some((text, Some((tail, scope, only))));
                    }
                    Err(error) => return Some((failure(&error.to_string()), None)),
                }
            }
        });
        Ok(self.events(permit, events))
    }

    /// Each twin now, and again at each change. Who comes again is shown all of them again, so nothing is missed.
    pub(crate) async fn stream_twins(&self, admitted: &Admitted) -> Result<Response, Problem> {
        const KINDS: [&str; 5] = ["workload", "node", "cluster", "network", "continuum"];
        let only = admitted.value("owner").map(|_| admitted.owner()).transpose()?;
        let kind = admitted.value("kind").unwrap_or_default();
        if admitted.query.contains_key("kind") && !KINDS.contains(&kind) {
            return Err(Problem::field("kind", "is not a kind of twin", format!("use {}", KINDS.join(", "))));
        }
        let id = admitted.value("twin_id").unwrap_or_default();
        if admitted.query.contains_key("twin_id") && !mesh_proto::is_key(id) {
            return Err(Problem::field("twin_id", "is not a valid id", "use 1 to 64 letters, digits, `_` and `-`"));
        }
        let request = TwinRequest { kind: kind.to_owned(), id: id.to_owned(), ..TwinRequest::default() };
        let permit = self.stream_permit()?;
        let answer = TwinQueriesClient::new(self.channel(AGGREGATOR).await?).watch(request).await;
        let twins = self.reply(AGGREGATOR, answer)?;
        let scope = scope(admitted);
        let events = stream::unfold(Some((twins, scope, only)), |state| async move {
            let (mut twins, scope, only) = state?;
            loop {
                match twins.message().await {
                    Ok(Some(twin)) => {
                        if !scope.has(&twin.owner) || only.as_ref().is_some_and(|only| *only != twin.owner) {
                            continue;
                        }
                        let shown = present::message("continuum.twin.v1.Twin", &twin);
                        return Some((event("twin", None, &shown), Some((twins, scope, only))));
                    }
                    Ok(None) => return None,
                    Err(status) => return Some((failure(status.message()), None)),
                }
            }
        });
        Ok(self.events(permit, events))
    }

    /// What the collector knows, for Prometheus, and how far each stream of the bus is.
    pub(crate) async fn metrics(&self, admitted: &Admitted) -> Result<Response, Problem> {
        let (filter, scope) = telemetry::filter(&admitted.query, &admitted.caller.owner, sees_all(admitted))?;
        let now = self.inner.mesh.now();
        let series_max = self.inner.config.metrics_series_max;
        // Without beginning and end, it is the newest value of each series that is asked for.
        let mut request = QueryRequest { filter: Some(filter), series_max, values_max: 1, ..QueryRequest::default() };
        let mut client = self.collector().await?;
        let answer = client.query(request.clone()).await;
        let mut reply = self.reply(COLLECTOR, answer)?;
        if let (Scope::Of(own), Some(filter)) = (&scope, &mut request.filter)
            && filter.owner == *own
            && filter.entity_kind.is_empty()
            && !admitted.query.contains_key("owner")
        {
            // Of those who do not see everybody's: their own, and the infrastructure.
            filter.owner.clear();
            for kind in ["node", "cluster", "storage"] {
                let mut request = request.clone();
                if let Some(filter) = &mut request.filter {
                    kind.clone_into(&mut filter.entity_kind);
                }
                let answer = client.query(request).await;
                reply.series.extend(self.reply(COLLECTOR, answer)?.series);
            }
        }
        reply.series.retain(|series| {
            let is_fresh = series.at_ms.last().is_some_and(|at_ms| now.as_millis() - at_ms < STALE_MS);
            is_fresh && series.entity.as_ref().is_some_and(|entity| scope.has(&entity.owner))
        });
        let own = self.streams().await + &self.standing(admitted).await?;
        let page = prometheus::page(&reply.series, series_max as usize, &own);
        Ok(with(Response::new(Body::from(page)), header::CONTENT_TYPE, OPENMETRICS))
    }

    /// How the intents stand that the caller may read, as a part of the page for Prometheus: nothing if the page is narrowed to
    /// measurements.
    async fn standing(&self, admitted: &Admitted) -> Result<String, Problem> {
        let intents_max = self.inner.config.metrics_intents_max;
        let reach = admitted.caller.reach(Action::ReadIntents);
        let is_narrowed = admitted.query.keys().any(|name| name != "owner");
        if is_narrowed || intents_max == 0 || reach == Reach::Nothing {
            return Ok(String::new());
        }
        let owner = match admitted.value("owner") {
            None if reach == Reach::All => String::new(),
            _ => admitted.owner()?,
        };
        let answer = match self.manager().await {
            Ok(mut manager) => manager.standing(StandingRequest { owner, intents_max }).await,
            Err(_) => return Ok(prometheus::intents(None)),
        };
        // What is measured is shown also while intents are not known.
        Ok(prometheus::intents(self.reply(MANAGER, answer).ok().as_ref()))
    }

    /// How many messages each stream that the gateway may read has ever stored.
    async fn streams(&self) -> String {
        let contract = mesh_proto::contract();
        let tails =
            contract.service(self.inner.mesh.name()).map(|service| service.tails.as_slice()).unwrap_or_default();
        let ends = join_all(tails.iter().map(|stream| async move {
            Some((stream, self.inner.mesh.bus().log(stream).last_sequence().await.ok()?))
        }));
        let name = "continuum_stream_messages";
        let head = format!("# TYPE {name} counter\n# HELP {name} messages that a stream of the bus has stored\n");
        let lines = ends.await.into_iter().flatten();
        lines.fold(head, |text, (stream, last)| format!("{text}{name}_total{{stream=\"{stream}\"}} {last}\n"))
    }

    /// Settings in force, by cluster and name.
    pub(crate) fn list_settings(&self, admitted: &Admitted) -> Result<Response, Problem> {
        let cluster = admitted.value("cluster_id");
        if cluster.is_some_and(|cluster| !mesh_proto::is_key(cluster)) {
            return Err(Problem::field("cluster_id", "is not a valid id", "use 1 to 64 letters, digits, `_` and `-`"));
        }
        let after = measurement::page_after(admitted.value("page_token").unwrap_or_default()).ok_or_else(other_page)?;
        let size = page_size(admitted)? as usize;
        let (page, next) = self.inner.in_force.read(|in_force| in_force.settings(cluster, after, size));
        Ok(linked(admitted, json(StatusCode::OK, &page.into()), &next))
    }

    /// One setting.
    pub(crate) fn show_setting(&self, admitted: &Admitted) -> Result<Response, Problem> {
        let (cluster, name) = (admitted.id(0), admitted.id(1));
        let found = self.inner.in_force.read(|in_force| in_force.setting(&cluster, &name));
        let found = found.ok_or_else(|| Problem::not_found(format!("setting {name} of {cluster}")))?;
        Ok(json(StatusCode::OK, &found))
    }

    /// Sets how something is measured.
    pub(crate) async fn put_setting(&self, admitted: &mut Admitted) -> Result<Response, Problem> {
        let (cluster_id, setting_id) = (admitted.id(0), admitted.id(1));
        let setting = measurement::setting(admitted.written())?;
        let command = SetMeasurement { cluster_id, setting_id, setting: Some(setting) };
        let id = uuid::Uuid::now_v7().to_string();
        let (answer, _) = self.inner.answers.ask(&command, &id, self.limit_of_commands()).await?;
        let set = answer.event::<MeasurementSet>().ok().flatten().unwrap_or_default();
        let shown = measurement::shown_setting(&set.cluster_id, &set.setting_id, &set.setting.unwrap_or_default());
        Ok(json(StatusCode::OK, &shown))
    }

    /// Takes a setting back.
    pub(crate) async fn delete_setting(&self, admitted: &Admitted) -> Result<Response, Problem> {
        let command = UnsetMeasurement { cluster_id: admitted.id(0), setting_id: admitted.id(1) };
        let id = uuid::Uuid::now_v7().to_string();
        self.inner.answers.ask(&command, &id, self.limit_of_commands()).await?;
        Ok(empty(StatusCode::NO_CONTENT))
    }

    /// Conditions of an owner, and which are past their line.
    pub(crate) async fn list_conditions(&self, admitted: &Admitted) -> Result<Response, Problem> {
        let request = ConditionsRequest {
            owner: admitted.owner()?,
            page_size: page_size(admitted)?,
            page_token: page_token(admitted)?,
        };
        let answer = self.collector().await?.conditions(request).await;
        let reply = self.reply(COLLECTOR, answer)?;
        let shown = json!({
            "conditions": reply.conditions.iter().map(measurement::shown_condition).collect::<Vec<_>>(),
            "crossings": reply.crossings.iter().map(measurement::shown_crossing).collect::<Vec<_>>(),
        });
        Ok(linked(admitted, json(StatusCode::OK, &shown), &reply.next_page_token))
    }

    /// One condition.
    pub(crate) fn show_condition(&self, admitted: &Admitted) -> Result<Response, Problem> {
        let (owner, name) = (admitted.owner()?, admitted.id(0));
        let found =
            self.inner.in_force.read(|in_force| in_force.condition(&owner, &name).map(measurement::shown_condition));
        Ok(json(StatusCode::OK, &found.ok_or_else(|| Problem::not_found(format!("condition {name}")))?))
    }

    /// Defines a condition, or replaces the one of its name.
    pub(crate) async fn put_condition(&self, admitted: &mut Admitted) -> Result<Response, Problem> {
        let (owner, condition_id) = (admitted.owner()?, admitted.id(0));
        let condition = measurement::condition(admitted.written(), &owner, &condition_id)?;
        let command = DefineCondition { owner, condition_id, condition: Some(condition) };
        let id = uuid::Uuid::now_v7().to_string();
        let (answer, _) = self.inner.answers.ask(&command, &id, self.limit_of_commands()).await?;
        let defined = answer.event::<ConditionDefined>().ok().flatten().unwrap_or_default();
        Ok(json(StatusCode::OK, &measurement::shown_condition(&defined.condition.unwrap_or_default())))
    }

    /// Drops a condition.
    pub(crate) async fn delete_condition(&self, admitted: &Admitted) -> Result<Response, Problem> {
        let command = DropCondition { owner: admitted.owner()?, condition_id: admitted.id(0) };
        let id = uuid::Uuid::now_v7().to_string();
        self.inner.answers.ask(&command, &id, self.limit_of_commands()).await?;
        Ok(empty(StatusCode::NO_CONTENT))
    }
}

/// May the caller see everybody's measurements?
fn sees_all(admitted: &Admitted) -> bool {
    admitted.caller.reach(Action::ReadTelemetry) == Reach::All
}

/// Whose measurements the caller may see.
pub(crate) fn scope(admitted: &Admitted) -> Scope {
    if sees_all(admitted) { Scope::All } else { Scope::Of(admitted.caller.owner.clone()) }
}

/// Where a stream goes on.
fn after(admitted: &Admitted) -> Result<Option<u64>, Problem> {
    telemetry::after(&admitted.query, admitted.header("last-event-id").as_deref())
}

/// The page that is asked for: the collector's tokens are keys.
fn page_token(admitted: &Admitted) -> Result<String, Problem> {
    let token = admitted.value("page_token").unwrap_or_default();
    let fits = token.len() <= 512 && token.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/:=".contains(&b));
    if fits { Ok(token.to_owned()) } else { Err(other_page()) }
}

/// What a fact is called, and what it says.
fn shown(stored: &Stored) -> Option<(String, Json)> {
    let data = mesh_proto::json::to_snake(&stored.message, &stored.protobuf().ok()?).ok()?;
    let name = stored.message.rsplit('.').next().unwrap_or_default().to_owned();
    Some((name, json!({"type": stored.message, "time": stored.time.to_string(), "data": data})))
}
