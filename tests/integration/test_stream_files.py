"""The reader of a stream's files sees what it is for."""

from __future__ import annotations

import json
import struct
import uuid

import pytest
import wire
from google_crc32c import value as crc32c
from stream_files import Found, differing, examine

A, B = (uuid.UUID(int=n).bytes for n in (1, 2))


def body_of(client: bytes, sequence: int) -> bytes:
    return b"%b %d" % (client.hex().encode(), sequence)


def line(client: bytes, sequence: int, body: bytes | None = None) -> bytes:
    body = body_of(client, sequence) if body is None else body
    checked = struct.pack(">B16sQ", wire.MESSAGE, client, sequence) + body
    fields = {
        "time": "2026-11-25T00:00:00.000000Z",
        "client": str(uuid.UUID(bytes=client)),
        "seq": sequence,
        "crc": f"{crc32c(checked):08x}",
        "message": body.decode(),
    }
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def record(number: int, client: bytes, first: int, *lines: bytes) -> bytes:
    """A message of the stream as nats-server writes it."""
    subject = b"msglog." + str(uuid.UUID(bytes=client)).encode()
    headers = b"NATS/1.0\r\nMsglog-Range: %d-%d\r\n\r\n" % (first, first + len(lines) - 1)
    data = b"".join(lines)
    length = 22 + len(subject) + 4 + len(headers) + len(data) + 8
    head = struct.pack("<IQqH", length | 1 << 31, number, 5, len(subject))
    return head + subject + struct.pack("<I", len(headers)) + headers + data + bytes(8)


def write(folder, *records: bytes):
    folder.mkdir(parents=True)
    (folder / "1.blk").write_bytes(records[0])
    (folder / "10.blk").write_bytes(b"".join(records[2:]))
    (folder / "2.blk").write_bytes(records[1])
    return folder


GOOD = (
    record(1, A, 1, line(A, 1), line(A, 2)),
    record(2, B, 1, line(B, 1)),
    record(3, A, 3, line(A, 3)),
    record(4, B, 2, line(B, 2)),
)


@pytest.mark.parametrize(
    ("last", "wrong"),
    [
        (GOOD[3], {}),
        (record(4, A, 3, line(A, 3)), {"repeats": 1}),
        (record(4, A, 5, line(A, 5)), {"gaps": 1}),
        (record(4, B, 2, line(B, 2, b"other")), {"different": 1}),
        (record(4, bytes(16), 1, line(bytes(16), 1)), {"others": 1}),
    ],
)
def test_examine(tmp_path, last, wrong) -> None:
    found = examine(write(tmp_path / "a", *GOOD[:3], last), body_of, [A, B])
    assert (found.batches, found.messages) == (4, 5)
    kinds = ("repeats", "gaps", "others", "different")
    assert {kind: n for kind in kinds if (n := getattr(found, kind))} == wrong
    assert isinstance(found, Found)


@pytest.mark.parametrize(
    "last",
    [
        record(5, B, 2, line(B, 2)),  # a message of the stream is missing
        record(4, B, 2, line(B, 2).replace(b'"crc":"', b'"crc":"0')),
        record(4, B, 3, line(B, 2)),
        record(4, A, 2, line(B, 2)),
        GOOD[3][:-1],
    ],
)
def test_not_of_msglog(tmp_path, last) -> None:
    with pytest.raises(AssertionError):
        examine(write(tmp_path / "a", *GOOD[:3], last), body_of, [A, B])


def test_differing(tmp_path) -> None:
    """One that lacks the last message, or has other bytes, is not the same."""
    one = write(tmp_path / "a", *GOOD)
    assert list(differing([one, write(tmp_path / "b", *GOOD)])) == []
    assert list(differing([one, write(tmp_path / "c", *GOOD[:3])])) != []
    other = GOOD[3].replace(b"2026", b"2027")
    assert list(differing([one, one, write(tmp_path / "d", *GOOD[:3], other)])) != []
