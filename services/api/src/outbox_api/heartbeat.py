"""Keeping the lease of a client's attempt alive while its handler runs."""

from uuid import UUID

from outbox_api.answers import facts_of
from outbox_api.api import Api
from outbox_api.reserve import Refused
from outbox_api.settle_client import attempt_unknown, client_executed, own_attempt
from outbox_domain.errors import OutboxError
from outbox_domain.scoped_key import ScopedKey
from outbox_runtime.postgres import acquire
from outbox_store import client_attempts
from outbox_store.client_attempts import Lease


async def heartbeat(api: Api, key: ScopedKey, reservation_id: UUID, attempt_id: UUID) -> Lease:
    """Extend the lease of an open attempt, never past its handler's time limit or what its provider key is good for.

    Args:
        api: what this process has.
        key: the client's; the attempt must be its actor's.
        reservation_id: whose attempt it is.
        attempt_id: the attempt.

    Raises:
        OutboxError, Refused: `out-of-scope`, `not-found`, `not-client-executed`, `attempt-unknown`, `lease-lost`.
    """
    view = await client_executed(api, key, reservation_id)
    if await own_attempt(api, key, view, attempt_id) is None:
        raise Refused(attempt_unknown(), facts_of(view))
    contract = await api.directory.contract(key.organization_id, view.tool, view.contract_version)
    window = None if contract is None or contract.resend is None else contract.resend.within.total_seconds()
    async with acquire(api.pool) as connection:
        lease = await client_attempts.renew(
            connection,
            key.organization_id,
            reservation_id,
            attempt_id,
            key.actor_id,
            margin_seconds=api.settings.client_margin_seconds,
            window_seconds=window,
        )
    if lease is None:
        raise Refused(
            OutboxError(
                "lease-lost",
                "The attempt is closed or its lease is over. Stop, and settle what is known: a success counts however late.",
            ),
            facts_of(view),
        )
    return lease
