"""Carries out conversations over HTTP: the one place of the client that opens sockets for calls.

One request on the wire per request asked: no redirects, no retries below what the conversation decides.
"""

from __future__ import annotations

import asyncio
import functools
import os
import ssl
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import httpx2

from agent_outbox.carry import Carrying, Perform, Performed
from agent_outbox.conversation import Answer, Conversation, NoAnswer, Pause, Request

T = TypeVar("T")

CONNECT_SECONDS_MAX = 5.0
CONNECTIONS_MAX = 1_000
CONNECTIONS_KEPT_MAX = 100
ANSWER_BYTES_MAX = 32 << 20

NOTHING_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.UnsupportedProtocol)
"""Errors that come before the first byte of a request has left."""

_LIMITS = httpx2.Limits(max_connections=CONNECTIONS_MAX, max_keepalive_connections=CONNECTIONS_KEPT_MAX)


def _user_agent() -> str:
    try:
        return f"agent-outbox/{version('agent-outbox')}"
    except PackageNotFoundError:  # The sources are used without being installed.
        return "agent-outbox"


@functools.lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    """The certificates to trust, read once: that takes longer than a call does."""
    return httpx2.create_ssl_context()


class SyncTransport:
    """Connections to one gateway, for threads."""

    def __init__(self, url: str) -> None:
        """
        Args:
            url: of the gateway, without a slash at its end.
        """
        self._url = url
        self._agent = _user_agent()
        self._http: tuple[int, httpx2.Client] | None = self._open()

    def _open(self) -> tuple[int, httpx2.Client]:
        return os.getpid(), httpx2.Client(verify=_tls(), limits=_LIMITS, headers={"User-Agent": self._agent})

    def _client(self) -> httpx2.Client:
        opened = self._http
        if opened is None or opened[0] != os.getpid():
            # Connections of the parent process: two processes that read from one of them take each other's answers.
            opened = self._http = self._open()
        return opened[1]

    def hold(self, conversation: Conversation[T] | Carrying[T], perform: Callable[[Perform], Performed] | None = None) -> T:
        """Carry out a conversation.

        Args:
            conversation: what is asked, and when.
            perform: calls the caller's own code, where it has a part.

        Returns:
            What it returns.

        Raises:
            OutboxError: as it does.
        """
        reply: Any = None
        try:
            while True:
                try:
                    step = conversation.send(reply)
                except StopIteration as stop:
                    result: T = stop.value
                    return result
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                    reply = None
                elif isinstance(step, Perform):
                    assert perform is not None
                    reply = perform(step)
                else:
                    reply = self._ask(step)
        finally:
            conversation.close()

    def _ask(self, request: Request) -> Answer | NoAnswer:
        until = time.monotonic() + request.seconds
        try:
            with self._client().stream(
                request.method,
                self._url + request.path,
                params=dict(request.query) or None,
                headers=dict(request.headers),
                content=request.body,
                extensions={"timeout": _TimeLeft(until)},
            ) as response:
                body = bytearray()
                for part in response.iter_bytes():
                    body += part
                    if (refused := _too_much(body, until)) is not None:
                        return refused
                return _answer(response, body)
        except (httpx2.RequestError, RuntimeError) as error:  # RuntimeError: another thread has closed the connections.
            return _no_answer(error)

    def close(self) -> None:
        """Closes the connections; a later request opens new ones."""
        opened, self._http = self._http, None
        if opened is not None and opened[0] == os.getpid():
            opened[1].close()


class AsyncTransport:
    """Connections to one gateway, for the tasks of asyncio; each event loop has its own."""

    def __init__(self, url: str) -> None:
        """
        Args:
            url: of the gateway, without a slash at its end.
        """
        self._url = url
        self._agent = _user_agent()
        self._http: WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[int, httpx2.AsyncClient]] = WeakKeyDictionary()

    def _client(self) -> httpx2.AsyncClient:
        loop = asyncio.get_running_loop()
        found = self._http.get(loop)
        if found is None or found[0] != os.getpid():
            found = (os.getpid(), httpx2.AsyncClient(verify=_tls(), limits=_LIMITS, headers={"User-Agent": self._agent}))
            self._http[loop] = found
        return found[1]

    async def hold(
        self, conversation: Conversation[T] | Carrying[T], perform: Callable[[Perform], Awaitable[Performed]] | None = None
    ) -> T:
        """Carry out a conversation.

        Args:
            conversation: what is asked, and when.
            perform: calls the caller's own code, where it has a part.

        Returns:
            What it returns.

        Raises:
            OutboxError: as it does.
            asyncio.CancelledError: whoever awaits it was cancelled. What was sent goes on at the gateway; the same call joins it.
        """
        reply: Any = None
        try:
            while True:
                try:
                    step = conversation.send(reply)
                except StopIteration as stop:
                    result: T = stop.value
                    return result
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                    reply = None
                elif isinstance(step, Perform):
                    assert perform is not None
                    reply = await perform(step)
                else:
                    reply = await self._ask(step)
        finally:
            conversation.close()

    async def _ask(self, request: Request) -> Answer | NoAnswer:
        until = time.monotonic() + request.seconds
        try:
            async with self._client().stream(
                request.method,
                self._url + request.path,
                params=dict(request.query) or None,
                headers=dict(request.headers),
                content=request.body,
                extensions={"timeout": _TimeLeft(until)},
            ) as response:
                body = bytearray()
                async for part in response.aiter_bytes():
                    body += part
                    if (refused := _too_much(body, until)) is not None:
                        return refused
                return _answer(response, body)
        except httpx2.RequestError as error:
            return _no_answer(error)

    async def aclose(self) -> None:
        """Closes the connections of the running event loop; a later request opens new ones."""
        found = self._http.pop(asyncio.get_running_loop(), None)
        if found is not None and found[0] == os.getpid():
            await found[1].aclose()


class _TimeLeft(dict[str, float]):
    """The time-outs of one request, asked for at each of its steps, so that all steps together keep to one time."""

    def __init__(self, until: float) -> None:
        super().__init__()
        self._until = until

    def get(self, step: str, default: Any = None) -> float:
        """Seconds that a step (`pool`, `connect`, `write`, `read`) may take now."""
        left = max(self._until - time.monotonic(), 0.001)
        return min(left, CONNECT_SECONDS_MAX) if step == "connect" else left


def _too_much(body: bytearray, until: float) -> NoAnswer | None:
    if len(body) > ANSWER_BYTES_MAX:
        return NoAnswer(reason=f"more than {ANSWER_BYTES_MAX} bytes came", possibly_sent=True)
    if time.monotonic() > until:
        return NoAnswer(reason="its bytes came too slowly", possibly_sent=True)
    return None


def _answer(response: httpx2.Response, body: bytearray) -> Answer:
    return Answer(
        status=response.status_code,
        headers={name.lower(): value for name, value in response.headers.items()},
        body=bytes(body),
    )


def _no_answer(error: Exception) -> NoAnswer:
    told = str(error)
    reason = f"{type(error).__name__}: {told}" if told else type(error).__name__
    return NoAnswer(reason=reason[:500], possibly_sent=not isinstance(error, NOTHING_SENT))
