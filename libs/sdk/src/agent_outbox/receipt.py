"""The parts of an answer, and how they are read from the gateway's JSON: strictly what is known, unknown members are kept.

Source: the answer skeleton of the HTTP API (`GET /openapi.json`, schema `Answer`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast

from agent_outbox import times
from agent_outbox.errors import RETRY_ACTIONS, Retry, RetryAction, unexpected


class Members:
    """The members of one JSON object, read with the types they must have."""

    def __init__(self, document: object, name: str) -> None:
        """
        Args:
            document: the object.
            name: what it is called where something is wrong with it.

        Raises:
            UnexpectedAnswerError: it is no object.
        """
        if not isinstance(document, Mapping):
            raise unexpected(f"{name} is not an object")
        self.document: Mapping[str, Any] = document
        self._name = name

    def text(self, member: str) -> str:
        """A text that must be there.

        Raises:
            UnexpectedAnswerError: it is not, or is no text. So do the other methods of this class.
        """
        value = self.document.get(member)
        if not isinstance(value, str):
            raise self._wrong(member)
        return value

    def text_or_none(self, member: str) -> str | None:
        """A text, None where it is null or absent."""
        return None if self.document.get(member) is None else self.text(member)

    def whole(self, member: str) -> int:
        """A whole number that must be there."""
        value = self.document.get(member)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._wrong(member)
        return value

    def whole_or_none(self, member: str) -> int | None:
        """A whole number, None where it is null or absent."""
        return None if self.document.get(member) is None else self.whole(member)

    def truth(self, member: str) -> bool:
        """True or false, which must be there."""
        value = self.document.get(member)
        if not isinstance(value, bool):
            raise self._wrong(member)
        return value

    def moment(self, member: str) -> datetime:
        """A time that must be there."""
        try:
            return times.read(self.text(member))
        except ValueError:
            raise self._wrong(member) from None

    def moment_or_none(self, member: str) -> datetime | None:
        """A time, None where it is null or absent."""
        return None if self.document.get(member) is None else self.moment(member)

    def list_of(self, member: str) -> Sequence[Any]:
        """A list; empty where it is null or absent."""
        value = self.document.get(member)
        if value is None:
            return ()
        if not isinstance(value, list):
            raise self._wrong(member)
        return value

    def texts(self, member: str) -> tuple[str, ...]:
        """A list of texts; empty where it is null or absent."""
        values = self.list_of(member)
        if not all(isinstance(value, str) for value in values):
            raise self._wrong(member)
        return tuple(values)

    def object_or_none(self, member: str) -> Members | None:
        """An object, None where it is null or absent."""
        value = self.document.get(member)
        return None if value is None else Members(value, member)

    def mapping_or_none(self, member: str) -> Mapping[str, Any] | None:
        """An object as it stands, None where it is null or absent."""
        found = self.object_or_none(member)
        return None if found is None else found.document

    def _wrong(self, member: str) -> Exception:
        return unexpected(f"{self._name}.{member} is missing or not as expected")


@dataclass(frozen=True, kw_only=True)
class Money:
    """An amount of money.

    Attributes:
        value: in minor units (1200 is 12.00 EUR).
        currency: ISO 4217, as the connection states it.
    """

    value: int
    currency: str


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One thing that proves an effect.

    Attributes:
        kind: such as `answer`.
        at: when it became known; None where that was not recorded.
        detail: what it says.
    """

    kind: str
    at: datetime | None
    detail: Mapping[str, Any] = field(hash=False)


@dataclass(frozen=True, kw_only=True)
class PolicyVersion:
    """The version of a policy that decided.

    Attributes:
        name: of the policy.
        version: of it.
    """

    name: str | None
    version: int | str | None


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """The outside fact that proves an effect; it never changes.

    Attributes:
        id: of the receipt.
        reservation_id: of the reservation that it settled.
        provider: where the effect is.
        connection: the provider account.
        tool: what was done.
        contract_version: of the tool's contract.
        external_reference: the provider's own name of the effect (`re_3Nx`).
        confidence: `confirmed`, `confirmed-by-lookup`, `confirmed-by-webhook` or `asserted` (a person's or a client's word).
        evidence: what proves it.
        actor_chain: who acted, on whose behalf (`agent:refunds`).
        owner: the team that answers for the tool.
        settled_at: when it was recorded.
        provider_request_id: the provider's name of the request, where it gives one.
        policy: what allowed it, where a policy spoke.
        amount: the money it moved, where the tool moves any.
        document: the whole receipt as the gateway gave it; the same for everybody and for ever.
    """

    id: str
    reservation_id: str
    provider: str
    connection: str
    tool: str
    contract_version: int
    external_reference: str
    confidence: str
    evidence: tuple[Evidence, ...]
    actor_chain: tuple[str, ...]
    owner: str
    settled_at: datetime
    provider_request_id: str | None = None
    policy: PolicyVersion | None = None
    amount: Money | None = None
    document: Mapping[str, Any] = field(repr=False, hash=False)


