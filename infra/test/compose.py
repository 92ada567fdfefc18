#!/usr/bin/env python3
"""Starts what is shipped: the images, by compose.yaml, on a container engine, and uses it from outside.

From nothing: everything becomes healthy; nats-py publishes an intent that is FULFILLED, and hears of it; REST and S3 answer;
each container can read its own key alone, and a control that mounts two is found; images have no shell, no root and no
secret; services are killed, and upgraded to images of another version, while intents come, and none is lost or run twice; what
is wrong with a machine is named (compose_refusals.py); a backup is restored into new volumes (compose_backup.py); then all of
it is taken down without residue.

    infra/test/compose.py [--engine PODMAN] [--next VERSION] [--full] [--starts N]

Needs the images (`make images`), podman-compose beside this Python, and the ports 4222, 7447, 8000, 9000 and 9222. Exit code
0: all held. 69: it could not run here, and the last line says why. 1: something did not hold.
"""

import argparse
import asyncio
import collections
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import boto3
import botocore.exceptions
import compose_backup
import compose_refusals
import nats
from compose_engine import PORTS, PROJECT, ROOT, Failed, Mesh, say

# From nothing to the first FULFILLED intent, seconds.
FIRST_S = 120
# Intents that run at once; the clusters hold some 400. What is FULFILLED is so a period of two seconds after it runs, at the earliest.
HELD_MAX = 100
# Intents a second: in short, and at most in full. There it is half of the highest of these rates that the mesh holds here, for what
# comes while a service is away has to be caught up with.
SHORT_PER_S = 3
FULL_PER_S = 50
RATES_PER_S = [100, 70, 50, 36, 24, 16, 10, 6]
# Once the mesh has caught up to this many seconds' intents, the next service is taken; it has this long for it, seconds.
CAUGHT_UP_S = 5
CATCH_UP_LIMIT_S = 180
# How long after the last time an intent is asked for over REST, seconds.
ASK_S = 5
# A rate holds if it is kept this long, and all that came is FULFILLED this much later, seconds.
HOLD_S = 15
BEHIND_S = 15
# What the short form upgrades: one that decides, and one that there may be once.
SHORT_UPGRADES = ["cluster-agent-device", "validator"]
# Seeds of NKeys: of users, accounts, operators.
SEED = re.compile(rb"S[UAO][A-Z2-7]{56}")
# A seed that lay about while the images were made (compose.sh).
PLANTED = os.environ.get("CONTINUUM_PLANTED_SEED", "").encode()


# --- as a person, from outside ---------------------------------------------------------------------------------------


