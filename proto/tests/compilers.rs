//! The contract is compiled by the compilers that others use, not only by the one that builds this crate: `protoc` (of
//! grpcio-tools) and `buf`. What they make of it is the same as what this crate holds.

#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "a test starts, waits for and measures real processes")]
#![allow(missing_docs)]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
};

use mesh_proto::DESCRIPTORS;
use prost_reflect::prost::Message as _;
use prost_types::{FileDescriptorProto, FileDescriptorSet};

/// A program that `make setup-test` installs; says so if it is not there.
fn tool(name: &str) -> Option<PathBuf> {
    let found = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/test/bin").join(name);
    if !found.is_file() {
        eprintln!("SKIPPED: compilers: no .tools/test/bin/{name} (run `make setup-test`)");
        return None;
    }
    Some(found)
}

fn run(command: &mut Command) -> String {
    let output = command.current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {said}");
    said
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            found.push(path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap().to_owned());
        }
    }
}

/// The files of the contract in a descriptor set, by name: what is on the wire, without comments and without how each
/// compiler writes its own options.
fn contract(set: &[u8]) -> BTreeMap<String, FileDescriptorProto> {
    let set = FileDescriptorSet::decode(set).unwrap();
    let files = set.file.into_iter().filter(|file| file.package().starts_with("continuum."));
    let plain = |mut file: FileDescriptorProto| {
        file.source_code_info = None;
        // Which of the imports are used is a note for compilers.
        file.dependency.sort();
        (file.name().to_owned(), file)
    };
    files.map(plain).collect()
}

fn same_as_ours(set: &[u8]) {
    let (ours, theirs) = (contract(DESCRIPTORS), contract(set));
    assert!(ours.len() > 40, "{} files", ours.len());
    assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
    for (name, file) in &ours {
        assert!(*file == theirs[name], "{name} is another contract");
    }
}

#[test]
fn protoc_compiles_the_contract_to_the_same() {
    let Some(python) = tool("python") else { return };
    let folder = std::env::temp_dir().join(format!("continuum-protoc-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let out = folder.join("set.binpb");
    let mut files = vec![];
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("continuum"), &mut files);
    run(Command::new(python)
        .args(["-m", "grpc_tools.protoc", "-I.", "--include_imports"])
        .arg(format!("--descriptor_set_out={}", out.display()))
        .arg(format!("--python_out={}", folder.display()))
        .arg(format!("--grpc_python_out={}", folder.display()))
        .args(&files));
    same_as_ours(&std::fs::read(&out).unwrap());
    assert!(folder.join("continuum/account/v1/queries_pb2_grpc.py").is_file());
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn buf_compiles_the_contract_to_the_same_and_finds_nothing_new() {
    let Some(buf) = tool("buf") else { return };
    let out = std::env::temp_dir().join(format!("continuum-buf-{}.binpb", std::process::id()));
    run(Command::new(&buf).args(["build", "-o"]).arg(&out));
    same_as_ours(&std::fs::read(&out).unwrap());
    std::fs::remove_file(&out).unwrap();
    assert_eq!(run(Command::new(&buf).arg("lint")), "", "say in buf.yaml why it is so, or change it");
}
