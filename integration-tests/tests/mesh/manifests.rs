//! How the mesh is deployed: compose.yaml and the kustomizations, against their schemas, the contract and the services'
//! own reading of their settings.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::Value as Json;

use crate::support::{program, root, text};

/// The Python that has the validators; without it, says that the suite is skipped.
fn python() -> Option<PathBuf> {
    let python = root().join(".tools/test/bin/python");
    let has = |python: &Path| {
        let asked = Command::new(python).args(["-c", "import yaml, check_jsonschema, kubernetes_validate"]).output();
        asked.is_ok_and(|output| output.status.success())
    };
    if has(&python) {
        return Some(python);
    }
    eprintln!("SKIPPED: manifests: no validators of compose files and Kubernetes resources; run infra/test/install.sh");
    None
}

/// Names of the contract's services: what has to be deployed. A person is an identity, but no service.
fn services() -> Vec<String> {
    let all = mesh_proto::contract().services.iter().map(|service| service.name.clone());
    all.filter(|name| name != "person" && name != "provisioner").collect()
}

/// A copy of what is deployed, with the bus configuration and the keys rendered as the overlay says they are to be.
fn checkout() -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("continuum-manifests-").tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("infra/images")).unwrap();
    for file in ["compose.yaml", "infra/images/Dockerfile", "Cargo.toml"] {
        std::fs::copy(root().join(file), folder.path().join(file)).unwrap();
    }
    let copied = Command::new("cp").arg("-r").arg(root().join("k8s")).arg(folder.path()).status().unwrap();
    assert!(copied.success());
    for service in std::fs::read_dir(root().join("services")).unwrap() {
        std::fs::create_dir_all(folder.path().join("services").join(service.unwrap().file_name())).unwrap();
    }
    let overlay = folder.path().join("k8s/overlays/local");
    let command = std::fs::read_to_string(overlay.join("kustomization.yaml")).unwrap();
    let command = command.lines().find_map(|line| line.strip_prefix("#   continuum ")).expect("it says how to render");
    let output = Command::new(program("continuum"))
        .args(command.split_whitespace())
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{command}: {}", text(&output));
    folder
}

fn validate(python: &Path, folder: &Path, kustomize: bool) -> Output {
    let mut command = Command::new(python);
    command.arg(root().join("infra/test/manifests.py")).arg(folder).arg("--services").arg(services().join(","));
    let built = root().join(".tools/go/kustomize");
    if kustomize && built.is_file() {
        command.arg("--kustomize").arg(built);
    }
    command.stdin(Stdio::null()).output().unwrap()
}

#[test]
fn manifests_are_valid_confined_and_hold_settings_that_services_read() {
    let Some(python) = python() else { return };
    if !root().join(".tools/go/kustomize").is_file() {
        eprintln!(
            "SKIPPED: manifests with kustomize: no .tools/go/kustomize (run `make servers`); resources are put together without it"
        );
    }
    let folder = checkout();
    let output = validate(&python, folder.path(), true);
    assert!(output.status.success(), "{}", text(&output));
    // The same without kustomize: both ways of building see the same mesh.
    let assembled = validate(&python, folder.path(), false);
    assert!(assembled.status.success(), "{}", text(&assembled));
    let read = |output: &Output| -> BTreeMap<String, Json> {
        let all: Vec<Json> = serde_json::from_slice(&output.stdout).unwrap();
        all.into_iter().map(|container| (container["where"].as_str().unwrap().to_owned(), container)).collect()
    };
    let containers = read(&output);
    assert_eq!(containers, read(&assembled));

    // Each program takes the environment it is given: an unknown variable or a wrong value would end it.
    let mut tried = 0;
    for (place, container) in &containers {
        let Some(environment) = container["environment"].as_object().filter(|e| !e.is_empty()) else { continue };
        let package = container["image"].as_str().unwrap().trim_start_matches("continuum/").split(':').next().unwrap();
        let seed = folder.path().join("k8s/overlays/local/keys/validator.nk");
        let mut command = Command::new(program(package));
        command.env_clear().args(container["arguments"].as_array().unwrap().iter().map(|a| a.as_str().unwrap()));
        for (name, value) in environment {
            match name.as_str() {
                "CONTINUUM_BUS_SEED_FILE" => command.env(name, &seed),
                _ => command.env(name, value.as_str().unwrap()),
            };
        }
        let output = command.arg("--print-config").output().unwrap();
        assert!(output.status.success(), "{place}: {}", text(&output));
        let said = text(&output);
        for (name, value) in environment {
            let value = value.as_str().unwrap();
            assert!(said.contains(name), "{place}: {name}={value} is not where a value comes from:\n{said}");
        }
        tried += 1;
    }
    assert!(tried >= 2 * services().len(), "only {tried} containers have settings");
}

