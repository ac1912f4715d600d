"""What became of effects is on disk until the gateway has it: whole files, for their owner, without any key."""

import json
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from agent_outbox import spool as spools
from agent_outbox.perform import Deliverer
from agent_outbox.spool import Entry, Spool, default_folder, folder_of, spool_at

KEY = "obx_sandbox_k3yid_s3cr3tpartofthekey0000000"
PATH = "/v1/reservations/r-1/settle"


def body(**members: Any) -> dict[str, Any]:
    """A settlement."""
    return {"attempt_id": str(uuid4()), "outcome": "succeeded", "result": {"id": "re_1"}, **members}


def files(folder: Path) -> list[Path]:
    """Every file below a folder."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def dead_process() -> int:
    """The id of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_what_is_kept_is_there_for_the_next_process(tmp_path: Path) -> None:
    """Another spool of the folder, as in another process, has what was kept, oldest first; what was removed is gone."""
    spool, kept = Spool(tmp_path / "s"), [body() for _ in range(3)]
    entries = [spool.keep(PATH, one) for one in kept]
    spool.remove(entries[1])
    assert [(one.path, one.body) for one in Spool(tmp_path / "s").waiting()] == [(PATH, kept[0]), (PATH, kept[2])]


def test_what_is_being_delivered_is_not_waiting(tmp_path: Path) -> None:
    """Who keeps a settlement delivers it; it waits for others of the process only once it was released."""
    spool = Spool(tmp_path)
    entry = spool.keep(PATH, body())
    assert spool.waiting() == []
    spool.release(entry)
    assert spool.waiting() == [entry]
    spool.remove(entry)
    assert spool.waiting() == []
    spool.remove(entry)


def test_files_are_for_their_owner_and_hold_no_key(tmp_path: Path) -> None:
    """Files have mode 0600, folders 0700, and neither names nor contents show the key; other keys and gateways have other folders."""
    os.umask(os.umask(0o022))
    folder = folder_of(tmp_path / "spool", url="https://outbox.example.com", key=KEY)
    assert folder is not None
    Spool(folder).keep(PATH, body())
    [file] = files(tmp_path)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert "s3cr3t" not in str(file) + file.read_text()
    others = [
        ("https://other.example.com", KEY),
        ("https://outbox.example.com", KEY.replace("k3yid", "other")),
        ("https://outbox.example.com", None),
    ]
    assert len({folder_of(tmp_path, url=url, key=key) for url, key in others} | {folder}) == 4
    rotated = folder_of(tmp_path / "spool", url="https://outbox.example.com", key=KEY.replace("s3cr3t", "n3ws3c"))
    assert rotated == folder, "the same key with another secret is the same key"
    assert folder_of(None, url="https://outbox.example.com", key=KEY) is None


def test_a_torn_file_is_never_delivered(tmp_path: Path) -> None:
    """What a dead process left half-written is thrown away, what is no settlement is set aside, and the others are delivered."""
    spool = Spool(tmp_path)
    entry = spool.keep(PATH, body())
    spool.release(entry)
    assert entry.file is not None
    torn = tmp_path / f".{1:020d}-{dead_process()}-a-1.json"
    torn.write_bytes(b'{"path": "/v1/res')
    damaged = [entry.file.name.replace(".json", f"{number}.json") for number in range(6)]
    nested = b'{"path": "/v1", "body": {"attempt_id": "a", "result": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}"
    for name, content in zip(
        damaged, (b'{"path": "/v1/res', b"\xff", b"[]", b"", b'{"path": 1, "body": 2}', nested), strict=True
    ):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "notes.txt").write_text("mine")
    assert spool.waiting() == [entry]
    assert not torn.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([entry.file.name, "notes.txt", "refused"])
    assert sorted(path.name for path in (tmp_path / "refused").iterdir()) == damaged