def workload(name, load_milli, memory_mb, cpu_milli, memory_bytes):
    return {
        "name": name,
        "version": "1.0.0",
        "kind": "process",
        "process": {"command": "spinner", "arguments": ["--load-milli", str(load_milli), "--memory-mb", str(memory_mb)]},
        "resources": {"cpuMilli": cpu_milli, "memoryBytes": str(memory_bytes), "memoryLimitBytes": str(4 * memory_bytes)},
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
    """Somebody with a key of the bus and an account, and nothing else of this project."""

    def __init__(self, seed_file):
        self.seed_file = seed_file
        self.states = {}
        self.instances = {}
        # Intents that were FULFILLED at some time, in that order.
        self.done = {}
        self.example = intent("spinner@1.0.0")
        # Many of these are under way at once: it is the mesh that is to be loaded, not the machine by what it runs.
        self.small = intent("idle@1.0.0")

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


class Account:
    """Signed in over REST."""

    def __init__(self, password):
        self.password, self.token = password, None

    def sign_in(self):
        answer = rest("POST", "/api/v1/auth/login/", body={"username": "admin", "password": self.password})
        self.token = answer.get("access_token") or answer["accessToken"]

    def get(self, path, link=None):
        """As `rest`; signs in again where the token has expired, and waits for a gateway that is being replaced."""
        deadline = time.monotonic() + 60
        while True:
            try:
                return rest("GET", path, self.token, link=link)
            except (Failed, OSError) as error:
                if time.monotonic() > deadline:
                    raise Failed(f"GET {path}: not answered within 60 s: {error}") from error
                time.sleep(0.5)
                try:
                    self.sign_in()
                except (Failed, OSError):
                    pass

    def problem(self, path):
        """Why a request is refused; empty if it is answered."""
        self.sign_in()
        try:
            rest("GET", path, self.token)
            return ""
        except Failed as failed:
            return str(failed)

    def pages(self, path):
        """All that a list has, page by page."""
        found, following = [], f"{path}&page_size=500"
        while following:
            link = []
            found += self.get(following, link)
            match = re.search(r'<(?:http://[^/>]*)?(/[^>]*)>; *rel="next"', link[0])
            following = match.group(1) if match else None
        return found


def rest(method, path, token=None, body=None, link=None):
    """The answer's body; the header that names the next page is added to `link`."""
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
            if link is not None:
                link[:] = [answer.headers.get("Link") or ""]
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


def secrets_of(mesh, services):
    """What nothing but its volume may hold: every key of this mesh, what services made for themselves, and what was planted."""
    found = {seed for seed in [PLANTED] if seed}
    names = mesh.podman("volume", "ls", "--format", "{{.Name}}").split()
    for name in names:
        if not name.startswith(f"{PROJECT}_key-") and not name.endswith("-secrets"):
            continue
        for file in mesh.volume(name.removeprefix(f"{PROJECT}_")).rglob("*"):
            if file.is_file():
                found |= {word for word in file.read_bytes().split() if len(word) >= 32}
    if len(found) < len(services):
        raise Failed(f"only {len(found)} secrets of this mesh were found")
    return found


def secrets_seen(mesh, image, folder, secrets):
    """Places where an image holds one of them: how it was made, what it is started with, its files."""
    details = mesh.podman("history", "--no-trunc", image) + mesh.podman("image", "inspect", image)
    found = ["history"] if SEED.search(details.encode()) or any(secret in details.encode() for secret in secrets) else []
    for file in pathlib.Path(folder).rglob("*"):
        if file.is_file() and not file.is_symlink():
            text = file.read_bytes()
            if (PLANTED and PLANTED in text) or (len(text) < 1 << 16 and any(secret in text for secret in secrets)):
                found.append(str(file.relative_to(folder)))
    return found


def a_planted_secret_is_found(mesh, base):
    """The same look at an image that was given a key, as an argument of its build and as a file."""
    seed = (PLANTED or b"SU" + b"A" * 56).decode()
    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "planted.nk").write_text(seed)
        recipe = f"FROM {base}\nARG KEY\nENV KEY=$KEY\nCOPY planted.nk /planted.nk\n"
        (pathlib.Path(folder) / "Dockerfile").write_text(recipe)
        mesh.podman("build", "--quiet", "--tag", "localhost/planted", "--build-arg", f"KEY={seed}", folder)
    mounted = mesh.podman("image", "mount", "localhost/planted")
    try:
        found = secrets_seen(mesh, "localhost/planted", mounted, {seed.encode()})
    finally:
        mesh.podman("image", "unmount", "localhost/planted")
        mesh.podman("rmi", "--force", "localhost/planted", check=False)
    if found != ["history", "planted.nk"]:
        raise Failed(f"a control image that holds a key shows {found}: the look at images finds nothing")


def images_are_small_and_closed(mesh, services, limit_mb):
    largest = ("", 0)
    secrets = secrets_of(mesh, services)
    images = sorted({mesh.podman("inspect", "--format", "{{.ImageName}}", mesh.container(service)) for service in services})
    images.append(mesh.podman("inspect", "--format", "{{.ImageName}}", mesh.container("render")))
    for image in images:
        details = json.loads(mesh.podman("image", "inspect", image))[0]
        if details["Config"].get("User", "") in ("", "0", "root"):
            raise Failed(f"{image} runs as root")
        if not details["Config"].get("Labels", {}).get("org.opencontainers.image.version"):
            raise Failed(f"{image} has no version label")
        folder = mesh.podman("image", "mount", image)
        # The one image that renders charts may be larger by the program for it.
        helm = pathlib.Path(folder) / "usr/local/bin/helm"
        size = (details["Size"] - (helm.stat().st_size if helm.exists() else 0)) / 1e6
        largest = max(largest, (image, size), key=lambda pair: pair[1])
        try:
            for shell in ("bin/sh", "bin/bash", "usr/bin/sh", "usr/bin/bash", "bin/busybox"):
                if (pathlib.Path(folder) / shell).exists():
                    raise Failed(f"{image} has a shell: /{shell}")
            for needed in ("etc/ssl/certs/ca-certificates.crt", "usr/share/zoneinfo/Europe/Athens"):
                if not (pathlib.Path(folder) / needed).exists():
                    raise Failed(f"{image} lacks /{needed}")
            if not list(pathlib.Path(folder).glob("usr/share/sbom/*.cdx.json")):
                raise Failed(f"{image} has no SBOM")
            if seen := secrets_seen(mesh, image, folder, secrets):
                raise Failed(f"{image} holds a secret: {', '.join(seen)}")
        finally:
            mesh.podman("image", "unmount", image)
    a_planted_secret_is_found(mesh, images[0])
    if limit_mb and largest[1] > limit_mb:
        raise Failed(f"{largest[0]} has {largest[1]:.1f} MB, more than {limit_mb}")
    say(f"images: {len(images)}, not root, no shell, with certificates, time zones and SBOM; the largest without helm {largest[0]}, {largest[1]:.1f} MB")
    say(f"secrets: {len(secrets)} looked for in each image's history, settings and files: none there; the control that holds one was found")


