"""The tests of the store can fail: with a guard taken away, the test that stands for it does.

Each guard is taken out of the schema of one database, or out of the text of a statement in this process, never by a switch in the
product. The same test passes right before.
"""

from collections.abc import Awaitable, Callable
from functools import partial
from types import ModuleType
from typing import Any

import asyncpg
import pytest
from tests.integration.store import (
    test_batches_of_200,
    test_claim,
    test_contradictions,
    test_grants,
    test_guards,
    test_lists,
    test_lookups,
    test_reserve,
    test_resolve,
    test_settle,
    test_strategies,
    test_sweep,
)
from tests.integration.store.races import Store

from outbox_domain.reservation import Outcome
from outbox_store import (
    batches,
    claim,
    contradictions,
    ledger_entries,
    lookups,
    receipts,
    reservations,
    reserve,
    resolve,
    settle,
    sweep,
)

Battery = Callable[[Store], Awaitable[Any]]
CAUGHT = (AssertionError, asyncpg.PostgresError, RuntimeError, pytest.fail.Exception)

LIVE_KEY = "(organization_id, project_id, environment_id, connection_id, tool, scope, operation_key, occurrence)"
WITHOUT_LIVE_KEY = (
    f"drop index reservations_live; create index reservations_live on reservations {LIVE_KEY} where live; "
    "drop index one_open_occurrence_per_key"
)
"""Two indexes refuse a second open reservation of a key: one by the key, one by the key without its occurrence."""


async def rounds(store: Store, seed: int = 0) -> None:
    """One seed of the arrays of 200."""
    await test_batches_of_200.test_arrays_of_200_do_what_each_row_would_do_alone(store, seed)


async def fails(battery: Battery, store: Store) -> None:
    """Fail where the test still holds, or where it fails only because the statement without its guard is no SQL."""
    with pytest.raises(CAUGHT) as caught:
        await battery(store)
    assert not isinstance(caught.value, asyncpg.SyntaxOrAccessError), caught.value


SCHEMA: list[tuple[str, str, Battery]] = [
    (
        "one live reservation per key",
        WITHOUT_LIVE_KEY,
        test_reserve.test_a_taken_key_is_held_and_nothing_is_written,
    ),
    (
        "one live reservation per key, two callers",
        WITHOUT_LIVE_KEY,
        test_batches_of_200.test_two_unsorted_callers_at_once,
    ),
    (
        "one live reservation per key, arrays",
        WITHOUT_LIVE_KEY,
        rounds,
    ),
    (
        "one live reservation per key, a holder in between",
        WITHOUT_LIVE_KEY,
        test_reserve.test_the_holder_commits_meanwhile,
    ),
    (
        "one open occurrence per key",
        "drop index one_open_occurrence_per_key",
        partial(test_strategies.test_two_occurrences_at_the_same_instant, commit=True),
    ),
    (
        "a late write holds its object",
        "drop trigger object_late on attempts",
        test_strategies.test_a_late_write_holds_the_object_of_what_had_ended,
    ),
    (
        "a success is live",
        "alter table reservations drop constraint reservation_live; "
        "create function forget() returns trigger language plpgsql as $$ begin new.live = new.live and new.state <> 'succeeded'; return new; end $$; "
        "create trigger z_forget before update on reservations for each row execute function forget()",
        partial(test_reserve.test_a_key_is_free_again_only_after_a_proven_failure, outcome=Outcome.SUCCEEDED),
    ),
    (
        "the transitions are guarded",
        "drop trigger reservation_guard on reservations",
        test_guards.test_transitions_are_those_of_the_domain,
    ),
    (
        "closed rows are closed",
        "insert into reservation_transitions values ('failed', 'reserved')",
        test_guards.test_a_closed_row_never_changes,
    ),
    (
        "check constraints",
        "alter table reservations drop constraint reservation_effect",
        test_guards.test_every_check_constraint_refuses_what_it_names,
    ),
    (
        "the ledger is append-only",
        "drop trigger append_only on ledger_entries",
        test_guards.test_ledger_entries_and_receipts_are_append_only,
    ),
    ("the grants are these", "grant select on sealed_inputs to outbox_api", test_grants.test_every_grant_is_written_down),
    ("no grant of a column", "grant update (key_id) on reservations to outbox_api", test_grants.test_every_grant_is_written_down),
]


