//! The first check: is this a chart, and the one that its document speaks of?
//!
//! `Chart.yaml` and something to render, in `templates` or in a chart that it depends on; name and version as in the
//! document; every file that Helm reads as YAML parses; everything that the chart depends on is inside. What Helm takes is
//! taken. What these fields may hold is Helm's documentation of charts, apiVersion v1 and v2.

use mesh_proto::{intent::Problem, is_key};
use semver::Version;
use serde_json::Value;

use super::{PROBLEMS_MAX, archive::Files, problem, quoted, yaml};

/// The fields of `Chart.yaml`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chart {
    /// Its name.
    pub name: String,
    /// Its version, semantic version 2.
    pub version: String,
    /// Version of what it runs; any text.
    pub app_version: String,
    /// One line on what it is.
    pub description: String,
    /// Kubernetes versions that it is for; empty for any.
    pub kube_version: String,
}

/// Checks a chart; with the name and version that its document gives, if there is one.
///
/// # Errors
/// Everything that is wrong, at most [`PROBLEMS_MAX`].
pub fn check(files: &Files, expected: Option<(&str, &str)>) -> Result<Chart, Vec<Problem>> {
    let mut found = Found(vec![]);
    let chart = chart_yaml(&mut found, files);
    if let Some((name, version)) = expected {
        if !chart.name.is_empty() && chart.name != name {
            let reason = format!("the chart is named {}, its document {}", quoted(&chart.name), quoted(name));
            found.add("Chart.yaml: name", reason, "give both the same name");
        }
        if !chart.version.is_empty() && !is_same(&chart.version, version) {
            let reason = format!("the chart is of version {}, its document of {version}", quoted(&chart.version));
            found.add("Chart.yaml: version", reason, "give both the same version");
        }
    }
    match parsed(files, "values.yaml") {
        None | Some(Ok(Value::Null | Value::Object(_))) => {}
        Some(Ok(_)) => found.add("values.yaml", "it is not a mapping", "write keys with their values"),
        Some(Err(error)) => found.add("values.yaml", error, "correct it"),
    }
    if files.files.contains_key("values.schema.json")
        && let Err(error) = schema(files)
    {
        found.add("values.schema.json", error, "correct it, or leave it out");
    }
    templates(&mut found, files);
    for (path, inner) in &files.archives {
        if let Err(problems) = check_part(inner) {
            problems.into_iter().for_each(|p| found.add(format!("{path}: {}", p.path), p.reason, p.hint));
        }
    }
    // All else is the chart's own: a template that another file includes, the settings of a program.
    for path in files.files.keys().filter(|path| is_yaml(path) && is_definition(path)) {
        if let Some(Err(error)) = many(files, path) {
            found.add(path.clone(), error, "correct it");
        }
    }
    if found.0.is_empty() { Ok(chart) } else { Err(found.0) }
}

/// A chart that another depends on: its own name, version and values.
fn check_part(files: &Files) -> Result<Chart, Vec<Problem>> {
    let mut found = Found(vec![]);
    let chart = chart_yaml(&mut found, files);
    if let Some(Err(error)) = parsed(files, "values.yaml") {
        found.add("values.yaml", error, "correct it");
    }
    if found.0.is_empty() { Ok(chart) } else { Err(found.0) }
}

struct Found(Vec<Problem>);

impl Found {
    fn add(&mut self, path: impl Into<String>, reason: impl Into<String>, hint: impl Into<String>) {
        if self.0.len() < PROBLEMS_MAX {
            self.0.push(problem(path, reason, hint));
        }
    }
}

