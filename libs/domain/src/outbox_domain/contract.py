"""A tool contract: what is declared of a tool, versioned, as data.

The model is the shape of `interfaces.md` section 5, closed: an unknown member is refused. It says what a contract looks like;
whether a contract is a safe one is said by the linter (`outbox_providers.lint`), so that a linter's finding can name the rule
instead of a missing member. Durations are written with their unit (`20s`, `120s`, `1h`, `0s`).
"""

import functools
import json
import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    Tag,
    field_validator,
    model_validator,
)

from outbox_domain.reservation import Outcome

DURATION_MAX = timedelta(days=3650)
"""What Postgres adds to a time of this century without leaving its range, whatever a contract says."""

_DURATION = re.compile(r"([0-9]{1,12})(ms|s|m|h|d)")
_UNIT_MILLISECONDS: Mapping[str, int] = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}

PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*)\}")
"""A place in a template: `{reference}`, `{input.amount}`."""

TOOL_NAME = re.compile(r"[a-z][a-z0-9_-]*(\.[a-z][a-z0-9_-]*)+")
"""A tool's name: the provider, then the operation, in dotted lower-case words."""


def parse_duration(text: object) -> timedelta:
    """Reads a duration as contracts and policies write it.

    Args:
        text: digits and one unit (`ms`, `s`, `m`, `h`, `d`), or a `timedelta`, which is returned as it is.

    Returns:
        The duration.

    Raises:
        ValueError: for anything else; a bare number has no unit and is refused, and so is more than `DURATION_MAX`.
    """
    if isinstance(text, timedelta):
        return text
    found = _DURATION.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise ValueError("a duration is digits and a unit: 500ms, 20s, 5m, 23h, 7d")
    milliseconds = int(found[1]) * _UNIT_MILLISECONDS[found[2]]
    if milliseconds > DURATION_MAX // timedelta(milliseconds=1):
        raise ValueError(f"a duration is at most {DURATION_MAX.days}d")
    return timedelta(milliseconds=milliseconds)


def format_duration(duration: timedelta) -> str:
    """Writes a duration in the largest unit that carries it exactly; `parse_duration` reads it back."""
    milliseconds = duration // timedelta(milliseconds=1)
    if milliseconds % 1000:
        return f"{milliseconds}ms"
    seconds = milliseconds // 1000
    for unit, size in (("h", 3600), ("m", 60)):
        if seconds and seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def placeholders(template: str) -> tuple[str, ...]:
    """The names a template refers to (`{input.amount}` gives `input.amount`), in order, repeats kept."""
    return tuple(PLACEHOLDER.findall(template))


Duration = Annotated[timedelta, BeforeValidator(parse_duration), PlainSerializer(format_duration, return_type=str)]

Normaliser = Literal["trim", "lowercase", "uppercase", "nfc", "collapse_spaces", "decimal"]
"""What may be done to an input field before anything else: see `outbox_domain.binding`."""


