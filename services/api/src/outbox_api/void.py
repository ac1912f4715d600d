"""Withdrawing what a client wanted and did not do."""

from dataclasses import replace
from uuid import UUID

from outbox_api.answers import facts_of
from outbox_api.api import Api
from outbox_api.reserve import Refused
from outbox_api.settle_client import client_executed, settle_client
from outbox_domain.client_call import ClientSettlement
from outbox_domain.errors import OutboxError
from outbox_domain.reservation import Outcome, State
from outbox_domain.scoped_key import ScopedKey
from outbox_runtime.postgres import acquire
from outbox_store import reservations
from outbox_store.reservations import ReservationView
from outbox_store.withdraw import withdraw

REASON_DEFAULT = "withdrawn"


async def void(api: Api, key: ScopedKey, reservation_id: UUID, attempt_id: UUID | None, reason: str | None) -> ReservationView:
    """Withdraw a client-executed effect: with its open attempt as never sent, else while nobody holds it.

    Args:
        api: what this process has.
        key: the client's.
        reservation_id: what is withdrawn.
        attempt_id: the attempt that the client holds; None: it holds none.
        reason: a few plain words.

    Returns:
        The reservation as it stands now; what is withdrawn already is answered alike.

    Raises:
        OutboxError, Refused: as `settle_client`; `not-withdrawable`.
    """
    if attempt_id is not None:
        unsent = ClientSettlement(attempt_id=attempt_id, outcome=Outcome.UNSENT, reason=reason or REASON_DEFAULT)
        return await settle_client(api, key, reservation_id, unsent)
    view = await client_executed(api, key, reservation_id)
    async with acquire(api.pool) as connection:
        withdrawn = await withdraw(
            connection,
            [(key.organization_id, reservation_id)],
            reason=reason or REASON_DEFAULT,
            late_only=False,
            actor_chain=list(key.actor_chain),
        )
        now = await reservations.view(connection, key.organization_id, reservation_id)
    if now is None:
        raise OutboxError("not-found", "The reservation is gone.")
    if withdrawn:
        await api.wakeups.announce([reservation_id])
    elif now.state is not State.VOIDED:
        detail = (
            f"The reservation is {now.state}. Only who holds its attempt withdraws what is under way; what is in doubt stays so."
        )
        raise Refused(OutboxError("not-withdrawable", detail), replace(facts_of(view), state=now.state))
    return now
