"""The linter of tool contracts: what a contract must say before a gateway may promise anything about the tool (design 5 and 13).

Each rule is one function that yields sentences; `lint` puts the rule's name before each. A contract without findings is safe to
load; the shipped catalog is loaded only without findings.
"""

import copy
import json
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any

import jmespath.exceptions
import jsonschema_rs

from outbox_domain.binding import input_validator
from outbox_domain.contract import PLACEHOLDER, CredentialHeader, IdentityRule, OutcomeRule, ToolContract, placeholders
from outbox_domain.identity import template_segments
from outbox_domain.reservation import Outcome
from outbox_providers.driver import RESERVED_HEADERS
from outbox_providers.reading import expression, header_name
from outbox_providers.templates import WHEN, field_steps, plant
from outbox_providers.webhooks import EVENT_TYPE, SIGNATURE_HEADERS

_FREE_TEXTS = ("Sorry, the parcel was late; please see to it.", "sorry the parcel was late", "Für A. Berg, wie besprochen")
_HEADER_NAME = re.compile(r"[A-Za-z0-9-]{1,100}")
_HEADER_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e]{0,4094}[\x21-\x7e])?")
_CURRENCY = re.compile(r"[A-Z]{3}")
_DEFERRED_STATUS = frozenset({401, 403, 409, 425, 429})
_OUTSIDE_NAMES = frozenset({"reference", "run", "marker", "provider_key"})
MARGIN_LEAST = timedelta(seconds=1)
"""What a contract must leave at least of a provider's window, and before a due time, for the pause of a process and the way."""

PACE_MOST = timedelta(minutes=1)
"""Between two doubts of a connection: a longer pause would leave hundreds of them for days."""

EXPRESSION_CHARACTERS_MAX = 500
EXPRESSION_DEPTH_MAX = 12
EXPRESSION_MEMBERS_MAX = 6
EXPRESSION_FUNCTIONS = frozenset({"contains", "ends_with", "keys", "length", "not_null", "starts_with", "type", "values"})
"""What no expression needs that grows with an answer faster than the answer: all others can make more of it than it is."""

_SUBSCHEMA_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SUBSCHEMA_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_SUBSCHEMAS = (
    *("items", "additionalProperties", "propertyNames", "not", "if", "then", "else", "contains"),
    *("unevaluatedProperties", "unevaluatedItems"),
)

Rule = Callable[[ToolContract], Iterator[str]]


def lint(contract: ToolContract) -> list[str]:
    """Examines a contract.

    Args:
        contract: the contract.

    Returns:
        One finding per broken rule and place, each `rule: sentence`; empty when the contract may be loaded.
    """
    findings = [f"{name}: {sentence}" for name, rule in _RULES_OF_ALL.items() for sentence in rule(contract)]
    if contract.kind != "read":
        findings += [f"{name}: {sentence}" for name, rule in _RULES_OF_WRITES.items() for sentence in rule(contract)]
    return findings


# What a tool that writes must say.


def _owner(contract: ToolContract) -> Iterator[str]:
    if not contract.owner.strip():
        yield "a tool that writes has an owner, who is paged"


def _receipt(contract: ToolContract) -> Iterator[str]:
    if not contract.receipt.external_reference:
        yield "a tool that writes names the field of the answer that proves the effect"


def _compensation(contract: ToolContract) -> Iterator[str]:
    if contract.compensation is None:
        yield "a tool that writes names the tool that undoes it, or says `impossible`"


def _identity(contract: ToolContract) -> Iterator[str]:
    if not contract.identity:
        yield "a tool that writes says what names its effect"
    for number, rule in enumerate(contract.identity, 1):
        if rule.digest is not None and (rule.scope != "run" or rule.repeat_after is None):
            yield f"identity {number} is a digest of the input, so it needs run scope and a repeat_after"
        if rule.digest is not None and number < len(contract.identity):
            yield f"identity {number} is a digest, which every input has; what stands after it is never reached"
        if rule.key is not None:
            yield from _key_shape(rule.key, number)


