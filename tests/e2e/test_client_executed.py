"""A client that carries its effect out itself is killed in the middle, and a second one finishes: one effect, one receipt."""

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from tests.support import client_agent, processes
from tests.support.api import RunningApi, make_scene, start_api
from tests.support.invariants import assert_invariants
from tests.support.outbox_up import SandboxControl
from tests.support.postgres import Database, run_apart
from tests.support.processes import ChildProcess

from outbox_runtime.sealing import WrappingKey

PATHS = {"A": "/v1/echo", "B": "/v1/tickets"}


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[SandboxControl]:
    """A provider."""
    ready_file = tmp_path / "sandbox-ready.json"
    process = processes.start("outbox_sandbox", "--port", "0", "--ready-file", str(ready_file), folder=tmp_path)
    process.wait_for(ready_file.exists)
    yield SandboxControl(json.loads(ready_file.read_text())["url"])
    process.end()


@pytest.fixture
def api(database: Database, wrapping_key: WrappingKey, tmp_path: Path) -> Iterator[RunningApi]:
    """An API whose clients' leases are short, and no worker at all."""
    running = start_api(processes.start, database, wrapping_key, tmp_path, OUTBOX_CLIENT_LEASE_SECONDS="2")
    yield running
    running.process.end()


@pytest.fixture
def wrapping_key() -> WrappingKey:
    """Wraps the keys of the organization."""
    return WrappingKey.generate()


class Agents:
    """Starts agents of one organization."""

    def __init__(self, folder: Path, api: RunningApi, sandbox: SandboxControl, key: str) -> None:
        """Nothing runs yet."""
        self._folder, self._api, self._sandbox, self._key = folder, api, sandbox, key
        self._count = 0

    def start(self, guarantee_class: str, order: str, *, hang: bool = False) -> ChildProcess:
        """One agent that wants the effect of an order."""
        self._count += 1
        command = [sys.executable, client_agent.__file__, self._api.url, self._key, self._sandbox.url, guarantee_class, order]
        name = f"agent-{self._count}"
        return processes.start_command([*command, "hang"] if hang else command, folder=self._folder, name=name)


def said(agent: ChildProcess) -> list[dict[str, object]]:
    """What an agent has printed."""
    return [json.loads(line) for line in agent.log().splitlines() if line.startswith("{")]


@pytest.mark.parametrize("guarantee_class", ["A", "B"])
def test_killed_between_effect_and_settlement(
    guarantee_class: str, database: Database, wrapping_key: WrappingKey, api: RunningApi, sandbox: SandboxControl, tmp_path: Path
) -> None:
    """kill -9 after the effect and before its settlement: a second process finishes by hand-over (A) or by probe (B), nothing twice."""
    scene = run_apart(make_scene(database, wrapping_key))
    agents, order = Agents(tmp_path, api, sandbox, scene.agent_key), f"o-{uuid4().hex[:8]}"
    first = agents.start(guarantee_class, order, hang=True)
    first.wait_for(lambda: said(first))
    assert len(sandbox.effects(PATHS[guarantee_class])) == 1
    waiting = agents.start(guarantee_class, order)
    first.kill()
    assert waiting.wait(deadline_seconds=60) == 0, waiting.log()
    *done, receipt = said(waiting)
    [effect] = sandbox.effects(PATHS[guarantee_class])
    assert [one["recovering"] for one in done] == ([True] if guarantee_class == "A" else [])
    assert receipt["receipt"]["external_reference"] == said(first)[0]["done"], (effect, receipt)  # type: ignore[index]
    third = agents.start(guarantee_class, order)
    assert third.wait(deadline_seconds=60) == 0, third.log()
    assert said(third)[-1]["receipt"] == receipt["receipt"]
    assert len(sandbox.effects(PATHS[guarantee_class])) == 1
    asyncio.run(assert_invariants(database.superuser_url))


def test_killed_before_its_effect(
    database: Database, wrapping_key: WrappingKey, api: RunningApi, sandbox: SandboxControl, tmp_path: Path
) -> None:
    """kill -9 while the provider has not carried it out: class B probes twice, finds nothing, and does it once."""
    scene = run_apart(make_scene(database, wrapping_key))
    agents, order = Agents(tmp_path, api, sandbox, scene.agent_key), f"o-{uuid4().hex[:8]}"
    sandbox.plan("/v1/tickets", "drop-before-commit")
    first = agents.start("B", order)
    assert first.wait(deadline_seconds=60) != 0
    assert sandbox.effects("/v1/tickets") == []
    second = agents.start("B", order)
    assert second.wait(deadline_seconds=60) == 0, second.log()
    assert len(sandbox.effects("/v1/tickets")) == 1
    assert said(second)[-1]["replayed"] is True
    asyncio.run(assert_invariants(database.superuser_url))
