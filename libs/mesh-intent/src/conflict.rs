//! Which intents cannot both be met, and which of them gives way.
//!
//! Two intents conflict if they bound the same target of the same instance and no value meets both. Of all that
//! contend for an instance the highest priority is met first, at equal priority one with preemption capability before
//! one without, then the one that came into force first. Each next one is met if its bounds leave some value together with
//! all that are met already; otherwise it gives way as a whole. What is met does not depend on the order in which intents
//! are looked at.

use std::collections::{BTreeMap, BTreeSet};

use mesh_proto::{derived_id, intent::IntentConflict};

use crate::{Bound, Set, types};

/// One bounded target of one instance.
#[derive(Clone, Debug, PartialEq)]
pub struct Claim {
    /// Instance that it is about.
    pub instance_id: String,
    /// Expectation that it belongs to.
    pub expectation_id: String,
    /// Name of the target.
    pub target_name: String,
    /// What is asked of it.
    pub bound: Bound,
}

/// One intent in force that is not suspended by command.
#[derive(Clone, Debug, PartialEq)]
pub struct Contender {
    /// Its id.
    pub intent_id: String,
    /// 1 to 100; the higher is met first.
    pub priority: u32,
    /// May it preempt others of its priority?
    pub preempts: bool,
    /// Rises with each intent that comes into force.
    pub since: u64,
    /// What it asks for.
    pub claims: Vec<Claim>,
}

/// By intent: its conflicts, won and lost. Intents without any are left out.
pub type Conflicts = BTreeMap<String, Vec<IntentConflict>>;

/// Conflicts that one intent is told of at most.
pub const CONFLICTS_MAX: usize = 32;

/// Who is in conflict with whom among the intents of one owner.
pub fn resolve<'a>(contenders: impl IntoIterator<Item = &'a Contender>) -> Conflicts {
    let mut order: Vec<&Contender> = contenders.into_iter().collect();
    order.sort_by(|a, b| {
        let of = |c: &Contender| (std::cmp::Reverse(c.priority), !c.preempts, c.since);
        of(a).cmp(&of(b)).then_with(|| a.intent_id.cmp(&b.intent_id))
    });
    // What is left of each target for the next, and who took part in it.
    let mut left: BTreeMap<(&str, &str), Set> = BTreeMap::new();
    let mut met: Vec<&Contender> = vec![];
    let mut found = Conflicts::new();
    for next in order {
        let free = |claim: &Claim| {
            let key = (claim.instance_id.as_str(), claim.target_name.as_str());
            left.get(&key).is_none_or(|set| !set.and(&claim.bound.set()).is_empty())
        };
        let lost: Vec<&Claim> = next.claims.iter().filter(|claim| !free(claim)).collect();
        if lost.is_empty() {
            for claim in &next.claims {
                let set = left.entry((&claim.instance_id, &claim.target_name)).or_insert_with(Set::all);
                *set = set.and(&claim.bound.set());
            }
            met.push(next);
            continue;
        }
        let mut told = BTreeSet::new();
        for claim in lost {
            for (winner, against) in against(claim, &met) {
                if told.len() >= CONFLICTS_MAX || !told.insert((&claim.target_name, &winner.intent_id)) {
                    continue;
                }
                let (loses, wins) = tell(next, claim, winner, against);
                found.entry(next.intent_id.clone()).or_default().push(loses);
                let list = found.entry(winner.intent_id.clone()).or_default();
                if list.len() < CONFLICTS_MAX {
                    list.push(wins);
                }
            }
        }
    }
    found
        .values_mut()
        .for_each(|list| list.sort_by(|a, b| (!a.loses, &a.conflict_id).cmp(&(!b.loses, &b.conflict_id))));
    found
}

/// Whom a claim cannot be met together with: those who alone rule it out, or else all who bound the same target.
fn against<'a>(claim: &Claim, met: &[&'a Contender]) -> Vec<(&'a Contender, &'a Claim)> {
    let same = |other: &&Claim| other.instance_id == claim.instance_id && other.target_name == claim.target_name;
    let all = || met.iter().flat_map(|m| m.claims.iter().filter(same).map(|c| (*m, c)));
    let alone: Vec<_> = all().filter(|(_, other)| other.bound.set().and(&claim.bound.set()).is_empty()).collect();
    if alone.is_empty() { all().collect() } else { alone }
}

