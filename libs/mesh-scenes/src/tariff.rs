//! What a cluster costs to run on: modelled energy, and a price.
//!
//! Nothing here is measured. A cluster says its own figures by labels; without them its tier, or else its size, decides.
//!
//! | label | unit | device | edge | cloud |
//! | --- | --- | --- | --- | --- |
//! | `idle-watts` | W while anything runs there; it sleeps otherwise | 1.5 | 8 | 20 |
//! | `watts-per-core` | W more for each busy core | 6 | 10 | 7 |
//! | `credits-per-core-hour` | credits for a reserved core and hour | 0.6 | 1.5 | 3 |
//!
//! The defaults are orders of magnitude: a single-board computer, a small server, and a share of a large one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a cluster costs to run on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tariff {
    /// Watts while anything runs there.
    pub idle_watts: f64,
    /// Watts more for each busy core.
    pub watts_per_core: f64,
    /// Credits for each reserved core and hour.
    pub credits_per_core_hour: f64,
}

/// A tier's figures.
pub const DEVICE: Tariff = Tariff { idle_watts: 1.5, watts_per_core: 6.0, credits_per_core_hour: 0.6 };
/// A tier's figures.
pub const EDGE: Tariff = Tariff { idle_watts: 8.0, watts_per_core: 10.0, credits_per_core_hour: 1.5 };
/// A tier's figures.
pub const CLOUD: Tariff = Tariff { idle_watts: 20.0, watts_per_core: 7.0, credits_per_core_hour: 3.0 };

/// Largest figure that a label may give; a larger one is taken for a slip.
const FIGURE_MAX: f64 = 10_000.0;

impl Tariff {
    /// Of a cluster with these labels and this capacity in thousandths of a core. A label that is not a number from 0 to
    /// 10,000 counts as absent.
    pub fn of(labels: &BTreeMap<String, String>, cpu_milli: u32) -> Self {
        let tier = match labels.get("tier").map(String::as_str) {
            Some("device") => DEVICE,
            Some("edge") => EDGE,
            Some("cloud") => CLOUD,
            _ if cpu_milli < 500 => DEVICE,
            _ if cpu_milli < 1_500 => EDGE,
            _ => CLOUD,
        };
        let figure = |name: &str, otherwise: f64| {
            let declared = labels.get(name).and_then(|text| text.trim().parse::<f64>().ok());
            declared.filter(|value| (0.0..=FIGURE_MAX).contains(value)).unwrap_or(otherwise)
        };
        Self {
            idle_watts: figure("idle-watts", tier.idle_watts),
            watts_per_core: figure("watts-per-core", tier.watts_per_core),
            credits_per_core_hour: figure("credits-per-core-hour", tier.credits_per_core_hour),
        }
    }

    /// Watts at a load in thousandths of a core; none when nothing runs there.
    pub fn watts(&self, load_milli: f64, awake: bool) -> f64 {
        if awake { self.idle_watts + self.watts_per_core * load_milli / 1_000.0 } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_decide_then_the_tier_then_the_size() {
        let labels = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        assert_eq!(Tariff::of(&labels(&[("tier", "edge")]), 100), EDGE);
        assert_eq!(Tariff::of(&labels(&[]), 8_000), CLOUD);
        let tariff = Tariff::of(&labels(&[("tier", "cloud"), ("idle-watts", "3.5"), ("watts-per-core", "NaN")]), 1);
        assert_eq!((tariff.idle_watts, tariff.watts_per_core), (3.5, CLOUD.watts_per_core));
        assert_eq!(Tariff::of(&labels(&[("idle-watts", "-1")]), 8_000), CLOUD);
        assert_eq!((CLOUD.watts(2_000.0, true), CLOUD.watts(0.0, false)), (34.0, 0.0));
    }
}
