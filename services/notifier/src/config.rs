//! Configuration of the notifier.

/// Configuration.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Hosts that may be called although their addresses are private: `host` or `host:port`, separated by commas. Public
    /// addresses need no entry.
    pub callbacks_private: String,
}
