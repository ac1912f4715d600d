"""What a list of reservations or receipts can be narrowed by (`interfaces.md` 3)."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from outbox_store.cursors import Cursor


@dataclass(frozen=True, kw_only=True, slots=True)
class Filter:
    """Only rows that have all of these; None: any.

    Attributes:
        run: the caller's name of the run.
        agent: an actor anywhere in the chain, `agent:refunds`.
        from_, to: of creation (a receipt: of settlement); from inclusive, to exclusive.
        project_id: where the caller's key is bound to one.
    """

    state: str | None = None
    tool: str | None = None
    connection: str | None = None
    run: str | None = None
    agent: str | None = None
    operation_key: str | None = None
    reference: str | None = None
    external_reference: str | None = None
    provider_request_id: str | None = None
    trace_id: str | None = None
    call_id: str | None = None
    step: str | None = None
    model: str | None = None
    from_: datetime | None = None
    to: datetime | None = None
    project_id: UUID | None = None

    def values(self) -> list[object]:
        """The binds of the conditions, in the order of the fields."""
        return [getattr(self, name) for name in self.__dataclass_fields__]

    @staticmethod
    def page(after: Cursor | None, limit: int) -> list[object]:
        """The binds of a page: where to go on, and one row more than asked for, to know whether there is a next one."""
        return [str(after.xid) if after else None, after.uuid() if after else None, limit + 1]
