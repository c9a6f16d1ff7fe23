"""A JetStream stream in memory, for tests of stores: it can be slow, mute and full."""

from __future__ import annotations

from base64 import b64encode
from collections import deque
from collections.abc import Callable
from typing import Any

import orjson
from twisted.internet.defer import Deferred, succeed

from ._jetstream import Reply, Unknown
from ._nats_access import NatsAccess
from ._stream_counts import LinkCounts
from ._stream_settings import stream_config

__all__ = ["MemoryStream"]

Done = Callable[[Reply], object]


class MemoryStream:
    """
    The engine, and the link to it, of a L{NatsStore<msglog._nats_store.NatsStore>}.

    It does what JetStream does with what a store sends: appends on condition, and reads.

    @param automatic: whether each request is answered as soon as it is made.
    @ivar messages: what is stored: (subject, headers, data); the first has sequence 1.
    @ivar requests: every request made: (subject, payload, headers).
    @ivar away: while true, nothing is done and nothing answered.
    @ivar mute: how many of the next appends are done and not answered.
    @ivar busy: how many of the next appends are refused because another one is under way.
    @ivar full: whether appends are refused for want of room.
    @ivar hidden: how many of the last messages a read does not show, as a leader that is behind.
    @ivar left: how often a server was to be left for another.
    @ivar info: what a question for the stream's state is answered.
    """

    def __init__(self, *, automatic: bool = True) -> None:
        self.automatic = automatic
        self.messages: list[tuple[str, dict[str, str], bytes]] = []
        self.requests: list[tuple[str, bytes, dict[str, str] | None]] = []
        self.away = False
        self.mute = 0
        self.busy = 0
        self.full = False
        self.hidden = 0
        self.left = 0
        self.trouble = ""
        self.counts = LinkCounts()
        self.max_payload: int | None = 1024 * 1024
        self.version: tuple[int, int] | None = (2, 15)
        self.started = False
        self.info: dict[str, Any] = {
            "config": stream_config("MSGLOG"),
            "created": "2026-11-25T00:00:00Z",
            "state": {"bytes": 0, "messages": 0},
            "cluster": {"leader": "n1", "replicas": [_replica("n2"), _replica("n3")]},
        }
        self._waiting: deque[tuple[str, bytes, dict[str, str] | None, Done]] = deque()

    def start(self) -> None:
        """See C{NatsLink}."""
        self.started = True

    def leave(self, reason: str) -> None:
        """See C{NatsLink}."""
        self.left += 1

    def stop(self) -> Deferred[None]:
        """See C{NatsLink}."""
        self.started = False
        return succeed(None)

    def ask(self, access: NatsAccess, subject: str, payload: bytes, seconds: float) -> Reply:
        """See L{NatsStore<msglog._nats_store.NatsStore>}."""
        return self._do(subject, payload, None)

    def request(
        self, subject: str, payload: bytes, headers: dict[str, str] | None, done: Done
    ) -> None:
        """See C{NatsLink}."""
        self.requests.append((subject, payload, headers))
        self._waiting.append((subject, payload, headers, done))
        if self.automatic:
            self.step()

    def step(self) -> bool:
        """Do and answer one request; whether there was any."""
        if not self._waiting:
            return False
        subject, payload, headers, done = self._waiting.popleft()
        done(self._do(subject, payload, headers))
        return True

    def lose(self, cause: Unknown = Unknown.TIMEOUT) -> None:
        """Leave the oldest request undone and unanswered."""
        *_, done = self._waiting.popleft()
        done(_no_answer(cause))

    def land(self, cause: Unknown = Unknown.TIMEOUT) -> None:
        """Do the oldest request, and lose its answer."""
        subject, payload, headers, done = self._waiting.popleft()
        self._do(subject, payload, headers)
        done(_no_answer(cause))

    def _do(self, subject: str, payload: bytes, headers: dict[str, str] | None) -> Reply:
        if self.away:
            return _no_answer()
        if headers is not None:
            return self._append(subject, payload, headers)
        if ".STREAM.INFO." in subject:
            return Reply(orjson.dumps(self.info))
        return self._get(orjson.loads(payload))

    def _append(self, subject: str, payload: bytes, headers: dict[str, str]) -> Reply:
        if self.busy:
            self.busy -= 1
            return _error(400, 10164, "wrong last sequence")
        expected = int(headers["Nats-Expected-Last-Subject-Sequence"])
        last = self._last(subject, len(self.messages))
        if last != expected:
            return _error(400, 10071, f"wrong last sequence: {last}")
        if self.full:
            return _error(503, 10077, "maximum bytes exceeded")
        self.messages.append((subject, dict(headers), payload))
        if self.mute:
            self.mute -= 1
            return _no_answer()
        stream = headers["Nats-Expected-Stream"]
        return Reply(orjson.dumps({"stream": stream, "seq": len(self.messages)}))

    def _last(self, subject: str, shown: int) -> int:
        for sequence in range(shown, 0, -1):
            if self.messages[sequence - 1][0] == subject:
                return sequence
        return 0

    def _get(self, asked: dict[str, Any]) -> Reply:
        shown = len(self.messages) - self.hidden
        sequence = asked.get("seq") or self._last(asked["last_by_subj"], shown)
        if not 0 < sequence <= shown:
            return _error(404, 10037, "no message found")
        subject, headers, data = self.messages[sequence - 1]
        block = "NATS/1.0\r\n" + "".join(f"{k}: {v}\r\n" for k, v in headers.items()) + "\r\n"
        message = {
            "subject": subject,
            "seq": sequence,
            "hdrs": b64encode(block.encode()).decode(),
            "data": b64encode(data).decode(),
        }
        return Reply(orjson.dumps({"message": message}))


def _replica(name: str) -> dict[str, Any]:
    """Another server, as the leader tells: heard of half a second ago."""
    return {"name": name, "current": True, "active": 500_000_000}


def _no_answer(cause: Unknown = Unknown.TIMEOUT) -> Reply:
    return Reply(None, "no answer within 1 s", cause)


def _error(code: int, number: int, description: str) -> Reply:
    error = {"code": code, "err_code": number, "description": description}
    return Reply(orjson.dumps({"error": error}))
