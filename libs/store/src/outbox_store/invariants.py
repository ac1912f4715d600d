"""The invariants of design section 4 as SQL: each query finds the rows that break one.

Tests ask them after every integration, fault and e2e test; `outbox doctor` asks them of a live system.
"""

from outbox_store.connection import Connection

INVARIANTS: dict[str, str] = {
    "succeeded has exactly one receipt": """
        select r.id from reservations r left join receipts t on (t.organization_id, t.reservation_id) = (r.organization_id, r.id)
        where (r.state = 'succeeded') <> (t.id is not null)""",
    "the receipt says what the reservation says": """
        select r.id from reservations r join receipts t on (t.organization_id, t.reservation_id) = (r.organization_id, r.id)
        where t.external_reference <> r.external_reference or t.attempt_id <> r.settled_attempt_id""",
    "failed has every attempt closed as refused, unsent or proven absent, or a refusal that the provider stored": """
        select r.id from reservations r join attempts a on (a.organization_id, a.reservation_id) = (r.organization_id, r.id)
        where r.state = 'failed' and not r.refusal_stored
          and not (a.outcome in ('rejected', 'deferred', 'unsent') or a.proven_absent)""",
    "denied has no attempt": """
        select r.id from reservations r join attempts a on (a.organization_id, a.reservation_id) = (r.organization_id, r.id)
        where r.state = 'denied'""",
    "voided has only attempts closed as deferred, unsent or proven absent": """
        select r.id from reservations r join attempts a on (a.organization_id, a.reservation_id) = (r.organization_id, r.id)
        where r.state = 'voided' and not (a.outcome in ('deferred', 'unsent') or a.proven_absent)""",
    "at most one open attempt, and exactly one while executing": """
        select r.id from reservations r
        left join attempts a on (a.organization_id, a.reservation_id) = (r.organization_id, r.id) and a.outcome is null
        group by r.organization_id, r.id, r.state, r.open_attempt_id
        having count(a.id) <> (r.state = 'executing')::int or (r.state = 'executing' and min(a.id::text) <> r.open_attempt_id::text)""",
    "at most one live reservation per operation key": """
        select min(id::text) from reservations where live
        group by organization_id, project_id, environment_id, connection_id, tool, scope, operation_key, occurrence having count(*) > 1""",
    "at most one occurrence of an operation key is open": """
        select min(id::text) from reservations where live and state <> 'succeeded'
        group by organization_id, project_id, environment_id, connection_id, tool, scope, operation_key having count(*) > 1""",
    "the count of unknown attempts is true": """
        select r.id from reservations r
        left join attempts a on (a.organization_id, a.reservation_id) = (r.organization_id, r.id) and a.outcome = 'unknown'
          and not a.proven_absent
        where r.state <> 'succeeded'
        group by r.organization_id, r.id, r.unknown_attempts having count(a.id) <> r.unknown_attempts""",
    "no sealed input left after settlement, and none missing before": """
        select r.id from reservations r left join sealed_inputs s on (s.organization_id, s.reservation_id) = (r.organization_id, r.id)
        where (r.state in ('awaiting_review', 'reserved', 'executing', 'in_doubt')) <> (s.reservation_id is not null)""",
    "an open reservation is watched, a closed one is not": """
        select r.id from reservations r left join open_reservations o on (o.organization_id, o.reservation_id) = (r.organization_id, r.id)
        where (r.state in ('awaiting_review', 'reserved', 'executing', 'in_doubt')) <> (o.reservation_id is not null)""",
    "every state has the ledger entry that led to it": """
        select r.id from reservations r
        where not exists (
          select from ledger_entries e
          where (e.organization_id, e.reservation_id) = (r.organization_id, r.id) and e.to_state = r.state)""",
    "the ledger's changes of a reservation form one chain": """
        select reservation_id from (
          select reservation_id, from_state, lag(to_state) over (partition by organization_id, reservation_id order by xid, id) as before
          from ledger_entries where reservation_id is not null and kind not in ('evidence', 'contradiction', 'variance', 'conflict', 'recheck')) e
        where from_state is distinct from before""",
    "what awaits a doubt has the time from which an absence counts": """
        select id from reservations where state = 'in_doubt' and (absence_counts_at is null or unknown_attempts = 0)""",
    "an open operation holds its object": """
        select r.id from reservations r
        where r.object_key is not null and r.live and r.state <> 'succeeded' and not exists (
          select from open_objects o
          where (o.organization_id, o.connection_id, o.object_key, o.reservation_id) = (r.organization_id, r.connection_id, r.object_key, r.id)
            and o.quiet_at is null)""",
    "a run is blocked exactly while a doubt that blocks it is open": """
        select r.id from reservations r left join blocked_runs b on (b.organization_id, b.reservation_id) = (r.organization_id, r.id)
        where (r.blocks_run and r.lineage is not null and r.live and r.state <> 'succeeded' and r.unknown_attempts > 0)
          <> (b.reservation_id is not null)""",
    "an open episode counts the doubts that wait for a person": """
        select coalesce(e.id, d.first) from (
          select organization_id, connection_id, coalesce(doubt_cause, '') as cause, count(*) as waiting, min(id::text)::uuid as first
          from reservations where state = 'in_doubt' and person_asked_at is not null group by 1, 2, 3) d
        full join (select * from doubt_episodes where closed_at is null) e using (organization_id, connection_id, cause)
        where d.waiting is distinct from e.waiting""",
}


ROWS_SHOWN_MAX = 5


async def violations(connection: Connection) -> dict[str, list[str]]:
    """The invariants that do not hold, each with up to five of the rows that break it.

    Args:
        connection: of a role that may read every table. Each query sees the ledger at one moment; of a live system ask in one
            transaction of isolation level `repeatable read`, so that all see the same.
    """
    broken = {}
    for name, query in INVARIANTS.items():
        if rows := await connection.fetch(query):
            broken[name] = [str(row[0]) for row in rows[:ROWS_SHOWN_MAX]]
    return broken
