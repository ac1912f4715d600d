"""The invariants of design section 4, asked of a test's database."""

import asyncpg

from outbox_store.invariants import INVARIANTS, violations

__all__ = ["INVARIANTS", "assert_invariants", "violations"]


async def assert_invariants(url: str) -> None:
    """Fail with the names of the invariants that the database at `url` (its superuser's) breaks."""
    connection = await asyncpg.connect(url)
    try:
        broken = await violations(connection)
        assert broken == {}, broken
    finally:
        await connection.close()
