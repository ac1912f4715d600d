"""The contract that comes with a client-executed call: six members instead of a catalog entry, in a sandbox or development only.

It becomes an ordinary tool contract, so that everything pinned on a reservation can be read later. Nothing of it is ever sent:
its driver is `client`, its ways out of doubt mean *hand over* (resend) and *probe* (lookup), and what it leaves out has the
defaults written here. Source: design section 4 (a reservation names its executor), `interfaces.md` section 9 (unknown tool).
"""

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import jmespath
import jmespath.exceptions
from pydantic import ValidationError

from outbox_domain.canonical import canonical
from outbox_domain.contract import TOOL_NAME, ToolContract, format_duration
from outbox_domain.errors import refuse
from outbox_domain.identity import template_segments

MEMBERS = ("key", "scope", "class", "owner", "receipt", "recovery")
"""What an inline contract may say."""

BYTES_MAX = 8 << 10
"""How large an inline contract may be as JSON."""

INLINE_VERSION_FIRST = 1 << 30
"""The first version of inline contracts; versions below are the catalog's and the organization's own."""

HAND_OVER_WITHIN = timedelta(hours=23)
"""How long a provider key counts where the contract does not say: an hour less than most providers keep one."""

SETTLE = timedelta(seconds=120)
NOT_AFTER = timedelta(hours=24)
TIMES_DEFAULT = 2
UNOWNED = "unowned"
RECEIPT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*|\[[0-9]{1,6}\])*")
DURATION_MAX = timedelta(days=30)
TIMES_MAX = 100
OWNER = re.compile(r"[^\x00-\x1f\x7f]{1,200}")

_BY_PROBE = "client"
"""Stands where a contract of the catalog says how the provider is asked: here the caller asks."""


def read_inline(tool: str, document: object) -> ToolContract:
    """Reads an inline contract.

    Args:
        tool: the name of the tool it is for.
        document: the member `contract` of the call.

    Returns:
        The contract; its version is the first of inline ones until it is installed.

    Raises:
        OutboxError: `invalid-input` with the path of the member at fault.
    """
    if not isinstance(document, dict):
        refuse("$.contract", f"an object with some of the members {', '.join(MEMBERS)}")
    for name in document:
        if name not in MEMBERS:
            refuse(f"$.contract.{name[:100]}", "no such field")
    if len(canonical(document)) > BYTES_MAX:
        refuse("$.contract", f"at most {BYTES_MAX} bytes")
    if TOOL_NAME.fullmatch(tool) is None or len(tool) > 100:
        refuse("$.tool", "provider.noun.verb, in lower case, at most 100 characters")
    guarantee_class = document.get("class", "C")
    if guarantee_class not in ("A", "B", "C"):
        refuse("$.contract.class", "A, B or C")
    try:
        contract = ToolContract.from_document(
            {
                "tool": tool,
                "version": INLINE_VERSION_FIRST,
                "kind": "mutating",
                "owner": _owner(document),
                "input": {"type": "object", "additionalProperties": True},
                "identity": _identity(document),
                "class": guarantee_class,
                "request": {"driver": "client", "method": "POST", "url": "/", "deadline": "20s"},
                "receipt": _receipt(document),
                "recovery": _recovery(document.get("recovery"), guarantee_class),
                "not_after": format_duration(NOT_AFTER),
                "compensation": "impossible",
            }
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(step) for step in first["loc"])
        refuse("$.contract", f"another value at {place[:200]}")
    for rule in (contract.resend, contract.lookup):
        spans = () if rule is None else (rule.settle, getattr(rule, "within", None))
        if rule is not None and (rule.times > TIMES_MAX or any(span is not None and span > DURATION_MAX for span in spans)):
            refuse("$.contract.recovery", f"durations of at most {DURATION_MAX.days} d and at most {TIMES_MAX} times")
    if contract.lookup is not None and contract.lookup.settle <= timedelta(0):
        refuse("$.contract.recovery.lookup.settle", "a duration above zero: what was sent may take effect later than it was sent")
    return contract


