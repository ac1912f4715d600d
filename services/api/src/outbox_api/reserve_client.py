"""Reserving an effect that the caller carries out itself: T1 and T2 in one transaction, or waiting for whoever holds it.

A crash leaves either nothing or an open attempt whose lease runs. Who loses the key waits; what its holder let go of is handed
over: class A inside the provider's window under the same provider key, class B after probes, class C to a person. Source: design
section 4 (a reservation names its executor), `docs/client-executed.md`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from uuid import UUID

from outbox_api.api import Api, new_id
from outbox_api.await_receipt import await_receipt
from outbox_api.errors import unavailable
from outbox_api.reserve import Insert, Refused, Reserved, Trace, Wanted, look, reserve
from outbox_domain import messages
from outbox_domain.capability import Capability
from outbox_domain.client_call import ClientCall
from outbox_domain.contract import LookupRule, ToolContract
from outbox_domain.decision import ALLOWING_ENVIRONMENTS
from outbox_domain.errors import OutboxError
from outbox_domain.recovery import (
    between_absences_seconds,
    left_to_clients_seconds,
    probe_of,
    settle_seconds,
)
from outbox_domain.reservation import State
from outbox_domain.scoped_key import ScopedKey
from outbox_domain.wire_names import marker_of, provider_key_of
from outbox_runtime.postgres import acquire, transaction
from outbox_runtime.vault import Vault
from outbox_store import client_attempts, probes, reservations, sweep
from outbox_store import reserve as store
from outbox_store.batches import Failed
from outbox_store.claim import Claim, ClaimedByClient, NotClaimed, claim_by_client, plant
from outbox_store.client_attempts import Lost
from outbox_store.connection import Connection
from outbox_store.epochs import Suspicion, suspect
from outbox_store.reservations import ReservationView
from outbox_store.reserve import Contended, Held, NewReservation, Won
from outbox_store.sweep import Lapse

ROUNDS_MAX = 200
"""How often one request looks anew at a reservation that changes hands before it is told to come again."""

AFTER_THE_LEASE_SECONDS = 0.05
"""How long after the end of a lease its attempt is taken for lapsed: never at the instant itself."""

TAKEN_UP = frozenset({State.RESERVED, State.IN_DOUBT})
"""Where a holder has let go, so that the next caller may take up what it left."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """An open attempt and what it shows the provider."""

    attempt: ClaimedByClient
    provider_key: str
    marker: str


@dataclass(frozen=True, kw_only=True)
class Given:
    """The caller holds the attempt."""

    reserved: Reserved
    opened: Opened


@dataclass(frozen=True, kw_only=True)
class ProbeFirst:
    """The caller looks whether the effect is there before anything else happens.

    Attributes:
        attempt_id: about which attempt.
        provider_key, marker: what that attempt was given to show the provider.
        times: how many absences prove it.
        absence_counts_at: from when one counts.
        again_seconds: how long to wait between two that count.
    """

    reserved: Reserved
    attempt_id: UUID
    provider_key: str | None
    marker: str | None
    times: int
    absence_counts_at: datetime | None
    again_seconds: float


@dataclass(frozen=True, kw_only=True)
class Joined:
    """Somebody else holds the effect, or has had it; `view` is None where it could not be read."""

    reserved: Reserved
    view: ReservationView | None


Answered = Given | ProbeFirst | Joined


async def reserve_client(api: Api, key: ScopedKey, asked: ClientCall, trace: Trace, *, wait_seconds: float) -> Answered:
    """Reserve an effect for a caller who carries it out itself, or wait for whoever does.

    Args:
        api: what this process has.
        key: who asks.
        asked: what is asked for.
        trace: that the call belongs to.
        wait_seconds: how long a caller waits who does not hold it.

    Returns:
        What the caller is to do now.

    Raises:
        OutboxError, Refused: as `reserve`; `time-limit-required`, `attempt-closed`.
    """
    key.require(Capability.EXECUTE_EFFECTS)
    contract = await _inline(api, key, asked)
    until = time.monotonic() + wait_seconds
    for _ in range(ROUNDS_MAX):
        opened: list[Opened] = []
        insert = _reserving(api, key, asked, opened)
        reserved = await reserve(api.reserver, key, asked.call, trace, executor="client", contract=contract, insert=insert)
        held = reserved.held
        if held is None:
            return Given(reserved=_executing(reserved), opened=opened[-1])
        seconds = 0.0 if api.waiters.full or api.waiters.draining else until - time.monotonic()
        answered: Answered | None
        if held.executor != "client" or held.state not in (State.EXECUTING, *TAKEN_UP):
            answered = Joined(reserved=reserved, view=await _wait(api, key, reserved, seconds))
        elif held.state is State.EXECUTING:
            answered = await _while_executing(api, key, asked, reserved, held, seconds)
        else:
            answered = await _take_up(api, key, asked, reserved, held)
        if answered is not None:
            return answered
    raise Refused(unavailable(possibly_reserved=True), reserved.facts)


async def _inline(api: Api, key: ScopedKey, asked: ClientCall) -> ToolContract | None:
    """The installed contract that came with the call, where one may."""
    if asked.contract is None:
        return None
    if key.environment not in ALLOWING_ENVIRONMENTS:
        expected = f"no contract in the environment {key.environment}: tools are declared there before they are used"
        raise OutboxError(
            "invalid-input",
            f"$.contract: expected {expected}.",
            message=messages.invalid_input("$.contract", expected),
            path="$.contract",
        )
    run = key.run_of(asked.call.run)
    key.allow(asked.call.tool, asked.contract.provider, None, run, datetime.now(UTC))
    return await api.directory.install_inline(key, await api.directory.vault(key.organization_id), asked.contract)


def _reserving(api: Api, key: ScopedKey, asked: ClientCall, opened: list[Opened]) -> Insert:
    """T1 and T2 in one transaction; what was opened is put into `opened`."""

    async def insert(row: NewReservation, wanted: Wanted, connected: Callable[[], None]) -> store.Verdict | Failed:
        refusal = _no_attempt(wanted.contract, asked)
        if refusal is not None:
            # What was done already is told to whoever repeats it, also without a time limit.
            held = await look(api.reserver, row)
            if held is None:
                raise Refused(refusal, wanted.facts())
            return held
        try:
            async with transaction(api.pool) as tx:
                connected()
                verdict = await store.reserve_within(tx, row)
                if isinstance(verdict, Won):
                    verdict = await _claim_at_once(tx, api, key, asked, row, wanted, opened)
        except _NotOpened:
            return await look(api.reserver, replace(row, id=new_id())) or Contended()
        if isinstance(verdict, Failed):
            async with acquire(api.pool) as connection:
                return await store.met(connection, row, verdict)
        return verdict

    return insert


class _NotOpened(Exception):
    """No attempt may be opened on what the same transaction reserved: it is undone, so that nothing stays that nobody holds."""


async def _claim_at_once(
    tx: Connection, api: Api, key: ScopedKey, asked: ClientCall, row: NewReservation, wanted: Wanted, opened: list[Opened]
) -> store.Verdict:
    """T2 of what was reserved in the same transaction."""
    wish = _wish(api, key, asked, wanted.contract, row.id)
    attempt = await claim_by_client(tx, wish)
    if isinstance(attempt, NotClaimed) and attempt.reason == "possibly-sent":
        await _suspect(tx, api, key, asked, row.id, wanted.contract)
        attempt = await claim_by_client(tx, wish)
        if isinstance(attempt, NotClaimed):
            # Only a probe or a person can end this doubt; it is met as one that was there before.
            [held] = await store.holders(tx, [replace(row, id=new_id())])
            if held is None:
                raise _NotOpened
            return held
    if isinstance(attempt, NotClaimed):
        if attempt.reason == "unverified":
            # After a restart of Postgres, until a worker has compared it with what it remembers; the row is given up too.
            raise Refused(unavailable(), wanted.facts())
        # What stands in the way came an instant after the row; or this very request was sent before, and its row has moved on.
        raise _NotOpened
    if isinstance(attempt, Failed):
        raise _attempt_refused(attempt)
    opened.append(await _show(tx, wanted.vault, attempt))
    return Won(id=row.id)


def _no_attempt(contract: ToolContract, asked: ClientCall) -> OutboxError | None:
    """Why no attempt may be opened under a contract with the time limit that the caller names."""
    limit, path = asked.time_limit_seconds, "$.time_limit_seconds"
    if limit is None:
        if contract.guarantee_class == "A":
            return None
        expected = f"the handler's time limit, because the tool is of class {contract.guarantee_class}"
        return OutboxError(
            "time-limit-required",
            f"{path}: expected {expected}: without it nobody knows from when an absence counts.",
            message=messages.invalid_input(path, expected),
            path=path,
        )
    if contract.resend is not None:
        most = (contract.resend.within - contract.resend.margin).total_seconds()
        if limit > most:
            expected = f"at most {most:g} s, as long as the provider key counts"
            return OutboxError(
                "invalid-input", f"{path}: expected {expected}.", message=messages.invalid_input(path, expected), path=path
            )
    return None


def _wish(api: Api, key: ScopedKey, asked: ClientCall, contract: ToolContract, reservation_id: UUID) -> Claim:
    settings, limit, resend = api.settings, asked.time_limit_seconds, contract.resend
    lease = settings.client_lease_seconds
    if limit is not None:
        lease = min(lease, limit + settings.client_margin_seconds)
    if contract.guarantee_class != "A":
        resend = None
    return Claim(
        organization_id=key.organization_id,
        reservation_id=reservation_id,
        attempt_id=asked.attempt_id,
        worker=f"client {key.actor_chain[-1]}",
        lease_seconds=lease,
        resend_window_seconds=None if resend is None else resend.within.total_seconds(),
        resend_needs_seconds=(lease if limit is None else limit) + (0.0 if resend is None else resend.margin.total_seconds()),
        resends_max=0 if resend is None else resend.times,
        executor="client",
        actor_id=key.actor_id,
        time_limit_seconds=limit,
    )


async def _show(tx: Connection, vault: Vault, attempt: ClaimedByClient) -> Opened:
    """The attempt with what it shows the provider, which is remembered with it."""
    provider_key, marker = await _plant(tx, vault, attempt)
    return Opened(attempt=attempt, provider_key=provider_key, marker=marker)


async def _plant(tx: Connection, vault: Vault, attempt: ClaimedByClient | Lost) -> tuple[str, str]:
    """Remember the provider key and the marker of an attempt, which follow from the names of its effect alone."""
    secret = vault.secrets.provider_key_secret
    provider_key, marker = provider_key_of(attempt, secret, attempt.generation), marker_of(attempt, secret)
    await plant(tx, attempt.organization_id, attempt.attempt_id, marker, provider_key=provider_key)
    return provider_key, marker


def _attempt_refused(failed: Failed) -> Exception:
    """Postgres refused the attempt for good: its id names another one, or the fault is ours."""
    if failed.constraint != "attempts_pkey":
        return failed.error
    return OutboxError(
        "attempt-closed",
        "$.attempt_id: expected a new UUID; an attempt of this id was made before, and is over or another effect's.",
        message=messages.invalid_input("$.attempt_id", "a new UUID, because this attempt is over"),
        path="$.attempt_id",
    )


async def _wait(api: Api, key: ScopedKey, reserved: Reserved, seconds: float) -> ReservationView | None:
    return await await_receipt(
        api.waiters,
        key.organization_id,
        reserved.id,
        seconds=max(seconds, 0.0),
        look_first=True,
        enough=lambda view: view.executor == "client" and view.state in TAKEN_UP,
    )


async def _while_executing(
    api: Api, key: ScopedKey, asked: ClientCall, reserved: Reserved, held: Held, seconds: float
) -> Answered | None:
    """Somebody holds the attempt: it is this very request's, or its lease is over, or it is waited for."""
    lease = held.lease_seconds
    contract = await _pinned(api, key, reserved, held)
    if lease is not None and lease <= 0:
        await _lapse(api, key, reserved, held, contract)
        return None
    if held.open_attempt_id == asked.attempt_id:
        own = await _open(api, key, asked, reserved, held, contract)
        if isinstance(own, Given):
            return own
    if seconds <= 0:
        return Joined(reserved=reserved, view=await _wait(api, key, reserved, 0.0))
    slice_seconds = seconds if lease is None else min(seconds, lease + AFTER_THE_LEASE_SECONDS)
    view = await _wait(api, key, reserved, slice_seconds)
    if view is not None and view.state in (State.EXECUTING, *TAKEN_UP):
        return None
    return Joined(reserved=reserved, view=view)


