"""The messages of a stream in their order, fetched in bunches from whichever replica has them."""

from __future__ import annotations

import orjson
from nats import errors
from nats.aio.msg import Msg

from ._jetstream import EngineError, direct_subject
from ._stream_connection import StreamConnection

__all__ = ["BUNCH", "StreamReader"]

# A bunch, which is synced as one: some milliseconds' worth, and no memory to speak of.
BUNCH = 500
_BYTES = 4 * 1024 * 1024

# For the next message of a bunch.
_SECONDS = 5.0


class StreamReader(StreamConnection):
    """A connection that reads one stream."""

    async def fetch(self, sequence: int, most: int = BUNCH) -> list[tuple[int, bytes]]:
        """
        The next messages from a sequence on, each with its own; none if there is none yet.

        @param most: how many at most.
        @raise EngineError: they cannot be read now.
        """
        inbox = self._client.new_inbox()
        asked = orjson.dumps({"seq": sequence, "batch": most, "max_bytes": _BYTES})
        found: list[tuple[int, bytes]] = []
        try:
            subscription = await self._client.subscribe(inbox)
            try:
                subject = direct_subject(self._stream, self._access.api)
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
            raise EngineError(self.words(e)) from None

    def _ends(self, message: Msg) -> bool:
        """Whether a message of a bunch is its end: 204, or 404 if there is nothing."""
        headers = message.headers or {}
        status = headers.get("Status")
        # Who publishes may write any header; where a message is stored, the server alone says.
        if status is None or "Nats-Sequence" in headers:
            return False
        if status in ("204", "404"):
            return True
        description = headers.get("Description", "nobody answers")
        raise EngineError(f"{description} ({status})")
