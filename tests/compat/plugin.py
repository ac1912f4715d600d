"""What their tests find when they are run against ours: a gateway, a namespace for each test, and their own old table.

Loaded by `tests.compat.run` with `-p`. Where the environment names no gateway, this process starts one before anything is
collected; else the one that is named is used over HTTP.
"""

import contextlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from tests.compat.left_out import LEFT_OUT
from tests.compat.sdist import constant
from tests.support.postgres import with_database

from agent_outbox.compat.agent_ledger import THEIRS, use_profile

OUTCOMES = "COMPAT_OUTCOMES"
HANDLER_SECONDS = 2.0
"""Their tests leave effects behind that nobody carries out, and wait 30 s for somebody to take them over."""

_running = contextlib.ExitStack()
_outcomes: Counter[str] = Counter()
_left_out: set[str] = set()


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    """Starts a gateway where none is named, and makes the table that a user of theirs has: their conftest reads its address."""
    if not os.environ.get("OUTBOX_URL"):
        from tests.support.outbox_up import running

        folder = Path(_running.enter_context(tempfile.TemporaryDirectory()))
        ready = _running.enter_context(running(folder)).ready()
        os.environ |= {"OUTBOX_URL": ready["url"], "OUTBOX_KEY": ready["agent_key"], "COMPAT_POSTGRES_URL": ready["postgres_url"]}
    server, name = os.environ["COMPAT_POSTGRES_URL"], f"agent_ledger_{uuid4().hex[:12]}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
    os.environ["DATABASE_URL"] = with_database(server, name)
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
        connection.execute(constant("agent_ledger/stores/postgres.py", "SCHEMA_SQL").encode())


def pytest_sessionfinish() -> None:
    """Writes down what came of each test, and ends what was started."""
    document = {"outcomes": _outcomes, "left_out": sorted(_left_out)}
    Path(os.environ[OUTCOMES]).write_text(json.dumps(document), encoding="utf-8")
    _running.close()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what is listed."""
    kept: list[pytest.Item] = []
    left: list[pytest.Item] = []
    for item in items:
        name = "::".join(item.nodeid.partition("[")[0].split("::")[1:])
        (left if name in LEFT_OUT else kept).append(item)
        if name in LEFT_OUT:
            _left_out.add(name)
    config.hook.pytest_deselected(items=left)
    items[:] = kept


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Counts: a test passes once, and fails or is skipped wherever it does."""
    if report.when == "call" or report.outcome != "passed":
        _outcomes[report.outcome] += 1


@pytest.fixture(autouse=True)
def effects_are_the_gateways() -> Iterator[None]:
    """Their rules, in a namespace of this test's own; afterwards their table has no row."""
    use_profile(replace(THEIRS, namespace=f"test-{uuid4().hex}", handler_seconds=HANDLER_SECONDS))
    yield
    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
        found = connection.execute("select count(*) from effects").fetchone()
    assert found == (0,), "an effect was recorded in their table"
