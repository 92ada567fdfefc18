"""Commands and facts on the bus, as messages of the contract.

A message's subject, and which of its fields are in it, are options of the message itself: nothing of it is repeated here.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Generic, TypeVar, cast, overload

import nats
import nats.errors
from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.message import DecodeError, Message

from continuum.mesh.v1 import options_pb2, refusal_pb2

from . import _contract  # noqa: F401  # Every message of the contract is known by its name.
from ._http import UnreachableError
from .local import Endpoints

# What a key in a subject is made of.
KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")
# Messages of one subscription that wait to be read, at most.
WAITING_MAX = 10_000
# How long `ask` waits before it looks among the stored facts for one that it has missed.
LOOK_BACK_SECONDS = 2.0

# The option that says what a message means on the bus.
_EVENT: Any = options_pb2.event

M = TypeVar("M", bound=Message)


class NotStoredError(Exception):
    """The bus did not store a command."""


class UnansweredError(Exception):
    """A command is stored, and nothing has answered it in time; it may still be carried out."""


class LostError(Exception):
    """Messages of a subscription were lost: they came faster than they were read, or the connection was interrupted."""


class RefusedError(Exception):
    """A command was refused: the class of the refusal (as `NOT_FOUND`), why, and what to do."""

    def __init__(self, code: str, reason: str, hint: str, event: Event[Message]):
        self.code, self.reason, self.hint, self.event = code, reason, hint, event
        super().__init__(f"{code}: {reason}" + (f"; {hint}" if hint else ""))


@dataclass(frozen=True)
class StoredAt:
    """Where a message is stored. `duplicate`: a message of this id was stored before."""

    stream: str
    sequence: int
    duplicate: bool


@dataclass(frozen=True)
class Event(Generic[M]):
    """A message as it came, with its envelope."""

    subject: str
    message: M
    # The id that its sender gave it, `<stream>:<sequence>` if none.
    id: str
    # Full name of the message.
    type: str
    # RFC 3339, as its sender wrote it; empty if it did not.
    time: str
    source: str
    # Id of the message that caused it; empty if nothing did.
    cause: str
    stream: str
    sequence: int


def _options(descriptor: Any) -> Any:
    options = descriptor.GetOptions().Extensions[_EVENT]
    if not options.subject:
        raise ValueError(f"{descriptor.full_name} is not published by itself: it has no subject")
    return options


def _filled(descriptor: Any, keys: Mapping[str, str]) -> str:
    template: str = _options(descriptor).subject
    names = re.findall(r"\{(\w+)\}", template)
    if unknown := sorted(set(keys) - set(names)):
        raise ValueError(f"{descriptor.name} has no key {', '.join(unknown)}; its keys are {', '.join(names)}")
    for name in names:
        value = keys.get(name, "*")
        if value != "*" and not KEY.fullmatch(value):
            raise ValueError(f"{descriptor.name}.{name}: {value!r} is not a key; use 1 to 64 of A-Z, a-z, 0-9, _ and -")
        template = template.replace("{" + name + "}", value)
    return template


def subject(message: Message) -> str:
    """The subject of a command or fact, by its key fields."""
    names = re.findall(r"\{(\w+)\}", _options(message.DESCRIPTOR).subject)
    keys = {name: getattr(message, name) for name in names}
    for name, value in keys.items():
        if value == "*" or not KEY.fullmatch(value):
            raise ValueError(
                f"{message.DESCRIPTOR.name}.{name}: {value!r} is not a key; use 1 to 64 of A-Z, a-z, 0-9, _ and -"
            )
    return _filled(message.DESCRIPTOR, keys)


def pattern(of: type[Message], **keys: str) -> str:
    """The subject to subscribe to for messages of a type; keys that are not given may be any."""
    return _filled(of.DESCRIPTOR, keys)


def _decoded(message: Any) -> Event[Message]:
    headers: Mapping[str, str] = message.headers or {}
    name = headers.get("ce-type", "")
    try:
        descriptor = descriptor_pool.Default().FindMessageTypeByName(name)
    except KeyError:
        raise DecodeError(f"{message.subject}: the type {name!r} is unknown here; is this client older than the mesh?") from None
    body = message_factory.GetMessageClass(descriptor)()
    if headers.get("ce-datacontenttype") == "application/json":
        json_format.Parse(message.data, body, ignore_unknown_fields=True)
    else:
        body.ParseFromString(message.data)
    stream, sequence = headers.get("Nats-Stream", ""), int(headers.get("Nats-Sequence") or 0)
    # `<stream>:<sequence>:<id>`; an id may hold colons.
    cause = headers.get("mesh-cause", "").split(":", 2)
    return Event(
        subject=headers.get("Nats-Subject") or message.subject,
        message=body,
        id=headers.get("ce-id") or f"{stream}:{sequence}",
        type=name,
        time=headers.get("ce-time", ""),
        source=headers.get("ce-source", ""),
        cause=cause[2] if len(cause) == 3 else "",
        stream=stream,
        sequence=sequence,
    )


class Bus:
    """A connection to the bus, as the identity `person`. An asynchronous context manager; it closes the connection."""

    def __init__(self, connection: Any, source: str):
        self._connection = connection
        self._source = source
        self._lost: set[int] = set()
        self._interruptions = 0
        self._denied = ""

    @classmethod
    async def connect(
        cls, server: str, seed_file: str | os.PathLike[str], name: str = "continuum-client", timeout: float = 10
    ) -> Bus:
        """Connects to a server (`nats://host:port`) with the key in a file, as `continuum up` and compose leave it."""
        if not os.access(seed_file, os.R_OK):
            raise FileNotFoundError(f"the key {os.fspath(seed_file)} does not exist, or may not be read by this user")
        bus = cls(None, name)
        connecting = nats.connect(
            server,
            nkeys_seed=os.fspath(seed_file),
            # The only inbox that the identity may subscribe to.
            inbox_prefix=b"_INBOX_person",
            name=name,
            error_cb=bus._failed,
            disconnected_cb=bus._interrupted,
            # For ever: a mesh comes back.
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.5,
        )
        try:
            bus._connection = await asyncio.wait_for(connecting, timeout)
        except (OSError, nats.errors.Error) as error:
            # That it could not authorise it is said by the server, before it closes the connection.
            reason = bus._denied or str(error) or f"no answer within {timeout:g} s"
            raise UnreachableError(f"the bus {server} cannot be used with the key {os.fspath(seed_file)}: {reason}") from error
        return bus

    @classmethod
    async def local(cls, data_dir: str | os.PathLike[str] | None = None, name: str = "continuum-client") -> Bus:
        """Connects to the mesh of `continuum up` on this machine."""
        endpoints = Endpoints.read(data_dir)
        return await cls.connect(endpoints.nats, endpoints.person_seed_file, name)

    async def _failed(self, error: Exception) -> None:
        if isinstance(error, nats.errors.SlowConsumerError):
            self._lost.add(error.sid)
        elif isinstance(error, nats.errors.Error) or not self._denied:
            # What the server says tells more than how the connection then breaks.
            self._denied = str(error)

    async def _interrupted(self) -> None:
        self._interruptions += 1

    async def close(self) -> None:
        """Closes the connection."""
        await self._connection.close()

    async def __aenter__(self) -> Bus:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def send(self, command: Message, id: str | None = None, timeout: float = 20) -> StoredAt:
        """Sends a command; returns once it is on disk. The same id again is stored once."""
        to = subject(command)
        body = command.SerializeToString()
        if len(body) > self._connection.max_payload:
            raise ValueError(f"{command.DESCRIPTOR.name} is {len(body)} bytes long; the bus takes {self._connection.max_payload}")
        id = id or str(uuid.uuid4())
        headers = {
            "ce-specversion": "1.0",
            "ce-id": id,
            "ce-type": command.DESCRIPTOR.full_name,
            "ce-source": self._source,
            "ce-time": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
            "ce-datacontenttype": "application/protobuf",
            "Nats-Msg-Id": id,
        }
        self._denied = ""
        try:
            answer = await self._connection.request(to, body, timeout=timeout, headers=headers)
        except nats.errors.NoRespondersError:
            raise NotStoredError(f"no stream of this bus stores {to}; is it provisioned for this release?") from None
        except (TimeoutError, nats.errors.TimeoutError):
            reason = self._denied or f"the bus has not confirmed it within {timeout:g} s"
            raise NotStoredError(f"{to} is not stored: {reason}") from None
        stored = json.loads(answer.data)
        if "error" in stored:
            raise NotStoredError(f"{to} is not stored: {stored['error'].get('description')}")
        return StoredAt(stored["stream"], int(stored["seq"]), bool(stored.get("duplicate")))

    async def ask(self, command: Message, id: str | None = None, timeout: float = 20) -> Event[Message]:
        """Sends a command and waits for the one fact that answers it. The same id again gives the same answer.

        Raises `RefusedError` if that fact is a refusal, and `UnansweredError` if there is none in time.
        """
        id = id or str(uuid.uuid4())
        area, _, _, _, *keys = subject(command).split(".")
        entity = ".".join([area, "*", "*", *keys])
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        subscription = await self._connection.subscribe(entity, pending_msgs_limit=WAITING_MAX)
        try:
            await self._connection.flush(timeout=max(1, int(timeout)))
            stored = await self.send(command, id, timeout)
            look_back = loop.time() + (0 if stored.duplicate else LOOK_BACK_SECONDS)
            while True:
                wait = min(look_back, deadline) - loop.time()
                try:
                    event = _decoded(await subscription.next_msg(timeout=max(0.01, wait)))
                    found = event if event.cause == id else None
                except (TimeoutError, nats.errors.TimeoutError):
                    found = await self._past(area.upper(), entity, id)
                    look_back = loop.time() + LOOK_BACK_SECONDS
                if found:
                    return _accepted(found)
                if loop.time() >= deadline:
                    raise UnansweredError(
                        f"{command.DESCRIPTOR.name} is stored as {stored.stream}:{stored.sequence}, and not answered within "
                        f"{timeout:g} s; ask again with id={id!r}, or see `continuum status`"
                    )
        finally:
            await subscription.unsubscribe()

    async def _past(self, stream: str, entity: str, cause: str) -> Event[Message] | None:
        """The stored fact of an entity that a message has caused."""
        sequence = 1
        while True:
            asked = json.dumps({"seq": sequence, "next_by_subj": entity}).encode()
            answer = await self._connection.request(f"BUS.API.DIRECT.GET.{stream}", asked, timeout=5)
            if not (answer.headers or {}).get("Nats-Sequence"):
                return None
            event = _decoded(answer)
            if event.cause == cause:
                return event
            sequence = event.sequence + 1

    @overload
    async def watch(self, of: type[M], /, **keys: str) -> Events[M]: ...
    @overload
    async def watch(self, of: str, /) -> Events[Message]: ...
    async def watch(self, of: Any, /, **keys: str) -> Events[Any]:
        """Messages of a type (`watch(IntentStateChanged, owner="local")`) or on a subject (`watch("intent.>")`), from the
        moment that this returns."""
        if isinstance(of, str):
            if keys:
                raise ValueError("keys belong to a type of message; write them into the subject")
            to = of
        else:
            to = pattern(of, **keys)
        self._denied = ""
        subscription = await self._connection.subscribe(to, pending_msgs_limit=WAITING_MAX)
        events: Events[Any] = Events(self, subscription, to)
        # The server answers after it has judged the subscription.
        await self._connection.flush(timeout=10)
        return events


class Events(Generic[M]):
    """What a subscription gives: `async for event in events`. `async with events` ends it.

    Raises `LostError` when messages were lost: read the state again, and go on; `PermissionError` when the subject may not be
    read.
    """

    def __init__(self, bus: Bus, subscription: Any, to: str):
        self._bus, self._subscription, self._to = bus, subscription, to
        self._interruptions = bus._interruptions

    def __aiter__(self) -> Events[M]:
        return self

    async def __anext__(self) -> Event[M]:
        while True:
            if self._subscription._id in self._bus._lost:
                raise LostError(f"messages on {self._to} came faster than they were read; more than {WAITING_MAX} waited")
            if self._bus._interruptions != self._interruptions:
                raise LostError(f"the connection was interrupted while {self._to} was read")
            if "permissions violation" in self._bus._denied.lower() and self._to.lower() in self._bus._denied.lower():
                raise PermissionError(f"{self._to} may not be read: {self._bus._denied}")
            try:
                return cast("Event[M]", _decoded(await self._subscription.next_msg(timeout=1)))
            except (TimeoutError, nats.errors.TimeoutError):
                continue

    async def close(self) -> None:
        """Ends the subscription."""
        self._bus._lost.discard(self._subscription._id)
        if not self._bus._connection.is_closed:
            await self._subscription.unsubscribe()

    async def __aenter__(self) -> Events[M]:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()


def _accepted(event: Event[Message]) -> Event[Message]:
    """An answer, unless it is a refusal."""
    if not _options(event.message.DESCRIPTOR).refusal:
        return event
    fact: Any = event.message
    code = refusal_pb2.RefusalCode.Name(fact.code).removeprefix("REFUSAL_CODE_")
    raise RefusedError(code, fact.reason, fact.hint, event)
