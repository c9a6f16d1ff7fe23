"""A command's own connection to a NATS cluster: requests with their answers, on an asyncio loop."""

from __future__ import annotations

import asyncio
from itertools import count
from types import TracebackType
from typing import Any, TypeVar

from nats import errors
from nats.aio.msg import Msg

from ._jetstream import EngineError, Reply, info_subject, read_info
from ._nats_access import NatsAccess
from ._nats_client import NatsClient

__all__ = ["StreamConnection"]

# For a first connection: a person waits, and a cluster may be electing.
_CONNECT_SECONDS = 15.0
_FIRST_ATTEMPTS = 20
_RECONNECT_SECONDS = 0.2

# A server that neither answers nor closes is left after two PINGs without an answer.
_PING_SECONDS = 2

# For an answer.  A server with slow disks and much to sync may take a second or two.
_ANSWER_SECONDS = 5.0

_Self = TypeVar("_Self", bound="StreamConnection")


class StreamConnection:
    """
    A connection for one stream; an asynchronous context manager.

    Once there, it comes back by itself when a server dies; what was asked meanwhile is answered
    that there is no answer.

    @param access: the cluster.
    @param stream: the stream's name.
    @param name: what the servers call it in their lists.
    @param inbox_prefix: where answers come to, for a user who may not subscribe everywhere.
    """

    def __init__(
        self, access: NatsAccess, stream: str, name: str, inbox_prefix: str = "_INBOX"
    ) -> None:
        self._access = access
        self._stream = stream
        self._name = name
        self._inbox_prefix = inbox_prefix
        self._client = NatsClient(access)
        self._complaint = ""
        self._tokens = count()
        self._reply_to = ""
        self._unanswered: dict[str, tuple[asyncio.Future[Reply], asyncio.TimerHandle]] = {}

    async def __aenter__(self: _Self) -> _Self:
        """
        Connect.

        @raise EngineError: that is not possible.
        @raise StartError: a file that it needs cannot be read.
        """
        try:
            connecting = self._client.connect(
                **self._access.options(),
                name=self._name,
                inbox_prefix=self._inbox_prefix,
                error_cb=self._complained,
                disconnected_cb=self._disconnected,
                reconnected_cb=self._reconnected,
                max_reconnect_attempts=_FIRST_ATTEMPTS,
                reconnect_time_wait=_RECONNECT_SECONDS,  # type: ignore[arg-type] # it sleeps so
                ping_interval=_PING_SECONDS,
                # What cannot be sent now is never sent later, behind the back of who asked.
                pending_size=0,
            )
            await asyncio.wait_for(connecting, _CONNECT_SECONDS)
            self._client.options["max_reconnect_attempts"] = -1
            self._complaint = ""
            self._reply_to = self._client.new_inbox() + "."
            await self._client.subscribe(self._reply_to + "*", cb=self._answered)
        except (TimeoutError, OSError, errors.Error) as e:
            raise EngineError(self.words(e)) from None
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the connection."""
        await self._client.close()

    @property
    def max_payload(self) -> int:
        """The longest message that the connected server takes, bytes, headers included."""
        return self._client.max_payload

    def words(self, error: BaseException) -> str:
        """Why something failed: what the servers last complained about, or else the error."""
        return self._complaint or str(error).removeprefix("nats: ") or type(error).__name__

    async def _complained(self, error: Exception) -> None:
        self._complaint = str(error).removeprefix("nats: ") or type(error).__name__

    async def _disconnected(self) -> None:
        for token in list(self._unanswered):
            self._answer(token, Reply(None, self._complaint or "the connection was lost"))

    async def _reconnected(self) -> None:
        self._complaint = ""

    async def send(
        self, subject: str, payload: bytes, headers: dict[str, str] | None = None
    ) -> asyncio.Future[Reply]:
        """
        Ask; requests go out in the order of the calls.

        @return: the answer to come, or why there is none.  That says nothing about whether the
            engine has done what it was asked.
        """
        loop = asyncio.get_running_loop()
        token = str(next(self._tokens))
        future: asyncio.Future[Reply] = loop.create_future()
        timer = loop.call_later(_ANSWER_SECONDS, self._give_up, token)
        self._unanswered[token] = future, timer
        try:
            await self._client.publish(subject, payload, self._reply_to + token, headers)
        except (OSError, errors.Error) as e:
            not_connected = errors.OutboundBufferLimitError, errors.ConnectionClosedError
            why = "not connected" if isinstance(e, not_connected) else str(e)
            self._answer(token, Reply(None, self._complaint or why))
        return future

    async def ask(self, subject: str, payload: bytes) -> Reply:
        """Ask, and wait for the answer."""
        return await (await self.send(subject, payload))

    async def info(self) -> dict[str, Any]:
        """
        The stream's configuration and state.

        @raise EngineError: it is not there, or nobody can say.
        """
        return read_info(await self.ask(info_subject(self._stream, self._access.api), b""))

    async def _answered(self, message: Msg) -> None:
        if message.headers and message.headers.get("Status") == "503":
            reply = Reply(None, "nobody answers for the stream: it has no leader, or is not there")
        else:
            reply = Reply(message.data)
        self._answer(message.subject[len(self._reply_to) :], reply)

    def _give_up(self, token: str) -> None:
        # What a user may not do, the server says by itself, and does not answer.
        why = f" ({self._complaint})" if self._complaint else ""
        self._answer(token, Reply(None, f"no answer within {_ANSWER_SECONDS:g} s{why}"))

    def _answer(self, token: str, reply: Reply) -> None:
        found = self._unanswered.pop(token, None)
        if found is not None:  # or it is too late
            future, timer = found
            timer.cancel()
            if not future.done():
                future.set_result(reply)
