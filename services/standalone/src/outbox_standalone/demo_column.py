"""What the demo plays on: the provider that counts, the agent's processes, and `outbox up` between the two in one column."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2

from outbox_standalone import child
from outbox_standalone.demo_verdict import Case, Told
from outbox_standalone.refusal import Refusal

PROVIDER_KEY = "sk_test_demo"
_READY_SECONDS = 120.0
_CASE_SECONDS = 90.0
_STOP_SECONDS = 30.0
_POLL_SECONDS = 0.01


async def _until(condition: Callable[[], bool], *, what: str, deadline_seconds: float) -> None:
    """Waits until `condition` holds.

    Raises:
        Refusal: it did not within the deadline.
    """
    deadline = time.monotonic() + deadline_seconds
    while not condition():
        if time.monotonic() >= deadline:
            raise Refusal(f"The demo waited {deadline_seconds:.0f} s in vain until {what}.")
        await asyncio.sleep(_POLL_SECONDS)


class Provider:
    """The sandbox provider: faults are planned for it, and it counts what took effect."""

    def __init__(self, url: str) -> None:
        """Nothing is asked yet."""
        self.url = url
        self._client = httpx2.AsyncClient(base_url=url, trust_env=False)

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    async def _ask(self, method: str, path: str, content: Mapping[str, object] | None = None) -> list[dict[str, Any]]:
        try:
            answer = await self._client.request(method, f"/_control/{path}", json=content)
            answer.raise_for_status()
        except httpx2.HTTPError as error:
            raise Refusal(f"The sandbox provider does not answer as it should: {error or type(error).__name__}.") from error
        found = answer.json()
        return found if isinstance(found, list) else []

    async def plan(self, path: str, fault: str, *, delay_seconds: float = 1.0) -> None:
        """Plans a fault for the next request to `path`."""
        await self._ask("POST", "faults", {"path": path, "fault": fault, "delay_seconds": delay_seconds})

    async def struck(self, path: str) -> None:
        """Waits until no fault is planned for `path` any more: each of them has met a request.

        Raises:
            Refusal: one of them met none.
        """
        deadline = time.monotonic() + _CASE_SECONDS
        while any(fault["path"] == path for fault in await self._ask("GET", "faults")):
            if time.monotonic() >= deadline:
                raise Refusal(f"A fault that was planned for {path} met no request.")
            await asyncio.sleep(_POLL_SECONDS)

    async def effects(self) -> list[dict[str, Any]]:
        """Everything that took effect, oldest first."""
        return await self._ask("GET", "effects")


class Column:
    """One way in which the same agent calls its tools. This one is the plain way: straight to the provider."""

    name = "plain"

    def __init__(self, provider: Provider, folder: Path, on_done: Callable[["Column", Case], Awaitable[None]]) -> None:
        """Nothing runs yet.

        Args:
            provider: whom the tools call in the end.
            folder: where what the agents write is kept.
            on_done: told of each case that has come to its end.
        """
        self.provider = provider
        self.told: dict[str, list[Told]] = {}
        self._folder = folder
        self._on_done = on_done
        self._agents: list[subprocess.Popen[bytes]] = []

    def addresses(self) -> dict[str, str]:
        """What the agent is told of where its tools are."""
        return {"PROVIDER_URL": self.provider.url, "PROVIDER_KEY": PROVIDER_KEY}

    async def agent(self, case: Case, task: Mapping[str, Any]) -> None:
        """Runs the agent on a task to its end and keeps what it was told.

        Raises:
            Refusal: it did not come to an end, or not to a good one; the message shows what it wrote.
        """
        process, written = self._start(case, task)
        await _until(
            lambda: process.poll() is not None,
            what=f"the agent ({self.name}) came to an end: {case.fault}",
            deadline_seconds=_CASE_SECONDS,
        )
        lines = written.read_text(errors="replace").splitlines()
        if process.returncode != 0:
            raise Refusal(f"The agent ({self.name}, {case.fault}) came to a bad end:\n" + "\n".join(lines[-12:]))
        self.told.setdefault(case.name, []).extend(_told(json.loads(line)) for line in lines)

    async def agent_killed(self, case: Case, task: Mapping[str, Any], *, when: Callable[[], Awaitable[None]]) -> None:
        """Starts the agent on a task and kills it by SIGKILL as soon as `when()` has come to its end.

        Raises:
            Refusal: the agent had ended before.
        """
        process, written = self._start(case, task)
        await when()
        if process.poll() is not None:
            raise Refusal(f"The agent ({self.name}, {case.fault}) ended too early:\n{written.read_text(errors='replace')}")
        child.stop(process, with_signal=signal.SIGKILL, grace_seconds=_STOP_SECONDS)

    async def restart(self) -> None:
        """Restarts what stands between agent and provider: in this column, nothing."""

    async def done(self, case: Case) -> None:
        """Says that a case has come to its end."""
        await self._on_done(self, case)

    def end(self) -> None:
        """Ends every agent that still runs."""
        for process in self._agents:
            child.stop(process, with_signal=signal.SIGKILL, grace_seconds=_STOP_SECONDS)

    def _start(self, case: Case, task: Mapping[str, Any]) -> tuple[subprocess.Popen[bytes], Path]:
        written = self._folder / f"{self.name}-{case.name}-{len(self._agents) + 1}.log"
        command = [sys.executable, "-P", "-m", "outbox_standalone.demo_agent", self.name, json.dumps(task)]
        process = child.start(
            command, environment=clean_environment() | self.addresses(), log=written, death_signal=signal.SIGKILL
        )
        self._agents.append(process)
        return process, written


class OutboxColumn(Column):
    """The other way: through Outbox, whose worker calls the provider."""

    name = "outbox"

    def __init__(
        self, provider: Provider, folder: Path, on_done: Callable[[Column, Case], Awaitable[None]], stack: "Stack"
    ) -> None:
        """Nothing runs yet but the stack."""
        super().__init__(provider, folder, on_done)
        self._stack = stack

    def addresses(self) -> dict[str, str]:
        """What the agent is told of where its tools are."""
        ready = self._stack.document()
        return {"OUTBOX_URL": ready["url"], "OUTBOX_KEY": ready["agent_key"]}

    async def agent_killed(self, case: Case, task: Mapping[str, Any], *, when: Callable[[], Awaitable[None]]) -> None:
        """As in the plain column, and the worker is killed with it: here it is what holds the connection to the provider."""
        await super().agent_killed(case, task, when=when)
        await self._stack.kill("worker")

    async def restart(self) -> None:
        """Kills API and worker by SIGKILL and waits until they run again."""
        await self._stack.kill("api", "worker")


class Stack:
    """An `outbox up` of the demo's own, as a child process."""

    def __init__(self, folder: Path, *, redis: bool) -> None:
        """Nothing runs yet.

        Args:
            folder: for its data and its ready file.
            redis: whether it uses Redis.
        """
        self.data_dir = folder / "data"
        self._ready_file = folder / "ready.json"
        self._log = folder / "up.log"
        self._redis = redis
        self._process: subprocess.Popen[bytes] | None = None

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Starts it; on leaving, ends it and everything it started."""
        command = [sys.executable, "-P", "-c", "from outbox_standalone.up import up; up()"]
        command += ["--data-dir", str(self.data_dir), "--ready-file", str(self._ready_file)]
        command += [] if self._redis else ["--no-redis"]
        self._process = child.start(command, environment=clean_environment(), log=self._log)
        try:
            yield
        finally:
            child.stop(self._process, with_signal=signal.SIGTERM, grace_seconds=_STOP_SECONDS)

    def _log_tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-12:])

    def _is(self, condition: Callable[[], bool]) -> bool:
        """Whether a condition holds while the process runs.

        Raises:
            Refusal: it has ended; the message shows the end of its log.
        """
        if self._process is None or self._process.poll() is not None:
            raise Refusal(f"`outbox up` ended before the demo did. The end of its log:\n{self._log_tail()}")
        return condition()

    async def wait_for_provider(self) -> str:
        """Waits until its sandbox provider answers, long before the rest does; returns the address."""
        announced = self.data_dir / "sandbox.json"
        await _until(lambda: self._is(announced.exists), what="the sandbox provider answered", deadline_seconds=_READY_SECONDS)
        url: str = json.loads(announced.read_text())["url"]
        return url

    async def wait_until_ready(self) -> None:
        """Waits until everything answers."""
        await _until(lambda: self._is(self._ready_file.exists), what="`outbox up` was ready", deadline_seconds=_READY_SECONDS)

    def document(self) -> dict[str, Any]:
        """The ready file."""
        found: dict[str, Any] = json.loads(self._ready_file.read_text())
        return found

    async def kill(self, *kinds: str) -> None:
        """Kills by SIGKILL every process of these kinds, and waits until others answer in their place."""
        before = {kind: self.document()["pids"][kind] for kind in kinds}
        for process_ids in before.values():
            for process_id in process_ids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process_id, signal.SIGKILL)

        def are_others() -> bool:
            now = self.document()["pids"]
            return all(now[kind] and not set(now[kind]) & set(old) for kind, old in before.items())

        await _until(lambda: self._is(are_others), what=f"{' and '.join(kinds)} ran again", deadline_seconds=_READY_SECONDS)


def clean_environment() -> dict[str, str]:
    """This process's environment without settings of Outbox, which are meant for other servers than the demo's own."""
    return {name: value for name, value in os.environ.items() if not name.startswith("OUTBOX_")}


def _told(answer: Mapping[str, Any]) -> Told:
    """What matters of one answer; one of the plain column has nothing of it."""
    receipt = answer.get("receipt") or None
    return Told(
        word=str(answer.get("code") or answer.get("state") or answer.get("status")),
        receipt=json.dumps(receipt, sort_keys=True) if receipt else None,
        external_reference=receipt["external_reference"] if receipt else None,
    )
