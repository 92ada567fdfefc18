//! `k8s/`: a manifest per service, the job that provisions the bus, who connects to whom, and the kustomizations that name
//! them. The namespace, NATS, Zenoh and what an overlay may open are written by hand.

mod backup;

use std::{fmt::Write as _, fs, path::Path};

use anyhow::Context as _;
use sha2::{Digest as _, Sha256};

use super::{
    MARK, Output,
    model::{Deployment, End, GRPC_PORT, KEYS_DIR, KEYS_MIB, Link, Mesh, PROVISION, SERVERS, yaml, yaml_list},
};

const BASE: &str = "k8s/base";
/// Manifests that are written by hand, in the order in which they are applied.
const INFRASTRUCTURE: [&str; 4] = ["namespace.yaml", "outside.yaml", "nats.yaml", "zenoh.yaml"];

/// Digits of a digest in a name.
const JOB_DIGITS: usize = 10;

/// The manifests and the kustomizations.
pub(super) fn render(mesh: &Mesh) -> Vec<Output> {
    let links = mesh.links();
    let manifest = |service: &Deployment| Output {
        path: format!("{BASE}/{}.yaml", service.name),
        text: [format!("# {MARK}\n{}", workload(mesh, service)), address(service), policies(&links, &service.name)]
            .join("---\n"),
    };
    let mut all: Vec<Output> = mesh.services.iter().map(manifest).collect();
    all.push(Output {
        path: format!("{BASE}/{PROVISION}.yaml"),
        text: format!("# {MARK}\n{}---\n{}", job(mesh), policies(&links, PROVISION)),
    });
    let servers = SERVERS.map(|(name, _)| policies(&links, name)).join("---\n");
    all.push(Output { path: format!("{BASE}/servers.yaml"), text: format!("# {MARK}\n{servers}") });
    all.push(Output { path: format!("{BASE}/kustomization.yaml"), text: base(mesh) });
    all.push(Output { path: "k8s/overlays/local/kustomization.yaml".to_owned(), text: overlay(mesh) });
    all.extend(backup::render(mesh));
    all
}

