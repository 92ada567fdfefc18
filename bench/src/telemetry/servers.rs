//! The databases that measurements start, and how two sides are measured in turn.

use std::{future::Future, path::Path, time::Instant};

use continuum::output::note;
use mesh_test::{Database, Kind};

use crate::report::{Bound, Row};

/// Starts a database for a measurement. `None`, with a line that says what is left out and why, if it is not
/// installed.
pub(crate) async fn database(part: &str, kind: Kind) -> Option<Database> {
    if !Path::new(env!("CARGO_MANIFEST_DIR")).join("../infra/servers/database.sh").exists() {
        note(format!("SKIPPED: {part}: {kind:?} is started by infra/servers/database.sh: run this in a checkout"));
        return None;
    }
    Database::start(&format!("bench, {part}"), kind).await
}

/// What both sides took, seconds, round by round.
#[derive(Default)]
pub(super) struct Rounds {
    pub(super) raw: Vec<f64>,
    pub(super) ours: Vec<f64>,
}

impl Rounds {
    /// Measures both sides in turn, this many rounds, after one that does not count. Which side begins changes from round to
    /// round. A side is given the number of its round, and answers how many seconds it took.
    ///
    /// # Errors
    /// The first of either side.
    pub(super) async fn take<A, B>(
        rounds: usize,
        mut raw: impl FnMut(usize) -> A,
        mut ours: impl FnMut(usize) -> B,
    ) -> anyhow::Result<Self>
    where
        A: Future<Output = anyhow::Result<f64>>,
        B: Future<Output = anyhow::Result<f64>>,
    {
        let mut taken = Self::default();
        for round in 0..=rounds {
            let (of_raw, of_ours) = if round % 2 == 0 {
                let of_raw = raw(round).await?;
                (of_raw, ours(round).await?)
            } else {
                let of_ours = ours(round).await?;
                (raw(round).await?, of_ours)
            };
            if round > 0 {
                taken.raw.push(of_raw);
                taken.ours.push(of_ours);
            }
        }
        Ok(taken)
    }

    /// Middle of the rounds' ratios, ours to raw, and the least and the most of them.
    fn ratio(&self) -> (f64, f64, f64) {
        let mut ratios: Vec<f64> = self.ours.iter().zip(&self.raw).map(|(ours, raw)| ours / raw).collect();
        ratios.sort_by(f64::total_cmp);
        let at = |place: usize| ratios.get(place).copied().unwrap_or(f64::NAN);
        (at(ratios.len() / 2), at(0), at(ratios.len().saturating_sub(1)))
    }

    fn middle(times: &[f64]) -> f64 {
        let mut times = times.to_vec();
        times.sort_by(f64::total_cmp);
        times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
    }

    /// How the rate of ours compares with that of raw; `count` things a round.
    pub(super) fn rate_row(&self, number: u8, what: &str, count: usize, of: &str) -> Row {
        let (middle, least, most) = self.ratio();
        let rate = |times: &[f64]| count as f64 / Self::middle(times);
        let detail = format!(
            "{:.0} and {:.0} {of}/s by hand; {} rounds, {:.2} to {:.2}",
            rate(&self.ours),
            rate(&self.raw),
            self.raw.len(),
            1.0 / most,
            1.0 / least
        );
        Row::new(number, what, Bound::AtLeast(0.8), "", 1.0 / middle, detail)
    }

    /// How long ours takes beside raw; both `repeats` times a round.
    pub(super) fn time_row(&self, number: u8, what: &str, repeats: usize, of: &str) -> Row {
        let (middle, least, most) = self.ratio();
        let milliseconds = |times: &[f64]| Self::middle(times) * 1e3 / repeats as f64;
        let detail = format!(
            "{:.3} ms and {:.3} ms by hand; {of}; {} rounds, {least:.2} to {most:.2}",
            milliseconds(&self.ours),
            milliseconds(&self.raw),
            self.raw.len()
        );
        Row::new(number, what, Bound::AtMost(1.5), "", middle, detail)
    }
}

/// Tries a write again that the database did not take in time, as a service does.
///
/// # Errors
/// When the fifth attempt fails, with its error.
pub(super) async fn patiently<E>(write: impl AsyncFn() -> Result<(), E>) -> Result<(), E> {
    for _ in 0..4 {
        if write().await.is_ok() {
            return Ok(());
        }
    }
    write().await
}

/// How long this takes, seconds.
///
/// # Errors
/// Its own.
pub(super) async fn timed<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<f64> {
    let begun = Instant::now();
    work.await?;
    Ok(begun.elapsed().as_secs_f64())
}
