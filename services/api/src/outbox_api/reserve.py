"""Reserving the one effect that a tool call wants (step 3 of the path of one call, design section 6).

The order is the promise. Authentication and scope come first, then duplicates, then the decision: whoever repeats a call is told
what became of it, whatever policy says now. What is allowed is inserted first and the holder is read only by whoever lost; what
is refused is refused only after a read found no live holder.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import NoReturn
from uuid import UUID

import structlog

from outbox_api.answers import Facts, reservation_url, run_document
from outbox_api.directory import Directory
from outbox_api.errors import unavailable
from outbox_domain import messages
from outbox_domain.binding import BoundInput, bind
from outbox_domain.contract import ToolContract
from outbox_domain.decision import Decided, decide, refusal
from outbox_domain.errors import OutboxError, Retry
from outbox_domain.identity import Identity, conflicting_fields, identify, template_segments
from outbox_domain.recovery import settle_seconds
from outbox_domain.reservation import State
from outbox_domain.scoped_key import ScopedKey
from outbox_domain.tool_call import ToolCall
from outbox_runtime.postgres import AWAY, Pool, acquire, transaction
from outbox_runtime.vault import StoredInput, Vault
from outbox_store import reservations, tool_calls
from outbox_store import reserve as store
from outbox_store.batches import Failed
from outbox_store.connections import ConnectionRow
from outbox_store.ledger_entries import NewEntry, append
from outbox_store.reserve import Barred, Contended, Contradicted, Held, NewReservation, Won
from outbox_store.runs import Run
from outbox_store.tool_calls import NewToolCall

log = structlog.stdlib.get_logger("outbox.api.reserve")

LOST_ANSWER_SECONDS = 3.0
"""How long T1 is sent again after its answer was lost, before the caller is told to come again."""

LOST_ANSWER_PAUSE_SECONDS = 0.1

BARRED_SECONDS = 5.0
"""When to ask again while something else is in the way and nobody knows for how long."""

BARRED_SECONDS_MAX = 60.0

OCCURRENCES_MAX = 1_000
"""How many settled repetitions of a digest-keyed call are passed over."""


@dataclass(frozen=True, kw_only=True)
class Trace:
    """The trace that a call belongs to: the `traceparent` of its reserve span, and the trace's id."""

    traceparent: str | None
    trace_id: str | None


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A tool call inside its key's scope, bound and named. Nothing is written yet.

    Attributes:
        run_is_new: nobody has used the run's name before, so `run` is what it would be registered as.
    """

    key: ScopedKey
    call: ToolCall
    contract: ToolContract
    connection: ConnectionRow
    bound: BoundInput
    identity: Identity
    vault: Vault
    project_id: UUID
    run: Run | None
    run_is_new: bool

    def facts(self, reservation_id: UUID | None = None, state: State | None = None) -> Facts:
        """What an answer may say of the wanted effect."""
        return Facts(
            reservation_id=reservation_id,
            state=state,
            operation_key=self.identity.operation_key,
            input_digest=self.identity.input_digest,
            guarantee_class=self.contract.guarantee_class,
            owner=self.contract.owner,
            run=None if self.run_is_new else run_document(self.run),
        )


@dataclass(frozen=True, kw_only=True)
class Reserved:
    """The reservation that a tool call made or met.

    Attributes:
        first: this very call made it.
        state: as it was when it was met.
        held: as it was met; None where this call made it.
    """

    id: UUID
    first: bool
    state: State
    facts: Facts
    run_id: UUID | None
    held: Held | None
    tool: str


class Refused(Exception):
    """A tool call is refused; it carries the problem and what is known of the wanted effect.

    Attributes:
        recorded: its `tool_calls` row is written already, together with its ledger entry.
    """

    def __init__(self, error: OutboxError, facts: Facts, *, recorded: bool = False) -> None:
        """Wraps the problem."""
        super().__init__(error.detail)
        self.error = error
        self.facts = facts
        self.recorded = recorded


@dataclass(frozen=True, kw_only=True)
class Reserver:
    """What reserving needs of this process.

    Attributes:
        new_id: makes a UUIDv7.
    """

    pool: Pool
    directory: Directory
    new_id: Callable[[], UUID]


Insert = Callable[[NewReservation, Wanted, Callable[[], None]], Awaitable[store.Verdict | Failed]]
"""T1 for one row. It says when it has a connection: what fails before has sent nothing."""


def _inserting(of: Reserver) -> Insert:
    """T1 alone: its statement is its transaction."""

    async def insert(row: NewReservation, wanted: Wanted, connected: Callable[[], None]) -> store.Verdict | Failed:
        async with acquire(of.pool) as connection:
            connected()
            [verdict] = await store.reserve(connection, [row])
        return verdict

    return insert


async def reserve(
    of: Reserver,
    key: ScopedKey,
    call: ToolCall,
    trace: Trace,
    *,
    executor: store.Executor = "gateway",
    contract: ToolContract | None = None,
    insert: Insert | None = None,
) -> Reserved:
    """Reserve the effect that a tool call wants, or find who holds it.

    Args:
        of: what this process has.
        key: who asks.
        call: what is asked for.
        trace: the worker goes on with it.
        executor: who carries it out.
        contract: that came with the call; None: the tool's own.
        insert: T1, where more than the reservation is written in it; sent again unchanged after a lost answer.

    Returns:
        The reservation made or met. Its wake-up is the caller's to send, because that comes after the commit.

    Raises:
        OutboxError: the call is outside the key's scope, unknown or does not fit its contract; nothing is known of an effect.
        Refused: `policy-denied`, `review-required`, `conflict`, `contradiction`, `object-busy`, `occurrence-open`,
            `run-blocked`, or `unavailable`.
        one of `AWAY`: Postgres is away; nothing was recorded.
    """
    wanted = await want(of, key, call, executor=executor, contract=contract)
    environment = await of.directory.environment(key)
    occurrence, repeated = call.occurrence, False
    for _ in range(OCCURRENCES_MAX):
        decided = decide(
            environment=environment.name,
            default_decision=environment.default_decision,
            occurrence=occurrence,
            repeated=repeated,
        )
        if decided.allows:
            wanted = await _with_run(of, wanted)
            row = _row(of, wanted, occurrence, trace, executor)
            verdict: store.Verdict | Failed | None = await _insert(row, wanted, insert or _inserting(of))
        else:
            verdict = await look(of, _row(of, wanted, occurrence, trace, executor))
        match verdict:
            case Barred() if decided.allows:
                raise Refused(barred(verdict), wanted.facts())
            case None | Barred():
                await _refuse(of, wanted, decided, occurrence, trace)
            case Won():
                return _reserved(wanted, verdict.id, State.RESERVED, None)
            case Held() if is_over(wanted.identity, verdict):
                occurrence, repeated = occurrence + 1, True
            case Held():
                await _same_or_conflict(of, wanted, verdict, trace)
                return _reserved(wanted, verdict.id, verdict.state, verdict)
            case Contradicted():
                raise Refused(contradiction(verdict), wanted.facts(verdict.reservation_id))
            case Contended():
                raise Refused(unavailable(), wanted.facts())
            case Failed():
                raise _failed(verdict)
    raise Refused(unavailable(), wanted.facts())


async def want(
    of: Reserver,
    key: ScopedKey,
    call: ToolCall,
    *,
    executor: store.Executor = "gateway",
    contract: ToolContract | None = None,
) -> Wanted:
    """Check the scope of a tool call, bind its input and name its effect. Writes nothing of the effect.

    Args:
        of: what this process has.
        key: who asks.
        call: what is asked for.
        executor: who carries it out; what only clients carry out is unknown to everybody else.
        contract: that came with the call; None: the tool's own.

    Raises:
        OutboxError: `unknown-tool`, `out-of-scope`, `unknown-connection`, `invalid-input`, `missing-key-field`, `run-required`.
    """
    directory = of.directory
    inline = contract is not None
    if contract is None:
        contract = await directory.tool(key.organization_id, call.tool)
    if contract is None or (executor == "gateway" and contract.request.driver == "client"):
        raise await _unknown_tool(directory, key, call.tool)
    run_name = key.run_of(call.run)
    key.allow(call.tool, contract.provider, None, run_name, datetime.now(UTC))
    project_id = await directory.project_id(key)
    if inline:
        connection = await directory.client_connection(key, contract.provider, call.connection, of.new_id)
    else:
        connection = await directory.connection(key, contract.provider, call.connection)
    if connection is None:
        raise _unknown_connection(contract.provider, call.connection)
    bound = bind(contract, call.input, connection_currency=connection.currency)
    run, run_is_new = None, False
    if run_name is not None:
        run = await directory.run(key, project_id, run_name)
        if run is None:
            new_id = of.new_id()
            run, run_is_new = Run(id=new_id, name=run_name, lineage=new_id, lineage_name=run_name), True
    vault = await directory.vault(key.organization_id)
    return Wanted(
        key=key,
        call=call,
        contract=contract,
        connection=connection,
        bound=bound,
        identity=_identify(contract, bound, call, run, vault),
        vault=vault,
        project_id=project_id,
        run=run,
        run_is_new=run_is_new,
    )


def is_over(identity: Identity, held: Held) -> bool:
    """Whether the holder is settled for longer than the tool's `repeat_after`, so that the same may be wanted again.

    The process's clock is good enough: at the edge of a day it decides between a replay and a review, never about an effect.
    """
    if identity.repeat_after is None or held.state is not State.SUCCEEDED or held.settled_at is None:
        return False
    return datetime.now(UTC) >= held.settled_at + identity.repeat_after


async def same_effect(of: Reserver, wanted: Wanted, held: Held) -> list[str] | None:
    """Compare a call with the holder of its key under the contract version that the holder pins.

    Returns:
        None where they want the same; else the names of the declared fields that differ (none where only others do).
    """
    if held.input_digest == wanted.identity.input_digest:
        return None
    mine = wanted.identity
    if held.contract_version != wanted.contract.version:
        contract = await of.directory.contract(wanted.key.organization_id, wanted.contract.tool, held.contract_version)
        if contract is None:
            raise LookupError("the contract that the holder pins cannot be read, so nobody can say whether both want the same")
        try:
            bound = bind(contract, wanted.call.input, connection_currency=wanted.connection.currency)
            mine = _identify(contract, bound, wanted.call, wanted.run, wanted.vault)
        except OutboxError:
            # What the older contract refuses cannot be what it once accepted.
            return conflicting_fields(mine.declared, held.declared)
        if mine.input_digest == held.input_digest:
            return None
    return conflicting_fields(mine.declared, held.declared)


async def conflict(of: Reserver, wanted: Wanted, held: Held, fields: list[str]) -> OutboxError:
    """The problem of a key that was used with other values; names of fields are told, their values never."""
    async with acquire(of.pool) as connection:
        view = await reservations.view(connection, wanted.key.organization_id, held.id)
    receipt_id = None if view is None or view.receipt is None else str(view.receipt.id)
    rule = wanted.contract.identity[wanted.identity.rule_index]
    key_fields = [] if rule.key is None else [part.field for part in template_segments(rule.key) if part.field is not None]
    used = [name for name in key_fields if name != "reference" or wanted.call.reference]
    return OutboxError(
        "conflict",
        "The operation key was used with other values. Repeat the earlier call unchanged, or name another case in `reference`.",
        message=messages.conflict(used, fields, receipt_id),
        fields=fields,
        receipt_id=receipt_id,
    )


def contradiction(found: Contradicted) -> OutboxError:
    """The problem of a key under which an effect is proven that a closed reservation denies."""
    return OutboxError(
        "contradiction",
        "There is proof of an effect that a closed reservation of this key denies. A person examines it.",
        message=messages.contradicted(),
        contradicted_reservation_id=found.reservation_id,
    )


def barred(found: Barred) -> OutboxError:
    """The problem of a call that something else stands in the way of. Nothing is kept of it: the same call may be made again."""
    code, detail, told = _BARRED[found.by]
    seconds = BARRED_SECONDS if found.after_seconds is None else min(max(found.after_seconds, 1.0), BARRED_SECONDS_MAX)
    retry = Retry(action="wait", after_seconds=seconds, url=reservation_url(found.reservation_id))
    return OutboxError(code, detail, message=told(seconds), retry=retry, open_reservation_id=found.reservation_id)


_BARRED: Mapping[str, tuple[str, str, Callable[[float], str]]] = {
    "object": (
        "object-busy",
        "Another operation on the same object is open, or a request of it may still arrive; two at once could undo one another.",
        messages.object_busy,
    ),
    "occurrence": (
        "occurrence-open",
        "Another occurrence of the same operation is open: whether it happened is not known yet.",
        messages.occurrence_open,
    ),
    "run": (
        "run-blocked",
        "An effect of this run is in doubt, and its tool's contract says that nothing new is begun in the run meanwhile.",
        messages.run_blocked,
    ),
}


def new_tool_call(
    of: Reserver,
    wanted_by: ScopedKey,
    *,
    tool: str,
    call: ToolCall | None,
    trace: Trace,
    reservation_id: UUID | None,
    answer_code: str,
    answer_state: State | None,
    replayed: bool,
) -> NewToolCall:
    """The row of one request and the answer it was given."""
    return NewToolCall(
        organization_id=wanted_by.organization_id,
        id=of.new_id(),
        at=datetime.now(UTC),
        reservation_id=reservation_id,
        environment_id=wanted_by.environment_id,
        tool=tool,
        actor_id=wanted_by.actor_id,
        actor_chain=list(wanted_by.actor_chain),
        key_id=wanted_by.id,
        run=wanted_by.run if call is None else wanted_by.run_of(call.run),
        checkpoint=None if call is None else call.checkpoint,
        step=None if call is None else call.step,
        call_id=None if call is None else call.call_id,
        model=None if call is None else call.model,
        trace_id=trace.trace_id,
        answer_code=answer_code,
        answer_state=answer_state,
        replayed=replayed,
    )


def row_of(of: Reserver, wanted: Wanted, occurrence: int) -> NewReservation:
    """The row that would be reserved, for looking up who holds its key."""
    return _row(of, wanted, occurrence, Trace(traceparent=None, trace_id=None))


def _identify(contract: ToolContract, bound: BoundInput, call: ToolCall, run: Run | None, vault: Vault) -> Identity:
    return identify(
        contract,
        bound,
        reference=call.reference,
        occurrence=call.occurrence,
        run_lineage_id=None if run is None else str(run.lineage),
        secrets=vault.secrets,
    )


async def _with_run(of: Reserver, wanted: Wanted) -> Wanted:
    """Register the run on its first use. Another call may have done so first; the lineage is then that of the row."""
    if not wanted.run_is_new or wanted.run is None:
        return wanted
    run = await of.directory.register_run(wanted.key, wanted.project_id, wanted.run.name, wanted.run.id)
    identity = _identify(wanted.contract, wanted.bound, wanted.call, run, wanted.vault)
    return replace(wanted, run=run, run_is_new=False, identity=identity)


def _row(of: Reserver, wanted: Wanted, occurrence: int, trace: Trace, executor: store.Executor = "gateway") -> NewReservation:
    id, call, key = of.new_id(), wanted.call, wanted.key
    run = wanted.run
    names = {"reference": call.reference, "run": None if run is None else run.name}
    stored = StoredInput(
        input=wanted.bound.value,
        context=call.context,
        names={name: value for name, value in names.items() if value is not None},
    )
    return NewReservation(
        organization_id=key.organization_id,
        id=id,
        project_id=wanted.project_id,
        environment_id=key.environment_id,
        connection_id=wanted.connection.id,
        tool=wanted.contract.tool,
        scope=wanted.identity.scope,
        operation_key=wanted.identity.operation_key,
        occurrence=occurrence,
        contract_version=wanted.contract.version,
        input_digest=wanted.identity.input_digest,
        review_digest=wanted.identity.review_digest,
        declared=wanted.identity.declared,
        amount=wanted.bound.amount,
        currency=wanted.bound.currency,
        reference=call.reference,
        guarantee_class=wanted.contract.guarantee_class,
        owner=wanted.contract.owner,
        actor_id=key.actor_id,
        actor_chain=list(key.actor_chain),
        key_id=key.id,
        run_id=None if run is None else run.id,
        lineage=None if run is None else run.lineage,
        run_name=None if run is None else run.name,
        checkpoint=call.checkpoint,
        step=call.step,
        call_id=call.call_id,
        model=call.model,
        traceparent=trace.traceparent,
        trace_id=trace.trace_id,
        decision=None,
        not_after_seconds=wanted.contract.not_after.total_seconds(),
        sealed_input=wanted.vault.seal_input(id, stored),
        object_key=wanted.identity.object_key,
        quiet_seconds=settle_seconds(wanted.contract),
        attention=wanted.contract.attention,
        blocks_run=wanted.contract.blocks_run,
        executor=executor,
    )


async def _insert(row: NewReservation, wanted: Wanted, insert: Insert) -> store.Verdict | Failed:
    """T1. After a lost answer the same row is sent again and recognises itself."""
    give_up: float | None = None

    def connected() -> None:
        nonlocal give_up
        if give_up is None:
            give_up = time.monotonic() + LOST_ANSWER_SECONDS

    while True:
        try:
            return await insert(row, wanted, connected)
        except AWAY as error:
            if give_up is None:
                raise  # No connection, so nothing was sent.
            if time.monotonic() >= give_up:
                log.warning("reserve-unanswered", reservation_id=str(row.id), error=type(error).__name__)
                raise Refused(unavailable(possibly_reserved=True), wanted.facts()) from None
            await asyncio.sleep(LOST_ANSWER_PAUSE_SECONDS)


async def look(of: Reserver, row: NewReservation) -> store.Verdict | None:
    """Who holds a row's key now; None where nobody does."""
    async with acquire(of.pool) as connection:
        [verdict] = await store.holders(connection, [row])
    return verdict


