"""What came of a fault: how often the effect was wanted, recorded and made, and whether that is once."""

from __future__ import annotations

from dataclasses import dataclass

FAULTS = ("time-out", "crash", "loop", "fork")
"""The faults that can be played.

| fault | what happens |
|---|---|
| time-out | the effect happens and its answer is lost; the agent asks again |
| crash | the agent is killed (SIGKILL) when the effect has happened and nobody knows it yet; it is started again and asks again |
| loop | a model asks for the same effect in step after step |
| fork | copies of the agent, each a run of its own, ask for the same effect at the same moment |
"""


@dataclass(frozen=True)
class Story:
    """What a ledger and a handler say after a fault was played.

    Attributes:
        fault: which.
        told: what each agent was told, in order: `done`, `waiting`, `refused`, `in-doubt`, `killed`.
        planned: how many effects the ledger knows of.
        succeeded: how many of them it says succeeded.
        receipts: how many receipts it has.
        references: the provider's names of the effects, as the receipts say them.
        executions: how often the handler was begun.
        effects: how many effects the handler has made: of class A as many as provider keys it came to an end with, because the
            provider takes one key for one effect; else as often as it came to an end. Of a tool that the gateway carries out: how
            many effects the sandbox provider has counted meanwhile; None where there is none.
    """

    fault: str
    told: tuple[str, ...]
    planned: int
    succeeded: int
    receipts: int
    references: tuple[str, ...]
    executions: int
    effects: int | None

    def duplicates(self, effects: int | None = None) -> int:
        """How many effects there are beyond the planned ones.

        Args:
            effects: what the provider itself has counted; the handler's own account when None.
        """
        return max(0, self._effects(effects) - self.planned)

    def assert_once(self, *, effects: int | None = None) -> None:
        """Planned 1, succeeded 1, receipt 1, duplicates 0.

        Args:
            effects: how many the provider itself has counted, which is better evidence than the handler's own account.

        Raises:
            AssertionError: it is not so; the message says what is.
        """
        counted = self._effects(effects)
        right = (self.planned, self.succeeded, self.receipts, counted) == (1, 1, 1, 1)
        if not right or self.told[-1] != "done":
            raise AssertionError(f"not once: {self.sentence(effects)}")

    def assert_never_twice(self, *, effects: int | None = None) -> None:
        """Planned 1, duplicates 0, and a success only with its receipt; a doubt is said as one.

        That is what a tool can promise whose effect can neither be repeated under one key nor be looked up.

        Args:
            effects: how many the provider itself has counted.

        Raises:
            AssertionError: it is not so; the message says what is.
        """
        honest = self.told[-1] in ("done", "in-doubt") and (self.told[-1] == "done") == (self.succeeded == 1)
        if self.planned != 1 or self._effects(effects) > 1 or self.receipts != self.succeeded or not honest:
            raise AssertionError(f"twice, or not said as it is: {self.sentence(effects)}")

    def sentence(self, effects: int | None = None) -> str:
        """Everything in one line, for people."""
        told = ", ".join(self.told)
        counted = self._effects(effects)
        return (
            f"{self.fault}: planned {self.planned}, succeeded {self.succeeded}, receipts {self.receipts}, effects {counted}, "
            f"duplicates {self.duplicates(effects)}, handler begun {self.executions} times; the agents were told: {told}"
        )

    def _effects(self, given: int | None) -> int:
        counted = self.effects if given is None else given
        if counted is None:
            raise ValueError("nobody has counted the effects: say how many the provider has made, as effects=")
        return counted
