//! `compose.yaml`: each service as a container.

use std::fmt::Write as _;

use super::{
    MARK, Output,
    model::{Deployment, Mesh, Variant, yaml, yaml_list},
};

/// Everything but the services: settings they share, the bus, and what brings it up.
const INFRASTRUCTURE: &str = include_str!("compose.infrastructure.yaml");
/// What [`INFRASTRUCTURE`] sets, and no service repeats.
const SHARED: [&str; 4] =
    ["CONTINUUM_BUS_URL", "CONTINUUM_SAMPLES_CONNECT", "CONTINUUM_LISTEN", "CONTINUUM_LOG_FORMAT"];
/// Volumes that [`INFRASTRUCTURE`] mounts.
const INFRASTRUCTURE_VOLUMES: [&str; 9] = [
    "bus",
    "streams",
    "mongo",
    "mongo-config",
    "influxdb",
    "influxdb-config",
    "cassandra",
    "cassandra-config",
    "cassandra-logs",
];
const MEMORY_MIB: u32 = 256;
const PROCESSES: u32 = 256;

/// The one file.
pub(super) fn render(mesh: &Mesh) -> Vec<Output> {
    let mut text = format!("# {MARK}\n{}", INFRASTRUCTURE.replace("{version}", &mesh.version));
    let mut volumes = vec![];
    for service in &mesh.services {
        let variants: Vec<Option<&Variant>> =
            if service.variants.is_empty() { vec![None] } else { service.variants.iter().map(Some).collect() };
        for variant in variants {
            let name = variant.map_or_else(|| service.name.clone(), |v| format!("{}-{}", service.name, v.name));
            text.push_str(&container(mesh, service, variant, &name));
            volumes.push(name);
        }
    }
    text.push_str("\nvolumes:\n");
    for volume in INFRASTRUCTURE_VOLUMES.iter().map(|volume| (*volume).to_owned()).chain(volumes) {
        let _ = writeln!(text, "  {volume}:");
    }
    vec![Output { path: "compose.yaml".to_owned(), text }]
}

fn container(mesh: &Mesh, service: &Deployment, variant: Option<&Variant>, name: &str) -> String {
    let mut text = format!("\n  {name}:\n    <<: *service\n");
    let memory = service.memory_limit_mib(variant);
    if memory != MEMORY_MIB {
        let _ = writeln!(text, "    mem_limit: {memory}m");
    }
    if service.resources.processes_max != PROCESSES {
        let _ = writeln!(text, "    pids_limit: {}", service.resources.processes_max);
    }
    if let Some(package) = service.package() {
        let _ = writeln!(text, "    build: {{context: ., args: {{SERVICE: {package}}}}}");
    }
    let _ = writeln!(text, "    image: continuum/{}:{}", service.image, mesh.version);
    if !service.args.is_empty() {
        let _ = writeln!(text, "    command: {}", yaml_list(&service.args));
    }
    text.push_str("    environment:\n      <<: *environment\n");
    let seed_file = format!("/bus/keys/{}.nk", service.name);
    for variable in service.variables(name, &seed_file, variant) {
        if !SHARED.contains(&variable.name.as_str()) {
            let _ = writeln!(text, "      {}: {}", variable.name, yaml(&variable.value));
        }
    }
    let published: Vec<String> = service
        .ports
        .iter()
        .filter(|port| port.published)
        .map(|port| format!("127.0.0.1:{0}:{0}", port.number))
        .collect();
    if !published.is_empty() {
        let _ = writeln!(text, "    ports: {}", yaml_list(&published));
    }
    let _ = writeln!(text, "    volumes: [\"bus:/bus:ro\", \"{name}:/data\"]");
    text
}
