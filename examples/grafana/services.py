#!/usr/bin/env python3
"""Prints where the services of a mesh show their own metrics, as Prometheus reads it (`file_sd_configs`).

    continuum status -o json | python3 examples/grafana/services.py > examples/grafana/services.json
"""

import json
import sys


def targets(status):
    """An entry for each process that answers; the address is the one that it announced."""
    for service in status["services"]:
        if service["endpoint"].startswith("http://"):
            address = service["endpoint"].removeprefix("http://").rstrip("/")
            yield {"targets": [address], "labels": {"service_name": service["name"]}}


if __name__ == "__main__":
    json.dump(list(targets(json.load(sys.stdin))), sys.stdout, indent=2)
    print()
