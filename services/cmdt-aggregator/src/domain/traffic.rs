//! What proxies measured of the requests to one workload. Their counters are cumulative and begin again at 0 when a proxy
//! restarts; rates are of what they rose by within a window.

use std::collections::{BTreeMap, VecDeque};

use mesh_proto::{Timestamp, twin::TwinTraffic};

/// Counts requests, by status code.
pub(crate) const COUNT: &str = "http.server.request.count";
/// Seconds that requests took, by quantile.
pub(crate) const DURATION: &str = "http.server.request.duration";
/// Label of a status code.
pub(crate) const CODE: &str = "http.response.status_code";
/// Label of a quantile.
pub(crate) const QUANTILE: &str = "quantile";
/// Window of a twin's traffic, milliseconds.
pub(crate) const MINUTE_MS: i64 = 60_000;
/// Window of the traffic in a CMDT message, milliseconds: six minutes, so that one request in six minutes shows.
pub(crate) const LONG_MS: i64 = 360_000;
/// Resolution of rates, milliseconds.
const BUCKET_MS: i64 = 10_000;
/// Counters and quantiles of one workload.
const SERIES_MAX: usize = 64;
/// Proxies of one workload; past it the one that was silent for longest is forgotten.
const SOURCES_MAX: usize = 8;
/// A counter that appears this long after its proxy did began at 0, milliseconds; one that appears earlier may be older
/// than what is known of it.
const SETTLED_MS: i64 = 60_000;

/// The quantiles that a twin has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Quantile {
    P50,
    P95,
    P99,
}

impl Quantile {
    /// The quantile of a label: `0.95`.
    pub(crate) fn named(label: &str) -> Option<Self> {
        match label.parse::<f64>().ok()? {
            0.5 => Some(Self::P50),
            0.95 => Some(Self::P95),
            0.99 => Some(Self::P99),
            _ => None,
        }
    }
}

/// A status code of HTTP.
pub(crate) fn code(label: &str) -> Option<u16> {
    label.parse().ok().filter(|code| (100..600).contains(code) && label.len() == 3)
}

#[derive(Clone, Debug, PartialEq)]
struct Counter {
    at: Timestamp,
    value: f64,
    /// Bucket and increase in it, oldest first; buckets without any are not there.
    increases: VecDeque<(i64, f64)>,
}

/// What one proxy said.
#[derive(Clone, Debug, PartialEq)]
struct Source {
    first: Timestamp,
    last: Timestamp,
    /// By status code and further labels.
    counters: BTreeMap<(u16, String), Counter>,
    quantiles: BTreeMap<(Quantile, String), (Timestamp, f64)>,
}

/// Requests to one workload.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Traffic {
    sources: BTreeMap<String, Source>,
    /// What was known before the aggregator started, until there is a minute of its own.
    restored: Option<TwinTraffic>,
}

impl Traffic {
    /// Traffic as it was last published.
    pub(crate) fn restored(traffic: TwinTraffic) -> Self {
        Self { restored: Some(traffic), ..Self::default() }
    }

    /// Takes what a proxy has counted. False when there is no room for one more series.
    pub(crate) fn count(&mut self, source: &str, code: u16, labels: String, at: Timestamp, value: f64) -> bool {
        let is_full = self.is_full();
        let source = self.source(source, at);
        let key = (code, labels);
        if let Some(counter) = source.counters.get_mut(&key) {
            if at > counter.at {
                let rise = if value >= counter.value { value - counter.value } else { value };
                counter.add(at, rise);
                (counter.at, counter.value) = (at, value);
            }
            return true;
        }
        if is_full {
            return false;
        }
        let mut counter = Counter { at, value, increases: VecDeque::new() };
        if at.millis_since(source.first) >= SETTLED_MS {
            counter.add(at, value);
        }
        source.counters.insert(key, counter);
        true
    }

    /// Takes a quantile of how long requests took, seconds. False when there is no room for one more series.
    pub(crate) fn quantile(&mut self, source: &str, of: Quantile, labels: String, at: Timestamp, seconds: f64) -> bool {
        let is_full = self.is_full();
        let source = self.source(source, at);
        match source.quantiles.get_mut(&(of, labels.clone())) {
            Some(known) => *known = (*known).max_by_time((at, seconds)),
            None if is_full => return false,
            None => {
                source.quantiles.insert((of, labels), (at, seconds));
            }
        }
        true
    }

    fn is_full(&self) -> bool {
        self.sources.values().map(|s| s.counters.len() + s.quantiles.len()).sum::<usize>() >= SERIES_MAX
    }

    fn source(&mut self, name: &str, at: Timestamp) -> &mut Source {
        if !self.sources.contains_key(name) && self.sources.len() >= SOURCES_MAX {
            let silent = self.sources.iter().min_by_key(|(_, source)| source.last).map(|(name, _)| name.clone());
            silent.map(|name| self.sources.remove(&name));
        }
        let source = self.sources.entry(name.to_owned()).or_insert_with(|| Source {
            first: at,
            last: at,
            counters: BTreeMap::new(),
            quantiles: BTreeMap::new(),
        });
        source.last = source.last.max(at);
        source
    }

