"""Reads the answer to a look-up: is the effect of a marker there, provably not there, or does the answer say nothing?

Only a complete list without a match is an absence. Whatever else has no match says nothing: an error, a body that is no JSON, a
list that the expression does not find, a page that is not the last. What stands under an identity that we chose is the effect
only where it is what was asked for. A cancellation that was confirmed shows that nothing will come of its attempt.
Source: design section 4 (rules of doubt), `providers.md` 1.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import jmespath
import jmespath.exceptions

from outbox_domain.contract import LookupRule, ToolContract
from outbox_providers.reading import Projection, expression, is_truthy, parsed, project
from outbox_providers.templates import ABSENT, expand_body
from outbox_providers.wire import WireAnswer

REFERENCES_MAX = 10
"""So many references of several effects are kept as evidence."""

_MARKER = re.compile(r"[A-Za-z0-9_-]{1,255}")
_BUSY_STATUS = frozenset({408, 425, 429})


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a look-up says.

    Attributes:
        says: `found`; `absent` (a complete list shows no match); `cancelled` (the attempt was called off); `several` effects
            carry the marker; `different` (what stands there is not what was asked for); `unusable` (the provider answered, but
            not to the question); `unanswered` (it is in trouble or busy: ask again).
        effect: the receipt's facts, for `found` alone.
        references: the provider's names of the effects, for `several` and `different` alone.
        fields: which fields differ, as the contract names them, for `different` alone.
        reason: our own words; no foreign text.
    """

    says: Literal["found", "absent", "cancelled", "several", "different", "unusable", "unanswered"]
    reason: str
    effect: Projection | None = field(default=None, repr=False)
    references: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()


def read_lookup(
    contract: ToolContract,
    rule: LookupRule,
    answer: WireAnswer,
    *,
    marker: str | None,
    provider_key: str | None = None,
    bound: Mapping[str, Any] | None = None,
    names: Mapping[str, str | None] | None = None,
) -> Finding:
    """Says what the answer to a look-up means.

    Args:
        contract: the contract the request was made under.
        rule: its look-up.
        answer: the complete answer.
        marker, provider_key: what was asked for; None where the contract plants no such thing.
        bound, names: the bound input and what templates may name besides, for a contract that compares (`same`).

    Returns:
        The finding.

    Raises:
        ValueError: the marker or the key is none of ours.
    """
    asked = {"{marker}": marker, "{provider_key}": provider_key}
    match = rule.match
    for name, value in asked.items():
        if value is not None and _MARKER.fullmatch(value) is None:
            raise ValueError("a marker is letters, digits, `_` and `-`")
        match = match if value is None else match.replace(name, value)
    status = f"HTTP {answer.status}"
    if answer.status >= 500 or answer.status in _BUSY_STATUS:
        return Finding(says="unanswered", reason=status)
    body = parsed(answer.body) if 200 <= answer.status < 300 else None
    if body is None:
        return Finding(says="unusable", reason=status if not 200 <= answer.status < 300 else f"{status} without JSON")
    try:
        matched = jmespath.search(match, body)
        is_part = rule.more is not None and jmespath.search(rule.more, body) not in (None, False)
    except (jmespath.exceptions.JMESPathError, RecursionError):
        return Finding(says="unusable", reason=f"{status} of another shape")
    if rule.cancels:
        return Finding(says="cancelled" if is_truthy(matched) else "unusable", reason=status)
    if matched is None:
        return Finding(says="unusable", reason=f"{status} of another shape")
    effects = matched if isinstance(matched, list) else [matched]
    if not effects and is_part:
        return Finding(says="unusable", reason=f"{status}, part of the list")
    if not effects:
        return Finding(says="absent", reason=status)
    found = _found(contract, effects, status)
    differing = _differing(rule, effects[0], bound or {}, names or {}) if found.says == "found" else ()
    if differing:
        reference = found.effect.external_reference if found.effect is not None else None
        return Finding(says="different", reason=status, references=(reference or "",), fields=differing)
    return found


def _differing(rule: LookupRule, effect: Any, bound: Mapping[str, Any], names: Mapping[str, str | None]) -> tuple[str, ...]:
    """The fields in which what was found is not what was asked for; one that cannot be read differs."""
    differing = []
    for place, template in rule.same.items():
        wanted = expand_body(template, bound, names)
        try:
            stands = expression(place).search(effect)
        except (jmespath.exceptions.JMESPathError, RecursionError):
            differing.append(place)
            continue
        # JSON tells true from 1; Python does not.
        if (type(stands) is bool) != (type(wanted) is bool) or stands != (None if wanted is ABSENT else wanted):
            differing.append(place)
    return tuple(differing)


def _found(contract: ToolContract, effects: list[Any], status: str) -> Finding:
    read = [project(contract, effect) for effect in effects]
    if any(each.external_reference is None for each in read):
        return Finding(says="unusable", reason=f"{status} without a reference")
    references = tuple(dict.fromkeys(each.external_reference or "" for each in read))
    if len(references) > 1:
        return Finding(says="several", reason=f"{status}, {len(references)} effects", references=references[:REFERENCES_MAX])
    return Finding(says="found", reason=status, effect=read[0])