def _key_shape(key: str, number: int) -> Iterator[str]:
    names = placeholders(key)
    if not names:
        yield f"identity {number} has a key without fields: every call would be the same effect"
    try:
        first, *_ = template_segments(key)
    except ValueError as error:
        yield f"identity {number}: {error}"
        return
    if first.field is not None:
        yield f"identity {number} begins with a plain word that says what kind of effect it names"
    if len(set(names)) != len(names):
        yield f"identity {number} names a field twice"


def _key_fields(contract: ToolContract) -> Iterator[str]:
    key_rules = [rule for rule in contract.identity if rule.key is not None]
    has_fallback = any(rule.digest is not None for rule in contract.identity)
    for rule in key_rules:
        for name in rule.fields:
            if name == "reference":
                # The caller's own name of the case, set by code and never by a model (interfaces.md section 1).
                continue
            field = _field(contract.input, name)
            if field is None:
                yield f"the key field {name} is no field of the input"
                continue
            if rule is key_rules[-1] and not has_fallback and not _is_required(contract.input, name):
                yield f"the key field {name} must be required: without it the effect has no name"
            yield from _key_field_kind(contract, rule, name, field)


def _key_field_kind(contract: ToolContract, rule: IdentityRule, name: str, field: Mapping[str, Any]) -> Iterator[str]:
    presentational = rule.presentational if rule.presentational is not None else contract.presentational
    if name in presentational:
        yield f"the key field {name} is presentational, which stands outside identity"
    if contract.amount is not None and contract.amount.value == f"input.{name}":
        yield f"the key field {name} is the amount, which a model can vary"
    if any(_accepts(contract.input, field, text) for text in _FREE_TEXTS):
        yield f"the key field {name} takes free text, which a model can vary; give it an enum, a pattern or a format"
    if _accepts(contract.input, field, 1.5) or _accepts(contract.input, field, []) or _accepts(contract.input, field, {}):
        yield f"the key field {name} must be a text or a whole number"


def _recovery(contract: ToolContract) -> Iterator[str]:
    ways = [rule.way for rule in contract.recovery]
    if not ways:
        yield "a tool that writes has at least one way out of doubt"
    if len(set(ways)) != len(ways):
        yield "a way out of doubt stands only once"
    if "person" in ways[:-1]:
        yield "a person is the last way out of doubt"
    resend = contract.resend
    if contract.guarantee_class == "A" and resend is None:
        yield "class A recovers by resending"
    if contract.guarantee_class != "A" and resend is not None:
        yield "only class A may be resent"
    if resend is not None and resend.margin < MARGIN_LEAST:
        yield "a resend leaves a margin of at least a second"
    if resend is not None and resend.within <= contract.request.deadline + resend.margin:
        yield "a resend needs more time than one request may take and the margin"
    if resend is not None and resend.stored_failure is not None and header_name(resend.stored_failure) is None:
        yield "stored_failure is a header (`header.Name`)"
    if contract.guarantee_class == "B" and contract.lookup is None:
        yield "class B recovers by a lookup"
    if contract.guarantee_class == "C" and contract.lookup is not None:
        yield "class C cannot be looked up; with a lookup it is class B"
    for rule in (resend, contract.lookup):
        if rule is not None and rule.total is not None and rule.total <= contract.request.deadline:
            yield f"the total time of a {rule.way} is longer than one request may take"
        if rule is not None and rule.pace is not None and not timedelta(0) < rule.pace <= PACE_MOST:
            yield f"the pace of a {rule.way} is between nothing and a minute"


