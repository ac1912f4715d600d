"""What must hold of a history, whatever happened: pure, from what was recorded and what ledger and provider say afterwards.

Histories are those of Jepsen: a call is invoked and ends with `ok` (a receipt), `fail` (a definite no) or `info` (nobody knows yet).
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

AT_MOST_ONE = "at most one effect per operation key"
RECEIPT_HAS_EFFECT = "each success receipt has exactly one effect"
INFO_ENDS = "every info ends resolved or in doubt with a reason"
REPLAYS_EQUAL = "replays are equal"
OTHER_INPUT_REFUSED = "another input under a key is never answered with its receipt"
NOTHING_LOST = "an effect that happened is never denied"
ACKNOWLEDGED_STAYS = "what was acknowledged stays in the ledger"
NO_SPURIOUS_ANSWER = "every call that was invoked ends once"
PROGRESS = "the run makes progress"
INVARIANTS = "the ledger's invariants hold"

FINAL = frozenset({"succeeded", "failed", "denied", "voided"})


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """How a reservation stands at the end.

    Attributes:
        token: of its operation key.
        reason: of a doubt: its cause; None without one.
        attended: of a doubt: a person was asked, or the next step of recovery has its time.
        external_reference: of a success.
    """

    token: str
    state: str
    reason: str | None = None
    attended: bool = False
    external_reference: str | None = None


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All that is known at the end.

    Attributes:
        history: events in the order of their times.
        effects: ids of the provider's effects, by token.
        reservations: by token, oldest first.
        contradicted: tokens with a contradiction on record.
        vouched: further references that the provider has signed an event about, by token: of effects that it never made.
        invariants: what the ledger's invariants said, by name.
    """

    history: Sequence[Mapping[str, Any]]
    effects: Mapping[str, Sequence[str]]
    reservations: Mapping[str, Sequence[Reservation]]
    contradicted: frozenset[str] = frozenset()
    vouched: Mapping[str, Sequence[str]] = field(default_factory=dict)
    invariants: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Violation:
    """A property that does not hold, and where."""

    property: str
    token: str
    detail: str


def check(evidence: Evidence, *, progress_min: float) -> list[Violation]:
    """Every violation of every property.

    Args:
        evidence: of the run.
        progress_min: share of the operation keys that must have come to a receipt.
    """
    calls: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for event in evidence.history:
        calls[event["key"]].append(event)
    found: list[Violation] = []
    for token in {*calls, *evidence.effects, *evidence.reservations}:
        found += _of_key(evidence, token, calls.get(token, []))
    found += [
        Violation(property=INVARIANTS, token=", ".join(rows), detail=name) for name, rows in evidence.invariants.items() if rows
    ]
    found += _spurious(evidence.history)
    settled = sum(any(one["type"] == "ok" for one in events) for events in calls.values())
    if not calls or settled < progress_min * len(calls):
        found.append(
            Violation(
                property=PROGRESS, token="", detail=f"{settled} of {len(calls)} keys came to a receipt, {progress_min:.0%} must"
            )
        )
    return found


def _of_key(evidence: Evidence, token: str, events: Sequence[Mapping[str, Any]]) -> Iterable[Violation]:
    effects = evidence.effects.get(token, ())
    rows = evidence.reservations.get(token, ())
    succeeded = [row for row in rows if row.state == "succeeded"]
    contradicted = token in evidence.contradicted
    if len(effects) > 1:
        yield Violation(property=AT_MOST_ONE, token=token, detail=f"effects {list(effects)}")
    vouched = evidence.vouched.get(token, ())
    for row in succeeded:
        # What a provider signs is proof, also where it signs of an effect that it never made.
        if list(effects) != [row.external_reference] and not (row.external_reference in vouched and len(effects) == 1):
            yield Violation(
                property=RECEIPT_HAS_EFFECT, token=token, detail=f"receipt {row.external_reference}, effects {list(effects)}"
            )
    if effects and not contradicted and not any(row.state in ("succeeded", "in_doubt") for row in rows):
        yield Violation(
            property=NOTHING_LOST, token=token, detail=f"effects {list(effects)}, states {[row.state for row in rows]}"
        )
    for row in rows:
        if row.state not in FINAL and not (row.state == "in_doubt" and row.reason and row.attended):
            yield Violation(
                property=INFO_ENDS, token=token, detail=f"{row.state}, reason {row.reason!r}, attended {row.attended}"
            )
    receipts = {event["receipt"] for event in events if event["type"] == "ok"}
    if len(receipts) > 1:
        yield Violation(property=REPLAYS_EQUAL, token=token, detail=f"{len(receipts)} different receipts")
    references = {json.loads(receipt)["external_reference"] for receipt in receipts}
    if not references <= {row.external_reference for row in succeeded}:
        yield Violation(
            property=ACKNOWLEDGED_STAYS, token=token, detail=f"told {sorted(references)}, ledger {[row.state for row in rows]}"
        )
    if len({bool(event.get("conflicting")) for event in events if event["type"] == "ok"}) > 1:
        yield Violation(property=OTHER_INPUT_REFUSED, token=token, detail="calls with different inputs got the receipt")


def _spurious(history: Sequence[Mapping[str, Any]]) -> Iterable[Violation]:
    """Each call is invoked once and ends once, later."""
    opened: dict[int, float] = {}
    for event in history:
        call = event["call"]
        if event["type"] == "invoke":
            if call in opened:
                yield Violation(property=NO_SPURIOUS_ANSWER, token=event["key"], detail=f"call {call} was invoked twice")
            opened[call] = event["time"]
        elif opened.pop(call, event["time"] + 1) > event["time"]:
            yield Violation(property=NO_SPURIOUS_ANSWER, token=event["key"], detail=f"call {call} ended without its begin")
    for call in opened:
        yield Violation(property=NO_SPURIOUS_ANSWER, token="", detail=f"call {call} has no end")


def by_property(violations: Iterable[Violation]) -> dict[str, int]:
    """How often each property was violated."""
    return dict(Counter(one.property for one in violations))
