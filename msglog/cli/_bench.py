"""C{msglog bench}: how many messages a second a server acknowledges, and after how long."""

from __future__ import annotations

import importlib.util
import os
import resource
import sys
from datetime import UTC, datetime
from pathlib import Path

import click
import orjson

from .._client_tls import TLS
from .._enquiry import Answer, Enquirer, EnquiryFailed
from .._load.loop import UNCOUNTED, Plan
from .._load.processes import Run
from .._servers import Address, address_text, parse_servers
from ._bench_progress import Bar
from ._bench_report import Report, draw
from ._console import fail, servers_option, terminal, tls_options
from ._ctrl_c import CtrlC
from ._number import Number

__all__ = ["command"]

# Enough clients for the server's group commit to gather what it can.
CONNECTIONS = 100

# Deep enough to hide the disk's time, and far inside a server's usual window.
WINDOW = 100

# The server's own usual maximum, and what its figures are given for.
SIZE = 256

# Some checkpoints' beginnings and some hundred commits; short enough to be asked twice.
SECONDS = 5.0

# The server's first commits open files and fill caches.
WARM_UP_SECONDS = 1.0

# One process sends more than a million messages a second, several times what the server takes.
PROCESSES = 1

# A day: what is counted over time stays small, and nobody means more.
_LONGEST_SECONDS = 86400.0

# Ports of one address to another; more connections cannot be made from here.
_MOST_CONNECTIONS = 60_000

# Above what one process sends, so that nobody finds out by a figure that means nothing.
_HIGHEST_RATE = 1e7

# For the server's terms before the load.
_ENQUIRY_SECONDS = 5.0

# Bodies of all connections at once, each of which holds one frame at least.
_MOST_BODIES_BYTES = 1 << 30

# Files that a process has open beside its connections.
_OTHER_FILES = 32

# Below this part of the rate that was asked for, messages came faster than the server took them.
_KEPT_UP = 0.97

# A process that uses more of its core may have been what was measured.
_BUSY = 0.8

_HELP = """
Load a server, and measure how fast it acknowledges.

Every connection is a client of its own and keeps a window of messages unacknowledged: it sends the
next one when a receipt comes. With --rate, messages come when they come, as events do, and wait for
room in the window if they must. Each receipt is checked against what was sent.

THE MESSAGES ARE REALLY LOGGED: they go into the server's log and stay there, about 400 bytes each,
or half a gigabyte in 5 seconds at 250,000 a second. Their bodies begin with "msglog bench". Use a
server of its own for it, or one whose log you can do without.

The rate is that of the time after the warm-up. A message's latency is from when its client could
send it to the arrival of its receipt.

\b
Examples:
  msglog bench
  msglog bench --connections 1000 --window 1 --seconds 10
  msglog bench --rate 20000 --window 1024
  msglog bench --plot bench.svg
  msglog bench --messages 100000 --json | jq .latency_ms

\b
Exit status:
  0    measured; every message was acknowledged
  1    not measured, or not to the end: no server, a message refused, a connection
       lost, a receipt wrong
  2    the command line is wrong
  130  ended by Ctrl-C; what was measured until then is printed
"""


