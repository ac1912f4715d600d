"""The `outbox` command: one name, assembled from the entry points of whatever is installed.

Every package adds its commands in the group `outbox.commands`; a command is imported only when it is used, because some
of them bring a server along.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points, version
from typing import Any

import rich_click as click

GROUP = "outbox.commands"

LOCAL = ("up", "demo", "migrate", "doctor")
"""Commands that come with the extra `local`; named here so that who lacks them is told what to install."""

EXIT_REFUSED = 1
"""The server refused the request, or what was asked about is not as hoped."""
EXIT_USAGE = 2
"""The words of the command are off."""
EXIT_UNREACHABLE = 3
"""The server did not answer."""
EXIT_KEY = 4
"""The scoped key is missing, unknown, or does not reach this."""


class Assembled(click.RichGroup):
    """A group whose commands are found in the entry points."""

    def _found(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=GROUP)}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all commands, sorted."""
        return sorted(self._found())

    def get_command(self, ctx: click.Context, cmd_name: str) -> Any:
        """The command of this name, imported now; None when there is none."""
        point = self._found().get(cmd_name)
        if point is not None:
            return point.load()
        if cmd_name in LOCAL:
            raise click.UsageError(f"`outbox {cmd_name}` comes with the extra `local`: pip install 'agent-outbox[local]'")
        return None


@click.command(cls=Assembled, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("agent-outbox"), prog_name="outbox")
def main() -> None:
    """The gateway and ledger of an agent's mutating tool calls.

    Commands that talk to a server read OUTBOX_URL and OUTBOX_KEY.

    Exit codes: 0 done, 1 refused, 2 wrong usage, 3 the server did not answer, 4 the key is missing or does not reach this.
    """
