"""The last line of defence: what Postgres refuses whoever asks, each guard with the change it refuses."""

import itertools
import json
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
import pytest_asyncio
from tests.integration.store.races import Store
from tests.support.ledger import claim_of, claimed, settled

from outbox_domain.reservation import LIVE, TERMINAL, TRANSITIONS, State
from outbox_domain.reservation import Outcome as Came
from outbox_store import actors, probes, scoped_keys, webhooks_in
from outbox_store.claim import ClaimedByClient, claim_by_client
from outbox_store.request_keys import RequestKey, take
from outbox_store.reserve import reserve
from outbox_store.sweep import take_turns
from outbox_store.webhooks_in import Listener

PAIRS = [(before, after) for before, after in itertools.product(State, State) if before is not after]


def columns_of(state: State) -> dict[str, Any]:
    """What a reservation in this state has, as the constraints ask for it."""
    values: dict[str, Any] = {
        "state": state.value,
        "live": state in LIVE,
        "open_attempt_id": None,
        "external_reference": None,
        "settled_attempt_id": None,
        "settled_at": None,
        "void_reason": None,
        "unknown_attempts": 0,
        "attempts": 0,
        "doubt_since": None,
        "absence_counts_at": None,
    }
    if state is State.EXECUTING:
        values["open_attempt_id"] = str(uuid4())
    if state is State.IN_DOUBT:
        values |= {"doubt_since": "2026-01-01T00:00:00Z", "absence_counts_at": "2026-01-01T00:00:00Z", "unknown_attempts": 1}
    if state is State.SUCCEEDED:
        values |= {
            "external_reference": "re_1",
            "settled_attempt_id": str(uuid4()),
            "settled_at": "2026-01-01T00:00:00Z",
            "attempts": 1,
        }
    if state is State.VOIDED:
        values["void_reason"] = "not-sent-in-time"
    return values


class Undone(Exception):
    """Raised to roll back what a test has done."""


async def refusal_of(store: Store, statement: str, *values: object) -> str | None:
    """The name of the constraint that refuses a statement of the owner's, None when nothing does; it is undone either way."""
    try:
        async with store.owner.transaction():
            await store.owner.execute(statement, *values)
            await store.owner.execute("set constraints all immediate")
            raise Undone
    except Undone:
        return None
    except asyncpg.PostgresError as error:
        return str(getattr(error, "constraint_name", None) or type(error).__name__)


UPDATE = """
update reservations r set {} from jsonb_populate_record(null::reservations, $2) n where r.id = $1
"""


async def put(store: Store, id: UUID, values: dict[str, Any]) -> str | None:
    """Try to change columns of a reservation."""
    assignments = ", ".join(f"{name} = n.{name}" for name in values)
    return await refusal_of(store, UPDATE.format(assignments), id, values)


async def reservation_in(store: Store, state: State) -> UUID:
    """A reservation that stands in the state, put there past the guard as no service could."""
    row = store.world.row()
    await reserve(store.api, [row])
    values = columns_of(state)
    async with store.owner.transaction():
        await store.owner.execute("set local session_replication_role = replica")
        await store.owner.execute(UPDATE.format(", ".join(f"{name} = n.{name}" for name in values)), row.id, values)
    return row.id


@pytest_asyncio.fixture
async def bare_store(own_store: Store) -> Store:
    """A store in which reservations are put into states without what belongs to them."""
    return own_store


async def test_transitions_are_those_of_the_domain(bare_store: Store) -> None:
    """Every pair of states is allowed or refused by the trigger exactly as the domain's table says, the row itself being right."""
    listed = await bare_store.owner.fetch("select from_state, to_state from reservation_transitions")
    allowed = {(before, after) for before, following in TRANSITIONS.items() for after in following}
    assert {(State(row["from_state"]), State(row["to_state"])) for row in listed} == allowed
    rows = {state: await reservation_in(bare_store, state) for state in State}
    for before, after in PAIRS:
        refusal = await put(bare_store, rows[before], columns_of(after))
        if (before, after) in allowed:
            assert refusal is None, f"{before} -> {after}"
        else:
            assert refusal == ("reservation_terminal" if before in TERMINAL else "reservation_transition"), f"{before} -> {after}"