async def _take_up(api: Api, key: ScopedKey, asked: ClientCall, reserved: Reserved, held: Held) -> Answered | None:
    """Its holder has let go: the caller goes on with it where that is safe."""
    contract = await _pinned(api, key, reserved, held)
    refusal = _no_attempt(contract, asked)
    if held.state is State.RESERVED or contract.guarantee_class == "A":
        if refusal is not None:
            raise Refused(refusal, reserved.facts)
        opened = await _open(api, key, asked, reserved, held, contract)
        if isinstance(opened, Given):
            return opened
        if opened.reason == "unverified":
            raise Refused(unavailable(possibly_reserved=True), reserved.facts)
        if opened.reason == "possibly-sent":
            async with transaction(api.pool) as tx:
                await _suspect(tx, api, key, asked, held.id, contract)
            return None
        if opened.reason in ("gone", "voided"):
            return None
    if held.state is State.IN_DOUBT and (rule := probe_of(contract)) is not None and asked.probe:
        if refusal is not None:
            raise Refused(refusal, reserved.facts)
        return await _probe_first(api, key, reserved, rule)
    return Joined(reserved=reserved, view=await _wait(api, key, reserved, 0.0))


async def _open(
    api: Api, key: ScopedKey, asked: ClientCall, reserved: Reserved, held: Held, contract: ToolContract
) -> Given | NotClaimed:
    """T2 on a reservation that was there before; a caller's own attempt is found again."""
    vault = await api.directory.vault(key.organization_id)
    async with transaction(api.pool) as tx:
        attempt = await claim_by_client(tx, _wish(api, key, asked, contract, held.id))
        if isinstance(attempt, Failed):
            raise _attempt_refused(attempt)
        if isinstance(attempt, NotClaimed):
            return attempt
        if attempt.actor_id != key.actor_id:
            return NotClaimed(reservation_id=held.id, reason="gone")
        return Given(reserved=_executing(reserved), opened=await _show(tx, vault, attempt))