def _strategy(contract: ToolContract) -> Iterator[str]:
    resend, lookup = contract.resend, contract.lookup
    if resend is None:
        return
    if resend.strategy != "replay" and resend.stored_failure is not None:
        yield f"only a provider that replays has a stored_failure, not one of the strategy {resend.strategy}"
    if resend.settle is not None and resend.strategy != "natural":
        yield "only the strategy natural has a settle time of its own; elsewhere the lookup says it"
    match resend.strategy:
        case "conflict":
            if not any(row.conflict for row in contract.outcomes):
                yield "under the strategy conflict a row of the outcomes says by which answer it is recognised (`conflict`)"
            if lookup is None or not lookup.same:
                yield "under the strategy conflict a lookup reads back what is there and compares it (`same`)"
            elif "{provider_key}" not in lookup.url + lookup.match + json.dumps(lookup.body):
                yield "under the strategy conflict the lookup asks for the identity that was chosen ({provider_key})"
        case "natural":
            if contract.object_key is None:
                yield "under the strategy natural the contract names what it sets or removes (`object`)"
            if resend.settle is not None and resend.settle < MARGIN_LEAST:
                yield "under the strategy natural the settle time is at least a second"
        case "window":
            if contract.recovery[-1] is resend:
                yield "under the strategy window something follows it: a lookup, or a person"
        case _:
            pass


def _object(contract: ToolContract) -> Iterator[str]:
    if contract.object_key is None:
        return
    names = placeholders(contract.object_key)
    if not names:
        yield "the object has no field: there would be one of it in all"
    try:
        template_segments(contract.object_key)
    except ValueError as error:
        yield f"the object: {error}"
    for name in names:
        field = _field(contract.input, name)
        if field is None or not _is_required(contract.input, name):
            yield f"the object's field {name} is no required field of the input"
        elif _accepts(contract.input, field, 1.5) or _accepts(contract.input, field, []) or _accepts(contract.input, field, {}):
            yield f"the object's field {name} must be a text or a whole number"


def _cancel_first(contract: ToolContract) -> Iterator[str]:
    lookup = contract.lookup
    if lookup is None:
        return
    if not lookup.cancels:
        if lookup.delay is not None or lookup.margin is not None or lookup.covers_later:
            yield "only the strategy cancel-first has a delay, a margin and covers_later"
        if lookup.method not in ("GET", "POST"):
            yield f"a lookup that only asks does not use {lookup.method}"
        return
    if contract.guarantee_class != "B":
        yield "cancel-first is a way of class B"
    if lookup.method == "GET":
        yield "a cancellation does not use GET"
    if not lookup.covers_later:
        yield "a cancellation that does not also stop a request arriving after it (`covers_later: true`) proves nothing: class C"
    if lookup.delay is None or lookup.margin is None or lookup.margin < MARGIN_LEAST:
        yield "cancel-first says how long after the request the effect comes (`delay`) and how long before it stops (`margin`)"
    elif lookup.cancel_within <= contract.request.deadline:
        yield "between the request's deadline and the time to stop cancelling nothing is left"
    if lookup.delay is not None and lookup.settle <= lookup.delay:
        yield "the settle time is longer than the delay: before the effect is due nobody sees it"
    if lookup.same or lookup.more is not None:
        yield "a cancellation compares nothing and has no further page"


def _doubt(contract: ToolContract) -> Iterator[str]:
    blocked = contract.doubt is not None and contract.doubt.blocks_run
    if blocked and contract.attention == "none":
        yield "a doubt that blocks its run and disturbs nobody would hold it up for ever"


def _lookup(contract: ToolContract) -> Iterator[str]:
    lookup = contract.lookup
    if lookup is None:
        return
    asks = lookup.url + lookup.match + json.dumps(lookup.body)
    if "{marker}" not in asks and (lookup.cancels or "{provider_key}" not in asks):
        yield "a lookup asks for the marker"
    if lookup.body is not None and lookup.method in ("GET", "DELETE"):
        yield f"a lookup by {lookup.method} has no body"
    for name in placeholders(json.dumps([lookup.body, list(lookup.same.values())])):
        known = name.startswith("input.") and _field(contract.input, name.removeprefix("input.")) is not None
        if not known and name not in _OUTSIDE_NAMES:
            yield f"the lookup names {name}, which is no field of the input"
    for place in lookup.same:
        yield from _expression_findings("the lookup's same", place)
    if lookup.settle <= timedelta(0):
        yield "a lookup has a settle time: before it an absence proves nothing"
    yield from (f"the lookup's {finding}" for finding in _address(contract, lookup.url, {"marker", "provider_key"}))
    match = lookup.match.replace("{marker}", "obx").replace("{provider_key}", "obx")
    yield from _expression_findings("the lookup's match", match)
    if lookup.more is not None:
        yield from _expression_findings("the lookup's more", lookup.more)


