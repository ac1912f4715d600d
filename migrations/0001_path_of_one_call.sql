-- The path of one tool call, from the organization that owns it to the ledger entry that proves it.
-- Every key starts with organization_id so that a distributed Postgres can shard on it (design 7).
-- Plain Postgres 15: no extensions, no identity columns on partitioned tables.

create table organizations (
  id uuid primary key,
  name text not null unique check (name ~ '^[a-z0-9][a-z0-9-]{0,62}$'),
  data_key_wrapped bytea not null,
  digest_key_wrapped bytea not null,
  provider_key_secret_wrapped bytea not null,
  created_at timestamptz not null default now()
);
comment on table organizations is 'The tenant that owns every row; its keys are wrapped by a key the customer manages.';

create table projects (
  organization_id uuid not null references organizations,
  id uuid not null,
  name text not null check (name ~ '^[a-z0-9][a-z0-9-]{0,62}$'),
  created_at timestamptz not null default now(),
  primary key (organization_id, id),
  unique (organization_id, name)
);

create table environments (
  organization_id uuid not null references organizations,
  id uuid not null,
  name text not null check (name ~ '^[a-z0-9][a-z0-9-]{0,62}$'),
  default_decision text check (default_decision in ('allow', 'deny')),
  created_at timestamptz not null default now(),
  primary key (organization_id, id),
  unique (organization_id, name)
);
comment on column environments.default_decision is 'What holds where no policy matches; undeclared is deny outside sandbox and development.';

create table actors (
  organization_id uuid not null references organizations,
  id uuid not null,
  kind text not null check (kind in ('member', 'agent', 'subagent')),
  name text not null check (length(name) between 1 and 200),
  parent_id uuid,
  created_at timestamptz not null default now(),
  primary key (organization_id, id),
  unique (organization_id, kind, name),
  foreign key (organization_id, parent_id) references actors
);

create table members (
  organization_id uuid not null,
  actor_id uuid not null,
  roles text[] not null check (roles <@ array['owner', 'admin', 'operator', 'approver', 'auditor', 'developer']),
  created_at timestamptz not null default now(),
  primary key (organization_id, actor_id),
  foreign key (organization_id, actor_id) references actors
);

create table scoped_keys (
  organization_id uuid not null,
  id text not null unique,
  environment_id uuid not null,
  project_id uuid,
  run text,
  actor_id uuid not null,
  providers text[] check (cardinality(providers) > 0),
  tools text[] check (cardinality(tools) > 0),
  expires_at timestamptz,
  revoked_at timestamptz,
  secret_digest bytea not null check (length(secret_digest) = 32),
  created_by uuid not null,
  created_at timestamptz not null default now(),
  primary key (organization_id, id),
  foreign key (organization_id, environment_id) references environments,
  foreign key (organization_id, project_id) references projects,
  foreign key (organization_id, actor_id) references actors,
  foreign key (organization_id, created_by) references actors
);
comment on table scoped_keys is 'What an actor presents; only a digest of the secret is kept.';

create table runs (
  organization_id uuid not null,
  id uuid not null,
  environment_id uuid not null,
  project_id uuid not null,
  name text not null check (length(name) between 1 and 200),
  parent_id uuid,
  lineage uuid not null,
  created_at timestamptz not null default now(),
  primary key (organization_id, id),
  unique (organization_id, environment_id, project_id, name),
  foreign key (organization_id, environment_id) references environments,
  foreign key (organization_id, project_id) references projects,
  foreign key (organization_id, parent_id) references runs,
  foreign key (organization_id, lineage) references runs
);
comment on column runs.lineage is 'The run at the root of the forks; the run itself when it is no fork.';

create table tool_contracts (
  organization_id uuid not null references organizations,
  tool text not null,
  version integer not null check (version > 0),
  document jsonb not null,
  created_at timestamptz not null default now(),
  primary key (organization_id, tool, version)
);

