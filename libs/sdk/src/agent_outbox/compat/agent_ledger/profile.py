"""How strict the ledger is. The defaults are the gateway's own rules; `THEIRS` relaxes them to what agent-ledger 0.2.1 does."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, Union

HANDLER_SECONDS = 300.0
"""How long a handler may take unless something else is said: after it, nobody can tell a slow run from a dead one."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The rules of one ledger.

    Attributes:
        key_conflict: what a call comes to whose idempotency key was used with other arguments (`resource`, `idempotency_keys`):
            `refuse` raises `EffectConflictError`; `replay` answers with what the key stands for.
        exceptions: what an exception of a handler says: `classified` what it proves (a refused connection sent nothing, a
            declined card was declined) and else that nobody knows; `failed` that nothing happened, whatever the exception.
        failures: whether a failed key is `free` for the next call, or `final`: the next call raises `EffectFailedError`.
        retry_safe: which tools may be carried out again with the same provider key after a run that died: names, or True for all.
            A handler of such a tool has to send `effect.provider_key` (or `effect.idem_key`) to a provider that keeps to it.
        handler_seconds: how long a handler may take where `StaleOptions.after_ms` does not say so.
        owner: the team that answers for these effects at the gateway.
        namespace: tells ledgers apart that had tables of their own; part of the operation key. Give the import the same one.
    """

    key_conflict: Literal["refuse", "replay"] = "refuse"
    exceptions: Literal["classified", "failed"] = "classified"
    failures: Literal["free", "final"] = "free"
    retry_safe: Union[bool, Collection[str]] = ()
    handler_seconds: float = HANDLER_SECONDS
    owner: str = "agent-ledger"
    namespace: str = "default"

    def is_retry_safe(self, tool: str) -> bool:
        """Whether a run of the tool that died may be carried out again."""
        return self.retry_safe if isinstance(self.retry_safe, bool) else tool in self.retry_safe


OURS = Profile()
"""The gateway's own rules."""

THEIRS = Profile(key_conflict="replay", exceptions="failed", failures="final", retry_safe=True)
"""What agent-ledger 0.2.1 does. It trusts every handler to be repeatable and every exception to mean that nothing happened."""

_default = OURS


def use_profile(profile: Profile) -> None:
    """Set the rules of every store that is made from now on without saying its own.

    Args:
        profile: `OURS`, `THEIRS`, or either with fields replaced (`dataclasses.replace`).
    """
    global _default
    _default = profile


def default_profile() -> Profile:
    """The rules of a store that is made without saying its own."""
    return _default
