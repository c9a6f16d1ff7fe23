"""
What is promised, and the one check of it that every fault ends with.

A L{Told} is a client that notes what it sent and what was acknowledged.  L{check} is for a log
whose server has ended, however that was.  It reads the files by itself (C{wire.read_logs}, written
from docs/log-format.md alone, imports nothing of msglog), and it has a server started on them.
"""

from __future__ import annotations

import random
import struct
import uuid
from collections.abc import Iterable
from pathlib import Path

import wire

from .servers import Program

__all__ = ["Told", "check", "read_what_is_whole"]

_KINDS = 10


class Told:
    """
    One client id: what it has sent, and how much of that was acknowledged.

    @ivar bodies: its messages, whether they were sent or not, from sequence 1 on.
    @ivar acked: up to here it has receipts.
    """

    def __init__(self, rng: random.Random | None = None) -> None:
        self._rng = rng or random.Random()
        self.id = uuid.UUID(int=self._rng.getrandbits(128), version=4).bytes
        self.bodies: list[bytes] = []
        self.acked = 0

    def body(self, sequence: int) -> bytes:
        """The message of a sequence, made when it is first wanted, and the same ever after."""
        while len(self.bodies) < sequence:
            kind = self._rng.randrange(_KINDS)
            size = self._rng.randrange(200)
            if kind == 0:
                self.bodies.append(self._rng.randbytes(size))
            elif kind == 1:
                self.bodies.append('äß\n"\\\u2028\x7f€'.encode() * (size // 20))
            else:
                self.bodies.append(b"message %d " % (len(self.bodies) + 1) + b"x" * size)
        return self.bodies[sequence - 1]

    def message(self, sequence: int) -> bytes:
        """The frame of a sequence."""
        return wire.message(self.id, sequence, self.body(sequence))

    def take(self, answer: tuple[int, int, bytes, int, bytes]) -> bool:
        """Note an answer to the next message; whether it was its ACK."""
        kind, checksum, who, sequence, _ = answer
        if kind != wire.ACK:
            return False
        assert who == self.id
        assert sequence <= len(self.bodies), "a receipt for what was never sent"
        assert struct.pack(">I", checksum) == self.message(sequence)[4:8], "not for these bytes"
        self.acked = max(self.acked, sequence)
        return True

    def send(self, connection: wire.Connection, count: int) -> bool:
        """
        Send the next messages at once and wait for the answers.

        @return: whether all were acknowledged: not, if one is refused or the connection ends.
        """
        first = self.acked + 1
        try:
            connection.send(b"".join(self.message(n) for n in range(first, first + count)))
            answers = [connection.receive() for _ in range(count)]
        except ConnectionError:
            return False
        return all(answer is not None and self.take(answer) for answer in answers)


def read_what_is_whole(files: list[Path], folder: Path) -> dict[bytes, list[bytes]]:
    """Each client's bodies, but for what is torn at the end of the last file with records."""
    copies = []
    for number, path in enumerate(files):
        copy = folder / f"read-{number}"
        copy.write_bytes(path.read_bytes())
        copies.append(copy)
    if copies:
        lines = copies[-1].read_bytes().splitlines(keepends=True)
        whole = next((n for n, line in enumerate(lines) if not _is_whole(line)), len(lines))
        copies[-1].write_bytes(b"".join(lines[:whole]))
    try:
        return wire.read_logs(*copies)
    finally:
        for copy in copies:
            copy.unlink()


def _is_whole(line: bytes) -> bool:
    return line.endswith(b"}\n") and b"\0" not in line


def check(
    server: Program, clients: Iterable[Told], *, gone: int = 0, torn: bool = True
) -> dict[bytes, list[bytes]]:
    """
    See that what was promised is so, after whatever has happened to a server that has ended.

    Read as it is, the log has each acknowledged message once, each other one once at the most,
    each client's in order and with no gap.  A server starts on it, knows the clients as the log has
    them, and takes their next messages.  Then the log has all that was ever sent, once, and
    C{msglog verify} says so too.

    @param gone: how many files were deleted, as C{--rotate-keep} says: the clients of those are
        not in what is left.
    @param torn: whether the last commit may be half there.
    @return: what the log has in the end.
    """
    clients = list(clients)
    if not gone:
        files = server.files()
        before = read_what_is_whole(files, server.folder) if torn else wire.read_logs(*files)
        for client in clients:
            have = before.get(client.id, [])
            assert len(have) >= client.acked, f"{client.acked - len(have)} acknowledged are gone"
            assert have == client.bodies[: len(have)]
        assert set(before) <= {client.id for client in clients}
    server.plan = type(server.plan)()
    server.limits = {}
    said = len(server.said()) if server.output.exists() else 0
    server.start()
    with wire.Connection(server.port) as connection:
        for client in clients:
            durable = connection.terms(client.id)[0]
            assert client.acked <= durable <= len(client.bodies)
            client.acked = durable
            rest = len(client.bodies) - durable
            assert client.send(connection, rest + 1), server.said()
        # A resend of what is there is acknowledged, and not written again.
        for client in clients:
            connection.log(client.id, client.acked, client.body(client.acked))
    server.process.terminate()
    assert server.wait() == 0, server.said()
    assert "Traceback" not in server.said()[said:], server.said()
    if gone:
        return {}
    logged = wire.read_logs(*server.files())
    assert logged == {client.id: client.bodies for client in clients if client.bodies}
    status, words = server.run("verify", "--rotated", str(server.log))
    assert status == 0, words
    return logged
