//! `compose.yaml`: each service as a container.

use std::fmt::Write as _;

use super::{
    MARK, Output,
    model::{Deployment, KEYS_DIR, Mesh, Variant, yaml, yaml_list},
};

/// Everything but the services: settings they share, the bus, and what brings it up.
const INFRASTRUCTURE: &str = include_str!("compose.infrastructure.yaml");
/// What [`INFRASTRUCTURE`] sets, and no service repeats.
const SHARED: [&str; 4] =
    ["CONTINUUM_BUS_URL", "CONTINUUM_SAMPLES_CONNECT", "CONTINUUM_LISTEN", "CONTINUUM_LOG_FORMAT"];
/// Identities beside the services whose keys are rendered.
const OTHER_IDENTITIES: [&str; 3] = ["provisioner", "person", "dashboard"];
/// Volumes that [`INFRASTRUCTURE`] mounts.
const INFRASTRUCTURE_VOLUMES: [&str; 10] = [
    "bus",
    "streams",
    "backup",
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
    let identities = mesh.services.iter().map(|service| service.name.as_str());
    let identities: Vec<&str> = OTHER_IDENTITIES.into_iter().chain(identities).collect();
    let keys: Vec<String> = identities.iter().map(|name| format!("      - key-{name}:/keys/{name}\n")).collect();
    let (mut text, mut volumes) = (String::new(), vec![]);
    // Where a backup has all that is kept: as `continuum up` has it in its data folder, but for keys of services.
    let mut mounts: Vec<String> =
        identities.iter().map(|name| format!("      - key-{name}:/mesh/keys/{name}\n")).collect();
    for service in &mesh.services {
        let variants: Vec<Option<&Variant>> =
            if service.variants.is_empty() { vec![None] } else { service.variants.iter().map(Some).collect() };
        for variant in variants {
            let name = variant.map_or_else(|| service.name.clone(), |v| format!("{}-{}", service.name, v.name));
            text.push_str(&container(mesh, service, variant, &name));
            // First the shorter name: Podman takes a volume whose name only begins so for one that is there, and leaves out labels.
            mounts.push(format!("      - {name}:/mesh/state/{name}\n"));
            if !service.keys.is_empty() {
                mounts.push(format!("      - {name}-secrets:/mesh/secrets/{name}\n"));
                volumes.push(format!("{name}-secrets"));
            }
            volumes.push(name);
        }
    }
    volumes.extend(identities.iter().map(|name| format!("key-{name}")));
    let infrastructure = INFRASTRUCTURE.replace("{version}", &mesh.version).replace("{keys}", &keys.concat());
    let infrastructure = infrastructure.replace("{mounts}", &mounts.concat());
    let mut text = format!("# {MARK}\n{infrastructure}{text}\nvolumes:\n");
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
    let _ = writeln!(text, "    image: {}", image(&service.image, &mesh.version));
    if !service.args.is_empty() {
        let _ = writeln!(text, "    command: {}", yaml_list(&service.args));
    }
    text.push_str("    environment:\n      <<: *environment\n");
    let seed_file = format!("/key/{}.nk", service.name);
    for variable in service.variables(name, &seed_file, variant) {
        if !SHARED.contains(&variable.name.as_str()) {
            let value = match variable.from.as_str() {
                "" => yaml(&variable.value),
                from => format!("\"${{{from}:-{}}}\"", variable.value),
            };
            let _ = writeln!(text, "      {}: {value}", variable.name);
        }
    }
    let published: Vec<String> = service
        .ports
        .iter()
        .filter(|port| port.published)
        .map(|port| format!("127.0.0.1:${{CONTINUUM_PORT_{0}:-{0}}}:{0}", port.number))
        .collect();
    if !published.is_empty() {
        let _ = writeln!(text, "    ports: {}", yaml_list(&published));
    }
    let mut volumes = vec![format!("key-{}:/key:ro", service.name), format!("{name}:/data")];
    if !service.keys.is_empty() {
        volumes.push(format!("{name}-secrets:{KEYS_DIR}"));
    }
    let _ = writeln!(text, "    volumes: {}", yaml_list(&volumes));
    text
}

/// An image of this project: of another registry where `CONTINUUM_IMAGES` names one, and of another version where
/// `CONTINUUM_VERSION` does.
fn image(name: &str, version: &str) -> String {
    format!("${{CONTINUUM_IMAGES:-continuum}}/{name}:${{CONTINUUM_VERSION:-{version}}}")
}
