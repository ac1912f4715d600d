"""The life of a reservation: its states, the transitions between them, and what an attempt can come to.

The same pairs stand in the table `reservation_transitions` and in `docs/lifecycle.md`; a rule test compares the three.
Source: design section 4.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType


class State(StrEnum):
    """Where a reservation stands."""

    AWAITING_REVIEW = "awaiting_review"
    RESERVED = "reserved"
    EXECUTING = "executing"
    IN_DOUBT = "in_doubt"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    DENIED = "denied"
    VOIDED = "voided"


class Outcome(StrEnum):
    """What one attempt came to. Everything that is not provably something else is unknown."""

    SUCCEEDED = "succeeded"
    REJECTED = "rejected"
    DEFERRED = "deferred"
    UNSENT = "unsent"
    UNKNOWN = "unknown"


class Confidence(StrEnum):
    """How the effect became known at settlement."""

    CONFIRMED = "confirmed"
    BY_LOOKUP = "confirmed-by-lookup"
    BY_WEBHOOK = "confirmed-by-webhook"
    ASSERTED = "asserted"


TRANSITIONS: Mapping[State, frozenset[State]] = MappingProxyType(
    {
        State.AWAITING_REVIEW: frozenset({State.RESERVED, State.DENIED, State.VOIDED}),
        State.RESERVED: frozenset({State.EXECUTING, State.SUCCEEDED, State.VOIDED, State.IN_DOUBT}),
        State.EXECUTING: frozenset({State.SUCCEEDED, State.FAILED, State.IN_DOUBT, State.RESERVED}),
        State.IN_DOUBT: frozenset({State.EXECUTING, State.SUCCEEDED, State.FAILED, State.RESERVED}),
        State.SUCCEEDED: frozenset(),
        State.FAILED: frozenset(),
        State.DENIED: frozenset(),
        State.VOIDED: frozenset(),
    }
)
"""Every allowed change of state."""

LIVE = frozenset({State.AWAITING_REVIEW, State.RESERVED, State.EXECUTING, State.IN_DOUBT, State.SUCCEEDED})
"""States whose operation key is taken: the key of a success never leaves the unique index."""

OPEN = frozenset({State.AWAITING_REVIEW, State.RESERVED, State.EXECUTING, State.IN_DOUBT})
"""States from which something may still come."""

TERMINAL = frozenset(state for state, following in TRANSITIONS.items() if not following)
"""States whose rows never change again."""
