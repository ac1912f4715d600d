-- The calls that your transactions have asked for, and what came of them. Run it in the database that `agent_outbox.enqueue` writes
-- to, in a schema of the search path. Run again, it changes nothing.
--
-- Who enqueues needs `insert` on the table; the relay needs `select, update, delete`.

create table if not exists agent_outbox_calls (
    id uuid primary key,
    -- Which tool is called; the whole call is text, because json types of Postgres write numbers anew.
    tool text not null,
    -- Erased once it is done.
    call text,
    state text not null default 'waiting' check (state in ('waiting', 'done', 'refused')),
    enqueued_at timestamptz not null default now(),
    -- When a relay may take it up; a relay that has it moves this ahead for as long as it may keep it.
    due_at timestamptz not null default now(),
    -- How often it was taken up; how often it was refused with leave to try again; how often a person had it tried anew.
    tries integer not null default 0,
    refusals integer not null default 0,
    round integer not null default 1,
    -- What is known of it: the gateway's reservation, the code and text of its last problem, and in the end receipt and result.
    reservation_id text,
    code text,
    message text,
    receipt json,
    result json,
    ended_at timestamptz,
    check ((state = 'waiting') = (ended_at is null)),
    check (state = 'done' or call is not null)
);

create index if not exists agent_outbox_calls_due on agent_outbox_calls (due_at) where state = 'waiting';
create index if not exists agent_outbox_calls_ended on agent_outbox_calls (ended_at) where state <> 'waiting';
