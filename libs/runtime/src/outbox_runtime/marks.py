"""Marks: how far the ledger is known to have come, kept where Postgres is not: in Redis and in files of the workers.

Each is only a memory: Redis may be flushed or away, a file lost or old. What is missing or older is weaker and never an alarm;
what is there was committed before it was written. A worker's file is written at every claim, without waiting for the disk: it
outlives the process, not the machine. Source: ADR 0015, `interfaces.md` section 11.
"""

import contextlib
import fcntl
import os
from collections.abc import Awaitable
from dataclasses import replace
from pathlib import Path
from typing import cast

import structlog
from redis.asyncio import Redis

from outbox_domain.epoch import Mark, Witness
from outbox_runtime.redis import AWAY, close_client, open_client
from outbox_runtime.settings import RedisSettings

log = structlog.stdlib.get_logger("outbox.marks")

FILE_BYTES = 512
"""One mark fills a file, padded with blanks, so that a shorter one leaves nothing of a longer one behind."""

FILES_MAX = 10_000
"""Workers that share a folder; each writes the first file that no other one holds."""

# A slower worker must not put back what a faster one has marked. What is no mark, or of another ledger, is replaced.
WRITE = """
local kept = redis.call('get', KEYS[1])
if kept then
  local readable, mark = pcall(cjson.decode, kept)
  if readable and type(mark) == 'table' and mark[1] == 1 and mark[2] == ARGV[2] then
    local epoch, beat = tonumber(ARGV[3]), tonumber(ARGV[4])
    if mark[3] > epoch or (mark[3] == epoch and mark[4] > beat) then return 0 end
  end
end
redis.call('set', KEYS[1], ARGV[1])
return 1
"""


class Marks:
    """What one worker process remembers and reads of the ledger's progress."""

    def __init__(self, settings: RedisSettings, folder: Path | None) -> None:
        """
        Args:
            settings: where Redis is, if there is one.
            folder: of the workers' state files, made if absent; None: there are none.

        Raises:
            OSError: the folder cannot be used.
        """
        self._redis: Redis | None = None if settings.redis_url is None else open_client(settings)
        self._key = f"{settings.redis_prefix}:mark"
        self._folder = folder
        self._file: int | None = None if folder is None else _own_file(folder)
        self._own: Mark | None = None

    async def read(self) -> list[Mark]:
        """Everything that is remembered: by this process, by every worker's file, and by Redis."""
        found = [self._own, *self._from_files(), await self._from_redis()]
        return [mark for mark in found if mark is not None]

    def saw(self, witness: Witness, *, epoch: int) -> None:
        """A claim was answered: its attempt is committed. Written before anything is sent."""
        if self._own is None or self._own.epoch != epoch:
            return
        self._own = replace(self._own, witness=witness)
        self._to_file(self._own)

    async def write(self, mark: Mark) -> None:
        """Remember a beat that is committed; the newest witness of the same epoch is kept with it."""
        if self._own is not None and self._own.epoch == mark.epoch and mark.witness is None:
            mark = replace(mark, witness=self._own.witness)
        self._own = mark
        self._to_file(mark)
        if self._redis is not None:
            try:
                # Typed for both kinds of client; this one is asynchronous.
                written = self._redis.eval(
                    WRITE, 1, self._key, mark.text(), str(mark.installation_id), str(mark.epoch), str(mark.beat)
                )
                await cast("Awaitable[int]", written)
            except AWAY as error:
                log.info("mark-not-in-redis", error=type(error).__name__)

    async def aclose(self) -> None:
        """Let go of the connection and of the file, which stays."""
        if self._redis is not None:
            await close_client(self._redis)
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _to_file(self, mark: Mark) -> None:
        if self._file is None:
            return
        try:
            os.pwrite(self._file, mark.text().encode().ljust(FILE_BYTES - 1) + b"\n", 0)
        except OSError as error:
            log.warning("mark-not-in-file", error=error.strerror)

    def _from_files(self) -> list[Mark | None]:
        marks: list[Mark | None] = []
        if self._folder is None:
            return marks
        for path in sorted(self._folder.glob("mark-*")):
            with contextlib.suppress(OSError):
                text = path.read_bytes()[:FILE_BYTES]
                mark = Mark.from_text(text) if text else None
                if mark is None and text:
                    log.warning("mark-unreadable", file=path.name)
                marks.append(mark)
        return marks

    async def _from_redis(self) -> Mark | None:
        if self._redis is None:
            return None
        try:
            text = await self._redis.get(self._key)
        except AWAY as error:
            log.info("mark-not-read", error=type(error).__name__)
            return None
        return None if text is None else Mark.from_text(text)


def _own_file(folder: Path) -> int:
    """A file of the folder that no other process holds, held until this process ends. What a former one wrote stays in it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for number in range(FILES_MAX):
        descriptor = os.open(folder / f"mark-{number}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        return descriptor
    raise OSError(f"{FILES_MAX} workers write into {folder}")
