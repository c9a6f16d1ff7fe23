"""What an operator asks of a NATS cluster: to make a stream, and how one is set up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from attrs import frozen
from nats import errors

from ._errors import MsglogError
from ._jetstream import EngineError, Reply, info_subject, read_info
from ._nats_access import INBOX_PREFIX, NatsAccess
from ._nats_client import NatsClient

__all__ = [
    "StreamError",
    "StreamState",
    "ask_once",
    "create_stream",
    "make_stream",
    "read_stream",
    "servers_sync",
]

# For a connection, and for an answer: a person waits, and a new cluster may still elect its leader.
_SECONDS = 10.0
_MONITOR_SECONDS = 5.0

_NO_JETSTREAM = "nobody answers for the stream: it has no leader, or there is no JetStream"


class StreamError(MsglogError):
    """What was asked for could not be done; the text says why."""


@frozen
class StreamState:
    """
    How a stream is.

    @ivar config: its configuration.
    @ivar replicas: the servers that have it, and whether each is there and up to date.
    """

    config: dict[str, Any]
    replicas: dict[str, bool]


async def _request(
    access: NatsAccess, subject: str, payload: bytes, complaints: list[str]
) -> Reply:
    """
    Ask over a connection of its own.

    @param complaints: takes what the servers did not like, as it comes.
    @raise StartError: a file that the connection needs cannot be read.
    """
    client = NatsClient(access)

    async def complained(error: Exception) -> None:
        if complaints and isinstance(error, OSError):
            return  # a server that has said why it closes does so; its words say more
        complaints.append(str(error).removeprefix("nats: ") or type(error).__name__)

    try:
        await asyncio.wait_for(
            client.connect(
                **access.options(),
                name="msglog stream",
                inbox_prefix=INBOX_PREFIX,
                error_cb=complained,
                max_reconnect_attempts=2,
                reconnect_time_wait=0.2,  # type: ignore[arg-type] # it is slept for
            ),
            _SECONDS,
        )
        message = await client.request(subject, payload, timeout=_SECONDS)
        return Reply(message.data)
    except errors.NoRespondersError:
        return Reply(None, _NO_JETSTREAM)
    except (TimeoutError, OSError, errors.Error) as e:
        return Reply(None, complaints[-1] if complaints else str(e) or type(e).__name__)
    finally:
        if client.is_connected:
            await client.close()


async def _ask(access: NatsAccess, subject: str, payload: bytes) -> dict[str, Any]:
    reply = await _request(access, subject, payload, [])
    if reply.trouble == _NO_JETSTREAM:
        raise StreamError(
            f"{access} has no JetStream, or not for this user: add 'jetstream {{}}' to the "
            f"servers' configuration"
        )
    if reply.data is None:
        raise StreamError(f"{access} does not answer: {reply.trouble}")
    try:
        return read_info(reply)
    except EngineError as e:
        why = "there is no such stream; msglog stream create makes it" if e.missing else str(e)
        raise StreamError(f"{access}: {why}") from None


def ask_once(access: NatsAccess, subject: str, payload: bytes, seconds: float) -> Reply:
    """
    Ask and wait, in a thread: before a reactor runs, and when one does.

    @param seconds: for how long.
    @raise StartError: a file that the connection needs cannot be read.
    """

    complaints: list[str] = []

    async def ask() -> Reply:
        try:
            asking = _request(access, subject, payload, complaints)
            return await asyncio.wait_for(asking, seconds)
        except TimeoutError:
            # One that was let in nowhere in that time was still told so.
            return Reply(None, complaints[-1] if complaints else f"no answer within {seconds:g} s")

    with ThreadPoolExecutor(1, "msglog asks NATS") as threads:
        return threads.submit(asyncio.run, ask()).result()


async def make_stream(access: NatsAccess, config: dict[str, Any]) -> None:
    """
    Make a stream, if it is not there just so.

    @raise StreamError: that is not possible.
    @raise StartError: a file that the connection needs cannot be read.
    """
    subject = f"$JS.API.STREAM.CREATE.{config['name']}"
    await _ask(access, subject, json.dumps(config).encode())


def create_stream(access: NatsAccess, config: dict[str, Any]) -> None:
    """L{make_stream}, where no asyncio loop runs."""
    asyncio.run(make_stream(access, config))


def read_stream(access: NatsAccess, stream: str) -> StreamState:
    """
    How a stream is.

    @raise StreamError: it is not there, or nobody can say.
    @raise StartError: a file that the connection needs cannot be read.
    """
    info = asyncio.run(_ask(access, info_subject(stream), b""))
    cluster = info.get("cluster") or {}
    replicas = {cluster["leader"]: True} if cluster.get("leader") else {}
    for replica in cluster.get("replicas") or ():
        replicas[replica["name"]] = bool(replica.get("current")) and not replica.get("offline")
    return StreamState(info["config"], replicas)


def servers_sync(monitors: Iterable[str]) -> dict[str, bool]:
    """
    Whether each server syncs what it stores before it acknowledges it.

    @param monitors: the servers' monitoring addresses (C{http://host:8222}).
    @raise StreamError: one does not say.
    """
    found = {}
    for monitor in monitors:
        if not monitor.startswith(("http://", "https://")):
            raise StreamError(f"{monitor} is not http://HOST:PORT")
        try:
            with urlopen(f"{monitor.rstrip('/')}/jsz", timeout=_MONITOR_SECONDS) as answer:
                config = json.load(answer)["config"]
        except (URLError, OSError, ValueError, KeyError, TypeError) as e:
            raise StreamError(f"{monitor}/jsz does not say how the server syncs: {e}") from None
        found[monitor] = bool(config.get("sync_always"))
    return found
