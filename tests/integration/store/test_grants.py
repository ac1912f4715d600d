"""Who may do what, table by table: the grants as Postgres has them, compared with a table written down here."""

import asyncpg
import pytest
from tests.integration.store.races import Store
from tests.support.ledger import claim_of, claimed, settled

from outbox_domain.reservation import Outcome
from outbox_store import actors, tool_calls
from outbox_store.batches import Failed
from outbox_store.claim import ClaimedByClient, claim, claim_by_client
from outbox_store.migrate import ROLES
from outbox_store.reserve import reserve
from outbox_store.sweep import Lapse, lapse

S, SI, SIU, ALL = "SELECT", "SELECT INSERT", "SELECT INSERT UPDATE", "SELECT INSERT UPDATE DELETE"
GRANTS: dict[str, dict[str, str]] = {
    "actors": {"outbox_api": SI},
    "attempts": {"outbox_api": SI, "outbox_worker": SIU},
    "blocked_runs": {"outbox_api": "SELECT INSERT DELETE", "outbox_worker": "SELECT INSERT DELETE"},
    "breakers": {"outbox_api": S, "outbox_worker": SIU},
    "connections": {"outbox_api": S, "outbox_worker": S},
    "contradictions": {"outbox_api": SI, "outbox_worker": SI},
    "doubt_episodes": {"outbox_api": SIU, "outbox_worker": SIU},
    "environments": {"outbox_api": S, "outbox_worker": S},
    "epoch_clearances": {"outbox_api": SI, "outbox_worker": S},
    "epochs": {"outbox_api": S, "outbox_worker": SI},
    "installation": {"outbox_worker": S},
    "instances": {"outbox_api": S, "outbox_worker": SI},
    "ledger_entries": {"outbox_api": SI, "outbox_worker": "INSERT"},
    "members": {"outbox_api": S},
    "open_objects": {"outbox_api": ALL, "outbox_worker": ALL},
    "open_reservations": {"outbox_api": "SELECT INSERT DELETE", "outbox_worker": "SELECT UPDATE DELETE"},
    "organizations": {"outbox_api": S, "outbox_worker": S},
    "probe_offers": {"outbox_api": SI},
    "probes": {"outbox_api": "SELECT INSERT DELETE"},
    "projects": {"outbox_api": SI, "outbox_worker": S},
    "provider_credentials": {"outbox_worker": S},
    "receipts": {"outbox_api": SI, "outbox_worker": "INSERT"},
    "recovery_turns": {"outbox_worker": SIU},
    "request_keys": {"outbox_api": ALL},
    "reservation_transitions": {"outbox_api": S, "outbox_worker": S},
    "reservations": {"outbox_api": SI, "outbox_worker": "SELECT UPDATE"},
    "runs": {"outbox_api": SI, "outbox_worker": S},
    "schema_migrations": {"outbox_api": S, "outbox_worker": S},
    "scoped_keys": {"outbox_api": SI},
    "sealed_inputs": {"outbox_api": "INSERT DELETE", "outbox_worker": "SELECT DELETE"},
    "sealed_results": {"outbox_api": SI, "outbox_worker": ALL},
    "tool_calls": {"outbox_api": SI},
    "tool_contracts": {"outbox_api": S, "outbox_worker": S},
    "webhook_secrets": {"outbox_api": S},
    "webhooks_in": {"outbox_api": SI},
}
ENDS_A_DOUBT = {
    "reservations": "state live open_attempt_id unknown_attempts last_attempt_outcome absences absent_at lookups recovery_step tries generation "
    "refusal_stored stored_failure possible_send_at doubt_since doubt_cause absence_counts_at external_reference settled_attempt_id "
    "settled_at person_asked_at changed_at",
    "attempts": "outcome closed_at closed_by reason proven_absent",
    "sealed_results": "sealed expires_at",
    "open_reservations": "due_at",
    "webhooks_in": "verdict",
    "contradictions": "closed_at",
}
"""What the API may change so that a person or a webhook ends a doubt (ADR 0011)."""

