//! Circles between the files of one crate: files that use each other, directly or through others. A module and what is
//! below it belong together; between them nothing is counted.

use std::collections::{BTreeMap, BTreeSet};

use super::{Finding, Tree, source::Source};

/// Crates whose one circle is accepted, with the reason in `docs/adr` or beside the code.
const ACCEPTED: &[&str] = &[];

/// Circles in each crate.
pub(super) fn circles(tree: &Tree) -> Vec<Finding> {
    let mut packages: BTreeMap<String, Vec<&Source>> = BTreeMap::new();
    for source in tree.ending(".rs").filter(|s| !s.is_test_file() && s.path.to_string_lossy().contains("/src/")) {
        packages.entry(source.package()).or_default().push(source);
    }
    let mut found = vec![];
    for (package, sources) in packages {
        let modules: BTreeMap<Vec<String>, &Source> = sources.iter().map(|s| (module(s), *s)).collect();
        let graph: BTreeMap<&Vec<String>, BTreeSet<&Vec<String>>> =
            modules.iter().map(|(name, source)| (name, used(name, source, &modules))).collect();
        for circle in components(&graph).into_iter().filter(|_| !ACCEPTED.contains(&package.as_str())) {
            let names: Vec<String> = circle.iter().map(|m| m.join("::")).collect();
            let Some(source) = circle.first().and_then(|first| modules.get(*first)) else { continue };
            let message =
                format!("files use each other in a circle: {}; move what both need to a third", names.join(", "));
            found.push(source.finding("circle", 1, message));
        }
    }
    found
}

/// The module that a file is, as its path from the crate's root.
fn module(source: &Source) -> Vec<String> {
    let path = source.path.to_string_lossy();
    let inside = path.rsplit_once("/src/").map_or("", |(_, inside)| inside).trim_end_matches(".rs");
    let mut parts: Vec<String> = inside.split('/').map(str::to_owned).collect();
    if matches!(parts.last().map(String::as_str), Some("mod" | "lib" | "main")) {
        parts.pop();
    }
    parts
}

/// The files whose items a file names by `crate::`, `super::` or `self::`.
fn used<'a>(own: &[String], source: &Source, modules: &'a BTreeMap<Vec<String>, &Source>) -> BTreeSet<&'a Vec<String>> {
    let mut code = String::new();
    for (number, line) in source.code_lines() {
        if !source.is_test(number) {
            code.push_str(line);
        }
        code.push('\n');
    }
    let mut found = BTreeSet::new();
    for root in ["crate::", "super::", "self::"] {
        for (at, _) in code.match_indices(root) {
            if code
                .get(..at)
                .and_then(|s| s.chars().next_back())
                .is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
            {
                continue;
            }
            let base = match root {
                "crate::" => vec![],
                "self::" => own.to_vec(),
                _ => own.get(..own.len().saturating_sub(1)).unwrap_or_default().to_vec(),
            };
            for path in paths(code.get(at + root.len()..).unwrap_or("")) {
                let mut name = base.clone();
                let mut deepest = None;
                for part in path {
                    if part == "super" {
                        name.pop();
                        continue;
                    }
                    name.push(part);
                    match modules.get_key_value(&name) {
                        Some((module, _)) => deepest = Some(module),
                        None => break,
                    }
                }
                let related = |other: &[String]| other.starts_with(own) || own.starts_with(other);
                found.extend(deepest.filter(|other| !related(other)));
            }
        }
    }
    found
}

/// The paths of a `use` tree, or the one path that begins here.
fn paths(text: &str) -> Vec<Vec<String>> {
    let mut out = vec![];
    let mut prefix: Vec<Vec<String>> = vec![];
    let mut current: Vec<String> = vec![];
    let mut word = String::new();
    for c in text.chars() {
        match c {
            _ if c.is_alphanumeric() || c == '_' => word.push(c),
            ':' => {
                if !word.is_empty() {
                    current.push(std::mem::take(&mut word));
                }
            }
            '{' => prefix.push(current.clone()),
            ',' | '}' if !prefix.is_empty() => {
                let mut path = current.clone();
                path.push(std::mem::take(&mut word));
                out.push(path);
                if c == '}' {
                    prefix.pop();
                }
                current = prefix.last().cloned().unwrap_or_default();
                if prefix.is_empty() {
                    return out;
                }
            }
            _ if c.is_whitespace() && !prefix.is_empty() => {}
            _ => break,
        }
    }
    current.push(word);
    out.push(current);
    out
}

/// Groups of more than one file that reach each other.
fn components<'a>(graph: &BTreeMap<&'a Vec<String>, BTreeSet<&'a Vec<String>>>) -> Vec<Vec<&'a Vec<String>>> {
    let reach = |from: &'a Vec<String>| {
        let mut seen = BTreeSet::new();
        let mut next = vec![from];
        while let Some(at) = next.pop() {
            for to in graph.get(at).into_iter().flatten() {
                if seen.insert(*to) {
                    next.push(to);
                }
            }
        }
        seen
    };
    let reached: BTreeMap<&Vec<String>, BTreeSet<&'a Vec<String>>> = graph.keys().map(|m| (*m, reach(m))).collect();
    let mut done: BTreeSet<&Vec<String>> = BTreeSet::new();
    let mut out = vec![];
    for at in graph.keys() {
        if done.contains(*at) || !reached.get(*at).is_some_and(|r| r.contains(*at)) {
            continue;
        }
        let together: Vec<&'a Vec<String>> = graph
            .keys()
            .copied()
            .filter(|other| {
                reached.get(*at).is_some_and(|r| r.contains(*other))
                    && reached.get(*other).is_some_and(|r| r.contains(*at))
            })
            .collect();
        done.extend(together.iter().copied());
        out.push(together);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_use_each_other_are_a_circle() {
        let tree = Tree::of(&[
            ("services/x/src/lib.rs", "mod a;\nmod b;\nmod c;\nuse crate::a::A;\n"),
            ("services/x/src/a.rs", "use crate::{b::B, c};\n"),
            ("services/x/src/b.rs", "use super::c::C;\nfn f() {}\n"),
            ("services/x/src/c.rs", "fn f() { crate::a::g() }\n"),
        ]);
        let found = circles(&tree);
        assert_eq!(found.len(), 1);
        assert!(found[0].message.contains("a, b, c"), "{}", found[0]);
    }

    #[test]
    fn a_module_and_its_children_or_a_test_are_no_circle() {
        let tree = Tree::of(&[
            ("services/x/src/a.rs", "mod b;\nuse self::b::B;\n#[cfg(test)]\nmod tests {\n    use crate::c::C;\n}\n"),
            ("services/x/src/a/b.rs", "use super::A;\n"),
            ("services/x/src/c.rs", "use crate::a::A;\n"),
        ]);
        assert_eq!(circles(&tree), []);
    }
}
