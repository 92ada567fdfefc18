//! Several collectors share the clusters: what comes of a cluster is taken in by one of them.
//!
//! # Who takes what
//!
//! Each collector shows that it lives by a token that names the time from which it takes part. The token is seen by all well
//! before that time, so all compute the same owner of a cluster at a time: among those that take part by then, the one
//! with the highest score for the cluster (rendezvous hashing). One that joins takes over its share, about one part in
//! as many as there are, and nothing else changes hands; one that ends leaves its clusters to the others evenly.
//!
//! # Handover
//!
//! A message belongs to the owner at the time that it states. So at a join, what was measured before goes to the one, what
//! was measured after to the other, whichever arrives first. One that ends says no time: what comes after it was missed belongs
//! to the others, and what came while it was not missed yet is in their hands, for they hold for some seconds what is
//! not theirs. They look through that once all that it had stored has reached them, and take in what it had not.
//!
//! # What the others know
//!
//! What one has stored the others read from the stream, so that each answers for all clusters, and goes on where another
//! ended: periods, windows of usage and conditions are folded by all and published by the owner.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use bytes::Bytes;
use mesh_proto::{Timestamp, derived_id, telemetry::Readings};

/// How long before it takes part a collector shows its token, milliseconds.
pub(crate) const LEAD_MS: i64 = 2_000;
/// How long what is another's is held, milliseconds: longer than it takes to miss one that stopped without a word.
const HOLD_MS: i64 = 15_000;
/// Bytes that are held at most; past it the oldest are let go.
const HOLD_BYTES_MAX: usize = 16 << 20;
/// How long after one is missed what is held is looked through, milliseconds: by then what it had stored is known.
const SETTLE_MS: i64 = 2_000;
/// How far the times that messages state may be from the present, milliseconds.
const BOUNDARY_MS: i64 = 10_000;
/// Ids and packs that are remembered.
const REMEMBERED_MAX: usize = 10_000;
/// Collectors that are known at most.
const MEMBERS_MAX: usize = 64;

/// The key under which the collectors agree on who writes to a database that they share.
const WRITER: &str = "continuum.writer";

/// Collectors, and the time from which each takes part.
pub(crate) type Members = BTreeMap<String, Timestamp>;

/// Whose a cluster is at a time: of those that take part by then, or else of the one that does first. `None` if there is
/// none at all.
pub(crate) fn owner_of<'a>(members: &'a Members, cluster_id: &str, at: Timestamp) -> Option<&'a str> {
    let score = |process: &String| derived_id(&["share", process, cluster_id]);
    let active = members.iter().filter(|(_, from)| **from <= at).map(|(process, _)| process);
    let first = || members.iter().min_by_key(|(process, from)| (**from, process.as_str())).map(|(process, _)| process);
    active.max_by_key(|process| (score(process), process.as_str())).or_else(first).map(String::as_str)
}

/// Who writes to a database that all share.
pub(crate) fn writer_of(members: &Members, at: Timestamp) -> Option<&str> {
    owner_of(members, WRITER, at)
}

/// How a message came to a collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Over Zenoh: all collectors have it.
    Samples,
    /// Over gRPC: this one alone has it.
    Ingested,
    /// From the stream.
    Stored,
    /// Who takes part.
    Members,
}

impl Way {
    /// First token of the keys of what came over gRPC.
    pub(crate) const INGESTED: &str = "ingested";
    /// First token of the keys of what came from the stream; its second is the id that it was stored under.
    pub(crate) const STORED: &str = "stored";
    /// The key of who takes part.
    pub(crate) const MEMBERS: &str = "members";

    /// By the key. Keys on Zenoh begin otherwise.
    pub(crate) fn of(key: &str) -> Self {
        match key.split('/').next() {
            Some(Self::INGESTED) => Self::Ingested,
            Some(Self::STORED) => Self::Stored,
            Some(Self::MEMBERS) => Self::Members,
            _ => Self::Samples,
        }
    }
}

