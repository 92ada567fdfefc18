//! What may be named where.

use std::collections::BTreeSet;

use super::{Finding, Tree, source::Source};

/// Crates that a domain may name: the contract, the core, and crates that only compute.
const DOMAIN_CRATES: &[&str] = &[
    "argon2",
    "aws_lc_rs",
    "base64",
    "bytes",
    "chart",
    "core",
    "crate",
    "crc_fast",
    "flate2",
    "hex",
    "http",
    "json_patch",
    "jsonwebtoken",
    "learning",
    "ledger",
    "mesh_core",
    "mesh_intent",
    "mesh_planner",
    "mesh_proto",
    "mesh_rest",
    "mesh_scenes",
    "nkeys",
    "opentelemetry_proto",
    "percent_encoding",
    "proptest",
    "prost",
    "reed_solomon_simd",
    "self",
    "semver",
    "serde",
    "serde_json",
    "serde_saphyr",
    "sha2",
    "sketches_ddsketch",
    "std",
    "strsim",
    "super",
    "tar",
    "thiserror",
    "tonic",
    "uuid",
];

/// What makes code depend on more than its arguments.
const IMPURE: &[&str] = &[
    ".await",
    "async fn",
    "async move",
    "rand::",
    "std::env",
    "std::fs",
    "std::process",
    "std::thread",
    "SystemTime",
    "TcpListener",
    "TcpStream",
    "UdpSocket",
    "Instant",
    "Uuid::new_v4",
    "Uuid::now_v7",
    "tokio",
    "tracing",
    "mesh_bus",
    "mesh_kit",
    "mesh_rest::ask",
    "mesh_rest::http",
    "mesh_store",
];

/// Domains: pure, and named so.
fn is_domain(source: &Source) -> bool {
    let path = source.path.to_string_lossy();
    let service = path.starts_with("services/") && (path.contains("/src/domain/") || path.ends_with("/src/domain.rs"));
    let shared = path
        .strip_prefix("libs/mesh-rest/src/")
        .is_some_and(|file| !matches!(file, "admission.rs" | "ask.rs" | "http.rs"));
    (service || shared || path.starts_with("libs/mesh-core/src/")) && !source.is_test_file()
}

/// A word, not part of a longer one.
fn names(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    let begins_word = word.starts_with(part);
    let ends_word = word.ends_with(part);
    line.match_indices(word).any(|(at, _)| {
        let before = line.get(..at).and_then(|s| s.chars().next_back());
        let after = line.get(at + word.len()..).and_then(|s| s.chars().next());
        let joined_before = begins_word && before.is_some_and(|c| part(c) || c == ':' && word == "rand::");
        let joined_after = ends_word && after.is_some_and(part);
        !joined_before && !joined_after
    })
}

/// A domain names only what computes.
pub(super) fn domains(tree: &Tree) -> Vec<Finding> {
    let mut found = vec![];
    for source in tree.ending(".rs").filter(|s| is_domain(s)) {
        for (number, line) in source.code_lines().filter(|(number, _)| !source.is_test(*number)) {
            if let Some(word) = IMPURE.iter().find(|word| names(line, word)) {
                let message = format!("a domain may not name `{word}`; pass the value in, or move this to src/shell");
                found.push(source.finding("domain", number, message));
                continue;
            }
            let used = line.trim_start().trim_start_matches("pub ").trim_start_matches("pub(crate) ");
            if let Some(path) = used.strip_prefix("use ") {
                let first: String =
                    path.trim_start_matches("::").chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                let local = first.is_empty() || first.starts_with(|c: char| c.is_uppercase()) || line.starts_with(' ');
                if !local && !DOMAIN_CRATES.contains(&first.as_str()) && !declared(source, &first) {
                    let message = format!(
                        "a domain may not use the crate `{first}`; if it only computes, add it to DOMAIN_CRATES"
                    );
                    found.push(source.finding("domain", number, message));
                }
            }
        }
    }
    found
}

/// Is it a module that this file declares?
fn declared(source: &Source, name: &str) -> bool {
    source.code_lines().any(|(_, line)| line.trim_end().ends_with(&format!("mod {name};")))
}

/// Subjects and keys are written in `proto/` only.
pub(super) fn subjects(tree: &Tree) -> Vec<Finding> {
    let areas: BTreeSet<String> = tree.ending(".proto").filter_map(area).collect();
    let mut found = vec![];
    for source in tree.ending(".rs") {
        let path = source.path.to_string_lossy();
        if path.starts_with("proto/") || path.starts_with("xtask/") || source.is_test_file() {
            continue;
        }
        for (number, line) in source.lines().filter(|(number, _)| !source.is_test(*number)) {
            let code = source.code.lines().nth(number - 1).unwrap_or("");
            if code.trim().is_empty() || code.trim_start().starts_with("#[") {
                continue;
            }
            if let Some(subject) = literals(line).into_iter().find(|text| is_subject(text, &areas)) {
                let message =
                    format!("{subject:?} is written here; take it from the contract (mesh_proto::contract())");
                found.push(source.finding("subject", number, message));
            }
        }
    }
    found
}

/// The text between quotation marks on a line.
fn literals(line: &str) -> Vec<&str> {
    line.split('"').skip(1).step_by(2).collect()
}

