"""agent-ledger 0.2.1 itself at work on a real Postgres. Runs in an environment of its own, without anything of ours.

Arguments: the database, then what is to happen: `charge` (two effects succeed), `fail` (one fails), `die` (killed in its handler).
"""

import asyncio
import os
import signal
import sys
from typing import Any

from agent_ledger import EffectLedger, EffectLedgerOptions, ToolCall  # type: ignore[import-not-found]
from agent_ledger.stores.postgres import SCHEMA_SQL, PostgresStore  # type: ignore[import-not-found]
from psycopg_pool import AsyncConnectionPool


def call(amount: int) -> Any:
    """A charge."""
    return ToolCall(workflow_id="order-123", tool="stripe.charge", args={"amount": amount, "currency": "usd"})


async def charge(effect: Any) -> dict[str, str]:
    """Succeeds."""
    return {"status": "charged", "id": f"ch_{effect.idem_key[:8]}"}


async def fail(effect: Any) -> None:
    """Has no answer."""
    raise TimeoutError("no answer")


async def die(effect: Any) -> None:
    """Is killed before it returns."""
    os.kill(os.getpid(), signal.SIGKILL)


async def main(dsn: str, what: str) -> None:
    """Let it happen."""
    async with AsyncConnectionPool(dsn, open=False) as pool:
        async with pool.connection() as connection:
            await connection.execute(SCHEMA_SQL)
        ledger = EffectLedger(EffectLedgerOptions(store=PostgresStore(pool=pool)))
        if what == "charge":
            print([await ledger.run(call(amount), charge) for amount in (1, 2)])
        elif what == "die":
            await ledger.run(call(4), die)
        else:
            try:
                await ledger.run(call(3), fail)
            except TimeoutError:
                print("failed")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