/// Generated manifests that no service needs any more: named by no kustomization, so of a service that is gone.
pub(super) fn orphans(root: &Path) -> anyhow::Result<Vec<String>> {
    let listed = fs::read_to_string(root.join(BASE).join("kustomization.yaml")).unwrap_or_default();
    let mut found = vec![];
    for entry in fs::read_dir(root.join(BASE)).with_context(|| format!("list {BASE}"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let is_listed = name == "kustomization.yaml" || listed.contains(&format!("  - {name}\n"));
        let text = fs::read_to_string(root.join(BASE).join(&name)).unwrap_or_default();
        if !is_listed && text.contains(MARK) {
            found.push(format!("{BASE}/{name}"));
        }
    }
    Ok(found)
}

/// What every pod of ours is restricted to: the images' user, who owns its volumes.
const POD: &str = "      securityContext:
        runAsNonRoot: true
        runAsUser: 10001
        runAsGroup: 10001
        fsGroup: 10001
        seccompProfile: {type: RuntimeDefault}
";
/// The same of its container.
const CONTAINER: &str = "          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities: {drop: [ALL]}
";

fn labels(name: &str) -> String {
    format!("{{app.kubernetes.io/name: {name}, app.kubernetes.io/part-of: continuum}}")
}

/// The Deployment, or the StatefulSet of a service whose folder must survive.
fn workload(mesh: &Mesh, service: &Deployment) -> String {
    let name = &service.name;
    let labels = labels(name);
    let survives = service.state.is_some() || !service.keys.is_empty();
    let (kind, strategy) = match (survives, service.singleton) {
        (true, _) => ("StatefulSet", format!("serviceName: {name}")),
        (false, true) => ("Deployment", "strategy: {type: Recreate}".to_owned()),
        (false, false) => ("Deployment", "strategy: {type: RollingUpdate}".to_owned()),
    };
    let args = match service.args.as_slice() {
        [] => String::new(),
        args => format!("          args: {}\n", yaml_list(args)),
    };
    let variant = service.variants.first();
    let mut environment = String::new();
    for variable in service.variables(name, "/keys/seed.nk", variant) {
        let _ = writeln!(environment, "            - {{name: {}, value: {}}}", variable.name, yaml(&variable.value));
    }
    let mut ports = String::new();
    for (name, number, protocol) in ports_of(service) {
        let protocol = if protocol.is_empty() { String::new() } else { format!(", protocol: {protocol}") };
        let _ = writeln!(ports, "            - {{name: {name}, containerPort: {number}{protocol}}}");
    }
    let resources = &service.resources;
    let mut claims = String::new();
    let mut claim = |volume: &str, about: &str, mib: u32| {
        if claims.is_empty() {
            claims.push_str("  volumeClaimTemplates:\n");
        }
        comment(&mut claims, about);
        let _ = write!(
            claims,
            "    - metadata: {{name: {volume}}}
      spec:
        accessModes: [ReadWriteOnce]
        resources: {{requests: {{storage: {}}}}}
",
            mebibytes(mib)
        );
    };
    let mut scratch = "";
    match &service.state {
        Some(state) => claim("data", &state.comment, state.size_mib),
        None => scratch = "        - {name: data, emptyDir: {}}\n",
    }
    let mut mounts = String::new();
    if !service.keys.is_empty() {
        claim("secrets", &service.keys, KEYS_MIB);
        let _ = writeln!(mounts, "            - {{name: secrets, mountPath: {KEYS_DIR}}}");
    }
    format!(
        "apiVersion: apps/v1
kind: {kind}
metadata:
  name: {name}
  labels: {labels}
spec:
  replicas: {replicas}
  {strategy}
  selector:
    matchLabels: {{app.kubernetes.io/name: {name}}}
  template:
    metadata:
      labels: {labels}
    spec:
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: 30
{POD}      containers:
        - name: service
          image: continuum/{image}:{version}
{args}          env:
{environment}          ports:
{ports}          startupProbe:
            httpGet: {{path: /readyz, port: grpc}}
            failureThreshold: {failures}
            periodSeconds: 2
          readinessProbe:
            httpGet: {{path: /readyz, port: grpc}}
            periodSeconds: 5
          livenessProbe:
            httpGet: {{path: /livez, port: grpc}}
            periodSeconds: 10
            failureThreshold: 3
          resources:
            requests: {{cpu: {cpu_request}, memory: {memory_request}}}
            limits: {{cpu: {cpu_limit}, memory: {memory_limit}}}
{CONTAINER}          volumeMounts:
            - {{name: keys, mountPath: /keys, readOnly: true}}
            - {{name: data, mountPath: /data}}
{mounts}            - {{name: tmp, mountPath: /tmp}}
      volumes:
        - name: keys
          secret:
            secretName: keys
            defaultMode: 0440
            items: [{{key: {name}.nk, path: seed.nk}}]
{scratch}        - {{name: tmp, emptyDir: {{}}}}
{claims}",
        replicas = service.replicas,
        image = service.image,
        version = mesh.version,
        failures = service.startup_seconds.div_ceil(2),
        cpu_request = cpu(resources.cpu_request_milli),
        memory_request = mebibytes(resources.memory_request_mib),
        cpu_limit = cpu(resources.cpu_limit_milli),
        memory_limit = mebibytes(service.memory_limit_mib(variant)),
    )
}

/// The job that makes the streams. Its name is a digest of all that it is made of, and of the contract: applied again, it is
/// the same job; after a change it is another one.
fn job(mesh: &Mesh) -> String {
    let labels = labels(PROVISION);
    let spec = format!(
        "spec:
  backoffLimit: 20
  ttlSecondsAfterFinished: 86400
  template:
    metadata:
      labels: {labels}
    spec:
      automountServiceAccountToken: false
      restartPolicy: OnFailure
{POD}      containers:
        - name: provision
          image: continuum/continuum:{version}
          args: [\"provision\", \"--url\", \"nats://nats:4222\", \"--seed-file\", \"/keys/provisioner.nk\"]
          resources:
            requests: {{cpu: 50m, memory: 32Mi}}
            limits: {{cpu: 500m, memory: 128Mi}}
{CONTAINER}          volumeMounts:
            - {{name: keys, mountPath: /keys, readOnly: true}}
      volumes:
        - name: keys
          secret:
            secretName: provisioner
            defaultMode: 0440
            items: [{{key: provisioner.nk, path: provisioner.nk}}]
",
        version = mesh.version,
    );
    let digest = hex::encode(Sha256::digest(format!("{}{spec}", mesh.digest)));
    format!(
        "apiVersion: batch/v1
kind: Job
metadata:
  name: {PROVISION}-{}
  labels: {labels}
{spec}",
        digest.get(..JOB_DIGITS).unwrap_or(&digest)
    )
}

/// The name under which others find it.
fn address(service: &Deployment) -> String {
    let name = &service.name;
    let mut text = format!(
        "apiVersion: v1
kind: Service
metadata:
  name: {name}
  labels: {}
spec:
  selector: {{app.kubernetes.io/name: {name}}}
  ports:
",
        labels(name)
    );
    for (port, number, protocol) in ports_of(service) {
        let more = match (number == GRPC_PORT, protocol) {
            (true, _) => ", appProtocol: kubernetes.io/h2c".to_owned(),
            (false, "") => String::new(),
            (false, protocol) => format!(", protocol: {protocol}"),
        };
        let _ = writeln!(text, "    - {{name: {port}, port: {number}, targetPort: {port}{more}}}");
    }
    text
}

/// Who reaches a pod, and whom it reaches; then a policy for each connection to anywhere, whose ports an overlay sets.
fn policies(links: &[Link], name: &str) -> String {
    let own = End::Pod(name.to_owned());
    let mut ingress = String::new();
    let incoming: Vec<&Link> = links.iter().filter(|link| link.to == own).collect();
    // One rule for all who connect alike; none beside one that opens more.
    let mut done: Vec<(&[u32], bool)> = vec![];
    for link in &incoming {
        let alike = |other: &&&Link| (&other.ports, other.udp) == (&link.ports, link.udp);
        if done.contains(&(&link.ports, link.udp)) {
            continue;
        }
        done.push((&link.ports, link.udp));
        let ports = open(&link.ports, link.udp);
        let senders: Vec<&Link> = incoming.iter().filter(alike).copied().collect();
        if senders.iter().any(|sender| matches!(sender.from, End::Anywhere(_))) {
            comment(&mut ingress, &link.comment);
            let _ = writeln!(ingress, "    - ports: {ports}");
            continue;
        }
        let opens_all = |from: &End| incoming.iter().any(|other| other.from == *from && other.ports.is_empty());
        let senders = senders.iter().filter(|sender| sender.ports.is_empty() || !opens_all(&sender.from));
        let senders: Vec<&str> = senders.filter_map(|sender| sender.from.pod()).collect();
        if !senders.is_empty() {
            comment(&mut ingress, if senders.len() == 1 { &link.comment } else { "" });
            peers(&mut ingress, "from", &senders, &ports);
        }
    }
    let mut egress = String::new();
    let mut parameters = String::new();
    let outgoing: Vec<&Link> = links.iter().filter(|link| link.from == own).collect();
    let mut done: Vec<(&[u32], bool, &str)> = vec![];
    for link in &outgoing {
        let ports = open(&link.ports, link.udp);
        match &link.to {
            End::Names => egress.push_str(NAMES),
            End::Anywhere(to) => {
                let rules = if link.ports.is_empty() {
                    "  egress: []\n".to_owned()
                } else {
                    format!("  egress:\n    - ports: {ports}\n")
                };
                let about = &link.comment;
                let head = policy(&format!("{name}-to-{to}"), name, "Egress");
                let _ = write!(parameters, "---\n# {about} An overlay may set other ports.\n{head}{rules}");
            }
            End::Pod(_) => {
                let key = (link.ports.as_slice(), link.udp, link.comment.as_str());
                if done.contains(&key) {
                    continue;
                }
                done.push(key);
                let alike = |other: &&&Link| (other.ports.as_slice(), other.udp, other.comment.as_str()) == key;
                let receivers: Vec<&str> = outgoing.iter().filter(alike).filter_map(|other| other.to.pod()).collect();
                comment(&mut egress, &link.comment);
                peers(&mut egress, "to", &receivers, &ports);
            }
        }
    }
    let or_none = |field: &str, rules: String| match rules.as_str() {
        "" => format!("  {field}: []\n"),
        rules => format!("  {field}:\n{rules}"),
    };
    format!(
        "{}{}{}{parameters}",
        policy(name, name, "Ingress, Egress"),
        or_none("ingress", ingress),
        or_none("egress", egress)
    )
}

const NAMES: &str = "    - to:
        - namespaceSelector:
            matchLabels: {kubernetes.io/metadata.name: kube-system}
      ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]
";

/// All of a policy but its rules.
fn policy(name: &str, pod: &str, types: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {name}
  labels: {}
spec:
  podSelector:
    matchLabels: {{app.kubernetes.io/name: {pod}}}
  policyTypes: [{types}]
",
        labels(pod)
    )
}

