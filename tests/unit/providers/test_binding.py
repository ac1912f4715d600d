"""Binding: the input fits the contract, or the call is refused with the path and without the value."""

import copy
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox_domain.binding import EXACT_INTEGER_MAX, BoundInput, bind
from outbox_domain.contract import ToolContract
from outbox_domain.errors import OutboxError
from outbox_providers import catalog

CANARY = "canary-7d1f personal words"


def shipped(tool: str) -> ToolContract:
    """The shipped contract of a tool."""
    return next(each for each in catalog.shipped() if each.tool == tool)


def taking(schema: dict[str, Any], **members: Any) -> ToolContract:
    """A contract with this input schema."""
    return ToolContract.from_document(shipped("sandbox.echo").document() | {"input": {"type": "object"} | schema} | members)


def refusal(contract: ToolContract, value: object, currency: str | None = "EUR") -> OutboxError:
    """The refusal of an input."""
    with pytest.raises(OutboxError) as caught:
        bind(contract, value, connection_currency=currency)
    return caught.value


REFUND = {"payment_intent": "pi_3Nx", "amount": 1200}


@pytest.mark.parametrize(
    ("change", "path", "expected"),
    [
        ({"amount": None}, "$.input.amount", "the type integer"),
        ({"amount": "1200"}, "$.input.amount", "the type integer"),
        ({"amount": True}, "$.input.amount", "the type integer"),
        ({"amount": 12.5}, "$.input.amount", "the type integer"),
        ({"amount": 0}, "$.input.amount", "at least 1"),
        ({"amount": -5}, "$.input.amount", "at least 1"),
        ({"amount": math.nan}, "$.input.amount", "a finite number"),
        ({"amount": -math.inf}, "$.input.amount", "a finite number"),
        ({"amount": EXACT_INTEGER_MAX + 1}, "$.input.amount", "a number that JSON carries exactly (at most 9007199254740991)"),
        ({"payment_intent": CANARY}, "$.input.payment_intent", "text that matches ^pi_"),
        ({"payment_intent": ["pi_1"]}, "$.input.payment_intent", "the type string"),
        ({"payment_intent": "pi_\ud800"}, "$.input.payment_intent", "text without lone surrogates"),
        ({"reason": CANARY}, "$.input.reason", 'one of ["duplicate", "fraudulent", "requested_by_customer"]'),
        ({"charge": CANARY}, "$.input.charge", "no such field"),
        ({"x y": CANARY}, '$.input["x y"]', "no such field"),
        ({'"\r\nInjected: 1': 1}, '$.input["\\"\\r\\nInjected: 1"]', "no such field"),
    ],
)
def test_a_refused_input_names_its_path(change: dict[str, Any], path: str, expected: str) -> None:
    """The refusal says where and what was expected, for the developer and for the model, and repeats no value."""
    error = refusal(shipped("stripe.refund.create"), REFUND | change)
    assert (error.code, error.path) == ("invalid-input", path)
    assert error.message == f"NOT SENT. {path}: expected {expected}."
    assert CANARY not in error.message + error.detail + str(error) + str(error.fields)


@pytest.mark.parametrize("missing", ["amount", "payment_intent"])
def test_money_and_key_fields_cannot_be_left_out(missing: str) -> None:
    """A refund without an amount would refund everything."""
    error = refusal(shipped("stripe.refund.create"), {name: value for name, value in REFUND.items() if name != missing})
    assert error.path == f"$.input.{missing}"
    assert error.message == f"NOT SENT. $.input.{missing}: expected this field to be present."


@pytest.mark.parametrize("value", [[], "text", 3, None, True])
def test_an_input_is_an_object(value: object) -> None:
    """Everything else is refused at the root."""
    assert refusal(shipped("sandbox.echo"), value).path == "$.input"
    assert refusal(shipped("stripe.refund.create"), value).path == "$.input"


def test_a_path_leads_into_lists_and_objects() -> None:
    """The path is the one a developer would write."""
    schema = {
        "properties": {
            "items": {"type": "array", "items": {"type": "object", "properties": {"price": {"type": "integer"}}}},
        },
    }
    assert refusal(taking(schema), {"items": [{"price": 1}, {"price": "x"}]}).path == "$.input.items[1].price"