create table connections (
  organization_id uuid not null,
  id uuid not null,
  environment_id uuid not null,
  provider text not null,
  name text not null check (name ~ '^[a-z0-9][a-z0-9-]{0,62}$'),
  base_url text not null check (base_url ~ '^https?://'),
  fixed_headers jsonb not null default '{}',
  currency text check (currency ~ '^[A-Z]{3}$'),
  allow_private boolean not null default false,
  is_default boolean not null default false,
  created_at timestamptz not null default now(),
  primary key (organization_id, id),
  unique (organization_id, environment_id, name),
  foreign key (organization_id, environment_id) references environments
);
create unique index connections_default on connections (organization_id, environment_id, provider) where is_default;

create table provider_credentials (
  organization_id uuid not null,
  connection_id uuid not null,
  sealed bytea not null,
  created_at timestamptz not null default now(),
  primary key (organization_id, connection_id),
  foreign key (organization_id, connection_id) references connections
);
comment on table provider_credentials is 'Sealed to the public key of the worker, which alone may read this table.';

create table epochs (
  number bigint primary key,
  started_at timestamptz not null default now(),
  cause text not null
);
insert into epochs (number, cause) values (1, 'first start');

create table reservation_transitions (
  from_state text not null,
  to_state text not null,
  primary key (from_state, to_state)
);
insert into reservation_transitions (from_state, to_state) values
  ('awaiting_review', 'reserved'), ('awaiting_review', 'denied'), ('awaiting_review', 'voided'),
  ('reserved', 'executing'), ('reserved', 'voided'), ('reserved', 'in_doubt'),
  ('executing', 'succeeded'), ('executing', 'failed'), ('executing', 'in_doubt'), ('executing', 'reserved'),
  ('in_doubt', 'executing'), ('in_doubt', 'succeeded'), ('in_doubt', 'failed'), ('in_doubt', 'reserved');

create table reservations (
  organization_id uuid not null,
  id uuid not null,
  -- Identity of the effect. Scope columns stand beside the key, never inside a joined string (design 5.3).
  project_id uuid not null,
  environment_id uuid not null,
  connection_id uuid not null,
  tool text not null,
  scope text not null,
  operation_key text not null check (length(operation_key) between 1 and 512),
  occurrence integer not null default 1 check (occurrence > 0),
  contract_version integer not null,
  input_digest bytea not null check (length(input_digest) = 32),
  review_digest bytea not null check (length(review_digest) = 32),
  declared jsonb not null,
  amount bigint,
  currency text check (currency ~ '^[A-Z]{3}$'),
  reference text,
  guarantee_class text not null check (guarantee_class in ('A', 'B', 'C')),
  owner text not null,
  executor text not null default 'gateway' check (executor in ('gateway', 'client')),
  -- Who asked first, and where.
  actor_id uuid not null,
  actor_chain jsonb not null,
  key_id text not null,
  run_id uuid,
  lineage uuid,
  checkpoint text,
  step text,
  call_id text,
  model text,
  traceparent text,
  trace_id text,
  decision jsonb,
  -- Where it stands. Every decision of T2 and T3 is taken from these columns under the row's own lock, because a
  -- statement that waited for the lock sees other tables as they were before it waited.
  state text not null,
  live boolean not null,
  epoch bigint not null references epochs,
  generation integer not null default 0 check (generation >= 0),
  attempts integer not null default 0,
  unknown_attempts integer not null default 0 check (unknown_attempts >= 0),
  open_attempt_id uuid,
  last_attempt_id uuid,
  last_attempt_outcome text,
  tries integer not null default 0,
  resends integer not null default 0,
  possible_send_at timestamptz,
  not_after timestamptz not null,
  doubt_since timestamptz,
  doubt_cause text,
  absence_counts_at timestamptz,
  late_write boolean not null default false,
  stored_failure boolean not null default false,
  refusal_stored boolean not null default false,
  void_reason text,
  external_reference text,
  settled_attempt_id uuid,
  provider_status integer,
  provider_code text check (provider_code ~ '^[A-Za-z0-9_.-]{1,64}$'),
  created_at timestamptz not null default now(),
  changed_at timestamptz not null default now(),
  settled_at timestamptz,
  xid xid8 not null default pg_current_xact_id(),
  primary key (organization_id, id),
  foreign key (organization_id, project_id) references projects,
  foreign key (organization_id, environment_id) references environments,
  foreign key (organization_id, connection_id) references connections,
  foreign key (organization_id, tool, contract_version) references tool_contracts,
  foreign key (organization_id, actor_id) references actors,
  foreign key (organization_id, run_id) references runs,
  foreign key (organization_id, lineage) references runs,
  constraint reservation_state check (state in ('awaiting_review', 'reserved', 'executing', 'in_doubt', 'succeeded', 'failed', 'denied', 'voided')),
  constraint reservation_live check (live = (state in ('awaiting_review', 'reserved', 'executing', 'in_doubt', 'succeeded'))),
  constraint reservation_scope check (scope = 'environment' or (lineage is not null and scope = 'run:' || lineage::text)),
  constraint reservation_run check ((run_id is null) = (lineage is null)),
  constraint reservation_open_attempt check ((state = 'executing') = (open_attempt_id is not null)),
  constraint reservation_effect check (state <> 'succeeded' or (external_reference is not null and settled_attempt_id is not null and settled_at is not null)),
  constraint reservation_no_effect check (state not in ('failed', 'denied', 'voided') or external_reference is null),
  constraint reservation_denied check (state <> 'denied' or attempts = 0),
  constraint reservation_voided check (state <> 'voided' or (unknown_attempts = 0 and void_reason is not null)),
  constraint reservation_doubt check (state <> 'in_doubt' or (doubt_since is not null and absence_counts_at is not null)),
  constraint reservation_money check ((amount is null) = (currency is null))
) with (fillfactor = 70);
-- The one live reservation of an operation key. The scope of a run starts with its lineage, a UUIDv7, so that
-- neighbours in time are neighbours in the index (design 8). No index names `state`, so changes of it stay HOT.
create unique index reservations_live on reservations
  (organization_id, project_id, environment_id, connection_id, tool, scope, operation_key, occurrence) where live;
