"""The product as a user installs it: wheels into an empty environment, used in an empty folder, far from the workspace."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support import wheels
from tests.support.processes import ChildProcess, start_command

pytestmark = pytest.mark.timeout(900)
"""The first test that asks for the environment pays for building it, and for downloads where nothing is cached yet."""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `outbox` command of an environment of wheels."""
    return wheels.installed(tmp_path_factory) / "outbox"


@pytest.fixture(scope="module")
def running(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The ready file of an `outbox up` that was started from the wheels in an empty folder."""
    folder = tmp_path_factory.mktemp("empty")
    process = start_command([str(installed), "up", "--ready-file", "ready.json"], folder=folder, name="up", inherit=False)
    try:
        process.wait_for((folder / "ready.json").exists, deadline_seconds=60)
        yield json.loads((folder / "ready.json").read_text())
    finally:
        process.end()


def outbox(installed: Path, folder: Path, *arguments: str, env: dict[str, str] | None = None) -> str:
    """The output of one command that must succeed, run in `folder` with nothing in its environment but `env`."""
    process: ChildProcess = start_command([str(installed), *arguments], env=env, folder=folder, name="command", inherit=False)
    code = process.wait(deadline_seconds=150)
    output = process.log()
    process.log_path.unlink()
    assert code == 0, output
    return output


def test_lists_every_command(installed: Path, tmp_path: Path) -> None:
    """`outbox --help` shows the commands of all installed members."""
    shown = outbox(installed, tmp_path, "--help")
    assert all(
        command in shown
        for command in ("up", "demo", "migrate", "doctor", "tail", "receipts", "doubts", "explain", "conformance")
    )


def test_receipt_of_a_call_is_listed(installed: Path, running: dict[str, Any], tmp_path: Path) -> None:
    """A refund made against the installed server appears in `outbox receipts` and `outbox tail`."""
    import httpx2

    call = {"tool": "stripe.refund.create", "input": {"payment_intent": "pi_wheel", "amount": 700}, "reference": "case-1"}
    headers = {"Authorization": f"Bearer {running['agent_key']}"}
    answer = httpx2.post(f"{running['url']}/v1/tool-calls", json=call, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    reference = answer.json()["receipt"]["external_reference"]
    env = {"OUTBOX_URL": running["url"], "OUTBOX_KEY": running["admin_key"]}
    assert reference in outbox(installed, tmp_path, "receipts", "--json", env=env)
    assert "refund:pi_wheel:case-1" in outbox(installed, tmp_path, "tail", env=env)


def test_conforms(installed: Path, running: dict[str, Any], tmp_path: Path) -> None:
    """`outbox conformance` of the wheel tests the installed server; what it finds kept is kept."""
    (tmp_path / "ready.json").write_text(json.dumps(running))
    shown = outbox(installed, tmp_path, "conformance", "--ready-file", "ready.json", "--only", "lost-reply", "--only", "webhooks")
    assert "2 kept, 0 broken, 0 not made." in shown


def test_offers_its_fixtures_to_pytest(installed: Path, tmp_path: Path) -> None:
    """The wheel registers its pytest plugin, and `agent_outbox.testing` can be imported where there is no pytest."""
    asks = (
        "from importlib.metadata import entry_points; import agent_outbox.testing as t;"
        "print([p.value for p in entry_points(group='pytest11') if p.name == 'outbox'], t.FAULTS)"
    )
    process = start_command([str(installed.with_name("python")), "-c", asks], folder=tmp_path, name="python", inherit=False)
    assert process.wait() == 0, process.log()
    assert process.log().strip() == "['agent_outbox.testing.plugin'] ('time-out', 'crash', 'loop', 'fork')"


def test_migrates(installed: Path, running: dict[str, Any], tmp_path: Path) -> None:
    """`outbox migrate` finds the migrations inside the wheel."""
    assert "create role outbox_api" in outbox(installed, tmp_path, "migrate", "--print-roles")
    shown = outbox(installed, tmp_path, "migrate", env={"OUTBOX_POSTGRES_URL": running["postgres_url"]})
    assert shown.startswith("0 applied")


@pytest.mark.slow
def test_demo_runs(installed: Path, tmp_path: Path) -> None:
    """`outbox demo` succeeds in an empty folder and leaves nothing in it."""
    outbox(installed, tmp_path, "demo")
    assert list(tmp_path.iterdir()) == []
