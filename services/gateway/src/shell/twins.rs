//! Digital twins over REST: lists, one, its past and what differs; and the reads of the LCM repository, which are made of
//! twins and anomalies.

use axum::response::Response;
use http::StatusCode;
use mesh_proto::{
    Timestamp,
    anomaly::{AnomalyListRequest, AnomalyView, anomaly_queries_client::AnomalyQueriesClient},
    cmdt, is_key,
    twin::{DiffReply, DiffRequest, Twin, TwinRequest, twin_queries_client::TwinQueriesClient},
};
use mesh_rest::{
    access::{Action, Reach},
    http::json,
    problem::{Kind, Problem},
};
use serde_json::{Value as Json, json};
use tonic::transport::Channel;

use crate::{
    domain::present,
    shell::{
        gateway::{Admitted, Gateway},
        intents::{self, SCAN_PAGES},
    },
};

const AGGREGATOR: &str = "cmdt-aggregator";
const DETECTOR: &str = "sar-detector";
const WORKLOAD: &str = "workload";
/// What twins are of.
const KINDS: [&str; 5] = [WORKLOAD, "node", "cluster", "network", "continuum"];
/// Entries of a page that is asked for.
const PAGE: u32 = 1_000;
/// Fields of a twin of infrastructure that are about workloads, which may be those of others.
const OF_OTHERS: [&str; 2] = ["anomalies", "instances"];

impl Gateway {
    async fn twins(&self) -> Result<TwinQueriesClient<Channel>, Problem> {
        Ok(TwinQueriesClient::new(self.channel(AGGREGATOR).await?))
    }

    /// Lists twins: infrastructure, and workloads of one owner.
    pub(crate) async fn list_twins(&self, admitted: &Admitted) -> Result<Response, Problem> {
        let owner = whose(admitted)?;
        let size = intents::page_size(admitted)? as usize;
        let kind = admitted.value("kind").unwrap_or_default();
        if !kind.is_empty() && !KINDS.contains(&kind) {
            return Err(Problem::field("kind", "is not a kind of twins", format!("use one of {}", KINDS.join(", "))));
        }
        let mut token = admitted.value("page_token").unwrap_or_default().to_owned();
        let mut found: Vec<Json> = vec![];
        for _ in 0..SCAN_PAGES {
            let request = TwinRequest {
                kind: kind.to_owned(),
                owner: if kind == WORKLOAD { owner.clone().unwrap_or_default() } else { String::new() },
                page_size: PAGE.min((size - found.len()) as u32),
                page_token: token,
                ..TwinRequest::default()
            };
            let has_token = !request.page_token.is_empty();
            let answer = self.twins().await?.list(request).await;
            // Only the store knows what its tokens look like; the rest of the question is right.
            let page = self.reply(AGGREGATOR, answer).map_err(|problem| match problem.kind {
                Kind::Invalid if has_token => intents::other_page(),
                _ => problem,
            })?;
            let visible = |twin: &Twin| twin.kind != WORKLOAD || owner.as_ref() == Some(&twin.owner);
            found.extend(page.twins.into_iter().filter(visible).map(|twin| shown(admitted, twin)));
            token = page.next_page_token;
            if token.is_empty() || found.len() >= size {
                break;
            }
        }
        Ok(intents::linked(admitted, json(StatusCode::OK, &Json::Array(found)), &token))
    }

    /// Shows one twin, now or at a time.
    pub(crate) async fn show_twin(&self, admitted: &Admitted) -> Result<Response, Problem> {
        let at = time(admitted, "at")?;
        let request = TwinRequest { at, ..one(admitted)? };
        let answer = self.twins().await?.get(request).await;
        let twin = owned(admitted, self.reply(AGGREGATOR, answer)?)?;
        Ok(json(StatusCode::OK, &shown(admitted, twin)))
    }

    /// Published versions of one twin.
    pub(crate) async fn twin_history(&self, admitted: &Admitted) -> Result<Response, Problem> {
        let request = one(admitted)?;
        let (twins, token) = self.versions(admitted, request, (None, None)).await?;
        let twins = twins.into_iter().map(|twin| shown(admitted, twin)).collect();
        Ok(intents::linked(admitted, json(StatusCode::OK, &Json::Array(twins)), &token))
    }

