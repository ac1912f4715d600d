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

alter table attempts add column marker text;
create index attempts_marker on attempts (organization_id, marker) where marker is not null;
comment on column attempts.marker is 'What was planted for look-ups and webhooks to find; set when the attempt is opened.';
