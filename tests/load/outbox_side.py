"""Our side: T1, T2 and T3 through `outbox_store`, tool calls through the API of a running stack, and a plain call to the provider."""

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

import asyncpg
import uvloop
from tests.load.http1 import connected
from tests.load.rounds import Operation
from tests.load.side import DURABILITY, Ready, serve
from tests.support.ledger import claim_of, make_world, settlement_of

from outbox_domain.reservation import Outcome
from outbox_runtime.postgres import Pool, acquire, open_pool
from outbox_runtime.settings import PostgresSettings, read
from outbox_store.claim import TRIES_MAX, Claimed, claim
from outbox_store.connection import prepare
from outbox_store.reserve import Won, reserve
from outbox_store.settle import settle

CONNECTIONS = 32
_PART = re.compile(r"(\w+);dur=([\d.]+)")


@asynccontextmanager
async def _pool(url: str) -> AsyncIterator[Pool]:
    """A pool as the services open theirs, with a connection for every caller."""
    settings = {
        "OUTBOX_POSTGRES_URL": url,
        "OUTBOX_POSTGRES_POOL_MIN": str(CONNECTIONS),
        "OUTBOX_POSTGRES_POOL_MAX": str(CONNECTIONS),
    }
    pool = await open_pool(read(PostgresSettings, settings), application_name="bench")
    try:
        yield pool
    finally:
        await pool.close()


@asynccontextmanager
async def ready(addresses: dict[str, Any]) -> AsyncIterator[Ready]:
    """Connect as the services do, each of T1, T2, T3 under the role that runs it.

    Args:
        addresses: `superuser`, `api` and `worker` (Postgres), `outbox` (the API), `key`, `provider`.
    """
    superuser = await asyncpg.connect(addresses["superuser"])
    await prepare(superuser)
    world = await make_world(superuser)
    await superuser.close()
    refund = {"payment_intent": "", "amount": 1200}
    headers = {"Authorization": f"Bearer {addresses['key']}", "Content-Type": "application/json"}

    async with _pool(addresses["api"]) as api, _pool(addresses["worker"]) as worker:

        async def reserve_and_settle() -> dict[str, float]:
            row = world.row(f"refund:pi_{uuid4().hex}")
            async with acquire(api) as connection:
                [won] = await reserve(connection, [row])
            assert isinstance(won, Won), won
            async with acquire(worker) as connection:
                [attempt] = await claim(connection, [claim_of(row)])
            assert isinstance(attempt, Claimed), attempt
            async with acquire(worker) as connection:
                await settle(connection, [settlement_of(attempt, Outcome.SUCCEEDED)], tries_max=TRIES_MAX)
            return {}

        @asynccontextmanager
        async def reserving() -> AsyncIterator[Operation]:
            yield reserve_and_settle

        @asynccontextmanager
        async def calling() -> AsyncIterator[Operation]:
            async with connected(addresses["outbox"]) as caller:

                async def call() -> dict[str, float]:
                    input = refund | {"payment_intent": f"pi_{uuid4().hex}"}
                    body = json.dumps({"tool": "stripe.refund.create", "input": input, "reference": "bench"}).encode()
                    status, head, answer = await caller.post("/v1/tool-calls", headers, body)
                    found = json.loads(answer)
                    assert (status, found["state"], found["replayed"]) == (200, "succeeded", False), answer
                    return {name: float(milliseconds) for name, milliseconds in _PART.findall(head)}

                yield call

        @asynccontextmanager
        async def calling_the_provider() -> AsyncIterator[Operation]:
            async with connected(addresses["provider"]) as caller:

                async def call() -> dict[str, float]:
                    body = urlencode(refund | {"payment_intent": f"pi_{uuid4().hex}", "metadata[outbox]": uuid4().hex})
                    plain = {
                        "Authorization": "Bearer sk_test_bench",
                        "Content-Type": "application/x-www-form-urlencoded",
                        "Idempotency-Key": uuid4().hex,
                    }
                    status, _, answer = await caller.post("/v1/refunds", plain, body.encode())
                    assert status == 200, answer
                    return {}

                yield call

        async with acquire(worker) as connection:
            durability = {name: str(await connection.fetchval(f"show {name}")) for name in DURABILITY}
            postgres = str(await connection.fetchval("show server_version"))
        yield Ready(
            versions={"Postgres": postgres, "asyncpg": version("asyncpg"), "granian": version("granian"), "arq": version("arq")},
            durability=durability,
            operations={"reserve+settle": reserving, "waited call": calling, "plain call": calling_the_provider},
        )


if __name__ == "__main__":
    serve(ready, uvloop.new_event_loop)
