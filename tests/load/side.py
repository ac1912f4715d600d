"""One side of the comparison as a child process: JSON lines in, JSON lines out. Standard library only.

First line in: the addresses. First line out: versions and how durable its database connection is. Then one line per round:
`{"operation", "callers", "seconds"}` in, `{"seconds", "milliseconds", "parts"}` out. It ends when its input ends.
"""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.load.rounds import Opened, Round, run_round

DURABILITY = ("fsync", "synchronous_commit", "full_page_writes", "wal_sync_method")
"""Server settings that say whether a commit survives a power cut; each side asks its own connection."""

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Ready:
    """What a side says of itself, and what it can do.

    Attributes:
        versions: of what it runs on.
        durability: the values of `DURABILITY`.
        operations: by name.
    """

    versions: dict[str, str]
    durability: dict[str, str]
    operations: Mapping[str, Opened]


def serve(prepare: Callable[[dict[str, Any]], AbstractAsyncContextManager[Ready]], loop_factory: Any) -> None:
    """The child's whole life.

    Args:
        prepare: makes the side ready for the addresses it is given.
        loop_factory: of its event loop.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    # Whatever a library prints must not get between the answers.
    os.dup2(2, 1)

    async def live() -> None:
        lines = _lines()
        async with prepare(json.loads(await anext(lines))) as ready:
            print(json.dumps({"versions": ready.versions, "durability": ready.durability}), file=answers)
            async for line in lines:
                asked = json.loads(line)
                opened = ready.operations[asked["operation"]]
                came = await run_round(opened, callers=asked["callers"], seconds=asked["seconds"])
                print(json.dumps(asdict(came)), file=answers)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(live())


async def _lines() -> AsyncIterator[str]:
    while line := await asyncio.to_thread(sys.stdin.readline):
        yield line


class Side:
    """A running child, seen from the bench."""

    def __init__(self, name: str, process: "subprocess.Popen[str]", log: Path) -> None:
        """Made by `started`."""
        self.name = name
        self.versions: dict[str, str] = {}
        self.durability: dict[str, str] = {}
        self._process = process
        self._log = log

    def prepare(self, addresses: Mapping[str, str]) -> None:
        """Hand over the addresses and wait until it is ready."""
        said = self._ask(addresses)
        self.versions, self.durability = said["versions"], said["durability"]

    def round(self, operation: str, *, callers: int, seconds: float) -> Round:
        """Have it run one round."""
        return Round(**self._ask({"operation": operation, "callers": callers, "seconds": seconds}))

    def _ask(self, question: Mapping[str, object]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise SystemExit(f"{self.name} ended in the middle of the bench:\n{self._log.read_text(errors='replace')[-4000:]}")
        said: dict[str, Any] = json.loads(line)
        return said


@contextmanager
def started(name: str, python: Path, module: str, log: Path) -> Iterator[Side]:
    """A side in a process of its own; ended with the block.

    Args:
        name: for people.
        python: the interpreter of its environment.
        module: what it runs.
        log: where its error output goes.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OUTBOX_", "OTEL_", "PYTHON"))}
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [str(python), "-m", module],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        yield Side(name, process, log)
    finally:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.close()
            process.wait(10)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            process.kill()
            process.wait()
        process.stdout.close()