async def test_a_closed_row_never_changes(bare_store: Store) -> None:
    """Nothing of a terminal row changes, not even to what it is; an open one may change beside its state."""
    for state in State:
        id = await reservation_in(bare_store, state)
        for values in ({"changed_at": "2026-01-01T00:00:00Z"}, {"provider_status": 500}, {"state": state.value}):
            assert await put(bare_store, id, values) == ("reservation_terminal" if state in TERMINAL else None)


IDENTITY = {
    "organization_id": str(uuid4()),
    "id": str(uuid4()),
    "project_id": str(uuid4()),
    "environment_id": str(uuid4()),
    "connection_id": str(uuid4()),
    "tool": "stripe.customer.create",
    "scope": "run:6b3a55e0-0d9c-4c1f-8d0e-0d6f4f0c7c11",
    "operation_key": "refund:pi_another",
    "occurrence": 2,
    "contract_version": 2,
    "input_digest": "\\x" + "00" * 32,
    "review_digest": "\\x" + "00" * 32,
    "declared": {"amount": 1},
    "amount": 1,
    "currency": "USD",
    "guarantee_class": "C",
    "actor_id": str(uuid4()),
    "key_id": "another",
    "run_id": str(uuid4()),
    "lineage": str(uuid4()),
    "created_at": "2026-01-01T00:00:00Z",
    "xid": "1",
}


@pytest.mark.parametrize("state", [State.RESERVED, State.EXECUTING, State.IN_DOUBT])
async def test_an_identity_never_changes(bare_store: Store, state: State) -> None:
    """What an effect is, who asked for it and where it stands in lists is fixed with the row, in every open state."""
    id = await reservation_in(bare_store, state)
    for name, value in IDENTITY.items():
        assert await put(bare_store, id, {name: value}) == "reservation_identity", name


async def filled(store: Store) -> None:
    """A row in every table that has constraints."""
    world = store.world
    rows = [world.row(reference="order-1") for _ in range(4)]
    await reserve(store.api, rows)
    done, refused, doubtful, _ = [await claimed(store.worker, row) for row in rows]
    await settled(store.worker, done, Came.SUCCEEDED)
    await settled(store.worker, refused, Came.REJECTED)
    assert (await settled(store.worker, refused, Came.SUCCEEDED)).verdict == "contradiction"
    await settled(store.worker, doubtful, Came.UNKNOWN, recover_seconds=None)
    await actors.make_member(store.owner, world.organization_id, world.actor_id, ["admin"])
    await scoped_keys.insert(
        store.owner,
        scoped_keys.NewKey(
            organization_id=world.organization_id,
            id=uuid4().hex,
            environment_id=world.environment_id,
            project_id=world.project_id,
            run=None,
            actor_id=world.actor_id,
            providers=["stripe"],
            tools=["stripe.*"],
            expires_at=None,
            secret_digest=bytes(32),
            created_by=world.actor_id,
        ),
    )
    key = RequestKey(
        organization_id=world.organization_id,
        environment_id=world.environment_id,
        actor_id=world.actor_id,
        method="POST",
        path="/v1/tool-calls",
        key="k1",
    )
    await take(store.api, key, b"digest", uuid4(), lease_seconds=60.0)
    by = Listener(
        organization_id=world.organization_id, connection_id=world.connection_id, provider="stripe", sealed_secret=b"sealed"
    )
    await webhooks_in.take(store.api, by, "evt_1", "marker", doubtful.reservation_id)
    await store.api.execute(
        "insert into epoch_clearances (organization_id, environment_id, epoch, cleared_by, reason) values ($1, $2, 1, '[]', 'Nothing was lost.')",
        world.organization_id,
        world.environment_id,
    )
    clients = world.row(executor="client")
    await reserve(store.api, [clients])
    wish = claim_of(clients, executor="client", actor_id=world.actor_id)
    opened = await claim_by_client(store.api, wish)
    assert isinstance(opened, ClaimedByClient)
    await settled(store.api, opened, Came.UNKNOWN)
    await probes.offer(store.api, world.organization_id, wish.attempt_id, world.actor_id)
    await take_turns(store.worker, world.organization_id, world.connection_id, pace_seconds=1.0, at_once=1, wanted=1)
    assert await probes.begin(store.api, world.organization_id, clients.id, uuid4(), wish.attempt_id, world.actor_id)