# --- the story -----------------------------------------------------------------------------------------------------


async def first_intent(mesh):
    """From nothing to the first intent that is FULFILLED: somebody who is connected, the services, and the seconds."""
    begun = time.monotonic()
    mesh.up()
    services = mesh.services()
    ready = mesh.wait_healthy(services, FIRST_S)
    healthy = time.monotonic() - begun
    person = Person(mesh.volume("key-person") / "person.nk")
    await person.connect()
    await person.command("workload.ask.register.v1.local.spinner", {"document": workload("spinner", 2, 2, 10, 16_000_000)})
    await person.command("workload.ask.register.v1.local.idle", {"document": workload("idle", 0, 1, 5, 6_000_000)})
    await person.command("intent.ask.submit.v1.local.first", {"intent": person.example})
    await person.fulfilled(["first"], FIRST_S)
    first = time.monotonic() - begun
    say(f"up: {len(services)} services are healthy {healthy:.1f} s after nothing ({ready:.1f} s of waiting); "
        f"first intent FULFILLED {first:.1f} s after nothing, published by nats-py")
    if first > FIRST_S:
        raise Failed(f"the first intent took {first:.1f} s, more than {FIRST_S}")
    return person, services, first


async def starts(mesh, times):
    """From nothing, again and again."""
    took = []
    for number in range(1, times + 1):
        say(f"start {number} of {times}")
        person, _, first = await first_intent(mesh)
        await person.bus.close()
        took.append(first)
        mesh.down()
        if left := mesh.residue():
            raise Failed(f"left behind: {', '.join(left)}")
    say(f"{len(took)} of {times} starts from nothing to FULFILLED: {min(took):.1f} to {max(took):.1f} s, each within {FIRST_S} s")


async def story(mesh, options):
    person, services, _ = await first_intent(mesh)
    account = Account((mesh.volume("identity") / "admin.password").read_text().strip())
    account.sign_in()
    if account.get("/api/v1/intent/first/?owner=local")["id"] != "first":
        raise Failed("REST does not know the intent")
    for location in ("one", "two"):
        where = {"description": {"kind": "cloud", "url": f"dir:{location}"}}
        await person.command(f"storage.ask.register_location.v1.local.{location}", where)
    access, secret = mesh.s3_keys()
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
    images_are_small_and_closed(mesh, services, options.image_mb)
    per_s = options.per_s or (min(FULL_PER_S, await highest_rate(person, account) / 2) if options.full else SHORT_PER_S)
    await killed_and_upgraded(mesh, person, account, services, per_s, options)
    await compose_refusals.on_a_mesh(mesh, person, account)
    await compose_backup.backed_up_and_restored(mesh, person, account, Load(person, account, "meanwhile", SHORT_PER_S))
    await person.bus.close()


# --- under load ------------------------------------------------------------------------------------------------------


