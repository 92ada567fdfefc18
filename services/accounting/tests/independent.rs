//! Ledgers and proofs checked by programs that share no code with this project: Go's `sumdb/note` and `sumdb/tlog`, and
//! Python's `pymerkle` and `cryptography`.

#![cfg(test)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use ledger::{
    Ledger, files,
    note::{Checkpoint, Signer},
    tariff,
    tree::{Nodes as _, Tree, leaf_hash},
};
use mesh_proto::{Timestamp, account::Region};
use prost::Message as _;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_owned()
}

/// A program of `.tools/test`; `None`, loudly, where it is not installed.
fn tool(name: &str) -> Option<PathBuf> {
    let path = root().join(".tools/test").join(name);
    if !path.is_file() {
        let target = if name == "ledger-check" { "servers" } else { "setup-test" };
        println!("SKIPPED: independent: no .tools/test/{name} (run `make {target}`)");
        return None;
    }
    Some(path)
}

/// A ledger of this many entries, by its own rules.
fn entries(count: u64) -> Vec<Vec<u8>> {
    let (mut ledger, mut entries) = (Ledger::default(), vec![]);
    for number in 0..count {
        let at = Timestamp::from_millis(1_700_000_000_000 + number as i64);
        let entry = if number == 0 {
            ledger.opening(tariff::default_tariff(), at)
        } else {
            ledger.region_set(Region { name: format!("r{}", number % 9), ..Region::default() }, at)
        };
        let entry = entry.unwrap();
        let bytes = entry.encode_to_vec();
        ledger.fold(&entry, leaf_hash(&bytes));
        entries.push(bytes);
    }
    entries
}

struct Folder {
    dir: tempfile::TempDir,
    signer: Signer,
    tree: Tree,
    entries: Vec<Vec<u8>>,
}

impl Folder {
    fn new(count: u64) -> Self {
        let (signer, entries) = (Signer::from_seed([5; 32]).unwrap(), entries(count));
        let mut tree = Tree::default();
        entries.iter().for_each(|entry| tree.push(leaf_hash(entry)));
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("ledger.pub"), format!("{}\n", signer.verifier())).unwrap();
        Self { dir, signer, tree, entries }
    }

    fn note(&self, size: u64) -> String {
        self.signer.sign(&Checkpoint { size, root: self.tree.root(size).unwrap() })
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn ledger(&self) -> String {
        files::ledger(self.entries.iter().map(Vec::as_slice), &self.note(self.tree.size()))
    }

    fn key(&self) -> PathBuf {
        self.dir.path().join("ledger.pub")
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn gos_transparency_log_accepts_every_ledger_and_proof_and_no_changed_one() {
    let Some(checker) = tool("ledger-check") else { return };
    let folder = Folder::new(23);
    let mut written = vec![folder.write("ledger.txt", &folder.ledger())];
    for size in 1..=folder.tree.size() {
        for index in 0..size {
            let path = folder.tree.inclusion(index, size).unwrap();
            let text = files::inclusion(index, &folder.entries[index as usize], &path, &folder.note(size));
            written.push(folder.write(&format!("entry-{index}-{size}"), &text));
        }
        for from in 1..=size {
            let path = folder.tree.consistency(from, size).unwrap();
            let text = files::consistency(&folder.note(from), &path, &folder.note(size));
            written.push(folder.write(&format!("since-{from}-{size}"), &text));
        }
    }
    let check = |files: &[PathBuf]| Command::new(&checker).arg(folder.key()).args(files).output().unwrap();
    let output = check(&written);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(written.len(), 1 + 2 * (1..=23).sum::<usize>());
    for name in ["ledger.txt", "entry-7-20", "since-9-21"] {
        let text = fs::read_to_string(folder.dir.path().join(name)).unwrap();
        let at = text.find("\n\n").unwrap() - 8;
        let mut changed = text.into_bytes();
        changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
        let changed = folder.write("changed", &String::from_utf8(changed).unwrap());
        assert!(!check(&[changed]).status.success(), "{name} changed");
    }
}

#[test]
fn pymerkle_finds_the_same_root_and_cryptography_the_signature_good() {
    let Some(python) = tool("bin/python") else { return };
    let folder = Folder::new(100);
    let script = root().join("infra/test/ledger_root.py");
    let check = |file: &Path| Command::new(&python).arg(&script).arg(folder.key()).arg(file).output().unwrap();
    let text = folder.ledger();
    let output = check(&folder.write("ledger.txt", &text));
    assert!(output.status.success() && said(&output).contains("100 entries"), "{}", said(&output));
    let mut lines: Vec<&str> = text.lines().collect();
    lines.swap(5, 6);
    let output = check(&folder.write("changed.txt", &(lines.join("\n") + "\n")));
    assert!(!output.status.success() && said(&output).contains("another root"), "{}", said(&output));
}
