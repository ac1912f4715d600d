-- Recovery in full: look-ups that are counted, webhooks that may settle, people who answer, breakers that hold.

alter table reservations
  add column recovery_step integer not null default 0,
  add column lookups integer not null default 0,
  add column absences integer not null default 0,
  add column absent_at timestamptz,
  add column person_asked_at timestamptz;
comment on column reservations.recovery_step is 'Which of the contract''s ways out of doubt is being tried; beyond the last one a person is asked.';
comment on column reservations.absences is 'How many look-ups of the last attempt, sent after absence_counts_at, found nothing.';
comment on column reservations.absent_at is 'When the last of these was sent: one answer is never counted twice.';

create index contradictions_closed on contradictions (organization_id, external_reference) where closed_at is not null;
comment on index contradictions_closed is 'What a person has examined is proof of nothing newer.';

-- What was thought unsent or absent may be proven to have happened before it is sent again.
insert into reservation_transitions (from_state, to_state) values ('reserved', 'succeeded');
alter table reservations add constraint reservation_sent check (state <> 'succeeded' or attempts > 0);

-- What counts the answers that a provider keeps looks for the generation, too, which may be ahead of the last of them.
drop index reservations_refused;
create index reservations_refused on reservations
  (organization_id, project_id, environment_id, connection_id, tool, scope, operation_key, occurrence) where refusal_stored or generation > 0;

create table breakers (
  organization_id uuid not null,
  connection_id uuid not null,
  opened_at timestamptz not null default now(),
  closed_at timestamptz,
  retry_at timestamptz not null,
  trial_reservation_id uuid,
  reopenings integer not null default 0,
  cause text not null,
  primary key (organization_id, connection_id),
  foreign key (organization_id, connection_id) references connections
);
comment on table breakers is 'While closed_at is null the connection''s new attempts are held but for one trial at a time.';
comment on column breakers.closed_at is 'What ended unknown before it is not counted again.';

create table recovery_turns (
  organization_id uuid not null,
  connection_id uuid not null,
  pace_seconds double precision not null check (pace_seconds > 0),
  taken_at timestamptz not null,
  primary key (organization_id, connection_id, pace_seconds),
  foreign key (organization_id, connection_id) references connections
);
comment on table recovery_turns is 'When doubts of a connection that keep one pace were last taken up, so that all workers keep it together.';
comment on column recovery_turns.taken_at is 'Of a turn that was taken ahead: when it would have come.';

create index attempts_unknown on attempts (organization_id, closed_at) where outcome = 'unknown';
comment on index attempts_unknown is 'Counted when an attempt ends unknown: so many within a minute open the breaker.';

create table webhooks_in (
  organization_id uuid not null,
  connection_id uuid not null,
  event_id text not null check (octet_length(event_id) between 1 and 500),
  received_at timestamptz not null default now(),
  marker text,
  verdict text not null,
  reservation_id uuid,
  primary key (organization_id, connection_id, event_id),
  foreign key (organization_id, connection_id) references connections
);
comment on table webhooks_in is 'Events of providers whose signature was verified; one of a kind is acted on once.';

create table webhook_secrets (
  organization_id uuid not null,
  connection_id uuid not null,
  sealed bytea not null,
  created_at timestamptz not null default now(),
  primary key (organization_id, connection_id),
  foreign key (organization_id, connection_id) references connections
);
create index webhook_secrets_connection on webhook_secrets (connection_id);
comment on table webhook_secrets is 'What a connection''s webhooks are signed with, sealed under the organization''s data key; without a row nothing listens.';

alter table attempts
  add column marker text,
  add column time_limit_seconds double precision check (time_limit_seconds > 0),
  add column lease_seconds double precision check (lease_seconds > 0);
create index attempts_marker on attempts (organization_id, marker) where marker is not null;
comment on column attempts.marker is 'What was planted for look-ups and webhooks to find; set before anything is sent.';
comment on column attempts.time_limit_seconds is 'How long a client''s handler may run; null: no limit, or a worker''s attempt.';
comment on column attempts.lease_seconds is 'A client''s lease, from one heartbeat to the next; null for a worker''s attempt.';

-- Strategies of recovery: what a contract says of a doubt is pinned on the reservation, so that Postgres itself can hold to it.
alter table reservations
  add column object_key text check (length(object_key) between 1 and 512),
  add column quiet_seconds double precision not null default 120 check (quiet_seconds >= 0),
  add column attention text not null default 'queue' check (attention in ('page', 'queue', 'none')),
  add column blocks_run boolean not null default false,
  add column conflicted boolean not null default false;
comment on column reservations.object_key is 'What the effect changes; one operation at a time on it per connection.';
comment on column reservations.quiet_seconds is 'How long after the end of an attempt''s lease its request may still arrive.';
comment on column reservations.conflicted is 'The provider said that the identity is taken: what is there is read back, and no absence counts.';

