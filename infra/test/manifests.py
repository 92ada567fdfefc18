#!/usr/bin/env python3
"""Validates how the mesh is deployed: compose.yaml and the kustomizations of k8s/.

What is checked: the schemas (the compose specification's, and Kubernetes' own in strict form), and what no schema knows:
every service of the contract is in both, as one image, under its own key and no other; no process is root or may become
it; root file systems are read-only; there are probes, limits and network policies; addresses that services are told lead
to ports that somebody serves and the policies open.

    manifests.py ROOT --services a,b,c [--kustomize PROGRAM]

Prints the containers of the mesh as JSON, for whoever wants to try their settings; or one line per fault, and exits 1.
The kustomizations are built by kustomize where it is given; else their resources are put together here, which knows
`resources`, `namespace` and `secretGenerator` and refuses anything else.
"""

import argparse
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import yaml

COMPOSE = "compose.yaml"
OVERLAY = "k8s/overlays/local"
# Jobs of people, which mount everything that a mesh keeps.
COPIES = ["backup", "restore"]
DOCKERFILE = "infra/images/Dockerfile"
ASSEMBLED = {"apiVersion", "kind", "namespace", "resources", "secretGenerator"}
# What only serves: its own images, told nothing about the bus.
INFRASTRUCTURE = {"nats", "zenoh", "mongo", "influxdb", "cassandra"}
# Part of bringing the bus up: they run to their end.
JOBS = {"render", "provision"}
# What people run beside the mesh, on all its volumes.
TOOLS = {"backup"}
# Secrets that people make.
BY_HAND = {"backup"}

faults: list[str] = []


def fault(where: str, what: str) -> None:
    faults.append(f"{where}: {what}")