def _reserved(wanted: Wanted, id: UUID, state: State, held: Held | None) -> Reserved:
    return Reserved(
        id=id,
        first=held is None,
        held=held,
        tool=wanted.contract.tool,
        state=state,
        facts=wanted.facts(id, state),
        run_id=None if wanted.run is None else wanted.run.id,
    )


async def _same_or_conflict(of: Reserver, wanted: Wanted, held: Held, trace: Trace) -> None:
    """Return where the holder's effect is the wanted one; else record the conflict and refuse."""
    fields = await same_effect(of, wanted, held)
    if fields is None:
        return
    error = await conflict(of, wanted, held, fields)
    row = _refused_call(of, wanted, trace, error, held.id, held.state)
    entry = _entry(wanted, "conflict", trace, reservation_id=held.id, detail={"fields": fields})
    async with transaction(of.pool) as tx:
        await tool_calls.insert(tx, [row])
        await append(tx, entry)
    raise Refused(error, wanted.facts(held.id, held.state), recorded=True)


async def _refuse(of: Reserver, wanted: Wanted, decided: Decided, occurrence: int, trace: Trace) -> NoReturn:
    """Record a decision against the call and refuse it; the same refusal again within a minute is only counted."""
    error = refusal(decided, tool=wanted.contract.tool, connection=wanted.connection.name)
    row = _refused_call(of, wanted, trace, error, None, None)
    identity = wanted.identity
    digest = wanted.vault.digest(
        "refusal",
        wanted.key.actor_id.bytes,
        wanted.connection.id.bytes,
        error.code.encode(),
        wanted.contract.tool.encode(),
        identity.scope.encode(),
        identity.operation_key.encode(),
        str(occurrence).encode(),
        identity.review_digest,
    )
    entry = _entry(wanted, "refused", trace, decision=decided.document(), detail={"code": error.code})
    async with transaction(of.pool) as tx:
        await tool_calls.record_refusal(tx, row, digest, entry)
    raise Refused(error, wanted.facts(), recorded=True)


