"""`outbox receipts`: the outside facts that prove effects."""

from __future__ import annotations

import itertools
import json
from typing import Any

import rich_click as click
from rich.table import Table

from agent_outbox import money
from agent_outbox.server import Server, with_server
from agent_outbox.tables import show


@click.command()
@click.argument("id", required=False)
@click.option("--tool", help="Only receipts of this tool.")
@click.option("--run", help="Only receipts of this run.")
@click.option("--connection", help="Only receipts of this connection.")
@click.option("--reference", help="Only receipts of this business case.")
@click.option("--external-reference", help="Only the receipt with this reference of the provider's.")
@click.option("--operation-key", help="Only receipts of this operation key.")
@click.option("--limit", "-n", default=50, show_default=True, type=click.IntRange(min=1), help="How many at most, newest first.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document a line.")
@with_server
def receipts(server: Server, id: str | None, limit: int, as_json: bool, **filters: str | None) -> None:
    """List receipts, newest first, or show the one named ID."""
    if id is not None:
        click.echo(json.dumps(server.get(f"/v1/receipts/{id}"), indent=2, ensure_ascii=False))
        return
    found = list(itertools.islice(server.pages("/v1/receipts", limit=min(limit, 200), **filters), limit))
    if as_json:
        for receipt in found:
            click.echo(json.dumps(receipt, ensure_ascii=False))
        return
    if not found:
        click.echo("No receipts.")
        return
    show(_table(found))


def _table(found: list[dict[str, Any]]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("settled", "receipt", "tool", "external reference", "amount", "confidence", "by"):
        table.add_column(heading, overflow="fold")
    for receipt in found:
        amount = receipt.get("amount")
        table.add_row(
            receipt["settled_at"].replace("T", " ")[:19],
            receipt["id"],
            receipt["tool"],
            receipt["external_reference"],
            money.format(amount["value"], amount["currency"]) if amount else "",
            receipt["confidence"],
            " > ".join(receipt["actor_chain"]),
        )
    return table
