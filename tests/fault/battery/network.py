"""The network of a battery: links through the proxy process, their faults and their holds."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.support.processes import ChildProcess, start

from outbox_store import claim, reserve, settle

ROOT = Path(__file__).resolve().parents[3]
HEAD = 160
"""So much of a statement's text tells it from the others; a guard that a test takes out stands further down."""

STATEMENTS = {"reserve": reserve.INSERT[:HEAD], "claim": claim.CLAIM[:HEAD], "settle": settle.SETTLE[:HEAD]}
assert len(set(STATEMENTS.values())) == len(STATEMENTS)


@dataclass(kw_only=True)
class Held:
    """A hold that stands, to be released."""

    network: "Network"
    id: str = field(default_factory=lambda: uuid4().hex)

    async def tokens(self) -> dict[str, str]:
        """The operation keys whose message has reached the edge, each with its link."""
        answer = await self.network.say(do="held", id=self.id)
        found: dict[str, str] = answer["held"]
        return found

    async def reached(self, number: int, *, deadline_seconds: float) -> dict[str, str]:
        """Waits until so many have reached the edge, or the deadline; returns who has."""
        loop = asyncio.get_running_loop()
        end = loop.time() + deadline_seconds
        while len(found := await self.tokens()) < number and loop.time() < end:  # noqa: ASYNC110 - another process knows
            await asyncio.sleep(0.01)
        return found

    async def release(self, *, deliver: bool = True) -> dict[str, str]:
        """Lets everything go on, or resets the connections that were held; returns who was held."""
        answer = await self.network.say(do="release", id=self.id, deliver=deliver)
        found: dict[str, str] = answer["held"]
        return found


class Network:
    """Speaks for the proxy process, one command at a time."""

    def __init__(self, process: ChildProcess, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Made by `running`."""
        self.process = process
        self.ports: dict[str, int] = {}
        self._reader, self._writer = reader, writer
        self._turn = asyncio.Lock()

    async def say(self, **command: Any) -> dict[str, Any]:
        """One command and its answer.

        Raises:
            RuntimeError: the proxy refused it.
        """
        async with self._turn:
            self._writer.write(json.dumps(command).encode() + b"\n")
            await self._writer.drain()
            line = await self._reader.readline()
        if not line:
            raise RuntimeError(f"the proxy has ended:\n{self.process.log()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    async def link(self, name: str, protocol: str, host: str, port: int) -> int:
        """A port that leads to a server; of a link that there is already, the way is changed."""
        answer = await self.say(do="link", name=name, protocol=protocol, host=host, port=port)
        self.ports[name] = answer["port"]
        return self.ports[name]

    async def strike(self, links: Iterable[str], kind: str, **how: float) -> float:
        """Begins a fault on links; returns when, in seconds since the epoch."""
        at: float = (await self.say(do="strike", links=list(links), kind=kind, **how))["at"]
        return at

    async def heal(self, links: Iterable[str]) -> float:
        """Ends their faults; returns when."""
        at: float = (await self.say(do="heal", links=list(links)))["at"]
        return at

    async def hold(
        self,
        links: Iterable[str],
        *,
        part: str,
        statement: str | None = None,
        method: str | None = None,
        resource: str | None = None,
        containing: Sequence[str] | None = None,
        limit: int = 1_000_000,
    ) -> Held:
        """Stops connections where they send a statement, or a request of a method.

        Args:
            links: on which.
            part: of it, as `proxy.Hold` has them.
            statement: one of `STATEMENTS`, or its beginning.
            method: of a request; "" where anything is meant.
            resource: the last segment of the request's path; None: any.
            containing: tokens that are meant; None: all.
            limit: how many connections at once.
        """
        held = Held(network=self)
        await self.say(
            do="hold",
            id=held.id,
            links=list(links),
            part=part,
            kind="B" if statement is not None else method or "",
            starts=resource if statement is None else STATEMENTS.get(statement, statement),
            containing=containing,
            limit=limit,
        )
        return held

    async def accepted(self, link: str) -> int:
        """How many connections a link has taken."""
        found: int = (await self.say(do="counts"))["accepted"][link]
        return found


@contextlib.asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Network]:
    """A proxy process without links, for this block."""
    ready_file = folder / f"proxy-{uuid4().hex[:8]}.port"
    process = start(
        "tests.fault.battery.proxy",
        str(ready_file),
        str(os.getpid()),
        folder=folder,
        name=ready_file.stem,
        env={"PYTHONPATH": str(ROOT)},
    )
    try:
        await asyncio.to_thread(process.wait_for, ready_file.exists)
        reader, writer = await asyncio.open_connection("127.0.0.1", int(ready_file.read_text()), limit=1 << 24)
        try:
            yield Network(process, reader, writer)
        finally:
            writer.close()
    finally:
        process.end()
