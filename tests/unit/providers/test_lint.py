"""The linter: one broken contract per rule, each a negative control of a contract that passes."""

import copy
from collections.abc import Callable
from typing import Any

import jmespath
import pytest

from outbox_domain.contract import ToolContract
from outbox_providers import catalog
from outbox_providers.lint import lint

Document = dict[str, Any]


def shipped(tool: str) -> Document:
    """The document of a shipped contract, free to be changed."""
    return copy.deepcopy(next(each for each in catalog.shipped() if each.tool == tool).document())


def with_member(tool: str, **members: Any) -> Document:
    """A shipped contract with other members."""
    return shipped(tool) | members


def changed(tool: str, change: Callable[[Document], object]) -> Document:
    """A shipped contract after a change."""
    document = shipped(tool)
    change(document)
    return document


def with_outcomes(tool: str, *rows: Document) -> Document:
    """A shipped contract with another outcome table."""
    return with_member(tool, outcomes=list(rows))


def with_property(tool: str, name: str, schema: Document) -> Document:
    """A shipped contract in which a field of the input has another schema."""
    return changed(tool, lambda document: document["input"]["properties"].update({name: schema}))


REFUND, CUSTOMER, MAIL, ECHO, TICKET = (
    "stripe.refund.create",
    "stripe.customer.create",
    "sendgrid.mail.send",
    "sandbox.echo",
    "sandbox.ticket.create",
)
SUCCEEDED = {"status": [200], "has": "id", "outcome": "succeeded"}
CONFLICT = {"status": [400], "match": "error.type == 'idempotency_error'", "outcome": "unknown"}
REJECTED = {"status": [400], "has": "error.type", "outcome": "rejected"}
TEXT = {"type": "string"}

LABEL, RECORD, MESSAGE, SCHEDULED = (
    "sandbox.label.set",
    "sandbox.record.create",
    "sandbox.message.send",
    "sandbox.mail.schedule",
)


def with_resend(tool: str, **members: Any) -> Document:
    """A shipped contract with other members of its resend."""
    return changed(tool, lambda document: document["recovery"][0]["resend"].update(members))


def with_lookup(tool: str, **members: Any) -> Document:
    """A shipped contract with other members of its lookup."""
    return changed(tool, lambda document: document["recovery"][-1]["lookup"].update(members))


def with_row(tool: str, number: int, **members: Any) -> Document:
    """A shipped contract with other members of one row of its outcome table, counted from 1."""
    return changed(tool, lambda document: document["outcomes"][number - 1].update(members))


def read_by(expression: str) -> Document:
    """A shipped contract that reads its receipt's reference so."""
    return changed(REFUND, lambda document: document["receipt"].update(external_reference=expression))