fn tell(loser: &Contender, lost: &Claim, winner: &Contender, won: &Claim) -> (IntentConflict, IntentConflict) {
    let mut pair = [loser.intent_id.as_str(), winner.intent_id.as_str()];
    pair.sort_unstable();
    let conflict_id = derived_id(&["conflict", pair[0], pair[1], &lost.instance_id, &lost.target_name]);
    let unit = types::target_of(&lost.target_name).map_or("", |t| t.sign);
    let rank = match (winner.priority.cmp(&loser.priority), winner.preempts && !loser.preempts) {
        (std::cmp::Ordering::Greater, _) => format!("its priority {} is above {}", winner.priority, loser.priority),
        (_, true) => format!("both have priority {}, and it may preempt", winner.priority),
        _ => format!("both have priority {}, and it came first", winner.priority),
    };
    let one = |mine: &Claim, other: &Contender, theirs: &Claim, loses: bool| IntentConflict {
        conflict_id: conflict_id.clone(),
        conflict_type: "TARGET_CONFLICT".into(),
        conflicting_intent: other.intent_id.clone(),
        conflicting_expectation: theirs.expectation_id.clone(),
        conflicting_target: theirs.target_name.clone(),
        expectation_id: mine.expectation_id.clone(),
        target_name: mine.target_name.clone(),
        instance_id: mine.instance_id.clone(),
        loses,
        reason: String::new(),
        hint: String::new(),
    };
    let loses = IntentConflict {
        reason: format!(
            "{} cannot be {} while intent {} wants it {}: {rank}",
            lost.target_name,
            lost.bound.words(unit),
            winner.intent_id,
            won.bound.words(unit),
        ),
        hint: format!(
            "terminate {}, or terminate this one and update it with bounds that leave a value or a priority above {}",
            winner.intent_id, winner.priority
        ),
        ..one(lost, winner, won, true)
    };
    let wins = IntentConflict {
        reason: format!(
            "intent {} wants {} {}, and gives way: {rank}",
            loser.intent_id,
            lost.target_name,
            lost.bound.words(unit)
        ),
        ..one(won, loser, lost, false)
    };
    (loses, wins)
}

