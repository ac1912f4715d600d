"""The API process: settings, Postgres, the background parts, one Granian server on this event loop, and an orderly end.

One process is one event loop and one server. Several processes share a port by SO_REUSEPORT, so the one that is killed takes only
its own connections along, its process id is the one that does the work, and it has no children that could be orphaned.
Source: design sections 3 and 17.
"""

import asyncio
import os
import tempfile
from collections.abc import Coroutine
from pathlib import Path

import structlog
import uvloop
from granian.constants import HTTPModes, Interfaces
from granian.server.embed import Server

from outbox_api.api import Api, new_id
from outbox_api.application import InFlight, build
from outbox_api.directory import Directory
from outbox_api.request_keys import RequestKeys
from outbox_api.tool_call_log import ToolCallLog
from outbox_api.waiters import Waiters
from outbox_runtime import logs
from outbox_runtime.health import Health
from outbox_runtime.metrics import Metrics, MetricsServer
from outbox_runtime.postgres import AWAY, Pool, PostgresError, acquire, open_pool
from outbox_runtime.sealing import WrappingKey, WrongKey
from outbox_runtime.settings import ApiSettings, PostgresSettings, RedisSettings, TelemetrySettings, read_or_exit
from outbox_runtime.shutdown import stop_on_signals
from outbox_runtime.telemetry import Telemetry, setup
from outbox_runtime.wakeups import open_wakeups
from outbox_store.migrate import schema_version

log = structlog.stdlib.get_logger("outbox.api")

SERVICE = "outbox-api"
SCHEMA_LEAST = 1
"""The oldest schema this version runs on. Schemas only grow, so a newer one is fine (expand, then contract)."""

BIND_SECONDS = 0.1
STOP_SECONDS_MAX = 3.0
CALLERS_MAX = 4_096
"""Requests answered at once by one process; most of them wait, and a waiting caller costs a few kilobytes."""


def main() -> None:
    """Run one API process until SIGTERM or SIGINT."""
    settings = read_or_exit(ApiSettings)
    telemetry_settings = read_or_exit(TelemetrySettings)
    postgres_settings = read_or_exit(PostgresSettings)
    redis_settings = read_or_exit(RedisSettings)
    wrapping_key = _wrapping_key(settings)
    logs.configure(telemetry_settings.log_level, service=SERVICE)
    telemetry = setup(SERVICE)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(settings, wrapping_key, telemetry_settings, postgres_settings, redis_settings, telemetry))
    finally:
        telemetry.shutdown()


def _wrapping_key(settings: ApiSettings) -> WrappingKey:
    try:
        return WrappingKey.from_base64(settings.wrapping_key.get_secret_value())
    except WrongKey as wrong:
        raise SystemExit(f"OUTBOX_WRAPPING_KEY is wrong: {wrong}.") from None


async def _serve(
    settings: ApiSettings,
    wrapping_key: WrappingKey,
    telemetry_settings: TelemetrySettings,
    postgres_settings: PostgresSettings,
    redis_settings: RedisSettings,
    telemetry: Telemetry,
) -> None:
    stop = stop_on_signals()
    health, metrics = Health(), Metrics()
    server_of_metrics = MetricsServer(
        metrics,
        health,
        host=telemetry_settings.metrics_host,
        port=telemetry_settings.metrics_port,
        port_file=telemetry_settings.metrics_port_file,
    )
    try:
        pool = await open_pool(postgres_settings, application_name=SERVICE)
    except AWAY as error:
        raise SystemExit(f"Postgres did not answer in time ({type(error).__name__}); see OUTBOX_POSTGRES_URL.") from None
    except PostgresError as error:
        raise SystemExit(f"Postgres refused the connection ({type(error).__name__}); see OUTBOX_POSTGRES_URL.") from None
    try:
        await _see_schema(pool)
        wakeups = open_wakeups(redis_settings, postgres_settings, pool, application_name=SERVICE)
        api = Api(
            settings=settings,
            pool=pool,
            directory=Directory(pool, wrapping_key),
            waiters=Waiters(pool, callers_max=settings.waiting_callers_max),
            wakeups=wakeups,
            request_keys=RequestKeys(pool, new_id),
            tool_calls=ToolCallLog(pool),
            metrics=metrics,
            health=health,
            tracer=telemetry.tracer,
            lists=asyncio.Semaphore(settings.lists_at_once_max),
        )
        wakeups.subscribe_settled(api.waiters.tell)
        metrics.waiters.set_function(lambda: api.waiters.callers)
        try:
            await _run(api, stop)
        finally:
            await wakeups.aclose()
    finally:
        await _close(pool)
        server_of_metrics.close()


