"""The protocol's model, as far as every run of the tests can afford it; `make model` searches more and `make model-long` all of it."""

import pytest
from tests.model import selftest
from tests.model.checks import ASSUMPTIONS, CONTROLS, GROUPS, HOLDS, HOLES, Check
from tests.model.dispatch import INVARIANTS

AFFORDABLE = [check for check in HOLDS if check.cost == 0]


def named(check: Check) -> str:
    """The id of a check's test."""
    return check.name


def test_the_explorer_knows_what_is_known() -> None:
    """The explorer gives the known answers to problems that have one."""
    assert selftest.failures() == []


@pytest.mark.parametrize("check", AFFORDABLE, ids=named)
def test_the_protocol_holds(check: Check) -> None:
    """No reachable state of the protocol as it is built breaks an invariant, and every action that the check is about is met."""
    found = check.run()
    assert check.faults(found) == [], found.trace
    assert found.complete


@pytest.mark.parametrize("check", HOLES, ids=named)
def test_a_mended_hole_is_found_again(check: Check) -> None:
    """Without a guard that an earlier design lacked there is a counter-example, of the stated length."""
    found = check.run()
    assert check.faults(found) == [], found.trace


@pytest.mark.parametrize("check", CONTROLS, ids=named)
def test_a_removed_guard_is_noticed(check: Check) -> None:
    """Negative control: without a guard there is a counter-example, of the stated length."""
    found = check.run()
    assert check.faults(found) == [], found.trace


@pytest.mark.parametrize("check", ASSUMPTIONS, ids=named)
def test_an_assumption_is_needed(check: Check) -> None:
    """Where the world is not as the product believes there is a counter-example: the assumption is one, and is worth watching."""
    found = check.run()
    assert check.faults(found) == [], found.trace


def test_checks_have_names_of_their_own() -> None:
    """No two checks share a name, and each invariant that one expects or ignores exists."""
    checks = [check for group in GROUPS.values() for check in group]
    assert len({check.name for check in checks}) == len(checks)
    dispatching = [check for check in checks if check.of.__name__ == "Dispatch"]
    assert {name for check in dispatching for name in check.ignore} <= set(INVARIANTS)
    expected = {check.breaks for check in dispatching if check.breaks and not check.breaks.startswith("liveness: ")}
    assert [breaks for breaks in expected if not any(name.startswith(breaks) for name in INVARIANTS)] == []
    assert all((check.steps is None) == (check.breaks is None) for check in checks)


def test_a_wrong_expectation_is_noticed() -> None:
    """Negative control: a check that expects another verdict, another length, or that never met what it is about, has a fault."""
    [broken] = [check for check in CONTROLS if check.name == "control: sent before T2"]
    found = broken.run()
    assert broken.faults(found) == []
    assert Check(name="holds", rules=broken.rules, world=broken.world).faults(found)
    assert Check(name="other", world=broken.world, breaks="failed has no effect", steps=broken.steps).faults(found)
    assert Check(name="longer", world=broken.world, breaks=broken.breaks, steps=99).faults(found)
    quiet = Check(name="nothing happens", world={"guarantee": "C", "reservations_max": 0})
    assert quiet.faults(quiet.run()) == ["never met: answer", "never met: settle"]