create index reservations_refused on reservations
  (organization_id, project_id, environment_id, connection_id, tool, scope, operation_key, occurrence) where refusal_stored;
create index reservations_listed on reservations (organization_id, environment_id, xid, id);
create index reservations_reference on reservations (organization_id, environment_id, reference) where reference is not null;
create index reservations_run on reservations (organization_id, run_id) where run_id is not null;

create table open_reservations (
  organization_id uuid not null,
  reservation_id uuid not null,
  due_at timestamptz not null,
  primary key (organization_id, reservation_id),
  foreign key (organization_id, reservation_id) references reservations on delete cascade
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02);
create index open_reservations_due on open_reservations (due_at);
create index open_reservations_id on open_reservations (reservation_id);
comment on table open_reservations is 'One narrow row per open reservation: when somebody must look at it next; infinity means a person.';
comment on index open_reservations_id is 'A wake-up carries the id of a reservation alone.';

create table attempts (
  organization_id uuid not null,
  id uuid not null,
  reservation_id uuid not null,
  number integer not null check (number > 0),
  epoch bigint not null references epochs,
  actor_id uuid not null,
  worker text not null,
  provider_key text,
  resend boolean not null,
  claimed_at timestamptz not null default now(),
  lease_until timestamptz not null,
  outcome text,
  closed_at timestamptz,
  closed_by text,
  late_outcome text,
  proven_absent boolean not null default false,
  late_write boolean not null default false,
  stored boolean not null default false,
  reason text,
  provider_status integer,
  provider_code text check (provider_code ~ '^[A-Za-z0-9_.-]{1,64}$'),
  provider_request_id text,
  provider_seconds double precision,
  primary key (organization_id, id),
  unique (organization_id, reservation_id, number),
  foreign key (organization_id, reservation_id) references reservations on delete cascade,
  foreign key (organization_id, actor_id) references actors,
  constraint attempt_outcome check (outcome in ('succeeded', 'rejected', 'deferred', 'unsent', 'unknown')),
  constraint attempt_closed check ((outcome is null) = (closed_at is null) and (outcome is null) = (closed_by is null)),
  constraint attempt_late_outcome check (late_outcome in ('succeeded', 'rejected', 'deferred', 'unsent', 'unknown')),
  constraint attempt_absent check (not proven_absent or outcome = 'unknown')
) with (fillfactor = 70);
comment on column attempts.late_outcome is 'What the sender reported when the attempt was closed already; evidence, never an outcome.';
create unique index attempts_open on attempts (organization_id, reservation_id) where outcome is null;