fn chart_yaml(found: &mut Found, files: &Files) -> Chart {
    let value = match parsed(files, "Chart.yaml") {
        Some(Ok(value @ Value::Object(_))) => value,
        Some(Ok(_)) => {
            found.add("Chart.yaml", "it is not a mapping", "give apiVersion, name and version");
            return Chart::default();
        }
        Some(Err(error)) => {
            found.add("Chart.yaml", error, "correct it");
            return Chart::default();
        }
        None => {
            found.add("Chart.yaml", "the chart's folder does not contain it", "make the archive with `helm package`");
            return Chart::default();
        }
    };
    let text = |key: &str| match value.get(key) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(()),
    };
    let mut plain = |key: &str| {
        text(key).unwrap_or_else(|()| {
            found.add(format!("Chart.yaml: {key}"), "it is not text", "put it in quotes");
            String::new()
        })
    };
    let chart = Chart {
        name: plain("name"),
        version: plain("version"),
        app_version: text("appVersion").unwrap_or_default(),
        description: plain("description"),
        kube_version: plain("kubeVersion"),
    };
    let (api, kind) = (plain("apiVersion"), plain("type"));
    if !matches!(api.as_str(), "v1" | "v2") {
        found.add("Chart.yaml: apiVersion", format!("{} is unknown", quoted(&api)), "use v2 (or v1 for Helm 2)");
    }
    if chart.name.is_empty() && text("name").is_ok() {
        found.add("Chart.yaml: name", "it is missing", "give the chart a name");
    } else if !chart.name.is_empty() && !is_key(&chart.name) {
        let hint = "use 1 to 64 letters, digits, `_` and `-`: it names the workload, too";
        found.add("Chart.yaml: name", format!("{} is not a name", quoted(&chart.name)), hint);
    }
    if chart.version.is_empty() && text("version").is_ok() {
        found.add("Chart.yaml: version", "it is missing", "give a semantic version, such as 1.0.0");
    } else if let Some(error) = version(&chart.version).err().filter(|_| !chart.version.is_empty()) {
        let reason = format!("{} is not a semantic version: {error}", quoted(&chart.version));
        found.add("Chart.yaml: version", reason, "use a semantic version, such as 1.0.0");
    }
    match kind.as_str() {
        "" | "application" => {}
        "library" => found.add("Chart.yaml: type", "a library chart runs nothing", "push a chart that uses it"),
        other => {
            found.add("Chart.yaml: type", format!("{} is unknown", quoted(other)), "use application, or leave it out");
        }
    }
    dependencies(found, files, &value);
    chart
}

/// Whatever is listed must be inside: nothing is fetched when a chart is rendered.
fn dependencies(found: &mut Found, files: &Files, chart: &Value) {
    let old = parsed(files, "requirements.yaml").and_then(Result::ok);
    let listed = chart.get("dependencies").or_else(|| old.as_ref()?.get("dependencies"));
    let listed = match listed {
        None | Some(Value::Null) => return,
        Some(Value::Array(listed)) => listed,
        Some(_) => {
            return found.add("Chart.yaml: dependencies", "it is not a list", "write a list of name and version");
        }
    };
    let mut inside: Vec<String> = files.archives.values().filter_map(name_of).collect();
    let folders = files.files.keys().filter_map(|path| path.strip_prefix("charts/")?.split_once("/Chart.yaml"));
    inside.extend(folders.filter(|(folder, rest)| rest.is_empty() && !folder.contains('/')).filter_map(
        |(folder, _)| {
            let value = parsed(files, &format!("charts/{folder}/Chart.yaml"))?.ok()?;
            Some(value.get("name")?.as_str()?.to_owned())
        },
    ));
    for (index, dependency) in listed.iter().enumerate().take(PROBLEMS_MAX) {
        let at = format!("Chart.yaml: dependencies[{index}]");
        let name = dependency.get("name").and_then(Value::as_str).unwrap_or_default();
        if name.is_empty() {
            found.add(at, "it has no name", "name the chart that it is");
        } else if !inside.iter().any(|known| known == name) {
            let reason = format!("the chart {} is not in charts/", quoted(name));
            found.add(at, reason, "run `helm dependency update` and package the chart again");
        }
    }
}

fn name_of(files: &Files) -> Option<String> {
    Some(parsed(files, "Chart.yaml")?.ok()?.get("name")?.as_str()?.to_owned())
}

/// A version as Helm reads it: semantic, with or without `v`, its last numbers left out.
///
/// # Errors
/// What is wrong with it.
pub fn version(text: &str) -> Result<Version, String> {
    let bare = text.strip_prefix('v').unwrap_or(text);
    let (numbers, rest) = bare.split_at(bare.find(['-', '+']).unwrap_or(bare.len()));
    let missing = 2_usize.saturating_sub(numbers.matches('.').count());
    Version::parse(&format!("{numbers}{}{rest}", ".0".repeat(missing))).map_err(|error| error.to_string())
}

fn is_same(one: &str, other: &str) -> bool {
    one == other || matches!((version(one), version(other)), (Ok(one), Ok(other)) if one == other)
}

