"""A client looks for the effect of an attempt in doubt, as a worker's look-up would: begun before it asks, answered afterwards.

*It is there* settles the doubt at any time. *It is not* counts only when the probe was begun after `absence_counts_at`, about
the newest attempt, and not right after another one that counted; so many of them prove that nothing happened
(`outbox_store.resolve`). A look of ours proves what it finds; a client's is its word, so that its receipt is asserted. Only who
asked for the effect and was told to look is heard.
"""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from outbox_api.answers import facts_of
from outbox_api.api import Api, new_id
from outbox_api.errors import unavailable
from outbox_api.reserve import Refused
from outbox_api.settle_client import client_executed
from outbox_domain.contract import LookupRule, ToolContract
from outbox_domain.errors import OutboxError, invalid
from outbox_domain.recovery import AFTER_THE_TIME_SECONDS, between_absences_seconds, probe_of
from outbox_domain.reservation import State
from outbox_domain.scoped_key import ScopedKey
from outbox_providers.reading import project
from outbox_runtime.postgres import acquire, transaction
from outbox_runtime.vault import Vault
from outbox_store import probes, reservations
from outbox_store.batches import Failed
from outbox_store.claim import TRIES_MAX
from outbox_store.doubts import hold
from outbox_store.probes import Begun, Probe
from outbox_store.reservations import ReservationView
from outbox_store.resolve import Resolution, Resolved, resolve


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a client saw.

    Attributes:
        exists: whether the effect is there.
        external_reference: the provider's name of it; None: it stands in the result where the contract says, or nowhere.
        result: what was seen of it; any JSON value.
        has_result: whether there was one.
    """

    exists: bool
    external_reference: str | None = None
    result: Any = None
    has_result: bool = False


@dataclass(frozen=True, kw_only=True)
class Looked:
    """What a probe came to.

    Attributes:
        verdict: as `outbox_store.resolve` says it.
        again_seconds: when to begin the next one; None: none is needed.
    """

    view: ReservationView
    verdict: str
    again_seconds: float | None


async def begin_probe(api: Api, key: ScopedKey, reservation_id: UUID, attempt_id: UUID) -> Begun:
    """Begin a probe about the newest attempt of a doubt; the provider is asked afterwards.

    Raises:
        OutboxError, Refused: `out-of-scope`, `not-found`, `not-client-executed`, `not-probed`.
    """
    view = await client_executed(api, key, reservation_id)
    await _rule(api, key, view)
    async with acquire(api.pool) as connection:
        begun = await probes.begin(connection, key.organization_id, reservation_id, new_id(), attempt_id, key.actor_id)
    if begun is None:
        raise Refused(
            _not_probed(
                "It is not in doubt, the doubt is about another attempt by now, or this key's actor was not asked to look."
            ),
            facts_of(view),
        )
    return begun


async def answer_probe(api: Api, key: ScopedKey, reservation_id: UUID, probe_id: UUID, seen: Found) -> Looked:
    """Say what a probe found.

    Args:
        api: what this process has.
        key: the client's; the probe must be its actor's.
        reservation_id: whose doubt it is.
        probe_id: the probe.
        seen: what was found.

    Returns:
        What came of it; the same answer again changes nothing and is answered alike.

    Raises:
        OutboxError, Refused: as `begin_probe`; `outcome-differs` where the probe was answered otherwise before.
    """
    view = await client_executed(api, key, reservation_id)
    contract, rule = await _rule(api, key, view)
    vault = await api.directory.vault(key.organization_id)
    between = between_absences_seconds(rule)
    changed = False
    async with transaction(api.pool) as tx:
        # Held while it is judged: no absence is counted twice, and no attempt is opened in between.
        await hold(tx, key.organization_id, reservation_id)
        probe = await probes.find(tx, key.organization_id, reservation_id, probe_id)
        if probe is None or probe.actor_id != key.actor_id:
            detail = "There is no probe of this id that this key's actor began, or it has begun many since: begin another one."
            raise Refused(_not_probed(detail), facts_of(view))
        if probe.found is not None and probe.found != seen.exists:
            detail = "This probe was answered otherwise before. Nothing was changed."
            raise Refused(OutboxError("outcome-differs", detail), facts_of(view))
        verdict = probe.verdict
        if verdict is None:
            resolution = _resolution(key, view, contract, rule, vault, probe, seen)
            [resolved] = await resolve(tx, [resolution], tries_max=TRIES_MAX)
            if isinstance(resolved, Failed):
                raise resolved.error
            verdict, changed = _said(resolved), resolved.verdict == "settled"
            await probes.say(tx, key.organization_id, probe_id, found=seen.exists, verdict=verdict)
    if changed:
        await api.wakeups.announce([reservation_id])
    async with acquire(api.pool) as connection:
        now = await reservations.view(connection, key.organization_id, reservation_id)
    if now is None:
        raise OutboxError("not-found", "The reservation is gone.")
    return Looked(view=now, verdict=verdict, again_seconds=_again_seconds(now, verdict, between))


async def _rule(api: Api, key: ScopedKey, view: ReservationView) -> tuple[ToolContract, LookupRule]:
    contract = await api.directory.contract(key.organization_id, view.tool, view.contract_version)
    if contract is None:
        raise Refused(unavailable(possibly_reserved=True), facts_of(view))
    rule = probe_of(contract)
    if rule is None:
        raise Refused(_not_probed("The tool's contract names no way to look for its effect."), facts_of(view))
    return contract, rule


def _not_probed(detail: str) -> OutboxError:
    return OutboxError("not-probed", f"{detail} Nothing was changed.")


def _said(resolved: Resolved) -> str:
    if resolved.verdict == "missing":
        raise OutboxError("not-found", "The reservation is gone.")
    return resolved.verdict


def _resolution(
    key: ScopedKey,
    view: ReservationView,
    contract: ToolContract,
    rule: LookupRule,
    vault: Vault,
    probe: Probe,
    seen: Found,
) -> Resolution:
    effect = project(contract, seen.result)
    reference = seen.external_reference or effect.external_reference if seen.exists else None
    if seen.exists and reference is None:
        raise invalid("$.external_reference", "the provider's name of what was found")
    kept = effect.result if contract.receipt.result else seen.result
    return Resolution(
        organization_id=key.organization_id,
        reservation_id=view.id,
        attempt_id=probe.attempt_id,
        happened=seen.exists,
        by="lookup",
        asked_at=None if seen.exists else probe.asked_at,
        absences_needed=rule.times,
        between_seconds=between_absences_seconds(rule),
        then=rule.on_absent,
        again_seconds=0.0,
        receipt_id=new_id(),
        provider=view.provider,
        external_reference=reference,
        provider_request_id=effect.provider_request_id,
        evidence=[{"kind": "probe", "detail": {"probe_id": str(probe.id), "by": key.actor_chain[-1]}}],
        sealed_result=vault.seal_result(view.id, kept) if seen.exists and seen.has_result else None,
        said_by=list(key.actor_chain),
        reason="found by its client's probe" if seen.exists else "absent by its client's probe",
        asserted=True,
    )


def _again_seconds(view: ReservationView, verdict: str, between: float) -> float | None:
    """When to begin the next probe, where the doubt is not over: never before an absence counts."""
    if view.state is not State.IN_DOUBT or verdict not in ("too-early", "noted", "stale"):
        return None
    counts_in = view.absence_counts_seconds or 0.0
    # What came too early although an absence counts by now came right after one that did.
    right_after = verdict == "noted" or (verdict == "too-early" and counts_in <= 0)
    return max(between if right_after else 0.0, counts_in + AFTER_THE_TIME_SECONDS)
