"""
Measuring systems in turn: a load for a moment on each, then the same again, and medians of it all.

A machine's speed drifts, so what is compared is measured within seconds of each other: each load on
every system before the next round.  A ratio is taken within a round, and the median of those is
given.
"""

from __future__ import annotations

import resource
import socket
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import asdict, astuple, evolve, field, frozen

from msglog._load.histogram import Histogram
from msglog._load.loop import Make, Plan
from msglog._load.processes import Run
from msglog._load.sender import LoadError

from ._systems import NotStarted, Running, System

__all__ = ["SIZE", "Figures", "Load", "Results", "in_turn", "load", "raise_limits", "start_all"]

# Bytes of a body, where nothing else is said: the server's own usual maximum.
SIZE = 256

# Load before each measurement: enough for caches and for what the system left undone.
_WARM_UP_SECONDS = 0.2

# A system of which no answer comes is loaded for longer, up to this.
_LONGEST_SECONDS = 8.0

# Between two measurements, for the system measured last to become idle.
_PAUSE_SECONDS = 0.1


@frozen
class Load:
    """
    What a system is loaded with.

    @ivar rate: messages that come each second; 0: each is sent when there is room in the window.
    """

    connections: int
    window: int
    size: int = SIZE
    rate: float = 0.0

    @classmethod
    def parse(cls, text: str, size: int = SIZE) -> Load:
        """
        A load from its name, C{CONNECTIONSxWINDOW}.

        @raise ValueError: it is none.
        """
        connections, _, window = text.partition("x")
        if not (connections.isdigit() and window.isdigit() and int(connections) and int(window)):
            raise ValueError(f"{text!r} is no load: CONNECTIONSxWINDOW, such as 100x1")
        return cls(int(connections), int(window), size)

    @property
    def name(self) -> str:
        return f"{self.connections}x{self.window}"


@frozen
class Figures:
    """
    What one measurement found.

    @ivar rate: messages acknowledged a second.
    @ivar p50_ms: median latency, milliseconds; the others likewise.
    @ivar generator: the part of a core that the load's busiest process used.
    @ivar server: cores that the system used.
    @ivar memory: bytes that it held in memory afterwards.
    @ivar late_p99_ms: by how much the load itself was late, at a rate.
    """

    rate: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    generator: float
    server: float
    memory: float
    late_p99_ms: float = 0.0


