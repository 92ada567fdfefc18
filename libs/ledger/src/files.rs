//! What can be kept and checked without the service: an exported ledger, a proof that an entry is in it, a proof that one
//! head continues another. Text, so that it can be mailed; strict, so that no byte of it can change unseen.
//!
//! - A ledger: a title, each entry as base64 on a line, an empty line, the signed head.
//! - An inclusion proof is a C2SP `tlog-proof`: a title, the entry as `extra`, its index, the path, an empty line, the head.
//! - A consistency proof: a title, the older head as base64, the path, an empty line, the newer head.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use mesh_proto::account::Entry;
use prost::Message as _;

use crate::{
    ledger::{Fault, Ledger},
    note::{self, Checkpoint, Verifier},
    tree::{Hash, leaf_hash, verify_consistency, verify_inclusion},
};

const LEDGER: &str = "continuum ledger v1";
const INCLUSION: &str = "c2sp.org/tlog-proof@v1";
const CONSISTENCY: &str = "continuum ledger consistency v1";
/// Hashes in the longest path that is read.
const PATH_MAX: usize = 64;

/// Why a file proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It is not a file of these kinds.
    #[error("line {line}: {what}")]
    Malformed {
        /// Line, from 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
    /// The head is not the signer's.
    #[error(transparent)]
    Head(#[from] note::Error),
    /// The entries are others than those of the head.
    #[error("the {found} entries are not those that the head of {signed} entries was signed for")]
    Other {
        /// Entries in the file.
        found: u64,
        /// Entries of the head.
        signed: u64,
    },
    /// The path leads elsewhere.
    #[error("the proof does not hold: the path does not lead to the root of the signed head")]
    Path,
    /// An entry is not what the ledger's rules give.
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// What a file proves.
#[derive(Clone, Debug, PartialEq)]
pub enum Proved {
    /// A whole ledger, every entry made again and compared.
    Ledger {
        /// Its head.
        head: Checkpoint,
        /// The ledger after its last entry.
        ledger: Box<Ledger>,
    },
    /// An entry is in the ledger of a head.
    Inclusion {
        /// The head.
        head: Checkpoint,
        /// The entry.
        entry: Box<Entry>,
    },
    /// The ledger of one head continues that of another.
    Consistency {
        /// The older head.
        from: Checkpoint,
        /// The newer one.
        to: Checkpoint,
    },
}

/// A whole ledger as text.
pub fn ledger<'a>(entries: impl IntoIterator<Item = &'a [u8]>, note: &str) -> String {
    let mut text = format!("{LEDGER}\n");
    for entry in entries {
        STANDARD.encode_string(entry, &mut text);
        text.push('\n');
    }
    text + "\n" + note
}

/// A proof that an entry is in the ledger of a head, as text.
pub fn inclusion(index: u64, entry: &[u8], path: &[Hash], note: &str) -> String {
    format!("{INCLUSION}\nextra {}\nindex {index}\n{}\n{note}", STANDARD.encode(entry), hashes(path))
}

/// A proof that the ledger of one head continues that of another, as text.
pub fn consistency(from_note: &str, path: &[Hash], to_note: &str) -> String {
    format!("{CONSISTENCY}\nfrom {}\n{}\n{to_note}", STANDARD.encode(from_note), hashes(path))
}

fn hashes(path: &[Hash]) -> String {
    path.iter().map(|hash| STANDARD.encode(hash) + "\n").collect()
}

/// What a file proves, given its signer's key and nothing else.
///
/// # Errors
/// Why it proves nothing.
pub fn verify(text: &str, key: &Verifier) -> Result<Proved, Error> {
    let (body, note) =
        text.split_once("\n\n").ok_or(malformed(1, "an empty line before the signed head is missing"))?;
    let mut lines = body.split('\n').enumerate().map(|(at, line)| (at + 1, line));
    let (_, title) = lines.next().unwrap_or((1, ""));
    let head = key.open(note)?;
    match title {
        LEDGER => {
            let mut ledger = Ledger::default();
            for (at, line) in lines {
                let bytes = base64(at, line)?;
                let entry = entry(at, &bytes)?;
                ledger.audit(&entry)?;
                ledger.fold(&entry, leaf_hash(&bytes));
            }
            if (ledger.size(), ledger.tree.root()) != (head.size, head.root) {
                return Err(Error::Other { found: ledger.size(), signed: head.size });
            }
            Ok(Proved::Ledger { head, ledger: Box::new(ledger) })
        }
        INCLUSION => {
            let bytes = base64(2, after(lines.next(), 2, "extra ")?)?;
            let index: u64 =
                after(lines.next(), 3, "index ")?.parse().map_err(|_| malformed(3, "the index is not a number"))?;
            let path = path(lines)?;
            if !verify_inclusion(leaf_hash(&bytes), index, head.size, &path, &head.root) {
                return Err(Error::Path);
            }
            let entry = entry(2, &bytes)?;
            if inclusion(index, &bytes, &path, note) != text || entry.index != index {
                return Err(malformed(3, "the file is not as it was written"));
            }
            Ok(Proved::Inclusion { head, entry: Box::new(entry) })
        }
        CONSISTENCY => {
            let older = base64(2, after(lines.next(), 2, "from ")?)?;
            let older = String::from_utf8(older).map_err(|_| malformed(2, "the older head is not text"))?;
            let from = key.open(&older)?;
            if !verify_consistency(from.size, &from.root, head.size, &head.root, &path(lines)?) {
                return Err(Error::Path);
            }
            Ok(Proved::Consistency { from, to: head })
        }
        other => Err(malformed(1, &format!("{:?} is not a known title", other.chars().take(60).collect::<String>()))),
    }
}

fn malformed(line: usize, what: &str) -> Error {
    Error::Malformed { line, what: what.to_owned() }
}

/// The bytes of base64 text, of which there is one spelling only.
fn base64(at: usize, line: &str) -> Result<Vec<u8>, Error> {
    STANDARD.decode(line).map_err(|error| malformed(at, &format!("not base64: {error}")))
}

fn entry(at: usize, bytes: &[u8]) -> Result<Entry, Error> {
    Entry::decode(bytes).map_err(|error| malformed(at, &format!("no entry of a ledger: {error}")))
}

fn after<'a>(line: Option<(usize, &'a str)>, at: usize, prefix: &str) -> Result<&'a str, Error> {
    line.and_then(|(_, line)| line.strip_prefix(prefix)).ok_or_else(|| malformed(at, &format!("`{prefix}` is missing")))
}

fn path<'a>(lines: impl Iterator<Item = (usize, &'a str)>) -> Result<Vec<Hash>, Error> {
    let mut path = vec![];
    for (at, line) in lines {
        if path.len() == PATH_MAX {
            return Err(malformed(at, "the path is too long"));
        }
        path.push(base64(at, line)?.try_into().map_err(|_| malformed(at, "a hash has 32 bytes"))?);
    }
    Ok(path)
}
