"""`python -m tests.fault.battery.proxy`: a TCP proxy that misbehaves as it is told, in a process of its own.

Each *link* is a port in front of one server. A link may have one *fault* at a time, which strikes all its connections; and *holds*,
which stop single connections at an edge: in front of a statement, between its execution and its commit, behind its answer. What
is held is told by the token of the operation key, which is read off the wire. Nothing of the product takes part.

Commands come as lines of JSON over one TCP connection and are answered one by one (`tests.fault.battery.network` speaks for it).
"""

import asyncio
import contextlib
import json
import os
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import uvloop
from tests.fault.battery import wire

KINDS = ("reset", "half-open", "delay", "drop", "hold-back", "slow")
PARTS = ("whole", "commit", "last-byte", "answer")
PARENT_CHECK_SECONDS = 0.5
TOKENS_MAX = 500_000


@dataclass(kw_only=True)
class Fault:
    """What a link does to its connections.

    | kind | connections there are | new ones |
    |---|---|---|
    | reset | reset on both sides | reset at once |
    | half-open | the server's side is reset, the client's stays open and silent for ever | accepted, silent for ever |
    | drop | both sides stay open, nothing passes any more; an end that one side makes is passed on when the fault has ended | the same |
    | delay | every piece comes `seconds` later | the same |
    | hold-back | the last byte of every piece waits for the end of the fault | the same |
    | slow | `bytes` every `seconds` | the same |
    """

    kind: str
    seconds: float = 0.3
    bytes: int = 64
    ended: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(kw_only=True)
class Hold:
    """Stops connections at an edge.

    Attributes:
        links: on which.
        kind: Postgres: of a Bind whose SQL begins with `starts`; HTTP: a request of this method whose path's last segment does; "": anything.
        part: `whole` nothing of it passes; `commit` all but the Sync, so that it is executed and not committed; `last-byte` all but
            that; `answer` all of it passes and the answer is held.
        containing: tokens that are meant, None for all.
        limit: how many connections at once.
        held: tokens (or "?") with the connections that have reached the edge.
        begun: how many were met, for the limit.
    """

    id: str
    links: frozenset[str]
    kind: str
    starts: str | None
    part: str
    containing: frozenset[str] | None
    limit: int
    held: "dict[str, Connection]" = field(default_factory=dict)
    begun: int = 0
    released: bool = False

    def meets(self, link: "Link", frame: wire.Frame, token: str | None) -> bool:
        """Whether this frame reaches the edge."""
        if self.released or self.begun >= self.limit or link.name not in self.links:
            return False
        if self.kind and frame.kind != self.kind:
            return False
        if self.starts is not None and not (frame.statement or "").startswith(self.starts):
            return False
        return self.containing is None or token in self.containing


END = b""
"""In a lane: the sender has closed its side."""


