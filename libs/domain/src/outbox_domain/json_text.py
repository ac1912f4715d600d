"""Reads JSON strictly: what cannot be carried exactly is refused and the place is named.

Two readers may understand a lax text differently, and then a digest over one understanding says nothing about the other. So a
text is refused that is not UTF-8, starts with a byte order mark, names a member twice, holds a lone surrogate, `NaN` or
`Infinity`, is too large or too deep, or holds a number that an IEEE double does not carry exactly:

* a number written as an integer (no fraction, no exponent) beyond +-(2^53 - 1), the range of RFC 7493 section 2.2;
* a number written with a fraction or an exponent that does not round-trip: the nearest double, rounded to as many significant
  digits as the caller used (trailing zeros aside, a tie either way), is not the number that was written. So `0.1`, `1e30` and
  `333333333.33333331` pass; `333333333.33333329`, `1e400`, `1e-400`, `9007199254740993.0` and
  `3.141592653589793238462643383279` do not;
* any number of more than 1,100 characters: the longest exact double is shorter.

A number with a fraction or exponent whose value is whole and within +-(2^53 - 1) comes back as an `int`, so `12.0`, `1.2e1`
and `12` are one value. Sources: RFC 8259, RFC 7493 (I-JSON), RFC 8785 section 3.2.2; design section 5, point 1.

An ordinary text is read once by the C scanner of the standard library; only a text that is known to be bad is read again, for
the place.
"""

import json
import re
from array import array
from collections.abc import Callable
from decimal import ROUND_HALF_DOWN, ROUND_HALF_UP, Context
from itertools import accumulate
from typing import NoReturn, cast

from outbox_domain.errors import invalid

BYTES_MAX = 1 << 20
"""How many bytes a body may have, unless the caller says otherwise."""

DEPTH_MAX = 64
"""How many objects and arrays may stand inside one another, unless the caller says otherwise."""

EXACT_INTEGER_MAX = 2**53 - 1
"""The largest integer whose neighbours an IEEE double still tells apart (RFC 7493 section 2.2)."""

_NUMBER_CHARACTERS_MAX = 1_100
_NAME_CHARACTERS_MAX = 100
_PATH_CHARACTERS_MAX = 1_000

_EXPECTED_NUMBER = "a number that JSON carries exactly (a whole one at most 9007199254740991, a fraction as precise as a double)"
_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
# A string that never ends is taken to the end of the text: to try again from each of its quotes would be quadratic.
_STRING_BYTES = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[\]{}:,]', re.DOTALL)
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NO_BRACKETS = bytes(code for code in range(256) if code not in b"[]{}")


def parse(body: bytes, *, bytes_max: int = BYTES_MAX, depth_max: int = DEPTH_MAX) -> object:
    """Reads one JSON text.

    Args:
        body: the text as UTF-8.
        bytes_max: how many bytes it may have.
        depth_max: how many objects and arrays may stand inside one another; at most some hundreds (the C scanner's own limit).

    Returns:
        dict, list, str, int, float, bool or None.

    Raises:
        OutboxError: `too-large`, `too-deep`, or `malformed-body`, with the JSON path of the first offending place
            (`$.input.amount`; the text itself is `$`). No message repeats a value.
    """
    if len(body) > bytes_max:
        _refuse("too-large", "$", f"at most {bytes_max} bytes")
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        _refuse("malformed-body", _place(body[: error.start].decode(), error.start), f"UTF-8 (byte {error.start} is not)")
    if text.startswith("\ufeff"):
        _refuse("malformed-body", "$", "UTF-8 without a byte order mark")
    # Counting brackets is far cheaper than measuring depth and says enough of nearly every text.
    if body.count(b"[") + body.count(b"{") > depth_max and _depth(body) > depth_max:
        _refuse("too-deep", _place_of_depth(text, depth_max + 1), f"at most {depth_max} levels of nesting")
    try:
        value = _READER.decode(text)
    except _Inexact:
        _refuse_first_flaw(text)
    except json.JSONDecodeError as error:
        _refuse("malformed-body", _place(text, error.pos), f"well-formed JSON ({_complaint(error)} at character {error.pos})")
    # A text that was UTF-8 can hold a surrogate only by way of an escape.
    if _SURROGATE_ESCAPE.search(body) is not None and _holds_lone_surrogate(value):
        _refuse_first_flaw(text)
    return cast(object, value)


