//! `xtask config`: writes `docs/reference/configuration.md` from what each service prints with `--print-config` and
//! from the comments of its fields.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail, ensure};

const PAGE: &str = "docs/reference/configuration.md";

const HEAD: &str = "\
# Configuration

<!-- Written by `cargo xtask config` from `SERVICE --print-config` and the comments in the code. Do not edit. -->

Each service has a flat set of keys: those that all services share, and its own. A value comes from, each layer over the
one before: the default, a file (`--config FILE` or `CONTINUUM_CONFIG`; YAML or JSON), the environment, `--set key=value`.

In the environment a shared key is `CONTINUUM_<KEY>`, and any key of one service is `<SERVICE>_<KEY>`:
`CONTINUUM_BUS_URL`, `CLUSTER_AGENT_CPU_MILLI`. Lists are written with commas. `SERVICE --print-config` shows each value
with its origin; secrets are never printed.

## Exit codes

| code | meaning |
| --- | --- |
| 0 | done |
| 64 | the configuration is wrong; the key is named |
| 69 | the bus is unreachable |
| 70 | a part of the process failed |
| 130, 143 | ended by a second signal |
";

/// Writes the page, or with `--check` compares it.
///
/// # Errors
/// When a service is not built, does not print its configuration, or the page differs.
#[expect(clippy::print_stdout, reason = "a program for people")]
pub fn run(root: &Path, arguments: &[&str]) -> anyhow::Result<()> {
    let page = render(root)?;
    let path = root.join(PAGE);
    match arguments {
        [] => {
            std::fs::write(&path, page).with_context(|| format!("write {PAGE}"))?;
            println!("wrote {PAGE}");
        }
        ["--check"] => {
            let there = std::fs::read_to_string(&path).with_context(|| format!("read {PAGE}"))?;
            ensure!(there == page, "{PAGE} differs from what the services print; run `cargo xtask config`");
            println!("{PAGE} is current");
        }
        _ => bail!("unknown arguments {arguments:?}; use --check, or none"),
    }
    Ok(())
}

fn render(root: &Path) -> anyhow::Result<String> {
    let shared = comments(root, &root.join("libs/mesh-kit/src"), "Settings")?;
    let mut page = HEAD.to_owned();
    let mut common: Option<Vec<(String, String)>> = None;
    let mut services = String::new();
    for folder in folders(&root.join("services"))? {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !folder.join("src/main.rs").exists() {
            continue;
        }
        let own = comments(root, &folder.join("src"), "Config")?;
        let values = printed(&target(root).join(&name))?;
        let (common_values, own_values): (Vec<_>, Vec<_>) =
            values.into_iter().partition(|(key, _)| shared.contains_key(key) && !own.contains_key(key));
        let _ = writeln!(services, "\n## {name}\n");
        if own_values.is_empty() {
            services.push_str("It has no keys of its own.\n");
        } else {
            services.push_str(&table(&own_values, &own));
        }
        common.get_or_insert(common_values);
    }
    page.push_str("\n## Shared by all services\n\n");
    page.push_str(&table(&common.context("there is no service")?, &shared));
    page.push_str(&services);
    Ok(page)
}

fn table(values: &[(String, String)], comments: &BTreeMap<String, String>) -> String {
    let mut out = String::from("| key | default | what |\n| --- | --- | --- |\n");
    for (key, value) in values {
        let value: Vec<String> =
            value.lines().filter(|l| !l.is_empty()).map(|l| format!("`{}`", l.replace('|', "\\|"))).collect();
        let comment = comments.get(key).map_or("", String::as_str).replace('|', "\\|");
        let _ = writeln!(out, "| `{key}` | {} | {comment} |", value.join("<br>"));
    }
    out
}

/// Subfolders, sorted.
fn folders(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(path).with_context(|| format!("read folder {}", path.display()))?;
    let mut folders: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).filter(|p| p.is_dir()).collect();
    folders.sort();
    Ok(folders)
}

/// Where the programs are built.
#[expect(clippy::disallowed_methods, reason = "cargo's own variable, read by a developer's program")]
fn target(root: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from).join("debug")
}

/// Keys and defaults as a service prints them.
fn printed(program: &Path) -> anyhow::Result<Vec<(String, String)>> {
    let name = program.display();
    let output = Command::new(program)
        .arg("--print-config")
        .env_clear()
        .output()
        .with_context(|| format!("run {name} --print-config; build it with `make build`"))?;
    ensure!(
        output.status.success(),
        "{name} --print-config failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    parse(&String::from_utf8_lossy(&output.stdout)).with_context(|| format!("read what {name} printed"))
}

/// Lines `key  value  default`; a value may have several lines, of which the last names the origin.
fn parse(text: &str) -> anyhow::Result<Vec<(String, String)>> {
    let mut out = vec![];
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let (key, rest) = line.split_once(' ').with_context(|| format!("{line:?} has no value"))?;
        let mut rest = rest.trim_start().to_owned();
        while !rest.ends_with("default") {
            let more = lines.next().with_context(|| format!("{key} has no origin"))?;
            rest.push('\n');
            rest.push_str(more);
        }
        out.push((key.to_owned(), rest.trim_end_matches("default").trim().to_owned()));
    }
    out.sort();
    Ok(out)
}

/// The comment of each field of a struct, from whichever file below a folder has it.
fn comments(root: &Path, folder: &Path, name: &str) -> anyhow::Result<BTreeMap<String, String>> {
    let mut folders = vec![folder.to_owned()];
    while let Some(at) = folders.pop() {
        let mut entries: Vec<PathBuf> = std::fs::read_dir(&at)
            .with_context(|| format!("read folder {}", at.display()))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .collect();
        entries.sort();
        for path in entries {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
                if let Some(fields) = fields(&text, name) {
                    return Ok(fields);
                }
            }
        }
    }
    let folder = folder.strip_prefix(root).unwrap_or(folder);
    bail!("no file in {} has `pub struct {name}`", folder.display())
}

fn fields(text: &str, name: &str) -> Option<BTreeMap<String, String>> {
    let start = text.find(&format!("pub struct {name} {{"))?;
    let mut fields = BTreeMap::new();
    let mut comment = String::new();
    for line in text.get(start..)?.lines().skip(1) {
        let line = line.trim();
        if let Some(more) = line.strip_prefix("///") {
            if !comment.is_empty() {
                comment.push(' ');
            }
            comment.push_str(more.trim());
        } else if let Some(field) = line.strip_prefix("pub ") {
            let field = field.split(':').next().unwrap_or("");
            fields.insert(field.to_owned(), std::mem::take(&mut comment));
        } else if line == "}" {
            break;
        }
    }
    Some(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_several_lines_and_empty_ones_are_read() {
        let text = "rules   a: x > 1\nb: y > 2   default\nempty                default\ntick_ms  1000    default\n";
        let expected = [("empty", ""), ("rules", "a: x > 1\nb: y > 2"), ("tick_ms", "1000")];
        let expected: Vec<(String, String)> = expected.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        assert_eq!(parse(text).unwrap(), expected);
    }

    #[test]
    fn fields_have_their_comments() {
        let text = "pub struct Config {\n    /// How long,\n    /// milliseconds.\n    pub wait_ms: u64,\n}\n";
        assert_eq!(fields(text, "Config").unwrap()["wait_ms"], "How long, milliseconds.");
        assert_eq!(fields("pub struct Config {}\n", "Settings"), None);
    }
}
