"""The schedule is a function of its seed and of what is still empty, and a pass leaves no nemesis, edge or fault out."""

from tests.fault.battery.schedule import (
    AGENT_COMMITTED,
    AHEAD,
    CLASSES,
    COMMITTED,
    EDGES,
    EXECUTORS,
    FAULTS,
    KEYS_MAX,
    MAIL,
    NEMESES,
    NOT_COMMITTING,
    STAGES,
    Cell,
    Round,
    a_pass,
    impossible,
    possible_cells,
)


def wanted_by(rounds: list[Round]) -> list[Cell]:
    """The cells that the operations of these rounds are for."""
    return [(one.nemesis, of.fault, of.edge) for one in rounds for of in one.operations if of.edge is not None]


def test_a_seed_is_a_schedule() -> None:
    """The same seed gives the same rounds, another seed or another pass others; the order of the cells says nothing."""
    cells = possible_cells()
    assert a_pass(7, 0, cells=cells) == a_pass(7, 0, cells=cells[::-1])
    assert a_pass(7, 0, cells=cells) != a_pass(8, 0, cells=cells)
    assert a_pass(7, 0, cells=cells) != a_pass(7, 1, cells=cells)


def test_a_pass_has_an_operation_for_every_cell() -> None:
    """Every nemesis at every edge with every fault, every class, and a token for each operation alone."""
    drawn = a_pass(7, 0, cells=possible_cells())
    assert sorted(wanted_by(drawn)) == sorted(possible_cells())
    operations = [operation for one in drawn for operation in (*one.ahead, *one.operations)]
    assert len({operation.token for operation in operations}) == len(operations)
    assert {CLASSES[operation.tool] for operation in operations} == {"A", "B", "C"}


def test_a_round_strikes_at_one_stage() -> None:
    """Operations of one strike reach their edges at about the same time, and are not more than can be held."""
    for one in a_pass(7, 0, cells=possible_cells()):
        assert any(set(one.edges) <= set(stage) for stage in STAGES)
        assert len(one.operations) <= KEYS_MAX
        assert len(one.ahead) == AHEAD


def test_what_is_empty_is_played_again() -> None:
    """A later pass is about the empty cells, with several operations for each, none that may end in a doubt for a person."""
    empty = [("kill-api", "hang", "before T1"), ("kill-api", "none", "T2 in flight"), ("redis-kill", "none", "after T3")]
    drawn = a_pass(7, 1, cells=empty, copies=2, keys_min=10)
    assert [len(one.operations) for one in drawn] == [10, 10]
    assert all(wanted_by(drawn).count(cell) >= 2 for cell in empty)
    assert all(operation.tool != MAIL for one in drawn for operation in one.operations)


def test_an_effect_is_carried_out_by_whom_its_edge_says() -> None:
    """An operation at an edge of agents is of a tool that agents carry out, one at an edge of workers is not."""
    for one in a_pass(7, 0, cells=possible_cells(), keys_min=50):
        executors = {EDGES[edge].executor for edge in one.edges}
        assert len(executors) == 1
        assert {EXECUTORS[of.tool] for of in (*one.ahead, *one.operations)} == executors


def test_what_is_impossible_has_a_reason() -> None:
    """Who has committed nothing is not met afterwards; nobody is struck by what is not on the way; events speak of no tool of an agent's."""
    everywhere = [(nemesis, fault, edge) for nemesis in NEMESES for fault in FAULTS for edge in EDGES]
    named = {cell for cell in everywhere if impossible(*cell)}
    assert set(possible_cells()) == set(everywhere) - named
    on_the_way = {cell for cell in named if impossible("postgres-stop", *cell[1:])}
    committing = {edge for _, fault, edge in on_the_way if fault == "fail-500"}
    assert committing == {COMMITTED, AGENT_COMMITTED}
    assert {fault for _, fault, edge in on_the_way if edge == COMMITTED} == set(NOT_COMMITTING)
    agents = {edge for edge in EDGES if EDGES[edge].executor == "client"}
    assert {edge for _, fault, edge in on_the_way if fault == "webhook early"} == agents
    passed_by = {(nemesis, edge in agents) for nemesis, _, edge in named - on_the_way}
    assert ("kill-worker", True) in passed_by
    assert ("kill-agent", False) in passed_by
    assert not {nemesis for nemesis, _ in passed_by} & {"kill-api", "postgres-stop", "api-redis reset"}
