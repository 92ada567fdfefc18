//! Names of tests and files, and markers of unfinished work.

use super::{Finding, Tree};

/// Longest name of a test, characters.
const TEST_NAME_MAX: usize = 70;

/// Names of tests.
pub(super) fn tests(tree: &Tree) -> Vec<Finding> {
    let mut found = vec![];
    for source in tree.ending(".rs") {
        let mut is_test = false;
        for (number, line) in source.code_lines() {
            let line = line.trim();
            if line.starts_with("#[") {
                is_test |= line == "#[test]" || line.starts_with("#[tokio::test");
                continue;
            }
            let name = line.split("fn ").nth(1).filter(|_| is_test).and_then(|rest| rest.split(['(', '<']).next());
            if let Some(name) = name {
                if name.len() > TEST_NAME_MAX {
                    let message = format!("`{name}` has {} characters; use at most {TEST_NAME_MAX}", name.len());
                    found.push(source.finding("test-name", number, message));
                }
                if name.contains("_s_") {
                    let message = format!("`{name}` has an apostrophe's `_s_`; use \"of\", or leave it out");
                    found.push(source.finding("test-name", number, message));
                }
                is_test = false;
            } else if !line.is_empty() {
                is_test = false;
            }
        }
    }
    found
}

/// Work that was left, and tests that do not run.
pub(super) fn markers(tree: &Tree) -> Vec<Finding> {
    let mut found = vec![];
    for source in tree.files.iter().filter(|s| !s.path.starts_with("xtask")) {
        for (number, line) in source.lines() {
            if ["TODO", "FIXME", "XXX", "HACK"].iter().any(|marker| whole(line, marker)) {
                found.push(source.finding("marker", number, "finish it, or file an issue"));
            }
        }
        for (number, line) in source.code_lines() {
            if line.contains("#[ignore") {
                found.push(source.finding("ignored", number, "a test runs, or is removed with its reason"));
            }
        }
    }
    found
}

fn whole(line: &str, word: &str) -> bool {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == word)
}

/// One module style: `name.rs` beside `name/`.
pub(super) fn modules(tree: &Tree) -> Vec<Finding> {
    tree.ending("/mod.rs")
        .filter(|s| !s.path.to_string_lossy().contains("/tests/"))
        .map(|s| s.finding("module", 1, "name the file after its module, beside the folder"))
        .collect()
}

#[cfg(test)]
mod checks {
    use super::*;

    #[test]
    fn long_names_and_apostrophes_of_tests_are_found() {
        let long = "a".repeat(71);
        let text =
            format!("#[test]\nfn {long}() {{}}\n#[tokio::test]\nasync fn the_owner_s_key() {{}}\nfn an_s_b() {{}}\n");
        let tree = Tree::of(&[("services/x/src/lib.rs", &text)]);
        assert_eq!(tests(&tree).iter().map(|f| f.line).collect::<Vec<_>>(), [2, 4]);
    }

    #[test]
    fn markers_and_ignored_tests_are_found() {
        let text = "// TODO: later\nlet todos = 1;\n#[ignore]\n// a `#[ignore]` in a comment\n";
        let tree = Tree::of(&[("services/x/src/lib.rs", text)]);
        assert_eq!(markers(&tree).iter().map(|f| f.line).collect::<Vec<_>>(), [1, 3]);
    }
}
