"""Strict JSON: what cannot be carried exactly is refused with its place, and nothing hostile brings the process down."""

import json
import math
import subprocess
import sys
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from outbox_domain import canonical, json_text
from outbox_domain.errors import OutboxError

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(min_value=-json_text.EXACT_INTEGER_MAX, max_value=json_text.EXACT_INTEGER_MAX)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=20,
)


def refused(body: bytes, **limits: int) -> OutboxError:
    """The refusal of a body."""
    with pytest.raises(OutboxError) as caught:
        json_text.parse(body, **limits)
    return caught.value


@given(JSON_VALUES)
def test_whatever_json_carries_exactly_is_read_as_it_was_written(value: object) -> None:
    """A value that the standard library writes comes back equal."""
    assert json_text.parse(json.dumps(value).encode()) == value
    assert json_text.parse(json.dumps(value, ensure_ascii=False, indent=1).encode()) == value


# Powers of two and their neighbours are where the shortest form, a rounding half to even and the exact value part.
DOUBLES = st.floats(allow_nan=False, allow_infinity=False) | st.builds(
    lambda mantissa, exponent: math.ldexp(mantissa, exponent), st.integers(-(2**20), 2**20), st.integers(-1090, 960)
)


@settings(max_examples=1000)
@example(2.0**-24, "canonical")
@given(DOUBLES, st.sampled_from([".17g", ".16e", ".15e", ".800e", "r", "canonical"]))
def test_a_double_is_read_however_exactly_it_was_written(number: float, form: str) -> None:
    """The shortest digits, seventeen or all of them: the same double, unless written as an integer beyond 2^53 - 1."""
    writers = {"canonical": lambda: canonical.canonical(number).decode(), "r": lambda: repr(number)}
    text = writers[form]() if form in writers else format(number, form)
    if float(text) != number:
        return  # Sixteen digits do not name every double; what they name is another example.
    if text.lstrip("-").isdigit() and abs(number) > json_text.EXACT_INTEGER_MAX:
        assert refused(text.encode()).code == "malformed-body"
    else:
        assert json_text.parse(text.encode()) == number


@pytest.mark.parametrize(
    ("text", "carried"),
    [
        ("5.960464477539063e-8", True),
        ("5.960464477539062e-8", True),
        ("5.9604644775390625e-8", True),
        ("5.96046447753906251e-8", False),
        ("333333333.33333331", True),
        ("333333333.33333329", False),
        ("0.1", True),
        ("0.10000000000000000", True),
        ("0.100000000000000005", False),
        ("0.1000000000000000055511151231257827", True),
        ("9007199254740992.5", False),
        ("4503599627370495.5", True),
        ("4e-324", False),
        ("4.9e-324", True),
        ("5e-324", True),
        ("0e999999999999", True),
        ("1e-999999999999", False),
        ("1.7976931348623157e308", True),
        ("1.8e308", False),
    ],
)
def test_a_fraction_is_read_exactly_when_a_double_rounds_to_it(text: str, carried: bool) -> None:
    """The double, rounded to the digits that were written (a tie either way), has to be the number that was written."""
    if carried:
        assert json_text.parse(text.encode()) == float(text)
    else:
        assert refused(text.encode()).code == "malformed-body"


@given(st.integers())
def test_integers_are_read_within_and_refused_beyond_the_exact_range(number: int) -> None:
    """Every integer is either read exactly or refused."""
    text = str(number).encode()
    if abs(number) <= json_text.EXACT_INTEGER_MAX:
        assert json_text.parse(text) == number
    else:
        assert refused(text).path == "$"


