//! What the detector is told.

use crate::domain::{Limits, watch::Judgement};

/// What the detector is told.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How often silence is looked for, milliseconds.
    pub tick_ms: u64,
    /// Point rules, one a line or divided by `;`: `name: expression for 10s clear expression for 10s`.
    pub rules: String,
    /// Samples of an instance that its model learns before it judges.
    pub warm_samples: u32,
    /// Score above which a sample is suspicious, 0 to 1.
    pub threshold: f64,
    /// Suspicious samples in a row that are an anomaly.
    pub hold_samples: u32,
    /// Samples in a row that are as usual and end it.
    pub calm_samples: u32,
    /// How long an anomaly lasts until it counts as usual, milliseconds.
    pub accept_ms: u32,
    /// Instances under watch; each takes about 280 kB.
    pub instances_max: usize,
    /// How long an anomalous instance is measured more often, milliseconds; never when 0.
    pub escalate_ms: u32,
    /// How often it is measured then: between two readings, milliseconds.
    pub escalate_interval_ms: u32,
    /// How often models are stored in the data folder, milliseconds; never when 0.
    pub snapshot_ms: u32,
}

impl Default for Config {
    fn default() -> Self {
        let judgement = Judgement::default();
        Self {
            tick_ms: 1_000,
            rules: "saturated: cpu_percent > 95 for 30s clear cpu_percent < 85 for 10s\n\
                    restarting: rate(restarts, 60s) * 60 >= 3 for 0s clear rate(restarts, 60s) == 0 for 0s"
                .into(),
            warm_samples: judgement.warm as u32,
            threshold: judgement.threshold,
            hold_samples: judgement.hold,
            calm_samples: judgement.calm,
            accept_ms: judgement.accept_ms as u32,
            instances_max: Limits::default().instances_max,
            escalate_ms: Limits::default().escalate_ms as u32,
            escalate_interval_ms: Limits::default().escalate_interval_ms,
            snapshot_ms: 30_000,
        }
    }
}

impl Config {
    /// The limits that follow.
    ///
    /// # Errors
    /// Names the key that cannot be, and what would.
    pub fn limits(&self) -> Result<Limits, String> {
        let wrong = |key: &str, hint: &str| Err(format!("{key} cannot be that; {hint}"));
        if !(0.5..1.0).contains(&self.threshold) {
            return wrong("threshold", "use 0.5 to below 1");
        }
        if !(16..=100_000).contains(&self.warm_samples) {
            return wrong("warm_samples", "use 16 to 100000");
        }
        if !(1..=1_000).contains(&self.hold_samples) || !(1..=1_000).contains(&self.calm_samples) {
            return wrong("hold_samples or calm_samples", "use 1 to 1000");
        }
        if !(1..=100_000).contains(&self.instances_max) {
            return wrong("instances_max", "use 1 to 100000");
        }
        if !(10..=3_600_000).contains(&self.escalate_interval_ms) {
            return wrong("escalate_interval_ms", "use 10 to 3600000");
        }
        let judgement = Judgement {
            warm: self.warm_samples.into(),
            threshold: self.threshold,
            hold: self.hold_samples,
            calm: self.calm_samples,
            accept_ms: self.accept_ms.into(),
            ..Judgement::default()
        };
        Ok(Limits {
            judgement,
            instances_max: self.instances_max,
            escalate_ms: self.escalate_ms.into(),
            escalate_interval_ms: self.escalate_interval_ms,
            ..Limits::default()
        })
    }
}