class Load:
    """Intents at a steady rate. What has been FULFILLED makes room for others, as the clusters do not hold all."""

    def __init__(self, person, account, name, per_s):
        self.person, self.account, self.name, self.per_s = person, account, name, per_s
        self.asked = time.monotonic()
        self.names, self.ended = [], set()
        self.stopping = asyncio.Event()
        self.took_s = 0

    def waiting(self):
        return [name for name in self.names if name not in self.person.done]

    async def ask(self):
        """The mirror repeats what comes while it is there: what it missed while it was replaced is asked for over REST."""
        if time.monotonic() - self.asked < ASK_S:
            return
        for name in self.waiting()[:100]:
            view = await asyncio.to_thread(self.account.get, f"/api/v1/intent/{name}/?owner=local")
            if view["fulfilment_status"] == "FULFILLED":
                self.person.done[name] = True
        self.asked = time.monotonic()

    async def make_room(self, held_max):
        """Terminates the oldest that are FULFILLED, until no more are left than are held at once."""
        done = [name for name in self.person.done if name.startswith(f"{self.name}-") and name not in self.ended]
        for name in done[: max(0, len(self.names) - len(self.ended) - held_max)]:
            self.ended.add(name)
            await self.person.command(f"intent.ask.terminate.v1.local.{name}", {})

    async def run(self):
        begun = time.monotonic()
        making_room = None
        while not self.stopping.is_set():
            name = f"{self.name}-{len(self.names)}"
            await self.person.command(f"intent.ask.submit.v1.local.{name}", {"intent": self.person.small})
            self.names.append(name)
            if making_room is None or making_room.done():
                if making_room:
                    making_room.result()
                making_room = asyncio.create_task(self.make_room(HELD_MAX))
            # By the clock, so that a slow answer does not lower the rate.
            await asyncio.sleep(max(0, begun + len(self.names) / self.per_s - time.monotonic()))
        self.took_s = time.monotonic() - begun
        await making_room

    async def caught_up(self):
        """Waits until what came while a service was away is FULFILLED, up to what comes in some seconds."""
        deadline = time.monotonic() + CATCH_UP_LIMIT_S
        while len(waiting := self.waiting()) > CAUGHT_UP_S * self.per_s + 10:
            if time.monotonic() > deadline:
                raise Failed(f"{len(waiting)} of {len(self.names)} intents wait {CATCH_UP_LIMIT_S} s after a service came back, "
                             f"at {self.per_s} intents/s: {waiting[0]}: {self.person.states.get(waiting[0])}; {await self.known()}")
            await self.ask()
            await asyncio.sleep(0.2)

    async def known(self):
        """In what states the mesh itself has the intents of this load, in words."""
        views = await asyncio.to_thread(self.account.pages, "/api/v1/intent/?owner=local")
        mine = collections.Counter(view["fulfilment_status"] for view in views if view["id"].startswith(f"{self.name}-"))
        return ", ".join(f"{count} {state}" for state, count in mine.most_common()) or "the mesh knows none of them"

    async def fulfilled(self, limit_s):
        """Waits until all are, and terminates them as they are."""
        deadline = time.monotonic() + limit_s
        while (waiting := self.waiting()) and time.monotonic() < deadline:
            await self.make_room(HELD_MAX // 2)
            await self.ask()
            await asyncio.sleep(0.2)
        return waiting

    async def end(self):
        await self.make_room(0)


async def highest_rate(person, account):
    """The highest rate at which what comes is FULFILLED as fast as it comes, intents a second."""
    for number, per_s in enumerate(RATES_PER_S):
        load = Load(person, account, f"rate-{number}", per_s)
        running = asyncio.create_task(load.run())
        await asyncio.sleep(HOLD_S)
        load.stopping.set()
        await running
        begun = time.monotonic()
        late = len(await load.fulfilled(BEHIND_S))
        behind = time.monotonic() - begun
        kept = len(load.names) / load.took_s
        await load.fulfilled(240)
        await load.end()
        holds = not late and kept > 0.95 * per_s
        say(f"{per_s} intents/s asked for, {kept:.1f} sent for {HOLD_S} s; " + (
            f"the last FULFILLED {behind:.1f} s later: it holds" if holds else f"{late} not FULFILLED {BEHIND_S} s later: it does not hold"))
        if holds:
            return per_s
    raise Failed(f"not even {RATES_PER_S[-1]} intents a second are FULFILLED as they come")


async def killed_and_upgraded(mesh, person, account, services, per_s, options):
    """Services are killed, and replaced by others of another version, while intents come; each of them runs in the end, once."""
    load = Load(person, account, "load", per_s)
    running = asyncio.create_task(load.run())
    for service in services:
        came = len(load.names)
        pid = await asyncio.to_thread(mesh.podman, "inspect", "--format", "{{.State.Pid}}", mesh.container(service))
        os.kill(int(pid), signal.SIGKILL)
        await asyncio.sleep(1)
        if running.done():
            running.result()
        if options.full:
            await asyncio.to_thread(mesh.wait_healthy, [service], FIRST_S)
            say(f"  {service}: killed after {came} intents; back after {len(load.names)}, {len(load.waiting())} of them under way")
            await load.caught_up()
    await asyncio.to_thread(mesh.wait_healthy, services, FIRST_S)
    killed_with = len(load.names)
    if options.full:
        say(f"  each service was killed: {killed_with} intents came, {len(load.waiting())} of them under way")
    upgrades = [] if not options.next else services if options.full else SHORT_UPGRADES
    slowest = ("", 0)
    for service in upgrades:
        before = mesh.inspect(service)
        begun = time.monotonic()
        await asyncio.to_thread(mesh.up, service, version=options.next)
        await asyncio.to_thread(mesh.wait_healthy, [service], FIRST_S)
        took_s = time.monotonic() - begun
        slowest = max(slowest, (service, took_s), key=lambda pair: pair[1])
        if options.full:
            say(f"  {service}: upgraded in {took_s:.1f} s, after {len(load.names)} intents, {len(load.waiting())} of them under way")
        if options.full:
            await load.caught_up()
        after = mesh.inspect(service)
        if after["Id"] == before["Id"] or mesh.version(service) != options.next:
            raise Failed(f"{service} was not replaced: it has version {mesh.version(service)}, not {options.next}")
        if running.done():
            running.result()
    for service in services:
        wanted = options.next if service in upgrades else options.version
        if mesh.version(service) != wanted:
            raise Failed(f"{service} has version {mesh.version(service)}, not {wanted}")
    await asyncio.to_thread(mesh.wait_healthy, services, FIRST_S)
    load.stopping.set()
    await running
    waiting = await load.fulfilled(600 if options.full else 120)
    if waiting:
        states = {name: person.states.get(name) for name in waiting[:3]}
        raise Failed(f"{len(waiting)} of {len(load.names)} intents are not FULFILLED: {states}")
    # What the mesh itself knows, asked for over REST.
    mine = "/api/v1/intent/?owner=local"
    views = await asyncio.to_thread(account.pages, mine)
    known = {view["id"] for view in views}
    for view in views:
        person.instances.setdefault(view["id"], set()).update(instance["instance_id"] for instance in view["instances"])
    lost = [name for name in load.names if name not in known]
    if lost:
        raise Failed(f"{len(lost)} of {len(load.names)} intents are lost: {lost[:3]}")
    twice = {name: ids for name, ids in person.instances.items() if len(ids) > 1}
    if twice:
        raise Failed(f"{len(twice)} intents with more than one instance: {dict(list(twice.items())[:3])}")
    await load.end()
    kept = len(load.names) / load.took_s
    say(f"{kept:.1f} intents/s for {load.took_s:.0f} s: each of {len(services)} services was killed (by {killed_with} intents), "
        f"then {len(upgrades)} upgraded to {options.next or 'nothing'} ({', '.join(upgrades) if len(upgrades) < 5 else 'each'}; "
        f"the slowest, {slowest[0] or 'none'}, away {slowest[1]:.1f} s)")
    say(f"of {len(load.names)} intents {len(load.names)} were FULFILLED, 0 lost, 0 twice")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", default=str(ROOT / ".tools/engine/podman"))
    parser.add_argument("--version", default="0.1.0", help="of the images that are started")
    parser.add_argument("--next", help="version of the images that services are upgraded to; none are where it is absent")
    parser.add_argument("--full", action="store_true", help="upgrade each service, at the highest rate of intents that holds")
    parser.add_argument("--per-s", type=float, help="intents a second, instead of what is found out")
    parser.add_argument("--starts", type=int, default=0, help="only start from nothing, this many times")
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
        if options.starts:
            asyncio.run(starts(mesh, options.starts))
        else:
            compose_refusals.without_a_mesh(mesh)
            asyncio.run(story(mesh, options))
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
