//! Decision records in a database: kept from `PLACEMENT`, looked up when somebody asks why.

use std::sync::Arc;

use anyhow::Context as _;
use mesh_core::Stored;
use mesh_kit::{Mesh, Records};
use mesh_store::{Entry, History, Version, memory::WindowLimits};

use crate::domain::{
    records::{Explained, key, record},
    view::DECISIONS_MAX,
};

/// Stream of the decisions.
const STREAM: &str = "PLACEMENT";
/// Records read for one question at most.
const RECORDS_MAX: usize = 10 * DECISIONS_MAX;

/// Keeps decisions in the database that the configuration names; `None` if that is memory, where the view holds them.
///
/// # Errors
/// A URL that cannot be used for histories.
pub(crate) fn keep(mesh: &Mesh, own: &str, keep_ms: u64) -> anyhow::Result<Option<Arc<dyn History>>> {
    let history = mesh.history("decisions", own, WindowLimits::default(), keep_ms)?;
    if !history.is_remote() {
        return Ok(None);
    }
    let rows = |stored: &Stored| {
        let version = |body| Version { version: stored.sequence, at: stored.stored, body };
        record(stored).map(|(key, body)| Entry { key, version: version(body) }).into_iter().collect()
    };
    mesh.record(Records {
        name: "decisions",
        stream: STREAM,
        keep_ms,
        newest_max: u64::MAX,
        store: history.clone(),
        rows,
    });
    Ok(Some(history))
}

/// What is recorded of an instance.
///
/// # Errors
/// Those of the store; a record that cannot be read.
pub(crate) async fn explain(history: &dyn History, owner: &str, instance_id: &str) -> anyhow::Result<Explained> {
    let (key, mut explained, mut before, mut read) = (key(owner, instance_id), Explained::default(), None, 0);
    while explained.decisions.len() < DECISIONS_MAX && read < RECORDS_MAX {
        let versions = history.list(&key, before, DECISIONS_MAX).await?;
        for version in &versions {
            explained.take_in(&version.body).context("decode a decision")?;
        }
        read += versions.len();
        before = versions.last().map(|oldest| oldest.version);
        if versions.len() < DECISIONS_MAX {
            break;
        }
    }
    explained.decisions.truncate(DECISIONS_MAX);
    Ok(explained)
}
