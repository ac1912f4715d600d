"""A fresh environment of one test: a project and a key of its own, and the faults that are played in it."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2

from agent_outbox.async_client import AsyncOutbox
from agent_outbox.client import Outbox
from agent_outbox.effect import Effect
from agent_outbox.results import CallResult, Done, InDoubt, Waiting
from agent_outbox.testing.agents import Agent, AgentFailed, Edge, Journal
from agent_outbox.testing.local_server import Server
from agent_outbox.testing.story import FAULTS, Story
from agent_outbox.tool_call import ToolCall

LOOPS = 5
FORKS = 4
WAIT_SECONDS = 45.0
"""How long an agent waits for another's attempt: past the lease of one that was killed."""

RECORDED_SECONDS = 30.0
POLL_SECONDS = 0.02
ITEMS_MAX = 200

Handler = Callable[[Effect], Any]


class LostAnswer(Exception):
    """The kit's: the effect has happened, and its answer is lost on the way."""


@dataclass(frozen=True)
class Environment:
    """A project that no other test has anything in common with.

    Operation keys, runs and records never cross a project, so tests may use the same names and values.

    Attributes:
        server: where it is.
        project: its name.
        key: a scoped key of an agent, bound to it.
        folder: of this test; the journal and the spools of agents.
    """

    server: Server
    project: str
    key: str
    folder: Path

    @property
    def url(self) -> str:
        """Of the gateway."""
        return self.server.url

    def client(self, **settings: Any) -> Outbox:
        """A client of this environment.

        Args:
            settings: as `Outbox` takes them.
        """
        return Outbox(url=self.url, key=self.key, **{"spool": self.folder / f"spool-{uuid.uuid4().hex}", **settings})

    def async_client(self, **settings: Any) -> AsyncOutbox:
        """An asyncio client of this environment."""
        return AsyncOutbox(url=self.url, key=self.key, **{"spool": self.folder / f"spool-{uuid.uuid4().hex}", **settings})

    def play(self, fault: str, call: ToolCall, handler: Handler | None = None, **options: Any) -> Story:
        """Ask for one effect while a fault happens, as often as an agent would, and say what came of it.

        The agents are processes, forked from this one.

        Args:
            fault: one of `FAULTS`.
            call: what is asked for, the same each time; its run and step are the kit's where it does not state them.
            handler: the tool's own code, sync or async; it is given the `Effect` in the agent's process. Without one the gateway
                carries the call out.
            options: as `Outbox.run` takes them (`key`, `guarantee_class`, `receipt`, `time_limit`, `probe`, ...); without a
                handler as `Outbox.call` does.

        Returns:
            The story; `assert_once` and `assert_never_twice` judge it.

        Raises:
            ValueError: there is no such fault.
            AgentFailed: an agent raised, the text is its traceback.
        """
        if fault not in FAULTS:
            raise ValueError(f"{fault!r} is not one of {', '.join(FAULTS)}")
        journal = Journal(self.folder / f"journal-{uuid.uuid4().hex}")
        stage = _Stage(environment=self, call=call, handler=handler, options=options, journal=journal)
        before, made_before = self._ledger(), self._provider_effects()
        told = {"time-out": stage.time_out, "crash": stage.crash, "loop": stage.loop, "fork": stage.fork}[fault]()
        return self._story(fault, told, before, made_before, stage)

    def _story(self, fault: str, told: list[str], before: _Ledger, made_before: int | None, stage: _Stage) -> Story:
        after, executions = self._ledger(), stage.journal.executions()
        ended = [one.provider_key for one in executions if one.ended]
        made = self._provider_effects()
        effects: int | None
        if stage.handler is None:
            effects = None if made is None or made_before is None else made - made_before
        else:
            effects = len(set(ended)) if after.guarantee_class == "A" else len(ended)
        return Story(
            fault=fault,
            told=tuple(told),
            planned=after.planned - before.planned,
            succeeded=after.succeeded - before.succeeded,
            receipts=len(after.references) - len(before.references),
            references=tuple(each for each in after.references if each not in before.references),
            executions=sum(not one.ended for one in executions),
            effects=effects,
        )

    def _ledger(self) -> _Ledger:
        """What this environment's key sees of the ledger: everything of its project."""
        reservations, receipts = (self._list(f"/v1/{what}") for what in ("reservations", "receipts"))
        classes = {one["guarantee_class"] for one in reservations}
        return _Ledger(
            planned=len({(one["tool"], one["operation_key"]) for one in reservations}),
            succeeded=sum(one["state"] == "succeeded" for one in reservations),
            references=tuple(str(one["external_reference"]) for one in receipts),
            guarantee_class=classes.pop() if len(classes) == 1 else None,
        )

    def _list(self, path: str) -> list[dict[str, Any]]:
        with httpx2.Client(base_url=self.url, headers={"Authorization": f"Bearer {self.key}"}, timeout=30.0) as client:
            items: list[dict[str, Any]] = []
            cursor: str | None = None
            while True:
                query = {"limit": str(ITEMS_MAX), **({} if cursor is None else {"cursor": cursor})}
                page = client.get(path, params=query).raise_for_status().json()
                items += page["items"]
                if page["next_cursor"] is None or not page["items"]:
                    return items
                cursor = page["next_cursor"]

    def _provider_effects(self) -> int | None:
        if self.server.sandbox_url is None:
            return None
        return len(httpx2.get(f"{self.server.sandbox_url}/_control/effects", timeout=30.0).raise_for_status().json())

    def is_recorded(self) -> bool:
        """Whether the ledger knows of any effect here."""
        return bool(self._list("/v1/reservations"))


