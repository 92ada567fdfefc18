//! What goes through to exposed workloads, by route and replica: requests by response code, and how long answers take to
//! begin.
//!
//! Quantiles are of a sketch that errs by 1 % at most and does not grow beyond a limit (DDSketch), of the requests since the
//! last time it was said. The sketch itself is published too, as its times and how many answers took each: quantiles of
//! several turns, replicas or gateways cannot be had from theirs, but from the sketches' sum.

use std::collections::BTreeMap;

use mesh_proto::{
    Timestamp,
    telemetry::{Entity, Metric, MetricKind, ProbeStatus, Provenance, Readings, RouteTraffic},
};
use sketches_ddsketch::{Config, DDSketch};

/// Ways that are counted; requests on others are not, and it is said how many.
const WAYS_MAX: usize = 2_000;
/// Ways in one pack.
const PACK_WAYS_MAX: usize = 128;
/// Response codes of one way that are told apart.
const CODES_MAX: usize = 64;
/// Turns after which a way that is not used is forgotten; its counters begin again at 0.
const IDLE_TURNS_MAX: u32 = 120;
/// Turns in which each way is named at least once, used or not.
const STATUS_TURNS: u32 = 12;
/// Relative error of a quantile.
const ERROR: f64 = 0.01;
/// Buckets of a sketch: more than there are between the shortest time and the longest.
const BUCKETS_MAX: u32 = 2_048;
/// Seconds below which answers are not told apart.
const SECONDS_MIN: f64 = 1e-6;
/// Seconds above which they are not either: a day.
const SECONDS_MAX: f64 = 86_400.0;
/// Times in one pack, of all its ways.
const PACK_TIMES_MAX: usize = 8_192;
/// Response codes from here on are errors.
const ERRORS_FROM: u16 = 500;
/// Quantiles that are said.
const QUANTILES: [(f64, &str); 4] = [(0.5, "0.5"), (0.9, "0.9"), (0.95, "0.95"), (0.99, "0.99")];
/// The probe, as settings select it.
const PROBE: &str = "traffic";

/// A route to one replica.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Way {
    /// Cluster that it leads to.
    pub cluster: String,
    /// Whose workload it is.
    pub owner: String,
    /// The exposed instance.
    pub instance: String,
    /// `host:port` that answers.
    pub upstream: String,
}

#[derive(Default)]
struct Counted {
    codes: BTreeMap<u16, u64>,
    requests: u64,
    idle_turns: u32,
    turn: Turn,
}

/// The requests of one turn.
#[derive(Default)]
struct Turn {
    requests: u64,
    errors: u64,
    /// Answers by bucket of the sketch.
    answers: BTreeMap<i32, u64>,
}

impl Turn {
    fn traffic(&self, config: &Config, entity: u32) -> RouteTraffic {
        RouteTraffic {
            entity,
            requests: self.requests,
            errors: self.errors,
            seconds: self.answers.keys().map(|bucket| config.value(*bucket)).collect(),
            answers: self.answers.values().copied().collect(),
        }
    }
}

fn config() -> Config {
    Config::new(ERROR, BUCKETS_MAX, SECONDS_MIN)
}

/// The sketch that these times make.
fn sketch(config: Config, traffic: &RouteTraffic) -> DDSketch {
    let mut sketch = DDSketch::new(config);
    traffic.seconds.iter().zip(&traffic.answers).for_each(|(seconds, count)| sketch.add_with_count(*seconds, *count));
    sketch
}

/// Everything that went through one gateway.
#[derive(Default)]
pub struct Traffic {
    ways: BTreeMap<Way, Counted>,
    left_out: u64,
    turns: u32,
}

impl Traffic {
    /// A request was answered with a code, this long after it was passed on.
    pub fn count(&mut self, way: &Way, status: u16, seconds: f64) {
        if !self.ways.contains_key(way) {
            if self.ways.len() >= WAYS_MAX {
                self.left_out += 1;
                return;
            }
            self.ways.insert(way.clone(), Counted::default());
        }
        let Some(counted) = self.ways.get_mut(way) else { return };
        counted.idle_turns = 0;
        counted.requests += 1;
        // A workload may answer with any code; what is too much is one.
        let is_known = counted.codes.contains_key(&status) || counted.codes.len() < CODES_MAX;
        *counted.codes.entry(if is_known { status } else { 0 }).or_default() += 1;
        if counted.turn.requests < RouteTraffic::REQUESTS_MAX {
            counted.turn.requests += 1;
            counted.turn.errors += u64::from(status >= ERRORS_FROM);
            if seconds.is_finite() {
                let bucket = config().key(seconds.clamp(SECONDS_MIN, SECONDS_MAX));
                *counted.turn.answers.entry(bucket).or_default() += 1;
            }
        }
    }

