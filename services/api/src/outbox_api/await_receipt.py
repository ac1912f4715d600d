"""Waiting for a reservation to come to an end."""

import asyncio
import time
from collections.abc import Callable
from uuid import UUID

from outbox_api.waiters import Waiters, keeps_waiting
from outbox_runtime.postgres import NOT_NOW
from outbox_store.reservations import ReservationView

AWAY_PAUSE_SECONDS = 0.2


async def await_receipt(
    waiters: Waiters,
    organization_id: UUID,
    reservation_id: UUID,
    *,
    seconds: float,
    look_first: bool,
    enough: Callable[[ReservationView], bool] = lambda view: False,
) -> ReservationView | None:
    """Wait until a reservation is final, or a person alone can end its doubt, or the time is over.

    Args:
        waiters: of this process.
        organization_id: of the caller.
        reservation_id: what is waited for.
        seconds: how long at most; not at all where as many wait in this process as may.
        look_first: read before waiting, because it may be final already.
        enough: whether how it stands is worth coming back for though it is not final.

    Returns:
        The reservation as it was read last; None where it was not read: the caller neither looks nor waits, or Postgres went away
        meanwhile, or the row did.
    """
    if waiters.full:
        seconds = 0.0
    if seconds <= 0 and not look_first:
        return None
    until = time.monotonic() + seconds
    view: ReservationView | None = None
    with waiters.watching(organization_id, reservation_id) as watch:
        if not look_first:
            await waiters.news(watch, after=watch.news, until=until)
        while True:
            seen = watch.news
            try:
                view = await waiters.read(watch)
            except NOT_NOW:
                # What was reserved stays reserved: the caller waits on, Postgres may be back in time.
                if time.monotonic() + AWAY_PAUSE_SECONDS >= until or waiters.draining:
                    return view
                await asyncio.sleep(AWAY_PAUSE_SECONDS)
                watch.reading = None
                continue
            if view is None or not keeps_waiting(view.state, view.recovery_due) or enough(view):
                return view
            if time.monotonic() >= until or waiters.draining:
                return view
            await waiters.news(watch, after=seen, until=until)