def test_alternatives_that_lack_a_field_are_told_apart() -> None:
    """A mail without text and html is told which fields would do."""
    mail = {"from": "a@b.example", "to": "c@d.example", "subject": "s"}
    error = refusal(shipped("sendgrid.mail.send"), mail)
    assert error.message == "NOT SENT. $.input: expected one of these fields to be present: text, html."


def test_an_input_too_deep_is_refused() -> None:
    """Sixty-four levels are carried, one more is not, and nothing overflows far beyond."""
    echo = shipped("sandbox.echo")

    def nested(levels: int) -> dict[str, Any]:
        value: dict[str, Any] = {}
        for _ in range(levels - 1):
            value = {"a": value}
        return value

    bind(echo, nested(64))
    assert refusal(echo, nested(65)).code == "too-deep"
    assert refusal(echo, nested(100_000)).code == "too-deep"


def test_equal_numbers_become_equal() -> None:
    """12.0 is 12 in JSON's data model: bound, digested and sent alike. Fractions and huge doubles stay."""
    value = bind(shipped("sandbox.echo"), {"a": 12.0, "b": [-0.0], "c": 1.5, "d": 1e300, "e": True}).value
    assert value == {"a": 12, "b": [0], "c": 1.5, "d": 1e300, "e": True}
    assert [type(value["a"]), type(value["b"][0]), type(value["e"])] == [int, int, bool]
    assert str(value["b"][0]) == "0"
    assert bind(shipped("stripe.refund.create"), REFUND | {"amount": 1200.0}, connection_currency="EUR").amount == 1200


def test_defaults_are_filled_and_never_shared() -> None:
    """Defaults reach nested objects and items; a changed result changes no later one; the caller's input stays as it was."""
    schema = {
        "properties": {
            "mode": {"type": "string", "default": "plain"},
            "tags": {"type": "array", "default": [], "items": {"type": "object", "properties": {"n": {"default": 1}}}},
            "inner": {"type": "object", "properties": {"flag": {"default": False}}},
        },
    }
    contract = taking(schema)
    given_input: dict[str, Any] = {"inner": {}, "tags": [{}, {"n": 2}]}
    before = copy.deepcopy(given_input)
    bound = bind(contract, given_input)
    assert bound.value == {"inner": {"flag": False}, "mode": "plain", "tags": [{"n": 1}, {"n": 2}]}
    assert given_input == before
    first = bind(contract, {}).value
    first["tags"].append("x")
    assert bind(contract, {}).value == {"mode": "plain", "tags": []}


@pytest.mark.parametrize(
    ("normaliser", "text", "result"),
    [
        ("trim", " \t a b \n", "a b"),
        ("lowercase", "A.Berg@Example.ORG", "a.berg@example.org"),
        ("uppercase", "eur", "EUR"),
        ("nfc", "e\u0301", "\u00e9"),
        ("collapse_spaces", " a \n  b ", "a b"),
        ("decimal", "0012.500", "12.5"),
        ("decimal", "-0.00", "0"),
        ("decimal", "+7", "7"),
        ("decimal", "-7.10", "-7.1"),
    ],
)
def test_normalisers(normaliser: str, text: str, result: str) -> None:
    """Each normaliser brings spellings of one value to one spelling, and is stable when applied again."""
    contract = taking({"properties": {"x": {"type": "string"}}}, normalise={"x": [normaliser]})
    assert bind(contract, {"x": text}).value == {"x": result}
    assert bind(contract, {"x": result}).value == {"x": result}
    assert bind(contract, {}).value == {}


@pytest.mark.parametrize("text", ["", ".5", "5.", "1e5", "NaN", "Infinity", "1_000", "٣", "1" * 41])
def test_a_decimal_is_plain_digits(text: str) -> None:
    """What only some parsers take for a number is refused."""
    contract = taking({"properties": {"x": {"type": "string"}}}, normalise={"x": ["decimal"]})
    if text == "٣":
        # Digits of other scripts are digits to Unicode; they come out as ours, so that one number has one spelling.
        assert bind(contract, {"x": text}).value == {"x": "3"}
    else:
        assert refusal(contract, {"x": text}).path == "$.input.x"


def test_a_normalised_value_is_validated_again() -> None:
    """A name of blanks has the length before trimming and not after."""
    error = refusal(shipped("stripe.customer.create"), {"email": "a@b.example", "name": "   "})
    assert (error.path, error.message) == ("$.input.name", "NOT SENT. $.input.name: expected at least 1 characters.")


