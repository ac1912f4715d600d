"""The caller's trace, for the gateway to go on with (W3C Trace Context); opentelemetry is used where it is installed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

Inject = Callable[[dict[str, str]], None]


def trace_headers() -> Mapping[str, str]:
    """The headers that name the current span.

    Returns:
        `traceparent`, and `tracestate` where there is one; nothing outside of a span or without opentelemetry. Never baggage: it
        may hold what is nobody's business.
    """
    inject = _injector()
    headers: dict[str, str] = {}
    if inject is not None:
        inject(headers)
    return headers


@functools.lru_cache(maxsize=1)
def _injector() -> Inject | None:
    try:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
    except ImportError:
        return None
    return TraceContextTextMapPropagator().inject