fn templates(found: &mut Found, files: &Files) {
    let others = files.files.keys().any(|path| path.starts_with("charts/") && path.ends_with("/Chart.yaml"));
    if others || !files.archives.is_empty() {
        return;
    }
    let mut templates = files.files.keys().filter_map(|path| path.strip_prefix("templates/")).peekable();
    if templates.peek().is_none() {
        return found.add("templates", "the folder is missing", "put the chart's templates there");
    }
    if templates.all(|path| path == "NOTES.txt") {
        found.add("templates", "it holds nothing but NOTES.txt", "put what is to be rendered there");
    }
}

fn schema(files: &Files) -> Result<(), String> {
    let text = files.text("values.schema.json")?.unwrap_or_default();
    match serde_json::from_str::<Value>(text) {
        Ok(Value::Object(_) | Value::Bool(_)) => Ok(()),
        Ok(_) => Err("it is not a JSON schema".into()),
        Err(error) => Err(format!("it is not JSON: {error}")),
    }
}

/// One document of a file; `None` if the file is missing.
fn parsed(files: &Files, path: &str) -> Option<Result<Value, String>> {
    match files.text(path) {
        Ok(None) => None,
        Ok(Some(text)) => Some(yaml::document(text).map_err(|error| format!("it is not YAML: {error}"))),
        Err(error) => Some(Err(error)),
    }
}

fn many(files: &Files, path: &str) -> Option<Result<Vec<Value>, String>> {
    match files.text(path) {
        Ok(None) => None,
        Ok(Some(text)) => Some(yaml::documents(text).map_err(|error| format!("it is not YAML: {error}"))),
        Err(error) => Some(Err(error)),
    }
}

fn is_yaml(path: &str) -> bool {
    path.ends_with(".yaml") || path.ends_with(".yml")
}

