"""What goes wrong, under the names that agent-ledger 0.2.1 gives it, and two more for what only a gateway can tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class EffectLedgerError(Exception):
    """Anything that this module raises by itself."""


class EffectStoreError(EffectLedgerError):
    """The ledger could not be asked, or refused what it was asked.

    Args:
        message: what happened.
        operation: the method of the store that was carried out.
        idem_key: of the effect, where it is known.
        effect_id: of the effect, where it is known.
        details: whatever else is known.
    """

    def __init__(
        self,
        message: str,
        *,
        operation: str | None = None,
        idem_key: str | None = None,
        effect_id: str | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.operation = operation
        self.idem_key = idem_key
        self.effect_id = effect_id
        self.details = {} if details is None else details

    def __str__(self) -> str:
        """The message, then what is known of the effect as `name=value`."""
        known = {"operation": self.operation, "idem_key": self.idem_key, "effect_id": self.effect_id}
        return " ".join([super().__str__(), *(f"{name}={value}" for name, value in known.items() if value)])


class EffectLedgerInvariantError(EffectLedgerError):
    """Something that cannot be is so: an effect is gone, or in a state that it does not have."""


class EffectLedgerValidationError(EffectLedgerError):
    """What was given cannot be used; nothing was recorded and nothing ran.

    Args:
        message: what is expected.
        field: which argument.
    """

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class EffectConflictError(EffectLedgerValidationError):
    """The same idempotency key was used with other arguments. Nothing ran. `Profile(key_conflict="replay")` replays instead.

    Args:
        idem_key: that both calls have.
        fields: names of declared fields that differ, where the gateway may tell them.
    """

    def __init__(self, idem_key: str, fields: tuple[str, ...] = ()) -> None:
        told = f" (other values for {', '.join(fields)})" if fields else ""
        super().__init__(f"The idempotency key {idem_key} was used with other arguments{told}; nothing ran.", field="args")
        self.idem_key = idem_key
        self.fields = fields


class EffectDeniedError(EffectLedgerError):
    """The effect may not happen: a policy or a person refuses it, or it waits for an approval that cannot be asked for here.

    Args:
        idem_key: of the effect.
        reason: why.
    """

    def __init__(self, idem_key: str, reason: str | None = None) -> None:
        super().__init__(reason or f"Effect {idem_key} was denied")
        self.idem_key = idem_key
        self.reason = reason


class EffectTimeoutError(EffectLedgerError):
    """Somebody else's run of the same effect had no end in time. It may still come to one.

    Args:
        idem_key: of the effect.
        timeout_s: how many seconds were waited; None where the end was not waited for.
        message: what to say instead of that.
    """

    def __init__(self, idem_key: str, timeout_s: float | None, message: str | None = None) -> None:
        waited = "timed out" if timeout_s is None else f"did not complete within {timeout_s}s"
        super().__init__(message or f"Effect {idem_key} {waited}")
        self.idem_key = idem_key
        self.timeout_s = timeout_s


class EffectInDoubtError(EffectTimeoutError):
    """An earlier run may have had its effect and nobody knows: only a person or the run itself can say, so waiting is of no use.

    Args:
        idem_key: of the effect.
        reservation_id: where it is looked at and decided.
        cause: why it is in doubt, in the gateway's words.
    """

    def __init__(self, idem_key: str, reservation_id: str, cause: str | None = None) -> None:
        told = f" ({cause})" if cause else ""
        message = (
            f"Effect {idem_key} may have happened and nobody knows{told}; nothing ran. "
            f"Reservation {reservation_id} tells more and can be decided by a person."
        )
        super().__init__(idem_key, None, message)
        self.reservation_id = reservation_id
        self.cause = cause


class EffectFailedError(EffectLedgerError):
    """An earlier run of the same effect failed.

    Args:
        idem_key: of the effect.
        effect_error: its `code` and `message`.
    """

    def __init__(self, idem_key: str, effect_error: Mapping[str, str | None]) -> None:
        super().__init__(effect_error.get("message") or "Effect failed")
        self.idem_key = idem_key
        self.effect_error = dict(effect_error)
        self.code = effect_error.get("code")
