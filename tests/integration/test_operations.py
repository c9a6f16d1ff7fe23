"""What tap.md and docs/operations.md tell an operator to do, done."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import wire
from conftest import BIN, Server, wait_until

MANUAL = Path(__file__).parent.parent.parent / "tap.md"
A, B = uuid.uuid4().bytes, uuid.uuid4().bytes


def refused(server: Server) -> str:
    """The one line that a start ends with."""
    done = subprocess.run(
        server.command(), cwd=server.folder, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 1, done
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    return line


def log_some(server: Server, count: int = 5, client: bytes = A) -> None:
    with wire.Connection(server.port) as connection:
        first = connection.terms(client)[0] + 1
        for sequence in range(first, first + count):
            connection.log(client, sequence, b"%d" % sequence)


def once(server: Server, count: int = 5, client: bytes = A) -> None:
    """One life of a server: some messages, and a stop."""
    server.start()
    log_some(server, count, client)
    server.stop()


def ledger(server: Server) -> Path:
    return server.log.with_name(server.log.name + ".ledger")


Scenario = Callable[[Server], Iterator[None]]
SITUATIONS: dict[str, Scenario] = {}


def situation(words: str) -> Callable[[Scenario], Scenario]:
    """How to get into a situation; behind the C{yield}, what the manual says to do."""

    def remember(scenario: Scenario) -> Scenario:
        SITUATIONS[words] = scenario
        return scenario

    return remember


@situation("cannot listen on …")
def port_taken(server: Server) -> Iterator[None]:
    other = Server(server.folder)
    other.log, other.port = server.folder / "other.jsonl", server.port
    other.output = server.folder / "other"
    other.start()
    try:
        yield
        other.stop()
    finally:
        other.kill()


@situation("… is in use by another server")
def runs_already(server: Server) -> Iterator[None]:
    other = Server(server.folder)
    other.output = server.folder / "other"
    other.start()
    try:
        yield
        other.stop()
    finally:
        other.kill()


@situation("cannot use …: Permission denied")
def no_folder(server: Server) -> Iterator[None]:
    server.log = server.folder / "none" / "messages.jsonl"
    yield
    server.log.parent.mkdir()


@situation("cannot use …: it is …, and must be a file")
def no_file(server: Server) -> Iterator[None]:
    server.log.mkdir()
    yield
    assert not any(server.log.iterdir())
    server.log.rmdir()
    os.mkfifo(server.log)
    yield
    server.log.unlink()
    server.log.symlink_to("/dev/null")
    yield
    server.log.unlink()
    once(server)
    kept = ledger(server).rename(server.folder / "kept")
    theirs = server.folder / "theirs"
    theirs.touch()
    ledger(server).symlink_to(theirs)
    yield
    assert theirs.read_bytes() == b"", "somebody's file was written to"
    ledger(server).unlink()
    kept.rename(ledger(server))


@situation("… is damaged at byte 0, or is no log at all")
def no_log(server: Server) -> Iterator[None]:
    for text in (b"notes\n", b'{"time": "now"}\n', b"\0\0\0\0\0\0notes\n"):
        server.log.write_bytes(text)
        yield
        assert server.log.read_bytes() == text, "somebody's file was changed"
        assert [path.name for path in server.folder.glob("messages*")] == [server.log.name]
        server.log.unlink()


@situation("cannot use ….ledger: database or disk is full")
def disk_full(server: Server) -> Iterator[None]:
    disk = server.folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs a mount")
    try:
        server.log = disk / "messages.jsonl"
        once(server)
        size = shutil.disk_usage(disk).free
        (disk / "rubbish").write_bytes(bytes(size))
        yield
        (disk / "rubbish").unlink()
        # For the rest of the test the log is where it can stay.
        for path in disk.iterdir():
            shutil.move(path, server.folder)
        server.log = server.folder / "messages.jsonl"
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@situation("cannot use ….ledger: file is not a database")
def broken_ledger(server: Server) -> Iterator[None]:
    once(server)
    ledger(server).write_bytes(b"no database" * 1000)
    yield
    ledger(server).rename(server.folder / "away")


@situation("… is damaged at byte N …")
def damaged(server: Server) -> Iterator[None]:
    once(server)
    backup = shutil.copy(server.log, server.folder / "backup")
    with server.log.open("r+b") as file:
        file.seek(100)
        file.write(b"?")
    ledger(server).unlink()
    before = server.log.read_bytes()
    yield
    assert server.log.read_bytes() == before, "a damaged log was changed"
    shutil.copy(backup, server.log)


@situation("… has N bytes, but its ledger has seen M")
def cut(server: Server) -> Iterator[None]:
    once(server)
    whole = server.log.read_bytes()
    server.log.write_bytes(whole[: whole.rindex(b"\n", 0, -1) + 1])
    yield
    server.log.write_bytes(whole)


@situation("… is not the log that its ledger belongs to")
def another_end(server: Server) -> Iterator[None]:
    once(server)
    whole = server.log.read_bytes()
    lines = whole.splitlines(keepends=True)
    server.log.write_bytes(b"".join([*lines[:2], bytes(len(b"".join(lines[2:])))]))
    yield
    server.log.write_bytes(whole)


@situation("… is damaged at byte 0: its time is before …")
def older_log(server: Server) -> Iterator[None]:
    once(server)
    old = server.log.rename(server.folder / "old")
    once(server)
    right = server.log.rename(server.folder / "right")
    shutil.copy(old, server.log)
    yield
    shutil.copy(right, server.log)
    old.rename(server.folder / "messages.jsonl.1")


@situation("…, which begins with the name of …, is in use by another server")
def two_logs_in_one_folder(server: Server) -> Iterator[None]:
    once(server)
    other = Server(server.folder)
    other.log = server.folder / "messages.jsonl-other"
    other.output = server.folder / "other"
    other.start()
    log_some(other, client=B)
    ledger(server).unlink()
    try:
        yield
        other.stop()
        for path in server.folder.glob("messages.jsonl-other*"):
            path.rename(server.folder / path.name.replace("messages", "others"))
    finally:
        other.kill()


@situation("the server was killed before its ledger had all of the log …")
def moved_out_of_sight(server: Server) -> Iterator[None]:
    server.start()
    log_some(server)
    server.kill()
    away = server.log.rename(server.folder / "away")
    yield
    away.rename(server.folder / "messages.jsonl-20261124")


def test_every_situation_is_tried() -> None:
    section = MANUAL.read_text().partition("## When it does not start")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(.*?)`", section, re.M) == list(SITUATIONS)


@pytest.mark.parametrize("words", SITUATIONS)
def test_does_not_start(make_server, words) -> None:
    """It says what the manual has, and after what the manual says to do it starts, with all."""
    server = make_server()
    for _ in SITUATIONS[words](server):
        said = refused(server)
        if "Permission" not in words:  # to root nobody denies any
            for part in re.split(r" ?…|\bN\b|\bM\b", words):
                assert part in said, said
    server.start()
    log_some(server)
    server.stop()
    files = sorted(server.folder.glob("messages.jsonl[.-][0-9]*"))
    logged = wire.read_logs(*files, server.log)
    assert len(logged[A]) >= 5


def test_backup_and_restore(make_server, tmp_path) -> None:
    """What was rotated away never changes; its copies, put back without a ledger, are enough."""
    server = make_server("--rotate", "64KiB").start()
    log_some(server, 1500)
    server.log.rename(server.log.with_name("messages.jsonl-1764028800"))
    server.hang_up()
    wait_until(server.log.exists, "a new log")
    backup = tmp_path / "backup"
    backup.mkdir()
    log_some(server, 20)  # after the moment of the backup
    files = list(server.folder.glob("messages.jsonl[.-][0-9]*"))
    assert len(files) > 2
    for path in files:
        shutil.copy(path, backup)
    server.kill()
    for path in server.folder.glob("messages.jsonl*"):
        path.unlink()
    for path in backup.iterdir():
        shutil.copy(path, server.folder)
    server.start()
    with wire.Connection(server.port) as connection:
        assert connection.terms(A)[0] == 1500
    log_some(server, 20)
    server.stop()
    done = subprocess.run(
        [str(BIN / "msglog"), "verify", "--rotated", str(server.log)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done


def test_restore_with_compressed_files(make_server) -> None:
    """They are decompressed first, for a start without a ledger does not read them."""
    server = make_server("--rotate", "64KiB").start()
    log_some(server, 600)
    log_some(server, 600, B)
    server.stop()
    files = sorted(server.log.parent.glob("messages.jsonl.2*"))
    subprocess.run(["gzip", files[0]], check=True)
    ledger(server).unlink()
    server.start()
    wait_until(lambda: "is compressed and was not read" in server.said(), "the warning")
    server.kill()
    ledger(server).unlink()
    subprocess.run(["gunzip", str(files[0]) + ".gz"], check=True)
    server.start()
    with wire.Connection(server.port) as connection:
        assert connection.terms(A)[0] == 600
        assert connection.terms(B)[0] == 600
    server.stop()