/// Does it look like a subject (`area.what.v1`) or a key of samples?
fn is_subject(text: &str, areas: &BTreeSet<String>) -> bool {
    if text.starts_with("continuum/") {
        return text.matches('/').count() >= 3;
    }
    if text.contains([' ', '/']) || text.starts_with("continuum.") {
        return false;
    }
    let parts: Vec<&str> = text.split('.').collect();
    let version = |p: &&str| p.len() >= 2 && p.starts_with('v') && p.chars().skip(1).all(|c| c.is_ascii_digit());
    let word = |p: &&str| !p.is_empty() && p.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    let first = parts.iter().find(|p| !["w", "dead", "json"].contains(p)).copied().unwrap_or("");
    areas.contains(first) && parts.iter().position(version).is_some_and(|at| at >= 2 && parts.iter().take(at).all(word))
}

/// The area of a file of the contract: `proto/continuum/<area>/v1/….proto`.
fn area(source: &Source) -> Option<String> {
    source.path.to_string_lossy().strip_prefix("proto/continuum/")?.split('/').next().map(str::to_owned)
}

/// Manifests of crates.
fn manifests(tree: &Tree) -> impl Iterator<Item = &Source> {
    tree.ending("Cargo.toml").filter(|m| m.text.contains("[package]"))
}

/// Each crate takes the workspace's lints.
pub(super) fn lints(tree: &Tree) -> Vec<Finding> {
    manifests(tree)
        .filter(|m| !m.text.replace(' ', "").contains("[lints]\nworkspace=true"))
        .map(|m| m.finding("lints", 1, "the crate does not take the workspace's lints; add [lints] workspace = true"))
        .collect()
}

/// Dependencies that only some crates may have.
fn only(tree: &Tree, rule: &'static str, crates: &[&str], packages: &[&str], instead: &str) -> Vec<Finding> {
    let mut found = vec![];
    for manifest in manifests(tree).filter(|m| !packages.contains(&m.package().as_str())) {
        for (number, line) in manifest.lines() {
            let name = line.split(['.', ' ', '=']).next().unwrap_or("");
            if crates.contains(&name) {
                found.push(manifest.finding(rule, number, format!("`{name}` may not be a dependency here; {instead}")));
            }
        }
    }
    found
}

/// Databases are behind `mesh-store`; `bench` measures it against their drivers.
pub(super) fn drivers(tree: &Tree) -> Vec<Finding> {
    const DRIVERS: &[&str] = &[
        "cdrs-tokio",
        "clickhouse",
        "deadpool-postgres",
        "diesel",
        "fjall",
        "influxdb",
        "influxdb2",
        "influxdb2-structmap",
        "mongodb",
        "neo4rs",
        "postgres",
        "redb",
        "redis",
        "rocksdb",
        "rusqlite",
        "scylla",
        "sea-orm",
        "sled",
        "sqlx",
        "tokio-postgres",
        "tokio-rusqlite",
    ];
    only(tree, "driver", DRIVERS, &["libs/mesh-store", "bench"], "use mesh-store")
}

/// NATS and Zenoh are behind `mesh-bus`.
pub(super) fn transports(tree: &Tree) -> Vec<Finding> {
    const PACKAGES: &[&str] = &["libs/mesh-bus", "libs/mesh-admin", "libs/mesh-test", "bench", "integration-tests"];
    only(tree, "transport", &["async-nats", "zenoh"], PACKAGES, "use mesh-bus")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_that_reads_the_clock_is_found_and_its_tests_are_not() {
        let text = "//! tokio\nuse tokio::time;\nuse mesh_core::Key;\nfn f() { let now = std::time::Instant::now(); }\n\
                    #[cfg(test)]\nmod tests {\n    use tokio::time;\n}\n";
        let tree = Tree::of(&[("services/x/src/domain/y.rs", text), ("services/x/src/shell/y.rs", text)]);
        let lines: Vec<usize> = domains(&tree).iter().map(|f| f.line).collect();
        assert_eq!(lines, [2, 4], "the runtime and the clock");
    }

    #[test]
    fn subjects_and_keys_are_known_from_packages_and_paths() {
        let areas = BTreeSet::from(["intent".to_owned()]);
        for subject in ["intent.ask.submit.v1.local", "w.intent.submitted.v1", "continuum/*/*/alive/*"] {
            assert!(is_subject(subject, &areas), "{subject}");
        }
        for text in [
            "continuum.intent.v1.Intent",
            "chart.v1",
            "see intent.submitted.v1 for it",
            "grpc.health.v1",
            "a.b.c",
            "application/x",
        ] {
            assert!(!is_subject(text, &areas), "{text}");
        }
    }

    #[test]
    fn a_driver_or_a_missing_lint_table_is_found() {
        let with = "[package]\nname = \"a\"\n[lints]\nworkspace = true\n[dependencies]\nredis.workspace = true\n";
        let tree = Tree::of(&[("services/a/Cargo.toml", with), ("libs/b/Cargo.toml", "[package]\nname = \"b\"\n")]);
        assert_eq!(drivers(&tree).len(), 1);
        assert_eq!(lints(&tree).len(), 1);
    }
}
