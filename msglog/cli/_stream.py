"""C{msglog stream}: the NATS JetStream stream that servers with C{--store} share."""

from __future__ import annotations

from pathlib import Path

import click

from .._counted import counted
from .._errors import StartError
from .._nats_access import NatsAccess
from .._shards import MAX_SHARDS, shards_of
from ._console import fail
from ._nats_options import complete_access, nats_access, see_to_nats

__all__ = ["command"]


@click.group(name="stream")
def command() -> None:
    """
    Make and check the NATS JetStream stream of 'twistd msglog --store'.

    URL is nats://[USER:PASSWORD@|TOKEN@]HOST:PORT[,HOST:PORT...], or tls://... with TLS.

    \b
    Examples:
      msglog stream create nats://n1:4222,n2:4222,n3:4222
      msglog stream create nats://127.0.0.1:4222 --replicas 1      (for a trial)
      msglog stream check nats://n1:4222 --monitor http://n1:8222

    \b
    Exit status: 0, it is so; 1, it is not, or could not be seen; 2, the command line is wrong.
    """
    see_to_nats()


# An account has one log.
_ANOTHER_LOG = ": there is a log already, by another name or with another number of shards"

_shards = click.option(
    "--shards",
    type=click.IntRange(1, MAX_SHARDS),
    default=1,
    show_default=True,
    help="Over how many streams the clients are spread (--store-shards of the servers). It can "
    "never be changed.",
)


@command.command()
@nats_access
@_shards
@click.option(
    "--replicas",
    type=click.IntRange(1, 5),
    default=3,
    show_default=True,
    help="How many servers keep each message. 3 survive the loss of one; 1 is for a trial.",
)
@click.option(
    "--max-bytes",
    type=click.IntRange(min=1),
    help="When the stream, or each of the shards, is full: messages are refused then, none is "
    "removed. No limit if not given.",
)
def create(
    url: NatsAccess,
    stream: str,
    shards: int,
    replicas: int,
    max_bytes: int | None,
    **files: Path | None,
) -> None:
    """Make the stream, or one for each shard, with settings that keep what is acknowledged."""
    from .._nats_admin import StreamError, create_stream
    from .._stream_settings import stream_config

    access = complete_access(url, **files)
    for shard in shards_of(stream, shards):
        try:
            create_stream(access, stream_config(shard.name, replicas, max_bytes or -1))
        except (StreamError, StartError) as e:
            fail(f"{e}{_ANOTHER_LOG if 'overlap' in str(e) else ''}")
        click.echo(
            f"{shard.name} is there: {counted(replicas, 'replica')}, nothing is ever removed"
        )
    click.echo("whether the servers sync before they acknowledge: msglog stream check --monitor")


@command.command()
@nats_access
@_shards
@click.option(
    "--monitor",
    "monitors",
    multiple=True,
    metavar="URL",
    help="A server's monitoring address (http://HOST:8222), which says whether it syncs before it "
    "acknowledges. Repeat it for each server.",
)
def check(
    url: NatsAccess,
    stream: str,
    shards: int,
    monitors: tuple[str, ...],
    **files: Path | None,
) -> None:
    """Name every setting that weakens what an ACK promises; the worst first."""
    from .._nats_admin import StreamError, read_stream, servers_sync
    from .._stream_settings import find_weaknesses

    access = complete_access(url, **files)
    names = [shard.name for shard in shards_of(stream, shards)]
    try:
        states = {name: read_stream(access, name) for name in names}
        syncs = servers_sync(monitors)
    except (StreamError, StartError) as e:
        fail(str(e))
    lax = [monitor for monitor, always in syncs.items() if not always]
    servers = {replica for state in states.values() for replica in state.replicas}
    asked_all = len(syncs) >= max(len(servers), 1)
    sync_always = False if lax else True if asked_all else None
    found = []
    for name, state in states.items():
        where = f"{name}: " if shards > 1 else ""
        found += [f"{where}{weakness}" for weakness in find_weaknesses(state.config, sync_always)]
        found += [
            f"{where}replica {replica}: away or behind"
            for replica, good in state.replicas.items()
            if not good
        ]
    for line in found:
        click.echo(line)
    if found:
        raise click.exceptions.Exit(1)
    click.echo(f"{', '.join(names)}: nothing weakens what is promised")
