"""Request keys: one holder, one answer, one day."""

import asyncio
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
from tests.integration.store.races import Between, Store

from outbox_store.request_keys import (
    HELD,
    Answered,
    Busy,
    RequestKey,
    Reused,
    Taken,
    answer,
    forget_expired,
    keep,
    release,
    take,
)

DIGEST, OTHER = b"one request", b"another request"


def key_of(store: Store, **changes: Any) -> RequestKey:
    """A request key of this test's actor, new unless it is named."""
    key = RequestKey(
        organization_id=store.world.organization_id,
        environment_id=store.world.environment_id,
        actor_id=store.world.actor_id,
        method="POST",
        path="/v1/tool-calls",
        key=uuid4().hex,
    )
    return replace(key, **changes)


async def age(store: Store, key: RequestKey, what: str) -> None:
    """Move a request key's times."""
    await store.owner.execute(f"update request_keys set {what} where request_key = $1", key.key)


async def test_a_key_is_taken_once_and_answered_ever_after(store: Store) -> None:
    """The first request is the caller's to answer; while it runs the same one is told to wait; then all get the kept answer."""
    key, holder = key_of(store), uuid4()
    assert await take(store.api, key, DIGEST, holder, lease_seconds=60.0) == Taken()
    busy = await take(store.api, key, DIGEST, uuid4(), lease_seconds=60.0)
    assert isinstance(busy, Busy)
    assert 50.0 < busy.after_seconds <= 60.0
    await answer(store.api, key, holder, status=200, sealed_answer=b"sealed")
    for _ in range(2):
        assert await take(store.api, key, DIGEST, uuid4(), lease_seconds=60.0) == Answered(status=200, sealed_answer=b"sealed")


async def test_a_key_belongs_to_one_request(store: Store) -> None:
    """Another request under the same key is refused, while the first is answered and afterwards."""
    key, holder = key_of(store), uuid4()
    await take(store.api, key, DIGEST, holder, lease_seconds=60.0)
    assert await take(store.api, key, OTHER, uuid4(), lease_seconds=60.0) == Reused()
    await answer(store.api, key, holder, status=422, sealed_answer=b"sealed")
    assert await take(store.api, key, OTHER, uuid4(), lease_seconds=60.0) == Reused()
    await age(store, key, "created_at = now() - interval '23 hours 59 minutes'")
    assert await take(store.api, key, OTHER, uuid4(), lease_seconds=60.0) == Reused()


@pytest.mark.parametrize(
    "other",
    [{"organization_id": "another"}, {"environment_id": uuid4()}, {"actor_id": uuid4()}, {"method": "PUT"}, {"path": "/v1/scoped-keys"}, {"key": "k2"}],
    ids=lambda other: next(iter(other)),
)  # fmt: skip
async def test_a_key_is_nobody_elses(store: Store, other: dict[str, Any]) -> None:
    """The same text in another organization, environment, actor, method or path is another key."""
    if "organization_id" in other:
        elsewhere = await Store.open(store.database)
        other = {"organization_id": elsewhere.world.organization_id}
        await elsewhere.close()
    key = key_of(store)
    await take(store.api, key, DIGEST, uuid4(), lease_seconds=60.0)
    assert await take(store.api, replace(key, **other), OTHER, uuid4(), lease_seconds=60.0) == Taken()


async def test_a_released_key_is_free(store: Store) -> None:
    """After an answer that was not final the same request, or another one, is answered anew."""
    key, holder = key_of(store), uuid4()
    await take(store.api, key, DIGEST, holder, lease_seconds=60.0)
    await release(store.api, key, uuid4())
    assert isinstance(await take(store.api, key, DIGEST, uuid4(), lease_seconds=60.0), Busy)
    await release(store.api, key, holder)
    assert await take(store.api, key, OTHER, uuid4(), lease_seconds=60.0) == Taken()


async def test_an_answer_is_not_released(store: Store) -> None:
    """A final answer stays, whoever gives the key back afterwards."""
    key, holder = key_of(store), uuid4()
    await take(store.api, key, DIGEST, holder, lease_seconds=60.0)
    await answer(store.api, key, holder, status=200, sealed_answer=b"sealed")
    await release(store.api, key, holder)
    await answer(store.api, key, holder, status=500, sealed_answer=b"other")
    assert await take(store.api, key, DIGEST, uuid4(), lease_seconds=60.0) == Answered(status=200, sealed_answer=b"sealed")


