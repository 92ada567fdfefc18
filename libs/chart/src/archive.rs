//! Reading `.tgz` archives that anybody may have made.
//!
//! Memory is bounded by [`UNPACKED_BYTES_MAX`], whatever the archive's headers claim: the limit lies on the bytes that come
//! out of the decompressor, so headers, padding and extension records count too. Nothing is written to a disk here. What
//! is refused rather than mended: paths that lead out of the chart's folder, links and devices, two files of one name,
//! too many or too large entries. An archive inside (`charts/*.tgz`) is read by the same rules and the same limits.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    io::{self, Read},
};

use bytes::Bytes;
use flate2::{Compression, read::MultiGzDecoder, write::GzEncoder};
use tar::{EntryType, Header};

use super::quoted;

/// Bytes of all that an archive unpacks to, those of archives inside it included.
pub const UNPACKED_BYTES_MAX: u64 = 32 << 20;
/// Bytes of the largest file.
pub const FILE_BYTES_MAX: u64 = 5 << 20;
/// Entries, folders included.
pub const ENTRIES_MAX: usize = 4_096;
/// Bytes of the longest path.
pub const PATH_BYTES_MAX: usize = 512;
/// Components of the deepest path.
pub const PATH_DEPTH_MAX: usize = 32;
/// Archives within archives.
const NESTED_MAX: usize = 3;

/// What an archive holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// The one folder that all of it is in.
    pub folder: String,
    /// Contents by path below that folder.
    pub files: BTreeMap<String, Bytes>,
    /// Archives inside it, by the same paths.
    pub archives: BTreeMap<String, Files>,
}

impl Files {
    /// A file as text.
    ///
    /// # Errors
    /// It exists and is not UTF-8.
    pub fn text(&self, path: &str) -> Result<Option<&str>, String> {
        let Some(bytes) = self.files.get(path) else { return Ok(None) };
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(Some(text.trim_start_matches('\u{feff}'))),
            Err(error) => Err(format!("it is not UTF-8 text: {error}")),
        }
    }
}

/// Why an archive is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{reason}; {hint}", before(path))]
pub struct Error {
    /// Where: a path in the archive; empty for the whole.
    pub path: String,
    /// What is wrong.
    pub reason: String,
    /// What to do.
    pub hint: String,
}

fn before(path: &str) -> String {
    if path.is_empty() { String::new() } else { format!("{path}: ") }
}

impl Error {
    fn new(path: impl Into<String>, reason: impl Into<String>, hint: impl Into<String>) -> Self {
        let path: String = path.into();
        Self { path: path.chars().take(128).collect(), reason: reason.into(), hint: hint.into() }
    }
}

/// How to make one that is right.
const PACK: &str = "make the archive with `helm package`";

/// Reads an archive.
///
/// # Errors
/// It is not a gzipped tar file, or breaks one of the rules.
pub fn read(archive: &[u8]) -> Result<Files, Error> {
    let mut left = Left { bytes: UNPACKED_BYTES_MAX, entries: ENTRIES_MAX };
    read_within(archive, &mut left, 0)
}

/// Packs files below one folder: the same files always give the same bytes, and so the same digest.
///
/// # Errors
/// A path that no tar file can hold.
pub fn pack(folder: &str, files: &BTreeMap<String, Bytes>) -> io::Result<Vec<u8>> {
    let mut builder = tar::Builder::new(GzEncoder::new(vec![], Compression::default()));
    for (path, content) in files {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        header.set_mtime(0);
        builder.append_data(&mut header, format!("{folder}/{path}"), &content[..])?;
    }
    builder.into_inner()?.finish()
}

/// What may still come.
struct Left {
    bytes: u64,
    entries: usize,
}

/// Counts what comes out of the decompressor.
struct Counted<'a, R> {
    inner: R,
    left: &'a mut u64,
    /// Set when more came than may.
    exceeded: &'a Cell<bool>,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if *self.left == 0 {
            // The end may be exactly here.
            return match self.inner.read(&mut [0; 1])? {
                0 => Ok(0),
                _ => {
                    self.exceeded.set(true);
                    Err(io::Error::other("more than is unpacked"))
                }
            };
        }
        let most = usize::try_from(*self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.inner.read(buffer.get_mut(..most).unwrap_or_default())?;
        *self.left -= read as u64;
        Ok(read)
    }
}

