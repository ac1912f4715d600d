"""`outbox demo` as a user meets it, its negative control, and the lines it gives to paste. Embedded Postgres and Redis."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.processes import ChildProcess, gone, start_command, wait_until

from outbox_standalone import child
from outbox_standalone.demo_cases import AT_ONCE, CASES, CONFLICT, KILLED, MAIL, REPLY_LOST, RESTART
from outbox_standalone.demo_show import curl_lines, python_lines
from outbox_standalone.demo_verdict import Case, Counted, Row, Told, verdict

OUTBOX = Path(sys.executable).with_name("outbox")
DEMO_SECONDS = 120.0
READY_SECONDS = 60.0
GONE_SECONDS = 20.0


def run_demo(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """`outbox demo`, run to its end without a terminal, its temporary folder below `folder`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OUTBOX_", "OTEL_"))}
    return subprocess.run(
        [OUTBOX, "demo", *options],
        env=environment | {"TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=DEMO_SECONDS,
        check=False,
    )


def processes_of(folder: Path) -> list[int]:
    """Ids of the running processes whose command line or working data name `folder`."""
    found = []
    for listed in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if os.fsencode(folder) in listed.read_bytes():
                found.append(int(listed.parent.name))
    return found


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder that everybody may walk through and whose path is short, as the temporary folder of a machine is."""
    with tempfile.TemporaryDirectory(prefix="demo-test-") as name:
        yield Path(name)


@pytest.mark.slow
def test_every_count_is_right_and_plain_is_worse(short_folder: Path) -> None:
    """Through Outbox each case has one effect, the plain agent makes more in each; the exit code is 0, nothing is left."""
    done = run_demo(short_folder, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["right"] is True
    counts = {case["case"]: (case["planned"], case["plain"], case["outbox"]) for case in told["cases"]}
    assert counts == {
        "reply-lost": (1, 2, 1),
        "killed": (1, 2, 1),
        "at-once": (1, 10, 1),
        "restart": (1, 2, 1),
        "conflict": (1, 2, 1),
        "mail": (1, 2, 1),
    }
    cases = {case["case"]: case for case in told["cases"]}
    assert cases["at-once"]["told"] == ["succeeded"] * 10
    assert len(cases["at-once"]["receipts"]) == 1
    assert cases["conflict"]["told"] == ["succeeded", "conflict"]
    assert cases["mail"]["told"] == ["in-doubt", "in-doubt"]
    assert cases["at-once"]["paid_twice"] == {"value": 7200, "currency": "EUR"}
    assert cases["mail"]["paid_twice"] is None
    assert [entry["to"] for entry in told["ledger_entries"]].count("succeeded") == 1
    assert told["seconds"] < 60
    assert list(short_folder.iterdir()) == []
    assert processes_of(short_folder) == []


@pytest.mark.slow
def test_without_terminal_and_redis_it_prints_plain_lines(short_folder: Path) -> None:
    """Without a terminal and without Redis: a line per step, the table, the ledger of a run, lines to paste; no control codes."""
    done = run_demo(short_folder, "--no-redis", "--keep")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    for case in CASES:
        assert f"with Outbox: {case.fault}: 1 planned, 1 made." in done.stdout
    assert "counted by the provider" in done.stdout
    assert "refund:pi_outbox_killed" in done.stdout
    assert python_lines() in done.stdout
    assert curl_lines() in done.stdout
    kept = list(short_folder.iterdir())
    assert len(kept) == 1
    assert str(kept[0] / "data") in done.stderr
    assert (kept[0] / "data" / "keys.json").exists()
    assert processes_of(short_folder) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_nothing(short_folder: Path, tmp_path: Path, number: signal.Signals) -> None:
    """Interrupted while agents are at work, it ends with 130; no process and no folder is left."""
    demo = start_command([str(OUTBOX), "demo"], env={"TMPDIR": str(short_folder)}, folder=tmp_path, name="demo")
    try:
        demo.wait_for(lambda: "plain agent: ten at once" in demo.log(), deadline_seconds=READY_SECONDS)
        ids = {demo.pid, *child.descendants(demo.pid)}
        assert len(ids) > 3
        demo.send(number)
        assert demo.wait(deadline_seconds=GONE_SECONDS) == 130
        wait_until(lambda: gone(ids), deadline_seconds=GONE_SECONDS)
        assert "Interrupted" in demo.log()
        assert list(short_folder.iterdir()) == []
    finally:
        demo.end()


def test_killed_it_leaves_no_process(short_folder: Path, tmp_path: Path) -> None:
    """Killed by SIGKILL, nothing that it started outlives it for long."""
    demo = start_command([str(OUTBOX), "demo"], env={"TMPDIR": str(short_folder)}, folder=tmp_path, name="demo")
    try:
        demo.wait_for(lambda: "plain agent: ten at once" in demo.log(), deadline_seconds=READY_SECONDS)
        ids = set(child.descendants(demo.pid))
        assert len(ids) > 3
        demo.kill()
        wait_until(lambda: gone(ids), deadline_seconds=GONE_SECONDS)
    finally:
        demo.end()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """The ready file of an `outbox up` that runs for this test."""
    ready_file = tmp_path / "ready.json"
    command = [str(OUTBOX), "up", "--data-dir", str(tmp_path / "data"), "--ready-file", str(ready_file)]
    up = start_command(command, folder=tmp_path, name="up")
    try:
        up.wait_for(ready_file.exists, deadline_seconds=READY_SECONDS)
        yield json.loads(ready_file.read_text())
    finally:
        _end(up)


def _end(up: ChildProcess) -> None:
    if up.process.poll() is None:
        up.send(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            up.wait(deadline_seconds=GONE_SECONDS)
    up.end()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl, which the shell lines call, is not installed")
def test_pasted_lines_work(server: dict[str, Any], tmp_path: Path) -> None:
    """The Python and the shell lines, run as they are printed, make one refund between them."""
    environment = {"PATH": os.environ["PATH"], "OUTBOX_URL": server["url"], "OUTBOX_KEY": server["agent_key"]}
    pasted = tmp_path / "pasted.py"
    pasted.write_text(python_lines())
    commands = [[sys.executable, str(pasted)], ["sh", "-c", curl_lines()], [sys.executable, str(pasted)]]
    said = [
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60).stdout
        for command in commands
    ]
    assert said[0].startswith("Done. Refund re_")
    assert json.loads(said[1])["replayed"] is True
    assert said[2].startswith("Already done")
    with urllib.request.urlopen(f"{server['sandbox_url']}/_control/effects", timeout=10) as answer:
        assert len(json.load(answer)) == 1


def right_row(case: Case) -> Row:
    """A row as it should be: twice in the plain column, once in ours, every answer as expected."""
    told = tuple(
        Told(word=word, receipt="{}", external_reference="re_1") if word == "succeeded" else Told(word=word)
        for word in case.expected
    )
    amount = case.amount or 0
    return Row(
        case=case, plain=Counted(effects=("a", "b"), moved=2 * amount), outbox=Counted(effects=("re_1",), moved=amount), told=told
    )


RIGHT = tuple(right_row(case) for case in CASES)


def with_row(changed: Row) -> tuple[Row, ...]:
    """The right rows, one of them replaced."""
    return tuple(changed if row.case is changed.case else row for row in RIGHT)


def test_verdict_accepts_what_is_right() -> None:
    """Every count right and the plain column worse: no reason against it."""
    assert verdict(RIGHT, CASES) == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("effects", [(), ("re_1", "re_2")], ids=["none", "two"])
def test_verdict_refuses_a_wrong_count(case: Case, effects: tuple[str, ...]) -> None:
    """Negative control: no effect, or a second one, through Outbox fails the demo, in whichever case."""
    changed = replace(right_row(case), outbox=Counted(effects=effects, moved=case.amount or 0))
    assert any(f"counted {len(effects)} effects instead of 1" in reason for reason in verdict(with_row(changed), CASES))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_verdict_refuses_a_plain_column_that_is_not_worse(case: Case) -> None:
    """Negative control: a fault that does the plain agent no harm fails the demo, in whichever case."""
    changed = replace(right_row(case), plain=Counted(effects=("a",), moved=case.amount or 0))
    assert any("has harmed nobody" in reason for reason in verdict(with_row(changed), CASES))


def test_verdict_refuses_wrong_answers() -> None:
    """Negative control: a conflict that is accepted, a doubt told as success, a second receipt, a false receipt, a wrong amount."""
    conflict, mail, at_once, restart = (right_row(case) for case in (CONFLICT, MAIL, AT_ONCE, RESTART))
    succeeded = Told(word="succeeded", receipt="{}", external_reference="re_1")
    assert verdict(with_row(replace(conflict, told=(succeeded, succeeded))), CASES)
    assert verdict(with_row(replace(mail, told=(succeeded, succeeded))), CASES)
    assert verdict(with_row(replace(at_once, told=(*at_once.told[1:], replace(succeeded, receipt="{1}")))), CASES)
    assert verdict(with_row(replace(at_once, told=at_once.told[1:])), CASES)
    assert verdict(with_row(replace(restart, told=(replace(succeeded, external_reference="re_9"),) * 2)), CASES)
    assert verdict(with_row(replace(right_row(KILLED), outbox=Counted(effects=("re_1",), moved=1))), CASES)


def test_verdict_refuses_what_is_missing_or_too_much() -> None:
    """Negative control: a case that was not played, and an effect that belongs to none."""
    assert verdict([row for row in RIGHT if row.case is not REPLY_LOST], CASES)
    assert verdict(RIGHT, CASES, ["re_7"])
