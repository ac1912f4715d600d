"""Which effect a tool call means: its operation key, its digests, and the keys that we show to the provider.

Source: design sections 2 and 5; `interfaces.md` sections 5 and 6. Test vectors: `docs/vectors/`.

Operation key. A contract's template is cut at its colons into segments. A segment is fixed text around at most one field
(`refund`, `{payment_intent}`, `v2-{order}`); two fields in one segment are refused, because `{a}{b}` would make one key of
(`x`, `yz`) and (`xy`, `z`). A value enters with `%` written `%25` and `:` written `%3A`, so a colon in a key always parts
segments and no two different tuples of texts share a key. Numbers and booleans enter in their canonical JSON form, a field that
the contract marks personal as `hmac-sha256-` and the keyed digest of its name and value. `{reference}` is always the caller's
reference, never a field of the input; alone among all it may be absent, and its segment and the colon before it are then left
out. An input field that is itself called `reference` is named `{input.reference}`; any field may be named with `input.` in
front.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from outbox_domain import messages
from outbox_domain.canonical import Purpose, canonical, digest_text, keyed_digest
from outbox_domain.errors import OutboxError, refuse
from outbox_domain.json_text import member_path
from outbox_domain.tool_call import CONTROL_CHARACTER

if TYPE_CHECKING:
    from outbox_domain.binding import BoundInput
    from outbox_domain.contract import IdentityRule, ToolContract

OPERATION_KEY_CHARACTERS_MAX = 512
"""How long an operation key may be: more would not fit the unique index beside the scope columns."""

ENVIRONMENT_SCOPE = "environment"
"""The scope of an identity that reaches the whole environment."""

PROVIDER_KEY_CHARACTERS = 68
"""The length of a provider key and of a marker; every provider shipped takes at least 255."""

_REFERENCE = "reference"
_SEGMENT = re.compile(
    r"(?P<before>[^{}]*)(?:\{(?P<field>[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*)\}(?P<after>[^{}]*))?"
)


@dataclass(frozen=True, kw_only=True)
class Secrets:
    """The two secrets of an organization that identity needs. They never print themselves.

    Attributes:
        digest_key: the key of every digest; destroying it is erasure.
        provider_key_secret: the key of provider keys and markers; never rotated while a provider's window is open.
    """

    digest_key: bytes = field(repr=False)
    provider_key_secret: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Scope:
    """The names (not row ids: a restored or rebuilt database has others) that stand beside an operation key."""

    organization: str
    project: str
    environment: str
    connection: str
    tool: str


@dataclass(frozen=True, kw_only=True)
class Identity:
    """The identity of a wanted effect.

    Attributes:
        rule_index: which of the contract's identity rules named it.
        operation_key: its business identity, at most 512 characters.
        scope: `environment`, or `run:` and the lineage of the run.
        occurrence: which intended repetition it is, from 1.
        input_digest: 32 bytes over the bound input without presentational fields.
        review_digest: 32 bytes over all of the bound input.
        declared: the declared fields that are present: numbers and booleans in clear, everything else as digest text.
        repeat_after: after this long the same identity may be wanted again; None means never.
        object_key: what the effect changes, where the contract names it; one operation at a time on it, per connection.
    """

    rule_index: int
    operation_key: str
    scope: str
    occurrence: int
    input_digest: bytes
    review_digest: bytes
    declared: dict[str, object]
    repeat_after: timedelta | None
    object_key: str | None = None


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One segment of a key template: fixed text around at most one field."""

    before: str
    field: str | None
    after: str


@lru_cache(maxsize=1024)
def template_segments(template: str) -> tuple[Segment, ...]:
    """Cuts a key template into its segments.

    Args:
        template: as the contract writes it (`refund:{payment_intent}:{reference}`).

    Returns:
        The segments in order.

    Raises:
        ValueError: if a segment is empty, has two fields or a stray brace, or if a percent sign stands in fixed text.
    """
    segments = []
    for text in template.split(":"):
        found = _SEGMENT.fullmatch(text)
        if found is None:
            raise ValueError(f"a segment of a key template is fixed text around at most one field: {text!r}")
        if not text or "%" in text:
            raise ValueError("a segment of a key template is not empty and holds no percent sign")
        segments.append(Segment(before=found["before"], field=found["field"], after=found["after"] or ""))
    return tuple(segments)