fn read_within(archive: &[u8], left: &mut Left, depth: usize) -> Result<Files, Error> {
    if depth > NESTED_MAX {
        let reason = format!("archives are nested more than {NESTED_MAX} deep");
        return Err(Error::new("", reason, "unpack those inside into folders"));
    }
    if archive.is_empty() {
        return Err(Error::new("", "the archive is empty", PACK));
    }
    if !archive.starts_with(&[0x1f, 0x8b]) {
        return Err(Error::new("", "the archive is not gzip-compressed", PACK));
    }
    let mut found = Files::default();
    let mut folders = BTreeSet::new();
    let Left { bytes, entries: entries_left } = left;
    let exceeded = Cell::new(false);
    let unread = |error| unread(&error, exceeded.get());
    let counted = Counted { inner: MultiGzDecoder::new(archive), left: bytes, exceeded: &exceeded };
    let mut tar = tar::Archive::new(counted);
    for entry in tar.entries().map_err(unread)? {
        let mut entry = entry.map_err(unread)?;
        if *entries_left == 0 {
            let reason = format!("it has more than {ENTRIES_MAX} entries");
            return Err(Error::new("", reason, "leave out what the chart does not need"));
        }
        *entries_left -= 1;
        let raw = entry.path_bytes().into_owned();
        let shown = String::from_utf8_lossy(&raw).into_owned();
        let kind = entry.header().entry_type();
        match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::Directory => {}
            // Comments for all that follows, as `git archive` writes them.
            EntryType::XGlobalHeader => continue,
            EntryType::Symlink | EntryType::Link => {
                let target = entry.link_name_bytes().unwrap_or_default();
                let reason = format!("it is a link to {}", quoted(&String::from_utf8_lossy(&target)));
                return Err(Error::new(shown, reason, "put the file itself there; links are not followed"));
            }
            _ => {
                let reason = "it is neither a file nor a folder (a device, a pipe or a sparse file)";
                return Err(Error::new(shown, reason, PACK));
            }
        }
        let path = std::str::from_utf8(&raw).map_err(|_| Error::new(&shown, "its path is not UTF-8", PACK))?;
        let parts = components(path).map_err(|reason| {
            Error::new(&shown, reason, "use plain relative paths below one folder with the chart's name")
        })?;
        let Some((folder, inside)) = parts.split_first() else { continue };
        if found.folder.is_empty() {
            found.folder = (*folder).to_owned();
        } else if found.folder != *folder {
            let reason = format!("it lies in {} and not in {}, as what came before", quoted(folder), found.folder);
            return Err(Error::new(shown, reason, "put all of the chart into one folder"));
        }
        let path = inside.join("/");
        if kind == EntryType::Directory {
            folders.insert(path);
            continue;
        }
        if inside.is_empty() {
            return Err(Error::new(shown, "it is a file outside of the chart's folder", PACK));
        }
        let size = entry.size();
        if size > FILE_BYTES_MAX {
            let reason = format!("its header claims {size} bytes; at most {FILE_BYTES_MAX} are allowed");
            return Err(Error::new(shown, reason, "leave it out of the chart (see .helmignore)"));
        }
        // An entry's claimed size is not trusted for the allocation.
        let mut content = Vec::with_capacity(usize::try_from(size).unwrap_or(0).min(64 << 10));
        (&mut entry).take(FILE_BYTES_MAX + 1).read_to_end(&mut content).map_err(unread)?;
        if content.len() as u64 != size {
            let reason = format!("it is cut off after {} of {size} bytes", content.len());
            return Err(Error::new(shown, reason, "upload the whole archive"));
        }
        if found.files.insert(path, content.into()).is_some() {
            return Err(Error::new(shown, "there are two files of this name", "leave one of them out"));
        }
    }
    // To the end, where the checksum is: an archive that is cut off there is one, too.
    io::copy(&mut tar.into_inner(), &mut io::sink()).map_err(unread)?;
    let under_a_file = found.files.keys().find(|path| {
        let mut above = path.match_indices('/').map(|(end, _)| &path[..end]);
        above.any(|folder| found.files.contains_key(folder)) || folders.contains(*path)
    });
    if let Some(path) = under_a_file {
        return Err(Error::new(path, "a file and a folder have the same name", "rename one of them"));
    }
    if found.files.is_empty() {
        return Err(Error::new("", "it holds no file", PACK));
    }
    let nested: Vec<String> = found.files.keys().filter(|path| is_archive(path)).cloned().collect();
    for path in nested {
        let Some(content) = found.files.get(&path) else { continue };
        let inner = read_within(content, left, depth + 1);
        let inner = inner.map_err(|e| Error { path: format!("{path}: {}", e.path), ..e })?;
        found.archives.insert(path, inner);
    }
    Ok(found)
}

/// Is this a chart that another depends on, as an archive? Helm unpacks those, and no others.
fn is_archive(path: &str) -> bool {
    let tgz = path.ends_with(".tgz") || path.ends_with(".tar.gz");
    tgz && (path.starts_with("charts/") || path.contains("/charts/"))
}

