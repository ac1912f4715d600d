"""README and docs as a reader follows them: each block in order, with the wheels, in an empty folder, against `outbox up`.

A page has an `outbox up` of its own, so that what one page does is no help and no harm to another.
"""

import json
import os
import shutil
import signal
import subprocess
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from tests.rules.house import ROOT
from tests.support import wheels
from tests.support.agent_ledger_table import AgentLedgerTable
from tests.support.outbox_up import SandboxControl
from tests.support.outbox_up import request as ask
from tests.support.pages import READ, RUN, Block, blocks, documented
from tests.support.postgres import with_database
from tests.support.processes import start_command

from agent_outbox.compat.agent_ledger import ToolCall

pytestmark = pytest.mark.timeout(900)

READY_SECONDS = 90.0
BLOCK_SECONDS = 120.0
DOUBTS = 3


@dataclass
class Reader:
    """Somebody who follows one page.

    Attributes:
        ready: the ready file of the page's own `outbox up`.
        folder: empty at first; every block runs there.
        variables: what the page says the reader has set.
        printed: what each block that was run has written.
    """

    bin: Path
    folder: Path
    ready: dict[str, Any]
    variables: dict[str, str]
    printed: list[str] = field(default_factory=list)

    def follow(self, block: Block) -> None:
        """Runs one block, which must succeed."""
        command = ["sh", "-eu", "-c", block.text] if block.language == "sh" else [str(self.bin / "python"), "-c", block.text]
        path = f"{self.bin}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            command,
            cwd=self.folder,
            env={"PATH": path, "HOME": str(self.folder), "LANG": "C.UTF-8", **self.variables},
            capture_output=True,
            text=True,
            timeout=BLOCK_SECONDS,
        )
        assert done.returncode == 0, f"{block.page}:{block.line}\n{block.text}\n{done.stdout}{done.stderr}"
        self.printed.append(done.stdout)

    def effects(self, path: str) -> list[dict[str, Any]]:
        """What the sandbox provider has made at a path."""
        return SandboxControl(self.ready["sandbox_url"]).effects(path)

    def call(self, document: Mapping[str, object], *, wait: int = 25) -> dict[str, Any]:
        """Makes a tool call as the agent and returns the answer's document, whatever its status."""
        authorization = {"Authorization": f"Bearer {self.ready['agent_key']}"}
        headers = {"Content-Type": "application/json", "Prefer": f"wait={wait}", **authorization}
        body = json.dumps(document).encode()
        answer: dict[str, Any] = ask(self.ready["url"], "POST", "/v1/tool-calls", body=body, headers=headers, seconds=60).document
        return answer


@pytest.fixture(scope="session")
def bin_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands of the wheels' environment are."""
    return wheels.installed(tmp_path_factory)


@pytest.fixture
def reader(request: pytest.FixtureRequest, bin_folder: Path, tmp_path: Path) -> Iterator[Reader]:
    """A reader with an `outbox up` that was started from the wheels."""
    page: str = request.param
    (folder := tmp_path / "empty").mkdir()
    up = [str(bin_folder / "outbox"), "up", "--data-dir", str(tmp_path / "data"), "--ready-file", str(tmp_path / "ready.json")]
    process = start_command([*up, "--port", "0"], folder=tmp_path, name="up", inherit=False)
    try:
        process.wait_for((tmp_path / "ready.json").exists, deadline_seconds=READY_SECONDS)
        ready = json.loads((tmp_path / "ready.json").read_text())
        key = ready["admin_key" if page in OPERATORS_PAGES else "agent_key"]
        variables = {
            "OUTBOX_URL": ready["url"],
            "OUTBOX_KEY": key,
            "OUTBOX_POSTGRES_URL": ready["postgres_url"],
            "SANDBOX_URL": ready["sandbox_url"],
        }
        made = Reader(bin=bin_folder, folder=folder, ready=ready, variables=variables)
        if page in SCENES:
            made.variables |= SCENES[page](made)
        yield made
    finally:
        process.end()


def doubts(reader: Reader) -> dict[str, str]:
    """Mails that were sent and never answered; RESERVATION is one of them."""
    SandboxControl(reader.ready["sandbox_url"]).plan("/v3/mail/send", "commit-then-drop", times=DOUBTS)
    ids = []
    for number in range(DOUBTS):
        mail = {"from": "desk@example.com", "to": "a.berg@example.com", "subject": "Your case", "text": "It is closed."}
        told = reader.call({"tool": "sendgrid.mail.send", "input": mail, "reference": f"case-{number}"})
        ids.append(told["reservation_id"])
    return {"RESERVATION": ids[0]}


