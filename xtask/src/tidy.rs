//! `xtask tidy`: rules of this repository that no other tool checks. Each finding names the file, the line, the rule
//! and what to do.
//!
//! A rule that the tree does not fully keep yet has a number in `ALLOWED`: how many findings there may be. It is only
//! ever lowered.

mod borders;
mod circles;
mod english;
mod names;
mod source;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Component, Path, PathBuf},
};

use anyhow::{Context as _, bail};
use source::Source;

/// How many findings of a rule there may be. Rules that are not named have none.
const ALLOWED: &[(&str, usize)] = &[];

/// Folders that are not ours, or made by programs.
const SKIPPED: &[&str] = &[".git", ".tools", ".venv", ".continuum", "target", "node_modules", "golden"];

/// A rule that is broken somewhere.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    rule: &'static str,
    file: PathBuf,
    line: usize,
    message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}: {}", self.file.display(), self.line, self.rule, self.message)
    }
}

/// Checks the tree; prints each finding.
///
/// # Errors
/// When a rule has more findings than it may have, or the tree cannot be read.
#[expect(clippy::print_stdout, reason = "a program for people")]
pub fn run(root: &Path, arguments: &[&str]) -> anyhow::Result<()> {
    let all = arguments.contains(&"--all");
    if let Some(unknown) = arguments.iter().find(|a| **a != "--all") {
        bail!("unknown argument {unknown:?}; use --all, or none");
    }
    let findings = check(root)?;
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for finding in &findings {
        *counts.entry(finding.rule).or_default() += 1;
    }
    let allowed = |rule: &str| ALLOWED.iter().find(|a| a.0 == rule).map_or(0, |a| a.1);
    for finding in findings.iter().filter(|f| all || counts.get(f.rule).copied().unwrap_or(0) > allowed(f.rule)) {
        println!("{finding}");
    }
    for (rule, may) in ALLOWED {
        let found = counts.get(rule).copied().unwrap_or(0);
        if found < *may {
            println!("{rule}: {found} findings, {may} allowed: lower the number in xtask/src/tidy.rs");
        }
    }
    let broken: Vec<String> = counts
        .iter()
        .filter(|(rule, count)| **count > allowed(rule))
        .map(|(rule, count)| format!("{rule}: {count} findings, {} allowed", allowed(rule)))
        .collect();
    anyhow::ensure!(broken.is_empty(), "the tree is not tidy: {}", broken.join("; "));
    println!("tidy: {} rules hold", RULES.len());
    Ok(())
}

/// A rule, over the whole tree.
type Rule = fn(&Tree) -> Vec<Finding>;

const RULES: &[Rule] = &[
    borders::domains,
    borders::subjects,
    borders::lints,
    borders::drivers,
    borders::transports,
    circles::circles,
    english::english,
    names::tests,
    names::markers,
    names::modules,
    errors_documented,
    links,
];

/// All findings, sorted.
///
/// # Errors
/// When the tree cannot be read.
pub fn check(root: &Path) -> anyhow::Result<Vec<Finding>> {
    let tree = Tree::read(root)?;
    let mut findings: Vec<Finding> = RULES.iter().flat_map(|rule| rule(&tree)).collect();
    findings.sort();
    Ok(findings)
}

/// The files that are checked.
pub(crate) struct Tree {
    pub(crate) files: Vec<Source>,
    /// Files of other kinds, which are not read.
    others: BTreeSet<PathBuf>,
}

impl Tree {
    fn read(root: &Path) -> anyhow::Result<Self> {
        let (mut files, mut others) = (vec![], BTreeSet::new());
        let mut folders = vec![root.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).with_context(|| format!("read folder {}", folder.display()))? {
                let entry = entry.context("read folder")?;
                let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
                let kind = entry.file_type().context("read folder")?;
                if kind.is_dir() && !SKIPPED.contains(&name.as_str()) {
                    folders.push(path);
                } else if kind.is_file() && [".rs", ".md", ".proto", ".toml"].iter().any(|end| name.ends_with(end)) {
                    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
                    files.push(Source::new(path.strip_prefix(root).unwrap_or(&path).to_owned(), text));
                } else if kind.is_file() {
                    others.insert(path.strip_prefix(root).unwrap_or(&path).to_owned());
                }
            }
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Self { files, others })
    }

    /// Files with this ending.
    fn ending<'a>(&'a self, end: &'a str) -> impl Iterator<Item = &'a Source> {
        self.files.iter().filter(move |f| f.path.to_string_lossy().ends_with(end))
    }

    #[cfg(test)]
    fn of(files: &[(&str, &str)]) -> Self {
        let files = files.iter().map(|(path, text)| Source::new(path.into(), (*text).to_owned())).collect();
        Self { files, others: BTreeSet::new() }
    }
}

/// Each refusal code has its section in the page of errors.
fn errors_documented(tree: &Tree) -> Vec<Finding> {
    let Some(page) = tree.ending("docs/reference/errors.md").next() else { return vec![] };
    let Some(codes) = tree.ending("mesh/v1/refusal.proto").next() else { return vec![] };
    let names = codes.lines().filter_map(|(number, line)| {
        let name = line.trim().strip_prefix("REFUSAL_CODE_")?.split(' ').next()?;
        Some((number, if name == "UNSPECIFIED" { "REFUSED" } else { name }))
    });
    names
        .filter(|(_, name)| !page.lines().any(|(_, line)| line == format!("## {name}")))
        .map(|(line, name)| {
            codes.finding("errors", line, format!("{name} has no section in docs/reference/errors.md; write one"))
        })
        .collect()
}

/// Relative links of documents lead to files that exist.
fn links(tree: &Tree) -> Vec<Finding> {
    let mut found = vec![];
    for page in tree.ending(".md") {
        for (number, line) in page.lines() {
            for link in line.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
                let path = link.split('#').next().unwrap_or("");
                if path.is_empty() || path.contains("://") || path.starts_with("mailto:") {
                    continue;
                }
                let mut target = page.path.parent().unwrap_or(Path::new("")).to_owned();
                for part in Path::new(path).components() {
                    match part {
                        Component::ParentDir => _ = target.pop(),
                        Component::Normal(name) => target.push(name),
                        _ => {}
                    }
                }
                if !tree.files.iter().any(|f| f.path.starts_with(&target)) && !tree.others.contains(&target) {
                    found.push(page.finding("link", number, format!("{link} leads nowhere; correct it")));
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_that_leads_nowhere_is_found() {
        let text = "[a](../README.md#x) [b](gone.md) [c](https://x.eu) [d](#here) [e](adr)\n";
        let tree = Tree::of(&[("README.md", "x"), ("docs/a.md", text), ("docs/adr/b.md", "y")]);
        let found = links(&tree);
        assert_eq!(found.len(), 1);
        assert!(found[0].message.starts_with("gone.md"), "{}", found[0]);
    }

    #[test]
    fn a_code_without_a_section_is_found() {
        let codes = "enum RefusalCode {\n  REFUSAL_CODE_UNSPECIFIED = 0;\n  REFUSAL_CODE_STALE = 6;\n}\n";
        let proto = "proto/continuum/mesh/v1/refusal.proto";
        let tree = Tree::of(&[("docs/reference/errors.md", "## REFUSED\n\ntext\n"), (proto, codes)]);
        let found = errors_documented(&tree);
        assert_eq!(found.len(), 1);
        assert!(found[0].message.starts_with("STALE"), "{}", found[0]);
    }
}
