"""`pytest --held=docs`: the run fails where a test that a page names did not run, or did not pass.

A page that names a test as what holds a promise is worth as much as that test's last run: one that was renamed, deselected,
skipped or expected to fail holds nothing. The names are those that pages write: `tests/path/test_file.py::test_name` between
backquotes; every case of a parametrized test counts. A session that was given paths answers for what lies in them: the fault tests
have a target of their own.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

NAMED = re.compile(r"`(tests/[\w./-]+\.py::\w+)`")


def named_tests(pages: Iterable[Path]) -> dict[str, list[str]]:
    """The tests that pages name.

    Args:
        pages: Markdown files, or folders whose Markdown files are meant.

    Returns:
        For each test the names of the pages that name it.
    """
    found: dict[str, list[str]] = {}
    for page in pages:
        for file in sorted(page.rglob("*.md")) if page.is_dir() else [page]:
            for name in dict.fromkeys(NAMED.findall(file.read_text(encoding="utf-8"))):
                found.setdefault(name, []).append(file.name)
    return found


def lies_in(name: str, paths: Iterable[str]) -> bool:
    """Whether a named test is in one of the folders, files or tests that a session was given."""
    return any(name == path or name.startswith((f"{path}/", f"{path}::")) for path in paths)


class Held:
    """Compares what pages name with what a session's tests came to."""

    def __init__(self, named: dict[str, list[str]]) -> None:
        """
        Args:
            named: as `named_tests` gives it.
        """
        self.named = named
        self.outcomes: dict[str, set[str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Notes what a test came to; set-up and tear-down count only where they end it."""
        if report.when == "call" or not report.passed:
            came = "expected to fail" if hasattr(report, "wasxfail") else report.outcome
            self.outcomes.setdefault(report.nodeid.split("[", 1)[0], set()).add(came)

    def broken(self) -> Iterator[str]:
        """A sentence for each named test that does not hold what it is named for."""
        for name, pages in sorted(self.named.items()):
            came = self.outcomes.get(name, {"not run"}) - {"passed"}
            if came:
                yield f"{name} ({', '.join(sorted(came))}) is named in {', '.join(pages)}"

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """The session fails where a named test does not hold."""
        if session.exitstatus == pytest.ExitCode.OK and any(self.broken()):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Says which tests those are, or that all held."""
        broken = list(self.broken())
        terminalreporter.section("tests that pages name")
        for line in broken:
            terminalreporter.line(line, red=True)
        terminalreporter.line(f"{len(self.named) - len(broken)} of {len(self.named)} ran and passed")


def add_option(parser: pytest.Parser) -> None:
    """Adds `--held`."""
    parser.addoption(
        "--held",
        action="append",
        default=[],
        type=Path,
        metavar="PAGE",
        help="fail unless every test of the given paths that this page, or the pages of this folder, name ran and passed",
    )


def register(config: pytest.Config) -> None:
    """Watches the session where `--held` was given; in a session of several processes only the one that sees all reports does."""
    pages = config.getoption("--held")
    if pages and not hasattr(config, "workerinput"):
        paths = [path.rstrip("/") for path in config.args]
        named = {name: by for name, by in named_tests(pages).items() if lies_in(name, paths)}
        config.pluginmanager.register(Held(named), "held")
