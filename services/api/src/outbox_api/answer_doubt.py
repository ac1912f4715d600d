"""A person's answer to a doubt: it happened, or it did not (design section 4, rules of doubt; `interfaces.md` section 3).

*It happened* is taken at any time, with the provider's own name of the effect. *It did not happen* counts only once nothing can
be on its way any more, and while automatic recovery has something left to try it needs an override. The row is held while that is
judged, so recovery cannot take a step in between: whoever answers has claimed the recovery first.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from outbox_api.answers import Facts
from outbox_api.bodies import read_flag, read_members, read_reason, read_text, refuse
from outbox_api.errors import unavailable
from outbox_api.reserve import Refused
from outbox_domain import messages
from outbox_domain.capability import Capability
from outbox_domain.errors import OutboxError, Retry
from outbox_domain.reservation import State
from outbox_domain.scoped_key import ScopedKey
from outbox_runtime.postgres import Pool, transaction
from outbox_store.batches import Failed
from outbox_store.claim import TRIES_MAX
from outbox_store.doubts import Standing, hold
from outbox_store.resolve import Resolution, resolve

HAPPENED, DID_NOT_HAPPEN = "happened", "did-not-happen"
EVIDENCE_CHARACTERS_MAX = 2_000
REFERENCE_BYTES_MAX = 1_000
"""As the table of receipts keeps it."""


@dataclass(frozen=True, kw_only=True)
class DoubtAnswer:
    """What a person says of one effect.

    Attributes:
        happened: whether it exists.
        external_reference: the provider's name of it; exactly where it happened.
        reason: why the person says so, in a sentence.
        evidence: what was seen: an address, a ticket, what the provider's support wrote.
        override: answer although automatic recovery has something left to try.
        batch_id: of the bulk answer that this is part of.
    """

    happened: bool
    external_reference: str | None
    reason: str
    evidence: str | None
    override: bool
    batch_id: UUID | None = None


MEMBERS = ("as", "external_reference", "reason", "evidence", "override", "batch_id")


def read_answer(body: object, members: tuple[str, ...] = MEMBERS) -> DoubtAnswer:
    """A person's answer from the body of a request.

    Args:
        body: as it was parsed.
        members: which it may have.

    Raises:
        OutboxError: `invalid-request` with the member at fault.
    """
    document = read_members(body, members, named=("as", "reason", "evidence"))
    happened = read_verdict(document)
    reference = read_text(document, "external_reference", bytes_max=REFERENCE_BYTES_MAX)
    if happened and reference is None:
        refuse("$.external_reference", "the provider's name of what happened, 1 to 1000 bytes")
    if not happened and reference is not None:
        refuse("$.external_reference", "nothing: what did not happen has no reference")
    reason, evidence = read_reason(document), read_text(document, "evidence", characters_max=EVIDENCE_CHARACTERS_MAX)
    if evidence is None:
        refuse("$.evidence", f"what was seen, at most {EVIDENCE_CHARACTERS_MAX} characters")
    return DoubtAnswer(
        happened=happened,
        external_reference=reference,
        reason=reason,
        evidence=evidence,
        override=read_flag(document, "override"),
        batch_id=read_batch_id(document),
    )


async def answer_doubt(
    pool: Pool, key: ScopedKey, reservation_id: UUID, answer: DoubtAnswer, new_id: Callable[[], UUID]
) -> Literal["settled", "known"]:
    """Settle a doubt as a person says.

    Args:
        pool: of this process.
        key: the person's; its actor chain stands in the ledger entry.
        reservation_id: whose doubt it is.
        answer: what the person says.
        new_id: makes the receipt's id.

    Returns:
        `known` where the receipt says so already and nothing was changed.

    Raises:
        OutboxError, Refused: `out-of-scope`, `not-found`, `not-in-doubt`, `absence-too-early` or `recovery-due`; nothing was
            changed.
    """
    key.require(Capability.RESOLVE_DOUBTS)
    async with transaction(pool) as tx:
        standing = await hold(tx, key.organization_id, reservation_id)
        if standing is None or not reaches(key, standing):
            raise OutboxError("not-found", "There is nothing under this address that this key reaches.")
        if answer.happened and standing.state is State.SUCCEEDED and standing.external_reference == answer.external_reference:
            return "known"
        _judge(standing, answer)
        [resolved] = await resolve(tx, [_resolution(key, standing, answer, new_id())], tries_max=TRIES_MAX)
        if isinstance(resolved, Failed):
            raise resolved.error
        if resolved.verdict == "too-early":
            # It was not, a moment ago: this Postgres has not been compared with what is known of the ledger yet.
            raise refused(unavailable(), standing)
        if resolved.verdict != "settled":
            # The row was held since it was judged, so nothing else can be right; leaving the block undoes all of it.
            raise RuntimeError(f"a person's answer to the doubt {reservation_id} came to {resolved.verdict}")
    return "settled"


def reaches(key: ScopedKey, standing: Standing) -> bool:
    """Whether a reservation is among those that a person's key may speak of."""
    return (
        standing.environment_id == key.environment_id
        and key.reaches(standing.tool, standing.provider)
        and (key.project is None or key.project == standing.project)
        and (key.run is None or key.run == standing.run)
    )


