"""The loss of the ledger's tail: what of it is remembered outside, and when it is plain that the ledger has gone back.

A database that was restored from a backup, or a standby that was promoted before it had everything, knows nothing of the
newest reservations, although their requests were sent. Three things show it: another server's identity, another timeline of the
same one (a promotion or a recovery to a point in time), and a *mark*: what a worker has seen committed, kept elsewhere.
A mark that is old or gone is only weaker; none is ever a reason to believe that nothing was lost.
Source: design section 4 (Epoch), `interfaces.md` section 11, model README hole 3, ADR 0015.
"""

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from uuid import UUID

CAUSE = "epoch"
"""What a doubt is put down to that a loss has made."""

POSSIBLY_LOST_SECONDS = 7 * 86_400.0
"""For how long after a loss a key first seen is treated as possibly sent (`interfaces.md` section 11)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Witness:
    """An attempt that is known to have been committed, because its claim was answered."""

    organization_id: UUID
    attempt_id: UUID


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """How far the ledger is known to have come.

    Attributes:
        installation_id: of the ledger; a restored one keeps it, so a mark of another one says nothing.
        epoch: its number then.
        beat: grows with every look of a worker, in the ledger first and only then here.
        at_ms: Postgres's time of that beat, in milliseconds of Unix time.
        witness: the newest attempt that whoever wrote this has opened in that epoch.
    """

    installation_id: UUID
    epoch: int
    beat: int
    at_ms: int
    witness: Witness | None

    def text(self) -> str:
        """As it is kept outside, on one line."""
        witness = [str(self.witness.organization_id), str(self.witness.attempt_id)] if self.witness is not None else None
        return json.dumps([1, str(self.installation_id), self.epoch, self.beat, self.at_ms, witness])

    @classmethod
    def from_text(cls, text: str | bytes) -> "Mark | None":
        """What `text` wrote; None where it is anything else: half a file, or of another version."""
        try:
            version, installation_id, epoch, beat, at_ms, witness = json.loads(text)
            if version != 1 or not all(type(number) is int for number in (epoch, beat, at_ms)):
                return None
            seen = None if witness is None else Witness(organization_id=UUID(witness[0]), attempt_id=UUID(witness[1]))
            return cls(installation_id=UUID(installation_id), epoch=epoch, beat=beat, at_ms=at_ms, witness=seen)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """Which Postgres a statement ran on.

    Attributes:
        system_identifier: made when its data were first made; a physical copy keeps it.
        timeline: grows with every promotion and every recovery to a point in time.
    """

    system_identifier: int
    timeline: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """How far the ledger has come, as it says itself.

    Attributes:
        epoch: the number of the newest.
        known: the server that this epoch began on.
        found: the server that answered.
    """

    installation_id: UUID
    epoch: int
    beat: int
    known: Server
    found: Server


def loss(standing: Standing, marks: Iterable[Mark], missing: Collection[UUID]) -> str | None:
    """Why the ledger must have lost something; None where nothing shows it.

    The marks must have been read before the ledger was: a beat is committed before it is marked, so what was marked by then is
    there unless it was lost.

    Args:
        standing: of the ledger.
        marks: kept outside. Those of another installation, or of an epoch that has ended, say nothing.
        missing: attempts that marks are witnesses of and that the ledger does not have.
    """
    if standing.found.system_identifier != standing.known.system_identifier:
        return "another system identifier"
    if standing.found.timeline != standing.known.timeline:
        return "another timeline"
    for mark in marks:
        if mark.installation_id != standing.installation_id or mark.epoch < standing.epoch:
            continue
        if mark.epoch > standing.epoch or mark.beat > standing.beat:
            return "a mark is ahead of the ledger"
        if mark.witness is not None and mark.witness.attempt_id in missing:
            return "an attempt is missing from the ledger"
    return None