def _webhook(contract: ToolContract) -> Iterator[str]:
    """A webhook settles a doubt for good, so a contract says which ones may."""
    rule = contract.webhook
    if rule is None:
        return
    if rule.signature not in SIGNATURE_HEADERS:
        yield f"the webhook's signature is one of {', '.join(SIGNATURE_HEADERS)}"
    if contract.request.marker is None:
        yield "what a webhook tells of is found by a marker, so one is planted"
    if not rule.types:
        yield "the webhook names the types of event that prove the effect; a failed one is told of by the same marker"
    for kind in rule.types:
        if EVENT_TYPE.fullmatch(kind) is None:
            yield f"the webhook's {kind[:100]!r} is no type of event"
    if rule.when is not None:
        yield from _expression_findings("the webhook's when", rule.when)


def _keys_and_markers(contract: ToolContract) -> Iterator[str]:
    request = contract.request
    if contract.guarantee_class == "A" and request.provider_key is None and not _is_natural(contract):
        yield "class A sends a provider key, unless it sets something absolutely"
    asks = "" if contract.lookup is None else contract.lookup.url + contract.lookup.match + json.dumps(contract.lookup.body)
    if "{marker}" in asks and request.marker is None:
        yield "what is looked up by a marker plants one"
    if "{provider_key}" in asks and request.provider_key is None:
        yield "what is looked up by the provider key sends one"
    fields = [rule.field for rule in (request.provider_key, request.marker) if rule is not None and rule.field is not None]
    if len(set(fields)) != len(fields):
        yield "the provider key and the marker cannot share a field"
    for path in fields:
        yield from _plantable(contract, path)
    header = request.provider_key.header if request.provider_key is not None else None
    if header is not None and (_HEADER_NAME.fullmatch(header) is None or header.lower() in RESERVED_HEADERS):
        yield f"the provider key cannot travel in the header {header}"


def _is_natural(contract: ToolContract) -> bool:
    return contract.resend is not None and contract.resend.strategy == "natural"


def _plantable(contract: ToolContract, path: str) -> Iterator[str]:
    if contract.request.method in ("GET", "DELETE"):
        yield f"{path} cannot be planted: the request has no body"
        return
    try:
        steps = field_steps(path)
        plant(copy.deepcopy(contract.request.body) if contract.request.body is not None else {}, path, "obx")
    except ValueError as error:
        yield f"{path} cannot be planted: {error}"
        return
    top = _field(contract.input, steps[0]) if contract.request.body is None else None
    if top is not None and len(steps) > 1 and top.get("type") != "object":
        yield f"{path} cannot be planted: {steps[0]} is no object"


# What answers mean.


def _outcomes(contract: ToolContract) -> Iterator[str]:
    rows = contract.outcomes
    if not any(row.outcome is Outcome.SUCCEEDED for row in rows):
        yield "the table says when the tool succeeded"
    for number, row in enumerate(rows, 1):
        yield from (f"row {number} {finding}" for finding in _row(contract, row))
        shadow = next((earlier for earlier in rows[: number - 1] if _shadows(earlier, row)), None)
        if shadow is not None:
            yield f"row {number} is never reached: row {rows.index(shadow) + 1} takes all its answers"