    /// What differs between two times; without any, between the last two versions.
    pub(crate) async fn twin_diff(&self, admitted: &Admitted) -> Result<Response, Problem> {
        let (from, to) = (time(admitted, "from")?, time(admitted, "to")?);
        let request = one(admitted)?;
        let mut client = self.twins().await?;
        let (from, to) = match (from, to) {
            (None, Some(_)) => return Err(Problem::field("from", "is missing", "give the earlier time, too")),
            (Some(from), Some(to)) if to < from => {
                return Err(Problem::field("to", "is before `from`", "give the earlier time as `from`"));
            }
            (None, None) => {
                let answer = client.history(TwinRequest { page_size: 2, ..request.clone() }).await;
                let last = self.reply(AGGREGATOR, answer)?.twins;
                (last.last().and_then(|twin| twin.at), last.first().and_then(|twin| twin.at))
            }
            times => times,
        };
        // Whose it is, before anything is told of it.
        let answer = client.get(TwinRequest { at: to, ..request.clone() }).await;
        owned(admitted, self.reply(AGGREGATOR, answer)?)?;
        let answer = client.diff(DiffRequest { kind: request.kind, id: request.id, from, to }).await;
        let DiffReply { from_version, to_version, differences } = self.reply(AGGREGATOR, answer)?;
        let hides = hides_others(admitted);
        let is_hidden = |field: &str| hides && OF_OTHERS.iter().any(|hidden| field.starts_with(hidden));
        let differences = differences.into_iter().filter(|d| !is_hidden(&d.field)).map(|d| {
            let mut difference = json!({"field": d.field});
            for (name, text) in [("before", d.before), ("after", d.after)] {
                if let Ok(value) = serde_json::from_str::<Json>(&text) {
                    difference[name] = value;
                }
            }
            difference
        });
        let differences: Vec<Json> = differences.collect();
        let reply = json!({"from_version": from_version, "to_version": to_version, "differences": differences});
        Ok(json(StatusCode::OK, &reply))
    }

    /// What a cluster was like over time.
    pub(crate) async fn cluster_data(&self, admitted: &Admitted) -> Result<Response, Problem> {
        same(admitted, "cluster_id")?;
        self.data(admitted, "cluster", |twin| shown(admitted, twin)).await
    }

    /// What a workload instance was like over time.
    pub(crate) async fn instance_data(&self, admitted: &Admitted) -> Result<Response, Problem> {
        same(admitted, "workload_id")?;
        self.data(admitted, WORKLOAD, |twin| shown(admitted, twin)).await
    }

    /// A workload instance over time, as messages of the specification.
    pub(crate) async fn cmdt_data(&self, admitted: &Admitted) -> Result<Response, Problem> {
        same(admitted, "workload_id")?;
        let message = |twin: Twin| {
            let traffic = twin.traffic.clone().map(|traffic| (traffic, 60.0));
            cmdt::message(&twin, traffic.as_ref(), twin.at.unwrap_or_default())
        };
        self.data(admitted, WORKLOAD, message).await
    }

    async fn data(&self, admitted: &Admitted, kind: &str, show: impl Fn(Twin) -> Json) -> Result<Response, Problem> {
        let times = times(admitted)?;
        let request = TwinRequest { kind: kind.to_owned(), id: admitted.id(0), ..TwinRequest::default() };
        let (twins, token) = self.versions(admitted, request, times).await?;
        let twins = twins.into_iter().map(show).collect();
        Ok(intents::linked(admitted, json(StatusCode::OK, &Json::Array(twins)), &token))
    }

    /// Anomalies of a workload instance that went on at some time between the two.
    pub(crate) async fn security_events(&self, admitted: &Admitted) -> Result<Response, Problem> {
        same(admitted, "workload_id")?;
        let (from, to) = times(admitted)?;
        let (owner, id, size) = (admitted.owner()?, admitted.id(0), intents::page_size(admitted)? as usize);
        let after = admitted.value("page_token").unwrap_or_default();
        if !after.is_empty() && !is_key(after) {
            return Err(intents::other_page());
        }
        // Whose it is, and whether it is there.
        self.instance(&owner, &id).await?;
        let request = AnomalyListRequest { owner, instance_id: id, limit: PAGE, ..AnomalyListRequest::default() };
        let answer = AnomalyQueriesClient::new(self.channel(DETECTOR).await?).list(request).await;
        let episodes = self.reply(DETECTOR, answer)?.anomalies;
        let begin = match after {
            "" => 0,
            after => 1 + episodes.iter().position(|view| episode(view) == after).ok_or_else(intents::other_page)?,
        };
        let goes_on = |view: &&AnomalyView| {
            let began = view.detected.as_ref().and_then(|detected| detected.since);
            let ended = view.cleared.as_ref().and_then(|cleared| cleared.at);
            to.is_none_or(|to| began <= Some(to)) && from.is_none_or(|from| ended.is_none_or(|ended| ended >= from))
        };
        let rest: Vec<&AnomalyView> = episodes.iter().skip(begin).filter(goes_on).collect();
        let found: Vec<&AnomalyView> = rest.iter().take(size).copied().collect();
        let token = found.last().filter(|_| rest.len() > size).map(|view| episode(view).to_owned()).unwrap_or_default();
        let shown = found.into_iter().map(|view| {
            let mut shown = present::message("continuum.anomaly.v1.AnomalyView", view);
            shown["episode_id"] = json!(episode(view));
            shown
        });
        Ok(intents::linked(admitted, json(StatusCode::OK, &shown.collect()), &token))
    }

