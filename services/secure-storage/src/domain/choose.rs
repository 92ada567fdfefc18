//! Chooses the locations and the redundancy of a policy from its goals: filter, score, choose. Every candidate carries
//! its reason.
//!
//! Each location gets a score, lower is better, of four terms weighted by the goals:
//!
//! - cost: price of a GB-month and of a GB read, over the dearest candidate's (an unknown price counts as the mean);
//! - read and write time: distance in km over 20,000, half the circumference of the earth, as a stand-in for time
//!   (round trips are measured, but not used here); the write time again, weighted by volatility;
//! - availability: its declared share of time unavailable, and its declared errors of the last 12 months (100 weigh as much as 1 %).
//!
//! Then every n within bounds is weighed with every r: the n best by score, the stored share n/k for the cost, and the
//! probability that more than r of them are unavailable at once (independent by assumption; Poisson binomial) for the
//! risk. Locations of one provider and place count as one risk: at most r of them are taken.

use std::collections::BTreeMap;

use mesh_proto::{
    Refusal,
    storage::{Candidate, Goals, Location, Term},
};

use crate::blob::code::SHARDS_MAX;

/// What was chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// Names of the edge locations.
    pub edge: Vec<String>,
    /// Names of the cloud locations.
    pub cloud: Vec<String>,
    /// Redundant fragments.
    pub redundant: u32,
    /// Every location, best first, then those ruled out.
    pub candidates: Vec<Candidate>,
    /// Why these.
    pub reason: String,
}

/// Redundant fragments at most (as in the specification's portal).
const REDUNDANT_MAX: usize = 5;

struct Scored<'a> {
    name: &'a str,
    location: &'a Location,
    score: f64,
    terms: Vec<Term>,
}

