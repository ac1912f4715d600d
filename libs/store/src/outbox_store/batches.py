"""Rows to arrays and batches in halves: what the set-based statements share."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import asyncpg
import msgspec

Row = TypeVar("Row")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class Failed:
    """One row was refused by the database for good.

    Attributes:
        constraint: the name of the constraint that refused it, where there is one.
        error: what the database (or the encoding of a value) said.
    """

    constraint: str | None
    error: Exception


def columns(rows: Sequence[object], names: Sequence[str]) -> list[list[object]]:
    """One array per name, in the order of the rows: the shape that `unnest` takes."""
    return [[getattr(row, name) for row in rows] for name in names]


class Unencodable(Exception):
    """A value has no JSON text; nothing was sent."""


def json_text(value: object) -> str | None:
    """The JSON text of a value, None of none.

    Raises:
        Unencodable: it has none, a lone surrogate for instance.
    """
    if value is None:
        return None
    try:
        return msgspec.json.encode(value).decode()
    except (TypeError, ValueError, RecursionError) as error:
        raise Unencodable(str(error)) from error


# All of these say that this very statement changed nothing. A value too large for an index row is among them: a provider
# chooses the length of what it answers, and one such answer must not hold up the settlements beside it.
_DEFINITE = (
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.DataError,
    asyncpg.InsufficientPrivilegeError,
    asyncpg.ProgramLimitExceededError,
    Unencodable,
)


async def in_halves(rows: Sequence[Row], run: Callable[[Sequence[Row]], Awaitable[list[Result]]]) -> list[Result | Failed]:
    """Run a batch; when the database refuses it for good, run its halves, so that a bad row is alone in the end.

    Args:
        rows: the batch; nothing is run for none.
        run: sends a batch as one transaction and returns a result per row.

    Returns:
        A result per row, `Failed` for the rows that are refused alone.

    Raises:
        asyncpg.PostgresError: anything but a definite refusal, since nobody knows then whether the batch was committed.
    """
    if not rows:
        return []
    try:
        return list(await run(rows))
    except _DEFINITE as error:
        if len(rows) == 1:
            return [Failed(constraint=getattr(error, "constraint_name", None), error=error)]
    middle = len(rows) // 2
    return [*await in_halves(rows[:middle], run), *await in_halves(rows[middle:], run)]
