"""`python -m tests.fault.battery`: the fault battery as a command.

Ends with 0 when every property held, with 1 when one was violated; what was violated is printed, and the history is kept.
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

import uvloop
from tests.fault.battery import report, schedule
from tests.fault.battery.callers import History
from tests.fault.battery.ground import running
from tests.fault.battery.run import Result, Run, empty_cells

PROGRESS_MIN = 0.5
SAY_EVERY_SECONDS = 30.0
VIOLATIONS_SHOWN = 40
REPEATED = ("operations", "minutes", "per_round", "connections", "disk_megabytes", "nemeses")
"""The options that a run is repeated with, beside its seed."""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fault.battery", description=__doc__)
    parser.add_argument("--operations", type=int, default=2_000, help="calls that must have ended with a fault on their path")
    parser.add_argument("--minutes", type=float, default=None, help="begin no new round after so long")
    parser.add_argument("--seed", type=int, default=None, help="the schedule's seed; one is drawn unless given")
    parser.add_argument("--per-round", type=int, default=20, help="operation keys in each round")
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
    async with running(folder, connections_each=arguments.connections, disk_megabytes=arguments.disk_megabytes) as ground:
        print(f"everything answers; logs and history are in {folder}", flush=True)
        began = said = time.monotonic()
        with (folder / "history.jsonl").open("w") as file:
            run = Run(ground, seed=seed, history=History(file=file))
            await run.warm_up()
            for round in schedule.rounds(seed, operations_per_round=arguments.per_round, nemeses=chosen):
                minutes = (time.monotonic() - began) / 60
                if run.history.ended >= arguments.operations or (arguments.minutes is not None and minutes > arguments.minutes):
                    break
                await run.strike(round)
                if time.monotonic() - said > SAY_EVERY_SECONDS:
                    said = time.monotonic()
                    print(
                        f"{minutes:.1f} min: round {round.number}, {run.history.ended} calls of {len(run.operations)} keys",
                        flush=True,
                    )
            await run.rest()
        result = await run.result(progress_min=PROGRESS_MIN)
        if arguments.evidence is not None:
            # Where its files lie is of no interest to who repeats the run.
            told = {name: value for name, value in vars(arguments).items() if name in REPEATED and value is not None}
            options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in {**told, "seed": seed}.items())
            command = f'make fault-battery ARGS="{options}"'
            redis = None if ground.redis is None else ground.redis.version
            versions = report.versions(ground.postgres.binaries.version, redis)
            arguments.evidence.parent.mkdir(parents=True, exist_ok=True)
            arguments.evidence.write_text(report.page(result, command=command, versions=versions))
        return result


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
    for nemesis, reason in result.missing.items():
        print(f"not struck: {nemesis}: {reason}")
    for name, of in result.classes.items():
        print(
            f"class {name}: {of.keys} keys, {of.duplicates} duplicates, {of.lost} lost, {of.resolved} of {of.doubted} doubts resolved"
        )
    for violation in result.found[:VIOLATIONS_SHOWN]:
        print(f"VIOLATED {violation.property}: {violation.token} {violation.detail}")
    return 1 if result.found else 0


if __name__ == "__main__":
    sys.exit(main())