def _reserved(**values: object) -> dict[str, Any]:
    return {**columns_of(State.RESERVED), **values}


TIME = "2026-01-01T00:00:00Z"
CHECKS: dict[str, tuple[str, dict[str, Any]]] = {
    "actors_kind_check": ("actors", {"kind": "robot"}),
    "actors_name_check": ("actors", {"name": ""}),
    "attempt_absent": ("attempts", {"outcome": "rejected", "closed_at": TIME, "closed_by": "answer", "proven_absent": True}),
    "attempt_supposed": ("attempts", {"supposed": True}),
    "attempt_closed": ("attempts", {"outcome": "rejected", "closed_at": None, "closed_by": None}),
    "attempt_late_outcome": ("attempts", {"late_outcome": "maybe"}),
    "attempt_late_outcomes": ("attempts", {"late_outcomes": ["unsent", "maybe"]}),
    "attempt_outcome": ("attempts", {"outcome": "maybe", "closed_at": TIME, "closed_by": "answer"}),
    "attempts_lease_seconds_check": ("attempts", {"lease_seconds": 0}),
    "attempts_time_limit_seconds_check": ("attempts", {"time_limit_seconds": 0}),
    "probes_verdict_check": ("probes", {"verdict": "perhaps", "found": True, "answered_at": TIME}),
    "probe_answered": ("probes", {"answered_at": TIME}),
    "attempts_number_check": ("attempts", {"number": 0}),
    "attempts_provider_code_check": ("attempts", {"provider_code": "the card of Jane Doe"}),
    "connections_base_url_check": ("connections", {"base_url": "ftp://provider"}),
    "connections_currency_check": ("connections", {"currency": "euro"}),
    "connections_name_check": ("connections", {"name": "Stripe"}),
    "contradictions_external_reference_check": ("contradictions", {"external_reference": ""}),
    "doubt_episode_closed": ("doubt_episodes", {"closed_at": TIME}),
    "doubt_episodes_attention_check": ("doubt_episodes", {"attention": "shout"}),
    "doubt_episodes_doubts_check": ("doubt_episodes", {"doubts": 0}),
    "doubt_episodes_waiting_check": ("doubt_episodes", {"waiting": -1, "closed_at": TIME}),
    "environments_default_decision_check": ("environments", {"default_decision": "maybe"}),
    "environments_name_check": ("environments", {"name": "-"}),
    "members_roles_check": ("members", {"roles": ["emperor"]}),
    "organizations_name_check": ("organizations", {"name": "a" * 64}),
    "epoch_clearances_reason_check": ("epoch_clearances", {"reason": ""}),
    "epoch_loss": ("epochs", {"number": 99, "lost_since": None, "possibly_lost_until": None}),
    "installation_one_check": ("installation", {"one": False}),
    "projects_name_check": ("projects", {"name": "a b"}),
    "receipt_money": ("receipts", {"amount": None}),
    "receipts_confidence_check": ("receipts", {"confidence": "sure"}),
    "receipts_external_reference_check": ("receipts", {"external_reference": ""}),
    "recovery_turns_pace_seconds_check": ("recovery_turns", {"pace_seconds": 0}),
    "request_key_answered": ("request_keys", {"pending_until": None}),
    "request_keys_request_key_check": ("request_keys", {"request_key": "k" * 256}),
    "reservation_denied": ("reservations", {**columns_of(State.DENIED), "attempts": 1}),
    "reservation_doubt": ("reservations", {**columns_of(State.IN_DOUBT), "absence_counts_at": None}),
    "reservation_effect": ("reservations", {**columns_of(State.SUCCEEDED), "external_reference": None}),
    "reservation_live": ("reservations", _reserved(live=False)),
    "reservation_money": ("reservations", _reserved(currency=None)),
    "reservation_no_effect": ("reservations", {**columns_of(State.FAILED), "external_reference": "re_1"}),
    "reservation_open_attempt": ("reservations", {**columns_of(State.EXECUTING), "open_attempt_id": None}),
    "reservation_run": ("reservations", _reserved(run_id=str(uuid4()))),
    "reservation_sent": ("reservations", {**columns_of(State.SUCCEEDED), "attempts": 0}),
    "reservation_scope": ("reservations", _reserved(scope="run:thread-1")),
    "reservation_state": ("reservations", _reserved(state="lost", live=False)),
    "reservation_voided": ("reservations", {**columns_of(State.VOIDED), "unknown_attempts": 1}),
    "reservations_attention_check": ("reservations", _reserved(attention="shout")),
    "reservations_currency_check": ("reservations", _reserved(currency="eur")),
    "reservations_executor_check": ("reservations", _reserved(executor="nobody")),
    "reservations_generation_check": ("reservations", _reserved(generation=-1)),
    "reservations_guarantee_class_check": ("reservations", _reserved(guarantee_class="D")),
    "reservations_input_digest_check": ("reservations", _reserved(input_digest="\\x00")),
    "reservations_object_key_check": ("reservations", _reserved(object_key="")),
    "reservations_occurrence_check": ("reservations", _reserved(occurrence=0)),
    "reservations_operation_key_check": ("reservations", _reserved(operation_key="")),
    "reservations_provider_code_check": ("reservations", _reserved(provider_code="no code")),
    "reservations_quiet_seconds_check": ("reservations", _reserved(quiet_seconds=-1)),
    "reservations_review_digest_check": ("reservations", _reserved(review_digest="\\x00")),
    "reservations_unknown_attempts_check": ("reservations", _reserved(unknown_attempts=-1)),
    "runs_name_check": ("runs", {"name": "n" * 201}),
    "scoped_keys_providers_check": ("scoped_keys", {"providers": []}),
    "scoped_keys_secret_digest_check": ("scoped_keys", {"secret_digest": "\\x00"}),
    "scoped_keys_tools_check": ("scoped_keys", {"tools": []}),
    "sealed_results_kind_check": ("sealed_results", {"kind": "prompt"}),
    "tool_contracts_version_check": ("tool_contracts", {"version": 0}),
    "tool_contracts_inline_digest_check": ("tool_contracts", {"version": 1 << 30, "inline_digest": "\\x00"}),
    "tool_contract_inline": ("tool_contracts", {"version": 1 << 30}),
    "webhooks_in_event_id_check": ("webhooks_in", {"event_id": ""}),
}
"""For each check constraint a row that only it refuses: the first row of the table with these columns changed."""

