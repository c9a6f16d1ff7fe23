"""A reactor's time that goes on evenly, whatever is done to the system's clock."""

from __future__ import annotations

import time
from typing import Any

from attrs import Factory, frozen

__all__ = ["steady"]


@frozen
class _SteadySeconds:
    """
    Seconds that begin as the system's clock has them, and pass as real ones do.

    They do not begin at 0, so that what was scheduled before is due when it should be, and what
    takes them for a date is nearly right.
    """

    _ahead: float = Factory(lambda: time.time() - time.monotonic())

    def __call__(self) -> float:
        return time.monotonic() + self._ahead


def steady(reactor: Any) -> None:
    """
    Have a reactor's timers see no change of the system's clock.

    Twisted's reactors schedule by C{time.time}: if the clock is set back by an hour, each timer is
    an hour late, and who is silent is not noticed for as long; if it is set forward, all are due
    at once.  All that they know of time they ask of their own C{seconds}.

    @param reactor: before anything keeps its C{seconds}, as the store and the factory do.
    """
    if not isinstance(reactor.seconds, _SteadySeconds):
        reactor.seconds = _SteadySeconds()
