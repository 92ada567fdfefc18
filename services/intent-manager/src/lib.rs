//! Owns the life cycle of every intent: its versions, its state with the reason, and its reports.
//!
//! - Consumes: the commands about intents; verdicts and feasibility; what becomes of instances; plans that failed; what
//!   targets achieved.
//! - Publishes: one answer to each command; `IntentAcknowledged`, `IntentRejected`, `IntentStateChanged`,
//!   `IntentRemedyWanted`, `IntentRemedyUnwanted`; `ReportPublished` at each change and each period.
//! - Owns: an intent's state.
//! - Never: judges content, places anything, asks an agent, or reads a measurement that no period holds.

mod api;
pub mod domain;
mod shell;

use anyhow::Context as _;
use mesh_core::Projector as _;
use mesh_kit::{Mesh, Sources};
use mesh_proto::{Event as _, Timestamp, intent::intent_queries_server::IntentQueriesServer, report::ReportPublished};

use self::{domain::view::IntentsView, shell::achieved::Achieved};

/// Settings of the intent manager. What a state means is the contract's, not a deployment's.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Milliseconds after a remedy was asked for in which none is asked for again; doubles while it does not help.
    pub remedy_cooldown_ms: u32,
    /// Where intents rest, as a URL, if not where the mesh keeps its documents (`documents_url`).
    pub documents: String,
    /// Where achieved values rest, as a URL, if not where the mesh keeps its series (`series_url`).
    pub achieved: String,
    /// How long a database keeps achieved values, milliseconds; 0 for ever.
    pub achieved_keep_ms: u64,
    /// How long memory keeps achieved values where no database does, milliseconds; 0 for as long as there is room.
    pub achieved_window_ms: u64,
    /// Bytes of the achieved values in memory; the oldest leave at the limit.
    pub achieved_bytes_max: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            remedy_cooldown_ms: 60_000,
            documents: String::new(),
            achieved: String::new(),
            achieved_keep_ms: 30 * 86_400_000,
            achieved_window_ms: 6 * 3_600_000,
            achieved_bytes_max: 32 << 20,
        }
    }
}

/// Milliseconds after which what was stored before the last report is known to be reported.
const REPORTED_WITHIN_MS: i64 = 5_000;

/// Entities in memory where intents rest in a database: idle ones beyond are read again when somebody asks.
const ENTITIES_MAX: usize = 10_000;

/// Joins the mesh; returns once its view is caught up, its queries are served and its decider runs. Where intents rest in
/// a database, that is the view: nothing is read at the start but what the decider has not saved.
///
/// # Errors
/// When the bus does not let it join; a URL that cannot be used for documents.
pub async fn start(mesh: Mesh, config: Config) -> anyhow::Result<()> {
    let achieved = Achieved::keep(&mesh, &config)?;
    let report = mesh_proto::contract().event(ReportPublished::MESSAGE).context("the contract has no reports")?;
    let reports = mesh.bus().log(&report.stream).last(&report.filter()).await.context("read the last report")?;
    // Reports are published a moment after what they tell.
    let reported = reports.map(|last| last.stored.plus_millis(-REPORTED_WITHIN_MS)).unwrap_or_default();
    let limits = domain::Limits { remedy_cooldown_ms: config.remedy_cooldown_ms.into() };
    let intents = domain::Intents::new(limits);
    if let Some(stores) = shell::store::Stores::open(&mesh, &config.documents)? {
        let decided = mesh.decide_within(intents, ENTITIES_MAX).await?;
        stores.keep(&mesh, reported).await?;
        mesh.serve(IntentQueriesServer::new(api::kept::Api::new(stores, decided, achieved, mesh.stopping())));
        return Ok(());
    }
    let sources = Sources { streams: vec!["OBSERVATION"], ..Sources::default() };
    let (view, from) = restored(&mesh, reported).await?;
    // The view shows the states that the decider folds.
    let (_, view) = mesh.decide_and_show(intents, "intents", view, from, sources).await?;
    mesh.serve(IntentQueriesServer::new(api::Api::new(view, achieved, mesh.stopping())));
    Ok(())
}

/// The view as far as the decider has saved it, and the sequence of INTENT from which it reads on.
async fn restored(mesh: &Mesh, reported: Timestamp) -> anyhow::Result<(IntentsView, u64)> {
    let mut view = IntentsView::reporting_since(reported);
    let mut partly = vec![];
    let saved = mesh.saved::<domain::Intents>(|key, saved| partly.extend(view.restore(key, saved))).await;
    let position = match saved {
        Ok(position) => position,
        // The decider says more if it is concerned.
        Err(error) => {
            tracing::warn!(error = &*error, "what was saved of intents cannot be read; their facts are");
            return Ok((IntentsView::reporting_since(reported), 1));
        }
    };
    let log = mesh.bus().log("INTENT");
    for key in partly {
        for stored in log.read(&key.entity("intent"), 1, usize::MAX).await.context("read the facts of an intent")? {
            view.apply(&stored);
        }
    }
    // What may not have been reported is read again, though it is known.
    let untold = log.since(reported).await.context("read what was stored since the last report")?;
    let from = untold.map_or(position + 1, |first| first.sequence.min(position + 1));
    Ok((view, from))
}
