//! What a person sees: chapters, steps, what was expected of them, and after each chapter what happened and why it matters.

use std::{process::ExitCode, time::Instant};

use anyhow::bail;
use continuum::output::line;
use mesh_core::Stored;
use mesh_why::describe::{self, describe};

/// The demo as it is shown.
pub(crate) struct Story {
    begun: Instant,
    chapter: usize,
    held: usize,
    failed: Vec<String>,
    /// Expectations that had failed when the present chapter began.
    failed_before: usize,
}

impl Story {
    /// Begins.
    pub(crate) fn new(begun: Instant) -> Self {
        Self { begun, chapter: 0, held: 0, failed: vec![], failed_before: 0 }
    }

    /// Opens a chapter.
    pub(crate) fn chapter(&mut self, title: &str) {
        self.chapter += 1;
        self.failed_before = self.failed.len();
        line(format!("\n=== Chapter {}: {title}", self.chapter));
    }

    /// One step of a chapter.
    pub(crate) fn step(&self, title: &str) {
        line(format!("\n[{:6.2} s] {title}", self.begun.elapsed().as_secs_f64()));
    }

    /// A line below a step.
    pub(crate) fn detail(&self, text: impl AsRef<str>) {
        line(format!("           {}", text.as_ref()));
    }

    /// A fact from the bus, as it arrives.
    pub(crate) fn fact(&self, stored: &Stored) {
        let seconds = self.begun.elapsed().as_secs_f64();
        line(format!("  {seconds:6.2} s {:>17}  {}", describe::writer(stored), describe(stored)));
    }

    /// Records whether an expectation holds.
    pub(crate) fn expect(&mut self, what: &str, holds: bool) {
        line(format!("           {} {what}", if holds { "✓" } else { "✗" }));
        if holds { self.held += 1 } else { self.failed.push(what.to_owned()) }
    }

    /// Closes a chapter: what happened, if it did, and why a person should care.
    pub(crate) fn close(&self, happened: &str, matters: &str) {
        let failed = self.failed.len() - self.failed_before;
        line("");
        match failed {
            0 => line(format!("  What happened:  {happened}")),
            _ => line(format!("  What happened:  not what was expected; {failed} expectation(s) above are marked ✗")),
        }
        line(format!("  Why it matters: {matters}"));
    }

    /// Ends: an error that names each expectation that failed.
    pub(crate) fn end(self) -> anyhow::Result<ExitCode> {
        let seconds = self.begun.elapsed().as_secs_f64();
        if self.failed.is_empty() {
            line(format!("\nAll {} expectations in {} chapters held, in {seconds:.1} s.", self.held, self.chapter));
            return Ok(ExitCode::SUCCESS);
        }
        let all = self.held + self.failed.len();
        bail!("{} of {all} expectations failed: {}", self.failed.len(), self.failed.join("; "))
    }
}
