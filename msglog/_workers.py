"""
The writer's process's side of C{--workers}: it accepts connections and has worker processes serve
them; what those hand over goes to the store.

A worker process, seen from here::

    STARTING ──> SERVING ──> ENDING ──> (gone)
        └───────────┴───────────^

STARTING   it was spawned, and has its settings.  It gets no connections.
SERVING    it has said READY, and gets each new connection if it has the fewest.
ENDING     it was told to stop, or killed for what it sent or for its silence.

One that is gone when it was not told to takes its connections with it: their clients connect
again, and what had no answer is sent again and judged then, like after any lost connection.
Another one is started, after a delay that doubles while they do not last.

This process accepts, so that the bounds of connections are counted in one place; and it alone has
the log, the ledger, and what is said of both.
"""

from __future__ import annotations

import enum
import errno
import os
import socket
import sys
from base64 import b64encode
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import orjson
from attrs import asdict, define, evolve, field
from twisted.internet import tcp
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IAddress, IListeningPort, IReadDescriptor
from twisted.internet.protocol import Factory, ProcessProtocol
from twisted.internet.task import LoopingCall
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure
from zope.interface import implementer

from ._bundle import Bundle, Exceptions
from ._counts import ConnectionCounts
from ._errors import StartError
from ._factory import ConnectionGauges
from ._front import CONNECTION, CONNECTIONS_FD, PIPE_FD, SECURE
from ._limits import Limits
from ._pipe import Pipe
from ._pipe_frames import (
    ASK,
    BUNDLE,
    FIGURES,
    GONE,
    READY,
    RELOAD,
    SETTINGS,
    STOP,
    BadFrame,
    WorkerFigures,
    decode_bundle,
    decode_figures,
    decode_gone,
    encode_exceptions,
    encode_frame,
    encode_last,
)
from ._printable import printable
from ._protocol import HOLDS
from ._quota import REFUSALS, ConnectionQuota, origin_of

if TYPE_CHECKING:
    from ._store import FileStore
    from ._tls import ServerTLS

__all__ = ["MAX_WORKERS", "WorkerPool"]

# More than there are cores in what one writer could keep up with.
MAX_WORKERS = 64

# Before one that ended is replaced: it may end again at once, for whatever reason.
_FIRST_DELAY_SECONDS = 0.2
_LONGEST_DELAY_SECONDS = 30.0
# One that lasted so long starts with the first delay again.
_LASTING_SECONDS = 60.0

# How often it is looked whether each worker still says something, and how many times in a row it
# may not have: it tells its figures four times a second, and waits for no disk.
_LOOK_SECONDS = 1.0
_SILENT_LOOKS = 30
# From when on others are given connections before it.
_DOUBTFUL_LOOKS = 2

# After what a stop may take for connections: for the processes to end.
_END_SECONDS = 2.0

# Before a connection is accepted again when the workers have no room: they take some hundred
# connections in that time.
_ACCEPT_AGAIN_SECONDS = 0.01
# The same when the system has no descriptor: something else has to end.
_NO_DESCRIPTOR_SECONDS = 1.0
# What the kernel is asked to let wait for a worker: some 500 connections, by its own limit.
_HANDING_BYTES = 1024 * 1024
# How many are accepted in one turn: others come in between.
_ACCEPT_AT_ONCE = 64
_NO_DESCRIPTOR = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

# The longest line that a worker may say.
_LINE_BYTES = 16 * 1024

# What of the environment is about this process alone, or an option that has been read.
_NOT_INHERITED = ("MSGLOG_", "LISTEN_", "WATCHDOG_", "NOTIFY_")

_LEVELS = {level.name: level for level in LogLevel.iterconstants()}


class _State(enum.Enum):
    STARTING = enum.auto()
    SERVING = enum.auto()
    ENDING = enum.auto()


@define(slots=True, eq=False)
class Worker:
    """
    One worker process.

    @ivar place: which one it is, from 0; the next one in its place has the same.
    @ivar connections: where each of its connections is from, by number.
    @ivar figures: the last that it told.
    @ivar silent: how many looks in a row it has said nothing.
    """

    place: int
    began: float
    state: _State = _State.STARTING
    pipe: Any = None
    handing: Any = None  # the socket that connections go over
    process: Any = None
    connections: dict[int, str] = field(factory=dict)
    figures: WorkerFigures = field(
        factory=lambda: WorkerFigures(ConnectionCounts(), dict.fromkeys(HOLDS, 0), 0)
    )
    silent: int = 0

    def kill(self) -> None:
        self.state = _State.ENDING
        try:
            self.process.signalProcess("KILL")
        except ProcessExitedAlready:
            pass


