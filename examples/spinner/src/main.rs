//! A workload whose load is known: it uses a stated share of a CPU and holds a stated amount of memory, and both can be
//! changed while it runs.
//!
//! `spinner [--load-milli N] [--memory-mb M] [--control FILE] [--faults DIR]`
//!
//! - `--load-milli`: CPU to use, in thousandths of a core (default 100; above 1,000 it uses more threads).
//! - `--memory-mb`: memory to hold resident, in megabytes of 10^6 bytes (default 10).
//! - `--control`: a file with lines `load_milli=600` and `memory_mb=50`, read every 200 ms; a value in it replaces the
//!   one given before. It may appear, change and go at any time.
//! - `--faults`: a folder, looked at every 200 ms. A file there that is named as the instance (`CONTINUUM_INSTANCE`) holds
//!   one fault: `hog 400` uses this many thousandths of a core more, `leak 5` holds this many more megabytes each second,
//!   `stuck` does nothing any more and does not end on SIGTERM. The process takes the file away and has the fault until it
//!   ends: as a real fault, it is cured by a new process.
//!
//! Prints one line at the start and one per change. Ends at once on SIGTERM.

#![allow(clippy::disallowed_methods, reason = "a workload that measures its own load")]
// Standard output is what a workload has to say.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::{
    fs,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

/// How often the control file is read.
const CONTROL: Duration = Duration::from_millis(200);
/// Busy and idle alternate at this pace.
const SLICE: Duration = Duration::from_millis(10);
/// CPU time not had (because of a quota, or of others) is not caught up beyond this.
const DEBT_MAX: Duration = Duration::from_millis(500);
const LOAD_MILLI_MAX: u64 = 64_000;
const MEMORY_MB_MAX: u64 = 64_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Setting {
    load_milli: u64,
    memory_mb: u64,
}

struct Arguments {
    setting: Setting,
    control: Option<PathBuf>,
    faults: Option<PathBuf>,
}

/// What is wrong with this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Hog(u64),
    Leak(u64),
    Stuck,
}

fn main() -> ExitCode {
    let arguments = match read_arguments(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(problem) => {
            eprintln!(
                "spinner: {problem}\nusage: spinner [--load-milli N] [--memory-mb M] [--control FILE] [--faults DIR]"
            );
            return ExitCode::from(64);
        }
    };
    let load_milli = Arc::new(AtomicU64::new(0));
    let mut memory = vec![];
    let mut spinning = 0;
    let mut now: Option<Setting> = None;
    let mut fault: Option<(Fault, Instant)> = None;
    loop {
        let control = arguments.control.as_ref().and_then(|file| fs::read_to_string(file).ok()).unwrap_or_default();
        let taken = arguments.faults.as_deref().and_then(take_fault);
        fault = taken.map(|taken| (taken, Instant::now())).or(fault);
        if matches!(taken, Some(Fault::Stuck)) {
            // Stopped as a debugger or a signal would: all its threads stand still.
            let _stands_still =
                std::process::Command::new("kill").args(["-STOP", &std::process::id().to_string()]).status();
        }
        let setting = faulty(controlled(arguments.setting, &control), fault);
        if now != Some(setting) {
            load_milli.store(setting.load_milli, Relaxed);
            hold(&mut memory, setting.memory_mb);
            while spinning < setting.load_milli.div_ceil(1_000) {
                let (number, load_milli) = (spinning, load_milli.clone());
                thread::spawn(move || spin(number, &load_milli));
                spinning += 1;
            }
            // Whoever read it may have gone; it works on.
            let line = format!("load_milli={} memory_mb={}\n", setting.load_milli, setting.memory_mb);
            let _nobody_listens = io::stdout().write_all(line.as_bytes()).and_then(|()| io::stdout().flush());
            now = Some(setting);
        }
        thread::sleep(CONTROL);
    }
}

/// A fault that is meant for this process; the file is gone then.
fn take_fault(folder: &std::path::Path) -> Option<Fault> {
    let file = folder.join(std::env::var("CONTINUUM_INSTANCE").ok()?);
    let text = fs::read_to_string(&file).ok()?;
    fs::remove_file(&file).ok()?;
    read_fault(&text)
}

fn read_fault(text: &str) -> Option<Fault> {
    let mut words = text.split_whitespace();
    let fault = words.next()?;
    let number = words.next().and_then(|word| word.parse().ok());
    match (fault, number) {
        ("hog", Some(milli)) => Some(Fault::Hog(milli)),
        ("leak", Some(megabytes)) => Some(Fault::Leak(megabytes)),
        ("stuck", None) => Some(Fault::Stuck),
        _ => None,
    }
}

/// What holds with a fault that began at a time.
fn faulty(mut setting: Setting, fault: Option<(Fault, Instant)>) -> Setting {
    match fault {
        Some((Fault::Hog(milli), _)) => {
            setting.load_milli = setting.load_milli.saturating_add(milli).min(LOAD_MILLI_MAX);
        }
        Some((Fault::Leak(megabytes), since)) => {
            let leaked = (since.elapsed().as_secs_f64() * megabytes as f64) as u64;
            setting.memory_mb = setting.memory_mb.saturating_add(leaked).min(MEMORY_MB_MAX);
        }
        Some((Fault::Stuck, _)) => setting.load_milli = 0,
        None => {}
    }
    setting
}

