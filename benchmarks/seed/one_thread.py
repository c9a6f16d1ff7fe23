"""
Option 1: one thread, and C{select} for all sockets.

What one round of C{select} finds readable is one commit: written and synced together, then
answered.  While the disk works nobody is read.
"""

from __future__ import annotations

import select
import socket

from msglog import NackCode
from msglog._frames import FrameDecoder, encode_nack

from . import wire

__all__: list[str] = []

# The highest descriptor that select() can wait for, and one more.
_FD_SETSIZE = 1024


class _Connection:
    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.decoder: FrameDecoder = wire.decoder()
        self.unsent = b""

    def fileno(self) -> int:
        return self.socket.fileno()

    def read(self) -> bytes | None:
        """What came; C{None} if this connection is over."""
        try:
            return self.socket.recv(wire.READ_BYTES) or None
        except BlockingIOError:
            return b""
        except OSError:
            return None

    def send(self, data: bytes) -> None:
        self.unsent += data
        try:
            self.unsent = self.unsent[self.socket.send(self.unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            self.unsent = b""  # it is gone, and reading will find out


def _accept(listening: socket.socket) -> _Connection | None:
    sock, _ = listening.accept()
    if sock.fileno() >= _FD_SETSIZE:
        reason = "too many connections for select"
        with sock:
            sock.sendall(encode_nack(bytes(16), 0, NackCode.UNAVAILABLE, 0, reason))
        return None
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setblocking(False)
    return _Connection(sock)


def main() -> None:
    listening, log = wire.arguments()
    known = wire.ledger()
    connections: set[_Connection] = set()
    while True:
        # One that does not read its answers is not read either.
        unsent = [connection for connection in connections if connection.unsent]
        reading: list[socket.socket | _Connection] = [listening, *connections.difference(unsent)]
        readable, writable, _ = select.select(reading, unsent, [])
        for full in writable:
            full.send(b"")
        lines: list[bytes] = []
        owed: list[tuple[_Connection, list[bytes]]] = []
        for connection in readable:
            if not isinstance(connection, _Connection):
                new = _accept(listening)
                if new is not None:
                    connections.add(new)
                continue
            data = connection.read()
            if data is None:
                connections.remove(connection)
                connection.socket.close()
                continue
            new_lines, answers = wire.take(known, connection.decoder.feed(data))
            lines += new_lines
            owed.append((connection, answers))
        log.commit(lines)
        known.settle()
        for connection, answers in owed:
            connection.send(b"".join(answers))


if __name__ == "__main__":
    main()
