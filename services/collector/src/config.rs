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
    /// How far back values can be asked for as they came, milliseconds, where they rest in memory.
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
    /// Where series rest, as a URL, if not where the mesh keeps its series (`series_url`).
    pub store: String,
    /// How long a database keeps values as they came, milliseconds; 0 for ever. What is rolled up it keeps at least as long.
    pub store_keep_ms: u64,
}

impl Config {
    /// How long values are kept, milliseconds: as they came, then rolled up by the minute, five minutes and the hour.
    pub(crate) fn keep_ms(&self, remote: bool) -> [i64; 4] {
        let rolled = [self.keep_minutes_ms, self.keep_five_minutes_ms, self.keep_hours_ms];
        let raw = match (remote, self.store_keep_ms) {
            (false, _) => self.window_ms.into(),
            (true, 0) => u64::MAX,
            (true, keep_ms) => keep_ms,
        };
        let least = if remote { raw } else { 0 };
        let [minutes, five, hours] = rolled.map(|keep_ms| keep_ms.max(least));
        [raw, minutes, five, hours].map(|ms| i64::try_from(ms).unwrap_or(EVER_MS).min(EVER_MS))
    }
}

/// Longer than anything is kept, milliseconds, and short of what a time of nanoseconds can bear.
const EVER_MS: i64 = i64::MAX / 2_000_000;

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
            store_keep_ms: 86_400_000,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_keeps_values_a_day_and_what_is_rolled_up_as_long() {
        let config = Config::default();
        assert_eq!(config.keep_ms(false), [600_000, 6 * 3_600_000, 48 * 3_600_000, 90 * 86_400_000]);
        assert_eq!(config.keep_ms(true), [86_400_000, 86_400_000, 48 * 3_600_000, 90 * 86_400_000]);
        assert_eq!(Config { store_keep_ms: 0, ..config }.keep_ms(true), [EVER_MS; 4]);
    }
}
