"""Values read from Postgres, kept in memory for a short while."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Cache(Generic[Key, Value]):
    """Reads each key once however many ask at the same time, and again once its value is too old.

    A value's age counts from before its reading began, so that `age_seconds_max` bounds how late a change is noticed.
    """

    def __init__(self, read: Callable[[Key], Awaitable[Value]], *, age_seconds_max: float | None, size_max: int) -> None:
        """
        Args:
            read: fetches one value; what it raises is raised to everybody who waits for it and is not kept.
            age_seconds_max: how old a value may be; None: it never changes.
            size_max: how many values are kept; beyond it the oldest is forgotten.
        """
        self._read = read
        self._age_seconds_max = age_seconds_max
        self._size_max = size_max
        self._kept: dict[Key, tuple[float, Value]] = {}
        self._reading: dict[Key, tuple[float, asyncio.Task[Value]]] = {}

    async def get(self, key: Key, *, age_seconds_max: float | None = None) -> Value:
        """The value of a key.

        Args:
            key: which one.
            age_seconds_max: stricter than the cache's own, for this one look.
        """
        limit = self._age_seconds_max if age_seconds_max is None else age_seconds_max
        now = time.monotonic()
        kept = self._kept.get(key)
        if kept is not None and (limit is None or now - kept[0] <= limit):
            return kept[1]
        reading = self._reading.get(key)
        if reading is None or (limit is not None and now - reading[0] > limit):
            task = asyncio.create_task(self._fetch(key, now))
            self._reading[key] = (now, task)
        else:
            task = reading[1]
        # Shielded: a caller who gives up must not take the reading away from the others.
        return await asyncio.shield(task)

    def kept(self, key: Key) -> Value | None:
        """The value that is kept of a key, however old; None where there is none."""
        found = self._kept.get(key)
        return found[1] if found is not None else None

    def put(self, key: Key, value: Value) -> None:
        """Keep a value that is known without reading."""
        self._keep(key, time.monotonic(), value)

    async def _fetch(self, key: Key, began: float) -> Value:
        try:
            value = await self._read(key)
        finally:
            current = self._reading.get(key)
            if current is not None and current[0] == began:
                del self._reading[key]
        self._keep(key, began, value)
        return value

    def _keep(self, key: Key, at: float, value: Value) -> None:
        # Taken out first, so that the order of the dictionary is the order of ages.
        self._kept.pop(key, None)
        while len(self._kept) >= self._size_max:
            del self._kept[next(iter(self._kept))]
        self._kept[key] = (at, value)
