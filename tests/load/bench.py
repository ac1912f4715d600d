"""`make bench`: calls per second beside agent-ledger 0.2.1, and what a waited call costs over the provider's own time.

Both sides run on one Postgres server, each in a database and a process of its own, in turns (A B A B ...), so that whatever else
the machine does meets both. docs/benchmarks.md says what each side does for one operation and how to read the table.
"""

import argparse
import asyncio
import contextlib
import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
from tests.load import machine
from tests.load.agent_ledger_environment import python_of_agent_ledger
from tests.load.rounds import Round
from tests.load.side import Side, started
from tests.support.processes import start_command

from outbox_standalone.bootstrap import with_role
from outbox_store import migrate

OPERATIONS = ("reserve+settle", "waited call")
CALLERS = (1, 8, 32)
PARTS = ("reserve", "queue", "provider", "settle")
GOAL_MILLISECONDS = 15.0
READY_SECONDS = 120.0
END_SECONDS = 30.0
OURS, THEIRS = "outbox", "agent-ledger"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is measured.

    Attributes:
        pairs: rounds of each side for each line of the table.
        seconds: of one round.
        warm_seconds: of a round before, which is not counted.
        latency_seconds: of the calls of one caller alone.
    """

    pairs: int
    seconds: float
    warm_seconds: float
    latency_seconds: float


FULL = Plan(pairs=7, seconds=1.5, warm_seconds=1.0, latency_seconds=8.0)
QUICK = Plan(pairs=2, seconds=0.2, warm_seconds=0.1, latency_seconds=0.5)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the comparison; the ratios are of rounds that ran next to each other.

    Attributes:
        outbox_per_second, agent_ledger_per_second: medians of the rounds.
        outbox_milliseconds, agent_ledger_milliseconds: median over all operations, by the caller's clock.
        ratio: median of the ratios, ours to theirs; above 1 ours is faster.
    """

    operation: str
    callers: int
    outbox_per_second: float
    agent_ledger_per_second: float
    outbox_milliseconds: float
    agent_ledger_milliseconds: float
    ratio: float
    ratio_least: float
    ratio_most: float
    ratios: list[float]


def compare(operation: str, callers: int, rounds: Sequence[tuple[Round, Round]]) -> Line:
    """Put pairs of rounds, ours first, into one line."""
    ratios = [ours.per_second / theirs.per_second for ours, theirs in rounds]
    return Line(
        operation=operation,
        callers=callers,
        outbox_per_second=median(ours.per_second for ours, _ in rounds),
        agent_ledger_per_second=median(theirs.per_second for _, theirs in rounds),
        outbox_milliseconds=median(taken for ours, _ in rounds for taken in ours.milliseconds),
        agent_ledger_milliseconds=median(taken for _, theirs in rounds for taken in theirs.milliseconds),
        ratio=median(ratios),
        ratio_least=min(ratios),
        ratio_most=max(ratios),
        ratios=ratios,
    )


def split(calls: Round, plain: Round) -> dict[str, dict[str, float]]:
    """Where the time of a waited call goes, in milliseconds: p50 and p95 of each part.

    Args:
        calls: waited calls of one caller.
        plain: the same request sent to the provider directly, by one caller.
    """
    whole = list(zip(calls.milliseconds, calls.parts, strict=True))
    series = {"client": calls.milliseconds, "added": [taken - parts["provider"] for taken, parts in whole]}
    series |= {name: [parts[name] for _, parts in whole] for name in PARTS}
    series["rest"] = [taken - sum(parts[name] for name in PARTS) for taken, parts in whole]
    series["plain call"] = plain.milliseconds
    return {name: {"p50": median(found), "p95": _percentile_95(found)} for name, found in series.items()}