/// Chooses among an owner's locations.
///
/// # Errors
/// When the goals are not numbers from 0 to 1, or too few locations meet them.
pub fn choose(goals: &Goals, locations: &BTreeMap<String, Location>) -> Result<Choice, Refusal> {
    check(goals)?;
    let (mut scored, mut ruled_out): (Vec<Scored<'_>>, Vec<Candidate>) = (vec![], vec![]);
    let min = if goals.locations_min == 0 { 3 } else { goals.locations_min as usize };
    let max = if goals.locations_max == 0 { 8 } else { goals.locations_max as usize }.min(SHARDS_MAX);
    let admitted: Vec<(&String, &Location)> = locations
        .iter()
        .filter(|(name, location)| match rule_out(goals, location, min) {
            Some(why) => {
                let name = (*name).clone();
                ruled_out.push(Candidate { location: name, ruled_out: why, ..Candidate::default() });
                false
            }
            None => true,
        })
        .collect();
    let price = |l: &Location| {
        l.storage_price.map(|p| p + l.download_price.unwrap_or_default() + l.upload_price.unwrap_or_default())
    };
    let known: Vec<f64> = admitted.iter().filter_map(|(_, l)| price(l)).collect();
    let mean = if known.is_empty() { 0.0 } else { known.iter().sum::<f64>() / known.len() as f64 };
    let dearest = known.iter().copied().fold(0.0, f64::max);
    for (name, location) in &admitted {
        let cost = price(location).unwrap_or(mean);
        let km = distance_km((goals.lat, goals.lng), (location.lat, location.lng));
        let away = unavailability(location);
        let errors = location.upload_errors_in_last_12_months + location.download_errors_in_last_12_months;
        let share = if dearest > 0.0 { cost / dearest } else { 0.0 };
        let terms = vec![
            Term { name: "price_per_gb".into(), value: cost, score: goals.cost * share },
            Term { name: "read_km".into(), value: km, score: goals.latency * km / 20_000.0 },
            Term { name: "write_km".into(), value: km, score: goals.volatility * km / 20_000.0 },
            Term {
                name: "away_share".into(),
                value: away,
                score: goals.availability * 10.0 * (away + f64::from(errors) / 10_000.0).min(1.0),
            },
        ];
        let score = terms.iter().map(|t| t.score).sum();
        scored.push(Scored { name, location, score, terms });
    }
    scored.sort_by(|a, b| a.score.total_cmp(&b.score).then_with(|| a.name.cmp(b.name)));
    if scored.len() < min || min > max {
        let why = ruled_out.iter().map(|c| format!("{}: {}", c.location, c.ruled_out)).collect::<Vec<_>>();
        let found = if why.is_empty() { String::new() } else { format!(" ({})", why.join("; ")) };
        return Err(Refusal::unsupported(
            format!("only {} of at least {min} locations meet the goals{found}", scored.len()),
            "register more locations, or relax the goals",
        ));
    }
    let best = (min..=max.min(scored.len()))
        .flat_map(|n| (0..=REDUNDANT_MAX.min(n - 1)).map(move |r| (n, r)))
        .filter_map(|(n, r)| weigh(goals, &scored, n, r))
        .min_by(|a, b| a.value.total_cmp(&b.value));
    let Some(best) = best else {
        return Err(Refusal::unsupported(
            "too many locations share one provider and place",
            "register locations with other providers or in other places",
        ));
    };
    let of = |kind: &str| {
        let taken = best.taken.iter().map(|&i| &scored[i]);
        taken.filter(|s| s.location.kind == kind).map(|s| s.name.to_owned()).collect::<Vec<_>>()
    };
    let (edge, cloud) = (of("edge"), of("cloud"));
    let (n, r) = (best.taken.len(), best.redundant);
    let reason = format!(
        "{n} locations with {r} redundant: {:.0} % of the size stored, unreadable with probability {:.1e}; \
         nearness is distance on the map, and no round trip was measured for it",
        100.0 * n as f64 / (n - r) as f64,
        best.unreadable
    );
    let candidates = scored
        .iter()
        .enumerate()
        .map(|(index, s)| Candidate {
            location: s.name.to_owned(),
            chosen: best.taken.contains(&index),
            ruled_out: String::new(),
            score: s.score,
            terms: s.terms.clone(),
        })
        .chain(ruled_out)
        .collect();
    Ok(Choice { edge, cloud, redundant: r as u32, candidates, reason })
}

fn check(goals: &Goals) -> Result<(), Refusal> {
    let weights = [goals.cost, goals.volatility, goals.availability, goals.latency];
    let placed = goals.lat.abs() <= 90.0 && goals.lng.abs() <= 180.0;
    if !placed || weights.iter().any(|w| !(0.0..=1.0).contains(w)) {
        return Err(Refusal::invalid(
            "a weight or a coordinate of the goals is out of bounds",
            "use weights from 0 to 1, lat from -90 to 90, lng from -180 to 180",
        ));
    }
    Ok(())
}

fn rule_out(goals: &Goals, location: &Location, min: usize) -> Option<String> {
    if goals.gdpr_only && !location.is_gdpr {
        return Some("does not comply with the GDPR".into());
    }
    if !goals.countrycodes.is_empty() && !goals.countrycodes.contains(&location.countrycode) {
        return Some(format!("is in country {:?}, not in {}", location.countrycode, goals.countrycodes.join(", ")));
    }
    // With n locations and r redundant each holds 1/(n - r); at most all, at least a share of the fewest.
    let share = goals.data_size / min.max(1) as u64;
    if location.capacity_bytes > 0 && location.capacity_bytes < share {
        return Some(format!("holds {} bytes, less than its share of {share}", location.capacity_bytes));
    }
    None
}

fn unavailability(location: &Location) -> f64 {
    if location.unavailability > 0.0 { location.unavailability } else { 0.01 }
}

struct Weighed {
    value: f64,
    taken: Vec<usize>,
    redundant: usize,
    unreadable: f64,
}

/// The n best with r redundant; `None` if that takes too many of one place.
fn weigh(goals: &Goals, scored: &[Scored<'_>], n: usize, redundant: usize) -> Option<Weighed> {
    let mut of_place: BTreeMap<(&str, &str, &str), usize> = BTreeMap::new();
    let mut taken = vec![];
    for (index, s) in scored.iter().enumerate() {
        let l = s.location;
        let place = (l.cloud_provider_name.as_str(), l.location.as_str(), l.node.as_str());
        let known = place != ("", "", "");
        let count = of_place.entry(place).or_default();
        if known && redundant > 0 && *count >= redundant {
            continue;
        }
        *count += 1;
        taken.push(index);
        if taken.len() == n {
            break;
        }
    }
    if taken.len() < n {
        return None;
    }
    // Probability by the number that is unavailable at once.
    let mut away = vec![1.0];
    for &index in &taken {
        let p = unavailability(scored[index].location);
        let mut next = vec![0.0; away.len() + 1];
        for (count, probability) in away.iter().enumerate() {
            next[count] += probability * (1.0 - p);
            next[count + 1] += probability * p;
        }
        away = next;
    }
    let unreadable: f64 = away[redundant + 1..].iter().sum();
    let scores = taken.iter().map(|&i| scored[i].score).sum::<f64>() / n as f64;
    let stored = n as f64 / (n - redundant) as f64;
    // Ten times less risk is worth an eighth of the size more at full weights; below 1e-9 nothing is gained.
    let risk = (unreadable.max(1e-9).log10() + 9.0) / 8.0;
    let value = scores + goals.cost.max(0.05) * stored + (0.1 + goals.availability) * risk + 0.01 * n as f64;
    Some(Weighed { value, taken, redundant, unreadable })
}

/// Great-circle distance of two places in degrees.
fn distance_km(from: (f64, f64), to: (f64, f64)) -> f64 {
    let (lat1, lat2) = (from.0.to_radians(), to.0.to_radians());
    let (dlat, dlng) = (lat2 - lat1, (to.1 - from.1).to_radians());
    let h = (dlat / 2.0).sin().powi(2) + lat1.cos() * lat2.cos() * (dlng / 2.0).sin().powi(2);
    6_371.0 * 2.0 * h.sqrt().min(1.0).asin()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn world() -> BTreeMap<String, Location> {
        let place = |kind: &str, lat, lng, price: Option<f64>, gdpr, unavailability| Location {
            kind: kind.into(),
            lat,
            lng,
            storage_price: price,
            is_gdpr: gdpr,
            unavailability,
            ..Location::default()
        };
        [
            ("edge-1", place("edge", 45.75, 21.23, Some(1.0), true, 0.05)),
            ("edge-2", place("edge", 45.76, 21.24, Some(1.0), true, 0.05)),
            ("edge-3", place("edge", 45.77, 21.25, Some(1.0), true, 0.05)),
            ("frankfurt", place("cloud", 50.11, 8.68, Some(20.0), true, 0.001)),
            ("vienna", place("cloud", 48.21, 16.37, None, true, 0.001)),
            ("iowa", place("cloud", 41.88, -93.10, Some(10.0), false, 0.001)),
            ("virginia", place("cloud", 37.43, -78.66, Some(21.0), false, 0.001)),
        ]
        .map(|(name, location)| (name.to_owned(), location))
        .into()
    }

    fn goals() -> Goals {
        Goals { lat: 45.7472357, lng: 21.2316107, ..Goals::default() }
    }

    fn names(choice: &Choice) -> Vec<String> {
        choice.edge.iter().chain(&choice.cloud).cloned().collect()
    }

    #[test]
    fn low_latency_chooses_the_edge_and_availability_more_redundancy() {
        let near = choose(&Goals { latency: 1.0, locations_max: 3, ..goals() }, &world()).unwrap();
        assert_eq!(names(&near), ["edge-1", "edge-2", "edge-3"]);
        let safe = choose(&Goals { availability: 1.0, ..goals() }, &world()).unwrap();
        let cheap = choose(&Goals { cost: 1.0, ..goals() }, &world()).unwrap();
        let overhead = |c: &Choice| names(c).len() as f64 / (names(c).len() as f64 - f64::from(c.redundant));
        assert!(safe.redundant >= 2 && overhead(&safe) > overhead(&cheap), "{safe:?} {cheap:?}");
        assert!(names(&safe).iter().filter(|n| !n.starts_with("edge")).count() >= 3);
    }

    #[test]
    fn every_location_is_accounted_for_with_a_reason() {
        let choice = choose(&Goals { gdpr_only: true, latency: 0.5, cost: 0.5, ..goals() }, &world()).unwrap();
        assert_eq!(choice.candidates.len(), world().len());
        for candidate in &choice.candidates {
            let out = ["iowa", "virginia"].contains(&&*candidate.location);
            assert_eq!(candidate.ruled_out.is_empty(), !out);
            assert!(out || candidate.terms.len() == 4);
            assert_eq!(candidate.chosen, names(&choice).contains(&candidate.location));
        }
        let few = choose(&Goals { countrycodes: vec!["AT".into()], ..goals() }, &world()).unwrap_err();
        assert!(few.code == mesh_proto::RefusalCode::Unsupported && !few.hint.is_empty(), "{few:?}");
        assert!(choose(&Goals { cost: f64::NAN, ..goals() }, &world()).is_err());
    }

    #[test]
    fn no_more_locations_of_one_node_are_taken_than_may_be_lost() {
        let mut world = world();
        for edge in ["edge-1", "edge-2", "edge-3"] {
            world.get_mut(edge).unwrap().node = "worker-02".into();
        }
        let choice = choose(&Goals { latency: 1.0, availability: 0.3, ..goals() }, &world).unwrap();
        assert!(choice.redundant == 0 || choice.edge.len() <= choice.redundant as usize, "{choice:?}");
    }

    proptest! {
        /// Whatever the goals: the order in which locations are known does not matter, bounds are kept, and no ruled
        /// out location is taken.
        #[test]
        fn a_choice_keeps_its_bounds(cost in 0.0..1.0, latency in 0.0..1.0, availability in 0.0..1.0, min in 1u32..5, max in 5u32..9) {
            let goals = Goals { cost, latency, availability, locations_min: min, locations_max: max, ..goals() };
            let choice = choose(&goals, &world()).unwrap();
            let count = names(&choice).len() as u32;
            prop_assert!((min..=max).contains(&count) && choice.redundant < count);
            prop_assert_eq!(&choice, &choose(&goals, &world()).unwrap());
        }
    }
}
