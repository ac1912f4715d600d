"""Two statements that meet: one transaction is held open until the other statement is seen waiting for it."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import asyncpg
from tests.support.invariants import assert_invariants
from tests.support.ledger import World, make_world
from tests.support.postgres import Database

from outbox_store.connection import Connection, prepare

T = TypeVar("T")
DEADLINE_SECONDS = 20.0

STUCK = """
select r.id::text from reservations r join open_reservations o on (o.organization_id, o.reservation_id) = (r.organization_id, r.id)
where o.due_at = 'infinity' and r.state <> 'in_doubt'
"""
"""Only a doubt may be left to a person; whatever else nobody looks at again is stuck for ever."""

WAITS_FOR = "select 1 from pg_stat_activity where pid = $1 and cardinality(pg_blocking_pids(pid)) > 0"


@dataclass(kw_only=True)
class Store:
    """A migrated database with a small world in it and a connection of each role.

    Attributes:
        owner: the superuser, for looking and for moving time.
        api, worker: connections of the service roles, so that every test asks the grants as well.
    """

    database: Database
    owner: "asyncpg.Connection[asyncpg.Record]"
    api: "asyncpg.Connection[asyncpg.Record]"
    worker: "asyncpg.Connection[asyncpg.Record]"
    world: World
    others: "list[asyncpg.Connection[asyncpg.Record]]" = field(default_factory=list)

    @classmethod
    async def open(cls, database: Database) -> "Store":
        """Connect as everybody and write the world."""
        owner, api, worker = [await _connect(url) for url in (database.superuser_url, database.api_url, database.worker_url)]
        return cls(database=database, owner=owner, api=api, worker=worker, world=await make_world(owner))

    async def another(self, url: str) -> "asyncpg.Connection[asyncpg.Record]":
        """One more connection, closed with the others."""
        connection = await _connect(url)
        self.others.append(connection)
        return connection

    async def close(self) -> None:
        """Close every connection."""
        for connection in (self.owner, self.api, self.worker, *self.others):
            await connection.close()

    async def assert_invariants(self) -> None:
        """Fail where the database breaks an invariant of design section 4, or has left something stuck."""
        await assert_invariants(self.database.superuser_url)
        connection = await _connect(self.database.superuser_url)
        assert await connection.fetch(STUCK) == []
        await connection.close()

    async def count(self, table: str, condition: str = "true") -> int:
        """How many rows of a table this test's organization has."""
        query = f"select count(*) from {table} where organization_id = $1 and {condition}"
        return int(await self.owner.fetchval(query, self.world.organization_id))

    async def one(self, query: str, *values: object) -> Any:
        """The single value of a query."""
        return await self.owner.fetchval(query, *values)

    async def reservation(self, id: object) -> asyncpg.Record:
        """All columns of a reservation and when somebody looks at it next."""
        record = await self.owner.fetchrow(
            "select r.*, o.due_at, case when o.due_at = 'infinity' then 'infinity' else extract(epoch from o.due_at - now())::float8 end as due_seconds, "
            "extract(epoch from r.absence_counts_at - now())::float8 as absence_seconds "
            "from reservations r left join open_reservations o on o.reservation_id = r.id where r.id = $1",
            id,
        )
        assert record is not None
        return record

    async def attempt(self, id: object) -> asyncpg.Record:
        """All columns of an attempt."""
        record = await self.owner.fetchrow("select * from attempts where id = $1", id)
        assert record is not None
        return record

    async def entries(self, id: object) -> list[tuple[str, str | None, str | None]]:
        """Kind, from and to of a reservation's ledger entries, in their order."""
        records = await self.owner.fetch(
            "select kind, from_state, to_state from ledger_entries where reservation_id = $1 order by xid, id", id
        )
        return [tuple(record) for record in records]

    async def let_the_lease_lapse(self, attempt_id: object) -> None:
        """Move an attempt's lease into the past."""
        await self.owner.execute("update attempts set lease_until = now() - interval '1 second' where id = $1", attempt_id)

    async def beside(
        self,
        first: Callable[["asyncpg.Connection[asyncpg.Record]"], Awaitable[Any]],
        then: Callable[["asyncpg.Connection[asyncpg.Record]"], Awaitable[T]],
        *,
        commit: bool = True,
    ) -> T:
        """Run `then` while a transaction that did `first` is open; end the transaction once `then` waits for it.

        Args:
            first: what the open transaction did.
            then: what meets it.
            commit: how the open transaction ends; False rolls it back.
        """
        holder, other = await self.another(self.database.superuser_url), await self.another(self.database.superuser_url)
        transaction = holder.transaction()
        await transaction.start()
        await first(holder)
        waiting = asyncio.ensure_future(then(other))
        await self.until_blocked(other, waiting)
        await (transaction.commit() if commit else transaction.rollback())
        return await asyncio.wait_for(waiting, DEADLINE_SECONDS)

    async def until_blocked(self, connection: "asyncpg.Connection[asyncpg.Record]", running: "asyncio.Future[Any]") -> None:
        """Wait until what runs on `connection` waits for a lock of somebody else.

        Raises:
            AssertionError: it ended without waiting.
            TimeoutError: it did neither within the deadline.
        """
        pid = connection.get_server_pid()
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not await self.owner.fetchval(WAITS_FOR, pid):
                assert not running.done(), f"nothing was waited for: {running}"
                await asyncio.sleep(0.002)


async def _connect(url: str) -> "asyncpg.Connection[asyncpg.Record]":
    connection = await asyncpg.connect(url, max_cacheable_statement_size=0)
    await prepare(connection)
    return connection


class Between:
    """A connection on which something else happens right before one of its statements.

    It stands for a second process that is faster between two statements of the first; nothing of Postgres is imitated.
    """

    def __init__(
        self, connection: "asyncpg.Connection[asyncpg.Record]", happens: Mapping[str, Callable[[], Awaitable[Any]]]
    ) -> None:
        """Watch `connection`; what happens is named by the statement before which it does."""
        self._connection = connection
        self._happens = happens

    async def fetch(self, query: str, *values: object) -> list[asyncpg.Record]:
        """As `asyncpg.Connection.fetch`, after what happens in between."""
        if query in self._happens:
            await self._happens[query]()
        return await self._connection.fetch(query, *values)

    async def fetchrow(self, query: str, *values: object) -> asyncpg.Record | None:
        """The first row of `fetch`."""
        return next(iter(await self.fetch(query, *values)), None)

    async def fetchval(self, query: str, *values: object) -> Any:
        """The first value of `fetch`."""
        row = await self.fetchrow(query, *values)
        return None if row is None else row[0]

    @classmethod
    def on(
        cls, connection: "asyncpg.Connection[asyncpg.Record]", happens: Mapping[str, Callable[[], Awaitable[Any]]]
    ) -> Connection:
        """The connection, as the store sees it."""
        return cast(Connection, cls(connection, happens))
