"""Templates of contracts: `{input.x}`, `{reference}` and their like in URLs and bodies, and fields planted into a body.

A placeholder is expanded once; what replaces it is never read as a template again, so an input that looks like one stays text.
"""

import re
from collections.abc import Mapping
from typing import Any, NoReturn
from urllib.parse import quote

from outbox_domain import messages
from outbox_domain.contract import PLACEHOLDER
from outbox_domain.errors import OutboxError

WHEN = "$when"
"""Reserved member of an object in a body template: the object is left out unless the named value (`input.html`) is present."""

_PATH_CHARACTERS_MAX = 1000
_STEP = re.compile(r"\[([^\[\]]*)\]|\.?([^.\[\]]+)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class _Absent:
    """Stands for a value that is not there; JSON's null is a value."""


ABSENT = _Absent()


def refuse(path: str, expected: str) -> NoReturn:
    """Raises `invalid-input` for a value that cannot be written on the wire; the value itself is not repeated."""
    shown = path[:_PATH_CHARACTERS_MAX]
    raise OutboxError(
        "invalid-input", f"{shown}: expected {expected}.", message=messages.invalid_input(shown, expected), path=shown
    )


def resolve(name: str, bound: Mapping[str, Any], names: Mapping[str, str | None]) -> Any:
    """The value a placeholder names.

    Args:
        name: `input.a.b` for a member of the bound input, else one of `names`.
        bound: the bound input.
        names: the other values by name (`reference`, `run`, `marker`).

    Returns:
        The value, or `ABSENT`.
    """
    first, *steps = name.split(".")
    if first != "input":
        outside = names.get(name)
        return ABSENT if outside is None else outside
    value: Any = bound
    for step in steps:
        if not isinstance(value, Mapping) or step not in value:
            return ABSENT
        value = value[step]
    return value


def expand_url(template: str, bound: Mapping[str, Any], names: Mapping[str, str | None]) -> str:
    """Fills a URL template; every value is percent-encoded (RFC 3986 section 2.1) and cannot leave its segment.

    Args:
        template: path and query, beginning with one `/`.
        bound: the bound input.
        names: the other values by name.

    Returns:
        The path and query.

    Raises:
        OutboxError: `invalid-input` where a value is absent, empty, no plain value, holds control characters, or would make a
            path segment `.` or `..` (which intermediaries fold away even when encoded).
    """

    def encoded(found: re.Match[str]) -> str:
        value = resolve(found[1], bound, names)
        path = f"$.{found[1]}"
        if isinstance(value, bool):
            text = "true" if value else "false"
        elif isinstance(value, int | float):
            text = str(value)
        elif isinstance(value, str) and value:
            text = value
        else:
            refuse(path, "a plain value, because it is part of the address")
        if _CONTROL.search(text):
            refuse(path, "text without control characters")
        try:
            return quote(text, safe="")
        except UnicodeEncodeError:
            refuse(path, "text without lone surrogates")

    url = PLACEHOLDER.sub(encoded, template)
    if any(segment in (".", "..") for segment in url.partition("?")[0].split("/")):
        refuse("$.input", "values that do not climb in the address")
    return url


def expand_body(template: Any, bound: Mapping[str, Any], names: Mapping[str, str | None]) -> Any:
    """Fills a body template.

    A text that is exactly one placeholder keeps the JSON type of its value; a placeholder in a longer text is written as text.
    A member or item whose placeholder is absent is left out; so is an object whose `$when` names something absent.

    Args:
        template: any JSON value.
        bound: the bound input.
        names: the other values by name.

    Returns:
        The filled value, sharing nothing mutable with the template, or `ABSENT`.
    """
    if isinstance(template, Mapping):
        condition = template.get(WHEN)
        if condition is not None and resolve(condition, bound, names) is ABSENT:
            return ABSENT
        members = ((name, expand_body(member, bound, names)) for name, member in template.items() if name != WHEN)
        return {name: member for name, member in members if member is not ABSENT}
    if isinstance(template, list | tuple):
        return [item for item in (expand_body(each, bound, names) for each in template) if item is not ABSENT]
    if not isinstance(template, str):
        return template
    whole = PLACEHOLDER.fullmatch(template)
    if whole is not None:
        return resolve(whole[1], bound, names)
    parts: list[str] = []
    position = 0
    for found in PLACEHOLDER.finditer(template):
        value = resolve(found[1], bound, names)
        if value is ABSENT:
            return ABSENT
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            refuse(f"$.{found[1]}", "text or a number, because it is part of a longer text")
        parts += [template[position : found.start()], str(value)]
        position = found.end()
    return "".join([*parts, template[position:]])


def field_steps(path: str) -> tuple[str, ...]:
    """The steps of a field's path, in either spelling: `metadata[outbox]`, `personalizations[0].custom_args.outbox`.

    Raises:
        ValueError: if the path has an empty step or anything that is no step.
    """
    steps: list[str] = []
    position = 0
    while position < len(path):
        found = _STEP.match(path, position)
        step = (found[1] or found[2]) if found is not None else None
        if found is None or not step or (position == 0 and path[0] in ".["):
            raise ValueError(f"{path!r} is no path of a field")
        steps.append(step)
        position = found.end()
    if not steps:
        raise ValueError("a field's path is empty")
    return tuple(steps)


def plant(body: dict[str, Any], path: str, value: str) -> None:
    """Writes a value into a body, over whatever stands there: nobody but us says our key and our marker.

    Args:
        body: the body; it is changed.
        path: where (see `field_steps`); a number is an index where a list stands.
        value: what.

    Raises:
        ValueError: if the path names an item that a list does not have.
    """
    *parents, last = field_steps(path)
    holder: Any = body
    for parent in parents:
        if isinstance(holder, list):
            holder = _item(holder, parent, path)
            if not isinstance(holder, dict | list):
                raise ValueError(f"{path!r} goes through a plain value")
            continue
        if not isinstance(holder.get(parent), dict | list):
            holder[parent] = {}
        holder = holder[parent]
    if isinstance(holder, list):
        raise ValueError(f"{path!r} ends in a list")
    holder[last] = value


def _item(items: list[Any], index: str, path: str) -> Any:
    if not index.isdecimal() or int(index) >= len(items):
        raise ValueError(f"{path!r} names an item that is not there")
    return items[int(index)]
