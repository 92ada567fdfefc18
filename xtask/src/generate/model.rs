//! How each service is deployed, as values: what every renderer starts from.

use std::{fs, path::Path};

use anyhow::{Context as _, anyhow, bail, ensure};
use prost_reflect::DescriptorPool;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::contract::Contract;

/// The port on which every service answers gRPC, its probes and its metrics.
pub const GRPC_PORT: u32 = 8080;

/// Where the volume of the keys that a service makes for itself is mounted.
pub const KEYS_DIR: &str = "/secrets";

/// Size of that volume.
pub const KEYS_MIB: u32 = 16;

/// The whole mesh.
#[derive(Clone, Debug)]
pub struct Mesh {
    /// Version of the workspace, which is that of every image.
    pub version: String,
    /// Services in declaration order.
    pub services: Vec<Deployment>,
    /// What provisioning makes follows from this and nothing else: a digest of the compiled contract, without its comments.
    pub digest: String,
}

/// How one service is deployed. Mirrors `continuum.mesh.v1.DeploymentOptions`, with the defaults filled in.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Deployment {
    /// Name of the service, of its identity and of its folder.
    #[serde(skip)]
    pub name: String,
    /// What it is for.
    #[serde(skip)]
    pub about: String,
    /// Package whose image holds it.
    pub image: String,
    /// Arguments of its program.
    pub args: Vec<String>,
    /// Ports in addition to gRPC.
    pub ports: Vec<Port>,
    /// Environment in addition to what every service gets.
    pub environment: Vec<Variable>,
    /// The folder that must survive.
    pub state: Option<State>,
    /// At most one process at a time.
    pub singleton: bool,
    /// What a process is given.
    pub resources: Resources,
    /// Whom it connects to, in addition to NATS, Zenoh and DNS.
    pub connections: Vec<Connection>,
    /// Seconds that it may take to become ready.
    pub startup_seconds: u32,
    /// Processes.
    pub replicas: u32,
    /// Processes with a configuration of their own each.
    pub variants: Vec<Variant>,
    /// Which keys it makes for itself; none when empty.
    pub keys: String,
}

/// A port that a service listens on.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Its number.
    pub number: u32,
    /// UDP beside TCP?
    pub udp: bool,
    /// Variable with the address to listen on.
    pub variable: String,
    /// Reachable from the machine that runs Compose?
    pub published: bool,
    /// Who may connect.
    pub comment: String,
}

/// An environment variable.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
    /// The variable of whoever starts Compose that takes the value's place, if it is set.
    pub from: String,
}

/// A folder that survives.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct State {
    /// Its size.
    pub size_mib: u32,
    /// What is in it.
    pub comment: String,
}

/// What a process is given.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Resources {
    /// Thousandths of a CPU that it is sure to get.
    pub cpu_request_milli: u32,
    /// Memory that it is sure to get.
    pub memory_request_mib: u32,
    /// Thousandths of a CPU that it may use.
    pub cpu_limit_milli: u32,
    /// Memory that it may use.
    pub memory_limit_mib: u32,
    /// Processes and threads that it may have.
    pub processes_max: u32,
}

/// Whom a service connects to.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Connection {
    /// A service, or [`Connection::MESH`]; anywhere when empty.
    pub to: String,
    /// When empty: all of a service, and none of anywhere.
    pub ports: Vec<u32>,
    /// UDP beside TCP?
    pub udp: bool,
    /// Why.
    pub comment: String,
    /// What is connected to, if that is anywhere.
    pub name: String,
}

impl Connection {
    /// Any service.
    pub const MESH: &str = "mesh";
}

/// One end of a [`Link`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// A service, a server or the job that provisions the bus.
    Pod(String),
    /// The servers of names.
    Names,
    /// Whatever is elsewhere; of connections to it, each has a name.
    Anywhere(String),
}

impl End {
    /// Name of a pod.
    pub fn pod(&self) -> Option<&str> {
        match self {
            Self::Pod(name) => Some(name),
            Self::Names | Self::Anywhere(_) => None,
        }
    }
}

/// A row of the table of who connects to whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Who connects.
    pub from: End,
    /// To whom.
    pub to: End,
    /// When empty: all ports of a pod, none of anywhere.
    pub ports: Vec<u32>,
    /// UDP beside TCP?
    pub udp: bool,
    /// Why.
    pub comment: String,
}

