"""The one way out: the only sockets to providers are opened here.

One attempt on the wire per call, never a hidden retry, no redirects, no proxies from the environment. Every byte of a
request passes through `_Watched.write`, so "nothing was sent" is a fact that is seen and not an error type that is
trusted: an attempt is unsent exactly when no byte of its request was handed over. Everything else without a complete
answer is unknown. Source: design sections 4 (`send_by`, late writes) and 13 (transport).
"""

import asyncio
import contextlib
import ipaddress
import socket
import ssl
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal
from urllib.parse import urlsplit

import httpcore2
import truststore

from outbox_providers.wire import WireAnswer, WireRequest
from outbox_runtime.postgres import outside_transaction_only

ANSWER_BYTES_MAX = 1 << 20
KEEP_ALIVE_SECONDS = 15.0
CONNECTIONS_MAX = 256
POOLS_MAX = 256
LOOK_UPS_MAX = 16

USER_AGENT = "agent-outbox"

# Notations whose last four bytes are an IPv4 address: RFC 6052, RFC 8215, RFC 4291 section 2.5.5.1, RFC 2765 section 2.1.
_NAT64_OF_A_SITE = ipaddress.IPv6Network("64:ff9b:1::/48")
_EMBEDDING = (
    ipaddress.IPv6Network("64:ff9b::/96"),
    _NAT64_OF_A_SITE,
    ipaddress.IPv6Network("::/96"),
    ipaddress.IPv6Network("::ffff:0:0:0/96"),
)
_LINGER_ZERO = (1).to_bytes(4, "little") + (0).to_bytes(4, "little")


@dataclass(frozen=True, kw_only=True)
class Egress:
    """Where a connection may go.

    Attributes:
        base_url: its origin is the only one that is talked to.
        allow_private: whether the host may have a private or loopback address.
    """

    base_url: str
    allow_private: bool


@dataclass(frozen=True, kw_only=True)
class Sent:
    """What became of one sending.

    Attributes:
        answer: the complete answer; None without one.
        fault: without an answer: `unsent` when no byte of the request left, else `unknown`.
        reason: in our own words.
        late_write: the last byte left (or may have) after `send_by` and the pause allowance.
        provider_seconds: from the first byte of the request to the last of the answer; 0 when unsent.
    """

    answer: WireAnswer | None
    fault: Literal["unsent", "unknown"] | None
    reason: str
    late_write: bool
    provider_seconds: float


class TooLate(Exception):
    """`send_by` had passed before all bytes of the request had left."""


class AddressRefused(Exception):
    """The host has no address that the connection may talk to."""


class AnswerOfAnother(Exception):
    """An answer was there before anything was read for this request: it answers something else."""


class AnswerTooLarge(Exception):
    """The answer is larger than is read."""


@dataclass
class _Sending:
    """One request on its way: what the streams are told of it and what they saw."""

    send_by: float
    deadline_seconds: float
    body_follows: bool = False
    head: bytes = b""
    stream: "_Watched | None" = None
    first_write_at: float | None = None
    last_write_at: float | None = None


_sending: ContextVar[_Sending] = ContextVar("sending")


