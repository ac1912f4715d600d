"""Tables as commands print them."""

from __future__ import annotations

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

WIDTH_MAX = 10_000


def show(table: Table) -> None:
    """Prints a table. Where the output is no terminal each row is one line, however long, so that it can be searched.

    Args:
        table: what is printed to standard output.
    """
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = Measurement.get(console, console.options.update(width=WIDTH_MAX), table).maximum
    console.print(table)