def raise_limits() -> int:
    """Have as many files open as the system allows, here and in what is started; how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else 1 << 20


def load(
    running: Running,
    what: Load,
    seconds: float,
    *,
    sources: tuple[str, ...] = (),
    make: Make | None = None,
) -> Figures:
    """
    Load a system for so many seconds.

    @raise LoadError: it did not take the load.
    """
    own = running.system.make
    plan = Plan(
        address=(socket.AF_INET, ("127.0.0.1", running.port)),
        connections=what.connections,
        window=what.window,
        size=what.size,
        warm_up=_WARM_UP_SECONDS,
        seconds=seconds,
        rate=what.rate,
        sources=sources,
        make=make or (None if own is None else own(what.size)),
    )
    while True:
        used, began = running.cpu_seconds(), time.monotonic()
        measured = Run(plan, 1).measure(lambda acked: None)
        took = time.monotonic() - began
        if measured.rate or measured.problem or plan.seconds > _LONGEST_SECONDS:
            break
        # So slow that no answer came in time: its window is long.
        plan = evolve(plan, seconds=4 * plan.seconds)
    if measured.problem or not measured.rate:
        raise LoadError(measured.problem or "nothing was acknowledged")

    def ms(histogram: Histogram, percent: float) -> float:
        return round(histogram.percentile(percent) / 1e6, 4)

    latencies = measured.latencies
    return Figures(
        rate=round(measured.rate, 1),
        p50_ms=ms(latencies, 50),
        p99_ms=ms(latencies, 99),
        p999_ms=ms(latencies, 99.9),
        max_ms=round(latencies.highest / 1e6, 4),
        generator=round(measured.busy, 3),
        # Connecting and the warm-up are in it, so it is a little less than under full load.
        server=round((running.cpu_seconds() - used) / took, 3),
        memory=running.memory(),
        late_p99_ms=ms(measured.late, 99),
    )


def _median(values: Iterable[float]) -> float:
    return statistics.median(values)


@frozen
class Results:
    """
    Everything measured of some systems under some loads.

    @ivar rounds: by load and system, the figures of each round by its number; those of a round that
        failed are missing.
    @ivar failures: what failed and why.
    """

    rounds: dict[str, dict[str, dict[int, Figures]]] = field(factory=dict)
    failures: list[str] = field(factory=list)

    def add(self, load: str, system: str, number: int, figures: Figures) -> None:
        self.rounds.setdefault(load, {}).setdefault(system, {})[number] = figures

    def median(self, load: str, system: str) -> Figures | None:
        """Each figure's median; C{None} if nothing was measured."""
        found = self.rounds.get(load, {}).get(system)
        if not found:
            return None
        return Figures(
            *(_median(column) for column in zip(*map(astuple, found.values()), strict=True))
        )

    def spread(self, load: str, system: str) -> tuple[float, float]:
        """The lowest and the highest rate of all rounds."""
        rates = [figures.rate for figures in self.rounds[load][system].values()]
        return min(rates), max(rates)

    def ratio(self, load: str, system: str, other: str, name: str = "rate") -> float | None:
        """How many times the other's figure a system's is: the median of the rounds' ratios."""
        mine, others = (self.rounds.get(load, {}).get(s, {}) for s in (system, other))
        ratios = [
            getattr(mine[number], name) / getattr(others[number], name)
            for number in mine.keys() & others.keys()
            if getattr(others[number], name)
        ]
        return _median(ratios) if ratios else None

    def as_json(self) -> dict[str, object]:
        return {
            "rounds": {
                load: {
                    system: {str(number): asdict(f) for number, f in found.items()}
                    for system, found in systems.items()
                }
                for load, systems in self.rounds.items()
            },
            "failures": self.failures,
        }

    @classmethod
    def of_json(cls, found: Any) -> Results:
        results = cls(failures=list(found["failures"]))
        for name, systems in found["rounds"].items():
            for system, rounds in systems.items():
                for number, figures in rounds.items():
                    results.add(name, system, int(number), Figures(**figures))
        return results


def start_all(
    systems: Sequence[System],
    folder: Path,
    enter: Callable[[Running], Running],
    options: Mapping[str, Sequence[str]],
) -> tuple[list[Running], dict[str, str]]:
    """
    Start systems, all of which stay up, idle while others are measured.

    @param enter: enters a context that is left when all is done.
    @param options: more of them, by system.
    @return: those that run, and why others do not.
    """
    running, left_out = [], {}
    for system in systems:
        more = options.get(system.name, ())
        try:
            running.append(enter(Running(system, folder / system.name, more)))
        except NotStarted as e:
            left_out[system.name] = str(e)
    return running, left_out


def in_turn(
    running: Sequence[Running],
    loads: Sequence[Load],
    rounds: int,
    seconds: float,
    say: Callable[[str], object],
) -> Results:
    """Measure each load on every system before the next load, and all of it so many times."""
    results = Results()
    for number in range(rounds):
        for what in loads:
            said = []
            for system in running:
                name = system.system.name
                try:
                    figures = load(system, what, seconds)
                except LoadError as e:
                    results.failures.append(f"{name}, {what.name}, round {number + 1}: {e}")
                    said.append(f"{name} failed")
                else:
                    results.add(what.name, name, number, figures)
                    said.append(f"{name} {figures.rate:,.0f}")
                time.sleep(_PAUSE_SECONDS)
            say(f"round {number + 1} of {rounds}, {what.name}: {', '.join(said)}")
    return results