class _Watched(httpcore2.AsyncNetworkStream):
    """A connection to a provider that looks at the clock before every write of request bytes."""

    def __init__(self, inner: httpcore2.AsyncNetworkStream) -> None:
        self._inner = inner
        self.exchanging = False
        self.heard = False

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Reads as the connection below does."""
        self.heard = True
        return await self._inner.read(max_bytes, timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Writes, unless `send_by` has passed; gives up at `send_by`."""
        if not buffer:
            return
        sending = _sending.get()
        if sending.body_follows:
            # The head leaves together with the body: one segment and one TLS record instead of two.
            sending.body_follows, sending.head = False, buffer
            return
        buffer, sending.head = sending.head + buffer, b""
        sending.stream = self
        raw = self._inner.get_extra_info("socket")
        now = time.monotonic()
        if sending.first_write_at is None:
            self.heard = False
            if raw is not None:
                # What the kernel still holds at `send_by`, because the provider does not take it, must not arrive later, not
                # even when this process is gone: the kernel resets the connection itself (design 4). It costs an answer that
                # is awaited nothing, for then no byte of ours is unacknowledged.
                left = min(sending.send_by - now, sending.deadline_seconds)
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, int(left * 1000)))
        if now >= sending.send_by:
            raise TooLate
        self.exchanging = True
        sending.first_write_at = sending.first_write_at or now
        try:
            await self._inner.write(buffer, sending.send_by - now)
        finally:
            sending.last_write_at = time.monotonic()

    async def aclose(self) -> None:
        """Closes; in the middle of an exchange with a reset, so that no buffered byte arrives any more."""
        if self.exchanging:
            raw = self._inner.get_extra_info("socket")
            if raw is not None:
                # uvloop's sockets say ValueError once the connection is lost.
                with contextlib.suppress(OSError, ValueError):
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
        await self._inner.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.AsyncNetworkStream:
        """Wraps the connection in TLS; bytes of the handshake are no bytes of the request."""
        return _Watched(await self._inner.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        """What the connection below knows."""
        return self._inner.get_extra_info(info)


class _Backend(httpcore2.AsyncNetworkBackend):
    """Opens connections to addresses that it has looked at itself, so that no later look-up can lead elsewhere."""

    def __init__(self, allow_private: bool, look_up: ThreadPoolExecutor) -> None:
        self._allow_private = allow_private
        self._look_up = look_up
        self._inner = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Connects to the first address of the host that answers, if the connection may talk to it."""
        async with asyncio.timeout(timeout):
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(self._look_up, partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM))
            addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
            allowed = [address for address in addresses if may_talk_to(address, allow_private=self._allow_private)]
            if not allowed:
                raise AddressRefused
            for address in allowed[:-1]:
                with contextlib.suppress(httpcore2.ConnectError):
                    return _Watched(await self._inner.connect_tcp(address, port, timeout, local_address, socket_options))
            return _Watched(await self._inner.connect_tcp(allowed[-1], port, timeout, local_address, socket_options))

    async def sleep(self, seconds: float) -> None:
        """Waits."""
        await asyncio.sleep(seconds)


def may_talk_to(address: str, *, allow_private: bool) -> bool:
    """Whether a provider may live at an address.

    Link-local addresses (the metadata services of clouds live there), multicast and the unspecified address are never
    talked to; private and loopback ones only where the connection allows them.

    Args:
        address: an IPv4 or IPv6 address, with or without a zone.
        allow_private: the connection's own setting.
    """
    found: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        # `ipaddress` counts these two as global; they belong to a site (RFC 3879, RFC 8215).
        allow_public = allow_private or not (found.is_site_local or found in _NAT64_OF_A_SITE)
        last_bytes = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF) if any(found in network for network in _EMBEDDING) else None
        found = found.ipv4_mapped or last_bytes or found.sixtofour or found
        if not allow_public:
            return False
    if found.is_link_local or found.is_multicast or found.is_unspecified:
        return False
    return allow_private or found.is_global


class Transport:
    """Sends requests to providers, each once."""

    def __init__(
        self,
        *,
        ssl_context: ssl.SSLContext | None = None,
        answer_bytes_max: int = ANSWER_BYTES_MAX,
        connections_max: int = CONNECTIONS_MAX,
    ) -> None:
        """
        Args:
            ssl_context: what certificates are trusted; the system's own when left out.
            answer_bytes_max: the largest answer that is read; a larger one is unknown.
            connections_max: connections per origin.
        """
        self._ssl_context = ssl_context or truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._answer_bytes_max = answer_bytes_max
        self._connections_max = connections_max
        self._pools: dict[tuple[str, bool], httpcore2.AsyncConnectionPool] = {}
        # Of our own, so that names which are slow to look up hold up nothing else of the process.
        self._look_up = ThreadPoolExecutor(LOOK_UPS_MAX, thread_name_prefix="look-up")

    async def aclose(self) -> None:
        """Closes every connection."""
        pools, self._pools = list(self._pools.values()), {}
        for pool in pools:
            await pool.aclose()
        self._look_up.shutdown(wait=False, cancel_futures=True)

    async def send(
        self,
        wire: WireRequest,
        *,
        connection: Egress,
        deadline_seconds: float,
        send_by: float,
        pause_allowance_seconds: float,
        fresh_connection: bool,
        traceparent: str | None,
        connect_seconds: float = 3.0,
        pool_seconds: float = 1.0,
    ) -> Sent:
        """Send a request once and read its answer.

        Args:
            wire: the request; its origin is the connection's.
            connection: where it may go.
            deadline_seconds: for everything, from the call of this function on.
            send_by: instant of the monotonic clock by which every byte has left; counted by the caller from before its
                claim was sent.
            pause_allowance_seconds: how long after `send_by` a write may end before it is reported as late.
            fresh_connection: no connection that was used before (class C).
            traceparent: W3C trace context for the provider.
            connect_seconds: for look-up, connection and TLS.
            pool_seconds: for a free connection.

        Returns:
            The answer, or what is known without one. No error of the network is raised.

        Raises:
            TransactionOpen: a database transaction is open.
            asyncio.CancelledError: the caller was cancelled. The connection was reset; what became of the request is
                unknown.
        """
        outside_transaction_only("a request to a provider")
        pool = await self._pool(connection, fresh=fresh_connection)
        sending = _Sending(send_by=send_by, deadline_seconds=deadline_seconds, body_follows=bool(wire.body))
        mark = _sending.set(sending)
        try:
            request = self._request(wire, connection, deadline_seconds, traceparent, connect_seconds, pool_seconds)
            async with asyncio.timeout(deadline_seconds):
                answer = await self._exchange(pool, request, sending)
        except Exception as error:
            return self._without_answer(sending, error, pause_allowance_seconds)
        finally:
            _sending.reset(mark)
            if fresh_connection:
                await asyncio.shield(pool.aclose())
        return Sent(
            answer=answer,
            fault=None,
            reason=f"HTTP {answer.status}",
            late_write=self._late(sending, pause_allowance_seconds),
            provider_seconds=time.monotonic() - (sending.first_write_at or time.monotonic()),
        )

    async def _exchange(self, pool: httpcore2.AsyncConnectionPool, request: httpcore2.Request, sending: _Sending) -> WireAnswer:
        response = await pool.handle_async_request(request)
        try:
            if sending.stream is None or not sending.stream.heard:
                # A kept connection on which the provider once said more than one answer.
                raise AnswerOfAnother
            parts: list[bytes] = []
            size = 0
            async for part in response.aiter_stream():
                size += len(part)
                if size > self._answer_bytes_max:
                    raise AnswerTooLarge
                parts.append(part)
            if sending.stream is not None:
                sending.stream.exchanging = False
        finally:
            await response.aclose()
        headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in response.headers)
        return WireAnswer(status=response.status, headers=headers, body=b"".join(parts))

    def _request(
        self,
        wire: WireRequest,
        connection: Egress,
        deadline_seconds: float,
        traceparent: str | None,
        connect_seconds: float,
        pool_seconds: float,
    ) -> httpcore2.Request:
        target, origin = urlsplit(wire.url), urlsplit(connection.base_url)
        if (target.scheme, target.netloc) != (origin.scheme, origin.netloc):
            raise AddressRefused
        headers = [("Host", target.netloc), ("User-Agent", USER_AGENT), ("Accept-Encoding", "identity"), *wire.headers]
        if wire.body or wire.method in ("POST", "PUT", "PATCH"):
            headers.append(("Content-Length", str(len(wire.body))))
        if traceparent is not None:
            headers.append(("traceparent", traceparent))
        return httpcore2.Request(
            wire.method,
            wire.url,
            headers=[(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers],
            content=wire.body,
            extensions={
                "timeout": {
                    "connect": connect_seconds,
                    "pool": pool_seconds,
                    "read": deadline_seconds,
                    "write": deadline_seconds,
                }
            },
        )

    async def _pool(self, connection: Egress, *, fresh: bool) -> httpcore2.AsyncConnectionPool:
        if fresh:
            return self._new_pool(connection.allow_private, connections_max=1, keep_alive_max=0)
        origin = urlsplit(connection.base_url)
        key = (f"{origin.scheme}://{origin.netloc}", connection.allow_private)
        if key not in self._pools:
            if len(self._pools) >= POOLS_MAX:
                await self._close_an_idle_pool()
            self._pools[key] = self._new_pool(
                connection.allow_private, connections_max=self._connections_max, keep_alive_max=self._connections_max
            )
        return self._pools[key]

    async def _close_an_idle_pool(self) -> None:
        """Make room for another origin; while every pool is at work there is one more for a time."""
        for key, pool in self._pools.items():
            if all(connection.is_idle() for connection in pool.connections):
                del self._pools[key]
                await pool.aclose()
                return

    def _new_pool(self, allow_private: bool, *, connections_max: int, keep_alive_max: int) -> httpcore2.AsyncConnectionPool:
        return httpcore2.AsyncConnectionPool(
            ssl_context=self._ssl_context,
            max_connections=connections_max,
            max_keepalive_connections=keep_alive_max,
            keepalive_expiry=KEEP_ALIVE_SECONDS,
            http1=True,
            http2=False,
            retries=0,
            network_backend=_Backend(allow_private, self._look_up),
        )

    @staticmethod
    def _late(sending: _Sending, pause_allowance_seconds: float) -> bool:
        return sending.last_write_at is not None and sending.last_write_at > sending.send_by + pause_allowance_seconds

    def _without_answer(self, sending: _Sending, error: Exception, pause_allowance_seconds: float) -> Sent:
        if sending.first_write_at is None:
            return Sent(answer=None, fault="unsent", reason=_reason(error), late_write=False, provider_seconds=0.0)
        return Sent(
            answer=None,
            fault="unknown",
            reason=_reason(error),
            late_write=self._late(sending, pause_allowance_seconds),
            provider_seconds=time.monotonic() - sending.first_write_at,
        )


_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (TooLate, "not sent in time"),
    (AddressRefused, "address refused"),
    (AnswerTooLarge, "answer too large"),
    (AnswerOfAnother, "answer of another request"),
    (socket.gaierror, "host not found"),
    (httpcore2.ConnectTimeout, "connection timed out"),
    (httpcore2.ConnectError, "connection refused"),
    (httpcore2.PoolTimeout, "no free connection"),
    (httpcore2.UnsupportedProtocol, "unsupported URL"),
    (httpcore2.ReadTimeout, "no answer in time"),
    (httpcore2.WriteTimeout, "request not taken in time"),
    (httpcore2.RemoteProtocolError, "connection closed without a complete answer"),
    (httpcore2.ReadError, "connection lost"),
    (httpcore2.WriteError, "connection lost"),
    (TimeoutError, "no answer in time"),
)


def _reason(error: Exception) -> str:
    """Our own words for an error; foreign text stays out of records."""
    return next((words for kind, words in _REASONS if isinstance(error, kind)), type(error).__name__)
