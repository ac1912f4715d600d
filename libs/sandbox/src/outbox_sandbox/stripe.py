"""Stripe, as far as the shipped contracts, their lookups and Stripe's own SDK need it: refunds, customers, events.

Sources: Stripe's API reference (refunds, customers, events, errors, idempotent requests, pagination) and its published
OpenAPI document. Every payment intent whose id begins with `pi_` exists, is paid in euro and has `CAPTURED` to give back.
"""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Mapping

from outbox_sandbox.exchange import Answer, Effect, Fields, Plan, Received, Refused, json_answer
from outbox_sandbox.form import MalformedForm, decode
from outbox_sandbox.records import CommittedEffect, Page, Records

CURRENCY = "eur"
CAPTURED = 99_999_999
"""What every payment intent has captured, in cents: the largest amount Stripe documents, eight digits."""

KEY_LENGTH_MAX = 255
FORM_TYPE = "application/x-www-form-urlencoded"
API_VERSION = "2026-10-28.endive"

REFUND_PARAMETERS = frozenset(
    "amount charge currency customer expand instructions_email metadata origin payment_intent reason"
    " refund_application_fee reverse_transfer".split()
)
REASONS = ("duplicate", "fraudulent", "requested_by_customer")
# The union of what the API takes today and what version 2023-08-16 took.
CUSTOMER_PARAMETERS = frozenset(
    "address balance business_name cash_balance coupon description email expand individual_name invoice_prefix"
    " invoice_settings metadata name next_invoice_sequence payment_method phone preferred_locales promotion_code shipping"
    " source tax tax_exempt tax_id_data test_clock validate".split()
)
CUSTOMER_LENGTHS = {"email": 512, "name": 256, "description": 5000, "phone": 20}

METADATA_NAMES_MAX = 50
METADATA_NAME_LENGTH_MAX = 40
METADATA_VALUE_LENGTH_MAX = 500

LIST_LIMIT_DEFAULT = 10
LIST_LIMIT_MAX = 100
LIST_PARAMETERS = frozenset({"created", "ending_before", "expand", "limit", "starting_after"})

EVENT_TYPES = {"refund.created": "refund", "customer.created": "customer"}
ID_PREFIXES = {"refund": "re_", "customer": "cus_"}
EVENT_PREFIX = "evt_"

PAGE_PATHS = {"/v1/refunds": "refund", "/v1/customers": "customer", "/v1/events": "event"}


def error(
    status: int, message: str, *, kind: str = "invalid_request_error", code: str | None = None, param: str | None = None
) -> Answer:
    """An error in Stripe's shape: `{"error": {"type", "message", "code"?, "param"?}}`."""
    members: Fields = {"type": kind, "message": message}
    if code is not None:
        members |= {"code": code, "doc_url": f"https://stripe.com/docs/error-codes/{code.replace('_', '-')}"}
    if param is not None:
        members["param"] = param
    return json_answer(status, {"error": members})