/// Is it a definition of resources, which Helm reads as it is?
fn is_definition(path: &str) -> bool {
    path.starts_with("crds/") || (path.starts_with("charts/") && path.contains("/crds/"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::{
        super::archive::{self, tests::tgz},
        *,
    };

    pub(crate) const CHART: &str = "apiVersion: v2\nname: web\nversion: 1.2.3\nappVersion: \"27\"\n";
    const TEMPLATE: &str = "kind: {{ .Values.kind }}";

    /// The problems of a good chart after these files were put over it; a file of no text is left out.
    fn after(changes: &[(&str, &str)]) -> Result<Chart, Vec<String>> {
        let mut files = vec![("Chart.yaml", CHART), ("values.yaml", "a: 1"), ("templates/a.yaml", TEMPLATE)];
        for change in changes {
            files.retain(|(path, _)| *path != change.0);
            files.extend(Some(*change).filter(|(_, text)| !text.is_empty()));
        }
        let files: Vec<(String, &str)> = files.iter().map(|(path, text)| (format!("web/{path}"), *text)).collect();
        let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (path.as_str(), *text)).collect();
        let read = archive::read(&tgz(&files)).unwrap();
        let shown = |problems: Vec<Problem>| {
            let each = problems.into_iter().inspect(|p| assert!(!p.hint.is_empty(), "{p:?}"));
            each.map(|p| format!("{}: {}", p.path, p.reason)).collect::<Vec<_>>()
        };
        check(&read, Some(("web", "1.2.3"))).map_err(shown)
    }

    fn one(changes: &[(&str, &str)], begin: &str, holds: &str) {
        let problems = after(changes).unwrap_err();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].starts_with(begin) && problems[0].contains(holds), "{problems:?}");
    }

    #[test]
    fn a_good_chart_is_known_by_its_name_and_version() {
        let chart = after(&[]).unwrap();
        assert_eq!((chart.name.as_str(), chart.version.as_str(), chart.app_version.as_str()), ("web", "1.2.3", "27"));
        after(&[("values.schema.json", "{}"), ("crds/a.yaml", "a: 1\n---\nb: 2"), ("README.md", "hi")]).unwrap();
        after(&[("values.yaml", "# nothing")]).unwrap();
    }

    #[test]
    fn what_is_missing_is_named() {
        one(&[("Chart.yaml", ""), ("values.yaml", "a: 1")], "Chart.yaml", "folder does not contain it");
        one(&[("templates/a.yaml", "")], "templates", "the folder is missing");
        one(&[("templates/a.yaml", ""), ("templates/NOTES.txt", "hi")], "templates", "nothing but NOTES.txt");
    }

    #[test]
    fn chart_yaml_is_held_to_its_rules_field_by_field() {
        let with = |from: &str, to: &str| CHART.replace(from, to);
        for (text, begin, holds) in [
            (with("v2", "v3"), "Chart.yaml: apiVersion", "\"v3\" is unknown"),
            (with("name: web", "name: other"), "Chart.yaml: name", "its document \"web\""),
            (with("1.2.3", "1.2.4"), "Chart.yaml: version", "its document of 1.2.3"),
            (with("1.2.3", "\"1.2\""), "Chart.yaml: version", "its document of 1.2.3"),
            (with("1.2.3", "\"1.2.3.4\""), "Chart.yaml: version", "not a semantic version"),
            (with("1.2.3", "latest"), "Chart.yaml: version", "not a semantic version"),
            (with("1.2.3", "1.2"), "Chart.yaml: version", "it is not text"),
            (format!("{CHART}type: library\n"), "Chart.yaml: type", "runs nothing"),
            (format!("{CHART}type: plugin\n"), "Chart.yaml: type", "unknown"),
            (
                format!("{CHART}dependencies: [{{name: redis, version: 1.0.0}}]\n"),
                "Chart.yaml: dependencies[0]",
                "redis",
            ),
            (format!("{CHART}dependencies: redis\n"), "Chart.yaml: dependencies", "not a list"),
            ("- a".into(), "Chart.yaml", "not a mapping"),
            ("a: [".into(), "Chart.yaml", "not YAML"),
            (format!("{CHART}name: web\n"), "Chart.yaml", "not YAML"),
        ] {
            let problems = after(&[("Chart.yaml", &text)]).unwrap_err();
            assert!(problems.iter().any(|p| p.starts_with(begin) && p.contains(holds)), "{text}: {problems:?}");
        }
        one(&[("Chart.yaml", &with("name: web\n", ""))], "Chart.yaml: name", "it is missing");
    }

    #[test]
    fn what_helm_takes_is_taken() {
        after(&[("Chart.yaml", &CHART.replace("1.2.3", "v1.2.3"))]).unwrap();
        after(&[("values.yaml", "")]).unwrap();
        after(&[
            ("files/a.yaml", "{{ .Values.a }}: [\n\tb"),
            ("ci/b.yml", "a: 1\na: 2"),
            ("templates/c.json", "{{ x }}"),
        ])
        .unwrap();
        after(&[("templates/a.yaml", ""), ("templates/a.json", "{{ x }}")]).unwrap();
        let redis = "apiVersion: v2\nname: redis\nversion: v1.0\n";
        after(&[("templates/a.yaml", ""), ("charts/redis/Chart.yaml", redis)]).unwrap();
        for (text, parsed) in [
            ("1.0.0", "1.0.0"),
            ("v1.0.0", "1.0.0"),
            ("v1", "1.0.0"),
            ("1.2", "1.2.0"),
            ("1.2-rc.1+b.2", "1.2.0-rc.1+b.2"),
            ("v1.0.0+up1.2.3", "1.0.0+up1.2.3"),
        ] {
            assert_eq!(version(text).map(|version| version.to_string()), Ok(parsed.to_owned()), "{text}");
        }
        for wrong in ["", "v", "vv1.0.0", "V1.0.0", "1.0.0.0", "1.x", "latest", "1.0.0-", "1..0", "-1"] {
            assert!(version(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_dependency_may_be_a_folder_or_an_archive() {
        let chart = format!("{CHART}dependencies: [{{name: redis, version: 1.0.0}}]\n");
        let redis = "apiVersion: v2\nname: redis\nversion: 1.0.0\n";
        after(&[("Chart.yaml", &chart), ("charts/cache/Chart.yaml", redis)]).unwrap();
    }

    #[test]
    fn every_yaml_parses_and_templates_need_not() {
        one(&[("values.yaml", "a: [")], "values.yaml", "not YAML");
        one(&[("values.yaml", "[1]")], "values.yaml", "not a mapping");
        one(&[("crds/a.yaml", "a:\n\tb: 1")], "crds/a.yaml", "not YAML");
        one(&[("crds/a.yaml", "a: 1\na: 2")], "crds/a.yaml", "not YAML");
        one(&[("values.schema.json", "{")], "values.schema.json", "not JSON");
        after(&[("templates/b.yaml", "{{ if }} not: [yaml")]).unwrap();
    }

    #[test]
    fn every_problem_is_named_at_once() {
        let problems = after(&[("Chart.yaml", "apiVersion: v9\nversion: x\n"), ("values.yaml", "[1]")]).unwrap_err();
        assert_eq!(problems.len(), 5, "{problems:?}");
    }
}
