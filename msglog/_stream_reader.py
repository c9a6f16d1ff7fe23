"""The messages of a stream in their order, fetched in bunches from whichever replica has them."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any

import orjson
from nats import errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from ._jetstream import EngineError, Reply, info_subject, read_info
from ._nats_access import NatsAccess

__all__ = ["StreamReader"]

# A bunch, which is synced as one: some milliseconds' worth, and no memory to speak of.
_MESSAGES = 500
_BYTES = 4 * 1024 * 1024

# For a connection, and for the next message of a bunch: a leader's election takes less.
_SECONDS = 15.0


class StreamReader:
    """
    A connection that reads one stream; an asynchronous context manager.

    @param access: the cluster.
    @param stream: the stream's name.
    """

    def __init__(self, access: NatsAccess, stream: str) -> None:
        self._access = access
        self._stream = stream
        self._client = Client()
        self._complaint = ""

    async def __aenter__(self) -> StreamReader:
        """
        Connect.

        @raise EngineError: that is not possible.
        """
        try:
            connecting = self._client.connect(
                **self._access.options(),
                name="msglog export",
                error_cb=self._complained,
                max_reconnect_attempts=20,
                reconnect_time_wait=0.2,  # type: ignore[arg-type] # it is slept for
            )
            await asyncio.wait_for(connecting, _SECONDS)
        except (TimeoutError, OSError, errors.Error) as e:
            raise EngineError(self._complaint or str(e) or type(e).__name__) from None
        return self

    async def _complained(self, error: Exception) -> None:
        self._complaint = str(error) or type(error).__name__

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the connection."""
        await self._client.close()

    async def info(self) -> dict[str, Any]:
        """
        The stream's configuration and state.

        @raise EngineError: it is not there, or nobody can say.
        """
        try:
            message = await self._client.request(info_subject(self._stream), b"", timeout=_SECONDS)
        except (TimeoutError, OSError, errors.Error) as e:
            raise EngineError(self._complaint or str(e) or type(e).__name__) from None
        return read_info(Reply(message.data))

    async def fetch(self, sequence: int) -> list[tuple[int, bytes]]:
        """
        The next messages from a sequence on, each with its own; none if there is none yet.

        @raise EngineError: they cannot be read now.
        """
        inbox = self._client.new_inbox()
        asked = orjson.dumps({"seq": sequence, "batch": _MESSAGES, "max_bytes": _BYTES})
        found: list[tuple[int, bytes]] = []
        try:
            subscription = await self._client.subscribe(inbox)
            try:
                subject = f"$JS.API.DIRECT.GET.{self._stream}"
                await self._client.publish(subject, asked, reply=inbox)
                while True:
                    message = await subscription.next_msg(timeout=_SECONDS)
                    if self._ends(message):
                        return found
                    headers = message.headers or {}
                    found.append((int(headers["Nats-Sequence"]), message.data))
            finally:
                await subscription.unsubscribe()
        except (TimeoutError, OSError, errors.Error, KeyError, ValueError) as e:
            raise EngineError(self._complaint or str(e) or type(e).__name__) from None

    def _ends(self, message: Msg) -> bool:
        """Whether a message of a bunch is its end: 204, or 404 if there is nothing."""
        status = (message.headers or {}).get("Status")
        if status is None:
            return False
        if status in ("204", "404"):
            return True
        description = (message.headers or {}).get("Description", "nobody answers")
        raise EngineError(f"{description} ({status})")
