-- The loss of the ledger's tail: on which server an epoch began, how far the ledger had come, and what may have been sent before a loss.

create table installation (
  one boolean primary key default true check (one),
  id uuid not null default gen_random_uuid(),
  beat bigint not null default 0,
  beat_at timestamptz not null default now()
);
insert into installation default values;
comment on table installation is 'One row: who this ledger is, wherever it is restored, and how often a worker has looked at it.';
comment on column installation.beat is 'Marked outside after it was committed: a ledger whose beat is below a mark has lost its tail.';

-- The timeline is that of the server's own memory: the control file tells it only after the first checkpoint of a promotion.
create table instances (
  started_at timestamptz not null,
  timeline integer not null,
  system_identifier bigint not null,
  beat_at timestamptz not null,
  verified_at timestamptz not null default now(),
  primary key (started_at, timeline)
);
comment on table instances is 'Starts of Postgres that a worker has compared with its marks; until then nothing is claimed and no absence counts.';
comment on column instances.beat_at is 'The last beat before: what was committed until then had survived.';
insert into instances (started_at, timeline, system_identifier, beat_at)
select pg_postmaster_start_time(), ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int, system_identifier, now()
from pg_control_system();

alter table epochs
  add column system_identifier bigint,
  add column timeline integer,
  add column lost_since timestamptz,
  add column possibly_lost_until timestamptz;
update epochs set system_identifier = i.system_identifier, timeline = i.timeline from instances i;
alter table epochs
  alter column system_identifier set not null,
  alter column timeline set not null,
  add constraint epoch_loss check (number = 1 or (lost_since is not null and possibly_lost_until is not null));
comment on column epochs.lost_since is 'Everything committed before was kept, so nothing that was lost can have been sent earlier.';
comment on column epochs.possibly_lost_until is 'Until then a key first seen is treated as possibly sent, unless the epoch has been cleared for its environment.';

create table epoch_clearances (
  organization_id uuid not null references organizations,
  environment_id uuid not null,
  epoch bigint not null references epochs,
  cleared_at timestamptz not null default now(),
  cleared_by jsonb not null,
  reason text not null check (length(reason) between 1 and 500),
  primary key (organization_id, environment_id, epoch),
  foreign key (organization_id, environment_id) references environments
);
comment on table epoch_clearances is 'A person says that nothing of an environment was lost: its keys first seen are new again.';

alter table reservations add column suspected_epoch bigint;
comment on column reservations.suspected_epoch is 'The newest epoch for which it was considered that it may have been sent before the loss.';
create index reservations_suspected on reservations
  (organization_id, project_id, environment_id, connection_id, tool, scope, operation_key, occurrence) where suspected_epoch is not null;

alter table attempts
  add column supposed boolean not null default false,
  add constraint attempt_supposed check (not supposed or closed_by is not distinct from 'epoch');
comment on column attempts.supposed is 'Nobody remembers it: it stands for what may have been sent before a loss.';
