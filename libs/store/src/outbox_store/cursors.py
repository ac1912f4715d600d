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
        valid_id = id.isascii() and id.isdigit() and len(id) < 19
        if not valid_id:
            try:
                valid_id = str(UUID(id)) == id
            except ValueError:
                valid_id = False
        if not (xid.isascii() and xid.isdigit() and len(xid) < 19 and valid_id):
            raise OutboxError(
                "invalid-request", "cursor: expected a value that an earlier page gave as next_cursor", path="cursor"
            )
        return cls(xid=int(xid), id=id)
