//! What a renderer gave: Kubernetes manifests, read for what the checks and the planner need to know.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use mesh_proto::{intent::Problem, workload::Resources};
use serde_json::Value;

use super::{problem, quoted, yaml};

/// Bytes of all manifests of one release.
pub const RENDERED_BYTES_MAX: usize = 8 << 20;
/// Manifests of one release.
pub const MANIFESTS_MAX: usize = 1_024;
/// Images of one release.
pub const IMAGES_MAX: usize = 128;
/// What a container that asks for nothing is taken to need: thousandths of a core, and bytes.
const UNSTATED: (f64, f64) = (10.0, 16e6);

/// One Kubernetes object.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// `Deployment`, `Service`, ...
    pub kind: String,
    /// Its `metadata.name`.
    pub name: String,
    /// All of it.
    pub value: Value,
}

/// Reads rendered manifests; lists are taken apart.
///
/// # Errors
/// What cannot be read, or is not a Kubernetes object.
pub fn read(text: &str) -> Result<Vec<Manifest>, Vec<Problem>> {
    if text.len() > RENDERED_BYTES_MAX {
        let reason = format!("{} bytes were rendered; at most {RENDERED_BYTES_MAX} are allowed", text.len());
        return Err(vec![problem("templates", reason, "divide the chart")]);
    }
    let documents = yaml::documents(text).map_err(|error| {
        let hint = "run `helm template` on it and correct the indentation of what it gives";
        vec![problem("templates", format!("the rendered text is not YAML: {error}"), hint)]
    })?;
    let (mut found, mut problems) = (vec![], vec![]);
    for (index, document) in documents.into_iter().enumerate() {
        let items = match document.get("items") {
            Some(Value::Array(items)) if kind_of(&document).ends_with("List") => items.clone(),
            _ => vec![document],
        };
        for value in items {
            let (kind, name) = (kind_of(&value).to_owned(), value.pointer("/metadata/name").and_then(Value::as_str));
            let at = format!("rendered document {}", index + 1);
            match name {
                _ if kind.is_empty() || value.get("apiVersion").and_then(Value::as_str).is_none() => {
                    let reason = "it has no apiVersion or no kind, as every Kubernetes object has";
                    problems.push(problem(at, reason, "give it both, or leave it out"));
                }
                None | Some("") => {
                    problems.push(problem(at, format!("this {kind} has no metadata.name"), "give it one"));
                }
                Some(name) => {
                    let name = name.to_owned();
                    found.push(Manifest { kind, name, value });
                }
            }
            if problems.len() >= super::PROBLEMS_MAX {
                return Err(problems);
            }
        }
    }
    if found.len() > MANIFESTS_MAX {
        let reason = format!("{} objects were rendered; at most {MANIFESTS_MAX} are allowed", found.len());
        problems.push(problem("templates", reason, "divide the chart"));
    }
    if problems.is_empty() { Ok(found) } else { Err(problems) }
}

fn kind_of(value: &Value) -> &str {
    value.get("kind").and_then(Value::as_str).unwrap_or_default()
}

impl Manifest {
    /// The pods that it makes: their specification, and how many of them. None for what makes no pods.
    fn pods(&self) -> Option<(&Value, f64)> {
        let count = |pointer: &str| self.value.pointer(pointer).and_then(Value::as_f64).unwrap_or(1.0).max(0.0);
        match self.kind.as_str() {
            "Deployment" | "StatefulSet" | "ReplicaSet" | "ReplicationController" => {
                Some((self.value.pointer("/spec/template/spec")?, count("/spec/replicas")))
            }
            "DaemonSet" => Some((self.value.pointer("/spec/template/spec")?, 1.0)),
            "Job" => Some((self.value.pointer("/spec/template/spec")?, count("/spec/parallelism"))),
            "CronJob" => Some((self.value.pointer("/spec/jobTemplate/spec/template/spec")?, 1.0)),
            "Pod" => Some((self.value.pointer("/spec")?, 1.0)),
            _ => None,
        }
    }
}

fn containers<'a>(pods: &'a Value, field: &str) -> &'a [Value] {
    pods.get(field).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Images of everything that makes pods, as they are written, each with the first place where it is.
