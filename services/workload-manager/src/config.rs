//! What the workload manager is told.

/// What the workload manager is told.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Program that renders charts. When empty: `.tools/helm` in the current folder, the program's own, and their
    /// ancestors, then `helm` on the `PATH`.
    pub helm: String,
    /// Longest time of one rendering, milliseconds.
    pub helm_limit_ms: u64,
    /// Are images looked up in their registries?
    pub images: bool,
    /// Longest time of one answer of a registry, milliseconds.
    pub registry_limit_ms: u64,
    /// File with credentials for known registries, in the format of Docker's `config.json`; none when empty.
    pub registries_file: String,
    /// Registries that may have private addresses, `host` or `host:port`, divided by commas. No other is asked at one.
    pub registries_private: String,
    /// Registries that are asked by plain HTTP, `host` or `host:port`, divided by commas.
    pub registries_plain: String,
    /// Is a chart rejected if a registry cannot be reached? Otherwise its images are not checked, and it says so.
    pub refuse_unreachable: bool,
    /// Where documents and instances rest, as a URL, if not where the mesh keeps its documents (`documents_url`).
    pub documents: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            helm: String::new(),
            helm_limit_ms: 20_000,
            images: true,
            registry_limit_ms: 10_000,
            registries_file: String::new(),
            registries_private: String::new(),
            registries_plain: String::new(),
            refuse_unreachable: false,
            documents: String::new(),
        }
    }
}
