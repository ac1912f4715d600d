"""A provider's own notice of an effect: verified, acted on once, and proof that it happened (design section 4, rules of doubt).

It may come before the answer to the request, late, twice, or against what was settled: the statement that ends doubts judges
that. The contract says which events prove that the effect exists; every other one of its marker (a refund that failed, or was
cancelled) is evidence: it is written down and settles nothing. None proves that an effect does not exist.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from uuid import UUID

from outbox_api.directory import Directory
from outbox_domain import money
from outbox_domain.errors import OutboxError
from outbox_domain.reservation import OPEN
from outbox_providers.webhooks import Event, EventMalformed, SignatureRefused, effect_in, marker_in, proves, read_event, verify
from outbox_runtime.postgres import Pool, acquire, transaction
from outbox_store.batches import Failed
from outbox_store.claim import TRIES_MAX
from outbox_store.resolve import Resolution, resolve
from outbox_store.webhooks_in import Listener, Marked, hold, listener, marked, note, say, take

AGAIN_SECONDS = 1.0
"""When the sweep looks at a reservation next that an event leaves open; an event of ours leaves none so."""


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What came of an event.

    Attributes:
        verdict: of `outbox_store.resolve`; `duplicate` (acted on before), `evidence` (it proves nothing and was written down),
            `unmarked` (no marker of ours), `unmatched` (the marker of no reservation of this connection), `unusable` (it names no
            effect).
    """

    verdict: str
    reservation_id: UUID | None = None


async def listening(pool: Pool, connection_id: UUID) -> Listener:
    """The connection that an event was sent to; it is found before a byte of the event is read.

    Raises:
        OutboxError: `not-found` where nothing listens.
    """
    async with acquire(pool) as connection:
        by = await listener(connection, connection_id)
    if by is None:
        raise OutboxError("not-found", "No connection of this id takes webhooks.")
    return by


async def take_webhook(
    pool: Pool,
    directory: Directory,
    by: Listener,
    headers: Mapping[str, str],
    body: bytes,
    *,
    now_seconds: float,
    new_id: Callable[[], UUID],
) -> Taken:
    """Act on what a provider sent.

    Args:
        pool: of this process.
        directory: knows keys and contracts.
        by: to which it was sent.
        headers: of the request, names in lower case.
        body: exactly as it was received.
        now_seconds: the time, since the epoch.
        new_id: makes ids of receipts and contradictions.

    Raises:
        OutboxError: `invalid-signature`, `invalid-request` for a signed body that is no event.
    """
    event = await _verified(directory, by, headers, body, now_seconds)
    markers = await _markers(directory, by, event)
    for marker in markers:
        async with acquire(pool) as connection:
            found = await marked(connection, by.organization_id, by.connection_id, marker)
        if found:
            return await _settle(pool, directory, by, event, marker, found, new_id)
    return Taken(verdict="unmatched" if markers else "unmarked")


async def _verified(directory: Directory, by: Listener, headers: Mapping[str, str], body: bytes, now_seconds: float) -> Event:
    vault = await directory.vault(by.organization_id)
    secret = vault.open_webhook_secret(by.connection_id, by.sealed_secret)
    # One scheme is known. A second one will be a property of the connection, never a choice of who sends.
    try:
        verify("stripe", secret, headers, body, now_seconds=now_seconds)
        return read_event(body)
    except SignatureRefused as refused:
        raise OutboxError("invalid-signature", f"Nothing was done: {refused}.") from None
    except EventMalformed as malformed:
        raise OutboxError("invalid-request", f"$: {malformed}.", path="$") from None


async def _markers(directory: Directory, by: Listener, event: Event) -> list[str]:
    """What the event carries where the provider's contracts look for a marker; where they look in several places, one is ours."""
    tools = await directory.tools(by.organization_id)
    rules = {tool.webhook for tool in tools.values() if tool.provider == by.provider and tool.webhook is not None}
    found = (marker_in(rule, event) for rule in sorted(rules, key=lambda rule: rule.match))
    return [marker for marker in dict.fromkeys(found) if marker is not None]


async def _settle(
    pool: Pool, directory: Directory, by: Listener, event: Event, marker: str, found: list[Marked], new_id: Callable[[], UUID]
) -> Taken:
    newest = found[0]
    contract = await directory.contract(by.organization_id, newest.tool, newest.contract_version)
    if contract is None:
        # Of a newer version of this program: the provider sends the event again, and by then it may be read.
        raise OutboxError("unavailable", "The contract that this event belongs to cannot be read here.")
    effect = effect_in(contract, event)
    if contract.webhook is None or not proves(contract.webhook, event):
        return await _note(pool, by, event, marker, found, effect.external_reference)
    if effect.external_reference is None:
        return Taken(verdict="unusable", reservation_id=newest.id)
    row = _meant(found, effect.external_reference)
    vault = await directory.vault(by.organization_id)
    evidence: list[dict[str, object]] = [
        {"kind": "webhook", "detail": {"event": event.id} | ({} if event.kind is None else {"type": event.kind})}
    ]
    difference = money.difference(row.amount, row.currency, effect.amount_reported, effect.currency_reported)
    if difference is not None:
        evidence.append({"kind": "variance", "detail": difference})
    resolution = Resolution(
        organization_id=by.organization_id,
        reservation_id=row.id,
        attempt_id=None,
        happened=True,
        by="webhook",
        asked_at=None,
        absences_needed=1,
        then="fail",
        again_seconds=AGAIN_SECONDS,
        receipt_id=new_id(),
        provider=by.provider,
        external_reference=effect.external_reference,
        provider_request_id=effect.provider_request_id,
        evidence=evidence,
        sealed_result=vault.seal_result(row.id, effect.result),
        said_by=None,
        reason="webhook",
    )
    async with transaction(pool) as tx:
        await hold(tx, by.organization_id, row.id)
        if not await take(tx, by, event.id, marker, row.id):
            return Taken(verdict="duplicate", reservation_id=row.id)
        [resolved] = await resolve(tx, [resolution], tries_max=TRIES_MAX)
        if isinstance(resolved, Failed):
            raise resolved.error
        await say(tx, by, event.id, resolved.verdict)
    return Taken(verdict=resolved.verdict, reservation_id=row.id)


async def _note(
    pool: Pool, by: Listener, event: Event, marker: str, found: list[Marked], external_reference: str | None
) -> Taken:
    row = _meant(found, external_reference)
    told = {"event": event.id, "type": event.kind, "external_reference": external_reference}
    detail: dict[str, object] = {"by": "webhook", "reason": "proves nothing by its contract"}
    detail |= {name: value for name, value in told.items() if value is not None}
    if external_reference is not None and row.external_reference == external_reference:
        detail["about_the_receipt"] = True
    async with transaction(pool) as tx:
        if not await take(tx, by, event.id, marker, row.id):
            return Taken(verdict="duplicate", reservation_id=row.id)
        await note(tx, by, row.id, detail)
        await say(tx, by, event.id, "evidence")
    return Taken(verdict="evidence", reservation_id=row.id)


def _meant(found: list[Marked], external_reference: str | None) -> Marked:
    """Which reservation an event speaks of, where an operation key was free again and several planted the same marker.

    The one that has this very effect, else the one whose effect is not known yet, else the newest.
    """
    of_effect = (row for row in found if external_reference is not None and row.external_reference == external_reference)
    open_ones = (row for row in found if row.state in OPEN)
    return next(of_effect, None) or next(open_ones, None) or found[0]
