"""`outbox up`: every deployable on one machine, as child processes that end with it."""

from pathlib import Path

import rich_click as click

_CONNECT_HELP = (
    "Use a real account instead of the sandbox provider: stripe=env:STRIPE_API_KEY takes the test key from that variable. "
    "Live keys are refused."
)


@click.command()
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".outbox"),
    show_default=True,
    help="Folder of data, keys and logs; the same folder gives the same organization and keys again.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    show_default=True,
    help="Port of the API on 127.0.0.1; 0 takes a free one.",
)
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Worker processes.")
@click.option(
    "--api-workers", type=click.IntRange(1, 64), default=1, show_default=True, help="API processes; they share the port."
)
@click.option("--no-redis", is_flag=True, help="Run without Redis: everything happens, only later.")
@click.option(
    "--ready-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File written once everything answers: addresses, keys and process ids as JSON.",
)
@click.option("--connect", multiple=True, metavar="PROVIDER=env:VARIABLE", help=_CONNECT_HELP)
def up(
    data_dir: Path, port: int, workers: int, api_workers: int, no_redis: bool, ready_file: Path | None, connect: tuple[str, ...]
) -> None:
    """Run Agent Outbox on this machine: Postgres, Redis, API, workers and the sandbox provider.

    Ctrl+C ends it and everything it started. OUTBOX_POSTGRES_URL and OUTBOX_REDIS_URL name servers to use instead of the
    embedded ones.
    """
    # Imported here, because the command line loads every command to list them.
    from outbox_standalone.refusal import Refusal, exit_with
    from outbox_standalone.stack import Options, connected_accounts, run

    try:
        run(
            Options(
                data_dir=data_dir,
                port=port,
                workers=workers,
                api_workers=api_workers,
                redis=not no_redis,
                ready_file=ready_file,
                accounts=connected_accounts(connect),
            )
        )
    except Refusal as refusal:
        exit_with(refusal)
