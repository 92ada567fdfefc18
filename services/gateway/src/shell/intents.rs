//! Intents: submitted, changed and ended by commands; read from the intent manager.

use std::{collections::BTreeSet, time::Duration};

use axum::{body::Body, response::Response};
use futures::stream;
use http::{StatusCode, header};
use mesh_core::Stored;
use mesh_intent::{types, view};
use mesh_proto::{
    AnyEvent, Event as _, derived_id,
    intent::{
        AchievedRequest, Intent, IntentAcknowledged, IntentRejected, IntentSubmitted, IntentView, ResumeIntent,
        RollbackIntent, SubmitIntent, SuspendIntent, TerminateIntent, UpdateIntent,
        intent_queries_client::IntentQueriesClient,
    },
    query::{GetRequest, ListRequest},
    validation::{CheckReply, CheckRequest, IntentTypesRequest, validator_queries_client::ValidatorQueriesClient},
};
use mesh_rest::{
    ask::Following,
    body,
    http::{empty, json, unavailable, with},
    problem::{Fault, Kind, Problem},
};
use prost::Message as _;
use serde_json::{Value as Json, json};
use tokio::time::Instant;

use crate::{
    domain::{
        forms::{Sent, Verb},
        present::{self, IntentFilter},
        telemetry::{self, Format},
        tmf,
    },
    shell::gateway::{Admitted, Gateway, csv},
};

pub(crate) const MANAGER: &str = "intent-manager";
const VALIDATOR: &str = "validator";
/// Intents of a page that are asked for at once.
const PAGE_MAX: u32 = 1_000;
/// Steps of one answer to why.
const STEPS_MAX: usize = 500;
/// How often a change is tried that rests on how an intent stands, while that moves.
const TRIES_MAX: usize = 5;
/// Pages that a list of TMF921 counts; of more intents it tells no total.
const COUNT_PAGES: usize = 100;
/// Pages that one filtered list looks through; what lies beyond is the next page's.
pub(crate) const SCAN_PAGES: usize = 8;

/// The form in which an intent is shown, and its address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum RestView {
    Rest,
    Tmf,
}

impl RestView {
    fn show(self, view: &IntentView, admitted: &Admitted) -> Json {
        match self {
            Self::Rest => present::intent(view),
            Self::Tmf => tmf::select(tmf::intent(view), &admitted.values("fields")),
        }
    }

    fn path(self, id: &str) -> String {
        match self {
            Self::Rest => format!("/api/v1/intent/{id}/"),
            Self::Tmf => format!("{}/intent/{id}", tmf::BASE),
        }
    }

    fn answer(self, status: StatusCode, view: &IntentView, admitted: &Admitted) -> Response {
        let mut response = json(status, &self.show(view, admitted));
        if view.version > 0 && status != StatusCode::ACCEPTED {
            response = with(response, header::ETAG, &present::etag(view));
        }
        if matches!(status, StatusCode::CREATED | StatusCode::ACCEPTED) {
            response = with(response, header::LOCATION, &self.path(&view.intent_id));
        }
        response
    }
}

/// Is it the same content? A document's own id is not shown, and so is not sent again.
fn is_same(now: &Intent, sent: &Intent) -> bool {
    *now == Intent { id: if sent.id.is_empty() { now.id.clone() } else { sent.id.clone() }, ..sent.clone() }
}

