"""`outbox conformance`: hostile scenarios against a gateway, each with the promise that it tests."""

from __future__ import annotations

import contextlib
import json
import threading
from pathlib import Path
from typing import Any

import httpx2
import rich_click as click
from rich.console import Console
from rich.table import Table

from agent_outbox.command_line import EXIT_REFUSED
from agent_outbox.conformance.checks import Check
from agent_outbox.conformance.ground import Gateway, Ground, Provider, Webhook
from agent_outbox.conformance.run import BROKEN, KEPT, NOT_MADE, Verdict, chosen, run
from agent_outbox.server import Server, Unreachable

EXIT_INCOMPLETE = 5
"""Nothing is broken, but not everything could be checked."""

_COLOURS = {KEPT: "green", BROKEN: "bold red", NOT_MADE: "yellow"}


@click.command()
@click.option("--target", envvar="OUTBOX_URL", help="The gateway to be tested. [env: OUTBOX_URL]")
@click.option("--key", envvar="OUTBOX_KEY", help="A scoped key of an agent there. [env: OUTBOX_KEY]")
@click.option("--sandbox", help="The sandbox provider that the gateway's connections lead to; nobody else uses it meanwhile.")
@click.option("--webhook", help="Where the gateway takes the events of the connection stripe.")
@click.option("--webhook-secret", help="What those events are signed with.")
@click.option(
    "--ready-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Take all of these from the ready file of `outbox up`.",
)
@click.option("--only", multiple=True, metavar="CHECK", help="Only this check; repeatable.")
@click.option("--skip", multiple=True, metavar="CHECK", help="Not this check; repeatable.")
@click.option("--list", "as_list", is_flag=True, help="Say what would be checked, and check nothing.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document in place of the tables.")
def conformance(
    target: str | None,
    key: str | None,
    sandbox: str | None,
    webhook: str | None,
    webhook_secret: str | None,
    ready_file: Path | None,
    only: tuple[str, ...],
    skip: tuple[str, ...],
    as_list: bool,
    as_json: bool,
) -> None:
    """Test whether a gateway keeps its promises: lost replies, races, loops, forks, conflicts, crashes and doubts.

    The gateway's connections must lead to a sandbox provider (`outbox up` has one), which breaks as planned and counts effects.

    Exit codes: 0 all kept, 1 a promise is broken, 2 wrong usage, 3 no answer, 4 the key is not good, 5 nothing is broken but not
    everything could be checked.
    """
    try:
        checks = chosen(only, skip)
    except KeyError as error:
        raise click.UsageError(f"There is no check {error}; --list shows all.") from None
    console = Console(soft_wrap=True, highlight=False, markup=False, quiet=as_json)
    if as_list:
        _list(console, checks, as_json)
        return
    if ready_file is not None:
        ready = json.loads(ready_file.read_text(encoding="utf-8"))
        target, key, sandbox = ready["url"], ready["agent_key"], ready["sandbox_url"]
        webhook, webhook_secret = (ready["webhooks"]["stripe"][name] for name in ("url", "secret"))
    if not target or not key:
        raise click.UsageError("Missing option '--target'." if not target else "Missing option '--key'.")
    if (webhook is None) != (webhook_secret is None):
        raise click.UsageError("--webhook and --webhook-secret go together.")
    _greet(target, key, sandbox)
    told = None if webhook is None or webhook_secret is None else Webhook(url=webhook, secret=webhook_secret)
    ground = Ground(Gateway(target, key), None if sandbox is None else Provider(sandbox), told)
    with contextlib.closing(ground):
        verdicts = run(ground, checks, told=_Teller(console).tell)
    _end(console, target, verdicts, as_json)


def _greet(target: str, key: str, sandbox: str | None) -> None:
    """Stop at once where the gateway or the provider does not answer, or the key is not good."""
    with Server(target, key) as server:
        server.get("/v1/reservations", limit=1)
    if sandbox is not None:
        with contextlib.closing(Provider(sandbox)) as provider:
            try:
                provider.pending("/")
            except (httpx2.HTTPError, ValueError, KeyError, TypeError) as error:
                raise Unreachable(f"{sandbox} is no sandbox provider that answers ({type(error).__name__}).") from error


class _Teller:
    """Says each verdict as soon as there is one. Lanes run side by side, so one at a time."""

    def __init__(self, console: Console) -> None:
        """Says it on a console."""
        self._console = console
        self._lock = threading.Lock()

    def tell(self, verdict: Verdict) -> None:
        """One line, and one more for what was seen."""
        with self._lock:
            self._console.print(f"{verdict.verdict:<9}", style=_COLOURS[verdict.verdict], end="")
            self._console.print(f" {verdict.check.name}  {verdict.seconds:.1f} s")
            if verdict.seen:
                self._console.print(f"{'':<9} {verdict.seen}")


def _list(console: Console, checks: list[Check], as_json: bool) -> None:
    for each in checks:
        console.print(f"{each.name}\n  {each.promise}\n  {each.scenario}")
    if as_json:
        members = ("name", "promise", "scenario")
        click.echo(json.dumps([{name: getattr(each, name) for name in members} for each in checks], indent=2))


def _end(console: Console, target: str, verdicts: list[Verdict], as_json: bool) -> None:
    counts = {name: sum(each.verdict == name for each in verdicts) for name in (KEPT, BROKEN, NOT_MADE)}
    if as_json:
        document: dict[str, Any] = {
            "target": target,
            "conforms": counts[KEPT] == len(verdicts),
            "kept": counts[KEPT],
            "broken": counts[BROKEN],
            "not_made": counts[NOT_MADE],
            "checks": [each.document() for each in verdicts],
        }
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
    console.print()
    console.print(_table(verdicts))
    console.print(f"\n{counts[KEPT]} kept, {counts[BROKEN]} broken, {counts[NOT_MADE]} not made.")
    if counts[BROKEN]:
        raise SystemExit(EXIT_REFUSED)
    if counts[NOT_MADE]:
        raise SystemExit(EXIT_INCOMPLETE)


def _table(verdicts: list[Verdict]) -> Table:
    """The promises, and how many of their checks came to what."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("promise", overflow="fold")
    for name in (KEPT, BROKEN, NOT_MADE):
        table.add_column(name, justify="right")
    for promise in dict.fromkeys(each.check.promise for each in verdicts):
        found = [each.verdict for each in verdicts if each.check.promise == promise]
        worst = BROKEN if BROKEN in found else NOT_MADE if NOT_MADE in found else KEPT
        counts = (str(found.count(name) or "") for name in (KEPT, BROKEN, NOT_MADE))
        table.add_row(promise, *counts, style=_COLOURS[worst])
    return table