def member_path(path: str, name: str) -> str:
    """The JSON path of a member.

    Args:
        path: the path of the object (`$.input`).
        name: the member's name, whatever it holds.

    Returns:
        `$.input.name`, or `$.input["odd name"]`, escaped and cut, so that a hostile name stays a name.
    """
    if _PLAIN_NAME.fullmatch(name):
        return f"{path}.{name}"
    return f"{path}[{json.dumps(name[:_NAME_CHARACTERS_MAX])}]"


class _Inexact(Exception):
    """The text is JSON, but not one that can be carried exactly."""


def _refuse(code: str, path: str, expected: str) -> NoReturn:
    shown = path if len(path) <= _PATH_CHARACTERS_MAX else path[:_PATH_CHARACTERS_MAX] + "..."
    raise invalid(shown, expected, code=code)


def _complaint(error: json.JSONDecodeError) -> str:
    return error.msg.removesuffix(" at")


# --- the ordinary way


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise _Inexact
    return value


def _integer(text: str) -> int:
    # Sixteen digits and a sign: whatever is longer is out of range, and Python refuses to read some thousands of digits anyway.
    if len(text) > 17:
        raise _Inexact
    value = int(text)
    if not -EXACT_INTEGER_MAX <= value <= EXACT_INTEGER_MAX:
        raise _Inexact
    return value


def _number(text: str) -> int | float:
    if len(text) > _NUMBER_CHARACTERS_MAX:
        raise _Inexact
    value = float(text)
    if repr(value) != text and not _carried(text, value):
        raise _Inexact
    if value.is_integer() and -EXACT_INTEGER_MAX <= value <= EXACT_INTEGER_MAX:
        return int(value)
    return value


def _carried(text: str, value: float) -> bool:
    """Whether the double, rounded to as many significant digits as the text has, gives the text's number back.

    An exact tie may be rounded either way, because writers differ there: the double 2^-24 is written 5.960464477539063e-08 by the
    shortest form and 5.960464477539062e-08 by rounding half to even. Comparing digits is enough: the double is the nearest one,
    so a difference in magnitude alone cannot be.
    """
    digits = _significant_digits(text)
    if not digits:
        return True
    return any(_rounded(value, len(digits), rounding) == digits for rounding in (ROUND_HALF_UP, ROUND_HALF_DOWN))


def _rounded(value: float, count: int, rounding: str) -> str:
    number = Context(prec=count, rounding=rounding).create_decimal_from_float(value)
    return "".join(map(str, number.as_tuple().digits)).rstrip("0")


def _significant_digits(number: str) -> str:
    mantissa = number.lower().partition("e")[0]
    return mantissa.lstrip("-").replace(".", "").lstrip("0").rstrip("0")


def _constant(name: str) -> NoReturn:
    raise _Inexact


_READER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_number, parse_constant=_constant)


def _depth(body: bytes) -> int:
    """The deepest nesting of brackets outside strings."""
    steps = array("b", _STRING_BYTES.sub(b"", body).translate(_STEPS, _NO_BRACKETS))
    return max(accumulate(steps), default=0)


def _holds_lone_surrogate(value: object) -> bool:
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            if _is_lone(item):
                return True
        elif isinstance(item, list):
            waiting.extend(item)
        elif isinstance(item, dict):
            waiting.extend(item)
            waiting.extend(item.values())
    return False


