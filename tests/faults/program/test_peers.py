"""
Peers that do what they should not, beside honest ones; and few descriptors and little memory.

    python -m tests.faults.program crowd

prints what idle and slow connections cost honest clients.
"""

from __future__ import annotations

import resource
import socket
import statistics
import struct
import time
import uuid
from contextlib import ExitStack
from pathlib import Path

import pytest
import wire
from conftest import wait_until

from .promise import Told, check
from .servers import Program


def log_some(server: Program, client: Told, count: int = 10) -> None:
    with wire.Connection(server.port) as connection:
        assert client.send(connection, count)


def served_again(connection: wire.Connection, client: Told) -> bool:
    connection.reconnect()
    return client.send(connection, 1)


@pytest.mark.parametrize("descriptors", [40, 100])
def test_few_descriptors(make, descriptors) -> None:
    """
    Those who are there go on, and newcomers are served when there is room.  (With 40 there is
    room for one.)
    """
    server, client = make(), Told()
    server.limits = {resource.RLIMIT_NOFILE: descriptors}
    server.start()
    with ExitStack() as stack, wire.Connection(server.port) as connection:
        assert client.send(connection, 1)
        crowd = [stack.enter_context(wire.Connection(server.port)) for _ in range(120)]
        for _ in range(20):
            assert client.send(connection, 5)
        for peer in crowd:
            peer.close()
        if descriptors == 40:
            connection.close()
        newcomer = Told()

        def served() -> bool:
            try:
                with wire.Connection(server.port, 2) as second:
                    return newcomer.send(second, 1)
            except OSError:
                return False

        wait_until(served, "a newcomer is served")
        if descriptors == 40:
            wait_until(lambda: served_again(connection, client), "the first one again")
        else:
            assert client.send(connection, 5)
    server.stop()
    check(server, [client, newcomer], torn=False)


def test_little_memory(make) -> None:
    """
    With no memory left, clients who flood it get a clear end or an answer, and what was
    acknowledged is there, whether the server goes on or not.
    """
    server, client = make("--max-undurable-bytes", "1000000000"), Told()
    server.start()
    log_some(server, client)
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    used = int(status.partition("VmSize:")[2].split()[0])
    limit = used * 1024 + (24 << 20)
    resource.prlimit(server.process.pid, resource.RLIMIT_AS, (limit, limit))
    flooders = [Told() for _ in range(20)]
    body = b"x" * 256
    for flooder in flooders:
        flooder.bodies = [body] * 3000
        with wire.Connection(server.port, 3) as connection, ExitStack() as stack:
            stack.callback(connection.close)
            try:
                flooder.send(connection, 3000)
            except OSError:
                pass
    if server.process.poll() is None:
        log_some(server, client)
        server.kill()
    for flooder in flooders:
        flooder.bodies = flooder.bodies[:1000]
    check_with_unknown(server, client, flooders)


def check_with_unknown(server: Program, client: Told, flooders: list[Told]) -> None:
    """What flooders know of is there; then they are as the server knows them."""
    server.start()
    with wire.Connection(server.port) as connection:
        for flooder in flooders:
            durable = connection.terms(flooder.id)[0]
            assert durable >= flooder.acked
            flooder.acked, flooder.bodies = durable, [b"x" * 256] * durable
    server.kill()
    check(server, [client, *flooders])


@pytest.mark.parametrize("end", ["reset", "vanished"])
def test_half_open(make, end) -> None:
    """
    Peers that are gone: with a reset in the middle of a window, or without a word (nothing of
    what the server sends arrives, by a full receive window).  Others do not notice.
    """
    server, client, other = make("--unread-seconds", "1").start(), Told(), Told()
    with ExitStack() as stack, wire.Connection(server.port) as honest:
        for _ in range(30):
            peer = stack.enter_context(wire.Connection(server.port))
            if end == "reset":
                linger = struct.pack("ii", 1, 0)
                peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            else:
                peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            first = len(client.bodies) + 1
            try:
                peer.send(b"".join(client.message(n) for n in range(first, first + 50)))
            except OSError:
                pass
            if end == "reset":
                peer.close()
            assert other.send(honest, 5)
    server.stop()
    known = wire.read_logs(server.log).get(client.id, [])
    client.bodies, client.acked = client.bodies[: len(known)], len(known)
    assert known == client.bodies
    check(server, [client, other], torn=False)