@pytest.mark.parametrize(("guard", "without", "battery"), SCHEMA, ids=[guard for guard, _, _ in SCHEMA])
async def test_without_a_guard_of_the_schema_its_test_fails(own_store: Store, guard: str, without: str, battery: Battery) -> None:
    """A guard that is dropped from the schema is missed."""
    if "arrays" not in guard:
        await battery(own_store)
    await own_store.owner.execute(without)
    second = await Store.open(own_store.database)
    try:
        await fails(battery, second)
    finally:
        await second.close()


WAITED = partial(test_settle.test_a_late_answer_that_waited_for_a_resend_leaves_it_alone, outcome=Outcome.REJECTED, late=False)
STATEMENTS: list[tuple[str, ModuleType, str, str, str, Battery]] = [
    ("rows in the order of their keys", reserve, "INSERT", "  order by organization_id, project_id, environment_id, connection_id, tool, scope, operation_key, occurrence\n", "", test_reserve.meet_between_two_rows),
    ("a contradiction blocks its key", reserve, "INSERT", "where c.closed_at is null\n      and", "where false and", test_reserve.test_a_contradiction_blocks_its_key_until_a_person_closes_it),
    ("T3 asks for the open attempt", settle, "SETTLE", "and r.open_attempt_id = i.attempt_id and", "and", WAITED),
    ("T3 asks for the open attempt, late answers", settle, "SETTLE", "and r.open_attempt_id = i.attempt_id and", "and", partial(test_settle.test_what_an_older_attempt_reports_late_is_evidence, outcome=Outcome.REJECTED, open_attempt=True)),
    ("T3 asks for the open attempt, arrays", settle, "SETTLE", "and r.open_attempt_id = i.attempt_id and", "and", rounds),
    ("T3 asks for the epoch", settle, "SETTLE", "and r.epoch = i.attempt_epoch as current", "as current", partial(test_settle.test_an_attempt_is_compared_by_its_id_and_its_epoch, outcome=Outcome.REJECTED, changes={"epoch": 2})),
    ("an outcome speaks of its own attempt", settle, "SETTLE", "      when l.unknown_attempts > 0 then 'in_doubt'\n", "", partial(test_settle.test_an_outcome_speaks_of_its_own_attempt_only, doubt="lapse")),
    ("an outcome speaks of its own attempt, arrays", settle, "SETTLE", "      when l.unknown_attempts > 0 then 'in_doubt'\n", "", rounds),
    ("a newer attempt is waited for", settle, "SETTLE", "then 'settled' else 'again' end", "then 'settled' else 'settled' end", partial(test_settle.test_a_late_success_that_waited_for_a_resend_closes_it, late=False)),
    ("a newer attempt is closed", settle, "SETTLE", "a.id in (j.attempt_id, j.open_attempt_id)", "a.id = j.attempt_id", partial(test_settle.test_a_late_success_settles_a_doubt_and_closes_a_newer_attempt, doubt="executing")),
    ("a late write freezes", settle, "SETTLE", "and l.state in ('executing', 'in_doubt') as freezes", "and false as freezes", partial(test_settle.test_a_write_that_left_late_freezes_the_doubt, when="after the lapse")),
    ("another reference contradicts", settle, "SETTLE", "and l.state = 'succeeded' and l.external_reference = l.receipt_reference then", "and l.state = 'succeeded' then", partial(test_settle.test_two_references_for_one_reservation_are_a_contradiction, same_attempt=False)),
    ("an input is erased", settle, "SETTLE", "j.next_state in ('succeeded', 'failed')\n), closed", "false\n), closed", test_settle.test_a_success_closes_the_reservation_with_its_receipt),
    ("T2 asks for the state under the lock", claim, "CLAIM", "(r.state in ('reserved', 'in_doubt') or r.open_attempt_id = i.attempt_id)", "true", test_claim.test_two_claims_at_once_open_one_attempt),
    ("T2 asks again when it is due", claim, "CLAIM", "and j.verdict = 'claim'\n    and (o.due_at <= now() or j.executor = 'client')", "and j.verdict = 'claim'", partial(test_claim.test_a_claim_that_waited_keeps_to_the_time_it_could_not_see, outcome=Outcome.DEFERRED, changes={"again_seconds": 60.0})),
    ("the window has an end", claim, "CLAIM", "when now() + make_interval(secs => l.resend_needs_seconds)\n           < l.possible_send_at + make_interval(secs => l.resend_window_seconds) then 'claim'", "when true then 'claim'", partial(test_claim.test_the_gate_of_a_resend, wish={"resend_window_seconds": 100.0}, moved="possible_send_at = now() - interval '101 seconds'", opens=False)),
    ("a contradiction parks", claim, "CLAIM", "where c.closed_at is null\n          and", "where false and", test_claim.test_a_contradiction_parks_what_is_not_sent_yet),
    ("the generation counts", claim, "CLAIM", "where (f.refusal_stored or f.generation > 0)\n", "where false\n", test_claim.test_the_generation_counts_the_stored_refusals_of_the_same_key),
    ("a lease is judged under its lock", sweep, "LAPSE", "for update of r, a", "for update of r", test_claim.test_a_lapse_that_waited_for_a_renewal_leaves_the_attempt_open),
    ("a doubt is locked before it is given up", sweep, "GIVE_UP", " for update\n", "\n", test_claim.test_a_doubt_is_not_left_to_a_person_while_it_is_sent_again),
    ("only the lapsed lapse", sweep, "LAPSE", "where lease_until <= now()", "where true", test_sweep.test_nothing_but_a_lapsed_open_attempt_lapses),
    ("an absence is of a doubt", resolve, "RESOLVE", "when l.state <> 'in_doubt' or l.last_attempt_id is distinct from l.attempt_id then", "when l.last_attempt_id is distinct from l.attempt_id then", test_resolve.test_an_absence_that_waited_for_a_success),
    ("an absence is of the newest attempt", resolve, "RESOLVE", "when l.state <> 'in_doubt' or l.last_attempt_id is distinct from l.attempt_id then", "when l.state <> 'in_doubt' then", test_lookups.test_a_resend_between_two_look_ups_throws_the_first_away),
    ("an absence is asked after its time", resolve, "RESOLVE", "when coalesce(l.asked_at, now()) < l.absence_counts_at then", "when false then", test_lookups.test_an_answer_that_comes_late_was_asked_early),
    ("a person's absence has its time", resolve, "RESOLVE", "when coalesce(l.asked_at, now()) < l.absence_counts_at then", "when l.asked_at < l.absence_counts_at then", test_resolve.test_a_person_who_finds_nothing_ends_it),
    ("no look-up ends a late write", resolve, "RESOLVE", "when l.said_how = 'lookup' and (l.late_write or l.conflicted) then", "when l.said_how = 'lookup' and l.conflicted then", test_resolve.test_a_late_write_of_what_was_thought_absent_is_a_doubt_again),
    ("one answer is one absence", resolve, "RESOLVE", "when l.said_how = 'lookup' and l.absences > 0 and l.asked_at <= l.absent_at then 'stale'", "", test_resolve.test_one_answer_is_one_absence),
    ("two absences lie apart", resolve, "RESOLVE", "l.asked_at < l.absent_at + make_interval(secs => l.between_seconds) then 'too-early'", "false then 'too-early'", test_resolve.test_two_absences_right_after_each_other_are_one),
    ("it takes as many absences as the contract says", resolve, "RESOLVE", "when l.absences + 1 < l.absences_needed then 'noted'", "", test_resolve.test_one_answer_is_one_absence),
    ("an absence after the end fails", resolve, "RESOLVE", "$19 or l.not_after <= now() then 'failed'", "$19 then 'failed'", partial(test_resolve.test_absent_after_its_end_is_a_failure, over="not_after")),
    ("a person's absence sends nothing again", resolve, "RESOLVE", "when l.said_how = 'person' or l.after_absence = 'fail' then", "when l.after_absence = 'resend' and l.said_how = 'person' then", test_resolve.test_a_late_write_after_a_persons_absence_refuses_the_key),
    ("a proof waits for a newer attempt", resolve, "RESOLVE", "then 'settled' else 'again' end", "then 'settled' else 'settled' end", test_resolve.test_a_proof_that_waited_for_a_resend_closes_it),
    ("a proof closes the open attempt", resolve, "RESOLVE", "(a.id = j.open_attempt_id or (j.next_state", "((j.next_state", test_resolve.test_it_happened_while_it_is_executed),
    ("another reference contradicts, proofs", resolve, "RESOLVE", "and l.state = 'succeeded' and l.external_reference = l.receipt_reference then", "and l.state = 'succeeded' then", partial(test_resolve.test_two_proofs_at_once, second="re_2", verdict="contradiction")),
    ("doubts are judged under their lock", resolve, "RESOLVE", "  for update of r\n", "", test_resolve.test_an_absence_that_waited_for_a_success),
    ("absence is written on the attempts", resolve, "RESOLVE", "(a.proven_absent or coalesce", "(a.proven_absent and coalesce", test_resolve.test_a_late_write_after_a_persons_absence_refuses_the_key),
    ("a stored failure changes the provider key", resolve, "RESOLVE", "and j.next_state = 'reserved' and r.stored_failure)::int", "and false)::int", partial(test_resolve.test_a_stored_failure_that_proved_absent_changes_the_provider_key_for_good, ends="voided")),
    ("a success settles what is reserved again", settle, "SETTLE", "when l.outcome = 'succeeded' and l.state = 'reserved' then 'settled'", "", test_resolve.test_a_success_of_what_was_thought_absent_is_kept),
    ("... by an attempt of its own", settle, "SETTLE", "select from attempts a where (a.organization_id, a.reservation_id, a.id) = (l.organization_id, l.id, l.attempt_id)\n      ) and not (", "select from attempts a where (a.organization_id, a.id) = (l.organization_id, l.attempt_id)\n      ) and not (", partial(test_settle.test_a_success_that_speaks_of_no_attempt_of_what_is_reserved_settles_nothing, whose="another reservation's")),
    ("proof settles what is reserved again", resolve, "RESOLVE", "when l.happened and l.state = 'reserved' and l.attempts > 0 and", "when false and", partial(test_resolve.test_it_happened_although_it_was_thought_absent, by="webhook", names=False, confidence="confirmed-by-webhook")),
    ("... that was sent", resolve, "RESOLVE", "and l.attempts > 0 and (l.attempt_id is null", "and (l.attempt_id is null", test_resolve.test_proof_of_what_was_never_sent_contradicts_it),
    ("... of an attempt of its own", resolve, "RESOLVE", "where (a.organization_id, a.reservation_id, a.id) = (l.organization_id, l.id, l.attempt_id)\n      )) then", "where true\n      )) then", test_resolve.test_proof_of_what_was_never_sent_contradicts_it),
    ("what was examined is no proof anew", resolve, "RESOLVE", "where c.closed_at is not null and", "where false and", partial(test_resolve.test_what_was_examined_is_no_proof_anew, by="lookup")),
    ("what happened was not absent", resolve, "RESOLVE", "or (j.state = 'reserved' and a.id", "or (false and a.id", partial(test_resolve.test_it_happened_although_it_was_thought_absent, by="person", names=False, confidence="asserted")),
    ("a receipt names an attempt", contradictions, "KEEP", "and not r.live and r.attempts > 0", "and not r.live", test_contradictions.test_what_was_never_sent_keeps_nothing),
    ("one holder of a key is kept", contradictions, "KEEP", "  on conflict do nothing\n", "", partial(test_contradictions.test_the_key_is_taken_meanwhile, commit=True)),
    ("an input is erased, proofs", resolve, "RESOLVE", "j.next_state in ('succeeded', 'failed')\n), closed", "false\n), closed", test_resolve.test_it_happened_while_it_is_executed),
    ("a look-up is of a doubt", lookups, "BEGIN", "and r.state = 'in_doubt' and", "and", test_resolve.test_nobody_asks_about_what_is_no_doubt),
    ("a look-up is of the newest attempt", lookups, "BEGIN", "r.last_attempt_id = $3", "$3 = $3", test_lookups.test_a_resend_between_two_look_ups_throws_the_first_away),
    ("one look-up at a time", lookups, "BEGIN", "= (d.organization_id, d.id) and o.due_at <= now()", "= (d.organization_id, d.id)", test_lookups.test_two_workers_that_begin_at_once),
    ("a look-up is counted before it is sent", lookups, "BEGIN", "lookups = r.lookups + 1", "lookups = r.lookups", test_lookups.test_one_worker_looks_up_at_a_time),
    ("a claim throws absences away", claim, "CLAIM", "    absences = 0,\n", "    absences = r.absences,\n", test_resolve.test_a_new_sending_begins_anew),
    ("a claim begins the list anew", claim, "CLAIM", "    recovery_step = 0,\n", "    recovery_step = r.recovery_step,\n", test_resolve.test_a_new_sending_begins_anew),
    ("resends are those of one doubt", claim, "CLAIM", "then r.resends + 1 else 0 end", "then r.resends + 1 else r.resends end", test_resolve.test_a_new_sending_begins_anew),
    ("a late write disproves an absence", settle, "SETTLE", "when l.disproves and l.state = 'reserved' then 'settled'", "", test_resolve.test_a_late_write_of_what_was_thought_absent_is_a_doubt_again),
    ("a late write contradicts an absence", settle, "SETTLE", "when l.disproves and l.state in ('failed', 'voided') then 'contradiction'", "", test_resolve.test_a_late_write_after_a_persons_absence_refuses_the_key),
    ("a late write makes its attempt unknown again", settle, "SETTLE", "unknown_attempts = r.unknown_attempts + j.disproves::int", "unknown_attempts = r.unknown_attempts", test_resolve.test_a_late_write_while_what_was_thought_absent_is_sent_again),
    ("what a person knew contradicts nothing", settle, "SETTLE", "a.proven_absent and not a.late_write as disproves", "a.proven_absent as disproves", test_resolve.test_a_late_write_of_what_was_thought_absent_is_a_doubt_again),
    ("a late write is judged under its lock", settle, "SETTLE", "  for update of a\n", "", test_resolve.test_a_late_write_that_waited_for_the_last_absence),
    ("a later time throws absences away", settle, "SETTLE", "    absences = 0,\n    possible", "    absences = r.absences,\n    possible", test_resolve.test_a_late_unsent_puts_off_earlier_absences),
    ("lists stay below open transactions", reservations, "LIST", "and r.xid < pg_snapshot_xmin(pg_current_snapshot())", "", test_lists.test_a_reservation_that_commits_late_is_never_skipped),
    ("receipts stay below open transactions", receipts, "LIST", "and t.xid < pg_snapshot_xmin(pg_current_snapshot())", "", test_lists.test_a_receipt_that_commits_late_is_never_skipped),
    ("entries stay below open transactions", ledger_entries, "LIST", "and xid < pg_snapshot_xmin(pg_current_snapshot())", "", partial(test_lists.test_a_follower_of_the_ledger_skips_nothing, commit=True)),
]  # fmt: skip