/// A rule for pods of these names.
fn peers(text: &mut String, side: &str, names: &[&str], ports: &str) {
    let selector = match names {
        [name] => format!("            matchLabels: {{app.kubernetes.io/name: {name}}}\n"),
        names => {
            let mut selector = "            matchExpressions:\n              - key: app.kubernetes.io/name\n                operator: In\n                values:\n".to_owned();
            for name in names {
                let _ = writeln!(selector, "                  - {name}");
            }
            selector
        }
    };
    let _ = write!(text, "    - {side}:\n        - podSelector:\n{selector}");
    if !ports.is_empty() {
        let _ = writeln!(text, "      ports: {ports}");
    }
}

fn comment(text: &mut String, comment: &str) {
    if !comment.is_empty() {
        let _ = writeln!(text, "    # {comment}");
    }
}

/// Ports of a rule; empty for all.
fn open(ports: &[u32], udp: bool) -> String {
    let protocols: &[&str] = if udp { &["UDP", "TCP"] } else { &["TCP"] };
    let all = ports.iter().flat_map(|port| protocols.iter().map(move |p| format!("{{port: {port}, protocol: {p}}}")));
    let all: Vec<String> = all.collect();
    if all.is_empty() { String::new() } else { format!("[{}]", all.join(", ")) }
}

