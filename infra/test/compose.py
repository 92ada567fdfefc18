#!/usr/bin/env python3
"""Starts what is shipped: the images, by compose.yaml, on a container engine, and uses it from outside.

From nothing: everything becomes healthy; nats-py publishes an intent that is FULFILLED, and hears of it; REST and S3 answer;
each container can read its own key alone, and a control that mounts two is found; images have no shell, no root and no
secret; services are killed while intents come, and none is lost or run twice; then all of it is taken down without residue.

    infra/test/compose.py [--engine PODMAN] [--full]

Needs the images (`make images`), podman-compose beside this Python, and the ports 4222, 7447, 8000, 9000 and 9222. Exit code
0: all held. 69: it could not run here, and the last line says why. 1: something did not hold.
"""

import argparse
import asyncio
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import boto3
import botocore.exceptions
import nats

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROJECT = "continuum-test"
PORTS = [4222, 7447, 8000, 9000, 9222]
JOBS = {"render", "provision"}
OTHERS = {"nats", "zenoh", "mongo", "influxdb", "cassandra"}
# From nothing to the first FULFILLED intent, seconds.
FIRST_S = 120
# Intents that run at once; the clusters hold some 200.
HELD_MAX = 100
# Seeds of NKeys: of users, accounts, operators.
SEED = re.compile(rb"S[UAO][A-Z2-7]{56}")


class Failed(Exception):
    """Something does not hold."""


def say(text):
    print(text, flush=True)


