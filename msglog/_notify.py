"""
Telling systemd how the server is: the protocol of sd_notify(3), which is a datagram of lines.

Ten lines of our own and no library: the two that are known on PyPI, C{sdnotify} and
C{systemd-python}, have been left alone for years, and the latter compiles against libsystemd.

Outside systemd there is no C{NOTIFY_SOCKET}, and nothing of this does anything.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from threading import Event, Thread

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from ._health import Health

__all__ = ["Notifier", "Supervision"]

# How often systemd is told, at least: what "systemctl status" shows is at most so old.
_BEAT_SECONDS = 5.0


class Notifier:
    """
    Sends to a notification socket.

    @param address: as in C{NOTIFY_SOCKET}: a path, or an abstract name with "@" for its zero byte.
    """

    _log = Logger()

    def __init__(self, address: str) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        )

    def send(self, **lines: str | int) -> None:
        """Send assignments.  What does not get through is said in the log, and that is all."""
        text = "\n".join(f"{name}={value}" for name, value in lines.items())
        try:
            self._socket.sendto(text.encode(), self._address)
        except OSError as e:
            self._log.warn("systemd was not told {text}: {error}", text=text, error=str(e))

    def close(self) -> None:
        """Send nothing more."""
        self._socket.close()


class Supervision:
    """
    A server's side of being supervised: ready, alive, reloading, stopping.

    @param reactor: for time.
    @param notifier: where to say it.
    @param health: how the server is.
    @param watchdog: seconds after which systemd kills a server that did not say that it is alive;
        0: never.
    @param waiting: asked in another thread: how the server is if its reactor waits for the disk
        and can say nothing; L{None} if it does not.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        notifier: Notifier,
        health: Callable[[], Health],
        watchdog: float = 0.0,
        waiting: Callable[[], Health | None] = lambda: None,
    ) -> None:
        self._notifier = notifier
        self._health = health
        self._watchdog = watchdog
        self._waiting = waiting
        self._ended = Event()
        self._stand_in: Thread | None = None
        self._status = ""
        self._beats = LoopingCall(self._beat)
        self._beats.clock = reactor

    @classmethod
    def of_environment(
        cls,
        reactor: IReactorTime,
        health: Callable[[], Health],
        waiting: Callable[[], Health | None] = lambda: None,
        environment: Mapping[str, str] = os.environ,
    ) -> Supervision | None:
        """What systemd asks for, if it started this process."""
        address = environment.get("NOTIFY_SOCKET", "")
        if not address.startswith(("/", "@")):
            return None
        # In a child that was forked off it is still set, and meant for its parent.
        ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        microseconds = environment.get("WATCHDOG_USEC", "") if ours else ""
        watchdog = int(microseconds) / 1e6 if microseconds.isdecimal() else 0.0
        return cls(reactor, Notifier(address), health, watchdog, waiting)

    def recovering(self) -> None:
        """The log is being read, which may take a while, and nothing else happens."""
        self._notifier.send(STATUS="recovering the log")

    def ready(self) -> None:
        """The reactor runs, and connections are accepted."""
        self._notifier.send(READY=1)
        # systemd recommends half of its time.
        seconds = min(self._watchdog / 2 or _BEAT_SECONDS, _BEAT_SECONDS)
        self._beats.start(seconds).addErrback(
            lambda failure: self._log.failure("systemd is told nothing more", failure)
        )
        if self._watchdog:
            # Twice as often: the last beat may be as old as one can be when the disk stalls.
            self._stand_in = Thread(
                target=self._stand_by, args=(seconds / 2,), name="msglog watchdog", daemon=True
            )
            self._stand_in.start()

    def _stand_by(self, seconds: float) -> None:
        while not self._ended.wait(seconds):
            self._beat_while_waiting()

    def _beat_while_waiting(self) -> None:
        """A disk that stalls is no reason to be killed, although the reactor waits for it."""
        health = self._waiting()
        if health is None:
            return
        self._notifier.send(WATCHDOG=1)
        if not health.ready:
            self._status = health.word  # so that the next beat says what it is then
            self._notifier.send(STATUS=health.word)

    def _beat(self) -> None:
        health = self._health()
        if self._watchdog and health.live:
            self._notifier.send(WATCHDOG=1)
        if health.word != self._status:
            self._status = health.word
            self._notifier.send(STATUS=health.word)

    def reloading(self) -> None:
        """SIGHUP was taken."""
        moment = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._notifier.send(RELOADING=1, MONOTONIC_USEC=moment)

    def reloaded(self) -> None:
        """What it asked for is done."""
        self._notifier.send(READY=1)

    def stopping(self) -> None:
        """No more connections are accepted."""
        self._notifier.send(STOPPING=1, STATUS="answering what has arrived")

    def stop(self) -> None:
        """Say nothing more."""
        if self._beats.running:
            self._beats.stop()
        self._ended.set()
        if self._stand_in is not None:
            self._stand_in.join()
        self._notifier.close()
