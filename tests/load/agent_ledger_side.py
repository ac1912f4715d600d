"""The other side: agent-ledger 0.2.1 with its own Postgres store. Runs in an environment of its own (`agent_ledger_environment`)."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

import uvloop
from agent_ledger import EffectLedger, EffectLedgerOptions, ToolCall  # type: ignore[import-not-found]
from agent_ledger.stores.postgres import SCHEMA_SQL, PostgresStore  # type: ignore[import-not-found]
from psycopg_pool import AsyncConnectionPool
from tests.load.http1 import connected
from tests.load.rounds import Operation
from tests.load.side import DURABILITY, Ready, serve

CONNECTIONS = 32


def _call() -> Any:
    """A refund that was not asked for before."""
    return ToolCall(
        workflow_id=uuid4().hex, tool="stripe.refund.create", args={"payment_intent": f"pi_{uuid4().hex}", "amount": 1200}
    )


@asynccontextmanager
async def ready(addresses: dict[str, Any]) -> AsyncIterator[Ready]:
    """Make its table and open its pool, as its README does.

    Args:
        addresses: `superuser` (Postgres, a database of its own) and `provider`.
    """
    pool = AsyncConnectionPool(conninfo=addresses["superuser"], min_size=CONNECTIONS, max_size=CONNECTIONS, open=False)
    await pool.open(wait=True)
    try:
        async with pool.connection() as connection:
            await connection.execute(SCHEMA_SQL)
            durability = {name: await _shown(connection, name) for name in DURABILITY}
        ledger = EffectLedger(EffectLedgerOptions(store=PostgresStore(pool=pool)))

        @asynccontextmanager
        async def reserving() -> AsyncIterator[Operation]:
            async def handler(effect: Any) -> dict[str, Any]:
                return {"id": "re_1", "status": "succeeded"}

            async def run() -> dict[str, float]:
                await ledger.run(_call(), handler)
                return {}

            yield run

        @asynccontextmanager
        async def calling() -> AsyncIterator[Operation]:
            async with connected(addresses["provider"]) as caller:

                async def handler(effect: Any) -> dict[str, Any]:
                    fields = json.loads(effect.args_canonical) | {"metadata[effect]": effect.id}
                    headers = {
                        "Authorization": "Bearer sk_test_bench",
                        "Content-Type": "application/x-www-form-urlencoded",
                        "Idempotency-Key": effect.idem_key,
                    }
                    status, _, answer = await caller.post("/v1/refunds", headers, urlencode(fields).encode())
                    assert status == 200, answer
                    refund = json.loads(answer)
                    return {name: refund[name] for name in ("id", "status", "amount", "currency")}

                async def run() -> dict[str, float]:
                    result = await ledger.run(_call(), handler)
                    assert result["status"] == "succeeded", result
                    return {}

                yield run

        yield Ready(
            versions={"agent-ledger": version("agent-ledger"), "psycopg": version("psycopg"), "pydantic": version("pydantic")},
            durability=durability,
            operations={"reserve+settle": reserving, "waited call": calling},
        )
    finally:
        await pool.close()


async def _shown(connection: Any, name: str) -> str:
    cursor = await connection.execute(f"show {name}")
    return str((await cursor.fetchone())[0])


if __name__ == "__main__":
    serve(ready, uvloop.new_event_loop)
