"""What the store asks of a database connection, and how one is made ready for it."""

from typing import TYPE_CHECKING, Any, TypeAlias

import asyncpg
import msgspec
from asyncpg.pool import PoolConnectionProxy

if TYPE_CHECKING:
    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]
else:
    Connection: TypeAlias = asyncpg.Connection | PoolConnectionProxy


def _encode(value: Any) -> str:
    return msgspec.json.encode(value).decode()


async def prepare(connection: Connection) -> None:
    """Make jsonb columns Python values on this connection: the `init` of every pool that serves the store."""
    await connection.set_type_codec("jsonb", schema="pg_catalog", encoder=_encode, decoder=msgspec.json.decode, format="text")
