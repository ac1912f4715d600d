"""`outbox relay`: submits what transactions have enqueued."""

from __future__ import annotations

import asyncio
import logging
import signal

import rich_click as click

from agent_outbox.async_client import AsyncOutbox
from agent_outbox.errors import SettingsError
from agent_outbox.relay import CONCURRENCY, KEEP_SECONDS, LEASE_SECONDS, POLL_SECONDS, Relay


@click.command()
@click.option("--url", envvar="OUTBOX_URL", required=True, help="The server. [env: OUTBOX_URL]")
@click.option("--key", envvar="OUTBOX_KEY", required=True, help="A scoped key. [env: OUTBOX_KEY]")
@click.option("--dsn", envvar="OUTBOX_RELAY_DSN", required=True, help="The callers' database. [env: OUTBOX_RELAY_DSN]")
@click.option("--concurrency", default=CONCURRENCY, show_default=True, type=click.IntRange(min=1), help="Calls at once.")
@click.option("--lease", default=LEASE_SECONDS, show_default=True, type=click.FloatRange(min=3), help="Seconds it has a call.")
@click.option("--poll", default=POLL_SECONDS, show_default=True, type=click.FloatRange(min=0.01), help="Seconds between looks.")
@click.option("--keep-days", default=KEEP_SECONDS / 86_400, show_default=True, type=float, help="How long a done call stays.")
def relay(url: str, key: str, dsn: str, concurrency: int, lease: float, poll: float, keep_days: float) -> None:
    """Submit what transactions have enqueued, until it is told to end (SIGTERM, Ctrl-C).

    Any number may run for one database. `outbox enqueue ddl` prints the table, `outbox enqueue list` what is stuck.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    try:
        asyncio.run(_run(url, key, dsn, concurrency=concurrency, lease=lease, poll=poll, keep=keep_days * 86_400))
    except SettingsError as error:
        raise click.UsageError(error.detail) from error


async def _run(url: str, key: str, dsn: str, *, concurrency: int, lease: float, poll: float, keep: float) -> None:
    async with AsyncOutbox(url=url, key=key) as outbox:
        running = Relay(dsn, outbox, concurrency=concurrency, lease=lease, poll=poll, keep=keep)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, running.stop)
        await running.run()
