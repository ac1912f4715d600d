"""What stops a command with one sentence instead of a traceback."""

import sys
from typing import NoReturn


class Refusal(Exception):
    """The command cannot be done as asked; the message is the sentence shown to the person who asked."""


def exit_with(sentence: object) -> NoReturn:
    """Ends the command with exit code 1 and the sentence on standard error, in one line that can be searched for and copied."""
    print(f"Error: {sentence}", file=sys.stderr)
    sys.exit(1)