def test_never_reads(make) -> None:
    """A peer that never reads its answers is aborted; others are served meanwhile."""
    server, other = make("--unread-seconds", "1", "--max-unread-bytes", "10000").start(), Told()
    deaf_client = uuid.uuid4().bytes
    flood = b"".join(wire.message(deaf_client, n, b"") for n in range(1, 400_000))
    with wire.Connection(server.port) as deaf, wire.Connection(server.port) as honest:
        deaf.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.socket.settimeout(0.5)
        sent = 0
        try:
            while sent < len(flood):
                sent += deaf.socket.send(flood[sent:])
        except (TimeoutError, ConnectionError):
            pass
        assert sent < len(flood)
        assert other.send(honest, 5)
        wait_until(lambda: "does not read its answers" in server.said(), "the abort")
        assert other.send(honest, 5)
    server.stop()
    deaf_told = Told()
    deaf_told.id, deaf_told.bodies = deaf_client, wire.read_logs(server.log)[deaf_client]
    check(server, [deaf_told, other], torn=False)


class Crowd:
    """
    Connections beside honest clients: idle ones, and slow ones that send a byte at a time.

    @param idle: how many never say anything.
    @param slow: how many are always in the middle of a frame.
    """

    def __init__(self, port: int, idle: int, slow: int) -> None:
        self._frame = wire.message(uuid.uuid4().bytes, 1, b"x" * 200)
        self._sent = 0
        # Each address of loopback has its own ports and its own share of the server's connections.
        self._all = [
            socket.create_connection(
                ("127.0.0.1", port), 20, source_address=(f"127.0.{1 + n // 500}.1", 0)
            )
            for n in range(idle + slow)
        ]
        self._slow = self._all[:slow]

    def drip(self) -> None:
        """One more byte from each slow one."""
        self._sent += 1
        if self._sent < len(self._frame) - 1:
            byte = self._frame[self._sent : self._sent + 1]
            for peer in self._slow:
                peer.send(byte)

    def close(self) -> None:
        for peer in self._all:
            peer.close()


def latencies(port: int, count: int, drip) -> list[float]:
    """Of so many messages one after the other, seconds each."""
    client, found = Told(), []
    with wire.Connection(port) as connection:
        for n in range(count):
            if n % 50 == 0:
                drip()
            frame = client.message(n + 1)
            began = time.perf_counter()
            connection.send(frame)
            answer = connection.receive()
            found.append(time.perf_counter() - began)
            assert client.take(answer)
    return found


def p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


def measure(server: Program, idle: int, slow: int, times: int, count: int) -> tuple[float, float]:
    """
    The p99 of honest clients without and with a crowd, in turns; medians, seconds.
    """
    alone, beside = [], []
    for _ in range(times):
        alone.append(p99(latencies(server.port, count, lambda: None)))
        crowd = Crowd(server.port, idle, slow)
        try:
            time.sleep(0.1)  # until the last ones are accepted
            beside.append(p99(latencies(server.port, count, crowd.drip)))
        finally:
            crowd.close()
        time.sleep(0.1)  # until they are gone
    return statistics.median(alone), statistics.median(beside)


def crowd_options() -> tuple[str, ...]:
    return (
        *("--max-connections", "6000", "--max-connections-per-address", "600"),
        *("--frame-seconds", "600", "--idle-seconds", "0"),
    )


def test_crowd(make, rounds) -> None:
    """
    Beside idle and slow connections honest clients wait hardly longer than without.  On a busy
    machine one measurement says little: only one that comes out so three times counts, and a
    bound that is generous.  (The goal is twice, which C{crowd} shows on a quiet one.)
    """
    idle, slow = (5000, 500) if rounds > 1 else (1000, 500)
    need = idle + slow + 100
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < need:
        pytest.skip(f"needs {need} descriptors: ulimit -n")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, need), hard))
    server = make(*crowd_options())
    server.limits = {resource.RLIMIT_NOFILE: need}
    server.start()
    said = []
    for _ in range(3):
        alone, beside = measure(server, idle, slow, 3, 400)
        said.append(f"p99 alone {alone * 1e3:.2f} ms, beside {idle} + {slow} {beside * 1e3:.2f} ms")
        print(said[-1])
        if beside <= 4 * alone:
            break
    else:
        raise AssertionError("\n".join(said))
    server.stop()
