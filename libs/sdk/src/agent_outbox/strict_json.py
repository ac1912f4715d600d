"""Reads and writes JSON that can be carried exactly; what cannot is refused, and the place is named.

The rules are the gateway's (`docs/vectors/json-text.json` holds both to them): no `NaN` or `Infinity`, no name twice, no lone
surrogates, integers within +-(2^53 - 1), fractions only as precise as an IEEE double (RFC 8259, RFC 7493, RFC 8785), at most 64
levels. A model that writes `{"amount": 1, "amount": 100}` has not said which of the two it means, and nobody may choose.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from decimal import ROUND_HALF_DOWN, ROUND_HALF_UP, Context
from typing import NoReturn

from agent_outbox.errors import malformed

DEPTH_MAX = 64
"""How many objects and arrays may stand inside one another, the body of the request included."""

EXACT_INTEGER_MAX = 2**53 - 1
"""The largest integer whose neighbours an IEEE double still tells apart (RFC 7493 section 2.2)."""

_NUMBER_CHARACTERS_MAX = 1_100
_NAME_CHARACTERS_MAX = 100

_EXPECTED_NUMBER = "a number that JSON carries exactly (a whole one at most 9007199254740991, a fraction as precise as a double)"
_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_SURROGATE = re.compile("[\ud800-\udfff]")


class _Flaw:
    """Stands where a value cannot be carried."""

    def __init__(self, expected: str) -> None:
        self.expected = expected


class _Members:
    """An object as it was written: its members in order, a name as often as it stands there."""

    def __init__(self, pairs: list[tuple[str, object]]) -> None:
        self.pairs = pairs


def read(text: str, path: str = "$") -> object:
    """Read one JSON text.

    Args:
        text: as a model wrote it.
        path: where its value will stand in the request.

    Returns:
        dict, list, str, int, float, bool or None; a number written with a fraction whose value is whole is an int.

    Raises:
        MalformedArgumentsError: it is not well-formed, or holds what cannot be carried exactly; with the path of that value.
    """
    try:
        written = _READER.decode(text)
    except json.JSONDecodeError as error:
        raise malformed(path, f"well-formed JSON ({error.msg.removesuffix(' at')} at character {error.pos})") from None
    except RecursionError:
        raise malformed(path, f"at most {DEPTH_MAX} levels of nesting") from None
    return carried(written, path)


def carried(value: object, path: str = "$", depth: int = 0) -> object:
    """A copy of a value, made of plain JSON types.

    Args:
        value: Mappings with text as names, lists, tuples, text, numbers, booleans and None; nothing else.
        path: where it stands.
        depth: how many objects and arrays stand around it.

    Returns:
        dict, list, str, int, float, bool or None.

    Raises:
        MalformedArgumentsError: something in it is no JSON value or cannot be carried exactly; with its path.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(value, path)
    if isinstance(value, int):
        if not -EXACT_INTEGER_MAX <= value <= EXACT_INTEGER_MAX:
            raise malformed(path, _EXPECTED_NUMBER)
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise malformed(path, _EXPECTED_NUMBER)
        return float(value)
    if isinstance(value, _Flaw):
        raise malformed(path, value.expected)
    if not isinstance(value, (_Members, Mapping, list, tuple)):
        raise malformed(path, f"a JSON value, not {type(value).__name__}")
    if depth >= DEPTH_MAX:
        raise malformed(path, f"at most {DEPTH_MAX} levels of nesting")
    if isinstance(value, (list, tuple)):
        return [carried(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value)]
    copy: dict[str, object] = {}
    for name, member in value.pairs if isinstance(value, _Members) else value.items():
        if not isinstance(name, str):
            raise malformed(path, f"names that are text, not {type(name).__name__}")
        place = member_path(path, name)
        name = _text(name, place)
        if name in copy:
            raise malformed(place, "each name once")
        copy[name] = carried(member, place, depth + 1)
    return copy


def write(value: object) -> bytes:
    """The JSON text of a value.

    Args:
        value: what `carried` takes.

    Returns:
        UTF-8; equal values give equal bytes.

    Raises:
        MalformedArgumentsError: as `carried`.
    """
    text = json.dumps(carried(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode()


def member_path(path: str, name: str) -> str:
    """The JSON path of a member.

    Args:
        path: of the object (`$.input`).
        name: of the member, whatever it holds.

    Returns:
        `$.input.name`, or `$.input["odd name"]`, escaped and cut, so that a hostile name stays a name.
    """
    if _PLAIN_NAME.fullmatch(name):
        return f"{path}.{name}"
    return f"{path}[{json.dumps(name[:_NAME_CHARACTERS_MAX])}]"


def _text(value: str, path: str) -> str:
    if _SURROGATE.search(value) is not None:
        raise malformed(path, "text without lone surrogates")
    # The value of an enumeration that is text, not its name.
    return str.__str__(value)


def _integer(text: str) -> object:
    # Sixteen digits and a sign: whatever is longer is out of range, and Python refuses to read some thousands of digits.
    if len(text) > 17 or not -EXACT_INTEGER_MAX <= int(text) <= EXACT_INTEGER_MAX:
        return _Flaw(_EXPECTED_NUMBER)
    return int(text)


def _number(text: str) -> object:
    if len(text) > _NUMBER_CHARACTERS_MAX:
        return _Flaw(_EXPECTED_NUMBER)
    value = float(text)
    if not math.isfinite(value) or not _is_exact(text, value):
        return _Flaw(_EXPECTED_NUMBER)
    if value.is_integer() and -EXACT_INTEGER_MAX <= value <= EXACT_INTEGER_MAX:
        return int(value)
    return value


def _is_exact(text: str, value: float) -> bool:
    """Whether the double, rounded to as many significant digits as the text has, gives the text's number back.

    A tie may be rounded either way, because writers differ there. Comparing digits is enough: the double is the nearest one.
    """
    digits = text.lower().partition("e")[0].lstrip("-").replace(".", "").lstrip("0").rstrip("0")
    if not digits:
        return True
    for rounding in (ROUND_HALF_UP, ROUND_HALF_DOWN):
        number = Context(prec=len(digits), rounding=rounding).create_decimal_from_float(value)
        if "".join(map(str, number.as_tuple().digits)).rstrip("0") == digits:
            return True
    return False


def _constant(name: str) -> object:
    return _Flaw(_EXPECTED_NUMBER)


_READER = json.JSONDecoder(object_pairs_hook=_Members, parse_int=_integer, parse_float=_number, parse_constant=_constant)


def read_answer(body: bytes) -> object:
    """Read the JSON text of an answer.

    Args:
        body: as it arrived.

    Returns:
        dict, list, str, int, float, bool or None.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        return json.loads(body, parse_constant=_refused)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refused(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
