"""The transport against real sockets: what left, what is known, what arrives afterwards."""

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from outbox_providers.wire import WireRequest
from outbox_runtime import postgres
from outbox_worker.transport import Egress, Sent, Transport, may_talk_to

Handler = Callable[["Peer"], Awaitable[None]]


class Peer:
    """One accepted connection of the test's provider."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def head(self) -> bytes:
        """The request's head."""
        return await self.reader.readuntil(b"\r\n\r\n")

    async def answer(self, text: bytes) -> None:
        """Write bytes to the caller."""
        self.writer.write(text)
        await self.writer.drain()

    async def ending(self) -> str:
        """How the caller ends the connection: `reset` or `closed`."""
        try:
            while await self.reader.read(65536):
                pass
        except ConnectionResetError:
            return "reset"
        return "closed"


@contextlib.asynccontextmanager
async def provider(handler: Handler) -> AsyncIterator[str]:
    """A provider that treats each connection as the test says; gives its base URL."""

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await handler(Peer(reader, writer))
        writer.close()

    server = await asyncio.start_server(accepted, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


@pytest.fixture
async def transport() -> AsyncIterator[Transport]:
    """A transport that is closed afterwards."""
    made = Transport(answer_bytes_max=10_000)
    yield made
    await made.aclose()


async def send(transport: Transport, url: str, *, body: bytes = b"x=1", path: str = "/v1/refunds", **changes: Any) -> Sent:
    """Send a POST with generous limits."""
    limits: dict[str, Any] = {
        "connection": Egress(base_url=url, allow_private=True),
        "deadline_seconds": 5.0,
        "send_by": time.monotonic() + 5,
        "pause_allowance_seconds": 3.0,
        "fresh_connection": False,
        "traceparent": None,
    }
    limits.update(changes)
    return await transport.send(WireRequest(method="POST", url=url + path, headers=(("X-A", "b"),), body=body), **limits)


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nRequest-Id: req_1\r\n\r\n{}"


async def test_an_answer_comes_back_as_it_is(transport: Transport) -> None:
    """Status, headers and body arrive unchanged; the request carries what it was given, the trace context, and nothing else."""
    heads: list[bytes] = []

    async def handler(peer: Peer) -> None:
        heads.append(await peer.head())
        assert await peer.reader.readexactly(3) == b"x=1"
        await peer.answer(OK)

    async with provider(handler) as url:
        sent = await send(transport, url, traceparent="00-" + "1" * 32 + "-" + "2" * 16 + "-01")
    assert sent.answer is not None
    assert (sent.answer.status, sent.answer.body, sent.fault) == (200, b"{}", None)
    assert ("Request-Id", "req_1") in sent.answer.headers
    names = {line.split(b":")[0].lower() for line in heads[0].split(b"\r\n")[1:-2]}
    assert names == {b"host", b"user-agent", b"accept-encoding", b"x-a", b"content-length", b"traceparent"}


async def test_head_and_body_leave_together(transport: Transport) -> None:
    """A request is one write, also the next one on a kept connection; one without a body does not wait for it."""
    arrived: list[bytes] = []

    async def handler(peer: Peer) -> None:
        for _ in range(3):
            arrived.append(await peer.reader.read(65536))
            await peer.answer(OK)

    async with provider(handler) as url:
        for body in (b"x=1", b"y=2", b""):
            assert (await send(transport, url, body=body)).answer is not None
    assert [(request[:5], request.partition(b"\r\n\r\n")[2]) for request in arrived] == [
        (b"POST ", body) for body in (b"x=1", b"y=2", b"")
    ]


async def test_a_redirect_is_an_answer(transport: Transport) -> None:
    """A redirect is not followed: the one attempt is the one request."""
    seen = 0

    async def handler(peer: Peer) -> None:
        nonlocal seen
        await peer.head()
        seen += 1
        await peer.answer(b"HTTP/1.1 307 Temporary\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n")

    async with provider(handler) as url:
        sent = await send(transport, url)
    assert sent.answer is not None
    assert (sent.answer.status, seen) == (307, 1)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhalf", b"garbage\r\n\r\n"])
async def test_no_complete_answer_is_unknown(transport: Transport, answer: bytes) -> None:
    """A connection that ends before a complete answer leaves the outcome unknown, and the request is sent once."""
    seen = 0

    async def handler(peer: Peer) -> None:
        nonlocal seen
        await peer.head()
        seen += 1
        await peer.answer(answer)

    async with provider(handler) as url:
        sent = await send(transport, url)
    assert (sent.answer, sent.fault, seen) == (None, "unknown", 1)


async def test_an_answer_that_is_too_large_is_unknown(transport: Transport) -> None:
    """Beyond the largest answer nothing is read; the effect may have happened."""

    async def handler(peer: Peer) -> None:
        await peer.head()
        await peer.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 20000\r\n\r\n" + b"x" * 20_000)
        await peer.ending()

    async with provider(handler) as url:
        sent = await send(transport, url)
    assert (sent.fault, sent.reason) == ("unknown", "answer too large")


async def test_a_time_out_resets_the_connection(transport: Transport) -> None:
    """At the deadline the outcome is unknown and the provider sees a reset, so that no buffered byte arrives later."""
    ending: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def handler(peer: Peer) -> None:
        await peer.head()
        ending.set_result(await peer.ending())

    async with provider(handler) as url:
        sent = await send(transport, url, deadline_seconds=0.3)
        assert (sent.fault, sent.reason) == ("unknown", "no answer in time")
        assert await asyncio.wait_for(ending, 5) == "reset"


async def test_a_cancelled_caller_resets_the_connection(transport: Transport) -> None:
    """Cancellation is passed on, after the connection was reset."""
    arrived, ending = asyncio.Event(), asyncio.get_running_loop().create_future()

    async def handler(peer: Peer) -> None:
        await peer.head()
        arrived.set()
        ending.set_result(await peer.ending())

    async with provider(handler) as url:
        task = asyncio.create_task(send(transport, url))
        await arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.wait_for(ending, 5) == "reset"


async def test_send_by_passed_before_the_first_byte_is_unsent(transport: Transport) -> None:
    """A request whose time has passed does not leave: the provider sees a connection and no byte."""
    received: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def handler(peer: Peer) -> None:
        received.set_result(await peer.reader.read())

    async with provider(handler) as url:
        sent = await send(transport, url, send_by=time.monotonic() - 0.001)
        assert (sent.fault, sent.reason, sent.late_write) == ("unsent", "not sent in time", False)
        assert await asyncio.wait_for(received, 5) == b""


async def test_a_body_the_provider_does_not_take_is_given_up_at_send_by(transport: Transport) -> None:
    """A provider that accepts and never reads: at `send_by` the connection is reset and the outcome is unknown, not late."""
    ending: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    release = asyncio.Event()

    async def handler(peer: Peer) -> None:
        await release.wait()
        ending.set_result(await peer.ending())

    async with provider(handler) as url:
        began = time.monotonic()
        sent = await send(transport, url, body=b"x" * 30_000_000, send_by=began + 0.4)
        assert time.monotonic() - began < 3
        assert (sent.fault, sent.late_write) == ("unknown", False)
        release.set()
        assert await asyncio.wait_for(ending, 5) == "reset"


async def test_a_write_that_ends_after_the_pause_allowance_is_late(transport: Transport) -> None:
    """A write that ends past `send_by` and the allowance is reported: only a success or a person may end that doubt."""

    async def handler(peer: Peer) -> None:
        await peer.ending()

    async with provider(handler) as url:
        # A negative allowance stands for a process that was stopped between the look at the clock and the write.
        sent = await send(transport, url, pause_allowance_seconds=-5.0, deadline_seconds=0.3)
    assert (sent.fault, sent.late_write) == ("unknown", True)


async def test_nothing_listening_is_unsent(transport: Transport) -> None:
    """A refused connection proves that nothing was sent."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        sent = await send(transport, f"http://127.0.0.1:{taken.getsockname()[1]}")
    assert (sent.fault, sent.reason) == ("unsent", "connection refused")


async def test_an_unknown_host_is_unsent(transport: Transport) -> None:
    """A name without an address proves that nothing was sent."""
    assert (await send(transport, "http://nowhere.invalid")).fault == "unsent"


async def test_a_broken_handshake_is_unsent(transport: Transport) -> None:
    """TLS that does not come about carried no byte of the request."""

    async def handler(peer: Peer) -> None:
        await peer.reader.read(100)
        await peer.answer(b"this is no TLS at all")

    async with provider(handler) as url:
        sent = await send(transport, url.replace("http:", "https:"))
    assert sent.fault == "unsent"


async def test_an_untrusted_certificate_is_unsent(transport: Transport, tmp_path: Any) -> None:
    """A provider that cannot prove its name gets no byte."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    process = await asyncio.create_subprocess_exec(
        *"openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost".split(),
        *("-keyout", str(key), "-out", str(certificate)),
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert await process.wait() == 0
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    received: list[bytes] = []

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.read(100))
        writer.close()

    server = await asyncio.start_server(accepted, "127.0.0.1", 0, ssl=context)
    async with server:
        sent = await send(transport, f"https://localhost:{server.sockets[0].getsockname()[1]}")
    assert sent.fault == "unsent"
    assert not any(received)


