//! What the aggregator is told.

/// What the aggregator is told.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How often twins are looked at, milliseconds; a changed status is published within this time.
    pub tick_ms: u64,
    /// Least time between two versions of a twin that differ in measured values only, milliseconds.
    pub measured_ms: u32,
    /// How long a twin stays after its instance ended, milliseconds.
    pub ended_keep_ms: u32,
    /// How far back versions of twins can be asked for, milliseconds, where they rest in memory.
    pub history_ms: u32,
    /// How long a database keeps versions of twins, milliseconds; 0 for ever.
    pub history_keep_ms: u64,
    /// Versions of one twin that can be asked for, where they rest in memory.
    pub history_versions_max: usize,
    /// Memory for all versions, bytes, where they rest in memory; past it the oldest leave.
    pub history_bytes_max: u64,
    /// Longest time between two CMDT messages about a workload instance, milliseconds.
    pub message_ms: u32,
    /// Questions over Zenoh that wait at once; the oldest beyond are not answered.
    pub questions_max: usize,
    /// Twins that can be listed, where they rest in memory.
    pub twins_max: usize,
    /// Where listed twins rest, as a URL, if not where the mesh keeps its documents (`documents_url`).
    pub documents: String,
    /// Where versions rest, as a URL, if not where the mesh keeps its histories (`history_url`).
    pub history: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            tick_ms: 500,
            measured_ms: 1_000,
            ended_keep_ms: 600_000,
            history_ms: 3_600_000,
            history_keep_ms: 30 * 86_400_000,
            history_versions_max: 1_000,
            history_bytes_max: 64 << 20,
            message_ms: 60_000,
            questions_max: 256,
            twins_max: 100_000,
            documents: String::new(),
            history: String::new(),
        }
    }
}
