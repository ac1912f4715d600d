"""What the provider itself counts, beside what the ledger does: the last column of `outbox doctor`.

Only a provider that lists its own effects can be counted. The sandbox does; of any other the ledger's receipts say what they
rest on, and the doctor says that it has counted nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx2

from outbox_store import checkup
from outbox_store.checkup import Account
from outbox_store.connection import Connection

SECONDS_MAX = 30.0
NAMED_MAX = 20
"""So many effects are named one by one."""


class ProviderAway(Exception):
    """The provider did not give its list."""


@dataclass(frozen=True, kw_only=True)
class Counted:
    """One provider's own count of a window.

    Attributes:
        effects: that it has made in it.
        with_receipt: of these, how many have a receipt here.
        without_receipt: the names of the others (at most 20): in doubt, under way, or not made through this gateway.
        duplicates: effects beyond the first of one marker. There must be none.
        missing: receipts of the window whose effect it does not have (at most 20). There must be none.
    """

    url: str
    effects: int
    with_receipt: int
    without_receipt: list[str]
    duplicates: list[str]
    missing: list[str]

    @property
    def well(self) -> bool:
        """Whether nothing was done twice and nothing was promised that is not there."""
        return not self.duplicates and not self.missing


async def effects_of(sandbox_url: str) -> list[dict[str, Any]]:
    """The sandbox provider's own list of effects.

    Raises:
        ProviderAway: it gave none; the text says why.
    """
    try:
        async with httpx2.AsyncClient(timeout=SECONDS_MAX, trust_env=False) as client:
            response = await client.get(f"{sandbox_url.rstrip('/')}/_control/effects")
            response.raise_for_status()
            found = response.json()
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
        raise ProviderAway(f"{type(error).__name__} at {sandbox_url}") from error
    if not isinstance(found, list) or not all(isinstance(each, dict) and "id" in each for each in found):
        raise ProviderAway(f"{sandbox_url} is no sandbox provider")
    return found


def of_sandbox(accounts: Sequence[Account], sandbox_url: str) -> list[Account]:
    """The connections that lead to the sandbox."""
    return [account for account in accounts if account.base_url.rstrip("/") == sandbox_url.rstrip("/")]


async def count(
    connection: Connection,
    accounts: Sequence[Account],
    effects: Sequence[dict[str, Any]],
    sandbox_url: str,
    *,
    until: datetime,
    seconds: float,
) -> Counted:
    """Hold the sandbox's list against the ledger.

    Args:
        connection: to the ledger.
        accounts: the connections that lead to the sandbox.
        effects: its whole list.
        sandbox_url: where it was taken.
        until: the end of the window, before the list was taken: every receipt that is older than it must have its effect there.
        seconds: how long the window is.
    """
    begins, ends = until.timestamp() - seconds, until.timestamp()
    in_window = [effect for effect in effects if begins <= float(effect["created"]) <= ends]
    ids = [account.connection_id for account in accounts]
    names = [str(effect["id"]) for effect in in_window]
    receipted = await checkup.held(connection, ids, names)
    return Counted(
        url=sandbox_url,
        effects=len(names),
        with_receipt=sum(name in receipted for name in names),
        without_receipt=[name for name in names if name not in receipted][:NAMED_MAX],
        duplicates=_beyond_the_first(effects)[:NAMED_MAX],
        missing=await checkup.missed(
            connection, ids, [str(each["id"]) for each in effects], until=until, seconds=seconds, limit=NAMED_MAX
        ),
    )


def _beyond_the_first(effects: Sequence[dict[str, Any]]) -> list[str]:
    """Effects whose marker an earlier one has; what was made without a marker was not made through the gateway."""
    seen: set[str] = set()
    beyond = []
    for effect in sorted(effects, key=lambda each: float(each["created"])):
        marker = effect.get("marker")
        if isinstance(marker, str) and marker in seen:
            beyond.append(str(effect["id"]))
        elif isinstance(marker, str):
            seen.add(marker)
    return beyond
