"""What a handler is given, what it may return, and what is checked of it before anything is reserved."""

from __future__ import annotations

import inspect
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol, Union

from agent_outbox.classify import Classified, Outcome
from agent_outbox.errors import BadHandlerError
from agent_outbox.receipt import Money


def lease_clock() -> float:
    """Monotonic seconds that go on while the machine sleeps, where it has such a clock: leases do."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot is None else time.clock_gettime(boot)


class Lease:
    """The time for which an attempt is this caller's, as far as this side can be sure of it."""

    def __init__(self, *, asked_at: float, seconds: float, clock: Callable[[], float] = lease_clock) -> None:
        """
        Args:
            asked_at: on the clock, before the lease was asked for: the gateway counted from then or later.
            seconds: as it was granted.
            clock: monotonic seconds.
        """
        self.clock = clock
        self.seconds = seconds
        self.until = asked_at + seconds
        self.limit_until: float | None = None
        self.lost = False

    def begin(self, time_limit: float | None) -> None:
        """The handler begins now."""
        self.limit_until = None if time_limit is None else self.clock() + time_limit

    def extend(self, *, asked_at: float, seconds: float) -> None:
        """A heartbeat was granted."""
        self.until = max(self.until, asked_at + seconds)
        self.seconds = seconds

    def left(self) -> float:
        """Seconds until the attempt, or its time limit, is over; negative afterwards."""
        until = self.until if self.limit_until is None else min(self.until, self.limit_until)
        return -1.0 if self.lost else until - self.clock()

    def over(self) -> str | None:
        """Why the handler has no time any more; None while it has."""
        if self.lost:
            return "lease lost"
        if self.limit_until is not None and self.clock() >= self.limit_until:
            return "time limit"
        return "lease over" if self.clock() >= self.until else None


@dataclass(frozen=True, kw_only=True)
class Effect:
    """The right to one effect, as a handler is given it.

    Attributes:
        tool, input: what is asked for, as the gateway was told it.
        reservation_id, operation_key: of the reservation.
        attempt_id: of this attempt.
        number: how many attempts there were, this one included.
        provider_key: the idempotency key to send the provider: the same for every attempt of this effect.
        marker: to be planted where the provider keeps it, so that a probe finds the effect.
        recovering: an earlier attempt may have had the effect; its provider key is the same.
        time_limit: how many seconds the handler may take; None: as long as the lease is renewed.
        deadline: when the time limit ends; None without one. Of a probe: None.
    """

    tool: str
    input: Mapping[str, Any] = field(hash=False, repr=False)
    reservation_id: str
    operation_key: str | None
    attempt_id: str
    number: int
    provider_key: str
    marker: str
    recovering: bool
    time_limit: float | None
    deadline: datetime | None
    lease: Lease = field(repr=False, compare=False)

    def __bool__(self) -> bool:
        """False: nothing is done yet."""
        return False

    def seconds_left(self) -> float:
        """Seconds in which the handler must have sent everything; negative when it is too late for anything."""
        return self.lease.left()


@dataclass(frozen=True, kw_only=True)
class Success:
    """What a handler returns that knows more than its result.

    Attributes:
        result: as a plain return would give it.
        external_reference: the provider's own name of the effect.
        provider_request_id: the provider's name of the request.
        amount: the money that the provider says it moved.
    """

    result: object = None
    external_reference: str | None = None
    provider_request_id: str | None = None
    amount: Money | None = None


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a probe returns that found the effect.

    Attributes:
        external_reference: the provider's own name of the effect.
        result: as the handler would have returned it; left out where the provider does not show it.
    """

    external_reference: str
    result: object = None


Handler = Callable[[Effect], Any]
AsyncHandler = Callable[[Effect], Awaitable[Any]]
Probe = Callable[[Effect], Union[Found, str, None]]
AsyncProbe = Callable[[Effect], Awaitable[Union[Found, str, None]]]
Classify = Callable[[BaseException], Union[Classified, Outcome, None]]
"""What an exception of a handler says: `rejected`, `deferred`, `unsent` or `unknown`; or None to leave it to the lists."""


class ReceiptOf(Protocol):
    """Finds the provider's name of an effect in what a handler returned."""

    def __call__(self, result: Any, /) -> object:
        """The name; None where there is none."""


def is_async(function: object) -> bool:
    """Whether calling a function gives something to be awaited."""
    while hasattr(function, "func") and not inspect.isroutine(function):  # functools.partial
        function = function.func
    if inspect.iscoroutinefunction(function):
        return True
    return not inspect.isroutine(function) and inspect.iscoroutinefunction(type(function).__call__)


def checked_handler(function: object, name: str, *, async_allowed: bool) -> None:
    """Refuse what cannot be called with an effect.

    Args:
        function: the handler, or the probe.
        name: what it is called in the sentence.
        async_allowed: whether it may be a coroutine function.

    Raises:
        BadHandlerError: it is no function, cannot be called with exactly one argument, or is asynchronous where nobody awaits.
    """
    if not callable(function):
        raise BadHandlerError(f"{name}: expected a function of one argument, the effect; got {type(function).__name__}.")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        raise BadHandlerError(f"{name}: its signature cannot be read; wrap it: lambda effect: ...") from None
    try:
        signature.bind(None)
    except TypeError as error:
        raise BadHandlerError(f"{name}{signature}: expected a function of one argument, the effect ({error}).") from None
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise BadHandlerError(f"{name}: expected a function that returns its result, not a generator.")
    if is_async(function) and not async_allowed:
        raise BadHandlerError(f"{name}: it is asynchronous, and Outbox has no event loop; use AsyncOutbox.")
