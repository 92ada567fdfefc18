//! Texts of the Linux kernel that no crate reads as they are needed here: CPU time by number, pressure, control groups, and
//! energy counters that overflow.

use std::collections::BTreeMap;

/// Modes of `/proc/stat`, in its order.
pub const CPU_MODES: [&str; 8] = ["user", "nice", "system", "idle", "iowait", "interrupt", "softirq", "steal"];
/// Positions of what is not work: idle, and waiting for I/O.
const IDLE: [usize; 2] = [3, 4];
/// CPUs at most; Linux has no more.
const CPUS_MAX: usize = 8_192;

/// What `/proc/stat` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stat {
    /// By number of the logical CPU: ticks in each of [`CPU_MODES`].
    pub cpus: BTreeMap<u32, [u64; 8]>,
    /// Context switches since boot.
    pub context_switches: u64,
    /// Processes made since boot.
    pub created: u64,
    /// Processes that run or could.
    pub running: u64,
    /// Processes that wait for I/O.
    pub blocked: u64,
}

/// Reads `/proc/stat`.
///
/// # Errors
/// With the line that is not as it should be, or what is missing.
pub fn stat(text: &str) -> Result<Stat, String> {
    let mut stat = Stat::default();
    let (mut has_switches, mut has_created) = (false, false);
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some(first) = words.next() else { continue };
        let mut number = || words.next().and_then(|word| word.parse::<u64>().ok());
        match first {
            "ctxt" => (stat.context_switches, has_switches) = (number().ok_or_else(|| wrong(line))?, true),
            "processes" => (stat.created, has_created) = (number().ok_or_else(|| wrong(line))?, true),
            "procs_running" => stat.running = number().ok_or_else(|| wrong(line))?,
            "procs_blocked" => stat.blocked = number().ok_or_else(|| wrong(line))?,
            _ => {
                let Some(cpu) = first.strip_prefix("cpu").and_then(|cpu| cpu.parse::<u32>().ok()) else { continue };
                let mut ticks = [0; 8];
                for (position, ticks) in ticks.iter_mut().enumerate() {
                    match number() {
                        Some(read) => *ticks = read,
                        // Kernels before 2.6.11 had four to seven.
                        None if position >= 4 => break,
                        None => return Err(wrong(line)),
                    }
                }
                if stat.cpus.len() < CPUS_MAX {
                    stat.cpus.insert(cpu, ticks);
                }
            }
        }
    }
    match (stat.cpus.is_empty(), has_switches && has_created) {
        (false, true) => Ok(stat),
        (true, _) => Err("it names no CPU".to_owned()),
        (false, false) => Err("it has no `ctxt` or `processes`".to_owned()),
    }
}

/// Share of the time between two looks at a CPU in which it worked, 0 to 1. `None` if no time has passed.
pub fn busy<'a>(pairs: impl IntoIterator<Item = (&'a [u64; 8], &'a [u64; 8])>) -> Option<f64> {
    let (mut all, mut idle) = (0u64, 0u64);
    for (before, now) in pairs {
        // Idle time and waiting may go back a little: that counts as none.
        let passed: Vec<u64> = before.iter().zip(now).map(|(before, now)| now.saturating_sub(*before)).collect();
        all = passed.iter().fold(all, |all, one| all.saturating_add(*one));
        idle = IDLE.iter().filter_map(|at| passed.get(*at)).fold(idle, |idle, one| idle.saturating_add(*one));
    }
    (all > 0).then(|| (all.saturating_sub(idle)) as f64 / all as f64)
}

fn wrong(line: &str) -> String {
    let shown: String = line.chars().take(80).collect();
    format!("a line is not as expected: {shown:?}")
}

/// One line of a file of pressure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pressure {
    /// `some` or `full`.
    pub stalled: &'static str,
    /// Share of the last ten seconds, 0 to 1.
    pub share: f64,
    /// Seconds in all.
    pub seconds: f64,
}

/// Reads a file of pressure: of the host, or of a control group.
///
/// # Errors
/// With the line that is not as it should be, or if there is not one.
pub fn pressure(text: &str) -> Result<Vec<Pressure>, String> {
    let mut read: Vec<Pressure> = vec![];
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let stalled = match words.next() {
            Some("some") => "some",
            Some("full") => "full",
            _ => continue,
        };
        let fields: BTreeMap<&str, &str> = words.filter_map(|word| word.split_once('=')).collect();
        let share = fields.get("avg10").and_then(|text| text.parse::<f64>().ok());
        let micros = fields.get("total").and_then(|text| text.parse::<u64>().ok());
        let (Some(share), Some(micros)) = (share.filter(|share| (0.0..=100.0).contains(share)), micros) else {
            return Err(wrong(line));
        };
        if read.iter().any(|one| one.stalled == stalled) {
            return Err(wrong(line));
        }
        read.push(Pressure { stalled, share: share / 100.0, seconds: micros as f64 / 1e6 });
    }
    if read.is_empty() { Err("it has no line `some`".to_owned()) } else { Ok(read) }
}

/// Reads lines of a name and a number, as `memory.stat` has them. What is not so is left out.
pub fn pairs(text: &str) -> BTreeMap<&str, u64> {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(k, v)| Some((k, v.trim().parse().ok()?)))
        .collect()
}

/// What a control group has moved on one device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Operations that read.
    pub reads: u64,
    /// Operations that wrote.
    pub writes: u64,
}

/// Is this `major:minor`?
fn is_device(word: &str) -> bool {
    word.split_once(':').is_some_and(|(major, minor)| {
        [major, minor].iter().all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
    })
}

