"""What the four have in common: messages in, lines and answers out, and a line on disk."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from msglog import Batch, Refusal
from msglog._frames import (
    Enquiry,
    Event,
    FrameDecoder,
    Run,
    encode_acks,
    encode_nack,
    encode_terms,
)
from msglog._ledger import Ledger
from msglog._records import UNTIMED, format_lines, format_time

__all__ = [
    "READ_BYTES",
    "Log",
    "arguments",
    "decoder",
    "ledger",
    "serve",
    "sync_folder",
    "take",
    "write",
]

WINDOW = 1024
MAX_BODY = 256
READ_BYTES = 64 * 1024


def arguments() -> tuple[socket.socket, Log]:
    """Where to listen and what to write, from the command line: PORT LOG."""
    if len(sys.argv) != 3:
        sys.exit("usage: python -m benchmarks.seed.OPTION PORT LOG")
    path = Path(sys.argv[2])
    if path.exists() and path.stat().st_size:
        sys.exit(f"{path} is not empty, and this server recovers nothing: name a new file")
    return socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=4096), Log(path)


def decoder() -> FrameDecoder:
    """What makes a connection's bytes messages."""
    return FrameDecoder(MAX_BODY)


def ledger() -> Ledger:
    """What knows which messages are logged; forgets nobody."""
    return Ledger(lambda client: None, WINDOW, 1 << 62)


def take(known: Ledger, events: Iterable[Event]) -> tuple[list[bytes], list[bytes]]:
    """
    Admit what came: the lines to be written, without their time, and the answers to be given when
    they are on disk.
    """
    lines, answers = [], []
    for event in events:
        if isinstance(event, Run):
            start, verdict = known.admit(event)
            if start == 0:
                lines.append(format_lines(event))
            elif start < len(event):
                rest = Batch(
                    event.client,
                    event.first + start,
                    event.checksums[start:],
                    event.bodies[start:],
                )
                lines.append(format_lines(rest))
            answers.append(_answer(event, verdict.refusals))
        elif isinstance(event, Enquiry):
            last = known.last(event.client)
            answers.append(encode_terms(event.client, last, 1, MAX_BODY, WINDOW))
        else:
            nack = encode_nack(event.client, event.sequence, event.code, 0, event.reason)
            answers.append(nack)
    return lines, answers


def _answer(run: Run, refusals: Sequence[Refusal]) -> bytes:
    if not refusals:
        return encode_acks(run.heads)
    answers, at = [], 0
    for refusal in refusals:
        if refusal.start > at:
            answers.append(encode_acks(run.heads[at : refusal.start]))
        answers += [
            encode_nack(
                run.client, run.first + index, refusal.code, refusal.expected, refusal.reason
            )
            for index in range(refusal.start, refusal.stop)
        ]
        at = refusal.stop
    if at < len(run):
        answers.append(encode_acks(run.heads[at:]))
    return b"".join(answers)


class Log:
    """The one log file.  Whoever uses it sees to it that one thread at a time does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        sync_folder(path)
        self._last_time = 0

    def commit(self, lines: Sequence[bytes]) -> None:
        """Write lines with a common time, and wait until they are on disk."""
        if lines:
            self._last_time = max(time.time_ns() // 1000, self._last_time + 1)
            stamp = format_time(self._last_time)
            write(self._fd, b"".join(lines).replace(UNTIMED, stamp))


def write(fd: int, data: bytes) -> None:
    """Write, and wait for the disk; the process ends if it fails."""
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(fd, left) :]
        os.fdatasync(fd)
    except OSError as e:
        print(f"the disk failed: {e}", file=sys.stderr, flush=True)
        os._exit(1)


def sync_folder(path: Path) -> None:
    """Have a new file's name on disk."""
    fd = os.open(path.parent, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def serve(listening: socket.socket, client: Callable[[socket.socket], None]) -> None:
    """A thread for each connection, for ever."""
    threading.stack_size(256 * 1024)  # the default is 8 MiB, of address space alone

    def run(connection: socket.socket) -> None:
        with connection:
            try:
                client(connection)
            except OSError:
                pass  # it is gone

    while True:
        connection, _ = listening.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=run, args=(connection,), daemon=True).start()