/// Who takes part, and whether this one is cut off, as the shell hands it in.
pub(crate) fn write_members(members: &Members, is_cut: bool) -> Bytes {
    let mut text = if is_cut { "cut\n" } else { "\n" }.to_owned();
    for (process, from) in members {
        text.push_str(&[process.as_str(), " ", &from.as_millis().to_string(), "\n"].concat());
    }
    Bytes::from(text)
}

/// The same, read.
pub(crate) fn read_members(body: &Bytes) -> Option<(Members, bool)> {
    let text = std::str::from_utf8(body).ok()?;
    let mut lines = text.lines();
    let is_cut = lines.next()? == "cut";
    let member = |line: &str| {
        let (process, from) = line.split_once(' ')?;
        Some((process.to_owned(), Timestamp::from_millis(from.parse().ok()?)))
    };
    Some((lines.map(member).collect::<Option<Members>>()?, is_cut))
}

/// What became of messages of clusters that are another's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Left to their owners.
    pub(crate) others: u64,
    /// Taken in after their owner had ended.
    pub(crate) taken_over: u64,
    /// Let go for want of room before their owner was known to live on: if it had ended, they are lost.
    pub(crate) let_go: u64,
}

#[derive(Debug)]
struct Held {
    arrived: Timestamp,
    cluster_id: String,
    at: Timestamp,
    key: String,
    body: Bytes,
}

/// A set that forgets the oldest.
#[derive(Debug, Default)]
struct Remembered<T> {
    order: VecDeque<T>,
    all: BTreeSet<T>,
}

impl<T: Ord + Clone> Remembered<T> {
    /// False if it is there already.
    fn insert(&mut self, one: T) -> bool {
        if !self.all.insert(one.clone()) {
            return false;
        }
        self.order.push_back(one);
        if self.order.len() > REMEMBERED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.all.remove(&oldest);
        }
        true
    }
}

/// What tells one pack of readings from another before it is taken in and after.
type PackId = (String, i128, u64);

fn pack_id(pack: &Readings) -> PackId {
    let mut hasher = DefaultHasher::new();
    pack.entities.iter().for_each(|entity| (&entity.kind, &entity.id).hash(&mut hasher));
    (pack.cluster_id.clone(), pack.at.unwrap_or_default().as_nanos(), hasher.finish())
}

/// One collector among those that there are.
#[derive(Debug, Default)]
pub(crate) struct Sharing {
    /// Itself; empty if it shares with nobody.
    me: String,
    members: Members,
    /// Is it cut off from the samples? Then the others have missed it, and it owns nothing.
    is_cut: bool,
    held: VecDeque<Held>,
    held_bytes: usize,
    /// When what is held is looked through.
    settles: Option<Timestamp>,
    /// Ids of what it published itself.
    own: Remembered<String>,
    packs: Remembered<PackId>,
    counts: Counts,
}

