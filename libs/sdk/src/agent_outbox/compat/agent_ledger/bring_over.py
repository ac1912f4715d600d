"""Bringing over what agent-ledger recorded, so that nothing it did is done again.

Each effect becomes a reservation with its old idempotency key, settled by the ordinary requests of a client: no privilege is
needed beyond a scoped key. A success keeps its result, with the confidence *asserted*. What was in progress is a doubt. What
failed is a doubt too unless the caller vouches that a failure meant that nothing happened: agent-ledger calls every exception a
failure, a time-out after the money has moved among them.

The attempt's id is derived from the effect's, so that the same import again finds its own and changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Union
from uuid import UUID, uuid5

from agent_outbox.async_client import AsyncOutbox
from agent_outbox.compat.agent_ledger import table
from agent_outbox.compat.agent_ledger.errors import EffectLedgerValidationError
from agent_outbox.compat.agent_ledger.profile import Profile
from agent_outbox.compat.agent_ledger.table import Row, Rows
from agent_outbox.compat.agent_ledger.translation import (
    RESULT_BYTES_MAX,
    attempt_of,
    call_of,
    contract,
    operation_key,
    step_name,
    stored_result,
    value_of,
)
from agent_outbox.compat.agent_ledger.types import EffectStatus
from agent_outbox.effect import Effect as Attempt
from agent_outbox.errors import OutboxError
from agent_outbox.results import CallResult, Done, InDoubt, Waiting
from agent_outbox.stored_form import stored_form

ATTEMPTS = UUID("6f1c2c6e-52a3-4f0c-9d4b-3d8d0f1f7f11")
"""The namespace of the ids of imported attempts."""

REASON = "imported from agent-ledger"
IN_HAND = "somebody is carrying it out at this moment"
TIME_LIMIT_SECONDS = 60.0
AT_ONCE = 8
LISTED_MAX = 1_000

APPROVALS = frozenset({EffectStatus.REQUIRES_APPROVAL, EffectStatus.READY, EffectStatus.DENIED, EffectStatus.CANCELED})
"""Statuses of effects that waited for a person, or that a person refused: none was carried out."""

Failures = Literal["doubt", "failed"]
Fate = Literal["succeeded", "failed", "doubt", "already"]


@dataclass(frozen=True)
class Conflict:
    """An effect that cannot be brought over, because the gateway knows something else under its key, or refuses it."""

    effect_id: str
    idem_key: str
    why: str


@dataclass
class Report:
    """What was brought over, or would be.

    Attributes:
        succeeded, failed, doubt: how many became what.
        already: how many the gateway had.
        left_out: how many were never carried out and stay behind: they waited for an approval, or were refused one.
        conflicts: what could not be brought; the first thousand.
        conflicts_count: how many they are.
    """

    succeeded: int = 0
    failed: int = 0
    doubt: int = 0
    already: int = 0
    left_out: int = 0
    conflicts: list[Conflict] = field(default_factory=list)
    conflicts_count: int = 0

    def count(self, one: Fate | Conflict) -> None:
        """Add what became of one effect."""
        if isinstance(one, Conflict):
            self.conflicts_count += 1
            if len(self.conflicts) < LISTED_MAX:
                self.conflicts.append(one)
        else:
            setattr(self, one, getattr(self, one) + 1)


@dataclass(frozen=True)
class Present:
    """What the gateway has under a key."""

    state: str
    value: Any


async def plan(
    database: Rows, client: AsyncOutbox, profile: Profile, *, failures: Failures = "doubt", since: str | None = None
) -> Report:
    """What an import would come to. Nothing is written.

    Args:
        database: theirs.
        client: of the gateway, with the key of the agent whose effects they are.
        profile: its namespace and owner.
        failures: what a failed effect becomes.
        since: only effects recorded at or after this time, as Postgres reads one.

    Raises:
        UnknownTable: the table is not theirs.
        OutboxError: the gateway could not be asked.
    """
    counted = await table.counts(database, since)
    report = Report(left_out=sum(number for status, number in counted.items() if status in APPROVALS))
    present = await _present(client, profile)
    async for row in table.read(database, since):
        if row.status not in APPROVALS:
            found = present.get(operation_key(profile.namespace, row.wanted.idem_key))
            report.count(_fate(row, failures) if found is None else _met(row, found, failures))
    return report


async def bring_over(
    database: Rows,
    client: AsyncOutbox,
    profile: Profile,
    *,
    failures: Failures = "doubt",
    since: str | None = None,
    pause_seconds: float = 0.0,
    told: Callable[[Report], None] = lambda _: None,
) -> Report:
    """Bring every effect over that the gateway does not have. Doing it again changes nothing.

    Args:
        database, client, profile, failures, since: as `plan`.
        pause_seconds: between the beginnings of two effects.
        told: is given the counts after each page.

    Returns:
        What became of them; conflicts were left as they are.

    Raises:
        UnknownTable: the table is not theirs.
        OutboxError: the gateway could not be asked. What was brought over until then stays; the same import goes on.
    """
    report = Report()
    importer = _Importer(client=client, profile=profile, failures=failures)
    async for rows in _pages(table.read(database, since)):
        carried_out = [row for row in rows if row.status not in APPROVALS]
        report.left_out += len(rows) - len(carried_out)
        for fate in await importer.bring(carried_out, pause_seconds):
            report.count(fate)
        told(report)
    return report


@dataclass(frozen=True)
class _Importer:
    client: AsyncOutbox
    profile: Profile
    failures: Failures

    async def bring(self, rows: list[Row], pause_seconds: float) -> list[Union[Fate, Conflict]]:
        """What became of each of some rows, a few of them at a time."""
        room = asyncio.Semaphore(AT_ONCE)

        async def one(row: Row) -> Fate | Conflict:
            try:
                return await self._one(row)
            finally:
                room.release()

        begun: list[asyncio.Task[Union[Fate, Conflict]]] = []
        try:
            for row in rows:
                await room.acquire()
                begun.append(asyncio.create_task(one(row)))
                await asyncio.sleep(pause_seconds)
            return list(await asyncio.gather(*begun))
        finally:
            for task in begun:
                task.cancel()

    async def _one(self, row: Row) -> Fate | Conflict:
        attempt_id = str(uuid5(ATTEMPTS, row.id))
        try:
            call = call_of(row.wanted, self.profile)
        except EffectLedgerValidationError as error:
            return _conflict(row, str(error))
        # Class C, whatever the tool is now: nobody knows which key an earlier run sent its provider.
        terms = contract(self.profile, "C")
        try:
            told = await self.client.reserve(call, contract=terms, time_limit=TIME_LIMIT_SECONDS, wait=0, attempt_id=attempt_id)
            if isinstance(told, Attempt):
                return await self._settle(row, told)
            if isinstance(told, InDoubt) and row.status is EffectStatus.SUCCEEDED and told.reservation_id is not None:
                return await self._settle(row, attempt_of(told.reservation_id, call.tool, attempt_id))
        except OutboxError as error:
            # The attempt of an earlier import, which ended as failed.
            return "already" if error.code == "attempt-closed" else _not_taken(row, error)
        if isinstance(told, Done):
            return _met(row, Present(state="succeeded", value=value_of(told.document.get("result"))), self.failures)
        if isinstance(told, InDoubt):
            return _met(row, Present(state="in_doubt", value=None), self.failures)
        if isinstance(told, Waiting):
            return _conflict(row, IN_HAND)
        return _conflict(row, "its key was used with other arguments") if told.code == "conflict" else _not_taken(row, told.error)

    async def _settle(self, row: Row, attempt: Attempt) -> Fate | Conflict:
        fate = _fate(row, self.failures)
        told: CallResult
        if fate == "doubt":
            told = await self.client.settle(attempt, "unknown", reason=REASON)
            stands = isinstance(told, InDoubt)
        elif fate == "failed":
            code, message = (_text(row.error.get(name)) for name in ("code", "message"))
            told = await self.client.settle(
                attempt, "rejected", reason=REASON, provider_code=code, provider_message=message or "It failed."
            )
            stands = told.state == "failed"
        else:
            told = await self.client.settle(attempt, "succeeded", reason=REASON, result=_result(row))
            stands = isinstance(told, Done) and value_of(told.document.get("result")) == _value(row)
        return fate if stands else _conflict(row, f"the gateway has it as {told.state}")


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _result(row: Row) -> dict[str, Any]:
    """What a replay is given, and what their row says beside it."""
    times = {"created_at": row.created_at.isoformat()}
    if row.completed_at is not None:
        times["completed_at"] = row.completed_at.isoformat()
    return stored_result(_value(row), row.wanted, imported_from="agent-ledger", effect_id=row.id, **times)


def _value(row: Row) -> Any:
    return stored_form(row.result, bytes_max=RESULT_BYTES_MAX).value


def _fate(row: Row, failures: Failures) -> Fate:
    """What an effect becomes that the gateway does not have."""
    if row.status is EffectStatus.SUCCEEDED:
        return "succeeded"
    return "doubt" if row.status is EffectStatus.PROCESSING else failures


def _met(row: Row, present: Present, failures: Failures) -> Fate | Conflict:
    """What becomes of an effect whose key the gateway has."""
    if present.state == "executing":
        return _conflict(row, IN_HAND)
    if row.status is EffectStatus.SUCCEEDED:
        if present.state == "succeeded":
            return "already" if present.value == _value(row) else _conflict(row, "the gateway has another result")
        return "succeeded"
    if present.state in ("succeeded", "in_doubt", "failed"):
        return "already"
    return _fate(row, failures)


def _conflict(row: Row, why: str) -> Conflict:
    return Conflict(effect_id=row.id, idem_key=row.wanted.idem_key, why=why)


def _not_taken(row: Row, problem: OutboxError) -> Conflict:
    """An effect that the gateway does not take.

    Raises:
        OutboxError: it has nothing to do with this effect, and the next one would meet it too.
    """
    status = problem.status
    if problem.code != "malformed-arguments" and (status is None or status in (401, 403, 404, 429) or status >= 500):
        raise problem
    return _conflict(row, f"{problem.detail} ({problem.code})")


async def _present(client: AsyncOutbox, profile: Profile) -> Mapping[str, Present]:
    """What the gateway has of a namespace, by operation key; of several the newest."""
    found: dict[str, Present] = {}
    async for reservation in client.find(step=step_name(profile.namespace)):
        if reservation.operation_key is not None and reservation.operation_key not in found:
            value = value_of(reservation.document.get("result")) if reservation.state == "succeeded" else None
            found[reservation.operation_key] = Present(state=reservation.state, value=value)
    return found


async def _pages(rows: AsyncIterator[Row]) -> AsyncIterator[list[Row]]:
    page: list[Row] = []
    async for row in rows:
        page.append(row)
        if len(page) == table.ROWS_A_PAGE:
            yield page
            page = []
    if page:
        yield page
