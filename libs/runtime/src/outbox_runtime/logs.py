"""Logs: one JSON object per line on stdout, without bodies.

What may come from outside (inputs, provider answers, the texts of errors) is never written. An error is logged as its class and
the places it went through; its message is not, because drivers and databases quote values in theirs. Lines of other libraries
keep their template and their numbers and lose the rest. Source: design sections 9 (privacy) and 17.
"""

import logging
import sys
import traceback
from types import TracebackType
from typing import Any, TextIO

import msgspec
import structlog
from opentelemetry import trace
from structlog.typing import EventDict, WrappedLogger

FRAMES_MAX = 12
LIBRARIES_QUIET = ("arq", "httpcore2", "httpx2", "asyncio", "opentelemetry")
"""Libraries that are heard from `warning` on only."""


def configure(level: str, *, service: str, stream: TextIO | None = None) -> None:
    """Set up the logs of this process; called once, first thing in `main`.

    Args:
        level: the least level that is written: debug, info, warning or error.
        service: the deployable's name, on every line.
        stream: where to write; stdout unless given.
    """

    def with_service(logger: WrappedLogger, method: str, line: EventDict) -> EventDict:
        line["service"] = service
        return line

    least = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            with_service,
            _with_trace,
            _with_error,
            _render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(least),
        logger_factory=structlog.WriteLoggerFactory(file=stream or sys.stdout),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers[:] = [_Foreign()]
    root.setLevel(least)
    sys.excepthook = _uncaught
    for name in LIBRARIES_QUIET:
        logging.getLogger(name).setLevel(max(least, logging.WARNING))


def _uncaught(kind: type[BaseException], error: BaseException, found: TracebackType | None) -> None:
    """What ends the process is told like any other error; Python would print its message, and whatever that quotes."""
    if issubclass(kind, KeyboardInterrupt):
        return
    structlog.get_logger("outbox.process").critical("process-broke-off", exc_info=(kind, error, found))


def places(found: TracebackType | None) -> list[str]:
    """Where an error went through, innermost last: `module:line function`, without any value."""
    frames = traceback.extract_tb(found)[-FRAMES_MAX:]
    return [f"{frame.filename.rsplit('site-packages/', 1)[-1]}:{frame.lineno} {frame.name}" for frame in frames]


def _with_trace(logger: WrappedLogger, method: str, line: EventDict) -> EventDict:
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        line["trace_id"] = trace.format_trace_id(context.trace_id)
        line["span_id"] = trace.format_span_id(context.span_id)
    return line


def _with_error(logger: WrappedLogger, method: str, line: EventDict) -> EventDict:
    given = line.pop("exc_info", None)
    if given is True:
        given = sys.exc_info()
    error = given[1] if isinstance(given, tuple) else given
    if isinstance(error, BaseException):
        line["error"] = type(error).__name__
        line["error_at"] = places(error.__traceback__)
        if error.__cause__ is not None:
            line["error_cause"] = type(error.__cause__).__name__
    return line


def _render(logger: WrappedLogger, method: str, line: EventDict) -> str:
    ordered = {"timestamp": line.pop("timestamp"), "level": line.pop("level"), "event": line.pop("event"), **line}
    return msgspec.json.encode(ordered, enc_hook=str).decode()


class _Foreign(logging.Handler):
    """Lines of libraries, made ours: the template's first line and its numbers; texts put into it may be anybody's."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        given = record.args if isinstance(record.args, tuple) else ()
        numbers = [value for value in given if isinstance(value, (int, float))]
        more: dict[str, Any] = {"numbers": numbers} if numbers else {}
        log = structlog.get_logger(record.name).bind(logger=record.name)
        log.log(record.levelno, str(record.msg).partition("\n")[0], exc_info=record.exc_info or None, **more)
