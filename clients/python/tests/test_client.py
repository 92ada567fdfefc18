"""The client against a mesh that runs: CONTINUUM_DATA_DIR names its data folder (infra/test/python.sh starts it)."""

import asyncio
import os
import pathlib
import tempfile
import threading
import time
import unittest
import uuid

from continuum.intent.v1.intent_pb2 import (
    FULFILLED,
    ExpectationObject,
    ExpectationTarget,
    Intent,
    IntentExpectation,
    IntentRefused,
    IntentStateChanged,
    IntentSubmitted,
    State,
    SubmitIntent,
    TerminateIntent,
)
from continuum.workload.v1.workload_pb2 import ProcessSpec, RegisterWorkload, Resources, WorkloadDocument
from continuum_client import (
    Bus,
    Endpoints,
    LostError,
    NoMeshError,
    ProblemError,
    RefusedError,
    Rest,
    UnreachableError,
    pattern,
    subject,
)
from continuum_client import bus as bus_module

LIMIT = 60


def intent() -> Intent:
    targets = [ExpectationTarget(target_name="cpuUsage", target_condition="IS_LESS_THAN", target_value_range="90")]
    about = ExpectationObject(object_type="NEMO_WORKLOAD", object_instance="sleeper@1.0.0")
    run = IntentExpectation(expectation_id="run", expectation_verb="DELIVER", expectation_object=about, expectation_targets=targets)
    return Intent(user_label="DeliverComputingWorkload", intent_expectations=[run], observation_period=2)


def submit(key: str) -> SubmitIntent:
    return SubmitIntent(owner="local", intent_id=key, intent=intent())


def new_id(name: str) -> str:
    return f"{name}-{uuid.uuid4().hex[:8]}"


class Subjects(unittest.TestCase):
    def test_a_subject_comes_from_the_contract(self) -> None:
        self.assertEqual(subject(submit("a")), "intent.ask.submit.v1.local.a")
        self.assertEqual(pattern(IntentStateChanged, intent_id="a"), "intent.state_changed.v1.*.a")

    def test_a_key_that_does_not_fit_is_refused_by_name(self) -> None:
        for key in ["", "a.b", "*", ">", "a b", "x" * 65]:
            with self.assertRaisesRegex(ValueError, r"SubmitIntent\.intent_id"):
                subject(submit(key))
        with self.assertRaisesRegex(ValueError, "no key cluster; its keys are owner, intent_id"):
            pattern(IntentStateChanged, cluster="a")

    def test_a_message_without_a_subject_is_refused(self) -> None:
        with self.assertRaisesRegex(ValueError, "continuum.intent.v1.State is not published by itself"):
            pattern(State)


