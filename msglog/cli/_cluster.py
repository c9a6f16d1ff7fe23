"""C{msglog cluster}: a replicated msglog to try, with whatever is to be killed in it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ._console import fail, terminal

if TYPE_CHECKING:
    from .._cluster.layout import Layout
    from .._cluster.needs import Programs

__all__ = ["command"]

_Function = TypeVar("_Function", bound=Callable[..., Any])

DEFAULT_FOLDER = Path("msglog-cluster")

# Between two looks at all members: what a person takes for at once.
_LOOK_SECONDS = 0.3

_HELP = """
Run a replicated msglog on this machine, to try it.

Three nats-servers keep one stream with three replicas, each in a folder of its own and synced
before it acknowledges; two servers of msglog ('front-ends') share it. All of it listens on
127.0.0.1 alone, without passwords: it is for a trial, and other users of this machine can get at
it.

It shows what runs and waits for Ctrl-C, which ends all of it. If this command is killed itself, the
kernel ends the rest. What was logged is kept in the folder: the same command goes on with it. To be
rid of it, remove the folder.

Kill what you like, with the commands below or with kill(1). Nothing is started again by itself, but
by 'msglog cluster start'. docs/cluster-tutorial.md goes through it.

\b
NAME is n1, n2 or n3 (nats-servers), front1 or front2, leader (the node that
leads the stream just now), or follower (one that does not).

\b
Examples:
  msglog cluster
  msglog cluster kill leader
  msglog cluster start
  msglog cluster --dir /tmp/another --port 7600

\b
Exit status:
  0  it was ended (SIGTERM, SIGHUP); of the commands below: it was done
  1  it could not start: a program is missing, a port is taken, the folder is
     something else's; of the commands below: it could not be done
  2  the command line is wrong
  130  Ctrl-C