impl Sharing {
    pub(crate) fn new(me: &str, members: Members) -> Self {
        Self { me: me.to_owned(), members, ..Self::default() }
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// How many take part.
    pub(crate) fn members(&self) -> usize {
        self.members.len()
    }

    /// Is there nobody to share with?
    pub(crate) fn is_alone(&self) -> bool {
        self.me.is_empty() || self.members.keys().all(|process| *process == self.me)
    }

    /// The collectors are these now. What one that is gone had not stored is looked for.
    pub(crate) fn set(&mut self, members: Members, is_cut: bool, now: Timestamp) {
        let members: Members = members.into_iter().take(MEMBERS_MAX).collect();
        if self.members.keys().any(|process| !members.contains_key(process)) {
            self.settles = Some(now.plus_millis(SETTLE_MS));
        }
        (self.members, self.is_cut) = (members, is_cut);
    }

    /// Is a cluster this collector's at a time?
    pub(crate) fn is_mine(&self, cluster_id: &str, at: Timestamp) -> bool {
        self.is_alone() || (!self.is_cut && owner_of(&self.members, cluster_id, at) == Some(self.me.as_str()))
    }

    /// Is somebody about to join, or has just joined? Otherwise the times that messages state make no difference.
    pub(crate) fn is_changing(&self, now: Timestamp) -> bool {
        self.members.values().any(|from| now.millis_since(*from).abs() < BOUNDARY_MS)
    }

    /// Keeps what is another's for as long as that may be missed.
    pub(crate) fn hold(&mut self, cluster_id: &str, at: Timestamp, now: Timestamp, message: (&str, &Bytes)) {
        self.counts.others += 1;
        let (key, body) = (message.0.to_owned(), message.1.clone());
        self.held_bytes += size(&key, &body);
        self.held.push_back(Held { arrived: now, cluster_id: cluster_id.to_owned(), at, key, body });
        while self.held_bytes > HOLD_BYTES_MAX {
            self.counts.let_go += 1;
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some(oldest) = self.held.pop_front() {
            self.held_bytes -= size(&oldest.key, &oldest.body);
        }
    }

    /// What is this collector's by now of what it held, once that is due. What is held for longer than it may take is let go.
    pub(crate) fn take_over(&mut self, now: Timestamp) -> Vec<(String, Bytes)> {
        if self.settles.is_none_or(|due| now < due) {
            while self.settles.is_none() && self.held.front().is_some_and(|h| now.millis_since(h.arrived) > HOLD_MS) {
                self.drop_oldest();
            }
            return vec![];
        }
        self.settles = None;
        let held = std::mem::take(&mut self.held);
        let (mine, others) = held.into_iter().partition::<VecDeque<Held>, _>(|h| self.is_mine(&h.cluster_id, h.at));
        self.held_bytes = others.iter().map(|held| size(&held.key, &held.body)).sum();
        self.held = others;
        mine.into_iter().map(|held| (held.key, held.body)).collect()
    }

    /// Counts what was taken in of what another had left.
    pub(crate) fn taken_over(&mut self, messages: u64) {
        self.counts.taken_over += messages;
    }

    /// Remembers the id of what it publishes itself, to know it when it comes back from the stream.
    pub(crate) fn publishes(&mut self, id: &str) {
        if !self.is_alone() {
            self.own.insert(id.to_owned());
        }
    }

    /// Did it publish this itself?
    pub(crate) fn is_own(&self, id: &str) -> bool {
        self.own.all.contains(id)
    }

    /// Remembers a pack of readings; false if it was taken in before, here or by another.
    pub(crate) fn is_new(&mut self, pack: &Readings) -> bool {
        self.packs.insert(pack_id(pack))
    }
}

fn size(key: &str, body: &Bytes) -> usize {
    key.len() + body.len() + 64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(1_000_000_000 + millis)
    }

    fn members(from: &[i64]) -> Members {
        from.iter().enumerate().map(|(n, from)| (derived_id(&["m", &n.to_string()]), at(*from))).collect()
    }

    fn clusters() -> impl Iterator<Item = String> {
        (0..1_000).map(|n| format!("cluster-{n}"))
    }

    #[test]
    fn who_takes_part_comes_as_it_was_handed_in() {
        for is_cut in [true, false] {
            for members in [Members::new(), members(&[0, 5])] {
                assert_eq!(read_members(&write_members(&members, is_cut)), Some((members, is_cut)));
            }
        }
        for wrong in ["", "\nabc", "\na x", "\n \u{ff}"] {
            assert!(read_members(&Bytes::from(wrong)).is_none_or(|(members, _)| members.is_empty()), "{wrong:?}");
        }
        assert_eq!(Way::of("continuum/members/n/readings/c"), Way::Samples);
    }

    #[test]
    fn clusters_are_divided_about_evenly() {
        for count in 2..=5 {
            let members = members(&vec![0; count]);
            let mut shares = BTreeMap::<&str, usize>::new();
            let owned: Vec<String> = clusters().collect();
            owned.iter().for_each(|id| *shares.entry(owner_of(&members, id, at(1)).unwrap()).or_default() += 1);
            let even = 1_000 / count;
            assert!(shares.len() == count, "{shares:?}");
            assert!(shares.values().all(|share| share.abs_diff(even) < even / 4), "{count}: {shares:?}");
        }
    }

    #[test]
    fn what_another_had_not_stored_is_taken_over_when_it_is_gone() {
        let all = members(&[0, 0]);
        let (me, other) = (all.keys().next().unwrap().clone(), all.keys().nth(1).unwrap().clone());
        let mut sharing = Sharing::new(&me, all.clone());
        let theirs = clusters().find(|id| !sharing.is_mine(id, at(20_000))).unwrap();
        assert!(!sharing.is_changing(at(20_000)));
        for second in 0..30 {
            sharing.hold(&theirs, at(20_000 + second * 1_000), at(20_000 + second * 1_000), ("k", &Bytes::new()));
            assert!(sharing.take_over(at(20_000 + second * 1_000)).is_empty());
        }
        // Cut off itself, it owns nothing, whoever else is seen.
        sharing.set(all.clone(), true, at(49_000));
        assert!(clusters().all(|id| !sharing.is_mine(&id, at(49_000))));
        let only: Members = all.into_iter().filter(|(process, _)| *process != other).collect();
        sharing.set(only, false, at(50_000));
        assert!(sharing.is_mine(&theirs, at(50_000)) && sharing.is_alone());
        assert!(sharing.take_over(at(51_900)).is_empty(), "what it stored is still on its way");
        assert_eq!(sharing.take_over(at(52_000)).len(), 16, "older than 15 s is known to be stored");
        assert!(sharing.take_over(at(60_000)).is_empty());
        assert_eq!((sharing.counts().others, sharing.held_bytes), (30, 0));
    }

    #[test]
    fn what_is_held_is_bounded_and_what_is_let_go_is_counted() {
        let mut sharing = Sharing::new("a", Members::from([("a".into(), at(0)), ("b".into(), at(0))]));
        let body = Bytes::from(vec![0; 1 << 20]);
        (0..40).for_each(|n| sharing.hold("c", at(n), at(n), ("k", &body)));
        assert!(sharing.held_bytes <= HOLD_BYTES_MAX && sharing.counts().let_go == 25, "{:?}", sharing.counts());
        (0..20_000).for_each(|n| sharing.publishes(&n.to_string()));
        assert_eq!(sharing.own.all.len(), REMEMBERED_MAX);
        assert!(sharing.is_own("19999") && !sharing.is_own("0"));
    }

    proptest! {
        /// At each time each cluster is one collector's, and all that know the same collectors agree on it.
        #[test]
        fn a_cluster_is_of_exactly_one(from in prop::collection::vec(-5_000i64..5_000, 1..6), when in -6_000i64..6_000) {
            let members = members(&from);
            let each: Vec<Sharing> = members.keys().map(|me| Sharing::new(me, members.clone())).collect();
            for cluster in clusters().take(50) {
                let owners = each.iter().filter(|one| one.is_mine(&cluster, at(when))).count();
                prop_assert_eq!(owners, 1);
            }
        }

        /// Who joins takes from others, and no cluster changes hands among those; who leaves gives up its own alone.
        #[test]
        fn only_what_must_changes_hands(count in 1usize..6, joins in 0i64..5_000) {
            let mut from = vec![-1; count];
            from.push(joins);
            let after = members(&from);
            let newcomer = derived_id(&["m", &count.to_string()]);
            let mut before = after.clone();
            before.remove(&newcomer);
            for cluster in clusters().take(100) {
                let was = owner_of(&before, &cluster, at(joins));
                prop_assert_eq!(owner_of(&after, &cluster, at(joins - 1)), was, "not before its time");
                let is = owner_of(&after, &cluster, at(joins));
                prop_assert!(is == was || is == Some(newcomer.as_str()));
            }
        }
    }
}
