"""Functions of the caller's that are effects: `@outbox.effect(...)` gives each call of one an operation key and a result."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Concatenate, Generic, ParamSpec

from agent_outbox.effect import Effect, is_async
from agent_outbox.errors import BadHandlerError
from agent_outbox.results import CallResult
from agent_outbox.settings import UNSET, Unset
from agent_outbox.tool_call import ToolCall

P = ParamSpec("P")

Function = Callable[Concatenate[Effect, P], Any]
"""A function whose first argument is the effect; its other arguments are the input of the tool."""

Run = Callable[[ToolCall, Callable[[Effect], Any]], Any]


class _Decorated:
    """What both kinds share: a function, its tool, and what its calls say besides their input."""

    def __init__(self, run: Run, tool: str, function: Callable[..., Any], names: dict[str, Any]) -> None:
        self._run = run
        self._tool = tool
        self._function = function
        self._names = names
        self._signature = _checked(function)
        self.__name__ = getattr(function, "__name__", tool)
        self.__doc__ = function.__doc__
        self.__wrapped__ = function

    def _call(self, *args: Any, **kwargs: Any) -> tuple[ToolCall, Callable[[Effect], Any]]:
        """The tool call that the arguments are, and what carries it out."""
        bound = self._signature.bind(None, *args, **kwargs)
        bound.apply_defaults()
        _, *rest = self._signature.parameters
        input: dict[str, Any] = {}
        for name in rest:
            value = bound.arguments[name]
            input.update(value if self._signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD else {name: value})
        if is_async(self._function):

            async def carry_out(effect: Effect) -> Any:
                return await self._function(effect, *args, **kwargs)

            return ToolCall(tool=self._tool, input=input, **self._names), carry_out
        return ToolCall(tool=self._tool, input=input, **self._names), lambda effect: self._function(effect, *args, **kwargs)


class EffectFunction(_Decorated, Generic[P]):
    """A function that is an effect; calling it asks for the effect and waits for its end."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> CallResult:
        """Have the effect once for these arguments.

        Args:
            args, kwargs: of the function, without the effect; they are the input of the tool.

        Returns:
            As `Outbox.run`.

        Raises:
            OutboxError, TypeError: as `Outbox.run`; the arguments do not fit the function.
        """
        result: CallResult = self._run(*self._call(*args, **kwargs))
        return result

    def using(
        self,
        *,
        reference: str | Unset | None = UNSET,
        occurrence: int | Unset | None = UNSET,
        run: str | Unset | None = UNSET,
        checkpoint: str | Unset | None = UNSET,
        step: str | Unset | None = UNSET,
    ) -> EffectFunction[P]:
        """The same function for one business case, run or step.

        Args:
            reference, occurrence, run, checkpoint, step: as for a `ToolCall`.
        """
        return EffectFunction(
            self._run, self._tool, self._function, _with(self._names, reference, occurrence, run, checkpoint, step)
        )


class AsyncEffectFunction(_Decorated, Generic[P]):
    """A function that is an effect, of an `AsyncOutbox`; awaiting its call asks for the effect and waits for its end."""

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> CallResult:
        """Have the effect once for these arguments.

        Args:
            args, kwargs: of the function, without the effect; they are the input of the tool.

        Returns:
            As `AsyncOutbox.run`.

        Raises:
            OutboxError, TypeError: as `AsyncOutbox.run`; the arguments do not fit the function.
        """
        running: Awaitable[CallResult] = self._run(*self._call(*args, **kwargs))
        return await running

    def using(
        self,
        *,
        reference: str | Unset | None = UNSET,
        occurrence: int | Unset | None = UNSET,
        run: str | Unset | None = UNSET,
        checkpoint: str | Unset | None = UNSET,
        step: str | Unset | None = UNSET,
    ) -> AsyncEffectFunction[P]:
        """The same function for one business case, run or step.

        Args:
            reference, occurrence, run, checkpoint, step: as for a `ToolCall`.
        """
        names = _with(self._names, reference, occurrence, run, checkpoint, step)
        return AsyncEffectFunction(self._run, self._tool, self._function, names)


def _with(names: dict[str, Any], reference: Any, occurrence: Any, run: Any, checkpoint: Any, step: Any) -> dict[str, Any]:
    said = {"reference": reference, "occurrence": occurrence, "run": run, "checkpoint": checkpoint, "step": step}
    return {**names, **{name: value for name, value in said.items() if value is not UNSET}}


def _checked(function: Callable[..., Any]) -> inspect.Signature:
    """The signature of a function whose first argument can be an effect.

    Raises:
        BadHandlerError: it has none, or arguments without names.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        raise BadHandlerError("function: its signature cannot be read.") from None
    parameters = list(signature.parameters.values())
    named = f"{getattr(function, '__name__', 'function')}{signature}"
    if not parameters or parameters[0].kind not in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD):
        raise BadHandlerError(f"{named}: expected the effect as its first argument.")
    if any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters):
        raise BadHandlerError(f"{named}: expected arguments that have names; *args have none, so they cannot be an input.")
    return signature
