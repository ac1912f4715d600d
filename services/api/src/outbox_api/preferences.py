"""`Prefer: wait=N, respond-async` (RFC 7240): how long a caller wants to wait."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Preference:
    """What a caller prefers.

    Attributes:
        seconds: how long to wait.
        applied: the value of `Preference-Applied`; None where nothing was preferred.
    """

    seconds: float
    applied: str | None


def read_prefer(header: str | None, *, default_seconds: float, seconds_max: float) -> Preference:
    """Read the header `Prefer`.

    `respond-async` alone means not to wait at all; together with `wait` it adds nothing, because the answer to whoever has waited
    is asynchronous anyway. A preference that cannot be understood is ignored (RFC 7240 section 2).

    Args:
        header: its value, several lines joined by commas.
        default_seconds: how long a caller waits who prefers nothing.
        seconds_max: how long anybody may wait.
    """
    wait: int | None = None
    respond_async = False
    for token in (header or "").split(","):
        name, _, value = token.partition(";")[0].partition("=")
        name, value = name.strip().lower(), value.strip().strip('"')
        if name == "respond-async":
            respond_async = True
        elif name == "wait" and wait is None and value.isascii() and value.isdigit() and len(value) <= 9:
            wait = int(value)
    if wait is not None:
        seconds = min(wait, int(seconds_max))
        return Preference(seconds=seconds, applied=f"wait={seconds}" + (", respond-async" if respond_async else ""))
    if respond_async:
        return Preference(seconds=0.0, applied="respond-async")
    return Preference(seconds=default_seconds, applied=None)