@dataclass(frozen=True, kw_only=True)
class Replay:
    """An older effect that answered a call.

    Attributes:
        settled_at: when it was recorded.
        run: the name of the run that made it, where there was one.
        same_run: whether that is the caller's own run.
    """

    settled_at: datetime
    run: str | None
    same_run: bool


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What the provider said when it refused. Foreign text: show it to people, never to a model.

    Attributes:
        provider_status: its HTTP status.
        provider_code: its error code.
        provider_message: its words; None when they are forgotten (after 24 hours).
    """

    provider_status: int | None
    provider_code: str | None
    provider_message: str | None


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What the policies said of a call.

    Attributes:
        decision: `allow`, `alert`, `review` or `deny`.
        policy: that decided, where one did.
        version: of it.
        rule: that matched.
        shadow: what policies in shadow mode would have said.
    """

    decision: str
    policy: str | None
    version: int | str | None
    rule: str | None
    shadow: tuple[Any, ...] = field(hash=False)


@dataclass(frozen=True, kw_only=True)
class Run:
    """The run that a call acted in.

    Attributes:
        id: of the run.
        lineage: the run at the root of its forks.
        name: the caller's name of it, where it is told.
    """

    id: str
    lineage: str
    name: str | None


@dataclass(frozen=True, kw_only=True)
class Doubt:
    """Why nobody knows, and what is done about it.

    Attributes:
        since: when the doubt began.
        cause: such as `read-timeout`.
        recovery: `automatic` while the gateway finds out by itself, `person` when only a person can.
        next_check: when it looks next.
    """

    since: datetime | None
    cause: str | None
    recovery: str | None
    next_check: datetime | None


def read_receipt(document: object) -> Receipt:
    """A receipt.

    Args:
        document: as the gateway gave it.

    Raises:
        UnexpectedAnswerError: it is none.
    """
    members = Members(document, "receipt")
    policy, amount = members.object_or_none("policy"), members.object_or_none("amount")
    return Receipt(
        id=members.text("id"),
        reservation_id=members.text("reservation_id"),
        provider=members.text("provider"),
        connection=members.text("connection"),
        tool=members.text("tool"),
        contract_version=members.whole("contract_version"),
        external_reference=members.text("external_reference"),
        confidence=members.text("confidence"),
        evidence=tuple(_evidence(Members(item, "evidence")) for item in members.list_of("evidence")),
        actor_chain=members.texts("actor_chain"),
        owner=members.text("owner"),
        settled_at=members.moment("settled_at"),
        provider_request_id=members.text_or_none("provider_request_id"),
        policy=None if policy is None else PolicyVersion(name=policy.text_or_none("name"), version=_version(policy)),
        amount=None if amount is None else Money(value=amount.whole("value"), currency=amount.text("currency")),
        document=members.document,
    )


def read_retry(document: object) -> Retry:
    """What may be done next; an action that this client does not know counts as `never`.

    Args:
        document: the member `retry` of an answer.

    Raises:
        UnexpectedAnswerError: it is not as expected.
    """
    members = Members(document, "retry")
    action = members.text("action")
    after = members.document.get("after_seconds")
    usable = isinstance(after, (int, float)) and not isinstance(after, bool) and math.isfinite(after) and after >= 0
    return Retry(
        action=cast("RetryAction", action if action in RETRY_ACTIONS else "never"),
        after_seconds=float(after) if usable and after is not None else None,
        url=members.text_or_none("url"),
    )


def read_replay(members: Members | None) -> Replay | None:
    """The older effect that answered; None where none did."""
    if members is None:
        return None
    return Replay(settled_at=members.moment("settled_at"), run=members.text_or_none("run"), same_run=members.truth("same_run"))


def read_failure(members: Members | None) -> Failure | None:
    """What the provider said; None where it said nothing."""
    if members is None:
        return None
    return Failure(
        provider_status=members.whole_or_none("provider_status"),
        provider_code=members.text_or_none("provider_code"),
        provider_message=members.text_or_none("provider_message"),
    )


def read_decision(members: Members | None) -> Decision | None:
    """What the policies said; None where none matched."""
    if members is None:
        return None
    return Decision(
        decision=members.text("decision"),
        policy=members.text_or_none("policy"),
        version=_version(members),
        rule=members.text_or_none("rule"),
        shadow=tuple(members.list_of("shadow")),
    )


def read_run(members: Members | None) -> Run | None:
    """The run; None where the call named none."""
    if members is None:
        return None
    return Run(id=members.text("id"), lineage=members.text("lineage"), name=members.text_or_none("name"))


def read_doubt(members: Members | None) -> Doubt | None:
    """The doubt; None where the answer does not describe one."""
    if members is None:
        return None
    return Doubt(
        since=members.moment_or_none("since"),
        cause=members.text_or_none("cause"),
        recovery=members.text_or_none("recovery"),
        next_check=members.moment_or_none("next_check"),
    )


def _evidence(members: Members) -> Evidence:
    detail = members.document.get("detail")
    return Evidence(
        kind=members.text("kind"),
        at=members.moment_or_none("at"),
        detail=detail if isinstance(detail, Mapping) else {} if detail is None else {"detail": detail},
    )


def _version(members: Members) -> int | str | None:
    version = members.document.get("version")
    return version if isinstance(version, (int, str)) and not isinstance(version, bool) else None
