"""A person says what is true where proof of an effect contradicts a closed reservation (design section 4, rules of doubt).

*It happened*: the effect stands. Whoever asks for the operation again is told so, by a receipt, and nothing is sent. *It did
not happen*: nothing of it stands, because the proof was wrong or somebody has undone it; the operation key is free. This does
not count while something may still be on its way.
"""

import math
from collections.abc import Callable
from uuid import UUID

from outbox_api.answer_doubt import DoubtAnswer, reaches, refused
from outbox_api.bodies import refuse
from outbox_api.directory import Directory
from outbox_api.errors import unavailable
from outbox_domain import messages
from outbox_domain.capability import Capability
from outbox_domain.errors import OutboxError, Retry
from outbox_domain.recovery import settle_seconds
from outbox_domain.reservation import State
from outbox_domain.scoped_key import ScopedKey
from outbox_runtime.postgres import Pool, acquire, transaction
from outbox_store import contradictions, reservations
from outbox_store.contradictions import Examined
from outbox_store.doubts import hold

MEMBERS = ("as", "external_reference", "reason", "evidence")

HELD_SECONDS = 30.0
"""When to try again while another reservation of the operation is open."""


async def close_contradiction(
    pool: Pool, directory: Directory, key: ScopedKey, reservation_id: UUID, answer: DoubtAnswer, new_id: Callable[[], UUID]
) -> UUID:
    """Close what contradicts a reservation as a person says.

    Args:
        pool: of this process.
        directory: knows the contract, which says how long something may be on its way.
        key: the person's; its actor chain stands in the ledger entries.
        reservation_id: of the reservation that is contradicted.
        answer: what the person says; there is no recovery that it could override.
        new_id: makes the ids of the receipt and of the reservation that has it.

    Returns:
        The reservation that tells of the effect, with its receipt; the contradicted one where nothing happened.

    Raises:
        OutboxError, Refused: `out-of-scope`, `not-found`, `not-contradicted`, `absence-too-early` or `operation-open`; nothing
            was changed.
    """
    key.require(Capability.RESOLVE_DOUBTS)
    said = Examined(
        organization_id=key.organization_id,
        reservation_id=reservation_id,
        happened=answer.happened,
        external_reference=answer.external_reference,
        actor_chain=list(key.actor_chain),
        reason=answer.reason,
        evidence=[
            {
                "kind": "person",
                "detail": {"by": key.actor_chain[-1], "reason": answer.reason, "evidence": answer.evidence},
            }
        ],
    )
    settles_in = await _settle_seconds(pool, directory, key, reservation_id)
    async with transaction(pool) as tx:
        standing = await hold(tx, key.organization_id, reservation_id)
        if standing is None or not reaches(key, standing):
            raise OutboxError("not-found", "There is nothing under this address that this key reaches.")
        found = await contradictions.open_of(tx, key.organization_id, reservation_id)
        if found is None:
            raise refused(_not_contradicted(), standing)
        if not answer.happened:
            if found.last_seconds < settles_in:
                raise refused(_too_early(settles_in - found.last_seconds), standing)
            await contradictions.close(tx, said, told_by=None)
            return reservation_id
        holder = await contradictions.keep(tx, said, id=new_id(), receipt_id=new_id())
        if holder is None:
            refuse("$.as", "did-not-happen: nothing of this reservation was ever sent")
        if holder.state is not State.SUCCEEDED:
            raise refused(_operation_open(holder.id, holder.state), standing)
        await contradictions.close(tx, said, told_by=holder.id)
        return holder.id


async def _settle_seconds(pool: Pool, directory: Directory, key: ScopedKey, reservation_id: UUID) -> float:
    """How long something of it may still be on its way once proof or a late write of it was told."""
    async with acquire(pool) as connection:
        view = await reservations.view(connection, key.organization_id, reservation_id)
    if view is None:
        raise OutboxError("not-found", "There is nothing under this address that this key reaches.")
    contract = await directory.contract(key.organization_id, view.tool, view.contract_version)
    if contract is None:
        raise unavailable()
    return settle_seconds(contract)


def _too_early(seconds: float) -> OutboxError:
    detail = f"What was sent may still take effect. That it did not happen counts in {math.ceil(seconds)} s; that it did, now."
    return OutboxError("absence-too-early", detail, retry=Retry(action="wait", after_seconds=seconds))


def _not_contradicted() -> OutboxError:
    return OutboxError(
        "not-contradicted", "Nothing contradicts this reservation, or somebody has closed it; nothing was changed."
    )


def _operation_open(id: UUID, state: State) -> OutboxError:
    return OutboxError(
        "operation-open",
        f"Reservation {id} of the same operation is {state}. Say this once that one has ended; a doubt of it is ended first.",
        message=messages.contradicted(),
        retry=Retry(action="wait", after_seconds=HELD_SECONDS),
        open_reservation_id=id,
    )