async def _probe_first(api: Api, key: ScopedKey, reserved: Reserved, rule: LookupRule) -> ProbeFirst | None:
    vault = await api.directory.vault(key.organization_id)
    async with transaction(api.pool) as tx:
        view = await reservations.view(tx, key.organization_id, reserved.id)
        if view is None or view.state is not State.IN_DOUBT or view.last_attempt_id is None:
            return None
        # A worker that has raised the epoch puts what clients left in doubt, and holds no secrets of theirs.
        await _plant_what_was_lost(tx, vault, key.organization_id, reserved.id)
        attempt = await client_attempts.find(tx, key.organization_id, reserved.id, view.last_attempt_id)
        if attempt is None:
            return None
        await probes.offer(tx, key.organization_id, attempt.id, key.actor_id)
    return ProbeFirst(
        reserved=reserved,
        attempt_id=attempt.id,
        provider_key=attempt.provider_key,
        marker=attempt.marker,
        times=rule.times,
        absence_counts_at=view.absence_counts_at,
        again_seconds=between_absences_seconds(rule),
    )


async def _pinned(api: Api, key: ScopedKey, reserved: Reserved, held: Held) -> ToolContract:
    """The contract that the reservation pins: what was declared when it was made still holds for it."""
    contract = await api.directory.contract(key.organization_id, reserved.tool, held.contract_version)
    if contract is None:
        raise Refused(unavailable(possibly_reserved=True), reserved.facts)
    return contract


