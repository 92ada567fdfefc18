//! What a renderer gave: Kubernetes manifests, read for what the checks and the planner need to know.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use mesh_proto::{intent::Problem, workload::Resources};
use serde_json::Value;

use super::{problem, quantity::Quantity, quoted, yaml};

/// Bytes of all manifests of one release.
pub const RENDERED_BYTES_MAX: usize = 8 << 20;
/// Manifests of one release.
pub const MANIFESTS_MAX: usize = 1_024;
/// Images of one release.
pub const IMAGES_MAX: usize = 128;
/// What a container that asks for nothing is taken to need: of a core, and bytes.
const UNSTATED: [(&str, Quantity); 2] = [("cpu", Quantity::milli(10)), ("memory", Quantity::whole(16_000_000))];
/// Pods of one object: what is more is taken for an error.
const PODS_MAX: u64 = 1_000_000;

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
    /// The pods that it makes: their specification, where it is, and where it says how many of them. None for what makes
    /// no pods.
    fn pods(&self) -> Option<(&Value, &'static str, &'static str)> {
        let (at, count) = match self.kind.as_str() {
            "Deployment" | "StatefulSet" | "ReplicaSet" | "ReplicationController" => {
                ("/spec/template/spec", "/spec/replicas")
            }
            "DaemonSet" => ("/spec/template/spec", ""),
            "Job" => ("/spec/template/spec", "/spec/parallelism"),
            "CronJob" => ("/spec/jobTemplate/spec/template/spec", "/spec/jobTemplate/spec/parallelism"),
            "Pod" => ("/spec", ""),
            _ => return None,
        };
        Some((self.value.pointer(at)?, at, count))
    }

    /// Where something in it is, for a person.
    fn place(&self, pointer: &str) -> String {
        format!("{}/{}: {}", self.kind, self.name, pointer.trim_start_matches('/').replace('/', "."))
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
        let Some((pods, ..)) = manifest.pods() else { continue };
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

/// What all pods of the release ask for together, each as Kubernetes counts it.
///
/// # Errors
/// Quantities and counts that Kubernetes would not take, each with its place.
pub fn resources(manifests: &[Manifest]) -> Result<Resources, Vec<Problem>> {
    let mut problems = vec![];
    let mut sums = [Quantity::default(); 2];
    for manifest in manifests {
        claims(manifest, &mut problems);
        let Some((pods, at, count)) = manifest.pods() else { continue };
        let times = match manifest.value.pointer(count).filter(|_| !count.is_empty()) {
            None | Some(Value::Null) => 1,
            Some(value) => value.as_u64().filter(|count| *count <= PODS_MAX).unwrap_or_else(|| {
                let reason = format!("{} is no count of pods", quoted(&value.to_string()));
                problems.push(problem(manifest.place(count), reason, "give a whole number"));
                1
            }),
        };
        for (sum, (name, unstated)) in sums.iter_mut().zip(UNSTATED) {
            *sum = sum.plus(pod(pods, name, unstated).times(times));
        }
        for (field, index, container) in every_container(pods) {
            let place = manifest.place(&format!("{at}/{field}[{index}]/resources"));
            quantities(&place, container.get("resources"), &mut problems);
        }
        quantities(&manifest.place(&format!("{at}/resources")), pods.get("resources"), &mut problems);
        if let Some(overhead) = pods.get("overhead") {
            every_quantity(&manifest.place(&format!("{at}/overhead")), overhead, &mut problems);
        }
        if problems.len() >= super::PROBLEMS_MAX {
            break;
        }
    }
    problems.truncate(super::PROBLEMS_MAX);
    let [cpu, memory] = sums;
    match problems.is_empty() {
        true => Ok(Resources { cpu_milli: cpu.in_milli(), memory_bytes: memory.in_whole(), ..Resources::default() }),
        false => Err(problems),
    }
}

fn every_container(pods: &Value) -> impl Iterator<Item = (&'static str, usize, &Value)> {
    let of =
        |field| containers(pods, field).iter().enumerate().map(move |(index, container)| (field, index, container));
    of("initContainers").chain(of("containers"))
}

/// What one pod asks for: all that runs at once, at the moment when that is most. Init containers run one after the other,
/// before the others; those that are restarted always (sidecars) run on beside all that comes after them.
fn pod(pods: &Value, name: &str, unstated: Quantity) -> Quantity {
    let overhead = pods.get("overhead").and_then(|overhead| read(overhead, name)).unwrap_or_default();
    // What a pod asks for as a whole counts instead of what its containers do.
    if let Some(whole) = asked(pods, name) {
        return whole.plus(overhead);
    }
    let of = |container: &Value| asked(container, name).unwrap_or(unstated);
    let (mut sidecars, mut most) = (Quantity::default(), Quantity::default());
    for container in containers(pods, "initContainers") {
        let now = sidecars.plus(of(container));
        if container.get("restartPolicy").and_then(Value::as_str) == Some("Always") {
            sidecars = now;
        }
        most = most.max(now);
    }
    let together = containers(pods, "containers").iter().map(of).fold(sidecars, Quantity::plus);
    return most.max(together).plus(overhead);

    fn read(list: &Value, name: &str) -> Option<Quantity> {
        Quantity::read(list.get(name)?).ok()
    }

    /// What is limited and not requested is requested up to its limit.
    fn asked(of: &Value, name: &str) -> Option<Quantity> {
        let resources = of.get("resources")?;
        ["requests", "limits"].iter().find_map(|kind| read(resources.get(*kind)?, name))
    }
}

/// What volumes are claimed.
fn claims(manifest: &Manifest, problems: &mut Vec<Problem>) {
    match manifest.kind.as_str() {
        "PersistentVolumeClaim" => {
            quantities(&manifest.place("/spec/resources"), manifest.value.pointer("/spec/resources"), problems);
        }
        "StatefulSet" => {
            let templates = manifest.value.pointer("/spec/volumeClaimTemplates").and_then(Value::as_array);
            for (index, template) in templates.into_iter().flatten().enumerate() {
                let place = manifest.place(&format!("/spec/volumeClaimTemplates[{index}]/spec/resources"));
                quantities(&place, template.pointer("/spec/resources"), problems);
            }
        }
        _ => {}
    }
}

/// Requests and limits: each a quantity, and no request above its limit.
fn quantities(place: &str, resources: Option<&Value>, problems: &mut Vec<Problem>) {
    let Some(resources) = resources.filter(|resources| !resources.is_null()) else { return };
    let before = problems.len();
    for kind in ["requests", "limits"] {
        match resources.get(kind) {
            None | Some(Value::Null) if resources.is_object() => {}
            Some(list) => every_quantity(&format!("{place}.{kind}"), list, problems),
            None => return problems.push(problem(place, "it is not a mapping", "give requests and limits")),
        }
    }
    let of = |kind: &str, name: &str| Quantity::read(resources.get(kind)?.get(name)?).ok();
    let requests = resources.get("requests").and_then(Value::as_object);
    for (name, value) in requests.into_iter().flatten().filter(|_| problems.len() == before) {
        if of("limits", name).is_some_and(|limit| of("requests", name) > Some(limit)) {
            let reason = format!("{value} is more than its limit");
            problems.push(problem(format!("{place}.requests.{name}"), reason, "request its limit at most"));
            return;
        }
    }
}

fn every_quantity(place: &str, list: &Value, problems: &mut Vec<Problem>) {
    let Some(list) = list.as_object() else {
        return problems.push(problem(place, "it is not a mapping", "give quantities by name, such as cpu: 100m"));
    };
    for (name, value) in list {
        if let Err(reason) = Quantity::read(value) {
            let hint =
                "write a number with one of n, u, m, k, M, G, T, P, E, Ki, Mi, Gi, Ti, Pi, Ei, or none, behind it";
            problems.push(problem(format!("{place}.{name}"), reason, hint));
        }
    }
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

/// The credentials of a Docker configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DockerConfig {
    /// By registry.
    pub keys: Keys,
    /// What of it gives none, each with the reason; no secret is repeated.
    pub skipped: Vec<String>,
}

/// The credentials that a release brings along: its Secrets of type `kubernetes.io/dockerconfigjson`.
///
/// # Errors
/// A Secret of that type that cannot be read.
pub fn pull_secrets(manifests: &[Manifest]) -> Result<DockerConfig, Vec<Problem>> {
    let (mut all, mut problems) = (DockerConfig::default(), vec![]);
    let kind = |m: &&Manifest| {
        m.kind == "Secret" && m.value.get("type").and_then(Value::as_str) == Some("kubernetes.io/dockerconfigjson")
    };
    for secret in manifests.iter().filter(kind) {
        let plain = secret.value.pointer("/stringData/.dockerconfigjson").and_then(Value::as_str).map(str::to_owned);
        let encoded = || {
            let text = secret.value.pointer("/data/.dockerconfigjson").and_then(Value::as_str)?;
            String::from_utf8(STANDARD.decode(text.split_whitespace().collect::<String>()).ok()?).ok()
        };
        let text = plain.or_else(encoded).ok_or_else(|| "it holds no .dockerconfigjson in base64".to_owned());
        match text.and_then(|text| docker_config(&text)) {
            // Kubernetes takes no Secret of that type without it.
            Ok(found) if found.keys.is_empty() && found.skipped.is_empty() => {
                problems.push(bad_secret(&secret.name, "its .dockerconfigjson has no auths".into()));
            }
            Ok(found) => {
                all.keys.extend(found.keys);
                all.skipped.extend(found.skipped.iter().map(|why| format!("Secret/{}: {why}", secret.name)));
            }
            Err(reason) => problems.push(bad_secret(&secret.name, reason)),
        }
    }
    if problems.is_empty() { Ok(all) } else { Err(problems) }
}

fn bad_secret(name: &str, reason: String) -> Problem {
    problem(format!("Secret/{name}"), reason, "make it with `kubectl create secret docker-registry`")
}

/// Entries of a Docker configuration that are read.
const AUTHS_MAX: usize = 64;

/// Reads the `auths` of a Docker `config.json`. An entry that gives no name and password, as `docker login` leaves beside a
/// credential store, is skipped and named.
///
/// # Errors
/// What cannot be read as a whole.
pub fn docker_config(text: &str) -> Result<DockerConfig, String> {
    let config: Value = serde_json::from_str(text).map_err(|_| "its .dockerconfigjson is not JSON".to_owned())?;
    let config = config.as_object().ok_or("its .dockerconfigjson is not an object")?;
    let mut found = DockerConfig::default();
    for store in ["credsStore", "credHelpers"] {
        if config.get(store).is_some_and(|value| !value.is_null() && value != "") {
            found.skipped.push(format!("{store}: programs that keep credentials are not asked"));
        }
    }
    let none = serde_json::Map::new();
    let auths = match config.get("auths") {
        None | Some(Value::Null) => &none,
        Some(auths) => auths.as_object().ok_or("its auths are not an object")?,
    };
    for (index, (server, entry)) in auths.iter().enumerate() {
        let at = format!("auths[{}]", quoted(server));
        if index >= AUTHS_MAX {
            found.skipped.push(format!("{at}: only {AUTHS_MAX} entries are read"));
            break;
        }
        match credentials(entry) {
            Ok(credentials) => drop(found.keys.insert(registry_of(server), credentials)),
            Err(reason) => found.skipped.push(format!("{at}: {reason}")),
        }
    }
    Ok(found)
}

/// The name and password of an entry.
fn credentials(entry: &Value) -> Result<Credentials, &'static str> {
    let field = |name: &str| entry.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    if let (Some(user), Some(password)) = (field("username"), field("password")) {
        return Ok(Credentials { user: user.to_owned(), password: password.to_owned() });
    }
    let Some(auth) = field("auth") else {
        return Err(match field("identitytoken").or_else(|| field("registrytoken")) {
            Some(_) => "it has a token and no name and password, and tokens are not used",
            None => "it has no name and password",
        });
    };
    let decoded = STANDARD.decode(auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    // Docker pads what it writes with NULs.
    let decoded = decoded.ok_or("its auth is not base64 of a text")?;
    let (user, password) = decoded.trim_end_matches('\0').split_once(':').ok_or("its auth is not name:password")?;
    match user.is_empty() || password.is_empty() {
        true => Err("its auth has no name or no password"),
        false => Ok(Credentials { user: user.to_owned(), password: password.to_owned() }),
    }
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
        let asked = resources(&read(WEB).unwrap()).unwrap();
        assert_eq!(asked.cpu_milli, 3 * 500 + 10);
        assert_eq!(asked.memory_bytes, 3 * (64 * 1024 * 1024 + 16_000_000) + 16_000_000);
        assert_eq!(resources(&[]), Ok(Resources::default()));
    }

    /// CPU and bytes of a Deployment whose pods have this specification.
    fn of_pods(spec: &str) -> Result<(u32, u64), Vec<String>> {
        let text = format!(
            "{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: d}}, spec: {{template: {{spec: {spec}}}}}}}"
        );
        resources(&read(&text).unwrap())
            .map(|asked| (asked.cpu_milli, asked.memory_bytes))
            .map_err(|problems| problems.into_iter().map(|p| format!("{}: {}", p.path, p.reason)).collect())
    }

    #[test]
    fn sidecars_and_init_containers_count_as_kubernetes_counts_them() {
        let ask = |cpu: &str| format!("resources: {{requests: {{cpu: {cpu}, memory: 1}}}}");
        let init = |cpu: &str| format!("{{name: i, {}}}", ask(cpu));
        let sidecar = |cpu: &str| format!("{{name: s, restartPolicy: Always, {}}}", ask(cpu));
        for (inits, containers, cpu) in [
            (vec![], vec![init("100m"), init("200m")], 300),
            // One after the other, before the others.
            (vec![init("500m"), init("400m")], vec![init("100m")], 500),
            (vec![init("100m")], vec![init("300m")], 300),
            // A sidecar runs on beside what comes after it, and beside the containers.
            (vec![sidecar("200m")], vec![init("300m")], 500),
            (vec![sidecar("200m"), init("700m")], vec![init("300m")], 900),
            (vec![init("700m"), sidecar("200m")], vec![init("300m")], 700),
            (vec![sidecar("200m"), init("100m"), sidecar("300m"), init("250m")], vec![init("100m")], 750),
            (vec![sidecar("200m"), sidecar("300m")], vec![], 500),
        ] {
            let spec = format!("{{initContainers: [{}], containers: [{}]}}", inits.join(", "), containers.join(", "));
            assert_eq!(of_pods(&spec).unwrap().0, cpu, "{spec}");
        }
        let spec = format!("{{containers: [{}], overhead: {{cpu: 50m, memory: 2}}}}", init("100m"));
        assert_eq!(of_pods(&spec), Ok((150, 3)));
        let spec = format!("{{containers: [{}], resources: {{requests: {{cpu: 1}}}}}}", init("100m"));
        assert_eq!(of_pods(&spec), Ok((1_000, 1)), "of the pod as a whole");
        let spec = "{containers: [{name: a, resources: {limits: {cpu: 2, memory: 1Ei}, requests: {memory: 1.5Gi}}}]}";
        assert_eq!(of_pods(spec), Ok((2_000, 3 << 29)), "a limit without a request is one");
        assert_eq!(of_pods("{containers: [{name: a, resources: {requests: {memory: 1Ei}}}]}"), Ok((10, 1 << 60)));
    }

    #[test]
    fn what_is_no_quantity_is_refused_with_its_place() {
        for (asked, path) in [
            ("requests: {memory: 64mi}", "requests.memory"),
            ("limits: {memory: 1KB}", "limits.memory"),
            ("requests: {cpu: abc}", "requests.cpu"),
            ("requests: {cpu: -1}", "requests.cpu"),
            ("limits: {ephemeral-storage: 1 Gi}", "limits.ephemeral-storage"),
            ("requests: {cpu: [1]}", "requests.cpu"),
            ("requests: {cpu: null}", "requests.cpu"),
            ("requests: 100m", "requests"),
            ("requests: {cpu: 2}, limits: {cpu: 1500m}", "requests.cpu"),
        ] {
            for field in ["containers", "initContainers"] {
                let problems = of_pods(&format!("{{{field}: [{{name: a, resources: {{{asked}}}}}]}}")).unwrap_err();
                let place = format!("Deployment/d: spec.template.spec.{field}[0].resources.{path}: ");
                assert!(problems.len() == 1 && problems[0].starts_with(&place), "{asked}: {problems:?}");
            }
        }
        assert!(of_pods("{containers: [], overhead: {cpu: x}}").unwrap_err()[0].contains("spec.overhead.cpu"));
        assert!(of_pods("{containers: [{name: a, resources: 1}]}").unwrap_err()[0].contains("resources: "));
        assert!(of_pods("{containers: [{name: a, resources: null}, {name: b, resources: {}}]}").is_ok());
        let refused = |text: &str| resources(&read(text).unwrap()).unwrap_err()[0].path.clone();
        for replicas in ["three", "-1", "1.5", "'3'", "1e12"] {
            let text = format!(
                "{{apiVersion: v1, kind: Deployment, metadata: {{name: d}}, spec: {{replicas: {replicas}, template: {{spec: {{}}}}}}}}"
            );
            assert_eq!(refused(&text), "Deployment/d: spec.replicas", "{replicas}");
        }
        let claim = "{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: c}, spec: {resources: {requests: {storage: 8GB}}}}";
        assert_eq!(refused(claim), "PersistentVolumeClaim/c: spec.resources.requests.storage");
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
        let keys = pull_secrets(&encoded).unwrap().keys;
        assert_eq!(keys["docker.io"], Credentials { user: "u".into(), password: "p".into() });
        assert_eq!(keys["reg.io:5000"].password, "b:c");
        assert!(!format!("{keys:?}").contains("b:c"), "no password is shown");
        for bad in ["data: {}", "data: {.dockerconfigjson: '%%%'}", "stringData: {.dockerconfigjson: '{}'}"] {
            let problems = pull_secrets(&secret(bad)).unwrap_err();
            assert_eq!(problems[0].path, "Secret/pull", "{bad}");
        }
    }

    #[test]
    fn a_broken_entry_of_a_docker_configuration_is_named_and_skipped() {
        let read = |text: &str| docker_config(text).unwrap();
        let found = read(
            r#"{"auths": {"https://index.docker.io/v1/": {}, "a.io": {"auth": ""}, "b.io": {"auth": "%%"}, "c.io": {"auth": "dTpw"},
                "d.io": null, "e.io": {"auth": "dQ=="}, "f.io": {"identitytoken": "t0ken"}, "g.io": 7, "h.io": {"username": "u"}},
                "credsStore": "desktop", "credHelpers": {"gcr.io": "gcloud"}, "HttpHeaders": {}}"#,
        );
        assert_eq!(found.keys.keys().collect::<Vec<_>>(), ["c.io"]);
        let of = |what: &str| found.skipped.iter().filter(|why| why.contains(what)).count();
        for what in
            ["index.docker.io", "a.io", "b.io", "d.io", "e.io", "f.io", "g.io", "h.io", "credsStore", "credHelpers"]
        {
            assert_eq!(of(what), 1, "{what}: {:?}", found.skipped);
        }
        assert_eq!(of("t0ken"), 0, "no secret is repeated");
        assert_eq!(read(r#"{"credsStore": "desktop"}"#).skipped.len(), 1);
        assert_eq!(read("{}"), DockerConfig::default());
        for whole in ["", "[]", "7", "{", r#"{"auths": []}"#] {
            assert!(docker_config(whole).is_err(), "{whole}");
        }
        let many: Vec<String> = (0..70).map(|n| format!("\"r{n}.io\": {{\"auth\": \"dTpw\"}}")).collect();
        let found = read(&format!("{{\"auths\": {{{}}}}}", many.join(",")));
        assert_eq!((found.keys.len(), found.skipped.len()), (64, 1), "what is not read is named");
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
