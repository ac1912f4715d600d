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
grant insert on reservations, sealed_inputs, open_reservations, ledger_entries, runs, tool_calls, actors, scoped_keys to outbox_api;
grant insert, update, delete on request_keys to outbox_api;
grant update (repeats) on tool_calls to outbox_api;

-- The worker: claims, settles, recovers; the only reader of provider credentials and of sealed inputs.
grant select on organizations, projects, environments, actors, runs, tool_contracts, connections, provider_credentials, epochs,
  reservation_transitions, reservations, open_reservations, attempts, receipts, sealed_inputs, sealed_results, contradictions,
  schema_migrations to outbox_worker;
grant insert on attempts, receipts, sealed_results, contradictions, ledger_entries to outbox_worker;
grant update on reservations, attempts, open_reservations, sealed_results to outbox_worker;
grant delete on sealed_inputs, sealed_results, open_reservations to outbox_worker;
