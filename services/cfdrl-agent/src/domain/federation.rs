//! Rounds of federated learning without a centre: each member trains by itself, shows its signed weights, and joins
//! those that came in time by the same rule.
//!
//! Nothing that arrives is trusted. An update counts if it is small enough, decodes, is signed by the key of a member,
//! names that member, this federation and this round, and has the federation's shape with finite numbers. What is wrong
//! with an update is held against a member only if its own signature is on it; what strangers send is counted and leaves
//! no other trace. Weights that are well formed and hostile are the joining rule's business ([`super::aggregate`]), and at
//! last a joined policy is adopted only if it is not worse on validation episodes than what the site has.

use std::collections::BTreeMap;

use mesh_proto::learning::{MemberOutcome, SignedUpdate, Update};
use nkeys::KeyPair;
use prost::Message as _;

use super::{
    aggregate::{self, Joined, RuleKind},
    policy::{bytes, numbers},
};

/// Encoding of weights that is written and read.
const FORMAT: u32 = 1;
/// Members of a federation at most.
pub const MEMBERS_MAX: usize = 256;

/// Who learns together, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Federation {
    /// Its name.
    pub name: String,
    /// Public keys (`U…`) by member.
    pub members: BTreeMap<String, String>,
    /// Own name.
    pub own: String,
    /// How updates are joined.
    pub rule: RuleKind,
    /// Hostile members to withstand.
    pub hostile_max: usize,
    /// Layer widths of the network learned.
    pub widths: Vec<usize>,
}

/// Why an update does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Refused {
    /// Larger than any update of this shape.
    #[error("oversized")]
    Oversized,
    /// It does not decode, has another shape, or holds a value that is not a number.
    #[error("malformed")]
    Malformed,
    /// Its key is not a member's.
    #[error("not a member")]
    NotAMember,
    /// Its signature is not its key's, or it names another member or federation than its key's.
    #[error("forged")]
    Forged,
    /// Its round is over.
    #[error("late")]
    Late,
    /// Its round is further ahead than clocks may differ.
    #[error("from the future")]
    FromTheFuture,
    /// Its member has said something else in the same round; neither counts.
    #[error("equivocated")]
    Equivocated,
    /// It claims to be from this very member.
    #[error("own name used by another")]
    Own,
}

/// One round being collected, and what has come for the next.
#[derive(Clone, Debug)]
pub struct Round {
    federation: Federation,
    number: u64,
    updates: BTreeMap<String, Vec<f32>>,
    early: BTreeMap<String, Vec<f32>>,
    /// What was wrong with members' own updates.
    faults: BTreeMap<String, Refused>,
    /// What strangers and forgers sent, by kind.
    strangers: BTreeMap<Refused, u64>,
}

/// What became of a round.
#[derive(Clone, Debug)]
pub struct Closed {
    /// Its number.
    pub number: u64,
    /// The joined weights, or why there are none.
    pub joined: Result<Joined, aggregate::Error>,
    /// What became of each member, by name; strangers at the end.
    pub members: Vec<MemberOutcome>,
}

/// A member's weights, signed.
///
/// # Errors
/// The key pair has no private half.
pub fn sign(
    federation: &Federation,
    keys: &KeyPair,
    round: u64,
    weights: &[f32],
    episodes: u32,
) -> Result<Vec<u8>, nkeys::error::Error> {
    let update = Update {
        format: FORMAT,
        federation: federation.name.clone(),
        member: federation.own.clone(),
        round,
        layers: layers(&federation.widths),
        weights: bytes(weights).into(),
        episodes,
    };
    let update = update.encode_to_vec();
    let signature = keys.sign(&update)?;
    Ok(SignedUpdate { update: update.into(), key: keys.public_key(), signature: signature.into() }.encode_to_vec())
}

fn layers(widths: &[usize]) -> Vec<u32> {
    widths.iter().map(|w| u32::try_from(*w).unwrap_or(u32::MAX)).collect()
}

