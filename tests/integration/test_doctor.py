"""`outbox doctor` against a database: what holds, what does not, and how it ends."""

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.store.races import Store
from tests.support.ledger import claimed, settled
from tests.support.postgres import Database

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
