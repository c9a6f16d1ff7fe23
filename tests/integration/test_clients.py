"""The clients as programs, against the real server, a bad network, kills, and servers that lie."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest
import wire
from conftest import free_port, wait_until
from cutter import Cutter

KINDS = ["blocking", "asyncio", "twisted"]
MESSAGES = 100_000
DRIVER = Path(__file__).with_name("drive_client.py")


class Driver:
    """A program that logs numbered messages, and its journal."""

    def __init__(self, folder: Path, kind: str, servers: str, count: int, **options) -> None:
        self.journal = folder / f"journal-{kind}-{options.get('first', 0)}"
        self.output = folder / f"{self.journal.name}.output"
        self.command = [
            *(sys.executable, str(DRIVER), kind, servers, str(count), str(self.journal)),
            json.dumps(options),
        ]
        self.fill, self.long = options.get("fill", 0), options.get("long")
        self.process: subprocess.Popen | None = None
        self._read_up_to = 0

    def start(self) -> Driver:
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(self.command, stdout=output, stderr=output)
        return self

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def wait(self, seconds: float = 60) -> None:
        """Until it has ended, without an error."""
        assert self.process is not None
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
            raise AssertionError(f"it hangs: {self.said()[-3000:]}") from None
        assert status == 0, self.said()
        assert "Traceback" not in self.said(), self.said()

    def said(self) -> str:
        return self.output.read_text()

    @property
    def size(self) -> int:
        """How much it has done, by its journal."""
        return self.journal.stat().st_size if self.journal.exists() else 0

    def lines(self, kind: str) -> list[list[str]]:
        """The whole lines of one kind, without its name."""
        text = self.journal.read_text() if self.journal.exists() else ""
        return [
            line.split(" ", 4)[1:]
            for line in text[: text.rfind("\n") + 1].splitlines()
            if line.startswith(kind + " ")
        ]

    def numbers(self, kind: str) -> list[int]:
        return [int(line[0]) for line in self.lines(kind)]

    def is_long(self, number: int) -> bool:
        return bool(self.long) and number % self.long == self.long - 1

    def body(self, number: int) -> bytes:
        return b"%d %s" % (number, b"x" * (1000 if self.is_long(number) else self.fill))

    def check_receipts(self, logged: dict[bytes, list[bytes]]) -> int:
        """Each receipt is for just that message, at its place in the log; how many there are."""
        receipts = self.lines("receipt")
        for number, client, sequence, checksum in receipts:
            body = logged[bytes.fromhex(client)][int(sequence) - 1]
            assert body == self.body(int(number))
            frame = wire.message(bytes.fromhex(client), int(sequence), body)
            assert frame[4:8].hex() == checksum
        assert len({line[0] for line in receipts}) == len(receipts), "a receipt came twice"
        return len(receipts)


@pytest.fixture
def drive(tmp_path):
    drivers = []

    def make(*arguments, **options) -> Driver:
        driver = Driver(tmp_path, *arguments, **options)
        drivers.append(driver)
        return driver

    make.made = drivers
    yield make
    for driver in drivers:
        if driver.process is not None and driver.process.poll() is None:
            driver.kill()


@pytest.fixture
def rng() -> random.Random:
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed}")
    return random.Random(seed)


QUICK = {"first_backoff_seconds": 0.01, "max_backoff_seconds": 0.2}


@pytest.mark.parametrize("kind", KINDS)
def test_cuts_and_kills(server, drive, rng, kind) -> None:
    """
    100,000 messages, the connection cut every few hundred milliseconds, the server killed five
    times: each has its receipt, and is in the log once, in order.
    """
    with Cutter(server.port, 0.3, rng) as cutter:
        driver = drive(kind, f"127.0.0.1:{cutter.port}", MESSAGES, limits=QUICK).start()
        whole = MESSAGES * 60  # bytes of the journal, about
        for part in range(1, 6):
            wait_until(
                lambda at=part * whole // 6: driver.size > at or driver.process.poll() is not None,
                "progress",
                60,
            )
            assert driver.process.poll() is None, driver.said()
            server.kill()
            server.start()
        driver.wait()
        print(f"{cutter.cuts} cuts")
        assert cutter.cuts >= 5
    server.stop()
    logged = wire.read_logs(server.log)
    assert list(logged.values()) == [[driver.body(n) for n in range(MESSAGES)]]
    assert driver.check_receipts(logged) == MESSAGES
    assert driver.lines("error") == []
    assert driver.lines("state") == [[""]]


@pytest.mark.parametrize("kind", KINDS)
def test_killed_with_a_spool(server, drive, rng, kind, tmp_path) -> None:
    """
    The same with a spool, and the client killed too: all that the spool had said to have is in
    the log once, in order, and so is what has a receipt.
    """
    with Cutter(server.port, 0.3, rng) as cutter:
        driver = drive(
            kind,
            f"127.0.0.1:{cutter.port}",
            MESSAGES,
            spool=str(tmp_path / "spool"),
            limits=QUICK,
        ).start()
        whole = MESSAGES * 20
        for part in range(1, 9):
            wait_until(
                lambda at=part * whole // 9: driver.size > at or driver.process.poll() is not None,
                "progress",
                60,
            )
            assert driver.process.poll() is None, driver.said()
            if part % 3 == 0:
                server.kill()
                server.start()
            else:
                driver.kill()
                driver.start()
        driver.wait()
    server.stop()
    logged = wire.read_logs(server.log)
    (bodies,) = logged.values()
    numbers = [int(body.split()[0]) for body in bodies]
    assert bodies == [driver.body(number) for number in numbers]
    assert numbers == sorted(set(numbers)), "one is there twice, or not in order"
    kept = set(driver.numbers("spooled")) | set(driver.numbers("receipt"))
    assert kept <= set(numbers)
    # What was on its way into the spool when the client was killed may be lost, and nothing else.
    assert set(numbers) - kept < set(driver.numbers("put"))
    assert len(numbers) > MESSAGES - 6 * 4096
    assert driver.numbers("put") == list(range(MESSAGES))
    assert driver.check_receipts(logged) > 0
    assert driver.lines("error") == []


@pytest.mark.parametrize("kind", KINDS)
def test_first_server_is_dead(server, drive, kind) -> None:
    """The next one is tried."""
    servers = f"127.0.0.1:{free_port()},127.0.0.1:{server.port}"
    driver = drive(kind, servers, 1000, limits=QUICK).start()
    driver.wait(20)
    server.stop()
    assert driver.check_receipts(wire.read_logs(server.log)) == 1000


@pytest.mark.parametrize("kind", KINDS)
def test_server_hangs(server, drive, kind) -> None:
    """A server that stops for longer than an answer may take: left, and gone back to."""
    limits = {**QUICK, "answer_seconds": 0.3, "connect_seconds": 0.3}
    driver = drive(kind, f"127.0.0.1:{server.port}", 30_000, limits=limits).start()
    wait_until(lambda: driver.size > 100_000, "progress")
    server.process.send_signal(signal.SIGSTOP)
    time.sleep(1.5)
    server.process.send_signal(signal.SIGCONT)
    driver.wait(30)
    assert "did not answer within 0.3 s" in driver.said()
    server.stop()
    logged = wire.read_logs(server.log)
    assert list(logged.values()) == [[driver.body(n) for n in range(30_000)]]
    assert driver.check_receipts(logged) == 30_000


@pytest.mark.parametrize("kind", KINDS)
def test_full_disk(server, drive, kind) -> None:
    """The server's disk is full: messages wait, and go on by themselves when there is room."""
    driver = drive(kind, f"127.0.0.1:{server.port}", 30_000, limits=QUICK).start()
    wait_until(lambda: driver.size > 100_000, "progress")
    size = server.log.stat().st_size + 50
    no_limit = resource.RLIM_INFINITY
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (size, no_limit))
    wait_until(lambda: "NOT_STORED" in driver.said(), "the warning")
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (no_limit, no_limit))
    driver.wait(30)
    assert "messages are sent again" in driver.said()
    server.stop()
    logged = wire.read_logs(server.log)
    assert list(logged.values()) == [[driver.body(n) for n in range(30_000)]]
    assert driver.check_receipts(logged) == 30_000


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spooled", [False, True])
def test_too_long(server, drive, kind, spooled, tmp_path) -> None:
    """Exactly the messages that are too long fail; those behind them are logged, with no gap."""
    options = {"spool": str(tmp_path / "spool")} if spooled else {}
    driver = drive(kind, f"127.0.0.1:{server.port}", 5000, long=50, limits=QUICK, **options)
    driver.start().wait(30)
    server.stop()
    logged = wire.read_logs(server.log)
    expected = [n for n in range(5000) if not driver.is_long(n)]
    assert list(logged.values()) == [[driver.body(n) for n in expected]]
    told = driver.check_receipts(logged)
    errors = driver.lines("error")
    assert all(driver.is_long(int(e[0])) and e[1:3] == ["NotLogged", "False"] for e in errors)
    if not spooled:
        assert (told, len(errors)) == (4900, 100)


