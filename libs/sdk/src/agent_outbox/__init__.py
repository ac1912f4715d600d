"""The Python client and the outbox command line.

`Outbox` and `AsyncOutbox` ask a gateway for effects; `ToolCall` is what they ask for; `Done`, `Waiting`, `Refused` and `InDoubt`
are what comes of it; `agent_outbox.errors` has an exception for every problem.
"""

from agent_outbox.async_client import AsyncOutbox
from agent_outbox.classify import Classified, NotSent, Rejected
from agent_outbox.client import Outbox
from agent_outbox.client_base import ResolveResult
from agent_outbox.decorated import AsyncEffectFunction, EffectFunction
from agent_outbox.effect import Effect, Found, Success
from agent_outbox.errors import ERRORS, OutboxError, Retry
from agent_outbox.queue import enqueue, enqueue_ddl
from agent_outbox.receipt import Receipt
from agent_outbox.relay import Relay
from agent_outbox.results import CallResult, Done, InDoubt, Refused, Reservation, Resolution, Waiting
from agent_outbox.settings import UNSET, Settings
from agent_outbox.tool_call import ToolCall, model_name, tool_name

__all__ = [
    "ERRORS",
    "UNSET",
    "AsyncEffectFunction",
    "AsyncOutbox",
    "CallResult",
    "Classified",
    "Done",
    "Effect",
    "EffectFunction",
    "Found",
    "InDoubt",
    "NotSent",
    "Outbox",
    "OutboxError",
    "Receipt",
    "Refused",
    "Rejected",
    "Relay",
    "Reservation",
    "Resolution",
    "ResolveResult",
    "Retry",
    "Settings",
    "Success",
    "ToolCall",
    "Waiting",
    "enqueue",
    "enqueue_ddl",
    "model_name",
    "tool_name",
]
