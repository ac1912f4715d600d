"""Calls handlers and probes: in this thread, in a thread beside an event loop, or as a task; and keeps the lease meanwhile.

A coroutine is cancelled when its time is over. A function cannot be stopped: everybody else learns that its effect is in doubt,
and what it comes to afterwards is still told.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import replace

from agent_outbox.carry import (
    Perform,
    Performed,
    heartbeating,
    settlement,
    telling_unknown,
)
from agent_outbox.classify import NotSent
from agent_outbox.conversation import BACK_OFF_SECONDS, Headers
from agent_outbox.delivery import delivering_waiting, settle_path
from agent_outbox.effect import Effect, is_async, lease_clock
from agent_outbox.errors import BadHandlerError
from agent_outbox.spool import Spool
from agent_outbox.transport import AsyncTransport, SyncTransport

LOG = logging.getLogger(__name__)

BEATS_A_LEASE = 3
"""How often a lease is renewed before it would be over."""

BEAT_AGAIN_SECONDS = 0.5
"""How soon a heartbeat without an answer is sent again."""

CANCEL_SECONDS = 2.0
"""How long a coroutine may take to end that was cancelled, before it is left to itself."""

DELIVER_AGAIN_SECONDS_MAX = 30.0


class Deliverer:
    """Delivers what a spool keeps, in a thread of its own that ends when nothing waits."""

    def __init__(self, url: str, headers: Headers, spool: Spool) -> None:
        """
        Args:
            url: of the gateway.
            headers: of its requests.
            spool: what it keeps.
        """
        self._url = url
        self._headers = headers
        self._spool = spool
        self._began()

    def _began(self) -> None:
        self._process, self._turn = os.getpid(), threading.Lock()
        self._thread: threading.Thread | None = None

    def kick(self) -> None:
        """Begin where something waits and nobody is at it."""
        if not self._spool.waiting(again=True):
            return
        if self._process != os.getpid():
            # A fork has no thread of its parent's, and a lock that one of them held nobody would ever release.
            self._began()
        with self._turn:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._deliver, name="outbox-deliver", daemon=True)
                try:
                    self._thread.start()
                except RuntimeError as error:  # The process has too many, or is ending.
                    LOG.warning("what became of effects is not delivered now (%s); it is kept", error)

    def _deliver(self) -> None:
        transport, failures = SyncTransport(self._url), 0
        pause = threading.Event()
        try:
            while True:
                delivered = transport.hold(delivering_waiting(self._spool, self._headers, lease_clock, again=True))
                with self._turn:
                    if not self._spool.waiting(again=True):
                        self._thread = None
                        return
                failures = 0 if delivered else failures + 1
                if failures:
                    pause.wait(min(BACK_OFF_SECONDS * 2 ** min(failures, 10), DELIVER_AGAIN_SECONDS_MAX))
        finally:
            transport.close()


class SyncPerformer:
    """Calls handlers in the thread that asked for the effect."""

    def __init__(self, transport: SyncTransport, headers: Headers) -> None:
        """
        Args:
            transport: for heartbeats.
            headers: of them.
        """
        self._transport = transport
        self._headers = headers

    def __call__(self, step: Perform) -> Performed:
        """What a handler or probe did; never raises."""
        stop = threading.Event()
        if not step.is_probe:
            try:
                threading.Thread(target=self._keep, args=(step.effect, stop), name="outbox-heartbeat", daemon=True).start()
            except RuntimeError as error:
                return _not_begun(error)
        try:
            value = step.function(step.effect)
        except BaseException as error:
            return _raised(error)
        finally:
            stop.set()
        if _is_not_begun(value):
            return Performed(
                error=BadHandlerError("it returned something to be awaited, and Outbox has no event loop; use AsyncOutbox.")
            )
        return Performed(value=value)

    def _keep(self, effect: Effect, stop: threading.Event) -> None:
        lease, clock, again = effect.lease, effect.lease.clock, False
        while not stop.wait(_until_next_beat(effect, again)):
            reason = lease.over()
            try:
                if reason is None:
                    again = not self._transport.hold(heartbeating(effect, self._headers, clock))
                    continue
                LOG.warning("the handler of %s goes on after its time (%s); its effect is in doubt", effect.tool, reason)
                self._transport.hold(telling_unknown(effect, reason, self._headers, clock))
                return
            except Exception:
                # Whatever it is, the handler goes on, and so does its lease where the next heartbeat gets through.
                LOG.exception("a heartbeat of %s failed", effect.tool)
                again = True


class AsyncPerformer:
    """Calls handlers as tasks; those that are plain functions in threads."""

    def __init__(self, transport: AsyncTransport, headers: Headers, late: Callable[[Perform, Performed], None]) -> None:
        """
        Args:
            transport: for heartbeats.
            headers: of them.
            late: is told what a handler did that was not waited for any more.
        """
        self._transport = transport
        self._headers = headers
        self._late = late

    async def __call__(self, step: Perform) -> Performed:
        """What a handler or probe did; never raises."""
        running = asyncio.ensure_future(self._by_task(step) if is_async(step.function) else self._by_thread(step))
        keeper = asyncio.ensure_future(_forever() if step.is_probe else self._keep(step.effect))
        try:
            await asyncio.wait({running, keeper}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError as cancelled:
            return replace(await self._stopped(step, running, "cancelled"), raise_=cancelled)
        finally:
            keeper.cancel()
        if running.done():
            return _ended(running, "cancelled")
        reason = step.effect.lease.over() or "lease over"
        LOG.warning("the handler of %s is cancelled (%s)", step.effect.tool, reason)
        return await self._stopped(step, running, reason)

    async def _by_task(self, step: Perform) -> Performed:
        try:
            return Performed(value=await step.function(step.effect))
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            return _raised(error)

    async def _by_thread(self, step: Perform) -> Performed:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Performed] = loop.create_future()
        context = contextvars.copy_context()

        def hand_over(performed: Performed) -> None:
            if done.cancelled():
                self._late(step, performed)
            else:
                done.set_result(performed)

        def work() -> None:
            try:
                performed = Performed(value=context.run(step.function, step.effect))
            except BaseException as error:
                performed = _raised(error)
            try:
                loop.call_soon_threadsafe(hand_over, performed)
            except RuntimeError:  # The event loop is closed.
                self._late(step, performed)

        try:
            threading.Thread(target=work, name="outbox-handler").start()
        except RuntimeError as error:
            return _not_begun(error)
        try:
            performed = await done
        except asyncio.CancelledError:
            # It ended in the moment of the cancellation. What it did must not be forgotten for that, and what it only makes must
            # not begin.
            if done.cancelled() or _is_not_begun(done.result().value):
                raise
            performed = done.result()
        if performed.error is None and inspect.isawaitable(performed.value):
            try:
                return Performed(value=await performed.value)
            except asyncio.CancelledError:
                raise
            except BaseException as error:
                return _raised(error)
        return performed

    async def _stopped(self, step: Perform, running: asyncio.Future[Performed], reason: str) -> Performed:
        """What a handler did that was told to stop; what it does later is told late."""
        running.cancel()
        try:
            await asyncio.wait({running}, timeout=CANCEL_SECONDS)
        except asyncio.CancelledError:
            LOG.debug("cancelled again while a handler was being stopped")
        if running.done():
            return _ended(running, reason)
        running.add_done_callback(lambda ended: None if ended.cancelled() else self._late(step, ended.result()))
        return Performed(cut_off=reason)

    async def _keep(self, effect: Effect) -> None:
        lease, again = effect.lease, False
        while lease.over() is None:
            await asyncio.sleep(_until_next_beat(effect, again))
            if lease.over() is None:
                beat = asyncio.ensure_future(self._beat(effect))
                try:
                    await asyncio.wait({beat}, timeout=max(lease.left(), 0.01))
                    again = not (beat.done() and beat.result())
                finally:
                    beat.cancel()

    async def _beat(self, effect: Effect) -> bool:
        try:
            return await self._transport.hold(heartbeating(effect, self._headers, effect.lease.clock))
        except Exception:
            # Whatever it is, the handler goes on, and so does its lease where the next heartbeat gets through.
            LOG.exception("a heartbeat of %s failed", effect.tool)
            return False


def late_teller(spool: Spool, deliverer: Deliverer) -> Callable[[Perform, Performed], None]:
    """Keeps what a handler did after it was not waited for any more, and has it delivered."""

    def late(step: Perform, performed: Performed) -> None:
        if _is_not_begun(performed.value):
            return
        body = settlement(step.want, step.effect, performed)
        if step.is_probe or body["outcome"] == "unknown":
            return
        LOG.warning("the handler of %s ended after its time (%s); it is told late", step.effect.tool, body["outcome"])
        spool.release(spool.keep(settle_path(step.effect), body))
        deliverer.kick()

    return late


async def _forever() -> None:
    await asyncio.get_running_loop().create_future()


def _until_next_beat(effect: Effect, again: bool) -> float:
    lease = effect.lease
    pause = min(BEAT_AGAIN_SECONDS, lease.seconds / 10) if again else lease.seconds / BEATS_A_LEASE
    return max(min(pause, lease.left()), 0.01)


def _not_begun(error: RuntimeError) -> Performed:
    """No thread could be started, because the process has too many or is ending: nothing was called, so nothing was sent."""
    return Performed(error=NotSent(str(error)))


def _is_not_begun(value: object) -> bool:
    """Whether a handler returned what would only be done when it is awaited; then it never is."""
    if not inspect.isawaitable(value):
        return False
    close = getattr(value, "close", None)
    if close is not None:
        close()
    return True


def _raised(error: BaseException) -> Performed:
    """What raised; what is no `Exception` is for whoever called, after it was kept."""
    return Performed(error=error, raise_=None if isinstance(error, Exception) else error)


def _ended(running: asyncio.Future[Performed], reason: str) -> Performed:
    if running.cancelled():
        return Performed(cut_off=reason, raise_=asyncio.CancelledError() if reason == "cancelled" else None)
    return running.result()
