"""What can be wrong with a machine that the mesh is to start on, and what is said then. compose.py runs it.

Each case is one that people meet: no engine, one that hangs, a taken port, a name or a version of something else, a clock in the
past, a read-only disk, volumes of the former layout, a service whose contract the bus does not have. What is printed has to name
what is wrong, why, and what to do; and nothing may be left half done.
"""

import asyncio
import json
import os
import pathlib
import shutil
import socket
import tempfile
import time

import nats
from compose_engine import JOBS, PORTS, ROOT, Failed, Mesh, say

UP = str(ROOT / "infra/compose/up.sh")
BUILD = str(ROOT / "infra/images/build.sh")
# No case may hang: an engine that does is given up.
LIMIT_S = 60
LIBFAKETIME = ROOT / ".tools/debian/usr/lib/x86_64-linux-gnu/faketime"
# Far enough that no certificate and no token of today is valid.
PAST_DAYS = 4000


def refused(mesh, case, words, code, texts, environment=None):
    """Runs a command that has to fail with this exit code, and whose error has to say these texts."""
    begun = time.monotonic()
    done = mesh.run(*words, check=False, timeout=LIMIT_S, environment=environment)
    told = done.stderr.strip()
    if done.returncode != code:
        raise Failed(f"{case}: exit code {done.returncode}, not {code}: {done.stdout[-500:]}{told[-1500:]}")
    missing = [text for text in texts if text not in told]
    if missing:
        raise Failed(f"{case}: the error does not say {missing}: {told[-1500:]}")
    say(f"  {case}: exit code {code} after {time.monotonic() - begun:.1f} s: {' '.join(told.split())[:330]}")


def program(folder, name, text):
    path = pathlib.Path(folder) / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def without_a_mesh(mesh):
    say("bad input, before anything runs:")
    with tempfile.TemporaryDirectory() as folder:
        engines(mesh, folder)
    check = [UP, "--check"]
    texts = ["no image", "continuum/validator:9.9.9", "make images", "CONTINUUM_VERSION"]
    refused(mesh, "an image of a version that was not made", check, 69, texts, {"CONTINUUM_VERSION": "9.9.9"})
    with socket.create_server(("127.0.0.1", PORTS[0])):
        texts = [f"port {PORTS[0]} of 127.0.0.1 is taken", "ss -ltnp", f"CONTINUUM_PORT_{PORTS[0]}="]
        refused(mesh, "a port that is taken", check, 69, texts)
        mesh.run(*check, environment={f"CONTINUUM_PORT_{PORTS[0]}": str(free_port())})
    texts = ["CONTINUUM_PORT_4222", '"4222/tcp"', "1 to 65535"]
    refused(mesh, "a port that is not a number", check, 64, texts, {"CONTINUUM_PORT_4222": "4222/tcp"})
    if LIBFAKETIME.exists():
        past = faketime(LIBFAKETIME) | {"NO_FAKE_STAT": "1"}
        texts = ["the clock of this machine is at", "before compose.yaml was written", "chrony"]
        refused(mesh, "a machine whose clock is in the past", check, 69, texts, past)
    else:
        say("  NOT RUN: clocks in the past: libfaketime is missing (infra/test/install.sh)")
    former_layout(mesh)