create function reservation_rules_guard() returns trigger language plpgsql as $$
begin
  raise exception 'reservation %: its identity never changes', old.id using errcode = 'check_violation', constraint = 'reservation_identity';
end $$;
create trigger reservation_rules_guard before update on reservations for each row
  when ((old.object_key, old.quiet_seconds, old.attention, old.blocks_run) is distinct from (new.object_key, new.quiet_seconds, new.attention, new.blocks_run))
  execute function reservation_rules_guard();

create table open_objects (
  organization_id uuid not null,
  connection_id uuid not null,
  object_key text not null,
  reservation_id uuid not null,
  quiet_at timestamptz,
  late_until timestamptz,
  constraint one_open_reservation_per_object primary key (organization_id, connection_id, object_key),
  foreign key (organization_id, reservation_id) references reservations on delete cascade
);
create index open_objects_reservation on open_objects (organization_id, reservation_id);
create index open_objects_quiet on open_objects (quiet_at) where quiet_at is not null;
comment on table open_objects is 'Objects that an operation is changing, or that a request of a closed one may still change.';
comment on column open_objects.quiet_at is 'Null while the reservation is open; then the time from which none of its requests can arrive any more.';
comment on column open_objects.late_until is 'A request of an operation that had ended was written late: until then it may arrive, and nobody else''s is sent.';

create function object_opened() returns trigger language plpgsql set search_path from current as $$
begin
  insert into open_objects (organization_id, connection_id, object_key, reservation_id)
  values (new.organization_id, new.connection_id, new.object_key, new.id)
  on conflict on constraint one_open_reservation_per_object do update set reservation_id = excluded.reservation_id, quiet_at = null, late_until = null
    where open_objects.quiet_at <= now();
  if not found then
    raise exception 'another operation on the object of reservation % is open', new.id
      using errcode = 'unique_violation', constraint = 'one_open_reservation_per_object';
  end if;
  return null;
end $$;
create trigger object_opened after insert on reservations for each row when (new.object_key is not null) execute function object_opened();

-- Whoever closes the reservation, and by whatever statement: an attempt that nobody knows of may still arrive until it has settled, and one
-- of a client may be carried out for as long after its lease as its handler may run.
create function object_closed() returns trigger language plpgsql set search_path from current as $$
declare
  quiet timestamptz;
begin
  select greatest(new.absence_counts_at,
    max(a.lease_until + make_interval(secs => coalesce(greatest(a.time_limit_seconds, a.lease_seconds), 0) + new.quiet_seconds)), (
      select o.late_until from open_objects o
      where (o.organization_id, o.connection_id, o.object_key, o.reservation_id) = (new.organization_id, new.connection_id, new.object_key, new.id)
    )) into quiet
  from attempts a
  where (a.organization_id, a.reservation_id) = (new.organization_id, new.id)
    and coalesce(a.outcome, 'unknown') = 'unknown' and not a.proven_absent;
  if quiet > now() then
    update open_objects o set quiet_at = quiet
    where (o.organization_id, o.connection_id, o.object_key, o.reservation_id) = (new.organization_id, new.connection_id, new.object_key, new.id);
  else
    delete from open_objects o
    where (o.organization_id, o.connection_id, o.object_key, o.reservation_id) = (new.organization_id, new.connection_id, new.object_key, new.id);
  end if;
  return null;
end $$;
create trigger object_closed after update on reservations for each row
  when (new.object_key is not null and old.state <> new.state and new.state in ('succeeded', 'failed', 'denied', 'voided'))
  execute function object_closed();

-- A write that left after its time is reported when its reservation has ended already: its object is not free after all. Whoever has
-- taken it meanwhile waits with what is not sent yet, and the claim asks for that.
create function object_late() returns trigger language plpgsql set search_path from current as $$
begin
  insert into open_objects as o (organization_id, connection_id, object_key, reservation_id, quiet_at, late_until)
  select r.organization_id, r.connection_id, r.object_key, r.id, late.until, late.until
  from reservations r cross join lateral (select now() + make_interval(secs => r.quiet_seconds) as until) late
  where (r.organization_id, r.id) = (new.organization_id, new.reservation_id) and r.object_key is not null
    and (r.state = 'succeeded' or not r.live)
  on conflict on constraint one_open_reservation_per_object do update set
    quiet_at = case when o.quiet_at is not null then greatest(o.quiet_at, excluded.quiet_at) end,
    late_until = greatest(o.late_until, excluded.late_until);
  return null;
end $$;
create trigger object_late after update on attempts for each row
  when (new.late_write and not old.late_write and new.outcome = 'unknown') execute function object_late();

alter table open_reservations add column key_digest bytea;
create unique index one_open_occurrence_per_key on open_reservations (organization_id, key_digest);
comment on column open_reservations.key_digest is 'Of the operation key and its scope without the occurrence: one occurrence is open at a time.';

