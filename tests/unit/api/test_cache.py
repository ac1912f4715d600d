"""The cache of what is read from Postgres: one reading for all who ask, ages counted from before it began, errors not kept."""

import asyncio
import itertools

import pytest

from outbox_api.cache import Cache


class Source:
    """Counts how often it is read; each reading waits until it is let go."""

    def __init__(self) -> None:
        self.numbers = itertools.count(1)
        self.go = asyncio.Event()
        self.go.set()
        self.readings = 0

    async def read(self, key: str) -> str:
        """The next value of a key."""
        self.readings += 1
        number = next(self.numbers)
        await self.go.wait()
        if key == "broken":
            raise LookupError(key)
        return f"{key}{number}"


async def test_all_who_ask_at_once_share_one_reading() -> None:
    """A hundred askers, one reading; one of them giving up takes it from nobody."""
    source = Source()
    source.go.clear()
    cache = Cache(source.read, age_seconds_max=60.0, size_max=10)
    askers = [asyncio.create_task(cache.get("a")) for _ in range(100)]
    await asyncio.sleep(0)
    askers[0].cancel()
    source.go.set()
    values = await asyncio.gather(*askers[1:])
    assert set(values) == {"a1"}
    assert source.readings == 1
    assert askers[0].cancelled()


async def test_an_old_value_is_read_again() -> None:
    """Beyond its age a value is read again; a look may be stricter than the cache; without an age it never changes."""
    source = Source()
    cache = Cache(source.read, age_seconds_max=60.0, size_max=10)
    assert await cache.get("a") == "a1"
    assert await cache.get("a") == "a1"
    assert await cache.get("a", age_seconds_max=0.0) == "a2"
    assert await cache.get("a") == "a2"
    short = Cache(source.read, age_seconds_max=0.0, size_max=10)
    assert await short.get("b") != await short.get("b")


async def test_an_error_is_told_and_not_kept() -> None:
    """What a reading raises is raised to whoever waits, and the next asker reads again."""
    source = Source()
    cache = Cache(source.read, age_seconds_max=60.0, size_max=10)
    for _ in range(2):
        with pytest.raises(LookupError):
            await cache.get("broken")
    assert source.readings == 2
    assert cache.kept("broken") is None


async def test_it_forgets_the_oldest() -> None:
    """Beyond its size the value that was read longest ago goes."""
    source = Source()
    cache = Cache(source.read, age_seconds_max=None, size_max=2)
    await cache.get("a")
    await cache.get("b")
    cache.put("a", "put")
    await cache.get("c")
    assert (cache.kept("a"), cache.kept("b"), cache.kept("c")) == ("put", None, "c3")
