"""Holds the explorer to problems whose answers are known: `python -m tests.model.selftest`."""

from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any

from tests.model.explore import explore

TwoProcesses = tuple[str, str, int]


class Peterson:
    """Mutual exclusion of two processes; without the turn both wait for ever."""

    fair = frozenset({"a", "b"})
    pending: Mapping[str, Callable[[TwoProcesses], bool]] = {"a gets in": lambda state: state[0] == "waits"}

    def __init__(self, *, turn: bool = True, flags: bool = True) -> None:
        """Leave out the turn, or the look at the other's flag."""
        self.turn, self.flags = turn, flags

    def init(self) -> TwoProcesses:
        """Nobody wants anything."""
        return ("idle", "idle", 0)

    def next(self, state: TwoProcesses) -> Iterator[tuple[str, TwoProcesses]]:
        """One of the two takes a step."""
        a, b, turn = state
        for me, (mine, other) in enumerate(((a, b), (b, a))):
            if mine == "idle":
                to, then = "waits", 1 - me
            elif mine == "waits" and (other == "idle" or not self.flags or (self.turn and turn == me)):
                to, then = "inside", turn
            elif mine == "inside":
                to, then = "idle", turn
            else:
                continue
            yield f"{'ab'[me]} {to}", (to, b, then) if me == 0 else (a, to, then)

    def violated(self, state: TwoProcesses) -> str | None:
        """Never both."""
        return "two inside" if state[:2] == ("inside", "inside") else None


class Grid:
    """Three counters up to four: 125 states, twelve steps deep."""

    fair: frozenset[str] = frozenset()
    pending: Mapping[str, Callable[[tuple[int, ...]], bool]] = {}

    def init(self) -> tuple[int, ...]:
        """All at nothing."""
        return (0, 0, 0)

    def next(self, state: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Any of them goes up."""
        for i, count in enumerate(state):
            if count < 4:
                yield f"step {i}", (*state[:i], count + 1, *state[i + 1 :])

    def violated(self, state: tuple[int, ...]) -> str | None:
        """Nothing is forbidden."""
        return None


class Lazy:
    """A step that may be put off for ever: only fairness makes it happen."""

    pending: Mapping[str, Callable[[str], bool]] = {"arrives": lambda state: state == "here"}

    def __init__(self, *, fair: bool) -> None:
        """Say whether the step happens in the end."""
        self.fair = frozenset({"go"} if fair else ())

    def init(self) -> str:
        """Not gone yet."""
        return "here"

    def next(self, state: str) -> Iterator[tuple[str, str]]:
        """Wait, or go."""
        yield "wait", state
        if state == "here":
            yield "go", "there"

    def violated(self, state: str) -> str | None:
        """Nothing is forbidden."""
        return None


class Flicker:
    """A fair step that is possible every other moment only: weak fairness does not bring it about."""

    fair = frozenset({"go"})
    pending: Mapping[str, Callable[[int], bool]] = {"arrives": lambda state: state < 2}

    def init(self) -> int:
        """Off."""
        return 0

    def next(self, state: int) -> Iterator[tuple[str, int]]:
        """The light goes on and off; while it is on one may go."""
        if state < 2:
            yield "blink", 1 - state
        if state == 1:
            yield "go", 2

    def violated(self, state: int) -> str | None:
        """Nothing is forbidden."""
        return None


def failures() -> list[str]:
    """The problems that the explorer answers wrongly."""
    grid = explore(Grid())
    steps = sum(3 - counts.count(4) for counts in product(range(5), repeat=3))
    unlocked = explore(Peterson(flags=False))
    answers: dict[str, tuple[Any, Any]] = {
        "a grid has 125 states, is twelve deep and has 300 steps": ((grid.states, grid.depth, grid.steps), (125, 12, steps)),
        "Peterson's algorithm is exclusive and lets everybody in": (explore(Peterson(), liveness=True).broken, None),
        "without the turn somebody waits for ever": (explore(Peterson(turn=False), liveness=True).broken, "liveness: a gets in"),
        "without the flags both are inside after four steps": ((unlocked.broken, len(unlocked.trace)), ("two inside", 4)),
        "a fair step happens": (explore(Lazy(fair=True), liveness=True).broken, None),
        "a step that is not fair may not": (explore(Lazy(fair=False), liveness=True).broken, "liveness: arrives"),
        "weak fairness is not strong fairness": (explore(Flicker(), liveness=True).broken, "liveness: arrives"),
        "a search that is cut short says so": (explore(Grid(), states_max=10).complete, False),
    }
    return [name for name, (answer, known) in answers.items() if answer != known]


if __name__ == "__main__":
    if wrong := failures():
        raise SystemExit("explorer: wrong about " + "; ".join(wrong))
    print("explorer: as known")
