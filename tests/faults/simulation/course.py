"""A recipe, simulated: the faults, then peace, and what must be so in the end."""

from __future__ import annotations

import errno
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from attrs import frozen
from twisted.logger import LogLevel, globalLogPublisher

import msglog._sockets

from .actors import Client, Peer, Server
from .disk import SimDisk
from .model import Model, checksum, message
from .network import FakeSelect, Network
from .recipe import Event, Recipe
from .world import Killed, Machine, Violation, World

__all__ = ["Outcome", "simulate"]

# After the last fault everybody is done within this time.  What may have to be waited for: a
# vanished connection (100 s), a client's longest backoff, and answers that come too late (30 s).
_PEACE_SECONDS = 400.0

# Files in memory, if the system has such a place.
_MEMORY = Path("/dev/shm")


@frozen
class Outcome:
    """
    What became of a recipe.

    @ivar violation: which promise was broken; empty if none was.
    @ivar trace: a hash of all that happened.
    @ivar lines: all that happened, if it was to be kept.
    @ivar counts: how much happened.
    """

    recipe: Recipe
    violation: str
    trace: str
    lines: list[str]
    counts: dict[str, int]


def simulate(recipe: Recipe, *, keep: bool = False) -> Outcome:
    """Run a recipe to its end, or to the first broken promise."""
    world = World(str(recipe.seed), keep=keep)
    parent = _MEMORY if _MEMORY.is_dir() else None
    folder = Path(tempfile.mkdtemp(prefix="msglog-simulation-", dir=parent))
    state = random.getstate()
    random.seed(recipe.seed)  # of the clients' backoff
    simulation = Simulation(world, recipe, folder)
    try:
        with _watched_log(world), simulation.surroundings():
            simulation.run()
    except Violation:
        pass
    finally:
        simulation.clean_up()
        random.setstate(state)
        shutil.rmtree(folder)
    violation = str(world.violation or "")
    return Outcome(recipe, violation, world.trace, world.lines, simulation.counts())


@contextmanager
def _watched_log(world: World) -> Iterator[None]:
    """See that nobody logs a traceback."""

    def observe(event: dict[str, Any]) -> None:
        failure = event.get("log_failure")
        if failure is not None and not isinstance(failure.value, (Violation, Killed)):
            try:
                world.violate(f"a defect: {failure.getBriefTraceback()}")
            except Violation:
                pass
        elif event["log_level"] >= LogLevel.warn:
            world.note(f"said: {event.get('log_format')}")

    globalLogPublisher.addObserver(observe)
    try:
        yield
    finally:
        globalLogPublisher.removeObserver(observe)


