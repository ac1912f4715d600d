"""The checker can fail: each property with a history that violates it and nothing else."""

import json
from dataclasses import replace
from typing import Any

import pytest
from tests.fault.battery import checker
from tests.fault.battery.checker import Evidence, Reservation, check

RECEIPT = json.dumps({"id": "rcp_1", "external_reference": "re_1"})
OTHER_RECEIPT = json.dumps({"id": "rcp_2", "external_reference": "re_1"})


def call(number: int, end: str, **more: Any) -> list[dict[str, Any]]:
    """A call and its end."""
    of = {"call": number, "key": "op1", "process": number}
    return [{**of, "type": "invoke", "time": float(number)}, {**of, "type": end, "time": number + 0.5, **more}]


DONE = Reservation(token="op1", state="succeeded", external_reference="re_1")
GOOD = Evidence(
    history=[*call(1, "info"), *call(2, "ok", receipt=RECEIPT), *call(3, "ok", receipt=RECEIPT)],
    effects={"op1": ["re_1"]},
    reservations={"op1": [DONE]},
)
REFUSED = Reservation(token="op1", state="failed")
DOUBT = Reservation(token="op1", state="in_doubt", reason="connection lost", attended=True)


def violated(evidence: Evidence, progress_min: float = 0.0) -> set[str]:
    """The properties that do not hold."""
    return {one.property for one in check(evidence, progress_min=progress_min)}


def test_a_good_history_has_no_violation() -> None:
    """A lost answer, a receipt and its replay: everything holds."""
    assert violated(GOOD, progress_min=1.0) == set()


@pytest.mark.parametrize(
    "evidence",
    [
        replace(GOOD, history=call(1, "info"), reservations={"op1": [DOUBT]}),
        replace(GOOD, history=call(1, "info"), reservations={"op1": [DOUBT]}, effects={}),
        replace(GOOD, history=call(1, "info"), reservations={}, effects={}),
        replace(GOOD, history=call(1, "fail"), effects={}, reservations={"op1": [REFUSED]}),
        replace(GOOD, effects={"op1": ["re_true"]}, vouched={"op1": ["re_1"]}),
        replace(GOOD, history=call(1, "fail"), reservations={"op1": [REFUSED]}, contradicted=frozenset({"op1"})),
    ],
    ids=[
        "in doubt, happened",
        "in doubt, not happened",
        "never reserved",
        "refused",
        "the provider signs what it did not do",
        "denied, and contradicted",
    ],
)
def test_other_good_ends(evidence: Evidence) -> None:
    """A doubt with a reason, a call that was never recorded, a refusal, and a contradiction on record violate nothing."""
    assert violated(evidence) == set()


@pytest.mark.parametrize(
    ("evidence", "property"),
    [
        (replace(GOOD, history=call(1, "info"), reservations={"op1": [DOUBT]}, effects={"op1": ["re_1", "re_2"]}), checker.AT_MOST_ONE),
        (replace(GOOD, effects={}), checker.RECEIPT_HAS_EFFECT),
        (replace(GOOD, effects={"op1": ["re_9"]}), checker.RECEIPT_HAS_EFFECT),
        (replace(GOOD, effects={}, vouched={"op1": ["re_1"]}), checker.RECEIPT_HAS_EFFECT),
        (replace(GOOD, history=call(1, "info"), reservations={"op1": [replace(DOUBT, reason=None)]}), checker.INFO_ENDS),
        (replace(GOOD, history=call(1, "info"), reservations={"op1": [replace(DOUBT, attended=False)]}), checker.INFO_ENDS),
        (replace(GOOD, history=call(1, "info"), effects={}, reservations={"op1": [replace(DOUBT, state="executing")]}), checker.INFO_ENDS),
        (replace(GOOD, history=call(1, "info"), effects={}, reservations={"op1": [replace(DOUBT, state="reserved")]}), checker.INFO_ENDS),
        (replace(GOOD, history=[*call(1, "ok", receipt=RECEIPT), *call(2, "ok", receipt=OTHER_RECEIPT)]), checker.REPLAYS_EQUAL),
        (replace(GOOD, history=[*GOOD.history, *call(4, "ok", receipt=RECEIPT, conflicting=True)]), checker.OTHER_INPUT_REFUSED),
        (replace(GOOD, history=call(1, "fail"), reservations={"op1": [replace(DONE, state="voided", external_reference=None)]}), checker.NOTHING_LOST),
        (replace(GOOD, history=call(1, "info"), reservations={}), checker.NOTHING_LOST),
        (replace(GOOD, reservations={"op1": [DOUBT]}), checker.ACKNOWLEDGED_STAYS),
        (replace(GOOD, invariants={"at most one open attempt": ["row"]}), checker.INVARIANTS),
        (replace(GOOD, history=[*GOOD.history, {"call": 9, "key": "op1", "type": "invoke", "time": 9.0}]), checker.NO_SPURIOUS_ANSWER),
        (replace(GOOD, history=[{"call": 9, "key": "op1", "type": "info", "time": 0.0}, *GOOD.history]), checker.NO_SPURIOUS_ANSWER),
    ],
)  # fmt: skip
def test_a_planted_violation_is_named(evidence: Evidence, property: str) -> None:
    """A history that breaks one property is said to break that one and no other."""
    assert violated(evidence) == {property}


def test_a_run_of_nothing_but_errors_fails() -> None:
    """Nothing wrong was done, and nothing was done: the floor of progress is missed; so it is by an empty history."""
    idle = replace(GOOD, history=call(1, "info"), effects={}, reservations={})
    assert violated(idle, progress_min=0.5) == {checker.PROGRESS}
    assert violated(replace(idle, history=[]), progress_min=0.5) == {checker.PROGRESS}