def test_a_whole_file_without_its_name_is_delivered(tmp_path: Path) -> None:
    """A process that was killed between writing and naming loses nothing; one that lives is left to its work."""
    content, attempt = json.dumps({"path": PATH, "body": body(attempt_id="a-1")}), f"{1:020d}"
    (tmp_path / f".{attempt}-{dead_process()}-a-1.json").write_text(content)
    (tmp_path / f".{attempt}-{os.getppid()}-a-2.json").write_text(content)
    assert [entry.body["attempt_id"] for entry in Spool(tmp_path).waiting()] == ["a-1"]
    assert len(files(tmp_path)) == 2


def test_an_earlier_process_with_our_number_loses_nothing(tmp_path: Path) -> None:
    """In a container every process has the same number: what the one before left unnamed is delivered, what we write now is left alone."""
    spool, content, own = Spool(tmp_path), json.dumps({"path": PATH, "body": body(attempt_id="a-1")}), os.getpid()
    (tmp_path / f".{1:020d}-{own}-a-1.json").write_text(content)
    at_work = f"{2:020d}-{own}-a-2.json"
    spool._mine.add(at_work)  # As another thread of ours has it while it writes.
    (tmp_path / f".{at_work}").write_text(content)
    assert [entry.body["attempt_id"] for entry in spool.waiting()] == ["a-1"]
    assert (tmp_path / f".{at_work}").exists()


def test_what_a_process_elsewhere_is_writing_is_left_alone(tmp_path: Path) -> None:
    """Another container has processes of the same numbers: a file that was just begun is neither thrown away nor taken over."""
    writing = [tmp_path / f".{time.time_ns():020d}-{number}-a-1.json" for number in (os.getpid(), dead_process())]
    for file in writing:
        file.write_bytes(b'{"path": "/v1/res')
    assert Spool(tmp_path).waiting() == []
    assert all(file.exists() for file in writing)


def test_what_was_put_off_comes_after_the_others(tmp_path: Path) -> None:
    """What could not be delivered stands behind what was not tried, and before what could not be delivered more often."""
    spool = Spool(tmp_path)
    first, second, third = (spool.keep(PATH, body()) for _ in range(3))
    for entry in (first, second, third):
        spool.release(entry)
    for entry in (first, first, second):
        spool.put_off(entry)
    assert spool.waiting() == [third, second, first]
    assert spool.waiting(again=False) == [third]


def test_a_disk_that_takes_nothing_is_no_failure(tmp_path: Path) -> None:
    """Where nothing can be written the settlement is kept in memory, and waits there until it was delivered."""
    (tmp_path / "file").write_text("no folder")
    for spool in (Spool(tmp_path / "file" / "below"), Spool(None)):
        entry = spool.keep(PATH, body())
        assert (entry.file, spool.waiting(), spool.is_full()) == (None, [entry], False)
        spool.remove(entry)
        assert spool.waiting() == []


def test_what_the_gateway_refuses_is_kept_aside(tmp_path: Path) -> None:
    """A refused settlement is not tried again and stays readable for people."""
    spool, refused = Spool(tmp_path), body()
    spool.remove(spool.keep(PATH, refused), refused=True)
    assert spool.waiting() == []
    [file] = files(tmp_path / "refused")
    assert json.loads(file.read_text())["body"] == refused


def test_a_full_spool_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond its number of files or bytes it is full, and what is kept all the same is kept."""
    monkeypatch.setattr(spools, "FILES_MAX", 3)
    spool = Spool(tmp_path)
    for _ in range(3):
        assert not spool.is_full()
        spool.release(spool.keep(PATH, body()))
    assert spool.is_full()
    spool.release(spool.keep(PATH, body()))
    assert len(spool.waiting()) == 4
    monkeypatch.setattr(spools, "FILES_MAX", 100)
    monkeypatch.setattr(spools, "BYTES_MAX", 200)
    assert spool.is_full()


def _keep_and_wait(folder: Path, told: Any, go: Any) -> None:
    spool = Spool(folder)
    spool.keep(PATH, body())
    told.set()
    go.wait(60)


def test_what_a_living_process_has_just_kept_is_left_to_it(tmp_path: Path) -> None:
    """Another process's fresh file is not taken while that process lives, and is taken as soon as it is dead."""
    context = multiprocessing.get_context("spawn")
    told, go = context.Event(), context.Event()
    other = context.Process(target=_keep_and_wait, args=(tmp_path, told, go))
    other.start()
    try:
        assert told.wait(60)
        assert len(files(tmp_path)) == 1
        assert Spool(tmp_path).waiting() == []
        other.kill()
        other.join(30)
        assert len(Spool(tmp_path).waiting()) == 1
    finally:
        other.kill()
        other.join(30)


