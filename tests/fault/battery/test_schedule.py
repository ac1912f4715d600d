"""The schedule is a function of its seed, and a pass of it leaves no nemesis, edge or fault out."""

import itertools

from tests.fault.battery.schedule import CLASSES, EDGES, FAULTS, NEMESES, impossible, rounds

A_PASS = len(NEMESES) * len(EDGES)


def test_a_seed_is_a_schedule() -> None:
    """The same seed gives the same rounds, another seed others."""
    first, again, other = (list(itertools.islice(rounds(seed, operations_per_round=20), 30)) for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_a_pass_strikes_everything_everywhere_with_every_fault() -> None:
    """Every nemesis at every edge once, every fault in every round, every class, and a token for each operation alone."""
    drawn = list(itertools.islice(rounds(7, operations_per_round=20), A_PASS))
    assert {(one.nemesis, one.edge) for one in drawn} == set(itertools.product(NEMESES, EDGES))
    assert all({operation.fault for operation in one.operations} == set(FAULTS) for one in drawn)
    operations = [operation for one in drawn for operation in one.operations]
    assert len({operation.token for operation in operations}) == len(operations)
    assert {CLASSES[operation.tool] for operation in operations} == {"A", "B", "C"}


def test_what_is_impossible_has_a_reason() -> None:
    """Only a provider that commits nothing cannot be met after it has committed."""
    named = {(fault, edge) for fault in FAULTS for edge in EDGES if impossible(fault, edge)}
    assert {edge for _, edge in named} == {"provider committed, not answered"}
    assert {fault for fault, _ in named} == {"drop-before-commit", "fail-500", "reject-402", "rate-limit"}
