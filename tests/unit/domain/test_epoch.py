"""When it is plain that the ledger has lost its tail, and when it is not."""

from dataclasses import replace
from uuid import UUID

import pytest

from outbox_domain.epoch import Mark, Server, Standing, Witness, loss

HERE, ELSEWHERE = UUID(int=1), UUID(int=2)
ATTEMPT = UUID(int=7)
SERVER = Server(system_identifier=7_713_082_762_708_299_449, timeline=1)
STANDING = Standing(installation_id=HERE, epoch=3, beat=100, known=SERVER, found=SERVER)
MARK = Mark(installation_id=HERE, epoch=3, beat=100, at_ms=1, witness=Witness(organization_id=UUID(int=3), attempt_id=ATTEMPT))


@pytest.mark.parametrize(
    ("standing", "marks", "missing", "cause"),
    [
        (STANDING, [], [], None),
        (STANDING, [MARK], [], None),
        (STANDING, [replace(MARK, beat=99)], [], None),
        (STANDING, [replace(MARK, beat=101)], [], "a mark is ahead of the ledger"),
        (STANDING, [replace(MARK, epoch=4, beat=1)], [], "a mark is ahead of the ledger"),
        (STANDING, [MARK], [ATTEMPT], "an attempt is missing from the ledger"),
        (STANDING, [replace(MARK, witness=None)], [ATTEMPT], None),
        # The epoch that has begun since has put in doubt whatever these speak of.
        (STANDING, [replace(MARK, epoch=2, beat=500)], [ATTEMPT], None),
        (STANDING, [replace(MARK, installation_id=ELSEWHERE, epoch=9, beat=500)], [ATTEMPT], None),
        (STANDING, [replace(MARK, beat=1), replace(MARK, beat=101)], [], "a mark is ahead of the ledger"),
        (replace(STANDING, found=replace(SERVER, timeline=2)), [], [], "another timeline"),
        # A cold copy of before the last promotion.
        (replace(STANDING, known=replace(SERVER, timeline=2)), [], [], "another timeline"),
        (replace(STANDING, found=replace(SERVER, system_identifier=1)), [], [], "another system identifier"),
    ],
)
def test_a_loss_is_seen_exactly_where_something_shows_it(
    standing: Standing, marks: list[Mark], missing: list[UUID], cause: str | None
) -> None:
    """Another server or timeline, a mark ahead, a missing witness; older marks, ended epochs and other ledgers say nothing."""
    assert loss(standing, marks, missing) == cause


@pytest.mark.parametrize("mark", [MARK, replace(MARK, witness=None)])
def test_a_mark_is_read_as_it_was_written(mark: Mark) -> None:
    """Its text fits the block of a file, padded or not."""
    assert Mark.from_text(mark.text()) == mark
    assert Mark.from_text(mark.text().encode().ljust(511) + b"\n") == mark
    assert len(mark.text()) < 511


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "null",
        "[]",
        "[1]",
        '[2, "x", 1, 1, 1, null]',
        MARK.text()[:-20],
        MARK.text().replace("100", '"100"'),
        b"\xff\x00",
        "[" * 500,
    ],
)
def test_what_is_no_mark_is_none(text: str | bytes) -> None:
    """Half a file, another version, and anything else is no mark, and no error."""
    assert Mark.from_text(text) is None