/// One of several processes of a service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Variant {
    /// Its name.
    pub name: String,
    /// Its environment.
    pub environment: Vec<Variable>,
    /// Memory that it may use.
    pub memory_limit_mib: u32,
}

impl Deployment {
    /// The package that is its own crate, if its image is not another's.
    pub fn package(&self) -> Option<&str> {
        (self.image == self.name).then_some(&self.name)
    }

    /// The environment of a process that others find under `host`: what every service gets, what this one gets, and what
    /// its variant gets.
    pub fn variables(&self, host: &str, seed_file: &str, variant: Option<&Variant>) -> Vec<Variable> {
        let of =
            |name: &str, value: &str| Variable { name: name.to_owned(), value: value.to_owned(), from: String::new() };
        let mut all = vec![
            of("CONTINUUM_BUS_URL", "nats://nats:4222"),
            of("CONTINUUM_BUS_SEED_FILE", seed_file),
            of("CONTINUUM_SAMPLES_CONNECT", "tcp/zenoh:7447"),
            of("CONTINUUM_LISTEN", &format!("0.0.0.0:{GRPC_PORT}")),
            of("CONTINUUM_ADVERTISE_HOST", host),
            of("CONTINUUM_LOG_FORMAT", "json"),
            of("CONTINUUM_DATA_DIR", "/data"),
        ];
        if !self.keys.is_empty() {
            all.push(of("CONTINUUM_KEYS_DIR", KEYS_DIR));
        }
        let ports = self.ports.iter().filter(|port| !port.variable.is_empty());
        all.extend(ports.map(|port| of(&port.variable, &format!("0.0.0.0:{}", port.number))));
        all.extend(self.environment.iter().chain(variant.into_iter().flat_map(|v| &v.environment)).cloned());
        all
    }

    /// Memory that a process of a variant may use.
    pub fn memory_limit_mib(&self, variant: Option<&Variant>) -> u32 {
        variant.map(|v| v.memory_limit_mib).filter(|mib| *mib > 0).unwrap_or(self.resources.memory_limit_mib)
    }

    fn fill_in(&mut self) {
        let or = |value: &mut u32, default: u32| {
            if *value == 0 {
                *value = default;
            }
        };
        if self.image.is_empty() {
            self.image = self.name.clone();
        }
        or(&mut self.startup_seconds, 120);
        or(&mut self.replicas, 1);
        or(&mut self.resources.cpu_request_milli, 50);
        or(&mut self.resources.memory_request_mib, 64);
        or(&mut self.resources.cpu_limit_milli, 1_000);
        or(&mut self.resources.memory_limit_mib, 256);
        or(&mut self.resources.processes_max, 256);
    }
}

/// Compiles the contract's files.
///
/// # Errors
/// When one is not valid.
pub fn compile(root: &Path) -> anyhow::Result<DescriptorPool> {
    let proto = root.join("proto");
    let mut files = vec![];
    collect(&proto.join("continuum"), &mut files)?;
    files.sort();
    let mut compiler = protox::Compiler::new([&proto])?;
    compiler.include_imports(true).include_source_info(true).open_files(&files)?;
    let pool = DescriptorPool::decode(compiler.encode_file_descriptor_set().as_slice());
    let pool = pool.context("read the compiled contract")?;
    for method in pool.services().flat_map(|service| service.methods().collect::<Vec<_>>()) {
        for message in [method.input(), method.output()] {
            // protoc looks a name up in the service first, and finds the method.
            let is_found =
                message.name() != method.name() || message.package_name() != method.parent_service().package_name();
            ensure!(is_found, "{}: protoc takes {} for the method: rename it", method.full_name(), message.name());
        }
    }
    Ok(pool)
}

fn collect(folder: &Path, files: &mut Vec<std::path::PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|e| e == "proto") {
            files.push(path);
        }
    }
    Ok(())
}

