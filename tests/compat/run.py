"""`make compat-agent-ledger`: agent-ledger's own tests, as they were published, against `agent_outbox.compat.agent_ledger`.

Run twice: with a gateway that the process of the tests starts by itself, and over HTTP with one that runs beside it. Fails where
a test fails, is skipped or is left out that is not listed, or where they are not as many as expected. Then what theirs recorded in
a real Postgres is brought over by `outbox import`, and replayed (`tests/compat/check_import.py`).
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.compat import sdist
from tests.compat.check_import import check
from tests.compat.left_out import FUNCTIONS, ITEMS, LEFT_OUT
from tests.compat.plugin import OUTCOMES
from tests.rules.house import ROOT
from tests.support.outbox_up import running

import agent_outbox.compat.agent_ledger as ours

TESTS_SECONDS = 900.0
SETTINGS = "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\ntimeout = 120\n"


def main() -> None:
    """Run everything; exits 1 with what was not as expected."""
    wrong = _names()
    wrong += _suite("with a gateway of its own", {})
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as up:
        ready = up.ready()
        named = {"OUTBOX_URL": ready["url"], "OUTBOX_KEY": ready["agent_key"], "COMPAT_POSTGRES_URL": ready["postgres_url"]}
        wrong += _suite("over HTTP", named)
        wrong += check(up)
    print(f"\nLeft out, {len(LEFT_OUT)} of {FUNCTIONS} functions:")
    for name, why in LEFT_OUT.items():
        print(f"  {name}: {why}")
    if wrong:
        raise SystemExit("\n".join(["", *wrong]))
    print(
        f"\n{FUNCTIONS - len(LEFT_OUT)} functions of agent-ledger's own tests passed, as {ITEMS} tests, in both runs; what it had recorded in Postgres was\nbrought over and replayed."
    )


def _names() -> list[str]:
    """What of their names ours does not offer, and which listed functions are none of theirs."""
    functions = sdist.functions()
    wrong = [f"not offered: {name}" for name in sorted(sdist.exported() - set(ours.__all__))]
    wrong += [f"listed, and no function of theirs: {name}" for name in sorted(set(LEFT_OUT) - functions)]
    return wrong + ([] if len(functions) == FUNCTIONS else [f"{len(functions)} functions instead of {FUNCTIONS}"])


def _suite(what: str, named: Mapping[str, str]) -> list[str]:
    """Their tests once; returns what was not as expected."""
    print(f"\nagent-ledger's tests {what}:", flush=True)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        # In a folder without __init__.py, so that it is not taken for our own package `tests`; the files are as published.
        for name in ("test_ledger.py", "conftest.py"):
            (folder / name).write_bytes(sdist.member(f"tests/{name}"))
        (folder / "pytest.ini").write_text(SETTINGS)
        outcomes = folder / "outcomes.json"
        environment = {name: value for name, value in os.environ.items() if name not in ("OUTBOX_URL", "OUTBOX_KEY")}
        environment |= {"PYTHONPATH": f"{ROOT / 'tests/compat/shim'}{os.pathsep}{ROOT}", OUTCOMES: str(outcomes), **named}
        pytest = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "--import-mode=importlib",
            "-p",
            "tests.compat.plugin",
            "-p",
            "no:cacheprovider",
        ]
        pytest += ["-c", str(folder / "pytest.ini"), "--rootdir", str(folder), str(folder / "test_ledger.py"), *sys.argv[1:]]
        subprocess.run(pytest, cwd=folder, env=environment, check=False, timeout=TESTS_SECONDS)
        if not outcomes.exists():
            return [f"{what}: the tests did not run"]
        found = json.loads(outcomes.read_text(encoding="utf-8"))
    wrong = []
    if found["outcomes"] != {"passed": ITEMS}:
        wrong.append(f"{what}: {found['outcomes']} instead of {ITEMS} passed")
    if set(found["left_out"]) != set(LEFT_OUT):
        wrong.append(f"{what}: left out {sorted(set(found['left_out']) ^ set(LEFT_OUT))} otherwise than listed")
    return wrong


if __name__ == "__main__":
    main()
