//! Who reaches whom by the network policies as they are applied, against the contract's table of who connects to whom: for
//! every ordered pair of ends and every port.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde::Deserialize;
use serde_json::Value;

use super::model::{End, GRPC_PORT, Link, Mesh, compile, read};

type Labels = BTreeMap<String, String>;

const NAMESPACE: &str = "continuum";
/// Where an overlay's Prometheus and its collector are.
const MONITORING: &str = "monitoring";
/// Ports that nobody serves.
const OTHER_PORTS: [u32; 3] = [1, 2_049, 65_535];

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Policy {
    pod_selector: Selector,
    policy_types: Vec<String>,
    #[serde(default)]
    ingress: Vec<Rule>,
    #[serde(default)]
    egress: Vec<Rule>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Selector {
    match_labels: Labels,
    match_expressions: Vec<Expression>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expression {
    key: String,
    operator: String,
    values: BTreeSet<String>,
}

/// Of everybody without peers, to all ports without ports.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Rule {
    from: Vec<Peer>,
    to: Vec<Peer>,
    ports: Vec<Port>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Peer {
    pod_selector: Option<Selector>,
    namespace_selector: Option<Selector>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Port {
    port: u32,
    protocol: Protocol,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
enum Protocol {
    #[serde(rename = "TCP")]
    Tcp,
    #[serde(rename = "UDP")]
    Udp,
}

/// Something that connects or is connected to.
#[derive(Clone, Debug)]
struct Host {
    end: End,
    /// `None` outside of the cluster.
    pod: Option<(String, Labels)>,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Difference {
    from: End,
    to: End,
    port: u32,
    protocol: Protocol,
    /// It can connect, and should not; or the other way round.
    can: bool,
}

impl Selector {
    fn selects(&self, labels: &Labels) -> bool {
        let is_met = |expression: &Expression| {
            let is_in = labels.get(&expression.key).is_some_and(|value| expression.values.contains(value));
            match expression.operator.as_str() {
                "In" => is_in,
                "NotIn" => !is_in,
                other => panic!("the operator {other} is not evaluated here"),
            }
        };
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(is_met)
    }
}

impl Peer {
    fn is(&self, host: &Host) -> bool {
        let Some((namespace, labels)) = &host.pod else { return false };
        let in_namespace = match &self.namespace_selector {
            None => namespace == NAMESPACE,
            Some(selector) => {
                selector.selects(&Labels::from([("kubernetes.io/metadata.name".into(), namespace.clone())]))
            }
        };
        in_namespace && self.pod_selector.as_ref().is_none_or(|selector| selector.selects(labels))
    }
}

/// Do the policies that choose a host, if there are any, let it connect or be connected to?
fn allows(policies: &[Policy], host: &Host, kind: &str, peer: &Host, port: u32, protocol: Protocol) -> bool {
    let Some((namespace, labels)) = &host.pod else { return true };
    let chosen: Vec<&Policy> = policies
        .iter()
        .filter(|policy| namespace == NAMESPACE && policy.pod_selector.selects(labels))
        .filter(|policy| policy.policy_types.iter().any(|given| given == kind))
        .collect();
    let is_met = |rule: &Rule| {
        let peers = if kind == "Ingress" { &rule.from } else { &rule.to };
        (peers.is_empty() || peers.iter().any(|given| given.is(peer)))
            && (rule.ports.is_empty()
                || rule.ports.iter().any(|given| (given.port, given.protocol) == (port, protocol)))
    };
    let rules = |policy: &&Policy| if kind == "Ingress" { policy.ingress.clone() } else { policy.egress.clone() };
    chosen.is_empty() || chosen.iter().flat_map(rules).any(|rule| is_met(&rule))
}

/// Does the table allow it?
fn is_wanted(links: &[Link], from: &End, to: &End, port: u32, protocol: Protocol) -> bool {
    let opens = |link: &Link| {
        let is_port = link.ports.contains(&port) || (link.ports.is_empty() && !matches!(link.to, End::Anywhere(_)));
        // A rule without ports is of all protocols.
        is_port && (protocol == Protocol::Tcp || link.udp || link.ports.is_empty())
    };
    let is_outside = |end: &End| !matches!(end, End::Pod(_));
    // Two ends that are open to anywhere are open to each other.
    let sends = is_outside(from)
        || links.iter().any(|link| link.from == *from && matches!(link.to, End::Anywhere(_)) && opens(link));
    let takes = is_outside(to)
        || links.iter().any(|link| link.to == *to && matches!(link.from, End::Anywhere(_)) && opens(link));
    (sends && takes) || links.iter().any(|link| link.from == *from && link.to == *to && opens(link))
}

/// What the policies allow and the table does not, or the other way round.
fn differences(policies: &[Policy], hosts: &[Host], links: &[Link]) -> BTreeSet<Difference> {
    let given = |policy: &Policy| {
        policy.ingress.iter().chain(&policy.egress).flat_map(|rule| rule.ports.clone()).collect::<Vec<_>>()
    };
    let mut ports: BTreeSet<u32> = policies.iter().flat_map(given).map(|port| port.port).collect();
    ports.extend(links.iter().flat_map(|link| link.ports.clone()).chain(OTHER_PORTS));
    let mut found = BTreeSet::new();
    for from in hosts {
        for to in hosts {
            if !matches!(from.end, End::Pod(_)) && !matches!(to.end, End::Pod(_)) {
                continue;
            }
            for (&port, protocol) in ports.iter().flat_map(|port| [(port, Protocol::Tcp), (port, Protocol::Udp)]) {
                let can = allows(policies, from, "Egress", to, port, protocol)
                    && allows(policies, to, "Ingress", from, port, protocol);
                if can != is_wanted(links, &from.end, &to.end, port, protocol) {
                    found.insert(Difference { from: from.end.clone(), to: to.end.clone(), port, protocol, can });
                }
            }
        }
    }
    found
}

/// The policies and the pods among manifests.
fn parse(text: &str) -> (Vec<Policy>, Vec<Host>) {
    let (mut policies, mut hosts) = (vec![], vec![]);
    for document in serde_saphyr::from_multiple::<Value>(text).unwrap() {
        match document["kind"].as_str() {
            Some("NetworkPolicy") => policies.push(serde_json::from_value(document["spec"].clone()).unwrap()),
            Some("Deployment" | "StatefulSet" | "Job") => {
                let labels = document["spec"]["template"]["metadata"]["labels"].clone();
                let labels: Labels = serde_json::from_value(labels).unwrap();
                let end = End::Pod(labels["app.kubernetes.io/name"].clone());
                hosts.push(Host { end, pod: Some((NAMESPACE.to_owned(), labels)) });
            }
            _ => {}
        }
    }
    // Pods of other namespaces may have the labels of ours.
    let like_ours: Labels = [("app.kubernetes.io/name", "gateway"), ("app.kubernetes.io/part-of", "continuum")]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
    let elsewhere = |namespace: &str, end: End| Host { end, pod: Some((namespace.to_owned(), like_ours.clone())) };
    hosts.push(elsewhere("kube-system", End::Names));
    hosts.push(elsewhere("other", End::Anywhere("another namespace".into())));
    hosts.push(elsewhere(MONITORING, End::Anywhere(MONITORING.into())));
    hosts.push(Host { end: End::Anywhere("another cluster".into()), pod: None });
    (policies, hosts)
}

fn contract() -> (PathBuf, Mesh) {
    let root = crate::root();
    let mesh = read(&root, &compile(&root).unwrap()).unwrap();
    (root, mesh)
}

fn base(root: &Path) -> String {
    let folder = root.join("k8s/base");
    let listed: Value =
        serde_saphyr::from_str(&fs::read_to_string(folder.join("kustomization.yaml")).unwrap()).unwrap();
    let names = listed["resources"].as_array().unwrap().iter();
    names.map(|name| fs::read_to_string(folder.join(name.as_str().unwrap())).unwrap() + "\n---\n").collect()
}

#[test]
fn each_reaches_whom_the_contract_says_and_nobody_else() {
    let (root, mesh) = contract();
    let (policies, hosts) = parse(&base(&root));
    assert_eq!(hosts.len(), mesh.services.len() + 3 + 4, "all services, two servers, the job and what is outside");
    let found = differences(&policies, &hosts, &mesh.links());
    assert!(found.is_empty(), "{found:#?}");
    // Some that must be there, whatever the table says.
    let pod = |name: &str| hosts.iter().find(|host| host.end.pod() == Some(name)).unwrap();
    let outside = hosts.last().unwrap();
    for (from, to, port, wanted) in [
        (pod("gateway"), pod("cluster-agent"), 31_337, true),
        (pod("validator"), pod("cluster-agent"), 31_337, false),
        (pod("gateway"), pod("validator"), GRPC_PORT, true),
        (pod("validator"), pod("gateway"), GRPC_PORT, false),
        (pod("validator"), pod("nats"), 4_222, true),
        (pod("validator"), pod("nats"), 8_222, false),
        (pod("provision"), pod("zenoh"), 7_447, false),
        (outside, pod("gateway"), 8_000, true),
        (outside, pod("nats"), 4_222, false),
        (pod("workload-manager"), outside, 443, true),
        (pod("validator"), outside, 443, false),
    ] {
        let can = allows(&policies, from, "Egress", to, port, Protocol::Tcp)
            && allows(&policies, to, "Ingress", from, port, Protocol::Tcp);
        assert_eq!(can, wanted, "{:?} to {:?} at {port}", from.end, to.end);
    }
}

#[test]
fn a_rule_that_is_missing_or_too_many_is_noticed() {
    let (root, mesh) = contract();
    let (policies, hosts) = parse(&base(&root));
    let links = mesh.links();
    let mut removed = 0;
    for at in 0..policies.len() {
        for (kind, count) in [("Ingress", policies[at].ingress.len()), ("Egress", policies[at].egress.len())] {
            for rule in 0..count {
                let mut fewer = policies.clone();
                let rules = if kind == "Ingress" { &mut fewer[at].ingress } else { &mut fewer[at].egress };
                let gone = rules.remove(rule);
                let found = differences(&fewer, &hosts, &links);
                assert!(found.iter().any(|one| !one.can), "nobody needs {gone:?} of {:?}", policies[at].pod_selector);
                removed += 1;
            }
        }
        let mut more = policies.clone();
        more[at].ingress.push(Rule::default());
        more[at].egress.push(Rule::default());
        let found = differences(&more, &hosts, &links);
        assert!(found.iter().any(|one| one.can), "{:?}", policies[at].pod_selector);
    }
    assert!(removed > 4 * mesh.services.len(), "{removed} rules");
    // What denies the rest is missing: then what no policy chooses is open.
    let without: Vec<Policy> =
        policies.into_iter().filter(|policy| !policy.pod_selector.match_labels.is_empty()).collect();
    let mut stranger = hosts.clone();
    stranger.push(Host { end: End::Pod("stranger".into()), pod: Some((NAMESPACE.into(), Labels::new())) });
    assert!(!differences(&without, &stranger, &links).is_empty());
}

/// What `kustomize build` makes of the overlays for the project's images in a registry: of the mesh, of a backup of it, and
/// of a restore.
fn example(root: &Path, digests: &str) -> Option<[String; 3]> {
    let kustomize = root.join(".tools/go/kustomize");
    if !kustomize.is_file() {
        eprintln!("SKIPPED: the overlay example: no .tools/go/kustomize (run `make servers`)");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    assert!(Command::new("cp").arg("-r").arg(root.join("k8s")).arg(folder.path()).status().unwrap().success());
    let k8s = folder.path().join("k8s");
    // What `continuum provision render` writes.
    fs::create_dir_all(k8s.join("overlays/local/keys")).unwrap();
    let local = fs::read_to_string(k8s.join("overlays/local/kustomization.yaml")).unwrap();
    for file in local.split_whitespace().map(|word| word.trim_matches(['[', ']'])) {
        if file == "nats.conf" || file.starts_with("keys/") {
            fs::write(k8s.join("overlays/local").join(file), "").unwrap();
        }
    }
    let images = k8s.join("overlays/example/images");
    fs::create_dir_all(&images).unwrap();
    fs::write(k8s.join("digests"), digests).unwrap();
    let pinned = Command::new(k8s.join("pin.sh"))
        .arg("registry.example.org:5000/mesh")
        .stdin(fs::File::open(k8s.join("digests")).unwrap())
        .output()
        .unwrap();
    assert!(pinned.status.success(), "{}", String::from_utf8_lossy(&pinned.stderr));
    fs::write(images.join("kustomization.yaml"), pinned.stdout).unwrap();
    Some(["example", "example/backup", "example/restore"].map(|overlay| {
        let built = Command::new(&kustomize).arg("build").arg(k8s.join("overlays").join(overlay)).output().unwrap();
        assert!(built.status.success(), "{overlay}: {}", String::from_utf8_lossy(&built.stderr));
        String::from_utf8(built.stdout).unwrap()
    }))
}

#[test]
fn an_overlay_opens_the_ports_that_it_sets_and_no_others() {
    let (root, mesh) = contract();
    let Some([text, ..]) = example(&root, "") else { return };
    let (policies, hosts) = parse(&text);
    let mut links = mesh.links();
    let service = |name: &str| End::Pod(name.to_owned());
    for link in &mut links {
        let End::Anywhere(name) = &link.to else { continue };
        link.ports = match name.as_str() {
            "oidc" => vec![8_443],
            "registries" => vec![443, 5_000],
            "controllers" => vec![80, 8_080],
            _ => continue,
        };
    }
    let monitoring = || End::Anywhere(MONITORING.into());
    let link = |from: End, to: End, port: u32| Link { from, to, ports: vec![port], udp: false, comment: String::new() };
    let mut more = vec![];
    for own in mesh.services.iter().map(|one| service(&one.name)) {
        more.extend([27_017, 8_086, 9_042].map(|port| link(own.clone(), End::Anywhere("databases".into()), port)));
    }
    links.extend(more);
    // One namespace alone, and not anywhere.
    let only: Vec<Link> = mesh
        .services
        .iter()
        .map(|one| service(&one.name))
        .flat_map(|own| [link(own.clone(), monitoring(), 4_317), link(monitoring(), own, GRPC_PORT)])
        .chain([link(service("gateway"), monitoring(), 9_090)])
        .collect();
    let is_only = |one: &Difference| {
        only.iter().any(|link| (&link.from, &link.to, link.ports[0]) == (&one.from, &one.to, one.port)) && one.can
    };
    let (expected, rest): (BTreeSet<_>, BTreeSet<_>) =
        differences(&policies, &hosts, &links).into_iter().partition(is_only);
    assert!(rest.is_empty(), "{rest:#?}");
    assert_eq!(expected.len(), only.len(), "{expected:#?}");
}

#[test]
fn images_come_from_the_registry_and_another_image_is_another_job() {
    let (root, _) = contract();
    let digest = format!("sha256:{}", "5".repeat(64));
    let job = |text: &str| {
        let documents = serde_saphyr::from_multiple::<Value>(text).unwrap();
        let jobs: Vec<String> = documents
            .iter()
            .filter(|one| one["kind"] == "Job")
            .map(|one| one["metadata"]["name"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(jobs.len(), 1);
        assert!(jobs[0].starts_with("provision-") && jobs[0].len() <= 63, "{}", jobs[0]);
        jobs[0].clone()
    };
    let Some([plain, ..]) = example(&root, "") else { return };
    let [pinned, backup, restore] = example(&root, &format!("continuum {digest}\nnats {digest}\n")).unwrap();
    assert!(plain.contains("image: registry.example.org:5000/mesh/validator:"), "{plain}");
    assert!(pinned.contains(&format!("image: registry.example.org:5000/mesh/continuum@{digest}")));
    assert!(pinned.contains(&format!("image: nats@{digest}")));
    assert!(!plain.contains("image: continuum/") && !pinned.contains("image: continuum/"));
    assert_eq!(job(&plain), job(&example(&root, "").unwrap()[0]), "applied again, it is the same");
    assert_ne!(job(&plain), job(&pinned));
    for (name, text) in [("backup", &backup), ("restore", &restore)] {
        assert!(text.contains(&format!("image: registry.example.org:5000/mesh/continuum@{digest}")), "{text}");
        assert!(text.contains(&format!("\n  name: {name}\n")) && !text.contains("image: continuum/"), "{text}");
    }
    assert_ne!(job(&plain), job(&base(&root)));
    // A job cannot be changed: nothing in it may have a name that changes with what it names.
    assert!(plain.contains("secretName: provisioner\n"));
}

#[test]
fn one_process_at_a_time_and_keys_on_a_volume_that_stays() {
    let (root, mesh) = contract();
    let documents: Vec<Value> = serde_saphyr::from_multiple(&base(&root)).unwrap();
    for service in &mesh.services {
        let is_it = |one: &&Value| {
            matches!(one["kind"].as_str(), Some("Deployment" | "StatefulSet"))
                && one["metadata"]["name"] == service.name
        };
        let found = documents.iter().find(is_it).unwrap();
        let stateful = found["kind"] == "StatefulSet";
        if service.singleton {
            assert!(stateful || found["spec"]["strategy"]["type"] == "Recreate", "{}", service.name);
        }
        let pod = &found["spec"]["template"]["spec"];
        let mounts = pod["containers"][0]["volumeMounts"].as_array().unwrap();
        let claims: Vec<&Value> = found["spec"]["volumeClaimTemplates"].as_array().into_iter().flatten().collect();
        let at = |path: &str| mounts.iter().find(|mount| mount["mountPath"] == path).map(|mount| &mount["name"]);
        let is_kept = |name: &Value| claims.iter().any(|claim| claim["metadata"]["name"] == *name);
        assert_eq!(at("/secrets").is_some(), !service.keys.is_empty(), "{}", service.name);
        if let Some(secrets) = at("/secrets") {
            assert!(is_kept(secrets) && at("/data") != Some(secrets), "{}", service.name);
        }
        assert_eq!(is_kept(at("/data").unwrap()), service.state.is_some(), "{}", service.name);
    }
}
