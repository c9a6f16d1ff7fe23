"""C{python -m benchmarks growth}: what becomes of rate and latency as one thing grows."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click
from attrs import asdict, define, field

from msglog._load.sender import LoadError

from . import _runs as runs
from ._measure import Figures, Load, load
from ._prepared import crowd, make_ledger, make_log
from ._runs import Bench, bench, read_kept, say, systems_option
from ._systems import MSGLOG, NotStarted, Running, System

__all__ = ["command"]

GIB = 1 << 30

CONNECTIONS = (1, 10, 100, 1000, 5000, 10_000, 20_000)
SIZES = (0, 16, 64, 256, 1024, 4096, 16_384, 65_536)
LOG_GIB = (0, 1, 5, 10, 20)
CLIENTS = (1, 1000, 10_000, 100_000, 1_000_000, 5_000_000)
# 0: one process does all.  More workers than cores gain nothing, which the last one shows.
WORKERS = tuple(range((os.cpu_count() or 1) + 2))

SECONDS = 2.0
_QUICK_SECONDS = 0.3

# Descriptors besides those of connections, in a server and in the load.
_OTHER_FILES = 128

# Addresses to connect from: the ports of each to the server's are not many more than the most
# connections, and those of connections that have ended are not free for a minute.
_SOURCES = tuple(f"127.0.0.{number}" for number in range(2, 10))

# Messages in flight on each connection, as connections grow.
_WINDOWS = (1, 10)

# What each is loaded with as something else grows.
_SIZES_LOAD = (100, 10)
_LOG_LOADS = ((100, 1), (100, 100))
_CLIENTS_LOAD = (100, 10)
_WORKERS_LOADS = ((1, 1), (100, 1), (100, 100), (1000, 1), (1000, 10))

# What an own limit would otherwise be in the way of.
_MANY_CONNECTIONS = {
    "msglog": ("--max-connections", "100000", "--max-connections-per-address", "100000"),
    "redis": ("--maxclients", "50000"),
}
_LONG_MESSAGES = {"msglog": ("--max-message-bytes", str(max(SIZES)))}


@define
class _Growth:
    """
    The points of one growth, kept as they are found.

    @ivar found: for each its value, series, figures, and how long the start took.
    @ivar failures: what could not be measured, and why.
    """

    run: Bench
    what: str
    seconds: float
    found: list[dict[str, Any]] = field(factory=list)
    failures: list[str] = field(factory=list)

    def fail(self, what: str, why: object) -> None:
        """Note that something could not be measured."""
        self.failures.append(f"{what}: {why}")
        say(f"failed: {self.failures[-1]}")

    def has(self, value: int, series: str) -> bool:
        return any(p["value"] == value and p["series"] == series for p in self.found)

    def add(self, value: int, series: str, figures: Figures, start_seconds: float) -> None:
        self.found.append(
            {
                "value": value,
                "series": series,
                "start_seconds": round(start_seconds, 3),
                "figures": asdict(figures),
            }
        )
        order = {name: at for at, name in enumerate(dict.fromkeys(p["series"] for p in self.found))}
        self.found.sort(key=lambda point: (order[point["series"]], point["value"]))
        say(
            f"{self.what} {value:,}, {series}: {figures.rate:,.0f}/s, p50 {figures.p50_ms:.2f} ms, "
            f"p99 {figures.p99_ms:.2f} ms; start {start_seconds:.2f} s, "
            f"{figures.memory / 2**20:,.0f} MiB"
        )
        self.run.report(self.as_json(), as_json=False)  # so that an end loses nothing

    def as_json(self) -> dict[str, Any]:
        return {
            "what": self.what,
            "seconds": self.seconds,
            "points": self.found,
            "failures": self.failures,
        }

    def measure(self, running: Running, value: int, series: str, what: Load, **more: Any) -> None:
        """Measure a point; what fails is said and left out."""
        try:
            figures = load(running, what, self.seconds, **more)
        except LoadError as e:
            self.fail(f"{self.what} {value:,}, {series}", e)
        else:
            self.add(value, series, figures, running.start_seconds)
        time.sleep(0.1)


def _values(ctx: click.Context, param: click.Parameter, value: str) -> list[int]:
    try:
        values = [int(number) for number in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"{value!r}: numbers, with commas between") from None
    if min(values) < 0:
        raise click.BadParameter(f"{value!r}: numbers from 0")
    return values


def _growth_options(values: Sequence[int], unit: str) -> Callable[[Any], Any]:
    def decorate(command: Callable[..., Any]) -> Any:
        for option in (
            click.option(
                "--resume",
                is_flag=True,
                help="Go on where a run with --keep ended: measure only what it has not.",
            ),
            click.option(
                "--seconds",
                type=click.FloatRange(0.05),
                default=SECONDS,
                show_default=True,
                help="Of each measurement.",
            ),
            click.option(
                "--values",
                metavar="NUMBERS",
                default=",".join(map(str, values)),
                show_default=True,
                callback=_values,
                help=f"{unit}, several with commas between.",
            ),
            runs.server_options,
            runs.options,
        ):
            command = option(command)
        return command

    return decorate


def _grow(
    what: str,
    grow: Callable[[_Growth, list[int]], None],
    values: Iterable[int],
    seconds: float,
    folder: Path | None,
    quick: bool,
    keep: bool,
    as_json: bool,
    resume: bool,
) -> int:
    """One growth from its beginning to its report."""
    if quick:
        seconds = min(seconds, _QUICK_SECONDS)
    name = f"growth-{what}"
    with bench(name, folder, keep) as run:
        growth = _Growth(run, what, seconds)
        kept = read_kept(name) if resume else None
        if kept is not None:
            growth.found = kept["points"]
        grow(growth, sorted(values))
        run.report(growth.as_json(), as_json)
    if keep:
        from ._page import write

        write()
    if not as_json:
        for line in _table(growth):
            click.echo(line)
    return 1 if growth.failures or not growth.found else 0


def _table(growth: _Growth) -> list[str]:
    lines = [f"{'':>12}  {growth.what}"]
    for point in growth.found:
        figures = Figures(**point["figures"])
        lines.append(
            f"{point['value']:>12,}  {point['series']:<28}{figures.rate:>9,.0f}/s"
            f"  p50 {figures.p50_ms:>8,.2f} ms  p99 {figures.p99_ms:>8,.2f} ms"
            f"  {figures.memory / 2**20:>7,.0f} MiB  start {point['start_seconds']:>6.2f} s"
        )
    return lines


@click.group("growth", short_help="As one thing grows: connections, sizes, log, clients, workers.")
def command() -> None:
    """Measure what becomes of rate and latency as one thing grows."""


@command.command("connections")
@_growth_options(CONNECTIONS, "Connections")
@systems_option(("msglog", "redis"))
def _connections(
    systems: list[System], values: list[int], server_options: list[str], **how: Any
) -> int:
    """Connections, with 1 and with 10 messages in flight on each."""

    def grow(growth: _Growth, values: list[int]) -> None:
        most = growth.run.files - _OTHER_FILES
        if values[-1] > most:
            say(f"this system allows {growth.run.files:,} open files: {most:,} are the most")
            values = sorted({min(value, most) for value in values})
        for system in systems:
            for window in _WINDOWS:
                series = f"{system.title}, {window} in flight"
                left = [value for value in values if value and not growth.has(value, series)]
                with _started(growth, system, series, _MANY_CONNECTIONS, server_options) as running:
                    for value in left if running else ():
                        what = Load(value, window)
                        growth.measure(running[0], value, series, what, sources=_SOURCES)

    return _grow("connections", grow, values, **how)


@command.command("sizes")
@_growth_options(SIZES, "Bytes of each body")
@systems_option(("msglog", "redis"))
def _sizes(systems: list[System], values: list[int], server_options: list[str], **how: Any) -> int:
    """Bytes of each message, over 100 connections with 10 in flight on each."""

    def grow(growth: _Growth, values: list[int]) -> None:
        for system in systems:
            series = system.title
            left = [value for value in values if not growth.has(value, series)]
            with _started(growth, system, series, _LONG_MESSAGES, server_options) as running:
                for value in left if running else ():
                    growth.measure(running[0], value, series, Load(*_SIZES_LOAD, value))

    return _grow("sizes", grow, values, **how)


@command.command("log")
@_growth_options(LOG_GIB, "GiB of log")
def _log(values: list[int], server_options: list[str], **how: Any) -> int:
    """GiB that the log has already: sparse files that end in a record; and the time of a start."""

    def grow(growth: _Growth, values: list[int]) -> None:
        for value in values:
            folder = growth.run.folder / f"log-{value}"
            folder.mkdir()
            log = folder / "messages.jsonl"
            make_ledger(log, make_log(log, value * GIB))
            _prepared(growth, folder, value, _LOG_LOADS, server_options)
            log.unlink()

    return _grow("log", grow, values, **how)


@command.command("clients")
@_growth_options(CLIENTS, "Clients that the ledger knows")
def _clients(values: list[int], server_options: list[str], **how: Any) -> int:
    """Clients that the ledger knows; each message is from another one of them."""

    def grow(growth: _Growth, values: list[int]) -> None:
        for value in values:
            if not value or growth.has(value, _series(*_CLIENTS_LOAD)):
                continue
            folder = growth.run.folder / f"clients-{value}"
            folder.mkdir()
            log = folder / "messages.jsonl"
            make_ledger(log, make_log(log, 4096), value)
            connections = min(_CLIENTS_LOAD[0], value)
            make = crowd(value, connections, Load(1, 1).size)
            _prepared(growth, folder, value, (_CLIENTS_LOAD,), server_options, make, connections)

    return _grow("clients", grow, values, **how)


@command.command("workers")
@_growth_options(WORKERS, "Worker processes; 0: none")
def _workers(values: list[int], server_options: list[str], **how: Any) -> int:
    """Worker processes that serve connections (--workers), under several loads."""

    def grow(growth: _Growth, values: list[int]) -> None:
        for value in values:
            folder = growth.run.folder / f"workers-{value}"
            _prepared(
                growth, folder, value, _WORKERS_LOADS, [f"--workers={value}", *server_options]
            )

    return _grow("workers", grow, values, **how)


@contextmanager
def _started(
    growth: _Growth,
    system: System,
    series: str,
    more: Mapping[str, Sequence[str]],
    server_options: Sequence[str],
) -> Iterator[list[Running]]:
    """A system for a series, in a list; in none, if it does not start."""
    chosen = [*more.get(system.name, ()), *(server_options if system is MSGLOG else ())]
    folder = growth.run.folder / "".join(c if c.isalnum() else "-" for c in series)
    with ExitStack() as stack:
        running = []
        if not system.installed:
            say(f"left out: {system.name} is not installed ({system.package})")
        else:
            try:
                running = [stack.enter_context(Running(system, folder, chosen))]
            except NotStarted as e:
                growth.fail(series, e)
        yield running


def _series(connections: int, window: int) -> str:
    return f"{connections} × {window}"


def _prepared(
    growth: _Growth,
    folder: Path,
    value: int,
    loads: Sequence[tuple[int, int]],
    server_options: Sequence[str],
    make: Any = None,
    connections: int | None = None,
) -> None:
    """Start msglog on what was prepared, and load it."""
    try:
        with Running(MSGLOG, folder, server_options) as running:
            for many, window in loads:
                series = _series(many, window)
                if not growth.has(value, series):
                    what = Load(connections or many, window)
                    growth.measure(running, value, series, what, make=make)
    except NotStarted as e:
        growth.fail(f"{growth.what} {value:,}", e)