# More ways to break constraints that say several things at once.
MORE_CHECKS = [
    ("reservation_effect", "reservations", {**columns_of(State.SUCCEEDED), "settled_attempt_id": None}),
    ("reservation_effect", "reservations", {**columns_of(State.SUCCEEDED), "settled_at": None}),
    ("reservation_no_effect", "reservations", {**columns_of(State.DENIED), "external_reference": "re_1"}),
    ("reservation_no_effect", "reservations", {**columns_of(State.VOIDED), "external_reference": "re_1"}),
    ("reservation_voided", "reservations", {**columns_of(State.VOIDED), "void_reason": None}),
    ("reservation_doubt", "reservations", {**columns_of(State.IN_DOUBT), "doubt_since": None}),
    ("reservation_open_attempt", "reservations", _reserved(open_attempt_id=str(uuid4()))),
    ("reservation_live", "reservations", {**columns_of(State.SUCCEEDED), "live": False}),
    ("reservation_live", "reservations", {**columns_of(State.FAILED), "live": True}),
    ("reservation_money", "reservations", _reserved(amount=None)),
    ("reservation_scope", "reservations", _reserved(scope="")),
    ("request_key_answered", "request_keys", {"answer_status": 200, "sealed_answer": "\\x00"}),
    ("attempt_closed", "attempts", {"outcome": None, "closed_at": TIME, "closed_by": "answer"}),
    ("attempt_closed", "attempts", {"outcome": "unknown", "closed_at": TIME, "closed_by": None}),
]

