"""What a tool call would come to. Writes nothing: no reservation, no run, no row of `tool_calls`, no ledger entry."""

from outbox_api.answers import Answer, Facts, encode, reservation_url, skeleton
from outbox_api.reserve import (
    OCCURRENCES_MAX,
    Refused,
    Reserver,
    Wanted,
    barred,
    conflict,
    contradiction,
    is_over,
    row_of,
    same_effect,
    want,
)
from outbox_domain.capability import Capability
from outbox_domain.decision import decide, refusal
from outbox_domain.errors import OutboxError, Retry
from outbox_domain.scoped_key import ScopedKey
from outbox_domain.tool_call import ToolCall
from outbox_runtime.postgres import acquire
from outbox_store import reserve as store
from outbox_store.reserve import Barred, Contradicted, Held, Won


async def resolve(of: Reserver, key: ScopedKey, call: ToolCall) -> Answer:
    """Say what a tool call would come to.

    Args:
        of: what this process has.
        key: an admin's; what would happen may say more than an agent may know.
        call: what would be asked for.

    Returns:
        The skeleton without any effect: the state of the live holder, or null where the call would be reserved.

    Raises:
        OutboxError, Refused: as the call itself would be refused.
    """
    key.require(Capability.RESOLVE)
    wanted = await want(of, key, call)
    environment = await of.directory.environment(key)
    occurrence, repeated = call.occurrence, False
    for _ in range(OCCURRENCES_MAX):
        decided = decide(
            environment=environment.name,
            default_decision=environment.default_decision,
            occurrence=occurrence,
            repeated=repeated,
        )
        async with acquire(of.pool) as connection:
            [verdict] = await store.holders(connection, [row_of(of, wanted, occurrence)])
        match verdict:
            case Held() if is_over(wanted.identity, verdict):
                occurrence, repeated = occurrence + 1, True
            case Held():
                return await _held(of, wanted, verdict)
            case Contradicted():
                raise Refused(contradiction(verdict), wanted.facts(verdict.reservation_id))
            case Barred() if decided.allows:
                raise Refused(barred(verdict), wanted.facts())
            case None | Won() | Barred():
                if not decided.allows:
                    error = refusal(decided, tool=wanted.contract.tool, connection=wanted.connection.name)
                    raise Refused(error, wanted.facts())
                return _answer("It would be reserved and sent; this request did neither.", wanted.facts(), Retry(action="none"))
            case _:
                raise AssertionError("a read finds a holder, a contradiction or nothing")
    raise OutboxError("invalid-request", "The call was repeated too often to say what would become of it.")


async def _held(of: Reserver, wanted: Wanted, held: Held) -> Answer:
    fields = await same_effect(of, wanted, held)
    if fields is not None:
        raise Refused(await conflict(of, wanted, held, fields), wanted.facts(held.id, held.state))
    return _answer(
        "It would join what holds its operation key; this request sent nothing.",
        wanted.facts(held.id, held.state),
        Retry(action="none", url=reservation_url(held.id)),
    )


def _answer(message: str, facts: Facts, retry: Retry) -> Answer:
    document = skeleton(message=message, is_error=False, retry=retry, facts=facts)
    return Answer(status=200, body=encode(document), code="resolved", state=facts.state, reservation_id=facts.reservation_id)
