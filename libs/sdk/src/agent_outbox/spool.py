"""Keeps what became of effects on disk until the gateway has it: settlements that could not be delivered, or not yet.

A settlement is written before it is sent and removed when the gateway has answered it, so that a process which is killed in
between loses nothing: the next process of the same user with the same key delivers it. Each file is whole or absent (written
beside, synced, renamed); files are for their owner alone, and no key is in them, in their names or in those of their folders.

A settlement says which attempt it speaks of, and the gateway takes the same one twice as once, so it does no harm when two
processes deliver one file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakSet, WeakValueDictionary

LOG = logging.getLogger(__name__)

FOLDER_VARIABLE = "OUTBOX_SPOOL"

FILES_MAX = 10_000
BYTES_MAX = 256 << 20
"""Beyond either, nothing new is begun until something was delivered."""

FRESH_SECONDS = 30.0
"""How long a file is left to the process that wrote it, while that lives."""

REFUSED_MAX = 1_000
"""How many settlements are kept that the gateway would not take."""

_KEY = re.compile(r"obx_[^_]+_([^_]+)_.+")
_NAME = re.compile(r"(\d{20})-(\d+)-[0-9a-f-]{1,64}\.json")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One settlement.

    Attributes:
        file: where it is kept; None where it could not be.
        path: of the gateway's endpoint.
        body: of the request.
    """

    file: Path | None
    path: str
    body: Mapping[str, Any]


class Spool:
    """The settlements that go to one gateway with one key."""

    def __init__(self, folder: Path | None) -> None:
        """
        Args:
            folder: made when something is kept; None keeps nothing on disk.
        """
        self.folder = folder
        self._mine: set[str] = set()
        self._unkept: list[Entry] = []
        self._put_off: dict[str, int] = {}
        self._turn = threading.Lock()
        _ALL.add(self)

    def keep(self, path: str, body: Mapping[str, Any]) -> Entry:
        """Keep a settlement until `remove`. Whatever goes wrong with the disk, it is kept in memory at least.

        Args:
            path: of the gateway's endpoint.
            body: of the request, plain JSON.

        Returns:
            The entry; it is this process's until it is removed or released.
        """
        name = f"{time.time_ns():020d}-{os.getpid()}-{body['attempt_id']}.json"
        try:
            if self.folder is None:
                raise OSError("no folder")
            content = json.dumps({"path": path, "body": body}).encode()
            with self._turn:
                self._mine.add(name)
            _write(self.folder, name, content)
        except (OSError, ValueError) as error:
            with self._turn:
                self._mine.discard(name)
                entry = Entry(file=None, path=path, body=body)
                self._unkept.append(entry)
            if self.folder is not None:
                LOG.warning("what became of an effect could not be kept on disk (%s); it is kept in memory", type(error).__name__)
            return entry
        return Entry(file=self.folder / name, path=path, body=body)

    def release(self, entry: Entry) -> None:
        """It was not delivered by who kept it; whoever looks next may."""
        if entry.file is not None:
            with self._turn:
                self._mine.discard(entry.file.name)

    def remove(self, entry: Entry, *, refused: bool = False) -> None:
        """The gateway has answered it.

        Args:
            entry: of `keep` or `waiting`.
            refused: it would not take it; then it is kept aside, for people.
        """
        with self._turn:
            self._put_off.pop(entry.body["attempt_id"], None)
            if entry in self._unkept:
                self._unkept.remove(entry)
        if entry.file is None:
            return
        with contextlib.suppress(OSError):
            if refused:
                _set_aside(entry.file)
            entry.file.unlink(missing_ok=True)
        self.release(entry)

    def put_off(self, entry: Entry) -> None:
        """It could not be delivered, although others may be: it comes after them from now on."""
        with self._turn:
            name = entry.body["attempt_id"]
            self._put_off[name] = self._put_off.get(name, 0) + 1

    def waiting(self, *, again: bool = True) -> list[Entry]:
        """What nobody is delivering at this moment: first what was put off least often, then what is oldest.

        Args:
            again: what was put off is wanted too.
        """
        with self._turn:
            mine, found, put_off = set(self._mine), list(self._unkept), dict(self._put_off)
        self._adopt()
        for file in sorted(self._files()):
            if file.name not in mine and not _is_anothers(file):
                entry = self._readable(file)
                if entry is not None:
                    found.append(entry)
        if not again:
            return [entry for entry in found if entry.body["attempt_id"] not in put_off]
        return sorted(found, key=lambda entry: put_off.get(entry.body["attempt_id"], 0))

    def forget(self) -> None:
        """Forget what another process, of which this one is a fork, is delivering."""
        self._mine, self._unkept, self._put_off, self._turn = set(), [], {}, threading.Lock()

    def is_full(self) -> bool:
        """Whether so much waits that nothing new should be begun."""
        files = self._files()
        if len(files) >= FILES_MAX:
            return True
        total = 0
        for file in files:
            with contextlib.suppress(OSError):
                total += file.stat().st_size
        return total >= BYTES_MAX

    def _readable(self, file: Path) -> Entry | None:
        """The settlement in a file. What holds none would be met for ever, so it is set aside."""
        try:
            return _read(file)
        except FileNotFoundError:
            return None
        except ValueError:
            LOG.error("a kept settlement cannot be read; it is kept beside the others: %s", file)
            with contextlib.suppress(OSError):
                _set_aside(file)
        except OSError as error:
            LOG.error("a kept settlement cannot be read (%s): %s", type(error).__name__, file)
        return None

    def _adopt(self) -> None:
        """Take over what dead processes had written and not yet named: all of it is there where it can be read."""
        for file in self._listed():
            named = _NAME.fullmatch(file.name[1:]) if file.name.startswith(".") else None
            if named is None or _is_fresh(named) or self._is_at_work(named[0], int(named[2])):
                continue
            with contextlib.suppress(OSError):
                try:
                    _read(file)
                except ValueError:
                    file.unlink(missing_ok=True)
                else:
                    file.rename(file.parent / named[0])

    def _is_at_work(self, name: str, process_id: int) -> bool:
        """Whether who began a file may still be writing it. In a container an earlier process had this one's number."""
        if process_id == os.getpid():
            with self._turn:
                return name in self._mine
        return _is_alive(process_id)

    def _listed(self) -> list[Path]:
        try:
            if self.folder is None or (hasattr(os, "getuid") and self.folder.lstat().st_uid != os.getuid()):
                return []
            return list(self.folder.iterdir())
        except OSError:
            return []

    def _files(self) -> list[Path]:
        return [file for file in self._listed() if _NAME.fullmatch(file.name)]


