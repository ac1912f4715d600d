"""Which calls are one effect, computed as agent-ledger 0.2.1 does, so that what it recorded is recognised here.

The key is SHA-256 in hexadecimal of the workflow, the tool and what names the effect, joined by `|`. What names it is the
resource where one is given, else the chosen arguments, else all arguments, in the canonical form of RFC 8785.
"""

from __future__ import annotations

import hashlib
import uuid
from typing import Any

import rfc8785

from agent_outbox.compat.agent_ledger.errors import EffectLedgerValidationError
from agent_outbox.compat.agent_ledger.types import ResourceDescriptor, ToolCall

ARGS_BYTES_MAX = 1 << 20
"""How large the canonical arguments may be unless the ledger's options say otherwise. The gateway has a limit of its own."""


def canonicalize(obj: Any) -> str:
    """The canonical JSON text of a value (RFC 8785).

    Raises:
        EffectLedgerValidationError: the value is not one that JSON carries exactly.
    """
    try:
        return rfc8785.dumps(obj).decode()
    except (TypeError, ValueError, RecursionError) as error:
        raise EffectLedgerValidationError(f"Args must be JSON-serializable: {error}", field="args") from error


def validate_args(args: dict[str, Any], max_size_bytes: int | None = None) -> str:
    """The canonical text of a call's arguments.

    Args:
        args: by name.
        max_size_bytes: how many bytes the text may have; 1 MiB when left out.

    Raises:
        EffectLedgerValidationError: it is no dict, not JSON, or too large.
    """
    if not isinstance(args, dict):
        raise EffectLedgerValidationError(f"Args must be a dict, got {type(args).__name__}", field="args")
    text, most = canonicalize(args), max_size_bytes or ARGS_BYTES_MAX
    if len(text.encode()) > most:
        raise EffectLedgerValidationError(f"Args exceed maximum size of {most} bytes", field="args")
    return text


def resource_id_canonical(resource: ResourceDescriptor) -> str:
    """A resource as one text: namespace, type and the canonical id, joined by `/`."""
    return "/".join((resource.namespace, resource.type, canonicalize(resource.id)))


def compute_idem_key(call: ToolCall) -> str:
    """The key under which a call's effect happens once.

    Raises:
        EffectLedgerValidationError: what names the effect is not JSON.
    """
    if call.resource is not None:
        names = resource_id_canonical(call.resource)
    elif call.idempotency_keys:
        names = canonicalize({name: call.args[name] for name in call.idempotency_keys if name in call.args})
    else:
        names = canonicalize(call.args)
    return hashlib.sha256("|".join((call.workflow_id, call.tool, names)).encode()).hexdigest()


def generate_id() -> str:
    """A random id, as text."""
    return str(uuid.uuid4())