def _row(contract: ToolContract, row: OutcomeRule) -> Iterator[str]:
    if not row.status or any(not 200 <= status <= 599 for status in row.status):
        yield "names status codes from 200 to 599"
    statuses = set(row.status)
    unclear = {status for status in statuses if status == 408 or status >= 500}
    conditional = row.has is not None or row.match is not None
    match row.outcome:
        case Outcome.UNSENT:
            yield "says unsent, but whoever answers has received the request"
        case Outcome.SUCCEEDED if any(not 200 <= status < 300 for status in statuses):
            yield "says succeeded for a status outside 2xx"
        case Outcome.REJECTED if not conditional:
            yield "says rejected without looking at the provider's error body; a proxy's page would count as its refusal"
        case Outcome.REJECTED if row.match is None and any(status < 400 for status in statuses):
            yield "says rejected below 400 without a match"
        case Outcome.DEFERRED if row.match is None and not statuses <= _DEFERRED_STATUS:
            yield "says deferred for a status that does not by itself mean `refused before execution`"
        case _:
            pass
    if unclear and row.outcome is not Outcome.UNKNOWN:
        yield f"makes something certain of {min(unclear)}, after which nobody knows"
    if row.stored and (row.outcome is not Outcome.REJECTED or contract.request.provider_key is None):
        yield "says stored, which only a rejection under a provider key can be"
    if row.conflict and row.outcome is not Outcome.UNKNOWN:
        yield "says conflict, which by itself means unknown: what is there must be read back"
    if row.conflict and (contract.lookup is None or not contract.lookup.same):
        yield "says conflict, and no lookup reads back what is there and compares it (`same`)"
    if row.after is not None and (row.outcome is not Outcome.DEFERRED or header_name(row.after) is None):
        yield "has an `after` that is no header of a deferred answer"
    for name, text in (("has", row.has), ("match", row.match)):
        if text is not None and header_name(text) is None:
            yield from _expression_findings(name, text)


def _shadows(earlier: OutcomeRule, later: OutcomeRule) -> bool:
    """Whether the earlier row takes every answer the later one could: it names its statuses and asks nothing more."""
    asks_no_more = earlier.has in (None, later.has) and earlier.match in (None, later.match)
    return set(later.status) <= set(earlier.status) and asks_no_more


def _conflict_row(contract: ToolContract) -> Iterator[str]:
    """Same key, other parameters: an effect we forgot. Read as a refusal it would free the key of something that happened."""
    rows = contract.outcomes
    first_rejected = next((index for index, row in enumerate(rows) if row.outcome is Outcome.REJECTED), len(rows))
    unknown = [index for index, row in enumerate(rows) if row.outcome is Outcome.UNKNOWN]
    if any(index > first_rejected for index in unknown):
        yield "a row that says unknown stands before every row that says rejected"
    conflicts = [index for index in unknown if rows[index].match is not None or rows[index].conflict]
    if any(row.conflict and index > first_rejected for index, row in enumerate(rows)):
        yield "the row of a conflict stands before every row that says rejected"
    if contract.request.provider_key is not None and not any(index < first_rejected for index in conflicts):
        yield "under a provider key a row for the provider's conflict answer says unknown, before every row that says rejected"


def _expressions(contract: ToolContract) -> Iterator[str]:
    receipt = contract.receipt
    named = {"external_reference": receipt.external_reference, "provider_request_id": receipt.provider_request_id}
    named |= {f"result.{name}": text for name, text in receipt.result.items()}
    if contract.webhook is not None:
        named["webhook.match"] = contract.webhook.match
    for name, text in named.items():
        if text is not None and header_name(text) is None:
            yield from _expression_findings(name, text)


