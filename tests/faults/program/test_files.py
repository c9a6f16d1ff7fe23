"""What other programs, and people, do to the log and its ledger, under a server and without one."""

from __future__ import annotations

import shutil
import subprocess

import pytest
import wire
from conftest import wait_until

from .promise import Told, check
from .servers import Program
from .shim import Plan
from .volumes import Ext4


@pytest.fixture
def served(make):
    """A server that runs, a client, and what that has acknowledged: ten messages."""
    server, client = make().start(), Told()
    with wire.Connection(server.port) as connection:
        assert client.send(connection, 10)
    return server, client


def send(server: Program, client: Told, count: int = 10) -> bool:
    with wire.Connection(server.port) as connection:
        return client.send(connection, count)


def refuses_to_start(server: Program) -> str:
    """A start that ends with status 1; what it says."""
    before = len(server.said())
    assert not server.begin()
    assert server.wait() == 1
    said = server.said()[before:]
    assert "Traceback" not in said
    return said


def fails_to_go_on(server: Program, client: Told, words: str) -> None:
    """The next message is refused, and the server ends with status 1 and says why."""
    with wire.Connection(server.port) as connection:
        connection.send(client.message(client.acked + 1))
        assert connection.nack()[0] == 5
    assert server.wait() == 1
    assert words in server.said()
    assert "Traceback" not in server.said()


def test_moved(served) -> None:
    server, client = served
    for number in range(3):
        server.log.rename(server.log.with_name(f"messages.jsonl.{number}"))
        if number:
            server.hang_up()
            wait_until(server.log.exists, "a new log")
        assert send(server, client)
    server.kill()
    assert len(server.files()) == 4
    check(server, [client])


def test_removed(served) -> None:
    """What was removed is gone, but its clients are known, and it goes on in a new file."""
    server, client = served
    server.log.unlink()
    assert send(server, client)
    server.kill()
    assert send(server.start(), client)
    server.stop()
    (line, *_) = server.log.read_bytes().splitlines()
    assert b'"seq":11,' in line
    with wire.Connection(server.start().port) as connection:
        assert connection.terms(client.id)[0] == client.acked == 30


def test_replaced_by_nothing(served) -> None:
    """An empty file in its place is the new log."""
    server, client = served
    server.log.rename(server.log.with_name("messages.jsonl.1"))
    server.log.touch()
    assert send(server, client)
    server.kill()
    check(server, [client])


def test_replaced_by_something(served) -> None:
    """A file that is not empty is nobody's to append to; the right one put back, all is there."""
    server, client = served
    right = server.log.rename(server.folder / "right")
    server.log.write_bytes(b"notes\n")
    fails_to_go_on(server, client, "was replaced by a file that is not empty")
    assert server.log.read_bytes() == b"notes\n"
    right.rename(server.log)
    check(server, [client])


@pytest.mark.parametrize("size", [0, 700, -1], ids=["to-nothing", "in-a-record", "by-a-byte"])
def test_truncated(served, size) -> None:
    """C{copytruncate}, and worse: it stops when it sees that, and does not start on the rest."""
    server, client = served
    whole = server.log.read_bytes()
    with server.log.open("r+b") as log:
        log.truncate(size if size >= 0 else len(whole) + size)
    fails_to_go_on(server, client, "another program changed it")
    cut = server.log.read_bytes()
    refuses_to_start(server)
    assert server.log.read_bytes() == cut, "a damaged log was changed"
    server.log.write_bytes(whole)
    check(server, [client])


def test_appended_to(served) -> None:
    server, client = served
    with server.log.open("ab") as log:
        log.write(b"a note\n")
    fails_to_go_on(server, client, "another program changed it")
    kept = server.log.read_bytes()
    server.start()  # what nobody acknowledged is kept aside, as after a crash
    server.stop()
    (torn,) = server.folder.glob("messages.jsonl.torn-*")
    assert server.log.read_bytes() + torn.read_bytes() == kept
    check(server, [client])


def test_copied_aside(served) -> None:
    """A copy beside it, under a name that begins with the log's, is read by nobody's mistake."""
    server, client = served
    shutil.copy(server.log, server.folder / "copy")
    assert send(server, client)
    server.kill()
    (server.folder / "copy").rename(server.log.with_name("messages.jsonl.copy"))
    check(server, [client])
    (server.log.with_name("messages.jsonl.copy")).unlink()


