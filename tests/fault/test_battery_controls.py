"""The battery can fail: without one guard of the product its script ends in the violation that the guard is there for.

The same scripts, all at once against the whole product, end without any.
"""

import asyncio
from pathlib import Path

import pytest
from tests.fault.battery.checker import check
from tests.fault.battery.ground import make_tenant, running
from tests.fault.battery.run import Run
from tests.fault.battery.scenarios import CONTROLS, SETTINGS, Control, Script

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]


async def play(run: Run, control: Control, *, weak: bool) -> None:
    """One script in an organization of its own."""
    changes = {**control.contract, **(control.weak if weak else {})}
    tenant = await make_tenant(run.ground, control.provider, number=1, **changes)
    token = f"op{CONTROLS.index(control) + 1:016x}"
    await control.script(Script(run=run, tenant=tenant, provider=control.provider, token=token, tool=control.tool))


async def test_with_all_guards_every_script_ends_well(tmp_path: Path) -> None:
    """Every order of events that breaks the promise without some guard: with all of them nothing is violated, all comes to receipts."""
    async with running(tmp_path, connections_each=1, settings=SETTINGS) as ground:
        run = Run(ground, seed=0)
        await run.warm_up(4)
        async with asyncio.TaskGroup() as group:
            for control in CONTROLS:
                group.create_task(play(run, control, weak=False))
        await run.rest()
        evidence = await run.evidence()
    assert check(evidence, progress_min=1.0) == []


@pytest.mark.parametrize("control", CONTROLS, ids=[control.guard for control in CONTROLS])
async def test_without_a_guard_the_battery_names_what_is_violated(tmp_path: Path, control: Control) -> None:
    """The script of a missing guard violates the property that the guard is there for."""
    async with running(
        tmp_path,
        connections_each=1,
        settings=SETTINGS,
        unguarded=control.unguarded,
        without=control.without,
        agents=control.by_agents,
    ) as ground:
        run = Run(ground, seed=0)
        await play(run, control, weak=True)
        await run.rest()
        evidence = await run.evidence()
        log = ground.log()
    violated = {one.property for one in check(evidence, progress_min=0.0)}
    assert violated >= control.properties, log
