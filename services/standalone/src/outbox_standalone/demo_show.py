"""What the demo shows: the board while it runs, the table at its end, and the lines to paste."""

import inspect
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.status import Status
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from outbox_standalone.demo_agent import call_outbox
from outbox_standalone.demo_verdict import CURRENCY, Case, Row

TITLES = {"plain": "plain agent", "outbox": "with Outbox"}
PAID_TWICE = "paid twice\n(plain)"

_ABOUT_THE_PLAIN_AGENT = (
    "The plain agent calls the provider's API and tries three times, without an idempotency key. "
    "A key that each process makes afresh would have helped it in the first line only."
)

_CALL = """\
print(call_outbox({
    "tool": "stripe.refund.create",
    "input": {"payment_intent": "pi_3Nx", "amount": 1200},
    "reference": "case-8841",  # your own name of the business case
})["message"])
"""

_CURL = """\
curl -sS "$OUTBOX_URL/v1/tool-calls" -H "Authorization: Bearer $OUTBOX_KEY" \\
  -H 'Content-Type: application/json' -d '{"tool": "stripe.refund.create",
  "input": {"payment_intent": "pi_3Nx", "amount": 1200}, "reference": "case-8841"}'
"""


class Board:
    """How far the run has come: a table that fills on a terminal, a line for each step elsewhere."""

    def __init__(self, console: Console, cases: Sequence[Case]) -> None:
        """Shows nothing yet.

        Args:
            console: where it is shown.
            cases: the rows.
        """
        self._console = console
        self._cases = cases
        self._counts: dict[tuple[str, str], int] = {}
        self._started = time.monotonic()
        self._status: Status | None = None
        self._doing = ""
        self._spinner = Spinner("dots")
        self._live = Live(console=console, transient=True, get_renderable=self._render, refresh_per_second=8)

    def __enter__(self) -> Self:
        """Begins to show."""
        if self._console.is_terminal and not self._console.quiet:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Takes itself off the terminal."""
        self._live.stop()
        if self._status is not None:
            self._status.stop()

    def say(self, doing: str) -> None:
        """Shows what is being done."""
        self._doing = doing
        self._line(f"{doing}.")

    def done(self, column: str, case: Case, count: int) -> None:
        """Fills the cell of a case in a column with the number of its effects."""
        self._counts[column, case.name] = count
        self._line(f"{TITLES[column]}: {case.fault}: {case.planned} planned, {count} made.")

    def finish(self, rows: Sequence[Row], reasons: Sequence[str]) -> None:
        """Puts the final table in its own place, and what it says below."""
        self._live.stop()
        seconds = time.monotonic() - self._started
        self._console.print()
        self._console.print(final_table(rows))
        self._console.print()
        if reasons:
            self._console.print(
                f"In {seconds:.0f} s this run has not shown what it should; the reasons stand below.", style="bold red"
            )
            return
        self._console.print(summary(rows, seconds), style="bold green")
        self._console.print(_ABOUT_THE_PLAIN_AGENT, style="dim")

    def ending(self) -> None:
        """Says that everything is being ended, until it is."""
        self._console.print()
        self._line("Ending everything that was started.")
        if self._console.is_terminal:
            self._status = self._console.status("Ending everything that was started")
            self._status.start()

    def _line(self, text: str) -> None:
        if not self._console.is_terminal:
            self._console.print(f"{time.monotonic() - self._started:5.1f} s  {text}", soft_wrap=True, markup=False)

    def _render(self) -> RenderableType:
        table = _empty_table()
        for case in self._cases:
            plain, outbox = (self._counts.get((column, case.name)) for column in TITLES)
            table.add_row(
                case.fault,
                str(case.planned),
                _cell(plain, good=plain is not None and plain <= case.planned),
                _cell(outbox, good=outbox == case.planned),
                "",
            )
        self._spinner.update(text=Text(f"{time.monotonic() - self._started:2.0f} s  {self._doing}"))
        return Group("", table, "", self._spinner)


def _empty_table() -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, header_style="bold", footer_style="bold", padding=(0, 1, 0, 0), pad_edge=False, show_edge=False
    )
    table.add_column("fault")
    table.add_column("planned", justify="right")
    table.add_column(TITLES["plain"], justify="right")
    table.add_column(TITLES["outbox"])
    table.add_column(PAID_TWICE, justify="right")
    return table


def _cell(count: int | None, *, good: bool, note: str = "") -> Text:
    if count is None:
        return Text("·", style="dim")
    return Text.assemble((str(count), "bold green" if good else "bold red"), f", {note}" if note else "")


def money(cents: int) -> str:
    """An amount of the demo's currency as people write it."""
    return f"{cents // 100}.{cents % 100:02} {CURRENCY}"


def final_table(rows: Sequence[Row]) -> Table:
    """The one table: what was planned, what the provider counted, what it cost."""
    table = _empty_table()
    table.show_footer = True
    for row in rows:
        plain, outbox = len(row.plain.effects), len(row.outbox.effects)
        table.add_row(
            row.case.fault,
            str(row.case.planned),
            _cell(plain, good=plain <= row.case.planned),
            _cell(outbox, good=outbox == row.case.planned, note=row.case.note),
            money(row.paid_twice) if row.case.amount is not None else "second mail",
        )
    sums: Mapping[str, str] = {
        "fault": "counted by the provider",
        "planned": str(sum(row.case.planned for row in rows)),
        TITLES["plain"]: str(sum(len(row.plain.effects) for row in rows)),
        TITLES["outbox"]: str(sum(len(row.outbox.effects) for row in rows)),
        PAID_TWICE: money(sum(row.paid_twice for row in rows)),
    }
    for column in table.columns:
        column.footer = sums[str(column.header)]
    return table


def summary(rows: Sequence[Row], seconds: float) -> str:
    """What a run that went right has shown."""
    too_many = sum(len(row.plain.effects) - row.case.planned for row in rows)
    paid_twice = money(sum(row.paid_twice for row in rows))
    return f"With Outbox each was made once. The plain agent made {too_many} too many: {paid_twice} paid twice. ({seconds:.0f} s)"


def before_tail(console: Console, run: str) -> None:
    """Introduces what `outbox tail` shows."""
    console.print("\n[bold]The run in which agent and worker were killed, in the ledger[/]")
    console.print(f"[dim]$ outbox tail --run {run}[/]")


def lines_to_paste(console: Console) -> None:
    """The lines for one's own agent; the function is the very one that the agent of the demo has called."""
    console.print("\n[bold]For your own agent[/]")
    console.print(
        "[dim]Run [/]outbox up[dim] (in the repository: [/]make up[dim]), set OUTBOX_URL and OUTBOX_KEY to what it prints, "
        "and send a refund as often as you like: it is one.[/]\n"
    )
    console.print(_code(_CURL, "bash"), soft_wrap=True)
    console.print("[dim]or, with the function that the agent above has called:[/]\n")
    console.print(_code(python_lines(), "python"), soft_wrap=True, end="")


def python_lines() -> str:
    """A whole Python program that makes a refund."""
    imports = "import json, os, time, urllib.error, urllib.request\nfrom typing import Any\n"
    return f"{imports}\n{inspect.getsource(call_outbox)}\n{_CALL}"


def curl_lines() -> str:
    """The same refund from a shell."""
    return _CURL


def _code(text: str, language: str) -> Text:
    """Code in colours, without the padding that would be copied with it."""
    return Syntax("", language, theme="ansi_dark").highlight(text)
