"""Which reservations a key reaches: to look at, and to act on as the client that carries them out."""

from outbox_domain.capability import Capability
from outbox_domain.scoped_key import ScopedKey
from outbox_store.reservations import ReservationView


def may_see(key: ScopedKey, view: ReservationView) -> bool:
    """Whether a key that knows the id may look: whoever may make the call may, because the call itself would tell it."""
    return (
        bool(key.capabilities & {Capability.READ_ALL, Capability.READ_OWN})
        and view.environment_id == key.environment_id
        and key.reaches(view.tool, view.provider)
        and (key.project is None or key.project == view.project)
        and (key.run is None or key.run == view.run)
        and (Capability.READ_ALL in key.capabilities or key.acting_project == view.project)
    )


def may_act(key: ScopedKey, view: ReservationView) -> bool:
    """Whether a key could have made the call: then its actor may heartbeat, settle and withdraw an attempt of its own."""
    return (
        view.environment_id == key.environment_id
        and key.reaches(view.tool, view.provider)
        and view.project == key.acting_project
        and (key.run is None or key.run == view.run or view.scope == "environment")
    )