///
/// # Errors
/// A container without one, or too many of them.
pub fn images(manifests: &[Manifest]) -> Result<BTreeMap<String, String>, Vec<Problem>> {
    let (mut found, mut problems) = (BTreeMap::new(), vec![]);
    for manifest in manifests {
        let Some((pods, _)) = manifest.pods() else { continue };
        for field in ["initContainers", "containers"] {
            for (index, container) in containers(pods, field).iter().enumerate() {
                let at = format!("{}/{}: {field}[{index}].image", manifest.kind, manifest.name);
                match container.get("image").and_then(Value::as_str).map(str::trim).filter(|image| !image.is_empty()) {
                    Some(image) => drop(found.entry(image.to_owned()).or_insert(at)),
                    None => problems.push(problem(at, "the container has no image", "name its image")),
                }
            }
        }
        if problems.len() >= super::PROBLEMS_MAX {
            break;
        }
    }
    if found.len() > IMAGES_MAX {
        let reason = format!("{} images; at most {IMAGES_MAX} are looked at", found.len());
        problems.push(problem("templates", reason, "divide the chart"));
    }
    if problems.is_empty() { Ok(found) } else { Err(problems) }
}

/// What all containers of the release ask for together.
pub fn resources(manifests: &[Manifest]) -> Resources {
    let (mut cpu, mut memory) = (0.0, 0.0);
    for (pods, count) in manifests.iter().filter_map(Manifest::pods) {
        let asked = |container: &Value, name: &str, unstated: f64| {
            let of = |kind: &str| container.pointer(&format!("/resources/{kind}/{name}")).and_then(quantity);
            // As Kubernetes does: what is limited and not requested is requested up to its limit.
            of("requests").or_else(|| of("limits")).unwrap_or(unstated)
        };
        let cpu_of = |container: &Value| asked(container, "cpu", UNSTATED.0 / 1_000.0) * 1_000.0;
        let memory_of = |container: &Value| asked(container, "memory", UNSTATED.1);
        // Init containers run one after the other, before the others.
        let need = |of: &dyn Fn(&Value) -> f64| {
            let together: f64 = containers(pods, "containers").iter().map(of).sum();
            containers(pods, "initContainers").iter().map(of).fold(together, f64::max)
        };
        cpu += need(&cpu_of) * count;
        memory += need(&memory_of) * count;
    }
    // Sums of decimal fractions miss whole numbers by a hair; casts of floats saturate.
    let whole = |value: f64| (value - 1e-6).ceil();
    Resources { cpu_milli: whole(cpu) as u32, memory_bytes: whole(memory) as u64, ..Resources::default() }
}

/// A Kubernetes quantity: `100m`, `0.5`, `64Mi`, `1G`, `12e6`.
fn quantity(value: &Value) -> Option<f64> {
    let text = match value {
        Value::Number(number) => return number.as_f64().filter(|n| *n >= 0.0),
        Value::String(text) => text.trim(),
        _ => return None,
    };
    let scales: [(&str, f64); 13] = [
        ("Ki", 1024.0),
        ("Mi", 1024f64.powi(2)),
        ("Gi", 1024f64.powi(3)),
        ("Ti", 1024f64.powi(4)),
        ("Pi", 1024f64.powi(5)),
        ("n", 1e-9),
        ("u", 1e-6),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
    ];
    let (number, scale) =
        scales.iter().find_map(|(suffix, scale)| Some((text.strip_suffix(suffix)?, *scale))).unwrap_or((text, 1.0));
    let digits = number.bytes().all(|b| b.is_ascii_digit() || b".eE+-".contains(&b));
    let value = number.parse::<f64>().ok().filter(|v| digits && v.is_finite() && *v >= 0.0)?;
    Some(value * scale)
}

/// Name and password for a registry.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Name of the user.
    pub user: String,
    /// Password or token.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials {{ user: {:?}, password: *** }}", self.user)
    }
}

/// Credentials by registry, as references name it.
pub type Keys = BTreeMap<String, Credentials>;

/// The credentials that a release brings along: its Secrets of type `kubernetes.io/dockerconfigjson`.
///
/// # Errors
/// A Secret of that type that cannot be read.
pub fn pull_secrets(manifests: &[Manifest]) -> Result<Keys, Vec<Problem>> {
    let (mut keys, mut problems) = (Keys::new(), vec![]);
    let kind = |m: &&Manifest| {
        m.kind == "Secret" && m.value.get("type").and_then(Value::as_str) == Some("kubernetes.io/dockerconfigjson")
    };
    for secret in manifests.iter().filter(kind) {
        let plain = secret.value.pointer("/stringData/.dockerconfigjson").and_then(Value::as_str).map(str::to_owned);
        let encoded = || {
            let text = secret.value.pointer("/data/.dockerconfigjson").and_then(Value::as_str)?;
            String::from_utf8(STANDARD.decode(text.split_whitespace().collect::<String>()).ok()?).ok()
        };
        match plain.or_else(encoded).ok_or_else(|| "it holds no .dockerconfigjson in base64".to_owned()) {
            Ok(text) => match docker_config(&text) {
                Ok(found) => keys.extend(found),
                Err(reason) => problems.push(bad_secret(&secret.name, reason)),
            },
            Err(reason) => problems.push(bad_secret(&secret.name, reason)),
        }
    }
    if problems.is_empty() { Ok(keys) } else { Err(problems) }
}

