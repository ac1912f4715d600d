"""Asks for an effect inside the caller's own Postgres transaction: it is asked for if, and only if, the transaction commits.

```python
with psycopg.connect(dsn) as connection:
    connection.execute("update orders set refunded = true where id = 8841")
    enqueue(connection, ToolCall(tool="stripe.refund.create", input={...}, reference="case-8841"))
```

Nothing is sent here. A relay (`outbox relay`) submits what was committed; until then nothing of it is known to the gateway.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable
from importlib.resources import files
from typing import Any, Protocol, overload
from uuid import uuid4

from agent_outbox import strict_json
from agent_outbox.errors import SettingsError, malformed
from agent_outbox.tool_call import ToolCall

INSERT = "insert into agent_outbox_calls (id, tool, call) values ($1::uuid, $2, $3)"


class SyncExecutes(Protocol):
    """A connection of psycopg."""

    def cursor(self) -> Any:
        """A cursor."""

    def commit(self) -> None:
        """Commits."""


class AsyncExecutes(Protocol):
    """A connection of asyncpg, or an asynchronous one of psycopg."""

    def execute(self, query: Any, /) -> Awaitable[Any]:
        """Runs a statement."""


def enqueue_ddl() -> str:
    """The statements that make the table which `enqueue` writes to.

    Returns:
        SQL for Postgres, `agent_outbox/enqueue.sql`; running it again changes nothing.
    """
    return files("agent_outbox").joinpath("enqueue.sql").read_text(encoding="utf-8")


@overload
def enqueue(connection: SyncExecutes, call: ToolCall) -> str: ...


@overload
def enqueue(connection: AsyncExecutes, call: ToolCall) -> Awaitable[str]: ...


def enqueue(connection: Any, call: ToolCall) -> str | Awaitable[str]:
    """Ask for an effect in the caller's transaction.

    Args:
        connection: of asyncpg, or of psycopg 3 (synchronous or asynchronous), with its transaction open.
        call: what is asked for. What it leaves `UNSET` comes from the settings of the relay's client.

    Returns:
        The id of the row in `agent_outbox_calls`; to be awaited where the connection is asynchronous.

    Raises:
        MalformedArgumentsError: the call cannot be carried as JSON. Nothing was written.
        SettingsError: no transaction is open: what was written would stay although the caller's work is undone.
        TypeError: the connection is none of those. A pool is none: it would write in a transaction of its own.
    """
    stated = call.stated()
    if not isinstance(stated["tool"], str) or not stated["tool"]:
        raise malformed("$.tool", "the name of a tool")
    # In ASCII, so that it reaches the row unchanged whatever encoding the caller's connection or database has.
    id, body = str(uuid4()), json.dumps(strict_json.carried(stated), allow_nan=False)
    values = (id, stated["tool"], body)
    classes = {f"{cls.__module__.partition('.')[0]}.{cls.__name__}" for cls in type(connection).__mro__}
    if "psycopg.Connection" in classes:
        import psycopg

        _is_open(connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE or not connection.autocommit)
        with psycopg.RawCursor(connection) as cursor:
            cursor.execute(INSERT, values)
        return id
    if "psycopg.AsyncConnection" in classes:
        return _enqueue_by_psycopg(connection, values)
    if classes & {"asyncpg.Connection", "asyncpg.PoolConnectionProxy"}:
        return _enqueue_by_asyncpg(connection, values)
    raise TypeError(f"expected a connection of asyncpg or psycopg, not {type(connection).__module__}.{type(connection).__name__}")


async def _enqueue_by_psycopg(connection: Any, values: tuple[str, str, str]) -> str:
    import psycopg

    _is_open(connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE or not connection.autocommit)
    async with psycopg.AsyncRawCursor(connection) as cursor:
        await cursor.execute(INSERT, values)
    return values[0]


async def _enqueue_by_asyncpg(connection: Any, values: tuple[str, str, str]) -> str:
    _is_open(connection.is_in_transaction())
    await connection.execute(INSERT, *values)
    return values[0]


def _is_open(transaction: bool) -> None:
    if not transaction:
        raise SettingsError(
            "enqueue: expected a connection inside of a transaction; without one the call is made even if your work is undone."
        )
