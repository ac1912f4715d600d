-- Client-executed effects: attempts that the API opens and closes for a caller who carries the effect out itself.

-- An inline contract is named by its digest: the same contract is the same version. Its versions have numbers of their own, so that
-- none ever stands in the way of a contract that is installed later.
alter table tool_contracts
  add column inline_digest bytea check (length(inline_digest) = 32),
  add constraint tool_contract_inline check ((inline_digest is not null) = (version >= 1073741824));
create unique index tool_contracts_inline on tool_contracts (organization_id, tool, inline_digest) where inline_digest is not null;
comment on column tool_contracts.inline_digest is 'Of a contract that came with a client-executed call, without its version.';

-- A client may say now this and now that of an attempt that was closed before: each is evidence once.
alter table attempts add column late_outcomes text[] not null default '{}',
  add constraint attempt_late_outcomes check (late_outcomes <@ array['succeeded', 'rejected', 'deferred', 'unsent', 'unknown']);
update attempts set late_outcomes = array[late_outcome] where late_outcome is not null;
comment on column attempts.late_outcomes is 'Every outcome that was reported when the attempt was closed already, in the order in which it was first; late_outcome is the last.';

create table probe_offers (
  organization_id uuid not null,
  attempt_id uuid not null,
  actor_id uuid not null,
  offered_at timestamptz not null default now(),
  primary key (organization_id, attempt_id, actor_id),
  foreign key (organization_id, attempt_id) references attempts on delete cascade,
  foreign key (organization_id, actor_id) references actors
);
comment on table probe_offers is 'Who asked for an effect in doubt and was told to look for it: nobody else''s word about it is taken.';

create table probes (
  organization_id uuid not null,
  id uuid not null,
  reservation_id uuid not null,
  attempt_id uuid not null,
  actor_id uuid not null,
  asked_at timestamptz not null default now(),
  answered_at timestamptz,
  found boolean,
  verdict text check (verdict in ('settled', 'noted', 'too-early', 'stale', 'known', 'contradiction')),
  primary key (organization_id, id),
  foreign key (organization_id, reservation_id) references reservations on delete cascade,
  foreign key (organization_id, attempt_id) references attempts on delete cascade,
  foreign key (organization_id, actor_id) references actors,
  constraint probe_answered check ((answered_at is null) = (found is null) and (answered_at is null) = (verdict is null))
);
create index probes_reservation on probes (organization_id, reservation_id, attempt_id);
comment on table probes is 'Looks of clients for the effect of an attempt in doubt; each begins at Postgres''s time, before the provider is asked.';

-- The API and the worker each open and close their own attempts. Grants are by column and cannot tell whose a row is.
create function reservation_executor() returns trigger language plpgsql set search_path from current as $$
begin
  if old.executor <> new.executor then
    raise exception 'reservation %: its executor never changes', old.id using errcode = 'check_violation', constraint = 'reservation_executor';
  end if;
  if current_user = 'outbox_api' and old.executor <> 'client' then
    raise exception 'reservation %: the API carries out nothing of the gateway', old.id
      using errcode = 'insufficient_privilege', constraint = 'reservation_executor';
  end if;
  -- What may have been carried out in a tail that was lost is a doubt, and an attempt that nobody remembers stands for it.
  if current_user = 'outbox_worker' and old.executor = 'client'
    and (new.state = 'executing' or new.attempts <> old.attempts and not (old.state = 'reserved' and new.state = 'in_doubt')) then
    raise exception 'reservation %: a worker carries out nothing of a client', old.id
      using errcode = 'insufficient_privilege', constraint = 'reservation_executor';
  end if;
  return new;
end $$;
create trigger reservation_executor before update on reservations for each row
  when (old.executor <> new.executor or old.state <> new.state and new.state in ('executing', 'voided')
    or (old.attempts, old.epoch, old.resends, old.last_attempt_id, old.late_write, old.void_reason, old.provider_status, old.provider_code)
      is distinct from (new.attempts, new.epoch, new.resends, new.last_attempt_id, new.late_write, new.void_reason, new.provider_status, new.provider_code))
  execute function reservation_executor();

create function attempt_executor() returns trigger language plpgsql set search_path from current as $$
declare
  by_client boolean;
begin
  if current_user not in ('outbox_api', 'outbox_worker') then
    return new;
  end if;
  select r.executor = 'client' into by_client from reservations r
    where (r.organization_id, r.id) = (new.organization_id, new.reservation_id);
  if current_user = 'outbox_api' and not by_client and (
    tg_op = 'INSERT'
    or (new.lease_until, new.provider_key, new.marker, new.late_outcome, new.late_outcomes, new.late_write, new.stored, new.provider_status, new.provider_code,
        new.provider_request_id, new.provider_seconds)
      is distinct from (old.lease_until, old.provider_key, old.marker, old.late_outcome, old.late_outcomes, old.late_write, old.stored, old.provider_status,
        old.provider_code, old.provider_request_id, old.provider_seconds)
    or old.outcome is null and new.outcome is not null and new.closed_by not in ('person', 'webhook')) then
    raise exception 'attempt %: the API opens and closes no attempt of the gateway', new.id
      using errcode = 'insufficient_privilege', constraint = 'attempt_executor';
  end if;
  if current_user = 'outbox_worker' and by_client and (
    tg_op = 'INSERT' and (new.outcome, new.closed_by) is distinct from ('unknown', 'epoch')
    or new.lease_until <> old.lease_until or old.outcome is null and new.outcome <> 'unknown') then
    raise exception 'attempt %: a worker opens and answers no attempt of a client', new.id
      using errcode = 'insufficient_privilege', constraint = 'attempt_executor';
  end if;
  return new;
end $$;
create trigger attempt_executor before insert or update on attempts for each row execute function attempt_executor();

-- What comes with a call in a sandbox may add a contract and a name for an account, and nothing that a worker would ever send to.
create function inline_only() returns trigger language plpgsql set search_path from current as $$
begin
  if current_user = 'outbox_api' and (
    tg_table_name = 'tool_contracts' and to_jsonb(new) ->> 'inline_digest' is null
    or tg_table_name = 'connections' and (to_jsonb(new) ->> 'base_url' <> 'https://client.invalid' or (to_jsonb(new) ->> 'is_default')::boolean)) then
    raise exception '%: the API adds only what comes with a client-executed call', tg_table_name
      using errcode = 'insufficient_privilege', constraint = 'inline_only';
  end if;
  return new;
end $$;
create trigger inline_only before insert on tool_contracts for each row execute function inline_only();
create trigger inline_only before insert on connections for each row execute function inline_only();
