"""`python -m tests.fault.battery`: the fault battery as a command.

Ends with 0 when every property held, with 1 when one was violated; what was violated is printed, and the history is kept.
"""

import argparse
import asyncio
import itertools
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import uvloop
from tests.fault.battery import report, schedule
from tests.fault.battery.callers import History
from tests.fault.battery.ground import running
from tests.fault.battery.run import Result, Run, empty_cells

PROGRESS_MIN = 0.5
SAY_EVERY_SECONDS = 60.0
VIOLATIONS_SHOWN = 40
INTERRUPTED = "it was interrupted"
REPEATED = ("operations", "minutes", "per_round", "connections", "disk_megabytes", "nemeses")
"""The options that a run is repeated with, beside its seed."""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fault.battery", description=__doc__)
    parser.add_argument("--operations", type=int, default=2_000, help="calls that must have ended with a fault on their path")
    parser.add_argument("--minutes", type=float, default=None, help="begin no new round after so long")
    parser.add_argument("--seed", type=int, default=None, help="the schedule's seed; one is drawn unless given")
    parser.add_argument("--per-round", type=int, default=50, help="operation keys in each round at least")
    parser.add_argument("--connections", type=int, default=300, help="connections of each provider in each organization")
    parser.add_argument("--disk-megabytes", type=int, default=3000, help="size of the small disk that Postgres is given")
    parser.add_argument("--nemeses", default=None, help="only nemeses whose name contains this")
    parser.add_argument("--evidence", type=Path, default=None, help="write the page of the result here")
    parser.add_argument("--folder", type=Path, default=None, help="where logs and the history are kept")
    return parser.parse_args()


async def _run(arguments: argparse.Namespace, seed: int, folder: Path) -> Result:
    chosen = tuple(name for name in schedule.NEMESES if arguments.nemeses is None or arguments.nemeses in name)
    if not chosen:
        raise SystemExit(f"no nemesis has {arguments.nemeses!r} in its name")
    stop = asyncio.Event()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signal_number, stop.set)
    async with running(folder, connections_each=arguments.connections, disk_megabytes=arguments.disk_megabytes) as ground:
        print(f"everything answers; logs and history are in {folder}", flush=True)
        # By lines: however the run ends, what has happened is in it.
        with (folder / "history.jsonl").open("w", buffering=1) as file:
            run = Run(ground, seed=seed, history=History(file=file), stop=stop)
            await run.warm_up()
            ended = await _until_enough(run, arguments, chosen)
            print(f"{ended}; waiting for what is under way", flush=True)
            await run.rest()
            if stop.is_set():
                ended = INTERRUPTED
        result = await run.result(progress_min=PROGRESS_MIN)
        if arguments.evidence is not None:
            # Where its files lie is of no interest to who repeats the run.
            told = {name: value for name, value in vars(arguments).items() if name in REPEATED and value is not None}
            options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in {**told, "seed": seed}.items())
            command = f'make fault-battery ARGS="{options}"'
            redis = None if ground.redis is None else ground.redis.version
            versions = report.versions(ground.postgres.binaries.version, redis)
            page = report.page(result, nemeses=chosen, command=command, versions=versions, ended=ended)
            arguments.evidence.parent.mkdir(parents=True, exist_ok=True)
            arguments.evidence.write_text(page)
        return result


async def _until_enough(run: Run, arguments: argparse.Namespace, nemeses: Sequence[str]) -> str:
    """Pass after pass, until no cell is empty and enough calls met a fault; returns why it ended, in words."""
    began = said = time.monotonic()
    empty: list[schedule.Cell] = []
    for number in itertools.count():
        copies = min(1 + number, schedule.COPIES_MAX) if empty else 1
        cells = empty or schedule.possible_cells(nemeses)
        drawn = schedule.a_pass(run.seed, number, cells=cells, copies=copies, keys_min=arguments.per_round)
        print(f"pass {number}: {len(drawn)} rounds for {len(cells)} cells", flush=True)
        for round in drawn:
            minutes = (time.monotonic() - began) / 60
            if run.stop.is_set():
                return INTERRUPTED
            if arguments.minutes is not None and minutes > arguments.minutes:
                return f"its {arguments.minutes:g} minutes were over"
            await run.strike(round)
            if time.monotonic() - said > SAY_EVERY_SECONDS:
                said = time.monotonic()
                filled, met = await run.standing()
                print(
                    f"{minutes:.1f} min: round {round.number} of {len(drawn)}, {met} of {run.history.ended} calls met a fault, "
                    f"{len(run.operations)} keys, {len(filled)} cells",
                    flush=True,
                )
                if met >= arguments.operations and not _empty(run, filled, nemeses):
                    return "no cell was empty and enough calls had met a fault"
        # What was held last must have met its fault before it can be said that it has not.
        await run.pause()
        if run.stop.is_set():
            return INTERRUPTED
        filled, met = await run.standing()
        empty = _empty(run, filled, nemeses)
        if met >= arguments.operations and not empty:
            return "no cell was empty and enough calls had met a fault"
    raise AssertionError("passes do not end")


def _empty(run: Run, filled: Counter[schedule.Cell], nemeses: Sequence[str]) -> list[schedule.Cell]:
    return empty_cells(filled, [name for name in nemeses if name not in run.missing])


def main() -> int:
    """Run as told; say what was found."""
    arguments = _arguments()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(1 << 31)
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="battery-"))
    folder.mkdir(parents=True, exist_ok=True)
    print(f"seed {seed}", flush=True)
    result = uvloop.run(_run(arguments, seed, folder))
    struck = [name for name in schedule.NEMESES if name not in result.missing and any(cell[0] == name for cell in result.cells)]
    print(
        f"{result.calls} calls ({result.faulted_calls} with a fault on their path) of {result.keys} keys ({result.faulted_keys}), {result.rounds} rounds, {result.seconds:.0f} s"
    )
    print(f"{len(result.cells)} cells filled, {len(empty_cells(result.cells, struck))} empty among the nemeses that struck")
    if result.restless:
        print(f"{result.restless} further keys had not come to rest and are not counted")
    for nemesis, reason in result.missing.items():
        print(f"not struck: {nemesis}: {reason}")
    for name, of in result.classes.items():
        print(
            f"{name}: {of.keys} keys, {of.duplicates} duplicates, {of.lost} lost, {of.resolved} of {of.doubted} doubts resolved"
        )
    for violation in result.found[:VIOLATIONS_SHOWN]:
        print(f"VIOLATED {violation.property}: {violation.token} {violation.detail}")
    return 1 if result.found else 0


if __name__ == "__main__":
    sys.exit(main())
