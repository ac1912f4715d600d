"""What an agent asked for, read from a request's body and headers and never changed (`interfaces.md` section 1)."""

import re
import unicodedata
from collections.abc import Mapping
from typing import Any, Self

import msgspec

from outbox_domain.errors import refuse
from outbox_domain.json_text import member_path

NAME_CHARACTERS_MAX = 200
"""How long a tool, reference, connection, run, checkpoint, step, call id or model may be."""

OCCURRENCE_MAX = 2**31 - 1
"""The largest occurrence: what an `integer` of Postgres holds."""

CONTROL_CHARACTER = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""What a name never holds: characters that break lines, logs and Postgres's text."""


def plain_name(text: str) -> str | None:
    """A name as it is compared, or None where it is none.

    Two names that look alike must not name two effects: a reference that one service writes with a composed letter, and another
    with a letter and an accent, is one reference (Unicode NFC), and white space around a name is a mistake, not a part of it.

    Args:
        text: as the caller wrote it.

    Returns:
        Its NFC form; None unless it has 1 to 200 characters, no control characters and no white space around it.
    """
    name = text if text.isascii() else unicodedata.normalize("NFC", text)
    if not 1 <= len(name) <= NAME_CHARACTERS_MAX or CONTROL_CHARACTER.search(name) is not None or name != name.strip():
        return None
    return name


_HEADER_TEXT = re.compile(r"[\x20-\x7e]*")


class ToolCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One tool call.

    Attributes:
        tool: the name of the tool.
        input: its arguments, not yet bound to the contract.
        reference: the caller's own name of the business case.
        occurrence: 1, or which intended repetition this is.
        connection: the name of the provider account; None means the default one.
        run: the caller's name of the agent's execution.
        checkpoint: the save point of the run.
        step, call_id, model: recorded and searchable, never part of a key.
        context: shown to reviewers, never sent to the provider.
    """

    tool: str
    input: dict[str, Any]
    reference: str | None = None
    occurrence: int = 1
    connection: str | None = None
    run: str | None = None
    checkpoint: str | None = None
    step: str | None = None
    call_id: str | None = None
    model: str | None = None
    context: dict[str, Any] | None = None

    @classmethod
    def read(cls, document: object, headers: Mapping[str, str]) -> Self:
        """Reads a tool call.

        Args:
            document: the body as `json_text.parse` read it. A member that is null counts as absent.
            headers: the request's headers, names in lower case or looked up in any case; `Outbox-Run` and `Outbox-Checkpoint`
                stand for the members `run` and `checkpoint`.

        Returns:
            The tool call.

        Raises:
            OutboxError: `invalid-input` with the path of the first member that is unknown, missing, of the wrong type, too long
                or empty, or that differs between body and header.
        """
        if not isinstance(document, dict):
            refuse("$", "an object with the members tool and input")
        for name in document:
            if name not in cls.__struct_fields__:
                refuse(member_path("$", name), "no such field")
        tool, input = _name(document, "tool"), document.get("input")
        if tool is None:
            refuse("$.tool", "the name of a tool")
        if not isinstance(input, dict):
            refuse("$.input", "an object")
        context = document.get("context")
        if context is not None and not isinstance(context, dict):
            refuse("$.context", "an object")
        return cls(
            tool=tool,
            input=input,
            reference=_name(document, "reference"),
            occurrence=_occurrence(document),
            connection=_name(document, "connection"),
            run=_name_or_header(document, "run", headers, "Outbox-Run"),
            checkpoint=_name_or_header(document, "checkpoint", headers, "Outbox-Checkpoint"),
            step=_name(document, "step"),
            call_id=_name(document, "call_id"),
            model=_name(document, "model"),
            context=context,
        )


def _name(document: Mapping[str, object], member: str) -> str | None:
    value = document.get(member)
    if value is None:
        return None
    if not isinstance(value, str):
        refuse(f"$.{member}", "text")
    return _checked(value, f"$.{member}")


def _name_or_header(document: Mapping[str, object], member: str, headers: Mapping[str, str], header: str) -> str | None:
    in_body = _name(document, member)
    in_header = headers.get(header.lower(), headers.get(header))
    if in_header is None:
        return in_body
    path = f"$.{member}"
    if _HEADER_TEXT.fullmatch(in_header) is None:
        refuse(path, f"printable ASCII in the header {header}; other text goes into the body")
    name = _checked(in_header, path)
    if in_body is not None and in_body != name:
        refuse(path, f"the same value as in the header {header}")
    return name


def _checked(value: str, path: str) -> str:
    if not 1 <= len(value) <= NAME_CHARACTERS_MAX:
        refuse(path, f"1 to {NAME_CHARACTERS_MAX} characters")
    if CONTROL_CHARACTER.search(value) is not None:
        refuse(path, "text without control characters")
    name = plain_name(value)
    if name is None:
        refuse(path, "text without white space around it")
    return name


def _occurrence(document: Mapping[str, object]) -> int:
    value = document.get("occurrence")
    if value is None:
        return 1
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= OCCURRENCE_MAX:
        refuse("$.occurrence", f"a whole number from 1 to {OCCURRENCE_MAX}")
    return value
