"""When to try again, and what is left to try in a doubt: the contract's ordered ways with their bounds.

Source: design section 4 (rules of doubt), `interfaces.md` section 9 (figures), ADR 0012.
"""

from dataclasses import dataclass
from datetime import timedelta

from outbox_domain.contract import LookupRule, RecoveryRule, ResendRule, ToolContract

BACK_OFF_FIRST_SECONDS = 0.5
BACK_OFF_MAX_SECONDS = 60.0

RESEND_MARGIN_SECONDS = 60.0
"""What must be left of the provider's window beside the deadline: the pause of a process and the way to the provider."""

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
    """

    step: int = 0
    resends: int
    stored_failure: bool
    late_write: bool
    unreachable: bool
    tries: int = 0


def back_off_seconds(tried: int) -> float:
    """How long to wait before the next try: half a second, doubling, at most a minute.

    Args:
        tried: how many tries there were before.
    """
    return min(BACK_OFF_MAX_SECONDS, BACK_OFF_FIRST_SECONDS * 2.0 ** min(tried, 16))


def settle_seconds(contract: ToolContract) -> float:
    """How long after the end of the last lease an absence counts."""
    return (contract.lookup.settle if contract.lookup is not None else SETTLE_DEFAULT).total_seconds()


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
        if isinstance(rule, LookupRule):
            return place, rule
        if isinstance(rule, ResendRule) and _may_resend(contract, doubt) and doubt.resends < rule.times:
            return place, rule
    if doubt.unreachable and _may_resend(contract, doubt):
        return next(((place, rule) for place, rule in ways[doubt.step :] if isinstance(rule, ResendRule)), None)
    return None


def recover_in_seconds(contract: ToolContract, doubt: Doubt) -> float | None:
    """When the next step out of a doubt is due, counted from now; None when only a person can decide."""
    way = next_way(contract, doubt)
    if way is None:
        return None
    return back_off_seconds(doubt.resends + doubt.tries) if isinstance(way[1], ResendRule) else BACK_OFF_FIRST_SECONDS


def left_to_clients_seconds(contract: ToolContract, *, sent_seconds_ago: float | None, not_after_seconds: float) -> float | None:
    """How long the next caller may end a doubt of a client-executed effect, counted from now; None: only a person can.

    Class A is handed over inside the provider's window, class B is probed. Both end with `not_after`: nothing is sent later.

    Args:
        contract: of the tool.
        sent_seconds_ago: since the first attempt that may have been sent.
        not_after_seconds: until the reservation's `not_after`; negative once it has passed.
    """
    ways = [0.0]
    if contract.lookup is not None:
        ways.append(not_after_seconds)
    if contract.guarantee_class == "A" and contract.resend is not None:
        ways.append(contract.resend.within.total_seconds() - (sent_seconds_ago or 0.0) - RESEND_MARGIN_SECONDS)
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


def _may_resend(contract: ToolContract, doubt: Doubt) -> bool:
    return contract.guarantee_class == "A" and not doubt.stored_failure and not doubt.late_write