def _expression_findings(name: str, text: str) -> Iterator[str]:
    """What is read of an answer is read by whoever settles: it takes a time that grows with the answer and never faster."""
    if len(text) > EXPRESSION_CHARACTERS_MAX:
        yield f"{name} has {len(text)} characters; an expression has at most {EXPRESSION_CHARACTERS_MAX}"
        return
    try:
        tree = expression(text).parsed
    except (jmespath.exceptions.JMESPathError, RecursionError):
        yield f"{name} is no JMESPath: {text}"
        return
    nodes = list(_nodes(tree))
    if (deepest := max(depth for depth, _ in nodes)) > EXPRESSION_DEPTH_MAX:
        yield f"{name} is nested {deepest} deep; an expression at most {EXPRESSION_DEPTH_MAX}"
    # Each member is the whole of what it is taken from once more, and another list of them makes that many of each.
    members = sum(len(node["children"]) for _, node in nodes if node["type"] in ("multi_select_list", "multi_select_dict"))
    if members > EXPRESSION_MEMBERS_MAX:
        yield f"{name} makes lists or objects of {members} members; an expression of at most {EXPRESSION_MEMBERS_MAX}"
    for _, node in nodes:
        if node["type"] == "function_expression" and node["value"] not in EXPRESSION_FUNCTIONS:
            yield f"{name} calls {node['value']}; what is read calls only {', '.join(sorted(EXPRESSION_FUNCTIONS))}"
        if node["type"] == "slice" and node["children"][2] == 0:
            yield f"{name} takes a slice in steps of nothing"