class _Rule(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class AmountRule(_Rule):
    """The money a contract moves.

    Attributes:
        value: where the integer of minor units stands in the bound input (`input.amount`).
        currency: `connection.currency`, a field of the bound input (`input.currency`), or three capital letters.
        check: the member of the receipt's result that must name the same currency, in any case (`result.currency`).
    """

    value: str
    currency: str
    check: str | None = None


class IdentityRule(_Rule):
    """One way to name the wanted effect. Exactly one of `key` and `digest` is given.

    Attributes:
        key: the template of the operation key (`refund:{payment_intent}:{reference}`).
        digest: `input`: the digest of the bound input names the effect.
        scope: how far the identity reaches: the whole environment, or one run's lineage.
        repeat_after: after this long the same identity may be wanted again (next occurrence).
        presentational: fields outside identity under this rule; the contract's own list when left out.
    """

    key: str | None = None
    digest: Literal["input"] | None = None
    scope: Literal["environment", "run"]
    repeat_after: Duration | None = None
    presentational: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _one_of_key_and_digest(self) -> Self:
        if (self.key is None) == (self.digest is None):
            raise ValueError("an identity has either a key or a digest")
        return self

    @property
    def fields(self) -> tuple[str, ...]:
        """The names in the key template, in order (`payment_intent`, `reference`); none for a digest."""
        return placeholders(self.key) if self.key is not None else ()


class ProviderKeyRule(_Rule):
    """Where the provider expects the idempotency key that we send: a header or a field of the body."""

    header: str | None = None
    field: str | None = None

    @model_validator(mode="after")
    def _one_of_header_and_field(self) -> Self:
        if (self.header is None) == (self.field is None):
            raise ValueError("a provider key goes into either a header or a field")
        return self


class MarkerRule(_Rule):
    """Where the marker is planted: a field of the body (`metadata[outbox]`, `custom_args.outbox`)."""

    field: str


class CredentialHeader(_Rule):
    """A credential that travels bare in a header of its own (`{header: X-Api-Key}`)."""

    header: str


class TimeoutRule(_Rule):
    """Time limits of one sending, inside the request's deadline.

    Attributes:
        connect: for address look-up, connection and TLS together.
        pool: for a free connection.
    """

    connect: Duration = timedelta(seconds=3)
    pool: Duration = timedelta(seconds=1)


class RequestRule(_Rule):
    """How the tool's request is written on the wire.

    Attributes:
        driver: the wire protocol; `client` where only a caller itself carries the tool out and nothing is sent by us.
        method: the HTTP method.
        url: the path below the connection's base URL, with `{input.x}` where a value goes; it starts with `/`.
        credential: how the connection's credential travels.
        deadline: how long the answer may take, counted from the sending.
        provider_key: where our idempotency key goes, if the provider has such a thing.
        marker: where the marker for later look-ups is planted.
        body: a template of the wire body; the input itself (without what the URL carries) when left out.
        headers: fixed headers, for instance the pinned version of the provider's API.
        timeouts: limits for the steps before the answer is awaited.
    """

    driver: Literal["http_form", "http_json", "client"]
    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
    url: str
    credential: Literal["bearer", "none"] | CredentialHeader = "none"
    deadline: Duration
    provider_key: ProviderKeyRule | None = None
    marker: MarkerRule | None = None
    body: dict[str, Any] | None = None
    headers: dict[str, str] = Field(default_factory=dict)
    timeouts: TimeoutRule = TimeoutRule()


class OutcomeRule(_Rule):
    """One row of the outcome table; rows are tried in order and the first that fits decides.

    Attributes:
        status: the HTTP status codes the row speaks of.
        has: JMESPath into the answer (or `header.Name`) that must not be null.
        match: JMESPath into the answer that must be truthy.
        outcome: what the attempt came to.
        conflict: the answer says that the identity is taken already: by itself it means unknown, and the effect is read back.
        stored: the provider keeps this refusal under the provider key.
        after: `header.Name` that says when to try again.
    """

    status: tuple[int, ...]
    has: str | None = None
    match: str | None = None
    outcome: Outcome
    conflict: bool = False
    stored: bool = False
    after: str | None = None


class ReceiptRule(_Rule):
    """What of the answer proves the effect and what is kept of it.

    Attributes:
        external_reference: JMESPath into the answer (or `header.Name`): the provider's own name of the effect.
        provider_request_id: the same for the provider's name of the request.
        result: the projection that lives as long as the receipt: name -> JMESPath (or `header.Name`).
    """

    external_reference: str | None = None
    provider_request_id: str | None = None
    result: dict[str, str] = Field(default_factory=dict)


class ResendRule(_Rule):
    """The way out of doubt of class A: the identical request, which cannot make a second effect.

    Attributes:
        strategy: why it cannot. `replay`: the provider answers a repeated key with its first answer. `conflict`: we choose the
            identity, and a second creation is refused by a row of `outcomes` that says `conflict`; the effect is then read back
            by the look-up and compared. `natural`: it sets or removes something absolutely, so that repeating changes nothing;
            the contract names its `object`. `window`: as `replay`, but for a short time only; afterwards the next way is due.
        within: how long after the first possible sending; shorter than the provider keeps its keys.
        margin: what must be left of that beside the request's deadline: the pause of a process and the way to the provider.
        stored_failure: `header.Name` that says `true` when a stored answer was merely replayed.
        times: how many resends at most.
        total: how long after the doubt began the last of them may begin.
        pace: how long at least between two doubts of one connection that are taken up this way.
        settle: how long after an attempt's lease its request may still arrive; for `natural`, where no look-up says it.
    """

    way: Literal["resend"] = "resend"
    strategy: Literal["replay", "conflict", "natural", "window"] = "replay"
    within: Duration
    margin: Duration = timedelta(seconds=60)
    stored_failure: str | None = None
    times: int = Field(default=5, ge=1)
    total: Duration | None = None
    pace: Duration | None = None
    settle: Duration | None = None


class LookupRule(_Rule):
    """The way out of doubt by asking: a read that shows the planted marker, or a cancellation that shows that nothing will come.

    Attributes:
        strategy: `probe`: a read that shows the marker or a complete list without it. `cancel-first`: the effect comes only some
            time after the request, and can be called off by the attempt's own marker before that; what was called off is absent.
        method: the HTTP method.
        url: path and query below the connection's base URL, with `{input.x}`, `{marker}` and `{provider_key}`.
        body: a template of the body; none when left out.
        match: JMESPath that yields the effect (an object or a list); of `cancel-first`: that is true where it was called off.
        more: JMESPath that is true when the answer is not the whole list; it then shows no absence.
        same: JMESPath into what was found -> what must stand there (`{input.title}`); another value is somebody else's effect.
        settle: how long after the last attempt's lease an absence counts.
        times: how many absences, each seen by a read sent after the settle time, prove absence.
        total: how long after the doubt began a provider that answers is asked before a person is.
        pace: how long at least between two doubts of one connection that are taken up this way.
        on_absent: what follows proven absence.
        delay: of `cancel-first`: how long after the request's arrival the effect comes, at the earliest.
        margin: of `cancel-first`: how long before that the cancellation must be confirmed.
        covers_later: of `cancel-first`: a cancellation also stops a request of this marker that arrives after it.
    """

    way: Literal["lookup"] = "lookup"
    strategy: Literal["probe", "cancel-first"] = "probe"
    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"] = "GET"
    url: str
    body: dict[str, Any] | None = None
    match: str
    more: str | None = None
    same: dict[str, str] = Field(default_factory=dict)
    settle: Duration
    times: int = Field(default=2, ge=1)
    total: Duration | None = None
    pace: Duration | None = None
    on_absent: Literal["resend", "fail"] = "resend"
    delay: Duration | None = None
    margin: Duration | None = None
    covers_later: bool = False

    @property
    def cancels(self) -> bool:
        """Whether it calls off what was sent instead of asking for it."""
        return self.strategy == "cancel-first"

    @property
    def cancel_within(self) -> timedelta:
        """How long after the sending began a cancellation may be confirmed and count; nothing where it cancels nothing."""
        if self.delay is None or self.margin is None:
            return timedelta(0)
        return self.delay - self.margin


class PersonRule(_Rule):
    """The last way out of doubt: a person says what happened. It stands implicitly after every other way."""

    way: Literal["person"] = "person"


def _way(rule: object) -> str:
    return str(rule.get("way")) if isinstance(rule, dict) else str(getattr(rule, "way", ""))


def _unwrap(rule: object) -> object:
    """`{resend: {...}}` and the bare word `person`, as contracts write them, become a rule that knows its way."""
    if isinstance(rule, str):
        return {"way": rule}
    if isinstance(rule, dict) and len(rule) == 1:
        (way, bounds), *_ = rule.items()
        if isinstance(bounds, dict) and "way" not in bounds:
            return {"way": way, **bounds}
    return rule


RecoveryRule = Annotated[
    Annotated[ResendRule, Tag("resend")] | Annotated[LookupRule, Tag("lookup")] | Annotated[PersonRule, Tag("person")],
    Discriminator(_way),
    BeforeValidator(_unwrap),
    PlainSerializer(lambda rule: {rule.way: rule.model_dump(mode="json", exclude={"way"})}, return_type=dict[str, Any]),
]


class WebhookRule(_Rule):
    """How a webhook of the provider is recognised, and which ones prove the effect. The others are evidence and settle nothing.

    Attributes:
        signature: the signature scheme.
        match: JMESPath of the marker in the event.
        types: the types of event that prove the effect. Without any none does.
        when: JMESPath into the event that must be truthy besides: a refund that is created as failed proves none.
    """

    signature: str
    match: str
    types: tuple[str, ...] = ()
    when: str | None = None


class DoubtRule(_Rule):
    """What a doubt about this tool is worth.

    Attributes:
        attention: who is disturbed once a person is needed; `ToolContract.attention` says what holds where it is left out.
        blocks_run: while such a doubt is open, nothing new is reserved in its run and that run's forks.
    """

    attention: Literal["page", "queue", "none"] | None = None
    blocks_run: bool = False


class CompensationRule(_Rule):
    """The tool that undoes the effect, and how far."""

    tool: str
    extent: Literal["exact", "partial", "best effort"]


class ToolContract(_Rule):
    """What is declared of a tool (`interfaces.md` section 5; the members' meaning is written there, line by line).

    Attributes:
        tool: `provider.noun.verb`.
        version: counts up; a reservation pins the one it was made under.
        kind: whether the tool reads, spends or changes something.
        owner: who is paged; empty only for tools that read.
        summary: the sentence of a success; may name `result.x`, `amount` and `reference`.
        links: name -> URL template for people.
        input: the JSON Schema the input is bound by.
        normalise: input field -> what is done to it, in order.
        presentational: fields outside identity.
        declared: fields kept after settlement, measures in clear, the rest as keyed digests.
        personal: fields that never appear readable.
        amount: the money it moves.
        identity: ways to name the effect; the first whose fields are present is used. One mapping counts as a list of one.
        guarantee_class: A, B or C; written `class`.
        request: how it is sent.
        outcomes: what answers mean.
        receipt: what proves the effect.
        object_key: template of what the effect changes (`label:{name}`); one operation at a time on it, per connection. Written
            `object`.
        recovery: ordered ways out of doubt.
        webhook: how the provider's own notice is recognised.
        not_after: a reservation that was not sent by then is voided.
        doubt: see `attention`.
        compensation: the word `impossible`, or the tool that undoes it.
        body_life: how long the provider's full answer is kept; zero keeps none.
    """

    tool: str
    version: int = Field(ge=1)
    kind: Literal["read", "metered", "mutating"]
    owner: str = ""
    summary: str = ""
    links: dict[str, str] = Field(default_factory=dict)
    input: dict[str, Any]
    normalise: dict[str, tuple[Normaliser, ...]] = Field(default_factory=dict)
    presentational: tuple[str, ...] = ()
    declared: tuple[str, ...] = ()
    personal: tuple[str, ...] = ()
    amount: AmountRule | None = None
    identity: tuple[IdentityRule, ...] = ()
    guarantee_class: Literal["A", "B", "C"] = Field(alias="class")
    request: RequestRule
    outcomes: tuple[OutcomeRule, ...] = ()
    receipt: ReceiptRule = ReceiptRule()
    object_key: str | None = Field(default=None, alias="object")
    recovery: tuple[RecoveryRule, ...] = ()
    webhook: WebhookRule | None = None
    not_after: Duration = timedelta(hours=1)
    doubt: DoubtRule | None = None
    compensation: Literal["impossible"] | CompensationRule | None = None
    body_life: Duration = timedelta(0)

    @field_validator("tool")
    @classmethod
    def _dotted_name(cls, tool: str) -> str:
        if TOOL_NAME.fullmatch(tool) is None or len(tool) > 100:
            raise ValueError("a tool is named provider.noun.verb, in lower case, at most 100 characters")
        return tool

    @field_validator("identity", mode="before")
    @classmethod
    def _listed(cls, identity: object) -> object:
        return [identity] if isinstance(identity, dict) else identity

    @property
    def provider(self) -> str:
        """The provider: the first segment of the tool's name."""
        return self.tool.partition(".")[0]

    @property
    def attention(self) -> Literal["page", "queue", "none"]:
        """Who is disturbed by a doubt: as declared, else page where money moves, else queue (`interfaces.md` section 9)."""
        if self.doubt is not None and self.doubt.attention is not None:
            return self.doubt.attention
        return "page" if self.amount is not None else "queue"

    @property
    def resend(self) -> ResendRule | None:
        """The resend rule of the recovery list, where there is one."""
        return next((rule for rule in self.recovery if isinstance(rule, ResendRule)), None)

    @property
    def lookup(self) -> LookupRule | None:
        """The look-up rule of the recovery list, where there is one."""
        return next((rule for rule in self.recovery if isinstance(rule, LookupRule)), None)

    @property
    def blocks_run(self) -> bool:
        """Whether nothing new is reserved in a run while a doubt about this tool is open in it."""
        return self.doubt is not None and self.doubt.blocks_run

    @property
    def marks_attempts(self) -> bool:
        """Whether every attempt has a marker of its own: what was called off must not swallow the next sending."""
        return self.lookup is not None and self.lookup.cancels

    @functools.cached_property
    def input_schema_text(self) -> str:
        """The input schema as one text with sorted keys: what compiled validators are remembered under."""
        return json.dumps(self.input, sort_keys=True, ensure_ascii=False)

    def document(self) -> dict[str, Any]:
        """The contract as a JSON document, as the table `tool_contracts` keeps it. `from_document` reads it back."""
        return self.model_dump(mode="json", by_alias=True)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Reads a contract from its document, be it from YAML or from the table.

        Args:
            document: the members of `interfaces.md` section 5.

        Returns:
            The contract.

        Raises:
            pydantic.ValidationError: where the document has another shape; its errors carry the place.
        """
        return cls.model_validate(dict(document))
