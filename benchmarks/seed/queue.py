"""
Option 3: a thread for each client, a bounded queue, and one thread that writes.

The writer takes all that is in the queue as one commit.  A client's thread waits until its messages
are on disk, which is what the option leaves open, and answers; so at most one read of each client
is under way.
"""

from __future__ import annotations

import socket
import threading
from queue import Empty, Queue, SimpleQueue

from msglog._frames import Event

from . import wire

__all__: list[str] = []

# Reads that wait for the writer, at most: each is 64 KiB, so 64 MiB.
_MOST = 1024

_Answers = SimpleQueue[list[bytes]]


def _write(queue: Queue[tuple[list[Event], _Answers]], log: wire.Log) -> None:
    known = wire.ledger()
    while True:
        waiting = [queue.get()]
        try:
            while True:
                waiting.append(queue.get_nowait())
        except Empty:
            pass
        lines: list[bytes] = []
        owed = []
        for events, reply in waiting:
            new_lines, answers = wire.take(known, events)
            lines += new_lines
            owed.append((reply, answers))
        log.commit(lines)
        known.settle()
        for reply, answers in owed:
            reply.put(answers)


def main() -> None:
    listening, log = wire.arguments()
    queue: Queue[tuple[list[Event], _Answers]] = Queue(_MOST)
    threading.Thread(target=_write, args=(queue, log), daemon=True).start()

    def client(connection: socket.socket) -> None:
        decoder, reply = wire.decoder(), _Answers()
        while data := connection.recv(wire.READ_BYTES):
            queue.put((decoder.feed(data), reply))
            connection.sendall(b"".join(reply.get()))

    wire.serve(listening, client)


if __name__ == "__main__":
    main()
