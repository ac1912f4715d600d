"""`SettlementRequestRegistry.execute` of SafeAgent (safeagent-exec-guard) over the gateway: an example of a small move.

The request id is the whole identity, as it is there: another payload under the same id replays. Receipts have their members; what
proves the effect is the gateway's receipt, whose id is `execution_id`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any

from agent_outbox.client import Outbox
from agent_outbox.results import CallResult, Done, Refused
from agent_outbox.tool_call import ToolCall

PROVIDER = "safeagent"
HANDLER_SECONDS = 300.0

_NOT_IN_TOOLS = re.compile(r"[^a-z0-9_-]+")


class SettlementRequestRegistry:
    """Carries out each request id once; the gateway remembers, so a registry needs no store."""

    def __init__(
        self,
        postgres_dsn: str | None = None,
        sqlite_path: str | None = None,
        pending_ttl_seconds: float = HANDLER_SECONDS,
        *,
        outbox: Outbox | None = None,
        owner: str = "safeagent",
    ) -> None:
        """Nothing is asked yet.

        Args:
            postgres_dsn, sqlite_path: of SafeAgent's own stores; nothing is kept there.
            pending_ttl_seconds: how long a function may take.
            outbox: the client; one by `OUTBOX_URL` and `OUTBOX_KEY` when left out.
            owner: the team that answers for these effects.
        """
        self._outbox = outbox
        self._seconds = pending_ttl_seconds
        self._owner = owner

    def execute(
        self, *, request_id: str, action: str, payload: Mapping[str, Any] | None, execute_fn: Callable[..., Any]
    ) -> dict[str, Any]:
        """Carry out an action, unless that was done under this request id.

        Args:
            request_id: names the effect.
            action: the tool.
            payload: given to the function.
            execute_fn: takes the payload, or nothing.

        Returns:
            Their receipt: `ok`, `reason` (`executed`, `dedup_same_request_id`, `claim_pending`, `execute_failed:...` or
            `missing_request_id`), `request_id`, `execution_id`, `action`, `payload`, `timestamp_utc`. An exception that does not
            prove that nothing happened leaves `claim_pending`: nobody knows, and nothing is done again.

        Raises:
            OutboxError: the gateway could not be asked. Nothing ran.
        """
        values = dict(payload or {})

        def receipt(ok: bool, reason: str, execution_id: str | None = None) -> dict[str, Any]:
            now = datetime.now(tz=timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
            told = {"ok": ok, "reason": reason, "request_id": request_id or "", "execution_id": execution_id}
            return {**told, "action": action, "payload": values, "timestamp_utc": now}

        if not request_id or not request_id.strip():
            return receipt(False, "missing_request_id")
        if self._outbox is None:
            self._outbox = Outbox()
        takes_payload = bool(inspect.signature(execute_fn).parameters)
        result = self._outbox.run(
            ToolCall(tool=tool_name(action), input={"action": action}, reference=request_id.strip()),
            lambda _: execute_fn(values) if takes_payload else execute_fn(),
            key="safeagent:{reference}",
            scope="environment",
            guarantee_class="C",
            owner=self._owner,
            time_limit=self._seconds,
            wait=0,
        )
        return receipt(bool(result), _reason(result), result.receipt.id if isinstance(result, Done) else None)


def tool_name(action: str) -> str:
    """The gateway's name of an action."""
    word = _NOT_IN_TOOLS.sub("_", action.lower()).strip("_-")
    return f"{PROVIDER}.{word if word[:1].isalpha() else 'action' + word}"[:100]


def _reason(result: CallResult) -> str:
    if isinstance(result, Done):
        return "dedup_same_request_id" if result.replayed else "executed"
    if isinstance(result, Refused):
        return f"execute_failed:{type(result.raised).__name__ if result.raised is not None else result.code}"
    return "claim_pending"