def _nodes(node: Mapping[str, Any], depth: int = 1) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Every node of a parsed expression and how deep it is."""
    yield depth, node
    for child in node["children"]:
        if isinstance(child, dict):
            yield from _nodes(child, depth + 1)


# What the tool takes.


def _schema(contract: ToolContract) -> Iterator[str]:
    try:
        input_validator(contract.input_schema_text)
    except jsonschema_rs.ValidationError as error:
        yield f"the input is no JSON Schema that stands alone: {str(error).splitlines()[0][:200]}"
        return
    if contract.input.get("type") != "object":
        yield "the input is an object"
    reachable = {id(schema) for schema in _reachable_by_defaults(contract.input)}
    for path, schema in _subschemas(contract.input, "input"):
        if "default" in schema and id(schema) not in reachable:
            yield f"{path} has a default that is never filled; defaults stand only under properties and items"
        if contract.kind != "read":
            yield from _closedness(contract, path, schema)


def _closedness(contract: ToolContract, path: str, schema: Mapping[str, Any]) -> Iterator[str]:
    """An object is closed, or is a map of values of one schema, or belongs to a tool whose whole input is its identity."""
    if schema.get("type") != "object" and "properties" not in schema:
        return
    further = schema.get("additionalProperties", schema.get("unevaluatedProperties"))
    if further is None:
        yield f"{path} does not say whether it takes unknown fields (additionalProperties)"
    elif further is True or further == {}:
        if not any(rule.digest is not None for rule in contract.identity[:1]):
            yield f"{path} takes unknown fields; only a tool whose identity is the digest of its input may"
    elif (
        isinstance(further, dict)
        and contract.request.driver == "http_form"
        and not schema.get("propertyNames", {}).get("pattern")
    ):
        yield f"{path} lets a caller choose names that go into a form; give propertyNames a pattern"


def _named_fields(contract: ToolContract) -> Iterator[str]:
    lists: dict[str, tuple[str, ...]] = {
        "presentational": contract.presentational,
        "declared": contract.declared,
        "personal": contract.personal,
        "normalise": tuple(contract.normalise),
    }
    for rule in contract.identity:
        lists["presentational"] = (*lists["presentational"], *(rule.presentational or ()))
    for list_name, names in lists.items():
        for name in sorted(set(names)):
            if _field(contract.input, name) is None:
                yield f"{list_name} names {name}, which is no field of the input"


def _money(contract: ToolContract) -> Iterator[str]:
    rule = contract.amount
    if rule is None:
        for name in contract.input.get("properties", {}):
            if name == "amount" or name.endswith("_amount"):
                yield f"the input has {name} and the contract no amount rule"
        return
    name = rule.value.removeprefix("input.")
    field = _field(contract.input, name) if rule.value.startswith("input.") else None
    if field is None:
        yield f"the amount {rule.value} is no field of the input"
    else:
        if not _is_required(contract.input, name):
            yield f"the amount {rule.value} is optional; money that a contract moves never is"
        if field.get("type") != "integer" or not isinstance(field.get("minimum"), int) or field["minimum"] < 0:
            yield f"the amount {rule.value} is a whole number of minor units with a minimum of at least 0"
        if name in contract.presentational or any(name in (each.presentational or ()) for each in contract.identity):
            yield f"the amount {rule.value} is presentational: a repeat with another amount would not be a conflict"
    yield from _currency(contract)


def _currency(contract: ToolContract) -> Iterator[str]:
    rule = contract.amount
    if rule is None:
        return
    if rule.currency.startswith("input."):
        name = rule.currency.removeprefix("input.")
        if _field(contract.input, name) is None or not _is_required(contract.input, name):
            yield f"the currency {rule.currency} must be a required field of the input"
    elif rule.currency != "connection.currency" and _CURRENCY.fullmatch(rule.currency) is None:
        yield f"the currency {rule.currency} is neither connection.currency, nor a field of the input, nor three capital letters"
    if rule.check is not None and rule.check.removeprefix("result.") not in contract.receipt.result:
        yield f"the check {rule.check} is no member of the receipt's result"


def _texts(contract: ToolContract) -> Iterator[str]:
    for name in placeholders(contract.summary):
        if name.startswith("result."):
            if name.removeprefix("result.") not in contract.receipt.result:
                yield f"the summary names {name}, which the receipt does not keep"
        elif name not in ("amount", "reference"):
            yield f"the summary names {name}; it may name only result, amount and reference"
        elif name == "amount" and contract.amount is None:
            yield "the summary names an amount and the contract moves none"
    for link, template in contract.links.items():
        for name in placeholders(template):
            field = name.removeprefix("input.")
            if any(field == personal or field.startswith(f"{personal}.") for personal in contract.personal):
                yield f"the link {link} shows {name}, which is personal"
            known = field != name and _field(contract.input, field) is not None
            kept = name.startswith("result.") and name.removeprefix("result.") in contract.receipt.result
            if not (known or kept or name == "reference"):
                yield f"the link {link} names {name}, which nobody knows"


# How it is sent.


def _request(contract: ToolContract) -> Iterator[str]:
    request = contract.request
    yield from (f"the request's {finding}" for finding in _address(contract, request.url, set(_OUTSIDE_NAMES)))
    if request.driver == "client":
        yield "a contract that is loaded says how its request is sent; what only a caller carries out comes with the call"
    if request.deadline <= timedelta(0):
        yield "the request has a deadline"
    if contract.kind != "read" and request.method == "GET":
        yield "a tool that writes does not use GET, which anybody on the way may repeat"
    if isinstance(request.credential, CredentialHeader) and _HEADER_NAME.fullmatch(request.credential.header) is None:
        yield "the credential's header is no name of a header"
    for name, value in request.headers.items():
        if _HEADER_NAME.fullmatch(name) is None or name.lower() in RESERVED_HEADERS or _HEADER_VALUE.fullmatch(value) is None:
            yield f"the header {name[:100]!r} cannot be fixed by a contract"
    if request.body is not None:
        yield from _body_template(contract, request.body)
    if request.method in ("GET", "DELETE"):
        carried = set(placeholders(request.url))
        for name in contract.input.get("properties", {}):
            if f"input.{name}" not in carried:
                yield f"the input's {name} would not be sent: {request.method} has no body and the URL does not carry it"


def _address(contract: ToolContract, url: str, outside: set[str]) -> Iterator[str]:
    if not url.startswith("/") or url.startswith("//") or re.search(r"[\s\\#]", url):
        yield f"URL begins with one slash and holds no space, backslash or fragment: {url}"
    for name in placeholders(url):
        if name.startswith("input."):
            if not _is_required(contract.input, name.removeprefix("input.")):
                yield f"URL needs {name}, which is no required field of the input"
        elif name not in outside:
            yield f"URL names {name}, which nobody knows"
    if re.search(r"[{}]", PLACEHOLDER.sub("", url)):
        yield f"URL has a brace that is no placeholder: {url}"


def _body_template(contract: ToolContract, template: Any) -> Iterator[str]:
    names: list[str] = []

    def collect(value: Any) -> None:
        if isinstance(value, dict):
            for name, member in value.items():
                if name == WHEN:
                    names.append(str(member))
                else:
                    collect(member)
        elif isinstance(value, list):
            for item in value:
                collect(item)
        elif isinstance(value, str):
            names.extend(placeholders(value))

    collect(template)
    for name in names:
        known = name.startswith("input.") and _field(contract.input, name.removeprefix("input.")) is not None
        if not known and name not in _OUTSIDE_NAMES:
            yield f"the body names {name}, which is no field of the input"
    for name in contract.input.get("properties", {}):
        if not any(each == f"input.{name}" or each.startswith(f"input.{name}.") for each in names):
            yield f"the body leaves out the input's {name}, which would be lost"


# Reading schemas.


def _field(schema: Mapping[str, Any], dotted: str) -> Mapping[str, Any] | None:
    """The schema of a field of the input, by its dotted name; None where there is none."""
    found: Any = schema
    for name in dotted.split("."):
        found = found.get("properties", {}).get(name) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else None


def _is_required(schema: Mapping[str, Any], dotted: str) -> bool:
    """Whether a field is in every valid input, all the way down."""
    found: Any = schema
    for name in dotted.split("."):
        if not isinstance(found, dict) or name not in found.get("required", []):
            return False
        found = found.get("properties", {}).get(name)
    return isinstance(found, dict)


def _accepts(root: Mapping[str, Any], field: Mapping[str, Any], value: Any) -> bool:
    """Whether a field's schema takes a value; its local references are those of the whole input schema."""
    definitions = {name: root[name] for name in ("$defs", "definitions") if name in root}
    try:
        return jsonschema_rs.Draft202012Validator(
            {**definitions, **field}, validate_formats=True, pattern_options=jsonschema_rs.RegexOptions()
        ).is_valid(value)
    except jsonschema_rs.ValidationError:
        return False