class Simulation:
    """Everybody in it, and what the events of a recipe do to them."""

    def __init__(self, world: World, recipe: Recipe, folder: Path) -> None:
        settings = recipe.settings
        self._world = world
        self._recipe = recipe
        self._settings = settings
        (folder / "server").mkdir()
        self._folder = folder / "server"
        self._rng = world.rng("simulation")
        self._raw = [b"raw client    %02d" % number for number in range(4)]
        self._forbidden = b"forbidden client"
        self.network = Network(
            world, settings.latency, settings.splitting, list(settings.capacities)
        )
        self.model = Model(
            settings.window,
            settings.max_body,
            settings.max_unanswered,
            {self._forbidden},
            world.violate,
            lambda: self.disk.faults,
            lambda: self.server.has_failed,
        )
        self.disk = SimDisk(
            world,
            self._folder,
            self.model.file_changed,
            lambda: self.server.sync_begins(),
            lambda: self.server.died(),
        )
        self.disk.report_writes = bool(settings.lazy)
        self.model.scarce = settings.ledger_memory < 1 << 20
        self.server = Server(world, self.network, self.disk, self.model, settings, self._folder)
        self._machine = Machine(world)
        self.clients: list[Client] = []
        for number, kind in enumerate(settings.clients):
            spool = None
            if kind == "spool":
                spool = folder / f"spool{number}" / "spool"
                spool.parent.mkdir()
            client = UUID(bytes=b"msglog client %02d" % number)
            self._add_client(f"client{number}", client, spool)
        self.peers: list[Peer] = []
        self._furthest = 0.0  # how far the clock was ahead at most
        self._crowds = 0
        self._rotations = 0

    def _add_client(self, name: str, client: UUID, spool: Path | None) -> Client:
        made = Client(
            self._world, self._machine, self.network, self.model, self._settings, name, client,
            spool,
        )  # fmt: skip
        self.clients.append(made)
        return made

    @contextmanager
    def surroundings(self) -> Iterator[None]:
        """What of msglog's surroundings is replaced."""
        real = msglog._sockets.select
        msglog._sockets.select = FakeSelect(self.network)  # type: ignore[assignment]
        try:
            yield
        finally:
            msglog._sockets.select = real

    def clean_up(self) -> None:
        """Close what a simulation that ended early has open."""
        self.server.store.writer._abandon()
        for client in self.clients:
            if client.service is not None and client.service._spool is not None:
                client.service._spool.close()

    def counts(self) -> dict[str, int]:
        """How much happened."""
        return {
            **self.model.answers,
            **self.server.counts,
            "events": self._world.events,
            "failed calls": self.disk.faults,
            "files": self.disk.files,
            "clients read from the ledger": self.disk.rows_read,
        }

    # --- the course of it ------------------------------------------------------------------

    def run(self) -> None:
        """Faults, peace, the end."""
        world = self._world
        self.server.start()
        for client in self.clients:
            world.after(0.01 * self._rng.random(), client.start)
        for event in self._recipe.events:
            world.after(event.at, self._happen, event)
        last = max((event.at for event in self._recipe.events), default=0.0)
        world.run(lambda: False, last + 0.5)
        self._peace()
        self._end()

    def _peace(self) -> None:
        world = self._world
        world.note("peace")
        self.disk.heal()
        self.server.slow = 0.0
        self.network.calm()
        for peer in self.peers:
            peer.hurry()
        for client in self.clients:
            if client.reactor is None:
                client.start()
        # Timers that were set by a clock that was ahead then are not later for it.
        self._set_clock(self._furthest)
        if not world.run(self._quiet, _PEACE_SECONDS):
            world.violate(f"in peace, not everybody is done: {self._not_done()}")
        self.server.look_inside()
        self._audit()

    def _quiet(self) -> bool:
        return (
            self.server.serves
            and self.server.at_rest
            and all(client.settled for client in self.clients)
            and all(peer.done for peer in self.peers)
            and not any(connection.held for connection in self.model.connections)
        )

    def _not_done(self) -> str:
        clients = [f"{c.name} ({c.service and c.service.trouble})" for c in self.clients
                   if not c.settled]  # fmt: skip
        peers = [peer.name for peer in self.peers if not peer.done]
        held = [c.name for c in self.model.connections if c.held]
        return f"{clients}, {peers}, {held}, server {self.server.serves}"

    def _end(self) -> None:
        """Everybody stops; the log and the ledger are what was promised."""
        world = self._world
        for client in self.clients:
            client.see_log()
            client.stop(lambda: None)
        if not world.run(lambda: all(c.reactor is None for c in self.clients), 60.0):
            world.violate("a client does not stop")
        self._stop_server()
        self.model.see_acked()
        self._see_ledger()
        self.server.start()
        self._audit()
        self._stop_server()

    def _stop_server(self) -> None:
        stopped: list[bool] = []
        self.server.stop(lambda: stopped.append(True))
        if not self._world.run(lambda: bool(stopped), 60.0):
            self._world.violate("the server does not stop")

    def _see_ledger(self) -> None:
        """Read the ledger's file."""
        with sqlite3.connect(self._folder / "log.ledger") as db:
            rows = dict(db.execute("SELECT client, last FROM clients"))
        db.close()
        if rows != self.model.clients():
            missing = sorted(set(self.model.clients().items()) ^ set(rows.items()))
            self._world.violate(f"the ledger's file is not what the log has: {missing}")

    def _audit(self) -> None:
        """Ask for every client, and send again what is logged last."""
        peer = Peer(self._world, self.network, self.model, self._settings, "auditor", [], 0, 0)
        peer._ends_with = "half-close"
        for client, last in self.model.clients().items():
            body = self.model.bodies[client][-1]
            peer._out += message(client, 0, b"\x01", 0x05)
            peer._out += message(client, last, body)
            if checksum(client, last, body) != checksum(client, last, b"!"):
                peer._out += message(client, last, b"!")
        before = self._world.events
        if self._settings.max_connections > 50:
            peer.start()
            if (
                not self._world.run(lambda: peer.done, _PEACE_SECONDS)
                or self._world.events == before
            ):
                self._world.violate("the auditor is not answered")
            if peer._out:
                self._world.violate("the auditor could not say all")

    # --- events ----------------------------------------------------------------------------

    def _happen(self, event: Event) -> None:
        self._world.note(f"event {event.kind} {sorted(event.how.items())}")
        getattr(self, f"_do_{event.kind}")(**event.how)

    def _do_send(self, client: int, count: int) -> None:
        self.clients[client % len(self.clients)].send(count)

    def _do_peer(self, number: int, chance: int) -> None:
        ids = [*self._raw, self._forbidden]
        self._add_peer(ids, chance, 1 + chance % 20)

    def _do_crowd(self, count: int, chance: int) -> None:
        self._crowds += 1
        ids = [b"crowd %04d %05d" % (self._crowds, number) for number in range(count)]
        self._add_peer(ids, chance, 2 * count)

    def _add_peer(self, ids: list[bytes], chance: int, deeds: int) -> None:
        name = f"peer{len(self.peers)}"
        peer = Peer(self._world, self.network, self.model, self._settings, name, ids, chance, deeds)
        self.peers.append(peer)
        peer.start()

    def _do_kill(self, away: float, rotate: bool) -> None:
        if self.server.reactor is not None:
            self._die(away, rotate, power=False)

    def _do_power(self, away: float, rotate: bool) -> None:
        self._die(away, rotate, power=True)

    def _die(self, away: float, rotate: bool, *, power: bool) -> None:
        running = self.server.reactor is not None
        self.server.die(power=power)
        if running:
            if rotate:
                self._do_rotate()
            self.server.start_later(away)

    def _do_die(self, calls: int, power: bool, away: float) -> None:
        self.disk.die_in = calls

    def _do_stop(self, away: float) -> None:
        self.server.stop(lambda: self.server.start_later(away))

    def _do_lose_ledger(self, away: float) -> None:
        def lose() -> None:
            self.disk.lose_ledger()
            self.server.start_later(away)

        self.server.stop(lose)

    def _do_full(self, room: int, seconds: float) -> None:
        self.disk.room = room
        self._world.after(seconds, self._free)

    def _free(self) -> None:
        self.disk.room = None

    def _do_sync_error(self, code: str) -> None:
        self.disk.errors["sync"] = getattr(errno, code)

    def _do_write_error(self, code: str) -> None:
        self.disk.errors["write"] = getattr(errno, code)

    def _do_open_error(self, call: str, code: str) -> None:
        self.disk.errors[call] = getattr(errno, code)

    def _do_slow_disk(self, each: float, seconds: float) -> None:
        self.server.slow = each
        self._world.after(seconds, self._quick)

    def _quick(self) -> None:
        self.server.slow = 0.0

    def _do_rotate(self) -> None:
        self._rotations += 1
        self.disk.move_log_away(f"log.{self._rotations}")

    def _do_reopen(self) -> None:
        if self.server.serves:
            self.server.store.reopen()

    def _do_clock(self, by: float) -> None:
        self._set_clock(self.server.machine.skew + by)

    def _set_clock(self, skew: float) -> None:
        self.model.idle |= skew - self.server.machine.skew >= 3600
        self.server.machine.skew = skew
        self._furthest = max(self._furthest, skew)
        if self.server.reactor is not None:
            self.server.reactor.clock_was_set()

    def _connection(self, which: int) -> Any:
        connections = self.network.open_connections()
        return connections[which % len(connections)] if connections else None

    def _do_cut(self, which: int) -> None:
        if connection := self._connection(which):
            self.network.cut(connection)

    def _do_vanish(self, which: int) -> None:
        if connection := self._connection(which):
            self.network.vanish(connection)

    def _do_stall(self, which: int, up: float, down: float) -> None:
        if connection := self._connection(which):
            self.network.stall(connection, up, down)

    def _do_pause(self, seconds: float, server: bool) -> None:
        reactor = self.server.reactor if server else self.clients[0].reactor
        if reactor is not None:
            reactor.paused_until = self._world.now + seconds

    def _do_kill_client(self, client: int, away: float) -> None:
        self.clients[client].kill()
        self.clients[client].start_later(away)

    def _do_stop_client(self, client: int, away: float) -> None:
        stopping = self.clients[client]
        stopping.stop(lambda: stopping.start_later(away))

    def _do_restore_client(self, client: int, away: float) -> None:
        self.clients[client].restore(away)

    def _do_clone(self, client: int, count: int) -> None:
        original = self.clients[client]
        if self._settings.max_connections < 50:
            return  # one more would keep another out for ever
        original.contested = True
        clone = self._add_client(f"clone{len(self.clients)}", original.client, None)
        clone.contested = True
        clone.start()
        clone.send(count)