class Stripe:
    """Stripe's v1 interface."""

    name = "stripe"
    keeps_keys = True
    key_life_seconds = None

    def authenticate(self, received: Received) -> None:
        """Any bearer key is good, except a live one (it has no business here) and one that ends in `_expired`."""
        key = received.bearer
        if key is None:
            raise Refused(error(401, "You did not provide an API key. Provide it as 'Authorization: Bearer YOUR_SECRET_KEY'."))
        masked = f"{key[:8]}****{key[-4:]}" if len(key) > 12 else "****"
        if "_live_" in key:
            raise Refused(error(401, f"Invalid API Key provided: {masked}. This is a sandbox: it takes no live keys."))
        if key.endswith("_expired"):
            raise Refused(error(401, f"Expired API Key provided: {masked}", code="api_key_expired"))

    def fields(self, received: Received) -> Fields:
        """The form of a POST; other content types are refused, as is a key that is too long."""
        if len(received.idempotency_key or "") > KEY_LENGTH_MAX:
            raise Refused(error(400, f"Idempotency keys may be at most {KEY_LENGTH_MAX} characters long."))
        kind = received.headers.get("Content-Type", FORM_TYPE).partition(";")[0].strip().lower()
        if received.body and kind != FORM_TYPE:
            message = f"Invalid request (check that your POST content type is {FORM_TYPE})."
            raise Refused(error(400, message))
        return _decode(received.body)

    def plan(self, received: Received, fields: Fields) -> Plan:
        """A refund or a customer."""
        if received.path == "/v1/refunds":
            return _plan_refund(fields)
        if received.path == "/v1/customers":
            return _plan_customer(fields)
        raise Refused(_unrecognized(received))

    def read(self, received: Received, records: Records) -> Answer:
        """A list, or one thing by its id."""
        if received.path in PAGE_PATHS:
            return _list(received, records)
        holder, _, thing_id = received.path.rpartition("/")
        if holder not in PAGE_PATHS:
            raise Refused(_unrecognized(received))
        return json_answer(200, _retrieve(PAGE_PATHS[holder], thing_id, records))

    def failure(self, status: int, code: str, message: str) -> Answer:
        """Stripe's error types by status: card errors, API errors, everything else an invalid request."""
        if status >= 500:
            return error(status, message, kind="api_error")
        if code in ("idempotency_key_in_use", "idempotency_mismatch"):
            return error(status, message, kind="idempotency_error", code=code if status == 409 else None)
        return error(status, message, kind="card_error" if status == 402 else "invalid_request_error", code=code)

    def reply_headers(self, received: Received, request_id: str) -> tuple[tuple[str, str], ...]:
        """The request's id, the version, and the key sent back."""
        key = received.idempotency_key
        version = received.headers.get("Stripe-Version", API_VERSION)
        echoed = (("Idempotency-Key", key),) if key is not None and received.method == "POST" else ()
        return (("Request-Id", request_id), ("Stripe-Version", version), *echoed)


def _unrecognized(received: Received) -> Answer:
    return error(404, f"Unrecognized request URL ({received.method}: {received.path}).")


def _decode(text: bytes | str) -> Fields:
    try:
        return decode(text)
    except MalformedForm as malformed:
        raise Refused(error(400, f"Invalid request: {malformed}.")) from malformed


def _invalid(message: str, param: str, code: str | None = None) -> Refused:
    return Refused(error(400, message, param=param, code=code))


def _only(fields: Mapping[str, object], known: frozenset[str]) -> None:
    for name in fields:
        if name not in known:
            raise _invalid(f"Received unknown parameter: {name}", name, "parameter_unknown")


def _text(fields: Mapping[str, object], name: str, length_max: int = 5000) -> str | None:
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise _invalid(f"Invalid string: {value}", name)
    if len(value) > length_max:
        raise _invalid(f"Invalid string: must be at most {length_max} characters", name, "parameter_invalid_string_too_long")
    return value or None


def _whole(fields: Mapping[str, object], name: str) -> int | None:
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or re.fullmatch(r"-?[0-9]{1,15}", value) is None:
        raise _invalid(f"Invalid integer: {value}", name, "parameter_invalid_integer")
    return int(value)


def _metadata(fields: Mapping[str, object]) -> dict[str, str]:
    given = fields.get("metadata", "")
    if given == "":
        return {}
    if not isinstance(given, dict):
        raise _invalid("Invalid object", "metadata")
    if len(given) > METADATA_NAMES_MAX:
        raise _invalid(f"You can specify up to {METADATA_NAMES_MAX} keys", "metadata")
    kept: dict[str, str] = {}
    for name, value in given.items():
        if not isinstance(value, str):
            raise _invalid("Metadata values must be strings", f"metadata[{name}]")
        if len(name) > METADATA_NAME_LENGTH_MAX or len(value) > METADATA_VALUE_LENGTH_MAX:
            limits = f"{METADATA_NAME_LENGTH_MAX} characters for names, {METADATA_VALUE_LENGTH_MAX} for values"
            raise _invalid(f"Metadata is too long ({limits})", f"metadata[{name}]")
        if value:
            kept[name] = value
    return kept


def _new_suffix() -> str:
    return secrets.token_hex(12)


def _paid_by(fields: Mapping[str, object]) -> str:
    """The payment intent a refund is for. A charge `ch_x` belongs to the payment intent `pi_x`."""
    intent, charge = _text(fields, "payment_intent"), _text(fields, "charge")
    if intent is not None and charge is not None:
        raise _invalid("You may only specify one of these parameters: payment_intent, charge.", "charge", "parameters_exclusive")
    if intent is None and charge is None:
        message = "One of the following params should be provided for this request: payment_intent or charge."
        raise _invalid(message, "payment_intent", "parameter_missing")
    if charge is not None:
        if not charge.startswith("ch_") or charge == "ch_":
            raise _invalid(f"No such charge: '{charge}'", "charge", "resource_missing")
        return "pi_" + charge.removeprefix("ch_")
    assert intent is not None
    if not intent.startswith("pi_") or intent == "pi_":
        raise _invalid(f"No such payment_intent: '{intent}'", "payment_intent", "resource_missing")
    return intent


