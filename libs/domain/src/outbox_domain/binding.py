"""Binds the input of a tool call to its contract, before anything else is done with it (design section 5, point 1).

The order is fixed: what JSON cannot carry exactly is refused, the schema validates, defaults are filled, normalisers run, and the
result is validated once more, because a trimmed text may have become too short. Money must resolve to a value and a currency.
No message repeats a value of the input: it may be personal. Names of fields are the caller's own words and may be told.
"""

import copy
import functools
import json
import math
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NoReturn

import jsonschema_rs

from outbox_domain import messages
from outbox_domain.contract import Normaliser, ToolContract
from outbox_domain.errors import OutboxError, refuse
from outbox_domain.json_text import member_path

INPUT_DEPTH_MAX = 64
"""How many containers may stand inside one another (interfaces.md section 1; the same limit the body is parsed with)."""

EXACT_INTEGER_MAX = 2**53 - 1
"""The largest integer that an IEEE double, and so RFC 8785, carries exactly."""

_PATH_CHARACTERS_MAX = 1000
_DECIMAL = re.compile(r"([+-]?)(\d{1,40})(?:\.(\d{1,40}))?")
_CURRENCY = re.compile(r"[A-Za-z]{3}")


@dataclass(frozen=True, kw_only=True)
class BoundInput:
    """An input that fits its contract.

    Attributes:
        value: the input with defaults filled and normalisers applied; integral numbers are integers. It never prints itself.
        amount: the money it moves, in minor units; None where the contract has no amount.
        currency: three capital letters; None where the contract has no amount.
    """

    value: dict[str, Any] = field(repr=False)
    amount: int | None
    currency: str | None


def bind(contract: ToolContract, value: object, *, connection_currency: str | None = None) -> BoundInput:
    """Validates and completes the input of a tool call.

    Args:
        contract: the tool's contract.
        value: the input as it was parsed from JSON. It is not changed.
        connection_currency: the currency of the connection, for contracts that refer to it.

    Returns:
        The bound input.

    Raises:
        OutboxError: `invalid-input` with the JSON path of the first offending value, or `too-deep`.
    """
    exact = _exact(value, "$.input", 0)
    validator = input_validator(contract.input_schema_text)
    _validate(validator, exact)
    if not isinstance(exact, dict):
        _refuse("$.input", "an object")
    _fill_defaults(contract.input, exact)
    for name, normalisers in contract.normalise.items():
        _normalise(exact, name, normalisers)
    _validate(validator, exact)
    amount, currency = _resolve_amount(contract, exact, connection_currency)
    return BoundInput(value=exact, amount=amount, currency=currency)


@functools.lru_cache(maxsize=1024)
def input_validator(schema_text: str) -> jsonschema_rs.Draft202012Validator:
    """Compiles an input schema: JSON Schema 2020-12, formats asserted, patterns in linear time, references within it only.

    Args:
        schema_text: the schema as JSON text; the text itself is the key it is remembered under, so that two organizations that
            declare a tool of the same name and version differently never meet each other's schema.

    Returns:
        The compiled validator.

    Raises:
        jsonschema_rs.ValidationError: if the text is no schema, or refers to another document.
    """
    return jsonschema_rs.Draft202012Validator(
        json.loads(schema_text),
        validate_formats=True,
        ignore_unknown_formats=False,
        retriever=_retrieve_nothing,
        pattern_options=jsonschema_rs.RegexOptions(),
    )


def _retrieve_nothing(uri: str) -> NoReturn:
    raise ValueError(f"an input schema stands alone; it may not refer to {uri}")


def _exact(value: object, path: str, depth: int) -> Any:
    """A copy of the value in which equal numbers look equal (12.0 is 12); refuses what JSON cannot carry exactly."""
    match value:
        case None | bool():
            return value
        case str():
            if any("\ud800" <= character <= "\udfff" for character in value):
                _refuse(path, "text without lone surrogates")
            return value
        case int():
            if abs(value) > EXACT_INTEGER_MAX:
                _refuse(path, "a number that JSON carries exactly (at most 9007199254740991)")
            return value
        case float():
            if not math.isfinite(value):
                _refuse(path, "a finite number")
            return int(value) if value.is_integer() and abs(value) <= EXACT_INTEGER_MAX else value
    if depth >= INPUT_DEPTH_MAX:
        shown, expected = path[:_PATH_CHARACTERS_MAX], f"at most {INPUT_DEPTH_MAX} levels of nesting"
        raise OutboxError(
            "too-deep", f"{shown}: expected {expected}.", message=messages.invalid_input(shown, expected), path=shown
        )
    if isinstance(value, dict):
        copied: dict[str, Any] = {}
        for name, member in value.items():
            if not isinstance(name, str):
                _refuse(path, "text as the name of every field")
            _exact(name, path, depth)
            copied[name] = _exact(member, member_path(path, name), depth + 1)
        return copied
    if isinstance(value, list | tuple):
        return [_exact(member, f"{path}[{index}]", depth + 1) for index, member in enumerate(value)]
    _refuse(path, "a JSON value")


def _validate(validator: jsonschema_rs.Draft202012Validator, value: object) -> None:
    for error in validator.iter_errors(value):
        path = "$.input"
        for step in error.instance_path:
            path = f"{path}[{step}]" if isinstance(step, int) else member_path(path, step)
        place, expected = _expectation(path, error)
        _refuse(place, expected)


