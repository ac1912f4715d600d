"""`outbox doctor`: whether what must hold does hold, in a live system, and the count of effects of a window."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

import rich_click as click

from outbox_standalone.refusal import exit_with

if TYPE_CHECKING:
    from outbox_store.checkup import Setting, Window

_SINCE = re.compile(r"([0-9]{1,6})(s|m|h|d)")
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
EXIT_ILL = 1


def read_since(ctx: click.Context, param: click.Parameter, value: str) -> float:
    """A duration as contracts write it: `30m`, `24h`, `7d`."""
    found = _SINCE.fullmatch(value)
    if found is None:
        raise click.BadParameter(f"{value!r} is no duration; write 30m, 24h or 7d.", ctx, param)
    return float(int(found[1]) * _UNIT_SECONDS[found[2]])


@click.command()
@click.option(
    "--since", default="24h", show_default=True, metavar="DURATION", callback=read_since, help="Count effects of this last time."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def doctor(since: float, as_json: bool) -> None:
    """Ask the database at OUTBOX_POSTGRES_URL whether everything that must hold does hold.

    The address is that of the owner of the tables, as for `outbox migrate`. Nothing is changed. Ends with 0 where every
    invariant holds and commits are durable, else with 1.
    """
    import asyncio

    from outbox_runtime.postgres import AWAY
    from outbox_runtime.settings import WrongSetting

    try:
        broken, durability, window = asyncio.run(_examine(os.environ, since))
    except WrongSetting as wrong:
        exit_with(wrong)
    except Exception as error:
        if isinstance(error, AWAY) or hasattr(error, "sqlstate"):
            exit_with(f"Nothing was examined; Postgres says: {error}")
        raise
    well = not broken and all(setting.durable for setting in durability)
    if as_json:
        document = {
            "well": well,
            "broken_invariants": broken,
            "durability": [asdict(setting) for setting in durability],
            "since_seconds": since,
            "window": asdict(window),
        }
        click.echo(json.dumps(document))
    else:
        _show(broken, durability, window)
    if not well:
        raise SystemExit(EXIT_ILL)


async def _examine(environment: Mapping[str, str], since: float) -> "tuple[dict[str, list[str]], list[Setting], Window]":
    """What there is to say, all of one moment."""
    from outbox_runtime import postgres
    from outbox_runtime.settings import PostgresSettings, read
    from outbox_store import checkup, invariants

    url = read(PostgresSettings, environment).listen_url
    patient = {"OUTBOX_POSTGRES_POOL_MIN": "0", "OUTBOX_POSTGRES_POOL_MAX": "1", "OUTBOX_POSTGRES_COMMAND_SECONDS": "600"}
    pool = await postgres.open_pool(
        read(PostgresSettings, {"OUTBOX_POSTGRES_URL": url, "OUTBOX_POSTGRES_START_SECONDS": "5", **patient}),
        application_name="outbox-doctor",
    )
    try:
        async with postgres.acquire(pool) as connection, connection.transaction(isolation="repeatable_read", readonly=True):
            broken = await invariants.violations(connection)
            return broken, await checkup.durability(connection), await checkup.window(connection, seconds=since)
    finally:
        await pool.close()


def _show(broken: "dict[str, list[str]]", durability: "list[Setting]", window: "Window") -> None:
    """Print what was found, what is not well first."""
    from outbox_store.invariants import INVARIANTS

    for name, rows in broken.items():
        click.echo(f"BROKEN  {name}: {', '.join(rows)}")
    for setting in durability:
        click.echo(f"{'ok    ' if setting.durable else 'WEAK  '}  {setting.name} = {setting.value} ({setting.where})")
    click.echo(f"{'ok    ' if not broken else 'BROKEN'}  {len(INVARIANTS) - len(broken)} of {len(INVARIANTS)} invariants hold")
    click.echo(
        f"planned {window.planned}, succeeded {window.succeeded}, receipts {window.receipts}, in doubt {window.in_doubt} "
        f"({window.needs_person} need a person)"
    )
    click.echo(
        f"running {window.running}, failed {window.failed}, voided {window.voided}, denied {window.denied}, "
        f"attempts {window.attempts}, open contradictions {window.contradictions}"
    )
