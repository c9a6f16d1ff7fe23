"""Ctrl-C while something is under way that should end in order."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType

__all__ = ["CtrlC"]


class CtrlC:
    """
    While entered, the first Ctrl-C is only noticed, and the second one ends the command.

    @param noticed: called with the first one.
    @ivar seen: whether there was one.
    """

    def __init__(self, noticed: Callable[[], object] | None = None) -> None:
        self._noticed = noticed
        self.seen = False

    def __enter__(self) -> CtrlC:
        self._before = signal.signal(signal.SIGINT, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.seen:
            raise KeyboardInterrupt
        self.seen = True
        if self._noticed is not None:
            self._noticed()