class Mesh:
    """The project as the engine runs it."""

    def __init__(self, engine):
        self.engine = engine
        compose = pathlib.Path(sys.executable).with_name("podman-compose")
        self.compose = [str(compose), "--podman-path", engine, "--project-name", PROJECT, "--file", str(ROOT / "compose.yaml")]
        # Documents run as processes here: they are this test's own.
        self.environment = os.environ | {"CONTINUUM_PROCESS_DOCUMENTS": "true"}

    def run(self, *words, check=True, timeout=300):
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=self.environment, timeout=timeout)
        if check and done.returncode != 0:
            raise Failed(f"{' '.join(words)}: exit code {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done

    def podman(self, *words, **options):
        return self.run(self.engine, *words, **options).stdout.strip()

    def up(self):
        # All at once, for Podman 4 cannot start what depends on something that depends on something that has ended. So no
        # start here has the luck of an order.
        self.run(*self.compose, "up", "--detach", "--no-deps", timeout=600)

    def down(self):
        self.run(*self.compose, "down", "--volumes", "--timeout", "15", check=False, timeout=600)

    def residue(self):
        """Names of containers, volumes, networks and pods of the project that are left."""
        containers = self.podman("ps", "--all", "--format", "{{.Names}}").split()
        volumes = self.podman("volume", "ls", "--format", "{{.Name}}").split()
        networks = self.podman("network", "ls", "--format", "{{.Name}}").split()
        pods = self.podman("pod", "ls", "--format", "{{.Name}}").split()
        return [name for name in containers + volumes + networks + pods if PROJECT in name]

    def services(self):
        names = self.podman("ps", "--all", "--format", "{{.Names}}").split()
        found = [match.group(1) for match in (re.fullmatch(rf"{PROJECT}[_-](.+)[_-]1", name) for name in names) if match]
        return sorted(name for name in found if name not in JOBS | OTHERS)

    def container(self, service):
        names = self.podman("ps", "--all", "--format", "{{.Names}}").split()
        for name in names:
            if re.fullmatch(rf"{PROJECT}[_-]{service}[_-]1", name):
                return name
        raise Failed(f"there is no container of {service}")

    def healthy(self, service):
        return self.run(self.engine, "healthcheck", "run", self.container(service), check=False).returncode == 0

    def volume(self, name):
        return pathlib.Path(self.podman("volume", "inspect", "--format", "{{.Mountpoint}}", f"{PROJECT}_{name}"))

    def wait_healthy(self, services, limit_s):
        """Seconds until all of them are; fails with the logs of the first that is not."""
        begun = time.monotonic()
        waiting = list(services)
        while waiting:
            waiting = [service for service in waiting if not self.healthy(service)]
            if waiting and time.monotonic() - begun > limit_s:
                logs = self.run(self.engine, "logs", "--tail", "20", self.container(waiting[0]), check=False)
                raise Failed(f"{', '.join(waiting)}: not healthy within {limit_s} s; {waiting[0]} says:\n{logs.stdout}{logs.stderr}")
        return time.monotonic() - begun


# --- as a person, from outside ---------------------------------------------------------------------------------------


def workload(name):
    return {
        "name": name,
        "version": "1.0.0",
        "kind": "process",
        "process": {"command": "spinner", "arguments": ["--load-milli", "2", "--memory-mb", "2"]},
        "resources": {"cpuMilli": 10, "memoryBytes": "16000000", "memoryLimitBytes": "64000000"},
        "replicas": 1,
    }


def intent(of):
    return {
        "userLabel": "DeliverComputingWorkload",
        "intentExpectations": [
            {
                "expectationId": "run",
                "expectationVerb": "DELIVER",
                "expectationObject": {"objectType": "NEMO_WORKLOAD", "objectInstance": of},
                "expectationTargets": [
                    {"targetName": "cpuUsage", "targetCondition": "IS_LESS_THAN", "targetValueRange": "90"}
                ],
            }
        ],
        "observationPeriod": 2,
    }


class Person:
    """Somebody with a key of the bus, and nothing else of this project."""

    def __init__(self, seed_file):
        self.seed_file = seed_file
        self.states = {}
        self.instances = {}
        # Intents that were FULFILLED at some time, in that order.
        self.done = {}

    async def connect(self):
        self.bus = await nats.connect(
            "nats://127.0.0.1:4222", nkeys_seed=str(self.seed_file), inbox_prefix="_INBOX_person", name="compose.py",
            max_reconnect_attempts=-1, reconnect_time_wait=0.5,
        )
        await self.bus.subscribe("json.intent.>", cb=self.receive)
        await self.bus.flush()

    async def receive(self, message):
        event = json.loads(message.data)
        data = event.get("data", {})
        name = data.get("intentId")
        if not name:
            return
        for instance in data.get("instances", []):
            self.instances.setdefault(name, set()).add(instance["instanceId"])
        state = data.get("to") or data.get("state") or {}
        if state:
            self.states[name] = state
            if state.get("fulfilmentStatus") == "FULFILLED":
                self.done[name] = True
        if event["subject"].startswith("intent.refused."):
            self.states[name] = {"refused": data}

    async def command(self, subject, body, limit_s=60):
        """Stored by the bus; tried again while it is away, which the derived id of a command makes safe."""
        deadline = time.monotonic() + limit_s
        while True:
            try:
                answer = json.loads((await self.bus.request(subject, json.dumps(body).encode(), timeout=5)).data)
                if "error" not in answer:
                    return answer
                problem = answer["error"]
            except Exception as error:  # noqa: BLE001: whatever the client says while the server is away
                problem = error
            if time.monotonic() > deadline:
                raise Failed(f"{subject} was not stored within {limit_s} s: {problem}")
            await asyncio.sleep(0.5)

    async def fulfilled(self, names, limit_s):
        deadline = time.monotonic() + limit_s
        while True:
            missing = [name for name in names if name not in self.done]
            if not missing:
                return
            if time.monotonic() > deadline:
                raise Failed(f"{len(missing)} of {len(names)} intents are not FULFILLED within {limit_s} s; "
                             f"{missing[0]}: {self.states.get(missing[0])}")
            await asyncio.sleep(0.2)


def rest(method, path, token=None, body=None):
    request = urllib.request.Request(f"http://127.0.0.1:8000{path}", method=method)
    request.add_header("Accept", "application/json")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    data = None
    if body is not None:
        data = json.dumps(body).encode()
        request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, data=data, timeout=20) as answer:
            return json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        raise Failed(f"{method} {path}: {error.code}: {error.read()[:500]}") from error


# --- what a container can read -------------------------------------------------------------------------------------


READER = """
import os, re, sys
root, seed = sys.argv[1], re.compile(sys.argv[2].encode())
os.setgroups([]); os.setgid(10001); os.setuid(10001)
for folder, folders, files in os.walk(root, onerror=lambda error: None):
    place = folder[len(root):]
    if place.split('/')[1:2] in (['proc'], ['sys'], ['dev']):
        folders[:] = []
        continue
    for name in files:
        path = os.path.join(folder, name)
        try:
            if os.path.isfile(path) and os.path.getsize(path) < 1 << 16:
                with open(path, 'rb') as file:
                    if seed.search(file.read()):
                        print(place + '/' + name)
        except OSError:
            pass
"""


def keys_seen(mesh, container):
    """Files with the seed of a key that the container's user can read in the container's own file systems."""
    pid = mesh.podman("inspect", "--format", "{{.State.Pid}}", container)
    done = subprocess.run([sys.executable, "-c", READER, f"/proc/{pid}/root", SEED.pattern.decode()], capture_output=True, text=True, check=True)
    return sorted(done.stdout.split())