CLONE = "insert into {table} select (jsonb_populate_record(t, $1)).* from {table} t where t.organization_id = $2 limit 1"
CLONE_ANY = "insert into {table} select (jsonb_populate_record(t, $1)).* from {table} t limit 1"
OF_NO_ORGANIZATION = ("epochs", "installation")
CLONE_ORGANIZATION = (
    "insert into organizations select (jsonb_populate_record(t, $1)).* from organizations t where t.id = $2 limit 1"
)


async def clone(store: Store, table: str, changes: dict[str, Any]) -> str | None:
    """What refuses a second row like the first one of a table but for these changes."""
    if table in OF_NO_ORGANIZATION:
        return await refusal_of(store, CLONE_ANY.format(table=table), changes)
    statement = CLONE_ORGANIZATION if table == "organizations" else CLONE.format(table=table)
    return await refusal_of(store, statement, changes, store.world.organization_id)


async def test_every_check_constraint_refuses_what_it_names(store: Store) -> None:
    """Each check constraint of the schema has a row that it alone refuses; no constraint is left without one."""
    await filled(store)
    names = await store.owner.fetch(
        "select conname from pg_constraint c join pg_class t on t.oid = c.conrelid "
        "where contype = 'c' and c.connamespace = 'public'::regnamespace and not t.relispartition"
    )
    assert {row["conname"] for row in names} == set(CHECKS)
    for name, (table, changes) in CHECKS.items():
        assert await clone(store, table, changes) == name, json.dumps(changes)
    for name, table, changes in MORE_CHECKS:
        assert await clone(store, table, changes) == name, json.dumps(changes)


async def test_a_second_row_like_the_first_is_refused_for_being_a_second_one(store: Store) -> None:
    """The negative control of the checks: without a change the same insert breaks no check, only a key."""
    await filled(store)
    for table in {table for table, _ in CHECKS.values()}:
        refusal = await clone(store, table, {})
        assert refusal is not None
        assert refusal.endswith(("_pkey", "_key", "_once")), (table, refusal)


async def test_the_columns_of_each_state_are_right(store: Store) -> None:
    """The other negative control: a reservation with all that its state asks for is refused by no check."""
    await filled(store)
    for state in State:
        changes = {**columns_of(state), "id": str(uuid4()), "operation_key": "refund:pi_another"}
        assert await clone(store, "reservations", changes) is None, state


NEVER_NULL = [
    ("attempts", "actor_id"),
    ("attempts", "epoch"),
    ("attempts", "reservation_id"),
    ("attempts", "lease_until"),
    ("receipts", "attempt_id"),
    ("receipts", "external_reference"),
    ("receipts", "owner"),
    ("receipts", "actor_chain"),
    ("reservations", "project_id"),
    ("reservations", "environment_id"),
    ("reservations", "connection_id"),
    ("reservations", "tool"),
    ("reservations", "scope"),
    ("reservations", "operation_key"),
    ("reservations", "occurrence"),
    ("reservations", "contract_version"),
    ("reservations", "input_digest"),
    ("reservations", "actor_id"),
    ("reservations", "epoch"),
    ("reservations", "not_after"),
    ("tool_calls", "actor_id"),
    ("ledger_entries", "actor_chain"),
    ("contradictions", "external_reference"),
]


