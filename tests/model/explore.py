"""Visits every reachable state of a specification, breadth-first, so that the first counter-example is a shortest one.

Liveness is checked under weak fairness: a set of states that can be stayed in for ever, strongly connected and with every fair
action somewhere disabled or taken inside it, in which a property stays pending, is a counter-example. Standard library only;
nothing in this module knows what is being modelled.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

S = TypeVar("S")

STATES_MAX = 6_000_000
SECONDS_MAX = 900.0


class Specification(Protocol[S]):
    """A transition system: a first state, and what may happen next."""

    @property
    def fair(self) -> frozenset[str]:
        """Actions that happen in the end when they stay possible; all others are faults or wishes from outside."""
        ...

    @property
    def pending(self) -> Mapping[str, Callable[[S], bool]]:
        """What must not stay true for ever, by the name of the property."""
        ...

    def init(self) -> S:
        """The first state, any hashable value."""
        ...

    def next(self, state: S, /) -> Iterator[tuple[str, S]]:
        """What may happen: a label whose first word names the action, and the state after it."""
        ...

    def violated(self, state: S, /) -> str | None:
        """The invariant that a state breaks, if any."""
        ...


@dataclass(kw_only=True)
class Found:
    """What a search came to.

    Attributes:
        states, steps: how many were visited.
        depth: steps to the state that is farthest from the first, or the length of the counter-example.
        broken: the name of the broken invariant, or `liveness: ` and the property.
        trace: the labels of a shortest way to it.
        complete: whether every reachable state was visited.
        taken: the actions that occur at all; a victory over nothing is none.
    """

    states: int = 0
    steps: int = 0
    depth: int = 0
    seconds: float = 0.0
    broken: str | None = None
    trace: list[str] = field(default_factory=list)
    complete: bool = True
    taken: set[str] = field(default_factory=set)


def action_of(label: str) -> str:
    """The action that a label names."""
    return label.split(" ", 1)[0].rstrip(":")


class _Search:
    """The states met so far and how each was reached."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.parents: list[tuple[int, str]] = [(-1, "")]
        self.depths = [0]
        self.found = Found()

    def add(self, here: int, label: str) -> None:
        self.parents.append((here, label))
        self.depths.append(self.depths[here] + 1)

    def end(self, at: int | None = None, broken: str | None = None) -> Found:
        found = self.found
        found.states, found.depth = len(self.parents), self.depths[-1]
        found.seconds, found.broken = time.monotonic() - self.began, broken
        if at is not None:
            found.depth = self.depths[at]
            while at > 0:
                at, label = self.parents[at]
                found.trace.append(label)
            found.trace.reverse()
        return found


def explore(
    specification: Specification[S],
    *,
    liveness: bool = False,
    states_max: int = STATES_MAX,
    seconds_max: float = SECONDS_MAX,
    watch: Callable[[str, S, S], None] | None = None,
) -> Found:
    """Search until an invariant breaks, every state has been visited, or a limit is met.

    Args:
        specification: what to search.
        liveness: also check that nothing stays pending for ever; every step is kept for it.
        states_max, seconds_max: where to give up; the result is then not complete.
        watch: told of every step, with its label and the states before and after it.
    """
    first = specification.init()
    numbers = {first: 0}
    order = [first]
    queue = deque([0])
    steps: list[list[tuple[str, int]]] = []
    search = _Search()
    found = search.found
    if broken := specification.violated(first):
        return search.end(0, broken)
    while queue:
        here = queue.popleft()
        state = order[here]
        out: list[tuple[str, int]] = []
        for label, after in specification.next(state):
            found.steps += 1
            found.taken.add(action_of(label))
            if watch is not None:
                watch(label, state, after)
            there = numbers.get(after)
            if there is None:
                there = numbers[after] = len(order)
                order.append(after)
                search.add(here, label)
                if broken := specification.violated(after):
                    return search.end(there, broken)
                queue.append(there)
            if liveness:
                out.append((action_of(label), there))
        if liveness:
            steps.append(out)
        if len(order) > states_max or (here % 4096 == 0 and time.monotonic() - search.began > seconds_max):
            found.complete = False
            return search.end()
    if liveness:
        for name, holds in specification.pending.items():
            at = _stuck([holds(state) for state in order], steps, specification.fair)
            if at is not None:
                return search.end(at, f"liveness: {name}")
    return search.end()


def _stuck(pending: Sequence[bool], steps: Sequence[Sequence[tuple[str, int]]], fair: frozenset[str]) -> int | None:
    """The earliest state from which something may stay pending for ever although every fair action gets its turn.

    A whole component is the easiest one to stay in fairly: what is disabled somewhere in a part of it is disabled in it.
    """
    earliest: int | None = None
    for component in _components(pending, steps):
        members = set(component)
        taken = {action for at in component for action, there in steps[at] if there in members}
        always = set.intersection(*({action for action, _ in steps[at]} for at in component))
        if not always & fair - taken:
            earliest = min(component) if earliest is None else min(earliest, *component)
    return earliest


def _components(inside: Sequence[bool], steps: Sequence[Sequence[tuple[str, int]]]) -> Iterator[list[int]]:
    """The strongly connected components of the states that are inside (Tarjan), without recursion."""
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    waiting: set[int] = set()
    stack: list[int] = []
    for root in range(len(inside)):
        if not inside[root] or root in index:
            continue
        index[root] = low[root] = len(index)
        stack.append(root)
        waiting.add(root)
        work = [(root, iter(steps[root]))]
        while work:
            at, targets = work[-1]
            for _, there in targets:
                if not inside[there]:
                    continue
                if there not in index:
                    index[there] = low[there] = len(index)
                    stack.append(there)
                    waiting.add(there)
                    work.append((there, iter(steps[there])))
                    break
                if there in waiting:
                    low[at] = min(low[at], index[there])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[at])
                if low[at] == index[at]:
                    component = []
                    while stack[-1] != at:
                        component.append(stack.pop())
                    component.append(stack.pop())
                    waiting.difference_update(component)
                    yield component
