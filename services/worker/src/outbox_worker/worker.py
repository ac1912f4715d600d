"""What a worker process has: its stores, its way to providers, its keys and its limits."""

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from opentelemetry.trace import Tracer

from outbox_runtime.metrics import Metrics
from outbox_runtime.postgres import Pool
from outbox_runtime.settings import WorkerSettings
from outbox_runtime.wakeups import Wakeups
from outbox_worker.contracts import Contracts
from outbox_worker.epoch import EpochWatch
from outbox_worker.keyring import Keyring
from outbox_worker.transport import Transport


def name_of_this_process() -> str:
    """Names the process in attempts and logs; it identifies nothing, attempts are compared by UUID."""
    return f"{platform.node()[:40]}:{os.getpid()}"


@dataclass(frozen=True, kw_only=True)
class Worker:
    """What the use cases of a worker are handed.

    Attributes:
        name: of the process, for people.
        epoch: knows whether the ledger is the one that is remembered; without that nothing is claimed.
        new_id: makes a UUIDv7.
    """

    name: str
    pool: Pool
    transport: Transport
    keyring: Keyring
    contracts: Contracts
    epoch: EpochWatch
    wakeups: Wakeups
    settings: WorkerSettings
    metrics: Metrics
    tracer: Tracer
    new_id: Callable[[], UUID]