def test_second_server(make, served) -> None:
    """It is refused, whatever it does to get in, and the first one goes on."""
    server, client = served
    second = make()
    second.output = second.folder / "output-of-the-second"
    second.output.touch()
    for _ in range(3):
        assert "in use by another server" in refuses_to_start(second)
        assert send(server, client)
    # The name is moved away, and the second is there before the first has noticed.
    server.log.rename(server.log.with_name("messages.jsonl.1"))
    assert "in use by another server" in refuses_to_start(second)
    assert send(server, client)
    # Without the ledger, whose lock is another one.
    for path in server.folder.glob("messages.jsonl.ledger*"):
        path.rename(server.folder / f"kept{path.name}")
    assert "in use by another server" in refuses_to_start(second)
    server.kill()
    server.forget()
    check(server, [client])


def test_ledger_removed(served) -> None:
    """Under the server, and while it is dead."""
    server, client = served
    server.forget()
    assert send(server, client)
    server.kill()
    server.forget()
    check(server, [client])


def test_ledger_older(served) -> None:
    """A copy of it that was made earlier, by the way even of a running server."""
    server, client = served
    server.stop()
    old = shutil.copy(server.ledger, server.folder / "old")
    assert send(server.start(), client)
    server.kill()
    server.forget()
    shutil.copy(old, server.ledger)
    check(server, [client])


def test_ledger_of_another_log(make, served, tmp_path) -> None:
    """It is refused, and nothing is changed; without it all is well."""
    server, client = served
    server.stop()
    (tmp_path / "elsewhere").mkdir()
    other, stranger = make(folder=tmp_path / "elsewhere").start(), Told()
    assert send(other, stranger, 5)
    other.kill()
    server.forget()
    for path in other.folder.glob("messages.jsonl.ledger*"):
        shutil.copy(path, server.folder)
    before = server.log.read_bytes()
    said = refuses_to_start(server)
    assert "ledger" in said, said
    assert server.log.read_bytes() == before
    server.forget()
    check(server, [client], torn=False)


def test_read_only_folder(make, tmp_path) -> None:
    """A disk that was mounted read-only, as Linux does after an error: a line says so."""
    with Ext4(tmp_path / "image", tmp_path / "disk") as volume:
        server, client = make(), Told()
        server.log = volume.folder / "messages.jsonl"
        assert send(server.start(), client)
        server.kill()
        subprocess.run(["mount", "-o", "remount,ro", volume.folder.parent], check=True)
        assert "Read-only file system" in refuses_to_start(server)
        subprocess.run(["mount", "-o", "remount,rw", volume.folder.parent], check=True)
        check(server, [client])


class Clock:
    """The clock of a server, which is set while it runs."""

    def __init__(self, path) -> None:
        self.path = path
        self.set(0)

    def set(self, hours: float) -> None:
        with self.path.open("r+b" if self.path.exists() else "wb") as file:
            file.write(int(hours * 3600).to_bytes(8, "little", signed=True))


def test_clock(make, tmp_path) -> None:
    """
    An hour forward and two back, under a server that rotates, and between two: time in the log
    never goes back, nor do the files' names.
    """
    clock = Clock(tmp_path / "clock")
    server, client = make("--rotate", "64KiB"), Told()
    for hours in ((0, 1, -1), (-3, -2, 0), (2, -5, 0)):
        server.plan = Plan(clock=str(clock.path))
        clock.set(hours[0])
        server.start()
        for now in hours:
            clock.set(now)
            assert send(server, client, 300)
        server.kill()
    assert len(server.files()) > 5
    assert sorted(server.files()[:-1]) == server.files()[:-1]
    check(server, [client])
    times = [line[9:36] for path in server.files() for line in path.read_bytes().splitlines()]
    assert times == sorted(times)
    assert len({time[:13] for time in times}) > 1, "the clock was not set"


def test_timers(make, tmp_path) -> None:
    """
    The clock set back an hour keeps no peer's time from running out, and set forward takes none
    away: who stops in the middle of a frame is aborted, who is silent is served.
    """
    clock = Clock(tmp_path / "clock")
    server, client = make("--frame-seconds", "1", "--idle-seconds", "600"), Told()
    server.plan = Plan(clock=str(clock.path))
    server.start()
    with wire.Connection(server.port) as silent:
        assert client.send(silent, 1)
        for hours in (-1, 1):
            with wire.Connection(server.port) as stuck:
                stuck.send(client.message(client.acked + 1)[:7])
                clock.set(hours)
                with pytest.raises(ConnectionResetError):
                    stuck.receive()
        assert client.send(silent, 1)
    server.stop()
    check(server, [client])
