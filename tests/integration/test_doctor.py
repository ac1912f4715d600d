"""`outbox doctor` against a database: what holds, what does not, and how it ends."""

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.integration.store.races import Store
from tests.support.ledger import claimed, settled, settlement_of
from tests.support.postgres import Database
from tests.support.processes import start

from outbox_domain.reservation import Outcome
from outbox_store.reserve import reserve

OUTBOX = Path(sys.executable).with_name("outbox")


@pytest.fixture
async def store(database: Database) -> AsyncIterator[Store]:
    """A small world in a database of this test's own."""
    made = await Store.open(database)
    yield made
    await made.close()


def doctor(url: str, *words: str, code: int | None = None) -> str:
    """What the command says, which must end with `code` where one is given."""
    env = {**os.environ, "OUTBOX_POSTGRES_URL": url}
    ended = subprocess.run([str(OUTBOX), "doctor", *words], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert code in (None, ended.returncode), ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


async def several(store: Store) -> None:
    """Two successes, one doubt for a person, one refusal, one that nobody has taken up."""
    rows = [store.world.row() for _ in range(5)]
    await reserve(store.api, rows)
    for row in rows[:2]:
        await settled(store.worker, await claimed(store.worker, row), Outcome.SUCCEEDED)
    await settled(store.worker, await claimed(store.worker, rows[2]), Outcome.UNKNOWN, recover_seconds=None)
    await settled(store.worker, await claimed(store.worker, rows[3]), Outcome.REJECTED)


def examined(store: Store, *words: str) -> dict[str, Any]:
    """The document; the command ends with 0 where it says that all is well, and only there."""
    document: dict[str, Any] = json.loads(doctor(store.database.superuser_url, "--json", *words))
    doctor(store.database.superuser_url, "--json", *words, code=0 if document["well"] else 1)
    durable = all(setting["durable"] for setting in document["durability"])
    assert document["well"] is (durable and not document["broken_invariants"])
    return document


async def test_counts_of_a_window(store: Store) -> None:
    """Planned, succeeded, receipts, doubts and the rest; what is older than the window is not counted."""
    await several(store)
    found = examined(store)
    assert found["broken_invariants"] == {}
    counted = {name: count for name, count in found["window"].items() if count}
    assert counted == {
        "planned": 5, "succeeded": 2, "receipts": 2, "in_doubt": 1, "needs_person": 1, "running": 1, "failed": 1, "attempts": 4,
    }  # fmt: skip
    shown = doctor(store.database.superuser_url)
    assert "planned 5, succeeded 2, receipts 2, in doubt 1 (1 need a person)" in shown
    assert "invariants hold" in shown
    assert set(examined(store, "--since", "0s")["window"].values()) == {0}


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[str]:
    """A sandbox provider of this test's own: its address."""
    ready_file = tmp_path / "sandbox-ready.json"
    process = start("outbox_sandbox", "--port", "0", "--ready-file", str(ready_file), folder=tmp_path)
    try:
        process.wait_for(ready_file.exists)
        yield str(json.loads(ready_file.read_text())["url"])
    finally:
        process.end()


async def refunded(sandbox: str, key: str, marker: str | None) -> str:
    """A refund that the provider has made, however it was asked."""
    fields = {"payment_intent": f"pi_{key}", "amount": "1200"} | ({} if marker is None else {"metadata[outbox]": marker})
    headers = {"Authorization": "Bearer sk_test_1", "Idempotency-Key": key}
    async with httpx2.AsyncClient() as client:
        response = await client.post(f"{sandbox}/v1/refunds", data=fields, headers=headers)
    assert response.status_code == 200, response.text
    return str(response.json()["id"])


async def receipt_of(store: Store, reference: str) -> None:
    """A success with this name of its effect."""
    row = store.world.row()
    await reserve(store.api, [row])
    attempt = await claimed(store.worker, row)
    draft = settlement_of(attempt, Outcome.SUCCEEDED).receipt
    assert draft is not None
    await settled(store.worker, attempt, Outcome.SUCCEEDED, receipt=replace(draft, external_reference=reference))


async def test_what_the_provider_counts(store: Store, sandbox: str) -> None:
    """Its own effects beside our receipts: one with, one without; one done twice and a receipt without an effect are not well."""
    await store.owner.execute(
        "update connections set base_url = $1 where organization_id = $2", sandbox, store.world.organization_id
    )
    done, stray = await refunded(sandbox, "one", "m" * 64), await refunded(sandbox, "two", None)
    await receipt_of(store, done)
    words = ("--sandbox", sandbox)
    provider = examined(store, *words)["provider"]
    assert (provider["counted"], provider["not_counted"]) == (
        {"url": sandbox, "effects": 2, "with_receipt": 1, "without_receipt": [stray], "duplicates": [], "missing": []},
        [],
    )
    shown = doctor(store.database.superuser_url, *words)
    assert "counts 2 effects; 1 have a receipt here, 1 have none" in shown
    again = await refunded(sandbox, "three", "m" * 64)
    await receipt_of(store, "re_that_is_not_there")
    found = json.loads(doctor(store.database.superuser_url, "--json", *words, code=1))
    assert (found["well"], found["broken_invariants"]) == (False, {})
    counted = found["provider"]["counted"]
    assert (counted["duplicates"], counted["missing"]) == ([again], ["re_that_is_not_there"])
    assert "BROKEN  the provider at" in doctor(store.database.superuser_url, *words, code=1)


async def test_a_provider_that_cannot_be_counted(store: Store) -> None:
    """It is said so, with what the receipts rest on instead; a sandbox that is away ends the examination."""
    await several(store)
    found = examined(store)["provider"]
    assert found["counted"] is None
    [account] = found["not_counted"]
    assert (account["planned"], account["receipts"], account["answered"], account["asserted"]) == (5, 2, 2, 0)
    shown = doctor(store.database.superuser_url)
    assert "not counted at the provider: stripe" in shown
    assert "2 receipts of 5 planned rest on answers 2, look-ups 0, webhooks 0, people 0" in shown
    assert "gave no list" in doctor(store.database.superuser_url, "--sandbox", "http://127.0.0.1:1", code=1)


async def test_a_broken_invariant_is_named(store: Store) -> None:
    """A success without its receipt, and a change without its ledger entry, are found with the rows that break the rule."""
    await several(store)
    await store.owner.execute("delete from receipts where id = (select id from receipts limit 1)")
    found = examined(store)
    assert found["well"] is False
    assert list(found["broken_invariants"]) == ["succeeded has exactly one receipt"]
    assert "BROKEN  succeeded has exactly one receipt: " in doctor(store.database.superuser_url, code=1)


async def test_weak_durability_is_named(store: Store) -> None:
    """A role that does not wait for its commits is weak, wherever the server itself stands."""
    name = store.database.name
    await store.owner.execute(f'alter role outbox_api in database "{name}" set synchronous_commit = off')
    try:
        weak = [setting for setting in examined(store)["durability"] if not setting["durable"]]
    finally:
        await store.owner.execute(f'alter role outbox_api in database "{name}" reset synchronous_commit')
    where = f"role outbox_api in database {name}"
    assert {"name": "synchronous_commit", "value": "off", "where": where, "durable": False} in weak


async def test_it_changes_nothing_and_says_what_is_wrong(store: Store, empty_database: Database) -> None:
    """A wrong duration is wrong usage; a database without tables and one that is away end with 1 and one sentence."""
    doctor(store.database.superuser_url, "--since", "yesterday", code=2)
    assert "Nothing was examined" in doctor(empty_database.superuser_url, code=1)
    assert "Nothing was examined" in doctor("postgresql://nobody@127.0.0.1:1/none", code=1)
    assert "Error: " in doctor("", code=1)
