#!/usr/bin/env python3
"""Asks for digital twins at the edge, over Zenoh, without the bus, with nothing but eclipse-zenoh.

    pip install eclipse-zenoh
    continuum up                              # in another terminal
    python examples/edge_twin.py              # every twin; or 'node/*', 'workload/<instance>'

Keys are `continuum/twin/<kind>/<id>`; the kinds are workload, cluster, node, network and continuum. Answers are protobuf
(`proto/continuum/twin/v1/twin.proto`), or JSON with `?format=json`, which this asks for. One line for each twin: its key
and the JSON; with --raw the protobuf as hexadecimal digits. Exit code 0: at least one answer. 1: none, or why not.
"""

import argparse
import json
import pathlib
import sys

import zenoh


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("twin", nargs="?", default="*/*", help="<kind>/<id>; * stands for any")
    parser.add_argument("--data-dir", default=".continuum", help="data folder of a running `continuum up`")
    parser.add_argument("--connect", help="Zenoh router, such as tcp/127.0.0.1:7447, in place of that folder's")
    parser.add_argument("--raw", action="store_true", help="protobuf, as hexadecimal digits")
    parser.add_argument("--timeout", type=float, default=10, help="seconds")
    options = parser.parse_args()

    router = options.connect
    if router is None:
        router = json.loads((pathlib.Path(options.data_dir) / "endpoints.json").read_text())["zenoh"]
    config = zenoh.Config()
    config.insert_json5("mode", json.dumps("client"))
    config.insert_json5("connect/endpoints", json.dumps([router]))
    config.insert_json5("scouting/multicast/enabled", "false")
    selector = f"continuum/twin/{options.twin}" + ("" if options.raw else "?format=json")
    answers = refusals = 0
    with zenoh.open(config) as session:
        for reply in session.get(selector, timeout=options.timeout):
            if reply.ok is None:
                refusals += 1
                print(reply.err.payload.to_string(), file=sys.stderr)
                continue
            answers += 1
            body = reply.ok.payload.to_bytes()
            shown = body.hex() if options.raw else json.dumps(json.loads(body), separators=(",", ":"))
            print(f"{reply.ok.key_expr} {shown}", flush=True)
    if not answers and not refusals:
        print(f"nobody answers for {selector}: does the aggregator run?", file=sys.stderr)
    return 0 if answers and not refusals else 1


if __name__ == "__main__":
    sys.exit(main())
