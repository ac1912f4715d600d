"""What a check is, and the list of all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from agent_outbox.conformance.ground import Ground

Play = Callable[[Ground], None]


@dataclass(frozen=True)
class Check:
    """One hostile scenario and the promise that it tests.

    Attributes:
        name: of the check.
        promise: in a sentence.
        scenario: what is done, in a sentence.
        lane: checks of one lane run one after the other, because they share a provider's path; lanes run side by side.
        play: does it; raises `Broken` where the promise does not hold.
    """

    name: str
    promise: str
    scenario: str
    lane: str
    play: Play


CHECKS: list[Check] = []
"""Every check, in the order in which it is shown."""


def check(*, promise: str, lane: str | None = None) -> Callable[[Play], Play]:
    """Make a function a check: its name with dashes, its docstring as the scenario.

    Args:
        promise: what a gateway must hold, in a sentence.
        lane: whose provider's path it uses; a lane of its own when left out.
    """

    def register(play: Play) -> Play:
        name = play.__name__.replace("_", "-")
        scenario = " ".join((play.__doc__ or "").split())
        CHECKS.append(Check(name=name, promise=promise, scenario=scenario, lane=lane or name, play=play))
        return play

    return register
