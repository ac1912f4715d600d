"""Effects that agent-ledger 0.2.1 recorded in a real Postgres, brought over and replayed by ours without running a handler."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
from psycopg import sql
from tests.load.agent_ledger_environment import python_of_agent_ledger
from tests.rules.house import ROOT
from tests.support.outbox_up import OutboxUp
from tests.support.postgres import with_database

from agent_outbox import AsyncOutbox
from agent_outbox.compat.agent_ledger import Effect, EffectInDoubtError, EffectLedger, EffectLedgerOptions, OutboxStore, ToolCall

EXPECTED = {"succeeded": 2, "failed": 0, "doubt": 2, "already": 0, "left_out": 0, "conflicts_count": 0}
THEIRS_SECONDS = 60.0


def check(up: OutboxUp) -> list[str]:
    """Let theirs happen, bring it over, and ask ours for the same; returns what was not as expected.

    Args:
        up: a running gateway whose Postgres holds their database too.
    """
    server, name = up.ready()["postgres_url"], f"agent_ledger_{uuid4().hex[:12]}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
    dsn = with_database(server, name)
    for what, ends in (("charge", 0), ("fail", 0), ("die", -signal.SIGKILL)):
        command = [str(python_of_agent_ledger()), str(ROOT / "tests" / "compat" / "theirs.py"), dsn, what]
        # In a folder where nothing of ours can be imported by mistake.
        done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=THEIRS_SECONDS, check=False)
        if done.returncode != ends:
            return [f"agent-ledger did not {what}: {done.stderr}"]
    wrong = []
    for times, expected in enumerate((EXPECTED, {**EXPECTED, "succeeded": 0, "doubt": 0, "already": 4})):
        counted = _import(up, dsn)
        if {name: counted.get(name) for name in expected} != expected:
            wrong.append(f"import {times + 1}: {counted} instead of {expected}")
    return wrong + asyncio.run(_replay(up))


def _import(up: OutboxUp, dsn: str) -> dict[str, Any]:
    environment = {**os.environ, "OUTBOX_URL": up.url, "OUTBOX_KEY": up.ready()["agent_key"]}
    command = [str(Path(sys.executable).with_name("outbox")), "import", "agent-ledger", "--dsn", dsn, "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=THEIRS_SECONDS, check=False)
    found: dict[str, Any] = json.loads(done.stdout) if done.stdout else {"error": done.stderr}
    return found


async def _replay(up: OutboxUp) -> list[str]:
    ran: list[str] = []

    async def handler(effect: Effect) -> None:
        ran.append(effect.idem_key)

    async with AsyncOutbox(url=up.url, key=up.ready()["agent_key"]) as client:
        ledger: EffectLedger[None] = EffectLedger(EffectLedgerOptions(store=OutboxStore(client)))
        calls = [
            ToolCall(workflow_id="order-123", tool="stripe.charge", args={"amount": amount, "currency": "usd"})
            for amount in (1, 2, 3, 4)
        ]
        wrong = []
        for one in calls[:2]:
            result, expected = await ledger.run(one, handler), {"status": "charged", "id": f"ch_{ledger.idem_key(one)[:8]}"}
            wrong += [] if result == expected else [f"{result} was replayed instead of {expected}"]
        for one in calls[2:]:
            try:
                wrong.append(f"{await ledger.run(one, handler)} came of what nobody knows the end of")
            except EffectInDoubtError:
                continue
    return wrong + [f"the handler ran for {idem_key}" for idem_key in ran]