def test_a_fork_delivers_nothing_of_its_parents(tmp_path: Path) -> None:
    """In a fork, a spool that was locked at that moment can be used, and what the parent is delivering stays the parent's."""
    spool = spool_at(tmp_path)
    assert spool_at(tmp_path) is spool
    spool.keep(PATH, body())
    in_memory, begun = Spool(None), multiprocessing.get_context("fork").Event()
    deliverer = Deliverer("http://127.0.0.1:1", (), spool)
    with spool._turn, in_memory._turn, deliverer._turn:  # As other threads may hold them at the moment of the fork.
        child = os.fork()
        if child == 0:
            nothing = spool.waiting() == [] and in_memory.waiting() == []
            spool.release(spool.keep(PATH, body()))
            deliverer.kick()
            begun.set()
            os._exit(0 if nothing else 1)
    try:
        assert begun.wait(30)
    finally:
        if not begun.is_set():
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
    assert os.waitstatus_to_exitcode(status) == 0
    assert len(files(tmp_path)) == 2


def test_where_spools_are() -> None:
    """OUTBOX_SPOOL, else the user's folder for state, else the folder for temporary files."""
    assert default_folder({"OUTBOX_SPOOL": "/s", "HOME": "/h"}) == "/s"
    assert default_folder({"XDG_STATE_HOME": "/x", "HOME": "/h"}) == "/x/agent-outbox/spool"
    assert default_folder({"HOME": str(Path(__file__).parent)}).endswith("/.local/state/agent-outbox/spool")
    assert default_folder({"HOME": "/nowhere"}) == default_folder({})
    assert str(os.getuid()) in default_folder({})


def test_a_process_that_changes_its_folder_finds_what_it_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A spool that was named from the current folder stays where it was, and is one spool under both its names."""
    monkeypatch.chdir(tmp_path)
    spool = spool_at(folder_of("spool", url="https://outbox.example.com", key=KEY))
    spool.release(spool.keep(PATH, body()))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(spool.waiting()) == 1
    assert spool_at(folder_of(tmp_path / "spool", url="https://outbox.example.com", key=KEY)) is spool


def test_entries_of_equal_content_are_two(tmp_path: Path) -> None:
    """Two settlements in memory with one content are kept apart by `remove` one after the other."""
    spool, same = Spool(None), body()
    first, second = spool.keep(PATH, same), spool.keep(PATH, same)
    assert first == second == Entry(file=None, path=PATH, body=same)
    spool.remove(first)
    assert len(spool.waiting()) == 1


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to another user")
def test_what_another_user_left_is_not_delivered(tmp_path: Path) -> None:
    """A folder of another user's, as anybody may make one in a shared place, is never read: its files would go out under our key."""
    spool = Spool(tmp_path / "s")
    spool.release(spool.keep(PATH, body()))
    assert len(spool.waiting()) == 1
    os.chown(tmp_path / "s", 12345, 12345)
    assert Spool(tmp_path / "s").waiting() == []


def test_a_path_that_would_name_another_host_is_no_entry(tmp_path: Path) -> None:
    """What is kept is sent to a path of the gateway: an entry that would lengthen its host name or port is set aside."""
    spool = Spool(tmp_path)
    entry = spool.keep(PATH, body())
    spool.release(entry)
    [file] = [path for path in files(tmp_path) if path.suffix == ".json"]
    kept = json.loads(file.read_text())
    for path in ("7/steal", ".example.com/x", "@example.com/x"):
        file.write_text(json.dumps({**kept, "path": path}))
        assert Spool(tmp_path).waiting() == []
