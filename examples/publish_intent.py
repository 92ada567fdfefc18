#!/usr/bin/env python3
"""Publishes an intent as JSON, follows it to FULFILLED, and prints live telemetry, with nothing but nats-py.

    pip install nats-py nkeys
    continuum up                                  # in another terminal
    continuum workload push examples/spinner.workload.yaml
    python examples/publish_intent.py             # --data-dir, --id, --workload NAME@VERSION, --samples N

Any NATS client in any language does the same: one message on `intent.ask.submit.v1.<owner>.<id>`, and a subscription
of `json.>`. Exit code 0: FULFILLED, and the telemetry was seen. 1: it failed, or was refused; the reason is printed.
"""

import argparse
import asyncio
import json
import pathlib
import sys
import uuid

import nats


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", default=".continuum", help="data folder of a running `continuum up`")
    parser.add_argument("--owner", default="local")
    parser.add_argument("--id", default=f"python-{uuid.uuid4().hex[:8]}", help="id of the intent")
    parser.add_argument("--workload", default="spinner@1.0.0", help="a registered workload document")
    parser.add_argument("--samples", type=int, default=3, help="samples to print once it is FULFILLED")
    parser.add_argument("--timeout", type=float, default=60, help="seconds")
    return parser.parse_args()


def intent(workload):
    """A DeliverComputingWorkload intent after 3GPP TS 28.312: below 90 % of its cluster's CPU and 500 MB."""

    def target(name, bound):
        return {"targetName": name, "targetCondition": "IS_LESS_THAN", "targetValueRange": bound}

    return {
        "userLabel": "DeliverComputingWorkload",
        "intentExpectations": [
            {
                "expectationId": "run",
                "expectationVerb": "DELIVER",
                "expectationObject": {"objectType": "NEMO_WORKLOAD", "objectInstance": workload},
                "expectationTargets": [target("cpuUsage", "90"), target("ramUsage", "500")],
            }
        ],
        "observationPeriod": 2,
    }


async def follow(messages, intent_id, samples):
    """Prints what happens to the intent; returns the exit code."""
    fulfilled = False
    instances = set()
    while True:
        message = await messages.get()
        event = json.loads(message.data)
        subject, data = event["subject"], event["data"]
        area = subject.split(".")[0]
        if area == "intent" and data.get("intentId") == intent_id:
            instances |= {i["instanceId"] for i in data.get("instances", [])}
            state = data.get("to") or data.get("state") or {}
            status = state.get("fulfilmentStatus", "")
            print(f"{event['time']}  {subject.split('.')[1]}  {status} {state.get('notFulfilledState', '')}  {state.get('reason', '')}", flush=True)
            if subject.startswith("intent.refused."):
                print(f"refused: {data['reason']}; {data['hint']}", file=sys.stderr)
                return 1
            if state.get("notFulfilledState") == "FULFILMENTFAILED":
                print(f"failed: {state.get('reason')}; {state.get('hint')}", file=sys.stderr)
                return 1
            if status == "FULFILLED":
                fulfilled = True
                print("FULFILLED", flush=True)
        elif area == "telemetry":
            # One message holds the samples of a whole cluster.
            for sample in (s for s in data.get("samples", []) if s["instanceId"] in instances):
                cpu, memory = sample.get("cpuPercent", 0.0), int(sample.get("memoryBytes", 0)) / 1e6
                print(f"{sample['at']}  telemetry  {cpu:.1f} % of {sample['clusterId']}, {memory:.1f} MB", flush=True)
                samples -= 1
        if fulfilled and samples <= 0:
            return 0


async def main():
    options = arguments()
    folder = pathlib.Path(options.data_dir)
    endpoints = json.loads((folder / "endpoints.json").read_text())
    bus = await nats.connect(
        endpoints["nats"],
        nkeys_seed=endpoints["person_seed_file"],
        inbox_prefix="_INBOX_person",
        name="publish_intent.py",
    )
    messages = asyncio.Queue()
    await bus.subscribe("json.>", cb=messages.put)
    await bus.flush()

    # JSON is recognised by its first character. The answer to the request says that the command is on disk.
    subject = f"intent.ask.submit.v1.{options.owner}.{options.id}"
    answer = json.loads((await bus.request(subject, json.dumps({"intent": intent(options.workload)}).encode(), timeout=10)).data)
    if "error" in answer:
        print(f"not stored: {answer['error']}", file=sys.stderr)
        return 1
    print(f"intent {options.id} is on disk: {answer['stream']}:{answer['seq']}", flush=True)
    try:
        return await asyncio.wait_for(follow(messages, options.id, options.samples), options.timeout)
    except asyncio.TimeoutError:
        print(f"not FULFILLED with {options.samples} samples within {options.timeout:.0f} s", file=sys.stderr)
        return 1
    finally:
        await bus.close()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
