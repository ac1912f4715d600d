"""The table in which agent-ledger 0.2.1 kept its effects, read page by page. Nothing is ever written to it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from agent_outbox.compat.agent_ledger.types import EffectStatus, UpsertEffectInput

ROWS_A_PAGE = 500

IS_THERE = "select to_regclass('effects') is not null"
COUNTS = "select status, count(*) from effects where $1::text is null or created_at >= $1::text::timestamptz group by status"
PAGE = """
select id::text, idem_key, workflow_id, call_id, tool, status, args_canonical, resource_id_canonical, result::text, error::text,
  created_at, completed_at
from effects
where ($1::text is null or created_at >= $1::text::timestamptz)
  and ($2::text is null or (created_at, id) > ($2::text::timestamptz, $3::text::uuid))
order by created_at, id limit $4
"""


class Rows(Protocol):
    """Runs a statement: `agent_outbox.relay.Database`."""

    async def rows(self, statement: str, *values: object) -> Sequence[Sequence[Any]]:
        """The rows of one statement with `$1`, `$2`, ... for its values."""
        ...


@dataclass(frozen=True)
class Row:
    """One effect of theirs.

    Attributes:
        id: theirs.
        wanted: what was asked for.
        result: what its handler returned.
        error: `message` and `code` of a failure; empty without one.
        created_at, completed_at: when it was recorded and ended.
    """

    id: str
    wanted: UpsertEffectInput
    result: Any
    error: Mapping[str, Any]
    created_at: datetime
    completed_at: datetime | None

    @property
    def status(self) -> EffectStatus:
        """Where it stood."""
        return self.wanted.status


class UnknownTable(Exception):
    """There is no table `effects`, or it holds what agent-ledger 0.2.1 never writes."""


async def counts(database: Rows, since: str | None) -> dict[EffectStatus, int]:
    """How many effects stand where.

    Args:
        database: theirs.
        since: only effects recorded at or after this time.

    Raises:
        UnknownTable: it is not theirs.
    """
    if not (await database.rows(IS_THERE))[0][0]:
        raise UnknownTable("There is no table `effects` on the search path of this database.")
    return {_status(str(status)): int(number) for status, number in await database.rows(COUNTS, since)}


async def read(database: Rows, since: str | None) -> AsyncIterator[Row]:
    """Every effect, oldest first.

    Args:
        database: theirs.
        since: only effects recorded at or after this time.

    Raises:
        UnknownTable: it is not theirs.
    """
    after: tuple[str | None, str | None] = (None, None)
    while True:
        page = await database.rows(PAGE, since, *after, ROWS_A_PAGE)
        for record in page:
            yield _row(record)
        if len(page) < ROWS_A_PAGE:
            return
        after = page[-1][10].isoformat(), str(page[-1][0])


def _row(record: Sequence[Any]) -> Row:
    id, idem_key, workflow_id, call_id, tool, status, args, resource, result, error, created_at, completed_at = record
    told = json.loads(error) if error else None
    return Row(
        id=str(id),
        wanted=UpsertEffectInput(
            idem_key=str(idem_key),
            workflow_id=str(workflow_id),
            call_id=str(call_id),
            tool=str(tool),
            status=_status(str(status)),
            args_canonical=str(args),
            resource_id_canonical=str(resource),
        ),
        result=None if result is None else json.loads(result),
        error=told if isinstance(told, dict) else {},
        created_at=created_at,
        completed_at=completed_at,
    )


def _status(text: str) -> EffectStatus:
    try:
        return EffectStatus(text)
    except ValueError:
        raise UnknownTable(f"The table `effects` has the status {text!r}, which agent-ledger 0.2.1 does not write.") from None