def _plan_refund(fields: Fields) -> Plan:
    _only(fields, REFUND_PARAMETERS)
    intent = _paid_by(fields)
    asked = _whole(fields, "amount")
    if asked is not None and asked < 1:
        raise _invalid("Invalid positive integer", "amount", "parameter_invalid_integer")
    reason = _text(fields, "reason")
    if reason is not None and reason not in REASONS:
        raise _invalid(f"Invalid reason: must be one of {', '.join(REASONS)}", "reason")
    currency = _text(fields, "currency")
    if currency is not None and currency.lower() != CURRENCY:
        raise _invalid(f"The currency of this payment is {CURRENCY}", "currency")
    metadata = _metadata(fields)
    kept: Fields = fields if asked is None else {**fields, "amount": asked}

    def carry_out(records: Records, now: float) -> tuple[Effect, Answer]:
        left = CAPTURED - records.moved(resource="refund", subject=intent)
        # Without an amount Stripe gives back everything that is left.
        amount = left if asked is None else asked
        if left == 0:
            raise Refused(error(400, f"Payment {intent} has already been refunded.", code="charge_already_refunded"))
        if amount > left:
            message = f"Refund amount ({amount}) is greater than unrefunded amount on charge ({left})"
            raise Refused(error(400, message, param="amount"))
        refund: Fields = {
            "id": ID_PREFIXES["refund"] + _new_suffix(),
            "object": "refund",
            "amount": amount,
            "balance_transaction": None,
            "charge": "ch_" + intent.removeprefix("pi_"),
            "created": int(now),
            "currency": CURRENCY,
            "metadata": metadata,
            "payment_intent": intent,
            "reason": reason,
            "receipt_number": None,
            "source_transfer_reversal": None,
            "status": "succeeded",
            "transfer_reversal": None,
        }
        effect = Effect(id=str(refund["id"]), resource="refund", subject=intent, amount=amount, fields=kept, result=refund)
        return effect, json_answer(200, refund)

    return Plan(carry_out=carry_out)


def _plan_customer(fields: Fields) -> Plan:
    _only(fields, CUSTOMER_PARAMETERS)
    texts = {name: _text(fields, name, length_max) for name, length_max in CUSTOMER_LENGTHS.items()}
    email = texts["email"]
    if email is not None and re.fullmatch(r"[^@\s]+@[^@\s]+", email) is None:
        raise _invalid(f"Invalid email address: {email}", "email", "email_invalid")
    balance = _whole(fields, "balance")
    metadata = _metadata(fields)

    def carry_out(_records: Records, now: float) -> tuple[Effect, Answer]:
        customer: Fields = {
            "id": ID_PREFIXES["customer"] + _new_suffix(),
            "object": "customer",
            "address": fields.get("address"),
            "balance": balance or 0,
            "created": int(now),
            "currency": None,
            "default_source": None,
            "delinquent": False,
            "description": texts["description"],
            "discount": None,
            "email": email,
            "livemode": False,
            "metadata": metadata,
            "name": texts["name"],
            "phone": texts["phone"],
            "preferred_locales": [],
            "shipping": fields.get("shipping"),
            "tax_exempt": "none",
            "test_clock": None,
        }
        effect = Effect(id=str(customer["id"]), resource="customer", subject=email, amount=None, fields=fields, result=customer)
        return effect, json_answer(200, customer)

    return Plan(carry_out=carry_out)


def event_of(committed: CommittedEffect) -> Fields:
    """The event that tells of an effect of these; `request` names the call that caused it."""
    effect = committed.effect
    kind = next(kind for kind, resource in EVENT_TYPES.items() if resource == effect.resource)
    return {
        "id": EVENT_PREFIX + effect.id.removeprefix(ID_PREFIXES[effect.resource]),
        "object": "event",
        "api_version": API_VERSION,
        "created": int(committed.created),
        "data": {"object": effect.result},
        "livemode": False,
        "pending_webhooks": 0,
        "request": {"id": committed.request_id, "idempotency_key": committed.idempotency_key},
        "type": kind,
    }


