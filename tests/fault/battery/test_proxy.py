"""The proxy does what its faults and holds say, on plain TCP and between a client and a real Postgres."""

import asyncio
import contextlib
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest
from tests.fault.battery import wire
from tests.fault.battery.network import Network, running
from tests.support.postgres import Database

SOON_SECONDS = 5.0
SILENCE_SECONDS = 0.3


@pytest.fixture
async def network(tmp_path: Path) -> AsyncIterator[Network]:
    """A proxy of this test's own."""
    async with running(tmp_path) as started:
        yield started


class Server:
    """Answers every line with itself, and remembers what it received and how its connections ended."""

    def __init__(self) -> None:
        self.received = b""
        self.ends: list[str] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                self.received += data
                writer.write(data)
            self.ends.append("closed")
        except ConnectionError:
            self.ends.append("reset")
        finally:
            writer.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """A server that echoes."""
    made = Server()
    listening = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = listening.sockets[0].getsockname()[1]
    yield made
    listening.close()


async def until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """Awaits a condition."""
    async with asyncio.timeout(SOON_SECONDS):
        while True:
            found = condition()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.01)


async def silent(reader: asyncio.StreamReader) -> bool:
    """Whether nothing comes for a while, not even an end."""
    try:
        async with asyncio.timeout(SILENCE_SECONDS):
            await reader.read(1)
    except TimeoutError:
        return True
    return False


async def connected(network: Network, server: Server) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection through a link, over which something has passed."""
    port = await network.link("a-b", "raw", "127.0.0.1", server.port)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"first\n")
    assert await reader.readline() == b"first\n"
    return reader, writer


async def one_byte(network: Network) -> bytes:
    """What a new connection says first; the reset may come before the connecting has ended, or after."""
    reader, _ = await asyncio.open_connection("127.0.0.1", network.ports["a-b"])
    return await reader.read(1)


async def test_reset_ends_both_sides(network: Network, server: Server) -> None:
    """reset: both sides are reset, new connections too, until it ends."""
    reader, _ = await connected(network, server)
    await network.strike(["a-b"], "reset")
    with pytest.raises(ConnectionResetError):
        await reader.read(1)
    await until(lambda: server.ends == ["reset"])
    with pytest.raises(ConnectionResetError):
        await one_byte(network)
    await network.heal(["a-b"])
    await connected(network, server)


async def test_half_open_is_silent_to_the_client_alone(network: Network, server: Server) -> None:
    """half-open: the server's side is gone, the client's is open and silent, also after the fault has ended; new ones work then."""
    reader, writer = await connected(network, server)
    await network.strike(["a-b"], "half-open")
    await until(lambda: server.ends == ["reset"])
    writer.write(b"anybody?\n")
    assert await silent(reader)
    fresh, _ = await asyncio.open_connection("127.0.0.1", network.ports["a-b"])
    assert await silent(fresh)
    await network.heal(["a-b"])
    assert await silent(reader)
    await connected(network, server)
    assert server.received == b"first\nfirst\n"


async def test_drop_is_silent_to_both(network: Network, server: Server) -> None:
    """drop: what is sent is lost and nobody is told; what one side ends meanwhile, the other learns of afterwards."""
    reader, writer = await connected(network, server)
    await network.strike(["a-b"], "drop")
    writer.write(b"anybody?\n")
    assert await silent(reader)
    assert server.ends == []
    writer.close()
    await asyncio.sleep(SILENCE_SECONDS)
    assert server.ends == []
    await network.heal(["a-b"])
    await until(lambda: server.ends == ["reset"])
    assert server.received == b"first\n"


async def test_drop_loses_what_comes_after_it_too(network: Network, server: Server) -> None:
    """A connection over which bytes were lost never speaks again: a stream cannot go on with a hole in it."""
    reader, writer = await connected(network, server)
    await network.strike(["a-b"], "drop")
    await network.heal(["a-b"])
    writer.write(b"anybody?\n")
    assert await silent(reader)
    assert server.ends == []
    writer.close()
    await until(lambda: server.ends == ["reset"])


async def test_delay_keeps_the_order_and_costs_the_time(network: Network, server: Server) -> None:
    """delay: everything arrives, later and in order."""
    reader, writer = await connected(network, server)
    await network.strike(["a-b"], "delay", seconds=0.2)
    began = time.monotonic()
    writer.write(b"one\n")
    await asyncio.sleep(0.01)
    writer.write(b"two\n")
    assert [await reader.readline(), await reader.readline()] == [b"one\n", b"two\n"]
    assert time.monotonic() - began >= 0.4


async def test_hold_back_keeps_the_last_byte(network: Network, server: Server) -> None:
    """hold-back: all but the last byte of a piece passes; the byte follows when the fault ends."""
    reader, writer = await connected(network, server)
    await network.strike(["a-b"], "hold-back")
    writer.write(b"whole?\n")
    await until(lambda: server.received == b"first\nwhole?")
    assert not await silent(reader)  # The echo, without its own last byte.
    await network.heal(["a-b"])
    await until(lambda: server.received == b"first\nwhole?\n")


async def test_slow_trickles(network: Network, server: Server) -> None:
    """slow: so many bytes at a time; what is left when the fault ends comes at once."""
    _, writer = await connected(network, server)
    await network.strike(["a-b"], "slow", bytes=2, seconds=0.15)
    writer.write(b"abcdefghij")
    await until(lambda: server.received == b"first\nab")
    await until(lambda: server.received == b"first\nabcd")
    await network.heal(["a-b"])
    await until(lambda: server.received == b"first\nabcdefghij")


async def test_a_request_is_held_by_its_token(network: Network, server: Server) -> None:
    """last-byte of a POST: the one that is meant is held, others pass; `answer` lets it pass and holds what comes back."""
    port = await network.link("a-b", "http", "127.0.0.1", server.port)
    meant, other = "op" + "a" * 16, "op" + "b" * 16
    held = await network.hold(["a-b"], part="last-byte", method="POST", containing=[meant])
    connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
    for (_, writer), token in zip(connections, (meant, other), strict=True):
        writer.write(f"POST / HTTP/1.1\r\nContent-Length: 18\r\n\r\n{token}".encode())
    assert (await connections[1][0].readuntil(other.encode())).startswith(b"POST")
    assert await held.reached(1, deadline_seconds=SOON_SECONDS) == {meant: "a-b"}
    await until(lambda: meant[:-1].encode() in server.received)
    assert meant.encode() not in server.received
    answer = await network.hold(["a-b"], part="answer", method="POST", limit=1)
    connections[1][1].write(f"POST / HTTP/1.1\r\nContent-Length: 18\r\n\r\n{other}".encode())
    assert await answer.reached(1, deadline_seconds=SOON_SECONDS) == {other: "a-b"}
    assert server.received.count(other.encode()) == 2
    assert await held.release() == {meant: "a-b"}
    assert (await connections[0][0].readuntil(meant.encode())).startswith(b"POST")
    await answer.release(deliver=False)
    with pytest.raises(ConnectionResetError):
        await connections[1][0].read(1)


async def test_a_request_is_held_by_what_it_asks_for(network: Network, server: Server) -> None:
    """A hold of a resource stops the request whose path ends in it; another one, and another method, pass."""
    port = await network.link("a-b", "http", "127.0.0.1", server.port)
    token = "op" + "a" * 16
    held = await network.hold(["a-b"], part="whole", method="POST", resource="settle", containing=[token])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for line in ("POST /v1/settle/heartbeat", "GET /v1/settle"):
        writer.write(f"{line} HTTP/1.1\r\nContent-Length: 18\r\n\r\n{token}".encode())
        assert (await reader.readuntil(token.encode())).startswith(line.encode())
    writer.write(f"POST /v1/1/settle?a=/b HTTP/1.1\r\nContent-Length: 18\r\n\r\n{token}".encode())
    assert await held.reached(1, deadline_seconds=SOON_SECONDS) == {token: "a-b"}
    assert await silent(reader)
    await held.release()
    assert b"settle?a" in await reader.readuntil(token.encode())


INSERT = "insert into made values ($1)"


@contextlib.asynccontextmanager
async def postgres_behind(network: Network, database: Database) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A connection to the database through a link."""
    parts = urlsplit(database.superuser_url)
    port = await network.link("p-q", "postgres", parts.hostname or "", parts.port or 0)
    url = database.superuser_url.replace(f":{parts.port}/", f":{port}/")
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        connection.terminate()