    /// Requests that were not counted, because there were too many ways.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// What there is to say of each cluster's routes, by this gateway; the next turn begins.
    pub fn turn(&mut self, gateway: &str, now: Timestamp) -> Vec<Readings> {
        let names_all = self.turns.is_multiple_of(STATUS_TURNS);
        self.turns = self.turns.wrapping_add(1);
        let failure = match self.left_out {
            0 => String::new(),
            some => format!("{some} requests were not counted: more than {WAYS_MAX} ways"),
        };
        let config = config();
        let mut packs: Vec<Readings> = vec![];
        let mut times = 0;
        for (way, counted) in &mut self.ways {
            counted.idle_turns += 1;
            if counted.idle_turns > 1 && !names_all {
                continue;
            }
            times += counted.turn.answers.len();
            let has_room = |pack: &Readings| pack.entities.len() < PACK_WAYS_MAX && times <= PACK_TIMES_MAX;
            // Ways are sorted by cluster.
            if !packs.last().is_some_and(|pack| pack.cluster_id == way.cluster && has_room(pack)) {
                times = counted.turn.answers.len();
                packs.push(Readings { cluster_id: way.cluster.clone(), at: Some(now), ..Readings::default() });
            }
            let Some(pack) = packs.last_mut() else { break };
            let entity = u32::try_from(pack.entities.len()).unwrap_or(u32::MAX);
            pack.entities.push(Entity {
                kind: "route".into(),
                id: way.instance.clone(),
                cluster_id: way.cluster.clone(),
                node: String::new(),
                owner: way.owner.clone(),
            });
            let mut add = |name: &str, unit: &str, kind: MetricKind, label: (&str, &str), value: f64| {
                let labels = [("server.address", way.upstream.as_str()), ("service.instance.id", gateway), label];
                pack.metric.push(u32::try_from(pack.metrics.len()).unwrap_or(u32::MAX));
                pack.metrics.push(Metric {
                    entity,
                    name: name.into(),
                    unit: unit.into(),
                    kind: kind.into(),
                    labels: labels.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect(),
                    provenance: Provenance::Measured.into(),
                    probe: PROBE.into(),
                });
                pack.after_ms.push(0);
                pack.values.push(value);
            };
            for (code, count) in &counted.codes {
                let label = ("http.response.status_code", code.to_string());
                let label = (label.0, label.1.as_str());
                add("http.server.request.count", "{request}", MetricKind::Counter, label, *count as f64);
            }
            let traffic = std::mem::take(&mut counted.turn).traffic(&config, entity);
            let sketch = sketch(config, &traffic);
            for (quantile, label) in QUANTILES {
                if let Ok(Some(seconds)) = sketch.quantile(quantile) {
                    add("http.server.request.duration", "s", MetricKind::Gauge, ("quantile", label), seconds);
                }
            }
            if traffic.requests > 0 {
                pack.traffic.push(traffic);
            }
            pack.probes.push(ProbeStatus {
                entity,
                probe: PROBE.into(),
                readings: counted.requests,
                failure: failure.clone(),
                failures: self.left_out,
                ..ProbeStatus::default()
            });
        }
        self.ways.retain(|_, counted| counted.idle_turns <= IDLE_TURNS_MAX);
        packs
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn way(instance: &str) -> Way {
        Way { cluster: "edge".into(), owner: "ada".into(), instance: instance.into(), upstream: "10.0.0.1:80".into() }
    }

    fn said(pack: &Readings, name: &str, label: &str, text: &str) -> Option<f64> {
        let found = pack.metrics.iter().position(|m| m.name == name && m.labels.get(label).is_some_and(|t| t == text));
        let found = u32::try_from(found?).unwrap();
        Some(pack.values[pack.metric.iter().position(|metric| *metric == found).unwrap()])
    }

    #[test]
    fn requests_are_counted_by_code_and_quantiles_are_of_the_last_turn() {
        let mut traffic = Traffic::default();
        for number in 0..100 {
            traffic.count(&way("i"), if number < 90 { 200 } else { 503 }, 0.1);
        }
        let packs = traffic.turn("g", Timestamp::default());
        assert_eq!(packs.len(), 1);
        let pack = &packs[0];
        assert!(pack.fits() && pack.cluster_id == "edge");
        let entity = &pack.entities[0];
        assert_eq!((entity.kind.as_str(), entity.id.as_str(), entity.owner.as_str()), ("route", "i", "ada"));
        let count =
            |pack: &Readings, code: &str| said(pack, "http.server.request.count", "http.response.status_code", code);
        assert_eq!((count(pack, "200"), count(pack, "503")), (Some(90.0), Some(10.0)));
        let half = said(pack, "http.server.request.duration", "quantile", "0.5").unwrap();
        assert!((half / 0.1 - 1.0).abs() <= 0.01, "{half}");
        let sum = &pack.traffic[0];
        assert_eq!((sum.requests, sum.errors, sum.answers.as_slice()), (100, 10, [100].as_slice()));
        assert!((sum.seconds[0] / 0.1 - 1.0).abs() <= 0.01, "{sum:?}");
        assert!(traffic.turn("g", Timestamp::default()).is_empty(), "nothing went through");
        traffic.count(&way("i"), 200, 0.5);
        let pack = &traffic.turn("g", Timestamp::default())[0];
        let half = said(pack, "http.server.request.duration", "quantile", "0.5").unwrap();
        assert!((half / 0.5 - 1.0).abs() <= 0.01 && count(pack, "200") == Some(91.0), "{half}");
        assert_eq!((pack.traffic[0].requests, pack.traffic[0].errors), (1, 0), "each turn is counted by itself");
    }

    #[test]
    fn a_pack_holds_no_more_times_than_it_may() {
        let mut traffic = Traffic::default();
        for instance in 0..20 {
            for number in 0..1_000 {
                traffic.count(&way(&format!("i{instance}")), 200, 1.02f64.powi(number - 500));
            }
        }
        let packs = traffic.turn("g", Timestamp::default());
        let times = |pack: &Readings| pack.traffic.iter().map(|route| route.seconds.len()).sum::<usize>();
        assert!(packs.len() > 1 && packs.iter().all(|pack| pack.fits() && times(pack) <= PACK_TIMES_MAX));
        let requests = packs.iter().flat_map(|pack| &pack.traffic).map(|route| route.requests).sum::<u64>();
        assert_eq!(requests, 20_000);
    }

    #[test]
    fn what_is_not_used_is_forgotten_and_what_is_too_much_is_counted() {
        let mut traffic = Traffic::default();
        for number in 0..WAYS_MAX + 7 {
            traffic.count(&way(&format!("i{number}")), 200, 0.001);
        }
        assert_eq!((traffic.ways.len(), traffic.left_out()), (WAYS_MAX, 7));
        let pack = &traffic.turn("g", Timestamp::default())[0];
        assert!(pack.probes[0].failure.starts_with("7 requests"), "{}", pack.probes[0].failure);
        for code in 0..500 {
            traffic.count(&way("i0"), code, f64::NAN);
        }
        assert!(traffic.ways[&way("i0")].codes.len() <= CODES_MAX + 1);
        for _ in 0..=IDLE_TURNS_MAX {
            traffic.turn("g", Timestamp::default());
        }
        assert!(traffic.ways.is_empty());
    }

    proptest! {
        #[test]
        fn every_quantile_is_within_two_per_cent_of_one_by_sorting(times in prop::collection::vec(0.0005f64..20.0, 50..400)) {
            let mut traffic = Traffic::default();
            for seconds in &times {
                traffic.count(&way("i"), 200, *seconds);
            }
            let pack = &traffic.turn("g", Timestamp::default())[0];
            let mut sorted = times.clone();
            sorted.sort_by(f64::total_cmp);
            for (quantile, label) in QUANTILES {
                let seconds = said(pack, "http.server.request.duration", "quantile", label).unwrap();
                // Between two of them, either is right.
                let rank = quantile * (sorted.len() - 1) as f64;
                let (low, high) = (sorted[rank.floor() as usize], sorted[rank.ceil() as usize]);
                prop_assert!(low * 0.98 <= seconds && seconds <= high * 1.02, "{label}: {seconds}, {low} to {high}");
            }
        }
    }
}
