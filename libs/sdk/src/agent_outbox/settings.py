"""What a client is told once and what one call says anew, merged field by field; an explicit None is a value.

A field comes from the first of these that states it: the arguments of `call`, the `ToolCall`, `Outbox.using`, `Outbox(...)`, the
environment (`OUTBOX_URL`, `OUTBOX_KEY`), the default. What states nothing holds `UNSET`; None states "none".
"""

from __future__ import annotations

import enum
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any
from urllib.parse import urlsplit

from agent_outbox.effect import Classify
from agent_outbox.errors import SettingsError
from agent_outbox.spool import default_folder

URL_VARIABLE = "OUTBOX_URL"
KEY_VARIABLE = "OUTBOX_KEY"

WAIT_SECONDS = 25.0
"""How long a call waits for its end unless it says otherwise: what the gateway waits by itself."""

DEADLINE_SECONDS_MORE = 35.0
"""How much longer than its wait a call may take with all its retries, unless it says otherwise."""

REQUEST_KEY_CHARACTERS_MAX = 255

_HEADER_TEXT = re.compile(r"[\x21-\x7e]+")


class Unset(enum.Enum):
    """The type of `UNSET`."""

    UNSET = "UNSET"

    def __repr__(self) -> str:
        return "UNSET"

    def __bool__(self) -> bool:
        """False, so that `value or default` means what it says."""
        return False


UNSET = Unset.UNSET
"""Nothing was said of this field, so what was said elsewhere holds. None is something that was said."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What holds for every call of a client unless the call says otherwise.

    Attributes:
        url: the gateway, `https://outbox.example.com`; a path in it is kept.
        key: the scoped key; None sends none.
        run: the caller's name of the agent's execution.
        checkpoint: the save point of the run.
        connection: the name of the provider account; None means the gateway's default one.
        reference: the caller's own name of the business case.
        model: recorded with calls.
        context: shown to reviewers, never sent to a provider; replaced as a whole, not merged.
        wait: how many seconds a call waits for its end; 0 does not wait; None leaves it to the gateway.
        deadline: within how many seconds a call answers or raises, all retries included; None retries without end; UNSET is
            35 seconds more than `wait`.
        request_keys: whether each call carries an `Idempotency-Key` of its own.
        time_limit: how many seconds a handler may take; None: as long as its lease is renewed, which class A alone allows.
        owner: who answers for tools whose contract comes with the call.
        classify: what an exception of a handler says, before the lists of `agent_outbox.classify` are asked.
        spool: the folder where what became of effects is kept until the gateway has it; None keeps it in memory alone.
    """

    url: str | None = None
    key: str | None = field(default=None, repr=False)
    run: str | None = None
    checkpoint: str | None = None
    connection: str | None = None
    reference: str | None = None
    model: str | None = None
    context: Mapping[str, Any] | None = None
    wait: float | None = WAIT_SECONDS
    deadline: float | Unset | None = UNSET
    request_keys: bool = False
    time_limit: float | None = None
    owner: str | None = None
    classify: Classify | None = None
    spool: str | os.PathLike[str] | None = None

    @property
    def deadline_seconds(self) -> float | None:
        """Within how many seconds a call answers or raises; None without end."""
        if isinstance(self.deadline, Unset):
            return (WAIT_SECONDS if self.wait is None else self.wait) + DEADLINE_SECONDS_MORE
        return self.deadline

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """The settings that the environment states; an empty variable states nothing.

        Args:
            environment: such as `os.environ`.

        Returns:
            Settings with url, key and spool, the rest by default.
        """
        return cls(
            url=environment.get(URL_VARIABLE) or None,
            key=environment.get(KEY_VARIABLE, "").strip() or None,
            spool=default_folder(environment),
        )

    def changed(self, **changes: object) -> Settings:
        """These settings with every change that states something.

        Args:
            changes: by the names of the attributes; UNSET changes nothing, None is a value.

        Returns:
            New settings.

        Raises:
            TypeError: there is no such setting.
            SettingsError: a value cannot be used.
        """
        stated: dict[str, Any] = {name: value for name, value in changes.items() if value is not UNSET}
        unknown = stated.keys() - {known.name for known in fields(self)}
        if unknown:
            raise TypeError(f"there is no setting {', '.join(sorted(unknown))}")
        made = replace(self, **stated)
        seconds_of("wait", made.wait, least=0.0)
        if not isinstance(made.deadline, Unset):
            seconds_of("deadline", made.deadline, least=0.001)
        seconds_of("time_limit", made.time_limit, least=0.001)
        return made


def checked_url(url: str | None) -> str:
    """The address of the gateway without a slash at its end.

    Args:
        url: as it was set.

    Raises:
        SettingsError: there is none, or it is no address of an HTTP server.
    """
    if url is None:
        raise SettingsError(f"Say where the gateway is: Outbox(url=...) or {URL_VARIABLE}.")
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment or parts.username is not None or not url.isprintable() or " " in url:
        raise SettingsError("url: expected the address of the gateway, such as https://outbox.example.com.")
    return url.rstrip("/")


def checked_key(key: str | None) -> str | None:
    """The scoped key as it goes into a header.

    Args:
        key: as it was set; spaces and line breaks around it (files end with one) are left out.

    Raises:
        SettingsError: it holds what no key holds. The value is not repeated.
    """
    if key is None:
        return None
    stripped = key.strip()
    if _HEADER_TEXT.fullmatch(stripped) is None:
        raise SettingsError("key: expected a scoped key (obx_...), printable ASCII without spaces.")
    return stripped


def checked_request_key(request_key: str) -> str:
    """The value of `Idempotency-Key`.

    Args:
        request_key: the caller's name of one request.

    Raises:
        SettingsError: it has not 1 to 255 printable ASCII characters, or a space or quote.
    """
    usable = isinstance(request_key, str) and _HEADER_TEXT.fullmatch(request_key) is not None and '"' not in request_key
    if not usable or len(request_key) > REQUEST_KEY_CHARACTERS_MAX:
        raise SettingsError(
            f"request_key: expected 1 to {REQUEST_KEY_CHARACTERS_MAX} printable ASCII characters without space and quote."
        )
    return request_key


def seconds_of(name: str, seconds: float | None, *, least: float) -> float | None:
    """A number of seconds that can be waited.

    Args:
        name: of the setting, for the sentence.
        seconds: as it was set; None where there is no bound.
        least: the smallest that makes sense.

    Raises:
        SettingsError: it is no number, not finite or too small.
    """
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not math.isfinite(seconds) or seconds < least:
        raise SettingsError(f"{name}: expected a number of seconds, at least {least:g}, or None.")
    return float(seconds)