def _subschemas(schema: Any, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every schema within a schema, with a path for people."""
    if not isinstance(schema, dict):
        return
    yield path, schema
    for name in _SUBSCHEMAS:
        yield from _subschemas(schema.get(name), f"{path}.{name}")
    for name in _SUBSCHEMA_LISTS:
        for index, each in enumerate(schema.get(name, [])):
            yield from _subschemas(each, f"{path}.{name}[{index}]")
    for name in _SUBSCHEMA_MAPS:
        for key, each in schema.get(name, {}).items():
            yield from _subschemas(each, f"{path}.{key}")


def _reachable_by_defaults(schema: Any) -> Iterator[Mapping[str, Any]]:
    """The schemas whose defaults binding fills: downwards through `properties` and `items`."""
    if not isinstance(schema, dict):
        return
    for each in schema.get("properties", {}).values():
        if isinstance(each, dict):
            yield each
            yield from _reachable_by_defaults(each)
    yield from _reachable_by_defaults(schema.get("items"))


_RULES_OF_ALL: Mapping[str, Rule] = {
    "schema": _schema,
    "fields": _named_fields,
    "texts": _texts,
    "request": _request,
    "expressions": _expressions,
    "lookup": _lookup,
    "cancel-first": _cancel_first,
    "webhook": _webhook,
}
_RULES_OF_WRITES: Mapping[str, Rule] = {
    "owner": _owner,
    "identity": _identity,
    "key-fields": _key_fields,
    "receipt": _receipt,
    "recovery": _recovery,
    "strategy": _strategy,
    "object": _object,
    "doubt": _doubt,
    "keys-and-markers": _keys_and_markers,
    "compensation": _compensation,
    "money": _money,
    "outcomes": _outcomes,
    "conflict-row": _conflict_row,
}