@pytest.mark.parametrize("kind", KINDS)
def test_two_with_one_id(server, drive, kind) -> None:
    """One of two clients with one id is told; what has a receipt is logged, whoever sent it."""
    who = str(uuid.uuid4())
    pair = [
        drive(
            kind,
            f"127.0.0.1:{server.port}",
            20_000,
            first=first,
            client=who,
            limits=QUICK,
            seconds=20,
        ).start()
        for first in (0, 100_000)
    ]
    for driver in pair:
        driver.wait(40)
    server.stop()
    logged = wire.read_logs(server.log)
    assert len(logged) == 1
    for driver in pair:
        driver.check_receipts(logged)
    errors = [error for driver in pair for error in driver.lines("error")]
    assert errors
    assert {error[1] for error in errors} == {"SessionFailed"}
    assert all("take a new client id" in error[3] for error in errors)


@pytest.mark.parametrize("kind", KINDS)
def test_log_set_back(server, drive, kind, tmp_path) -> None:
    """A server that has lost acknowledged messages: nothing is sent, and the text says why."""
    spool = str(tmp_path / "spool")
    driver = drive(kind, f"127.0.0.1:{server.port}", 70, spool=spool, limits=QUICK)
    driver.start().wait(20)
    server.stop()
    lines = server.log.read_bytes().splitlines(keepends=True)
    server.log.write_bytes(b"".join(lines[:30]))
    server.log.with_name("messages.jsonl.ledger").unlink()
    server.start()
    later = drive(
        kind, f"127.0.0.1:{server.port}", 14, first=70, spool=spool, limits=QUICK, seconds=2
    )
    later.start().wait(20)
    assert "acknowledged sequence 70, and now its last is 30" in later.said()
    assert {error[1] for error in later.lines("error")} == {"SessionFailed"}
    assert len(later.lines("error")) == 2
    server.stop()
    assert len(wire.read_logs(server.log).popitem()[1]) == 30