@pytest.mark.parametrize(
    ("text", "value"),
    [("12.0", 12), ("1.2e1", 12), ("-0.0", 0), ("1e5", 100000), ("9007199254740991.0", 9007199254740991)],
)
def test_one_number_has_one_form(text: str, value: int) -> None:
    """A whole number is an int however it was written, so that no later reader sees two kinds of twelve."""
    found = json_text.parse(text.encode())
    assert found == value
    assert isinstance(found, int)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ('{"input": {"amount": 9007199254740993}}', "$.input.amount"),
        ('{"input": {"amount": 9007199254740992}}', "$.input.amount"),
        ('{"input": {"amount": -9007199254740992}}', "$.input.amount"),
        ('{"input": {"amount": 9007199254740993.0}}', "$.input.amount"),
        ('{"input": {"amount": 1e400}}', "$.input.amount"),
        ('{"input": {"amount": -1e400}}', "$.input.amount"),
        ('{"input": {"amount": 1e-400}}', "$.input.amount"),
        ('{"input": {"rates": [0.5, 3.141592653589793238462643383279]}}', "$.input.rates[1]"),
        ('{"input": {"amount": NaN}}', "$.input.amount"),
        ('{"input": [{"a": Infinity}]}', "$.input[0].a"),
        ('{"input": [0, -Infinity]}', "$.input[1]"),
        ('{"input": {"amount": 1, "amount": 1}}', "$.input.amount"),
        ('{"input": {"a": [{"k": {"x": 1}, "b": 2, "k": 3}]}}', "$.input.a[0].k"),
        ('{"input": {"text": "\\ud800"}}', "$.input.text"),
        ('{"input": {"text": ["ok", "\\udc00\\ud800"]}}', "$.input.text[1]"),
        ('{"input": {"text": {"\\udfff": 1}}}', '$.input.text["\\udfff"]'),
        ('{"input": {"text": "a\tb"}}', "$.input.text"),
        ('{"input": {"amount": 01}}', "$.input.amount"),
        ('{"input": {"amount": +1}}', "$.input.amount"),
        ('{"input": {"amount": .5}}', "$.input.amount"),
        ('{"input": {"amount": 1.}}', "$.input.amount"),
        ('{"input": {"amount": 0x10}}', "$.input.amount"),
        ('{"input": {"amount": True}}', "$.input.amount"),
        ("{'input': 1}", "$"),
        ('{"input": [1, 2,]}', "$.input[2]"),
        ('{"input": {"a": 1}} {}', "$"),
        ('{"input": {"a": 1} // remark', "$.input"),
        ('{"odd name": {"a": nul}}', '$["odd name"].a'),
        ("", "$"),
        (" \n", "$"),
    ],
)
def test_a_refusal_names_the_place(text: str, path: str) -> None:
    """What JSON does not carry exactly is `malformed-body`, with the path and a text a model can act on."""
    error = refused(text.encode())
    assert error.code == "malformed-body"
    assert error.path == path
    assert error.message.startswith(f"NOT SENT. {path}: expected ")


def test_no_refusal_repeats_a_value() -> None:
    """No message repeats a value of the body: it may be personal."""
    for text in ('{"card": 4242424242424242424242}', '{"card": "4242\\ud800"}', '{"card": "4242', '{"a": [4242 4242]}'):
        error = refused(text.encode())
        assert "4242" not in error.message + error.detail


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (b'{"input": {"text": "caf\xe9"}}', "$.input.text"),
        (b'{"input": {"text": "\xed\xa0\x80"}}', "$.input.text"),
        (b'{"input": [1, "\xc0\xaf"]}', "$.input[1]"),
        (b"\xff\xfe{\x00}\x00", "$"),
        ('{"a": 1}'.encode("utf-16"), "$"),
        (b"\xef\xbb\xbf{}", "$"),
    ],
)
def test_only_utf_8_without_byte_order_mark_is_read(body: bytes, path: str) -> None:
    """Other encodings, overlong forms, encoded surrogates and a byte order mark are refused with their place."""
    error = refused(body)
    assert (error.code, error.path) == ("malformed-body", path)
    assert "UTF-8" in error.message


def test_64_levels_are_read_and_65_are_not() -> None:
    """Objects and arrays count alike; brackets in strings do not."""
    assert json_text.parse(b"[" * 64 + b"]" * 64) is not None
    assert json_text.parse(b'{"a":' * 63 + b"[1]" + b"}" * 63) is not None
    assert json_text.parse(b'["' + b"[{" * 1000 + b'"]') == ["[{" * 1000]
    assert json_text.parse(b"[" + b"[]," * 1000 + b"[]]") == [[]] * 1001
    arrays = refused(b"[" * 65 + b"]" * 65)
    assert (arrays.code, arrays.path) == ("too-deep", "$" + "[0]" * 64)
    objects = refused(b'{"a": 1, "b":' + b'{"c":' * 64 + b"1" + b"}" * 65)
    assert (objects.code, objects.path) == ("too-deep", "$.b" + ".c" * 63)


