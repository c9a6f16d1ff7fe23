"""A run while it lasts: the bar in the terminal."""

from __future__ import annotations

import time

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from .._load.loop import UNCOUNTED, Plan
from ._console import terminal

__all__ = ["Bar"]

# Characters of the bar itself, and what stands beside it: the phase, the time, the rate, and the
# ^C that a terminal echoes, which would otherwise fold the line and leave a piece of it behind.
_NARROWEST, _WIDEST = 10, 100
_OTHER_COLUMNS = 44


class Bar:
    """How far a run is, on stderr, if that is a terminal."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._counted = plan.messages != UNCOUNTED
        total: float | None = plan.warm_up + plan.seconds
        if self._counted:
            # How many the warm-up takes is not known, and with it not how many it will be.
            total = None if plan.warm_up else plan.messages
        console = terminal()
        self._shown = console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description:<9}"),
            BarColumn(max(_NARROWEST, min(console.width - _OTHER_COLUMNS, _WIDEST))),
            TimeElapsedColumn(),
            TextColumn("{task.fields[rate]:>20}"),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task("", start=False, total=total, rate="")
        self._begun = self._before = 0.0
        self._acked = 0

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._begun:
            self._progress.stop()

    def show(self, acked: int) -> None:
        """Show that so many messages are acknowledged."""
        if not self._shown:
            return
        now = time.monotonic()
        if not self._begun:
            # With the first news, and not before: the bar has a thread, and by now all processes
            # of the load are forked.
            self._begun = self._before = now
            self._progress.start()
            self._progress.start_task(self._task)
        rate = (acked - self._acked) / max(now - self._before, 0.001)
        self._acked, self._before = acked, now
        elapsed = now - self._begun
        self._progress.update(
            self._task,
            completed=acked if self._counted else elapsed,
            description="warm-up" if elapsed < self._plan.warm_up else "measuring",
            rate=f"{rate:,.0f} messages/s" if rate else "",
        )