fn bad_secret(name: &str, reason: String) -> Problem {
    problem(format!("Secret/{name}"), reason, "make it with `kubectl create secret docker-registry`")
}

/// Reads the `auths` of a Docker `config.json`.
///
/// # Errors
/// What cannot be read; no secret is repeated.
pub fn docker_config(text: &str) -> Result<Keys, String> {
    let config: Value = serde_json::from_str(text).map_err(|_| "its .dockerconfigjson is not JSON".to_owned())?;
    let auths = config.get("auths").and_then(Value::as_object).ok_or("its .dockerconfigjson has no auths")?;
    let mut keys = Keys::new();
    for (server, entry) in auths.iter().take(64) {
        let field = |name: &str| entry.get(name).and_then(Value::as_str).map(str::to_owned);
        let pair = match (field("username"), field("password")) {
            (Some(user), Some(password)) => Some((user, password)),
            _ => field("auth").and_then(|auth| {
                let decoded = String::from_utf8(STANDARD.decode(auth.trim()).ok()?).ok()?;
                decoded.split_once(':').map(|(user, password)| (user.to_owned(), password.to_owned()))
            }),
        };
        let (user, password) =
            pair.ok_or_else(|| format!("its entry for {} has no name and password", quoted(server)))?;
        keys.insert(registry_of(server), Credentials { user, password });
    }
    Ok(keys)
}

/// `https://index.docker.io/v1/` is `docker.io`; `https://reg.io/v2/` is `reg.io`.
fn registry_of(server: &str) -> String {
    let bare = server.strip_prefix("https://").or_else(|| server.strip_prefix("http://")).unwrap_or(server);
    let host = bare.split('/').next().unwrap_or_default();
    match host {
        "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => "docker.io".to_owned(),
        host => host.to_owned(),
    }
}

/// Every manifest with the labels that name its owner, as YAML.
pub fn labelled(manifests: &[Manifest], labels: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for manifest in manifests {
        let mut value = manifest.value.clone();
        put_labels(&mut value, labels);
        for pods in ["/spec/template", "/spec/jobTemplate/spec/template"] {
            if let Some(template) = value.pointer_mut(pods).filter(|t| t.get("spec").is_some()) {
                put_labels(template, labels);
            }
        }
        text.push_str("---\n");
        text.push_str(yaml::text(&value).trim_end());
        text.push('\n');
    }
    text
}