def _is_lone(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


# --- finding the place in a text that is known to be bad


class _Members(list[tuple[str, object]]):
    """An object with every member it names, twice named ones too."""


class _Flaw:
    """Stands where a value would stand that cannot be carried."""

    def __init__(self, expected: str) -> None:
        self.expected = expected


def _or_flaw(read: Callable[[str], int | float]) -> Callable[[str], object]:
    def reader(text: str) -> object:
        try:
            return read(text)
        except _Inexact:
            return _Flaw(_EXPECTED_NUMBER)

    return reader


_MARKING_READER = json.JSONDecoder(
    object_pairs_hook=_Members,
    # The annotations of the standard library want numbers; the scanner takes whatever comes back.
    parse_int=cast(Callable[[str], int], _or_flaw(_integer)),
    parse_float=cast(Callable[[str], float], _or_flaw(_number)),
    parse_constant=lambda name: _Flaw(f"a finite number ({name} is not JSON)"),
)


def _refuse_first_flaw(text: str) -> NoReturn:
    try:
        value = _MARKING_READER.decode(text)
    except json.JSONDecodeError as error:
        # A later mistake in the grammar is told first: nothing after it has been read, so the text as a whole means nothing.
        _refuse("malformed-body", _place(text, error.pos), f"well-formed JSON ({_complaint(error)} at character {error.pos})")
    flaw = _first_flaw(value, "$")
    if flaw is None:
        raise AssertionError("a text that was refused holds nothing to refuse")
    _refuse("malformed-body", *flaw)


def _first_flaw(value: object, path: str) -> tuple[str, str] | None:
    """Where the first value stands that cannot be carried, and what was expected there. The depth is bounded by then."""
    if isinstance(value, _Flaw):
        return path, value.expected
    if isinstance(value, str):
        return (path, "text without lone surrogates") if _is_lone(value) else None
    if isinstance(value, _Members):
        met: set[str] = set()
        for name, member in value:
            place = member_path(path, name)
            if _is_lone(name):
                return place, "a name without lone surrogates"
            if name in met:
                return place, "each name once"
            met.add(name)
            if (flaw := _first_flaw(member, place)) is not None:
                return flaw
    elif isinstance(value, list):
        for index, member in enumerate(value):
            if (flaw := _first_flaw(member, f"{path}[{index}]")) is not None:
                return flaw
    return None


class _Trail:
    """Follows the brackets, names and commas of a text and knows the path of where it stands."""

    def __init__(self) -> None:
        # An object is represented by the name of its current member (None before the first colon), an array by an index.
        self.steps: list[str | int | None] = []
        self._last_string: str | None = None

    def take(self, token: str) -> None:
        match token[0]:
            case "{":
                self.steps.append(None)
            case "[":
                self.steps.append(0)
            case "}" | "]":
                if self.steps:
                    self.steps.pop()
            case ":":
                if self.steps and not isinstance(self.steps[-1], int):
                    self.steps[-1] = self._last_string
            case ",":
                if self.steps:
                    step = self.steps[-1]
                    self.steps[-1] = step + 1 if isinstance(step, int) else None
            case _:
                self._last_string = _name(token)

    def path(self) -> str:
        path = "$"
        for step in self.steps:
            if isinstance(step, int):
                path = f"{path}[{step}]"
            elif step is not None:
                path = member_path(path, step)
        return path


def _name(token: str) -> str:
    try:
        return str(json.loads(token, strict=False))
    except json.JSONDecodeError:
        return token.strip('"')


def _place(text: str, position: int) -> str:
    """The path at a character of the text, as far as the text was well-formed before it."""
    trail = _Trail()
    for token in _TOKEN.finditer(text):
        if token.start() >= position or token.end() > position:
            break
        trail.take(token[0])
    return trail.path()


def _place_of_depth(text: str, depth: int) -> str:
    """The path of the first object or array that stands at this depth."""
    trail = _Trail()
    for token in _TOKEN.finditer(text):
        if len(trail.steps) == depth - 1 and token[0][0] in "[{":
            break
        trail.take(token[0])
    return trail.path()
