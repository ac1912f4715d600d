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


ON_THE_OLDEST_PYTHON = """
import importlib, json, pkgutil, sys
import agent_outbox
from agent_outbox import Outbox, ToolCall
from agent_outbox.times import read

assert sys.version_info[:2] == tuple(map(int, sys.argv[1].split("."))), sys.version
for module in pkgutil.walk_packages(agent_outbox.__path__, "agent_outbox."):
    if module.name not in ("agent_outbox.testing.plugin",):  # is pytest's to import
        importlib.import_module(module.name)
assert read("2026-11-28T13:57:19.5645+00:00").microsecond == 564_500
with Outbox() as outbox:
    call = {"tool": "stripe.refund.create", "input": {"payment_intent": "pi_oldest", "amount": 700}, "reference": "case-1"}
    first, again = outbox.call(**call), outbox.call(**call)
    assert first and again.replayed and again.receipt.id == first.receipt.id, (first, again)
    own = ToolCall(tool="billing.charge.create", input={"order": "o-1"})
    run = outbox.run(own, lambda effect: {"id": "ch_1"}, key="charge:{order}", guarantee_class="A", receipt="id", owner="billing")
    print(json.dumps([type(first).__name__, type(run).__name__]))
"""


def test_the_client_runs_on_the_oldest_python(
    installed: Path, running: dict[str, Any], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The client's wheel alone, under the oldest Python that it promises, imports all it has, calls, and carries an effect out."""
    python = wheels.client_environment(installed.parents[2] / "dist", tmp_path / "environment")
    if python is None:
        pytest.skip(f"no Python {wheels.CLIENT_PYTHON} on this machine")
    env = {"OUTBOX_URL": running["url"], "OUTBOX_KEY": running["agent_key"], "OUTBOX_SPOOL": str(tmp_path / "spool")}
    command = [str(python), "-c", ON_THE_OLDEST_PYTHON, wheels.CLIENT_PYTHON]
    process = start_command(command, env=env, folder=tmp_path, name="client", inherit=False)
    assert process.wait(deadline_seconds=60) == 0, process.log()
    assert json.loads(process.log().splitlines()[-1]) == ["Done", "Done"]


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