def extensions_of(hello: bytes) -> set[int]:
    """The types of the extensions of a TLS ClientHello in its first record (RFC 8446 section 4.1.2)."""
    assert (hello[0], hello[5]) == (22, 1), "a handshake record with a ClientHello"
    at = 5 + 4 + 2 + 32
    at += 1 + hello[at]
    at += 2 + int.from_bytes(hello[at : at + 2], "big")
    at += 1 + hello[at]
    end = at + 2 + int.from_bytes(hello[at : at + 2], "big")
    at, found = at + 2, set()
    while at < end:
        found.add(int.from_bytes(hello[at : at + 2], "big"))
        at += 4 + int.from_bytes(hello[at + 2 : at + 4], "big")
    return found


async def test_a_handshake_that_is_held_back_is_unsent(transport: Transport) -> None:
    """A provider that takes the connection and says nothing of TLS got a greeting and no byte of a request: unsent, in time."""
    greetings: list[bytes] = []

    async def handler(peer: Peer) -> None:
        greetings.append(await peer.reader.read(65536))
        await peer.ending()

    async with provider(handler) as url:
        began = time.monotonic()
        sent = await send(transport, url.replace("http:", "https:"), connect_seconds=0.3)
        assert time.monotonic() - began < 3
    assert (sent.fault, sent.reason, sent.late_write) == ("unsent", "connection timed out", False)
    assert b"/v1/refunds" not in greetings[0]


