"""Options of a run and defaults of its ledger, merged field by field; None that was given is a value."""

from __future__ import annotations

from dataclasses import dataclass

from agent_outbox.compat.agent_ledger.types import ConcurrencyOptions, RunOptions, StaleOptions

DEFAULT_CONCURRENCY = ConcurrencyOptions()
DEFAULT_STALE = StaleOptions()


@dataclass(frozen=True)
class MergedOptions:
    """What holds for one run."""

    concurrency: ConcurrencyOptions
    stale: StaleOptions


def merge_options(instance_defaults: RunOptions | None, per_call: RunOptions | None) -> MergedOptions:
    """The options of one run.

    Args:
        instance_defaults: the ledger's, where it has some.
        per_call: the run's own, which go before them field by field.
    """
    stated: dict[str, object] = {}
    stale = DEFAULT_STALE
    for options in (instance_defaults, per_call):
        if options is not None and options.concurrency is not None:
            given = options.concurrency
            stated.update({name: getattr(given, name) for name in given.model_fields_set})
        if options is not None and options.stale is not None:
            stale = options.stale
    return MergedOptions(concurrency=DEFAULT_CONCURRENCY.model_copy(update=stated), stale=stale)