class Lane:
    """One direction of a connection: what was sent, in order, shaped by the link's fault, stopped by a hold."""

    def __init__(self, connection: "Connection") -> None:
        """Nothing is under way."""
        self._connection = connection
        self._queue: deque[bytes | Hold] = deque()
        self._pump: asyncio.Task[None] | None = None
        self._free = asyncio.Event()
        self._free.set()
        self.transport: asyncio.Transport | None = None
        self.dead = False
        self.hold: Hold | None = None
        self.on_first: Callable[[], None] | None = None

    def open(self, transport: asyncio.Transport) -> None:
        """The receiver is there."""
        self.transport = transport
        self._kick()

    def stop(self, hold: Hold) -> None:
        """What is pushed from now on waits for the hold's release; what was pushed before goes on."""
        self.hold = hold
        self._free.clear()
        self._queue.append(hold)
        self._kick()

    def go_on(self, *, deliver: bool) -> None:
        """The hold is released; what waited goes on, or is lost with its connection."""
        self.hold = None
        self._free.set()
        if not deliver:
            self._connection.reset()

    def push(self, data: bytes) -> None:
        """Data of the sender, or `END`."""
        if self.on_first is not None:
            self.on_first()
            self.on_first = None
        if self.dead:
            if data is END and self._connection.link.fault is None:
                self._connection.reset()
            return
        if self._queue or self.transport is None or self._connection.link.fault is not None:
            self._queue.append(data)
            self._kick()
        else:
            self._write(data)

    def kill(self) -> None:
        """Nothing passes any more."""
        self.dead = True
        self._queue.clear()

    def _kick(self) -> None:
        if self._queue and self.transport is not None and (self._pump is None or self._pump.done()):
            self._pump = asyncio.create_task(self._run())

    def _write(self, data: bytes) -> None:
        if self.transport is None or self.transport.is_closing():
            return
        if data is END:
            self.transport.close()
        else:
            self.transport.write(data)

    async def _run(self) -> None:
        while self._queue:
            first = self._queue[0]
            fault = self._connection.link.fault
            if isinstance(first, Hold):
                await self._free.wait()
                self._take()
            elif fault is None:
                self._write(first)
                self._take()
            elif fault.kind == "delay":
                await _until(fault.ended, fault.seconds)
                if not self.dead:
                    self._write(first)
                self._take()
            elif fault.kind == "hold-back":
                if len(first) > 1:
                    self._queue[0] = first[-1:]
                    self._write(first[:-1])
                await fault.ended.wait()
            elif fault.kind == "slow":
                if len(first) > fault.bytes:
                    self._queue[0] = first[fault.bytes :]
                    self._write(first[: fault.bytes])
                else:
                    self._write(first)
                    self._take()
                await _until(fault.ended, fault.seconds)
            else:
                await fault.ended.wait()

    def _take(self) -> None:
        """The first is done with, unless the lane was killed meanwhile."""
        if self._queue:
            self._queue.popleft()