CARRIES_OUT = {
    "reservations": "attempts epoch resends last_attempt_id late_write conflicted void_reason provider_status provider_code",
    "attempts": "lease_until provider_key marker late_outcome late_outcomes late_write stored provider_status provider_code provider_request_id "
    "provider_seconds",
    "probes": "answered_at found verdict",
}
"""What the API may change besides for T2 and T3 of what clients carry out; triggers keep it off what the gateway does (ADR 0014)."""

BROUGHT_ALONG = {
    "tool_contracts": "organization_id tool version document inline_digest",
    "connections": "organization_id id environment_id provider name base_url",
}
"""What an inline contract may add; a trigger refuses whatever could be sent to."""

COLUMN_GRANTS = {
    ("outbox_api", "tool_calls", "repeats", "UPDATE"),
    *(("outbox_api", table, column, "UPDATE") for table, columns in ENDS_A_DOUBT.items() for column in columns.split()),
    *(("outbox_api", table, column, "UPDATE") for table, columns in CARRIES_OUT.items() for column in columns.split()),
    *(("outbox_api", table, column, "INSERT") for table, columns in BROUGHT_ALONG.items() for column in columns.split()),
    *(("outbox_api", "sealed_inputs", column, "SELECT") for column in ("organization_id", "reservation_id")),
    *(("outbox_worker", "installation", column, "UPDATE") for column in ("beat", "beat_at")),
    ("outbox_api", "reservations", "suspected_epoch", "UPDATE"),
}
SEQUENCE_GRANTS = {(role, "ledger_entry_ids", "USAGE") for role in ROLES}
PRIVILEGES = ["SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER"]

TABLES = """
select c.relname, p.privilege
from pg_class c cross join unnest($2::text[]) as p (privilege)
where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p', 'v', 'm') and not c.relispartition
  and has_table_privilege($1, c.oid, p.privilege)
"""
PARTITIONS = """
select c.relname from pg_class c cross join unnest($2::text[]) as p (privilege)
where c.relnamespace = 'public'::regnamespace and c.relispartition and has_table_privilege($1, c.oid, p.privilege)
"""
COLUMNS = """
select c.relname, a.attname, p.privilege
from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
cross join unnest(array['SELECT', 'INSERT', 'UPDATE', 'REFERENCES']) as p (privilege)
where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') and has_column_privilege($1, c.oid, a.attnum, p.privilege)
  and not has_table_privilege($1, c.oid, p.privilege)
"""
SEQUENCES = """
select c.relname, p.privilege from pg_class c cross join unnest(array['USAGE', 'SELECT', 'UPDATE']) as p (privilege)
where c.relnamespace = 'public'::regnamespace and c.relkind = 'S' and has_sequence_privilege($1, c.oid, p.privilege)
"""
FUNCTIONS = """
select p.proname from pg_proc p where p.pronamespace = 'public'::regnamespace and p.prorettype <> 'trigger'::regtype
  and has_function_privilege($1, p.oid, 'EXECUTE')
"""


async def test_every_grant_is_written_down(store: Store) -> None:
    """What each service role may do to each table, column, sequence and function is exactly what this file says."""
    for role in ROLES:
        found: dict[str, set[str]] = {}
        for row in await store.owner.fetch(TABLES, role, PRIVILEGES):
            found.setdefault(row["relname"], set()).add(row["privilege"])
        assert found == {table: set(grants[role].split()) for table, grants in GRANTS.items() if role in grants}
        columns = {(role, *row) for row in await store.owner.fetch(COLUMNS, role)}
        assert columns == {grant for grant in COLUMN_GRANTS if grant[0] == role}
        sequences = {(role, *row) for row in await store.owner.fetch(SEQUENCES, role)}
        assert sequences == {grant for grant in SEQUENCE_GRANTS if grant[0] == role}
        assert await store.owner.fetch(PARTITIONS, role, PRIVILEGES) == []
        assert await store.owner.fetch(FUNCTIONS, role) == []


