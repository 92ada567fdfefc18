#!/usr/bin/env python3
"""Publishes an intent on the bus, follows it to FULFILLED, and prints live telemetry.

    make wheel && pip install target/packages/continuum_client-*.whl
    continuum up                                  # in another terminal
    continuum workload push examples/spinner.workload.yaml
    python examples/publish_intent.py             # --data-dir, --id, --workload NAME@VERSION, --samples N

The messages are those of the contract (`proto/`), generated. Any NATS client in any language does the same: one message on
`intent.ask.submit.v1.<owner>.<id>`, as protobuf or JSON, and a subscription of `json.>`.
Exit code 0: FULFILLED, and the telemetry was seen. 1: it failed, or was refused; the reason is printed.
"""

import argparse
import asyncio
import sys
import uuid

from continuum.intent.v1.intent_pb2 import (
    FULFILLED,
    FULFILMENTFAILED,
    ExpectationObject,
    ExpectationTarget,
    FulfilmentStatus,
    Intent,
    IntentExpectation,
    IntentRefused,
    IntentRejected,
    IntentStateChanged,
    NotFulfilledState,
    SubmitIntent,
)
from continuum.telemetry.v1.telemetry_pb2 import Packed
from continuum_client import Bus, LostError, NoMeshError, NotStoredError, UnreachableError


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", help="data folder of a running `continuum up`; .continuum when absent")
    parser.add_argument("--owner", default="local")
    parser.add_argument("--id", default=f"python-{uuid.uuid4().hex[:8]}", help="id of the intent")
    parser.add_argument("--workload", default="spinner@1.0.0", help="a registered workload document")
    parser.add_argument("--samples", type=int, default=3, help="samples to print once it is FULFILLED")
    parser.add_argument("--timeout", type=float, default=60, help="seconds")
    return parser.parse_args()


def intent(workload):
    """A DeliverComputingWorkload intent after 3GPP TS 28.312: below 90 % of its cluster's CPU and 500 MB."""

    def target(name, bound):
        return ExpectationTarget(target_name=name, target_condition="IS_LESS_THAN", target_value_range=bound)

    run = IntentExpectation(
        expectation_id="run",
        expectation_verb="DELIVER",
        expectation_object=ExpectationObject(object_type="NEMO_WORKLOAD", object_instance=workload),
        expectation_targets=[target("cpuUsage", "90"), target("ramUsage", "500")],
    )
    return Intent(user_label="DeliverComputingWorkload", intent_expectations=[run], observation_period=2)


async def follow(events):
    """Prints what happens to the intent; gives its instances once it is FULFILLED, `None` if it failed."""
    instances = set()
    async for event in events:
        if isinstance(event.message, IntentRefused):
            print(f"refused: {event.message.reason}; {event.message.hint}", file=sys.stderr)
            return None
        if isinstance(event.message, IntentRejected):
            state = event.message.state
        elif isinstance(event.message, IntentStateChanged):
            state = event.message.to
            instances |= {instance.instance_id for instance in event.message.instances}
        else:
            continue
        status, stage = FulfilmentStatus.Name(state.fulfilment_status), NotFulfilledState.Name(state.not_fulfilled_state)
        print(f"{event.time}  {status}  {stage}  {state.reason}", flush=True)
        if state.not_fulfilled_state == FULFILMENTFAILED:
            print(f"failed: {state.reason}; {state.hint}", file=sys.stderr)
            return None
        if state.fulfilment_status == FULFILLED:
            print("FULFILLED", flush=True)
            return instances


async def measure(events, instances, samples):
    """Prints samples of these instances. One message holds the samples of a whole cluster."""
    async for event in events:
        for sample in event.message.samples:
            if sample.instance_id in instances:
                at, memory = sample.at.ToJsonString(), sample.memory_bytes / 1e6
                print(f"{at}  telemetry  {sample.cpu_percent:.1f} % of {sample.cluster_id}, {memory:.1f} MB", flush=True)
                samples -= 1
        if samples <= 0:
            return


async def run(options):
    async with await Bus.local(options.data_dir, name="publish_intent.py") as bus:
        # It watches before it asks, so that it misses nothing.
        events = await bus.watch(f"intent.*.v1.{options.owner}.{options.id}")
        command = SubmitIntent(owner=options.owner, intent_id=options.id, intent=intent(options.workload))
        stored = await bus.send(command)
        print(f"intent {options.id} is on disk: {stored.stream}:{stored.sequence}", flush=True)
        instances = await follow(events)
        if instances is None:
            return 1
        await measure(await bus.watch(Packed), instances, options.samples)
        return 0


async def main():
    options = arguments()
    try:
        return await asyncio.wait_for(run(options), options.timeout)
    except TimeoutError:
        print(f"not FULFILLED with {options.samples} samples within {options.timeout:.0f} s", file=sys.stderr)
    except (LostError, NoMeshError, NotStoredError, UnreachableError, ValueError) as error:
        print(error, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