/// Name, number and protocol of each port; no protocol for plain TCP.
fn ports_of(service: &Deployment) -> Vec<(String, u32, &'static str)> {
    let mut all = vec![("grpc".to_owned(), GRPC_PORT, "")];
    for port in &service.ports {
        if port.udp {
            all.push((format!("{}-udp", port.name), port.number, "UDP"));
            all.push((format!("{}-tcp", port.name), port.number, "TCP"));
        } else {
            all.push((port.name.clone(), port.number, ""));
        }
    }
    all
}

fn cpu(milli: u32) -> String {
    if milli.is_multiple_of(1000) { format!("\"{}\"", milli / 1000) } else { format!("{milli}m") }
}

fn mebibytes(mib: u32) -> String {
    if mib.is_multiple_of(1024) { format!("{}Gi", mib / 1024) } else { format!("{mib}Mi") }
}

fn base(mesh: &Mesh) -> String {
    let mut text = format!(
        "# {MARK}\napiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nnamespace: continuum\nresources:\n"
    );
    let services = mesh.services.iter().map(|service| format!("{}.yaml", service.name));
    let generated = ["servers.yaml".to_owned(), format!("{PROVISION}.yaml")];
    for name in INFRASTRUCTURE.into_iter().map(str::to_owned).chain(generated).chain(services) {
        let _ = writeln!(text, "  - {name}");
    }
    text
}

/// The overlay with the keys of every identity.
fn overlay(mesh: &Mesh) -> String {
    let mut text = format!(
        "# {MARK}
# Before the first use, render the bus configuration and the keys into this folder:
#   continuum provision render --out k8s/overlays/local --store-dir /data/jetstream --http-listen 0.0.0.0:8222 --websocket-listen 0.0.0.0:9222 --disk-mib 16384
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
namespace: continuum
resources:
  - ../../base
secretGenerator:
  - name: nats-conf
    files: [nats.conf]
  - name: keys
    files:
"
    );
    let services = mesh.services.iter().map(|service| service.name.as_str());
    for identity in services.chain(["person"]) {
        let _ = writeln!(text, "      - keys/{identity}.nk");
    }
    text.push_str(
        "  # Named without a digest: a job cannot be changed, and this one need not run again when its key changes.
  - name: provisioner
    files: [keys/provisioner.nk]
    options: {disableNameSuffixHash: true}
",
    );
    text
}
