//! `docs/how-to/add-a-service.md`, followed to the letter in a scratch copy.

#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "a test starts, waits for and measures real processes")]
#![allow(clippy::print_stderr, missing_docs)]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const PAGE: &str = "docs/how-to/add-a-service.md";
/// Existing files that may have to be edited by hand to add a service.
const EDITS_MAX: usize = 5;

/// A block of the page: the file it is for, the line it goes after if the file exists already, and its lines.
struct Block {
    file: String,
    after: Option<String>,
    text: String,
}

fn blocks(page: &str) -> Vec<Block> {
    let mut found = vec![];
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        let Some((fence, rest)) = line.split_once("```") else { continue };
        let Some((_, attributes)) = rest.split_once(" file=") else { continue };
        let (file, after) = attributes.split_once(" after=").map_or((attributes, None), |(f, a)| (f, Some(a)));
        let text: String = lines
            .by_ref()
            .take_while(|line| line.trim_start() != "```")
            .map(|line| format!("{}\n", line.strip_prefix(fence).unwrap_or(line)))
            .collect();
        found.push(Block { file: file.to_owned(), after: after.map(|a| a.trim_matches('"').to_owned()), text });
    }
    found
}

/// A copy of what git knows of, and of what is new.
fn copy(root: &Path) -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("continuum-scratch-").tempdir().unwrap();
    let listed = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .unwrap();
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    for name in String::from_utf8(listed.stdout).unwrap().split('\0').filter(|name| !name.is_empty()) {
        let (from, to) = (root.join(name), folder.path().join(name));
        // A file that is deleted but not yet committed is still listed.
        if from.is_file() {
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(from, to).unwrap();
        }
    }
    folder
}

/// Writes the blocks, and returns the existing files that were edited.
fn follow(page: &str, scratch: &Path) -> BTreeSet<String> {
    let mut edited = BTreeSet::new();
    for block in blocks(page) {
        let path = scratch.join(&block.file);
        match block.after {
            None => {
                assert!(!path.exists(), "{} exists: say after which line the block goes", block.file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, block.text).unwrap();
            }
            Some(after) => {
                let before = fs::read_to_string(&path).unwrap();
                let line = format!("{after}\n");
                assert_eq!(before.matches(&line).count(), 1, "{}: {after:?}", block.file);
                fs::write(path, before.replace(&line, &format!("{line}{}", block.text))).unwrap();
                edited.insert(block.file);
            }
        }
    }
    edited
}

fn read(scratch: &Path, file: &str) -> String {
    fs::read_to_string(scratch.join(file)).unwrap()
}

#[test]
fn a_service_is_added_by_the_page_and_everything_follows() {
    let root = xtask::root();
    let scratch = copy(&root);
    let scratch = scratch.path();
    let edited = follow(&fs::read_to_string(root.join(PAGE)).unwrap(), scratch);
    assert!(edited.len() <= EDITS_MAX, "{edited:?}");

    xtask::generate::run(scratch, &[]).unwrap();
    for (file, line) in [
        ("compose.yaml", "    image: ${CONTINUUM_IMAGES:-continuum}/greeter:"),
        ("compose.yaml", "      CONTINUUM_BUS_SEED_FILE: /key/greeter.nk\n"),
        ("k8s/base/greeter.yaml", "  name: greeter\n"),
        ("k8s/base/kustomization.yaml", "  - greeter.yaml\n"),
        ("k8s/overlays/local/kustomization.yaml", "      - keys/greeter.nk\n"),
        ("schemas/wire.txt", "message continuum.greeting.v1.Greet\n"),
        ("libs/mesh-all/src/registry.rs", "\"greeter\" => self.join_as(joint, greeter::start).await,\n"),
        ("libs/mesh-all/Cargo.toml", "greeter.workspace = true\n"),
        ("Cargo.toml", "greeter = { path = \"services/greeter\" }\n"),
    ] {
        if file.starts_with("libs/mesh-all/") && !root.join("libs/mesh-all").is_dir() {
            continue;
        }
        assert!(read(scratch, file).contains(line), "{file} has no {line:?}");
    }
    assert!(xtask::generate::stale(scratch).unwrap().is_empty());

    // The same row taken back leaves nothing behind, once its promises are taken back as well.
    fs::copy(root.join("proto/continuum/mesh/v1/bus.proto"), scratch.join("proto/continuum/mesh/v1/bus.proto"))
        .unwrap();
    fs::remove_dir_all(scratch.join("proto/continuum/greeting")).unwrap();
    let refused = xtask::generate::run(scratch, &[]).unwrap_err().to_string();
    assert!(refused.contains("message continuum.greeting.v1.Greet"), "{refused}");
    fs::copy(root.join("schemas/wire.txt"), scratch.join("schemas/wire.txt")).unwrap();
    xtask::generate::run(scratch, &[]).unwrap();
    assert!(!scratch.join("k8s/base/greeter.yaml").exists());
    assert_eq!(read(scratch, "compose.yaml"), read(&root, "compose.yaml"));
}

/// The long form compiles the service, in a target folder of its own, and starts it on a bus.
#[test]
fn the_service_of_the_page_compiles_and_starts() {
    if !std::env::var_os("CONTINUUM_FULL").is_some_and(|value| value != "0" && !value.is_empty()) {
        eprintln!("SHORT: the service of {PAGE} is compiled and started in the long form only (`make test-full`)");
        return;
    }
    let root = xtask::root();
    let scratch = copy(&root);
    follow(&fs::read_to_string(root.join(PAGE)).unwrap(), scratch.path());
    xtask::generate::run(scratch.path(), &[]).unwrap();
    let target =
        std::env::var_os("CONTINUUM_SCRATCH_TARGET").map_or_else(|| root.join("target/scratch"), PathBuf::from);
    let status = xtask::cargo()
        .args(["test", "--offline", "-p", "greeter"])
        .current_dir(scratch.path())
        .env("CARGO_TARGET_DIR", target)
        .env("PATH", path_with_tools(&root))
        .status()
        .unwrap();
    assert!(status.success());
}

/// The servers that tests find in `.tools` of the repository are found from the copy by the path.
fn path_with_tools(root: &Path) -> std::ffi::OsString {
    let own = std::env::var_os("PATH").unwrap_or_default();
    let all = std::iter::once(root.join(".tools")).chain(std::env::split_paths(&own));
    std::env::join_paths(all).unwrap()
}