BROKEN: list[tuple[str, Document, str]] = [
    # What a tool that writes must say.
    ("owner", with_member(REFUND, owner=" "), "has an owner"),
    ("receipt", with_member(REFUND, receipt={"result": shipped(REFUND)["receipt"]["result"]}), "proves the effect"),
    ("compensation", with_member(REFUND, compensation=None), "impossible"),
    ("identity", with_member(REFUND, identity=[]), "says what names its effect"),
    ("identity", with_member(ECHO, identity={"digest": "input", "scope": "environment", "repeat_after": "24h"}), "run scope"),
    ("identity", with_member(ECHO, identity={"digest": "input", "scope": "run"}), "repeat_after"),
    ("identity", with_member(MAIL, identity=shipped(MAIL)["identity"][::-1]), "never reached"),
    ("identity", with_member(TICKET, identity={"key": "ticket", "scope": "environment"}), "key without fields"),
    ("identity", with_member(TICKET, identity={"key": "{reference}", "scope": "environment"}), "begins with a plain word"),
    (
        "identity",
        with_member(REFUND, identity={"key": "refund:{payment_intent}{reference}", "scope": "run"}),
        "at most one field",
    ),
    ("identity", with_member(REFUND, identity={"key": "refund::{payment_intent}", "scope": "run"}), "not empty"),
    ("identity", with_member(TICKET, identity={"key": "t:{reference}:{reference}", "scope": "run"}), "twice"),
    ("key-fields", with_member(REFUND, identity={"key": "refund:{charge}", "scope": "environment"}), "no field of the input"),
    ("key-fields", with_member(REFUND, identity={"key": "refund:{reason}", "scope": "environment"}), "must be required"),
    ("key-fields", with_member(REFUND, identity={"key": "refund:{amount}", "scope": "environment"}), "is the amount"),
    ("key-fields", with_member(TICKET, identity={"key": "ticket:{title}", "scope": "environment"}), "takes free text"),
    ("key-fields", with_property(REFUND, "payment_intent", TEXT), "takes free text"),
    ("key-fields", with_property(REFUND, "payment_intent", {}), "takes free text"),
    ("key-fields", with_property(REFUND, "payment_intent", TEXT | {"pattern": "."}), "takes free text"),
    ("key-fields", with_property(REFUND, "payment_intent", TEXT | {"pattern": "^[a-z ]+$"}), "takes free text"),
    ("key-fields", with_property(CUSTOMER, "email", TEXT | {"maxLength": 512}), "takes free text"),
    ("key-fields", with_property(REFUND, "payment_intent", {"type": "number"}), "a text or a whole number"),
    (
        "key-fields",
        with_property(REFUND, "payment_intent", {"type": "array", "items": {"enum": [1]}}),
        "a text or a whole number",
    ),
    ("key-fields", with_member(REFUND, presentational=["payment_intent"]), "presentational"),
    (
        "key-fields",
        with_member(
            REFUND,
            identity={"key": "refund:{payment_intent}", "scope": "environment", "presentational": ["payment_intent"]},
        ),
        "presentational",
    ),
    # Ways out of doubt.
    ("recovery", with_member(MAIL, recovery=[]), "at least one way out of doubt"),
    ("recovery", with_member(REFUND, recovery=["person"]), "class A recovers by resending"),
    ("recovery", with_member(REFUND, recovery=["person", {"resend": {"within": "23h"}}]), "a person is the last"),
    ("recovery", with_member(REFUND, recovery=[{"resend": {"within": "23h"}}] * 2), "only once"),
    ("recovery", with_member(REFUND, recovery=[{"resend": {"within": "20s"}}]), "more time than one request"),
    ("recovery", with_member(REFUND, recovery=[{"resend": {"within": "23h", "stored_failure": "replayed"}}]), "is a header"),
    ("recovery", with_member(MAIL, recovery=[{"resend": {"within": "23h"}}]), "only class A may be resent"),
    ("recovery", with_member(TICKET, recovery=["person"]), "class B recovers by a lookup"),
    ("recovery", with_member(TICKET, **{"class": "C"}), "with a lookup it is class B"),
    (
        "lookup",
        changed(TICKET, lambda d: d["recovery"][0]["lookup"].update(url="/v1/tickets", match="data")),
        "asks for the marker",
    ),
    ("lookup", changed(TICKET, lambda d: d["recovery"][0]["lookup"].update(settle="0s")), "settle time"),
    ("lookup", changed(TICKET, lambda d: d["recovery"][0]["lookup"].update(match="data[?{marker}")), "no JMESPath"),
    ("lookup", changed(TICKET, lambda d: d["recovery"][0]["lookup"].update(url="//evil/{marker}")), "begins with one slash"),
    ("lookup", changed(REFUND, lambda d: d["recovery"][1]["lookup"].update(url="/r?x={input.reason}")), "no required field"),
    ("lookup", changed(REFUND, lambda d: d["recovery"][1]["lookup"].update(url="/r?x={reference}")), "nobody knows"),
    # Strategies.
    ("recovery", with_resend(MESSAGE, margin="999ms"), "a margin of at least a second"),
    ("recovery", with_resend(MESSAGE, within="7s"), "and the margin"),
    ("recovery", with_resend(MESSAGE, total="5s"), "the total time of a resend"),
    ("recovery", with_lookup(MESSAGE, total="5s"), "the total time of a lookup"),
    ("recovery", with_resend(MESSAGE, pace="0s"), "the pace of a resend"),
    ("recovery", with_lookup(MESSAGE, pace="2m"), "the pace of a lookup"),
    ("strategy", with_resend(MESSAGE, stored_failure="header.X"), "only a provider that replays"),
    ("strategy", with_resend(MESSAGE, settle="30s"), "only the strategy natural has a settle time"),
    ("strategy", changed(MESSAGE, lambda d: d.update(recovery=d["recovery"][:1])), "something follows it"),
    ("strategy", with_row(RECORD, 2, conflict=False), "by which answer it is recognised"),
    ("strategy", changed(RECORD, lambda d: d.update(recovery=d["recovery"][:1])), "reads back what is there"),
    ("strategy", with_lookup(RECORD, same={}), "reads back what is there"),
    (
        "strategy",
        changed(
            RECORD,
            lambda d: (
                d["request"].update(marker={"field": "marker"}),
                d["recovery"][1]["lookup"].update(url="/v1/records?m={marker}"),
            ),
        ),
        "asks for the identity that was chosen",
    ),
    ("strategy", changed(LABEL, lambda d: d.update(object=None)), "names what it sets or removes"),
    ("strategy", with_resend(LABEL, settle="10ms"), "at least a second"),
    ("keys-and-markers", with_resend(LABEL, strategy="replay"), "class A sends a provider key"),
    ("keys-and-markers", changed(RECORD, lambda d: d["request"].update(provider_key=None)), "by the provider key sends one"),
    ("outcomes", with_row(RECORD, 2, outcome="rejected"), "says conflict, which by itself means unknown"),
    ("outcomes", with_lookup(RECORD, same={}), "no lookup reads back"),
    ("outcomes", with_row(REFUND, 4, conflict=True), "no lookup reads back"),
    (
        "conflict-row",
        changed(RECORD, lambda d: d["outcomes"].append(d["outcomes"].pop(1))),
        "the row of a conflict stands before every row that says rejected",
    ),
    ("lookup", with_lookup(RECORD, same={"title[": "{input.title}"}), "no JMESPath"),
    ("lookup", with_lookup(RECORD, same={"title": "{input.headline}"}), "no field of the input"),
    ("lookup", with_lookup(RECORD, body={"id": "{provider_key}"}), "by GET has no body"),
    ("lookup", with_lookup(SCHEDULED, body={"batch": "all"}), "asks for the marker"),
    ("object", changed(LABEL, lambda d: d.update(object="label")), "there would be one of it in all"),
    ("object", changed(LABEL, lambda d: d.update(object="label:{colour}")), "no required field"),
    ("object", changed(LABEL, lambda d: d.update(object="label::{name}")), "not empty"),
    ("object", with_property(LABEL, "name", {"type": "number"}), "a text or a whole number"),
    ("cancel-first", with_lookup(SCHEDULED, covers_later=False), "proves nothing: class C"),
    ("cancel-first", with_lookup(SCHEDULED, method="GET", body=None, url="/v1/x?b={marker}"), "does not use GET"),
    ("cancel-first", with_lookup(SCHEDULED, delay=None), "how long after the request"),
    ("cancel-first", with_lookup(SCHEDULED, margin=None), "how long after the request"),
    ("cancel-first", with_lookup(SCHEDULED, margin="500ms"), "how long after the request"),
    ("cancel-first", with_lookup(SCHEDULED, margin="55s"), "nothing is left"),
    ("cancel-first", with_lookup(SCHEDULED, settle="60s"), "longer than the delay"),
    ("cancel-first", with_lookup(SCHEDULED, same={"text": "{input.text}"}), "compares nothing"),
    ("cancel-first", with_lookup(TICKET, delay="60s"), "only the strategy cancel-first"),
    ("cancel-first", with_lookup(TICKET, method="DELETE"), "does not use DELETE"),
    (
        "cancel-first",
        changed(SCHEDULED, lambda d: d.update({"class": "A", "recovery": [{"resend": {"within": "1h"}}, *d["recovery"]]})),
        "a way of class B",
    ),
    ("doubt", with_member(TICKET, doubt={"attention": "none", "blocks_run": True}), "for ever"),
    # Keys and markers.
    ("keys-and-markers", changed(REFUND, lambda d: d["request"].update(provider_key=None)), "class A sends a provider key"),
    ("keys-and-markers", changed(TICKET, lambda d: d["request"].update(marker=None)), "plants one"),
    ("keys-and-markers", changed(TICKET, lambda d: d["request"].update(marker={"field": "a..b"})), "no path of a field"),
    ("keys-and-markers", changed(MAIL, lambda d: d["request"].update(marker={"field": "content[9].x"})), "not there"),
    ("keys-and-markers", changed(MAIL, lambda d: d["request"].update(marker={"field": "personalizations[0]"})), "ends in a list"),
    ("keys-and-markers", changed(REFUND, lambda d: d["request"].update(marker={"field": "reason[outbox]"})), "is no object"),
    (
        "keys-and-markers",
        changed(REFUND, lambda d: d["request"].update(provider_key={"header": "Content-Length"})),
        "cannot travel",
    ),
    ("keys-and-markers", changed(REFUND, lambda d: d["request"].update(provider_key={"header": "A\r\nB"})), "cannot travel"),
    ("keys-and-markers", changed(REFUND, lambda d: d["request"].update(provider_key=d["request"]["marker"])), "share a field"),
    ("keys-and-markers", changed(REFUND, lambda d: d["request"].update(method="DELETE")), "has no body"),
    ("webhook", changed(REFUND, lambda d: d["webhook"].pop("types")), "names the types of event that prove"),
    ("webhook", changed(REFUND, lambda d: d["webhook"].update(types=["refund created"])), "no type of event"),
    ("webhook", changed(REFUND, lambda d: d["webhook"].update(when="status==")), "no JMESPath"),
    ("webhook", changed(REFUND, lambda d: d["webhook"].update(signature="none")), "signature is one of stripe"),
    ("webhook", changed(REFUND, lambda d: d["request"].pop("marker")), "is found by a marker"),
    # What answers mean.
    ("outcomes", with_outcomes(TICKET, REJECTED), "says when the tool succeeded"),
    ("outcomes", with_outcomes(TICKET, SUCCEEDED | {"status": []}), "names status codes"),
    ("outcomes", with_outcomes(TICKET, SUCCEEDED | {"status": [200, 99]}), "names status codes"),
    ("outcomes", with_outcomes(TICKET, SUCCEEDED, {"status": [418], "outcome": "unsent"}), "says unsent"),
    ("outcomes", with_outcomes(TICKET, SUCCEEDED | {"status": [200, 302]}), "outside 2xx"),
    ("outcomes", with_outcomes(TICKET, SUCCEEDED, {"status": [403], "outcome": "rejected"}), "a proxy's page"),
    ("outcomes", with_outcomes(TICKET, SUCCEEDED, REJECTED | {"status": [202]}), "below 400 without a match"),
    ("outcomes", with_outcomes(TICKET, SUCCEEDED, {"status": [400], "outcome": "deferred"}), "refused before execution"),
    ("outcomes", with_outcomes(TICKET, SUCCEEDED, REJECTED | {"status": [500]}), "makes something certain of 500"),
    ("outcomes", with_outcomes(TICKET, SUCCEEDED, REJECTED | {"status": [408]}), "makes something certain of 408"),
    ("outcomes", with_outcomes(TICKET, SUCCEEDED, {"status": [503], "match": "a", "outcome": "deferred"}), "certain of 503"),
    ("outcomes", with_outcomes(TICKET, SUCCEEDED, REJECTED | {"stored": True}), "says stored"),
    ("outcomes", with_outcomes(REFUND, SUCCEEDED | {"stored": True}, CONFLICT), "says stored"),
    ("outcomes", with_outcomes(TICKET, SUCCEEDED, REJECTED | {"after": "header.Retry-After"}), "an `after`"),
    ("outcomes", with_outcomes(TICKET, SUCCEEDED, {"status": [429], "outcome": "deferred", "after": "wait"}), "an `after`"),
    ("outcomes", with_outcomes(TICKET, SUCCEEDED | {"has": "a[?"}), "no JMESPath"),
    ("outcomes", with_outcomes(TICKET, SUCCEEDED, REJECTED | {"match": "=="}), "no JMESPath"),
    ("outcomes", with_outcomes(TICKET, SUCCEEDED, SUCCEEDED | {"match": "a"}), "row 2 is never reached"),
    ("conflict-row", with_outcomes(REFUND, SUCCEEDED, REJECTED), "conflict answer"),
    ("conflict-row", with_outcomes(REFUND, SUCCEEDED, REJECTED, CONFLICT), "before every row that says rejected"),
    ("conflict-row", with_outcomes(TICKET, SUCCEEDED, REJECTED, CONFLICT), "before every row that says rejected"),
    ("expressions", changed(REFUND, lambda d: d["receipt"].update(external_reference="a.[")), "no JMESPath"),
    ("expressions", changed(REFUND, lambda d: d["receipt"]["result"].update(id="header.")), "no JMESPath"),
    ("expressions", changed(REFUND, lambda d: d["webhook"].update(match="]")), "no JMESPath"),
    ("expressions", read_by("a" * 501), "external_reference has 501 characters; an expression has at most 500"),
    ("expressions", read_by("(" * 400 + "a" + ")" * 400), "at most 500"),
    ("expressions", read_by("!" * 499 + "a"), "external_reference is "),
    ("expressions", read_by("!" * 12 + "a"), "is nested 13 deep; an expression at most 12"),
    ("expressions", read_by("|".join(["[@[],@[]][]"] * 4)), "of 8 members; an expression of at most 6"),
    ("expressions", read_by("to_string(to_string(a))"), "external_reference calls to_string; what is read calls only contains,"),
    ("expressions", read_by("a[*].[nothing(b)]"), "calls nothing"),
    ("expressions", read_by("a[::0]"), "in steps of nothing"),
    ("lookup", with_lookup(TICKET, match="data[?join('{marker}', keys(@))]"), "calls join"),
    # What the tool takes.
    ("schema", changed(REFUND, lambda d: d["input"].update(type="list")), "no JSON Schema"),
    ("schema", changed(REFUND, lambda d: d["input"].update(type="array")), "the input is an object"),
    ("schema", with_property(REFUND, "x", {"$ref": "https://example.com/schema.json"}), "stands alone"),
    ("schema", with_property(REFUND, "x", {"$ref": "file:///etc/passwd"}), "stands alone"),
    ("schema", with_property(REFUND, "x", TEXT | {"pattern": "(?=a)b"}), "no JSON Schema"),
    ("schema", with_property(REFUND, "x", TEXT | {"format": "emial"}), "no JSON Schema"),
    ("schema", changed(REFUND, lambda d: d["input"].pop("additionalProperties")), "does not say whether it takes unknown"),
    ("schema", changed(REFUND, lambda d: d["input"].update(additionalProperties=True)), "takes unknown fields"),
    ("schema", with_property(TICKET, "x", {"type": "object"}), "input.x does not say"),
    ("schema", with_property(TICKET, "x", {"type": "array", "items": {"properties": {}}}), "input.x.items does not say"),
    ("schema", with_property(CUSTOMER, "x", {"type": "object", "additionalProperties": TEXT}), "propertyNames"),
    ("schema", with_property(TICKET, "x", {"anyOf": [{"default": 1}]}), "default that is never filled"),
    ("fields", with_member(REFUND, declared=["payment_intent", "charge"]), "declared names charge"),
    ("fields", with_member(REFUND, personal=["e_mail"]), "personal names e_mail"),
    ("fields", with_member(REFUND, presentational=["note"]), "presentational names note"),
    ("fields", with_member(CUSTOMER, normalise={"mail": ["trim"]}), "normalise names mail"),
    ("fields", changed(MAIL, lambda d: d["identity"][0].update(presentational=["body"])), "presentational names body"),
    ("money", changed(REFUND, lambda d: d["input"].update(required=["payment_intent"])), "is optional"),
    ("money", with_member(REFUND, amount=None, summary=""), "no amount rule"),
    ("money", with_member(REFUND, amount={"value": "input.sum", "currency": "EUR"}), "input.sum is no field"),
    ("money", with_property(REFUND, "amount", {"type": "number", "minimum": 1}), "whole number of minor units"),
    ("money", with_property(REFUND, "amount", {"type": "integer"}), "minimum"),
    ("money", with_member(REFUND, presentational=["amount"]), "is presentational"),
    ("money", with_member(REFUND, amount={"value": "input.amount", "currency": "input.currency"}), "must be a required field"),
    ("money", with_member(REFUND, amount={"value": "input.amount", "currency": "eur"}), "three capital letters"),
    ("money", changed(REFUND, lambda d: d["amount"].update(check="result.money")), "no member of the receipt's result"),
    ("texts", with_member(REFUND, summary="Refund of {input.payment_intent}"), "may name only result"),
    ("texts", with_member(REFUND, summary="Refund {result.charge}"), "does not keep"),
    ("texts", with_member(TICKET, summary="Ticket of {amount}"), "moves none"),
    ("texts", with_member(CUSTOMER, links={"mail": "mailto:{input.email}"}), "is personal"),
    ("texts", with_member(REFUND, links={"x": "https://x.example/{input.charge}"}), "nobody knows"),
    # How it is sent.
    ("request", changed(REFUND, lambda d: d["request"].update(url="v1/refunds")), "begins with one slash"),
    ("request", changed(REFUND, lambda d: d["request"].update(url="//evil.example/v1")), "begins with one slash"),
    ("request", changed(REFUND, lambda d: d["request"].update(url="/v1/a b")), "no space"),
    ("request", changed(REFUND, lambda d: d["request"].update(url="/v1/{input.reason}")), "no required field"),
    ("request", changed(REFUND, lambda d: d["request"].update(url="/v1/{host}")), "nobody knows"),
    ("request", changed(REFUND, lambda d: d["request"].update(url="/v1/{0}")), "no placeholder"),
    ("request", changed(REFUND, lambda d: d["request"].update(deadline="0s")), "has a deadline"),
    ("request", changed(REFUND, lambda d: d["request"].update(method="GET")), "does not use GET"),
    ("request", changed(REFUND, lambda d: d["request"].update(method="DELETE")), "would not be sent"),
    ("request", changed(REFUND, lambda d: d["request"].update(headers={"Host": "evil.example"})), "cannot be fixed"),
    ("request", changed(REFUND, lambda d: d["request"].update(headers={"X-A": "1\r\nX-B: 2"})), "cannot be fixed"),
    ("request", changed(REFUND, lambda d: d["request"].update(credential={"header": "A B"})), "credential's header"),
    ("request", changed(MAIL, lambda d: d["request"]["body"].update(extra="{input.cc}")), "the body names input.cc"),
    ("request", changed(MAIL, lambda d: d["request"]["body"].pop("subject")), "leaves out the input's subject"),
]


