//! What the exposer is told.

use crate::domain::costs::Limits;

/// What the exposer is told.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Domain whose costs are published.
    pub domain: String,
    /// Share of its published latency by which a link must move to be published again.
    pub change_ratio: f64,
    /// Milliseconds by which it must move as well.
    pub change_floor_ms: f64,
    /// Least time between two publications of changes, milliseconds.
    pub change_interval_ms: u32,
    /// A link without a probe for so long is down, milliseconds.
    pub silent_ms: u32,
    /// Between two publications of the network metrics, milliseconds; 0 for never.
    pub metrics_ms: u32,
    /// Are the network metrics published only if they changed?
    pub metrics_on_change: bool,
    /// How often changes are looked for, milliseconds.
    pub tick_ms: u64,
    /// Folder with libraries for network intents, `*.yaml`; none when empty.
    pub libraries_dir: String,
    /// Folder of named network namespaces.
    pub netns_dir: String,
    /// File with those who may ask by ALTO, lines of `user:alto:<SHA-256 of user:alto:password>`, who then authenticate
    /// themselves by HTTP Digest; anybody may when empty.
    pub alto_users_file: String,
    /// Where costs rest over time, as a URL, if not where the mesh keeps its series (`series_url`). In memory the newest are
    /// all that is kept.
    pub series: String,
    /// How long a database keeps costs, milliseconds; 0 for ever.
    pub series_keep_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            domain: "default".into(),
            change_ratio: 0.3,
            change_floor_ms: 2.0,
            change_interval_ms: 500,
            silent_ms: 60_000,
            metrics_ms: 60_000,
            metrics_on_change: false,
            tick_ms: 100,
            libraries_dir: String::new(),
            netns_dir: "/run/netns".into(),
            alto_users_file: String::new(),
            series: String::new(),
            series_keep_ms: 30 * 86_400_000,
        }
    }
}

impl Config {
    /// When a change of costs matters.
    pub(crate) fn limits(&self) -> Limits {
        Limits {
            domain: self.domain.clone(),
            change_ratio: self.change_ratio.max(0.0),
            change_floor_ms: self.change_floor_ms.max(0.0),
            interval_ms: self.change_interval_ms.into(),
            silent_ms: self.silent_ms.into(),
            metrics_ms: self.metrics_ms.into(),
            metrics_on_change: self.metrics_on_change,
        }
    }
}