def spool_at(folder: Path | None) -> Spool:
    """The spool of a folder, one for all clients of this process; without a folder one of its own.

    Args:
        folder: as `folder_of` gives it.
    """
    if folder is None:
        return Spool(None)
    with _SPOOLS_TURN:
        return _SPOOLS.setdefault(folder, Spool(folder))


def folder_of(spool: str | os.PathLike[str] | None, *, url: str, key: str | None) -> Path | None:
    """Where the settlements for one gateway and key are kept.

    Args:
        spool: the folder of all spools; None: nothing is kept on disk.
        url: of the gateway.
        key: the scoped key; only the public part, its id, enters the name.
    """
    if spool is None:
        return None
    found = _KEY.fullmatch(key or "")
    name = f"{url}\n{found[1] if found else 'keyless' if key is None else 'unknown'}"
    # Where it is now, so that a process which changes its folder still finds what it kept.
    return Path(spool).absolute() / hashlib.sha256(name.encode()).hexdigest()[:32]


def default_folder(environment: Mapping[str, str]) -> str:
    """The folder of all spools of this user.

    Args:
        environment: such as `os.environ`: `OUTBOX_SPOOL`, else `XDG_STATE_HOME`, else `HOME`, else the temporary folder.
    """
    if environment.get(FOLDER_VARIABLE):
        return environment[FOLDER_VARIABLE]
    state, home = environment.get("XDG_STATE_HOME"), environment.get("HOME")
    if state:
        return str(Path(state) / "agent-outbox" / "spool")
    if home and os.access(home, os.W_OK):
        return str(Path(home) / ".local" / "state" / "agent-outbox" / "spool")
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return str(Path(tempfile.gettempdir()) / f"agent-outbox-{user}" / "spool")


_ALL: WeakSet[Spool] = WeakSet()
_SPOOLS: WeakValueDictionary[Path, Spool] = WeakValueDictionary()
_SPOOLS_TURN = threading.Lock()


def _after_fork() -> None:
    """A child delivers nothing of what its parent is delivering, and waits for no thread that stayed there."""
    global _SPOOLS_TURN
    _SPOOLS_TURN = threading.Lock()
    for spool in list(_ALL):
        spool.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _write(folder: Path, name: str, content: bytes) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
        raise PermissionError("the folder is another user's")
    beside = folder / f".{name}"
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.rename(folder / name)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    with contextlib.suppress(OSError):  # Folders cannot be synced everywhere.
        listing = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(listing)
        finally:
            os.close(listing)


def _is_anothers(file: Path) -> bool:
    """Whether another living process wrote it so lately that it is probably delivering it."""
    named = _NAME.fullmatch(file.name)
    if named is None or int(named[2]) == os.getpid():
        return False
    return _is_fresh(named) and _is_alive(int(named[2]))


def _is_fresh(named: re.Match[str]) -> bool:
    """Whether a file was begun so lately that its process is probably at it, though it may be one of another container."""
    return 0 <= time.time() - int(named[1]) / 1e9 < FRESH_SECONDS


def _is_alive(process_id: int) -> bool:
    if os.name == "nt":  # There, asking is sending it Ctrl-C.
        return True
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _read(file: Path) -> Entry:
    """The settlement in a file.

    Raises:
        OSError: it cannot be read.
        ValueError: it holds none.
    """
    try:
        document = json.loads(file.read_bytes())
        path, body = document["path"], document["body"]
        if not path.startswith("/") or not isinstance(body["attempt_id"], str):
            raise ValueError("it names no attempt of the gateway's")
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("it is no settlement") from error
    return Entry(file=file, path=path, body=body)


def _set_aside(file: Path) -> None:
    """Keep a file where nobody delivers it, as long as there are not too many."""
    aside = file.parent / "refused"
    aside.mkdir(mode=0o700, exist_ok=True)
    if sum(1 for _ in os.scandir(aside)) < REFUSED_MAX:
        file.rename(aside / file.name)
