//! A file, and what of it is code, comment or test.

use std::path::PathBuf;

use super::Finding;

/// A file of the tree.
pub(crate) struct Source {
    /// Relative to the root.
    pub(crate) path: PathBuf,
    /// As it is.
    pub(crate) text: String,
    /// Rust only: the same with comments and the inside of literals blanked; every line keeps its number.
    pub(crate) code: String,
    /// Rust only: lines that belong to tests (from 0).
    test_lines: Vec<bool>,
}

impl Source {
    pub(crate) fn new(path: PathBuf, text: String) -> Self {
        let rust = path.extension().is_some_and(|e| e == "rs");
        let code = if rust { blank(&text) } else { String::new() };
        let test_lines = if rust { test_lines(&code) } else { vec![] };
        Self { path, text, code, test_lines }
    }

    /// Lines with their numbers, from 1.
    pub(crate) fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(number, line)| (number + 1, line))
    }

    /// Lines of code without comments and literals, with their numbers, from 1.
    pub(crate) fn code_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.code.lines().enumerate().map(|(number, line)| (number + 1, line))
    }

    /// Is this line part of a test? All lines of test files are.
    pub(crate) fn is_test(&self, line: usize) -> bool {
        self.is_test_file() || self.test_lines.get(line.saturating_sub(1)).copied().unwrap_or(false)
    }

    /// Is all of it compiled for tests only?
    pub(crate) fn is_test_file(&self) -> bool {
        let path = self.path.to_string_lossy();
        path.contains("/tests/")
            || path.ends_with("/tests.rs")
            || ["integration-tests/", "libs/mesh-test/"].iter().any(|folder| path.starts_with(folder))
    }

    /// The folder of its crate, such as `services/validator`.
    pub(crate) fn package(&self) -> String {
        let path = self.path.to_string_lossy();
        let parts: Vec<&str> = path.split('/').collect();
        let depth = if ["libs", "services", "examples"].contains(parts.first().unwrap_or(&"")) { 2 } else { 1 };
        parts.get(..depth.min(parts.len())).unwrap_or_default().join("/")
    }

    pub(crate) fn finding(&self, rule: &'static str, line: usize, message: impl Into<String>) -> Finding {
        Finding { rule, file: self.path.clone(), line, message: message.into() }
    }
}

/// Blanks comments and the inside of string and character literals; lines stay where they are.
fn blank(text: &str) -> String {
    let bytes: Vec<char> = text.chars().collect();
    let at = |i: usize| bytes.get(i).copied().unwrap_or('\0');
    let mut out = String::with_capacity(text.len());
    let mut i = 0;
    let hide = |c: char| if c == '\n' { '\n' } else { ' ' };
    while i < bytes.len() {
        let c = at(i);
        let before = if i == 0 { ' ' } else { at(i - 1) };
        if c == '/' && at(i + 1) == '/' {
            while i < bytes.len() && at(i) != '\n' {
                out.push(' ');
                i += 1;
            }
        } else if c == '/' && at(i + 1) == '*' {
            while i < bytes.len() && !(at(i) == '*' && at(i + 1) == '/') {
                out.push(hide(at(i)));
                i += 1;
            }
        } else if c == 'r' && !before.is_alphanumeric() && before != '_' && raw_hashes(&bytes, i).is_some() {
            let hashes = raw_hashes(&bytes, i).unwrap_or(0);
            i += 1 + hashes;
            out.push('"');
            i += 1;
            while i < bytes.len() && !(at(i) == '"' && (1..=hashes).all(|n| at(i + n) == '#')) {
                out.push(hide(at(i)));
                i += 1;
            }
            out.push('"');
            i += 1 + hashes;
        } else if c == '"' {
            out.push('"');
            i += 1;
            while i < bytes.len() && at(i) != '"' {
                if at(i) == '\\' {
                    out.push(hide(at(i)));
                    i += 1;
                }
                out.push(hide(at(i)));
                i += 1;
            }
            out.push('"');
            i += 1;
        } else if c == '\'' && (at(i + 2) == '\'' || at(i + 1) == '\\') {
            out.push('\'');
            i += 1;
            while i < bytes.len() && at(i) != '\'' {
                if at(i) == '\\' {
                    out.push(' ');
                    i += 1;
                }
                out.push(' ');
                i += 1;
            }
            out.push('\'');
            i += 1;
        } else {
            out.push(c);
            i += 1;
        }
    }
    out
}

/// Number of hashes if a raw string begins here.
fn raw_hashes(text: &[char], at: usize) -> Option<usize> {
    let hashes = text.iter().skip(at + 1).take_while(|c| **c == '#').count();
    (text.get(at + 1 + hashes) == Some(&'"')).then_some(hashes)
}

/// Which lines are within an item under `#[cfg(test)]`.
fn test_lines(code: &str) -> Vec<bool> {
    let lines: Vec<&str> = code.lines().collect();
    let mut tests = vec![false; lines.len()];
    let mut i = 0;
    while i < lines.len() {
        let line = lines.get(i).copied().unwrap_or("").trim_start();
        if !(line.starts_with("#[cfg(test)]") || line.starts_with("#[cfg(any(test")) {
            i += 1;
            continue;
        }
        // Until the braces that the item opens are closed, or its semicolon.
        let (mut depth, mut opened) = (0_i64, false);
        while let Some(line) = lines.get(i) {
            if let Some(test) = tests.get_mut(i) {
                *test = true;
            }
            depth += line.matches('{').count() as i64 - line.matches('}').count() as i64;
            opened |= line.contains('{');
            i += 1;
            let ends = line.trim_end();
            if (opened && depth <= 0) || (!opened && ends.ends_with(';')) {
                break;
            }
        }
    }
    tests
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blank_and_lines_stay() {
        let text = "let a = \"x // {\"; // tokio\nlet c = 'y';\nlet r = r#\"raw \" {\"#;\nfn f<'a>(b: &'a str) {}\n";
        let code = blank(text);
        assert_eq!(code.lines().count(), 4);
        assert!(!code.contains("tokio") && !code.contains("raw") && !code.contains('x'));
        assert!(code.contains("fn f<'a>(b: &'a str) {}"), "{code}");
        assert_eq!(code.matches('{').count(), 1);
    }

    #[test]
    fn what_stands_under_cfg_test_is_a_test() {
        let text =
            "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\nfn c() {}\n#[cfg(test)]\nmod more;\nfn d() {}\n";
        let source = Source::new("services/x/src/lib.rs".into(), text.into());
        let tests: Vec<usize> = (1..=9).filter(|line| source.is_test(*line)).collect();
        assert_eq!(tests, [2, 3, 4, 5, 7, 8]);
    }
}
