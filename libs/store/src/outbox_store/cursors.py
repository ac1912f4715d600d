"""Where a list goes on. Lists are ordered by the transaction that wrote a row, then by its id.

Identity values and UUIDv7 are given out before a commit, so a row may appear behind one that is already listed.
Transactions that are all over cannot: every list stays below the oldest running one (`pg_snapshot_xmin`), so a cursor
never skips a row that commits late (design 7).
"""

from dataclasses import dataclass
from uuid import UUID

from outbox_domain.errors import OutboxError


@dataclass(frozen=True, kw_only=True, slots=True)
class Cursor:
    """The last row that was listed: its transaction, and its id as text."""

    xid: int
    id: str

    def text(self) -> str:
        """What a caller carries to the next page."""
        return f"{self.xid}.{self.id}"

    @classmethod
    def read(cls, text: str) -> "Cursor":
        """Read what `text` wrote.

        Raises:
            OutboxError: `invalid-request`, when it is not a cursor.
        """
        xid, _, id = text.partition(".")
        if not (_is_number(xid) and (_is_number(id) or _is_uuid(id))):
            raise _refused()
        return cls(xid=int(xid), id=id)

    def number(self) -> int:
        """The id in a list whose rows are numbered.

        Raises:
            OutboxError: `invalid-request`, when the cursor is of another list.
        """
        if not _is_number(self.id):
            raise _refused()
        return int(self.id)

    def uuid(self) -> UUID:
        """The id in a list whose rows have UUIDs.

        Raises:
            OutboxError: `invalid-request`, when the cursor is of another list.
        """
        if not _is_uuid(self.id):
            raise _refused()
        return UUID(self.id)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 19


def _is_uuid(text: str) -> bool:
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False


def _refused() -> OutboxError:
    return OutboxError("invalid-request", "cursor: expected a value that an earlier page gave as next_cursor", path="cursor")
