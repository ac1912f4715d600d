"""Handlers are refused before anything is reserved, and a lease is never believed to be longer than it is."""

import functools
from collections.abc import Callable
from typing import Any

import pytest

from agent_outbox import AsyncOutbox, Outbox, ToolCall
from agent_outbox.effect import Lease, checked_handler, is_async
from agent_outbox.errors import BadHandlerError, SettingsError

CALL = ToolCall(tool="billing.charge.create", input={"order": "o-1"})
NOBODY = "http://127.0.0.1:9"


class Callee:
    """A handler as an object."""

    def __call__(self, effect: object) -> None:
        """Does nothing."""

    def method(self, effect: object) -> None:
        """Does nothing."""


class AsyncCallee:
    """An asynchronous handler as an object."""

    async def __call__(self, effect: object) -> None:
        """Does nothing."""


async def coroutine(effect: object) -> None:
    """Does nothing."""


def with_more(effect: object, more: int) -> None:
    """Does nothing."""


GOOD: list[Any] = [
    lambda effect: None,
    lambda effect, more=1: None,
    lambda *effects: None,
    Callee(),
    Callee().method,
    functools.partial(with_more, more=1),
]
BAD: list[Any] = [
    lambda: None,
    lambda effect, more: None,
    lambda *, effect: None,
    with_more,
    functools.partial(with_more, None, 1),
    "handler",
    None,
    dict.update,
    (lambda effect: (yield)),
]
ASYNC: list[Any] = [coroutine, AsyncCallee(), functools.partial(coroutine)]


@pytest.mark.parametrize("handler", GOOD)
def test_a_function_of_one_argument_is_a_handler(handler: Callable[..., Any]) -> None:
    """Whatever can be called with exactly the effect is taken by both clients."""
    checked_handler(handler, "handler", async_allowed=False)
    assert not is_async(handler)


@pytest.mark.parametrize("handler", BAD)
async def test_anything_else_is_refused_before_anything_is_asked(handler: Any, tmp_path: Any) -> None:
    """A handler or probe that cannot be called so is a typed error of both clients although no gateway answers at all."""
    with pytest.raises(BadHandlerError):
        Outbox(url=NOBODY, spool=tmp_path).run(CALL, handler)
    with pytest.raises(BadHandlerError):
        await AsyncOutbox(url=NOBODY, spool=tmp_path).run(CALL, handler)
    if handler is not None:
        with pytest.raises(BadHandlerError):
            Outbox(url=NOBODY, spool=tmp_path).run(CALL, lambda effect: None, probe=handler)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("handler", ASYNC)
def test_a_coroutine_needs_an_event_loop(handler: Any) -> None:
    """An asynchronous handler is refused by `Outbox`, in any of its forms, and taken by `AsyncOutbox`."""
    assert is_async(handler)
    checked_handler(handler, "handler", async_allowed=True)
    with pytest.raises(BadHandlerError, match="AsyncOutbox"):
        Outbox(url=NOBODY, spool=None).run(CALL, handler)


@pytest.mark.parametrize("function", [lambda: None, lambda *, effect: None, lambda effect, *more: None, lambda **more: None])
def test_a_function_that_cannot_be_an_effect_is_refused_when_it_is_decorated(function: Any) -> None:
    """The decorator wants the effect first and names for everything else, and says so at once."""
    for outbox in (Outbox(url=NOBODY, spool=None), AsyncOutbox(url=NOBODY, spool=None)):
        with pytest.raises(BadHandlerError):
            outbox.effect("billing.charge.create", key="input")(function)


def test_a_text_as_receipt_belongs_to_a_contract() -> None:
    """A JMESPath without an inline contract would be ignored by the gateway, so it is refused; a function is not."""
    with pytest.raises(SettingsError):
        Outbox(url=NOBODY, spool=None).run(CALL, lambda effect: None, receipt="id")


def test_a_lease_counts_from_before_it_was_asked_for() -> None:
    """It ends so long after the question as was granted, renewed or not, and a time limit ends it earlier, never later."""
    now = 100.0
    lease = Lease(asked_at=95.0, seconds=10.0, clock=lambda: now)
    assert (lease.left(), lease.over()) == (5.0, None)
    lease.begin(3.0)
    assert lease.left() == 3.0
    lease.extend(asked_at=99.0, seconds=10.0)
    assert (lease.until, lease.left()) == (109.0, 3.0)
    lease.extend(asked_at=90.0, seconds=10.0)
    assert lease.until == 109.0, "an answer that was overtaken takes nothing back"
    now = 103.0
    assert lease.over() == "time limit"
    lease.limit_until = None
    assert lease.over() is None
    now = 109.0
    assert lease.over() == "lease over"
    lease.lost = True
    assert (lease.over(), lease.left() < 0) == ("lease lost", True)
