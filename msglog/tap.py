"""C{twistd msglog}: options, and the service they describe.  tap.md is the operator's manual."""

from __future__ import annotations

import atexit
import gc
import os
import resource
import signal
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from attrs import Attribute, evolve, fields
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import ReactorNotRunning
from twisted.logger import Logger
from twisted.python import usage

from . import __version__
from ._errors import StartError, StoreFailed
from ._factory import MessageLogFactory
from ._limits import Limits
from ._service import MessageLogService
from ._store import FileStore

__all__ = ["Options", "makeService"]

DEFAULT_LISTEN = "tcp:7514:interface=127.0.0.1"

# Descriptors besides those of connections: the log, the ledger, the reactor's, a logger's.
_OTHER_DESCRIPTORS = 64

# Objects allocated and not freed between two rounds of the garbage collector: those of 5,000
# connections that ended, of which each leaves a cycle of some ten objects.
_GC_THRESHOLD = 50_000


def _option(name: str) -> str:
    return name.replace("_", "-")


class Options(usage.Options):
    """What C{twistd msglog} can be told."""

    synopsis = "[options]"
    longdesc = (
        "A message log: every message that is acknowledged is on disk, exactly once, in its "
        "client's order, in one file. SIGTERM stops it without losing an answer; SIGHUP makes it "
        "go on in a new file when the log was moved away."
    )
    optParameters = [  # noqa: RUF012 - Twisted's own convention
        ["log", None, "messages.jsonl", "The log file. Its ledger is kept beside it."],
        [
            "sync",
            None,
            "always",
            "'always': acknowledge what is on disk. SECONDS: acknowledge what is written, and "
            "sync at least that often; a power cut may lose the messages of those seconds.",
        ],
        *(
            [
                _option(field.name),
                None,
                field.default,
                f"({field.metadata['unit']}) {field.metadata['meaning']}",
            ]
            for field in fields(Limits)
        ),
    ]

    def __init__(self) -> None:
        super().__init__()
        self["listen"] = []

    def opt_listen(self, endpoint: str) -> None:
        """
        Where to listen, a Twisted endpoint string; may be repeated
        [default: tcp:7514:interface=127.0.0.1]
        """
        self["listen"].append(endpoint)

    def opt_version(self) -> None:
        """Print msglog's version and exit."""
        print(f"msglog {__version__}")
        sys.exit(0)

    def postOptions(self) -> None:
        """Turn words into what the service is made of, so that a bad one is a usage error."""
        from twisted.internet import reactor

        self["limits"] = Limits(**{f.name: self._limit(f) for f in fields(Limits)})
        self["sync-seconds"] = _sync_seconds(self["sync"])
        self["endpoints"] = []
        for name in self["listen"] or [DEFAULT_LISTEN]:
            try:
                self["endpoints"].append((name, serverFromString(reactor, name)))
            except Exception as e:
                # Whatever an endpoint's own parser raises: that is the user's word, not a defect.
                raise usage.UsageError(f"--listen {name}: not an endpoint: {e}") from None

    def _limit(self, field: Attribute[Any]) -> Any:
        """One limit's value, checked alone, so that an error can name its option."""
        text = self[_option(field.name)]
        try:
            return getattr(Limits(**{field.name: text}), field.name)
        except ValueError as e:
            reason = str(e).partition(": ")[2]
            raise usage.UsageError(f"--{_option(field.name)} {text}: {reason}") from None


def _sync_seconds(text: str) -> float:
    if text == "always":
        return 0.0
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= 3600:
        raise usage.UsageError(f"--sync {text}: 'always', or seconds between 0 and 3600")
    return seconds


class _Program(MessageLogService):
    """The service as a whole process: its signals, its descriptors and its exit status."""

    _log = Logger()

    def __init__(self, reactor: Any, options: Options) -> None:
        limits = options["limits"]
        # twistd changes its folder when it becomes a daemon; the name is meant from here.
        path = Path(options["log"]).absolute()
        store = FileStore(reactor, path, limits, options["sync-seconds"], self._failed)
        super().__init__(store, MessageLogFactory(reactor, store, limits), options["endpoints"])
        self._reactor = reactor
        self._sync = options["sync"]

    def startService(self) -> None:
        self._allow_descriptors()
        if self._sync != "always":
            self._log.warn(
                "--sync {sync}: a message is acknowledged before it is on disk; a power cut may "
                "lose the last {sync} s of acknowledged messages",
                sync=self._sync,
            )
        super().startService()
        # What is loaded now stays; and the messages of one commit are allocated and freed by the
        # thousand without a cycle among them, which the collector would search through each time
        # (8 % of the rate and a third of the p99 with 1,000 connections).
        gc.collect()
        gc.freeze()
        gc.set_threshold(_GC_THRESHOLD)
        # The reactor installs its own handlers when it begins to run, and ends the process by the
        # signal it got; a stop that went well should say so with its exit status.
        self._reactor.callWhenRunning(signal.signal, signal.SIGTERM, self._on_sigterm)
        self._reactor.callWhenRunning(signal.signal, signal.SIGHUP, self._on_sighup)

    def _on_sigterm(self, number: int, frame: object) -> None:
        self._reactor.callFromThread(self._stop)

    def _on_sighup(self, number: int, frame: object) -> None:
        self._reactor.callFromThread(self.store.reopen)

    def _stop(self) -> None:
        try:
            self._reactor.stop()
        except ReactorNotRunning:
            pass  # it stops already

    def _failed(self, error: StoreFailed) -> None:
        """End with a status that makes a supervisor start us again, into recovery."""
        atexit.register(_exit_failed)
        self._stop()

    def _allow_descriptors(self) -> None:
        wanted = self.factory.limits.max_connections + _OTHER_DESCRIPTORS
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            if soft < wanted:
                most = max(soft - _OTHER_DESCRIPTORS, 1)
                self._log.warn(
                    "the system allows {soft} open files, too few for --max-connections {asked}: "
                    "no more than {most} connections are taken; raise its limit (ulimit -Hn, "
                    "LimitNOFILE)",
                    soft=soft,
                    asked=self.factory.limits.max_connections,
                    most=most,
                )
                # Or the log would be the one that has no descriptor left, at its next rotation.
                self.factory.limits = evolve(self.factory.limits, max_connections=most)


def _exit_failed() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _excepthook(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """twistd lets an error at the start out as it is; a person should get one clear line."""
    if isinstance(error, StartError):
        print(f"msglog: {error}", file=sys.__stderr__)
    else:
        sys.__excepthook__(kind, error, traceback)


def makeService(options: Options) -> MessageLogService:
    """The service for parsed options.  Opens and locks nothing yet."""
    from twisted.internet import reactor

    sys.excepthook = _excepthook
    # Until the reactor runs: a rotation that is told in the middle of a long recovery must not
    # end it.  What it asks for is done then anyway.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    return _Program(reactor, options)