def callers_database(reader: Reader) -> dict[str, str]:
    """A database of the caller's own, DATABASE_URL."""
    with psycopg.connect(reader.ready["postgres_url"], autocommit=True) as connection:
        connection.execute("create database callers")
    return {"DATABASE_URL": with_database(reader.ready["postgres_url"], "callers")}


def agent_ledgers_table(reader: Reader) -> dict[str, str]:
    """A database in which agent-ledger recorded a charge that succeeded and one that was in progress, AGENT_LEDGER_DSN."""
    table = AgentLedgerTable(reader.ready["postgres_url"])
    for status, workflow in (("succeeded", "order-121"), ("processing", "order-122")):
        table.add(ToolCall(workflow_id=workflow, tool="stripe.charge", args={"amount": 1000}), status)
    return {"AGENT_LEDGER_DSN": table.dsn}


def unanswered(reader: Reader) -> dict[str, str]:
    """A refund whose answer is awaited for longer than the page is read; RESERVATION is its name."""
    SandboxControl(reader.ready["sandbox_url"]).plan("/v1/refunds", "hang", delay_seconds=60)
    call = {"tool": "stripe.refund.create", "input": {"payment_intent": "pi_slow", "amount": 1200}}
    return {"RESERVATION": reader.call(call, wait=0)["reservation_id"]}


def redis_killed(reader: Reader) -> dict[str, str]:
    """Redis is killed once; one call was made before it."""
    reader.call({"tool": "stripe.refund.create", "input": {"payment_intent": "pi_before", "amount": 1200}})
    if reader.ready["pids"]["redis"] is not None:
        os.kill(reader.ready["pids"]["redis"], signal.SIGKILL)
    return {}


def one_refund(reader: Reader) -> None:
    """README: the first call is done, the others are told of the same receipt, the provider has one refund."""
    [effect] = reader.effects("/v1/refunds")
    first, *later = [printed for printed in reader.printed if "re_" in printed or "Already done" in printed]
    assert json.loads(first)["message"].startswith("Done. Refund re_")
    assert json.loads(first)["receipt"]["external_reference"] == effect["id"]
    assert all(json.loads(first)["receipt"]["id"] in printed for printed in later)


RUNBOOKS = "docs/runbooks"
OPERATORS_PAGES = frozenset({"docs/doubts.md"} | {f"{RUNBOOKS}/{page.name}" for page in (ROOT / RUNBOOKS).glob("*.md")})
"""Pages whose reader works the installation: OUTBOX_KEY is an administrator's."""

SCENES: Mapping[str, Callable[[Reader], dict[str, str]]] = {
    "docs/doubts.md": doubts,
    "docs/migrate-from-agent-ledger.md": agent_ledgers_table,
    "docs/sdk.md": callers_database,
    f"{RUNBOOKS}/doubt.md": doubts,
    f"{RUNBOOKS}/stuck-executing.md": unanswered,
    f"{RUNBOOKS}/redis-lost.md": redis_killed,
}
"""What must have happened before a page can be followed, and what variables it speaks of."""

SEEN: Mapping[str, Callable[[Reader], None]] = {"README.md": one_refund}
"""What must be true of a page when it was followed."""

READERS: Mapping[str, Callable[[str], object]] = {
    "json": json.loads,
    "yaml": lambda text: list(yaml.safe_load_all(text)),
    "toml": tomllib.loads,
}

FOLLOWED = {
    str(page.relative_to(ROOT)): found
    for page in documented()
    if (found := [block for block in blocks(page) if block.language in RUN and block.reason is None])
}


@pytest.mark.parametrize("reader", FOLLOWED, indirect=True)
def test_a_page_can_be_followed(reader: Reader, request: pytest.FixtureRequest) -> None:
    """Every block of the page runs as it stands, in order, and what the page promises is so."""
    page = request.node.callspec.params["reader"]
    if shutil.which("curl") is None and any("curl" in block.text for block in FOLLOWED[page]):
        pytest.skip("there is no curl on this machine")
    for block in FOLLOWED[page]:
        reader.follow(block)
    if page in SEEN:
        SEEN[page](reader)


def test_blocks_that_are_not_run_can_be_read() -> None:
    """Every block of JSON, YAML and TOML is well-formed."""
    for page in documented():
        for block in blocks(page):
            if block.language in READ and block.language in READERS:
                READERS[block.language](block.text)


def test_what_is_not_run_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """Blocks that are exempt are printed with their reasons, and there are fewer of them than are run."""
    exempt = [block for page in documented() for block in blocks(page) if block.reason is not None]
    with capsys.disabled():
        for block in exempt:
            print(f"\nnot run: {block.page}:{block.line}: {block.reason}")
    assert len(exempt) < sum(len(found) for found in FOLLOWED.values())
