"""Who is in a simulation: the server and its supervisor, msglog's own clients, and other peers."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

from attrs import define
from twisted.protocols.policies import WrappingFactory

from msglog import ClientLimits, FileStore, Limits, MessageLogClient, MessageLogFactory
from msglog._errors import NotLogged, SessionFailed, StartError, Unanswered
from msglog._ledger import CHECKSUM_BYTES, CLIENT_BYTES
from msglog._rotation_rule import RotationRule
from msglog._service import MessageLogService
from msglog._writer import LogWriter

from .disk import SimDisk
from .model import ACK, CONFLICT, CORRUPT, NACK, NOT_STORED, TOO_LONG, Model, checksum, message
from .network import Endpoint, Listening, Network, Socket
from .recipe import Settings
from .world import Killed, Machine, SimReactor, SimWorker, World

__all__ = ["Client", "Peer", "Server"]

_SUPERVISOR_SECONDS = 0.3


class Ordered(dict[Any, None]):
    """A set whose order is that of adding, so that it does not depend on where objects are."""

    def add(self, item: Any) -> None:
        self[item] = None

    def remove(self, item: Any) -> None:
        del self[item]

    def discard(self, item: Any) -> None:
        self.pop(item, None)


class Server:
    """
    The server, one life after the other.

    @ivar reactor: the process; L{None} while there is none.
    """

    def __init__(
        self, world: World, network: Network, disk: SimDisk, model: Model, settings: Settings,
        folder: Path,
    ) -> None:  # fmt: skip
        self.machine = Machine(world)
        self.disk = disk
        self._world, self._network, self._model = world, network, model
        self._settings = settings
        self._path = folder / "log"
        self._rng = world.rng("server")
        self.slow = 0.0  # what the writer's work takes longer, at most
        self.reactor: SimReactor | None = None
        self.counts: Counter[str] = Counter()
        self._lives = 0
        self.limits = Limits(
            max_message_bytes=settings.max_body,
            window=settings.window,
            max_connections=settings.max_connections,
            max_unanswered_bytes=settings.max_unanswered,
            max_undurable_bytes=settings.max_undurable,
            max_unread_bytes=settings.max_unread,
            in_place_bytes=settings.in_place,
            checkpoint_bytes=settings.checkpoint_bytes,
        )
        # Fewer than Limits lets anybody say: few clients are to fill it.
        object.__setattr__(self.limits, "ledger_memory", settings.ledger_memory)

    # --- lives -----------------------------------------------------------------------------

    def start(self) -> None:
        """Begin a life, and try again if the disk does not let it."""
        if self.reactor is not None:
            return
        self._lives += 1
        self._world.note(f"server {self._lives} starts")
        reactor = SimReactor(self.machine, f"server {self._lives}")
        self.reactor = reactor
        self._make(reactor)
        faults = self.disk.faults
        try:
            self.service.startService()
        except Killed:
            return
        except StartError as e:
            self._world.note(f"server {self._lives} does not start")
            if self.disk.faults == faults:
                self._world.violate(f"the server does not start: {e}")
            self._exit()
            self.start_later(_SUPERVISOR_SECONDS)
        else:
            assert self.store.recovered is not None
            self.counts["starts"] += 1
            self.counts["torn ends"] += self.store.recovered.torn > 0
            self.counts["records read at starts"] += self.store.recovered.records

    def _make(self, reactor: SimReactor) -> None:
        settings = self._settings
        writer = LogWriter(
            self._path,
            self.limits,
            settings.lazy,
            rotation=RotationRule(max_bytes=settings.rotate_bytes),
            disk=self.disk,
            checkpoint=self.disk.open_checkpoint,
            clock=self.machine.clock,
            monotonic=self.machine.monotonic,
        )
        self.store = FileStore(
            reactor,
            self._path,
            self.limits,
            settings.lazy,
            on_failure=self._failed,
            writer=writer,
            worker=lambda reactor: SimWorker(reactor, self._work_seconds),
        )
        factory = MessageLogFactory(reactor, self.store, self.limits, self._permits)
        factory.connections = Ordered()  # type: ignore[assignment]
        factory.turned_away = Ordered()  # type: ignore[assignment]
        self.factory = factory
        wrap = WrappingFactory if settings.wrapped else lambda factory: factory
        listening = Listening(self._network, reactor, self._accepted, wrap)
        self.service = MessageLogService(self.store, factory, [("simulated", listening)])

    def sync_begins(self) -> None:
        """A sync takes a while, and in the reactor's thread everything waits for it."""
        seconds = self._work_seconds()
        self.machine.spent += seconds
        if self.reactor is not None and not self._in_thread:
            self.counts["syncs in place"] += 1
            self.reactor.paused_until = self._world.now + seconds

    def _work_seconds(self) -> float:
        seconds = self._settings.disk_seconds * (0.1 + 2 * self._rng.random())
        return seconds + self.slow * self._rng.random()

    def _permits(self, client: bytes, transport: Any) -> bool:
        return client not in self._model.forbidden

    def _accepted(self, sock: Socket) -> None:
        full = len(self.factory.connections) >= self.limits.max_connections
        # An end of a wrapped connection is the end of both its halves, as with TLS.
        left = lambda: self._settings.wrapped and sock.incoming.ended  # noqa: E731
        connection = self._model.accepted(sock.name, left, lambda: sock.waiting > 0, full=full)
        sock.received, sock.sent = connection.received, connection.sent
        sock.ended = connection.ended

    def start_later(self, seconds: float) -> None:
        """Have the supervisor start it again."""
        self._world.after(seconds, self._start_in_turn, self._lives)

    def _start_in_turn(self, lives: int) -> None:
        if self._lives == lives:
            self.start()

    # --- ends ------------------------------------------------------------------------------

    def die(self, *, power: bool) -> None:
        """End this life at once, with or without the machine."""
        reactor = self.reactor
        if reactor is None:
            if power:
                self._lose_power()
            return
        self.counts["power cuts" if power else "kills"] += 1
        self._world.note(f"{reactor.name} dies{' with its machine' if power else ''}")
        self.disk.freeze()
        if power:
            for sock in list(reactor.sockets):
                sock.lose_power(self._rng.choice([0.1, 1.0, 40.0]))
        reactor.kill()
        self._network.port = None
        self.store.writer._abandon()
        self.disk.thaw()
        self._model.server_died()
        self.reactor = None
        if power:
            self._lose_power()

    def _lose_power(self) -> None:
        if self._settings.lazy:
            return
        self.disk.power_cut()
        self._model.power_cut(self.disk.log_files())

    def died(self) -> None:
        """The process has ended in a call of its own, from which it does not return."""
        assert self.reactor is not None
        self.reactor.kill()
        self._network.port = None
        self._model.server_died()
        self._world.after(0.0, self._bury, self.reactor)

    def _bury(self, reactor: SimReactor) -> None:
        if self.reactor is reactor:
            self.die(power=self._rng.random() < 0.5)
            self.start_later(_SUPERVISOR_SECONDS)

    def _failed(self, error: Exception) -> None:
        """The disk failed: the process ends by itself."""
        if self.reactor is None or not self.reactor.alive:
            return  # what a dead process would have said
        self._world.note("the log has failed")
        self.counts["fail-stops"] += 1
        if not self.disk.grave_faults:
            self._world.violate(f"fail-stop without need: {error}")
        self.reactor.callLater(0, self.stop, lambda: self.start_later(_SUPERVISOR_SECONDS))

    def stop(self, stopped: Callable[[], object]) -> None:
        """Stop cleanly, then do something."""
        if self.reactor is None or not self.reactor.alive or self._model.stopping:
            return
        self._world.note(f"{self.reactor.name} stops")
        self._model.stopping = True
        reactor = self.reactor
        self.service.stopService().addCallback(
            lambda _: self._world.after(0.1, self._gone, reactor, stopped)
        )

    def _gone(self, reactor: SimReactor, stopped: Callable[[], object]) -> None:
        if self.reactor is not reactor or not reactor.alive:
            return
        left = [what for what in reactor.left() if not what.startswith("a socket")]
        if left and not self.factory.turned_away:
            self._world.violate(f"{reactor.name} has stopped and has {left}")
        if self.factory.undurable:
            self._world.violate(f"{self.factory.undurable} bytes are held for nobody")
        if self.disk.open_files:
            self._world.violate(f"{self.disk.open_files} files are left open")
        self._exit()
        stopped()

    def _exit(self) -> None:
        assert self.reactor is not None
        self._world.note(f"{self.reactor.name} ends")
        self.reactor.kill()
        self._network.port = None
        self._model.server_died()
        self.reactor = None

    # --- what can be seen from inside ------------------------------------------------------

    @property
    def has_failed(self) -> bool:
        """Whether it waits for its end, because its disk failed."""
        return self.store.failed is not None

    @property
    def _in_thread(self) -> bool:
        """Whether the writer's work is done in its thread at the moment."""
        worker = self.store._worker
        return worker is not None and worker.working  # type: ignore[attr-defined]

    @property
    def serves(self) -> bool:
        """Whether it can be expected to serve."""
        alive = self.reactor is not None and self.reactor.alive
        return alive and not self._model.stopping and not self.has_failed

    @property
    def at_rest(self) -> bool:
        """Whether the store has nothing to judge, and no connection an answer for its next turn."""
        store = self.store
        return store._busy_since is None and not store._waiting and not self.factory._to_flush

    def look_inside(self) -> None:
        """See that what the server counts is what there is, when it has nothing to do."""
        factory, ledger = self.factory, self.store.writer.ledger
        if factory.undurable:
            self._world.violate(f"{factory.undurable} bytes are held, and nothing is owed")
        if factory.holding or any(c._held & ~2 for c in factory.connections):
            self._world.violate("a connection is not read, and nothing is owed")
        memory = sum(
            CLIENT_BYTES + CHECKSUM_BYTES * len(state.checksums)
            for state in ledger._clients.values()
        )
        if memory != ledger.memory:
            self._world.violate(f"the ledger counts {ledger.memory} bytes and holds {memory}")
        for client, last in self._model.clients().items():
            if ledger.last(client) != last:
                self._world.violate(f"the ledger has {ledger.last(client)} of a client's {last}")