async def test_every_table_is_in_the_table(store: Store) -> None:
    """A table that a migration adds is refused by this test until its grants are written down, even if there are none."""
    tables = await store.owner.fetch(
        "select relname from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'p') and not relispartition"
    )
    assert {row["relname"] for row in tables} == set(GRANTS)


async def test_service_roles_are_plain_roles(store: Store) -> None:
    """No service role is a superuser, owns anything, makes anything or belongs to another role."""
    for role in ROLES:
        record = await store.owner.fetchrow("select * from pg_roles where rolname = $1", role)
        assert record is not None
        for attribute in ("rolsuper", "rolcreaterole", "rolcreatedb", "rolreplication", "rolbypassrls"):
            assert record[attribute] is False
        assert await store.one("select count(*) from pg_class where relowner = $1", record["oid"]) == 0
        assert await store.one("select count(*) from pg_auth_members where member = $1", record["oid"]) == 0
        assert await store.one("select has_schema_privilege($1, 'public', 'CREATE')", role) is False


REFUSED_TO_THE_API = [
    "select * from provider_credentials",
    "select sealed from sealed_inputs",
    "update attempts set actor_id = gen_random_uuid()",
    "update attempts set epoch = 2",
    "update reservations set not_after = now() + interval '1 day'",
    "update reservations set operation_key = 'mine'",
    "update reservations set executor = 'client'",
    "delete from reservations",
    "delete from attempts",
    "update receipts set owner = 'me'",
    "delete from receipts",
    "update contradictions set operation_key = 'mine'",
    "delete from contradictions",
    "delete from sealed_results",
    "update webhook_secrets set sealed = ''",
    "delete from webhooks_in",
    "update tool_calls set answer_code = 'ok'",
    "delete from tool_calls",
    "update scoped_keys set expires_at = null",
    "insert into tool_contracts (tool, created_at) values ('x', now())",
    "insert into connections (id, is_default) values (gen_random_uuid(), true)",
    "update connections set base_url = 'https://mine'",
    "update tool_contracts set document = '{}'",
    "update probes set asked_at = now() - interval '1 day'",
    "update organizations set data_key_wrapped = ''",
    "insert into members (roles) values ('{owner}')",
    "insert into reservation_transitions values ('failed', 'reserved')",
    "insert into epochs (number, cause) values (2, 'x')",
    "select ledger_partitions_ensure(1)",
    "create table mine (n int)",
    "delete from schema_migrations",
]


REFUSED_ON_WHAT_THE_GATEWAY_DOES = [
    "insert into attempts (organization_id, id, reservation_id, number, epoch, actor_id, worker, resend, lease_until) "
    "select organization_id, gen_random_uuid(), id, 99, epoch, actor_id, 'mine', false, now() from reservations where id = $1",
    "update attempts set lease_until = now() + interval '1 day' where reservation_id = $1",
    "update attempts set provider_key = 'mine' where reservation_id = $1",
    "update attempts set late_write = true where reservation_id = $1",
    "update attempts set late_outcomes = '{unsent}' where reservation_id = $1",
    "update attempts set outcome = 'unsent', closed_at = now(), closed_by = 'answer' where reservation_id = $1",
    "update reservations set resends = 9 where id = $1",
    "update reservations set late_write = true where id = $1",
    "update reservations set epoch = epoch - 1 where id = $1",
    "update reservations set attempts = 9 where id = $1",
    "update reservations set last_attempt_id = gen_random_uuid() where id = $1",
    "update reservations set provider_status = 402 where id = $1",
]