/// The mesh that the contract describes.
///
/// # Errors
/// When the contract is not valid, or says something that cannot be deployed.
pub fn read(root: &Path, pool: &DescriptorPool) -> anyhow::Result<Mesh> {
    let contract = Contract::read(pool).map_err(|e| anyhow!("read the contract: {e}"))?;
    let manifest = fs::read_to_string(root.join("Cargo.toml")).context("read Cargo.toml")?;
    let version = manifest
        .lines()
        .find_map(|line| line.strip_prefix("version = \"")?.strip_suffix('"'))
        .context("Cargo.toml has no version")?
        .to_owned();
    let extension = pool.get_extension_by_name("continuum.mesh.v1.service").context("the extension `service`")?;
    let declared = pool.get_enum_by_name("continuum.mesh.v1.Service").context("the enum `Service`")?;
    let mut services = vec![];
    for value in declared.values() {
        let options = value.options();
        if !options.has_extension(&extension) {
            continue;
        }
        let row = serde_json::to_value(options.get_extension(&extension).as_message().context("a message")?)?;
        let name = row["name"].as_str().unwrap_or_default().to_owned();
        let mut deployment = match row.get("deployment") {
            Some(found) => serde_json::from_value(found.clone()).with_context(|| format!("deployment of {name}"))?,
            None => Deployment::default(),
        };
        deployment.about = contract.service(&name).map(|s| s.doc.clone()).unwrap_or_default();
        deployment.name = name;
        deployment.fill_in();
        services.push(deployment);
    }
    // What the compiler writes without its source has no comments.
    let bare = protox::Compiler::new([root.join("proto")])?
        .include_imports(true)
        .include_source_info(false)
        .open_files(pool.files().map(|file| root.join("proto").join(file.name())).filter(|path| path.is_file()))?
        .encode_file_descriptor_set();
    let mesh = Mesh { version, services, digest: hex::encode(Sha256::digest(bare)) };
    mesh.check()?;
    Ok(mesh)
}

impl Mesh {
    fn check(&self) -> anyhow::Result<()> {
        for service in &self.services {
            let name = &service.name;
            for to in service.connections.iter().map(|c| c.to.as_str()).filter(|to| !to.is_empty()) {
                if to != Connection::MESH && !self.services.iter().any(|s| s.name == to) {
                    bail!("{name} connects to {to:?}, which is not a service");
                }
            }
            let outside = service.connections.iter().filter(|c| c.to.is_empty());
            let names: Vec<&str> = outside.map(|c| c.name.as_str()).collect();
            let is_named = service.connections.iter().all(|c| c.to.is_empty() != c.name.is_empty());
            ensure!(
                is_named && (1..names.len()).all(|n| !names[n..].contains(&names[n - 1])),
                "{name}: each connection to anywhere, and no other, has a name of its own"
            );
            let mut numbers = vec![GRPC_PORT];
            for port in &service.ports {
                ensure!(!port.name.is_empty() && port.number > 0, "{name}: a port needs a name and a number");
                ensure!(!numbers.contains(&port.number), "{name}: port {} is there twice", port.number);
                numbers.push(port.number);
            }
            ensure!(
                service.replicas == 1 || !(service.singleton || service.state.is_some()),
                "{name}: a service with a state of its own, or a singleton, has one replica"
            );
        }
        Ok(())
    }
}

/// The servers that every service connects to, with their ports.
pub const SERVERS: [(&str, u32); 2] = [("nats", 4222), ("zenoh", 7447)];
/// The job that makes the streams.
pub const PROVISION: &str = "provision";
/// Where dashboards connect to nats.
pub const WEBSOCKET_PORT: u32 = 9222;

impl Mesh {
    /// Who connects to whom. What is not here is denied.
    pub fn links(&self) -> Vec<Link> {
        let pod = |name: &str| End::Pod(name.to_owned());
        let tcp = |from: End, to: End, ports: &[u32], comment: &str| Link {
            from,
            to,
            ports: ports.to_vec(),
            udp: false,
            comment: comment.to_owned(),
        };
        let names = |from: End| Link { udp: true, ..tcp(from, End::Names, &[53], "Names.") };
        let anyone = || End::Anywhere(String::new());
        let mut all = vec![
            tcp(pod(PROVISION), pod("nats"), &[4222], "It makes the streams."),
            names(pod(PROVISION)),
            tcp(
                anyone(),
                pod("nats"),
                &[WEBSOCKET_PORT],
                "Dashboards: WebSocket, with the key `dashboard.nk`, which may only listen. Put an ingress with TLS before it.",
            ),
        ];
        for service in &self.services {
            let own = || pod(&service.name);
            for (server, port) in SERVERS {
                all.push(tcp(own(), pod(server), &[port], ""));
            }
            all.push(names(own()));
            for port in &service.ports {
                all.push(Link { udp: port.udp, ..tcp(anyone(), own(), &[port.number], &port.comment) });
            }
            for connection in &service.connections {
                let to = match connection.to.as_str() {
                    "" => vec![End::Anywhere(connection.name.clone())],
                    Connection::MESH => {
                        let others = self.services.iter().filter(|other| other.name != service.name);
                        others.map(|other| pod(&other.name)).collect()
                    }
                    to => vec![pod(to)],
                };
                for to in to {
                    all.push(Link { udp: connection.udp, ..tcp(own(), to, &connection.ports, &connection.comment) });
                }
            }
        }
        all
    }
}