async def _run(api: Api, stop: asyncio.Event) -> None:
    """Serve until `stop` is set, then let those who wait be answered and write down what is left."""
    port = api.settings.port or await _free_port(api.settings.host)
    in_flight = InFlight(build(api))
    server = Server(
        in_flight,
        address=api.settings.host,
        port=port,
        interface=Interfaces.ASGINL,
        http=HTTPModes.auto,
        websockets=False,
        backlog=CALLERS_MAX,
        backpressure=CALLERS_MAX,
        log_enabled=False,
        log_access=False,
    )
    ended = asyncio.Event()
    written = asyncio.create_task(_until_ended(api.tool_calls.run(), stop))
    parts = [
        asyncio.create_task(_until_ended(part, stop))
        for part in (
            api.health.watch(),
            api.waiters.look_without_notices(ended),
            api.request_keys.renew(ended),
        )
    ]
    serving = asyncio.create_task(_until_ended(server.serve(), stop))
    try:
        # The server binds in a thread of its own and does not say when.
        await asyncio.sleep(BIND_SECONDS)
        if not stop.is_set():
            _write_port(api.settings.port_file, port)
            api.health.mark_ready()
            log.info("serving", host=api.settings.host, port=port)
        await stop.wait()
        api.health.mark_draining()
        api.waiters.drain()
        await in_flight.finished(seconds=api.settings.drain_seconds)
        server.stop()  # type: ignore[no-untyped-call]
        # Cancelled before it has let go of its socket it would complain.
        await asyncio.wait({serving}, timeout=STOP_SECONDS_MAX)
    finally:
        ended.set()
        api.tool_calls.close()
        await asyncio.gather(written, return_exceptions=True)
        for part in (*parts, serving):
            part.cancel()
        results = await asyncio.gather(*parts, serving, return_exceptions=True)
    if isinstance(results[-1], Exception):
        raise SystemExit(f"The API cannot listen on {api.settings.host}, port {port}.")
    for result in results:
        if isinstance(result, Exception):
            raise SystemExit(f"A part of the API failed: {type(result).__name__}.")


async def _until_ended(part: Coroutine[object, object, None], stop: asyncio.Event) -> None:
    """Run a part of the process; one that fails ends the process, because half of it would look like all of it."""
    try:
        await part
    except Exception as error:
        log.error("part-failed", exc_info=error)
        stop.set()
        raise


async def _see_schema(pool: Pool) -> None:
    async with acquire(pool) as connection:
        version = await schema_version(connection)
    if version < SCHEMA_LEAST:
        raise SystemExit(f"The database has schema {version}; this version needs {SCHEMA_LEAST} or newer. Run `outbox migrate`.")


async def _close(pool: Pool) -> None:
    try:
        await asyncio.wait_for(pool.close(), timeout=5.0)
    except TimeoutError:
        pool.terminate()


async def _free_port(host: str) -> int:
    """A port that is free at this moment, for a process that was told to take any."""
    server = await asyncio.get_running_loop().create_server(asyncio.Protocol, host, 0, start_serving=False)
    try:
        return int(server.sockets[0].getsockname()[1])
    finally:
        server.close()


def _write_port(path: Path | None, port: int) -> None:
    """Say which port was taken; a reader sees all of it or nothing."""
    if path is None:
        return
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(descriptor, "w") as file:
        file.write(str(port))
    Path(name).replace(path)