class Liar:
    """A server that answers as it likes, in threads; it takes no part in any log."""

    def __init__(self, talk) -> None:
        self._talk = talk
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.connections = 0
        self._open: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        try:
            self._talk(connection)
        except OSError:
            pass

    def __enter__(self) -> Liar:
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.close()
        for connection in self._open:
            connection.close()


def terms(client: bytes) -> bytes:
    return wire.frame(wire.TERMS, client, 0, struct.pack(">BII", 1, 1 << 20, 1024))


def frames_of(connection: socket.socket):
    """What the client sends, frame by frame; its ENQUIRY is answered."""
    rest = b""
    while data := connection.recv(1 << 20):
        frames, rest = wire.split(rest + data)
        for kind, checksum, client, sequence, body in frames:
            if kind == wire.ENQUIRY:
                connection.sendall(terms(client))
            else:
                yield checksum, client, sequence, body


def receipt(checksum: int, client: bytes, sequence: int) -> bytes:
    return struct.pack(">IIB16sQ", 29, checksum, wire.ACK, client, sequence)


def other_checksums(connection) -> None:
    for checksum, client, sequence, _ in frames_of(connection):
        connection.sendall(receipt(checksum ^ 1, client, sequence))


def other_sequences(connection) -> None:
    for checksum, client, sequence, _ in frames_of(connection):
        connection.sendall(receipt(checksum, client, sequence + 1))


def other_clients(connection) -> None:
    for checksum, _, sequence, _ in frames_of(connection):
        connection.sendall(receipt(checksum, bytes(16), sequence))


def http(connection) -> None:
    connection.recv(100)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
    connection.close()


def garbage(connection) -> None:
    for _ in frames_of(connection):
        connection.sendall(random.randbytes(500))


def echo(connection) -> None:
    while data := connection.recv(1 << 20):
        connection.sendall(data)


