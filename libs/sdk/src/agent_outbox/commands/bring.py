"""`outbox import`: what other libraries recorded, brought over before they are switched off."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import rich_click as click

from agent_outbox.async_client import AsyncOutbox
from agent_outbox.command_line import EXIT_KEY, EXIT_REFUSED, EXIT_UNREACHABLE
from agent_outbox.commands.doubts import read_rate
from agent_outbox.errors import OutboxError, SettingsError, UnreachableError

if TYPE_CHECKING:
    from agent_outbox.compat.agent_ledger.bring_over import Report

CONFLICTS_SHOWN = 20

_WITHOUT = "This needs the extra: pip install 'agent-outbox[agent-ledger]'"


@click.group(name="import")
def bring() -> None:
    """Bring over what another library recorded, so that nothing it did is done again."""


@bring.command("agent-ledger")
@click.option("--dsn", required=True, envvar="AGENT_LEDGER_DSN", help="Its database. [env: AGENT_LEDGER_DSN]")
@click.option("--url", envvar="OUTBOX_URL", required=True, help="The server. [env: OUTBOX_URL]")
@click.option("--key", envvar="OUTBOX_KEY", required=True, help="The agent's scoped key. [env: OUTBOX_KEY]")
@click.option("--namespace", default="default", show_default=True, help="As in the Profile of the program that goes on.")
@click.option("--owner", default="agent-ledger", show_default=True, help="The team that answers for these effects.")
@click.option(
    "--failed",
    "failures",
    type=click.Choice(["doubt", "failed"]),
    default="doubt",
    show_default=True,
    help="What a failed effect becomes: a doubt for a person, or failed, where every failure meant that nothing happened.",
)
@click.option("--leave-out-approvals", is_flag=True, help="Go on although some waited for an approval or were refused one.")
@click.option("--skip-conflicts", is_flag=True, help="Bring over the others although some are in conflict.")
@click.option("--from", "since", metavar="TIME", help="Only effects recorded at or after this time.")
@click.option("--rate", metavar="N/s", default="50/s", show_default=True, callback=read_rate, help="At most so many.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--json", "as_json", is_flag=True, help="The counts as one JSON document.")
@click.pass_context
def agent_ledger(
    ctx: click.Context,
    dsn: str,
    url: str,
    key: str,
    namespace: str,
    owner: str,
    failures: str,
    leave_out_approvals: bool,
    skip_conflicts: bool,
    since: str | None,
    rate: float,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Bring over the table of agent-ledger 0.2.1: successes settled, what was in progress as doubts.

    Stop the programs that use the table first. The import may be repeated at any time: what was brought over stays as it is.
    """
    try:
        from agent_outbox.compat.agent_ledger.bring_over import bring_over, plan
        from agent_outbox.compat.agent_ledger.profile import OURS
        from agent_outbox.compat.agent_ledger.table import UnknownTable
        from agent_outbox.relay import Database
    except ImportError as error:
        raise click.UsageError(_WITHOUT) from error
    profile = replace(OURS, namespace=namespace, owner=owner)
    chosen: Any = {"failures": failures, "since": since}

    async def work() -> tuple[Report, bool]:
        database = Database(dsn)
        async with AsyncOutbox(url=url, key=key) as client:
            try:
                planned = await plan(database, client, profile, **chosen)
                refused = (planned.left_out and not leave_out_approvals) or (planned.conflicts_count and not skip_conflicts)
                if dry_run or refused:
                    return planned, bool(refused)
                done = await bring_over(database, client, profile, pause_seconds=1.0 / rate, **chosen)
                return done, done.conflicts_count > 0 and not skip_conflicts
            finally:
                await database.close()

    try:
        report, refused = asyncio.run(work())
    except UnknownTable as error:
        raise click.ClickException(str(error)) from error
    except SettingsError as error:
        raise click.UsageError(error.detail) from error
    except UnreachableError as error:
        click.echo(f"Error: {error}", err=True)
        ctx.exit(EXIT_UNREACHABLE)
    except OutboxError as error:
        click.echo(f"Error: {error.detail} ({error.code})", err=True)
        ctx.exit(EXIT_KEY if error.status in (401, 403) else EXIT_REFUSED)
    _tell(report, dry_run=dry_run, refused=refused, as_json=as_json, leave_out=leave_out_approvals)
    if refused:
        ctx.exit(EXIT_REFUSED)


def _tell(report: Report, *, dry_run: bool, refused: bool, as_json: bool, leave_out: bool) -> None:
    if as_json:
        click.echo(json.dumps({**asdict(report), "dry_run": dry_run, "refused": refused}, ensure_ascii=False))
        return
    would = "would be " if dry_run or refused else ""
    click.echo(f"{report.succeeded} {would}settled as succeeded, {report.failed} as failed, {report.doubt} as doubts.")
    click.echo(f"{report.already} were there already, {report.left_out} were never carried out and stay behind.")
    if report.left_out and not leave_out:
        click.echo(
            "Nothing was brought over: some waited for an approval or were refused one, and here the same call would be "
            "allowed. Write a policy that says otherwise, then use --leave-out-approvals."
        )
    if report.conflicts_count:
        click.echo(f"{report.conflicts_count} in conflict:")
        for one in report.conflicts[:CONFLICTS_SHOWN]:
            click.echo(f"  {one.effect_id} {one.idem_key}: {one.why}")
        if report.conflicts_count > CONFLICTS_SHOWN:
            click.echo(f"  and {report.conflicts_count - CONFLICTS_SHOWN} more (--json lists up to a thousand)")
