"""`outbox demo`: the same small agent through the same faults, plain and through Outbox, counted by the provider."""

import sys

import rich_click as click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document in place of the tables.")
@click.option("--keep", is_flag=True, help="Leave the folder with data and logs, and say where it is.")
@click.option("--no-redis", is_flag=True, help="Run without Redis.")
def demo(as_json: bool, keep: bool, no_redis: bool) -> None:
    """Play a small agent through faults twice, plain and through Outbox, and let the provider count.

    Everything runs on this machine, in a temporary folder, and ends with the command.

    The exit code is 0 only if every count through Outbox is right and the plain agent did worse.
    """
    # Imported here, because the command line loads every command to list them.
    from outbox_standalone.demo_run import Options, run
    from outbox_standalone.refusal import Refusal, exit_with

    try:
        sys.exit(run(Options(as_json=as_json, keep=keep, redis=not no_redis)))
    except Refusal as refusal:
        exit_with(refusal)
