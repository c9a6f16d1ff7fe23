"""
Killed at every system call that touches the log, its ledger or their folder: before it, in the
middle of it, and after it; and each of these calls failing.

A life is what a server does from start to stop.  One that is not disturbed says which calls there
are; then each of them is the last one of another life that began the same.
"""

from __future__ import annotations

import errno
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import wire
from attrs import frozen
from conftest import wait_until

from .promise import Told, check
from .servers import Program
from .shim import Fate, Plan


@frozen
class Life:
    """
    @ivar options: of the server.
    @ivar prepare: what there is before; with a folder's server.
    @ivar live: what clients and operators do; with a server that runs.
    @ivar gone: whether files are deleted meanwhile.
    """

    options: tuple[str, ...]
    prepare: Callable[[Program, list[Told]], None]
    live: Callable[[Program, list[Told]], bool]
    gone: bool = False


def nothing(server: Program, clients: list[Told]) -> None:
    """There is nothing yet."""


def killed(server: Program, clients: list[Told]) -> None:
    """It was killed: the ledger is behind, and the end of the log is torn."""
    server.start()
    with wire.Connection(server.port) as connection:
        assert all(client.send(connection, 5) for client in clients)
    server.kill()
    with server.log.open("ab") as log:
        log.write(b'{"time":"2026-')


def moved(server: Program, clients: list[Told]) -> None:
    """The log was moved away after a kill."""
    killed(server, clients)
    data = server.log.read_bytes()
    server.log.write_bytes(data[: data.rindex(b"\n") + 1])
    server.log.rename(server.log.with_name("messages.jsonl-1"))


def send(server: Program, clients: list[Told], count: int = 3, rounds: int = 2) -> bool:
    """Each client sends some messages, some times; whether all is well."""
    with wire.Connection(server.port) as connection:
        return all(client.send(connection, count) for _ in range(rounds) for client in clients)


def rotated(server: Program, clients: list[Told]) -> bool:
    """As much as makes it go on in a second and a third file, and more."""
    return send(server, clients, 300, 3)


def hung_up(server: Program, clients: list[Told]) -> bool:
    """The log is moved away under it, and it is told; and again, and it is not."""
    if not send(server, clients):
        return False
    server.log.rename(server.log.with_name("messages.jsonl-2"))
    server.hang_up()
    wait_until(lambda: server.log.exists() or server.process.poll() is not None, "a new log")
    if not send(server, clients):
        return False
    server.log.rename(server.log.with_name("messages.jsonl-3"))
    return send(server, clients)


# In CI one of so many moments, others each time; all in the long form.
SHARE = 8
SHARES = {"first": 3}

SMALL = ("--checkpoint-bytes", "2000")
LIVES = {
    "first": Life((), nothing, send),
    "checkpoints": Life(("--checkpoint-bytes", "1000"), nothing, lambda s, c: send(s, c, 4, 4)),
    "recovery": Life(SMALL, killed, send),
    "recovery-moved": Life(SMALL, moved, send),
    "rotation": Life(("--rotate", "64KiB"), nothing, rotated),
    "deletion": Life(("--rotate", "64KiB", "--rotate-keep", "1"), nothing, rotated, gone=True),
    "moved": Life(SMALL, nothing, hung_up),
    "lazy": Life((*SMALL, "--sync", "0.05"), nothing, lambda s, c: send(s, c, 4, 4)),
}


