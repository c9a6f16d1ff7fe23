"""
How another terminal asks something of a cluster that runs: a UNIX socket in its folder.

One question a connection, a line of JSON, and one answer: C{{"verb": "kill", "names": ["n1"]}} and
C{{"said": [...], "rows": [...]}} or C{{"error": "..."}}.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .needs import ClusterError

__all__ = ["ask", "serve"]

_NAME = "control"

# Whatever is asked is done or given up within this; the longest is a start, which is waited for.
_SECONDS = 90.0


@contextmanager
def _short_path(folder: Path) -> Iterator[str]:
    """The socket's path; a UNIX socket's must be short, and a folder's may be long."""
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{fd}/{_NAME}"
    finally:
        os.close(fd)


async def serve(
    folder: Path, answer: Callable[[str, list[str]], Awaitable[dict[str, Any]]]
) -> asyncio.Server:
    """Answer questions until the server is closed.  A socket that was left behind is replaced."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            question = json.loads(await asyncio.wait_for(reader.readline(), _SECONDS))
            try:
                reply = await answer(question["verb"], question["names"])
            except ClusterError as e:
                reply = {"error": str(e)}
            writer.write(json.dumps(reply).encode() + b"\n")
            await writer.drain()
        except (OSError, ValueError, LookupError, TypeError, TimeoutError):
            pass  # who asked is gone, or does not speak so
        finally:
            writer.close()

    with _short_path(folder) as path:
        return await asyncio.start_unix_server(connected, path)


def ask(folder: Path, verb: str, names: list[str]) -> dict[str, Any]:
    """
    Ask the cluster of a folder.

    @raise ClusterError: none runs there, or it refuses; the text says why.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_SECONDS)
        try:
            with _short_path(folder) as path:
                connection.connect(path)
        except OSError:
            raise ClusterError(
                f"no cluster runs in {folder}: start one with 'msglog cluster', or name its "
                f"folder (--dir)"
            ) from None
        try:
            connection.sendall(json.dumps({"verb": verb, "names": names}).encode() + b"\n")
            with connection.makefile() as answer:
                reply: dict[str, Any] = json.loads(answer.readline())
        except (OSError, ValueError):
            raise ClusterError(f"the cluster in {folder} ended, or does not answer") from None
    if "error" in reply:
        raise ClusterError(reply["error"])
    return reply
