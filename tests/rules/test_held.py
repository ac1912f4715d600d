"""`--held`: a test that a page names holds something only where it ran and passed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.held import lies_in

TESTS = """
import pytest


def test_passes():
    pass


@pytest.mark.skip(reason="planted")
def test_skipped():
    pass


@pytest.mark.xfail(reason="planted")
def test_expected_to_fail():
    assert False


@pytest.mark.xfail(reason="planted")
def test_passes_against_expectation():
    pass


@pytest.mark.parametrize("number", [1, 2])
def test_one_case_skipped(number):
    if number == 2:
        pytest.skip("planted")


@pytest.fixture
def unwilling():
    pytest.skip("planted")


def test_whose_fixture_skips(unwilling):
    pass
"""
CONFTEST = """
from tests.support import held


def pytest_addoption(parser):
    held.add_option(parser)


def pytest_configure(config):
    held.register(config)
"""
ROOT = Path(__file__).parents[2]


def session(folder: Path, page: str, *options: str) -> subprocess.CompletedProcess[str]:
    """A pytest session of its own over the planted tests, with `--held` on a page."""
    (folder / "tests").mkdir()
    (folder / "tests" / "test_planted.py").write_text(TESTS, encoding="utf-8")
    (folder / "tests" / "conftest.py").write_text(CONFTEST, encoding="utf-8")
    (folder / "page.md").write_text(page, encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\ntestpaths = tests\n", encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--held=page.md", *options]
    return subprocess.run(
        command, cwd=folder, env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("options", [(), ("-n", "2")])
def test_a_page_whose_tests_pass(tmp_path: Path, options: tuple[str, ...]) -> None:
    """A named test that ran and passed lets the session pass, in one process and in several."""
    done = session(tmp_path, "| a promise | `tests/test_planted.py::test_passes` |", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 1 ran and passed" in done.stdout


@pytest.mark.parametrize(
    ("name", "came"),
    [
        ("test_skipped", "skipped"),
        ("test_expected_to_fail", "expected to fail"),
        ("test_passes_against_expectation", "expected to fail"),
        ("test_one_case_skipped", "skipped"),
        ("test_whose_fixture_skips", "skipped"),
        ("test_renamed", "not run"),
    ],
)
def test_a_page_that_names_what_did_not_pass(tmp_path: Path, name: str, came: str) -> None:
    """A named test that was skipped, even in one case, expected to fail, or is not there fails the session and is said."""
    page = f"`tests/test_planted.py::test_passes` `tests/test_planted.py::{name}`"
    done = session(tmp_path, page, *(("-n", "2") if name == "test_skipped" else ()))
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"tests/test_planted.py::{name} ({came}) is named in page.md" in done.stdout
    assert "1 of 2 ran and passed" in done.stdout


def test_a_deselected_test_holds_nothing(tmp_path: Path) -> None:
    """What was left out of the run did not run."""
    done = session(tmp_path, "`tests/test_planted.py::test_passes`", "-k", "skipped")
    assert done.returncode == 1
    assert "test_passes (not run)" in done.stdout


def test_a_session_answers_for_its_paths(tmp_path: Path) -> None:
    """A test of another target's folder is that target's; one of the session's own paths is not excused."""
    page = "`tests/test_planted.py::test_passes` `tests/fault/test_other.py::test_away`"
    done = session(tmp_path, page, "tests/test_planted.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 1 ran and passed" in done.stdout
    whole = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--held=page.md", "tests"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert whole.returncode == 1
    assert "tests/fault/test_other.py::test_away (not run)" in whole.stdout


def test_every_test_is_in_a_target() -> None:
    """`make test` and `make fault-tests`, which the whole check calls both, leave no test file out."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    [paths] = re.findall(r"^TESTS := (.*)$", makefile, re.MULTILINE)
    ours = [*paths.split(), "tests/fault"]
    for path in ours:
        assert (ROOT / path).exists(), path
    files = [str(file.relative_to(ROOT)) for file in (ROOT / "tests").rglob("test_*.py")]
    assert files
    assert [file for file in files if not lies_in(file, ours)] == []
    steps = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "make test 2>&1" in steps
    assert "make fault-tests" in steps
