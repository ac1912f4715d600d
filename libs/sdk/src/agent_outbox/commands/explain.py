"""`outbox explain ID`: what happened to one effect, in one timeline."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import rich_click as click
from rich.console import Console
from rich.text import Text

from agent_outbox import money
from agent_outbox.server import Server, with_server
from agent_outbox.times import duration, read, until


@dataclass(frozen=True)
class Moment:
    """Something that happened.

    Attributes:
        at: when.
        what: in a few words.
        more: what else is known of it.
    """

    at: datetime
    what: str
    more: str = ""


@click.command()
@click.argument("id")
@click.option("--json", "as_json", is_flag=True, help="The reservation as one JSON document.")
@with_server
def explain(server: Server, id: str, as_json: bool) -> None:
    """Show what happened to the reservation named ID, as one timeline with durations."""
    reservation = server.get(f"/v1/reservations/{id}")
    if as_json:
        click.echo(json.dumps(reservation, indent=2, ensure_ascii=False))
        return
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(Text.assemble((reservation["operation_key"], "bold"), f"  {reservation['tool']}  {reservation['state']}"))
    console.print(Text(reservation["message"], "dim"))
    before: datetime | None = None
    for moment in sorted(moments(reservation), key=lambda moment: moment.at):
        passed = "" if before is None else f"+{duration((moment.at - before).total_seconds())}"
        console.print(
            Text.assemble(
                (moment.at.astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3], "dim"),
                (f"  {passed:>9}  ", "cyan"),
                (f"{moment.what:<24}", "bold"),
                f"  {moment.more}" if moment.more else "",
            )
        )
        before = moment.at
    for line in _ahead(reservation):
        console.print(line)


def moments(reservation: dict[str, Any]) -> Iterator[Moment]:
    """Everything of a reservation's detail that has a time."""
    amount = reservation.get("amount")
    yield Moment(
        read(reservation["created_at"]),
        "reserved",
        _said(
            f"by {' > '.join(reservation['actor_chain'])}",
            reservation.get("run") and f"run {reservation['run']['name']}",
            amount and money.format(amount["value"], amount["currency"]),
            f"class {reservation['guarantee_class']}",
        ),
    )
    for call in reservation.get("requesters", ()):
        yield Moment(
            read(call["at"]),
            "asked again" if call["replayed"] else "asked",
            _said(" > ".join(call["actor_chain"]), call["run"] and f"run {call['run']}", f"answered {call['answer_code']}"),
        )
    for attempt in reservation.get("attempts", ()):
        yield from _of_attempt(attempt)
    doubt = reservation.get("doubt")
    if doubt is not None and doubt["since"] is not None:
        yield Moment(read(doubt["since"]), "in doubt", doubt["cause"] or "")
    for entry in reservation.get("evidence", ()):
        detail = entry["detail"]
        yield Moment(
            read(entry["at"]),
            entry["kind"],
            _said(detail.get("by"), detail.get("external_reference"), detail.get("reason"), detail.get("outcome")),
        )
    receipt = reservation.get("receipt")
    if receipt is not None:
        by = next((one["detail"].get("by") for one in receipt["evidence"] if one["kind"] == "person"), None)
        more = _said(receipt["external_reference"], receipt["confidence"], by and f"says {by}", f"receipt {receipt['id']}")
        yield Moment(read(receipt["settled_at"]), reservation["state"], more)
    elif reservation["settled_at"] is not None:
        yield Moment(read(reservation["settled_at"]), reservation["state"])


def _of_attempt(attempt: dict[str, Any]) -> Iterator[Moment]:
    name = f"attempt {attempt['number']}"
    claimed = read(attempt["claimed_at"])
    yield Moment(claimed, f"{name} sent again" if attempt["resend"] else f"{name} begun", f"by {attempt['worker']}")
    if attempt["closed_at"] is None:
        return
    status, seconds = attempt["provider_status"], attempt["provider_seconds"]
    yield Moment(
        read(attempt["closed_at"]),
        f"{name} {attempt['outcome']}",
        _said(
            attempt["reason"],
            status is not None and f"HTTP {status}",
            attempt["provider_code"],
            seconds is not None and f"{duration(seconds)} at the provider",
            attempt["closed_by"] != "answer" and f"closed by {attempt['closed_by']}",
            attempt["proven_absent"] and "proven absent",
            attempt["late_write"] and "written late",
        ),
    )


def _ahead(reservation: dict[str, Any]) -> Iterator[str]:
    """What is still to come."""
    # A gateway before contradictions could be closed tells nothing of them.
    contradiction = reservation.get("contradiction")
    if contradiction is not None:
        yield f"Contradicted by {', '.join(contradiction['external_references'])}; nothing new is reserved of its operation key."
        yield f"Only a person can say what is true: outbox doubts examine {reservation['reservation_id']}"
    doubt = reservation.get("doubt")
    if doubt is None:
        return
    if doubt["recovery"] == "automatic":
        yield f"Recovery looks into it {until(doubt['next_check'])}."
    else:
        yield "Only a person can end this doubt now: outbox doubts resolve --where reservation=" + reservation["reservation_id"]
    counts_at = doubt["absence_counts_at"]
    if counts_at is not None and until(counts_at) != "now":
        yield f"That it did not happen counts {until(counts_at)}; that it happened counts now."


def _said(*parts: Any) -> str:
    """The parts that there are, each once: what says how something was seen often repeats it as its reason."""
    return ", ".join(dict.fromkeys(str(part) for part in parts if part))
