"""Submits what transactions have enqueued (`agent_outbox.enqueue`), each once, after its commit.

A relay takes up due rows with a lease (`for update skip locked`, then `due_at` is moved ahead), calls the gateway and writes
down what came of it. Any number of relays may run; one that is killed loses nothing: its rows are due again when their lease is
over, and the same call joins or replays what the gateway has.

What the gateway refuses for good stays in the table as `refused` (`outbox enqueue list`), and nothing of it is sent until a
person has it tried anew (`outbox enqueue retry`). What cannot be answered now (no gateway, no key, a limit) is tried again after
a growing pause.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from agent_outbox.async_client import AsyncOutbox
from agent_outbox.errors import NotAToolCallError, NotFoundError, OutboxError, Retry, SettingsError
from agent_outbox.results import CallResult, Done, InDoubt, Refused, Waiting
from agent_outbox.settings import seconds_of
from agent_outbox.tool_call import ToolCall

LOG = logging.getLogger(__name__)

LEASE_SECONDS = 45.0
"""For how long a relay has a row; afterwards another may take it up."""

POLL_SECONDS = 0.5
"""How long to pause where nothing is due."""

CONCURRENCY = 20
"""How many calls one relay has under way."""

KEEP_SECONDS = 7 * 86_400.0
"""For how long a row stays after it is done. What is refused stays until a person deletes it."""

REFUSALS_MAX = 20
"""How often a call is made again that was refused with leave to try again."""

BACK_OFF_SECONDS = 0.5
BACK_OFF_SECONDS_MAX = 60.0
"""The pause before a call is made again, doubling up to the second figure; a random half of it is left out."""

DOUBT_SECONDS = 60.0
"""How often a doubt that waits for a person is looked at."""

PAUSE_SECONDS_MAX = 86_400.0
"""After at most so long a call that waits is asked for again."""

ROWS_DELETED_MAX = 1_000

NOT_THE_CALLS_FAULT = frozenset({"invalid-key", "key-expired", "key-revoked", "unexpected-answer"})
"""Problems of the relay's own settings, or of what stands in the gateway's place; no call is refused for them."""

CLAIM = """
update agent_outbox_calls as c
set due_at = now() + $2::float8 * interval '1 second', tries = c.tries + 1
from (
    select id from agent_outbox_calls
    where state = 'waiting' and due_at <= now()
    order by due_at
    limit $1::int
    for update skip locked
) as due
where c.id = due.id
returning c.id::text, c.call, c.tries, c.refusals, c.round, c.reservation_id
"""

END = """
update agent_outbox_calls
set state = $2, call = case when $2 = 'done' then null else call end, reservation_id = coalesce($3, reservation_id),
    receipt = $4::json, result = $5::json, code = $6, message = $7, ended_at = now()
where id = $1::uuid and state <> 'done' and ($2 = 'done' or (state = 'waiting' and tries = $8::int and round = $9::int))
"""
"""A success is written down whoever learns it, and however late; a refusal only by the relay that has the row."""

LATER = """
update agent_outbox_calls
set due_at = now() + $2::float8 * interval '1 second', reservation_id = $3, code = $4, message = $5, refusals = refusals + $6::int
where id = $1::uuid and state = 'waiting' and tries = $7::int and round = $8::int
"""

FORGET = """
delete from agent_outbox_calls
where id in (
    select id from agent_outbox_calls
    where state = 'done' and ended_at < now() - $1::float8 * interval '1 second'
    limit $2::int
    for update skip locked
)
"""

LIST = """
select id::text, tool, state, enqueued_at, due_at, tries, reservation_id, code, message
from agent_outbox_calls
where state = $1 or $1 = 'all' or ($1 = 'stuck' and (state = 'refused' or (state = 'waiting' and code is not null)))
order by enqueued_at, id
limit $2::int
"""

RETRY = """
update agent_outbox_calls
set state = 'waiting', ended_at = null, due_at = now(), refusals = 0, round = round + 1, reservation_id = null, code = null,
    message = null