@define(eq=False)
class Sent:
    """
    A message that an application handed over.

    @ivar outcome: what it was told: C{pending}, C{receipt}, C{spooled}, C{refused}, C{failed}
        (of a client that can do nothing more), C{unanswered}, C{lost} (with its process).
    """

    body: bytes
    outcome: str = "pending"
    life: int = 0


class Client:
    """
    An application with msglog's own client, one life after the other.

    @ivar contested: whether somebody else may write under its id, or its counter was set back.
    """

    def __init__(
        self, world: World, machine: Machine, network: Network, model: Model, settings: Settings,
        name: str, client: UUID, spool: Path | None,
    ) -> None:  # fmt: skip
        self.name = name
        self.client = client
        self._world, self._machine, self._network = world, machine, network
        self._model, self._settings = model, settings
        self._rng = world.rng(name)
        self._spool = spool
        self.contested = False
        self.sent: list[Sent] = []
        self.reactor: SimReactor | None = None
        self.service: MessageLogClient | None = None
        self._lives = 0
        self._last = 0  # the sequence of this life's last receipt
        self._conflicts: list[int] = []  # in this life, and what was on its way out then
        self._old_spool: dict[str, bytes] = {}
        self.stopping = False

    # --- lives -----------------------------------------------------------------------------

    def start(self) -> None:
        """Begin a life."""
        if self.reactor is not None:
            return
        self._lives += 1
        self._world.note(f"{self.name} starts")
        reactor = SimReactor(self._machine, f"{self.name}.{self._lives}")
        self.reactor = reactor
        self.stopping = False
        self._last, self._conflicts = 0, []
        self.service = MessageLogClient(
            reactor,
            [Endpoint(self._network, reactor, self._connected)],
            client=self.client,
            spool=self._spool,
            limits=ClientLimits(window=self._settings.client_window),
            worker=lambda reactor: SimWorker(reactor, lambda: 0.001 * self._rng.random()),
        )
        self.service.startService()

    def start_later(self, seconds: float) -> None:
        """Have it started again."""
        self._world.after(seconds, self._start_in_turn, self._lives)

    def _start_in_turn(self, lives: int) -> None:
        if self._lives == lives:
            self.start()

    def kill(self) -> None:
        """End this life at once."""
        if self.reactor is None:
            return
        self._world.note(f"{self.name} is killed")
        files = self._spool_files()
        self.reactor.kill()
        self.reactor = None
        if self._spool is None:
            # What it had sent may arrive after its next life has asked.
            self.contested = True
        else:
            assert self.service is not None
            if self.service._spool is not None:
                self.service._spool.close()
            self._put_spool(files)
        for sent in self.sent:
            if sent.outcome == "pending":
                sent.outcome = "lost"

    def stop(self, stopped: Callable[[], object]) -> None:
        """Stop cleanly."""
        if self.reactor is None or self.stopping:
            return
        self._world.note(f"{self.name} stops")
        self.stopping = True
        reactor, service = self.reactor, self.service
        assert service is not None
        service.stopService().addCallback(
            lambda _: self._world.after(1.0, self._gone, reactor, stopped)
        )

    def _gone(self, reactor: SimReactor, stopped: Callable[[], object]) -> None:
        if self.reactor is not reactor:
            return
        if reactor.left():
            self._world.violate(f"{self.name} has stopped and has {reactor.left()}")
        if any(sent.outcome == "pending" for sent in self.sent):
            self._world.violate(f"{self.name} has stopped, and somebody still waits")
        reactor.kill()
        self.reactor = None
        stopped()

    def restore(self, seconds: float) -> None:
        """Kill it, and put an older copy of its spool back."""
        if self._spool is None or self.reactor is None:
            return
        self.kill()
        self.contested = True
        if self._old_spool:
            self._put_spool(self._old_spool)
        self.start_later(seconds)

    def _spool_files(self) -> dict[str, bytes]:
        if self._spool is None:
            return {}
        return {path.name: path.read_bytes() for path in sorted(self._spool.parent.iterdir())}

    def _put_spool(self, files: dict[str, bytes]) -> None:
        assert self._spool is not None
        shutil.rmtree(self._spool.parent)
        self._spool.parent.mkdir()
        for name, content in files.items():
            (self._spool.parent / name).write_bytes(content)

    # --- the connection --------------------------------------------------------------------

    def _connected(self, sock: Socket) -> None:
        """
        See that nothing is sent under an id after its CONFLICT.

        One behind a refusal after which all is sent again is about a message that is asked again.
        """
        answers = bytearray()
        asks_again = False
        if self._conflicts:
            self._world.violate(f"{self.name} connects after a CONFLICT")

        def received(data: bytes) -> None:
            nonlocal asks_again
            answers.extend(data)
            while len(answers) >= 4 and len(answers) >= (end := 4 + int.from_bytes(answers[:4])):
                if answers[8] == ACK:
                    asks_again = False
                elif end > 33 and answers[8] == NACK:
                    asks_again |= answers[33] in (NOT_STORED, CORRUPT, TOO_LONG)
                    if answers[33] == CONFLICT and not asks_again:
                        conflicts.append(sock.waiting)
                del answers[:end]

        def sent(data: bytes) -> None:
            if conflicts:
                conflicts[0] -= len(data)
                if conflicts[0] < 0:
                    self._world.violate(f"{self.name} sends after a CONFLICT")

        conflicts = self._conflicts
        sock.received, sock.sent = received, sent

    # --- messages --------------------------------------------------------------------------

    def send(self, count: int) -> None:
        """The application says something."""
        if self.reactor is None or self.stopping:
            return
        service = self.service
        assert service is not None
        if self._spool is not None and self._rng.random() < 0.3:
            self._old_spool = self._spool_files()
        longest = self._settings.max_body
        for _ in range(count):
            body = b"%s %d " % (self.name.encode(), len(self.sent))
            body += self._rng.randbytes(self._rng.randrange(max(longest - len(body), 0) + 1))
            if self._rng.random() < 0.03:
                body += bytes(longest)
            sent = Sent(body, life=self._lives)
            self.sent.append(sent)
            if self._spool is not None and self._rng.random() < 0.5:
                service.put(body).addCallbacks(self._spooled, self._error, (sent,), {}, (sent,))
            else:
                service.send(body).addCallbacks(self._receipt, self._error, (sent,), {}, (sent,))

    def _spooled(self, result: None, sent: Sent) -> None:
        sent.outcome = "spooled"

    def _receipt(self, receipt: Any, sent: Sent) -> None:
        sent.outcome = "receipt"
        what = f"{self.name}: the receipt {receipt.sequence}"
        client = self.client.bytes
        if receipt.client != self.client:
            self._world.violate(f"{what} is for another client")
        if receipt.checksum != checksum(client, receipt.sequence, sent.body):
            self._world.violate(f"{what} is for other bytes")
        if self._model.logged(client, receipt.sequence) != receipt.checksum:
            self._world.violate(f"{what} is for what is not in the log")
        if receipt.sequence <= self._last:
            self._world.violate(f"{what} comes after {self._last}")
        self._last = receipt.sequence

    def _error(self, failure: Any, sent: Sent) -> None:
        error = failure.value
        what = f"{self.name}: {error}"
        if isinstance(error, SessionFailed):
            sent.outcome = "failed"
            if not self.contested:
                self._world.violate(what)
        elif isinstance(error, Unanswered):
            sent.outcome = "unanswered"
            if not self.stopping:
                self._world.violate(what)
        elif isinstance(error, NotLogged) and len(sent.body) > self._settings.max_body:
            sent.outcome = "refused"
        else:
            self._world.violate(what)

    # --- what became of them ---------------------------------------------------------------

    @property
    def settled(self) -> bool:
        """Whether nothing more is to come."""
        if self.reactor is None or self.service is None or self.stopping:
            return False
        outbox = self.service._outbox
        if outbox is None or any(sent.outcome == "pending" for sent in self.sent):
            return False
        return not outbox.unsettled or outbox.session.failure is not None

    def see_log(self) -> None:
        """What the log has of this client is what it was told, once and in order."""
        logged = self._model.bodies.get(self.client.bytes, [])
        if self.contested:
            return
        failed = self.service is not None and self.service._outbox is not None
        if failed and self.service._outbox.session.failure is not None:  # type: ignore[union-attr]
            self._world.violate(f"{self.name}: {self.service.trouble}")  # type: ignore[union-attr]
        at = 0
        for body in logged:
            while at < len(self.sent) and self.sent[at].body != body:
                self._see_missing(self.sent[at])
                at += 1
            if at == len(self.sent):
                self._world.violate(f"{self.name}: {body[:20]!r} is logged twice or out of order")
            if self.sent[at].outcome == "refused":
                self._world.violate(f"{self.name}: {body[:20]!r} was refused and is logged")
            at += 1
        for sent in self.sent[at:]:
            self._see_missing(sent)

    def _see_missing(self, sent: Sent) -> None:
        long = len(sent.body) > self._settings.max_body
        if sent.outcome in ("receipt", "spooled") and not (long and sent.outcome == "spooled"):
            self._world.violate(f"{self.name}: {sent.body[:20]!r} has its {sent.outcome}, "
                                f"and is not logged")  # fmt: skip