create table blocked_runs (
  organization_id uuid not null,
  lineage uuid not null,
  reservation_id uuid not null,
  since timestamptz not null default now(),
  primary key (organization_id, lineage, reservation_id),
  foreign key (organization_id, reservation_id) references reservations on delete cascade
);
create index blocked_runs_reservation on blocked_runs (organization_id, reservation_id);
comment on table blocked_runs is 'Runs in which nothing new is reserved, because of a doubt whose contract says so.';

create function run_blocked() returns trigger language plpgsql set search_path from current as $$
begin
  if new.live and new.state <> 'succeeded' and new.unknown_attempts > 0 then
    insert into blocked_runs (organization_id, lineage, reservation_id) values (new.organization_id, new.lineage, new.id) on conflict do nothing;
  else
    delete from blocked_runs b where (b.organization_id, b.lineage, b.reservation_id) = (new.organization_id, new.lineage, new.id);
  end if;
  return null;
end $$;
create trigger run_blocked after update on reservations for each row
  when (new.blocks_run and new.lineage is not null and (old.state, old.unknown_attempts) is distinct from (new.state, new.unknown_attempts))
  execute function run_blocked();

create table doubt_episodes (
  organization_id uuid not null,
  id uuid not null default gen_random_uuid(),
  environment_id uuid not null,
  connection_id uuid not null,
  cause text not null,
  attention text not null check (attention in ('page', 'queue', 'none')),
  opened_at timestamptz not null default now(),
  closed_at timestamptz,
  waiting integer not null check (waiting >= 0),
  doubts integer not null check (doubts > 0),
  first_reservation_id uuid not null,
  primary key (organization_id, id),
  foreign key (organization_id, connection_id) references connections,
  constraint doubt_episode_closed check ((closed_at is null) = (waiting > 0))
);
create unique index doubt_episodes_open on doubt_episodes (organization_id, connection_id, cause) where closed_at is null;
comment on table doubt_episodes is 'What people are asked about, once for all doubts of one connection and cause that need them at the time.';
comment on column doubt_episodes.waiting is 'How many of its doubts wait for a person now.';
comment on column doubt_episodes.doubts is 'How many there were since it was opened.';

-- Once per statement, and the episodes in the order of their names: two batches that went by the order of their rows would lock each
-- other out.
create function doubts_asked() returns trigger language plpgsql set search_path from current as $$
declare
  change record;
  episode record;
begin
  if not exists (select from before where person_asked_at is not null) and not exists (select from after where person_asked_at is not null) then
    return null;
  end if;
  for change in
    with was as (
      select organization_id, id, environment_id, connection_id, coalesce(doubt_cause, '') as cause
      from before where state = 'in_doubt' and person_asked_at is not null
    ), is_now as (
      select organization_id, id, environment_id, connection_id, coalesce(doubt_cause, '') as cause, attention
      from after where state = 'in_doubt' and person_asked_at is not null
    )
    select organization_id, environment_id, connection_id, cause, count(w.id)::int as gone, count(n.id)::int as come,
      min(n.id::text)::uuid as reservation_id,
      case when bool_or(n.attention = 'page') then 'page' when bool_or(n.attention = 'queue') then 'queue' else 'none' end as attention
    from was w full join is_now n using (organization_id, id, environment_id, connection_id, cause)
    where w.id is null or n.id is null
    group by organization_id, environment_id, connection_id, cause
    order by organization_id, connection_id, cause
  loop
    if change.come > 0 then
      insert into doubt_episodes as e (organization_id, environment_id, connection_id, cause, attention, waiting, doubts, first_reservation_id)
      values (change.organization_id, change.environment_id, change.connection_id, change.cause, change.attention, change.come, change.come,
        change.reservation_id)
      on conflict (organization_id, connection_id, cause) where closed_at is null do update set
        waiting = e.waiting + change.come - change.gone, doubts = e.doubts + change.come,
        attention = case when 'page' in (e.attention, excluded.attention) then 'page' when 'queue' in (e.attention, excluded.attention) then 'queue' else 'none' end
      returning e.*, e.doubts = change.come as opened into episode;
    else
      update doubt_episodes e set waiting = e.waiting - change.gone, closed_at = case when e.waiting = change.gone then now() end
      where (e.organization_id, e.connection_id, e.cause) = (change.organization_id, change.connection_id, change.cause) and e.closed_at is null
      returning e.*, false as opened into episode;
    end if;
    if episode.opened or episode.closed_at is not null then
      insert into ledger_entries (organization_id, environment_id, kind, actor_chain, detail)
      values (change.organization_id, change.environment_id, case when episode.opened then 'episode-opened' else 'episode-closed' end,
        '["recovery"]', jsonb_strip_nulls(jsonb_build_object('episode_id', episode.id, 'connection_id', episode.connection_id,
          'cause', episode.cause, 'attention', episode.attention,
          'reservation_id', case when episode.opened then change.reservation_id end,
          'doubts', case when not episode.opened then episode.doubts end)));
    end if;
  end loop;
  return null;
end $$;
create trigger doubts_asked after update on reservations referencing old table as before new table as after
  for each statement execute function doubts_asked();
