"""C{msglog export}: one log file out of the stream that servers with C{--store} share."""

from __future__ import annotations

import asyncio
from math import inf
from pathlib import Path

import click
from attrs import evolve

from .._counted import counted
from .._errors import StartError
from .._nats_access import NatsAccess
from ._console import fail, printable
from ._nats_options import NATS_URL, complete_access, no_stream, reading_options, see_to_nats

__all__ = ["command"]

# How long nobody may answer before that is an error; not with --follow.
_PATIENCE_SECONDS = 15.0

# How often a stream that is followed is asked for more.
_FOLLOW_SECONDS = 1.0


@click.command(name="export")
@click.argument("url", type=NATS_URL)
@reading_options
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--follow", is_flag=True, help="Go on with what is stored later, until Ctrl-C.")
def command(
    url: NatsAccess, stream: str, api: str, file: Path, follow: bool, **files: Path | None
) -> None:
    """
    Write the messages of a stream into one log file.

    FILE then has every message up to where the stream ended, in its order, as log format version 1:
    'msglog cat', 'verify' and all others read it. Run again, it goes on where it was, also after
    a kill or a power cut: FILE.export says how far it goes. Nothing is ever changed in the stream.

    \b
    Examples:
      msglog export nats://n1:4222,n2:4222,n3:4222 messages.jsonl
      msglog export nats://n1:4222 messages.jsonl --follow

    \b
    Exit status: 0, it is all there; 1, it is not; 2, the command line is wrong; 130, Ctrl-C.
    """
    see_to_nats()
    from .._export import ExportError
    from .._jetstream import EngineError
    from .._stream_following import StreamChanged

    access = evolve(complete_access(url, **files), api=api)
    try:
        asyncio.run(_export(access, stream, file.absolute(), follow))
    except EngineError as e:
        fail(no_stream(access, stream) if e.missing else f"{access}: {e}")
    except (ExportError, StreamChanged, StartError) as e:
        fail(str(e))
    except OSError as e:
        fail(f"cannot write {file}: {e.strerror}")


async def _export(access: NatsAccess, stream: str, path: Path, follow: bool) -> None:
    from .._export import Export, ExportError
    from .._stream_following import StreamFollower
    from .._stream_reader import StreamReader

    def remark(text: str) -> None:
        click.echo(f"msglog: {printable(text)}", err=True)

    async with StreamReader(access, stream, "msglog export") as reader:
        info = await reader.info()
        patience = inf if follow else _PATIENCE_SECONDS
        source = StreamFollower(reader, stream, info, remark, patience=patience)
        end = source.end
        export = Export(path, stream, str(info["created"]))
        try:
            if end < export.position.sequence:
                raise ExportError(
                    f"{path} goes up to message {export.position.sequence}, and the stream ends at "
                    f"{end}: it has lost messages; keep the file"
                )
            source.position = export.position.sequence
            lines = 0
            while follow or export.position.sequence < end:
                messages = await source.poll()
                lines += export.append(messages)
                if not messages:
                    # All of it, or a replica that is behind.
                    await asyncio.sleep(_FOLLOW_SECONDS if follow else 0.1)
            click.echo(
                f"{path}: {counted(lines, 'message')} more, up to message "
                f"{export.position.sequence} of the stream, {export.position.size} bytes"
            )
        finally:
            export.close()