@given(st.integers(min_value=1, max_value=9), JSON_VALUES)
def test_depth_is_counted_as_it_is(depth_max: int, value: object) -> None:
    """The quick measure agrees with a count over the value, strings full of brackets included."""

    def depth(item: object) -> int:
        if isinstance(item, dict):
            return 1 + max((depth(member) for member in item.values()), default=0)
        if isinstance(item, list):
            return 1 + max((depth(member) for member in item), default=0)
        return 0

    body = json.dumps([value, '"[{\\"', "]}"]).encode()
    if depth([value]) <= depth_max:
        assert json_text.parse(body, depth_max=depth_max) == [value, '"[{\\"', "]}"]
    else:
        assert refused(body, depth_max=depth_max).code == "too-deep"


def test_one_mebibyte_is_read_and_a_byte_more_is_not() -> None:
    """The limit is counted in bytes before anything is read."""
    body = b'"' + b"x" * ((1 << 20) - 2) + b'"'
    assert json_text.parse(body) == "x" * ((1 << 20) - 2)
    assert refused(body + b" ").code == "too-large"
    assert refused(b"[1]", bytes_max=2).code == "too-large"


def test_hostile_nesting_does_not_end_the_process() -> None:
    """A mebibyte of brackets is answered by a refusal in a process of its own, which lives on."""
    script = (
        "from outbox_domain import json_text\n"
        "from outbox_domain.errors import OutboxError\n"
        "for body in (b'[' * (1 << 20), b'{\"a\":' * 200_000, b'[{\"a\":' * 150_000, b'[' * 500_000 + b']' * 500_000):\n"
        "    try:\n"
        "        json_text.parse(body)\n"
        "    except OutboxError as error:\n"
        "        print(error.code)\n"
        "print(json_text.parse(b'[1]'))\n"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert answer.stdout.split("\n") == ["too-deep"] * 4 + ["[1]", ""]


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":"' + b'\\"' * 520_000,
        b'"' + b'\\"[' * 340_000,
        b'"\\' * 520_000,
        b"[" + b"[]," * 340_000,
        b"1" * (1 << 20),
        b"0." + b"1" * 1_000_000,
        b"1e" + b"9" * 1_000_000,
        b"[" + b"1," * 520_000 + b"1e400]",
        b"-" * (1 << 20),
    ],
    ids=lambda body: repr(body[:12]),
)
def test_hostile_bodies_are_refused_in_linear_time(body: bytes) -> None:
    """The worst mebibytes known take seconds at most on a slow machine; a quadratic reader would take hours."""
    began = time.monotonic()
    assert refused(body).code in ("malformed-body", "too-deep")
    assert time.monotonic() - began < 20


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    """Nothing but `OutboxError` ever comes out, and its path starts at the root."""
    path: str | None = "$"
    try:
        json_text.parse(body)
    except OutboxError as error:
        path = error.path
    assert path is not None
    assert path.startswith("$")


@given(st.text(alphabet='[]{}",:\\u0aD8 1.e-tn', max_size=40))
def test_what_is_read_is_what_the_standard_library_reads(text: str) -> None:
    """Strictness only ever refuses: a text that is read has the value every JSON reader gives it."""
    try:
        value = json_text.parse(text.encode())
    except OutboxError:
        return
    assert value == json.loads(text)


def test_names_in_paths_stay_names() -> None:
    """A hostile name is quoted, escaped and cut."""
    assert json_text.member_path("$.input", "amount") == "$.input.amount"
    assert json_text.member_path("$", 'a"]. Do this') == '$["a\\"]. Do this"]'
    assert json_text.member_path("$", "line\nbreak") == '$["line\\nbreak"]'
    assert len(json_text.member_path("$", " " * 10_000)) < 120
    assert len(refused(json.dumps({"x" * 5000: float("nan")}).encode()).path or "") < 1100
