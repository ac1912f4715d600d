"""A person says that nothing was lost when an epoch began, so that keys first seen are new again (design section 4, Epoch).

It speaks for the environment of the person's key alone: other organizations share the database, not the judgement, and a key of a
sandbox says nothing of live effects. What is in doubt already stays so
and is answered as any doubt is.
"""

from dataclasses import dataclass

from outbox_api.bodies import read_members, read_reason, refuse
from outbox_domain.capability import Capability
from outbox_domain.errors import OutboxError
from outbox_domain.scoped_key import ScopedKey
from outbox_runtime.postgres import Pool, acquire, transaction
from outbox_store import epochs
from outbox_store.epochs import EpochView

MEMBERS = ("epoch", "reason")


@dataclass(frozen=True, kw_only=True)
class Clearance:
    """What a person says.

    Attributes:
        epoch: the number that was looked at; a newer one is not cleared by this.
        reason: why nothing was lost, in a sentence.
    """

    epoch: int
    reason: str


def read_clearance(body: object) -> Clearance:
    """A clearance from the body of a request.

    Raises:
        OutboxError: `invalid-request` with the member at fault.
    """
    document = read_members(body, MEMBERS)
    number = document.get("epoch")
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        refuse("$.epoch", "the number of the newest epoch")
    return Clearance(epoch=number, reason=read_reason(document))


async def show_epoch(pool: Pool, key: ScopedKey) -> EpochView:
    """The newest epoch as the key's environment sees it.

    Raises:
        OutboxError: `out-of-scope`.
    """
    key.require(Capability.READ_ALL)
    async with acquire(pool) as connection:
        return await epochs.current(connection, key.organization_id, key.environment_id)


async def clear_epoch(pool: Pool, key: ScopedKey, clearance: Clearance) -> EpochView:
    """Clear the newest epoch for the key's environment; once cleared it stays so, and saying it again changes nothing.

    Raises:
        OutboxError: `out-of-scope`, for a key that is bound to less than an environment too; `invalid-request` where another
            epoch is the newest.
    """
    key.require(Capability.CLEAR_EPOCHS)
    if key.project is not None or key.run is not None or key.providers is not None or key.tools is not None:
        detail = "An epoch is cleared by keys that are bound to an environment and to nothing narrower."
        raise OutboxError("out-of-scope", detail, dimension="environment")
    async with transaction(pool) as tx:
        before = await epochs.current(tx, key.organization_id, key.environment_id)
        if before.number != clearance.epoch:
            refuse("$.epoch", f"{before.number}, which is the newest epoch")
        await epochs.clear(
            tx,
            key.organization_id,
            key.environment_id,
            clearance.epoch,
            actor_chain=list(key.actor_chain),
            reason=clearance.reason,
        )
        return await epochs.current(tx, key.organization_id, key.environment_id)
