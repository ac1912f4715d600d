"""`outbox conformance` against the product, as docs/conformance.md says to run it."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.outbox_up import OutboxUp, running

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "conformance.md").read_text(encoding="utf-8")
COMMAND_SECONDS = 170.0

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OutboxUp]:
    """One `outbox up` with two workers and two API processes."""
    with running(tmp_path_factory.mktemp("up"), "--workers", "2", "--api-workers", "2") as started:
        yield started


def example(containing: str) -> str:
    """The one shell block of the page that contains a text."""
    [found] = [block for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) if containing in block]
    return str(found)


def run(up: OutboxUp, shell: str, *options: str) -> subprocess.CompletedProcess[str]:
    """A shell block of the page, run where the ready file lies, with further options."""
    ready = up.ready()
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OUTBOX_URL": ready["url"],
        "OUTBOX_KEY": ready["agent_key"],
        "SANDBOX_URL": ready["sandbox_url"],
    }
    command = " ".join([shell.strip(), *options])
    return subprocess.run(
        ["sh", "-c", command], cwd=up.folder, env=environment, capture_output=True, text=True, timeout=COMMAND_SECONDS
    )


@pytest.mark.timeout(240)
def test_the_product_keeps_its_promises(stack: OutboxUp) -> None:
    """Every check is made and every promise kept, with exit code 0; the ledger's invariants hold afterwards."""
    with stack.checked() as up:
        done = run(up, example("--ready-file"), "--json")
    document: dict[str, Any] = json.loads(done.stdout)
    unkept = {each["check"]: each["seen"] for each in document["checks"] if each["verdict"] != "kept"}
    assert (unkept, done.returncode, document["conforms"]) == ({}, 0, True)
    assert document["kept"] >= 40


def test_some_of_it(stack: OutboxUp) -> None:
    """A few checks by name: each has its line, the promises are counted, the exit code is 0."""
    with stack.checked() as up:
        done = run(up, example("--only lost-reply"))
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("lost-reply", "mail-lost-reply"):
        assert re.search(rf"^kept +{name} ", done.stdout, re.MULTILINE), done.stdout
    assert "2 kept, 0 broken, 0 not made." in done.stdout


def test_a_key_that_is_not_good(stack: OutboxUp) -> None:
    """A key that nobody made ends the command with 4 before any check."""
    with stack.checked() as up:
        done = run(up, example("--only lost-reply"), "--key", "obx_sandbox_aaaaaaaaaaaaaaaa_" + "0" * 56)
    assert done.returncode == 4, done.stdout + done.stderr
