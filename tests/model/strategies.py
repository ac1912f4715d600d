"""Two ways of recovery beside resend and lookup: `natural` repeats an absolute setting, `cancel-first` cancels before it sends again.

Natural: operations 1 and 2 set one object to 1 and to 2, in this order. Cancel first: a deferred sending is cancelled at the provider
before it is sent again. Requests take up to `delay` ticks to arrive.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The guards."""

    one_open_per_object: bool = True
    object_stays_open_until_quiet: bool = True
    identity_per_attempt: bool = True
    cancelled_in_time: bool = True


@dataclass(frozen=True, kw_only=True)
class World:
    """What may happen, and the bounds of the search."""

    delay: int = 1
    sends: int = 2
    due: int = 3  # from arrival to the deferred effect
    cancel_is_durable: bool = True  # also refuses a request that arrives after it


Pair = tuple[int, int]


class Thing(NamedTuple):
    """An object at the provider and the two operations on it."""

    value: int = 0
    requests: tuple[Pair, ...] = ()  # (operation, ticks left)
    states: tuple[str, str] = ("new", "new")
    quiet: Pair = (0, 0)
    sends: Pair = (0, 0)


class Natural:
    """The transition system of two settings of one object."""

    fair: frozenset[str] = frozenset()
    pending: Mapping[str, Callable[[Thing], bool]] = {}

    def __init__(self, rules: Rules, world: World, ignore: frozenset[str] = frozenset()) -> None:
        """Take the guards, what may happen, and the invariants that are not asked."""
        self.rules, self.world, self.ignore = rules, world, ignore

    def init(self) -> Thing:
        """Nothing was set yet."""
        return Thing()

    def next(self, s: Thing) -> Iterator[tuple[str, Thing]]:
        """Everything that may happen next."""
        for i in (0, 1):
            operation, state = i + 1, s.states[i]
            if state == "new" and (i == 0 or self.may_follow(s)):
                yield f"send {operation}", self.send(s, i)
            elif state == "sent":
                yield f"unknown {operation}", self.become(s, i, "in_doubt")
                if s.value == operation:
                    yield f"success {operation}", self.become(s, i, "succeeded")
            elif state == "in_doubt" and s.sends[i] < self.world.sends:
                yield f"resend {operation}", self.send(s, i)
        for j, (operation, _) in enumerate(s.requests):
            rest = (*s.requests[:j], *s.requests[j + 1 :])
            yield f"arrives: the object is {operation}", s._replace(value=operation, requests=rest)
            yield f"lost {operation}", s._replace(requests=rest)
        if all(left for _, left in s.requests):
            aged = tuple(sorted((operation, left - 1) for operation, left in s.requests))
            yield "tick", s._replace(requests=aged, quiet=(max(s.quiet[0] - 1, 0), max(s.quiet[1] - 1, 0)))

    def may_follow(self, s: Thing) -> bool:
        """Whether the next operation on the object may begin."""
        if s.states[0] == "new":
            return False
        quiet = s.quiet[0] == 0 or not self.rules.object_stays_open_until_quiet
        return (s.states[0] == "succeeded" and quiet) or not self.rules.one_open_per_object

    def send(self, s: Thing, i: int) -> Thing:
        sends = (s.sends[0] + (i == 0), s.sends[1] + (i == 1))
        until = self.world.delay + 1
        quiet = (until, s.quiet[1]) if i == 0 else (s.quiet[0], until)
        requests = tuple(sorted((*s.requests, (i + 1, self.world.delay))))
        return self.become(s._replace(requests=requests, sends=sends, quiet=quiet), i, "sent")

    def become(self, s: Thing, i: int, state: str) -> Thing:
        return s._replace(states=(state, s.states[1]) if i == 0 else (s.states[0], state))

    def violated(self, s: Thing) -> str | None:
        """The invariant that is broken, if any."""
        undone = s.states[1] == "succeeded" and s.value == 1
        return "the newer setting is not undone by the older operation" if undone else None


