"""Requests to the gateway: what the generated calls stand on."""

from __future__ import annotations

import json
import re
import secrets
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from typing import Any

# Bytes of an answer that are read at most.
ANSWER_MAX = 64 << 20
# Characters of one line of a stream of events.
LINE_MAX = 4 << 20
# A part of a path: what every id of a mesh is made of (`name@version`, `1.0.0`, account names).
SEGMENT = re.compile(r"[^/?#\x00-\x1f\x7f]+")


class UnreachableError(Exception):
    """The gateway, or the bus, did not answer."""


class ProblemError(Exception):
    """The gateway refused: its problem document (RFC 9457)."""

    def __init__(self, status: int, document: Mapping[str, Any]):
        self.status = status
        self.document = document
        self.title = str(document.get("title", ""))
        self.detail = str(document.get("detail", ""))
        self.hint = str(document.get("hint", ""))
        # Each a field's path, what is wrong with it, and what would be right.
        self.errors: list[Mapping[str, str]] = list(document.get("errors") or [])
        faults = "".join(f"; {fault.get('path')}: {fault.get('reason')} ({fault.get('hint')})" for fault in self.errors)
        hint = f"; {self.hint}" if self.hint and not self.errors else ""
        super().__init__(f"{status} {self.title}: {self.detail}{faults}{hint}")


@dataclass(frozen=True)
class ServerEvent:
    """One event of a stream: its name, its id (to go on after it) and its data."""

    event: str
    id: str
    data: Any


def segment(name: str, value: str) -> str:
    """A value as a part of a path."""
    if not isinstance(value, str) or not SEGMENT.fullmatch(value) or value in (".", ".."):
        raise ValueError(f"{name}: {value!r} cannot be part of an address; give an id without slashes and control characters")
    return urllib.parse.quote(value, safe="@")


def _query(fields: Mapping[str, Any]) -> str:
    def text(value: Any) -> str:
        return str(value).lower() if isinstance(value, bool) else str(value)

    pairs = []
    for name, value in fields.items():
        for one in value if isinstance(value, (list, tuple)) else [value]:
            if one is not None:
                pairs.append((name, text(one)))
    return "?" + urllib.parse.urlencode(pairs) if pairs else ""


class Transport:
    """Sends requests to one gateway, with one token."""

    def __init__(self, url: str, token: str | None = None, timeout: float = 30):
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(f"url: {url!r} is not the address of a gateway; give one like http://127.0.0.1:8000")
        self.url = url.rstrip("/")
        self.token = token
        self.timeout = timeout
        # The tag of the last answer, for `if_match`; empty if it had none.
        self.etag = ""

    def _open(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str | None] | None = None,
        body: Any = None,
        form: Mapping[str, str | None] | None = None,
        file: bytes | None = None,
    ) -> HTTPResponse:
        request = urllib.request.Request(self.url + path + _query(query or {}), method=method)
        for name, value in (headers or {}).items():
            if value is not None:
                request.add_header(name, value)
        if self.token:
            request.add_header("Authorization", f"Bearer {self.token}")
        if body is not None:
            request.add_header("Content-Type", "application/json")
            request.data = json.dumps(body, allow_nan=False).encode()
        elif file is not None:
            boundary = secrets.token_hex(16)
            request.add_header("Content-Type", f"multipart/form-data; boundary={boundary}")
            request.data = _multipart(boundary, form or {}, file)
        elif method in ("POST", "PUT", "PATCH"):
            request.data = b""
        try:
            answer: HTTPResponse = urllib.request.urlopen(request, timeout=self.timeout)
        except urllib.error.HTTPError as error:
            raise _problem(error) from None
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise UnreachableError(f"{method} {self.url}{path}: {reason}; is a gateway there?") from error
        self.etag = answer.headers.get("ETag", "")
        return answer

    def _read(self, answer: HTTPResponse) -> bytes:
        try:
            with answer:
                body = answer.read(ANSWER_MAX + 1)
        except (OSError, HTTPException) as error:
            raise UnreachableError(f"the answer of {self.url} broke off: {error}") from error
        if len(body) > ANSWER_MAX:
            raise UnreachableError(f"the answer of {self.url} is longer than {ANSWER_MAX >> 20} MiB; ask for a smaller page")
        return body

    def _json(self, method: str, path: str, **sent: Any) -> Any:
        body = self._read(self._open(method, path, **sent))
        try:
            return json.loads(body)
        except ValueError as error:
            raise UnreachableError(f"the answer of {self.url}{path} is not JSON ({error}); is a gateway there?") from error

    def _text(self, method: str, path: str, **sent: Any) -> str:
        return self._read(self._open(method, path, **sent)).decode(errors="replace")

    def _none(self, method: str, path: str, **sent: Any) -> None:
        self._read(self._open(method, path, **sent))

    def _stream(self, method: str, path: str, **sent: Any) -> Iterator[ServerEvent]:
        answer = self._open(method, path, **sent)
        try:
            with answer:
                event, last, data = "message", "", []
                while line := answer.readline(LINE_MAX):
                    text = line.decode(errors="replace").rstrip("\r\n")
                    name, _, value = text.partition(":")
                    value = value.removeprefix(" ")
                    if name == "event":
                        event = value
                    elif name == "id":
                        last = value
                    elif name == "data":
                        data.append(value)
                    elif not text:
                        if data:
                            yield ServerEvent(event, last, _data("\n".join(data)))
                        event, data = "message", []
        except (OSError, HTTPException) as error:
            raise UnreachableError(f"the stream of {self.url}{path} broke off: {error}") from error


def _data(text: str) -> Any:
    """Data of an event: JSON, else text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _problem(error: urllib.error.HTTPError) -> ProblemError:
    with error:
        body = error.read(1 << 20)
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        document = {"title": error.reason, "detail": body[:200].decode(errors="replace")}
    return ProblemError(error.code, document)


def _multipart(boundary: str, fields: Mapping[str, str | None], file: bytes) -> bytes:
    parts = []
    for name, value in fields.items():
        if value is not None:
            parts.append(f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode())
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="file"\r\nContent-Type: application/octet-stream\r\n\r\n'
    return b"".join(parts) + head.encode() + file + f"\r\n--{boundary}--\r\n".encode()
