"""The orderly end of a process."""

import asyncio
import signal

import structlog

log = structlog.stdlib.get_logger("outbox.shutdown")

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def stop_on_signals() -> asyncio.Event:
    """An event that the first SIGTERM or SIGINT sets; the same signal again ends the process at once, as it would any other.

    (The other signal does not: at Ctrl-C a child hears SIGINT from the terminal and then SIGTERM from who started it.) What is in
    flight is finished by whoever waits for the event, within the time it has. Must be called inside the event loop.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def heard(received: signal.Signals) -> None:
        loop.remove_signal_handler(received)
        stop.set()
        log.info("stopping", signal=received.name)

    for each in SIGNALS:
        loop.add_signal_handler(each, heard, each)
    return stop
