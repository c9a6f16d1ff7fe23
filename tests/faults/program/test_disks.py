"""Disks that are full, fail, take half, or lie; and power that is cut."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
from contextlib import suppress
from pathlib import Path

import pytest
import wire

from .promise import Told, check
from .servers import Program
from .shim import FOREVER, Fate, Plan
from .test_signals import seeded
from .traffic import Load, groups
from .volumes import Ext4, small_memory

LOG = "messages.jsonl"


def refused(connection: wire.Connection, client: Told) -> None:
    """The client's next message is refused: NOT_STORED, and expected again."""
    connection.send(client.message(client.acked + 1))
    code, expected, *_ = connection.nack()
    assert (code, expected) == (5, client.acked + 1)


def limit_files(server: Program, size: int) -> None:
    """How large the server's files may become: EFBIG is ENOSPC's sibling, without a mount."""
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def test_limited_files(make) -> None:
    """Without room: refused, what was acknowledged stands; with room it goes on by itself."""
    server, client = make().start(), Told()
    with wire.Connection(server.port) as connection:
        assert client.send(connection, 1)
        size = server.log.stat().st_size
        limit_files(server, size + 50)
        client.bodies.append(b"x" * 100)
        for _ in range(3):
            refused(connection, client)
            assert server.log.stat().st_size == size
        connection.log(client.id, 1, client.body(1))  # a resend is still acknowledged
        limit_files(server, resource.RLIM_INFINITY)
        assert client.send(connection, 1)
    server.stop()
    check(server, [client], torn=False)


def test_full_disk_and_room_again(make, tmp_path, rounds) -> None:
    """A disk that is full to the last byte, again and again, under a server and at its start."""
    with small_memory(tmp_path / "disk", 2) as disk:
        server = make("--checkpoint-bytes", "20000")
        server.log = disk / LOG
        client, rubbish = Told(), disk / "rubbish"
        server.start()
        for _ in range(5 * rounds):
            with wire.Connection(server.port) as connection:
                assert client.send(connection, 20)
                fill(rubbish)
                while client.send(connection, 1):  # what there is room for in the last page
                    pass
                refused(connection, client)
                connection.log(client.id, 1, client.body(1))
                rubbish.unlink()
                assert client.send(connection, 5)
                fill(rubbish)
                connection.send(client.message(client.acked + 1))
                client.take(connection.receive())
            server.kill()
            begun = server.begin()  # a full disk may keep it from starting, and harms nothing
            assert begun or "see that there is room" in server.said()
            rubbish.unlink()
            if not begun:
                server.start()
        server.stop()
        check(server, [client], torn=False)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            with suppress(OSError):
                while file.write(bytes(size)):
                    pass


@pytest.mark.parametrize("error", ["ENOSPC", "EDQUOT", "EFBIG"])
def test_no_room_after_half(make, error) -> None:
    """Half of a commit is written, then there is no room, five times; then there is some."""
    server, client = make(), Told()
    plan = Plan(Fate.HALF, "write", LOG, 2, 6, getattr(errno, error))
    server.plan = plan
    server.start()
    with wire.Connection(server.port) as connection:
        assert client.send(connection, 1)
        size = server.log.stat().st_size
        for _ in range(4):
            refused(connection, client)
            assert server.log.stat().st_size == size
        while not client.send(connection, 1):
            pass
    server.kill()
    check(server, [client], torn=False)


def test_short_writes(make) -> None:
    """Writes that take half: the rest is written, and nothing is said."""
    server, client = make(), Told()
    server.plan = Plan(Fate.HALF, "write", LOG, 2, 2)
    server.start()
    with wire.Connection(server.port) as connection:
        assert client.send(connection, 1)
        assert client.send(connection, 30)
    server.stop()
    check(server, [client], torn=False)


@pytest.mark.parametrize(
    ("call", "error"),
    [("write", "EIO"), ("fdatasync", "EIO"), ("fdatasync", "ENOSPC"), ("fdatasync", "EDQUOT")],
)
def test_fail_stop(make, call, error) -> None:
    """
    Everything pending is refused, nothing is tried again, and the process ends with status 1.
    """
    server, clients = make(), [Told(), Told()]
    trace = server.folder / "trace"
    # The start syncs once.
    first = 3 if call == "fdatasync" else 2
    server.plan = Plan(Fate.FAIL, call, LOG, first, FOREVER, getattr(errno, error), str(trace))
    server.start()
    with wire.Connection(server.port) as connection:
        assert clients[0].send(connection, 1)
        for client in clients:
            connection.send(b"".join(client.message(client.acked + n) for n in range(1, 21)))
        for _ in range(40):
            assert connection.nack()[0] == 5
        assert connection.receive() is None
    assert server.wait() == 1, server.said()
    assert "takes nothing more" in server.said()
    assert "Traceback" not in server.said()
    assert len(trace.read_text().splitlines()) == first, "it was tried again"
    check(server, clients)


def log_on_disk(volume: Ext4, server: Program) -> bytes:
    """What is left of the log when the power is cut now."""
    volume.cut_power()
    volume.power_again()
    return server.log.read_bytes()


def test_sync_that_finds_no_room(make, tmp_path) -> None:
    """
    A sparse disk on a smaller one: the write goes well and C{fdatasync} fails, after which the
    page cache shows what the disk does not have.  There is room again and the server is started: a
    resend is acknowledged only with the message really on the disk, so the power is cut.
    """
    with (
        small_memory(tmp_path / "backing", 12) as backing,
        Ext4(backing / "image", tmp_path / "disk", 64) as volume,
    ):
        server, client = make(), Told()
        server.log = volume.folder / LOG
        server.start()
        with wire.Connection(server.port) as connection:
            assert client.send(connection, 10)
            fill(backing / "rubbish")
            client.bodies += [os.urandom(200) for _ in range(20_000)]
            while client.send(connection, 200):
                pass
        assert server.wait() == 1, server.said()
        assert "takes nothing more" in server.said()
        (backing / "rubbish").unlink()
        server.start()
        shown = server.log.read_bytes()
        with wire.Connection(server.port) as connection:
            durable = connection.terms(client.id)[0]
            assert durable >= client.acked
            for sequence in range(max(1, durable - 200), durable + 1):
                connection.log(client.id, sequence, client.body(sequence))
        client.acked = durable
        server.kill()
        assert log_on_disk(volume, server).startswith(shown), "acknowledged on a cache's word"
        del client.bodies[durable:]
        # The ledger was on that disk, too.
        check(server, [client])


def test_power_cuts(make, tmp_path, rounds) -> None:
    """The power is cut under load, again and again: what was acknowledged is there."""
    rng = seeded()
    with Ext4(tmp_path / "image", tmp_path / "disk", 64) as volume:
        server = make("--checkpoint-bytes", "30000", "--rotate", "256KiB")
        server.log = volume.folder / LOG
        clients = groups(rng, 6, 2)
        for _ in range(12 * rounds):
            server.start()

            def cut() -> None:
                # Nobody hears of what a sync says that was under way: some say that all is well.
                server.process.kill()
                volume.cut_power()

            load = Load(server.port, rng, rng.randrange(1, 800), cut)
            asyncio.run(asyncio.wait_for(load.run(clients), 60))
            server.kill()
            volume.power_again()
        check(server, [client for group in clients for client in group])