    /// Traffic of a window up to now; nothing when nobody measured within a minute. The seconds are those that the rates
    /// are of: fewer than the window while less is known.
    pub(crate) fn over(&self, window_ms: i64, now: Timestamp) -> Option<(TwinTraffic, f64)> {
        let own = self.own(window_ms, now);
        let is_short = own.as_ref().is_none_or(|(_, seconds)| *seconds < MINUTE_MS as f64 / 1e3);
        let restored = self.restored.clone().filter(|t| is_short && is_fresh(t.at.unwrap_or_default(), now));
        restored.map(|traffic| (traffic, MINUTE_MS as f64 / 1e3)).or(own)
    }

    fn own(&self, window_ms: i64, now: Timestamp) -> Option<(TwinTraffic, f64)> {
        let live = || self.sources.values().filter(|source| is_fresh(source.last, now));
        let (first, last) = (live().map(|s| s.first).min()?, live().map(|s| s.last).max()?);
        let end = now.max(last).as_millis();
        let newest = end.div_euclid(BUCKET_MS);
        let oldest = newest - window_ms / BUCKET_MS;
        let known_ms = (end - first.as_millis()).max(1_000);
        let seconds = (end - oldest * BUCKET_MS).min(known_ms) as f64 / 1e3;
        let mut traffic = TwinTraffic { at: Some(last), ..TwinTraffic::default() };
        for source in live() {
            for ((code, _), counter) in &source.counters {
                let recent = counter.increases.iter().filter(|(bucket, _)| (oldest..=newest).contains(bucket));
                let rate = recent.map(|(_, rise)| rise).sum::<f64>() / seconds;
                *traffic.rate_by_code.entry(code.to_string()).or_default() += rate;
                traffic.request_rate += rate;
            }
            for ((of, _), (at, value)) in source.quantiles.iter().filter(|(_, (at, _))| is_fresh(*at, now)) {
                let _ = at;
                let slot = match of {
                    Quantile::P50 => &mut traffic.latency_p50,
                    Quantile::P95 => &mut traffic.latency_p95,
                    Quantile::P99 => &mut traffic.latency_p99,
                };
                // Of several proxies or replicas the slowest: quantiles cannot be added up.
                *slot = slot.max(*value);
            }
        }
        Some((traffic, seconds))
    }
}

trait Newer {
    fn max_by_time(self, other: Self) -> Self;
}

impl Newer for (Timestamp, f64) {
    fn max_by_time(self, other: Self) -> Self {
        if other.0 > self.0 { other } else { self }
    }
}

impl Counter {
    fn add(&mut self, at: Timestamp, rise: f64) {
        let bucket = at.as_millis().div_euclid(BUCKET_MS);
        self.increases.retain(|(known, _)| *known >= bucket - LONG_MS / BUCKET_MS);
        match self.increases.back_mut() {
            Some((known, sum)) if *known == bucket => *sum += rise,
            _ if rise > 0.0 => self.increases.push_back((bucket, rise)),
            _ => {}
        }
    }
}

fn is_fresh(at: Timestamp, now: Timestamp) -> bool {
    now.millis_since(at) <= MINUTE_MS
}