    /// Versions of one twin between two times, the newest first, and where the next page begins.
    async fn versions(
        &self,
        admitted: &Admitted,
        mut request: TwinRequest,
        (from, to): (Option<Timestamp>, Option<Timestamp>),
    ) -> Result<(Vec<Twin>, String), Problem> {
        let size = intents::page_size(admitted)? as usize;
        let owner = if request.kind == WORKLOAD { whose(admitted)? } else { None };
        request.page_size = PAGE;
        request.page_token = admitted.value("page_token").unwrap_or_default().to_owned();
        if !request.page_token.is_empty() && request.page_token.parse::<u64>().is_err() {
            return Err(intents::other_page());
        }
        let mut found = vec![];
        for _ in 0..SCAN_PAGES {
            let answer = self.twins().await?.history(request.clone()).await;
            let page = self.reply(AGGREGATOR, answer)?;
            let mut twins = page.twins.into_iter().peekable();
            while let Some(twin) = twins.next() {
                if request.kind == WORKLOAD && owner.as_ref() != Some(&twin.owner) {
                    return Err(Problem::not_found(format!("twin {} of kind {WORKLOAD}", request.id)));
                }
                let at = twin.at.unwrap_or_default();
                if from.is_some_and(|from| at < from) {
                    return Ok((found, String::new()));
                }
                if to.is_some_and(|to| at > to) {
                    continue;
                }
                let version = twin.version.to_string();
                found.push(twin);
                if found.len() == size {
                    let is_last = twins.peek().is_none() && page.next_page_token.is_empty();
                    return Ok((found, if is_last { String::new() } else { version }));
                }
            }
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                break;
            }
        }
        Ok((found, request.page_token))
    }
}

/// The twin that the path names.
fn one(admitted: &Admitted) -> Result<TwinRequest, Problem> {
    let (kind, id) = (admitted.id(0), admitted.id(1));
    if !KINDS.contains(&kind.as_str()) || !is_key(&id) {
        return Err(Problem::not_found(format!("twin {id} of kind {kind}")));
    }
    if kind == WORKLOAD {
        whose(admitted)?;
    } else if admitted.value("owner").is_some() {
        return Err(Problem::field("owner", "means nothing here", "leave it out: only workloads have owners"));
    }
    Ok(TwinRequest { kind, id, ..TwinRequest::default() })
}

/// Whose workloads are meant; `None` for who may see none. Another's only for those who may see everybody's.
fn whose(admitted: &Admitted) -> Result<Option<String>, Problem> {
    let reach = admitted.caller.reach(Action::ReadWorkloads);
    let Some(owner) = admitted.value("owner") else {
        return Ok((reach > Reach::Nothing).then(|| admitted.caller.owner.clone()));
    };
    if !is_key(owner) {
        return Err(Problem::field("owner", "is not a valid owner", "use 1 to 64 letters, digits, `_` and `-`"));
    }
    match reach {
        Reach::All => Ok(Some(owner.to_owned())),
        Reach::Own if owner == admitted.caller.owner => Ok(Some(owner.to_owned())),
        _ => Err(Problem::not_found(format!("owner {owner}"))),
    }
}

/// A twin, if who asks may see it.
fn owned(admitted: &Admitted, twin: Twin) -> Result<Twin, Problem> {
    if twin.kind == WORKLOAD && whose(admitted)?.as_ref() != Some(&twin.owner) {
        return Err(Problem::not_found(format!("twin {} of kind {WORKLOAD}", twin.id)));
    }
    Ok(twin)
}

/// May who asks not see what runs of others?
fn hides_others(admitted: &Admitted) -> bool {
    admitted.caller.reach(Action::ReadWorkloads) != Reach::All
        && admitted.path.first().is_none_or(|kind| kind != WORKLOAD)
}

/// A twin as JSON. What a twin of infrastructure says of workloads is for those who may see everybody's.
fn shown(admitted: &Admitted, twin: Twin) -> Json {
    let is_own = twin.kind == WORKLOAD;
    let mut shown = present::message("continuum.twin.v1.Twin", &twin);
    if let (false, Some(fields)) = (is_own, shown.as_object_mut())
        && admitted.caller.reach(Action::ReadWorkloads) != Reach::All
    {
        OF_OTHERS.iter().for_each(|hidden| drop(fields.remove(*hidden)));
    }
    shown
}

fn episode(view: &AnomalyView) -> &str {
    view.detected.as_ref().map_or("", |detected| &detected.episode_id)
}

/// A parameter that is a time.
fn time(admitted: &Admitted, name: &str) -> Result<Option<Timestamp>, Problem> {
    let wrong = |_| Problem::field(name, "is not a time", "write it as in 2027-01-31T12:00:00Z (RFC 3339)");
    admitted.value(name).map(|text| text.parse().map_err(wrong)).transpose()
}

/// Between which times.
fn times(admitted: &Admitted) -> Result<(Option<Timestamp>, Option<Timestamp>), Problem> {
    let (from, to) = (time(admitted, "timestamp_from")?, time(admitted, "timestamp_to")?);
    match (from, to) {
        (Some(from), Some(to)) if to < from => {
            Err(Problem::field("timestamp_to", "is before timestamp_from", "give the earlier time as timestamp_from"))
        }
        times => Ok(times),
    }
}

/// A parameter that names what the path names already.
fn same(admitted: &Admitted, name: &str) -> Result<(), Problem> {
    if admitted.value(name).is_some_and(|id| id != admitted.id(0)) {
        return Err(Problem::field(name, "is not the one that the path names", "leave it out, or repeat that one"));
    }
    Ok(())
}
