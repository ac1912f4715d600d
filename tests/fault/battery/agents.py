"""The agents of a battery: two processes that carry effects out themselves, told what to do and heard by this one."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.fault.battery.callers import PAUSE_SECONDS, PAUSE_SECONDS_MAX, WAIT_SECONDS_MAX, History

NUMBERS = (1, 2)
PATIENCE_SECONDS = 240.0
"""Longer than of those who wait for a worker: nobody but its callers brings such an effect to its end."""

CALL_SECONDS = 60.0
AMOUNT = 1200
TIME_LIMIT_SECONDS = SETTLE_SECONDS = 4.0


@dataclass(frozen=True, kw_only=True)
class WantedByAgent:
    """A call of `run` as it is made again and again.

    Attributes:
        tool: one of the agents' own.
        key: the scoped key.
        sandbox: the provider, by its name in the ground.
        conflicting: it uses another caller's operation key with another input.
        run: the caller's.
        wait_seconds: for how long others' attempts are waited for.
        time_limit_seconds: of the handler.
        settle_seconds: of the contract. With the limit, and the lease before it, it is longer than what a stopped agent or a slow
            provider is late by.
    """

    token: str
    tool: str
    key: str
    sandbox: str
    conflicting: bool = False
    run: str | None = None
    wait_seconds: int = WAIT_SECONDS_MAX
    time_limit_seconds: float = TIME_LIMIT_SECONDS
    settle_seconds: float = SETTLE_SECONDS


class Lost(Exception):
    """The process has ended, or was never heard of again."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A call that an agent was told and has not answered."""

    agent: int
    token: str
    writer: asyncio.StreamWriter
    answer: asyncio.Future[dict[str, Any]]


class Agents:
    """Those that are connected, and the calls that they have not answered yet."""

    def __init__(self) -> None:
        """Nobody is connected yet."""
        self.port = 0
        self._writers: dict[int, asyncio.StreamWriter] = {}
        self._process_ids: dict[int, int] = {}
        self._open: dict[int, Asked] = {}
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Agents can connect during this block."""
        server = await asyncio.start_server(self._hear, "127.0.0.1", 0, limit=1 << 22)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()
            for writer in self._writers.values():
                writer.close()
            async with self._changed:
                await self._changed.wait_for(lambda: not self._writers)

    def is_present(self, number: int, process_id: int) -> bool:
        """Whether an agent is connected, as this process."""
        return self._process_ids.get(number) == process_id

    def carrying(self, token: str) -> set[int]:
        """The agents that are at a call for this operation key."""
        return {of.agent for of in self._open.values() if of.token == token}

    async def ask(
        self, history: History, number: int, wanted: WantedByAgent, process: int, *, provider_ports: Mapping[str, int]
    ) -> str:
        """Has an agent repeat a call until its answer is final; returns its last word: `ok`, `fail` or `info`.

        Args:
            history: of the run.
            number: of the agent.
            wanted: the call.
            process: of the history.
            provider_ports: where the agent's links to the sandboxes are, by the sandbox's name.
        """
        give_up = time.monotonic() + PATIENCE_SECONDS
        pause = PAUSE_SECONDS
        while True:
            more = {"conflicting": True} if wanted.conflicting else {}
            of = history.invoke(process, wanted.token, agent=number, **more)
            order = {
                "call": of["call"],
                "tool": wanted.tool,
                "token": wanted.token,
                "key": wanted.key,
                "provider": f"http://127.0.0.1:{provider_ports[wanted.sandbox]}",
                "amount": AMOUNT + 100 * wanted.conflicting,
                "run": wanted.run,
                "wait": wanted.wait_seconds,
                "time_limit": wanted.time_limit_seconds,
                "settle": f"{wanted.settle_seconds:g}s",
                "forgets": wanted.sandbox == "forgetful",
            }
            try:
                told = await self._call(number, order)
            except Lost as error:
                told = {"type": "info", "code": str(error)}
            last: str = told["type"]
            final = told.pop("final", False)
            history.end(of, **told)
            if last != "info" or final or time.monotonic() >= give_up:
                return last
            await asyncio.sleep(pause)
            pause = min(pause * 1.7, PAUSE_SECONDS_MAX)

    async def _call(self, number: int, order: Mapping[str, Any]) -> dict[str, Any]:
        """One call of an agent that is there, or comes back soon.

        Raises:
            Lost: it ended meanwhile, or has not answered for long.
        """
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(CALL_SECONDS):
                async with self._changed:
                    await self._changed.wait_for(lambda: number in self._writers)
                of = Asked(agent=number, token=order["token"], writer=self._writers[number], answer=answer)
                self._open[order["call"]] = of
                try:
                    of.writer.write(json.dumps(order).encode() + b"\n")
                except RuntimeError:
                    # Its end was heard of in this very turn: uvloop refuses to write to what it has closed.
                    raise Lost("the agent has ended") from None
                return await answer
        except TimeoutError:
            raise Lost("silent") from None
        finally:
            self._open.pop(order["call"], None)

    async def _hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hello = json.loads(await reader.readline())
        number = hello["agent"]
        self._writers[number], self._process_ids[number] = writer, hello["process_id"]
        async with self._changed:
            self._changed.notify_all()
        with contextlib.suppress(OSError):
            while line := await reader.readline():
                told = json.loads(line)
                # Of a call that was given up nobody waits for the answer.
                of = self._open.get(told.pop("call"))
                if of is not None and not of.answer.done():
                    of.answer.set_result(told)
        writer.close()
        if self._writers[number] is writer:
            del self._writers[number], self._process_ids[number]
        for of in self._open.values():
            if of.writer is writer and not of.answer.done():
                of.answer.set_exception(Lost("the agent has ended"))
        async with self._changed:
            self._changed.notify_all()
