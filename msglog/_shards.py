"""
Clients spread over several streams, without I/O.

::

    one stream      MSGLOG         msglog.<client id>
    four shards     MSGLOG-1of4    msglog.1of4.<client id>, msglog.sharded
                    MSGLOG-2of4    msglog.2of4.<client id>
                    …

One stream is one Raft group with one leader, through which every append goes.  With shards each
client lives in one of several streams, so a client's order and the condition of its appends are
what they were, and the streams' leaders share the work.

A client must never be looked for in another stream than the one it was written to.  So the number
of shards is fixed by the streams themselves: their names have it, so that a server with another
number finds none, and C{msglog.sharded} is a subject of the first of any number of shards, and one
that a stream without shards takes too.  JetStream lets no two streams of an account take one
subject, so there is one such set of streams and no other.
"""

from __future__ import annotations

import re
from binascii import crc32

from attrs import frozen

from ._records import client_text

__all__ = ["MAX_SHARDS", "StreamShard", "shard_of", "shards_of"]

# Each asks its leader how it is once a second, from each server.
MAX_SHARDS = 64

_NAME = re.compile(r"(.+)-(\d+)of(\d+)", re.DOTALL)
_PREFIX = "msglog."
_GUARD = "msglog.sharded"


@frozen(slots=True)
class StreamShard:
    """
    One of the streams that a log is spread over; the only one if there are no shards.

    @ivar log: what all of them are called together.
    @ivar number: which one it is, from 1.
    @ivar count: how many there are.
    """

    log: str
    number: int = 1
    count: int = 1

    @classmethod
    def of_name(cls, name: str) -> StreamShard:
        """The shard that a stream's name means."""
        match = _NAME.fullmatch(name)
        if match is None:
            return cls(name)
        return cls(match[1], int(match[2]), int(match[3]))

    @property
    def name(self) -> str:
        """The stream's name."""
        return f"{self.log}-{self._part}" if self.count > 1 else self.log

    @property
    def _part(self) -> str:
        return f"{self.number}of{self.count}"

    @property
    def _prefix(self) -> str:
        return f"{_PREFIX}{self._part}." if self.count > 1 else _PREFIX

    @property
    def subjects(self) -> tuple[str, ...]:
        """Which subjects the stream takes."""
        guard = (_GUARD,) if self.count > 1 and self.number == 1 else ()
        return (f"{self._prefix}*", *guard)

    def subject_of(self, client: bytes) -> str:
        """Where a client's messages are published."""
        return self._prefix + client_text(client)

    @property
    def words(self) -> str:
        """What C{msglog stream} is told to mean all of them."""
        return f"--stream {self.log}" + (f" --shards {self.count}" if self.count > 1 else "")


def shards_of(log: str, count: int) -> tuple[StreamShard, ...]:
    """All of a log's shards."""
    return tuple(StreamShard(log, number, count) for number in range(1, count + 1))


def shard_of(client: bytes, count: int) -> int:
    """
    In which of so many shards a client is, from 0.

    By the CRC-32 of its id, whatever made that.  It can never be changed.
    """
    return crc32(client) % count
