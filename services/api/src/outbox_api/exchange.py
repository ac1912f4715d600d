"""One HTTP request and its answer, read and written without the framework's own parsing: the hot path needs no more."""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import Any

from litestar.types import Receive, Scope, Send

from outbox_api.answers import Answer
from outbox_domain import messages
from outbox_domain.errors import OutboxError

DISCARD_BYTES_MAX = 16 << 20
DISCARD_SECONDS_MAX = 5.0
"""How much of a body that is refused is still read, and for how long."""

PHASES = ("reserve", "queue", "provider", "settle")


class Disconnected(Exception):
    """The caller went away before the request was read."""


class Timing:
    """How long the four parts of a call took, in seconds (`Server-Timing`, W3C)."""

    def __init__(self) -> None:
        """Everything took no time yet."""
        self.began = time.perf_counter()
        self.seconds = dict.fromkeys(PHASES, 0.0)

    def since_began(self) -> float:
        """Seconds since the request arrived."""
        return time.perf_counter() - self.began

    def header(self) -> str:
        """The value of the header; durations in milliseconds."""
        return ", ".join(f"{name};dur={max(seconds, 0.0) * 1000:.2f}" for name, seconds in self.seconds.items())


class Exchange:
    """A request being answered."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        """Reads the headers; the body is read when it is asked for."""
        self.method: str = str(scope.get("method", "GET"))
        self.path: str = str(scope["path"])
        self.query: bytes = bytes(scope.get("query_string", b""))
        self.headers: dict[str, str] = {}
        self.repeated: set[str] = set()
        self.timing = Timing()
        self._receive = receive
        self._read_whole = False
        for raw_name, raw_value in scope["headers"]:
            name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
            if name in self.headers:
                self.repeated.add(name)
                # RFC 9110 section 5.2: several field lines are one list.
                value = f"{self.headers[name]}, {value}"
            self.headers[name] = value

    def said_once(self, *names: str) -> None:
        """Refuse a request in which one of these headers stands twice: joined they would be a value that nobody meant.

        Args:
            names: of headers, in lower case.

        Raises:
            OutboxError: `invalid-input`.
        """
        for name in names:
            if name in self.repeated:
                expected = "this header once"
                message = messages.invalid_input(name, expected)
                raise OutboxError("invalid-input", f"{name}: expected {expected}.", message=message, path=name)

    async def body(self, bytes_max: int, *, seconds_max: float) -> bytes:
        """The body.

        Args:
            bytes_max: how many bytes are read at most.
            seconds_max: how long it may take to arrive; a caller who trickles it holds a connection that others need.

        Raises:
            OutboxError: `too-large`; `invalid-request` where it did not arrive in time; `unsupported-media-type` where it is not
                said to be plain JSON.
            Disconnected: the caller went away.
        """
        self._expect_json()
        length = self.headers.get("content-length", "")
        if length.isascii() and length.isdigit() and int(length) > bytes_max:
            raise too_large(bytes_max)
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(seconds_max):
                while not self._read_whole:
                    part = await self._part()
                    size += len(part)
                    if size > bytes_max:
                        raise too_large(bytes_max)
                    parts.append(part)
        except TimeoutError:
            raise OutboxError("invalid-request", f"The body did not arrive within {seconds_max:g} s.", path="$") from None
        return b"".join(parts)

    async def discard(self) -> None:
        """Read what is left of the body and forget it, so that a caller who is still writing sees the answer and no reset.

        Raises:
            Disconnected: the caller went away.
        """
        size = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DISCARD_SECONDS_MAX):
                while not self._read_whole and size <= DISCARD_BYTES_MAX:
                    size += len(await self._part())

    async def _part(self) -> bytes:
        message: Any = await self._receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        self._read_whole = not message.get("more_body", False)
        return bytes(message.get("body", b""))

    def _expect_json(self) -> None:
        media_type = self.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if media_type != "application/json" and not (media_type.startswith("application/") and media_type.endswith("+json")):
            raise _unsupported("Content-Type", "application/json")
        if self.headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise _unsupported("Content-Encoding", "none")


def too_large(bytes_max: int, *, path: str = "$") -> OutboxError:
    """The body, or a part of it, has more bytes than are taken."""
    expected = f"at most {bytes_max} bytes"
    return OutboxError("too-large", f"{path}: expected {expected}.", message=messages.invalid_input(path, expected), path=path)


def method_not_allowed(*methods: str) -> OutboxError:
    """The address answers to other methods only."""
    return OutboxError("method-not-allowed", f"This address answers to {', '.join(methods)} only.")


def _unsupported(header: str, expected: str) -> OutboxError:
    return OutboxError(
        "unsupported-media-type",
        f"{header}: expected {expected}.",
        message=messages.invalid_input(header, expected),
        path=header,
    )


async def respond(send: Send, answer: Answer, headers: Sequence[tuple[str, str]] = ()) -> None:
    """Send an answer."""
    raw = [
        (b"content-type", answer.content_type.encode()),
        (b"content-length", str(len(answer.body)).encode()),
        *((name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in (*answer.headers, *headers)),
    ]
    await send({"type": "http.response.start", "status": answer.status, "headers": raw})
    await send({"type": "http.response.body", "body": answer.body, "more_body": False})
