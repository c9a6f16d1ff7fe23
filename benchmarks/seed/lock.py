"""
Option 2: a thread for each client, and a lock around the file.

What one read brought is one commit, and a thread holds the lock until the disk has it: nobody else
can write meanwhile.
"""

from __future__ import annotations

import socket
import threading

from . import wire

__all__: list[str] = []


def main() -> None:
    listening, log = wire.arguments()
    known, lock = wire.ledger(), threading.Lock()

    def client(connection: socket.socket) -> None:
        decoder = wire.decoder()
        while data := connection.recv(wire.READ_BYTES):
            events = decoder.feed(data)
            with lock:
                lines, answers = wire.take(known, events)
                log.commit(lines)
                known.settle()
            connection.sendall(b"".join(answers))

    wire.serve(listening, client)


if __name__ == "__main__":
    main()
