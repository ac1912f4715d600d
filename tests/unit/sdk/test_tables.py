"""Tables of the command line can be searched where they go into a pipe."""

import io

import pytest
from rich.table import Table

from agent_outbox import tables


class Terminal(io.StringIO):
    """Standard output that says it is a terminal."""

    def isatty(self) -> bool:
        """It is."""
        return True


def shown(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines of a table whose one row is far wider than any terminal."""
    table = Table(box=None)
    for heading in ("id", "cause", "[what]"):
        table.add_column(heading, overflow="fold")
    table.add_row("i" * 36, "a cause of many words " * 10, "[what]")
    tables.show(table)
    return capsys.readouterr().out.splitlines()


def test_a_row_is_one_line_in_a_pipe(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a terminal nothing is folded, whatever COLUMNS says, and brackets are text."""
    monkeypatch.setenv("COLUMNS", "80")
    head, row = shown(capsys)
    assert head.split() == ["id", "cause", "[what]"]
    assert row.split() == ["i" * 36, *("a cause of many words " * 10).split(), "[what]"]


def test_a_terminal_is_not_overrun(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Negative control: on a terminal of 80 columns the same table is folded."""
    terminal = Terminal()
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout", terminal)
    shown(capsys)
    lines = terminal.getvalue().splitlines()
    assert len(lines) > 2