IN_A_DATABASE_OF_ITS_OWN = [
    statement for statement in STATEMENTS if statement[-1] in (rounds, test_reserve.meet_between_two_rows)
]
AMONG_OTHERS = [statement for statement in STATEMENTS if statement not in IN_A_DATABASE_OF_ITS_OWN]


async def without(
    store: Store, monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str, text: str, instead: str, battery: Battery
) -> None:
    """Take a guard out of a statement and see its test fail."""
    statement = getattr(module, name)
    assert statement.count(text) == 1, "the statement no longer reads so"
    monkeypatch.setattr(module, name, statement.replace(text, instead))
    await fails(battery, store)


@pytest.mark.parametrize("control", AMONG_OTHERS, ids=[control[0] for control in AMONG_OTHERS])
async def test_without_a_guard_of_a_statement_its_test_fails(
    stray_store: Store, monkeypatch: pytest.MonkeyPatch, control: tuple[str, ModuleType, str, str, str, Battery]
) -> None:
    """A guard that is taken out of a statement's text is missed."""
    await without(stray_store, monkeypatch, *control[1:])


@pytest.mark.parametrize("control", IN_A_DATABASE_OF_ITS_OWN, ids=[control[0] for control in IN_A_DATABASE_OF_ITS_OWN])
async def test_without_a_guard_of_a_statement_arrays_and_orders_fail(
    own_store: Store, monkeypatch: pytest.MonkeyPatch, control: tuple[str, ModuleType, str, str, str, Battery]
) -> None:
    """The same where the test asks for the invariants of the whole database, or changes its schema."""
    await without(own_store, monkeypatch, *control[1:])


async def test_without_halves_one_row_takes_the_others_along(stray_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing counts as a definite refusal, a poisoned row fails its whole array, and the test of it says so."""
    monkeypatch.setattr(batches, "_DEFINITE", ())
    with pytest.raises((*CAUGHT, batches.Unencodable)):
        await test_batches_of_200.test_poisoned_rows_are_alone_in_the_end(stray_store)


async def test_without_the_row_ids_of_the_caller_a_batch_is_not_recognised(
    stray_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a reserve does not look for its own ids, the batch sent again is told that others hold its keys."""
    text = "join reservations r on (r.organization_id, r.id) = (i.organization_id, i.id)\nunion all"
    assert reserve.HOLDERS.count(text) == 1
    monkeypatch.setattr(reserve, "HOLDERS", reserve.HOLDERS.replace(text, text.replace("\n", " where false\n")))
    with pytest.raises(AssertionError):
        await test_reserve.test_the_same_rows_again_are_recognised(stray_store)
