//! The worst habits of our English, in code, comments, messages and documents; `docs/style.md` has the rest.

use super::{Finding, Tree};

/// Phrases, and what to write instead.
const PHRASES: &[(&str, &str)] = &[
    ("anew", "again"),
    ("is none", "does not exist, or: unknown …"),
    ("are none", "do not exist, or: invalid …"),
    ("not to be had", "unavailable, missing, unreachable"),
    ("to be had", "available"),
    ("of before", "previous, saved"),
    ("goes on without", "say what happens, and what to do"),
    ("so often", "the number"),
    ("so many", "the number"),
    ("is it not", "is not"),
    ("cure", "hint"),
    ("cures", "hints"),
];

/// Nouns after "is no": "x is no file" is not English for "x is not a file".
const NOUNS: &[&str] = &[
    "address",
    "archive",
    "bucket",
    "chart",
    "cluster",
    "command",
    "condition",
    "date",
    "document",
    "event",
    "fact",
    "field",
    "file",
    "folder",
    "header",
    "host",
    "id",
    "instance",
    "integer",
    "intent",
    "json",
    "key",
    "kind",
    "label",
    "language",
    "list",
    "location",
    "measure",
    "method",
    "name",
    "number",
    "object",
    "page",
    "path",
    "port",
    "reference",
    "role",
    "seed",
    "service",
    "signature",
    "site",
    "state",
    "stream",
    "subject",
    "target",
    "template",
    "time",
    "timestamp",
    "token",
    "type",
    "unit",
    "url",
    "user",
    "uuid",
    "value",
    "verb",
    "version",
    "word",
    "workload",
    "yaml",
];

/// Files that quote the habits.
const QUOTED: &[&str] = &["docs/style.md", "CHANGELOG.md", "xtask/src/tidy/english.rs"];

/// Phrases in Rust, Markdown and proto files.
pub(super) fn english(tree: &Tree) -> Vec<Finding> {
    let mut found = vec![];
    for source in &tree.files {
        let path = source.path.to_string_lossy();
        if QUOTED.contains(&path.as_ref()) || path.ends_with(".toml") {
            continue;
        }
        for (number, line) in source.lines() {
            let words: Vec<String> = line
                .split(|c: char| !c.is_alphanumeric() && c != '_' && c != '\'')
                .filter(|w| !w.is_empty())
                .map(str::to_lowercase)
                .collect();
            if let Some((phrase, instead)) = PHRASES.iter().find(|(phrase, _)| holds(&words, phrase)) {
                found.push(source.finding("english", number, format!("\"{phrase}\": write {instead}")));
            } else if let Some(noun) = is_no(&words) {
                found.push(source.finding(
                    "english",
                    number,
                    format!("\"is no {noun}\": write \"is not a {noun}\", or \"invalid {noun}\""),
                ));
            }
        }
    }
    found
}

/// Do these words hold the phrase? "there is none" is English.
fn holds(words: &[String], phrase: &str) -> bool {
    let phrase: Vec<&str> = phrase.split(' ').collect();
    words.windows(phrase.len()).enumerate().any(|(at, w)| {
        let there = phrase.last() == Some(&"none") && at > 0 && words.get(at - 1).is_some_and(|w| w == "there");
        !there && w.iter().zip(&phrase).all(|(a, b)| a == b)
    })
}

/// "x is no file", but not "there is no file".
fn is_no(words: &[String]) -> Option<&str> {
    words.windows(3).enumerate().find_map(|(at, window)| {
        let [is, no, noun] = window else { return None };
        let verb = matches!(is.as_str(), "is" | "are" | "was" | "be");
        let there = at > 0 && words.get(at - 1).is_some_and(|w| matches!(w.as_str(), "there" | "where"));
        (verb && no == "no" && !there && at > 0 && NOUNS.contains(&noun.as_str())).then_some(noun.as_str())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phrases_are_found_as_whole_words() {
        let text = "// begin anew\nlet secure = 1;\n\"{id} is no file\"\n// there is no file\n// it is no longer so\n";
        let tree = Tree::of(&[("services/x/src/lib.rs", text), ("docs/style.md", text)]);
        assert_eq!(english(&tree).iter().map(|f| f.line).collect::<Vec<_>>(), [1, 3]);
    }
}
