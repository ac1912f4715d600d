"""`python -m outbox_sandbox`: the sandbox provider as a process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import rich_click as click

from outbox_sandbox.records import Records
from outbox_sandbox.server import KEY_LIFE_SECONDS, Sandbox, serving

PARENT_CHECK_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How one sandbox process runs."""

    host: str
    """Address to listen on."""
    port: int
    """Port to listen on; 0 takes a free one."""
    state_file: Path | None
    """SQLite file that keeps effects and keys over a restart; None keeps them in memory."""
    ready_file: Path | None
    """File written when the provider answers, removed when it ends."""
    parent_pid: int | None
    """Process with which this one ends; None: only a signal ends it."""
    key_life_seconds: float
    """How long the answer to an idempotency key is kept."""


async def run(settings: Settings) -> None:
    """Serve until a signal comes or the parent is gone."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with contextlib.closing(Records(str(settings.state_file or ":memory:"))) as records:
        sandbox = Sandbox(records, key_life_seconds=settings.key_life_seconds)
        async with serving(sandbox, host=settings.host, port=settings.port) as url:
            with _announced(url, settings.ready_file):
                await _wait_for_end(stop, settings.parent_pid)


@contextlib.contextmanager
def _announced(url: str, ready_file: Path | None) -> Iterator[None]:
    """Say where the provider is: on standard output, and in a ready file that is never seen half written."""
    print(f"sandbox provider: {url}", flush=True)
    if ready_file is None:
        yield
        return
    draft = ready_file.with_name(f"{ready_file.name}.{os.getpid()}")
    draft.write_text(json.dumps({"url": url, "pid": os.getpid()}))
    draft.replace(ready_file)
    try:
        yield
    finally:
        ready_file.unlink(missing_ok=True)


async def _wait_for_end(stop: asyncio.Event, parent_pid: int | None) -> None:
    """Until told to stop, or until the parent is another process than the one that was named: it has ended."""
    while parent_pid is None or os.getppid() == parent_pid:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if parent_pid is None else PARENT_CHECK_SECONDS):
                await stop.wait()
                return


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, show_default=True, help="Port to listen on; 0 takes a free one."
)
@click.option("--state-file", type=click.Path(path_type=Path), help="SQLite file that keeps effects and keys over a restart.")
@click.option("--ready-file", type=click.Path(path_type=Path), help="File to write {url, pid} to when the provider answers.")
@click.option("--parent-pid", type=int, help="End when this process, which must be the parent, has ended.")
@click.option(
    "--key-life",
    "key_life_seconds",
    type=click.FloatRange(min=0),
    default=KEY_LIFE_SECONDS,
    show_default=True,
    help="Seconds for which the answer to an idempotency key is kept.",
)
def main(
    host: str, port: int, state_file: Path | None, ready_file: Path | None, parent_pid: int | None, key_life_seconds: float
) -> None:
    """Run a provider that misbehaves on purpose and counts its effects.

    It speaks enough of Stripe and SendGrid for the shipped tools, and two resources of its own (/v1/tickets, /v1/echo).
    Read its effects at /_control/effects, plan faults at /_control/faults.
    """
    settings = Settings(
        host=host,
        port=port,
        state_file=state_file,
        ready_file=ready_file,
        parent_pid=parent_pid,
        key_life_seconds=key_life_seconds,
    )
    try:
        asyncio.run(run(settings))
    except (OSError, sqlite3.Error) as error:
        print(f"the sandbox provider could not run: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
