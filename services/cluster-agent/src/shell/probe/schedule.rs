//! Who probes whom in which slot of time, without collisions.
//!
//! A round-robin tournament (the circle method): with `n` members, `n - 1` slots (`n` if `n` is odd) let everybody meet
//! everybody, each member in one pair at most per slot. In the next turn of the circle the other one of each pair asks,
//! so that every ordered pair is probed once in two turns. All members compute the same from the same list and time; no
//! message is needed. While members do not yet agree on the list, pairs may overlap; that costs accuracy, not safety.

/// The slot of a time.
pub fn slot_of(now_ms: i64, slot_ms: u64) -> u64 {
    u64::try_from(now_ms).unwrap_or(0) / slot_ms.max(1)
}

/// The pairs of a slot, by position in the sorted list: who asks, then who answers.
pub fn pairs(members: usize, slot: u64) -> Vec<(usize, usize)> {
    if members < 2 {
        return vec![];
    }
    // With an odd number, one seat is empty: who meets it rests.
    let seats = members + members % 2;
    let ring = seats - 1;
    let round = usize::try_from(slot % ring as u64).unwrap_or(0);
    let turned = (slot / ring as u64) % 2 == 1;
    let mut found = Vec::with_capacity(seats / 2);
    for k in 0..seats / 2 {
        let one = (round + k) % ring;
        let other = if k == 0 { ring } else { (round + ring - k) % ring };
        if one < members && other < members {
            let (low, high) = (one.min(other), one.max(other));
            found.push(if turned { (high, low) } else { (low, high) });
        }
    }
    found
}

/// Whom a member asks in a slot, if anybody.
pub fn asks(members: usize, own: usize, slot: u64) -> Option<usize> {
    pairs(members, slot).into_iter().find(|(asker, _)| *asker == own).map(|(_, peer)| peer)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn two_rounds_pair_everyone_once_and_never_twice_at_a_time(members in 0usize..40, start in 0u64..1_000) {
            let ring = (members + members % 2).max(2) as u64 - 1;
            let mut asked = BTreeSet::new();
            let start = start * ring * 2;
            for slot in start..start + ring * 2 {
                let mut busy = BTreeSet::new();
                for (asker, peer) in pairs(members, slot) {
                    prop_assert!(asker != peer && asker < members && peer < members);
                    prop_assert!(busy.insert(asker) && busy.insert(peer));
                    prop_assert!(asked.insert((asker, peer)));
                    prop_assert_eq!(asks(members, asker, slot), Some(peer));
                }
            }
            prop_assert_eq!(asked.len(), members * members.saturating_sub(1));
        }
    }

    #[test]
    fn a_slot_is_the_same_for_all_clocks_that_agree() {
        assert_eq!((slot_of(999, 1_000), slot_of(1_000, 1_000), slot_of(-5, 1_000), slot_of(5, 0)), (0, 1, 0, 5));
    }
}
