"""`outbox doubts`: effects of which nobody knows yet whether they happened, and what a person does about many of them."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import rich_click as click
from rich.console import Console
from rich.table import Table

from agent_outbox import money
from agent_outbox.command_line import EXIT_REFUSED
from agent_outbox.server import Refused, Server, with_server
from agent_outbox.tables import show
from agent_outbox.times import ago, until

Function = TypeVar("Function", bound=Callable[..., Any])

WHERE = ("connection", "tool", "class", "cause", "run", "needs", "reservation")

_RATE = re.compile(r"([0-9]+(?:\.[0-9]+)?)(?:/(s|m))?")


def read_rate(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """So many a second: `5/s`, `30/m`, or a bare number."""
    if value is None:
        return None
    found = _RATE.fullmatch(value)
    if found is None or float(found[1]) <= 0:
        raise click.BadParameter(f"{value!r} is no rate; write 5/s or 30/m.", ctx, param)
    return float(found[1]) / (60.0 if found[2] == "m" else 1.0)


def read_conditions(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Conditions as they are typed: `cause=lease lapsed`."""
    conditions: dict[str, str] = {}
    for value in values:
        name, _, text = value.partition("=")
        if name not in WHERE or not text or name in conditions:
            expected = f"one of {', '.join(WHERE)}, an equals sign and a value, each once"
            raise click.BadParameter(f"{value!r} is no condition; write {expected}.", ctx, param)
        conditions[name] = text
    return conditions


where_option = click.option(
    "--where",
    metavar="NAME=VALUE",
    multiple=True,
    callback=read_conditions,
    help=f"Only these; repeatable. Names: {', '.join(WHERE)}.",
)


def picks(command: Function) -> Function:
    """Give a command the options that say which doubts are meant, and how many."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="The answer as one JSON document."),
        click.option("--dry-run", is_flag=True, help="Only say what would be done."),
        click.option("--expect", type=click.IntRange(min=0), required=True, help="How many they are; else nothing is done."),
        click.option("--reason", required=True, help="Why, in a sentence; it stands in the ledger."),
        where_option,
    ):
        command = option(command)
    return command


@click.group(invoke_without_command=True)
@click.option("--url", envvar="OUTBOX_URL", help="The server. [env: OUTBOX_URL]")
@click.option("--key", envvar="OUTBOX_KEY", help="A scoped key. [env: OUTBOX_KEY]")
@where_option
@click.option("--json", "as_json", is_flag=True, help="The summary as one JSON document.")
@click.pass_context
def doubts(ctx: click.Context, url: str | None, key: str | None, where: dict[str, str], as_json: bool) -> None:
    """Show what is in doubt: by connection, tool, class and cause, the money at stake, and what happens next."""
    ctx.default_map = {name: {"url": url, "key": key} for name in ("resolve", "recheck", "examine")}
    if ctx.invoked_subcommand is not None:
        return
    for name, value in (("--url", url), ("--key", key)):
        if not value:
            raise click.UsageError(f"Missing option '{name}'.")
    with Server(str(url), str(key)) as server:
        summary = server.get("/v1/doubts/summary", **where)
    if as_json:
        click.echo(json.dumps(summary, ensure_ascii=False))
        return
    console = Console(soft_wrap=True, highlight=False, markup=False)
    # A gateway before contradictions could be closed tells nothing of them.
    for contradicted in summary.get("contradictions", []):
        console.print(_contradicted(contradicted))
    if not summary["groups"]:
        console.print("No doubts.")
        return
    show(_table(summary["groups"]))
    at_stake = _amounts(summary["amounts"]) or "no money"
    # A gateway before episodes were told says nothing of them.
    for episode in summary.get("episodes", []):
        console.print(_episode(episode))
    console.print(f"{summary['count']} in doubt, {summary['needs_person']} need a person; at stake {at_stake}.")


@doubts.command()
@picks
@click.option("--as", "verdict", type=click.Choice(["happened", "did-not-happen"]), required=True, help="What you found out.")
@click.option("--reference", help="The provider's name of what happened, where one doubt is meant.")
@click.option(
    "--references",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file with a reservation and the provider's name of its effect on each line.",
)
@click.option("--evidence", help="What was seen; it stands in the ledger.")
@click.option("--override", is_flag=True, help="Answer although automatic recovery is still due; needs --evidence.")
@click.option("--rate", metavar="N/s", callback=read_rate, help="At most so many: 5/s or 30/m. All at once unless given.")
@with_server
def resolve(
    server: Server,
    where: dict[str, str],
    verdict: str,
    reference: str | None,
    references: Path | None,
    reason: str,
    evidence: str | None,
    override: bool,
    expect: int,
    rate: float | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Say of all that are meant that they happened, or that they did not.

    Nothing is done where they are not as many as expected, where automatic recovery is still due, or where that they did not
    happen does not count yet.
    """
    document: dict[str, Any] = {"where": where, "as": verdict, "reason": reason, "expect": expect}
    if evidence is not None:
        document["evidence"] = evidence
    if override:
        document["override"] = True
    names = {} if references is None else _read_references(references)
    batch_id = str(uuid.uuid4())
    if reference is not None:
        names = _of_the_only_one(server, document, reference)
    if names:
        document["external_references"] = names
    if dry_run or rate is None:
        answer = server.post("/v1/doubts/resolve", document | {"dry_run": dry_run, "batch_id": batch_id}, request_key=batch_id)
    else:
        answer = _paced(server, document, names, batch_id, rate)
    _end(answer, as_json)