/// Reads `io.stat` (version 2), by `major:minor`.
pub fn io_stat(text: &str) -> BTreeMap<String, Moved> {
    let mut all = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some(device) = words.next().filter(|device| is_device(device)) else { continue };
        let mut moved = Moved::default();
        for (name, number) in words.filter_map(|word| word.split_once('=')) {
            let Ok(number) = number.parse::<u64>() else { continue };
            match name {
                "rbytes" => moved.read_bytes = number,
                "wbytes" => moved.written_bytes = number,
                "rios" => moved.reads = number,
                "wios" => moved.writes = number,
                _ => {}
            }
        }
        all.insert(device.to_owned(), moved);
    }
    all
}

/// Reads `blkio.throttle.io_service_bytes` and `blkio.throttle.io_serviced` (version 1), by `major:minor`.
pub fn blkio(bytes: &str, operations: &str) -> BTreeMap<String, Moved> {
    let mut all: BTreeMap<String, Moved> = BTreeMap::new();
    for (text, counts_bytes) in [(bytes, true), (operations, false)] {
        for line in text.lines() {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            let [device, what, number] = words[..] else { continue };
            let (true, Ok(number)) = (is_device(device), number.parse::<u64>()) else { continue };
            let moved = all.entry(device.to_owned()).or_default();
            match (what, counts_bytes) {
                ("Read", true) => moved.read_bytes = number,
                ("Write", true) => moved.written_bytes = number,
                ("Read", false) => moved.reads = number,
                ("Write", false) => moved.writes = number,
                _ => {}
            }
        }
    }
    all
}

/// A counter of microjoules that begins again at 0 beyond its range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Joules {
    last: Option<u64>,
    micro: u64,
}

impl Joules {
    /// Takes in what the counter says; gives joules since the first look. A counter that fell has gone over its range once:
    /// it is to be read more often than that takes, some tens of seconds at least.
    pub fn take(&mut self, micro: u64, range: u64) -> f64 {
        let passed = match self.last {
            None => 0,
            Some(last) if micro >= last => micro - last,
            Some(last) => range.saturating_sub(last).saturating_add(micro),
        };
        self.last = Some(micro);
        self.micro = self.micro.saturating_add(passed);
        self.micro as f64 / 1e6
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STAT: &str = "cpu  30 0 9 60 3 0 1 0 0 0\ncpu0 10 0 5 30 1 0 1 0 0 0\ncpu2 20 0 4 30 2 0 0 0 0 0\n\
                        intr 5 1 2\nctxt 77\nbtime 1\nprocesses 12\nprocs_running 2\nprocs_blocked 1\n";

    #[test]
    fn cpus_keep_their_numbers_and_are_busy_by_what_is_not_idle() {
        let read = stat(STAT).unwrap();
        assert_eq!(read.cpus.keys().copied().collect::<Vec<_>>(), [0, 2], "one is offline");
        assert_eq!((read.context_switches, read.created, read.running, read.blocked), (77, 12, 2, 1));
        let later = stat(&STAT.replace("cpu0 10 0 5 30 1", "cpu0 13 0 5 35 3")).unwrap();
        assert_eq!(busy([(&read.cpus[&0], &later.cpus[&0])]), Some(0.3));
        assert_eq!(busy([(&read.cpus[&2], &later.cpus[&2])]), None);
        assert!(stat("cpu0 1 2 x 4\nctxt 1\nprocesses 1").unwrap_err().contains("cpu0 1 2 x"));
        assert!(stat("ctxt 1\nprocesses 1\n").is_err() && stat("cpu0 1 2 3 4\n").is_err());
    }

    #[test]
    fn pressure_is_read_in_shares_and_seconds() {
        let text =
            "some avg10=12.50 avg60=1.00 avg300=0.20 total=2500000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=10\n";
        let read = pressure(text).unwrap();
        assert_eq!(read[0], Pressure { stalled: "some", share: 0.125, seconds: 2.5 });
        assert_eq!((read[1].stalled, read.len()), ("full", 2));
        assert!(
            pressure("").is_err() && pressure("some avg10=NaN total=1").is_err() && pressure("some avg10=1").is_err()
        );
    }

    #[test]
    fn both_versions_of_control_groups_say_what_was_moved() {
        let two = io_stat("254:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\nnonsense\n8:1 \n");
        let one = blkio("254:0 Read 10\n254:0 Write 20\n254:0 Total 30\nTotal 30\n", "254:0 Read 1\n254:0 Write 2\n");
        assert_eq!(two["254:0"], one["254:0"]);
        assert_eq!(two["254:0"], Moved { read_bytes: 10, written_bytes: 20, reads: 1, writes: 2 });
        assert_eq!(pairs("anon 5\nfile x\nno\npgfault 7\n"), BTreeMap::from([("anon", 5), ("pgfault", 7)]));
    }

    proptest! {
        #[test]
        fn energy_adds_up_over_overflows(range in 1_000u64..1_000_000, steps in prop::collection::vec(0u64..1_000, 1..200)) {
            let (mut joules, mut stands, mut used) = (Joules::default(), 0u64, 0u64);
            prop_assert_eq!(joules.take(0, range), 0.0);
            for step in steps {
                used += step;
                stands = (stands + step) % range;
                let said = joules.take(stands, range);
                prop_assert!((said - used as f64 / 1e6).abs() < 1e-9, "{} {}", said, used);
            }
        }

        #[test]
        fn no_text_makes_a_reader_panic(text in "\\PC{0,200}", words in prop::collection::vec("(cpu[0-9]|some|full|total=|avg10=|[0-9]{1,25}|:| |\n)", 0..60)) {
            for text in [text, words.concat()] {
                let _ = (stat(&text), pressure(&text), pairs(&text), io_stat(&text), blkio(&text, &text));
            }
        }
    }
}