def _expectation(path: str, error: jsonschema_rs.ValidationError) -> tuple[str, str]:
    """Where and what was expected, from the schema alone; the library's own message would repeat the value."""
    kind: Any = error.kind
    name: str = kind.name
    if name == "required":
        return member_path(path, kind.property), "this field to be present"
    if name in ("additionalProperties", "unevaluatedProperties", "falseSchema"):
        unexpected = getattr(kind, "unexpected", None)
        return (member_path(path, unexpected[0]) if unexpected else path), "no such field"
    if name in _EXPECTED_OF_KIND:
        return path, _EXPECTED_OF_KIND[name](kind)
    if name == "anyOf":
        # Alternatives that each lack one field (a mail's text or html) are told as such; others would take a page.
        lacking = [branch[0].kind for branch in kind.context if len(branch) == 1 and branch[0].kind.name == "required"]
        if len(lacking) == len(kind.context):
            return path, f"one of these fields to be present: {', '.join(each.property for each in lacking)}"
    return path, "a value that the tool's schema allows"


_EXPECTED_OF_KIND: Mapping[str, Callable[[Any], str]] = {
    "type": lambda kind: " or ".join(f"the type {name}" for name in kind.types),
    "pattern": lambda kind: f"text that matches {kind.pattern}",
    "format": lambda kind: f"text in the format {kind.format}",
    "enum": lambda kind: f"one of {_shown(kind.options)}",
    "const": lambda kind: f"exactly {_shown(kind.expected_value)}",
    "minimum": lambda kind: f"at least {kind.limit}",
    "maximum": lambda kind: f"at most {kind.limit}",
    "exclusiveMinimum": lambda kind: f"more than {kind.limit}",
    "exclusiveMaximum": lambda kind: f"less than {kind.limit}",
    "multipleOf": lambda kind: f"a multiple of {kind.multiple_of}",
    "minLength": lambda kind: f"at least {kind.limit} characters",
    "maxLength": lambda kind: f"at most {kind.limit} characters",
    "minItems": lambda kind: f"at least {kind.limit} items",
    "maxItems": lambda kind: f"at most {kind.limit} items",
    "minProperties": lambda kind: f"at least {kind.limit} fields",
    "maxProperties": lambda kind: f"at most {kind.limit} fields",
    "uniqueItems": lambda kind: "items that differ from one another",
    "propertyNames": lambda kind: "other names of fields",
}


def _shown(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)[:300]


def _refuse(path: str, expected: str) -> NoReturn:
    refuse(path[:_PATH_CHARACTERS_MAX], expected)


def _fill_defaults(schema: Mapping[str, Any], value: object) -> None:
    """Fills absent members from `default`, downwards through `properties` and `items` (the linter keeps defaults to these)."""
    if isinstance(value, dict):
        for name, member in schema.get("properties", {}).items():
            if not isinstance(member, dict):
                continue
            if name not in value and "default" in member:
                value[name] = copy.deepcopy(member["default"])
            if name in value:
                _fill_defaults(member, value[name])
    elif isinstance(value, list) and isinstance(schema.get("items"), dict):
        for item in value:
            _fill_defaults(schema["items"], item)


def _normalise(value: dict[str, Any], name: str, normalisers: tuple[Normaliser, ...]) -> None:
    """Applies the normalisers of one field (dotted where it stands deeper); an absent field stays absent."""
    *parents, last = name.split(".")
    holder: object = value
    for parent in parents:
        holder = holder.get(parent) if isinstance(holder, dict) else None
    if not isinstance(holder, dict) or not isinstance(holder.get(last), str):
        return
    text: str = holder[last]
    for normaliser in normalisers:
        text = _NORMALISERS[normaliser](text, f"$.input.{name}")
    holder[last] = text


def _decimal(text: str, path: str) -> str:
    found = _DECIMAL.fullmatch(text)
    if found is None:
        _refuse(path, "a decimal number such as 12.50")
    number = Decimal(text)
    whole, _, fraction = format(abs(number), "f").partition(".")
    fraction = fraction.rstrip("0")
    sign = "-" if found[1] == "-" and number else ""
    return sign + (whole.lstrip("0") or "0") + (f".{fraction}" if fraction else "")


_NORMALISERS: Mapping[Normaliser, Callable[[str, str], str]] = {
    "trim": lambda text, path: text.strip(),
    "lowercase": lambda text, path: text.lower(),
    "uppercase": lambda text, path: text.upper(),
    "nfc": lambda text, path: unicodedata.normalize("NFC", text),
    "collapse_spaces": lambda text, path: " ".join(text.split()),
    "decimal": _decimal,
}


def _resolve_amount(
    contract: ToolContract, value: dict[str, Any], connection_currency: str | None
) -> tuple[int | None, str | None]:
    """The money the input moves; it resolves wholly or the call is refused (Stripe refunds everything when it is absent)."""
    rule = contract.amount
    if rule is None:
        return None, None
    amount_path = f"$.{rule.value}"
    amount = _at(value, rule.value)
    if not isinstance(amount, int) or isinstance(amount, bool) or amount < 0:
        _refuse(amount_path, "an amount in whole minor units")
    if rule.currency == "connection.currency":
        currency, currency_path = connection_currency, "$.connection"
    elif rule.currency.startswith("input."):
        currency, currency_path = _at(value, rule.currency), f"$.{rule.currency}"
    else:
        currency, currency_path = rule.currency, "$.tool"
    if not isinstance(currency, str) or _CURRENCY.fullmatch(currency) is None:
        _refuse(currency_path, "a currency of three letters")
    return amount, currency.upper()


def _at(value: object, dotted: str) -> Any:
    """The member that `input.a.b` names, or None."""
    for name in dotted.split(".")[1:]:
        value = value.get(name) if isinstance(value, dict) else None
    return value
