"""Working on many doubts at once: what there is, asking recovery to look again, and one answer for all that are alike.

A night of four hundred doubts is worked by a person who looks at a summary, picks those that have one cause, and says of them
what they found out. What is picked may change meanwhile, so the person says how many they mean; with another number nothing is
done.
Source: `interfaces.md` section 3.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal
from uuid import UUID

from outbox_api.answer_doubt import DoubtAnswer, answer_doubt
from outbox_api.bodies import refuse
from outbox_api.directory import Directory
from outbox_api.reserve import Refused
from outbox_domain import messages
from outbox_domain.capability import Capability
from outbox_domain.contract import ToolContract
from outbox_domain.errors import OutboxError, Retry
from outbox_domain.scoped_key import ScopedKey
from outbox_runtime.postgres import NOT_NOW, Pool, acquire
from outbox_store import contradictions, doubts
from outbox_store.contradictions import Contradicted
from outbox_store.doubts import DoubtCount, DoubtView, EpisodeCount, Where

AT_ONCE_MAX = 1_000
"""How many doubts one request answers; more are narrowed down or answered in several requests."""

CONTRADICTIONS_MAX = 100
"""So many contradictions the summary names, the oldest first."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What a person wants done with many doubts.

    Attributes:
        where: which doubts.
        expect: how many they are; another number and nothing is done.
        reason: why, in the person's words.
        dry_run: only say what would be done.
    """

    where: Where
    expect: int
    reason: str
    dry_run: bool


@dataclass(frozen=True, kw_only=True)
class Done:
    """What became of one doubt of a batch.

    Attributes:
        verdict: `settled`, `known`, `rechecked`; `refused` with the problem's code; `would` where nothing was to be done.
    """

    doubt: DoubtView
    verdict: Literal["settled", "known", "rechecked", "refused", "would"]
    code: str | None = None
    detail: str | None = None

    def document(self) -> dict[str, object]:
        """As it is answered."""
        members = {
            "reservation_id": self.doubt.id,
            "operation_key": self.doubt.operation_key,
            "tool": self.doubt.tool,
            "connection": self.doubt.connection,
            "verdict": self.verdict,
            "code": self.code,
            "detail": self.detail,
        }
        return {name: value for name, value in members.items() if value is not None}


def narrowed(key: ScopedKey, where: Where) -> Where:
    """The same doubts, as far as a key reaches.

    Raises:
        OutboxError: `out-of-scope`, where another run is asked for than the key's only one.
    """
    if key.run is not None and where.run not in (None, key.run):
        raise OutboxError("out-of-scope", "This key reads one run only.", dimension="run")
    return replace(where, run=key.run or where.run, project_id=key.project_id)


async def summarise(pool: Pool, directory: Directory, key: ScopedKey, where: Where) -> dict[str, object]:
    """How many doubts there are by connection, tool, class and cause, and what happens next to them; and what is contradicted.

    Args:
        pool: of this process.
        directory: knows the contracts, which say what recovery tries.
        key: whoever asks; only what it reaches is counted.
        where: only these.

    Raises:
        OutboxError: `out-of-scope`.
    """
    key.require(Capability.READ_ALL)
    async with acquire(pool) as connection:
        found = await doubts.summary(connection, key.organization_id, key.environment_id, narrowed(key, where))
        waiting = await doubts.episodes(connection, key.organization_id, key.environment_id, narrowed(key, where))
        # They have no cause, and no recovery looks into them.
        denied = (
            await contradictions.list_(
                connection,
                key.organization_id,
                key.environment_id,
                narrowed(key, where),
                reaches=key.reaches,
                limit=CONTRADICTIONS_MAX,
            )
            if where.cause is None and where.needs != "recovery"
            else []
        )
    counts = [count for count in found if key.reaches(count.tool, count.provider)]
    groups: dict[tuple[str, str, str, str], list[DoubtCount]] = {}
    for count in counts:
        groups.setdefault((count.connection, count.tool, count.guarantee_class, count.cause), []).append(count)
    documents = []
    for (connection_name, tool, guarantee_class, cause), alike in groups.items():
        steps = [(count, await _next_of(directory, key, count)) for count in alike]
        documents.append(
            {
                "connection": connection_name,
                "tool": tool,
                "class": guarantee_class,
                "cause": cause,
                **_sums(alike),
                "next": _next(steps),
                "absence_counts": sum(count.absence_counts for count in alike),
                "absence_counts_at": max(count.absence_counts_at for count in alike),
            }
        )
    episodes = _episodes([count for count in waiting if key.reaches(count.tool, count.provider)])
    contradicted = [_contradicted(each) for each in denied]
    return {**_sums(counts), "groups": documents, "episodes": episodes, "contradictions": contradicted}


def _contradicted(each: Contradicted) -> dict[str, object]:
    names = ("reservation_id", "connection", "tool", "operation_key", "state", "external_references", "since")
    return {name: getattr(each, name) for name in names}


def _episodes(counts: list[EpisodeCount]) -> list[dict[str, object]]:
    """What people are asked about, once for all doubts of a connection and cause that wait for them."""
    together: dict[UUID, list[EpisodeCount]] = {}
    for count in counts:
        together.setdefault(count.id, []).append(count)
    return [
        {
            "id": id,
            "connection": alike[0].connection,
            "cause": alike[0].cause,
            "attention": alike[0].attention,
            "owners": sorted({owner for count in alike for owner in count.owners}),
            "tools": sorted({count.tool for count in alike}),
            "opened_at": alike[0].opened_at,
            "waiting": sum(count.waiting for count in alike),
            "doubts": alike[0].doubts,
            "oldest": min(count.oldest for count in alike),
            "amounts": _amounts(alike),
        }
        for id, alike in together.items()
    ]


def _amounts(counts: Sequence[DoubtCount | EpisodeCount]) -> list[dict[str, object]]:
    money: dict[str, int] = {}
    for count in counts:
        if count.currency is not None:
            money[count.currency] = money.get(count.currency, 0) + count.amount
    return [{"value": value, "currency": currency} for currency, value in sorted(money.items())]


def _sums(counts: list[DoubtCount]) -> dict[str, object]:
    return {
        "count": sum(count.count for count in counts),
        "needs_person": sum(count.count for count in counts if count.needs_person),
        "oldest": min((count.oldest for count in counts), default=None),
        "amounts": _amounts(counts),
    }


async def _next_of(directory: Directory, key: ScopedKey, count: DoubtCount) -> str:
    if count.needs_person:
        return "person"
    return next_way(await directory.contract(key.organization_id, count.tool, count.contract_version), count.recovery_step)


def next_way(contract: ToolContract | None, step: int) -> str:
    """Which way out of doubt is tried next; `unknown` where the contract cannot be read here."""
    if contract is None:
        return "unknown"
    return contract.recovery[step].way if step < len(contract.recovery) else "person"


def _next(steps: Iterable[tuple[DoubtCount, str]]) -> list[dict[str, object]]:
    ways: dict[str, list[DoubtCount]] = {}
    for count, way in steps:
        ways.setdefault(way, []).append(count)
    return [
        {
            "action": way,
            "count": sum(count.count for count in counts),
            "at": min((count.next_check for count in counts if count.next_check is not None), default=None),
        }
        for way, counts in ways.items()
    ]


async def resolve_many(
    pool: Pool,
    key: ScopedKey,
    batch: Batch,
    answer: DoubtAnswer,
    references: dict[UUID, str],
    batch_id: UUID,
    new_id: Callable[[], UUID],
) -> list[Done]:
    """Give one answer to many doubts, each settled by itself with a ledger entry of its own that names the batch.

    Args:
        pool: of this process.
        key: the person's.
        batch: which, and how many they are.
        answer: what is said of all of them.
        references: the provider's name of each effect, where they happened.
        batch_id: stands in every ledger entry.
        new_id: makes ids of receipts.

    Returns:
        What became of each. One that was answered otherwise in between is `refused`; the others are settled all the same. Where
        the ledger goes away in the middle, what comes after is `refused` as `unavailable`.

    Raises:
        OutboxError: `out-of-scope`, `count-differs`, `recovery-due`, `absence-too-early`, `invalid-request`; nothing was changed.
    """
    found = await _picked(pool, key, batch)
    _recovered(found, answer)
    if answer.happened:
        _named(found, references)
    elif late := [doubt for doubt in found if doubt.absence_counts_seconds > 0]:
        last = max(late, key=lambda doubt: doubt.absence_counts_seconds)
        raise OutboxError(
            "absence-too-early",
            f"Of {len(late)} of {len(found)} doubts that it did not happen does not count yet; of all it counts from "
            f"{messages.moment(last.absence_counts_at)} on.",
            retry=Retry(action="wait", after_seconds=last.absence_counts_seconds),
            absence_counts_at=last.absence_counts_at,
            doubts=len(late),
        )
    if batch.dry_run:
        return [Done(doubt=doubt, verdict="would") for doubt in found]
    done: list[Done] = []
    for place, doubt in enumerate(found):
        own = replace(answer, external_reference=references.get(doubt.id), batch_id=batch_id)
        try:
            done.append(Done(doubt=doubt, verdict=await answer_doubt(pool, key, doubt.id, own, new_id)))
        except (OutboxError, Refused) as refused:
            error = refused.error if isinstance(refused, Refused) else refused
            done.append(Done(doubt=doubt, verdict="refused", code=error.code, detail=error.detail))
        except NOT_NOW:
            if not done:
                raise
            # Those before are settled, and whoever asked must learn which; the others are asked for again.
            left = "The ledger was out of reach. It is as it was, unless its own answer was the one that got lost: look again."
            return done + [Done(doubt=rest, verdict="refused", code="unavailable", detail=left) for rest in found[place:]]
    return done


async def recheck_many(pool: Pool, key: ScopedKey, batch: Batch, rate_per_second: float, batch_id: UUID) -> list[Done]:
    """Let automatic recovery begin again for many doubts, so many a second.

    Raises:
        OutboxError: `out-of-scope`, `count-differs`; nothing was changed.
    """
    found = await _picked(pool, key, batch)
    if batch.dry_run:
        return [Done(doubt=doubt, verdict="would") for doubt in found]
    async with acquire(pool) as connection:
        taken_up = await doubts.recheck(
            connection,
            key.organization_id,
            [doubt.id for doubt in found],
            pause_seconds=1.0 / rate_per_second,
            actor_chain=list(key.actor_chain),
            reason=batch.reason,
            batch_id=batch_id,
        )
    again = set(taken_up)
    ended = "It is not in doubt any more."
    return [
        Done(doubt=doubt, verdict="rechecked")
        if doubt.id in again
        else Done(doubt=doubt, verdict="refused", code="not-in-doubt", detail=ended)
        for doubt in found
    ]


async def _picked(pool: Pool, key: ScopedKey, batch: Batch) -> list[DoubtView]:
    """The doubts a batch is about, if they are as many as its author thinks."""
    key.require(Capability.RESOLVE_DOUBTS)
    async with acquire(pool) as connection:
        found = await doubts.list_(
            connection,
            key.organization_id,
            key.environment_id,
            narrowed(key, batch.where),
            reaches=key.reaches,
            limit=AT_ONCE_MAX + 1,
        )
    if len(found) > AT_ONCE_MAX:
        raise OutboxError("count-differs", f"These are more than {AT_ONCE_MAX} doubts; narrow them down with `where`.")
    if len(found) != batch.expect:
        raise OutboxError(
            "count-differs", f"These are {len(found)} doubts, not {batch.expect}; nothing was changed.", count=len(found)
        )
    return found


def _recovered(found: list[DoubtView], answer: DoubtAnswer) -> None:
    due = [doubt for doubt in found if doubt.next_check is not None]
    if due and not answer.override:
        last = max(doubt.next_check for doubt in due if doubt.next_check is not None)
        raise OutboxError(
            "recovery-due",
            f"For {len(due)} of {len(found)} doubts automatic recovery has something left to try. Wait for it, leave them out "
            "(`needs: person`), or answer with `override` and evidence.",
            doubts=len(due),
            next_check=last,
        )


def _named(found: list[DoubtView], references: dict[UUID, str]) -> None:
    missing = [doubt.id for doubt in found if doubt.id not in references]
    if missing:
        refuse("$.external_references", f"the provider's name of each effect; {len(missing)} are missing, {missing[0]} the first")
    unknown = references.keys() - {doubt.id for doubt in found}
    if unknown:
        refuse("$.external_references", f"only doubts that are meant; {min(unknown)} is not")