async def test_a_holder_that_died_is_followed(store: Store) -> None:
    """After its lease the same request takes the key over; the old holder's answer then changes nothing."""
    key, dead, heir = key_of(store), uuid4(), uuid4()
    await take(store.api, key, DIGEST, dead, lease_seconds=60.0)
    await age(store, key, "pending_until = now() - interval '1 second'")
    assert await take(store.api, key, OTHER, uuid4(), lease_seconds=60.0) == Reused()
    assert await take(store.api, key, DIGEST, heir, lease_seconds=60.0) == Taken()
    await answer(store.api, key, dead, status=200, sealed_answer=b"old")
    await release(store.api, key, dead)
    assert isinstance(await take(store.api, key, DIGEST, uuid4(), lease_seconds=60.0), Busy)
    await answer(store.api, key, heir, status=200, sealed_answer=b"new")
    assert await take(store.api, key, DIGEST, uuid4(), lease_seconds=60.0) == Answered(status=200, sealed_answer=b"new")


async def test_a_holder_that_lives_keeps_its_key(store: Store) -> None:
    """A renewed lease is not taken over; others' leases and answers stay as they are."""
    mine, others, done = key_of(store), key_of(store), key_of(store)
    holder, other, answered = uuid4(), uuid4(), uuid4()
    await take(store.api, mine, DIGEST, holder, lease_seconds=1.0)
    await take(store.api, others, DIGEST, other, lease_seconds=1.0)
    await take(store.api, done, DIGEST, answered, lease_seconds=1.0)
    await answer(store.api, done, answered, status=200, sealed_answer=b"sealed")
    await keep(store.api, [holder, answered], lease_seconds=600.0)
    found = {key.key: await take(store.api, key, DIGEST, uuid4(), lease_seconds=60.0) for key in (mine, others, done)}
    renewed, kept = found[mine.key], found[others.key]
    assert isinstance(renewed, Busy)
    assert renewed.after_seconds > 500.0
    assert isinstance(kept, Busy)
    assert kept.after_seconds <= 1.0
    assert isinstance(found[done.key], Answered)


async def test_a_key_lives_for_a_day(store: Store) -> None:
    """After 24 hours the key is as good as new, also for another request, whether or not it was swept away."""
    keys = [key_of(store) for _ in range(3)]
    for key in keys:
        holder = uuid4()
        await take(store.api, key, DIGEST, holder, lease_seconds=60.0)
        await answer(store.api, key, holder, status=200, sealed_answer=b"sealed")
    for key in keys[:2]:
        await age(store, key, "created_at = now() - interval '24 hours'")
    assert await take(store.api, keys[0], OTHER, uuid4(), lease_seconds=60.0) == Taken()
    assert await forget_expired(store.api, limit=10) == 1
    assert (
        await store.one("select count(*) from request_keys where request_key = any($1::text[])", [key.key for key in keys]) == 2
    )
    assert await forget_expired(store.api, limit=10) == 0


async def test_two_that_forget_at_once_pass_each_other_by(store: Store) -> None:
    """What one process deletes another passes over, a few at a time."""
    for _ in range(3):
        key = key_of(store)
        await take(store.api, key, DIGEST, uuid4(), lease_seconds=60.0)
        await age(store, key, "created_at = now() - interval '2 days'")
    holder = await store.another(store.database.api_url)
    async with holder.transaction():
        assert await forget_expired(holder, limit=2) == 2
        assert await forget_expired(store.api, limit=2) == 1


async def test_one_of_many_at_once_takes_the_key(store: Store) -> None:
    """Of 20 equal requests at the same moment one is to be answered and 19 wait."""
    key = key_of(store)
    connections = [await store.another(store.database.api_url) for _ in range(20)]
    found = await asyncio.gather(*(take(connection, key, DIGEST, uuid4(), lease_seconds=60.0) for connection in connections))
    assert [type(one) for one in found].count(Taken) == 1
    assert [type(one) for one in found].count(Busy) == 19


@pytest.mark.parametrize(("commit", "found"), [(True, Busy), (False, Taken)])
async def test_a_taking_that_waits_for_another(store: Store, commit: bool, found: type) -> None:
    """A request that waits for an equal one's insert is told to wait when it commits, and takes the key when it does not."""
    key = key_of(store)
    verdict = await store.beside(
        lambda holder: take(holder, key, DIGEST, uuid4(), lease_seconds=60.0),
        lambda other: take(other, key, DIGEST, uuid4(), lease_seconds=60.0),
        commit=commit,
    )
    assert isinstance(verdict, found)


async def test_a_key_released_between_the_two_statements_is_taken(store: Store) -> None:
    """Who finds nobody behind a taken key takes it."""
    key, holder = key_of(store), uuid4()
    await take(store.api, key, DIGEST, holder, lease_seconds=60.0)
    released = Between.on(store.api, {HELD: lambda: release(store.owner, key, holder)})
    assert await take(released, key, DIGEST, uuid4(), lease_seconds=60.0) == Taken()