def identify(
    contract: "ToolContract",
    bound: "BoundInput",
    *,
    reference: str | None,
    occurrence: int,
    run_lineage_id: str | None,
    secrets: Secrets,
) -> Identity:
    """Names the effect that a bound tool call wants.

    The first identity rule whose fields are present is used. `{reference}` need not be present, unless it is the only field.

    Args:
        contract: the tool's contract.
        bound: the input as the contract bound it.
        reference: the caller's own name of the business case.
        occurrence: which intended repetition it is, from 1.
        run_lineage_id: the UUID of the run at the root of the caller's forks; None without a run.
        secrets: the organization's secrets.

    Returns:
        The identity.

    Raises:
        OutboxError: `missing-key-field` (no rule has all its fields; the path is that of the last rule's first missing one),
            `run-required`, or `invalid-input` where a key field is an object or array, holds control characters, or is too long.
        ValueError: if the contract has no identity rule or a template is wrong, which its linter refuses.
    """
    rule_index, rule = _applicable(contract, bound.value, reference)
    if rule.scope == "run" and run_lineage_id is None:
        raise OutboxError(
            "run-required", "The effect of this tool is identified within a run.", message=messages.run_required(), path="$.run"
        )
    review_content = canonical(bound.value)
    presentational = contract.presentational if rule.presentational is None else rule.presentational
    input_content = canonical(_without(bound.value, presentational)) if presentational else review_content
    input_digest = keyed_digest(secrets.digest_key, Purpose.INPUT, input_content)
    if rule.key is None:
        operation_key = digest_text(input_digest)
    else:
        operation_key = _operation_key(rule.key, bound.value, reference, contract.personal, secrets.digest_key)
    return Identity(
        rule_index=rule_index,
        operation_key=operation_key,
        scope=ENVIRONMENT_SCOPE if rule.scope == "environment" else f"run:{run_lineage_id}",
        occurrence=occurrence,
        input_digest=input_digest,
        review_digest=keyed_digest(secrets.digest_key, Purpose.REVIEW, review_content),
        declared=declared_fields(contract, bound.value, secrets.digest_key),
        repeat_after=rule.repeat_after,
        object_key=_object_key(contract, bound.value, secrets.digest_key),
    )


def declared_fields(contract: "ToolContract", value: Mapping[str, Any], digest_key: bytes) -> dict[str, object]:
    """What of an input is kept after settlement.

    Args:
        contract: names the declared and the personal fields.
        value: the bound input.
        digest_key: the organization's.

    Returns:
        Field -> number or boolean in clear, anything else (and every personal field) as the text of its keyed digest. A field
        that is absent or null is left out.
    """
    declared: dict[str, object] = {}
    for name in contract.declared:
        member = _member(value, name)
        if member is None:
            continue
        if isinstance(member, bool | int | float) and not _is_personal(name, contract.personal):
            declared[name] = member
        else:
            declared[name] = digest_text(_field_digest(digest_key, Purpose.DECLARED_FIELD, name, member))
    return declared


def conflicting_fields(mine: Mapping[str, object], theirs: Mapping[str, object]) -> list[str]:
    """The declared fields in which two calls with one operation key differ.

    Args:
        mine: the declared fields of the call.
        theirs: those of the holder of the key.

    Returns:
        Names in the order they are declared; a field that only one of them has differs.
    """
    names = list(mine) + [name for name in theirs if name not in mine]
    return [name for name in names if (name in mine) != (name in theirs) or canonical(mine[name]) != canonical(theirs[name])]


def provider_key(secret: bytes, *, scope: Scope, key_scope: str, operation_key: str, occurrence: int, generation: int) -> str:
    """The idempotency key that we send the provider. It needs no row, so it can be computed again after a loss.

    Args:
        secret: the organization's provider-key secret.
        scope: the names beside the operation key.
        key_scope: `environment`, or `run:` and the caller's name of the root run.
        operation_key: the business identity of the effect.
        occurrence: which intended repetition it is.
        generation: how many answers that stand for no effect the provider keeps under the earlier keys.

    Returns:
        `obx_` and 64 hexadecimal digits. It changes with every argument.
    """
    names = _effect_names(scope, key_scope, operation_key, occurrence)
    return "obx_" + keyed_digest(secret, Purpose.PROVIDER_KEY, canonical({**names, "generation": generation})).hex()


def marker(
    secret: bytes, *, scope: Scope, key_scope: str, operation_key: str, occurrence: int, attempt: int | None = None
) -> str:
    """The marker that is planted in the request for later look-ups: as the provider key, but the same in every generation.

    Args:
        secret: the organization's provider-key secret.
        scope: the names beside the operation key.
        key_scope: `environment`, or `run:` and the caller's name of the root run.
        operation_key: the business identity of the effect.
        occurrence: which intended repetition it is.
        attempt: the number of the attempt, where each has a marker of its own because it can be called off by it.

    Returns:
        `obm_` and 64 hexadecimal digits.
    """
    names = _effect_names(scope, key_scope, operation_key, occurrence)
    if attempt is not None:
        names["attempt"] = attempt
    return "obm_" + keyed_digest(secret, Purpose.MARKER, canonical(names)).hex()