def _judge(standing: Standing, answer: DoubtAnswer) -> None:
    """Refuse an answer that the rules of doubt do not take."""
    if answer.happened:
        sent = standing.state is State.RESERVED and standing.last_attempt_id is not None
        if standing.state not in (State.EXECUTING, State.IN_DOUBT) and not sent:
            raise refused(_not_in_doubt(standing), standing)
        return
    if standing.state is not State.IN_DOUBT:
        raise refused(_not_in_doubt(standing), standing)
    if standing.absence_counts_seconds:
        raise refused(_too_early(standing), standing)
    if standing.recovery_due and not answer.override:
        raise refused(_still_due(standing), standing)


def refused(error: OutboxError, standing: Standing) -> Refused:
    """A problem with where the reservation stands."""
    return Refused(error, Facts(reservation_id=standing.id, state=standing.state))


def _too_early(standing: Standing) -> OutboxError:
    counts_at = "a time that is not known" if standing.absence_counts_at is None else messages.moment(standing.absence_counts_at)
    return OutboxError(
        "absence-too-early",
        f"What was sent may still take effect. That it did not happen counts from {counts_at} on; that it did counts now.",
        retry=Retry(action="wait", after_seconds=standing.absence_counts_seconds),
        absence_counts_at=standing.absence_counts_at,
    )


def _still_due(standing: Standing) -> OutboxError:
    return OutboxError(
        "recovery-due",
        "Automatic recovery has something left to try. Wait for it, or answer with `override` and evidence.",
        retry=Retry(action="wait", after_seconds=standing.next_check_seconds),
        next_check=standing.next_check,
    )


def _not_in_doubt(standing: Standing) -> OutboxError:
    detail = f"The reservation is {standing.state}; there is no doubt to answer, and nothing was changed."
    return OutboxError("not-in-doubt", detail)


def _resolution(key: ScopedKey, standing: Standing, answer: DoubtAnswer, receipt_id: UUID) -> Resolution:
    said: dict[str, object] = {
        "by": key.actor_chain[-1],
        "reason": answer.reason,
        "evidence": answer.evidence,
        "override": answer.override or None,
        "batch_id": answer.batch_id,
    }
    return Resolution(
        organization_id=key.organization_id,
        reservation_id=standing.id,
        attempt_id=None if answer.happened else standing.last_attempt_id,
        happened=answer.happened,
        by="person",
        asked_at=None,
        absences_needed=1,
        then="fail",
        again_seconds=0.0,
        receipt_id=receipt_id,
        provider=standing.provider,
        external_reference=answer.external_reference,
        provider_request_id=None,
        evidence=[{"kind": "person", "detail": {name: value for name, value in said.items() if value is not None}}],
        sealed_result=None,
        said_by=list(key.actor_chain),
        reason=answer.reason,
    )


def read_verdict(document: dict[str, object]) -> bool:
    """Whether a person says that it happened."""
    word = document.get("as")
    if word not in (HAPPENED, DID_NOT_HAPPEN):
        refuse("$.as", f"{HAPPENED} or {DID_NOT_HAPPEN}")
    return word == HAPPENED


def read_batch_id(document: dict[str, object]) -> UUID | None:
    """The bulk answer that an answer is part of, where its author counts several requests as one."""
    value = document.get("batch_id")
    if value is None:
        return None
    try:
        return UUID(str(value))
    except ValueError:
        refuse("$.batch_id", "a UUID")