async def _until(event: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


class Connection:
    """A client's connection and the one that was made to the server for it."""

    def __init__(self, link: "Link") -> None:
        """Not connected yet."""
        self.link = link
        self.up, self.down = Lane(self), Lane(self)
        self.token: str | None = None
        self._framer = wire.framer(link.protocol)
        self._commit: Hold | None = None

    def accepted(self, transport: asyncio.Transport) -> None:
        """The client is there."""
        self.link.connections.add(self)
        self.link.accepted += 1
        self.down.open(transport)
        fault = self.link.fault
        if fault is not None and fault.kind == "reset":
            self.reset()
        elif fault is not None and fault.kind in ("half-open", "drop"):
            self.up.kill()
            self.down.kill()
        else:
            self._dialling = asyncio.create_task(self._dial())

    async def _dial(self) -> None:
        host, port = self.link.upstream
        try:
            transport, _ = await asyncio.get_running_loop().create_connection(lambda: _Upstream(self), host, port)
        except OSError:
            self.reset()
            return
        _no_delay(transport)
        self.up.open(transport)

    def from_client(self, data: bytes) -> None:
        """What the client sent."""
        for frame in self._framer.feed(data):
            self._forward(frame)

    def _forward(self, frame: wire.Frame) -> None:
        proxy = self.link.proxy
        if self._commit is not None and frame.kind == "S":
            self._reached(self._commit, self.up)
            self.up.stop(self._commit)
            self._commit = None
        interesting = frame.kind in ("B", "POST", "GET")
        token = proxy.token_of(frame) if interesting else None
        if token is not None:
            self.token = token
        if interesting and self.up.hold is None:
            for hold in proxy.holds.values():
                if hold.meets(self.link, frame, token):
                    self._hold(hold, frame)
                    return
        self.up.push(frame.data)

    def _hold(self, hold: Hold, frame: wire.Frame) -> None:
        hold.begun += 1
        if hold.part == "commit":
            self._commit = hold
            self.up.push(frame.data)
        elif hold.part == "answer":
            self.up.push(frame.data)
            self.down.stop(hold)
            self.down.on_first = lambda: self._reached(hold, self.down)
        else:
            if hold.part == "last-byte":
                self.up.push(frame.data[:-1])
            self.up.stop(hold)
            self._reached(hold, self.up)
            self.up.push(frame.data[-1:] if hold.part == "last-byte" else frame.data)

    def _reached(self, hold: Hold, lane: Lane) -> None:
        if hold.released:
            # The answer of a request whose hold was given up before it came.
            asyncio.get_running_loop().call_soon(self._pass_by, lane, hold)
        else:
            hold.held[self.token or f"?{id(self)}"] = self

    @staticmethod
    def _pass_by(lane: Lane, hold: Hold) -> None:
        if lane.hold is hold:
            lane.go_on(deliver=True)

    def release(self, hold: Hold, *, deliver: bool) -> None:
        """Let what this hold stopped go on."""
        if self._commit is hold:
            self._commit = None
        for lane in (self.up, self.down):
            if lane.hold is hold:
                lane.go_on(deliver=deliver)

    def from_server(self, data: bytes) -> None:
        """What the server sent."""
        self.down.push(data)

    def half_open(self) -> None:
        """The server forgets the client, which does not learn of it."""
        self.up.kill()
        self.down.kill()
        _reset(self.up.transport)

    def drop(self) -> None:
        """Nothing passes any more."""
        self.up.kill()
        self.down.kill()

    def reset(self) -> None:
        """Both sides are reset."""
        self.drop()
        _reset(self.up.transport)
        _reset(self.down.transport)
        self.link.connections.discard(self)


class _Client(asyncio.Protocol):
    def __init__(self, link: "Link") -> None:
        self._connection = Connection(link)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        _no_delay(transport)
        self._connection.accepted(cast("asyncio.Transport", transport))

    def data_received(self, data: bytes) -> None:
        self._connection.from_client(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._connection.up.push(END)
        if self._connection.up.transport is None or self._connection.up.transport.is_closing():
            self._connection.link.connections.discard(self._connection)


class _Upstream(asyncio.Protocol):
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def data_received(self, data: bytes) -> None:
        self._connection.from_server(data)

    def connection_lost(self, error: Exception | None) -> None:
        down = self._connection.down
        if not down.dead and error is not None and down.hold is None and self._connection.link.fault is None:
            self._connection.reset()
        else:
            down.push(END)
        if down.transport is None or down.transport.is_closing():
            self._connection.link.connections.discard(self._connection)


def _no_delay(transport: asyncio.BaseTransport) -> None:
    with contextlib.suppress(OSError):
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _reset(transport: asyncio.Transport | None) -> None:
    """RST rather than FIN: what is closed with a lingering time of zero is reset."""
    if transport is not None and not transport.is_closing():
        with contextlib.suppress(OSError):
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()


class Link:
    """One port in front of one server."""

    def __init__(self, proxy: "Proxy", name: str, protocol: wire.Speech, upstream: tuple[str, int]) -> None:
        """Nothing listens yet."""
        self.proxy = proxy
        self.name = name
        self.protocol = protocol
        self.upstream = upstream
        self.connections: set[Connection] = set()
        self.accepted = 0
        self.fault: Fault | None = None
        self.server: asyncio.Server | None = None

    def strike(self, fault: Fault) -> None:
        """Begin a fault; the one before it has ended."""
        self.heal()
        self.fault = fault
        for connection in list(self.connections):
            if fault.kind == "reset":
                connection.reset()
            elif fault.kind == "half-open":
                connection.half_open()
            elif fault.kind == "drop":
                connection.drop()

    def heal(self) -> None:
        """End the fault there is; what it broke stays broken."""
        if self.fault is not None:
            fault, self.fault = self.fault, None
            fault.ended.set()
            for connection in list(self.connections):
                # What one side has ended meanwhile is known to the other from now on.
                transports = (connection.up.transport, connection.down.transport)
                if fault.kind == "drop" and any(one is not None and one.is_closing() for one in transports):
                    connection.reset()


class Proxy:
    """All links and holds."""

    def __init__(self) -> None:
        """None yet."""
        self.links: dict[str, Link] = {}
        self.holds: dict[str, Hold] = {}
        self._tokens: dict[bytes, str] = {}

    def token_of(self, frame: wire.Frame) -> str | None:
        """The operation key that a message is about. Reservations are learned by the statement that makes them."""
        token = frame.token()
        if frame.kind != "B":
            return token
        ids = frame.ids()
        if not ids:
            return token
        if token is not None:
            if len(self._tokens) >= TOKENS_MAX:
                self._tokens.clear()
            self._tokens[ids[0]] = token
            return token
        return self._tokens.get(ids[0])

    async def obey(self, command: dict[str, Any]) -> dict[str, Any]:
        """Carry one command out."""
        match command["do"]:
            case "link":
                return await self._link(command)
            case "strike":
                fault = Fault(kind=command["kind"], **{name: command[name] for name in ("seconds", "bytes") if name in command})
                if fault.kind not in KINDS:
                    raise ValueError(f"no such fault: {fault.kind}")
                for name in command["links"]:
                    self.links[name].strike(Fault(kind=fault.kind, seconds=fault.seconds, bytes=fault.bytes))
                return {"at": time.time()}
            case "heal":
                for name in command["links"]:
                    self.links[name].heal()
                return {"at": time.time()}
            case "hold":
                return self._hold(command)
            case "held":
                return {"held": {token: one.link.name for token, one in self.holds[command["id"]].held.items()}}
            case "release":
                return self._release(command)
            case "counts":
                return {"accepted": {name: link.accepted for name, link in self.links.items()}}
            case other:
                raise ValueError(f"no such command: {other}")

    async def _link(self, command: dict[str, Any]) -> dict[str, Any]:
        known = self.links.get(command["name"])
        if known is not None:
            known.upstream = (command["host"], command["port"])
            assert known.server is not None
            return {"port": known.server.sockets[0].getsockname()[1]}
        link = Link(self, command["name"], command["protocol"], (command["host"], command["port"]))
        loop = asyncio.get_running_loop()
        link.server = await loop.create_server(lambda: _Client(link), "127.0.0.1", 0, backlog=1024)
        self.links[link.name] = link
        return {"port": link.server.sockets[0].getsockname()[1]}

    def _hold(self, command: dict[str, Any]) -> dict[str, Any]:
        if command["part"] not in PARTS:
            raise ValueError(f"no such part: {command['part']}")
        unknown = set(command["links"]) - set(self.links)
        if unknown:
            raise ValueError(f"no such links: {sorted(unknown)}")
        containing = command.get("containing")
        hold = Hold(
            id=command["id"],
            links=frozenset(command["links"]),
            kind=command["kind"],
            starts=command.get("starts"),
            part=command["part"],
            containing=None if containing is None else frozenset(containing),
            limit=command.get("limit", 1_000_000),
        )
        self.holds[hold.id] = hold
        return {}

    def _release(self, command: dict[str, Any]) -> dict[str, Any]:
        hold = self.holds.pop(command["id"])
        hold.released = True
        held = {token: one.link.name for token, one in hold.held.items()}
        for link in self.links.values():
            for connection in list(link.connections):
                connection.release(hold, deliver=command.get("deliver", True))
        return {"held": held, "at": time.time()}


async def serve(ready_file: Path, parent: int) -> None:
    """Obey whoever is connected to the control port, until the parent is gone."""
    proxy = Proxy()

    async def control(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            try:
                answer = await proxy.obey(json.loads(line))
            except Exception as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(control, "127.0.0.1", 0, limit=1 << 24)
    draft = ready_file.with_suffix(".draft")
    draft.write_text(str(server.sockets[0].getsockname()[1]))
    draft.rename(ready_file)
    while os.getppid() == parent:  # noqa: ASYNC110 - nothing tells of a parent's end
        await asyncio.sleep(PARENT_CHECK_SECONDS)


if __name__ == "__main__":
    uvloop.run(serve(Path(sys.argv[1]), int(sys.argv[2])))