async def test_what_must_be_there_is_there(store: Store) -> None:
    """Scope, actor, epoch and reference columns are never null."""
    for table, column in NEVER_NULL:
        nullable = await store.one(
            "select is_nullable from information_schema.columns where table_schema = 'public' and table_name = $1 and column_name = $2",
            table,
            column,
        )
        assert nullable == "NO", (table, column)


STRAYS: list[tuple[str, dict[str, Any], str]] = [
    ("attempts", {"id": "new", "number": 2, "actor_id": "new", "outcome": "unknown", "closed_at": TIME, "closed_by": "x"}, "attempts_organization_id_actor_id_fkey"),
    ("attempts", {"id": "new", "number": 2, "epoch": 9, "outcome": "unknown", "closed_at": TIME, "closed_by": "x"}, "attempts_epoch_fkey"),
    ("attempts", {"id": "new", "reservation_id": "new"}, "attempts_organization_id_reservation_id_fkey"),
    ("attempts", {"id": "new"}, "attempts_organization_id_reservation_id_number_key"),
    ("receipts", {"id": "new"}, "receipt_once"),
    ("receipts", {"id": "new", "reservation_id": "new"}, "receipts_organization_id_reservation_id_fkey"),
    ("sealed_inputs", {"reservation_id": "new"}, "sealed_inputs_organization_id_reservation_id_fkey"),
    ("contradictions", {"id": "new"}, "contradiction_once"),
    ("reservations", {"id": "new", "epoch": 9, "operation_key": "another"}, "reservations_epoch_fkey"),
    ("reservations", {"id": "new", "run_id": "new", "lineage": "new", "operation_key": "another"}, "reservations_organization_id_run_id_fkey"),
]  # fmt: skip


async def test_rows_belong_to_rows_that_exist(store: Store) -> None:
    """An attempt has an actor, an epoch and a reservation that exist, a reservation one receipt, a contradiction one row."""
    await filled(store)
    for table, changes, refusal in STRAYS:
        values = {name: str(uuid4()) if value == "new" else value for name, value in changes.items()}
        found = await clone(store, table, values)
        assert found in (refusal, "reservations_organization_id_lineage_fkey" if "lineage" in changes else refusal), changes


async def test_one_live_reservation_and_one_open_attempt(store: Store) -> None:
    """The unique indexes refuse a second live reservation of a key and a second open attempt of a reservation."""
    row = store.world.row()
    await reserve(store.api, [row])
    attempt = await claimed(store.worker, row)
    assert await clone(store, "reservations", {**_reserved(), "id": str(uuid4())}) == "reservations_live"
    second = {"id": str(uuid4()), "number": 2}
    assert await clone(store, "attempts", second) == "attempts_open"
    assert await clone(store, "attempts", {**second, "outcome": "unknown", "closed_at": TIME, "closed_by": "x"}) is None
    assert attempt.number == 1


async def test_ledger_entries_and_receipts_are_append_only(store: Store) -> None:
    """No service may change or remove them, by the table or by a partition; an update is refused even to their owner."""
    await filled(store)
    partition = await store.one("select tableoid::regclass::text from ledger_entries limit 1")
    for connection in (store.api, store.worker):
        for table in ("ledger_entries", partition, "receipts"):
            for statement in (
                f"update {table} set organization_id = organization_id",
                f"delete from {table}",
                f"truncate {table}",
            ):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await connection.execute(statement)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("delete from reservations")
    for table in ("ledger_entries", partition, "receipts"):
        assert await refusal_of(store, f"update {table} set organization_id = organization_id") == "append_only"


async def test_the_worker_cannot_reopen_what_is_closed(store: Store) -> None:
    """The role that may update reservations still cannot change a closed one."""
    await filled(store)
    for state in ("succeeded", "failed"):
        with pytest.raises(asyncpg.CheckViolationError, match="never changes again"):
            await store.worker.execute(
                "update reservations set state = 'reserved', live = true where organization_id = $1 and state = $2",
                store.world.organization_id,
                state,
            )
