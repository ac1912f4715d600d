"""`python -m tests.fault.battery.unguarded GUARD MODULE`: a service without one of its guards, for a battery that must notice.

The guard is taken out of the imported module before its `main` begins. It is this test that patches; the product has no switch.
"""

import runpy
import sys
from collections.abc import Callable
from types import ModuleType


def _without(module: ModuleType, name: str, text: str, instead: str = "") -> None:
    statement = getattr(module, name)
    if statement.count(text) != 1:
        raise SystemExit(f"{module.__name__}.{name} no longer reads so")
    setattr(module, name, statement.replace(text, instead))


def attempt_check() -> None:
    """T3 closes whatever attempt is open."""
    from outbox_store import settle

    _without(settle, "SETTLE", "r.open_attempt_id = i.attempt_id and ")


def own_attempt() -> None:
    """An outcome speaks of every attempt."""
    from outbox_store import settle

    _without(settle, "SETTLE", "      when l.unknown_attempts > 0 then 'in_doubt'\n")


def digest_check() -> None:
    """A duplicate is never compared with the holder of its key."""
    import outbox_api.reserve as reserve

    async def same(*_: object) -> None:
        return None

    reserve.same_effect = same  # type: ignore[assignment]


def send_by() -> None:
    """A request leaves whenever its turn comes."""
    from outbox_worker.transport import Transport

    send = Transport.send

    async def sends_always(self: Transport, *arguments: object, **options: object) -> object:
        options["send_by"] = float(options["send_by"]) + 3600.0  # type: ignore[arg-type]
        return await send(self, *arguments, **options)  # type: ignore[arg-type]

    Transport.send = sends_always  # type: ignore[assignment,method-assign]


GUARDS: dict[str, Callable[[], None]] = {made.__name__: made for made in (attempt_check, own_attempt, digest_check, send_by)}


def main() -> None:
    """Take the guard out, then run the service as `python -m` does."""
    guard, module = sys.argv[1], sys.argv[2]
    # What a service cannot even import is no guard of it: the API has no transport.
    if not (guard == "send_by" and module == "outbox_api") and not (guard == "digest_check" and module == "outbox_worker"):
        GUARDS[guard]()
    sys.argv[:] = [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
