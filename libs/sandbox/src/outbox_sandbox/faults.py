"""The faults that can be planned, and the queue of planned ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

TIMES_MAX = 1_000_000
DELAY_SECONDS_MAX = 3600.0
DELAY_SECONDS_DEFAULT = 1.0
METHODS = ("GET", "POST")


class FaultName(StrEnum):
    """What can go wrong with one request.

    | fault | commits | answer |
    |---|---|---|
    | commit-then-drop | yes | none: the connection is closed |
    | commit-then-500 | yes | 500, stored for the key |
    | drop-before-commit | no | none: the connection is closed |
    | delay, slow-commit | after delay_seconds, also when the caller has left | the true one, if the caller still waits |
    | hang | at once | none: the connection is closed after delay_seconds |
    | truncate-body | yes | half the body (of an empty one: half the head), then the connection is closed |
    | fail-500, reject-402 | no | 500, 402; stored for the key |
    | rate-limit | no | 429 with Retry-After, not stored |
    | forget-keys | - | acts when it is planned: every stored answer is forgotten |

    While a delayed request waits, its key is in use. Only requests that would otherwise have been carried out or replayed
    meet a fault: one that is refused (401, 400, 409) leaves it to the next.
    """

    COMMIT_THEN_DROP = "commit-then-drop"
    COMMIT_THEN_500 = "commit-then-500"
    DROP_BEFORE_COMMIT = "drop-before-commit"
    DELAY = "delay"
    HANG = "hang"
    SLOW_COMMIT = "slow-commit"
    TRUNCATE_BODY = "truncate-body"
    FAIL_500 = "fail-500"
    REJECT_402 = "reject-402"
    RATE_LIMIT = "rate-limit"
    FORGET_KEYS = "forget-keys"


STRIKES_EXECUTION = frozenset({FaultName.COMMIT_THEN_500, FaultName.SLOW_COMMIT, FaultName.FAIL_500, FaultName.REJECT_402})
"""Faults of carrying a request out. A replay of a stored answer carries nothing out, so it neither meets nor uses them up."""


class MalformedFault(ValueError):
    """What was asked for is not a fault; the text names the member at fault."""


@dataclass(kw_only=True)
class Fault:
    """A planned fault: the next `times` requests of `method` to exactly `path` meet it.

    `containing` narrows it to requests whose body, or for a GET whose query, holds this text: one effect among many.
    """

    path: str
    name: FaultName
    times: int
    delay_seconds: float
    method: str
    containing: str | None = None

    def document(self) -> dict[str, object]:
        """The fault as it is listed; `times` is what is left of it."""
        return {
            "path": self.path,
            "fault": self.name.value,
            "times": self.times,
            "delay_seconds": self.delay_seconds,
            "method": self.method,
            "containing": self.containing,
        }


def read_fault(members: Mapping[str, object]) -> Fault:
    """A fault from the members of a control request.

    `fault` is required, and `path` for every fault but forget-keys. `times` (default 1), `delay_seconds` (default 1; for
    rate-limit it is what Retry-After says), `method` (POST unless GET is said) and `containing` may be left out.
    Raises `MalformedFault` naming the first member that is unknown, missing or of the wrong kind.
    """
    unknown = sorted(set(members) - {"path", "fault", "times", "delay_seconds", "method", "containing"})
    if unknown:
        raise MalformedFault(f"unknown member {unknown[0]!r}")
    name = members.get("fault")
    if not isinstance(name, str) or name not in {each.value for each in FaultName}:
        raise MalformedFault(f"fault: {name!r} is not one of {', '.join(FaultName)}")
    path = members.get("path", "/" if name == FaultName.FORGET_KEYS else None)
    if not isinstance(path, str) or not path.startswith("/") or "?" in path or path.startswith("/_control"):
        raise MalformedFault(f"path: {path!r} is not the path of a resource")
    times = members.get("times", 1)
    if not isinstance(times, int) or isinstance(times, bool) or not 1 <= times <= TIMES_MAX:
        raise MalformedFault(f"times: {times!r} is not a whole number from 1 to {TIMES_MAX}")
    delay = members.get("delay_seconds", DELAY_SECONDS_DEFAULT)
    if not isinstance(delay, int | float) or isinstance(delay, bool) or not math.isfinite(delay):
        raise MalformedFault(f"delay_seconds: {delay!r} is not a number of seconds")
    if not 0 <= delay <= DELAY_SECONDS_MAX:
        raise MalformedFault(f"delay_seconds: {delay!r} is not between 0 and {DELAY_SECONDS_MAX:g}")
    method = members.get("method", "POST")
    if method not in METHODS:
        raise MalformedFault(f"method: {method!r} is not one of {', '.join(METHODS)}")
    containing = read_containing(members, MalformedFault)
    return Fault(
        path=path, name=FaultName(name), times=times, delay_seconds=float(delay), method=str(method), containing=containing
    )


def read_containing(members: Mapping[str, object], malformed: type[ValueError]) -> str | None:
    """The member `containing` of a control request, if it is there. Raises `malformed` for what is no text."""
    containing = members.get("containing")
    if containing is not None and not (isinstance(containing, str) and containing):
        raise malformed(f"containing: {containing!r} is not a text of at least one character")
    return containing


@dataclass
class FaultQueue:
    """Planned faults, oldest first. They live in memory: a restarted sandbox behaves."""

    planned: list[Fault] = field(default_factory=list)

    def take(self, method: str, path: str, text: str, *, is_replay: bool) -> Fault | None:
        """The oldest fault that this request meets, used up once; None if it meets none.

        `text` is the body of the request, or its query where it has no body.
        """
        for fault in self.planned:
            if fault.path != path or fault.method != method or (is_replay and fault.name in STRIKES_EXECUTION):
                continue
            if fault.containing is None or fault.containing in text:
                fault.times -= 1
                if fault.times == 0:
                    self.planned.remove(fault)
                return fault
        return None