/// A path's components, without those that mean nothing.
fn components(path: &str) -> Result<Vec<&str>, String> {
    if path.len() > PATH_BYTES_MAX {
        return Err(format!("its path has {} bytes; at most {PATH_BYTES_MAX} are allowed", path.len()));
    }
    if path.starts_with('/') {
        return Err("its path is absolute".into());
    }
    if path.contains('\\') || path.contains('\0') || path.chars().any(char::is_control) {
        return Err("its path holds a backslash or a control character".into());
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.contains(&"..") {
        return Err("its path leads out of its folder (`..`)".into());
    }
    if parts.iter().any(|part| part.as_bytes().get(1) == Some(&b':')) {
        return Err("its path names a drive".into());
    }
    if parts.len() > PATH_DEPTH_MAX {
        return Err(format!("its path is {} deep; at most {PATH_DEPTH_MAX} is allowed", parts.len()));
    }
    Ok(parts)
}

/// What an error means; `exceeded`: it is that of the limit, whatever the library that passed it on made of it.
fn unread(error: &io::Error, exceeded: bool) -> Error {
    if exceeded {
        let reason = format!("it unpacks to more than {UNPACKED_BYTES_MAX} bytes");
        return Error::new("", reason, "leave out what the chart does not need");
    }
    Error::new("", format!("it is not a readable gzipped tar file: {}", quoted(&error.to_string())), PACK)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    /// A tar file's bytes with these entries.
    pub(crate) fn tar(entries: &[(&str, EntryType, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(vec![]);
        for (path, kind, content) in entries {
            let mut header = Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o644);
            header.set_size(content.len() as u64);
            if matches!(kind, EntryType::Symlink | EntryType::Link) {
                header.set_link_name("/etc/passwd").unwrap();
                header.set_size(0);
            }
            // Set as they are: `set_path` would refuse what is to be tried here.
            let name = &mut header.as_old_mut().name;
            name[..path.len()].copy_from_slice(path.as_bytes());
            header.set_cksum();
            let content = if header.size().unwrap() == 0 { &[][..] } else { content };
            builder.append(&header, content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(vec![], Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// A `.tgz` of plain files.
    pub(crate) fn tgz(files: &[(&str, &str)]) -> Vec<u8> {
        let entries: Vec<(&str, EntryType, &[u8])> =
            files.iter().map(|(path, text)| (*path, EntryType::Regular, text.as_bytes())).collect();
        gzip(&tar(&entries))
    }

    fn refused(archive: &[u8]) -> String {
        let error = read(archive).unwrap_err();
        assert!(!error.reason.is_empty() && !error.hint.is_empty());
        format!("{}: {}", error.path, error.reason)
    }

    #[test]
    fn what_was_packed_is_read() {
        let files = read(&tgz(&[("./web/Chart.yaml", "name: web"), ("web/templates/a.yaml", "a")])).unwrap();
        assert_eq!((files.folder.as_str(), files.files.len()), ("web", 2));
        assert_eq!(files.text("Chart.yaml"), Ok(Some("name: web")));
        assert_eq!(files.text("values.yaml"), Ok(None));
    }

    #[test]
    fn the_same_files_are_packed_to_the_same_bytes_and_read_as_they_were() {
        let long = format!("templates/{}.yaml", "long".repeat(40));
        let files: BTreeMap<String, Bytes> =
            [("Chart.yaml", "name: web"), (&long, "a: 1")].map(|(k, v)| (k.into(), v.into())).into();
        let packed = pack("web", &files).unwrap();
        assert_eq!(packed, pack("web", &files).unwrap());
        assert_eq!(read(&packed).unwrap().files, files);
    }

    #[test]
    fn a_path_that_leads_out_of_its_folder_is_refused() {
        for (path, why) in [
            ("../evil.yaml", "`..`"),
            ("web/../../evil.yaml", "`..`"),
            ("web/templates/../../../etc/cron.d/x", "`..`"),
            ("/etc/passwd", "absolute"),
            ("web\\..\\evil.yaml", "backslash"),
            ("C:/evil.yaml", "drive"),
            ("web/a\nb", "control"),
        ] {
            let text = refused(&gzip(&tar(&[(path, EntryType::Regular, b"x")])));
            assert!(text.contains(why), "{path}: {text}");
        }
    }

    #[test]
    fn links_and_devices_are_refused() {
        for kind in [EntryType::Symlink, EntryType::Link] {
            let text = refused(&gzip(&tar(&[("web/values.yaml", kind, b"")])));
            assert!(text.starts_with("web/values.yaml: it is a link to \"/etc/passwd\""), "{text}");
        }
        for kind in [EntryType::Char, EntryType::Block, EntryType::Fifo] {
            let text = refused(&gzip(&tar(&[("web/values.yaml", kind, b"")])));
            assert!(text.contains("neither a file nor a folder"), "{text}");
        }
    }

    #[test]
    fn a_bomb_is_refused_by_what_comes_out_of_it() {
        let zeros = vec![0u8; FILE_BYTES_MAX as usize];
        let names: Vec<String> = (0..8).map(|n| format!("web/{n}")).collect();
        let entries: Vec<(&str, EntryType, &[u8])> =
            names.iter().map(|n| (n.as_str(), EntryType::Regular, zeros.as_slice())).collect();
        let bomb = gzip(&tar(&entries));
        assert!(bomb.len() < 300_000, "40 MB are packed into {} bytes", bomb.len());
        assert!(refused(&bomb).contains("unpacks to more than 33554432 bytes"));
        // Gzip alone, with no end of tar blocks in it.
        let mut endless = GzEncoder::new(vec![], Compression::fast());
        for _ in 0..64 {
            endless.write_all(&vec![b'a'; 1 << 20]).unwrap();
        }
        refused(&endless.finish().unwrap());
    }

    #[test]
    fn a_long_name_record_of_many_bytes_is_bounded_too() {
        let mut builder = tar::Builder::new(vec![]);
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::GNULongName);
        header.set_size(64 << 20);
        header.set_cksum();
        builder.append(&header, std::io::repeat(b'a').take(64 << 20)).unwrap();
        let text = refused(&gzip(&builder.into_inner().unwrap()));
        assert!(text.contains("unpacks to more than"), "{text}");
    }

    #[test]
    fn a_huge_entry_and_one_that_lies_about_its_size_are_refused() {
        let mut header = Header::new_gnu();
        header.set_path("web/huge").unwrap();
        header.set_size(1 << 40);
        header.set_cksum();
        let text = refused(&gzip(header.as_bytes()));
        assert!(text.contains("at most 5242880 are allowed"), "{text}");
        header.set_size(1_000);
        header.set_cksum();
        let mut cut = header.as_bytes().to_vec();
        cut.extend([b'x'; 512]);
        let text = refused(&gzip(&cut));
        assert!(text.contains("cut off") || text.contains("not a readable"), "{text}");
    }

    #[test]
    fn too_many_entries_two_of_one_name_and_two_folders_are_refused() {
        let names: Vec<String> = (0..=ENTRIES_MAX).map(|n| format!("web/{n}")).collect();
        let many: Vec<(&str, &str)> = names.iter().map(|n| (n.as_str(), "")).collect();
        assert!(refused(&tgz(&many)).contains("more than 4096 entries"));
        assert!(refused(&tgz(&[("web/a", "1"), ("./web//a", "2")])).contains("two files of this name"));
        assert!(refused(&tgz(&[("web/a", "1"), ("other/a", "2")])).contains("lies in \"other\""));
        assert!(refused(&tgz(&[("web/a", "1"), ("web/a/b", "2")])).contains("same name"));
        assert!(refused(&tgz(&[("a", "1")])).contains("outside of the chart's folder"));
        let deep = format!("web/{}x", "d/".repeat(40));
        assert!(refused(&tgz(&[(&deep, "1")])).contains("deep"));
    }

    #[test]
    fn an_archive_inside_is_read_by_the_same_rules_and_within_the_same_limits() {
        let good = tgz(&[("sub/Chart.yaml", "name: sub")]);
        let outer = |inner: &[u8]| gzip(&tar(&[("web/charts/sub-1.0.0.tgz", EntryType::Regular, inner)]));
        let files = read(&outer(&good)).unwrap();
        assert_eq!(files.archives["charts/sub-1.0.0.tgz"].folder, "sub");
        let evil = gzip(&tar(&[("sub/../../x", EntryType::Regular, b"x")]));
        assert!(refused(&outer(&evil)).starts_with("charts/sub-1.0.0.tgz: sub/../../x: "));
        let mut nest = good;
        for _ in 0..5 {
            nest = outer(&nest);
        }
        assert!(refused(&nest).contains("nested more than 3 deep"));
    }

    #[test]
    fn what_is_no_archive_is_refused_with_the_hint() {
        for bad in [&b""[..], b"hello", b"PK\x03\x04 a zip", &[0x1f, 0x8b], &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0]] {
            let error = read(bad).unwrap_err();
            assert!(error.hint.contains("helm package"), "{error}");
        }
        assert!(refused(&gzip(b"no tar at all, but long enough")).contains("not a readable gzipped tar file"));
        let whole = tgz(&[("web/Chart.yaml", "name: web")]);
        for cut in 1..whole.len() - 8 {
            read(&whole[..cut]).unwrap_err();
        }
    }

    proptest! {
        /// Whatever bytes come, the answer is files or a refusal.
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..2_000), at in 0..600usize) {
            drop(read(&bytes));
            drop(read(&gzip(&bytes)));
            let mut changed = tar(&[("web/Chart.yaml", EntryType::Regular, b"name: web")]);
            let end = (at + bytes.len()).min(changed.len());
            changed[at..end].copy_from_slice(&bytes[..end - at]);
            drop(read(&gzip(&changed)));
        }
    }
}