where id = any($1::uuid[]) and state = 'refused'
returning id::text
"""


@dataclass(frozen=True, kw_only=True)
class Enqueued:
    """A row that this relay has.

    Attributes:
        id: of the row.
        call: the JSON text of what is asked for, as it stands in the row.
        tries: how often it was taken up, this time included.
        refusals: how often it was refused with leave to try again.
        round: counts the times that a person had it tried anew, from 1; names the request together with the id.
        reservation_id: of the reservation that an earlier try made or met.
    """

    id: str
    call: str
    tries: int
    refusals: int
    round: int
    reservation_id: str | None


class Database:
    """One connection to Postgres, by asyncpg or psycopg, whichever is installed; opened anew when it is lost."""

    def __init__(self, dsn: str) -> None:
        """
        Args:
            dsn: of the database, `postgresql://...`.

        Raises:
            SettingsError: neither library is installed.
        """
        self._dsn = dsn
        self._connection: Any = None
        self._turn = asyncio.Lock()
        self._by_asyncpg = importlib.util.find_spec("asyncpg") is not None
        if not self._by_asyncpg and importlib.util.find_spec("psycopg") is None:
            raise SettingsError("The relay needs a driver of Postgres: pip install 'agent-outbox[relay]'.")

    async def rows(self, statement: str, *values: object) -> Sequence[Sequence[Any]]:
        """The rows of one statement, committed by itself.

        Args:
            statement: with `$1`, `$2`, ... for the values.
            values: of it.

        Raises:
            Exception: the driver's. The connection is opened anew for the next statement.
        """
        async with self._turn:
            try:
                return await (self._by_asyncpg_rows if self._by_asyncpg else self._by_psycopg_rows)(statement, values)
            except BaseException:
                # Whatever the state of that connection is, the next statement does not depend on it.
                await self._drop()
                raise

    async def _by_asyncpg_rows(self, statement: str, values: tuple[object, ...]) -> Sequence[Sequence[Any]]:
        if self._connection is None:
            import asyncpg

            self._connection = await asyncpg.connect(self._dsn, statement_cache_size=0, timeout=10, command_timeout=30)
        found: Sequence[Sequence[Any]] = await self._connection.fetch(statement, *values)
        return found

    async def _by_psycopg_rows(self, statement: str, values: tuple[object, ...]) -> Sequence[Sequence[Any]]:
        import psycopg

        if self._connection is None:
            self._connection = await psycopg.AsyncConnection.connect(
                self._dsn, autocommit=True, prepare_threshold=None, connect_timeout=10, client_encoding="utf8"
            )
        async with psycopg.AsyncRawCursor(self._connection) as cursor:
            await asyncio.wait_for(cursor.execute(statement.encode(), values), 30)
            return await cursor.fetchall() if cursor.description is not None else []

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        with contextlib.suppress(Exception):
            if self._by_asyncpg:
                connection.terminate()
            else:
                await connection.close()

    async def close(self) -> None:
        """Closes the connection; a later statement opens another."""
        async with self._turn:
            await self._drop()


class Relay:
    """Submits what was enqueued in one database to one gateway."""

    def __init__(
        self,
        dsn: str,
        outbox: AsyncOutbox,
        *,
        concurrency: int = CONCURRENCY,
        lease: float = LEASE_SECONDS,
        poll: float = POLL_SECONDS,
        keep: float | None = KEEP_SECONDS,
    ) -> None:
        """Nothing is asked yet.

        Args:
            dsn: of the database that `enqueue` writes to.
            outbox: the client to call with; its settings hold where a call says nothing.
            concurrency: how many calls are under way at once.
            lease: for how many seconds this relay has a row, calling included.
            poll: how many seconds to pause where nothing is due.
            keep: for how many seconds a row stays after it is done; None keeps it.

        Raises:
            SettingsError: a value cannot be used, or no driver of Postgres is installed.
        """
        if concurrency < 1:
            raise SettingsError("concurrency: expected at least 1.")
        self._database = Database(dsn)
        self._concurrency = concurrency
        self._lease = seconds_of("lease", lease, least=3.0) or LEASE_SECONDS
        self._poll = seconds_of("poll", poll, least=0.01) or POLL_SECONDS
        self._keep = seconds_of("keep", keep, least=0.0)
        # A call answers or raises well within the lease, so that a relay at work does not lose its rows.
        self._outbox = outbox.using(wait=min(10.0, self._lease / 4), deadline=self._lease * 2 / 3)
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Take up nothing more; `run` returns when what is under way has been answered."""
        self._stopping.set()

    async def run(self) -> None:
        """Submit until `stop` is called, whatever the gateway and the database do meanwhile."""
        running: set[asyncio.Task[None]] = set()
        failures = 0
        stopped = asyncio.ensure_future(self._stopping.wait())
        forgetting = asyncio.ensure_future(self._forget_regularly())
        try:
            while not self._stopping.is_set():
                try:
                    taken = await self._take_up(self._concurrency - len(running)) if len(running) < self._concurrency else []
                    failures = 0
                except Exception as error:
                    failures += 1
                    LOG.warning("the database of enqueued calls does not answer (%s)", type(error).__name__)
                    await asyncio.wait({stopped}, timeout=_back_off(failures))
                    continue
                running |= {asyncio.ensure_future(self._submit(row)) for row in taken}
                if len(taken) == 0 or len(running) >= self._concurrency:
                    timeout = None if len(running) >= self._concurrency else self._poll
                    await asyncio.wait({*running, stopped}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                running = {task for task in running if not task.done()}
            if running:
                await asyncio.wait(running)
        finally:
            for task in (stopped, forgetting, *running):
                task.cancel()
            await asyncio.gather(stopped, forgetting, *running, return_exceptions=True)
            await self._database.close()

    async def step(self) -> int:
        """Submit what is due now, at most as many as `concurrency`.

        Returns:
            How many were taken up; each was answered, or is due again.
        """
        taken = await self._take_up(self._concurrency)
        await asyncio.gather(*(self._submit(row) for row in taken))
        return len(taken)

    async def close(self) -> None:
        """Closes the connection to the database; `run` does so by itself."""
        await self._database.close()

    async def _take_up(self, count: int) -> list[Enqueued]:
        rows = await self._database.rows(CLAIM, count, self._lease)
        return [
            Enqueued(id=id, call=call, tries=tries, refusals=refusals, round=round, reservation_id=held)
            for id, call, tries, refusals, round, held in rows
        ]

    async def _submit(self, row: Enqueued) -> None:
        """Ask for what one row holds and write down what comes of it. Whatever is wrong with it stays with this row."""
        try:
            result = await self._ask(row)
        except OutboxError as error:
            if error.code in NOT_THE_CALLS_FAULT or error.retry.action in ("same-request", "wait"):
                LOG.warning("%s is tried again: %s", row.id, error.detail)
                pause = max(_back_off(row.tries), error.retry.after_seconds or 0.0)
                await self._later(row, pause, row.reservation_id, error.code, error.as_tool_message())
            else:
                await self._refuse(row, None, error.code, error.as_tool_message())
        except Exception as error:
            LOG.exception("%s could not be submitted and is tried again", row.id)
            await self._later(row, _back_off(row.tries), row.reservation_id, "internal", type(error).__name__)
        else:
            await self._write_down(row, result)

    async def _ask(self, row: Enqueued) -> CallResult:
        """What came of a call: looked at where it is known to the gateway, else asked for.

        Raises:
            OutboxError: it could not be asked for. `not-a-tool-call`: the row holds none that this version knows; a relay of the
                version that wrote it may.
        """
        if row.reservation_id is not None:
            with contextlib.suppress(NotFoundError):  # A ledger that lost its end is asked anew.
                found = await self._outbox.get(row.reservation_id, wait=self._lease / 4)
                return found.answer
        # The key names this request of this row: a refusal that was given before a relay died is given again.
        return await self._outbox.call(_call_in(row), request_key=f"{row.id}:{row.round}")

    async def _write_down(self, row: Enqueued, result: CallResult) -> None:
        if isinstance(result, Done):
            receipt, projection = json.dumps(result.receipt.document), json.dumps(result.document.get("result"))
            written = (result.reservation_id, receipt, projection, None, result.message)
            await self._write(row, END, "done", *written, row.tries, row.round)
        elif isinstance(result, Waiting):
            pause = result.retry.after_seconds if result.retry.after_seconds is not None else BACK_OFF_SECONDS
            await self._later(row, pause, result.reservation_id, None, result.message)
        elif isinstance(result, InDoubt):
            after = result.retry.after_seconds if result.retry.action == "wait" else None
            await self._later(row, DOUBT_SECONDS if after is None else after, result.reservation_id, result.code, result.message)
        elif self._may_be_tried_again(row, result):
            pause = max(_back_off(row.refusals + 1), result.retry.after_seconds or 0.0)
            await self._later(row, pause, None, result.code, result.message, refusals=1)
        else:
            await self._refuse(row, result.reservation_id, result.code, result.message)

    def _may_be_tried_again(self, row: Enqueued, result: Refused) -> bool:
        """Whether the gateway says so. What was closed as failed somebody has decided, so somebody decides again."""
        asked_again = result.retry.action in ("same-request", "wait") and result.code != "failed"
        return asked_again and row.refusals + 1 < REFUSALS_MAX

    async def _refuse(self, row: Enqueued, reservation_id: str | None, code: str, message: str) -> None:
        LOG.error("%s is refused (%s): outbox enqueue list", row.id, code)
        await self._write(row, END, "refused", reservation_id, None, None, code, message, row.tries, row.round)

    async def _later(
        self, row: Enqueued, pause: float, reservation_id: str | None, code: str | None, message: str, *, refusals: int = 0
    ) -> None:
        pause = min(pause, PAUSE_SECONDS_MAX)
        await self._write(row, LATER, pause, reservation_id, code, message, refusals, row.tries, row.round)

    async def _write(self, row: Enqueued, statement: str, *values: object) -> None:
        """Write down what came of a row while this relay has it; afterwards another takes it up and asks the same again."""
        failures, until = 0, asyncio.get_running_loop().time() + self._lease
        while not await self._is_written(statement, (row.id, *values)):
            failures += 1
            pause = _back_off(failures)
            if (self._stopping.is_set() and failures > 3) or asyncio.get_running_loop().time() + pause > until:
                return
            await asyncio.sleep(pause)

    async def _is_written(self, statement: str, values: tuple[object, ...]) -> bool:
        try:
            await self._database.rows(statement, *values)
        except Exception as error:
            LOG.warning("what came of %s could not be written yet (%s)", values[0], type(error).__name__)
            return False
        return True

    async def _forget_regularly(self) -> None:
        while self._keep is not None:
            with contextlib.suppress(Exception):  # The next time will do.
                await self._database.rows(FORGET, self._keep, ROWS_DELETED_MAX)
            await asyncio.sleep(60)


def _call_in(row: Enqueued) -> ToolCall:
    try:
        return ToolCall(**json.loads(row.call))
    except (TypeError, ValueError) as error:
        raise NotAToolCallError(
            f"The row holds no call that this version of agent-outbox knows ({error}).", retry=Retry(action="wait")
        ) from None


def _back_off(number: int) -> float:
    pause: float = min(BACK_OFF_SECONDS * 2 ** min(max(number - 1, 0), 16), BACK_OFF_SECONDS_MAX)
    return pause * random.SystemRandom().uniform(0.5, 1.0)