impl Round {
    /// Begins to collect a round.
    pub fn new(federation: Federation, number: u64) -> Self {
        let (updates, early, faults, strangers) = Default::default();
        Self { federation, number, updates, early, faults, strangers }
    }

    /// Its number.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Members whose updates count so far.
    pub fn came(&self) -> usize {
        self.updates.len()
    }

    /// Largest update that can be right, bytes.
    pub fn bytes_max(&self) -> usize {
        super::network::size(&self.federation.widths) * 4 + 1_024
    }

    /// Own weights of the round.
    pub fn own(&mut self, weights: Vec<f32>) {
        self.updates.insert(self.federation.own.clone(), weights);
    }

    /// What another one sent. The same update again changes nothing.
    ///
    /// # Errors
    /// Why it does not count.
    pub fn offer(&mut self, body: &[u8]) -> Result<(), Refused> {
        let (member, checked) = match self.check(body) {
            Ok(checked) => checked,
            Err(refused) => {
                *self.strangers.entry(refused).or_default() += 1;
                return Err(refused);
            }
        };
        let fault = |round: &mut Self, refused: Refused| {
            round.faults.insert(member.clone(), refused);
            Err(refused)
        };
        let (number, weights) = match checked {
            Ok(checked) => checked,
            Err(refused) => return fault(self, refused),
        };
        let held = match number.checked_sub(self.number) {
            None => return fault(self, Refused::Late),
            Some(0) => &mut self.updates,
            Some(1) => &mut self.early,
            Some(_) => return fault(self, Refused::FromTheFuture),
        };
        if self.faults.get(&member) == Some(&Refused::Equivocated) {
            return Err(Refused::Equivocated);
        }
        match held.get(&member) {
            Some(before) if bytes(before) != bytes(&weights) => {
                held.remove(&member);
                fault(self, Refused::Equivocated)
            }
            Some(_) => Ok(()),
            None => {
                held.insert(member.clone(), weights);
                if self.faults.get(&member) == Some(&Refused::Late) {
                    self.faults.remove(&member);
                }
                Ok(())
            }
        }
    }

    /// Whose it is, and its round and weights or what its member did wrong; an error if no member can be held to it.
    #[allow(clippy::type_complexity)]
    fn check(&self, body: &[u8]) -> Result<(String, Result<(u64, Vec<f32>), Refused>), Refused> {
        if body.len() > self.bytes_max() {
            return Err(Refused::Oversized);
        }
        let signed = SignedUpdate::decode(body).map_err(|_| Refused::Malformed)?;
        let member = self.federation.members.iter().find(|(_, key)| **key == signed.key);
        let (member, key) = member.ok_or(Refused::NotAMember)?;
        let keys = KeyPair::from_public_key(key).map_err(|_| Refused::NotAMember)?;
        keys.verify(&signed.update, &signed.signature).map_err(|_| Refused::Forged)?;
        if *member == self.federation.own {
            return Err(Refused::Own);
        }
        let checked = || {
            let update = Update::decode(signed.update.as_ref()).map_err(|_| Refused::Malformed)?;
            if update.member != *member || update.federation != self.federation.name {
                return Err(Refused::Forged);
            }
            if update.format != FORMAT || update.layers != layers(&self.federation.widths) {
                return Err(Refused::Malformed);
            }
            let weights = numbers(&update.weights).ok_or(Refused::Malformed)?;
            let fits = weights.len() == super::network::size(&self.federation.widths);
            if !fits || !weights.iter().all(|w| w.is_finite()) {
                return Err(Refused::Malformed);
            }
            Ok((update.round, weights))
        };
        Ok((member.clone(), checked()))
    }