/// A text as YAML.
pub fn yaml(text: &str) -> String {
    let is_plain = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-./=".contains(c))
        && !["true", "false", "yes", "no", "on", "off", "null", "y", "n"].contains(&text.to_lowercase().as_str());
    // A JSON string is a double-quoted YAML scalar, too.
    if is_plain { text.to_owned() } else { serde_json::Value::from(text).to_string() }
}

/// A list of texts as YAML, on one line.
pub fn yaml_list(texts: &[String]) -> String {
    format!(
        "[{}]",
        texts.iter().map(|t| serde_json::Value::from(t.as_str()).to_string()).collect::<Vec<_>>().join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_yaml_would_read_as_something_else_is_quoted() {
        assert_eq!(yaml("cloud-1"), "cloud-1");
        assert_eq!(yaml("tier=cloud"), "tier=cloud");
        assert_eq!(yaml("1500"), "\"1500\"");
        assert_eq!(yaml("no"), "\"no\"");
        assert_eq!(yaml("0.0.0.0:8080"), "\"0.0.0.0:8080\"");
        assert_eq!(yaml(""), "\"\"");
        assert_eq!(yaml("[\"a\"]"), "\"[\\\"a\\\"]\"");
    }

    #[test]
    fn a_service_is_deployed_by_defaults_where_its_row_says_nothing() {
        let root = crate::root();
        let mesh = read(&root, &compile(&root).unwrap()).unwrap();
        let of = |name: &str| mesh.services.iter().find(|s| s.name == name).unwrap();
        let validator = of("validator");
        assert_eq!((validator.image.as_str(), validator.replicas, validator.startup_seconds), ("validator", 1, 120));
        assert_eq!(validator.resources.memory_limit_mib, 256);
        assert!(validator.state.is_none() && validator.about.ends_with('.'));
        let agent = of("cluster-agent");
        assert_eq!(agent.memory_limit_mib(agent.variants.first()), 2560);
        let listen =
            agent.variables("host", "/seed", None).into_iter().find(|v| v.name == "CLUSTER_AGENT_PROBE_LISTEN");
        assert_eq!(listen.unwrap().value, "0.0.0.0:8081");
    }

    #[test]
    fn what_cannot_be_deployed_is_refused() {
        let service = |change: fn(&mut Deployment)| {
            let mut service = Deployment { name: "one".into(), ..Default::default() };
            service.fill_in();
            change(&mut service);
            Mesh { version: "1.0.0".into(), services: vec![service], digest: String::new() }
                .check()
                .map_err(|e| e.to_string())
        };
        assert_eq!(service(|_| {}), Ok(()));
        let to = |to: &str| Connection { to: to.into(), ..Default::default() };
        assert_eq!(service(|s| s.connections = vec![]), Ok(()));
        let mut other = Deployment { name: "one".into(), connections: vec![to("two")], ..Default::default() };
        other.fill_in();
        let refused = Mesh { version: "1.0.0".into(), services: vec![other], digest: String::new() };
        let refused = refused.check().unwrap_err();
        assert_eq!(refused.to_string(), "one connects to \"two\", which is not a service");
        let nameless = |s: &mut Deployment| s.connections = vec![Connection { ports: vec![443], ..Default::default() }];
        assert!(service(nameless).unwrap_err().contains("has a name of its own"));
        let port =
            |s: &mut Deployment| s.ports = vec![Port { name: "again".into(), number: 8080, ..Default::default() }];
        assert_eq!(service(port), Err("one: port 8080 is there twice".to_owned()));
        let many = |s: &mut Deployment| (s.replicas, s.singleton) = (2, true);
        assert!(service(many).unwrap_err().contains("has one replica"));
    }
}
