"""What C{tail} and C{cat} say on stderr while records go to stdout."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import click

from ._console import printable

__all__ = ["Remarks"]

# Remarks about damage that are printed in full; the others are only counted.  A file that is no
# log has millions, and after this many nobody reads on.
_MOST = 100


class Remarks:
    """
    @param flush: brings what was written to stdout out first, so that both stand in order.
    @ivar damaged: how many places were remarked on as damaged.
    """

    def __init__(self, flush: Callable[[], None]) -> None:
        self._flush = flush
        self.damaged = 0

    def say(self, text: str) -> None:
        """One line."""
        self._flush()
        click.echo(f"msglog: {printable(text)}", file=sys.stderr)

    def damage(self, path: Path, offset: int, reason: str) -> None:
        """A line is no record."""
        self.damaged += 1
        if self.damaged <= _MOST:
            self.say(f"{path} is damaged at byte {offset} ({reason}); that line is left out")
        elif self.damaged == _MOST + 1:
            self.say("more damage follows, which is only counted from here on")

    def unreadable(self, reason: str) -> None:
        """A file cannot be read."""
        self.damaged += 1
        self.say(reason)

    def unfinished(self, path: Path, offset: int, size: int) -> None:
        """The last line has no newline."""
        self.say(
            f"{path} ends in the middle of a line, {size} bytes from byte {offset} on: it is being "
            f"written, or a crash tore it"
        )

    def summary(self) -> None:
        """What is to be said at the end."""
        if self.damaged > _MOST:
            self.say(f"damaged in all: {self.damaged:,}; msglog verify lists each place")
