"""What attempts tell the breaker of their connection, and how long it holds others back.

Nothing here decides over an effect: a breaker that could not be written costs a provider some requests (ADR 0012).
"""

import random
from uuid import UUID

import structlog

from outbox_domain.reservation import Outcome
from outbox_runtime.postgres import AWAY, PostgresError, acquire
from outbox_store import breakers
from outbox_store.breakers import Trial
from outbox_store.claim import Claimed
from outbox_store.connection import Connection
from outbox_store.sweep import postpone
from outbox_worker.worker import Worker

log = structlog.get_logger(__name__)

HELD_SECONDS = (30.0, 60.0)
"""What waits for its first sending is looked at again so much later; a trial and the closing of the breaker bring it forward."""

HELD_RESEND_SECONDS = (5.0, 10.0)
"""A doubt that waits to be sent again has nobody who brings it forward."""

_NOT_WRITTEN: tuple[type[BaseException], ...] = (*AWAY, PostgresError)


async def hold(connection: Connection, organization_id: UUID, reservation_id: UUID, *, resend: bool) -> None:
    """Let what met an open breaker wait; spread, so that what is held does not come back all at once."""
    seconds = random.SystemRandom().uniform(*(HELD_RESEND_SECONDS if resend else HELD_SECONDS))
    await postpone(connection, organization_id, reservation_id, seconds=seconds)


async def note(worker: Worker, attempt: Claimed, outcome: Outcome, *, cause: str) -> None:
    """Tell the breaker what an attempt came to, where that is of interest to it.

    Args:
        worker: what this process has.
        attempt: settled.
        outcome: of it.
        cause: our own words.
    """
    met_nobody = outcome in (Outcome.UNKNOWN, Outcome.UNSENT)
    if not attempt.trial and outcome is not Outcome.UNKNOWN:
        return
    trial = Trial(
        organization_id=attempt.organization_id, connection_id=attempt.connection_id, reservation_id=attempt.reservation_id
    )
    try:
        async with acquire(worker.pool) as connection:
            if attempt.trial and met_nobody:
                await breakers.trial_failed(connection, trial, cause=cause)
                log.warning("breaker-stays-open", connection_id=str(attempt.connection_id), cause=cause)
            elif attempt.trial:
                released = await breakers.trial_answered(connection, trial)
                log.info("breaker-closed", connection_id=str(attempt.connection_id), released=released)
            elif await breakers.open_after_unknowns(connection, attempt.organization_id, attempt.connection_id, cause=cause):
                worker.metrics.breaker_openings.inc()
                log.warning("breaker-opened", connection_id=str(attempt.connection_id), cause=cause)
    except _NOT_WRITTEN as error:
        log.warning("breaker-not-written", connection_id=str(attempt.connection_id), error=type(error).__name__)


async def pass_on(connection: Connection, organization_id: UUID, reservation_id: UUID) -> None:
    """What was not sent is nobody's trial: another one may be."""
    await breakers.pass_on(connection, organization_id, reservation_id)