def _refused_call(
    of: Reserver, wanted: Wanted, trace: Trace, error: OutboxError, reservation_id: UUID | None, state: State | None
) -> NewToolCall:
    return new_tool_call(
        of,
        wanted.key,
        tool=wanted.contract.tool,
        call=wanted.call,
        trace=trace,
        reservation_id=reservation_id,
        answer_code=error.code,
        answer_state=state,
        replayed=False,
    )


def _entry(
    wanted: Wanted,
    kind: str,
    trace: Trace,
    *,
    detail: dict[str, object],
    reservation_id: UUID | None = None,
    decision: dict[str, object] | None = None,
) -> NewEntry:
    return NewEntry(
        organization_id=wanted.key.organization_id,
        environment_id=wanted.key.environment_id,
        kind=kind,
        actor_chain=list(wanted.key.actor_chain),
        reservation_id=reservation_id,
        decision=decision,
        run=None if wanted.run is None else wanted.run.name,
        tool=wanted.contract.tool,
        operation_key=wanted.identity.operation_key,
        input_digest=wanted.identity.input_digest,
        declared=wanted.identity.declared,
        trace_id=trace.trace_id,
        detail=detail,
    )


async def _unknown_tool(directory: Directory, key: ScopedKey, tool: str) -> OutboxError:
    tools = await directory.tools(key.organization_id)
    callable_tools = [name for name, contract in tools.items() if key.reaches(name, contract.provider)]
    nearest = messages.nearest_tools(tool, callable_tools)
    return OutboxError(
        "unknown-tool",
        "There is no tool of this name, or it has no contract in this organization.",
        message=messages.unknown_tool(tool, nearest),
        path="$.tool",
        nearest=list(nearest),
    )


def _unknown_connection(provider: str, name: str | None) -> OutboxError:
    if name is None:
        expected = f"the name of a connection, because this environment has no default one for {provider}"
    else:
        expected = f"the name of a connection that this environment has for {provider}"
    return OutboxError(
        "unknown-connection",
        f"$.connection: expected {expected}.",
        message=messages.invalid_input("$.connection", expected),
        path="$.connection",
    )


def _failed(verdict: Failed) -> Exception:
    """Postgres refused the row for good: a value it cannot hold is the caller's, a broken constraint is ours."""
    if verdict.constraint is None:
        expected = "values that can be recorded (text without the character U+0000)"
        return OutboxError(
            "invalid-input",
            f"$.input: expected {expected}.",
            message=messages.invalid_input("$.input", expected),
            path="$.input",
        )
    return verdict.error
