"""
The protocol, the log format and a client, written again from the two normative pages alone.

Nothing of msglog is imported here: what it gets wrong, this must not get wrong with it.
"""

from __future__ import annotations

import base64
import json
import socket
import struct
from pathlib import Path

from google_crc32c import value as crc32c

MESSAGE, ENQUIRY, ACK, NACK, TERMS = 0x01, 0x05, 0x06, 0x15, 0x16


def frame(kind: int, client: bytes, sequence: int, body: bytes = b"") -> bytes:
    checked = struct.pack(">B16sQ", kind, client, sequence) + body
    return struct.pack(">II", len(checked) + 4, crc32c(checked)) + checked


def message(client: bytes, sequence: int, body: bytes) -> bytes:
    return frame(MESSAGE, client, sequence, body)


def enquiry(client: bytes) -> bytes:
    return frame(ENQUIRY, client, 0, b"\x01")


def split(data: bytes) -> tuple[list[tuple[int, int, bytes, int, bytes]], bytes]:
    """Whole frames (type, checksum, client, sequence, body), and what is left."""
    frames, at = [], 0
    while len(data) - at >= 4:
        (length,) = struct.unpack_from(">I", data, at)
        if len(data) - at - 4 < length:
            break
        checksum, kind, client, sequence = struct.unpack_from(">IB16sQ", data, at + 4)
        body = data[at + 33 : at + 4 + length]
        if kind != ACK:
            assert crc32c(data[at + 8 : at + 4 + length]) == checksum
        frames.append((kind, checksum, client, sequence, body))
        at += 4 + length
    return frames, data[at:]


class Connection:
    """A blocking connection for tests that talk a little."""

    def __init__(self, port: int, timeout: float = 15) -> None:
        self.port = port
        self.timeout = timeout
        self.connect()

    def connect(self) -> None:
        self.socket = socket.create_connection(("127.0.0.1", self.port), self.timeout)
        self._rest = b""
        self._frames: list = []

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def receive(self):
        """The next answer; None at the end."""
        while not self._frames:
            data = self.socket.recv(65536)
            if not data:
                assert not self._rest, "the server closed in the middle of a frame"
                return None
            self._frames, self._rest = split(self._rest + data)
        return self._frames.pop(0)

    def log(self, client: bytes, sequence: int, body: bytes) -> None:
        """Send a message and see that it is acknowledged."""
        data = message(client, sequence, body)
        self.send(data)
        answer = self.receive()
        assert answer is not None
        assert answer[0] == ACK, answer
        assert struct.pack(">I", answer[1]) == data[4:8]
        assert answer[2:] == (client, sequence, b"")

    def nack(self):
        """The next answer, which is a NACK: (code, expected, reason, client, sequence)."""
        answer = self.receive()
        assert answer is not None
        assert answer[0] == NACK, answer
        code, expected = struct.unpack_from(">BQ", answer[4])
        return code, expected, answer[4][9:].decode(), answer[2], answer[3]

    def terms(self, client: bytes):
        """Ask; (last durable, version, longest body, window)."""
        self.send(enquiry(client))
        answer = self.receive()
        assert answer is not None
        assert (answer[0], answer[2]) == (TERMS, client)
        return answer[3], *struct.unpack(">BII", answer[4])

    def reconnect(self) -> None:
        self.close()
        self.connect()

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_logs(*paths: Path) -> dict[bytes, list[bytes]]:
    """
    Every client's bodies in order, from files in order; fails on anything that is not as the
    format page says, on a gap and on a repetition.
    """
    clients: dict[bytes, list[bytes]] = {}
    last_time = ""
    for path in paths:
        data = path.read_bytes()
        assert data == b"" or data.endswith(b"\n"), f"{path} ends in the middle of a line"
        for line in data.splitlines():
            record = json.loads(line)
            content = "message" if "message" in record else "base64"
            assert list(record) == ["time", "client", "seq", "crc", content], line
            body = (
                record["message"].encode()
                if content == "message"
                else base64.b64decode(record["base64"], validate=True)
            )
            client = bytes.fromhex(record["client"].replace("-", ""))
            checked = struct.pack(">B16sQ", MESSAGE, client, record["seq"]) + body
            assert record["crc"] == f"{crc32c(checked):08x}", line
            assert record["time"] >= last_time, "time went back"
            last_time = record["time"]
            bodies = clients.setdefault(client, [])
            assert record["seq"] == len(bodies) + 1, f"not the client's next: {line!r}"
            bodies.append(body)
    return clients