def filled(value):
    """Compose fills in variables; without any, their defaults."""
    if isinstance(value, dict):
        return {key: filled(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [filled(inner) for inner in value]
    return re.sub(r"\$\{[A-Z_]+:-([^}]*)\}", r"\1", value) if isinstance(value, str) else value


def load(path: Path) -> list[dict]:
    with path.open() as file:
        return [filled(document) for document in yaml.safe_load_all(file) if document]


# --- compose -------------------------------------------------------------------------------------------------------


def compose_schema(path: Path) -> None:
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        fault(COMPOSE, f"is not a compose file: {done.stdout.strip()} {done.stderr.strip()}")


def compose(root: Path, services: list[str]) -> list[dict]:
    path = root / COMPOSE
    compose_schema(path)
    document = load(path)[0]
    declared = set(document.get("volumes") or {})
    parts = document["services"]
    containers = []
    seeds: dict[str, list[str]] = {}
    for name, part in parts.items():
        where = f"{COMPOSE}: {name}"
        user = str(part.get("user", "")).split(":")[0]
        if user in ("", "0", "root"):
            fault(where, f"runs as root: give it `user`, it has {part.get('user')!r}")
        if part.get("read_only") is not True:
            fault(where, "its root file system is writable: set `read_only: true`")
        if "ALL" not in (part.get("cap_drop") or []):
            fault(where, "keeps capabilities: set `cap_drop: [ALL]`")
        if "no-new-privileges:true" not in (part.get("security_opt") or []):
            fault(where, "may gain privileges: set `security_opt: [no-new-privileges:true]`")
        if part.get("privileged"):
            fault(where, "is privileged")
        if not (part.get("mem_limit") and part.get("pids_limit")):
            fault(where, "has no limits: set `mem_limit` and `pids_limit`")
        for port in part.get("ports") or []:
            if not str(port).startswith("127.0.0.1:"):
                fault(where, f"port {port} is open to every network: bind it to 127.0.0.1")
        mounted = [volume.split(":")[0] for volume in part.get("volumes") or []]
        for source in mounted:
            if not source.startswith((".", "/")) and source not in declared:
                fault(where, f"mounts the volume {source}, which is not declared")
        for needed in part.get("depends_on") or {}:
            if needed not in parts:
                fault(where, f"waits for {needed}, which is not there")
        if not re.search(r":[0-9]", part.get("image", "")):
            fault(where, f"its image {part.get('image')!r} has no version")
        if part.get("pid") and name not in TOOLS:
            fault(where, "sees the processes of others: remove `pid`")
        if name in TOOLS:
            if part.get("pid") != "host":
                fault(where, "does not see nats-server's process: set `pid: host`")
            left_out = declared - set(mounted) - {volume for inner in INFRASTRUCTURE - {"nats", "zenoh"} for volume in declared
                                                  if re.fullmatch(rf"{inner}(-.*)?", volume)}
            if left_out:
                fault(where, f"leaves out the volumes {', '.join(sorted(left_out))}")
        if name in INFRASTRUCTURE | TOOLS:
            continue
        arguments = [str(word) for word in part.get("command") or []]
        environment = {key: str(value) for key, value in (part.get("environment") or {}).items()}
        if name not in JOBS:
            if part.get("restart") != "unless-stopped":
                fault(where, "is not started again: set `restart: unless-stopped`")
            address_faults(where, environment, lambda host, port: host in parts and serves(parts[host], host, port))
            seed = environment.get("CONTINUUM_BUS_SEED_FILE", "")
            seeds.setdefault(Path(seed).stem, []).append(name)
            keys = sorted({source for source in mounted if source.startswith("key-")})
            if keys != [f"key-{Path(seed).stem}"]:
                fault(where, f"can read the keys {', '.join(keys) or 'of nobody'}: mount its own alone")
            if environment.get("CONTINUUM_ADVERTISE_HOST") != name:
                fault(where, "CONTINUUM_ADVERTISE_HOST is not the name that others find it by")
        containers.append(
            {"where": where, "name": name, "image": part["image"], "arguments": arguments, "environment": environment}
        )
    for service in services:
        if service not in seeds:
            fault(COMPOSE, f"the contract's service {service} is missing: none has the key {service}.nk")
    for name in seeds:
        if name not in services:
            fault(COMPOSE, f"{', '.join(seeds[name])}: the contract has no service {name!r}")
    return containers


def serves(part: dict, name: str, port: str) -> bool:
    """Does a compose service of infrastructure listen there? nats by the configuration that `render` is told."""
    if name == "nats":
        return port == "4222"
    return any(str(word).endswith(f":{port}") for word in part.get("command") or [])


def image_of(image: str) -> str:
    return image.split(":")[0]


def address_faults(where: str, environment: dict, known) -> None:
    told = {"CONTINUUM_BUS_URL": environment.get("CONTINUUM_BUS_URL", ""),
            "CONTINUUM_SAMPLES_CONNECT": environment.get("CONTINUUM_SAMPLES_CONNECT", "")}
    for variable, value in told.items():
        found = re.findall(r"([a-z][a-z0-9-]*):([0-9]+)", value.replace("nats://", "").replace("tcp/", ""))
        if not found:
            fault(where, f"{variable} names no address: {value!r}")
        for host, port in found:
            if not known(host, port):
                fault(where, f"{variable} leads to {host}:{port}, where nobody serves")


# --- Kubernetes ----------------------------------------------------------------------------------------------------


def built(root: Path, kustomize: str | None, overlay: str = OVERLAY) -> list[dict]:
    if kustomize:
        done = subprocess.run([kustomize, "build", overlay], cwd=root, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            fault(overlay, f"kustomize cannot build it: {done.stderr.strip()}")
            return []
        return [document for document in yaml.safe_load_all(io.StringIO(done.stdout)) if document]
    return assembled(root / overlay)


def assembled(folder: Path) -> list[dict]:
    kustomization = load(folder / "kustomization.yaml")[0]
    for key in kustomization.keys() - ASSEMBLED:
        fault(str(folder), f"{key!r} needs kustomize itself: run `make servers`")
    resources = []
    for name in kustomization.get("resources", []):
        path = (folder / name).resolve()
        if path.is_dir():
            resources += assembled(path)
        elif path.is_file():
            resources += load(path)
        else:
            fault(str(folder), f"there is no {name}")
    for generator in kustomization.get("secretGenerator", []):
        for name in generator["files"]:
            if not (folder / name).is_file():
                fault(str(folder), f"there is no {name} for the secret {generator['name']}")
        data = {Path(name).name: "" for name in generator["files"]}
        resources.append({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": generator["name"]}, "data": data})
    for resource in resources:
        if resource["kind"] != "Namespace" and "namespace" in kustomization:
            resource["metadata"]["namespace"] = kustomization["namespace"]
    return resources


def kubernetes_schema(resources: list[dict]) -> None:
    import kubernetes_validate

    version = kubernetes_validate.latest_version()
    for resource in resources:
        where = f"k8s: {resource.get('kind')} {resource.get('metadata', {}).get('name')}"
        try:
            kubernetes_validate.validate(resource, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            fault(where, f"is not valid for Kubernetes {version}: {'.'.join(str(p) for p in error.path)}: {error.message}")
        except kubernetes_validate.SchemaNotFoundError:
            fault(where, f"is of no kind that Kubernetes {version} knows: {resource.get('apiVersion')} {resource.get('kind')}")


def selects(selector: dict, labels: dict) -> bool:
    """Does a label selector choose a pod with these labels? `In` and `NotIn` are all that the manifests use."""
    for expression in selector.get("matchExpressions", []):
        is_in = labels.get(expression["key"]) in expression["values"]
        if is_in != {"In": True, "NotIn": False}[expression["operator"]]:
            return False
    return selector.get("matchLabels", {}).items() <= labels.items()


def template_of(resource: dict) -> dict | None:
    return resource.get("spec", {}).get("template") if resource["kind"] in ("Deployment", "StatefulSet", "Job") else None


def kubernetes(root: Path, services: list[str], kustomize: str | None) -> list[dict]:
    resources = built(root, kustomize)
    for name in COPIES:
        resources += built(root, kustomize, f"k8s/overlays/{name}")
    kubernetes_schema(resources)
    by_kind: dict[str, dict[str, dict]] = {}
    for resource in resources:
        by_kind.setdefault(resource["kind"], {})[resource["metadata"]["name"]] = resource
        if resource["kind"] != "Namespace" and resource["metadata"].get("namespace") != "continuum":
            fault(f"k8s: {resource['kind']} {resource['metadata']['name']}", "is not in the namespace continuum")
    namespace = by_kind.get("Namespace", {}).get("continuum", {})
    if namespace.get("metadata", {}).get("labels", {}).get("pod-security.kubernetes.io/enforce") != "restricted":
        fault("k8s: Namespace continuum", "does not enforce the restricted pod security standard")
    policies = [p["spec"] for p in by_kind.get("NetworkPolicy", {}).values()]
    if not any(not p["podSelector"] and set(p["policyTypes"]) == {"Ingress", "Egress"} and not p.get("ingress")
               and not p.get("egress") for p in policies):
        fault("k8s", "no NetworkPolicy denies what no other allows")
    secrets = {secret.get("metadata", {}).get("name", "").rsplit("-", 1)[0]: secret for secret in by_kind.get("Secret", {}).values()}
    secrets |= {name: secret for name, secret in by_kind.get("Secret", {}).items()}
    # The claims that the pods of a StatefulSet of one replica have, and their sizes.
    claims = {f"{claim['metadata']['name']}-{name}-0": claim["spec"]
              for name, resource in by_kind.get("StatefulSet", {}).items()
              for claim in resource["spec"].get("volumeClaimTemplates", [])}
    made = {name: claim["spec"] for name, claim in by_kind.get("PersistentVolumeClaim", {}).items()}
    if made != claims:
        fault("k8s: restore", f"makes other claims than the mesh has: {sorted(made)}, {sorted(claims)}, or of other sizes")
    containers = []
    held: dict[str, list[str]] = {}
    for resource in resources:
        template = template_of(resource)
        if template is None:
            continue
        name = resource["metadata"]["name"]
        where = f"k8s: {resource['kind']} {name}"
        labels = template["metadata"]["labels"]
        pod = template["spec"]
        if resource["kind"] != "Job" and resource["spec"]["selector"]["matchLabels"].items() - labels.items():
            fault(where, "selects pods that it does not make")
        if pod.get("automountServiceAccountToken") is not False:
            fault(where, "its pods get a token of the cluster: set `automountServiceAccountToken: false`")
        security = pod.get("securityContext", {})
        if security.get("runAsNonRoot") is not True or security.get("runAsUser") in (None, 0):
            fault(where, "may run as root: set `runAsNonRoot` and `runAsUser`")
        if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            fault(where, "has no seccomp profile")
        chosen = [p for p in policies if p["podSelector"] and selects(p["podSelector"], labels)]
        if not any("Ingress" in p["policyTypes"] for p in chosen) or not any("Egress" in p["policyTypes"] for p in chosen):
            fault(where, "no NetworkPolicy says who reaches it and whom it reaches")
        identities = {
            item["key"].removesuffix(".nk")
            for volume in pod.get("volumes", [])
            for item in volume.get("secret", {}).get("items", [])
            if item["key"].endswith(".nk")
        }
        mounted = {v["persistentVolumeClaim"]["claimName"] for v in pod.get("volumes", []) if "persistentVolumeClaim" in v}
        if mounted != (claims.keys() if name in COPIES else set()):
            fault(where, f"mounts the claims {sorted(mounted)}, and the mesh has {sorted(claims)}")
        for volume in pod.get("volumes", []):
            secret = volume.get("secret")
            if not secret or secret["secretName"] in BY_HAND:
                continue
            found = secrets.get(secret["secretName"]) or secrets.get(secret["secretName"].rsplit("-", 1)[0])
            if found is None:
                fault(where, f"mounts the secret {secret['secretName']}, which nobody makes")
            elif missing := {item["key"] for item in secret.get("items", [])} - found.get("data", {}).keys():
                fault(where, f"mounts {', '.join(sorted(missing))}, which the secret does not hold")
            if found and "person.nk" in found.get("data", {}) and not secret.get("items"):
                fault(where, "mounts every identity's key: name its own under `items`")
        for container in pod["containers"] + pod.get("initContainers", []):
            inner = container.get("securityContext", {})
            if inner.get("readOnlyRootFilesystem") is not True:
                fault(where, "its root file system is writable: set `readOnlyRootFilesystem: true`")
            if inner.get("allowPrivilegeEscalation") is not False:
                fault(where, "may gain privileges: set `allowPrivilegeEscalation: false`")
            if inner.get("capabilities", {}).get("drop") != ["ALL"]:
                fault(where, "keeps capabilities: drop ALL")
            if inner.get("runAsUser") == 0 or inner.get("privileged"):
                fault(where, "runs as root")
            limits = container.get("resources", {}).get("limits", {})
            requests = container.get("resources", {}).get("requests", {})
            if not {"cpu", "memory"} <= limits.keys() or not {"cpu", "memory"} <= requests.keys():
                fault(where, "has no limits: set requests and limits of cpu and memory")
            if not re.search(r":[0-9]", container["image"]):
                fault(where, f"its image {container['image']!r} has no version, so it would be pulled at every start")
            if resource["kind"] != "Job":
                for probe in ("readinessProbe", "livenessProbe"):
                    if probe not in container:
                        fault(where, f"has no {probe}")
            ports = {port.get("name"): port["containerPort"] for port in container.get("ports", [])}
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                asked = container.get(probe, {})
                port = (asked.get("httpGet") or asked.get("tcpSocket") or {}).get("port")
                if probe in container and port not in ports and port not in ports.values():
                    fault(where, f"its {probe} asks on {port}, which is no port of it")
            mounts = {mount["name"] for mount in container.get("volumeMounts", [])}
            there = {volume["name"] for volume in pod.get("volumes", [])}
            there |= {claim["metadata"]["name"] for claim in resource["spec"].get("volumeClaimTemplates", [])}
            if mounts - there:
                fault(where, f"mounts {', '.join(sorted(mounts - there))}, which is no volume of it")
            if name in INFRASTRUCTURE:
                continue
            environment = {entry["name"]: entry["value"] for entry in container.get("env", [])}
            if resource["kind"] != "Job":
                paths = {probe: container[probe]["httpGet"]["path"] for probe in ("readinessProbe", "livenessProbe")
                         if "httpGet" in container.get(probe, {})}
                if paths != {"readinessProbe": "/readyz", "livenessProbe": "/livez"}:
                    fault(where, f"its probes do not ask /readyz and /livez: {paths}")
                listen = environment.get("CONTINUUM_LISTEN", "")
                if listen.rsplit(":", 1)[-1] not in {str(port) for port in ports.values()}:
                    fault(where, f"listens on {listen!r}, its ports are {sorted(ports.values())}")
                if environment.get("CONTINUUM_ADVERTISE_HOST") != name or name not in by_kind.get("Service", {}):
                    fault(where, "CONTINUUM_ADVERTISE_HOST is not the Service that others find it by")
                address_faults(where, environment, lambda host, port: reaches(by_kind, chosen, labels, host, port))
                for identity in identities:
                    held.setdefault(identity, []).append(name)
                if len(identities) != 1:
                    fault(where, f"holds {len(identities)} identities' keys")
            containers.append({"where": where, "name": name, "image": container["image"],
                               "arguments": container.get("args", []), "environment": environment})
    for service in services:
        if service not in held:
            fault("k8s", f"the contract's service {service} is missing: none has the key {service}.nk")
    for identity, names in held.items():
        if identity not in services:
            fault("k8s", f"{', '.join(names)}: the contract has no service {identity!r}")
    return containers


def reaches(by_kind: dict, chosen: list[dict], labels: dict, host: str, port: str) -> bool:
    """Does a Service of this name serve the port, do the caller's policies let it out, and the callee's let it in?"""
    service = by_kind.get("Service", {}).get(host)
    if service is None or port not in {str(p["port"]) for p in service["spec"]["ports"]}:
        return False
    pods = service["spec"]["selector"]
    out = any(
        str(opened["port"]) == port and selects(peer["podSelector"], pods)
        for policy in chosen for rule in policy.get("egress", []) for peer in rule.get("to", [])
        if "podSelector" in peer for opened in rule.get("ports", [])
    )
    let_in = [p["spec"] for p in by_kind["NetworkPolicy"].values()
              if p["spec"]["podSelector"] and selects(p["spec"]["podSelector"], pods)]
    into = any(
        str(opened["port"]) == port and selects(peer["podSelector"], labels)
        for policy in let_in for rule in policy.get("ingress", []) for peer in rule.get("from", [])
        if "podSelector" in peer for opened in rule.get("ports", [])
    )
    return out and into


# --- both ----------------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--services", required=True, help="the contract's services, divided by commas")
    parser.add_argument("--kustomize", help="the program; without it resources are put together here")
    given = parser.parse_args()
    services = given.services.split(",")
    composed = compose(given.root, services)
    clustered = kubernetes(given.root, services, given.kustomize)

    version = re.search(r'^version = "([^"]+)"', (given.root / "Cargo.toml").read_text(), re.MULTILINE).group(1)
    images = {image for container in composed + clustered for image in [container["image"]]}
    for image in sorted(images):
        if image.split(":")[-1] != version:
            fault(image, f"is not of this version, {version}")
    theirs = {image_of(container["image"]) for container in clustered}
    ours = {image_of(container["image"]) for container in composed}
    for image in sorted(theirs ^ ours):
        fault(image, f"is only in {COMPOSE if image in ours else 'k8s'}")
    for image in sorted(ours):
        package = image.removeprefix("continuum/")
        if not (given.root / "services" / package).is_dir() and package != "continuum":
            fault(image, "is made of no package of services/")

    dockerfile = (given.root / DOCKERFILE).read_text()
    user = re.search(r"^USER (\S+)", dockerfile, re.MULTILINE)
    if not user or user.group(1).split(":")[0] in ("0", "root"):
        fault(DOCKERFILE, "the image runs as root: set USER")

    if faults:
        print("\n".join(faults), file=sys.stderr)
        return 1
    print(json.dumps(composed + clustered))
    return 0


if __name__ == "__main__":
    sys.exit(main())