class Peer:
    """
    Somebody who speaks the protocol without a client of msglog's, well or badly.

    @param chance: of what it does.
    @param deeds: how many things it does.
    @ivar done: whether nothing more is expected of its connection.
    """

    def __init__(
        self, world: World, network: Network, model: Model, settings: Settings, name: str,
        ids: list[bytes], chance: int, deeds: int,
    ) -> None:  # fmt: skip
        self.name = name
        self.alive = True
        self.world = world
        self.sockets: dict[Any, None] = {}
        self._network, self._model, self._settings = network, model, settings
        self._ids = ids
        self._rng = world.rng(f"{name} {chance}")
        self._deeds = deeds
        self._sock: Socket | None = None
        self._out = bytearray()
        self._deaf_until = 0.0
        self._awake = False
        ends = ["half-close", "half-close", "close", "abort", "stay"]
        self._ends_with = self._rng.choice(ends[2 * settings.wrapped :])
        self._shut = False
        self._bodies: dict[tuple[bytes, int], bytes] = {}
        self.done = False

    def start(self) -> None:
        """Connect and begin."""
        self._sock = self._network.connect(self)  # type: ignore[arg-type]
        if self._sock is None:
            self.done = True
            return
        self.world.after(0.0, self._deed)

    # --- a process for its socket ----------------------------------------------------------

    def wake(self) -> None:
        if not self._awake:
            self._awake = True
            wait = self._rng.random() * 0.001
            self.world.after(max(wait, self._deaf_until - self.world.now), self._turn)

    def _turn(self) -> None:
        self._awake = False
        sock = self._sock
        assert sock is not None
        if self.done:
            return
        if self._deaf_until > self.world.now:
            self.wake()
            return
        try:
            if self._out and not self._shut:
                del self._out[: sock.send(self._out)]
        except BlockingIOError:
            pass
        except OSError:
            self._out.clear()
        try:
            while not sock.closed:
                if not sock.recv(1 << 16):
                    self._finish()
                    return
        except BlockingIOError:
            pass
        except ConnectionResetError:
            self._finish()
            return
        if not self._deeds and not self._out and not self._shut:
            self._end()

    def _finish(self) -> None:
        assert self._sock is not None
        self._sock.close()
        self.done = True

    def _end(self) -> None:
        sock = self._sock
        assert sock is not None
        self.world.note(f"{self.name}: {self._ends_with}")
        if self._ends_with == "half-close":
            self._shut = True
            try:
                sock.shutdown(1)
            except OSError:
                pass
        elif self._ends_with == "stay":
            self.done = True
            sock.reactor = _Drain(sock)  # type: ignore[assignment]
        else:
            if self._ends_with == "abort":
                sock._linger_off = True
            self._finish()

    def hurry(self) -> None:
        """Do what is left now, read, and go."""
        if self._ends_with == "stay":
            self._ends_with = "close"
            if self.done and self._sock is not None:
                self._sock.close()
        if self.done:
            return
        self._deaf_until = 0.0
        self._deeds = 0
        self._awake = False
        self.wake()

    # --- deeds -----------------------------------------------------------------------------

    def _deed(self) -> None:
        if self.done or not self._deeds:
            self.wake()
            return
        self._deeds -= 1
        self._out += self._say()
        if self._rng.random() < 0.05:
            self._deaf_until = self.world.now + self._rng.choice([0.5, 5.0, 70.0])
        self.wake()
        self.world.after(self._rng.choice([0.0, 0.001, 0.02, 0.5]), self._deed)

    def _say(self) -> bytes:
        rng, model = self._rng, self._model
        client = rng.choice(self._ids)
        last = model.last(client)
        count = rng.choice([1, 1, 2, 5, 20])
        longest = self._settings.max_body
        kind = rng.random()
        if kind < 0.45:  # what is new
            return self._messages(client, last + 1, count, b"peer")
        if kind < 0.6:  # what is logged
            first = max(last + 1 - rng.randrange(1, count + self._settings.window + 2), 1)
            return self._messages(client, first, count, b"peer")
        if kind < 0.66:  # with other bytes
            first = max(last + 1 - rng.randrange(1, count + self._settings.window + 2), 1)
            return self._messages(client, first, count, b"other")
        if kind < 0.72:  # a gap
            return self._messages(client, last + rng.randrange(2, 5), count, b"peer")
        if kind < 0.84:
            return message(client, 0, bytes([rng.choice([1, 1, 2, 255])]), 0x05)
        if kind < 0.88:  # damaged
            frame = bytearray(self._messages(client, last + 1, 1, b"peer"))
            at = rng.randrange(4, len(frame))
            frame[at] ^= 1 << rng.randrange(8)
            return bytes(frame)
        if kind < 0.93:  # too long
            return message(client, last + 1, bytes(longest + rng.choice([1, 2, 5000])))
        if kind < 0.96:
            return rng.choice(
                [
                    b"GET / HTTP/1.1\r\n\r\n",
                    rng.randbytes(rng.randrange(1, 100)),
                    bytes(4),
                    message(client, 0, b"x"),
                    message(client, 1 << 53, b"x"),
                    message(client, 1, b"x", 0x77),
                    message(client, 5, b"\x01", 0x05),
                    message(client, 0, b"\x00", 0x05),
                    message(client, 0, b"\x01\x01", 0x05),
                    message(client, 0, bytes(longest + 1), 0x05),
                ]
            )
        frame = self._messages(client, last + 1, 1, b"peer")
        return frame[: rng.randrange(1, len(frame))]  # only a part

    def _messages(self, client: bytes, first: int, count: int, text: bytes) -> bytes:
        frames = b""
        for sequence in range(first, first + count):
            # The same by every peer, so that what one has sent is a resend by another.
            body = (b"%s %d" % (text, sequence))[: self._settings.max_body]
            frames += message(client, sequence, body)
        return frames


class _Drain:
    """What reads an idle connection, so that it does not fill."""

    def __init__(self, sock: Socket) -> None:
        self._sock = sock
        self.sockets: dict[Any, None] = {}

    def wake(self) -> None:
        try:
            while not self._sock.closed and self._sock.recv(1 << 16):
                pass
            self._sock.close()
        except BlockingIOError:
            pass
        except OSError:
            self._sock.close()
