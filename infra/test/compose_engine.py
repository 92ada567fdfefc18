"""The project of compose.yaml as a container engine runs it: for compose.py and compose_refusals.py, which use it from outside."""

import json
import os
import pathlib
import re
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROJECT = "continuum-test"
PORTS = [4222, 7447, 8000, 9000, 9222]
JOBS = {"render", "provision"}
OTHERS = {"nats", "zenoh", "mongo", "influxdb", "cassandra"}


class Failed(Exception):
    """Something does not hold."""


def say(text):
    print(text, flush=True)


class Mesh:
    """The project as the engine runs it."""

    def __init__(self, engine, project=PROJECT, ports=None):
        self.engine, self.project = engine, project
        compose = pathlib.Path(sys.executable).with_name("podman-compose")
        self.compose = [str(compose), "--podman-path", engine, "--project-name", project, "--file", str(ROOT / "compose.yaml")]
        # Documents run as processes here: they are this test's own.
        self.environment = os.environ | {
            "CONTINUUM_PROCESS_DOCUMENTS": "true",
            "CONTAINER_ENGINE": engine,
            "COMPOSE": str(compose),
            "COMPOSE_PROJECT_NAME": project,
        }
        for number, port in (ports or {}).items():
            self.environment[f"CONTINUUM_PORT_{number}"] = str(port)

    def run(self, *words, check=True, timeout=300, environment=None):
        all_of_it = self.environment | (environment or {})
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=all_of_it, timeout=timeout)
        if check and done.returncode != 0:
            raise Failed(f"{' '.join(words)}: exit code {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done

    def podman(self, *words, **options):
        return self.run(self.engine, *words, **options).stdout.strip()

    def up(self, *services, version=None, files=None):
        """Starts the services, all if none is named: by the script that people use."""
        environment = {"CONTINUUM_VERSION": version} if version else {}
        if files:
            environment["COMPOSE_FILE"] = ":".join(str(file) for file in files)
        self.run(str(ROOT / "infra/compose/up.sh"), *services, timeout=600, environment=environment)

    def down(self):
        self.run(*self.compose, "--profile", "backup", "down", "--volumes", "--timeout", "15", check=False, timeout=600)

    def s3_keys(self):
        """Access key and secret of the mesh's own objects."""
        return (self.volume("secure-storage-secrets") / "access.keys").read_text().split()[:2]

    def backup(self, folder, *words, check=True, environment=None):
        """Runs the service `backup`, which finds a folder of this machine as /backups."""
        words = ["--profile", "backup", "run", "-T", "--rm", "--no-deps", "--volume", f"{folder}:/backups", "backup", *words]
        return self.run(*self.compose, *words, check=check, environment=environment)

    def residue(self):
        """Names of containers, volumes, networks and pods of the project that are left."""
        containers = self.podman("ps", "--all", "--format", "{{.Names}}").split()
        volumes = self.podman("volume", "ls", "--format", "{{.Name}}").split()
        networks = self.podman("network", "ls", "--format", "{{.Name}}").split()
        pods = self.podman("pod", "ls", "--format", "{{.Name}}").split()
        return [name for name in containers + volumes + networks + pods if self.project in name]

    def services(self):
        names = self.podman("ps", "--all", "--format", "{{.Names}}").split()
        found = [match.group(1) for match in (re.fullmatch(rf"{self.project}[_-](.+)[_-]1", name) for name in names) if match]
        return sorted(name for name in found if name not in JOBS | OTHERS)

    def container(self, service):
        names = self.podman("ps", "--all", "--format", "{{.Names}}").split()
        for name in names:
            if re.fullmatch(rf"{self.project}[_-]{service}[_-]1", name):
                return name
        raise Failed(f"there is no container of {service}")

    def inspect(self, service):
        return json.loads(self.podman("inspect", self.container(service)))[0]

    def image(self, service):
        return self.podman("inspect", "--format", "{{.ImageName}}", self.container(service))

    def version(self, service):
        """The version that the image of a service's container is labelled with."""
        label = '{{index .Config.Labels "org.opencontainers.image.version"}}'
        return self.podman("inspect", "--format", label, self.container(service))

    def logs(self, service, lines=20):
        done = self.run(self.engine, "logs", "--tail", str(lines), self.container(service), check=False)
        return done.stdout + done.stderr

    def healthy(self, service):
        return self.run(self.engine, "healthcheck", "run", self.container(service), check=False).returncode == 0

    def volume(self, name):
        return pathlib.Path(self.podman("volume", "inspect", "--format", "{{.Mountpoint}}", f"{self.project}_{name}"))

    def wait_healthy(self, services, limit_s):
        """Seconds until all of them are; fails with the logs of the first that is not."""
        begun = time.monotonic()
        waiting = list(services)
        while waiting:
            waiting = [service for service in waiting if not self.healthy(service)]
            if waiting and time.monotonic() - begun > limit_s:
                raise Failed(f"{', '.join(waiting)}: not healthy within {limit_s} s; {waiting[0]} says:\n{self.logs(waiting[0])}")
        return time.monotonic() - begun