def is_inline(contract: ToolContract) -> bool:
    """Whether a contract came with a client-executed call."""
    return contract.version >= INLINE_VERSION_FIRST


def content(contract: ToolContract) -> bytes:
    """What names an inline contract: all of it but its version."""
    return canonical({name: value for name, value in contract.document().items() if name != "version"})


def _owner(document: Mapping[str, Any]) -> str:
    owner = document.get("owner", UNOWNED)
    if not isinstance(owner, str) or OWNER.fullmatch(owner) is None:
        refuse("$.contract.owner", "a text of 1 to 200 characters")
    return owner


def _identity(document: Mapping[str, Any]) -> dict[str, object]:
    key, scope = document.get("key", "input"), document.get("scope", "environment")
    if scope not in ("environment", "run"):
        refuse("$.contract.scope", "environment or run")
    if key == "input":
        return {"digest": "input", "scope": scope}
    expected = "a template with at least one field (`refund:{order}:{reference}`), or `input`"
    if not isinstance(key, str) or len(key) > 400:
        refuse("$.contract.key", expected)
    try:
        fields = [segment.field for segment in template_segments(key) if segment.field is not None]
    except ValueError:
        refuse("$.contract.key", expected)
    if not fields or len(set(fields)) != len(fields):
        refuse("$.contract.key", expected)
    return {"key": key, "scope": scope}


def _receipt(document: Mapping[str, Any]) -> dict[str, object]:
    receipt = document.get("receipt")
    if receipt is None:
        return {}
    try:
        if not isinstance(receipt, str) or len(receipt) > 400 or RECEIPT.fullmatch(receipt) is None:
            raise ValueError
        jmespath.compile(receipt)
    except (ValueError, jmespath.exceptions.JMESPathError):
        refuse("$.contract.receipt", "JMESPath of the external reference in the result")
    return {"external_reference": receipt}


def _recovery(ways: object, guarantee_class: str) -> list[str | dict[str, object]]:
    if ways is None:
        return [_hand_over({})] if guarantee_class == "A" else [_probe({})] if guarantee_class == "B" else []
    if not isinstance(ways, list) or len(ways) > 3:
        refuse("$.contract.recovery", "a list of at most three ways: resend, lookup, person")
    read: list[str | dict[str, object]] = []
    for way in ways:
        match way:
            case "person" | {"person": _}:
                read.append("person")
            case "resend":
                read.append(_hand_over({}))
            case {"resend": dict(bounds), **others} if not others:
                read.append(_hand_over(bounds))
            case "lookup" | "probe":
                read.append(_probe({}))
            case {"lookup": dict(bounds), **others} if not others:
                read.append(_probe(bounds))
            case _:
                refuse("$.contract.recovery", "resend, lookup or person, each once")
    names = [way if isinstance(way, str) else next(iter(way)) for way in read]
    if len(set(names)) != len(names):
        refuse("$.contract.recovery", "each way once")
    if ("resend" in names) != (guarantee_class == "A"):
        refuse("$.contract.recovery", "resend for class A, and for no other")
    if ("lookup" in names and guarantee_class == "C") or ("lookup" not in names and guarantee_class == "B"):
        refuse("$.contract.recovery", "lookup for class B; class C has nothing but a person")
    return read


def _hand_over(bounds: Mapping[str, Any]) -> dict[str, object]:
    for name in bounds:
        if name not in ("within", "times"):
            refuse(f"$.contract.recovery.resend.{name[:100]}", "no such field; a hand-over has within and times")
    return {"resend": {"within": format_duration(HAND_OVER_WITHIN), **bounds}}


def _probe(bounds: Mapping[str, Any]) -> dict[str, object]:
    for name in bounds:
        if name not in ("settle", "times", "on_absent"):
            refuse(f"$.contract.recovery.lookup.{name[:100]}", "no such field; a probe has settle, times and on_absent")
    defaults = {"settle": format_duration(SETTLE), "times": TIMES_DEFAULT, "on_absent": "resend"}
    return {"lookup": {"url": _BY_PROBE, "match": _BY_PROBE, **defaults, **bounds}}
