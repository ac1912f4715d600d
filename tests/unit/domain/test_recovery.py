"""What is tried next in a doubt, and when: the contract's list with its bounds."""

from datetime import timedelta
from typing import Any

import pytest

from outbox_domain.contract import ToolContract
from outbox_domain.recovery import (
    Doubt,
    back_off_seconds,
    between_absences_seconds,
    is_over,
    left_to_clients_seconds,
    look_again_seconds,
    next_way,
    pace_seconds,
    recover_in_seconds,
    settle_seconds,
)
from outbox_providers.catalog import shipped

CONTRACTS = {contract.tool: contract for contract in shipped()}
REFUND, TICKET, MAIL, ECHO = "stripe.refund.create", "sandbox.ticket.create", "sendgrid.mail.send", "sandbox.echo"
RECORD, LABEL, SCHEDULED = "sandbox.record.create", "sandbox.label.set", "sandbox.mail.schedule"


def doubt(**changes: Any) -> Doubt:
    """A doubt after a first attempt that had no answer."""
    given: dict[str, Any] = {"resends": 0, "stored_failure": False, "late_write": False, "unreachable": True}
    return Doubt(**{**given, **changes})


def way(contract: ToolContract, found: Doubt) -> str | None:
    """The name of the way that is next."""
    following = next_way(contract, found)
    return None if following is None else following[1].way


@pytest.mark.parametrize(
    ("tool", "changes", "expected"),
    [
        (REFUND, {}, "resend"),
        (REFUND, {"resends": 4}, "resend"),
        (REFUND, {"resends": 5}, "lookup"),
        (REFUND, {"stored_failure": True}, "lookup"),
        (REFUND, {"late_write": True}, "lookup"),
        (REFUND, {"step": 1}, "lookup"),
        (REFUND, {"step": 2}, None),
        (TICKET, {}, "lookup"),
        (TICKET, {"late_write": True}, "lookup"),
        (TICKET, {"step": 1}, None),
        (MAIL, {}, None),
        (ECHO, {}, "resend"),
        (ECHO, {"resends": 5, "unreachable": False}, None),
        (ECHO, {"resends": 5}, "resend"),
        (ECHO, {"resends": 50}, "resend"),
        (ECHO, {"resends": 5, "step": 1}, None),
        (ECHO, {"stored_failure": True}, None),
        (ECHO, {"late_write": True}, None),
        # A conflict would be said again: what is there is read back.
        (RECORD, {}, "resend"),
        (RECORD, {"conflicted": True}, "lookup"),
        (RECORD, {"conflicted": True, "step": 2}, None),
        (LABEL, {}, "resend"),
        (LABEL, {"resends": 5, "unreachable": False}, None),
        # What may be due is not called off any more, and what left late is due nobody knows when.
        (SCHEDULED, {"sent_seconds_ago": 49.0}, "lookup"),
        (SCHEDULED, {"sent_seconds_ago": 50.0}, None),
        (SCHEDULED, {"late_write": True}, None),
    ],
)
def test_the_next_way(tool: str, changes: dict[str, Any], expected: str | None) -> None:
    """Ways are taken in order, within their bounds; the bound of resends is not the end while nobody was there to answer."""
    assert way(CONTRACTS[tool], doubt(**changes)) == expected
    assert (recover_in_seconds(CONTRACTS[tool], doubt(**changes)) is None) == (expected is None)


def with_rule(contract: ToolContract, **changes: Any) -> ToolContract:
    """A contract whose first way has other bounds."""
    first, *others = contract.recovery
    return contract.model_copy(update={"recovery": (first.model_copy(update=changes), *others)})


