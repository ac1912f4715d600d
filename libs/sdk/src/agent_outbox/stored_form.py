"""The form in which a handler's result can be stored: JSON, with a note in place of what is none.

A result that cannot be stored is no failure: the effect happened. So nothing here raises, and the first caller is given the very
form that every replay will be given.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from agent_outbox import strict_json

NOTE = "$not_stored"
"""The name of the one member of a note."""

RESULT_BYTES_MAX = 256 << 10
"""How large the stored form of a result may be; a larger one is a note."""

TEXT_CHARACTERS_MAX = 200
DEPTH_MAX = 32


class _TooLarge(Exception):
    """The form would have more bytes than it may, however it is written."""


class _Taking:
    """A result being taken apart: the notes so far, and how many bytes its JSON may still have.

    What refers to itself, or to one thing in many places, would else be taken apart for ever: two such references are 2^32
    values before the last level.
    """

    def __init__(self, bytes_max: int) -> None:
        self.notes: list[str] = []
        self._bytes_left = bytes_max

    def spend(self, count: int) -> None:
        """So many bytes more are certain.

        Raises:
            _TooLarge: there are not so many left.
        """
        self._bytes_left -= count
        if self._bytes_left < 0:
            raise _TooLarge


@dataclass(frozen=True, kw_only=True)
class StoredForm:
    """A result as it is stored.

    Attributes:
        value: plain JSON; what cannot be stored is `{"$not_stored": {"type": ..., "text": ...}}` in its place.
        notes: the JSON path of each such place, in order (`$.at`, `$.items[2]`).
    """

    value: Any
    notes: tuple[str, ...]


def stored_form(result: object, *, bytes_max: int = RESULT_BYTES_MAX) -> StoredForm:
    """The form of a result that can be stored.

    Args:
        result: whatever a handler returned. Mappings, lists, tuples, dataclasses and models (`model_dump`, `to_dict`) are taken
            apart; text, exact numbers, booleans and None stand as they are.
        bytes_max: how many bytes its JSON may have.

    Returns:
        The form. A stored form is its own stored form.
    """
    taking = _Taking(bytes_max)
    try:
        encoded = strict_json.write(_plain(result, "$", 0, taking))
        taking.spend(0 if len(encoded) <= bytes_max else bytes_max + 1)
        # As a reader of the stored JSON gets it, so that 12.0 is 12 for the first caller too.
        return StoredForm(value=strict_json.read(encoded.decode()), notes=tuple(taking.notes))
    except _TooLarge:
        return StoredForm(value=_note(result, f"more than {bytes_max} bytes of JSON"), notes=("$",))
    except Exception:
        # An object of somebody else's may fail in any way while it is looked at; the effect has happened all the same.
        return StoredForm(value={NOTE: {"type": "object"}}, notes=("$",))


def _plain(value: object, path: str, depth: int, taking: _Taking) -> object:
    taking.spend(1)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        text = str.__str__(value)
        taking.spend(len(text))
        if not any("\ud800" <= character <= "\udfff" for character in text):
            return text
        return _noted(value, path, taking, None)
    if isinstance(value, int):
        exact = -strict_json.EXACT_INTEGER_MAX <= value <= strict_json.EXACT_INTEGER_MAX
        return int(value) if exact else _noted(value, path, taking, "a whole number beyond 2^53")
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else _noted(value, path, taking, float.__repr__(value))
    if isinstance(value, (datetime, date, time)):
        return _noted(value, path, taking, value.isoformat())
    if isinstance(value, (Decimal, UUID, timedelta)):
        return _noted(value, path, taking, str(value))
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _noted(value, path, taking, f"{len(value)} bytes")
    if depth >= DEPTH_MAX:
        return _noted(value, path, taking, f"more than {DEPTH_MAX} levels")
    taken_apart = _taken_apart(value)
    if isinstance(taken_apart, Mapping):
        return _plain_members(taken_apart, path, depth, taking)
    if isinstance(taken_apart, (list, tuple)):
        return [_plain(item, f"{path}[{index}]", depth + 1, taking) for index, item in enumerate(taken_apart)]
    return _noted(value, path, taking, None)


def _plain_members(members: Mapping[Any, Any], path: str, depth: int, taking: _Taking) -> object:
    plain: dict[str, object] = {}
    for name, member in members.items():
        if not isinstance(name, str) or any("\ud800" <= character <= "\udfff" for character in name):
            return _noted(members, path, taking, "names that are no text")
        name = str.__str__(name)
        taking.spend(len(name))
        plain[name] = _plain(member, strict_json.member_path(path, name), depth + 1, taking)
    return plain


def _taken_apart(value: object) -> object:
    """A mapping or list of what an object holds; None where it does not say."""
    if isinstance(value, (Mapping, list, tuple)):
        return value
    try:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {known.name: getattr(value, known.name) for known in dataclasses.fields(value)}
        for name in ("model_dump", "to_dict"):
            method = getattr(value, name, None)
            if callable(method) and not isinstance(value, type):
                found = method()
                return found if isinstance(found, Mapping) else None
    except Exception:
        # What does not say what it holds is noted like everything else that cannot be stored.
        return None
    return None


def _noted(value: object, path: str, taking: _Taking, text: str | None) -> object:
    taking.notes.append(path)
    return _note(value, text)


def _note(value: object, text: str | None) -> dict[str, object]:
    note: dict[str, object] = {"type": type(value).__name__[:TEXT_CHARACTERS_MAX]}
    if text is not None:
        note["text"] = text[:TEXT_CHARACTERS_MAX]
    return {NOTE: note}
