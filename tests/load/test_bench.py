"""`make bench` runs to its end and shows every line; what its figures are is no business of a test."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.load.agent_ledger_environment import python_of_agent_ledger
from tests.load.bench import CALLERS, OPERATIONS, PARTS, compare, split
from tests.load.rounds import Round
from tests.load.side import ROOT


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_bench_shows_every_line(tmp_path: Path) -> None:
    """A bench of tiny rounds prints a line for every operation and number of callers, the latency lines and its circumstances."""
    try:
        python_of_agent_ledger()
    except SystemExit as refused:
        pytest.skip(f"the other side is not to be had: {refused}")
    command = [
        sys.executable,
        "-m",
        "tests.load.bench",
        "--quick",
        "--json",
        str(tmp_path / "bench.json"),
        "--folder",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    for operation in OPERATIONS:
        for callers in CALLERS:
            assert any(line[: len(operation.split()) + 1] == [*operation.split(), str(callers)] for line in lines), done.stdout
    firsts = {line[0] for line in lines if line}
    assert {"date", "command", "versions", "machine", "durability", "added", "client", "rest", *PARTS} <= firsts
    found = json.loads((tmp_path / "bench.json").read_text())
    assert len(found["comparison"]) == len(OPERATIONS) * len(CALLERS)
    assert found["durability"]["outbox"] == found["durability"]["agent-ledger"]
    assert found["durability"]["outbox"]["fsync"] == found["durability"]["outbox"]["synchronous_commit"] == "on"
    assert not any(path.name.startswith("outbox-bench-") for path in tmp_path.iterdir())


def test_ratios_are_of_neighbours() -> None:
    """A ratio compares rounds that ran next to each other, so that a slow minute of the machine meets both."""
    slow, fast = Round(seconds=2.0, milliseconds=[20.0] * 100, parts=[]), Round(seconds=1.0, milliseconds=[10.0] * 100, parts=[])
    line = compare("waited call", 8, [(slow, slow), (fast, fast), (fast, slow)])
    assert (line.ratio, line.ratio_least, line.ratio_most) == (1.0, 1.0, 2.0)
    assert (line.outbox_per_second, line.agent_ledger_per_second) == (100.0, 50.0)


def test_split_leaves_nothing_out() -> None:
    """What was added is the caller's time without the provider's; the rest is what none of the four parts accounts for."""
    parts = {"reserve": 3.0, "queue": 2.0, "provider": 5.0, "settle": 4.0}
    calls = Round(seconds=1.0, milliseconds=[20.0, 20.0], parts=[parts, parts])
    found = split(calls, Round(seconds=1.0, milliseconds=[1.0], parts=[{}]))
    assert found["added"] == {"p50": 15.0, "p95": 15.0}
    assert found["rest"] == {"p50": 6.0, "p95": 6.0}
    assert found["plain call"] == {"p50": 1.0, "p95": 1.0}