#[test]
fn a_fault_in_a_manifest_is_found_and_named() {
    let Some(python) = python() else { return };
    let cases = [
        ("compose.yaml", "user: \"10001:10001\"", "user: \"0\"", "runs as root"),
        ("compose.yaml", "  read_only: true\n", "", "writable"),
        ("compose.yaml", "  mem_limit: 256m\n", "", "no limits"),
        (
            "compose.yaml",
            "restart: unless-stopped",
            "restart: sometimes-maybe\n  colour: blue",
            "is not a compose file",
        ),
        (
            "compose.yaml",
            "nats://nats:4222\n    CONTINUUM_SAMPLES",
            "nats://nats:4223\n    CONTINUUM_SAMPLES",
            "nobody serves",
        ),
        ("compose.yaml", "/key/validator.nk", "/key/collector.nk", "service validator is missing"),
        ("compose.yaml", "\"key-validator:/key:ro\"", "\"key-collector:/key:ro\"", "can read the keys key-collector"),
        (
            "compose.yaml",
            "\"key-validator:/key:ro\"",
            "\"key-validator:/key:ro\", \"key-provisioner:/more:ro\"",
            "mount its own alone",
        ),
        ("compose.yaml", "127.0.0.1:${CONTINUUM_PORT_4222", "${CONTINUUM_PORT_4222", "open to every network"),
        ("compose.yaml", "    pid: host\n", "", "set `pid: host`"),
        ("compose.yaml", "  nats:\n", "  nats:\n    pid: host\n", "remove `pid`"),
        ("compose.yaml", "      - streams:/mesh/streams\n", "", "leaves out the volumes streams"),
        ("k8s/overlays/backup/backup.yaml", "claimName: data-nats-0", "claimName: data-nats-1", "mounts the claims"),
        ("k8s/overlays/restore/restore.yaml", "storage: 20Gi", "storage: 2Gi", "makes other claims"),
        ("k8s/base/validator.yaml", "runAsNonRoot: true", "runAsNonRoot: false", "may run as root"),
        ("k8s/base/validator.yaml", "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false", "writable"),
        ("k8s/base/validator.yaml", "limits: {cpu: \"1\", memory: 256Mi}", "limits: {cpu: \"1\"}", "no limits"),
        ("k8s/base/validator.yaml", "livenessProbe:", "livelinessProbe:", "is not valid for Kubernetes"),
        ("k8s/base/validator.yaml", "path: /livez", "path: /alive", "do not ask /readyz and /livez"),
        ("k8s/base/validator.yaml", "[{port: 7447, protocol: TCP}]", "[{port: 7448, protocol: TCP}]", "nobody serves"),
        ("k8s/base/validator.yaml", "key: validator.nk", "key: collector.nk", "service validator is missing"),
        ("k8s/base/validator.yaml", "continuum/validator:0.1.0", "continuum/validator", "no version"),
        ("k8s/base/validator.yaml", "continuum/validator:0.1.0", "continuum/validitor:0.1.0", "is only in k8s"),
        ("k8s/base/namespace.yaml", "enforce: restricted", "enforce: privileged", "restricted pod security"),
        ("k8s/base/provision.yaml", "kind: NetworkPolicy", "kind: NetworkPolice", "no kind that Kubernetes"),
        ("k8s/base/kustomization.yaml", "  - validator.yaml\n", "", "service validator is missing"),
        ("infra/images/Dockerfile", "USER 10001:10001\n", "", "the image runs as root"),
    ];
    let whole = checkout();
    let outcomes: Vec<(String, Output)> = std::thread::scope(|scope| {
        let running: Vec<_> = cases
            .iter()
            .map(|(file, from, to, _)| {
                let (python, whole) = (&python, &whole);
                scope.spawn(move || {
                    let folder = tempfile::tempdir().unwrap();
                    let copied = Command::new("cp").arg("-r").arg(whole.path().join(".")).arg(folder.path()).status();
                    assert!(copied.unwrap().success());
                    let path = folder.path().join(file);
                    let content = std::fs::read_to_string(&path).unwrap();
                    assert!(content.contains(from), "{file} has no {from:?}");
                    std::fs::write(&path, content.replacen(from, to, 1)).unwrap();
                    (format!("{file}: {from:?} -> {to:?}"), validate(python, folder.path(), false))
                })
            })
            .collect();
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for ((case, output), (_, _, _, said)) in outcomes.iter().zip(&cases) {
        assert_eq!(output.status.code(), Some(1), "{case}: {}", text(output));
        assert!(text(output).contains(said), "{case} is not named as {said:?}: {}", text(output));
    }
}
