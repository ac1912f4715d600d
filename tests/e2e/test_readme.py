"""The examples of README.md, run as they stand against `outbox up` (embedded Postgres and Redis)."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.processes import start_command

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
READY_SECONDS = 60.0
STOP_SECONDS = 20.0


def example(language: str, containing: str) -> str:
    """The one code block of that language that contains a text."""
    blocks = [block for block in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if containing in block]
    assert len(blocks) == 1
    return str(blocks[0])


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The ready file of an `outbox up` that runs for this module."""
    folder = tmp_path_factory.mktemp("readme")
    ready_file = folder / "ready.json"
    command = [str(Path(sys.executable).with_name("outbox")), "up", "--data-dir", str(folder / "data")]
    process = start_command([*command, "--port", "0", "--ready-file", str(ready_file)], folder=folder, name="up")
    try:
        process.wait_for(ready_file.exists, deadline_seconds=READY_SECONDS)
        yield json.loads(ready_file.read_text(encoding="utf-8"))
        process.send(signal.SIGTERM)
        process.wait(deadline_seconds=STOP_SECONDS)
    finally:
        process.end()


def run(command: list[str], ready: dict[str, Any]) -> str:
    """Standard output of a command that finds the address and the agent's key where README says they are."""
    environment = {**os.environ, "OUTBOX_URL": ready["url"], "OUTBOX_KEY": ready["agent_key"]}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60).stdout


def test_the_examples_make_one_refund(ready: dict[str, Any], tmp_path: Path) -> None:
    """curl twice and Python once: the first is done, the others are told of the same receipt, the provider has one refund."""
    if shutil.which("curl") is None:
        pytest.skip("there is no curl on this machine")
    shell = example("sh", "curl")
    first, second = (json.loads(run(["sh", "-ec", shell], ready)) for _ in range(2))
    script = tmp_path / "example.py"
    script.write_text(example("python", "urllib.request"), encoding="utf-8")
    told = run([sys.executable, str(script)], ready)

    assert first["message"].startswith("Done. Refund re_")
    assert not first["replayed"]
    assert second["replayed"]
    assert second["receipt"] == first["receipt"]
    assert told.startswith("Already done at ")
    assert first["receipt"]["id"] in told
    with urllib.request.urlopen(f"{ready['sandbox_url']}/_control/effects?path=/v1/refunds") as answer:
        assert [effect["id"] for effect in json.load(answer)] == [first["receipt"]["external_reference"]]