@dataclass(frozen=True)
class _Ledger:
    planned: int
    succeeded: int
    references: tuple[str, ...]
    guarantee_class: str | None


@dataclass(frozen=True)
class _Stage:
    """One fault with everything that it is played with."""

    environment: Environment
    call: ToolCall
    handler: Handler | None
    options: dict[str, Any]
    journal: Journal

    def time_out(self) -> list[str]:
        """The answer is lost; the agent asks again."""
        lost = Agent(lambda: [self._ask(after=_lose)]).told() if self.handler else self._gone()
        return [*lost, *Agent(lambda: [self._ask()]).told()]

    def crash(self) -> list[str]:
        """The agent is killed between the effect and the moment at which anybody knows of it; it asks again."""
        if self.handler is None:
            return [*self._gone(), *Agent(lambda: [self._ask()]).told()]
        edge = Edge()
        with contextlib.closing(edge):
            agent = Agent(lambda: [self._ask(after=edge.wait_here)])
            if not agent.kill_at(edge):
                raise AgentFailed(f"the handler was never run to its end: {agent.told()}")
        return ["killed", *Agent(lambda: [self._ask()]).told()]

    def loop(self) -> list[str]:
        """One agent asks in step after step."""
        return Agent(lambda: [self._ask(step=str(step)) for step in range(LOOPS)]).told()

    def fork(self) -> list[str]:
        """Copies of the agent ask at the same moment."""
        agents = [Agent(self._asking(run=f"fork-{number}")) for number in range(FORKS)]
        return [word for agent in agents for word in agent.told()]

    def _asking(self, run: str) -> Callable[[], list[str]]:
        return lambda: [self._ask(run=run)]

    def _gone(self) -> list[str]:
        """An agent whose call the gateway carries out is killed as soon as the call is recorded."""
        agent = Agent(lambda: [self._ask()])
        deadline = time.monotonic() + RECORDED_SECONDS
        while not self.environment.is_recorded():
            if time.monotonic() > deadline:
                raise AgentFailed(f"the call was not recorded within {RECORDED_SECONDS:g} s: {agent.told()}")
            time.sleep(POLL_SECONDS)
        agent.kill()
        return ["killed"]

    def _ask(self, *, run: str = "agent", step: str | None = None, after: Callable[[], None] | None = None) -> str:
        """In the agent: ask once. `after` is what happens when the handler has done its work."""
        call = self.call if step is None else replace(self.call, step=step)
        settings: dict[str, Any] = {"run": run, "wait": WAIT_SECONDS}
        if self.handler is None:
            with contextlib.closing(self.environment.client(**settings)) as client:
                return _word(client.call(call, **self.options))
        if inspect.iscoroutinefunction(self.handler):
            return asyncio.run(self._ask_async(call, settings, self.handler, after))
        handler = self.handler

        def carry_out(effect: Effect) -> Any:
            self.journal.note(effect.provider_key, ended=False)
            result = handler(effect)
            self.journal.note(effect.provider_key, ended=True)
            if after is not None:
                after()
            return result

        with contextlib.closing(self.environment.client(**settings)) as client:
            return _word(client.run(call, carry_out, **self.options))

    async def _ask_async(
        self, call: ToolCall, settings: dict[str, Any], handler: Handler, after: Callable[[], None] | None
    ) -> str:
        async def carry_out(effect: Effect) -> Any:
            self.journal.note(effect.provider_key, ended=False)
            result = await handler(effect)
            self.journal.note(effect.provider_key, ended=True)
            if after is not None:
                after()
            return result

        async with self.environment.async_client(**settings) as client:
            return _word(await client.run(call, carry_out, **self.options))


def _lose() -> None:
    raise LostAnswer("the answer was lost on the way")


def _word(result: CallResult) -> str:
    """What an agent was told, in a word."""
    if isinstance(result, Done):
        return "done"
    if isinstance(result, InDoubt):
        return "in-doubt"
    return "waiting" if isinstance(result, Waiting) else "refused"
