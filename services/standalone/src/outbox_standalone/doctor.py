"""`outbox doctor`: whether what must hold does hold, in a live system, and the count of effects of a window."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import rich_click as click

from outbox_standalone.refusal import exit_with

if TYPE_CHECKING:
    from outbox_standalone.provider_count import Counted
    from outbox_store.checkup import Account, Setting, Window

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
@click.option(
    "--sandbox",
    metavar="URL",
    envvar="OUTBOX_SANDBOX_URL",
    help="The sandbox provider, whose own effects are counted beside the receipts (`sandbox_url` of the ready file).",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def doctor(since: float, sandbox: str | None, as_json: bool) -> None:
    """Ask the database at OUTBOX_POSTGRES_URL whether everything that must hold does hold.

    The address is that of the owner of the tables, as for `outbox migrate`. Nothing is changed. Ends with 0 where every
    invariant holds, commits are durable and the provider that was counted has each effect once, else with 1.
    """
    import asyncio

    from outbox_runtime.postgres import AWAY
    from outbox_runtime.settings import WrongSetting
    from outbox_standalone.provider_count import ProviderAway

    try:
        found = asyncio.run(_examine(os.environ, since, sandbox))
    except WrongSetting as wrong:
        exit_with(wrong)
    except ProviderAway as away:
        exit_with(f"Nothing was examined; the sandbox provider gave no list: {away}")
    except Exception as error:
        if isinstance(error, AWAY) or hasattr(error, "sqlstate"):
            exit_with(f"Nothing was examined; Postgres says: {error}")
        raise
    if as_json:
        document = {
            "well": found.well,
            "broken_invariants": found.broken,
            "durability": [asdict(setting) for setting in found.durability],
            "since_seconds": since,
            "window": asdict(found.window),
            "provider": {
                "counted": None if found.counted is None else asdict(found.counted),
                "not_counted": [_account(account) for account in found.not_counted],
            },
        }
        click.echo(json.dumps(document))
    else:
        _show(found)
    if not found.well:
        raise SystemExit(EXIT_ILL)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the doctor found, the ledger all of one moment.

    Attributes:
        counted: the sandbox's own count; None where it was not asked.
        not_counted: connections to providers that list nothing of their own.
    """

    broken: dict[str, list[str]]
    durability: "list[Setting]"
    window: "Window"
    counted: "Counted | None"
    not_counted: "list[Account]"

    @property
    def well(self) -> bool:
        """Whether everything that must hold does."""
        durable = all(setting.durable for setting in self.durability)
        return not self.broken and durable and (self.counted is None or self.counted.well)


async def _examine(environment: Mapping[str, str], since: float, sandbox: str | None) -> Found:
    from outbox_runtime import postgres
    from outbox_runtime.settings import PostgresSettings, read
    from outbox_standalone import provider_count
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
            accounts = await checkup.accounts(connection, seconds=since)
            durability, window = await checkup.durability(connection), await checkup.window(connection, seconds=since)
            until = await checkup.clock(connection)
        of_sandbox = [] if sandbox is None else provider_count.of_sandbox(accounts, sandbox)
        counted = None
        if sandbox is not None:
            # Asked after the ledger was read: the provider has made everything of which that has a receipt.
            effects = await provider_count.effects_of(sandbox)
            async with postgres.acquire(pool) as connection:
                counted = await provider_count.count(connection, of_sandbox, effects, sandbox, until=until, seconds=since)
        return Found(
            broken=broken,
            durability=durability,
            window=window,
            counted=counted,
            not_counted=[account for account in accounts if account not in of_sandbox],
        )
    finally:
        await pool.close()


def _account(account: "Account") -> dict[str, object]:
    names = ("name", "environment", "provider", "planned", "receipts", "answered", "looked_up", "told", "asserted")
    return {name: getattr(account, name) for name in names}


def _show(found: Found) -> None:
    """Print what was found, what is not well first."""
    from outbox_store.invariants import INVARIANTS

    broken, window = found.broken, found.window
    for name, rows in broken.items():
        click.echo(f"BROKEN  {name}: {', '.join(rows)}")
    for setting in found.durability:
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
    _show_provider(found)


def _show_provider(found: Found) -> None:
    if (counted := found.counted) is not None:
        click.echo(
            f"{'ok    ' if counted.well else 'BROKEN'}  the provider at {counted.url} counts {counted.effects} effects; "
            f"{counted.with_receipt} have a receipt here, {counted.effects - counted.with_receipt} have none"
        )
        for title, names in (
            ("done more than once", counted.duplicates),
            ("receipts without an effect", counted.missing),
            ("effects without a receipt (in doubt, under way, or not made through here)", counted.without_receipt),
        ):
            if names:
                click.echo(f"        {title}: {', '.join(names)}")
    for account in found.not_counted:
        click.echo(
            f"        not counted at the provider: {account.name} ({account.provider}, {account.environment}), "
            "which lists nothing to us; "
            f"{account.receipts} receipts of {account.planned} planned rest on answers {account.answered}, "
            f"look-ups {account.looked_up}, webhooks {account.told}, people {account.asserted}"
        )