async def test_what_the_api_may_not_do_to_what_the_gateway_does(store: Store) -> None:
    """The API opens, lengthens and answers no attempt of the gateway, though it does all that for clients."""
    row = store.world.row()
    await reserve(store.api, [row])
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await store.api.execute("update reservations set state = 'voided', live = false, void_reason = 'x' where id = $1", row.id)
    await claimed(store.worker, row)
    before = await store.owner.fetchrow("select * from reservations where id = $1", row.id)
    for statement in REFUSED_ON_WHAT_THE_GATEWAY_DOES:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await store.api.execute(statement, row.id)
    assert await store.owner.fetchrow("select * from reservations where id = $1", row.id) == before
    for statement in (
        "insert into tool_contracts (organization_id, tool, version, document) values ($1, 'a.b', 1, '{}')",
        "insert into connections (organization_id, id, environment_id, provider, name, base_url) "
        f"values ($1, gen_random_uuid(), '{store.world.environment_id}', 'mine', 'mine', 'https://mine')",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await store.api.execute(statement, store.world.organization_id)


async def test_what_a_worker_may_not_do_to_what_a_client_does(store: Store) -> None:
    """A worker opens no attempt of a client, keeps none open and answers none; it closes what has lapsed."""
    row = store.world.row(executor="client")
    await reserve(store.api, [row])
    wish = claim_of(row, executor="client", actor_id=row.actor_id)
    [refused] = await claim(store.worker, [wish])
    assert isinstance(refused, Failed)
    assert isinstance(refused.error, asyncpg.InsufficientPrivilegeError)
    assert isinstance(await claim_by_client(store.api, wish), ClaimedByClient)
    for statement in (
        "insert into attempts (organization_id, id, reservation_id, number, epoch, actor_id, worker, resend, lease_until, outcome, closed_at, "
        "closed_by) select organization_id, gen_random_uuid(), id, 99, epoch, actor_id, 'mine', false, now(), 'unknown', now(), 'lapse' "
        "from reservations where id = $1",
        "update reservations set attempts = 9 where id = $1",
        "update attempts set lease_until = now() + interval '1 day' where reservation_id = $1",
        "update attempts set outcome = 'unsent', closed_at = now(), closed_by = 'answer' where reservation_id = $1",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await store.worker.execute(statement, row.id)
    await store.let_the_lease_lapse(wish.attempt_id)
    lapse_ = Lapse(
        organization_id=row.organization_id,
        reservation_id=row.id,
        attempt_id=wish.attempt_id,
        settle_seconds=1.0,
        recover_seconds=9.0,
    )
    assert await lapse(store.worker, [lapse_]) == [row.id]


async def test_what_the_api_may_not_do(store: Store) -> None:
    """The API reads no credential and no sealed input, opens no attempt, widens no gate of sending and undoes no settlement."""
    for statement in REFUSED_TO_THE_API:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await store.api.execute(statement)


REFUSED_TO_THE_WORKER = [
    "insert into reservations (id) values (gen_random_uuid())",
    "insert into sealed_inputs (sealed) values ('')",
    "insert into open_reservations (due_at) values (now())",
    "delete from reservations",
    "delete from attempts",
    "delete from receipts",
    "update receipts set owner = 'me'",
    "delete from contradictions",
    "update contradictions set closed_at = now()",
    "update provider_credentials set sealed = ''",
    "select * from scoped_keys",
    "select * from receipts",
    "select * from request_keys",
    "select * from tool_calls",
    "select * from members",
    "select * from webhook_secrets",
    "insert into webhooks_in (event_id) values ('evt_1')",
    "insert into runs (id) values (gen_random_uuid())",
    "insert into reservation_transitions values ('failed', 'reserved')",
    "update epochs set number = 2",
    "create table mine (n int)",
]


async def test_what_the_worker_may_not_do(store: Store) -> None:
    """The worker reserves nothing, reads no scoped key and closes no contradiction."""
    for statement in REFUSED_TO_THE_WORKER:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await store.worker.execute(statement)


async def test_what_the_services_do_they_may(store: Store) -> None:
    """The whole path works under the two roles alone; each statement that fails for a missing grant would show here."""
    row = store.world.row()
    await reserve(store.api, [row])
    await settled(store.worker, await claimed(store.worker, row), Outcome.UNKNOWN, sealed_failure=b"words")
    attempt = await claimed(store.worker, row)
    await settled(store.worker, attempt, Outcome.SUCCEEDED)
    assert (
        await actors.ensure(store.api, store.world.organization_id, store.world.actor_id, "agent", "tests")
        == store.world.actor_id
    )
    await tool_calls.insert(store.api, [])