def engines(mesh, folder):
    hangs = program(folder, "hangs", "exec sleep 600")
    builds_never = program(folder, "builds-never", 'case "$1" in info) exit 0 ;; pull) exit 1 ;; *) exec sleep 600 ;; esac')
    fails = program(folder, "fails", "exit 125")
    for name, script in (("make images", BUILD), ("make up", UP)):
        for case, engine, text in (
            ("no engine", f"{folder}/none", "is not installed"),
            ("an engine that hangs", hangs, "did not answer `info` within 1 s: it hangs"),
            ("an engine that does not run", fails, "ends with 125"),
        ):
            told = ["no container engine answers: install docker", engine, text]
            refused(mesh, f"{name}: {case}", [script], 69, told, {"CONTAINER_ENGINE": engine, "CONTAINER_ENGINE_WAIT_S": "1"})
    profile = "debug" if (ROOT / "target/debug/validator").exists() else "release"
    words = [BUILD, "--profile", profile, "--only", "validator"]
    environment = {"CONTAINER_ENGINE": builds_never, "CONTAINER_ENGINE_BUILD_S": "1", "BASE_IMAGE": "base"}
    texts = ["did not make continuum/validator:", "within 1 s", "CONTAINER_ENGINE_BUILD_S"]
    refused(mesh, "make images: an engine that hangs while it builds", words, 69, texts, environment)
    refused(mesh, "make images: a program that does not exist", [BUILD, "--only", "validators"], 64, ["unknown image validators", "validator"])


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def faketime(folder):
    """Settings by which a program believes that it is long ago; it waits as long as it means to."""
    return {"LD_PRELOAD": f"{folder}/libfaketimeMT.so.1", "FAKETIME": f"-{PAST_DAYS}d", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


def former_layout(mesh):
    """A volume as version 0.1 left it, with all keys in it: `render` takes them over. Beside another mesh, by other ports."""
    former = Mesh(mesh.engine, "continuum-former", {port: free_port() for port in PORTS})
    image = "localhost/continuum/continuum:" + images_version(mesh)
    bus = f"{former.project}_bus"
    try:
        former.down()
        former.podman("volume", "create", bus)
        at = ["--rm", "--network", "none", "--volume", f"{bus}:/bus"]
        former.podman("run", *at, image, "provision", "render", "--out", "/bus", "--store-dir", "/data/jetstream")
        keys = former.volume("bus") / "keys"
        seeds = {file.name: file.read_text() for file in keys.glob("*.nk")}
        # A disk that cannot be written to, first.
        unwritable = ["run", "--rm", "--network", "none", "--volume", f"{bus}:/bus:ro", image]
        refused(former, "render: a read-only disk", [former.engine, *unwritable, "provision", "render", "--out", "/bus"], 1,
                ["/bus", "Read-only file system"])
        former.up("render", "nats", "provision")
        deadline = time.monotonic() + LIMIT_S
        while former.inspect("provision")["State"]["Running"] or former.inspect("provision")["State"]["ExitCode"] != 0:
            if time.monotonic() > deadline:
                raise Failed(f"a volume of the former layout: the bus is not provisioned: {former.logs('provision')}")
            time.sleep(0.2)
        left = sorted(file.name for file in keys.glob("*")) if keys.exists() else []
        if left:
            raise Failed(f"a volume of the former layout keeps the keys {left}")
        kept = 0
        for name, seed in seeds.items():
            folder = former.volume(f"key-{name.removesuffix('.nk')}") if name != "joint.nk" else None
            if folder and (folder / name).read_text() != seed:
                raise Failed(f"a volume of the former layout: the key {name} was replaced")
            kept += folder is not None
        if kept < 15:
            raise Failed(f"a volume of the former layout: only {kept} keys were taken over, of {sorted(seeds)}")
        port = former.environment["CONTINUUM_PORT_4222"]
        asyncio.run(connects(f"nats://127.0.0.1:{port}", former.volume("key-person") / "person.nk"))
        say(f"  a volume of the former layout: {kept} keys moved to volumes of their own, unchanged; person.nk connects, on port {port}")
        streams = f"{former.project}_streams"
        words = [former.engine, "run", "--rm", "--network", "none", "--volume", f"{bus}:/bus:ro", "--volume", f"{streams}:/data:ro",
                 "docker.io/library/nats:2.15.1", "-c", "/bus/nats.conf"]
        done = former.run(*words, check=False, timeout=LIMIT_S)
        told = done.stdout + done.stderr
        # nats-server's own words.
        if done.returncode == 0 or "storage directory is not writable" not in told:
            raise Failed(f"nats: a read-only disk: exit code {done.returncode}: {told[-1000:]}")
        say(f"  nats: a read-only disk: exit code {done.returncode}: {told.strip().splitlines()[-1][:200]}")
    finally:
        former.down()
        # Made here, not by compose, which therefore leaves it.
        former.podman("volume", "rm", "--force", bus, check=False)
    if left := former.residue():
        raise Failed(f"left behind: {', '.join(left)}")


def images_version(mesh):
    text = (ROOT / "compose.yaml").read_text()
    return text.split("/continuum:${CONTINUUM_VERSION:-", 1)[1].split("}", 1)[0]


async def connects(url, seed_file):
    bus = await nats.connect(url, nkeys_seed=str(seed_file), inbox_prefix="_INBOX_person", connect_timeout=5, allow_reconnect=False)
    await bus.flush()
    await bus.close()


# --- on a mesh that runs ---------------------------------------------------------------------------------------------


async def on_a_mesh(mesh, person, account):
    say("bad input, on a mesh that runs:")
    await asyncio.to_thread(another_checkout, mesh)
    texts = [f"port {PORTS[0]} of 127.0.0.1 is taken", f"CONTINUUM_PORT_{PORTS[0]}="]
    refused(mesh, "a second mesh on the same ports", [UP, "--check"], 69, texts, {"COMPOSE_PROJECT_NAME": "continuum-second"})
    await asyncio.to_thread(read_only_disks, mesh)
    await another_contract(mesh, person)
    if LIBFAKETIME.exists():
        await clock_in_the_past(mesh, person, account)


def another_checkout(mesh):
    """Two meshes with one project's name: the second does not touch the first."""
    before = {service: mesh.inspect(service)["Id"] for service in mesh.services()}
    with tempfile.TemporaryDirectory() as folder:
        other = pathlib.Path(folder) / "other"
        for part in ("infra/compose", "infra/engine"):
            shutil.copytree(ROOT / part, other / part)
        shutil.copy2(ROOT / "compose.yaml", other)
        texts = [f"the project {mesh.project} is already the mesh of {ROOT.resolve()}", "COMPOSE_PROJECT_NAME=", "CONTINUUM_PORT_4222="]
        refused(mesh, "two meshes with one project name", [str(other / "infra/compose/up.sh")], 64, texts)
    if before != {service: mesh.inspect(service)["Id"] for service in mesh.services()}:
        raise Failed("two meshes with one project name: the first was changed")


def read_only_disks(mesh):
    """Each service, started by hand on its own data, which it cannot write."""
    names = [service for service in mesh.services() if service not in JOBS]
    for service in names:
        identity = "cluster-agent" if service.startswith("cluster-agent-") else service
        settings = ["--env", "CONTINUUM_BUS_URL=nats://127.0.0.1:1", "--env", f"CONTINUUM_BUS_SEED_FILE=/key/{identity}.nk"]
        mounts = ["--volume", f"{mesh.project}_key-{identity}:/key:ro", "--volume", f"{mesh.project}_{service}:/data:ro"]
        words = [mesh.engine, "run", "--rm", "--network", "none", "--read-only", *settings, *mounts, mesh.image(service)]
        done = mesh.run(*words, check=False, timeout=LIMIT_S)
        told = done.stdout + done.stderr
        missing = [text for text in ("data_dir", "user 10001 cannot write to /data", "mount a writable volume", "Read-only file system") if text not in told]
        if done.returncode != 64 or missing:
            raise Failed(f"{service}: a read-only disk: exit code {done.returncode}, without {missing}: {told[-1000:]}")
    say(f"  a read-only disk: {len(names)} services end with 64 and say so: {last_error(told)}")


def last_error(told):
    """What the last line of a log in JSON says is wrong."""
    for line in reversed(told.strip().splitlines()):
        try:
            return json.loads(line).get("error", line)
        except ValueError:
            return line
    return ""


async def another_contract(mesh, person):
    """The validator's image expects of the bus what the version that provisioned it did not have."""
    seed = mesh.volume("key-provisioner") / "provisioner.nk"
    admin = await nats.connect("nats://127.0.0.1:4222", nkeys_seed=str(seed), inbox_prefix="_INBOX_provisioner")

    async def api(call, body=b""):
        return json.loads((await admin.request(f"$JS.API.{call}", body, timeout=5)).data)

    names = (await api("CONSUMER.NAMES.INTENT", b"{}"))["consumers"]
    durable = next((name for name in names if "verdicts" in name), None)
    if durable is None:
        raise Failed(f"the validator has no durable on INTENT: {names}")
    if not (await api(f"CONSUMER.DELETE.INTENT.{durable}")).get("success"):
        raise Failed(f"the durable {durable} was not deleted")
    await asyncio.to_thread(mesh.podman, "restart", "--time", "5", mesh.container("validator"))
    deadline = time.monotonic() + LIMIT_S
    expected = ["there is no such durable", "provision the bus", durable]
    while [text for text in expected if text not in (told := await asyncio.to_thread(mesh.logs, "validator", 60))]:
        if time.monotonic() > deadline:
            raise Failed(f"an image of another contract: the validator does not say {expected}: {told[-1500:]}")
        await asyncio.sleep(0.5)
    if await asyncio.to_thread(mesh.healthy, "validator"):
        raise Failed("an image of another contract: the validator seems ready")
    # What the message says, done: what came meanwhile is decided on.
    await person.command("intent.ask.submit.v1.local.between", {"intent": person.example})
    await asyncio.to_thread(mesh.podman, "start", "--attach", mesh.container("provision"))
    await asyncio.to_thread(mesh.wait_healthy, ["validator"], LIMIT_S)
    await person.fulfilled(["between"], LIMIT_S)
    await admin.close()
    line = next(line for line in reversed(told.splitlines()) if "no such durable" in line)
    say(f"  an image of another contract: not ready, and says: {last_error(line)[:200]}; provisioned again, it goes on where it was")


def doctor(mesh):
    """What `continuum doctor` says of the mesh, with its exit code."""
    with tempfile.TemporaryDirectory() as folder:
        # As `continuum up` leaves it: this test is the process that runs the mesh.
        stat = pathlib.Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()
        seed = mesh.volume("key-person") / "person.nk"
        endpoints = {"pid": os.getpid(), "started_ticks": int(stat[19]), "mode": "one process per service",
                     "nats": "nats://127.0.0.1:4222", "person_seed_file": str(seed), "zenoh": "tcp/127.0.0.1:7447", "clusters": []}
        (pathlib.Path(folder) / "endpoints.json").write_text(json.dumps(endpoints))
        for profile in ("debug", "release"):
            program = ROOT / "target" / profile / "continuum"
            if program.exists():
                done = mesh.run(str(program), "--data-dir", folder, "doctor", check=False, timeout=LIMIT_S)
                return done.stdout + done.stderr, done.returncode
    raise Failed("there is no program continuum in target/debug or target/release")


async def clock_in_the_past(mesh, person, account):
    """Services whose clock is years behind: intents are decided all the same, and it is said whose clock is wrong."""
    behind = ["validator", "gateway"]
    with tempfile.TemporaryDirectory() as folder:
        settings = {"environment": faketime("/faketime"), "volumes": [f"{LIBFAKETIME}:/faketime:ro"]}
        override = pathlib.Path(folder) / "past.yaml"
        override.write_text(json.dumps({"services": {service: settings for service in behind}}))
        await asyncio.to_thread(mesh.up, *behind, files=[ROOT / "compose.yaml", override])
        await asyncio.to_thread(mesh.wait_healthy, behind, LIMIT_S)
    await person.command("intent.ask.submit.v1.local.past", {"intent": person.example})
    await person.fulfilled(["past"], LIMIT_S)
    problem = await asyncio.to_thread(account.problem, "/api/v1/intent/past/?owner=local")
    if "401" not in problem or "clock" not in problem:
        raise Failed(f"a gateway whose clock is in the past answers {problem}")
    told, code = await asyncio.to_thread(doctor, mesh)
    missing = [f"{service} is" for service in behind if f"{service} is {PAST_DAYS * 86400}"[:-3] not in told]
    if missing or code == 0:
        raise Failed(f"doctor does not name the clocks of {behind}: exit code {code}: {told[-2000:]}")
    line = next(line for line in told.splitlines() if "service clocks" in line)
    say(f"  a clock in the past: an intent is FULFILLED all the same; the gateway: {problem[:160]}; doctor: {' '.join(line.split())[:200]}")
    await asyncio.to_thread(mesh.up, *behind)
    await asyncio.to_thread(mesh.wait_healthy, behind, LIMIT_S)
