//! The process table of the kernel, read with as few system calls as there are: one file for what every process says, and
//! no more than the fields that somebody asks for. Every second some file is read for each process.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

/// More than `/proc/<pid>/stat` and `/proc/<pid>/io` ever hold, bytes.
const TEXT_BYTES: usize = 2 << 10;

/// What `/proc/<pid>/stat` says of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stat {
    /// One letter: `R`, `S`, `Z`.
    pub(super) state: u8,
    /// Its process group.
    pub(super) group: i32,
    /// Page faults without and with I/O.
    pub(super) minor_faults: u64,
    pub(super) major_faults: u64,
    /// CPU time in ticks: its own, and that of the children it has waited for.
    pub(super) user_ticks: u64,
    pub(super) system_ticks: u64,
    pub(super) waited_ticks: u64,
    pub(super) threads: u64,
    /// When it was started, ticks since the machine started. With its id it tells it from every other process.
    pub(super) started: u64,
    pub(super) virtual_bytes: u64,
    pub(super) resident_pages: u64,
}

impl Stat {
    /// Has it ended? Nobody has waited for it yet then.
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.state, b'Z' | b'X')
    }

    /// From the text of the file. Its second field is a name in brackets that may hold anything.
    fn parse(text: &[u8]) -> Option<Self> {
        let name_end = text.iter().rposition(|byte| *byte == b')')?;
        let mut fields = text.get(name_end + 2..)?.split(|byte| *byte == b' ');
        let state = *fields.next()?.first()?;
        let mut all = [0i64; 21];
        for number in &mut all {
            *number = integer(fields.next()?)?;
        }
        let [_, group, _, _, _, _, minor, _, major, _, user, system, waited_user, waited_system, rest @ ..] = all;
        let [_, _, threads, _, started, virtual_bytes, resident] = rest;
        let count = |number: i64| u64::try_from(number).unwrap_or(0);
        Some(Self {
            state,
            group: i32::try_from(group).ok()?,
            minor_faults: count(minor),
            major_faults: count(major),
            user_ticks: count(user),
            system_ticks: count(system),
            waited_ticks: count(waited_user) + count(waited_system),
            threads: count(threads),
            started: count(started),
            virtual_bytes: count(virtual_bytes),
            resident_pages: count(resident),
        })
    }
}

/// A whole number; one too large for 63 bits is the largest there is.
fn integer(text: &[u8]) -> Option<i64> {
    let (sign, digits) = match text.strip_prefix(b"-") {
        Some(digits) => (-1, digits),
        None => (1, text),
    };
    let digits = digits.strip_suffix(b"\n").unwrap_or(digits);
    let add = |sum: i64, digit: &u8| {
        digit.is_ascii_digit().then(|| sum.saturating_mul(10).saturating_add(i64::from(digit - b'0')))
    };
    (!digits.is_empty()).then(|| digits.iter().try_fold(0, add))?.map(|number| sign * number)
}

/// Bytes that a process has had read from and written to disks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Io {
    pub(super) read_bytes: u64,
    pub(super) written_bytes: u64,
}

impl Io {
    fn parse(text: &[u8]) -> Option<Self> {
        let of = |name: &[u8]| {
            let line = text.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(name))?;
            u64::try_from(integer(line)?).ok()
        };
        Some(Self { read_bytes: of(b"read_bytes: ")?, written_bytes: of(b"write_bytes: ")? })
    }
}

/// The table, below `/proc` or another folder.
#[derive(Debug)]
pub(super) struct Table {
    root: PathBuf,
}

impl Table {
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// All processes there are.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub(super) fn pids(&self) -> io::Result<Vec<i32>> {
        let entries = fs::read_dir(&self.root)?;
        Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
    }

    /// `None` if there is no such process any more.
    pub(super) fn stat(&self, pid: i32) -> Option<Stat> {
        self.read(pid, "stat", Stat::parse)
    }

    /// `None` also if it is another user's process.
    pub(super) fn io(&self, pid: i32) -> Option<Io> {
        self.read(pid, "io", Io::parse)
    }

    /// Whose process it is, by its real user id.
    pub(super) fn user(&self, pid: i32) -> Option<u32> {
        self.read(pid, "status", |text| {
            let line = text.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"Uid:\t"))?;
            u32::try_from(integer(line.split(|byte| *byte == b'\t').next()?)?).ok()
        })
    }

    fn read<T>(&self, pid: i32, name: &str, parse: impl FnOnce(&[u8]) -> Option<T>) -> Option<T> {
        let mut text = [0; TEXT_BYTES];
        let mut file = File::open(self.root.join(format!("{pid}/{name}"))).ok()?;
        // The kernel gives either file in one piece.
        let length = file.read(&mut text).ok()?;
        parse(text.get(..length)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_those_that_another_reader_finds() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let ours = Table::new(Path::new("/proc")).stat(pid).unwrap();
        let theirs = procfs::process::Process::myself().unwrap().stat().unwrap();
        assert_eq!((ours.group, ours.started), (theirs.pgrp, theirs.starttime));
        assert!(ours.minor_faults <= theirs.minflt && theirs.minflt < ours.minor_faults + 10_000);
        assert!(ours.user_ticks <= theirs.utime && theirs.utime < ours.user_ticks + 100);
        assert!(ours.threads > 0 && ours.virtual_bytes > 1 << 20 && ours.resident_pages > 100);
        assert!(!ours.has_ended());
    }

    #[test]
    fn a_name_may_hold_brackets_and_spaces() {
        let text = b"7 (a) R 1 (b) S 1 2 3 4 5 6 7 8 9 10 11 12 -13 14 15 16 17 18 19 20 21 22\n";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.state, stat.group, stat.minor_faults, stat.major_faults), (b'S', 2, 7, 9));
        assert_eq!((stat.user_ticks, stat.system_ticks, stat.waited_ticks), (11, 12, 14));
        assert_eq!((stat.threads, stat.started, stat.virtual_bytes, stat.resident_pages), (17, 19, 20, 21));
        assert!([&b""[..], b")", b"1 (x) S 1 2", b"1 (x) S a b c"].iter().all(|text| Stat::parse(text).is_none()));
    }

    #[test]
    fn what_went_through_disks_is_found_by_its_name() {
        let text = b"rchar: 1\nread_bytes: 4096\nwrite_bytes: 8192\ncancelled_write_bytes: 7\n";
        assert_eq!(Io::parse(text), Some(Io { read_bytes: 4_096, written_bytes: 8_192 }));
        assert_eq!(Io::parse(b"read_bytes: \n"), None);
    }

    #[test]
    fn every_process_is_listed_and_one_that_is_gone_says_nothing() {
        let table = Table::new(Path::new("/proc"));
        assert!(table.pids().unwrap().contains(&i32::try_from(std::process::id()).unwrap()));
        assert_eq!((table.stat(i32::MAX), table.io(i32::MAX)), (None, None));
        assert!(Table::new(Path::new("/nowhere")).pids().is_err());
    }
}