class WorkerPool(Factory):
    """
    Worker processes, and the connections that they have.

    In place of a L{MessageLogFactory<msglog.MessageLogFactory>}: endpoints listen with it, but it
    makes no protocols; see L{accept_from}.

    @param reactor: for time, processes and descriptors.
    @param store: started before this is, and stopped after L{stop} has fired.
    @param limits: those of all workers together.
    @param count: how many processes.
    @param tls: what to speak on ports with TLS; its files are loaded when this starts.
    @ivar counts: what all workers have counted.
    """

    _log = Logger()
    noisy = False

    def __init__(
        self, reactor: Any, store: FileStore, limits: Limits, count: int, tls: ServerTLS | None
    ) -> None:
        self._reactor = reactor
        self.seconds: Callable[[], float] = reactor.seconds
        self.store = store
        self._commit_due = False
        self.limits = limits
        self.count = count
        self.counts = ConnectionCounts()
        self._tls = tls
        self._workers: dict[int, Worker] = {}  # by place
        self._gone_counts = ConnectionCounts()  # of workers that are gone
        self._delays = [_FIRST_DELAY_SECONDS] * count
        self._restarts: set[Any] = set()
        # Which of the first ones have not said READY.  Whoever comes before they have waits: the
        # first one ready would get all clients that wait for a restart, and keep them.
        self._awaited = set(range(count))
        self._started: Deferred[None] = Deferred()
        self._acceptors: list[_Acceptor] = []
        self._number = 0
        self._quota = ConnectionQuota()
        self._stopped: Deferred[None] | None = None
        self._deadline: Any = None
        self._look = LoopingCall(self._look_for_silence)
        self._look.clock = reactor

    def buildProtocol(self, addr: IAddress | None) -> None:
        """There is none: connections are served elsewhere."""

    # --- connections -----------------------------------------------------------------------

    def accept_from(self, name: str, port: IListeningPort) -> None:
        """
        Accept from a port that listens with this factory, in place of the port itself.

        @param name: the words that it is called by.
        @raise StartError: it is none whose sockets could be passed on.
        """
        wraps = getattr(port, "factory", None)
        secure = wraps is not self
        if secure:
            # With any other TLS than that which workers have, they would let in others.
            ours = self._tls is not None and getattr(wraps, "tls", None) is self._tls
            secure = ours and getattr(wraps, "wrappedFactory", None) is self
        if not isinstance(port, tcp.Port) or not (secure or wraps is self):
            raise StartError(
                f"--workers cannot pass on the connections of {name}: it must be tcp:, unix: or "
                f"systemd:, with nothing around it; for TLS there is --listen-tls"
            )
        port.stopReading()
        self._acceptors.append(_Acceptor(self._reactor, port, self._accepted, secure=secure))

    def _accepted(self, sock: socket.socket, peer: Any, secure: bool) -> bool:
        """Have a worker serve a connection; whether it was passed on."""
        origin = origin_of(_address(sock, peer))
        refusal = self._quota.refusal(origin, self.limits)
        self._number = (self._number + 1) % 2**32
        what = (1 + list(REFUSALS).index(refusal) if refusal else 0) | (SECURE if secure else 0)
        told = CONNECTION.pack(self._number, what)
        # One that has said nothing for a while may hang, and what it is given with it.
        candidates = sorted(
            self._serving(), key=lambda w: (w.silent > _DOUBTFUL_LOOKS, len(w.connections))
        )
        for worker in candidates:
            try:
                socket.send_fds(worker.handing, [told], [sock.fileno()])
            except OSError:
                continue  # full, or lost, which the pipe finds out
            if refusal is None:
                worker.connections[self._number] = origin
                self._quota.add(origin)
            return True
        return False

    def _serving(self) -> list[Worker]:
        return [w for w in self._workers.values() if w.state is _State.SERVING]

    def stop_accepting(self) -> None:
        """Accept nothing more; before the ports are closed."""
        for acceptor in self._acceptors:
            acceptor.close()
        self._acceptors.clear()

    # --- processes -------------------------------------------------------------------------

    def start(self) -> Deferred[None]:
        """
        Start the workers; the reactor runs.

        @return: fires when each of them serves, or has ended.
        """
        for place in range(self.count):
            self._start_one(place)
        self._look.start(_LOOK_SECONDS, now=False)
        return self._started

    def _start_one(self, place: int) -> None:
        with ExitStack() as undo:
            try:
                worker = self._spawn(place, undo)
            except OSError as e:
                self._awaited.discard(place)
                delay = self._delay(place)
                self._log.error(
                    "worker process {place} cannot be started: {why}; this is tried again in "
                    "{delay:g} s",
                    place=place,
                    why=_why(e),
                    delay=delay,
                )
                self._start_later(place, delay)
                self._resume()
                return
            undo.pop_all()
        self._workers[place] = worker
        worker.pipe.send(encode_frame(SETTINGS, 0, orjson.dumps(self._settings())))

    def _spawn(self, place: int, undo: ExitStack) -> Worker:
        """
        @param undo: gets what is to be closed if there will be no worker.
        @raise OSError: the system has no process or no descriptor for it.
        """
        pipe, its_pipe = socket.socketpair()
        undo.callback(pipe.close)
        with its_pipe:
            handing, its_handing = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(handing.close)
            with its_handing:
                handing.setblocking(False)
                handing.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _HANDING_BYTES)
                worker = Worker(place, self.seconds(), handing=handing)
                worker.process = self._reactor.spawnProcess(
                    _Watching(self, worker),
                    sys.executable,
                    [sys.executable, "-P", "-m", "msglog._front"],
                    {
                        name: value
                        for name, value in os.environ.items()
                        if not name.startswith(_NOT_INHERITED)
                    },
                    childFDs={
                        0: "w",
                        1: "r",
                        2: "r",
                        PIPE_FD: its_pipe.fileno(),
                        CONNECTIONS_FD: its_handing.fileno(),
                    },
                )
        worker.pipe = Pipe(
            self._reactor,
            pipe,
            lambda kind, number, payload: self.received(worker, kind, number, payload),
            lambda why: self._pipe_lost(worker, why),
        )
        return worker

    def _start_later(self, place: int, delay: float) -> None:
        def again() -> None:
            self._restarts.discard(call)
            self._start_one(place)

        call = self._reactor.callLater(delay, again)
        self._restarts.add(call)

    def _delay(self, place: int) -> float:
        """Before another one is started; twice as long the next time."""
        delay = self._delays[place]
        self._delays[place] = min(2 * delay, _LONGEST_DELAY_SECONDS)
        return delay

    def _settings(self) -> dict[str, Any]:
        limits = self.limits
        own = evolve(
            limits,
            # Each has its share of what is bounded for the whole server.
            max_undurable_bytes=max(limits.max_undurable_bytes // self.count, 1),
            max_total_unread_bytes=max(limits.max_total_unread_bytes // self.count, 1),
        )
        return {"limits": asdict(own), "window": self.store.window, "tls": self._tls_settings()}

    def _tls_settings(self) -> dict[str, Any] | None:
        if self._tls is None:
            return None
        names = [None if name is None else str(name) for name in self._tls.names]
        return {"names": names, "files": self._tls_files()}

    def _tls_files(self) -> dict[str, str]:
        assert self._tls is not None
        return {name: b64encode(data).decode() for name, data in self._tls.files.items()}

    def reload(self) -> None:
        """Have the workers use the TLS files that are loaded now."""
        if self._tls is not None:
            frame = encode_frame(RELOAD, 0, orjson.dumps(self._tls_files()))
            for worker in self._workers.values():
                worker.pipe.send(frame)

    def _pipe_lost(self, worker: Worker, why: str | None) -> None:
        if why is not None:
            self._log.critical(
                "worker process {place} is ended, it sent what it should not: {why}",
                place=worker.place,
                why=printable(why),
            )
        if why is not None or worker.state is not _State.ENDING:
            worker.kill()  # one that was told to stop ends by itself

    def _look_for_silence(self) -> None:
        for worker in self._workers.values():
            worker.silent += 1
            if worker.silent > _SILENT_LOOKS and worker.state is not _State.ENDING:
                self._log.critical(
                    "worker process {place} has said nothing for {seconds:g} s and is ended",
                    place=worker.place,
                    seconds=_SILENT_LOOKS * _LOOK_SECONDS,
                )
                worker.kill()

    def ended(self, worker: Worker, reason: Failure) -> None:
        """A process is gone."""
        worker.state = _State.ENDING
        worker.pipe.close()
        worker.handing.close()
        del self._workers[worker.place]
        self._awaited.discard(worker.place)
        for origin in worker.connections.values():
            self._quota.remove(origin)
        self._gone_counts.add(worker.figures.counts)
        self._sum()
        if self._stopped is not None:
            self._see_the_last_gone()
            return
        if self.seconds() - worker.began >= _LASTING_SECONDS:
            self._delays[worker.place] = _FIRST_DELAY_SECONDS
        delay = self._delay(worker.place)
        self._log.error(
            "worker process {place} has ended ({reason}) and its {connections} connections with "
            "it; another one is started in {delay:g} s",
            place=worker.place,
            reason=reason.getErrorMessage(),
            connections=len(worker.connections),
            delay=delay,
        )
        self._resume()
        self._start_later(worker.place, delay)

    def _resume(self) -> None:
        """Accept connections if somebody is there to serve them."""
        if not self._awaited and not self._started.called:
            self._started.callback(None)
        serving = bool(self._serving()) and not self._awaited
        for acceptor in self._acceptors:
            acceptor.accept(serving)

    def stop(self) -> Deferred[None]:
        """
        Have what has arrived answered, and end the workers.  L{stop_accepting} first.

        @return: fires when the last one is gone, soon after C{stop_seconds} at the latest.
        """
        done = self._stopped = Deferred()
        if self._look.running:
            self._look.stop()
        for call in self._restarts:
            call.cancel()
        self._restarts.clear()
        for worker in self._workers.values():
            worker.state = _State.ENDING
            worker.pipe.send(encode_frame(STOP, 0))
        if self._workers:
            seconds = self.limits.stop_seconds + _END_SECONDS
            self._deadline = self._reactor.callLater(seconds, self._kill_all)
        self._see_the_last_gone()
        return done

    def _kill_all(self) -> None:
        self._log.warn("{count} worker processes did not end in time", count=len(self._workers))
        for worker in self._workers.values():
            worker.kill()

    def _see_the_last_gone(self) -> None:
        if self._stopped is not None and not self._workers:
            if self._deadline is not None and self._deadline.active():
                self._deadline.cancel()
            stopped, self._stopped = self._stopped, None
            stopped.callback(None)

    # --- what workers say ------------------------------------------------------------------

    def received(self, worker: Worker, kind: int, number: int, payload: bytes) -> None:
        worker.silent = 0
        if kind == BUNDLE:
            self._append(worker, number, decode_bundle(payload))
        elif kind == ASK:
            if len(payload) != 16:
                raise BadFrame(f"a client id of {len(payload)} bytes")
            answered = self.store.last(payload)
            answered.addCallback(lambda last: worker.pipe.send(encode_last(number, last)))
        elif kind == GONE:
            for gone in decode_gone(payload):
                origin = worker.connections.pop(gone, None)
                if origin is not None:
                    self._quota.remove(origin)
        elif kind == FIGURES:
            worker.figures = decode_figures(payload)
            self._sum()
        elif kind == READY:
            if worker.state is _State.STARTING:
                worker.state = _State.SERVING
                if worker.place not in self._awaited:  # whoever reads of an end waits for this
                    self._log.info("worker process {place} serves again", place=worker.place)
                self._awaited.discard(worker.place)
                self._resume()
        else:
            raise BadFrame(f"a frame of kind {kind} from a worker")

    def _append(self, worker: Worker, number: int, bundle: Bundle) -> None:
        def judged(exceptions: Exceptions) -> None:
            worker.pipe.send(encode_exceptions(number, exceptions))
            if self.counts.busiest is not None:
                self._count_clients(bundle, exceptions)

        self.store.append_bundle(bundle, judged)
        if not self._commit_due:
            # With what the other workers have to say in this turn.
            self._commit_due = True
            self._reactor.callLater(0, self._commit)

    def _commit(self) -> None:
        self._commit_due = False
        self.store.commit()

    def _count_clients(self, bundle: Bundle, exceptions: Exceptions) -> None:
        busiest = self.counts.busiest
        assert busiest is not None
        refused = {
            index: sum(refusal.stop - refusal.start for refusal in verdict.refusals)
            for index, verdict in exceptions
        }
        for index, (client, count) in enumerate(zip(bundle.clients, bundle.counts, strict=True)):
            busiest.count(client, count - refused.get(index, 0))

    def said(self, worker: Worker, line: bytes) -> None:
        """A worker has something for the log."""
        word, _, text = printable(line.decode(errors="replace")).partition(" ")
        level = _LEVELS.get(word)
        if level is None:
            level, text = LogLevel.error, f"{word} {text}"
        self._log.emit(level, "worker process {place}: {text}", place=worker.place, text=text)

    # --- what others may know --------------------------------------------------------------

    def _sum(self) -> None:
        """Make C{counts} the sum; it stays the same object, for those who have it."""
        total = ConnectionCounts()
        total.add(self._gone_counts)
        for worker in self._workers.values():
            total.add(worker.figures.counts)
        counts = self.counts
        for name in (
            *("accepted", "refused", "closed", "pauses", "received_bytes"),
            *("acked", "nacked", "batches", "ack_seconds"),
        ):
            setattr(counts, name, getattr(total, name))

    def gauges(self) -> ConnectionGauges:
        """What is so with all connections now, as far as the workers have said."""
        paused = dict.fromkeys(HOLDS, 0)
        undurable = 0
        for worker in self._workers.values():
            undurable += worker.figures.undurable
            for name, count in worker.figures.paused.items():
                paused[name] = paused.get(name, 0) + count
        workers = self.count, self.serving
        return ConnectionGauges(self._quota.connections, paused, undurable, workers)

    @property
    def serving(self) -> int:
        """How many workers serve connections; none does before all have begun."""
        return 0 if self._awaited else len(self._serving())


class _Watching(ProcessProtocol):
    """Hears a worker's words and its end."""

    def __init__(self, pool: WorkerPool, worker: Worker) -> None:
        self._pool = pool
        self._worker = worker
        self._rest = {1: b"", 2: b""}

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """Lines of a worker's own log, or what Python says when it cannot go on."""
        *lines, rest = (self._rest[childFD] + data).split(b"\n")
        self._rest[childFD] = rest[:_LINE_BYTES]
        for line in lines:
            self._pool.said(self._worker, line[:_LINE_BYTES])

    def processEnded(self, reason: Failure) -> None:
        """See L{ProcessProtocol}; everything it said was heard."""
        for rest in self._rest.values():
            if rest:
                self._pool.said(self._worker, rest)
        self._pool.ended(self._worker, reason)


@implementer(IReadDescriptor)
class _Acceptor:
    """Accepts what connects to a port."""

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        port: tcp.Port,
        accepted: Callable[[socket.socket, Any, bool], bool],
        *,
        secure: bool,
    ) -> None:
        self._reactor = reactor
        self._socket = socket.socket(fileno=os.dup(port.fileno()))
        self._socket.setblocking(False)
        self._accepted = accepted
        self._secure = secure
        self._left: tuple[socket.socket, Any] | None = None  # accepted, and not passed on
        self._wanted = False
        self._waiting: Any = None

    def accept(self, wanted: bool) -> None:
        """Accept, or let wait what connects."""
        self._wanted = wanted
        if wanted and self._waiting is None:
            self._reactor.addReader(self)
        elif not wanted:
            self._reactor.removeReader(self)

    def close(self) -> None:
        """Accept nothing more."""
        self.accept(False)
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        if self._left is not None:
            self._left[0].close()
            self._left = None
        self._socket.close()

    def doRead(self) -> None:
        """See L{IReadDescriptor}."""
        for _ in range(_ACCEPT_AT_ONCE):
            if self._left is None:
                try:
                    self._left = self._socket.accept()
                except BlockingIOError:
                    return
                except OSError as e:
                    if e.errno in _NO_DESCRIPTOR:
                        self._log.error("no connection can be accepted: {why}", why=e.strerror)
                        self._wait(_NO_DESCRIPTOR_SECONDS)
                        return
                    continue  # it is gone already
            sock, peer = self._left
            if not self._accepted(sock, peer, self._secure):
                self._wait(_ACCEPT_AGAIN_SECONDS)
                return
            sock.close()  # the worker has it
            self._left = None

    def _wait(self, seconds: float) -> None:
        self._reactor.removeReader(self)
        self._waiting = self._reactor.callLater(seconds, self._again)

    def _again(self) -> None:
        self._waiting = None
        if self._wanted:
            self._reactor.addReader(self)
            self.doRead()

    def fileno(self) -> int:
        """See L{IReadDescriptor}."""
        return self._socket.fileno()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor ends."""

    def logPrefix(self) -> str:
        """See L{IReadDescriptor}."""
        return "msglog"


def _why(error: OSError) -> str:
    """Why a process cannot be started, and what to do if somebody can do something."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"{error.strerror}; let the server have more (ulimit -n, LimitNOFILE)"
    return str(error.strerror)


def _address(sock: socket.socket, peer: Any) -> IAddress:
    if sock.family == socket.AF_INET:
        return IPv4Address("TCP", *peer)
    if sock.family == socket.AF_INET6:
        return IPv6Address("TCP", *peer)
    address: IAddress = UNIXAddress(peer or None)
    return address