def test_what_an_expression_makes_of_an_answer_is_bounded() -> None:
    """What passes multiplies an answer nine times at most; what multiplies it more often, in as few characters, does not pass."""
    answer = {"a": list(range(100))}
    passes, refused = "a|[@[],@[],@[]][]|[@[],@[],@[]][]", "a" + "|[@[],@[]][]" * 8
    assert lint(ToolContract.from_document(read_by(passes))) == []
    assert len(jmespath.search(passes, answer)) == 9 * 100
    assert len(jmespath.search(refused, answer)) == 256 * 100
    assert lint(ToolContract.from_document(read_by(refused))) != []


@pytest.mark.parametrize(
    ("rule", "document", "sentence"), BROKEN, ids=[f"{index}-{each[0]}" for index, each in enumerate(BROKEN)]
)
def test_a_broken_contract_is_found(rule: str, document: Document, sentence: str) -> None:
    """Each rule finds the contract that breaks it, by name and with a sentence."""
    findings = lint(ToolContract.from_document(document))
    assert [finding for finding in findings if finding.startswith(f"{rule}: ") and sentence in finding], findings


@pytest.mark.parametrize("tool", [REFUND, CUSTOMER, MAIL, ECHO, TICKET])
def test_the_unbroken_contract_passes(tool: str) -> None:
    """The control: the contracts that the broken ones were made from have no finding."""
    assert lint(ToolContract.from_document(shipped(tool))) == []


