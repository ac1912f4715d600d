"""Reads the answer to a look-up: is the effect of a marker there, provably not there, or does the answer say nothing?

Only a complete list without a match is an absence. Whatever else has no match says nothing: an error, a body that is no JSON, a
list that the expression does not find, a page that is not the last. Source: design section 4 (rules of doubt), `providers.md` 1.
"""

import re
from dataclasses import dataclass, field
from typing import Any, Literal

import jmespath
import jmespath.exceptions

from outbox_domain.contract import LookupRule, ToolContract
from outbox_providers.reading import Projection, parsed, project
from outbox_providers.wire import WireAnswer

REFERENCES_MAX = 10
"""So many references of several effects are kept as evidence."""

_MARKER = re.compile(r"[A-Za-z0-9_-]{1,255}")
_BUSY_STATUS = frozenset({408, 425, 429})


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a look-up says.

    Attributes:
        says: `found`; `absent` (a complete list shows no match); `several` effects carry the marker; `unusable` (the provider
            answered, but not to the question); `unanswered` (it is in trouble or busy: ask again).
        effect: the receipt's facts, for `found` alone.
        references: the provider's names of the effects, for `several` alone.
        reason: our own words; no foreign text.
    """

    says: Literal["found", "absent", "several", "unusable", "unanswered"]
    reason: str
    effect: Projection | None = field(default=None, repr=False)
    references: tuple[str, ...] = ()


def read_lookup(contract: ToolContract, rule: LookupRule, answer: WireAnswer, *, marker: str) -> Finding:
    """Says what the answer to a look-up means.

    Args:
        contract: the contract the request was made under.
        rule: its look-up.
        answer: the complete answer.
        marker: what was asked for.

    Returns:
        The finding.

    Raises:
        ValueError: the marker is none of ours.
    """
    if _MARKER.fullmatch(marker) is None:
        raise ValueError("a marker is letters, digits, `_` and `-`")
    status = f"HTTP {answer.status}"
    if answer.status >= 500 or answer.status in _BUSY_STATUS:
        return Finding(says="unanswered", reason=status)
    body = parsed(answer.body) if 200 <= answer.status < 300 else None
    if body is None:
        return Finding(says="unusable", reason=status if not 200 <= answer.status < 300 else f"{status} without JSON")
    try:
        matched = jmespath.search(rule.match.replace("{marker}", marker), body)
        is_part = rule.more is not None and jmespath.search(rule.more, body) not in (None, False)
    except (jmespath.exceptions.JMESPathError, RecursionError):
        return Finding(says="unusable", reason=f"{status} of another shape")
    if matched is None:
        return Finding(says="unusable", reason=f"{status} of another shape")
    effects = matched if isinstance(matched, list) else [matched]
    if not effects and is_part:
        return Finding(says="unusable", reason=f"{status}, part of the list")
    if not effects:
        return Finding(says="absent", reason=status)
    return _found(contract, effects, status)


def _found(contract: ToolContract, effects: list[Any], status: str) -> Finding:
    read = [project(contract, effect) for effect in effects]
    if any(each.external_reference is None for each in read):
        return Finding(says="unusable", reason=f"{status} without a reference")
    references = tuple(dict.fromkeys(each.external_reference or "" for each in read))
    if len(references) > 1:
        return Finding(says="several", reason=f"{status}, {len(references)} effects", references=references[:REFERENCES_MAX])
    return Finding(says="found", reason=status, effect=read[0])
