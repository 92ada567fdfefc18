#!/usr/bin/env python3
"""Reads samples where they are measured, over Zenoh, without the bus.

    make wheel && pip install eclipse-zenoh target/packages/continuum_client-*.whl
    continuum up                              # in another terminal
    python examples/edge_samples.py           # --data-dir, --key, --count N

Keys are `continuum/<site>/<node>/<signal>/<id>`: `instances` for what the workloads of a cluster use, all in one message;
`instance` for one that somebody sends alone; `cluster` for a whole cluster.
Bodies are messages of `proto/continuum/telemetry/v1/telemetry.proto`, as the client has them.
Exit code 0: the samples were read. 1: they were not.
"""

import argparse
import json
import queue
import sys
import time

import zenoh

from continuum.telemetry.v1.telemetry_pb2 import ClusterSample, InstanceSample, Packed
from continuum_client import Endpoints, NoMeshError

# Fields that are printed, and how they are called.
FIELDS = {
    "instance_id": "instance",
    "cpu_percent": "cpu %",
    "cpu_milli": "cpu m",
    "memory_bytes": "memory bytes",
    "memory_percent": "memory %",
    "instances": "instances",
    "replicas_running": "replicas",
}


def samples(signal, body):
    """The samples in a message."""
    if signal == "instances":
        return list(Packed.FromString(body).samples)
    return [(ClusterSample if signal == "cluster" else InstanceSample).FromString(body)]


def line(sample):
    """A sample in one line: its cluster, and what it has of the rest."""
    found = [f"cluster {sample.cluster_id}"]
    for field, value in sample.ListFields():
        if field.name in FIELDS:
            found.append(f"{FIELDS[field.name]} {value:.1f}" if isinstance(value, float) else f"{FIELDS[field.name]} {value}")
    return ", ".join(found)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", help="data folder of a running `continuum up`; .continuum when absent")
    parser.add_argument("--key", default="continuum/*/*/instances/*", help="Zenoh key expression")
    parser.add_argument("--count", type=int, default=5, help="samples to print")
    parser.add_argument("--timeout", type=float, default=60, help="seconds")
    options = parser.parse_args()

    try:
        endpoints = Endpoints.read(options.data_dir)
    except NoMeshError as error:
        print(error, file=sys.stderr)
        return 1
    config = zenoh.Config()
    config.insert_json5("mode", json.dumps("client"))
    config.insert_json5("connect/endpoints", json.dumps([endpoints.zenoh]))
    config.insert_json5("scouting/multicast/enabled", "false")
    arrived = queue.Queue(maxsize=1000)
    deadline = time.monotonic() + options.timeout
    with zenoh.open(config) as session:
        subscriber = session.declare_subscriber(options.key, arrived.put)
        count = 0
        while count < options.count:
            try:
                arrival = arrived.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                print(f"no more samples on {options.key} within {options.timeout:.0f} s", file=sys.stderr)
                return 1
            key = str(arrival.key_expr)
            signal = key.split("/")[3]
            for sample in samples(signal, arrival.payload.to_bytes())[: options.count - count]:
                count += 1
                print(f"{key}  {line(sample)}", flush=True)
        subscriber.undeclare()
    return 0


if __name__ == "__main__":
    sys.exit(main())