def _effect_names(scope: Scope, key_scope: str, operation_key: str, occurrence: int) -> dict[str, str | int]:
    return {
        "organization": scope.organization,
        "project": scope.project,
        "environment": scope.environment,
        "connection": scope.connection,
        "tool": scope.tool,
        "scope": key_scope,
        "operation_key": operation_key,
        "occurrence": occurrence,
    }


def _applicable(contract: "ToolContract", value: Mapping[str, Any], reference: str | None) -> tuple[int, "IdentityRule"]:
    """The first rule whose fields are present."""
    missing: str | None = None
    for index, rule in enumerate(contract.identity):
        missing = _missing_field(rule, value, reference)
        if missing is None:
            return index, rule
    if missing is None:
        raise ValueError(f"the contract of {contract.tool} names no identity")
    expected = "a value that is not empty, because it names the effect"
    raise OutboxError(
        "missing-key-field", f"{missing}: expected {expected}.", message=messages.invalid_input(missing, expected), path=missing
    )


def _missing_field(rule: "IdentityRule", value: Mapping[str, Any], reference: str | None) -> str | None:
    """The path of the first field that the rule needs and the call lacks; empty text names nothing and counts as lacking."""
    if rule.key is None:
        return None
    fields = [segment.field for segment in template_segments(rule.key) if segment.field is not None]
    for name in fields:
        if name == _REFERENCE:
            if not reference and set(fields) == {_REFERENCE}:
                return f"$.{_REFERENCE}"
        elif _member(value, _input_name(name)) in (None, ""):
            return _path(name)
    return None


def _operation_key(
    template: str, value: Mapping[str, Any], reference: str | None, personal: tuple[str, ...], digest_key: bytes
) -> str:
    segments = []
    longest = ("", "$.reference")
    for segment in template_segments(template):
        if segment.field is None:
            segments.append(segment.before)
            continue
        if segment.field == _REFERENCE:
            if not reference:
                continue
            path, text = f"$.{_REFERENCE}", _readable(reference, f"$.{_REFERENCE}")
        else:
            name = _input_name(segment.field)
            path, member = _path(segment.field), _member(value, name)
            if isinstance(member, dict | list):
                refuse(path, "a text, number or boolean, because it names the effect")
            if _is_personal(name, personal):
                text = "hmac-sha256-" + _field_digest(digest_key, Purpose.PERSONAL_KEY_FIELD, name, member).hex()
            else:
                text = _readable(member, path)
        longest = max(longest, (text, path), key=lambda entry: len(entry[0]))
        segments.append(segment.before + text + segment.after)
    operation_key = ":".join(segments)
    if len(operation_key) > OPERATION_KEY_CHARACTERS_MAX:
        refuse(longest[1], f"a shorter value: the operation key may have {OPERATION_KEY_CHARACTERS_MAX} characters")
    return operation_key


def _object_key(contract: "ToolContract", value: Mapping[str, Any], digest_key: bytes) -> str | None:
    template = contract.object_key
    return None if template is None else _operation_key(template, value, None, contract.personal, digest_key)


def _readable(member: object, path: str) -> str:
    if not isinstance(member, str):
        return canonical(member).decode()
    if CONTROL_CHARACTER.search(member) is not None:
        refuse(path, "text without control characters, because it names the effect")
    return member.replace("%", "%25").replace(":", "%3A")


def _field_digest(digest_key: bytes, purpose: Purpose, name: str, member: object) -> bytes:
    return keyed_digest(digest_key, purpose, canonical({"field": name, "value": member}))


def _input_name(name: str) -> str:
    return name.removeprefix("input.")


def _path(name: str) -> str:
    path = "$.input"
    for step in _input_name(name).split("."):
        path = member_path(path, step)
    return path


def _member(value: object, dotted: str) -> Any:
    for step in dotted.split("."):
        value = value.get(step) if isinstance(value, Mapping) else None
    return value


def _is_personal(name: str, personal: tuple[str, ...]) -> bool:
    """Whether a field is marked personal, or stands inside one that is."""
    return any(name == marked or name.startswith(f"{marked}.") for marked in personal)


def _without(value: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """A copy of the input without some fields; a dotted name reaches into objects."""
    kept = dict(value)
    for name in names:
        first, _, rest = name.partition(".")
        if not rest:
            kept.pop(first, None)
        elif isinstance(kept.get(first), dict):
            kept[first] = _without(kept[first], (rest,))
    return kept
