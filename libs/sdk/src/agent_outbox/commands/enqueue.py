"""`outbox enqueue`: the table of enqueued calls, what is stuck in it, and having that tried anew."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import rich_click as click
from rich.table import Table

from agent_outbox.command_line import EXIT_REFUSED, EXIT_UNREACHABLE
from agent_outbox.errors import SettingsError
from agent_outbox.queue import enqueue_ddl
from agent_outbox.relay import LIST, RETRY, Database
from agent_outbox.tables import show

COLUMNS = ("id", "tool", "state", "enqueued_at", "due_at", "tries", "reservation_id", "code", "message")

with_dsn = click.option("--dsn", envvar="OUTBOX_RELAY_DSN", required=True, help="The callers' database. [env: OUTBOX_RELAY_DSN]")


class DatabaseAway(click.ClickException):
    """The database did not do what it was asked."""

    exit_code = EXIT_UNREACHABLE


@click.group()
def enqueue() -> None:
    """Calls that transactions of yours have enqueued."""


@enqueue.command()
def ddl() -> None:
    """Print the statements that make the table; running them again changes nothing."""
    click.echo(enqueue_ddl(), nl=False)


@enqueue.command("list")
@with_dsn
@click.option(
    "--state",
    default="stuck",
    show_default=True,
    type=click.Choice(["stuck", "waiting", "done", "refused", "all"]),
    help="Stuck is what was refused, and what waits after a problem.",
)
@click.option("--limit", "-n", default=50, show_default=True, type=click.IntRange(min=1), help="How many at most, oldest first.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document a line.")
def list_(dsn: str, state: str, limit: int, as_json: bool) -> None:
    """List enqueued calls; what they asked for is not shown."""
    found = [dict(zip(COLUMNS, row, strict=True)) for row in _rows(dsn, LIST, state, limit)]
    if as_json:
        for row in found:
            click.echo(json.dumps(row, default=lambda moment: moment.isoformat(), ensure_ascii=False))
        return
    if not found:
        click.echo("No calls.")
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("enqueued", "id", "tool", "state", "tries", "problem", "message"):
        table.add_column(heading, overflow="fold", no_wrap=heading in ("id", "problem"))
    for row in found:
        moment = row["enqueued_at"].isoformat(" ")[:19]
        table.add_row(moment, row["id"], row["tool"], row["state"], str(row["tries"]), row["code"] or "", row["message"] or "")
    show(table)


@enqueue.command()
@with_dsn
@click.argument("ids", nargs=-1, required=True, type=click.UUID)
def retry(dsn: str, ids: tuple[UUID, ...]) -> None:
    """Have refused calls tried anew; each is a new request to the gateway."""
    again = {row[0] for row in _rows(dsn, RETRY, [str(id) for id in ids])}
    for id in ids:
        click.echo(f"{id} is due" if str(id) in again else f"{id} is not refused")
    if len(again) < len(set(ids)):
        raise SystemExit(EXIT_REFUSED)


def _rows(dsn: str, statement: str, *values: object) -> Sequence[Sequence[Any]]:
    async def ask() -> Sequence[Sequence[Any]]:
        database = Database(dsn)
        try:
            return await database.rows(statement, *values)
        finally:
            await database.close()

    try:
        return asyncio.run(ask())
    except SettingsError as error:
        raise click.UsageError(error.detail) from error
    except Exception as error:
        raise DatabaseAway(f"The database did not answer ({type(error).__name__}: {error}).") from error
