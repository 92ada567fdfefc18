#!/usr/bin/env python3
"""Calls a service with a client that `protoc` generates from the contract: lists intents, and asks for health.

    stubs.py PROTO_FOLDER HOST:PORT

Prints the state of the intents as JSON, and the answer about health.
"""

import json
import sys
import tempfile
from pathlib import Path

import grpc
from google.protobuf.json_format import MessageToDict
from grpc_tools import protoc


def generate(source: Path, out: str) -> None:
    files = sorted(str(path.relative_to(source)) for path in source.rglob("*.proto"))
    well_known = Path(protoc.__file__).parent / "_proto"
    arguments = ["protoc", f"-I{source}", f"-I{well_known}", f"--python_out={out}", f"--grpc_python_out={out}", *files]
    if protoc.main(arguments) != 0:
        sys.exit("protoc refuses the contract")


def main() -> None:
    source, address = Path(sys.argv[1]), sys.argv[2]
    with tempfile.TemporaryDirectory() as out:
        generate(source, out)
        sys.path.insert(0, out)
        from continuum.intent.v1 import queries_pb2_grpc
        from continuum.query.v1 import query_pb2

        with grpc.insecure_channel(address) as channel:
            intents = queries_pb2_grpc.IntentQueriesStub(channel)
            listed = intents.List(query_pb2.ListRequest(owner="local", page_size=10), timeout=10)
            print(json.dumps(MessageToDict(listed)))


if __name__ == "__main__":
    main()