create table receipts (
  organization_id uuid not null,
  id uuid not null,
  reservation_id uuid not null,
  attempt_id uuid not null,
  environment_id uuid not null,
  provider text not null,
  connection text not null,
  tool text not null,
  contract_version integer not null,
  external_reference text not null check (octet_length(external_reference) between 1 and 1000),
  confidence text not null check (confidence in ('confirmed', 'confirmed-by-lookup', 'confirmed-by-webhook', 'asserted')),
  evidence jsonb not null,
  provider_request_id text,
  actor_chain jsonb not null,
  owner text not null,
  policy jsonb,
  amount bigint,
  currency text,
  settled_at timestamptz not null default now(),
  xid xid8 not null default pg_current_xact_id(),
  primary key (organization_id, id),
  constraint receipt_once unique (organization_id, reservation_id),
  foreign key (organization_id, reservation_id) references reservations on delete cascade,
  foreign key (organization_id, attempt_id) references attempts on delete cascade,
  constraint receipt_money check ((amount is null) = (currency is null))
);
create index receipts_listed on receipts (organization_id, environment_id, xid, id);
create index receipts_external_reference on receipts (organization_id, external_reference);

create table sealed_inputs (
  organization_id uuid not null,
  reservation_id uuid not null,
  sealed bytea not null,
  primary key (organization_id, reservation_id),
  foreign key (organization_id, reservation_id) references reservations on delete cascade
);
comment on table sealed_inputs is 'The bound input and the declared context, sealed from reservation until settlement.';

create table sealed_results (
  organization_id uuid not null,
  reservation_id uuid not null,
  kind text not null check (kind in ('result', 'failure', 'body')),
  sealed bytea not null,
  expires_at timestamptz,
  primary key (organization_id, reservation_id, kind),
  foreign key (organization_id, reservation_id) references reservations on delete cascade
);
create index sealed_results_expiring on sealed_results (expires_at) where expires_at is not null;

create table contradictions (
  organization_id uuid not null,
  id uuid not null,
  reservation_id uuid not null,
  attempt_id uuid,
  project_id uuid not null,
  environment_id uuid not null,
  connection_id uuid not null,
  tool text not null,
  scope text not null,
  operation_key text not null,
  external_reference text not null check (octet_length(external_reference) between 1 and 1000),
  created_at timestamptz not null default now(),
  closed_at timestamptz,
  primary key (organization_id, id),
  foreign key (organization_id, reservation_id) references reservations on delete cascade,
  constraint contradiction_once unique (organization_id, reservation_id, external_reference)
);
create index contradictions_open on contradictions
  (organization_id, project_id, environment_id, connection_id, tool, scope, operation_key) where closed_at is null;
comment on table contradictions is 'Proof of an effect that a closed reservation denies; it counts as live for its key until a person closes it.';

create table tool_calls (
  organization_id uuid not null references organizations,
  id uuid not null,
  at timestamptz not null,
  reservation_id uuid,
  environment_id uuid not null,
  tool text not null,
  actor_id uuid not null,
  actor_chain jsonb not null,
  key_id text not null,
  run text,
  checkpoint text,
  step text,
  call_id text,
  model text,
  trace_id text,
  answer_code text not null,
  answer_state text,
  replayed boolean not null,
  refusal_digest bytea,
  repeats integer not null default 0,
  primary key (organization_id, id)
);
create index tool_calls_reservation on tool_calls (organization_id, reservation_id) where reservation_id is not null;
create index tool_calls_refusal on tool_calls (organization_id, refusal_digest, at) where refusal_digest is not null;
create index tool_calls_at on tool_calls (organization_id, at);