    /// Ends the round and begins the one with this number, later than the last.
    pub fn close(&mut self, next: u64) -> Closed {
        let names: Vec<&String> = self.updates.keys().collect();
        let updates: Vec<&[f32]> = self.updates.values().map(Vec::as_slice).collect();
        let joined = aggregate::join(self.federation.rule, &updates, self.federation.hostile_max);
        let used: Vec<&String> = match &joined {
            Ok(joined) => joined.used.iter().filter_map(|index| names.get(*index).copied()).collect(),
            Err(_) => vec![],
        };
        let outcome = |member: &String| match self.faults.get(member) {
            Some(refused) if !self.updates.contains_key(member) => refused.to_string(),
            _ if used.contains(&member) => "used".into(),
            _ if !self.updates.contains_key(member) => "missing".into(),
            _ if joined.is_ok() => "not selected".into(),
            _ => "came".into(),
        };
        let mut members: Vec<MemberOutcome> = self
            .federation
            .members
            .keys()
            .map(|member| MemberOutcome { member: member.clone(), outcome: outcome(member), detail: String::new() })
            .collect();
        members.extend(self.strangers.iter().map(|(refused, count)| MemberOutcome {
            member: String::new(),
            outcome: refused.to_string(),
            detail: format!("{count} messages of no member"),
        }));
        let number = self.number;
        let early = std::mem::take(&mut self.early);
        self.updates = if next == self.number + 1 { early } else { BTreeMap::new() };
        self.number = next.max(self.number);
        self.faults.clear();
        self.strangers.clear();
        Closed { number, joined, members }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Scenario {
        keys: Vec<KeyPair>,
        federation: Federation,
    }

    fn land(members: usize) -> Scenario {
        let keys: Vec<KeyPair> = (0..members).map(|_| KeyPair::new_user()).collect();
        let named = keys.iter().enumerate().map(|(n, k)| (format!("m{n}"), k.public_key())).collect();
        let federation = Federation {
            name: "f".into(),
            members: named,
            own: "m0".into(),
            rule: RuleKind::Median,
            hostile_max: 1,
            widths: vec![2, 1],
        };
        Scenario { keys, federation }
    }

    impl Scenario {
        fn signed(&self, member: usize, round: u64, weights: &[f32]) -> Vec<u8> {
            let federation = Federation { own: format!("m{member}"), ..self.federation.clone() };
            sign(&federation, &self.keys[member], round, weights, 1).unwrap()
        }
    }

    fn outcomes(closed: &Closed) -> Vec<(&str, &str)> {
        closed.members.iter().map(|m| (m.member.as_str(), m.outcome.as_str())).collect()
    }

    #[test]
    fn a_round_joins_what_came_in_time_and_says_what_became_of_each() {
        let land = land(6);
        let mut round = Round::new(land.federation.clone(), 7);
        round.own(vec![1.0, 1.0, 1.0]);
        assert_eq!(round.offer(&land.signed(1, 7, &[2.0, 2.0, 2.0])), Ok(()));
        assert_eq!(round.offer(&land.signed(1, 7, &[2.0, 2.0, 2.0])), Ok(()), "again is the same");
        assert_eq!(round.offer(&land.signed(2, 7, &[3.0, 3.0, 3.0])), Ok(()));
        assert_eq!(round.offer(&land.signed(3, 6, &[9.0, 9.0, 9.0])), Err(Refused::Late));
        assert_eq!(round.offer(&land.signed(4, 8, &[5.0, 5.0, 5.0])), Ok(()), "a clock that is ahead");
        assert_eq!(round.offer(&land.signed(4, 9, &[5.0, 5.0, 5.0])), Err(Refused::FromTheFuture));
        let closed = round.close(8);
        assert_eq!(closed.joined.as_ref().unwrap().weights, [2.0; 3]);
        assert_eq!(
            outcomes(&closed),
            [
                ("m0", "used"),
                ("m1", "used"),
                ("m2", "used"),
                ("m3", "late"),
                ("m4", "from the future"),
                ("m5", "missing")
            ]
        );
        assert_eq!((round.number(), round.came()), (8, 1), "what came early counts in its round");
    }

    #[test]
    fn two_stories_in_one_round_are_none() {
        let land = land(3);
        let mut round = Round::new(land.federation.clone(), 1);
        assert_eq!(round.offer(&land.signed(1, 1, &[1.0; 3])), Ok(()));
        assert_eq!(round.offer(&land.signed(1, 1, &[2.0; 3])), Err(Refused::Equivocated));
        assert_eq!(round.offer(&land.signed(1, 1, &[1.0; 3])), Err(Refused::Equivocated));
        let closed = round.close(2);
        assert!(matches!(closed.joined, Err(aggregate::Error::TooFew { came: 0, .. })));
        assert_eq!(outcomes(&closed)[1], ("m1", "equivocated"));
    }

    #[test]
    fn nobody_is_blamed_for_what_others_forge() {
        let land = land(3);
        let mut round = Round::new(land.federation.clone(), 1);
        let good = land.signed(1, 1, &[1.0; 3]);
        assert_eq!(round.offer(&good), Ok(()));
        // Another signature under the member's key.
        let mut forged = SignedUpdate::decode(good.as_slice()).unwrap();
        forged.signature = vec![7; 64].into();
        assert_eq!(round.offer(&forged.encode_to_vec()), Err(Refused::Forged));
        // A key of nobody.
        let mut stranger = land.federation.clone();
        stranger.own = "m1".into();
        let said = sign(&stranger, &KeyPair::new_user(), 1, &[8.0; 3], 1).unwrap();
        assert_eq!(round.offer(&said), Err(Refused::NotAMember));
        // A member under another's name is at fault itself.
        let said = sign(&stranger, &land.keys[2], 1, &[8.0; 3], 1).unwrap();
        assert_eq!(round.offer(&said), Err(Refused::Forged));
        // Somebody replays what this very member said.
        assert_eq!(round.offer(&land.signed(0, 1, &[1.0; 3])), Err(Refused::Own));
        assert_eq!(round.came(), 1);
        let closed = round.close(2);
        assert_eq!(outcomes(&closed)[2], ("m2", "forged"));
        assert_eq!(closed.members.iter().filter(|m| m.member.is_empty()).count(), 3);
    }

    #[test]
    fn misshapen_not_finite_and_oversized_updates_do_not_count() {
        let land = land(2);
        let mut round = Round::new(land.federation.clone(), 1);
        assert_eq!(round.offer(&land.signed(1, 1, &[1.0; 4])), Err(Refused::Malformed));
        assert_eq!(round.offer(&land.signed(1, 1, &[f32::NAN, 0.0, 0.0])), Err(Refused::Malformed));
        assert_eq!(round.offer(&land.signed(1, 1, &vec![0.0; 100_000])), Err(Refused::Oversized));
        assert_eq!(outcomes(&round.close(2))[1], ("m1", "malformed"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_round_panic_or_grow(bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..20)) {
            let land = land(2);
            let mut round = Round::new(land.federation.clone(), 1);
            for body in &bodies {
                prop_assert!(round.offer(body).is_err());
            }
            prop_assert!(round.strangers.len() <= 8 && round.came() == 0);
        }

        /// A bit turned anywhere in a signed update is found, or it changes nothing that counts.
        #[test]
        fn a_turned_bit_is_found(position in 0usize..10_000, bit in 0u8..8) {
            let land = land(2);
            let mut said = land.signed(1, 1, &[1.0, 2.0, 3.0]);
            let at = position % said.len();
            said[at] ^= 1 << bit;
            let mut round = Round::new(land.federation.clone(), 1);
            if round.offer(&said).is_ok() {
                prop_assert_eq!(round.updates.get("m1").map(Vec::as_slice), Some(&[1.0f32, 2.0, 3.0][..]));
            }
        }
    }
}