/// Uses its part of the load: thread 0 the first 1,000, thread 1 the next, and so on.
///
/// Busy time is by the wall clock; what was really had of it is settled after each pause, when the scheduler has
/// counted it. So the mean is right although others, or a quota, take the CPU away for a while.
fn spin(number: u64, load_milli: &AtomicU64) {
    let (mut paced, mut counted) = (Instant::now(), used());
    // CPU time to use, and CPU time used beyond it.
    let (mut owed, mut ahead) = (Duration::ZERO, Duration::ZERO);
    loop {
        let share = load_milli.load(Relaxed).saturating_sub(number * 1_000).min(1_000) as u32;
        let start = Instant::now();
        owed += start.duration_since(paced) * share / 1_000;
        paced = start;
        let settled = owed.min(ahead);
        (owed, ahead) = ((owed - settled).min(DEBT_MAX), ahead - settled);
        while start.elapsed() < owed.min(SLICE) {
            let mut sum = 0u64;
            for n in 0..1_000u64 {
                sum = std::hint::black_box(sum.wrapping_mul(31).wrapping_add(n));
            }
        }
        let busy = start.elapsed();
        thread::sleep(SLICE.saturating_sub(busy).max(Duration::from_micros(1)));
        let had = match (counted, used()) {
            (Some(before), Some(after)) => {
                counted = Some(after);
                after.saturating_sub(before)
            }
            _ => busy,
        };
        ahead += had.saturating_sub(owed);
        owed = owed.saturating_sub(had);
    }
}

/// CPU time of this thread as the scheduler last counted it; `None` where it does not say.
fn used() -> Option<Duration> {
    let text = fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

/// Holds this many megabytes, every page written to.
fn hold(memory: &mut Vec<Vec<u8>>, megabytes: u64) {
    memory.truncate(megabytes as usize);
    for n in memory.len()..megabytes as usize {
        // Not zero, so that every page is written; in one stroke, so that holding costs no CPU worth a measurement.
        memory.push(vec![(n % 255) as u8 + 1; 1_000_000]);
    }
}

/// What holds with a control file's text: its last word on each value. Lines it cannot read change nothing.
fn controlled(mut setting: Setting, text: &str) -> Setting {
    for (name, value) in text.lines().filter_map(|line| line.split_once('=')) {
        match (name.trim(), value.trim().parse::<u64>()) {
            ("load_milli", Ok(value)) => setting.load_milli = value.min(LOAD_MILLI_MAX),
            ("memory_mb", Ok(value)) => setting.memory_mb = value.min(MEMORY_MB_MAX),
            _ => {}
        }
    }
    setting
}

fn read_arguments(mut given: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut arguments = Arguments { setting: Setting { load_milli: 100, memory_mb: 10 }, control: None, faults: None };
    while let Some(name) = given.next() {
        let value = given.next().ok_or_else(|| format!("{name} needs a value"))?;
        let number = |max: u64| match value.parse::<u64>() {
            Ok(number) if number <= max => Ok(number),
            _ => Err(format!("{name} {value:?} is not a number from 0 to {max}")),
        };
        match name.as_str() {
            "--load-milli" => arguments.setting.load_milli = number(LOAD_MILLI_MAX)?,
            "--memory-mb" => arguments.setting.memory_mb = number(MEMORY_MB_MAX)?,
            "--control" => arguments.control = Some(PathBuf::from(value)),
            "--faults" => arguments.faults = Some(PathBuf::from(value)),
            _ => return Err(format!("{name} is not known")),
        }
    }
    Ok(arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(text: &str) -> Result<Arguments, String> {
        read_arguments(text.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn arguments_are_read_and_wrong_ones_named() {
        let arguments = given("--load-milli 300 --memory-mb 50 --control /x").ok();
        assert_eq!(arguments.map(|a| a.setting), Some(Setting { load_milli: 300, memory_mb: 50 }));
        for (wrong, named) in [("--load 3", "--load"), ("--load-milli x", "\"x\""), ("--memory-mb", "--memory-mb")] {
            assert!(given(wrong).is_err_and(|problem| problem.contains(named)), "{wrong}");
        }
    }

    #[test]
    fn a_fault_is_read_and_adds_to_what_is_set() {
        let before = Setting { load_milli: 100, memory_mb: 10 };
        let begun = Instant::now() - Duration::from_secs(10);
        let after = |text: &str| faulty(before, read_fault(text).map(|fault| (fault, begun)));
        assert_eq!(after("hog 400\n"), Setting { load_milli: 500, ..before });
        assert!((60..=61).contains(&after("leak 5").memory_mb));
        assert_eq!(after("stuck"), Setting { load_milli: 0, ..before });
        for nothing in ["", "hog", "leak x", "stuck 3", "other 1"] {
            assert_eq!(after(nothing), before, "{nothing}");
        }
    }

    #[test]
    fn a_control_file_changes_what_it_names_and_nothing_else() {
        let before = Setting { load_milli: 100, memory_mb: 10 };
        let text = "# more\nload_milli = 600\nload_milli=soon\n\n";
        assert_eq!(controlled(before, text), Setting { load_milli: 600, memory_mb: 10 });
        assert_eq!(controlled(before, ""), before);
    }
}