@doubts.command()
@picks
@click.option(
    "--rate",
    metavar="N/s",
    callback=read_rate,
    default="5/s",
    show_default=True,
    help="Recovery begins again with so many: 5/s or 30/m.",
)
@with_server
def recheck(
    server: Server,
    where: dict[str, str],
    reason: str,
    expect: int,
    rate: float,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Let automatic recovery begin again, for instance when the provider is back."""
    document = {"where": where, "reason": reason, "expect": expect, "rate_per_second": rate, "dry_run": dry_run}
    _end(server.post("/v1/doubts/recheck", document, request_key=str(uuid.uuid4())), as_json)


@doubts.command()
@click.argument("id")
@click.option("--as", "verdict", type=click.Choice(["happened", "did-not-happen"]), required=True, help="What you found out.")
@click.option("--reference", help="The provider's name of what happened.")
@click.option("--reason", required=True, help="Why, in a sentence; it stands in the ledger.")
@click.option("--evidence", required=True, help="What was seen; it stands in the ledger.")
@click.option("--json", "as_json", is_flag=True, help="The answer as one JSON document.")
@with_server
def examine(server: Server, id: str, verdict: str, reference: str | None, reason: str, evidence: str, as_json: bool) -> None:
    """Close what contradicts the closed reservation named ID.

    That it happened gives callers of the operation a receipt. That it did not, because the proof was wrong or somebody has undone
    the effect, frees the operation key.
    """
    document = {"as": verdict, "external_reference": reference, "reason": reason, "evidence": evidence}
    answer = server.post(f"/v1/reviews/contradictions/{id}", document, request_key=str(uuid.uuid4()))
    if as_json:
        click.echo(json.dumps(answer, ensure_ascii=False))
        return
    receipt = answer["receipt"]
    told = "Its operation key is free again." if receipt is None else f"Callers are told of receipt {receipt['id']}."
    Console(soft_wrap=True, highlight=False, markup=False).print(f"{answer['operation_key']} is contradicted no more. {told}")


def _of_the_only_one(server: Server, document: dict[str, Any], reference: str) -> dict[str, str]:
    """The reference of the one doubt that is meant; which one that is says a dry run of the other answer."""
    if document["expect"] != 1:
        raise click.UsageError("--reference is for one doubt; name the references of several in a file: --references FILE.")
    asked = {name: document[name] for name in ("where", "reason", "expect")} | {"dry_run": True}
    [only] = server.post("/v1/doubts/recheck", asked, request_key=str(uuid.uuid4()))["items"]
    return {only["reservation_id"]: reference}


def _paced(server: Server, document: dict[str, Any], names: dict[str, str], batch_id: str, rate: float) -> dict[str, Any]:
    """One request for each doubt, so many a second, under one batch id. The count is asked before the first."""
    meant = server.post("/v1/doubts/resolve", document | {"dry_run": True}, request_key=str(uuid.uuid4()))["items"]
    began = time.monotonic()
    items = []
    for place, item in enumerate(meant):
        time.sleep(max(0.0, began + place / rate - time.monotonic()))
        id = item["reservation_id"]
        one = document | {"where": {"reservation": id}, "expect": 1, "batch_id": batch_id}
        if names:
            one["external_references"] = {id: names[id]}
        try:
            items += server.post("/v1/doubts/resolve", one, request_key=f"{batch_id}:{id}")["items"]
        except Refused as refused:
            # Somebody or something else ended this one meanwhile; the others are meant all the same.
            items.append(item | {"verdict": "refused", "detail": refused.message})
    refused_count = sum(item["verdict"] == "refused" for item in items)
    done = len(items) - refused_count
    return {"batch_id": batch_id, "dry_run": False, "count": len(items), "done": done, "refused": refused_count, "items": items}


def _read_references(file: Path) -> dict[str, str]:
    """Lines of a reservation's id and the provider's name of its effect, apart by a comma or white space."""
    found: dict[str, str] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        parts = re.split(r"[,\s]+", line.strip(), maxsplit=1)
        if len(parts) != 2:
            raise click.UsageError(f"{file}, line {number}: expected a reservation's id and the provider's name of its effect.")
        found[parts[0]] = parts[1]
    return found


def _end(answer: dict[str, Any], as_json: bool) -> None:
    """Show what became of each, and end with 1 where some were refused."""
    if as_json:
        click.echo(json.dumps(answer, ensure_ascii=False))
    else:
        console = Console(soft_wrap=True, highlight=False, markup=False)
        for item in answer["items"]:
            console.print(
                f"{item['verdict']:<10} {item['reservation_id']}  {item['operation_key']}  {item.get('detail', '')}".rstrip()
            )
        if answer["dry_run"]:
            console.print(f"{answer['count']} would be done; nothing was changed.")
        else:
            console.print(f"{answer['done']} done, {answer['refused']} refused. Batch {answer['batch_id']}.")
    if answer["refused"]:
        raise SystemExit(EXIT_REFUSED)


def _table(groups: list[dict[str, Any]]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("count", "connection", "tool", "class", "cause", "oldest", "at stake", "next", "need a person"):
        table.add_column(heading, overflow="fold")
    for group in groups:
        table.add_row(
            str(group["count"]),
            group["connection"],
            group["tool"],
            group["class"],
            group["cause"],
            ago(group["oldest"]),
            _amounts(group["amounts"]),
            ", ".join(f"{each['count']} {each['action']}{_at(each['at'])}" for each in group["next"]),
            str(group["needs_person"]),
        )
    return table


def _episode(episode: dict[str, Any]) -> str:
    """What people are asked about, in a line: who, what, how many, since when."""
    who = ", ".join(episode["owners"])
    money_at_stake = _amounts(episode["amounts"])
    parts = [
        f"{episode['attention'].upper()} {who}: {episode['waiting']} on {episode['connection']} wait for a person",
        f"({episode['cause']}; {', '.join(episode['tools'])}; the oldest {ago(episode['oldest'])}",
    ]
    return " ".join(parts) + (f"; at stake {money_at_stake})" if money_at_stake else ")")


def _contradicted(contradicted: dict[str, Any]) -> str:
    """What is proven against a closed reservation, in a line: what, where, since when, and what to do about it."""
    parts = [
        f"CONTRADICTED {contradicted['operation_key']} ({contradicted['tool']} on {contradicted['connection']}) is",
        f"{contradicted['state']}, against {', '.join(contradicted['external_references'])} {ago(contradicted['since'])}:",
        f"outbox doubts examine {contradicted['reservation_id']}",
    ]
    return " ".join(parts)


def _at(at: str | None) -> str:
    return "" if at is None else f" {until(at)}"


def _amounts(amounts: list[dict[str, Any]]) -> str:
    return ", ".join(money.format(amount["value"], amount["currency"]) for amount in amounts)