class Lives:
    """The same life again and again."""

    def __init__(self, make, folder: Path, life: Life) -> None:
        self._make = make
        self._folder = folder
        self._life = life
        self._clients = [Told(random.Random(n)) for n in range(2)]
        self._base = folder / "base"
        self._base.mkdir()
        server = make(*life.options, folder=self._base)
        life.prepare(server, self._clients)
        self._known = [(client.acked, list(client.bodies)) for client in self._clients]

    def live(self, number: int, plan: Plan) -> tuple[Program, list[Told], bool]:
        """
        Live once.

        @return: the server, which has ended; the clients; whether all was well.
        """
        folder = self._folder / f"life{number}"
        shutil.copytree(self._base, folder)
        (folder / "output").unlink(missing_ok=True)
        server = self._make(*self._life.options, folder=folder)
        server.plan = plan
        clients = []
        for n, (acked, bodies) in enumerate(self._known):
            client = Told(random.Random(n))
            client.bodies, client.acked = list(bodies), acked
            clients.append(client)
        well = server.begin()
        if well:
            try:
                well = self._life.live(server, clients)
            except (ConnectionError, FileNotFoundError, AssertionError):
                if server.process.poll() is None and plan.fate not in (Fate.FAIL, Fate.HALF):
                    raise
                well = False
        server.process.terminate()
        server.process.wait(60)
        return server, clients, well

    def calls(self) -> list[str]:
        """What the system is asked for in a life that nothing disturbs."""
        trace = self._folder / "trace"
        server, clients, well = self.live(0, Plan(trace=str(trace)))
        assert well, server.said()
        self.check(server, clients)
        return [line.split(" ", 1)[1] for line in trace.read_text().splitlines()]

    def check(self, server: Program, clients: list[Told]) -> None:
        """See that the promise is kept, and forget this life."""
        check(server, clients, gone=int(self._life.gone))
        shutil.rmtree(server.folder)


def moments(calls: list[str], every: bool) -> list[tuple[int, Fate]]:
    """
    When to kill it: the number of a call, and how.

    Of calls that repeat the one before only the last, unless every one is wanted.  After a call
    is not the same as before the next one: what it acknowledges is known in between.
    """
    found = []
    for at, call in enumerate(calls, 1):
        if not every and calls[at - 2 : at + 1] == [call] * 3:
            continue
        found.append((at, Fate.BEFORE))
        if "write" in call:
            found.append((at, Fate.MIDDLE))
        if every or "sync" in call or call.startswith(("rename", "unlink", "ftruncate")):
            found.append((at, Fate.AFTER))
    return found


def some(found: list, share: int, rounds: int) -> list:
    """All, or one of so many, others each time."""
    return found if rounds > 1 else found[random.randrange(share) :: share]


@pytest.mark.parametrize("name", LIVES)
def test_killed(make, tmp_path, name, rounds) -> None:
    """Whenever it is killed, what it acknowledged is there, and it goes on."""
    lives = Lives(make, tmp_path, LIVES[name])
    calls = lives.calls()
    chosen = some(moments(calls, rounds > 1), SHARES.get(name, SHARE), rounds)
    ended = 0
    for number, (at, fate) in enumerate(chosen, 1):
        server, clients, _ = lives.live(number, Plan(fate, first=at, last=at))
        ended += server.process.poll() == -9
        try:
            lives.check(server, clients)
        except AssertionError as e:
            e.add_note(f"killed {fate.name} call {at}, {calls[at - 1]}")
            raise
    print(f"{name}: {len(calls)} calls, {len(chosen)} lives, {ended} killed")
    assert ended > 0.8 * len(chosen)


@pytest.mark.parametrize("name", ["first", "recovery", "rotation", "moved"])
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_failing(make, tmp_path, name, error, rounds) -> None:
    """
    Whichever call fails, nothing that was acknowledged is lost: it goes on, or it ends with a
    status that says so, and the next start has it all.
    """
    lives = Lives(make, tmp_path, LIVES[name])
    calls = lives.calls()
    numbered = [at for at, call in enumerate(calls, 1) if not call.startswith(("close", "flock"))]
    chosen = some(numbered, 3 * SHARE, rounds)
    ends = {0: 0, 1: 0}
    for number, at in enumerate(chosen, 1):
        plan = Plan(Fate.FAIL, first=at, last=at, error=getattr(errno, error))
        server, clients, _ = lives.live(number, plan)
        try:
            ends[server.process.poll()] += 1
            assert "Traceback" not in server.said()
            if calls[at - 1] == "fdatasync messages.jsonl":
                assert server.process.poll() == 1, "it took no notice of a sync that failed"
            lives.check(server, clients)
        except (AssertionError, KeyError) as e:
            e.add_note(f"{error} at call {at}, {calls[at - 1]}: {server.said()}")
            raise
    print(f"{name}, {error}: {len(chosen)} calls failed, {ends[1]} lives ended by that")
