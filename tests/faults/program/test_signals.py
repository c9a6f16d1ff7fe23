"""
Servers and clients that are killed, stopped and held in the middle of everything, under load.

The log is moved away and the ledger deleted now and then.  Whatever was acknowledged must be in
the log exactly once, in order, whatever happened.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import wire
from conftest import wait_until
from senders import Sender, running

from .promise import Told, check
from .traffic import Load, groups

CLIENT = Path(__file__).with_name("endless_client.py")


def seeded() -> random.Random:
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed}")
    return random.Random(seed)


@pytest.mark.parametrize(
    ("number", "cycles"), [(signal.SIGKILL, 40), (signal.SIGTERM, 25)], ids=["kill", "term"]
)
def test_ended_again_and_again(make, rounds, number, cycles) -> None:
    rng = seeded()
    server = make("--checkpoint-bytes", "200000", "--ledger-memory", "1048576")
    clients = groups(rng, 8, 3)
    moved = 0
    for cycle in range(cycles * rounds):
        server.start()
        load = Load(
            server.port, rng, rng.randrange(1, 1500), lambda: server.process.send_signal(number)
        )
        load.refusals = frozenset({6})  # of a server that stops
        asyncio.run(asyncio.wait_for(load.run(clients), 60))
        assert server.wait() == (0 if number == signal.SIGTERM else -signal.SIGKILL)
        if rng.random() < 0.1:
            server.forget()
        if rng.random() < 0.1:
            server.log.rename(server.log.with_name(f"{server.log.name}.{cycle}"))
            moved += 1
    assert "Traceback" not in server.said()
    logged = check(server, [client for group in clients for client in group])
    print(f"{sum(map(len, logged.values()))} messages, {moved} times moved")


def test_moved_under_load(make, rounds) -> None:
    """The log is renamed again and again while clients write, with SIGHUP and without."""
    rng = seeded()
    server = make().start()
    clients = groups(rng, 4, 1)
    moved = 0

    def move() -> None:
        nonlocal moved
        if moved == 6 * rounds:
            server.kill()
            return
        server.log.rename(server.log.with_name(f"{server.log.name}.{moved}"))
        moved += 1
        if moved % 2:
            server.hang_up()
            wait_until(server.log.exists, "a new log")
        load.strike_in = 500

    load = Load(server.port, rng, 500, move)
    asyncio.run(asyncio.wait_for(load.run(clients), 60 * rounds))
    assert moved == 6 * rounds
    check(server, [client for group in clients for client in group])


def test_held(make, rounds) -> None:
    """A server that stands still now and then; when it goes on, all are served."""
    server = make().start()
    senders = [Sender(server.port, 1 if n % 2 else 50) for n in range(4)]
    with running(senders):
        for _ in range(5 * rounds):
            reached = [len(s.moments) for s in senders]
            wait_until(
                lambda r=reached: all(
                    s.error or len(s.moments) > n for s, n in zip(senders, r, strict=True)
                ),
                "traffic",
            )
            server.process.send_signal(signal.SIGSTOP)
            time.sleep(0.2)  # how long it stands still: what is tested, not waited for
            server.process.send_signal(signal.SIGCONT)
    end(server, senders)


def end(server, senders: list[Sender], others: Sequence[Told] = ()) -> None:
    """All that the senders sent was acknowledged; stop, and check it."""
    assert [s.error for s in senders] == [None] * len(senders)
    server.stop()
    clients = list(others)
    for sender in senders:
        told = Told()
        told.id, told.bodies, told.acked = sender.client.bytes, sender.bodies, len(sender.bodies)
        clients.append(told)
    check(server, clients, torn=False)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["kill", "stop"])
def test_clients(make, tmp_path, rounds, number) -> None:
    """Clients die, or stand still, in the middle of a window; others do not notice."""
    server = make().start()
    other = Sender(server.port, 50)
    told = []
    with running([other]):
        for _ in range(3 * rounds):
            client = Told()
            command = [sys.executable, str(CLIENT), str(server.port), client.id.hex()]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            try:
                for line in process.stdout:
                    if int(line) >= 100:
                        break
                process.send_signal(number)
                reached = len(other.moments)
                wait_until(lambda r=reached: len(other.moments) > r + 200, "others are served")
            finally:
                process.kill()
                rest = process.communicate(timeout=30)[0].split()
            client.acked = max([100, *map(int, rest)])
            with wire.Connection(server.port) as connection:
                durable = connection.terms(client.id)[0]
            assert durable >= client.acked
            client.bodies = [b"%d" % n for n in range(1, durable + 1)]
            client.acked = durable
            told.append(client)
    end(server, [other], told)
