"""A log line is one JSON object, and nothing that came from outside is in it."""

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from opentelemetry.sdk.trace import TracerProvider

from outbox_runtime import logs

CANARY = "canary-4242"


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Logs configured into a string, and afterwards as they were."""
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    written = io.StringIO()
    logs.configure("info", service="test", stream=written)
    yield written
    root.handlers[:], root.level = before
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    """What was written, read back."""
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_one_json_object(stream: io.StringIO) -> None:
    """Time, level, event, service and what was given."""
    structlog.get_logger().info("something", count=3)
    (line,) = lines(stream)
    assert line | {"timestamp": None} == {"timestamp": None, "level": "info", "event": "something", "service": "test", "count": 3}
    assert line["timestamp"].endswith("Z")


def test_what_is_below_the_level_is_not_written(stream: io.StringIO) -> None:
    """`info` is set, `debug` is silent."""
    structlog.get_logger().debug("something")
    assert lines(stream) == []


def test_an_error_is_its_class_and_places(stream: io.StringIO) -> None:
    """Its message may quote an input; neither it nor that of its cause is written."""
    try:
        try:
            raise KeyError(CANARY)
        except KeyError as error:
            raise ValueError(f"cannot read {CANARY}") from error
    except ValueError:
        structlog.get_logger().exception("failed")
    assert CANARY not in stream.getvalue()
    (line,) = lines(stream)
    assert (line["error"], line["error_cause"], line["level"]) == ("ValueError", "KeyError", "error")
    assert "test_an_error_is_its_class_and_places" in line["error_at"][-1]


def test_lines_of_libraries_lose_their_texts(stream: io.StringIO) -> None:
    """Template and numbers stay; texts put into it, further lines and error messages do not."""
    logging.getLogger("somebody").warning("code %d, body %s", 502, CANARY)
    logging.getLogger("asyncio").error(f"Task exception was never retrieved\nfuture: {CANARY}")
    try:
        raise ValueError(CANARY)
    except ValueError:
        logging.getLogger("somebody").exception("failed for %s", CANARY)
    assert CANARY not in stream.getvalue()
    first, second, third = lines(stream)
    assert (first["event"], first["numbers"], first["logger"], first["level"]) == (
        "code %d, body %s",
        [502],
        "somebody",
        "warning",
    )
    assert second["event"] == "Task exception was never retrieved"
    assert (third["event"], third["error"]) == ("failed for %s", "ValueError")


def test_a_line_inside_a_span_has_its_trace_id(stream: io.StringIO) -> None:
    """Logs and traces are joined by the trace id."""
    with TracerProvider().get_tracer("test").start_as_current_span("span") as span:
        structlog.get_logger().info("inside")
    (line,) = lines(stream)
    assert line["trace_id"] == f"{span.get_span_context().trace_id:032x}"


def test_talkative_libraries_are_heard_from_warning_on(stream: io.StringIO) -> None:
    """arq says two lines for every ring."""
    logging.getLogger("arq.worker").info("ring")
    logging.getLogger("arq.worker").warning("expired")
    assert [line["event"] for line in lines(stream)] == ["expired"]


def test_what_ends_a_process_is_told_without_its_message() -> None:
    """An error that nobody caught: its class and its places on one line, and its message nowhere."""
    program = "from outbox_runtime import logs; logs.configure('info', service='tests'); raise ValueError('CANARY')"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 1
    assert "CANARY" not in ended.stdout + ended.stderr
    assert '"event":"process-broke-off"' in ended.stdout
    assert '"error":"ValueError"' in ended.stdout
