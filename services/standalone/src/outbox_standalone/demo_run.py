"""One run of the demo, from the empty folder to the verdict."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import rich_click as click
from rich.console import Console

from agent_outbox.commands.tail import tail
from agent_outbox.server import Server
from outbox_standalone import demo_show
from outbox_standalone.demo_cases import CASES, KILLED, case_of, play, run_name
from outbox_standalone.demo_column import Column, OutboxColumn, Provider, Stack
from outbox_standalone.demo_verdict import CURRENCY, Case, Counted, Row, verdict
from outbox_standalone.refusal import Refusal

INTERRUPTED = 130
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Options:
    """How one demo runs.

    Attributes:
        as_json: print a document in place of tables.
        keep: leave the folder.
        redis: whether Redis is used if there is one.
    """

    as_json: bool = False
    keep: bool = False
    redis: bool = True


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of a run.

    Attributes:
        rows: each case.
        reasons: what keeps the run from showing what it should; none is good.
        ledger_entries: of the run in which agent and worker were killed.
        seconds: how long it took, until the last effect was counted.
    """

    rows: tuple[Row, ...]
    reasons: tuple[str, ...]
    ledger_entries: tuple[dict[str, Any], ...]
    seconds: float


def run(options: Options) -> int:
    """Runs the demo and says on standard output what was seen.

    Returns:
        The exit code: 0 when it has shown what it claims, 1 when not, 130 when a signal ended it.

    Raises:
        Refusal: something did not start, or a case did not come to its end.
    """
    _keep_off_proxies()
    console = Console(quiet=options.as_json, highlight=False)
    with _folder(keep=options.keep) as folder:
        try:
            result = asyncio.run(_until_signal(_play(options, folder, console)))
        except asyncio.CancelledError:
            print("Interrupted; everything that was started has ended.", file=sys.stderr)
            return INTERRUPTED
        except Refusal as refusal:
            where = f"The logs are in {folder}." if options.keep else "With --keep the logs stay to be read."
            raise Refusal(f"{refusal}\n{where}") from refusal
        if options.as_json:
            print(json.dumps(document(result), indent=2))
        if options.keep:
            print(f"The folder stays; `outbox up --data-dir {folder / 'data'}` goes on with it.", file=sys.stderr)
    for reason in result.reasons:
        print(f"Error: {reason}", file=sys.stderr)
    return 1 if result.reasons else 0


def document(result: Result) -> dict[str, Any]:
    """A result for machines."""
    return {
        "right": not result.reasons,
        "reasons": list(result.reasons),
        "seconds": round(result.seconds, 1),
        "cases": [
            {
                "case": row.case.name,
                "fault": row.case.fault,
                "planned": row.case.planned,
                "plain": len(row.plain.effects),
                "outbox": len(row.outbox.effects),
                "paid_twice": None if row.case.amount is None else {"value": row.paid_twice, "currency": CURRENCY},
                "told": [one.word for one in row.told],
                "receipts": sorted({one.receipt for one in row.told if one.receipt is not None}),
            }
            for row in result.rows
        ],
        "ledger_entries": list(result.ledger_entries),
    }


def _keep_off_proxies() -> None:
    """Everything here talks to 127.0.0.1, which no proxy of this machine could reach; urllib and httpx read these two."""
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, ("127.0.0.1", os.environ.get(name))))


@contextlib.contextmanager
def _folder(*, keep: bool) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="outbox-demo-"))
    try:
        yield folder
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


async def _until_signal(work: Coroutine[Any, Any, T]) -> T:
    """Runs `work`; a signal cancels it, so that whatever it has opened is closed in order."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, task.cancel)
    return await work


async def _play(options: Options, folder: Path, console: Console) -> Result:
    started = time.monotonic()
    stack = Stack(folder, redis=options.redis)
    with contextlib.ExitStack() as held:
        board = held.enter_context(demo_show.Board(console, CASES))
        # Ending takes a moment, and a person should know of what: entered here, so that it is left after the stack's end.
        board.say("Starting the provider, Postgres, Redis, the API and a worker")
        held.enter_context(stack.running())
        async with contextlib.aclosing(Provider(await stack.wait_for_provider())) as provider:

            async def on_done(column: Column, case: Case) -> None:
                count = _count(await provider.effects(), column.name, case)
                board.done(column.name, case, len(count.effects))

            plain, outbox = Column(provider, folder, on_done), OutboxColumn(provider, folder, on_done, stack)
            for column in (plain, outbox):
                held.callback(column.end)
            board.say("The plain agent; meanwhile the rest starts")
            await play(plain)
            board.say("Starting Postgres, Redis, the API and a worker")
            await stack.wait_until_ready()
            board.say("The same agent through Outbox; a killed worker's lease lapses in 10 s")
            await play(outbox)
            effects = await provider.effects()
        rows = tuple(
            Row(
                case=case,
                plain=_count(effects, plain.name, case),
                outbox=_count(effects, outbox.name, case),
                told=tuple(outbox.told.get(case.name, ())),
            )
            for case in CASES
        )
        strays = [effect["id"] for effect in effects if case_of(effect) is None]
        reasons = tuple(verdict(rows, CASES, strays))
        seconds = time.monotonic() - started
        board.finish(rows, reasons)
        result = Result(rows=rows, reasons=reasons, ledger_entries=_tell(options, stack, console), seconds=seconds)
        if not reasons:
            demo_show.lines_to_paste(console)
        board.ending()
    return result


def _count(effects: Sequence[dict[str, Any]], column: str, case: Case) -> Counted:
    """What the provider counted of one case in one column."""
    own = [effect for effect in effects if case_of(effect) == (column, case)]
    return Counted(effects=tuple(effect["id"] for effect in own), moved=sum(effect.get("amount") or 0 for effect in own))


def _tell(options: Options, stack: Stack, console: Console) -> tuple[dict[str, Any], ...]:
    """Shows the ledger of one run by the command that shows it to everybody; returns its entries.

    Raises:
        Refusal: the server does not answer as it should.
    """
    ready, name = stack.document(), run_name(KILLED)
    try:
        if not options.as_json:
            demo_show.before_tail(console, name)
            tail.main(["--url", ready["url"], "--key", ready["admin_key"], "--run", name], standalone_mode=False)
            return ()
        with Server(ready["url"], ready["admin_key"]) as server:
            return tuple(entry for entry in server.pages("/v1/ledger-entries") if entry.get("run") == name)
    except click.ClickException as error:
        raise Refusal(error.format_message()) from error
