//! What accounting is told.

use std::path::PathBuf;

/// What accounting is told.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// File with the key that signs heads, in the form of a C2SP signed note's signer. Without it the key rests in the
    /// data folder, and is made there the first time; without that too, a new one is made at each start.
    pub signing_key_file: Option<PathBuf>,
    /// Least time between two heads that are published, milliseconds.
    pub head_every_ms: u64,
    /// Where accounts rest, as a URL, if not where the mesh keeps its documents (`documents_url`).
    pub documents: String,
    /// Where entries and the ledger's tree rest, as a URL, if not where the mesh keeps its histories (`history_url`).
    pub history: String,
}

impl Default for Config {
    fn default() -> Self {
        Self { signing_key_file: None, head_every_ms: 5_000, documents: String::new(), history: String::new() }
    }
}
