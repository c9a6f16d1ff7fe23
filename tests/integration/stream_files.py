"""
The messages of a stream as one server has them on its disk, read without it and without msglog.

A file C{N.blk} of nats-server is records one after the other; integers are little-endian::

    u32 length of the record, highest bit: it has headers    4
    u64 sequence in the stream                               8
    i64 time, ns                                             8
    u16 length of the subject, and the subject
    u32 length of the headers, if it has any, and those
    the message
    8 bytes, a checksum
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from itertools import chain, zip_longest
from pathlib import Path

import wire
from attrs import define, field, frozen
from google_crc32c import value as crc32c

_HEAD = struct.Struct("<IQqH")
_WITH_HEADERS = 1 << 31
_REMOVED = 3 << 62  # a sequence with one of these bits is that of a message that was removed


@frozen
class Stored:
    """One message of the stream."""

    sequence: int
    time: int
    subject: str
    headers: bytes
    data: bytes


def read_stored(folder: Path) -> Iterator[Stored]:
    """Every message of the stream in its order, from the files in a folder."""
    last = 0
    for path in sorted(folder.glob("*.blk"), key=lambda path: int(path.stem)):
        block, at = path.read_bytes(), 0
        while at < len(block):
            length, sequence, time, subject_length = _HEAD.unpack_from(block, at)
            start, end = at + _HEAD.size, at + (length & ~_WITH_HEADERS) - 8
            assert end + 8 <= len(block), f"{path} ends in the middle of a record"
            assert not sequence & _REMOVED, f"{path}: a message was removed"
            subject = block[start : start + subject_length].decode()
            start += subject_length
            headers = b""
            if length & _WITH_HEADERS:
                (size,) = struct.unpack_from("<I", block, start)
                headers = block[start + 4 : start + 4 + size]
                start += 4 + size
            assert sequence == last + 1, f"{path}: {sequence} stands behind {last}"
            last, at = sequence, end + 8
            yield Stored(sequence, time, subject, headers, block[start:end])


def read_lines(messages: Iterator[Stored]) -> Iterator[tuple[bytes, int, bytes, bytes]]:
    """
    Client, sequence, body and the line itself of each message of msglog's.

    Fails on what is not as docs/log-format.md and docs/distributed.md say.
    """
    for message in messages:
        headers = dict(
            line.split(": ", 1) for line in message.headers.decode().split("\r\n")[1:] if line
        )
        lines = message.data.split(b"\n")
        assert lines.pop() == b"", message
        first, last = map(int, headers["Msglog-Range"].split("-"))
        assert len(lines) == last - first + 1, message
        for sequence, line in enumerate(lines, first):
            record = json.loads(line)
            content = "message" if "message" in record else "base64"
            assert list(record) == ["time", "client", "seq", "crc", content], line
            assert record["seq"] == sequence, message
            prefix, *shard, client_text = message.subject.split(".")
            assert (prefix, client_text) == ("msglog", record["client"]), message
            assert len(shard) <= 1, message
            client = bytes.fromhex(record["client"].replace("-", ""))
            body = (
                record["message"].encode()
                if content == "message"
                else base64.b64decode(record["base64"], validate=True)
            )
            checked = struct.pack(">B16sQ", wire.MESSAGE, client, sequence) + body
            assert record["crc"] == f"{crc32c(checked):08x}", line
            yield client, sequence, body, line


@define
class Found:
    """What is wrong with a stream, and how much of it was read."""

    batches: int = 0
    messages: int = 0
    repeats: int = 0
    gaps: int = 0
    others: int = 0
    different: int = 0
    stored: dict[bytes, int] = field(factory=dict)


def differing(folders: list[Path]) -> Iterator[str]:
    """Where replicas are not the same, message by message."""
    for messages in zip_longest(*map(read_stored, folders)):
        if len(set(messages)) != 1:
            yield f"the replicas differ: {messages}"
            return


def examine(folder: Path, body_of, clients, *more: Path) -> Found:
    """
    Read a replica: each client's messages must be 1, 2, 3 … once, and what was sent.

    @param more: the other folders, if there are several streams.
    @param body_of: what a client has sent as which sequence.
    @param clients: the ids of all clients.
    """
    found = Found(stored=dict.fromkeys(clients, 0))

    def counted() -> Iterator[Stored]:
        for message in chain.from_iterable(map(read_stored, (folder, *more))):
            found.batches += 1
            yield message

    for client, sequence, body, _ in read_lines(counted()):
        found.messages += 1
        last = found.stored.get(client)
        if last is None:
            found.others += 1
            continue
        found.repeats += sequence <= last
        found.gaps += sequence > last + 1
        found.different += body != body_of(client, sequence)
        found.stored[client] = max(last, sequence)
    return found