create table request_keys (
  organization_id uuid not null references organizations,
  environment_id uuid not null,
  actor_id uuid not null,
  method text not null,
  path text not null,
  request_key text not null check (length(request_key) between 1 and 255),
  request_digest bytea not null,
  holder uuid not null,
  pending_until timestamptz,
  answer_status integer,
  sealed_answer bytea,
  created_at timestamptz not null default now(),
  primary key (organization_id, environment_id, actor_id, method, path, request_key),
  constraint request_key_answered check ((pending_until is null) = (answer_status is not null and sealed_answer is not null))
);
create index request_keys_age on request_keys (created_at);
-- The few that are being answered at this moment, so that renewing them does not read all keys of the day.
create index request_keys_pending on request_keys (holder) where pending_until is not null;

create sequence ledger_entry_ids;
create table ledger_entries (
  organization_id uuid not null,
  id bigint not null default nextval('ledger_entry_ids'),
  at timestamptz not null default now(),
  xid xid8 not null default pg_current_xact_id(),
  environment_id uuid,
  kind text not null,
  reservation_id uuid,
  attempt_id uuid,
  from_state text,
  to_state text,
  outcome text,
  decision jsonb,
  actor_chain jsonb not null,
  run text,
  tool text,
  operation_key text,
  input_digest bytea,
  declared jsonb,
  trace_id text,
  detail jsonb not null default '{}',
  primary key (organization_id, at, id)
) partition by range (at);
alter sequence ledger_entry_ids owned by ledger_entries.id;
create index ledger_entries_listed on ledger_entries (organization_id, xid, id);
create index ledger_entries_reservation on ledger_entries (organization_id, reservation_id);
comment on column ledger_entries.xid is 'Readers with a cursor stay below pg_snapshot_xmin, because identity values are not ordered by commit.';

create function ledger_partitions_ensure(months_ahead integer) returns void language plpgsql set search_path from current set timezone = 'UTC' as $$
declare
  first date := date_trunc('month', now())::date;
  step integer;
begin
  for step in 0..months_ahead loop
    execute format('create table if not exists ledger_entries_%s partition of ledger_entries for values from (%L) to (%L)',
      to_char(first + make_interval(months => step), 'YYYYMM'),
      (first + make_interval(months => step))::date, (first + make_interval(months => step + 1))::date);
  end loop;
end $$;
comment on function ledger_partitions_ensure is 'Called by every run of the migrations: a partition per month of UTC from this one on, whatever zone the runner lives in.';

-- What the last line of defence refuses, whoever asks.
create function reservation_guard() returns trigger language plpgsql set search_path from current as $$
begin
  if not exists (select from reservation_transitions where from_state = old.state) then
    raise exception 'reservation % is %: its row never changes again', old.id, old.state using errcode = 'check_violation', constraint = 'reservation_terminal';
  end if;
  if old.state <> new.state and not exists (select from reservation_transitions where from_state = old.state and to_state = new.state) then
    raise exception 'reservation %: no transition from % to %', old.id, old.state, new.state using errcode = 'check_violation', constraint = 'reservation_transition';
  end if;
  if (old.organization_id, old.id, old.project_id, old.environment_id, old.connection_id, old.tool, old.scope, old.operation_key, old.occurrence, old.contract_version, old.input_digest, old.review_digest,
      old.declared, old.amount, old.currency, old.guarantee_class, old.actor_id, old.key_id, old.run_id, old.lineage, old.created_at, old.xid)
     is distinct from
     (new.organization_id, new.id, new.project_id, new.environment_id, new.connection_id, new.tool, new.scope, new.operation_key, new.occurrence, new.contract_version, new.input_digest, new.review_digest,
      new.declared, new.amount, new.currency, new.guarantee_class, new.actor_id, new.key_id, new.run_id, new.lineage, new.created_at, new.xid) then
    raise exception 'reservation %: its identity never changes', old.id using errcode = 'check_violation', constraint = 'reservation_identity';
  end if;
  return new;
end $$;
create trigger reservation_guard before update on reservations for each row execute function reservation_guard();

create function append_only() returns trigger language plpgsql as $$
begin
  raise exception '% is append-only', tg_table_name using errcode = 'insufficient_privilege', constraint = 'append_only';
end $$;
create trigger append_only before update on ledger_entries for each row execute function append_only();
create trigger append_only before update on receipts for each row execute function append_only();
