"""Form bodies with brackets, as Stripe's v1 interface takes them: `metadata[outbox]=m` is `{"metadata": {"outbox": "m"}}`."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl

from outbox_sandbox.exchange import Fields

FIELDS_MAX = 1000
DEPTH_MAX = 8

NAME = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)", re.DOTALL)
BRACKET = re.compile(r"\[([^\[\]]*)\]")


class MalformedForm(ValueError):
    """The text is not a form."""


def decode(text: bytes | str) -> Fields:
    """A form body or a query string as nested fields; every leaf is a string.

    `a[]=x` appends under the next free number. A repeated name keeps its last value. Raises `MalformedForm` for text that is
    not UTF-8, more than `FIELDS_MAX` fields, more than `DEPTH_MAX` brackets, a name that is not well formed, or a name used
    both as a value and as a holder of others.
    """
    try:
        pairs = parse_qsl(
            text.decode("utf-8") if isinstance(text, bytes) else text,
            keep_blank_values=True,
            errors="strict",
            max_num_fields=FIELDS_MAX,
        )
    except ValueError as error:
        raise MalformedForm(str(error)) from error
    fields: Fields = {}
    for name, value in pairs:
        _place(fields, name, value)
    return fields


def _place(fields: Fields, name: str, value: str) -> None:
    shape = NAME.fullmatch(name)
    if shape is None:
        raise MalformedForm(f"malformed parameter name {name!r}")
    steps = [shape[1], *BRACKET.findall(shape[2])]
    if len(steps) > DEPTH_MAX:
        raise MalformedForm(f"parameter {name!r} is nested too deep")
    holder = fields
    for step in steps[:-1]:
        inner = holder.setdefault(step or str(len(holder)), {})
        if not isinstance(inner, dict):
            raise MalformedForm(f"parameter {name!r} is both a value and a holder of values")
        holder = inner
    leaf = steps[-1] or str(len(holder))
    if isinstance(holder.get(leaf), dict):
        raise MalformedForm(f"parameter {name!r} is both a value and a holder of values")
    holder[leaf] = value
