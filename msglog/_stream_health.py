"""
What is known of a stream: whether its leader answers, and whether it keeps what it was given.

While the engine is I{away} (its last answer was none) nothing is sent but a question for the
stream's state, several times a second; when that is answered, everything goes on.  So it is when
the stream's leader hears nothing of the other servers: another one may have been elected by now,
and what it says of a client may be old.  The server that the questions go to may be cut off from
the others; so another one is tried, if that goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.logger import Logger

from ._batch import NackCode
from ._errors import StartError
from ._health import NO_ROOM_SECONDS
from ._jetstream import (
    MAX_PAYLOAD,
    NOT_CONNECTED,
    EngineError,
    Reply,
    StreamDamaged,
    info_subject,
    leads,
    read_info,
)
from ._limits import Limits
from ._nats_access import NatsAccess
from ._nats_link import ILink
from ._shards import StreamShard
from ._stream_counts import StreamCounts
from ._stream_figures import EngineState
from ._stream_settings import find_weaknesses

__all__ = ["StreamHealth", "room"]

# How often the stream's state is asked for: while all is well, and while the engine is away.
_LOOK_SECONDS = 1.0
_LOOK_AWAY_SECONDS = 0.25

# How long the engine may have less of a client than it had before: a leader that has lost its
# followers notices that within 10 s, and steps down.
_BEHIND_SECONDS = 12.0

# How long the engine is away before it is asked by way of another server.  An election takes as
# long, and is the same by way of each.  Twice as long the next time, up to a minute, for there may
# be no better server.
_LEAVE_SECONDS = 5.0
_MOST_LEAVE_SECONDS = 60.0

# Older servers were not tried, and some took two appends on one condition (2.9.15 to 2.9.20).
_OLDEST_SERVER = (2, 12)

# What a message takes besides its payload: subject, headers, and what a front-end's lines may be
# longer than what is gathered.
_OVERHEAD = 1024

# A line is at most six times its body, and this (docs/log-format.md).
_LINE_BYTES = 256


class StreamHealth:
    """
    @param seconds: a clock that only goes forward.
    @param access: the cluster, for what is said of it.
    @param shard: which stream.
    @param link: what brings the questions there.
    @param limits: see L{Limits}.
    @param counts: where leaders are counted.
    @param leave: called with why when the engine may answer by way of another server.
    @param back: called when the engine answers again.
    @param lost: called with why when the engine has lost data.
    @ivar away: whether the engine's last answer was none.
    @ivar reason: why it was none, the last time, for those who run it.
    @ivar told: the same for clients, whom the servers' addresses do not concern.
    @ivar info: the stream's configuration and state as they were last told; empty before.
    """

    _log = Logger()

    def __init__(
        self,
        seconds: Callable[[], float],
        access: NatsAccess,
        shard: StreamShard,
        link: ILink,
        limits: Limits,
        counts: StreamCounts,
        leave: Callable[[str], object],
        back: Callable[[], object],
        lost: Callable[[str], object],
    ) -> None:
        self._seconds = seconds
        self._access = access
        self._shard = shard
        self._stream = shard.name
        self._link = link
        self._limits = limits
        self._counts = counts
        self._leave = leave
        self._back = back
        self._told_lost = lost
        self._away_since: float | None = None
        self._away_said = False
        self._looking = False
        self._look_due = 0.0
        self._leads = True  # who has answered for the stream last
        self._leave_due = 0.0
        self._leave_pause = _LEAVE_SECONDS
        # Who want to know whether the leader leads: not asked yet, and asked by the look under way.
        self._doubtful: list[Callable[[bool], object]] = []
        self._asked: list[Callable[[bool], object]] = []
        self._full_at: float | None = None  # when an append found no room, if none was stored since
        self._lost = ""
        self._broken = ""
        self._unusable = ""
        self._damaged = ""
        self._created = ""
        self._config: Any = None
        self._weaknesses: tuple[str, ...] = ()
        self.away = False
        self.reason = self.told = ""
        self.info: dict[str, Any] = {}

    # --- what is so ------------------------------------------------------------------------

    @property
    def away_seconds(self) -> float:
        """For how long the engine has not answered; 0 if it did."""
        if self._away_since is None:
            return 0.0
        return max(self._seconds() - self._away_since, 0.0)

    @property
    def state(self) -> EngineState:
        """All of it in a word."""
        if self._lost:
            return EngineState.LOST
        if self._unusable:
            return EngineState.UNUSABLE
        return EngineState.AWAY if self.away else EngineState.ANSWERING

    def refusal(self) -> tuple[NackCode, str, str] | None:
        """With what code to refuse what comes, and why, in a word to count it and in words."""
        if self._lost:
            return NackCode.NOT_STORED, "lost", self._lost
        if self._unusable:
            return NackCode.UNAVAILABLE, "unusable", self._unusable
        if self.away and self.away_seconds >= self._limits.store_wait_seconds:
            return NackCode.UNAVAILABLE, "away", f"the engine is away: {self.told}"
        return None

    @property
    def troubles(self) -> tuple[str, ...]:
        """Why nothing is taken, however long that may last."""
        return tuple(
            trouble for trouble in (self._lost, self._unusable, self._said_full()) if trouble
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """What somebody should see to."""
        return (
            *self._weaknesses,
            *self._old_server(),
            *self._absent_replicas(),
            *([self._damaged] if self._damaged else []),
        )

    def _said_full(self) -> str:
        if self._full_at is None:
            return ""
        free, _ = room(self.info)
        low = free is not None and free < self._limits.min_free_bytes
        if not low and self._seconds() - self._full_at >= NO_ROOM_SECONDS:
            return ""
        return f"the last commit found no room in the stream {self._stream}"

    def _old_server(self) -> list[str]:
        version = self._link.version
        if version is None or version >= _OLDEST_SERVER:
            return []
        return [
            f"nats-server {version[0]}.{version[1]} is older than {_OLDEST_SERVER[0]}."
            f"{_OLDEST_SERVER[1]}, and may store twice: replace it"
        ]

    def _absent_replicas(self) -> list[str]:
        missing = [
            replica.get("name", "?")
            for replica in (self.info.get("cluster") or {}).get("replicas") or ()
            if replica.get("offline") or not replica.get("current")
        ]
        what = f"replicas of {self._stream}" if self._shard.count > 1 else "replicas"
        return [f"{what} that are away or behind: {', '.join(missing)}"] if missing else []

    # --- what requests show ----------------------------------------------------------------

    def answered(self) -> None:
        """The engine answered something; but the word of a leader that leads no more is none."""
        if not self.away or not self._leads:
            return
        if self._away_said:
            self._log.info("NATS answers again, after {n:.0f} s", n=self.away_seconds)
        self.away = self._away_said = False
        self._away_since = None
        self._back()

    def stored(self) -> None:
        """An append is durable."""
        self._full_at = None

    def no_room(self, reason: str) -> None:
        """An append was not taken for want of room."""
        if self._full_at is None:
            self._log.warn(
                "nothing is stored in stream {stream}: {reason}", stream=self._stream, reason=reason
            )
        self._full_at = self._seconds()

    def silent(self, reason: str, told: str = "") -> None:
        """
        The engine did not answer, or said that it cannot.

        @param reason: why, as far as that is known.
        @param told: the same for clients, if they are not to know all of it.
        """
        self.told = told or reason
        trouble = self._link.trouble
        if trouble and trouble != reason:
            reason = f"{reason} ({trouble})"
        if not self.away:
            self.away = True
            self._away_since = now = self._seconds()
            self._look_due = 0.0
            self._leave_pause = _LEAVE_SECONDS
            self._leave_due = now + self._leave_pause
        self.reason = reason

    def behind(self, since: float, stored: int, found: int) -> None:
        """
        The engine has less of a client than it had before.

        @param since: since when.
        @param stored: the client's last sequence that was acknowledged.
        @param found: the one that is there.
        """
        if self._leads and self._seconds() - since >= _BEHIND_SECONDS:
            self._lose(
                f"the stream has lost acknowledged messages: of a client it had those up to "
                f"{stored}, and has those up to {found}"
            )

    def damaged(self, error: StreamDamaged) -> str:
        """There is something in the stream that no front-end has written; why to refuse."""
        self._damaged = str(error)
        self._log.error("{reason}; this client is refused", reason=self._damaged)
        return self._damaged

    def _lose(self, reason: str) -> None:
        """What was acknowledged is gone: nothing more is promised until a person has looked."""
        if not self._lost:
            self._lost = reason
            self._log.critical("{reason}; nothing more is taken", reason=reason)
        self._told_lost(reason)

    # --- the stream's state ----------------------------------------------------------------

    def tick(self) -> None:
        """Do what is due by time."""
        # Said once, and not for a request that is late.
        if self.away_seconds >= self._limits.store_answer_seconds and not self._away_said:
            self._away_said = True
            self._log.warn("NATS does not answer: {reason}", reason=self.reason)
        if self.away and self._seconds() >= self._leave_due:
            self._leave_pause = min(2 * self._leave_pause, _MOST_LEAVE_SECONDS)
            self._leave_due = self._seconds() + self._leave_pause
            self._leave(self.reason)
        if not self._looking and self._seconds() >= self._look_due:
            self._look()

    def confirm(self, tell: Callable[[bool], object]) -> None:
        """
        See whether who has answered until now leads the stream.

        @param tell: is called with that.
        """
        self._doubtful.append(tell)
        if not self._looking:
            self._look()

    def _look(self) -> None:
        self._looking = True
        self._look_due = self._seconds() + _LOOK_SECONDS
        self._asked, self._doubtful = self._doubtful, []
        self._link.request(info_subject(self._stream), b"", None, self._looked)

    def look_soon(self) -> None:
        """Ask for the stream's state at the next tick."""
        self._look_due = 0.0

    def _looked(self, reply: Reply) -> None:
        self._looking = False
        asked, self._asked = self._asked, []
        trouble = told = ""
        try:
            info = read_info(reply)
        except EngineError as e:
            trouble = str(e)
            if e.missing:
                trouble, told = self._missing(), f"there is no stream {self._stream}"
        else:
            self._take(info)
            self._leads = leads(info)
            if not self._leads:
                trouble = "the stream's leader does not hear the other servers"
        if trouble:
            self.silent(trouble, told)
            self._look_due = self._seconds() + _LOOK_AWAY_SECONDS
        else:
            self.answered()
        for tell in asked:
            tell(not trouble)
        if self._doubtful and not self._looking:
            self._look()

    def _missing(self) -> str:
        if self._created:
            # To make one now would hide that everything acknowledged is gone, at the next start.
            return (
                f"the stream {self._stream} is not there any more: it was deleted, or its servers "
                f"have lost it; do not make a new one before somebody has looked for its data"
            )
        return (
            f"there is no stream {self._stream}: msglog stream create {self._access} "
            f"{self._shard.words}"
        )

    def see_start(self, reply: Reply) -> None:
        """
        Take the first word on the stream.

        @raise StartError: the engine refuses, or the stream is not there or cannot keep what is
            acknowledged.
        """
        try:
            info = read_info(reply)
        except EngineError as e:
            if e.missing:
                raise StartError(self._missing()) from None
            if "authorization" in str(e).lower() or "authentication" in str(e).lower():
                raise StartError(f"{self._access} does not let this server in: {e}") from None
            # The command's connection, which asks the first time, names the servers.
            self.silent(str(e), NOT_CONNECTED)
            return
        self._take(info)
        if self._unusable:
            raise StartError(
                f"{self._unusable} (msglog stream check {self._access} {self._shard.words})"
            )
        self._log.info(
            "storing in stream {stream}: {bytes} bytes, {messages} batches",
            stream=self._stream,
            bytes=info.get("state", {}).get("bytes"),
            messages=info.get("state", {}).get("messages"),
        )

    def _take(self, info: dict[str, Any]) -> None:
        created = str(info.get("created", ""))
        if self._created and created != self._created:
            self._lose(f"the stream {self._stream} was deleted and made again")
            return
        first, self._created = not self._created, created
        self._counts.see_leader(info)
        self.info = info
        config = info.get("config", {})
        if config != self._config:
            self._config = config
            self._see_settings(config, first)
        self._unusable = self._broken
        longest = max(MAX_PAYLOAD, 6 * self._limits.max_message_bytes + _LINE_BYTES) + _OVERHEAD
        if self._link.max_payload is not None and self._link.max_payload < longest:
            self._unusable = (
                f"the server's max_payload is {self._link.max_payload}, and a batch may take "
                f"{longest} bytes: raise it, or lower --max-message-bytes"
            )

    def _see_settings(self, config: Any, first: bool) -> None:
        # Whether servers sync at once is not seen from here; msglog stream check asks them.
        before = self._broken
        weaknesses = list(find_weaknesses(config, sync_always=True))
        for weakness in weaknesses:
            self._log.warn("stream {stream}: {weakness}", stream=self._stream, weakness=weakness)
        self._weaknesses = tuple(f"stream {self._stream}: {one}" for one in weaknesses)
        broken = [str(weakness) for weakness in weaknesses if weakness.breaks]
        self._broken = (
            f"the stream {self._stream} cannot keep what is acknowledged: {'; '.join(broken)}"
            if broken
            else ""
        )
        if self._broken and not before and not first:  # at first, it is the error that ends a start
            self._log.error("{reason}; everything is refused meanwhile", reason=self._broken)
        if before and not self._broken:
            self._log.info(
                "the stream {stream} can keep what is acknowledged again", stream=self._stream
            )


def room(info: dict[str, Any]) -> tuple[int | None, int]:
    """
    How many bytes of room are left in a stream, by its state, and how many it has in all.

    L{None} and 0 if it has no limit.
    """
    most = int(info.get("config", {}).get("max_bytes", -1))
    if most <= 0:
        return None, 0
    return max(most - int(info.get("state", {}).get("bytes", 0)), 0), most
