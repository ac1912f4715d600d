"""The worker process: settings, stores, the doorbell, the sweep, and an orderly end."""

import asyncio
import os
import time

import structlog
import uvloop

from outbox_domain.ids import RANDOM_BYTES, uuid7
from outbox_runtime import logs, telemetry
from outbox_runtime.health import Health
from outbox_runtime.marks import Marks
from outbox_runtime.metrics import Metrics, MetricsServer
from outbox_runtime.postgres import AWAY, Pool, acquire, open_pool
from outbox_runtime.sealing import WrappingKey, read_private_key
from outbox_runtime.settings import PostgresSettings, RedisSettings, TelemetrySettings, WorkerSettings, read_or_exit
from outbox_runtime.shutdown import stop_on_signals
from outbox_runtime.wakeups import Doorbell, open_wakeups
from outbox_store.migrate import MigrationRefused, require_schema
from outbox_worker.contracts import Contracts
from outbox_worker.epoch import EpochWatch
from outbox_worker.keyring import Keyring
from outbox_worker.sweep import Sweep
from outbox_worker.transport import Transport
from outbox_worker.worker import Worker, name_of_this_process

log = structlog.get_logger(__name__)

SERVICE = "outbox-worker"


def main() -> None:
    """Run until SIGTERM or SIGINT; what was sent by then is given its time to be settled."""
    settings = read_or_exit(WorkerSettings)
    postgres = read_or_exit(PostgresSettings)
    redis = read_or_exit(RedisSettings)
    observed = read_or_exit(TelemetrySettings)
    logs.configure(observed.log_level, service=SERVICE)
    uvloop.run(_run(settings, postgres, redis, observed))


async def _run(settings: WorkerSettings, postgres: PostgresSettings, redis: RedisSettings, observed: TelemetrySettings) -> None:
    stop = stop_on_signals()
    tracing = telemetry.setup(SERVICE)
    health = Health()
    metrics = Metrics()
    server = MetricsServer(
        metrics, health, host=observed.metrics_host, port=observed.metrics_port, port_file=observed.metrics_port_file
    )
    beating = asyncio.create_task(health.watch())
    try:
        pool = await open_pool(postgres, application_name=SERVICE)
        await _require_schema(pool)
        wakeups = open_wakeups(redis, postgres, pool, application_name=SERVICE)
        transport = Transport(answer_bytes_max=settings.answer_bytes_max)
        name, contracts, marks = name_of_this_process(), Contracts(pool), _open_marks(settings, redis)
        epoch = EpochWatch(pool=pool, marks=marks, contracts=contracts, settings=settings, metrics=metrics, name=name)
        worker = Worker(
            name=name,
            pool=pool,
            transport=transport,
            keyring=Keyring(
                pool,
                WrappingKey.from_base64(settings.wrapping_key.get_secret_value()),
                read_private_key(settings.worker_private_key.get_secret_value().encode()),
            ),
            contracts=contracts,
            epoch=epoch,
            wakeups=wakeups,
            settings=settings,
            metrics=metrics,
            tracer=tracing.tracer,
            new_id=lambda: uuid7(time.time_ns() // 1_000_000, os.urandom(RANDOM_BYTES)),
        )
        sweep = Sweep(worker)
        doorbell = Doorbell(redis, postgres, pool, sweep.ring, accepting=lambda: sweep.accepting)
        watching = asyncio.create_task(epoch.run(stop))
        ringing = asyncio.create_task(doorbell.run(stop))
        health.mark_ready()
        log.info("ready", name=worker.name, slots=settings.worker_slots)
        await sweep.run(stop)
        health.mark_draining()
        await ringing
        await watching
        await wakeups.aclose()
        await transport.aclose()
        await marks.aclose()
        await pool.close()
    finally:
        beating.cancel()
        server.close()
        await asyncio.to_thread(tracing.shutdown)
    log.info("ended")


def _open_marks(settings: WorkerSettings, redis: RedisSettings) -> Marks:
    try:
        return Marks(redis, settings.state_folder)
    except OSError as error:
        raise SystemExit(f"OUTBOX_STATE_FOLDER is wrong: {error.strerror or error}.") from None


async def _require_schema(pool: Pool) -> None:
    """Stop with a sentence on a schema that this version cannot work on."""
    while True:
        try:
            async with acquire(pool) as connection:
                await require_schema(connection)
        except MigrationRefused as error:
            raise SystemExit(f"{SERVICE}: {error}") from None
        except AWAY as error:
            log.info("postgres-awaited", error=type(error).__name__)
            await asyncio.sleep(0.2)
        else:
            return