async def _suspect(
    tx: Connection, api: Api, key: ScopedKey, asked: ClientCall, reservation_id: UUID, contract: ToolContract
) -> None:
    """What may have been sent before a loss of the ledger's tail becomes a doubt: taken up under the same key, or probed.

    A handler that is lost with its attempt is believed to have had no longer a limit than the one that is asked for now.
    """
    left = left_to_clients_seconds(contract, sent_seconds_ago=None, not_after_seconds=contract.not_after.total_seconds())
    suspicion = Suspicion(
        organization_id=key.organization_id,
        id=reservation_id,
        settle_seconds=settle_seconds(contract),
        recover_seconds=left,
        late_recover_seconds=left,
    )
    lease = max(api.settings.client_lease_seconds, asked.time_limit_seconds or 0.0) + api.settings.client_margin_seconds
    await suspect(tx, [suspicion], lease_seconds=lease)
    await _plant_what_was_lost(tx, await api.directory.vault(key.organization_id), key.organization_id, reservation_id)


async def _plant_what_was_lost(tx: Connection, vault: Vault, organization_id: UUID, reservation_id: UUID) -> None:
    """A lost attempt planted what its names say: with that on the one that stands for it, a probe or a webhook finds it."""
    lost = await client_attempts.unplanted(tx, organization_id, reservation_id)
    if lost is not None:
        await _plant(tx, vault, lost)


async def _lapse(api: Api, key: ScopedKey, reserved: Reserved, held: Held, contract: ToolContract) -> None:
    """Close an attempt whose lease is over, as the sweep would a moment later."""
    if held.open_attempt_id is None:
        return
    async with acquire(api.pool) as connection:
        attempt = await client_attempts.find(connection, key.organization_id, held.id, held.open_attempt_id)
        if attempt is None:
            return
        left = left_to_clients_seconds(
            contract, sent_seconds_ago=attempt.sent_seconds_ago, not_after_seconds=attempt.not_after_seconds
        )
        moved = await sweep.lapse(
            connection,
            [
                Lapse(
                    organization_id=key.organization_id,
                    reservation_id=held.id,
                    attempt_id=held.open_attempt_id,
                    settle_seconds=settle_seconds(contract),
                    recover_seconds=left,
                    late_recover_seconds=left,
                )
            ],
        )
    if moved:
        await api.wakeups.announce(moved)


def _executing(reserved: Reserved) -> Reserved:
    """The reservation as its caller's claim has left it."""
    return replace(reserved, state=State.EXECUTING, facts=replace(reserved.facts, state=State.EXECUTING))
