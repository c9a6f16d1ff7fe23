"""C{msglog ping}: is the server there, how long does it take to answer, and what are its terms?"""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING

import click
import orjson

from .._enquiry import Answer, Enquirer, EnquiryFailed
from .._servers import address_text, parse_servers
from ._console import printable, servers_option, tls_options
from ._number import Number

if TYPE_CHECKING:
    from .._client_tls import TLS

__all__ = ["command"]

# A healthy server answers within milliseconds, a busy one within the commits before the answer;
# what checks health gives up after some seconds itself.
TIMEOUT_SECONDS = 5.0

_HELP = """
Ask a server for its terms, and time the answer.

One ENQUIRY goes there and one TERMS comes back: which version of the protocol the server speaks,
how long a body it takes, and its window. The server answers from its commits, so an answer says
that commits go on and not only that it listens (a full disk is for /readyz to say). Nothing is
logged.

\b
Examples:
  msglog ping
  msglog ping --server log.example:7514 --count 10 --interval 0.2
  msglog ping --quiet --timeout 2 || echo 'msglog does not answer'
  msglog ping --json | jq .round_trip_ms

\b
Exit status:
  0  every ENQUIRY was answered by TERMS
  1  one was not: no server, no answer in time, or a refusal
  2  the command line is wrong
"""


@click.command("ping", help=_HELP, short_help="Ask a server for its terms, and time the answer.")
@servers_option("Where the server is; repeat it to ask several.")
@tls_options
@click.option(
    "-c",
    "--count",
    metavar="N",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="How often to ask; 0: until Ctrl-C.",
)
@click.option(
    "-i",
    "--interval",
    metavar="SECONDS",
    type=Number(min=0, max=86400),
    default=1.0,
    show_default=True,
    help="From one time to the next.",
)
@click.option(
    "-t",
    "--timeout",
    metavar="SECONDS",
    type=Number(min=0, min_open=True, max=86400),
    default=TIMEOUT_SECONDS,
    show_default=True,
    help="For one answer, connecting included (but not a name server's time).",
)
@click.option("-q", "--quiet", is_flag=True, help="Print nothing; the exit status says it all.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line for each time.")
def command(
    servers: tuple[str, ...],
    count: int,
    interval: float,
    timeout: float,
    quiet: bool,
    as_json: bool,
    tls: TLS | None,
) -> int:
    try:
        enquirers = {
            address_text(address): Enquirer(address, tls) for address in parse_servers(servers)
        }
    except ValueError as e:
        raise click.BadParameter(str(e), param_hint="'--server'") from e
    tally = _Tally()
    try:
        for number in range(count) if count else itertools.count():
            if number:
                time.sleep(interval)
            for server, enquirer in enquirers.items():
                try:
                    answer: Answer | EnquiryFailed = enquirer.ask(timeout)
                except EnquiryFailed as e:
                    answer = e
                tally.take(answer)
                if as_json:
                    click.echo(orjson.dumps(_as_json(server, answer)))
                elif not quiet:
                    _say(server, answer)
    finally:
        if tally.asked > 1 and not quiet and not as_json:
            click.echo(tally.text())
    return 0 if tally.asked == len(tally.round_trips) else 1


class _Tally:
    """What came of several enquiries."""

    def __init__(self) -> None:
        self.asked = 0
        self.round_trips: list[float] = []

    def take(self, answer: Answer | EnquiryFailed) -> None:
        self.asked += 1
        if isinstance(answer, Answer):
            self.round_trips.append(answer.round_trip_ns / 1e6)

    def text(self) -> str:
        took = sorted(self.round_trips)
        text = f"{len(took)} of {self.asked} answered"
        if took:
            text += (
                f": least {took[0]:.3f} ms, median {took[len(took) // 2]:.3f} ms, "
                f"most {took[-1]:.3f} ms"
            )
        return text


def _say(server: str, answer: Answer | EnquiryFailed) -> None:
    if isinstance(answer, EnquiryFailed):
        click.echo(f"msglog: {printable(f'{server}: {answer}')}", err=True)
        return
    terms = answer.terms
    click.echo(
        f"{server}: {answer.round_trip_ns / 1e6:.3f} ms, version {terms.version}, "
        f"bodies up to {terms.max_body} bytes, window {terms.window}"
    )


def _as_json(server: str, answer: Answer | EnquiryFailed) -> dict[str, object]:
    if isinstance(answer, EnquiryFailed):
        return {"server": server, "error": str(answer)}
    terms = answer.terms
    return {
        "server": server,
        "version": terms.version,
        "longest_body": terms.max_body,
        "window": terms.window,
        "connect_ms": answer.connect_ns / 1e6,
        "round_trip_ms": answer.round_trip_ns / 1e6,
    }
