"""Traffic in threads: clients that send, and a prober that only connects."""

from __future__ import annotations

import socket
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import msglog


class Sender(threading.Thread):
    """A client that sends one message after the other, or a window of them."""

    def __init__(self, port: int, at_a_time: int) -> None:
        super().__init__()
        self.port = port
        self.at_a_time = at_a_time
        self.bodies: list[bytes] = []
        self.moments: list[float] = []
        self.client = uuid.uuid4()
        self.ended = threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with msglog.connect(f"127.0.0.1:{self.port}", client=self.client) as log:
                while not self.ended.is_set():
                    first = len(self.bodies)
                    bodies = [b"%d" % n for n in range(first, first + self.at_a_time)]
                    self.bodies += bodies
                    for _ in log.send_all(bodies):
                        self.moments.append(time.monotonic())
                    # Not as fast as it goes: the machine is to be busy, not full.
                    time.sleep(0.002)
        except BaseException as e:
            self.error = e


class Prober(threading.Thread):
    """Connects again and again, and counts what is refused."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.port = port
        self.ended = threading.Event()
        self.made = 0
        self.refused: list[OSError] = []

    def run(self) -> None:
        while not self.ended.is_set():
            try:
                with socket.create_connection(("127.0.0.1", self.port), 10):
                    self.made += 1
            except OSError as e:
                self.refused.append(e)
            time.sleep(0.005)


@contextmanager
def running(threads: Iterable[Sender | Prober]) -> Iterator[None]:
    """While this lasts they work; afterwards all of what was sent has its receipt."""
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.ended.set()
        for thread in threads:
            thread.join(30)