def _chart_file(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    if value is not None and value.suffix.lower() not in (".svg", ".png"):
        raise click.BadParameter(f"{str(value)!r} does not end in .svg or .png")
    return value


@click.command("bench", help=_HELP, short_help="Load a server, and measure how fast it is.")
@servers_option("The server to load.")
@tls_options
@click.option(
    "-c",
    "--connections",
    metavar="N",
    type=click.IntRange(1, _MOST_CONNECTIONS),
    default=CONNECTIONS,
    show_default=True,
    help="Clients at the same time.",
)
@click.option(
    "-w",
    "--window",
    metavar="N",
    type=click.IntRange(min=1),
    default=WINDOW,
    show_default=True,
    help="Messages that each keeps unacknowledged; 1: one at a time.",
)
@click.option(
    "-r",
    "--rate",
    metavar="N",
    type=Number(min=0, min_open=True, max=_HIGHEST_RATE),
    help="Messages that come each second, of all clients together, whether or not the server keeps "
    "up.  [default: each is sent when its client has room]",
)
@click.option(
    "--size",
    metavar="BYTES",
    type=click.IntRange(min=0),
    default=SIZE,
    show_default=True,
    help="Of each body.",
)
@click.option(
    "-t",
    "--seconds",
    metavar="SECONDS",
    type=Number(min=0, min_open=True, max=_LONGEST_SECONDS),
    help=f"How long to measure.  [default: {SECONDS:g}, or as long as --messages takes]",
)
@click.option(
    "-n",
    "--messages",
    metavar="N",
    type=click.IntRange(min=1),
    help="How many messages to measure, of all clients together.  [default: as many as can]",
)
@click.option(
    "--warm-up",
    metavar="SECONDS",
    type=Number(min=0, max=_LONGEST_SECONDS),
    help=f"Load before the measurement.  [default: {WARM_UP_SECONDS:g}, or none with --messages]",
)
@click.option(
    "-p",
    "--processes",
    metavar="N",
    type=click.IntRange(1, 64),
    default=PROCESSES,
    show_default=True,
    help="That share the connections. One is enough unless the bench itself says it is not.",
)
@click.option(
    "--plot",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=_chart_file,
    help="Draw latencies and the rate over time as .svg or .png (needs 'msglog[plot]').",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of the table.")
def command(
    servers: tuple[str, ...],
    connections: int,
    window: int,
    rate: float | None,
    size: int,
    seconds: float | None,
    messages: int | None,
    warm_up: float | None,
    processes: int,
    plot: Path | None,
    as_json: bool,
    tls: TLS | None,
) -> int:
    address = _one(servers)
    server = address_text(address)
    if plot is not None:
        _see_to_chart(plot)
    answer = _terms(address, tls)
    _check_terms(answer, window, size)
    _check_machine(connections, size)
    if seconds is None:
        seconds = SECONDS if messages is None else _LONGEST_SECONDS
    if warm_up is None:
        warm_up = WARM_UP_SECONDS if messages is None else 0.0
    plan = Plan(
        address=answer.address,
        connections=connections,
        window=window,
        size=size,
        warm_up=warm_up,
        seconds=seconds,
        messages=UNCOUNTED if messages is None else messages,
        host=address[0],
        tls=tls,
        rate=rate or 0.0,
    )
    processes = min(processes, connections)
    started = datetime.now(UTC)
    run = Run(plan, processes)
    with CtrlC(run.stop) as ctrl_c, Bar(plan) as bar:
        measured = run.measure(bar.show)
    report = Report(server, plan, processes, answer.terms, started, measured)
    if as_json:
        click.echo(orjson.dumps(report.as_json(), option=orjson.OPT_INDENT_2))
    elif measured.rate:
        draw(report, terminal(sys.stdout))
    if plot is not None and measured.rate:
        _plot(report, plot)
    if measured.problem:
        fail(measured.problem)
    if ctrl_c.seen:
        click.echo("msglog: ended by Ctrl-C", err=True)
        return 130
    if rate and messages is None and measured.rate < _KEPT_UP * rate:
        click.echo(
            f"msglog: the server did not keep up: {measured.rate:,.0f} messages/s of {rate:,.0f}, "
            f"so each waited longer than the one before",
            err=True,
        )
    if measured.busy > _BUSY:
        click.echo(
            f"msglog: a process of the bench used {measured.busy:.0%} of a processor core and may "
            f"have been the bottleneck: try --processes {processes + 1}",
            err=True,
        )
    return 0


def _one(servers: tuple[str, ...]) -> Address:
    try:
        found = parse_servers(servers)
    except ValueError as e:
        raise click.BadParameter(str(e), param_hint="'--server'") from e
    if len(found) != 1:
        raise click.BadParameter("one server is loaded at a time", param_hint="'--server'")
    return found[0]


def _see_to_chart(plot: Path) -> None:
    """Before minutes of load, see whether there can be a chart of it."""
    # Not imported yet: it is 0.5 s, and threads that would be in the way of a fork.
    if importlib.util.find_spec("matplotlib") is None:
        fail("--plot needs matplotlib: pip install 'msglog[plot]'")
    if not os.access(plot if plot.exists() else plot.parent, os.W_OK):
        fail(f"{plot} cannot be written: is its folder there, and yours?")


def _terms(address: Address, tls: TLS | None) -> Answer:
    enquirer = Enquirer(address, tls)
    try:
        return enquirer.ask(_ENQUIRY_SECONDS)
    except EnquiryFailed as e:
        fail(f"{address_text(address)}: {e}")
    finally:
        enquirer.close()


def _check_terms(answer: Answer, window: int, size: int) -> None:
    terms = answer.terms
    if size > terms.max_body:
        fail(
            f"the server takes bodies up to {terms.max_body} bytes, not {size}: "
            f"use --size {terms.max_body}, or start it with --max-message-bytes {size}"
        )
    if window > terms.window:
        fail(
            f"the server's window is {terms.window} messages, not {window}: "
            f"use --window {terms.window}, or start it with --window {window}"
        )


def _check_machine(connections: int, size: int) -> None:
    if connections * size > _MOST_BODIES_BYTES:
        fail(
            f"{connections} connections with bodies of {size} bytes need more than "
            f"{_MOST_BODIES_BYTES >> 20} MiB: use fewer, or a smaller --size"
        )
    need = connections + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < need:
        if hard != resource.RLIM_INFINITY and hard < need:
            fail(
                f"{connections} connections need {need} open files, and this system allows "
                f"{hard}: use fewer --connections, or raise its limit (ulimit -n)"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (need, hard))


def _plot(report: Report, plot: Path) -> None:
    from . import _chart

    try:
        _chart.save(report, plot)
    except OSError as e:
        fail(f"the chart was not written to {plot}: {e.strerror or e}")