/// Does this intent give way?
pub fn loses(conflicts: &[IntentConflict]) -> bool {
    conflicts.iter().any(|conflict| conflict.loses)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn contender(id: &str, priority: u32, since: u64, claims: &[(&str, &str)]) -> Contender {
        let claims = claims.iter().map(|(condition, text)| Claim {
            instance_id: "i".into(),
            expectation_id: "1".into(),
            target_name: "cpuUsage".into(),
            bound: Bound::parse(condition, text).unwrap(),
        });
        Contender { intent_id: id.into(), priority, preempts: false, since, claims: claims.collect() }
    }

    fn losers(contenders: &[Contender]) -> Vec<String> {
        let found = resolve(contenders);
        found.iter().filter(|(_, list)| loses(list)).map(|(id, _)| id.clone()).collect()
    }

    #[test]
    fn bounds_that_some_value_meets_are_no_conflict() {
        let low = contender("low", 1, 1, &[("IS_LESS_THAN", "20")]);
        let mid = contender("mid", 1, 2, &[("IS_GREATER_THAN", "10")]);
        let range = contender("range", 1, 3, &[("IS_WITHIN_RANGE", "[5, 12]")]);
        assert_eq!(resolve([&low, &mid, &range]), Conflicts::new());
        let outside = contender("outside", 9, 4, &[("IS_OUTSIDE_RANGE", "[11, 30]")]);
        // Each two leave a value; above 10 and at most 12 and below 11 is still some.
        assert_eq!(resolve([&low, &mid, &range, &outside]), Conflicts::new());
    }

    #[test]
    fn the_lower_priority_gives_way_with_both_named_and_told_why() {
        let low = contender("low", 1, 1, &[("IS_LESS_THAN", "20")]);
        let high = contender("high", 5, 2, &[("IS_GREATER_THAN", "30")]);
        let found = resolve([&low, &high]);
        let [lost] = found["low"].as_slice() else { panic!("{found:?}") };
        assert!(lost.loses && lost.conflicting_intent == "high" && lost.conflicting_target == "cpuUsage");
        assert_eq!(
            lost.reason,
            "cpuUsage cannot be less than 20 % while intent high wants it greater than 30 %: its priority 5 is above 1"
        );
        let [won] = found["high"].as_slice() else { panic!("{found:?}") };
        assert!(!won.loses && won.conflicting_intent == "low" && won.conflict_id == lost.conflict_id);
    }

    #[test]
    fn at_equal_priority_preemption_decides_and_then_who_came_first() {
        let first = contender("first", 3, 1, &[("IS_LESS_THAN", "20")]);
        let second = contender("second", 3, 2, &[("IS_GREATER_THAN", "30")]);
        assert_eq!(losers(&[second.clone(), first.clone()]), ["second"]);
        let second = Contender { preempts: true, ..second };
        assert_eq!(losers(&[second, first]), ["first"]);
    }

    #[test]
    fn three_that_only_conflict_together_leave_the_last_out() {
        let a = contender("a", 3, 1, &[("IS_ONE_OF", "[1, 2]")]);
        let b = contender("b", 2, 2, &[("IS_ONE_OF", "[2, 3]")]);
        let c = contender("c", 1, 3, &[("IS_ONE_OF", "[1, 3]")]);
        assert_eq!(losers(&[c, a, b]), ["c"]);
    }

    #[test]
    fn an_intent_that_gives_way_conflicts_with_none() {
        let high = contender("high", 9, 1, &[("IS_GREATER_THAN", "50")]);
        let mid = contender("mid", 5, 2, &[("IS_LESS_THAN", "10")]);
        let low = contender("low", 1, 3, &[("IS_GREATER_THAN", "40")]);
        assert_eq!(losers(&[high, mid, low]), ["mid"]);
    }

    fn contenders() -> impl Strategy<Value = Vec<Contender>> {
        let claim = (0..3usize, 0..12i32, 0..12i32).prop_map(|(kind, a, b)| match kind {
            0 => ("IS_LESS_THAN", a.to_string()),
            1 => ("IS_GREATER_THAN", a.to_string()),
            _ => ("IS_WITHIN_RANGE", format!("[{}, {}]", a.min(b), a.max(b))),
        });
        prop::collection::vec((1u32..4, any::<bool>(), prop::collection::vec(claim, 1..3)), 0..6).prop_map(|list| {
            list.into_iter()
                .enumerate()
                .map(|(i, (priority, preempts, claims))| {
                    let claims: Vec<(&str, &str)> = claims.iter().map(|(c, t)| (*c, t.as_str())).collect();
                    Contender { preempts, ..contender(&format!("i{i}"), priority, i as u64, &claims[..1]) }
                })
                .collect()
        })
    }

    proptest! {
        /// All that are met can be met at once; each that gives way could not be added, and the order of asking is nothing.
        #[test]
        fn what_is_met_can_be_met_and_nothing_gives_way_in_vain(list in contenders()) {
            let lost = losers(&list);
            let mut turned = list.clone();
            turned.reverse();
            prop_assert_eq!(&losers(&turned), &lost);
            let met: Vec<&Contender> = list.iter().filter(|c| !lost.contains(&c.intent_id)).collect();
            let all = met.iter().flat_map(|c| &c.claims).fold(Set::all(), |set, c| set.and(&c.bound.set()));
            prop_assert!(!all.is_empty());
            for loser in list.iter().filter(|c| lost.contains(&c.intent_id)) {
                let with = loser.claims.iter().fold(all.clone(), |set, c| set.and(&c.bound.set()));
                prop_assert!(with.is_empty(), "{} gives way in vain", loser.intent_id);
                let above = |c: &&&Contender| c.priority >= loser.priority;
                let stronger = met.iter().filter(above).flat_map(|c| &c.claims);
                let with = stronger.chain(&loser.claims).fold(Set::all(), |set, c| set.and(&c.bound.set()));
                prop_assert!(with.is_empty(), "{} gave way to a lower priority", loser.intent_id);
            }
        }
    }
}
