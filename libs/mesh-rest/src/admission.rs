//! Whether one more command may wait for its answer: not more than are answered soon.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::problem::{Kind, Problem};

/// Commands to one stream that may wait for their answer, whatever their rate,
const WAITING_MAX: usize = 1_000;
/// and that always may.
const WAITING_MIN: usize = 64;
/// How long a command may have to wait: more are turned away once the oldest has waited so long, or as many wait as are
/// answered in this time.
const WAIT_MAX: Duration = Duration::from_millis(750);
/// How often the rate of answers is reckoned.
const RECKON_EVERY: Duration = Duration::from_millis(250);

/// Commands to one stream that wait for their answer.
struct Asked {
    /// When each was sent, by ticket.
    waiting: BTreeMap<u64, Instant>,
    tickets: u64,
    since: Instant,
    answered: u32,
    /// Did somebody wait all the time since then? Only then is what was answered all that can be.
    busy: bool,
    /// Answers each second while somebody waited; 0 until that is known.
    rate: f64,
}

impl Asked {
    fn new(now: Instant) -> Self {
        Self { waiting: BTreeMap::new(), tickets: 0, since: now, answered: 0, busy: false, rate: 0.0 }
    }

    fn reckon(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.since);
        if passed < RECKON_EVERY {
            return;
        }
        if self.busy {
            let rate = f64::from(self.answered) / passed.as_secs_f64();
            self.rate = if self.rate == 0.0 { rate } else { 0.7 * self.rate + 0.3 * rate };
        }
        (self.since, self.answered, self.busy) = (now, 0, !self.waiting.is_empty());
    }

    /// How many may wait now.
    fn limit(&self) -> usize {
        match self.rate {
            0.0 => WAITING_MAX,
            rate => ((rate * WAIT_MAX.as_secs_f64()) as usize).clamp(WAITING_MIN, WAITING_MAX),
        }
    }

    fn answered(&mut self, ticket: u64, now: Instant) {
        self.reckon(now);
        self.waiting.remove(&ticket);
        self.answered = self.answered.saturating_add(1);
        self.busy &= !self.waiting.is_empty();
    }
}

/// Counts a command as waiting for as long as it lives.
pub(crate) struct Waiting {
    asked: Arc<Mutex<BTreeMap<&'static str, Asked>>>,
    stream: &'static str,
    ticket: u64,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(asked) = asked.get_mut(self.stream) {
            asked.answered(self.ticket, Instant::now());
        }
    }
}

/// Turns commands away while those before them wait too long: whoever answers them is behind.
#[derive(Clone, Default)]
pub(crate) struct Admission(Arc<Mutex<BTreeMap<&'static str, Asked>>>);

impl Admission {
    /// May one more command to this stream wait?
    pub(crate) fn check(&self, stream: &str) -> Result<(), Problem> {
        let mut asked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(asked) = asked.get_mut(stream) else { return Ok(()) };
        asked.reckon(Instant::now());
        let oldest = asked.waiting.values().next().map(Instant::elapsed).unwrap_or_default();
        if asked.waiting.len() < asked.limit() && oldest <= WAIT_MAX {
            return Ok(());
        }
        // What waits is answered in about as long as the oldest has waited.
        let seconds = u32::try_from(oldest.as_secs()).unwrap_or(u32::MAX).saturating_add(1);
        let detail =
            format!("{} commands wait for their answer, the oldest for {} ms", asked.waiting.len(), oldest.as_millis());
        let hint = format!("send it again in {seconds} s; nothing of it was done");
        Err(Problem { retry_after_s: Some(seconds), ..Problem::new(Kind::TooMany, detail, hint) })
    }

    /// Counts a command in, if it may wait.
    pub(crate) fn admit(&self, stream: &'static str) -> Result<Waiting, Problem> {
        self.check(stream)?;
        let now = Instant::now();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = all.entry(stream).or_insert_with(|| Asked::new(now));
        asked.tickets += 1;
        asked.waiting.insert(asked.tickets, now);
        Ok(Waiting { asked: self.0.clone(), stream, ticket: asked.tickets })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admit(admission: &Admission) -> Waiting {
        admission.admit("INTENT_ASK").unwrap_or_else(|_| panic!("it may wait"))
    }

    #[test]
    fn a_command_is_turned_away_while_those_before_it_wait_too_long() {
        let admission = Admission::default();
        let first = admit(&admission);
        let sent = |ago_ms| Instant::now().checked_sub(Duration::from_millis(ago_ms)).unwrap();
        let set = |at| admission.0.lock().unwrap().get_mut("INTENT_ASK").unwrap().waiting.insert(first.ticket, at);
        set(sent(600));
        let second = admit(&admission);
        set(sent(3_500));
        let Err(refused) = admission.admit("INTENT_ASK") else { panic!("it waits too long") };
        assert_eq!((refused.kind, refused.retry_after_s), (Kind::TooMany, Some(4)));
        assert!(admission.admit("WORKLOAD_ASK").is_ok(), "others answer those");
        drop((first, second));
        let many: Vec<_> = (0..WAITING_MAX).filter_map(|_| admission.admit("INTENT_ASK").ok()).collect();
        assert_eq!(many.len(), WAITING_MAX);
        assert!(admission.admit("INTENT_ASK").is_err());
        drop(many);
        assert!(admission.admit("INTENT_ASK").is_ok());
    }

    #[test]
    fn as_many_may_wait_as_are_answered_in_time() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut asked = Asked::new(start);
        assert_eq!(asked.limit(), WAITING_MAX, "nothing is known yet");
        let ask = |asked: &mut Asked, tickets: std::ops::Range<u64>, now| {
            asked.waiting.extend(tickets.map(|ticket| (ticket, now)));
        };
        // 100 answered in a second, each before the next came: as many came as were answered.
        for ticket in 0..100 {
            ask(&mut asked, ticket..ticket + 1, at(ticket * 10));
            asked.answered(ticket, at(ticket * 10 + 5));
        }
        asked.reckon(at(1_250));
        assert_eq!(asked.limit(), WAITING_MAX);
        // 50 in each quarter of a second, while 1,000 wait.
        ask(&mut asked, 1_000..2_200, at(1_500));
        asked.reckon(at(1_500));
        (1_000..1_200).for_each(|ticket| asked.answered(ticket, at(1_500 + (ticket - 1_000) * 5)));
        asked.reckon(at(2_500));
        let limit = asked.limit();
        assert!((145..=155).contains(&limit), "200 a second, so 150 in time: {limit}");
        // Slow answers let some wait all the same.
        asked.rate = 1.0;
        assert_eq!(asked.limit(), WAITING_MIN);
    }
}
