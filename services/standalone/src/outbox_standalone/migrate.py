"""`outbox migrate`: brings a database to this version's schema."""

import os
from typing import get_args

import rich_click as click

from outbox_standalone.refusal import exit_with

ROLES_MODES = ("create", "existing", "single")


@click.command()
@click.option(
    "--roles",
    type=click.Choice(ROLES_MODES),
    default="create",
    show_default=True,
    help="Who makes the Postgres roles that the services log in with: this command (create), your DBA (existing), "
    "or nobody: all services share one role (single; weaker).",
)
@click.option("--print-roles", is_flag=True, help="Print the SQL that a DBA runs once per cluster, and do nothing.")
def migrate(roles: str, print_roles: bool) -> None:
    """Bring the database at OUTBOX_POSTGRES_URL to this version's schema.

    The address is that of the owner of the tables. Where a pooler stands before Postgres, OUTBOX_POSTGRES_DIRECT_URL names
    the way past it. Files that were applied before are skipped; several runs at once wait for each other.
    """
    import asyncio

    from outbox_runtime.postgres import AWAY
    from outbox_runtime.settings import PostgresSettings, WrongSetting, read
    from outbox_store import migrate as runner

    assert get_args(runner.RolesMode) == ROLES_MODES
    if print_roles:
        click.echo(runner.role_statements(), nl=False)
        return
    try:
        settings = read(PostgresSettings, os.environ)
    except WrongSetting as wrong:
        exit_with(wrong)
    try:
        applied = asyncio.run(runner.migrate(settings.listen_url, roles=roles))  # type: ignore[arg-type]
    except runner.MigrationRefused as refused:
        exit_with(f"Nothing was migrated: {refused}.")
    except Exception as error:
        if isinstance(error, AWAY) or hasattr(error, "sqlstate"):
            exit_with(f"Nothing was migrated; Postgres says: {error}")
        raise
    for name in applied:
        click.echo(f"applied {name}")
    click.echo(f"{len(applied)} applied, {len(runner.known()) - len(applied)} were there already.")
    if roles == "single":
        click.echo(
            "Warning: all services share one Postgres role, so Postgres does not keep them from each other's tables.", err=True
        )
