"""`outbox doubts` and `outbox explain` as a person types them, against an API process."""

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.integration.api.test_doubts import NOT_YET, doubt, standing
from tests.support.api import RunningApi, Scene, StandIn, stand_in
from tests.support.invariants import assert_invariants

OUTBOX = Path(sys.executable).with_name("outbox")


@pytest.fixture
async def worker(scene: Scene) -> AsyncIterator[StandIn]:
    """Plays the worker of this test's organization; the invariants hold when the test is over."""
    async with stand_in(scene) as made:
        yield made
    await assert_invariants(scene.database.superuser_url)


def outbox(api: RunningApi, key: str, *words: str, code: int = 0) -> str:
    """What the command says, which must end with `code`."""
    env = {**os.environ, "OUTBOX_URL": api.url, "OUTBOX_KEY": key, "COLUMNS": "250"}
    ended = subprocess.run([str(OUTBOX), *words], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == code, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


async def test_the_summary_is_printed(api: RunningApi, scene: Scene, agent: httpx2.AsyncClient, worker: StandIn) -> None:
    """Counts, money, cause and what happens next stand in the table; `--json` is the answer of the API; none is said so."""
    assert "No doubts." in outbox(api, scene.admin_key, "doubts")
    for number in range(2):
        await doubt(agent, worker, f"pi_{number}", recovery_due=number == 0)
    shown = outbox(api, scene.admin_key, "doubts")
    assert "stripe.refund.create" in shown
    assert "1 resend in" in shown
    assert "PAGE payments: 1 on stripe wait for a person (answer lost; stripe.refund.create; the oldest" in shown
    assert "2 in doubt, 1 need a person; at stake 24.00 EUR" in shown
    summary = json.loads(outbox(api, scene.admin_key, "doubts", "--where", "needs=person", "--json"))
    assert summary["count"] == 1


@pytest.mark.parametrize("rate", [(), ("--rate", "20/s")])
async def test_many_are_answered(
    api: RunningApi, scene: Scene, agent: httpx2.AsyncClient, worker: StandIn, rate: tuple[str, ...]
) -> None:
    """A wrong count ends with 1 and changes nothing; a dry run shows; the right count settles all under one batch, paced or not."""
    ids = [await doubt(agent, worker, f"pi_{number}") for number in range(4)]
    words = [
        "doubts",
        "resolve",
        "--where",
        "cause=answer lost",
        "--as",
        "did-not-happen",
        "--reason",
        "The provider was down.",
        *rate,
    ]
    assert "These are 4 doubts, not 3" in outbox(api, scene.admin_key, *words, "--expect", "3", code=1)
    assert "4 would be done" in outbox(api, scene.admin_key, *words, "--expect", "4", "--dry-run")
    assert {(await standing(scene, id))["state"] for id in ids} == {"in_doubt"}
    done = json.loads(outbox(api, scene.admin_key, *words, "--expect", "4", "--json"))
    assert (done["done"], done["refused"]) == (4, 0)
    entries = await scene.fetch("select detail from ledger_entries where {own} and to_state = 'failed'")
    batches = [entry["detail"]["evidence"][0]["detail"]["batch_id"] for entry in entries]
    assert batches == [done["batch_id"]] * 4


async def test_what_happened_is_named(
    api: RunningApi, scene: Scene, agent: httpx2.AsyncClient, worker: StandIn, tmp_path: Path
) -> None:
    """One reference for one doubt; a file of them for several, paced too; a reference for several is wrong usage."""
    ids = [await doubt(agent, worker, f"pi_{number}", absence_in_seconds=NOT_YET) for number in range(3)]
    words = ["doubts", "resolve", "--as", "happened", "--reason", "Seen there."]
    outbox(api, scene.admin_key, *words, "--expect", "3", "--reference", "re_0", code=2)
    outbox(api, scene.admin_key, *words, "--where", f"reservation={ids[0]}", "--expect", "1", "--reference", "re_0")
    file = tmp_path / "references.csv"
    file.write_text(f"{ids[1]},re_1\n\n{ids[2]} re_2\n")
    outbox(api, scene.admin_key, *words, "--expect", "2", "--references", str(file), "--rate", "600/m")
    assert [(await standing(scene, id))["external_reference"] for id in ids] == ["re_0", "re_1", "re_2"]


async def test_recovery_is_overridden_or_begun_again(
    api: RunningApi, scene: Scene, agent: httpx2.AsyncClient, worker: StandIn
) -> None:
    """While recovery is due an answer ends with 1; an override needs evidence; a recheck hands what is left back to recovery."""
    await doubt(agent, worker, "pi_1", recovery_due=True)
    words = ["doubts", "resolve", "--as", "did-not-happen", "--reason", "Down.", "--expect", "1"]
    assert "recovery-due" in outbox(api, scene.admin_key, *words, code=1)
    assert "$.evidence" in outbox(api, scene.admin_key, *words, "--override", code=1)
    outbox(api, scene.admin_key, *words, "--override", "--evidence", "https://status.example/7")
    id = await doubt(agent, worker, "pi_2")
    assert "1 done" in outbox(api, scene.admin_key, "doubts", "recheck", "--reason", "It is back.", "--expect", "1")
    assert (await standing(scene, id))["due_at"].year < 2100


async def test_words_that_are_off(api: RunningApi, scene: Scene) -> None:
    """An unknown condition, a rate that is none and a missing count are wrong usage; an agent's key is told that it is the key."""
    recheck = ("doubts", "recheck", "--reason", "x")
    outbox(api, scene.admin_key, "doubts", "--where", "colour=red", code=2)
    outbox(api, scene.admin_key, *recheck, "--expect", "0", "--rate", "fast", code=2)
    outbox(api, scene.admin_key, *recheck, code=2)
    outbox(api, scene.agent_key, *recheck, "--expect", "0", code=4)
    outbox(api, scene.agent_key, "doubts", code=4)


async def test_one_effect_is_explained(api: RunningApi, scene: Scene, agent: httpx2.AsyncClient, worker: StandIn) -> None:
    """One timeline: who asked, each attempt with its outcome, the doubt, what is ahead; and who ended it, once somebody did."""
    id = await doubt(agent, worker, absence_in_seconds=NOT_YET, run="thread-1")
    shown = outbox(api, scene.agent_key, "explain", str(id))
    lines = shown.splitlines()
    assert lines[0].startswith("refund:pi_1  stripe.refund.create  in_doubt")
    order = [
        next(place for place, line in enumerate(lines) if word in line)
        for word in ("reserved", "attempt 1 begun", "attempt 1 unknown")
    ]
    assert order == sorted(order)
    assert "by agent:refunds, run thread-1, 12.00 EUR, class A" in lines[order[0]]
    assert "answer lost" in shown
    assert "Only a person can end this doubt now" in shown
    assert "That it did not happen counts in" in shown
    outbox(
        api,
        scene.admin_key,
        "doubts",
        "resolve",
        "--as",
        "happened",
        "--reason",
        "Seen.",
        "--expect",
        "1",
        "--reference",
        "re_[b]1",
    )
    ended = outbox(api, scene.agent_key, "explain", str(id))
    assert "re_[b]1, asserted, says member:admin@example.com" in ended
    assert "Only a person" not in ended
    detail: dict[str, Any] = json.loads(outbox(api, scene.agent_key, "explain", str(id), "--json"))
    assert detail["state"] == "succeeded"
    assert "not-found" in outbox(api, scene.agent_key, "explain", "x", code=1)
