"""Where this module tells what it does: the logger and the tracer that agent-ledger's users have configured."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

NAME = "agent_ledger"

_logger = logging.getLogger(NAME)
_logger.addHandler(logging.NullHandler())


class _Span:
    """Stands in for a span where opentelemetry is not installed."""

    def set_attribute(self, key: str, value: Any) -> None:
        """Takes an attribute and keeps none."""


class _Tracer:
    """Stands in for a tracer where opentelemetry is not installed."""

    @contextlib.contextmanager
    def start_as_current_span(self, name: str, **_: Any) -> Iterator[_Span]:
        """A block without a span."""
        yield _Span()


def get_logger() -> logging.Logger:
    """The logger of this module, `agent_ledger`."""
    return _logger


def get_tracer() -> Any:
    """The tracer of this module: opentelemetry's where that is installed, else one that does nothing."""
    try:
        from opentelemetry import trace
    except ImportError:
        return _Tracer()
    return trace.get_tracer(NAME)


def log_event(level: int, event: str, **fields: object) -> None:
    """One line of the log: the event, then its fields, which structured logs get as fields too."""
    _logger.log(level, " ".join([event, *(f"{name}={value}" for name, value in fields.items())]), extra=fields)