fn put_labels(object: &mut Value, labels: &[(&str, &str)]) {
    let Some(object) = object.as_object_mut() else { return };
    let metadata = object.entry("metadata").or_insert_with(|| Value::Object(Default::default()));
    let Some(metadata) = metadata.as_object_mut() else { return };
    let held = metadata.entry("labels").or_insert_with(|| Value::Object(Default::default()));
    if held.is_null() {
        *held = Value::Object(Default::default());
    }
    if let Some(held) = held.as_object_mut() {
        held.extend(labels.iter().map(|(key, value)| ((*key).to_owned(), Value::String((*value).to_owned()))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  template:
    spec:
      imagePullSecrets: [{name: pull}]
      initContainers:
      - {name: i, image: busybox, resources: {requests: {cpu: 500m, memory: 1Mi}}}
      containers:
      - {name: a, image: nginx:1.27, resources: {requests: {cpu: 100m, memory: 64Mi}}}
      - {name: b, image: busybox, resources: {limits: {cpu: 0.25}}}
---
# nothing but a comment
---
apiVersion: v1
kind: List
items:
- apiVersion: batch/v1
  kind: CronJob
  metadata: {name: nightly}
  spec: {jobTemplate: {spec: {template: {spec: {containers: [{name: c, image: ghcr.io/a/b:1}]}}}}}
";

    #[test]
    fn images_are_found_wherever_pods_are_made() {
        let manifests = read(WEB).unwrap();
        assert_eq!(manifests.iter().map(|m| m.kind.as_str()).collect::<Vec<_>>(), ["Deployment", "CronJob"]);
        let images = images(&manifests).unwrap();
        assert_eq!(images.keys().collect::<Vec<_>>(), ["busybox", "ghcr.io/a/b:1", "nginx:1.27"]);
        assert_eq!(images["nginx:1.27"], "Deployment/web: containers[0].image");
    }

    #[test]
    fn what_a_release_asks_for_is_summed_over_its_replicas() {
        // Per replica: CPU 500 milli of the init container outweigh 100 + 250 of the others; memory 64 Mi and 16 MB for
        // the one without a request. The CronJob's container has none at all.
        let asked = resources(&read(WEB).unwrap());
        assert_eq!(asked.cpu_milli, 3 * 500 + 10);
        assert_eq!(asked.memory_bytes, 3 * (64 * 1024 * 1024 + 16_000_000) + 16_000_000);
        assert_eq!(resources(&[]), Resources::default());
    }

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        for (text, value) in [
            ("100m", Some(0.1)),
            ("1", Some(1.0)),
            ("0.5", Some(0.5)),
            ("64Mi", Some(67_108_864.0)),
            ("1G", Some(1e9)),
            ("12e6", Some(12e6)),
            ("128974848", Some(128_974_848.0)),
            ("", None),
            ("-1", None),
            ("inf", None),
            ("ten", None),
        ] {
            assert_eq!(quantity(&Value::String(text.into())), value, "{text}");
        }
    }

    #[test]
    fn what_is_no_kubernetes_object_is_named() {
        let text = |yaml: &str| {
            let problems = read(yaml).unwrap_err();
            format!("{}: {}", problems[0].path, problems[0].reason)
        };
        assert!(text("a: [").contains("not YAML"));
        assert_eq!(text("kind: A").split(':').next(), Some("rendered document 1"));
        assert!(text("apiVersion: v1\nkind: Service\nmetadata: {}").contains("this Service has no metadata.name"));
        assert!(text("just text").contains("no apiVersion"));
        let bare = read("{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{name: a}]}}").unwrap();
        assert_eq!(images(&bare).unwrap_err()[0].path, "Pod/p: containers[0].image");
    }

    #[test]
    fn an_alias_bomb_is_refused_and_not_expanded() {
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for n in 1..12 {
            bomb.push_str(&format!("a{n}: &a{n} [{}]\n", vec![format!("*a{}", n - 1); 10].join(",")));
        }
        assert!(read(&bomb).unwrap_err()[0].reason.contains("not YAML"));
        assert!(read(&"[".repeat(100_000)).is_err());
    }

    #[test]
    fn pull_secrets_give_credentials_by_registry() {
        let config = r#"{"auths":{"https://index.docker.io/v1/":{"auth":"dTpw"},"reg.io:5000":{"username":"a","password":"b:c"}}}"#;
        let secret = |data: &str| {
            read(&format!(
                "{{apiVersion: v1, kind: Secret, metadata: {{name: pull}}, type: kubernetes.io/dockerconfigjson, {data}}}"
            ))
            .unwrap()
        };
        let encoded = secret(&format!("data: {{.dockerconfigjson: {}}}", STANDARD.encode(config)));
        let keys = pull_secrets(&encoded).unwrap();
        assert_eq!(keys["docker.io"], Credentials { user: "u".into(), password: "p".into() });
        assert_eq!(keys["reg.io:5000"].password, "b:c");
        assert!(!format!("{keys:?}").contains("b:c"), "no password is shown");
        for bad in ["data: {}", "data: {.dockerconfigjson: '%%%'}", "stringData: {.dockerconfigjson: '{}'}"] {
            let problems = pull_secrets(&secret(bad)).unwrap_err();
            assert_eq!(problems[0].path, "Secret/pull", "{bad}");
        }
    }

    #[test]
    fn manifests_carry_the_label_of_the_instance_on_objects_and_pods() {
        let text = labelled(&read(WEB).unwrap(), &[("nemo.eu/workload", "x-1")]);
        let again = read(&text).unwrap();
        for pointer in ["/metadata/labels", "/spec/template/metadata/labels"] {
            assert_eq!(again[0].value.pointer(pointer).unwrap()["nemo.eu/workload"], "x-1", "{pointer}");
        }
        assert_eq!(images(&again), images(&read(WEB).unwrap()), "nothing else changed");
    }
}
