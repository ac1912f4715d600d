"""`outbox tail`: the ledger as it grows."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import rich_click as click
from rich.console import Console
from rich.text import Text

from agent_outbox import times
from agent_outbox.server import Server, with_server

COLOURS = {"succeeded": "green", "failed": "red", "denied": "red", "voided": "yellow", "in_doubt": "bold yellow"}

FOLLOW_SECONDS = 0.5
"""How often a follower asks for what is new."""


@click.command()
@click.option("--follow", "-f", is_flag=True, help="Go on as entries are appended, until Ctrl-C.")
@click.option("--run", help="Only entries of this run.")
@click.option("--reservation", help="Only entries of this reservation.")
@click.option("--lines", "-n", default=50, show_default=True, type=click.IntRange(min=0), help="How many to begin with.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document a line.")
@with_server
def tail(server: Server, follow: bool, run: str | None, reservation: str | None, lines: int, as_json: bool) -> None:
    """Show the ledger: each decision and each change of a reservation, oldest first."""
    console = Console(soft_wrap=True, highlight=False)
    cursor, past = _past(server, run, reservation)
    for entry in past[-lines:] if lines else []:
        _show(console, entry, as_json)
    try:
        while follow:
            page = server.get("/v1/ledger-entries", cursor=cursor, reservation_id=reservation)
            for entry in _of_run(page["items"], run):
                _show(console, entry, as_json)
            if page["next_cursor"] is not None:
                cursor = page["next_cursor"]
            if not page["items"]:
                time.sleep(FOLLOW_SECONDS)
    except KeyboardInterrupt:
        return


def _past(server: Server, run: str | None, reservation: str | None) -> tuple[str | None, list[dict[str, Any]]]:
    """What the ledger holds now, and the cursor behind it."""
    cursor: str | None = None
    entries: list[dict[str, Any]] = []
    while True:
        page = server.get("/v1/ledger-entries", cursor=cursor, reservation_id=reservation, limit=200)
        entries.extend(_of_run(page["items"], run))
        if not page["items"]:
            return cursor, entries
        cursor = page["next_cursor"]


def _of_run(entries: list[dict[str, Any]], run: str | None) -> Iterator[dict[str, Any]]:
    return (entry for entry in entries if run is None or entry.get("run") == run)


def _show(console: Console, entry: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(entry, ensure_ascii=False))
        return
    at = times.read(entry["at"]).astimezone()
    state = entry.get("to") or ""
    line = Text.assemble(
        (at.strftime("%H:%M:%S.%f")[:-3], "dim"),
        "  ",
        (f"{entry['kind']:<13}", "bold" if entry["kind"] in ("settled", "contradiction") else ""),
        (f"{state:<10}", COLOURS.get(state, "")),
        "  ",
        entry.get("operation_key") or entry.get("tool") or "",
    )
    detail = entry.get("detail") or {}
    for name in ("external_reference", "reason", "provider_code"):
        if detail.get(name):
            line.append(f"  {detail[name]}", "dim")
    console.print(line)
