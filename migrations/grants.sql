-- Who may do what, table by table (design 3). Applied after every run of the migrations; it revokes before it grants,
-- so that this file is the whole truth. Nobody may update or delete ledger entries, receipts or closed reservations.

revoke all on all tables in schema public from outbox_api, outbox_worker;
revoke all on all sequences in schema public from outbox_api, outbox_worker;
revoke all on function ledger_partitions_ensure(integer) from public;
grant usage on schema public to outbox_api, outbox_worker;
grant usage on sequence ledger_entry_ids to outbox_api, outbox_worker;

-- The API: reserves, records who asked, answers.
grant select on organizations, projects, environments, actors, members, scoped_keys, runs, tool_contracts, connections, epochs,
  reservation_transitions, reservations, open_reservations, attempts, receipts, sealed_results, contradictions, tool_calls,
  request_keys, ledger_entries, schema_migrations to outbox_api;
grant insert on reservations, sealed_inputs, open_reservations, ledger_entries, runs, tool_calls, actors, scoped_keys, projects to outbox_api;
grant insert, update, delete on request_keys to outbox_api;
grant update (repeats) on tool_calls to outbox_api;
-- A person's answer to a doubt and a verified webhook are written by the statement that writes look-ups down (ADR 0011). What a
-- sending needs stays out of reach: no attempt is opened, no lease, gate or provider key is touched, no input is read.
grant update (state, live, open_attempt_id, unknown_attempts, last_attempt_outcome, absences, absent_at, lookups, recovery_step, tries, generation,
  refusal_stored, stored_failure, possible_send_at, doubt_since, doubt_cause, absence_counts_at, external_reference, settled_attempt_id,
  settled_at, person_asked_at, changed_at) on reservations to outbox_api;
grant update (outcome, closed_at, closed_by, reason, proven_absent) on attempts to outbox_api;
grant insert on receipts, contradictions, sealed_results to outbox_api;
-- A person has looked at what contradicts a reservation.
grant update (closed_at) on contradictions to outbox_api;
grant update (sealed, expires_at) on sealed_results to outbox_api;
grant select (organization_id, reservation_id), delete on sealed_inputs to outbox_api;
grant update (due_at), delete on open_reservations to outbox_api;

-- The worker: claims, settles, recovers; the only reader of provider credentials and of sealed inputs.
grant select on organizations, projects, environments, runs, tool_contracts, connections, provider_credentials, epochs,
  reservation_transitions, reservations, open_reservations, attempts, sealed_inputs, sealed_results, contradictions,
  schema_migrations to outbox_worker;
grant insert on attempts, receipts, sealed_results, contradictions, ledger_entries to outbox_worker;
grant update on reservations, attempts, open_reservations, sealed_results to outbox_worker;
grant delete on sealed_inputs, sealed_results, open_reservations to outbox_worker;

-- Breakers: the worker opens, tries and closes them; the API says so in its answers.
grant select on breakers to outbox_api;
grant select, insert, update on breakers to outbox_worker;

-- The pace of a connection's recovery is one for all workers.
grant select, insert, update on recovery_turns to outbox_worker;

-- Webhooks: the API verifies, acts once on an event, and settles by the statement of look-ups.
grant select on webhook_secrets to outbox_api;
grant select, insert on webhooks_in to outbox_api;
grant update (verdict) on webhooks_in to outbox_api;

-- Epochs: the worker compares the ledger with what it remembers and declares a loss; a person clears it for their organization.
grant select on installation, instances, epoch_clearances to outbox_worker;
grant update (beat, beat_at) on installation to outbox_worker;
grant insert on instances, epochs to outbox_worker;
grant select on instances, epoch_clearances to outbox_api;
grant insert on epoch_clearances to outbox_api;
-- What a client asks for that may have been sent before a loss is put in doubt by the API.
grant update (suspected_epoch) on reservations to outbox_api;

-- Objects, blocked runs and episodes are kept by triggers of reservations, in the rights of whoever changes the reservation.
grant select, insert, update, delete on open_objects to outbox_api, outbox_worker;
grant select, insert, delete on blocked_runs to outbox_api, outbox_worker;
grant select, insert, update on doubt_episodes to outbox_api, outbox_worker;

-- Client-executed effects: T2 and T3 under the API's role. Grants are by column; that none of it touches what the gateway carries out is
-- held by the triggers `reservation_executor` and `attempt_executor` (ADR 0014).
grant insert on attempts to outbox_api;
grant update (attempts, epoch, resends, last_attempt_id, late_write, conflicted, void_reason, provider_status, provider_code) on reservations to outbox_api;
grant update (lease_until, provider_key, marker, late_outcome, late_outcomes, late_write, stored, provider_status, provider_code, provider_request_id,
  provider_seconds) on attempts to outbox_api;
grant select, insert on probes, probe_offers to outbox_api;
grant update (answered_at, found, verdict), delete on probes to outbox_api;
-- What an inline contract brings along; the trigger `inline_only` refuses everything else.
grant insert (organization_id, tool, version, document, inline_digest) on tool_contracts to outbox_api;
grant insert (organization_id, id, environment_id, provider, name, base_url) on connections to outbox_api;
