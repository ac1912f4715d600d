"""When to try again: the back-off of tries and resends, and what is left to try in a doubt.

Source: design section 4 (rules of doubt), `interfaces.md` section 9 (figures).
"""

from datetime import timedelta

from outbox_domain.contract import ToolContract

BACK_OFF_FIRST_SECONDS = 0.5
BACK_OFF_MAX_SECONDS = 60.0

RESEND_MARGIN_SECONDS = 60.0
"""What must be left of the provider's window beside the deadline: the pause of a process and the way to the provider."""

SETTLE_DEFAULT = timedelta(seconds=120)
"""The settle time of a contract that declares none: the in-flight horizon of every provider (`providers.md` section 1)."""


def back_off_seconds(tried: int) -> float:
    """How long to wait before the next try: half a second, doubling, at most a minute.

    Args:
        tried: how many tries there were before.
    """
    return min(BACK_OFF_MAX_SECONDS, BACK_OFF_FIRST_SECONDS * 2.0 ** min(tried, 16))


def settle_seconds(contract: ToolContract) -> float:
    """How long after the end of the last lease an absence counts."""
    return (contract.lookup.settle if contract.lookup is not None else SETTLE_DEFAULT).total_seconds()


def resend_in_seconds(
    contract: ToolContract, *, resends: int, stored_failure: bool, late_write: bool, tries: int = 0
) -> float | None:
    """When a doubt may be sent again under the same provider key; None when resending has nothing left to give.

    A replayed stored failure proves nothing and would be replayed again; a late write leaves only a success or a person.

    Args:
        contract: of the tool; only class A resends out of doubt.
        resends: how many there were that may have reached the provider.
        tries: how many there were that did not, or that it put off; they only lengthen the pause.
        stored_failure: the provider replayed a failure that it had stored.
        late_write: a request left after the time it had to.
    """
    rule = contract.resend
    if contract.guarantee_class != "A" or rule is None or stored_failure or late_write or resends >= rule.times:
        return None
    return back_off_seconds(resends + tries)