/// Did traffic change enough to matter: another code, a rate by a tenth, a time by a tenth and a millisecond?
pub(crate) fn has_moved(from: Option<&TwinTraffic>, to: Option<&TwinTraffic>) -> bool {
    let (Some(from), Some(to)) = (from, to) else { return from.is_some() != to.is_some() };
    let far = |from: f64, to: f64, least: f64| (from - to).abs() > least.max(0.1 * from.abs().max(to.abs()));
    let times =
        [(from.latency_p50, to.latency_p50), (from.latency_p95, to.latency_p95), (from.latency_p99, to.latency_p99)];
    !from.rate_by_code.keys().eq(to.rate_by_code.keys())
        || from.rate_by_code.iter().any(|(code, rate)| to.rate_by_code.get(code).is_none_or(|to| far(*rate, *to, 0.05)))
        || times.into_iter().any(|(from, to)| far(from, to, 0.001))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(1_000_000_000_000 + seconds * 1_000)
    }

    /// A reading each second: one `200` each half minute, one `500` each six minutes.
    fn two_a_minute(traffic: &mut Traffic, seconds: std::ops::Range<i64>) {
        for second in seconds {
            traffic.count("gateway", 200, String::new(), at(second), (second / 30) as f64);
            traffic.count("gateway", 500, String::new(), at(second), (second / 360) as f64);
        }
    }

    #[test]
    fn rates_are_those_of_a_proxy_with_two_a_minute_and_one_in_six() {
        let mut traffic = Traffic::default();
        two_a_minute(&mut traffic, 0..1_000);
        let (found, seconds) = traffic.over(LONG_MS, at(999)).unwrap();
        assert!((360.0..370.0).contains(&seconds), "{seconds}");
        // To within one request of the window.
        for (code, a_minute) in [("200", 2.0), ("500", 1.0 / 6.0)] {
            let (rate, expected) = (found.rate_by_code[code], a_minute / 60.0);
            assert!((rate - expected).abs() * seconds <= 1.0, "{code}: {rate} and not {expected}");
        }
        assert_eq!(found.request_rate, found.rate_by_code.values().sum::<f64>());
        assert_eq!(found.at, Some(at(999)));
    }

    #[test]
    fn a_counter_that_begins_again_and_one_that_comes_late_count_from_zero() {
        let mut traffic = Traffic::default();
        let mut count = |second, code, value| assert!(traffic.count("g", code, String::new(), at(second), value));
        count(0, 200, 1_000_000.0);
        count(60, 200, 1_000_060.0);
        count(61, 200, 5.0);
        count(61, 404, 3.0);
        // Old news, and the same again.
        count(61, 200, 500.0);
        count(20, 200, 900.0);
        let (found, seconds) = traffic.over(MINUTE_MS, at(61)).unwrap();
        assert_eq!(seconds, 61.0);
        assert!((found.rate_by_code["200"] - 65.0 / 61.0).abs() < 1e-9);
        assert!((found.rate_by_code["404"] - 3.0 / 61.0).abs() < 1e-9);
    }

    #[test]
    fn several_proxies_add_up_and_the_slowest_quantile_counts() {
        let mut traffic = Traffic::default();
        for (proxy, seconds) in [("a", 0.1), ("b", 0.3)] {
            traffic.count(proxy, 200, String::new(), at(0), 0.0);
            traffic.count(proxy, 200, String::new(), at(10), 10.0);
            traffic.quantile(proxy, Quantile::P95, String::new(), at(10), seconds);
        }
        let (found, _) = traffic.over(MINUTE_MS, at(10)).unwrap();
        assert_eq!((found.request_rate, found.latency_p95, found.latency_p50), (2.0, 0.3, 0.0));
        assert!(traffic.over(MINUTE_MS, at(71)).is_none(), "nobody has measured for a minute");
    }

    #[test]
    fn what_was_known_before_a_restart_holds_for_a_minute() {
        let known = TwinTraffic { request_rate: 7.0, at: Some(at(0)), ..TwinTraffic::default() };
        let mut traffic = Traffic::restored(known.clone());
        assert_eq!(traffic.over(MINUTE_MS, at(5)).map(|(t, _)| t), Some(known.clone()));
        traffic.count("g", 200, String::new(), at(5), 1.0);
        assert_eq!(traffic.over(MINUTE_MS, at(6)).map(|(t, _)| t), Some(known));
        traffic.count("g", 200, String::new(), at(65), 61.0);
        assert_eq!(traffic.over(MINUTE_MS, at(65)).unwrap().0.request_rate, 1.0);
        assert!(Traffic::restored(TwinTraffic::default()).over(MINUTE_MS, at(0)).is_none());
    }

    #[test]
    fn series_and_proxies_are_bounded() {
        let mut traffic = Traffic::default();
        let taken = (0..1_000).filter(|n| traffic.count("g", 200, n.to_string(), at(0), 1.0)).count();
        assert_eq!(taken, SERIES_MAX);
        assert!(!traffic.quantile("g", Quantile::P50, String::new(), at(0), 1.0));
        let mut traffic = Traffic::default();
        for n in 0..100 {
            traffic.count(&n.to_string(), 200, String::new(), at(n), 1.0);
        }
        assert_eq!(traffic.sources.len(), SOURCES_MAX);
        assert_eq!(
            (Quantile::named("0.95"), Quantile::named("0.9"), Quantile::named("x")),
            (Some(Quantile::P95), None, None)
        );
        assert_eq!((code("200"), code("99"), code("0200"), code("+20")), (Some(200), None, None, None));
    }

    proptest! {
        #[test]
        fn memory_stays_bounded_and_rates_are_never_negative(
            readings in prop::collection::vec((0i64..2_000, 0f64..1e6, 100u16..600, 0u8..12), 0..400),
        ) {
            let mut traffic = Traffic::default();
            for (second, value, code, source) in readings {
                traffic.count(&source.to_string(), code, String::new(), at(second), value);
            }
            for source in traffic.sources.values() {
                for counter in source.counters.values() {
                    prop_assert!(counter.increases.len() <= (LONG_MS / BUCKET_MS) as usize + 1);
                }
            }
            if let Some((found, seconds)) = traffic.over(LONG_MS, at(2_000)) {
                prop_assert!(seconds > 0.0 && found.rate_by_code.values().all(|rate| rate.is_finite() && *rate >= 0.0));
            }
        }
    }
}
