//! Inputs that end the process that takes them in: found by what was in hand when it ended, and buried.
//!
//! A panic in a decider is caught and its input buried at once. An input that ends the whole process (its stack, its
//! memory, an abort) leaves no chance to count, so the count is kept on the bus, in the decider's snapshot bucket, and
//! costs nothing while nothing ends uncleanly:
//!
//! - a replica that starts and finds inputs delivered to its predecessor and not acknowledged notes where the
//!   acknowledged ones end;
//! - when that place has not moved by the next such start, what lies behind it is taken in one by one: which one is
//!   noted, on disk, before it is given to the decider;
//! - the one in hand when the process ended is charged; charged [`DEATHS_MAX`] times, it is buried with that reason.
//!
//! Nothing is charged while a stream is full, nor when the process is stopped in order; a start needs the bus. One
//! suspect is in hand at a time in a whole process, whatever it runs. Replicas of one decider share the note: an innocent input
//! can be charged for what another replica did at that moment, but not [`DEATHS_MAX`] times in a row.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Unclean starts at one place from which inputs are taken in one by one.
pub const STARTS_MAX: u32 = 2;
/// Times that the process may end with an input in hand before it is buried.
pub const DEATHS_MAX: u32 = 3;
/// Inputs remembered as charged; more of them at once are not told apart.
const CHARGED_MAX: usize = 64;
/// The charge of an input that was buried.
const BURIED: u32 = u32::MAX;

/// Whose turn it is in this process to have a suspect in hand.
pub(crate) static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// What is noted of one input stream of a decider.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// Everything up to here was acknowledged at the last start.
    pub floor: u64,
    /// Unclean starts in a row that found the floor there.
    pub starts: u32,
    /// The input in hand, by sequence; 0 for none.
    pub hand: u64,
    /// Inputs that were in hand when the process ended, and how often.
    pub deaths: BTreeMap<u64, u32>,
}

/// What to do with an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Store the note, then take it in.
    Take,
    /// Publish it as a dead letter, then call [`Note::buried`].
    Bury,
    /// It was buried before.
    Skip,
}

impl Note {
    /// The note of a replica that starts: what was noted before, everything up to `floor` is acknowledged, everything
    /// up to `delivered` was given to somebody.
    #[must_use]
    pub fn start(before: Option<Self>, floor: u64, delivered: u64) -> Self {
        let mut note = before.unwrap_or_default();
        if delivered <= floor {
            return Self::default();
        }
        if note.hand > floor && (note.deaths.contains_key(&note.hand) || note.deaths.len() < CHARGED_MAX) {
            let deaths = note.deaths.entry(note.hand).or_default();
            *deaths = deaths.saturating_add(1);
        }
        note.hand = 0;
        note.starts = if note.starts > 0 && note.floor == floor { note.starts.saturating_add(1) } else { 1 };
        note.floor = floor;
        note.deaths.retain(|sequence, _| *sequence > floor);
        note
    }

    /// Are inputs to be taken in one by one?
    #[must_use]
    pub fn is_careful(&self) -> bool {
        self.starts >= STARTS_MAX || !self.deaths.is_empty()
    }

    /// Is there anything worth storing?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What is to happen to an input that is next.
    pub fn next(&mut self, sequence: u64) -> Verdict {
        match self.deaths.get(&sequence) {
            Some(&BURIED) => Verdict::Skip,
            Some(&deaths) if deaths >= DEATHS_MAX => Verdict::Bury,
            _ => {
                self.hand = sequence;
                Verdict::Take
            }
        }
    }

    /// How often the process ended with this input in hand.
    #[must_use]
    pub fn deaths(&self, sequence: u64) -> u32 {
        self.deaths.get(&sequence).copied().unwrap_or_default()
    }

    /// The input was published as a dead letter.
    pub fn buried(&mut self, sequence: u64) {
        self.deaths.insert(sequence, BURIED);
    }

