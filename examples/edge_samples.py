#!/usr/bin/env python3
"""Reads samples where they are measured, over Zenoh, with nothing but eclipse-zenoh.

    pip install eclipse-zenoh
    continuum up                              # in another terminal
    python examples/edge_samples.py           # --data-dir, --key, --count N

Keys are `continuum/<site>/<node>/<signal>/<id>`: `instances` for what the workloads of a cluster use, all in one message;
`instance` for one that somebody sends alone; `cluster` for a whole cluster.
Bodies are protobuf (`proto/continuum/telemetry/v1/telemetry.proto`); the few lines below read its numbers and texts
without generated code. Exit code 0: so many samples were read. 1: they were not.
"""

import argparse
import json
import pathlib
import queue
import struct
import sys
import time

import zenoh

# Field number -> name, as the contract gives them.
FIELDS = {
    "instance": {1: "cluster", 2: "instance", 6: "cpu %", 7: "cpu m", 8: "memory bytes", 12: "replicas"},
    "cluster": {1: "cluster", 3: "cpu %", 4: "memory bytes", 5: "instances"},
}


def varint(body, at):
    value = shift = 0
    while True:
        byte = body[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def fields(body):
    """The top-level fields of a protobuf message: number -> value, of a repeated one the last."""
    return dict(all_fields(body))


def all_fields(body):
    """The top-level fields of a protobuf message, each as number and value."""
    at = 0
    while at < len(body):
        tag, at = varint(body, at)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, at = varint(body, at)
        elif kind == 1:
            value, at = struct.unpack_from("<d", body, at)[0], at + 8
        elif kind == 2:
            length, at = varint(body, at)
            value, at = body[at : at + length], at + length
        elif kind == 5:
            value, at = struct.unpack_from("<f", body, at)[0], at + 4
        else:
            raise ValueError(f"wire type {kind}")
        yield number, value


def samples(signal, body):
    """The samples in a message, each as fields."""
    if signal == "instances":
        return [fields(value) for number, value in all_fields(body) if number == 2]
    return [fields(body)]


def show(value):
    return value.decode(errors="replace") if isinstance(value, bytes) else f"{value:.1f}" if isinstance(value, float) else str(value)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", default=".continuum", help="data folder of a running `continuum up`")
    parser.add_argument("--key", default="continuum/*/*/instances/*", help="Zenoh key expression")
    parser.add_argument("--count", type=int, default=5, help="samples to print")
    parser.add_argument("--timeout", type=float, default=60, help="seconds")
    options = parser.parse_args()

    endpoints = json.loads((pathlib.Path(options.data_dir) / "endpoints.json").read_text())
    config = zenoh.Config()
    config.insert_json5("mode", json.dumps("client"))
    config.insert_json5("connect/endpoints", json.dumps([endpoints["zenoh"]]))
    config.insert_json5("scouting/multicast/enabled", "false")
    arrived = queue.Queue(maxsize=1000)
    deadline = time.monotonic() + options.timeout
    with zenoh.open(config) as session:
        subscriber = session.declare_subscriber(options.key, arrived.put)
        count = 0
        while count < options.count:
            try:
                sample = arrived.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                print(f"no more samples on {options.key} within {options.timeout:.0f} s", file=sys.stderr)
                return 1
            key = str(sample.key_expr)
            signal = key.split("/")[3]
            names = FIELDS.get(signal.removesuffix("s"), {})
            for read in samples(signal, sample.payload.to_bytes())[: options.count - count]:
                count += 1
                print(key + "  " + ", ".join(f"{name} {show(read[number])}" for number, name in names.items() if number in read), flush=True)
        subscriber.undeclare()
    return 0


if __name__ == "__main__":
    sys.exit(main())