def test_the_total_time_of_a_way() -> None:
    """Counted from the doubt's beginning; over, a resend is not due any more, also where nobody was there to answer."""
    hurried = with_rule(CONTRACTS[REFUND], total=timedelta(seconds=90))
    assert [way(hurried, doubt(age_seconds=seconds)) for seconds in (0.0, 89.0, 90.0)] == ["resend", "resend", "lookup"]
    assert way(with_rule(CONTRACTS[ECHO], total=timedelta(seconds=90)), doubt(age_seconds=90.0)) is None
    lookup = with_rule(CONTRACTS[TICKET], total=timedelta(seconds=90)).recovery[0]
    assert [is_over(lookup, seconds) for seconds in (89.0, 90.0)] == [False, True]
    assert not is_over(CONTRACTS[TICKET].recovery[0], 1e9)


def test_the_pace_of_a_way() -> None:
    """As the contract says of the way that is tried; beyond the last one, and where it says nothing, there is none."""
    paced = with_rule(CONTRACTS[REFUND], pace=timedelta(seconds=2))
    assert [pace_seconds(paced, step) for step in (0, 1, 2)] == [2.0, None, None]


@pytest.mark.parametrize(("tool", "seconds"), [(REFUND, 120.0), (LABEL, 30.0), (MAIL, 120.0), (SCHEDULED, 120.0), (TICKET, 2.0)])
def test_the_settle_time(tool: str, seconds: float) -> None:
    """The look-up's, or that of a resend without one, else the horizon of every provider."""
    assert settle_seconds(CONTRACTS[tool]) == seconds


def test_the_first_step_is_soon() -> None:
    """Half a second after the first unknown, whatever the way; later resends back off to a minute."""
    assert recover_in_seconds(CONTRACTS[TICKET], doubt()) == 0.5
    assert recover_in_seconds(CONTRACTS[REFUND], doubt()) == 0.5
    assert recover_in_seconds(CONTRACTS[ECHO], doubt(resends=40)) == 60.0


@pytest.mark.parametrize(
    ("looked", "counts_in", "expected"),
    [(1, 100.0, 1.0), (4, 100.0, 8.0), (6, 3.0, 3.05), (1, -5.0, 1.0), (30, None, 60.0), (9, 0.01, 0.06)],
)
def test_look_ups_back_off_and_meet_the_time(looked: int, counts_in: float | None, expected: float) -> None:
    """The pause doubles to a minute, but a look-up is due as soon as an absence counts."""
    assert look_again_seconds(looked=looked, counts_in_seconds=counts_in) == pytest.approx(expected)
    assert look_again_seconds(looked=looked, counts_in_seconds=counts_in) <= back_off_seconds(looked)


def test_two_absences_are_apart() -> None:
    """A tenth of the settle time lies between them, at least a second, at most ten."""
    found = [between_absences_seconds(rule) for tool in (TICKET, REFUND) if (rule := CONTRACTS[tool].lookup) is not None]
    assert found == [1.0, 10.0]


@pytest.mark.parametrize(
    ("tool", "sent_seconds_ago", "not_after_seconds", "expected"),
    [
        # 23 hours less a margin of a minute, or `not_after`; then only a probe is left, which ends with `not_after` too.
        (ECHO, 0.0, 90_000.0, 23 * 3600 - 60),
        (ECHO, 3600.0, 90_000.0, 22 * 3600 - 60),
        (ECHO, 0.0, 100.0, 100.0),
        (ECHO, 23 * 3600 - 60.0, 90_000.0, None),
        (REFUND, 23 * 3600.0, 90_000.0, 90_000.0),
        (TICKET, 0.0, 100.0, 100.0),
        (TICKET, 0.0, -1.0, None),
        (MAIL, 0.0, 100.0, None),
    ],
)
def test_how_long_the_next_caller_may_end_a_doubt(
    tool: str, sent_seconds_ago: float, not_after_seconds: float, expected: float | None
) -> None:
    """Class A inside the provider's window, class B by probing, both until `not_after`; class C never."""
    left = left_to_clients_seconds(CONTRACTS[tool], sent_seconds_ago=sent_seconds_ago, not_after_seconds=not_after_seconds)
    assert left == expected