    /// Nothing is in hand that could be charged.
    pub fn put_down(&mut self) {
        self.hand = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process with these deadly inputs, started again and again on what was delivered; `ends` is asked after every
    /// input, for ends that no input causes. Gives what was buried, how often it started, and the last note.
    fn lives(deadly: &[u64], delivered: u64, mut ends: impl FnMut(u64, u32) -> bool) -> (Vec<u64>, u32, Note) {
        let (mut stored, mut buried) = (None, vec![]);
        for life in 1..=100 {
            let mut note = Note::start(stored.take(), 10, delivered);
            stored = Some(note.clone());
            let mut ended = false;
            for sequence in 11..=delivered {
                if note.is_careful() {
                    match note.next(sequence) {
                        Verdict::Take => stored = Some(note.clone()),
                        Verdict::Bury => {
                            buried.push(sequence);
                            note.buried(sequence);
                            stored = Some(note.clone());
                            continue;
                        }
                        Verdict::Skip => continue,
                    }
                }
                ended = deadly.contains(&sequence) || ends(sequence, life);
                if ended {
                    break;
                }
            }
            if !ended {
                note.put_down();
                return (buried, life, note);
            }
        }
        panic!("it never lives: {stored:?}");
    }

    #[test]
    fn a_deadly_input_is_buried_after_some_deaths_and_nothing_else_is() {
        let (buried, starts, _) = lives(&[57], 200, |_, _| false);
        assert_eq!(buried, [57]);
        assert_eq!(starts, STARTS_MAX - 1 + DEATHS_MAX + 1);
    }

    #[test]
    fn several_deadly_inputs_are_buried_one_after_the_other() {
        let (buried, starts, _) = lives(&[11, 12, 200], 200, |_, _| false);
        assert_eq!(buried, [11, 12, 200]);
        assert!(starts <= STARTS_MAX + 3 * DEATHS_MAX, "{starts}");
    }

    #[test]
    fn a_process_that_is_ended_from_outside_at_other_inputs_buries_nothing() {
        // Each time somewhere else, for more lives than a deadly input would take.
        let (buried, _, _) = lives(&[], 200, |sequence, life| life < 20 && sequence == 11 + u64::from(life) * 7);
        assert!(buried.is_empty(), "{buried:?}");
    }

    #[test]
    fn where_nothing_was_in_hand_nothing_is_noted() {
        let before = Note { floor: 3, starts: 5, hand: 9, deaths: BTreeMap::from([(9, 2)]) };
        assert!(Note::start(Some(before), 9, 9).is_empty());
        assert!(Note::start(None, 0, 0).is_empty());
    }

    #[test]
    fn a_place_that_moves_on_is_no_reason_for_care() {
        let first = Note::start(None, 10, 20);
        assert!(!first.is_careful());
        assert!(!Note::start(Some(first.clone()), 11, 20).is_careful());
        assert!(Note::start(Some(first), 10, 20).is_careful());
    }

    #[test]
    fn what_was_put_down_is_not_charged() {
        let mut note = Note::start(Some(Note::start(None, 10, 20)), 10, 20);
        assert_eq!(note.next(15), Verdict::Take);
        note.put_down();
        assert_eq!(Note::start(Some(note), 10, 20).deaths(15), 0);
    }

    #[test]
    fn a_dead_input_is_recorded_once_and_forgotten_once_acknowledged() {
        let (_, _, note) = lives(&[57], 200, |_, _| false);
        let mut again = Note::start(Some(note.clone()), 10, 200);
        assert_eq!(again.next(57), Verdict::Skip);
        assert_eq!(again.next(58), Verdict::Take);
        assert!(Note::start(Some(note), 57, 200).deaths.is_empty());
    }

    #[test]
    fn the_note_does_not_grow_without_limit() {
        let mut note = Note::start(Some(Note::start(None, 0, 1_000)), 0, 1_000);
        for sequence in 1..1_000 {
            note.next(sequence);
            note = Note::start(Some(note), 0, 1_000);
        }
        assert_eq!(note.deaths.len(), CHARGED_MAX);
    }
}
