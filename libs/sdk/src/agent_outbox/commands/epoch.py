"""`outbox epoch`: whether the ledger may have lost its newest entries, and a person who says that it has not."""

from __future__ import annotations

import json
import uuid
from typing import Any

import rich_click as click

from agent_outbox.server import Server, with_server


@click.group()
def epoch() -> None:
    """Show what the ledger may have lost, or say that nothing was."""


@epoch.command()
@click.option("--json", "as_json", is_flag=True, help="As one JSON document.")
@with_server
def show(server: Server, as_json: bool) -> None:
    """Show the newest epoch."""
    _print(server.get("/v1/epoch"), as_json)


@epoch.command()
@click.option("--expect", type=click.IntRange(min=1), required=True, help="The number of the epoch; another one is not cleared.")
@click.option("--reason", required=True, help="Why nothing was lost, in a sentence; it stands in the ledger.")
@click.option("--json", "as_json", is_flag=True, help="As one JSON document.")
@with_server
def clear(server: Server, expect: int, reason: str, as_json: bool) -> None:
    """Say that nothing of your organization was lost: keys first seen are new again, and may be sent at once."""
    document = {"epoch": expect, "reason": reason}
    _print(server.post("/v1/epoch/clear", document, request_key=str(uuid.uuid4())), as_json)


def _print(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False))
        return
    click.echo(f"Epoch {found['number']}, since {found['started_at']}: {found['cause']}.")
    if found["lost_since"] is None:
        click.echo("Nothing was ever lost.")
        return
    click.echo(f"What was committed after {found['lost_since']} may be lost.")
    if found["cleared_at"] is not None:
        click.echo(f"Cleared at {found['cleared_at']} by {' > '.join(found['cleared_by'])}: {found['reason']}")
    elif found["possibly_lost"]:
        click.echo(f"Until {found['possibly_lost_until']} a key first seen is treated as possibly sent.")
    else:
        click.echo(f"Since {found['possibly_lost_until']} keys first seen are new again.")
    click.echo(f"In doubt because of it: {found['in_doubt']}.")
