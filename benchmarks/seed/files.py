"""
Option 4: a thread for each client that writes to a temporary file of its own, and one thread that
joins these to the log.

A message is acknowledged when its client's file is synced: it is on disk then, and in the log a
moment later.  (What a crash leaves in temporary files would have to be joined at the next start.)
Everything is written twice.

That no two threads have anything in common is not to be had: which sequence of a client is the next
belongs to the client and not to the connection, so each client's ledger has a lock, held until the
disk has what was admitted.
"""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from queue import Empty, Queue

from msglog._frames import Event
from msglog._ledger import Ledger

from . import wire

__all__: list[str] = []

# Pieces of temporary files that wait to be joined, at most; then clients wait, so that the log is
# never far behind.
_MOST = 10_000

# A file, and a piece of it by offset and length; of length 0 when its client is gone.
_Piece = tuple[int, int, int]

_known: dict[bytes, tuple[threading.Lock, Ledger]] = {}


def _join(pieces: Queue[_Piece], log: wire.Log) -> None:
    while True:
        waiting = [pieces.get()]
        try:
            while True:
                waiting.append(pieces.get_nowait())
        except Empty:
            pass
        log.commit([os.pread(fd, length, offset) for fd, offset, length in waiting if length])
        for fd, _, length in waiting:
            if not length:
                os.close(fd)


def _client(connection: socket.socket, pieces: Queue[_Piece], log: wire.Log) -> None:
    decoder, size = wire.decoder(), 0
    fd, path = tempfile.mkstemp(prefix=log.path.name, dir=log.path.parent)
    wire.sync_folder(log.path)
    try:
        while data := connection.recv(wire.READ_BYTES):
            answers: list[bytes] = []
            for event in decoder.feed(data):
                size = _take(event, fd, size, pieces, answers)
            connection.sendall(b"".join(answers))
    finally:
        os.unlink(path)
        pieces.put((fd, size, 0))


def _take(event: Event, fd: int, size: int, pieces: Queue[_Piece], answers: list[bytes]) -> int:
    """Have one run of a client's messages on disk; the temporary file's new size."""
    found = _known.get(event.client)
    lock, known = found or _known.setdefault(event.client, (threading.Lock(), wire.ledger()))
    with lock:
        lines, new_answers = wire.take(known, [event])
        answers += new_answers
        data = b"".join(lines)
        if data:
            wire.write(fd, data)
            # Still with the lock: the log has a client's messages in their order.
            pieces.put((fd, size, len(data)))
        known.settle()
    return size + len(data)


def main() -> None:
    listening, log = wire.arguments()
    pieces: Queue[_Piece] = Queue(_MOST)
    threading.Thread(target=_join, args=(pieces, log), daemon=True).start()
    wire.serve(listening, lambda connection: _client(connection, pieces, log))


if __name__ == "__main__":
    main()