async def test_no_early_data_in_tls(tmp_path: Any) -> None:
    """A provider that was talked to before gets no byte of a request with the greeting: nothing is resumed and nothing sent early."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subject = "-subj /CN=localhost -addext subjectAltName=DNS:localhost".split()
    process = await asyncio.create_subprocess_exec(
        *"openssl req -x509 -newkey rsa:2048 -nodes -days 1".split(),
        *(*subject, "-keyout", str(key), "-out", str(certificate)),
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert await process.wait() == 0
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(certificate, key)
    greetings: list[bytes] = []

    async def answering(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await writer.drain()
        writer.close()

    async def passing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Between the two: notes the first bytes of each connection."""
        to_reader, to_writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
        greetings.append(await reader.read(65536))
        to_writer.write(greetings[-1])

        async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                while part := await source.read(65536):
                    target.write(part)
                target.close()

        await asyncio.gather(pump(reader, to_writer), pump(to_reader, writer))

    trusting = Transport(ssl_context=ssl.create_default_context(cafile=str(certificate)))
    server = await asyncio.start_server(answering, "127.0.0.1", 0, ssl=served)
    between = await asyncio.start_server(passing, "127.0.0.1", 0)
    async with server, between:
        url = f"https://localhost:{between.sockets[0].getsockname()[1]}"
        for _ in range(2):
            assert (await send(trusting, url, fresh_connection=True)).answer is not None
        await trusting.aclose()
    early_data, pre_shared_key, server_name = 42, 41, 0
    assert len(greetings) == 2
    for greeting in greetings:
        extensions = extensions_of(greeting)
        assert server_name in extensions
        assert not extensions & {early_data, pre_shared_key}


async def test_a_private_address_is_refused_unless_allowed(transport: Transport) -> None:
    """Egress goes to public addresses only, and the provider on a private one sees no connection."""
    connections = 0

    async def handler(peer: Peer) -> None:
        nonlocal connections
        connections += 1

    async with provider(handler) as url:
        sent = await send(transport, url, connection=Egress(base_url=url, allow_private=False))
    assert (sent.fault, sent.reason, connections) == ("unsent", "address refused", 0)


async def test_another_origin_is_refused(transport: Transport) -> None:
    """A request never leaves for another host than its connection's."""
    sent = await send(transport, "http://127.0.0.1:1", connection=Egress(base_url="http://127.0.0.1:2", allow_private=True))
    assert (sent.fault, sent.reason) == ("unsent", "address refused")