class OnTheBus(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self) -> None:
        self.bus = await Bus.local()
        process = ProcessSpec(command="sleep", arguments=["100000"])
        resources = Resources(cpu_milli=10, memory_bytes=10_000_000)
        document = WorkloadDocument(
            name="sleeper", version="1.0.0", kind="process", process=process, resources=resources, replicas=1
        )
        await self.bus.ask(RegisterWorkload(owner="local", name="sleeper", document=document), id="register-sleeper")

    async def asyncTearDown(self) -> None:
        await self.bus.close()

    async def test_an_intent_is_submitted_and_followed_until_it_is_fulfilled(self) -> None:
        key = new_id("followed")
        events = await self.bus.watch(IntentStateChanged, owner="local", intent_id=key)

        async def follow() -> None:
            async for event in events:
                self.assertEqual(event.type, "continuum.intent.v1.IntentStateChanged")
                self.assertEqual((event.source, event.stream), ("intent-manager", "INTENT"))
                if event.message.to.fulfilment_status == FULFILLED:
                    return

        answer = await self.bus.ask(submit(key))
        self.assertIsInstance(answer.message, IntentSubmitted)
        self.assertEqual(answer.message.version, 1)
        self.assertEqual(answer.subject, f"intent.submitted.v1.local.{key}")
        await asyncio.wait_for(follow(), LIMIT)
        await events.close()
        await self.bus.ask(TerminateIntent(owner="local", intent_id=key))

    async def test_the_same_id_gives_the_same_answer_and_stores_nothing(self) -> None:
        key, id = new_id("twice"), str(uuid.uuid4())
        first = await self.bus.ask(submit(key), id=id)
        again = await self.bus.ask(submit(key), id=id)
        self.assertEqual((again.stream, again.sequence), (first.stream, first.sequence))
        self.assertTrue((await self.bus.send(submit(key), id=id)).duplicate)
        await self.bus.ask(TerminateIntent(owner="local", intent_id=key))

    async def test_a_refusal_has_its_class_its_reason_and_a_hint(self) -> None:
        with self.assertRaises(RefusedError) as refused:
            await self.bus.ask(TerminateIntent(owner="local", intent_id=new_id("unknown")))
        self.assertEqual(refused.exception.code, "NOT_FOUND")
        self.assertTrue(refused.exception.reason and refused.exception.hint)
        self.assertIsInstance(refused.exception.event.message, IntentRefused)

    async def test_a_message_that_is_too_long_is_not_sent(self) -> None:
        with self.assertRaisesRegex(ValueError, "bytes long; the bus takes"):
            await self.bus.send(SubmitIntent(owner="local", intent_id="long", intent=Intent(resource="x" * (9 << 20))))

    async def test_a_subject_that_may_not_be_read_is_an_error(self) -> None:
        with self.assertRaisesRegex(PermissionError, "w.intent.submitted.>"):
            await asyncio.wait_for(anext(await self.bus.watch("w.intent.submitted.>")), LIMIT)

    async def test_a_fact_that_people_may_not_publish_is_not_stored(self) -> None:
        with self.assertRaisesRegex(Exception, "not stored|no stream"):
            await self.bus.send(IntentSubmitted(owner="local", intent_id="forged", version=1), timeout=2)

    async def test_messages_that_are_not_read_in_time_are_reported_as_lost(self) -> None:
        limit, bus_module.WAITING_MAX = bus_module.WAITING_MAX, 1
        try:
            watched = await self.bus.watch("intent.>")
            keys = [new_id("many") for _ in range(3)]
            for key in keys:
                await self.bus.ask(submit(key))
            with self.assertRaisesRegex(LostError, "faster than they were read"):
                while True:
                    await asyncio.wait_for(anext(watched), LIMIT)
        finally:
            bus_module.WAITING_MAX = limit
        for key in keys:
            await self.bus.ask(TerminateIntent(owner="local", intent_id=key))

    async def test_a_bus_that_does_not_answer_or_does_not_know_the_key_is_named(self) -> None:
        endpoints = Endpoints.read()
        with self.assertRaisesRegex(UnreachableError, "127.0.0.1:1 "):
            await Bus.connect("nats://127.0.0.1:1", endpoints.person_seed_file, timeout=1)
        with tempfile.NamedTemporaryFile("w") as other:
            # The example of nkeys' documentation: a key that no mesh knows.
            other.write("SUAMLK2ZNL35WSMW37E7UD4VZ7ELPKW7DHC3BWBSD2GCZ7IUQQXZIORRBU")
            other.flush()
            with self.assertRaisesRegex(UnreachableError, "(?i)authorization violation"):
                await Bus.connect(endpoints.nats, other.name, timeout=5)

    async def test_a_key_that_is_missing_is_named(self) -> None:
        with self.assertRaisesRegex(FileNotFoundError, "/nowhere/person.nk"):
            await Bus.connect("nats://127.0.0.1:4222", "/nowhere/person.nk")


