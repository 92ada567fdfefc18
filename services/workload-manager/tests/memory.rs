//! What hostile archives cost at most, measured: the peak of this process' resident memory, with nothing else in it.

#![cfg(target_os = "linux")]
#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "a test starts, waits for and measures real processes")]

use std::{collections::BTreeMap, io::Write as _, time::Instant};

use bytes::Bytes;
use chart::{
    ARCHIVE_BYTES_MAX,
    archive::{self, FILE_BYTES_MAX, UNPACKED_BYTES_MAX},
    structure,
};
use flate2::{Compression, write::GzEncoder};
use tar::{EntryType, Header};

/// More than what may be unpacked, its copy as text, and what the allocator keeps of buffers that grew.
const PEAK_BYTES_MAX: u64 = 3 * UNPACKED_BYTES_MAX;
/// Far above what one takes, far below what unpacking all of it would.
const SECONDS_MAX: f64 = 10.0;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(vec![], Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn header(kind: EntryType, path: &str, size: u64) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_path(path).unwrap();
    header.set_cksum();
    header.as_bytes().to_vec()
}

/// As much as an archive may have of the same gzip member over and over: some 3 GB of zeros behind a beginning.
fn endless(beginning: &[u8]) -> Vec<u8> {
    let mut archive = gzip(beginning);
    let member = gzip(&vec![0; 64 << 20]);
    while archive.len() + member.len() <= ARCHIVE_BYTES_MAX {
        archive.extend(&member);
    }
    archive
}

fn chart(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let own =
        [("Chart.yaml", "apiVersion: v2\nname: bomb\nversion: 1.0.0\n"), ("values.yaml", ""), ("templates/a.yaml", "")];
    let own = own.map(|(path, text)| (path.to_owned(), Bytes::from(text)));
    let files: BTreeMap<String, Bytes> =
        own.into_iter().chain(files.iter().map(|(path, content)| (path.clone(), content.clone().into()))).collect();
    archive::pack("bomb", &files).unwrap()
}

/// Archives that would take gigabytes, or hours, from who believes them.
fn bombs() -> Vec<(&'static str, Vec<u8>)> {
    let file = FILE_BYTES_MAX as usize;
    let zeros: Vec<_> = (0..7).map(|n| (format!("files/{n}"), vec![0; file])).collect();
    // Each opens into the next; all of them together count.
    let inner = chart(&zeros[..4]);
    let nested: Vec<_> = (0..20).map(|n| (format!("charts/{n}.tgz"), inner.clone())).collect();
    let mut laughs = "a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha]\n".to_owned();
    for n in 1..20 {
        let before = vec![format!("*a{}", n - 1); 9].join(", ");
        laughs.push_str(&format!("a{n}: &a{n} [{before}]\n"));
    }
    let deep = vec![b'['; file];
    let keys: String = (0..400_000).map(|n| format!("k{n}: 1\n")).collect();
    vec![
        ("a file that is far too large", endless(&header(EntryType::Regular, "bomb/file", 1 << 40))),
        ("a file that never ends", endless(&header(EntryType::Regular, "bomb/file", FILE_BYTES_MAX))),
        ("a path that never ends", endless(&header(EntryType::GNULongName, "././@LongLink", 1 << 40))),
        ("an extension record that never ends", endless(&header(EntryType::XHeader, "bomb/pax", 1 << 40))),
        ("nothing but zeros", endless(b"")),
        ("many large files", chart(&zeros)),
        ("archives in it", chart(&nested)),
        ("aliases of aliases", chart(&[("crds/a.yaml".into(), laughs.into_bytes())])),
        ("brackets in brackets", chart(&[("crds/a.yaml".into(), deep)])),
        ("very many keys", chart(&[("crds/a.yaml".into(), keys.into_bytes())])),
    ]
}

fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() * 1024
}

#[test]
fn no_archive_takes_more_memory_than_a_few_times_what_may_be_unpacked() {
    for (what, bomb) in bombs() {
        assert!(bomb.len() <= ARCHIVE_BYTES_MAX, "{what}: {} bytes could not be uploaded", bomb.len());
        // From here on the peak is that of what follows.
        std::fs::write("/proc/self/clear_refs", "5").unwrap();
        let (before, begun) = (peak_bytes(), Instant::now());
        let problems = match archive::read(&bomb) {
            Err(error) => vec![error.to_string()],
            Ok(files) => match structure::check(&files, None) {
                Err(problems) => problems.iter().map(|p| format!("{}: {}; {}", p.path, p.reason, p.hint)).collect(),
                Ok(_) => vec![],
            },
        };
        let (peak, seconds) = (peak_bytes().saturating_sub(before), begun.elapsed().as_secs_f64());
        assert!(peak <= PEAK_BYTES_MAX, "{what}: {peak} bytes of memory, in {seconds:.1} s: {problems:?}");
        assert!(seconds <= SECONDS_MAX, "{what}: {seconds:.1} s, in {peak} bytes of memory: {problems:?}");
        assert!(!problems.is_empty(), "{what} is not a chart that can be pushed");
    }
}
