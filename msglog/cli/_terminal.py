"""A console whose reader may go."""

from __future__ import annotations

from typing import IO

from rich.console import Console

__all__ = ["Terminal"]


class Terminal(Console):
    """
    One that writes text as it is: no markup, no emoji, no colours of its own choice.

    That nobody reads it any more is for the command to say something about; rich would end the
    process, with status 1.
    """

    def __init__(self, file: IO[str]) -> None:
        super().__init__(file=file, markup=False, emoji=False, highlight=False)

    def on_broken_pipe(self) -> None:
        """Raise it; this is called while it is handled."""
        raise
