//! `k8s/`: a manifest per service, and the kustomizations that name them. NATS, Zenoh, the namespace and the job that
//! provisions the bus are not services; their manifests are written by hand.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::Context as _;

use super::{
    MARK, Output,
    model::{Connection, Deployment, GRPC_PORT, KEYS_DIR, KEYS_MIB, Mesh, yaml, yaml_list},
};

const BASE: &str = "k8s/base";
/// Manifests that are written by hand, in the order in which they are applied.
const INFRASTRUCTURE: [&str; 4] = ["namespace.yaml", "nats.yaml", "zenoh.yaml", "provision.yaml"];

/// The manifests and the kustomizations.
pub(super) fn render(mesh: &Mesh) -> Vec<Output> {
    let manifest = |service: &Deployment| Output {
        path: format!("{BASE}/{}.yaml", service.name),
        text: [format!("# {MARK}\n{}", workload(mesh, service)), address(service), policy(service)].join("---\n"),
    };
    let mut all: Vec<Output> = mesh.services.iter().map(manifest).collect();
    all.push(Output { path: format!("{BASE}/kustomization.yaml"), text: base(mesh) });
    all.push(Output { path: "k8s/overlays/local/kustomization.yaml".to_owned(), text: overlay(mesh) });
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
      securityContext:
        runAsNonRoot: true
        runAsUser: 10001
        runAsGroup: 10001
        fsGroup: 10001
        seccompProfile: {{type: RuntimeDefault}}
      containers:
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
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities: {{drop: [ALL]}}
          volumeMounts:
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

/// Who reaches it, and whom it reaches.
fn policy(service: &Deployment) -> String {
    let name = &service.name;
    let mut text = format!(
        "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {name}
  labels: {}
spec:
  podSelector:
    matchLabels: {{app.kubernetes.io/name: {name}}}
  policyTypes: [Ingress, Egress]
  ingress:
    - from:
        - podSelector:
            matchLabels: {{app.kubernetes.io/part-of: continuum}}
      ports: {}
",
        labels(name),
        open(&[GRPC_PORT], false)
    );
    for port in &service.ports {
        comment(&mut text, &port.comment);
        let _ = writeln!(text, "    - ports: {}", open(&[port.number], port.udp));
    }
    text.push_str("  egress:\n");
    for (name, port) in [("nats", 4222), ("zenoh", 7447)] {
        to(&mut text, &format!("app.kubernetes.io/name: {name}"), &open(&[port], false));
    }
    for connection in &service.connections {
        comment(&mut text, &connection.comment);
        let ports = open(&connection.ports, connection.udp);
        match connection.to.as_str() {
            "" => {
                let _ = writeln!(text, "    - ports: {ports}");
            }
            Connection::MESH => to(&mut text, "app.kubernetes.io/part-of: continuum", &ports),
            service => to(&mut text, &format!("app.kubernetes.io/name: {service}"), &ports),
        }
    }
    text.push_str(
        "    - to:
        - namespaceSelector:
            matchLabels: {kubernetes.io/metadata.name: kube-system}
      ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]
",
    );
    text
}

fn comment(text: &mut String, comment: &str) {
    if !comment.is_empty() {
        let _ = writeln!(text, "    # {comment}");
    }
}

fn to(text: &mut String, label: &str, ports: &str) {
    let _ = writeln!(text, "    - to:\n        - podSelector:\n            matchLabels: {{{label}}}");
    if !ports.is_empty() {
        let _ = writeln!(text, "      ports: {ports}");
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
    for name in INFRASTRUCTURE.into_iter().map(str::to_owned).chain(services) {
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
    for identity in ["provisioner"].into_iter().chain(services).chain(["person"]) {
        let _ = writeln!(text, "      - keys/{identity}.nk");
    }
    text
}