@pytest.mark.parametrize(
    ("address", "private", "public"),
    [
        ("8.8.8.8", True, True),
        ("127.0.0.1", True, False),
        ("10.1.2.3", True, False),
        ("::1", True, False),
        ("169.254.169.254", False, False),
        ("fe80::1%eth0", False, False),
        ("::ffff:169.254.169.254", False, False),
        ("64:ff9b::a9fe:a9fe", False, False),
        ("64:ff9b::a00:1", True, False),
        ("64:ff9b:1::a9fe:a9fe", False, False),
        ("64:ff9b:1::808:808", True, False),
        ("::a9fe:a9fe", False, False),
        ("::7f00:1", True, False),
        ("::ffff:0:a9fe:a9fe", False, False),
        ("fec0::1", True, False),
        ("::", False, False),
        ("0.0.0.0", False, False),
        ("224.0.0.1", False, False),
        ("2606:4700::1111", True, True),
    ],
)
def test_addresses(address: str, private: bool, public: bool) -> None:
    """Metadata services, multicast and the unspecified address are never talked to, in whatever notation."""
    assert may_talk_to(address, allow_private=True) is private
    assert may_talk_to(address, allow_private=False) is public


async def test_class_c_uses_a_fresh_connection(transport: Transport) -> None:
    """Two sendings on kept connections share one; with `fresh_connection` each has its own."""
    connections = 0

    async def handler(peer: Peer) -> None:
        nonlocal connections
        connections += 1
        while True:
            await peer.head()
            await peer.reader.readexactly(3)
            await peer.answer(OK)

    async with provider(handler) as url:
        await send(transport, url)
        await send(transport, url)
        assert connections == 1
        await send(transport, url, fresh_connection=True)
        await send(transport, url, fresh_connection=True)
        assert connections == 3


async def test_a_kept_connection_that_dies_is_unknown(transport: Transport) -> None:
    """A provider that closes a kept connection under a request leaves it unknown, and nothing is sent again by itself."""
    requests = 0

    async def handler(peer: Peer) -> None:
        nonlocal requests
        while True:
            await peer.head()
            await peer.reader.readexactly(3)
            requests += 1
            if requests == 2:
                return
            await peer.answer(OK)

    async with provider(handler) as url:
        assert (await send(transport, url)).answer is not None
        sent = await send(transport, url)
    assert (sent.fault, requests) == ("unknown", 2)


async def test_an_open_transaction_is_refused(transport: Transport) -> None:
    """No provider is awaited while a transaction is open."""
    mark = postgres.in_transaction.set(True)
    try:
        with pytest.raises(postgres.TransactionOpen):
            await send(transport, "http://127.0.0.1:1")
    finally:
        postgres.in_transaction.reset(mark)


async def test_an_answer_left_over_from_another_request_is_never_taken(transport: Transport) -> None:
    """A provider that says two answers to one request: the second is no answer to the next one, which is unknown."""

    async def talkative(peer: Peer) -> None:
        await peer.head()
        one = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
        await peer.answer(one + b"first" + one + b"stale")
        await peer.ending()

    async with provider(talkative) as url:
        first = await send(transport, url)
        assert first.answer is not None
        second = await send(transport, url)
    assert (second.answer, second.fault, second.reason) == (None, "unknown", "answer of another request")


async def test_what_the_kernel_holds_does_not_arrive_after_send_by(transport: Transport) -> None:
    """A body that fits the kernel's buffer and is not taken: a provider that reads long after `send_by` gets a reset, no body."""
    taken, read = 0, asyncio.Event()

    async def late(peer: socket.socket) -> None:
        nonlocal taken
        await asyncio.sleep(2.0)
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ConnectionError):
            while part := await loop.sock_recv(peer, 65536):
                taken += len(part)
        read.set()

    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.setblocking(False)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        sending = asyncio.create_task(
            send(transport, url, body=b"z" * 100_000, send_by=time.monotonic() + 0.5, deadline_seconds=4.0)
        )
        peer, _ = await asyncio.get_running_loop().sock_accept(listening)
        with peer:
            peer.setblocking(False)
            reading = asyncio.create_task(late(peer))
            sent = await sending
            async with asyncio.timeout(10):
                await read.wait()
            await reading
    assert (sent.answer, sent.fault, sent.late_write) == (None, "unknown", False)
    assert taken < 50_000