def _find(kind: str, thing_id: str, records: Records) -> CommittedEffect | None:
    """The effect behind an id of a refund, a customer or an event."""
    if kind != "event":
        found = records.effect(thing_id)
        return found if found is not None and found.effect.resource == kind else None
    if not thing_id.startswith(EVENT_PREFIX):
        return None
    suffix = thing_id.removeprefix(EVENT_PREFIX)
    found_either = (records.effect(prefix + suffix) for prefix in ID_PREFIXES.values())
    return next((found for found in found_either if found is not None), None)


def _retrieve(kind: str, thing_id: str, records: Records) -> Fields:
    found = _find(kind, thing_id, records)
    if found is None:
        raise Refused(error(404, f"No such {kind}: '{thing_id}'", code="resource_missing", param="id"))
    return event_of(found) if kind == "event" else found.effect.result


def _list(received: Received, records: Records) -> Answer:
    """A page, newest first. Cursors: `starting_after` reads on to older ones, `ending_before` back to newer ones."""
    kind = PAGE_PATHS[received.path]
    parameters = _decode(received.query)
    found, has_more = records.page(_page(kind, parameters, records))
    data = [event_of(each) if kind == "event" else each.effect.result for each in found]
    return json_answer(200, {"object": "list", "data": data, "has_more": has_more, "url": received.path})


def _page(kind: str, parameters: Fields, records: Records) -> Page:
    resources, subject = _filter(kind, parameters)
    limit = _whole(parameters, "limit")
    limit = LIST_LIMIT_DEFAULT if limit is None else limit
    if not 1 <= limit <= LIST_LIMIT_MAX:
        raise _invalid(f"The limit must be between 1 and {LIST_LIMIT_MAX}", "limit", "parameter_invalid_integer")
    if "starting_after" in parameters and "ending_before" in parameters:
        raise _invalid("You may only specify one of these parameters: starting_after, ending_before.", "ending_before")
    created_from, created_until = _created_range(parameters)
    return Page(
        resources=resources,
        subject=subject,
        limit=limit,
        older_than=_cursor(kind, parameters, "starting_after", records),
        newer_than=_cursor(kind, parameters, "ending_before", records),
        created_from=created_from,
        created_until=created_until,
    )


def _filter(kind: str, parameters: Fields) -> tuple[tuple[str, ...], str | None]:
    """Which resources a list reads, and the subject they must have."""
    if kind == "refund":
        _only(parameters, LIST_PARAMETERS | {"charge", "payment_intent"})
        intent, charge = _text(parameters, "payment_intent"), _text(parameters, "charge")
        of_charge = None if charge is None else "pi_" + charge.removeprefix("ch_")
        nothing = intent is not None and of_charge is not None and intent != of_charge
        return (() if nothing else ("refund",)), intent or of_charge
    if kind == "customer":
        _only(parameters, LIST_PARAMETERS | {"email", "test_clock"})
        return ("customer",), _text(parameters, "email")
    _only(parameters, LIST_PARAMETERS | {"type", "types", "delivery_success"})
    one, several = _text(parameters, "type"), parameters.get("types")
    wanted = [one] if one is not None else several.values() if isinstance(several, dict) else EVENT_TYPES
    return tuple(resource for name, resource in EVENT_TYPES.items() if name in wanted), None


def _cursor(kind: str, parameters: Fields, name: str, records: Records) -> int | None:
    thing_id = _text(parameters, name)
    if thing_id is None:
        return None
    found = _find(kind, thing_id, records)
    if found is None:
        raise _invalid(f"No such {kind}: '{thing_id}'", name, "resource_missing")
    return found.seq


def _created_range(parameters: Fields) -> tuple[float, float]:
    """From (inclusive) and until (exclusive). Stripe's times are whole seconds: `lte` means to the end of that second."""
    created = parameters.get("created", {})
    edges = created if isinstance(created, dict) else {"gte": created, "lte": created}
    _only(edges, frozenset({"gt", "gte", "lt", "lte"}))
    gt, gte, lt, lte = (_whole(edges, edge) for edge in ("gt", "gte", "lt", "lte"))
    starts = [edge for edge in (gte, None if gt is None else gt + 1) if edge is not None]
    ends = [edge for edge in (lt, None if lte is None else lte + 1) if edge is not None]
    return max(starts, default=0), min(ends, default=math.inf)
