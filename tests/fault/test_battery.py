"""The fault battery, bounded: a few rounds of nemeses at edges, with every fault of the provider among the calls they meet.

`make fault-battery` runs it at length (docs/evidence/faults.md). The seed is drawn and printed; the run repeats by it.
"""

import random
from pathlib import Path

import pytest
from tests.fault.battery import schedule
from tests.fault.battery.ground import running
from tests.fault.battery.run import Run

PROGRESS_MIN = 0.4
KEYS_PER_ROUND = 20


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_nothing_happens_twice_and_nothing_is_lost(tmp_path: Path) -> None:
    """Whatever strikes wherever: at most one effect per key, every receipt has its effect, every doubt has its reason."""
    seed = random.SystemRandom().randrange(1 << 31)
    print(f"seed {seed}")
    async with running(tmp_path) as ground:
        run = Run(ground, seed=seed)
        await run.warm_up()
        # Each kind of part is struck at least once; which of its nemeses, and at which edge, is the seed's choice.
        dice = random.Random(seed)
        kinds = ("api", "worker", "postgres", "redis", "caller-api", "worker-provider", "worker-postgres", "agent")
        chosen = [dice.choice([name for name in schedule.NEMESES if kind in name]) for kind in kinds]
        cells: set[schedule.Cell] = set()
        for nemesis in sorted(set(chosen)):
            possible = schedule.possible_cells([nemesis])
            stage = dice.choice([stage for stage in schedule.STAGES if any(cell[2] in stage for cell in possible)])
            there = [cell for cell in possible if cell[2] in stage]
            cells |= set(dice.sample(there, KEYS_PER_ROUND))
        for round in schedule.a_pass(seed, 0, cells=cells):
            print(f"{round.nemesis} at {', '.join(round.edges)}")
            await run.strike(round)
        await run.rest()
        result = await run.result(progress_min=PROGRESS_MIN)
        print(result.fired, result.missing, ground.log() if result.found else "")
    assert result.found == []
    # The others warm up, or go ahead of a round, or are to meet nothing.
    assert result.faulted_keys >= 0.65 * result.keys
    assert sum(result.cells.values()) > 0
