"""What all lists share: filters, cursors, and how far a key may read.

A member with the capability to read everything reads the key's environment; an agent reads what it caused itself. Whatever else a
key is bound to (project, run, providers, tools) narrows its reading as it narrows its calls.
"""

import asyncio
import contextlib
import unicodedata
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime

from litestar.datastructures import MultiDict

from outbox_api.answers import Answer, encode
from outbox_api.api import Api
from outbox_domain import errors, messages
from outbox_domain.capability import Capability
from outbox_domain.errors import OutboxError, Retry
from outbox_domain.reservation import State
from outbox_domain.scoped_key import ScopedKey
from outbox_runtime.postgres import Connection, acquire
from outbox_store.cursors import Cursor
from outbox_store.filters import Filter

LIMIT_DEFAULT = 50
LIMIT_MAX = 200
PAGE_PARAMETERS = ("cursor", "limit")
FILTERS = (
    "state",
    "tool",
    "connection",
    "run",
    "agent",
    "operation_key",
    "reference",
    "external_reference",
    "provider_request_id",
    "trace_id",
    "call_id",
    "step",
    "model",
    "from",
    "to",
)
VALUE_CHARACTERS_MAX = 1_000
LIST_WAIT_SECONDS_MAX = 5.0
LIST_RETRY_SECONDS = 2.0

Query = MultiDict[str]


@contextlib.asynccontextmanager
async def listing(api: Api, *, wait_seconds_max: float = LIST_WAIT_SECONDS_MAX) -> AsyncIterator[Connection]:
    """A connection to read a list by. Few lists are read at once: a filter that fits nothing looks at every row there is, and
    some dozens of them would take every connection away from tool calls.

    Args:
        api: of this process.
        wait_seconds_max: how long others are waited for.

    Raises:
        OutboxError: `rate-limited`, too many others are being read.
        one of `AWAY`: Postgres is away.
    """
    try:
        async with asyncio.timeout(wait_seconds_max):
            await api.lists.acquire()
    except TimeoutError:
        raise OutboxError(
            "rate-limited",
            "Too many lists are being read at this moment.",
            retry=Retry(action="wait", after_seconds=LIST_RETRY_SECONDS),
        ) from None
    try:
        async with acquire(api.pool) as connection:
            yield connection
    finally:
        api.lists.release()


def invalid(name: str, expected: str) -> OutboxError:
    """A parameter is not as it is expected."""
    return errors.invalid(name, expected, code="invalid-request")


def read_query(query: Query, known: Iterable[str]) -> dict[str, str]:
    """The parameters of a request, each once and known.

    Raises:
        OutboxError: `invalid-request` with the parameter's name: an unknown filter that is ignored would list too much.
    """
    names = set(known)
    found: dict[str, str] = {}
    for name, value in query.multi_items():
        if name not in names:
            shown = name[:100] if name.isprintable() and name else "parameter"
            raise invalid(shown, f"no such parameter; there are {', '.join(sorted(names))}")
        if name in found:
            raise invalid(name, "each parameter once")
        if not 1 <= len(value) <= VALUE_CHARACTERS_MAX or "\x00" in value:
            raise invalid(name, f"1 to {VALUE_CHARACTERS_MAX} characters")
        # As names are kept (`outbox_domain.tool_call.plain_name`).
        found[name] = unicodedata.normalize("NFC", value)
    return found


def read_page(parameters: dict[str, str]) -> tuple[Cursor | None, int]:
    """Where a list goes on, and how many rows are wanted.

    Raises:
        OutboxError: `invalid-request`.
    """
    limit = read_whole(parameters, "limit", default=LIMIT_DEFAULT, least=1, most=LIMIT_MAX)
    return (Cursor.read(parameters["cursor"]) if "cursor" in parameters else None), limit


def read_whole(parameters: dict[str, str], name: str, *, default: int, least: int, most: int) -> int:
    """A parameter that is a whole number within bounds.

    Raises:
        OutboxError: `invalid-request`.
    """
    text = parameters.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and least <= int(text) <= most):
        raise invalid(name, f"a whole number from {least} to {most}")
    return int(text)


async def read_filter(api: Api, key: ScopedKey, parameters: dict[str, str]) -> Filter:
    """The filters of a request, narrowed to what the key reaches.

    Raises:
        OutboxError: `invalid-request`, or `out-of-scope` where a filter asks for what the key does not reach.
    """
    state = parameters.get("state")
    if state is not None and state not in State.__members__.values():
        raise invalid("state", f"one of {', '.join(State)}")
    reads_all = Capability.READ_ALL in key.capabilities
    key.require(Capability.READ_ALL if reads_all else Capability.READ_OWN)
    own = f"{key.actor_kind}:{key.actor_name}"
    return Filter(
        state=state,
        tool=parameters.get("tool"),
        connection=parameters.get("connection"),
        run=_narrowed(parameters.get("run"), key.run, "run"),
        agent=parameters.get("agent") if reads_all else _narrowed(parameters.get("agent"), own, "agent"),
        operation_key=parameters.get("operation_key"),
        reference=parameters.get("reference"),
        external_reference=parameters.get("external_reference"),
        provider_request_id=parameters.get("provider_request_id"),
        trace_id=parameters.get("trace_id"),
        call_id=parameters.get("call_id"),
        step=parameters.get("step"),
        model=parameters.get("model"),
        from_=_moment(parameters, "from"),
        to=_moment(parameters, "to"),
        project_id=key.project_id if reads_all else await api.directory.project_id(key),
    )


def page(items: list[dict[str, object]], following: Cursor | None) -> Answer:
    """A page of a list."""
    document = {"items": items, "next_cursor": None if following is None else following.text()}
    return Answer(status=200, body=encode(document), code="listed")


def _narrowed(wanted: str | None, reached: str | None, dimension: str) -> str | None:
    if reached is None:
        return wanted
    if wanted is not None and wanted != reached:
        raise OutboxError(
            "out-of-scope",
            f"This key reads one {dimension} only.",
            message=messages.out_of_scope(f"this key reads one {dimension} only"),
            dimension=dimension,
        )
    return reached


def _moment(parameters: dict[str, str], name: str) -> datetime | None:
    text = parameters.get(name)
    if text is None:
        return None
    try:
        # A plus sign in a query is a space unless it is escaped, which hardly anybody remembers.
        moment = datetime.fromisoformat(text.replace(" ", "+"))
        return moment.astimezone(UTC) if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    except (OverflowError, ValueError):
        # In the first or last hours of the calendar a time may have no counterpart in UTC.
        raise invalid(name, "a time such as 2026-01-31T08:15:00Z") from None