def _percentile_95(values: Sequence[float]) -> float:
    return quantiles(values, n=20, method="inclusive")[-1] if len(values) > 1 else values[0]


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A running `outbox up` and the two databases beside its own."""

    addresses_of_outbox: Mapping[str, str]
    addresses_of_agent_ledger: Mapping[str, str]
    superuser_urls: Sequence[str]
    redis: bool


def _with_database(url: str, name: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


@contextlib.contextmanager
def stack(folder: Path) -> Iterator[Stack]:
    """Start `outbox up` with all its data in `folder`, and make the databases; all of it ends with the block."""
    ready_file, data = folder / "ready.json", folder / "data"
    outbox = str(Path(sys.executable).with_name("outbox"))
    command = [outbox, "up", "--data-dir", str(data), "--ready-file", str(ready_file)]
    process = start_command(command, folder=folder, name="outbox-up")
    try:
        process.wait_for(ready_file.exists, deadline_seconds=READY_SECONDS)
        ready = json.loads(ready_file.read_text())
        keys = json.loads((data / "keys.json").read_text())
        ours, theirs = (_with_database(ready["postgres_url"], name) for name in ("bench_outbox", "bench_agent_ledger"))
        asyncio.run(_make_databases(ready["postgres_url"], ours))
        yield Stack(
            addresses_of_outbox={
                "superuser": ours,
                "api": with_role(ours, "outbox_api", keys["api_password"]),
                "worker": with_role(ours, "outbox_worker", keys["worker_password"]),
                "outbox": ready["url"],
                "key": ready["agent_key"],
                "provider": ready["sandbox_url"],
            },
            addresses_of_agent_ledger={"superuser": theirs, "provider": ready["sandbox_url"]},
            superuser_urls=(ready["postgres_url"], ours, theirs),
            redis=ready["redis_url"] is not None,
        )
    finally:
        if process.process.poll() is None:
            process.send(signal.SIGTERM)
            with contextlib.suppress(Exception):
                process.wait(deadline_seconds=END_SECONDS)
        process.end()


async def _make_databases(server: str, ours: str) -> None:
    connection = await asyncpg.connect(server)
    try:
        for name in ("bench_outbox", "bench_agent_ledger"):
            await connection.execute(f"create database {name}")
    finally:
        await connection.close()
    await migrate.migrate(ours, roles="existing")


async def _vacuum(urls: Sequence[str]) -> None:
    """Give every database the statistics that autovacuum would give it after its first minute; without them plans are guesses."""
    for url in urls:
        connection = await asyncpg.connect(url)
        try:
            await connection.execute("vacuum analyze")
        finally:
            await connection.close()


def measure(plan: Plan, of: Stack, ours: Side, theirs: Side) -> dict[str, Any]:
    """Run every round; says on the error output what is under way."""
    lines = []
    pairs = [(operation, callers) for operation in OPERATIONS for callers in CALLERS]
    _say("warming up")
    for operation, callers in pairs:
        for side in (ours, theirs):
            side.round(operation, callers=callers, seconds=plan.warm_seconds)
    asyncio.run(_vacuum(of.superuser_urls))
    for operation, callers in pairs:
        rounds = []
        for number in range(plan.pairs):
            _say(f"{operation}, {callers} callers, pair {number + 1} of {plan.pairs}")
            mine = ours.round(operation, callers=callers, seconds=plan.seconds)
            rounds.append((mine, theirs.round(operation, callers=callers, seconds=plan.seconds)))
        lines.append(compare(operation, callers, rounds))
    _say("latency of one caller")
    calls = ours.round("waited call", callers=1, seconds=plan.latency_seconds)
    plain = ours.round("plain call", callers=1, seconds=plan.latency_seconds / 4)
    return {
        "comparison": [asdict(line) for line in lines],
        "one_caller": {"calls": len(calls.milliseconds), "milliseconds": split(calls, plain)},
    }


def _say(what: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{what}", end="", file=sys.stderr, flush=True)


def text(found: Mapping[str, Any]) -> str:
    """The whole report as one readable text."""
    durability = found["durability"]
    settings = ", ".join(f"{name} {value}" for name, value in durability[OURS].items())
    same = "both sides" if durability[OURS] == durability[THEIRS] else f"ours; agent-ledger: {durability[THEIRS]}"
    facts = {
        "date": found["date"],
        "command": found["command"],
        "versions": ", ".join(f"{name} {value}" for name, value in found["versions"].items()),
        "machine": ", ".join(found["machine"].values()),
        "load average": f"{found['load_average_at_start']} at the start, {found['load_average_at_end']} at the end",
        "durability": f"{settings} ({same})",
        "rounds": f"{found['plan']['pairs']} pairs of {found['plan']['seconds']} s each, in turns",
    }
    shown = [f"{name:<13} {value}" for name, value in facts.items()]
    rows = [["operation", "callers", "outbox /s", "agent-ledger /s", "ratio", "least-most", "outbox p50", "agent-ledger p50"]]
    rows += [
        [
            line["operation"],
            str(line["callers"]),
            f"{line['outbox_per_second']:.0f}",
            f"{line['agent_ledger_per_second']:.0f}",
            f"{line['ratio']:.2f}",
            f"{line['ratio_least']:.2f}-{line['ratio_most']:.2f}",
            f"{line['outbox_milliseconds']:.2f} ms",
            f"{line['agent_ledger_milliseconds']:.2f} ms",
        ]
        for line in found["comparison"]
    ]
    parts = found["one_caller"]["milliseconds"]
    meanings = {
        "added": f"client - provider: added over the provider's own time (goal on an idle machine: p50 under {GOAL_MILLISECONDS:.0f} ms)",
        "client": "a waited call by the caller's clock",
        "reserve": "Server-Timing: from the request's arrival to the commit of T1",
        "queue": "Server-Timing: from T1 to the claim, T2",
        "provider": "Server-Timing: from the first byte sent to the provider to the last byte of its answer",
        "settle": "Server-Timing: from the claim to T3, without the provider's part",
        "rest": "client - the four: the waiter woken, the answer read and sent",
        "plain call": "the same request, sent to the provider by the same caller without us",
    }
    times = [["one caller", "p50", "p95", "what it is"]]
    times += [[name, f"{parts[name]['p50']:.2f} ms", f"{parts[name]['p95']:.2f} ms", meanings[name]] for name in meanings]
    return "\n".join([*shown, "", *_table(rows), "", *_table(times), ""])


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned columns: texts to the left, figures to the right."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    last = len(widths) - 1
    figures = [any(row[place][:1].isdigit() for row in rows[1:]) for place in range(len(widths))]
    lines = []
    for row in rows:
        cells = [
            value if place == last and not figures[place] else value.rjust(width) if figures[place] else value.ljust(width)
            for place, (value, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, and write the figures where `--json` says."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny rounds: shows that the bench works and nothing else")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here too")
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="where the data lie meanwhile (default: the system's temporary folder)"
    )
    asked = parser.parse_args(arguments)
    plan = QUICK if asked.quick else FULL
    load = machine.load_average()
    began = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    python = python_of_agent_ledger()
    with contextlib.ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="outbox-bench-", dir=asked.folder)))
        described = machine.described(folder)
        _say("starting outbox up")
        running = held.enter_context(stack(folder))
        ours = held.enter_context(started(OURS, Path(sys.executable), "tests.load.outbox_side", folder / "outbox.log"))
        theirs = held.enter_context(started(THEIRS, python, "tests.load.agent_ledger_side", folder / "agent-ledger.log"))
        ours.prepare(running.addresses_of_outbox)
        theirs.prepare(running.addresses_of_agent_ledger)
        found: dict[str, Any] = {
            "date": began,
            "command": " ".join(["make bench", *(["--quick"] if asked.quick else [])]),
            "versions": machine.versions_here() | ours.versions | {"Redis": "yes" if running.redis else "none"} | theirs.versions,
            "machine": described,
            "load_average_at_start": load,
            "durability": {OURS: ours.durability, THEIRS: theirs.durability},
            "plan": asdict(plan),
            **measure(plan, running, ours, theirs),
            "load_average_at_end": machine.load_average(),
        }
    _say("")
    print(text(found))
    if asked.json is not None:
        asked.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
