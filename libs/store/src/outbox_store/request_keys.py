"""The caller's `Idempotency-Key`: identity of one HTTP request, for 24 hours (design 5.7)."""

from dataclasses import astuple, dataclass
from uuid import UUID

from outbox_store.connection import Connection


@dataclass(frozen=True, kw_only=True)
class RequestKey:
    """A request key and whom it belongs to."""

    organization_id: UUID
    environment_id: UUID
    actor_id: UUID
    method: str
    path: str
    key: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Taken:
    """The request is the caller's to answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """The final answer that was given before."""

    status: int
    sealed_answer: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Busy:
    """The same request is being answered at this moment."""

    after_seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Reused:
    """The key was used for another request."""


# A row of more than 24 hours, or one whose holder died before it answered, is as good as none.
TAKE = """
insert into request_keys as k (organization_id, environment_id, actor_id, method, path, request_key, request_digest, holder, pending_until)
values ($1, $2, $3, $4, $5, $6, $7, $8, now() + make_interval(secs => $9))
on conflict (organization_id, environment_id, actor_id, method, path, request_key) do update set
  request_digest = excluded.request_digest, holder = excluded.holder, pending_until = excluded.pending_until,
  answer_status = null, sealed_answer = null, created_at = now()
where k.created_at <= now() - interval '24 hours' or (k.pending_until <= now() and k.request_digest = excluded.request_digest)
returning true
"""
HELD = """
select request_digest, answer_status, sealed_answer, greatest(extract(epoch from pending_until - now()), 0.1)::float8 as after_seconds
from request_keys
where organization_id = $1 and environment_id = $2 and actor_id = $3 and method = $4 and path = $5 and request_key = $6
"""
KEEP = """
update request_keys set pending_until = now() + make_interval(secs => $2) where holder = any($1::uuid[]) and pending_until is not null
"""
ANSWER = """
update request_keys set pending_until = null, answer_status = $8, sealed_answer = $9
where organization_id = $1 and environment_id = $2 and actor_id = $3 and method = $4 and path = $5 and request_key = $6
  and holder = $7 and pending_until is not null
"""
RELEASE = """
delete from request_keys
where organization_id = $1 and environment_id = $2 and actor_id = $3 and method = $4 and path = $5 and request_key = $6
  and holder = $7 and pending_until is not null
"""
FORGET = """
delete from request_keys where (organization_id, environment_id, actor_id, method, path, request_key) in (
  select organization_id, environment_id, actor_id, method, path, request_key from request_keys
  where created_at <= now() - interval '24 hours' limit $1 for update skip locked)
"""
ROUNDS_MAX = 5


async def take(
    connection: Connection, key: RequestKey, request_digest: bytes, holder: UUID, *, lease_seconds: float
) -> Taken | Answered | Busy | Reused:
    """Take a request key, or learn what became of it.

    Args:
        request_digest: identity of the request's body and of the headers that change its meaning.
        holder: names this request in this process; renewed by `keep` while it is answered.
        lease_seconds: after which a holder that died is forgotten.
    """
    of = astuple(key)
    for _ in range(ROUNDS_MAX):
        if await connection.fetchval(TAKE, *of, request_digest, holder, lease_seconds):
            return Taken()
        held = await connection.fetchrow(HELD, *of)
        if held is None:
            continue  # Released between the two statements.
        if held["request_digest"] != request_digest:
            return Reused()
        if held["answer_status"] is not None:
            return Answered(status=held["answer_status"], sealed_answer=held["sealed_answer"])
        return Busy(after_seconds=held["after_seconds"])
    return Busy(after_seconds=1.0)


async def keep(connection: Connection, holders: list[UUID], *, lease_seconds: float) -> None:
    """Renew the leases of requests that are still being answered."""
    await connection.execute(KEEP, holders, lease_seconds)


async def answer(connection: Connection, key: RequestKey, holder: UUID, *, status: int, sealed_answer: bytes) -> None:
    """Keep the final answer of a request; a holder that was forgotten meanwhile changes nothing."""
    await connection.execute(ANSWER, *astuple(key), holder, status, sealed_answer)


async def release(connection: Connection, key: RequestKey, holder: UUID) -> None:
    """Give a request key back: its answer was not final."""
    await connection.execute(RELEASE, *astuple(key), holder)


async def forget_expired(connection: Connection, *, limit: int) -> int:
    """Delete request keys past their 24 hours; returns how many."""
    return int((await connection.execute(FORGET, limit)).split()[-1])
