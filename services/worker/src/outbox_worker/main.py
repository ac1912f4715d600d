"""The worker process: settings, stores, the doorbell, the sweep, and an orderly end."""

import asyncio
import os
import signal
import time

import structlog

from outbox_domain.ids import uuid7
from outbox_runtime import logs, metrics, telemetry
from outbox_runtime.health import Health
from outbox_runtime.postgres import open_pool
from outbox_runtime.sealing import WrappingKey, read_private_key
from outbox_runtime.settings import PostgresSettings, RedisSettings, TelemetrySettings, WorkerSettings, read_or_exit
from outbox_runtime.shutdown import stop_on_signals
from outbox_runtime.wakeups import Doorbell, open_wakeups
from outbox_worker.contracts import Contracts
from outbox_worker.keyring import Keyring
from outbox_worker.sweep import Sweep
from outbox_worker.transport import Transport
from outbox_worker.worker import Worker, name_of_this_process

log = structlog.get_logger(__name__)

SERVICE = "outbox-worker"
