"""Runs checks: those of a lane one after the other, lanes side by side, and says of each what was seen."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx2

from agent_outbox.conformance import client_executed, gateway_executed
from agent_outbox.conformance.checks import CHECKS, Check
from agent_outbox.conformance.ground import Broken, Ground, NotMade, Unanswered

KEPT, BROKEN, NOT_MADE = "kept", "broken", "not made"

_MODULES = [module.__name__ for module in (gateway_executed, client_executed)]
"""The modules whose checks there are, in the order in which they are shown; importing them has listed them."""


@dataclass(frozen=True)
class Verdict:
    """What came of one check.

    Attributes:
        check: which.
        verdict: `kept`, `broken` or `not made`.
        seen: what was seen instead, or why it was not made; empty where the promise was kept.
        seconds: how long it took.
    """

    check: Check
    verdict: str
    seen: str
    seconds: float

    def document(self) -> dict[str, Any]:
        """For machines."""
        return {
            "check": self.check.name,
            "promise": self.check.promise,
            "scenario": self.check.scenario,
            "verdict": self.verdict,
            "seen": self.seen,
            "seconds": round(self.seconds, 2),
        }


def chosen(only: Sequence[str], skip: Sequence[str]) -> list[Check]:
    """The checks of those names, or all, without those to skip.

    Raises:
        KeyError: there is no check of a name.
    """
    known = {each.name for each in CHECKS}
    for name in (*only, *skip):
        if name not in known:
            raise KeyError(name)
    ordered = sorted(CHECKS, key=lambda each: _MODULES.index(each.play.__module__))
    return [each for each in ordered if (not only or each.name in only) and each.name not in skip]


def run(ground: Ground, checks: Sequence[Check], *, told: Callable[[Verdict], None] = lambda verdict: None) -> list[Verdict]:
    """Make the checks.

    Args:
        ground: what they stand on.
        checks: which.
        told: is told of each verdict as soon as there is one; from several threads.

    Returns:
        A verdict for each, in the order of `checks`.
    """
    lanes: dict[str, list[Check]] = {}
    for each in checks:
        lanes.setdefault(each.lane, []).append(each)

    def play_lane(lane: list[Check]) -> list[Verdict]:
        verdicts = []
        for each in lane:
            verdict = _made(ground, each)
            told(verdict)
            verdicts.append(verdict)
        return verdicts

    with ThreadPoolExecutor(max(1, len(lanes))) as threads:
        found = {verdict.check.name: verdict for played in threads.map(play_lane, lanes.values()) for verdict in played}
    return [found[each.name] for each in checks]


def _made(ground: Ground, check: Check) -> Verdict:
    began = time.monotonic()
    verdict, seen = KEPT, ""
    try:
        check.play(ground)
    except NotMade as error:
        verdict, seen = NOT_MADE, str(error)
    except Broken as error:
        verdict, seen = BROKEN, str(error)
    except Unanswered as error:
        verdict, seen = BROKEN, f"no answer: {error}"
    except httpx2.HTTPError as error:
        verdict, seen = NOT_MADE, f"the sandbox provider failed: {error!r}"
    except (KeyError, TypeError, ValueError, LookupError) as error:
        # A member that the API promises is missing or of another kind.
        verdict, seen = BROKEN, f"an answer without what the API promises: {error!r}"
    return Verdict(check=check, verdict=verdict, seen=seen, seconds=time.monotonic() - began)
