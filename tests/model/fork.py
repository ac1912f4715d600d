"""Keys and forks: does a fork make an effect again that its parent asked for before the checkpoint?

A parent run asks for one effect, makes a checkpoint, and is forked from it with `effects: replay` or `branch`; parent and fork then ask
again. The scope beside the operation key is the lineage; a branch has a scope of its own. Branches are not built yet.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple


class Row(NamedTuple):
    """A reservation of the one operation key, in one scope."""

    scope: str
    before: bool  # reserved before the checkpoint
    state: str = "executing"
    effect: bool = False


class State(NamedTuple):
    """Everything at one moment."""

    rows: tuple[Row, ...] = ()
    checkpoint: bool = False
    fork: str = ""  # "", replay, branch
    settled: tuple[bool, ...] = ()  # which rows had succeeded at the checkpoint


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The guards."""

    scope_is_lineage: bool = True
    branch_inherits_open: bool = True


@dataclass(frozen=True, kw_only=True)
class World:
    """What may happen."""

    branch: bool = True


ENDS = (("succeeded", True), ("failed", False), ("in_doubt", True), ("in_doubt", False))


class Fork:
    """The transition system of a parent and its fork."""

    fair: frozenset[str] = frozenset()
    pending: Mapping[str, Callable[[State], bool]] = {}

    def __init__(self, rules: Rules, world: World, ignore: frozenset[str] = frozenset()) -> None:
        """Take the guards, what may happen, and the invariants that are not asked."""
        self.rules, self.world, self.ignore = rules, world, ignore

    def init(self) -> State:
        """Nothing was asked yet."""
        return State()

    def next(self, s: State) -> Iterator[tuple[str, State]]:
        """Everything that may happen next."""
        yield from self.ask(s, "parent", "trunk")
        if not s.checkpoint:
            yield "checkpoint", s._replace(checkpoint=True, settled=tuple(r.state == "succeeded" for r in s.rows))
        elif not s.fork:
            yield "fork, effects: replay", s._replace(fork="replay")
            if self.world.branch:
                yield "fork, effects: branch", s._replace(fork="branch")
        else:
            own = s.fork == "branch" or not self.rules.scope_is_lineage
            yield from self.ask(s, "fork", "fork" if own else "trunk")
        for i, r in enumerate(s.rows):
            if r.state == "executing":
                for state, effect in ENDS:
                    ended = (*s.rows[:i], r._replace(state=state, effect=effect), *s.rows[i + 1 :])
                    yield f"{r.scope} {state}{' with an effect' if effect else ''}", s._replace(rows=ended)

    def ask(self, s: State, who: str, scope: str) -> Iterator[tuple[str, State]]:
        """Join or replay what is live in the scope, or reserve."""
        if any(r.scope == scope and r.state != "failed" for r in s.rows) or len(s.rows) > 2:
            return
        if who == "fork" and scope == "fork" and self.rules.scope_is_lineage and self.inherits(s):
            return
        yield f"{who} reserves", s._replace(rows=(*s.rows, Row(scope, not s.checkpoint)))

    def inherits(self, s: State) -> bool:
        """Whether a branch joins or replays what its parent reserved before the checkpoint."""
        return any(
            r.before and r.state != "failed" and (self.rules.branch_inherits_open or s.settled[i]) for i, r in enumerate(s.rows)
        )

    def violated(self, s: State) -> str | None:
        """The invariant that is broken, if any."""
        if s.fork == "replay" and sum(r.effect for r in s.rows) > 1:
            return "parent and replaying fork have one effect"
        if (
            s.fork == "branch"
            and any(r.effect and r.before for r in s.rows)
            and any(r.effect and r.scope == "fork" for r in s.rows)
        ):
            return "a branch never repeats what was asked before its checkpoint"
        return None