@pytest.mark.parametrize(
    "field",
    [
        {"enum": ["a", "b"]},
        {"const": "only"},
        TEXT | {"pattern": "^pi_"},
        TEXT | {"format": "uuid"},
        TEXT | {"format": "email"},
        {"type": "integer", "minimum": 1},
        {"$ref": "#/$defs/intent"},
    ],
)
def test_what_names_a_thing_may_be_a_key_field(field: Document) -> None:
    """Enums, constants, patterns, formats and whole-number ids name things; a local reference is followed."""
    document = with_property(REFUND, "payment_intent", field)
    document["input"]["$defs"] = {"intent": TEXT | {"pattern": "^pi_"}}
    assert lint(ToolContract.from_document(document)) == []


def test_fixed_text_may_stand_beside_one_field() -> None:
    """One field in a segment stays told apart from its neighbours, whatever word stands before it."""
    document = with_member(REFUND, identity={"key": "refund:v2-{payment_intent}:{reference}", "scope": "environment"})
    assert lint(ToolContract.from_document(document)) == []


def test_the_reference_needs_no_schema() -> None:
    """`{reference}` is set by the caller's code and never by a model, so it may be the whole key."""
    assert shipped(TICKET)["identity"][0]["key"] == "ticket:{reference}"
    assert lint(ToolContract.from_document(shipped(TICKET))) == []


def test_a_tool_that_only_reads_needs_no_identity() -> None:
    """Reads make no reservation: no owner, identity, receipt, recovery or compensation is asked of them."""
    document = {
        "tool": "stripe.refund.list",
        "version": 1,
        "kind": "read",
        "input": {"type": "object", "required": ["payment_intent"], "properties": {"payment_intent": {"type": "string"}}},
        "class": "C",
        "request": {"driver": "http_form", "method": "GET", "url": "/v1/refunds?p={input.payment_intent}", "deadline": "5s"},
    }
    assert lint(ToolContract.from_document(document)) == []


def test_an_open_nested_object_passes_only_under_a_digest() -> None:
    """Where the whole input is the identity an unknown field cannot slip past it."""
    free = {"type": "object", "additionalProperties": True}
    document = shipped(ECHO)
    document["input"]["properties"] = {"x": free}
    assert lint(ToolContract.from_document(document)) == []
    assert lint(ToolContract.from_document(with_property(TICKET, "x", free))) != []
