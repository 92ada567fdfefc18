#!/usr/bin/env python3
"""Asks a real Prometheus, which scrapes the gateway and the services of a running mesh as examples/grafana/prometheus.yml says,
everything that the dashboards and alert rules in examples/grafana ask. Fails with those that give no data.

    python3 infra/test/grafana.py      # the mesh of CONTINUUM_DATA_DIR, or .continuum; needs `continuum login` and `make setup-test`
"""

import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / ".tools/debian/usr/bin/prometheus"
EXAMPLES = ROOT / "examples/grafana"
# Seconds until every query has to have data: an agent's slowest probe, and two scrapes for a rate.
PATIENCE = 60


def queries():
    for path in sorted((EXAMPLES / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                yield f"{path.stem}: {panel['title']}", target["expr"]
    rules = json.loads((EXAMPLES / "provisioning/alerting/continuum.yaml").read_text())
    for rule in rules["groups"][0]["rules"]:
        yield f"alert: {rule['title']}", rule["data"][0]["model"]["expr"]


def ask(at, query):
    query = query.replace("$__rate_interval", "10s").replace("$cluster", ".*")
    address = f"http://{at}/api/v1/query?query={urllib.parse.quote(query)}"
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return json.load(answer)["data"]["result"]
    except urllib.error.HTTPError as error:
        sys.exit(f"{query}: {error.read().decode()}")
    except OSError:
        return []


def main():
    if not PROMETHEUS.exists():
        print(f"SKIPPED: queries of Grafana's dashboards: no {PROMETHEUS} (run `make setup-test`)")
        return
    data = pathlib.Path(os.environ.get("CONTINUUM_DATA_DIR", ".continuum"))
    gateway = (data / "state/gateway/url").read_text().strip().removeprefix("http://")
    token = subprocess.run(["continuum", "token"], check=True, capture_output=True, text=True).stdout.strip()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        at = f"127.0.0.1:{free.getsockname()[1]}"
    status = subprocess.run(["continuum", "status", "-o", "json"], check=True, capture_output=True, text=True).stdout
    services = subprocess.run(
        [sys.executable, EXAMPLES / "services.py"], check=True, capture_output=True, text=True, input=status
    ).stdout
    with tempfile.TemporaryDirectory() as folder:
        config = pathlib.Path(folder) / "prometheus.yml"
        text = (EXAMPLES / "prometheus.yml").read_text().replace("127.0.0.1:8000", gateway)
        config.write_text(re.sub("scrape_interval: [0-9]+s", "scrape_interval: 1s", text))
        (config.parent / "continuum.token").write_text(token)
        (config.parent / "services.json").write_text(services)
        shutil.copy(EXAMPLES / "rules.yml", folder)
        server = subprocess.Popen(
            [PROMETHEUS, f"--config.file={config}", f"--storage.tsdb.path={folder}/data", f"--web.listen-address={at}"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        try:
            wanted = list(queries())
            left, until = wanted, time.monotonic() + PATIENCE
            while left and time.monotonic() < until:
                left = [(title, query) for title, query in left if not ask(at, query)]
                time.sleep(1 if left else 0)
        finally:
            server.terminate()
            server.wait()
    for title, query in left:
        print(f"no data: {title}: {query}")
    print(f"{len(wanted) - len(left)} of {len(wanted)} queries of Grafana's dashboards and alert rules give data")
    if left:
        sys.exit(1)


main()