def close_at_once(connection) -> None:
    connection.close()


def silent(connection) -> None:
    while connection.recv(1 << 20):
        pass


def silent_after_terms(connection) -> None:
    for _ in frames_of(connection):
        pass


def never_reads(connection) -> None:
    connection.sendall(terms(connection.recv(100)[9:25]))
    time.sleep(60)


LIES = {
    other_checksums: "is not for the message that was sent",
    other_sequences: "is not for the message that was sent",
    other_clients: "is not for the message that was sent",
    http: "does not speak msglog's protocol",
    garbage: "does not speak msglog's protocol",
    echo: "does not speak msglog's protocol",
    close_at_once: "the connection was lost",
    silent: "did not answer within 0.3 s",
    silent_after_terms: "did not answer within 0.3 s",
    never_reads: "did not answer within 0.3 s",
}


@pytest.mark.parametrize("kind", KINDS)
def test_lies(drive, kind) -> None:
    """A server whose answers are none: no receipt, and the trouble has a name."""
    limits = {**QUICK, "answer_seconds": 0.3, "connect_seconds": 0.3}
    liars, drivers = [], []
    try:
        for number, talk in enumerate(LIES):
            liars.append(Liar(talk).__enter__())
            drivers.append(
                drive(
                    kind,
                    f"127.0.0.1:{liars[-1].port}",
                    1500,
                    first=10_000 * number,
                    limits=limits,
                    seconds=1.5,
                ).start()
            )
            if number % 5 == 4:  # not all at once, so that the machine does not stall them
                for driver in drivers[-5:]:
                    driver.wait(20)
        for (talk, trouble), liar, driver in zip(LIES.items(), liars, drivers, strict=True):
            assert driver.lines("receipt") == [], talk
            assert {error[1] for error in driver.lines("error")} == {"Unanswered"}, talk
            assert len(driver.lines("error")) == 1500
            assert trouble in driver.said(), talk
            (state,) = driver.lines("state")
            assert trouble in " ".join(state), (talk, state)
            assert liar.connections > 1, talk
    finally:
        for liar in liars:
            liar.__exit__()


@pytest.mark.parametrize("kind", KINDS)
def test_refusals_for_good(drive, kind) -> None:
    """A server that forbids the client id: told at once, and not tried again."""

    def forbids(connection) -> None:
        for _, client, sequence, _ in frames_of(connection):
            body = struct.pack(">BQ", 7, sequence) + b"not a client id for this connection"
            connection.sendall(wire.frame(wire.NACK, client, sequence, body))

    with Liar(forbids) as liar:
        driver = drive(kind, f"127.0.0.1:{liar.port}", 100, limits=QUICK, seconds=5).start()
        driver.wait(20)
        assert liar.connections == 1
    errors = driver.lines("error")
    assert {error[1] for error in errors} == {"SessionFailed"}
    assert all("Ask the operator" in error[3] for error in errors)
    assert len(errors) == 100


def resident(process: subprocess.Popen) -> int:
    with open(f"/proc/{process.pid}/status") as lines:
        (line,) = [line for line in lines if line.startswith("VmRSS")]
    return int(line.split()[1]) * 1024


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("talk", "fill"), [(silent_after_terms, 10), (never_reads, 4000)])
def test_memory(drive, kind, talk, fill) -> None:
    """Against a server that never answers no more is held than the limits say."""
    limit = 16 * 1024 * 1024
    few, many = (
        {"pending_bytes": size, "pending_messages": 1 << 30, "answer_seconds": 0.3, **QUICK}
        for size in (1, limit)
    )
    with Liar(talk) as liar:
        for number, limits in enumerate((few, many)):
            driver = drive(
                kind,
                f"127.0.0.1:{liar.port}",
                1 << 20,
                first=10**7 * number,
                limits=limits,
                fill=fill,
                flood=True,
            ).start()
            wait_until(lambda driver=driver: driver.lines("full"), "the end of its room")
        time.sleep(1)  # several connections, on each of which all is sent again
        before, after = (resident(driver.process) for driver in drive.made)
        print(f"grown by {after - before} bytes")
        assert liar.connections > 4
    # It did hold messages, and no more than its bound, with what sockets and frames take.
    assert 1024 * 1024 < after - before < limit + 6 * 1024 * 1024