fn content(intent: &Intent) -> String {
    intent.encode_to_vec().iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Gateway {
    pub(crate) async fn manager(&self) -> Result<IntentQueriesClient<tonic::transport::Channel>, Problem> {
        Ok(IntentQueriesClient::new(self.channel(MANAGER).await?))
    }

    /// An intent as it stands.
    pub(crate) async fn intent(&self, owner: &str, id: &str) -> Result<IntentView, Problem> {
        let request = GetRequest { owner: owner.into(), id: id.into() };
        let answer = self.manager().await?.get(request).await;
        self.reply(MANAGER, answer)
    }

    /// An intent as it stands, even if it was made just now: the bus has it before its manager does.
    async fn intent_made(&self, owner: &str, id: &str) -> Result<IntentView, Problem> {
        let missing = match self.intent(owner, id).await {
            Err(problem) if problem.kind == Kind::NotFound => problem,
            found => return found,
        };
        let subject = IntentAcknowledged::filter(&[owner, id]);
        match self.inner.mesh.bus().log("INTENT").last(&subject).await {
            Ok(Some(fact)) => self.intent_after(owner, id, fact.sequence).await,
            Ok(None) => Err(missing),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "an intent's facts are not read");
                Err(unavailable("the bus does not answer"))
            }
        }
    }

    /// An intent as it stands once the manager has seen this fact.
    async fn intent_after(&self, owner: &str, id: &str, sequence: u64) -> Result<IntentView, Problem> {
        let until = Instant::now() + Duration::from_secs(2);
        loop {
            let view = self.intent(owner, id).await;
            match view {
                Ok(view) if view.sequence >= sequence || Instant::now() > until => return Ok(view),
                Err(problem) if problem.kind != Kind::NotFound || Instant::now() > until => return Err(problem),
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }

    /// Sends a definition and waits for its verdict: how it stands, and whether the verdict is in.
    async fn define(
        &self,
        owner: &str,
        id: &str,
        command: &dyn AnyEvent,
        command_id: &str,
        style: RestView,
    ) -> Result<(IntentView, bool, bool), Problem> {
        let (answer, following) = self.inner.answers.ask(command, command_id, self.limit_of_commands()).await?;
        let broken = |_| Problem::new(Kind::Internal, "the answer cannot be read", "see the log of the gateway");
        match answer.event::<IntentSubmitted>().map_err(broken)? {
            // The same content as before.
            None => Ok((self.intent_after(owner, id, answer.sequence).await?, true, false)),
            Some(submitted) => {
                let (view, judged) = self.verdict(&answer, &submitted, following, style).await?;
                Ok((view, judged, true))
            }
        }
    }

    async fn verdict(
        &self,
        answer: &Stored,
        submitted: &IntentSubmitted,
        mut following: Following,
        style: RestView,
    ) -> Result<(IntentView, bool), Problem> {
        let until = Instant::now() + Duration::from_millis(self.inner.config.verdict_limit_ms.into());
        let instance = style.path(&submitted.intent_id);
        while let Some(fact) = following.next(until.min(Instant::now() + Duration::from_millis(500))).await {
            if let Ok(Some(fact_)) = fact.event::<IntentAcknowledged>()
                && fact_.version >= submitted.version
            {
                if fact_.version == 1 {
                    return Ok((view::acknowledged(&fact_, fact.time, fact.sequence), true));
                }
                return Ok((self.intent_after(&submitted.owner, &submitted.intent_id, fact.sequence).await?, true));
            }
            if let Ok(Some(rejected)) = fact.event::<IntentRejected>()
                && rejected.version == submitted.version
            {
                let fault = |p: mesh_proto::intent::Problem| Fault { path: p.path, reason: p.reason, hint: p.hint };
                return Err(Problem::faults(rejected.problems.into_iter().map(fault).collect()).at(instance));
            }
        }
        // Its verdict may have come before this request did, or the validator is away.
        while Instant::now() < until {
            let view = self.intent(&submitted.owner, &submitted.intent_id).await;
            if let Ok(view) = view
                && view.sequence > answer.sequence
            {
                return Ok((view, true));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok((view::submitted(submitted, answer.time, answer.sequence), false))
    }

    /// Submits a new intent. Its id is the person's own, or derived from the owner and the idempotency key, or new.
    pub(crate) async fn create(
        &self,
        admitted: &Admitted,
        (given, intent): (Option<String>, Intent),
        style: RestView,
    ) -> Result<Response, Problem> {
        let (owner, key) = (admitted.owner()?, admitted.idempotency_key()?);
        let id = match (&given, &key) {
            (Some(id), _) => id.clone(),
            (None, Some(key)) => derived_id(&["intent", &owner, key]),
            (None, None) => uuid::Uuid::now_v7().to_string(),
        };
        if given.is_some() || key.is_some() {
            match self.intent(&owner, &id).await {
                Ok(view) if view.intent.as_ref().is_some_and(|now| is_same(now, &intent)) => {
                    return Ok(style.answer(StatusCode::OK, &view, admitted));
                }
                Ok(_) => {}
                Err(problem) if problem.kind == Kind::NotFound => {}
                Err(problem) => return Err(problem),
            }
        }
        let command_id = derived_id(&["submit", &owner, &id, &content(&intent)]);
        let command = SubmitIntent { owner: owner.clone(), intent_id: id.clone(), intent: Some(intent) };
        let defined = self.define(&owner, &id, &command, &command_id, style).await.map_err(|problem| {
            // The key alone made this id, so the decider can only have refused another body.
            let replayed = key.is_some() && given.is_none() && problem.refusal.is_some();
            if replayed {
                let detail = format!("this key made intent {id} from another body");
                return Problem::new(Kind::Replayed, detail, "use another key for another intent").at(style.path(&id));
            }
            problem
        });
        let (view, judged, new) = defined?;
        let status = match (judged, new) {
            (false, _) => StatusCode::ACCEPTED,
            (true, true) => StatusCode::CREATED,
            (true, false) => StatusCode::OK,
        };
        Ok(style.answer(status, &view, admitted))
    }

    /// The intent as it stands, if the request's conditions hold; and the revision that the command names, 0 for any.
    /// The manager refuses the command if the intent changes in between.
    async fn expected(&self, admitted: &Admitted) -> Result<(String, IntentView, u64), Problem> {
        let owner = admitted.owner()?;
        let view = self.intent_made(&owner, &admitted.id(0)).await?;
        let tag = present::etag(&view);
        if admitted.list("if-none-match").is_some_and(|unwanted| present::matches(&unwanted, &tag, false)) {
            return Err(moved_on(&view));
        }
        let Some(wanted) = admitted.list("if-match") else { return Ok((owner, view, 0)) };
        if !present::matches(&wanted, &tag, true) {
            return Err(moved_on(&view));
        }
        let revision = if wanted.trim() == "*" { 0 } else { view.revision };
        Ok((owner, view, revision))
    }

    /// Replaces a definition.
    pub(crate) async fn redefine(
        &self,
        admitted: &Admitted,
        style: RestView,
        change: impl FnOnce(&IntentView) -> Result<Intent, Problem>,
    ) -> Result<Response, Problem> {
        let (owner, before, if_revision) = self.expected(admitted).await?;
        let intent = change(&before)?;
        let (view, judged) = self.redefined(&owner, &before, intent, if_revision, style).await?;
        Ok(defined(&view, judged, style, admitted))
    }

    /// Changes a part of a definition. What comes of that rests on how the intent stands, so the manager is told the
    /// revision; where the caller asked for none, it is tried again if the intent has moved.
    pub(crate) async fn amend(
        &self,
        admitted: &Admitted,
        style: RestView,
        change: impl Fn(&IntentView) -> Result<Intent, Problem>,
    ) -> Result<Response, Problem> {
        for _ in 0..TRIES_MAX {
            let (owner, before, asked) = self.expected(admitted).await?;
            let intent = change(&before)?;
            let if_revision = if asked == 0 { before.revision } else { asked };
            match self.redefined(&owner, &before, intent, if_revision, style).await {
                Err(problem) if problem.kind == Kind::Precondition && asked == 0 => {}
                Err(problem) => return Err(problem),
                Ok((view, judged)) => return Ok(defined(&view, judged, style, admitted)),
            }
        }
        let detail = format!("intent {} moved {TRIES_MAX} times while it was to be changed", admitted.id(0));
        Err(Problem { retry_after_s: Some(1), ..Problem::new(Kind::Unavailable, detail, "send it again") })
    }

    async fn redefined(
        &self,
        owner: &str,
        before: &IntentView,
        intent: Intent,
        if_revision: u64,
        style: RestView,
    ) -> Result<(IntentView, bool), Problem> {
        let id = before.intent_id.clone();
        // What has happened to it belongs to the command's id: back to an earlier definition is a new command.
        let command_id = derived_id(&["update", owner, &id, &before.sequence.to_string(), &content(&intent)]);
        let command =
            UpdateIntent { owner: owner.to_owned(), intent_id: id.clone(), intent: Some(intent), if_revision };
        let (view, judged, _) = self.define(owner, &id, &command, &command_id, style).await?;
        Ok((view, judged))
    }

    /// Changes an intent by a merge patch of its resource (TMF921).
    pub(crate) async fn patch_tmf(&self, admitted: &mut Admitted) -> Result<Response, Problem> {
        let kind = admitted.header("content-type").unwrap_or_default().to_ascii_lowercase();
        if kind.contains("patch") && !kind.starts_with("application/merge-patch+json") {
            let hint = "send application/merge-patch+json (RFC 7396)";
            return Err(Problem::new(Kind::MediaType, "JSON Patch is not read", hint));
        }
        let (sent, style) = (tmf::spelt(admitted.written())?, RestView::Tmf);
        let (_, before, _) = self.expected(admitted).await?;
        match tmf::patch(&before, &sent)? {
            tmf::Change::Nothing => Ok(style.answer(StatusCode::OK, &before, admitted)),
            tmf::Change::Action(verb) => self.acted(admitted, verb, style).await,
            tmf::Change::Definition(_) => {
                let change = |before: &IntentView| match tmf::patch(before, &sent)? {
                    tmf::Change::Definition(intent) => Ok(intent),
                    _ => Ok(before.intent.clone().unwrap_or_default()),
                };
                self.amend(admitted, style, change).await
            }
        }
    }

    /// Makes an earlier version the definition again.
    pub(crate) async fn roll_back(
        &self,
        admitted: &Admitted,
        version: u64,
        style: RestView,
    ) -> Result<Response, Problem> {
        let (owner, before, if_revision) = self.expected(admitted).await?;
        let id = before.intent_id.clone();
        let (sequence, wanted) = (before.sequence.to_string(), version.to_string());
        let command_id = derived_id(&["rollback", &owner, &id, &sequence, &wanted]);
        let command = RollbackIntent { owner: owner.clone(), intent_id: id.clone(), version, if_revision };
        let defined = self.define(&owner, &id, &command, &command_id, style).await;
        let (view, judged, _) = defined.map_err(Problem::of_existing)?;
        let status = if judged { StatusCode::OK } else { StatusCode::ACCEPTED };
        Ok(style.answer(status, &view, admitted))
    }

    /// An intent's versions.
    pub(crate) async fn history(&self, admitted: &Admitted) -> Result<Response, Problem> {
        let request = GetRequest { owner: admitted.owner()?, id: admitted.id(0) };
        let answer = self.manager().await?.history(request).await;
        Ok(json(StatusCode::OK, &present::history(&self.reply(MANAGER, answer)?)))
    }

    /// What an intent's targets achieved over time, as JSON or CSV.
    pub(crate) async fn achieved(&self, admitted: &Admitted) -> Result<Response, Problem> {
        let format = telemetry::format(&admitted.query, admitted.list("accept").as_deref())?;
        let target_name = admitted.value("target").unwrap_or_default();
        if admitted.query.contains_key("target") && types::target_of(target_name).is_none() {
            let hint = "GET /api/v1/intent/types/ lists the targets that there are";
            return Err(Problem::field("target", "is not a target", hint));
        }
        let page_token = admitted.value("page_token").unwrap_or_default();
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let is_token = page_token.split_once('-').is_some_and(|(at, passed)| is_number(at) && is_number(passed));
        if admitted.query.contains_key("page_token") && !is_token {
            return Err(other_page());
        }
        let now = self.inner.mesh.now();
        let (from, to) = (telemetry::time(&admitted.query, "from", now)?, telemetry::time(&admitted.query, "to", now)?);
        if from.zip(to).is_some_and(|(from, to)| from > to) {
            return Err(Problem::field("from", "is later than `to`", "exchange them"));
        }
        let intent_id = admitted.id(0);
        let request = AchievedRequest {
            owner: admitted.owner()?,
            intent_id: intent_id.clone(),
            from,
            to,
            target_name: target_name.to_owned(),
            page_size: page_size(admitted)?,
            page_token: page_token.to_owned(),
        };
        let answer = self.manager().await?.achieved(request).await;
        let reply = self.reply(MANAGER, answer)?;
        let response = match format {
            Format::Json => {
                let values =
                    reply.values.iter().map(|value| present::message("continuum.intent.v1.AchievedValue", value));
                json(StatusCode::OK, &values.collect())
            }
            Format::Csv => csv(present::achieved_csv(&intent_id, &reply.values)),
        };
        Ok(linked(admitted, response, &reply.next_page_token))
    }

    /// Suspends, resumes or ends.
    pub(crate) async fn act(&self, admitted: &Admitted, verb: Verb, style: RestView) -> Result<IntentView, Problem> {
        let (owner, before, if_revision) = self.expected(admitted).await?;
        let intent_id = before.intent_id;
        let (owner_, id) = (owner.clone(), intent_id.clone());
        let command: Box<dyn AnyEvent> = match verb {
            Verb::Suspend => Box::new(SuspendIntent { owner, intent_id, if_revision }),
            Verb::Resume => Box::new(ResumeIntent { owner, intent_id, if_revision }),
            Verb::Terminate => Box::new(TerminateIntent { owner, intent_id, if_revision }),
        };
        let command_id = uuid::Uuid::now_v7().to_string();
        let answered = self.inner.answers.ask(&*command, &command_id, self.limit_of_commands()).await;
        let (answer, _) = answered.map_err(|problem| problem.at(style.path(&id)))?;
        self.intent_after(&owner_, &id, answer.sequence).await
    }

    /// Acts, and shows it.
    pub(crate) async fn acted(&self, admitted: &Admitted, verb: Verb, style: RestView) -> Result<Response, Problem> {
        let view = self.act(admitted, verb, style).await?;
        Ok(style.answer(StatusCode::OK, &view, admitted))
    }

    /// Ends an intent; one that has ended is as it should be.
    pub(crate) async fn end(&self, admitted: &Admitted, style: RestView) -> Result<Response, Problem> {
        let (_, before, _) = self.expected(admitted).await?;
        let state = before.state.clone().unwrap_or_default();
        if view::names(&state).1 != "TERMINATED" {
            self.act(admitted, Verb::Terminate, style).await?;
        }
        Ok(empty(StatusCode::NO_CONTENT))
    }

    /// Shows one.
    pub(crate) async fn show(&self, admitted: &Admitted, style: RestView) -> Result<Response, Problem> {
        let view = self.intent_made(&admitted.owner()?, &admitted.id(0)).await?;
        let tag = present::etag(&view);
        if admitted.list("if-match").is_some_and(|wanted| !present::matches(&wanted, &tag, true)) {
            return Err(moved_on(&view));
        }
        if admitted.list("if-none-match").is_some_and(|wanted| present::matches(&wanted, &tag, false)) {
            return Ok(with(empty(StatusCode::NOT_MODIFIED), header::ETAG, &tag));
        }
        Ok(style.answer(StatusCode::OK, &view, admitted))
    }

    async fn page(&self, request: ListRequest) -> Result<(Vec<IntentView>, String), Problem> {
        let answer = self.manager().await?.list(request).await;
        let page = self.reply(MANAGER, answer)?;
        Ok((page.intents, page.next_page_token))
    }

    /// Lists, narrowed by the manager itself as far as it can; the next page is in the Link header (RFC 8288).
    pub(crate) async fn list_intents(&self, admitted: &Admitted) -> Result<Response, Problem> {
        let owner = admitted.owner()?;
        let mut filter = IntentFilter {
            user_label: admitted.values("user_label"),
            object_instance: admitted.values("object_instance"),
            fulfilment_status: admitted.values("fulfilment_status"),
            not_fulfilled_state: admitted.values("not_fulfilled_state"),
            intent_id: admitted.values("intent_id"),
        };
        if let Some((name, wrong, known)) = filter.fault() {
            return Err(Problem::field(
                name,
                format!("unknown filter value {wrong:?}"),
                format!("use {}", known.join(", ")),
            ));
        }
        let size = page_size(admitted)?;
        if filter.intent_id.iter().any(|id| !mesh_proto::is_key(id)) {
            return Err(Problem::field("intent_id", "is not a valid id", "use 1 to 64 letters, digits, `_` and `-`"));
        }
        if admitted.value("page_token").is_some_and(|token| !token.is_empty() && !mesh_proto::is_key(token)) {
            return Err(other_page());
        }
        if !filter.intent_id.is_empty() {
            return self.list_named(admitted, &owner, &filter, size).await;
        }
        let mut request = ListRequest { owner, ..ListRequest::default() };
        // Of one each the manager narrows; what it has taken over is not looked at again here.
        let one = |values: &mut Vec<String>| if values.len() == 1 { values.remove(0) } else { String::new() };
        request.user_label = one(&mut filter.user_label);
        request.object_instance = one(&mut filter.object_instance);
        let states = if filter.not_fulfilled_state.is_empty() {
            &mut filter.fulfilment_status
        } else {
            &mut filter.not_fulfilled_state
        };
        request.states = std::mem::take(states);
        request.page_size = if filter.is_empty() { size } else { PAGE_MAX };
        request.page_token = admitted.value("page_token").unwrap_or_default().to_owned();
        let mut found = vec![];
        for _ in 0..SCAN_PAGES {
            let (views, next) = self.page(request.clone()).await?;
            let mut views = views.into_iter();
            request.page_token = next;
            while let Some(view) = views.next() {
                let last = view.intent_id.clone();
                if filter.lets_through(&view) {
                    found.push(present::intent(&view));
                }
                if found.len() == size as usize {
                    if views.len() > 0 {
                        request.page_token = last;
                    }
                    break;
                }
            }
            if request.page_token.is_empty() || found.len() >= size as usize {
                break;
            }
        }
        Ok(linked(admitted, json(StatusCode::OK, &Json::Array(found)), &request.page_token))
    }

    /// Lists intents by their ids.
    async fn list_named(
        &self,
        admitted: &Admitted,
        owner: &str,
        filter: &IntentFilter,
        size: u32,
    ) -> Result<Response, Problem> {
        let after = admitted.value("page_token").unwrap_or_default();
        let named: BTreeSet<&String> = filter.intent_id.iter().filter(|id| id.as_str() > after).collect();
        let (mut found, mut last) = (vec![], String::new());
        for id in named {
            if found.len() == size as usize {
                return Ok(linked(admitted, json(StatusCode::OK, &Json::Array(found)), &last));
            }
            match self.intent(owner, id).await {
                Ok(view) if filter.lets_through(&view) => found.push(present::intent(&view)),
                Ok(_) => {}
                Err(problem) if problem.kind == Kind::NotFound => {}
                Err(problem) => return Err(problem),
            }
            last.clone_from(id);
        }
        Ok(json(StatusCode::OK, &Json::Array(found)))
    }

    /// Lists for TMF921: what the filters let through, by offset and limit, and how many there are (TMF630).
    pub(crate) async fn list_tmf(&self, admitted: &Admitted) -> Result<Response, Problem> {
        let owner = admitted.owner()?;
        let (offset, limit) = (body::number(&admitted.query, "offset", 0, 10_000)? as usize, limit(admitted)? as usize);
        let filters = tmf::filters(&admitted.query)?;
        let mut found: Vec<Json> = vec![];
        let (mut total, mut token) = (0, String::new());
        for _ in 0..COUNT_PAGES {
            // Where nothing is looked at that is not shown, the manager counts the rest.
            let (size, count) = match filters.is_empty() {
                true => (offset + limit - total, true),
                false => (PAGE_MAX as usize, false),
            };
            let request = ListRequest {
                owner: owner.clone(),
                page_size: (size as u32).min(PAGE_MAX),
                page_token: token,
                count,
                ..ListRequest::default()
            };
            let page = self.manager().await?.list(request).await;
            let page = self.reply(MANAGER, page)?;
            let (views, next, rest) = (page.intents, page.next_page_token, page.total as usize);
            let before = total;
            for view in views {
                let is_wanted = total >= offset && found.len() < limit;
                // What is neither shown nor looked at is not written out.
                let shown = if is_wanted || !filters.is_empty() { tmf::intent(&view) } else { Json::Null };
                if filters.iter().all(|filter| filter.lets_through(&shown)) {
                    if is_wanted {
                        found.push(tmf::select(shown, &admitted.values("fields")));
                    }
                    total += 1;
                }
            }
            token = next;
            if count && total >= offset + limit {
                (total, token) = (before + rest, String::new());
            }
            if token.is_empty() {
                break;
            }
        }
        let count = found.len().to_string();
        let mut response = json(StatusCode::OK, &Json::Array(found));
        if token.is_empty() {
            response = with(response, header::HeaderName::from_static("x-total-count"), &total.to_string());
        }
        Ok(with(response, header::HeaderName::from_static("x-result-count"), &count))
    }

    /// An intent's report.
    pub(crate) async fn report(&self, admitted: &Admitted) -> Result<Response, Problem> {
        let view = self.intent(&admitted.owner()?, &admitted.id(0)).await?;
        match present::report(&view) {
            Some(report) => Ok(json(StatusCode::OK, &report)),
            None => Err(Problem::not_found("a report on this intent")),
        }
    }

    /// An intent's reports for TMF921: the newest.
    pub(crate) async fn reports_tmf(&self, admitted: &Admitted) -> Result<Response, Problem> {
        let view = self.intent(&admitted.owner()?, &admitted.id(0)).await?;
        let (offset, limit) = (body::number(&admitted.query, "offset", 0, 10_000)?, limit(admitted)?);
        let all: Vec<Json> = tmf::report(&view).into_iter().collect();
        let total = all.len().to_string();
        let found = all.into_iter().skip(offset as usize).take(limit as usize);
        let shown: Vec<Json> = found.map(|report| tmf::select(report, &admitted.values("fields"))).collect();
        let count = shown.len().to_string();
        let response = json(StatusCode::OK, &Json::Array(shown));
        let response = with(response, header::HeaderName::from_static("x-total-count"), &total);
        Ok(with(response, header::HeaderName::from_static("x-result-count"), &count))
    }

    /// One report for TMF921.
    pub(crate) async fn report_tmf(&self, admitted: &Admitted) -> Result<Response, Problem> {
        let view = self.intent(&admitted.owner()?, &admitted.id(0)).await?;
        match tmf::report(&view).filter(|_| admitted.id(1) == tmf::report_id(&view)) {
            Some(report) => Ok(json(StatusCode::OK, &tmf::select(report, &admitted.values("fields")))),
            None => Err(Problem::not_found(format!("report {} on this intent", admitted.id(1)))),
        }
    }

    /// Every type of intent, as the validator has them.
    pub(crate) async fn types(&self) -> Result<Response, Problem> {
        let mut client = ValidatorQueriesClient::new(self.channel(VALIDATOR).await?);
        let answer = client.types(IntentTypesRequest {}).await;
        Ok(json(StatusCode::OK, &present::types(&self.reply(VALIDATOR, answer)?)))
    }

    async fn predicted(&self, owner: String, intent_id: &str, intent: Intent) -> Result<CheckReply, Problem> {
        let mut client = ValidatorQueriesClient::new(self.channel(VALIDATOR).await?);
        let request = CheckRequest { intent: Some(intent), owner, intent_id: intent_id.to_owned() };
        let answer = client.check(request).await;
        self.reply(VALIDATOR, answer)
    }

    /// What the verdict would be, and what would come of it; as a next version of the intent that it names, or a new one.
    pub(crate) async fn check(&self, admitted: &Admitted, sent: Sent) -> Result<Response, Problem> {
        let named = admitted.value("intent_id").unwrap_or_default();
        if !named.is_empty() && !mesh_proto::is_key(named) {
            return Err(Problem::field("intent_id", "is not a valid id", "use 1 to 64 letters, digits, `_` and `-`"));
        }
        let intent_id = match &sent.id {
            Some(id) if !named.is_empty() && id != named => {
                return Err(Problem::field("id", "is another than ?intent_id=", "leave one of them out"));
            }
            Some(id) => id.clone(),
            None => named.to_owned(),
        };
        let reply = self.predicted(admitted.owner()?, &intent_id, sent.intent).await?;
        Ok(json(StatusCode::OK, &present::check(&reply)))
    }

    /// The same for TMF921. Nothing is made, so the status is not 201.
    pub(crate) async fn probe(&self, admitted: &Admitted, intent: Intent) -> Result<Response, Problem> {
        let reply = self.predicted(admitted.owner()?, "", intent.clone()).await?;
        let id = uuid::Uuid::now_v7().to_string();
        let shown = tmf::select(tmf::probe(&id, &intent, &reply), &admitted.values("fields"));
        Ok(json(StatusCode::OK, &shown))
    }

    /// How an intent or instance of the caller's owner came to stand as it does; the newest steps. Other owners' facts are
    /// left out: of the causes, only those that name the owner are shown, and facts of clusters and of the network.
    pub(crate) async fn why(&self, admitted: &Admitted) -> Result<Response, Problem> {
        let (owner, id, bus) = (admitted.owner()?, admitted.id(0), self.inner.mesh.bus());
        let unread = |error: mesh_why::WhyError| {
            tracing::warn!(error = &error as &dyn std::error::Error, "facts are not read");
            unavailable("the facts cannot be read")
        };
        let facts = mesh_why::of_owner(bus, &owner, &id).await.map_err(unread)?;
        if facts.is_empty() {
            return Err(Problem::not_found(format!("intent or instance {id}")));
        }
        let known: BTreeSet<(String, u64)> = facts.iter().map(|fact| (fact.stream.clone(), fact.sequence)).collect();
        let mut steps = mesh_why::with_causes(bus, facts).await.map_err(unread)?;
        steps.retain(|step| {
            known.contains(&(step.stream.clone(), step.sequence))
                || ["CLUSTER", "COST"].contains(&step.stream.as_str())
                || owner_of(step).as_ref() == Some(&owner)
        });
        steps.drain(..steps.len().saturating_sub(STEPS_MAX));
        let shown = |step: &Stored| {
            json!({"time": step.stored.to_string(), "address": mesh_why::address(step),
                "who": mesh_why::describe::writer(step), "message": step.message,
                "says": mesh_why::describe::describe(step), "cause": mesh_why::cause(step)})
        };
        Ok(json(StatusCode::OK, &steps.iter().map(shown).collect::<Json>()))
    }

    /// An intent now and at each change, as server-sent events; ids are its tags.
    pub(crate) async fn watch(&self, admitted: &Admitted) -> Result<Response, Problem> {
        let request = GetRequest { owner: admitted.owner()?, id: admitted.id(0) };
        let permit = self.inner.watches.clone().try_acquire_owned().map_err(|_| Problem {
            retry_after_s: Some(10),
            ..Problem::new(Kind::TooMany, "too many watches are open", "close one, or poll instead")
        })?;
        let answer = self.manager().await?.watch(request).await;
        let views = self.reply(MANAGER, answer)?;
        let stopping = self.inner.mesh.stopping();
        let events = stream::unfold(Some((views, permit, stopping)), |state| async move {
            let (mut views, permit, stopping) = state?;
            let quiet = tokio::time::sleep(Duration::from_secs(15));
            let text = tokio::select! {
                view = views.message() => match view {
                    Ok(Some(view)) => {
                        let tag = present::etag(&view);
                        let shown = present::intent(&view).to_string();
                        let shown = mesh_proto::shown::json(&shown);
                        format!("event: intent\nid: {}\ndata: {shown}\n\n", tag.trim_matches('"'))
                    }
                    Ok(None) => return Some((Ok("event: end\ndata: {}\n\n".to_owned()), None)),
                    Err(status) => {
                        let data = json!({"detail": status.message()});
                        return Some((Ok(format!("event: error\ndata: {data}\n\n")), None));
                    }
                },
                () = quiet => ": still here\n\n".to_owned(),
                () = stopping.cancelled() => return None,
            };
            Some((Ok::<_, std::convert::Infallible>(text), Some((views, permit, stopping))))
        });
        let mut response = Response::new(Body::from_stream(events));
        response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/event-stream"));
        Ok(with(response, header::CACHE_CONTROL, "no-store"))
    }
}

/// Whose a fact or a command is, by its subject. Domains, clusters and realms are nobody's, though their names may be
/// those of owners.
pub(crate) fn owner_of(step: &Stored) -> Option<String> {
    let event = mesh_proto::contract().event(&step.message)?;
    let position = event.keys.iter().position(|key| key == "owner")?;
    mesh_proto::subject_keys(&event.subject, &step.subject)?.into_iter().nth(position)
}

/// The answer to a new definition; whether the verdict is in.
fn defined(view: &IntentView, judged: bool, style: RestView, admitted: &Admitted) -> Response {
    let status = if judged { StatusCode::OK } else { StatusCode::ACCEPTED };
    style.answer(status, view, admitted)
}

fn moved_on(view: &IntentView) -> Problem {
    let detail = format!("intent {} is at {} by now", view.intent_id, present::etag(view));
    Problem::new(Kind::Precondition, detail, "read it again, and decide again")
}

/// Entries of a page.
pub(crate) fn page_size(admitted: &Admitted) -> Result<u32, Problem> {
    bounded(admitted, "page_size")
}

fn limit(admitted: &Admitted) -> Result<u32, Problem> {
    bounded(admitted, "limit")
}

fn bounded(admitted: &Admitted, name: &str) -> Result<u32, Problem> {
    match body::number(&admitted.query, name, 100, PAGE_MAX)? {
        0 => Err(Problem::field(name, "is 0", format!("use 1 to {PAGE_MAX}"))),
        size => Ok(size),
    }
}

/// A page token that no page of this list ended with.
pub(crate) fn other_page() -> Problem {
    Problem::field("page_token", "is of another list", "take it from the Link header of the page before")
}

/// With the address of the next page, if there is one.
pub(crate) fn linked(admitted: &Admitted, response: Response, token: &str) -> Response {
    if token.is_empty() {
        return response;
    }
    let encode =
        |text: &str| percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string();
    let kept = admitted.query.iter().filter(|(name, _)| *name != "page_token");
    let mut pairs: Vec<String> = kept
        .flat_map(|(name, values)| values.iter().map(move |value| (name, value)))
        .map(|(name, value)| format!("{name}={}", encode(value)))
        .collect();
    pairs.push(format!("page_token={}", encode(token)));
    let mut path = admitted.route.path.to_owned();
    for value in &admitted.path {
        if let (Some(begin), Some(end)) = (path.find('{'), path.find('}')) {
            let value = if mesh_proto::is_key(value) { value.clone() } else { encode(value) };
            path.replace_range(begin..=end, &value);
        }
    }
    with(response, header::LINK, &format!("<{path}?{}>; rel=\"next\"", pairs.join("&")))
}