def keys_are_their_owners_alone(mesh, services):
    seen = 0
    for service in services:
        identity = re.sub(r"^(cluster-agent)-.*", r"\1", service)
        found = keys_seen(mesh, mesh.container(service))
        if found != [f"/key/{identity}.nk"]:
            raise Failed(f"{service} can read the keys {found or 'of nobody'}, not its own alone")
        seen += len(found)
    if keys_seen(mesh, mesh.container("nats")):
        raise Failed("nats can read a key")
    # The same look at a container that is given two keys, to see that it would be found.
    control = f"{PROJECT}_control"
    mounts = ["--volume", f"{PROJECT}_key-validator:/key:ro", "--volume", f"{PROJECT}_key-provisioner:/more:ro"]
    image = mesh.podman("inspect", "--format", "{{.ImageName}}", mesh.container("validator"))
    mesh.podman("run", "--detach", "--name", control, "--user", "10001:10001", "--network", "none", *mounts, image,
                "--set", "bus_url=nats://127.0.0.1:1", "--set", "bus_seed_file=/key/validator.nk")
    try:
        found = keys_seen(mesh, control)
        if len(found) != 2:
            raise Failed(f"a control that mounts two keys shows {found}: the look at keys finds nothing")
    finally:
        mesh.podman("rm", "--force", control, check=False)
    say(f"keys: {len(services)} containers read {seen} keys, each its own; the control that mounts two was found")


def images_are_small_and_closed(mesh, services, limit_mb):
    largest = ("", 0)
    images = sorted({mesh.podman("inspect", "--format", "{{.ImageName}}", mesh.container(service)) for service in services})
    images.append(mesh.podman("inspect", "--format", "{{.ImageName}}", mesh.container("render")))
    for image in images:
        details = json.loads(mesh.podman("image", "inspect", image))[0]
        if details["Config"].get("User", "") in ("", "0", "root"):
            raise Failed(f"{image} runs as root")
        if not details["Config"].get("Labels", {}).get("org.opencontainers.image.version"):
            raise Failed(f"{image} has no version label")
        history = mesh.podman("history", "--no-trunc", image).encode()
        if SEED.search(history) or b"PRIVATE KEY" in history:
            raise Failed(f"the history of {image} holds a secret")
        size = details["Size"] / 1e6
        largest = max(largest, (image, size), key=lambda pair: pair[1])
        folder = mesh.podman("image", "mount", image)
        try:
            for shell in ("bin/sh", "bin/bash", "usr/bin/sh", "usr/bin/bash", "bin/busybox"):
                if (pathlib.Path(folder) / shell).exists():
                    raise Failed(f"{image} has a shell: /{shell}")
            for needed in ("etc/ssl/certs/ca-certificates.crt", "usr/share/zoneinfo/Europe/Athens"):
                if not (pathlib.Path(folder) / needed).exists():
                    raise Failed(f"{image} lacks /{needed}")
            if not list(pathlib.Path(folder).glob("usr/share/sbom/*.cdx.json")):
                raise Failed(f"{image} has no SBOM")
        finally:
            mesh.podman("image", "unmount", image)
    if limit_mb and largest[1] > limit_mb:
        raise Failed(f"{largest[0]} has {largest[1]:.1f} MB, more than {limit_mb}")
    say(f"images: {len(images)}, not root, no shell, with certificates, time zones and SBOM; the largest {largest[0]}, {largest[1]:.1f} MB")


# --- the story -----------------------------------------------------------------------------------------------------