@pytest.mark.parametrize("deliver", [True, False])
@pytest.mark.parametrize("part", ["whole", "commit", "answer"])
async def test_a_statement_is_held_at_its_edges(network: Network, empty_database: Database, part: str, deliver: bool) -> None:
    """whole: nothing has reached Postgres; commit: executed and not committed; answer: committed and the client does not know.

    Delivered, all three end well; with their connection reset only what was committed stays.
    """
    beside = await asyncpg.connect(empty_database.superuser_url)
    await beside.execute("create table made (number int primary key)")

    async def rows() -> int:
        return int(await beside.fetchval("select count(*) from made"))

    async def locked() -> bool:
        found = "select count(*) from pg_locks l join pg_class c on c.oid = l.relation where c.relname = 'made' and l.mode like 'RowExcl%'"
        return bool(await beside.fetchval(found))

    async with postgres_behind(network, empty_database) as connection:
        await connection.execute(INSERT, 1)
        held = await network.hold(["p-q"], part=part, statement=INSERT)
        inserting = asyncio.create_task(connection.execute(INSERT, 2))
        assert len(await held.reached(1, deadline_seconds=SOON_SECONDS)) == 1
        if part == "commit":
            await until(locked)
        elif part == "whole":
            assert not await locked()
        assert await rows() == (2 if part == "answer" else 1)
        assert not inserting.done()
        await held.release(deliver=deliver)
        if deliver:
            await inserting
        else:
            with pytest.raises((OSError, asyncpg.PostgresConnectionError)):
                await inserting
        await until(lambda: _not(locked()))
        assert await rows() == (2 if deliver or part == "answer" else 1)
    await beside.close()


async def _not(condition: Awaitable[bool]) -> bool:
    return not await condition


def message(kind: bytes, body: bytes) -> bytes:
    """A Postgres message."""
    return kind + struct.pack(">i", len(body) + 4) + body


def test_messages_are_found_however_they_are_cut() -> None:
    """Postgres messages come out whole and in order for every way of cutting them; a Bind names its SQL and its reservation."""
    reservation = bytes(6) + b"\x75" + bytes(9)
    start = struct.pack(">ii", 8, 80877103) + struct.pack(">ii", 9, 196608) + b"\0"
    parse = message(b"P", b"s1\0select 1\0\0\0")
    bind = message(b"B", b"\0s1\0" + b"\0\0\0\x10" + reservation + b"op0123456789abcdef")
    stream = start + parse + bind + message(b"S", b"")
    for size in (1, 2, 5, 7, len(stream)):
        framer = wire.Postgres()
        frames = [frame for place in range(0, len(stream), size) for frame in framer.feed(stream[place : place + size])]
        assert b"".join(frame.data for frame in frames) == stream
        assert [frame.kind for frame in frames] == ["", "", "P", "B", "S"]
        [found] = [frame for frame in frames if frame.kind == "B"]
        assert (found.statement, found.token(), found.ids()) == ("select 1", "op0123456789abcdef", [reservation])
