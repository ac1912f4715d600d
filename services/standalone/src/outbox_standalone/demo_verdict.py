"""When the demo has shown what it claims: pure, so that a test can hand it counts that must not pass."""

from collections.abc import Sequence
from dataclasses import dataclass

CURRENCY = "EUR"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One fault that the small agent meets.

    Attributes:
        name: in identifiers and in JSON.
        fault: as the table names it.
        expected: what each answer through Outbox has to be, in order: `succeeded` or the code of a problem.
        note: what the table adds to the count of our column.
        amount: of the refund in cents; None for a mail.
        planned: how many effects are wanted.
    """

    name: str
    fault: str
    expected: tuple[str, ...]
    note: str = ""
    amount: int | None = None
    planned: int = 1


@dataclass(frozen=True, kw_only=True)
class Told:
    """One answer that the agent got through Outbox.

    Attributes:
        word: `succeeded`, or the code of the problem.
        receipt: its whole receipt as JSON, if it has one.
        external_reference: the provider's name of the effect that the receipt proves.
    """

    word: str
    receipt: str | None = None
    external_reference: str | None = None


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What the provider counted of one case in one column: ids of the effects, and the money they moved in cents."""

    effects: tuple[str, ...]
    moved: int


@dataclass(frozen=True, kw_only=True)
class Row:
    """One case after both columns were played.

    Attributes:
        case: which.
        plain: what the provider counted of the plain agent.
        outbox: what the provider counted of the same agent through Outbox.
        told: what the agent was told through Outbox, in order.
    """

    case: Case
    plain: Counted
    outbox: Counted
    told: tuple[Told, ...]

    @property
    def paid_twice(self) -> int:
        """Cents that the plain agent moved beyond what was planned."""
        return self.plain.moved - self.case.planned * (self.case.amount or 0)


def verdict(rows: Sequence[Row], cases: Sequence[Case], strays: Sequence[str] = ()) -> list[str]:
    """What keeps this run from showing what the demo claims.

    Args:
        rows: what was seen.
        cases: what should have been played.
        strays: ids of effects that belong to no case.

    Returns:
        A sentence for each reason; none means that every count through Outbox is right and the plain column is worse in every
        case, which is the negative control: a fault that harms nobody proves nothing.
    """
    reasons = [f"{case.fault}: this case was not played." for case in cases if case not in [row.case for row in rows]]
    for row in rows:
        reasons += _of_counts(row) + _of_answers(row)
    if strays:
        reasons.append(f"The provider counted effects that nobody planned: {', '.join(strays)}.")
    return reasons


def _of_counts(row: Row) -> list[str]:
    reasons = []
    case, plain, outbox = row.case, len(row.plain.effects), len(row.outbox.effects)
    if outbox != case.planned:
        reasons.append(f"{case.fault}: through Outbox the provider counted {outbox} effects instead of {case.planned}.")
    if row.outbox.moved != case.planned * (case.amount or 0):
        reasons.append(f"{case.fault}: through Outbox {row.outbox.moved} cents were moved instead of {case.planned} refund.")
    if plain <= case.planned:
        reasons.append(
            f"{case.fault}: the plain agent made {plain}, no more than the {case.planned} planned: the fault has harmed nobody."
        )
    return reasons


def _of_answers(row: Row) -> list[str]:
    reasons = []
    words = tuple(one.word for one in row.told)
    if words != row.case.expected:
        reasons.append(
            f"{row.case.fault}: the agent was told {', '.join(words) or 'nothing'} instead of {', '.join(row.case.expected)}."
        )
    proven = {(one.receipt, one.external_reference) for one in row.told if one.word == "succeeded"}
    if len(proven) > 1:
        reasons.append(f"{row.case.fault}: the agent was given {len(proven)} different receipts for one effect.")
    if any(reference not in row.outbox.effects for _, reference in proven):
        reasons.append(f"{row.case.fault}: a receipt names an effect that the provider does not know.")
    return reasons