"""


@click.group(
    "cluster",
    help=_HELP,
    short_help="Run a replicated msglog on this machine, to try it.",
    invoke_without_command=True,
)
@click.option(
    "-d",
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_FOLDER,
    show_default=True,
    help="Where its data is, or is to be.",
)
@click.option(
    "--port",
    metavar="N",
    type=click.IntRange(1, 65000),
    help="The first of 13 ports in a row that it listens on.  [default: 7520]",
)
@click.pass_context
def command(ctx: click.Context, folder: Path, port: int | None) -> int | None:
    ctx.obj = folder
    if ctx.invoked_subcommand is None:
        return _run(folder, port)
    if port is not None:
        raise click.UsageError("--port is for a start of the cluster, not for its commands")
    return None


def _names(required: bool = True) -> Callable[[_Function], _Function]:
    return click.argument("names", metavar="NAME...", nargs=-1, required=required)


@command.command()
@_names()
@click.pass_obj
def kill(folder: Path, names: tuple[str, ...]) -> None:
    """Kill members at once (SIGKILL)."""
    _ask(folder, "kill", names, "killed")


@command.command()
@_names()
@click.pass_obj
def stop(folder: Path, names: tuple[str, ...]) -> None:
    """Have members leave in good order (nats-servers: SIGUSR2, front-ends: SIGTERM)."""
    _ask(folder, "stop", names, "stopped")


@command.command()
@_names()
@click.pass_obj
def pause(folder: Path, names: tuple[str, ...]) -> None:
    """Have members do nothing, as if they hung (SIGSTOP)."""
    _ask(folder, "pause", names, "paused")


@command.command()
@_names(required=False)
@click.pass_obj
def resume(folder: Path, names: tuple[str, ...]) -> None:
    """Have members that are paused, or all of these, go on (SIGCONT); wait until up to date."""
    _ask(folder, "resume", names, "resumed")


@command.command()
@_names(required=False)
@click.pass_obj
def start(folder: Path, names: tuple[str, ...]) -> None:
    """Start members that are dead, or all of these, and wait until they are up to date."""
    _ask(folder, "start", names, "started")


@command.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of the table.")
@click.pass_obj
def status(folder: Path, as_json: bool) -> None:
    """Show what runs where; status 1 if something does not work."""
    from .._cluster.running import Row

    reply = _asked(folder, "status", ())
    rows = [Row(**row) for row in reply["rows"]]
    if as_json:
        click.echo(json.dumps({key: reply[key] for key in ("servers", "url", "rows")}))
    else:
        from ._cluster_view import table

        terminal(sys.stdout).print(table(rows, reply["servers"]))
    if not all(row.good for row in rows):
        raise click.exceptions.Exit(1)


def _asked(folder: Path, verb: str, names: tuple[str, ...]) -> dict[str, Any]:
    from .._cluster.control import ask
    from .._cluster.needs import ClusterError

    try:
        return ask(folder, verb, list(names))
    except ClusterError as e:
        fail(str(e))


def _ask(folder: Path, verb: str, names: tuple[str, ...], done: str) -> None:
    for line in _asked(folder, verb, names)["said"]:
        click.echo(f"{done}: {line}")


def _run(folder: Path, port: int | None) -> int:
    # Here and not above: 'msglog cluster kill' should not wait for it.
    from .._cluster.layout import DEFAULT_PORT, Layout
    from .._cluster.needs import ClusterError, check_ports, claim_folder, find_programs

    layout = Layout.of(folder, port or DEFAULT_PORT)
    try:
        programs = find_programs()
        with claim_folder(folder):
            check_ports(layout)
            number = asyncio.run(_until_ended(layout, programs, _introduction(folder, layout)))
    except ClusterError as e:
        fail(str(e))
    return 130 if number == signal.SIGINT else 0


async def _until_ended(layout: Layout, programs: Programs, introduction: str) -> int:
    """Run a cluster until a signal says to end; which one."""
    from .._cluster.control import serve
    from .._cluster.running import Cluster
    from ._cluster_view import View

    view = View(layout.servers)
    cluster = Cluster(layout, programs, view.say)
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()

    def take(number: int) -> None:
        if ended.done():
            cluster.kill()  # the second one is in a hurry
        else:
            ended.set_result(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, take, number)
    with view:
        try:
            view.say(f"starting in {layout.folder}")
            starting = asyncio.ensure_future(cluster.start())
            both: list[asyncio.Future[Any]] = [starting, ended]
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                starting.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await starting
                return ended.result()
            starting.result()
            view.write(introduction)
            async with await serve(layout.folder, cluster.do):
                while not ended.done():
                    await cluster.look()
                    view.show(cluster.rows())
                    await asyncio.wait([ended], timeout=_LOOK_SECONDS)
            view.say("ending")
            return ended.result()
        finally:
            await cluster.end()
            view.show(cluster.rows())


def _introduction(folder: Path, layout: Layout) -> str:
    """What a person may do now."""
    own = "msglog cluster"
    if folder != DEFAULT_FOLDER:
        own += f" --dir {shlex.quote(str(folder))}"
    front1 = layout.front_ends[0]
    examples = (
        (f"export MSGLOG_SERVER={layout.servers}", ""),
        ("msglog send --message hello", ""),
        (f"msglog bench --server {front1.address}", ""),
        (f"{own} kill leader", "or any name of the table; or kill -9 PID"),
        (f"{own} stop leader", "it leaves in good order"),
        (f"{own} pause n1", "it hangs, until resume"),
        (f"{own} start", "starts what is dead"),
        (f"msglog tail -f {layout.url}", ""),
        (f"msglog export {layout.url} messages.jsonl", ""),
        ("msglog verify messages.jsonl", "nothing lost, twice or out of order?"),
    )
    width = max(len(words) for words, comment in examples if comment)
    lines = [
        f"  {words:<{width}}  # {comment}" if comment else f"  {words}"
        for words, comment in examples
    ]
    return "\n".join(
        [
            "The cluster runs: front1 and front2 are 'twistd msglog', n1 to n3 nats-servers.",
            f"Its data is in {folder}, and is kept when it ends.",
            "In another terminal, in this folder:",
            *lines,
            "Ctrl-C ends all of it.",
        ]
    )