class OverRest(unittest.TestCase):
    def test_an_intent_is_submitted_followed_and_ended(self) -> None:
        rest, key = Rest.local(), new_id("rest")
        target = {"target_name": "cpuUsage", "target_condition": "IS_LESS_THAN", "target_value_range": "90"}
        about = {"object_type": "NEMO_WORKLOAD", "object_instance": "sleeper@1.0.0"}
        run = {"expectation_id": "run", "expectation_verb": "DELIVER", "expectation_object": about, "expectation_targets": [target]}
        body = {"id": key, "user_label": "DeliverComputingWorkload", "intent_expectations": [run], "observation_period": 2}
        submitted = rest.submit_intent(body, idempotency_key=key)
        self.assertEqual(submitted["id"], key)
        for event in rest.watch_intent(key):
            if isinstance(event.data, dict) and event.data.get("fulfilment_status") == "FULFILLED":
                break
        self.assertEqual(rest.get_intent(key)["fulfilment_status"], "FULFILLED")
        self.assertTrue(rest.why_intent(key))
        self.assertIn(key, [one["id"] for one in rest.list_intents(intent_id=[key], page_size=10)])
        rest.end_intent(key)

    def test_a_wrong_body_is_refused_with_each_field(self) -> None:
        with self.assertRaises(ProblemError) as problem:
            Rest.local().submit_intent({"user_label": "DeliverComputingWorkload", "priority": "high"})
        self.assertIn(problem.exception.status, (400, 422))
        self.assertTrue(problem.exception.errors)
        self.assertIn("priority", str(problem.exception))

    def test_an_unknown_intent_and_a_missing_token_are_problems(self) -> None:
        rest = Rest.local()
        with self.assertRaises(ProblemError) as problem:
            rest.get_intent(new_id("unknown"))
        self.assertEqual(problem.exception.status, 404)
        with self.assertRaises(ProblemError) as problem:
            Rest(rest.url).list_intents()
        self.assertEqual(problem.exception.status, 401)

    def test_an_id_that_would_change_the_address_is_not_sent(self) -> None:
        rest = Rest("http://127.0.0.1:1")
        for key in ["", "..", "a/b", "a?b", "a\nb"]:
            with self.assertRaisesRegex(ValueError, "id: "):
                rest.get_intent(key)

    def test_a_gateway_that_does_not_answer_is_named(self) -> None:
        with self.assertRaisesRegex(UnreachableError, "127.0.0.1:1"):
            Rest("http://127.0.0.1:1").list_intents()
        with self.assertRaisesRegex(ValueError, "not the address of a gateway"):
            Rest("127.0.0.1:8000")

    def test_what_is_not_a_gateway_is_refused(self) -> None:
        import http.server

        class Page(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"<html>")

            def log_message(self, *_: object) -> None:
                pass

        with http.server.HTTPServer(("127.0.0.1", 0), Page) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                with self.assertRaisesRegex(UnreachableError, "not JSON"):
                    Rest(f"http://127.0.0.1:{server.server_port}").list_intents()
            finally:
                server.shutdown()
                thread.join()

    def test_a_stream_without_events_ends(self) -> None:
        rest = Rest.local(timeout=1)
        begun = time.monotonic()
        with self.assertRaises(UnreachableError):
            for _ in rest.stream_anomalies():
                if time.monotonic() - begun > LIMIT:
                    break
        self.assertLess(time.monotonic() - begun, LIMIT)


class Found(unittest.TestCase):
    def test_a_folder_without_a_mesh_says_how_to_start_one(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            with self.assertRaisesRegex(NoMeshError, "continuum up"):
                Rest.local(folder)
            pathlib.Path(folder, "endpoints.json").write_text("{}")
            with self.assertRaisesRegex(NoMeshError, "not what `continuum up` writes"):
                asyncio.run(Bus.local(folder))


if __name__ == "__main__":
    if "CONTINUUM_DATA_DIR" not in os.environ:
        raise SystemExit("CONTINUUM_DATA_DIR names no mesh; run infra/test/python.sh")
    unittest.main()
