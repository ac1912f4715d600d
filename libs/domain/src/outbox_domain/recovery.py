"""When to try again, and what is left to try in a doubt: the contract's ordered ways with their bounds.

Source: design section 4 (rules of doubt), `interfaces.md` section 9 (figures), ADR 0012.
"""

from dataclasses import dataclass
from datetime import timedelta

from outbox_domain.contract import LookupRule, PersonRule, RecoveryRule, ResendRule, ToolContract

BACK_OFF_FIRST_SECONDS = 0.5
BACK_OFF_MAX_SECONDS = 60.0

SETTLE_DEFAULT = timedelta(seconds=120)
"""The settle time of a contract that declares none: the in-flight horizon of every provider (`providers.md` section 1)."""

LOOKUPS_MAX = 20
"""Look-ups of one attempt after which an answer that cannot be used ends the way; a provider that does not answer never does."""

BETWEEN_ABSENCES_SECONDS = (1.0, 10.0)
"""Least and most between two absences that count, so that both are not the same stale read; a tenth of the settle time within."""

AFTER_THE_TIME_SECONDS = 0.05
"""How long after `absence_counts_at` the look-up that may count is due: never the instant itself."""


@dataclass(frozen=True, kw_only=True)
class Doubt:
    """What is known of a doubt when its next way out is chosen.

    Attributes:
        step: the place in the contract's recovery list that was reached; what stands before it is used up.
        resends: how many there were.
        stored_failure: the provider replayed a failure that it had stored; it would be replayed again.
        late_write: a request left after the time it had to; nothing is sent again and no absence counts.
        unreachable: the last attempt had no answer, or one of a provider in trouble (5xx).
        tries: how many sendings did not reach the provider or were put off by it; they only lengthen the pause.
        conflicted: the provider said that the identity is taken: it would say so again, and what is there is read back.
        age_seconds: since the doubt began.
        sent_seconds_ago: since the newest attempt may have been sent; None where that is not known.
    """

    step: int = 0
    resends: int
    stored_failure: bool
    late_write: bool
    unreachable: bool
    tries: int = 0
    conflicted: bool = False
    age_seconds: float = 0.0
    sent_seconds_ago: float | None = None


def back_off_seconds(tried: int) -> float:
    """How long to wait before the next try: half a second, doubling, at most a minute.

    Args:
        tried: how many tries there were before.
    """
    return min(BACK_OFF_MAX_SECONDS, BACK_OFF_FIRST_SECONDS * 2.0 ** min(tried, 16))


def settle_seconds(contract: ToolContract) -> float:
    """How long after the end of the last lease an absence counts, and until when a request may still arrive."""
    stated = [rule.settle for rule in (contract.lookup, contract.resend) if rule is not None and rule.settle is not None]
    return max(stated, default=SETTLE_DEFAULT).total_seconds()


def next_way(contract: ToolContract, doubt: Doubt) -> tuple[int, RecoveryRule] | None:
    """The way out of doubt that is to be tried now.

    Resending has a bound, but a person is asked only when the ways are exhausted with the provider reachable: where nothing
    stands after the resends and the last one met no provider, there is one more. The window and `not_after` still bind it.

    Args:
        contract: of the tool.
        doubt: where it stands.

    Returns:
        The place in the contract's list and the rule there; None when only a person can decide.
    """
    ways = list(enumerate(contract.recovery))
    for place, rule in ways[doubt.step :]:
        if isinstance(rule, LookupRule) and not _too_late_to_cancel(rule, doubt):
            return place, rule
        if isinstance(rule, ResendRule) and _may_resend(contract, rule, doubt) and doubt.resends < rule.times:
            return place, rule
    if doubt.unreachable:
        return next(
            (
                (place, rule)
                for place, rule in ways[doubt.step :]
                if isinstance(rule, ResendRule) and _may_resend(contract, rule, doubt)
            ),
            None,
        )
    return None


def recover_in_seconds(contract: ToolContract, doubt: Doubt) -> float | None:
    """When the next step out of a doubt is due, counted from now; None when only a person can decide."""
    way = next_way(contract, doubt)
    if way is None:
        return None
    return back_off_seconds(doubt.resends + doubt.tries) if isinstance(way[1], ResendRule) else BACK_OFF_FIRST_SECONDS


def pace_seconds(contract: ToolContract, step: int) -> float | None:
    """How long at least between two doubts of a connection that are taken up, where the contract says so of the way at `step`."""
    rule = contract.recovery[step] if step < len(contract.recovery) else None
    pace = None if rule is None or isinstance(rule, PersonRule) else rule.pace
    return None if pace is None else pace.total_seconds()


def probe_of(contract: ToolContract) -> LookupRule | None:
    """The look-up that a client may make in a worker's place: one that only reads."""
    return contract.lookup if contract.lookup is not None and not contract.lookup.cancels else None


def left_to_clients_seconds(contract: ToolContract, *, sent_seconds_ago: float | None, not_after_seconds: float) -> float | None:
    """How long the next caller may end a doubt of a client-executed effect, counted from now; None: only a person can.

    Class A is handed over inside the provider's window, class B is probed. Both end with `not_after`: nothing is sent later.

    Args:
        contract: of the tool.
        sent_seconds_ago: since the first attempt that may have been sent.
        not_after_seconds: until the reservation's `not_after`; negative once it has passed.
    """
    ways = [0.0]
    if probe_of(contract) is not None:
        ways.append(not_after_seconds)
    if contract.guarantee_class == "A" and contract.resend is not None:
        ways.append((contract.resend.within - contract.resend.margin).total_seconds() - (sent_seconds_ago or 0.0))
    seconds = min(max(ways), not_after_seconds)
    return seconds if seconds > 0 else None


def look_again_seconds(*, looked: int, counts_in_seconds: float | None) -> float:
    """When the next look-up is due after one that proved nothing, counted from now.

    It backs off like every try, but none is due later than the first moment at which an absence counts.

    Args:
        looked: how many look-ups of this attempt there were.
        counts_in_seconds: until an absence counts; None or below zero once it does.
    """
    pause = back_off_seconds(looked)
    if counts_in_seconds is not None and counts_in_seconds > 0:
        pause = min(pause, counts_in_seconds + AFTER_THE_TIME_SECONDS)
    return pause


def between_absences_seconds(rule: LookupRule) -> float:
    """How long to wait between two absences that count."""
    least, most = BETWEEN_ABSENCES_SECONDS
    return min(max(least, rule.settle.total_seconds() / 10), most)


def is_over(rule: RecoveryRule, age_seconds: float) -> bool:
    """Whether a way's total time is used up, counted from when the doubt began."""
    total = None if isinstance(rule, PersonRule) else rule.total
    return total is not None and age_seconds >= total.total_seconds()


def _may_resend(contract: ToolContract, rule: ResendRule, doubt: Doubt) -> bool:
    if contract.guarantee_class != "A" or is_over(rule, doubt.age_seconds):
        return False
    return not (doubt.stored_failure or doubt.late_write or doubt.conflicted)


def _too_late_to_cancel(rule: LookupRule, doubt: Doubt) -> bool:
    """What may be due any moment is not called off any more, and what left late is due nobody knows when."""
    if not rule.cancels:
        return False
    return doubt.late_write or (doubt.sent_seconds_ago or 0.0) >= rule.cancel_within.total_seconds()
