//! What the collector is told.

/// What the collector is told.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How long after its end a period waits for late samples, milliseconds.
    pub late_ms: u32,
    /// How long samples wait to be packed, milliseconds.
    pub flush_ms: u32,
    /// Length of a window of usage, milliseconds; 0 for none.
    pub usage_window_ms: u32,
    /// How long after its end a window waits for late samples, milliseconds: longer than agents' samples are apart.
    pub usage_grace_ms: u32,
    /// Instances whose samples are taken in.
    pub instances_max: usize,
    /// How far back samples can be asked for, milliseconds.
    pub window_ms: u32,
    /// Memory for that window, bytes, where it rests in memory; past it the oldest samples leave.
    pub window_bytes_max: u64,
    /// How far back measurements rolled up by the minute can be asked for, milliseconds.
    pub keep_minutes_ms: u64,
    /// The same of those rolled up by five minutes.
    pub keep_five_minutes_ms: u64,
    /// The same of those rolled up by the hour.
    pub keep_hours_ms: u64,
    /// Memory for all that is rolled up, bytes.
    pub rolled_bytes_max: u64,
    /// Series of readings that are known at once.
    pub series_max: usize,
    /// Series of one agent's readings.
    pub series_of_agent_max: usize,
    /// Values of one agent in a second; what is more is refused, and counted.
    pub values_of_agent_per_second: u32,
    /// How often periods are looked at, milliseconds.
    pub tick_ms: u64,
    /// Where the window rests, as a URL, if not where the mesh keeps its series (`series_url`).
    pub store: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            late_ms: 300,
            flush_ms: 1_000,
            usage_window_ms: 300_000,
            usage_grace_ms: 2_500,
            instances_max: 10_000,
            window_ms: 600_000,
            window_bytes_max: 64 << 20,
            keep_minutes_ms: 6 * 3_600_000,
            keep_five_minutes_ms: 48 * 3_600_000,
            keep_hours_ms: 90 * 86_400_000,
            rolled_bytes_max: 96 << 20,
            series_max: 200_000,
            series_of_agent_max: 20_000,
            values_of_agent_per_second: 200_000,
            tick_ms: 100,
            store: String::new(),
        }
    }
}