async def story(mesh, full, limit_mb):
    begun = time.monotonic()
    mesh.up()
    services = mesh.services()
    ready = mesh.wait_healthy(services, FIRST_S)
    say(f"up: {len(services)} services are healthy {time.monotonic() - begun:.1f} s after nothing ({ready:.1f} s of waiting)")

    person = Person(mesh.volume("key-person") / "person.nk")
    await person.connect()
    await person.command("workload.ask.register.v1.local.spinner", {"document": workload("spinner")})
    await person.command("intent.ask.submit.v1.local.first", {"intent": intent("spinner@1.0.0")})
    await person.fulfilled(["first"], FIRST_S)
    first = time.monotonic() - begun
    say(f"first intent FULFILLED {first:.1f} s after nothing, published by nats-py")
    if first > FIRST_S:
        raise Failed(f"the first intent took {first:.1f} s, more than {FIRST_S}")

    password = (mesh.volume("identity") / "admin.password").read_text().strip()
    token = rest("POST", "/api/v1/auth/login/", body={"username": "admin", "password": password})
    token = token.get("access_token") or token["accessToken"]
    if rest("GET", "/api/v1/intent/first/?owner=local", token)["id"] != "first":
        raise Failed("REST does not know the intent")
    for location in ("one", "two"):
        where = {"description": {"kind": "cloud", "url": f"dir:{location}"}}
        await person.command(f"storage.ask.register_location.v1.local.{location}", where)
    access, secret, _ = (mesh.volume("secure-storage-secrets") / "access.keys").read_text().split()[:3]
    s3 = boto3.client("s3", endpoint_url="http://127.0.0.1:9000", aws_access_key_id=access, aws_secret_access_key=secret, region_name="us-east-1")
    deadline = time.monotonic() + 30
    while True:
        # A command that comes before what it builds on is acted on, is refused; whoever sent it sends it again.
        await person.command("storage.ask.define_policy.v1.local.default", {"definition": {"backends": ["one", "two"]}})
        await asyncio.sleep(0.5)
        try:
            s3.create_bucket(Bucket="compose")
            break
        except botocore.exceptions.ClientError as error:
            if time.monotonic() > deadline:
                raise Failed(f"no bucket within 30 s: {error}") from error
    s3.put_object(Bucket="compose", Key="a", Body=b"what was put")
    if s3.get_object(Bucket="compose", Key="a")["Body"].read() != b"what was put":
        raise Failed("S3 does not give what was put")
    say("REST and S3 answer")

    keys_are_their_owners_alone(mesh, services)
    images_are_small_and_closed(mesh, services, limit_mb)
    await killed_under_load(mesh, person, services, 50 if full else 3, full)
    await person.bus.close()


async def killed_under_load(mesh, person, services, per_s, full):
    """Every service is killed once while intents come; each of them runs in the end, once."""
    names, ended = [], set()
    stopping = asyncio.Event()

    async def submit():
        while not stopping.is_set():
            name = f"load-{len(names)}"
            await person.command(f"intent.ask.submit.v1.local.{name}", {"intent": intent("spinner@1.0.0")})
            names.append(name)
            # What has been FULFILLED makes room for others.
            if len(names) - len(ended) > HELD_MAX:
                oldest = next((name for name in person.done if name.startswith("load-") and name not in ended), None)
                if oldest:
                    ended.add(oldest)
                    await person.command(f"intent.ask.terminate.v1.local.{oldest}", {})
            await asyncio.sleep(1 / per_s)

    load = asyncio.create_task(submit())
    for service in services:
        pid = await asyncio.to_thread(mesh.podman, "inspect", "--format", "{{.State.Pid}}", mesh.container(service))
        os.kill(int(pid), signal.SIGKILL)
        await asyncio.sleep(1)
    await asyncio.to_thread(mesh.wait_healthy, services, FIRST_S)
    stopping.set()
    await load
    await person.fulfilled(names, 240 if full else 120)
    twice = {name: ids for name, ids in person.instances.items() if len(ids) != 1}
    if twice:
        raise Failed(f"intents with other than one instance: {twice}")
    say(f"each of {len(services)} services was killed while {len(names)} intents came: all FULFILLED, each with one instance, 0 lost")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", default=str(ROOT / ".tools/engine/podman"))
    parser.add_argument("--full", action="store_true", help="50 intents a second instead of 3")
    parser.add_argument("--image-mb", type=float, default=0, help="fail if an image is larger")
    options = parser.parse_args()
    if not pathlib.Path(options.engine).exists():
        say("NOT RUN: compose: there is no container engine here (infra/engine/install.sh)")
        return 69
    for port in PORTS:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                say(f"NOT RUN: compose: port {port} is taken: {error}")
                return 69
    if subprocess.run([options.engine, "info"], capture_output=True, check=False, timeout=60).returncode != 0:
        say("NOT RUN: compose: the container engine does not answer here")
        return 69
    mesh = Mesh(options.engine)
    mesh.down()
    try:
        asyncio.run(story(mesh, options.full, options.image_mb))
    except Failed as failed:
        say(f"FAILED: compose: {failed}")
        return 1
    finally:
        mesh.down()
    left = mesh.residue()
    if left:
        say(f"FAILED: compose: left behind: {', '.join(left)}")
        return 1
    say("down: no container, volume or network is left")
    return 0


if __name__ == "__main__":
    sys.exit(main())