class Mail(NamedTuple):
    """A deferred sending."""

    state: str = "reserved"  # reserved, sent, in_doubt, cancelled, review, succeeded, failed
    attempts: int = 0
    age: int = 0  # ticks since the last sending
    requests: tuple[Pair, ...] = ()  # (batch, ticks left)
    scheduled: tuple[Pair, ...] = ()  # (batch, ticks until it is due)
    cancelled: frozenset[int] = frozenset()
    effects: int = 0


class CancelFirst:
    """The transition system of a sending that is cancelled before it is repeated."""

    fair = frozenset({"send", "tick", "arrive", "due", "success", "unknown", "cancel", "person"})
    pending: Mapping[str, Callable[[Mail], bool]] = {"leaves in_doubt": lambda s: s.state == "in_doubt"}

    def __init__(self, rules: Rules, world: World, ignore: frozenset[str] = frozenset()) -> None:
        """Take the guards, what may happen, and the invariants that are not asked."""
        self.rules, self.world, self.ignore = rules, world, ignore

    def init(self) -> Mail:
        """Nothing was sent yet."""
        return Mail()

    def batch(self, s: Mail) -> int:
        """The identity that an attempt is sent under."""
        return s.attempts if self.rules.identity_per_attempt else 1

    def next(self, s: Mail) -> Iterator[tuple[str, Mail]]:
        """Everything that may happen next."""
        world = self.world
        if s.state in ("reserved", "cancelled") and s.attempts < world.sends:
            sent = s._replace(state="sent", attempts=s.attempts + 1, age=0)
            yield "send", sent._replace(requests=tuple(sorted((*s.requests, (self.batch(sent), world.delay)))))
        elif s.state == "sent":
            yield "unknown outcome", s._replace(state="in_doubt")
            if any(batch == self.batch(s) for batch, _ in s.scheduled):
                yield "success: accepted for later", s._replace(state="succeeded")
        elif s.state == "in_doubt":
            yield self.end_doubt(s)
        elif s.state == "review" and not s.requests and not s.scheduled:
            yield "person answers", s._replace(state="succeeded" if s.effects else "failed")
        yield from self.provider(s)
        if all(left for _, left in s.requests) and all(left for _, left in s.scheduled):
            requests = tuple((batch, left - 1) for batch, left in s.requests)
            scheduled = tuple((batch, left - 1) for batch, left in s.scheduled)
            yield "tick", s._replace(age=min(s.age + 1, world.due + 2), requests=requests, scheduled=scheduled)

    def end_doubt(self, s: Mail) -> tuple[str, Mail]:
        """Cancel while it cannot be due yet; later only a person may say."""
        batch = self.batch(s)
        if s.age + 1 < self.world.due or not self.rules.cancelled_in_time:
            scheduled = tuple(pair for pair in s.scheduled if pair[0] != batch)
            return "cancel is confirmed", s._replace(state="cancelled", cancelled=s.cancelled | {batch}, scheduled=scheduled)
        return "person is asked: too late to cancel", s._replace(state="review")

    def provider(self, s: Mail) -> Iterator[tuple[str, Mail]]:
        """Requests arrive, batches fall due."""
        for j, (batch, _) in enumerate(s.requests):
            rest = s._replace(requests=(*s.requests[:j], *s.requests[j + 1 :]))
            if batch in s.cancelled and self.world.cancel_is_durable:
                yield "arrive: refused, its batch is cancelled", rest
            else:
                yield "arrive: scheduled", rest._replace(scheduled=tuple(sorted((*s.scheduled, (batch, self.world.due)))))
        for j, (_, left) in enumerate(s.scheduled):
            if left == 0:
                rest = s._replace(scheduled=(*s.scheduled[:j], *s.scheduled[j + 1 :]))
                yield "due: EFFECT", rest._replace(effects=min(s.effects + 1, 2))

    def violated(self, s: Mail) -> str | None:
        """The invariant that is broken, if any."""
        if s.effects > 1:
            return "at most one effect"
        idle = not s.requests and not s.scheduled
        if s.state == "sent" and idle and s.attempts == 2 and self.batch(s) in s.cancelled:
            return "a second sending is not swallowed by our own cancellation"
        if s.state == "failed" and s.effects:
            return "failed has no effect"
        return None