def test_a_stray_blank_names_no_second_refund() -> None:
    """The payment is a key field that a model writes: white space behind it is none of its name."""
    contract = shipped("stripe.refund.create")
    for written in ("pi_3Nx", "pi_3Nx ", "pi_3Nx\n", "pi_3Nx\u00a0"):
        bound = bind(contract, {"payment_intent": written, "amount": 1200}, connection_currency="EUR")
        assert bound.value["payment_intent"] == "pi_3Nx"


def test_a_customer_is_named_by_a_normalised_address() -> None:
    """Spellings of one address bind to one value; prose and several addresses are none."""
    customer = shipped("stripe.customer.create")
    assert bind(customer, {"email": " A.Berg@Example.ORG "}).value == {"email": "a.berg@example.org"}
    for wrong in ("a.berg", "a@b@c", "a b@c.example", "a@b.example, c@d.example", "@", "a@", ""):
        assert refusal(customer, {"email": wrong}).path == "$.input.email"


def test_names_of_metadata_cannot_leave_their_brackets() -> None:
    """A chosen name with brackets would address another field of the form."""
    for name in ("x][outbox", "outbox]", "", "a b", "é", "x" * 41):
        error = refusal(shipped("stripe.customer.create"), {"email": "a@b.example", "metadata": {name: "1"}})
        assert error.path == "$.input.metadata"


def test_a_mail_subject_is_one_line() -> None:
    """A line break in a subject would begin another header of the mail."""
    mail = {"from": "a@b.example", "to": "c@d.example", "subject": "Hello\r\nBcc: e@f.example", "text": "t"}
    assert refusal(shipped("sendgrid.mail.send"), mail).path == "$.input.subject"


def test_money_resolves_to_a_value_and_a_currency() -> None:
    """The connection's currency in capitals; without one the refund is refused, not sent in whatever currency."""
    refund = shipped("stripe.refund.create")
    assert bind(refund, REFUND, connection_currency="eur") == BoundInput(value=REFUND, amount=1200, currency="EUR")
    for currency in (None, "", "EURO", "€"):
        assert refusal(refund, REFUND, currency).path == "$.connection"
    from_input = taking(
        {"properties": {"sum": {"type": "object"}, "currency": {"type": "string"}}},
        amount={"value": "input.sum.minor", "currency": "input.currency"},
    )
    bound = bind(from_input, {"sum": {"minor": 5}, "currency": "usd"})
    assert (bound.amount, bound.currency) == (5, "USD")
    assert refusal(from_input, {"sum": {}, "currency": "usd"}).path == "$.input.sum.minor"
    assert refusal(from_input, {"sum": {"minor": -5}, "currency": "usd"}).path == "$.input.sum.minor"
    assert refusal(from_input, {"sum": {"minor": 5}}).path == "$.input.currency"
    fixed = taking({}, amount={"value": "input.minor", "currency": "CHF"})
    assert bind(fixed, {"minor": 5}).currency == "CHF"
    assert bind(shipped("sandbox.echo"), {}, connection_currency="EUR") == BoundInput(value={}, amount=None, currency=None)


def test_a_bound_input_does_not_print_itself() -> None:
    """Inputs pass near logs; their printed form says nothing."""
    assert CANARY not in repr(bind(shipped("sandbox.echo"), {"x": CANARY}))


def test_two_contracts_of_one_name_never_share_a_schema() -> None:
    """Two organizations may declare one name and version differently; each is validated by its own schema."""
    numbers = taking({"properties": {"x": {"type": "integer"}}})
    texts = taking({"properties": {"x": {"type": "string"}}})
    assert (numbers.tool, numbers.version) == (texts.tool, texts.version)
    assert bind(numbers, {"x": 1}).value == {"x": 1}
    assert bind(texts, {"x": "1"}).value == {"x": "1"}
    assert refusal(texts, {"x": 1}).path == "$.input.x"


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-EXACT_INTEGER_MAX, EXACT_INTEGER_MAX)
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), json_values, max_size=4))
def test_binding_is_stable(value: dict[str, Any]) -> None:
    """What was bound binds to itself: a stored input can be bound again without becoming another effect."""
    echo = shipped("sandbox.echo")
    once = bind(echo, value).value
    assert once == value
    assert bind(echo, once).value == once
