"""Marks in files and in Redis: what outlives whom, and that none of them ever goes back."""

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
from pydantic import SecretStr
from tests.support.redis import StoppableRedis

from outbox_domain.epoch import Mark, Witness
from outbox_runtime.marks import Marks
from outbox_runtime.settings import RedisSettings

NO_REDIS = RedisSettings()
MARK = Mark(installation_id=uuid4(), epoch=1, beat=7, at_ms=1, witness=None)


def witness() -> Witness:
    """An attempt of nobody."""
    return Witness(organization_id=uuid4(), attempt_id=uuid4())


@pytest.fixture
def in_redis(redis_url: str) -> Callable[[], Marks]:
    """Makes marks that are kept in Redis, under names of this test's own."""
    settings = RedisSettings(redis_url=SecretStr(redis_url), redis_prefix=f"test-{uuid4().hex[:12]}")
    return lambda: Marks(settings, None)


async def test_a_file_outlives_its_process(tmp_path: Path) -> None:
    """What a worker wrote, its newest witness included, is read by the next one, which takes the same file over."""
    first, seen = Marks(NO_REDIS, tmp_path), witness()
    assert await first.read() == []
    await first.write(MARK)
    first.saw(seen, epoch=1)
    await first.aclose()
    second = Marks(NO_REDIS, tmp_path)
    assert await second.read() == [replace(MARK, witness=seen)]
    await second.write(replace(MARK, beat=8))
    assert os.listdir(tmp_path) == ["mark-0"]
    assert {mark.beat for mark in await second.read()} == {8}
    await second.aclose()


async def test_workers_of_one_folder_have_files_of_their_own(tmp_path: Path) -> None:
    """Two at once write two files, and each reads both."""
    one, other = Marks(NO_REDIS, tmp_path), Marks(NO_REDIS, tmp_path)
    await one.write(MARK)
    await other.write(replace(MARK, beat=9))
    assert {mark.beat for mark in await one.read()} == {7, 9}
    assert sorted(os.listdir(tmp_path)) == ["mark-0", "mark-1"]
    await one.aclose()
    await other.aclose()


async def test_a_spoilt_file_is_no_mark(tmp_path: Path) -> None:
    """Half a mark, an empty file and a folder in its place are passed over; the others are read."""
    (tmp_path / "mark-5").write_text(MARK.text()[:30])
    (tmp_path / "mark-6").write_text("")
    (tmp_path / "mark-7").mkdir()
    marks = Marks(NO_REDIS, tmp_path)
    await marks.write(MARK)
    assert [mark.beat for mark in await marks.read()] == [7, 7]
    await marks.aclose()


async def test_the_newest_witness_stays_with_its_epoch(tmp_path: Path) -> None:
    """A beat keeps the witness of the same epoch; a new epoch begins without, and a claim of an old one is no witness of it."""
    marks, seen = Marks(NO_REDIS, tmp_path), witness()
    marks.saw(seen, epoch=1)
    assert await marks.read() == []
    await marks.write(MARK)
    marks.saw(seen, epoch=1)
    await marks.write(replace(MARK, beat=8))
    assert {mark.witness for mark in await marks.read()} == {seen}
    await marks.write(replace(MARK, epoch=2, beat=1))
    marks.saw(witness(), epoch=1)
    assert {(mark.epoch, mark.witness) for mark in await marks.read()} == {(2, None)}
    await marks.aclose()


async def test_redis_never_goes_back(in_redis: Callable[[], Marks]) -> None:
    """A slower worker, or one of an epoch that has ended, does not replace what a faster one has marked; a newer epoch does."""
    fast, slow, reader = in_redis(), in_redis(), in_redis()
    await fast.write(replace(MARK, beat=10))
    await slow.write(replace(MARK, beat=9))
    assert [mark.beat for mark in await reader.read()] == [10]
    await slow.write(replace(MARK, epoch=2, beat=1))
    await fast.write(replace(MARK, beat=11))
    assert [(mark.epoch, mark.beat) for mark in await reader.read()] == [(2, 1)]
    another = replace(MARK, installation_id=uuid4(), beat=1)
    await slow.write(another)
    assert await reader.read() == [another]
    for marks in (fast, slow, reader):
        await marks.aclose()


async def test_redis_away_costs_a_memory_and_no_time(stoppable_redis: StoppableRedis) -> None:
    """With Redis killed, reading and writing end soon and without an error; what the process itself knows is still there."""
    marks = Marks(RedisSettings(redis_url=SecretStr(stoppable_redis.url)), None)
    await marks.write(MARK)
    await asyncio.to_thread(stoppable_redis.kill)
    async with asyncio.timeout(10):
        await marks.write(replace(MARK, beat=8))
        assert [mark.beat for mark in await marks.read()] == [8]
    await marks.aclose()
