"""C{twistd msglog}: options, and the service they describe.  tap.md is the operator's manual."""

from __future__ import annotations

import atexit
import os
import resource
import signal
import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from attrs import Attribute, evolve, fields
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ReactorNotRunning
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.logger import Logger
from twisted.python import usage

from . import __version__
from ._activation import endpoint_of
from ._environment import EnvironmentOptions
from ._errors import StartError, StoreFailed
from ._factory import MessageLogFactory
from ._garbage import collect_seldom
from ._health import Health, judge_waiting
from ._limits import STORE_MAX_MESSAGE_BYTES, Limits
from ._notify import Supervision
from ._option_groups import GroupedOptions
from ._rotation_rule import PERIODS, RotationRule
from ._service import MessageLogService
from ._steady import steady
from ._store import FileStore
from .interfaces import IStoreService

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._nats_access import NatsAccess
    from ._status import StatusServer
    from ._tls import ServerTLS
    from ._workers import WorkerPool

__all__ = ["Options", "makeService"]

DEFAULT_LISTEN = "tcp:7514:interface=127.0.0.1"

# Descriptors besides those of connections: the log, the ledger, the reactor's, a logger's.
_OTHER_DESCRIPTORS = 64


def _option(name: str) -> str:
    return name.replace("_", "-")


def _whole(option: str) -> Callable[[str], int]:
    """What reads an option's whole number. (Of a bad one L{int} does not say whose it is.)"""

    def read(text: str) -> int:
        try:
            return int(text)
        except ValueError:
            raise usage.UsageError(f"--{option} {text}: not a whole number") from None

    return read


class Options(GroupedOptions, EnvironmentOptions):
    """What C{twistd msglog} can be told."""

    repeatable = ("listen", "listen-tls", "http-host")
    groups = (
        ("Where", ("listen", "log", "allow-plain", "workers")),
        ("Encryption", ("listen-tls", "tls-certificate", "tls-key", "tls-client-ca")),
        ("The log", ("sync", "rotate", "rotate-keep")),
        (
            "A distributed store instead",
            (
                *("store", "store-stream", "store-shards", "store-credentials"),
                *("store-user", "store-password-file", "store-token-file"),
            ),
        ),
        (
            "Its encryption and limits",
            (
                *("store-tls-ca", "store-tls-certificate", "store-tls-key"),
                *("store-wait-seconds", "store-answer-seconds", "store-requests"),
            ),
        ),
        (
            "Watching it",
            ("http", "http-host", "http-anyone", "http-bodies", "help", "version"),
        ),
        (
            "Limits of messages and connections",
            (
                *("max-message-bytes", "window", "max-connections", "max-connections-per-address"),
                *("max-unanswered-bytes", "max-unread-bytes"),
            ),
        ),
        (
            "Limits of waiting",
            (
                *("frame-seconds", "idle-seconds", "unread-seconds", "handshake-seconds"),
                *("keepalive-seconds", "user-timeout-seconds", "stop-seconds", "stalled-seconds"),
            ),
        ),
        (
            "Limits of memory",
            (
                *("max-undurable-bytes", "max-total-unread-bytes", "ledger-memory"),
                *("max-http-connections", "max-watchers"),
            ),
        ),
        (
            "Limits of the disk",
            (
                *("max-commit-bytes", "in-place-bytes"),
                *("checkpoint-bytes", "checkpoint-seconds", "min-free-bytes"),
            ),
        ),
    )

    # Options that are about what another option asks for.
    parts = {  # noqa: RUF012 - as Twisted's own
        "listen-tls": ("tls-certificate", "tls-key", "tls-client-ca"),
        "http": ("http-host", "http-anyone", "http-bodies"),
        "store": (
            *("store-stream", "store-shards", "store-credentials", "store-user"),
            *("store-password-file", "store-token-file"),
            *("store-tls-ca", "store-tls-certificate", "store-tls-key"),
        ),
    }

    synopsis = "[options]"
    longdesc = (
        "A message log: every message that is acknowledged is on disk, exactly once, in its "
        "client's order, in one file. SIGTERM stops it without losing an answer; SIGHUP makes it "
        "go on in a new file when the log was moved away."
    )
    optParameters = [  # noqa: RUF012 - Twisted's own convention
        [
            "workers",
            None,
            0,
            "How many processes serve connections, besides the one that writes the log; 0: that "
            "one does both. It pays for hundreds of clients on two cores or more, and costs a few "
            "clients time.",
            _whole("workers"),
        ],
        ["log", None, "messages.jsonl", "The log file. Its ledger is kept beside it."],
        [
            "sync",
            None,
            "always",
            "'always': acknowledge what is on disk. SECONDS: acknowledge what is written, and "
            "sync at least that often; a power cut may lose the messages of those seconds.",
        ],
        [
            "rotate",
            None,
            "never",
            "When to go on in a new file: 'never', a size (500MiB, 1GiB), one of "
            f"{', '.join(PERIODS)}, or a size and one of these with a comma between.",
        ],
        [
            "rotate-keep",
            None,
            "0",
            "How many of the files that --rotate made to keep; older ones are deleted. 0: all.",
        ],
        [
            "store",
            None,
            None,
            "Instead of --log, keep messages in a NATS JetStream stream, which any number of "
            "servers share: nats://HOST:PORT[,HOST:PORT...], or tls://... with TLS. USER:PASSWORD@ "
            "or TOKEN@ may stand before the first host; better in MSGLOG_STORE than on a command "
            "line, which everybody on the machine can read.",
        ],
        ["store-stream", None, "MSGLOG", "The stream's name ('msglog stream create' makes it)."],
        [
            "store-shards",
            None,
            1,
            "Over how many streams the clients are spread ('msglog stream create --shards'). All "
            "servers must say the same, and it can never be changed.",
            _whole("store-shards"),
        ],
        ["store-credentials", None, None, "A NATS credentials file (.creds)."],
        ["store-user", None, None, "The NATS user's name."],
        ["store-password-file", None, None, "A file with the NATS user's password."],
        ["store-token-file", None, None, "A file with a NATS token."],
        ["store-tls-ca", None, None, "PEM file: who issued the NATS servers' certificates."],
        ["store-tls-certificate", None, None, "PEM file: the certificate to show them."],
        ["store-tls-key", None, None, "PEM file: the private key of that certificate."],
        ["tls-certificate", None, None, "PEM file: the server's certificate and its issuers."],
        ["tls-key", None, None, "PEM file: the private key of that certificate."],
        [
            "tls-client-ca",
            None,
            None,
            "PEM file: who issues certificates to clients. Only clients with one connect, and each "
            "writes only the client ids that it names. Without it, TLS lets everybody in.",
        ],
        [
            "http",
            None,
            None,
            "Where to serve metrics, health and the status page, a Twisted endpoint string "
            "(tcp:7515:interface=127.0.0.1).",
        ],
    ]
    optFlags = [  # noqa: RUF012 - the same
        ["allow-plain", None, "Let --listen go beyond this machine, without TLS."],
        ["http-anyone", None, "Let --http go beyond this machine: whoever connects may read."],
        ["http-bodies", None, "Show the last messages themselves on the status page."],
    ]
    optParameters += [
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
        self["listen-tls"] = []
        self["http-host"] = []

    def opt_listen(self, endpoint: str) -> None:
        """
        Where to listen, a Twisted endpoint string; may be repeated
        [default: tcp:7514:interface=127.0.0.1]
        """
        self["listen"].append(endpoint)

    def opt_listen_tls(self, endpoint: str) -> None:
        """
        Where to listen with TLS, a Twisted endpoint string (tcp:7514); may be repeated
        """
        self["listen-tls"].append(endpoint)

    def opt_http_host(self, name: str) -> None:
        """
        A host name that --http is asked for by, besides addresses and localhost; may be repeated
        """
        self["http-host"].append(name)

    def opt_version(self) -> None:
        """Print msglog's version and exit."""
        print(f"msglog {__version__}")
        sys.exit(0)

    def postOptions(self) -> None:
        """Turn words into what the service is made of, so that a bad one is a usage error."""
        from twisted.internet import reactor

        self["limits"] = Limits(**{f.name: self._limit(f) for f in fields(Limits)})
        self._check_idle()
        self["sync-seconds"] = _sync_seconds(self["sync"])
        self["rotation"] = _rotation(self["rotate"], self["rotate-keep"])
        self["access"] = self._access() if self["store"] else None
        self._check_workers()
        self["tls"] = self._tls() if self["listen-tls"] else None
        plain = self["listen"] or ([] if self["tls"] else [DEFAULT_LISTEN])
        self["endpoints"] = [_endpoint(reactor, "listen", name) for name in plain]
        if self["http"]:
            self["http-endpoint"] = _endpoint(reactor, "http", self["http"])
        for name in self["listen-tls"]:
            name, endpoint = _endpoint(reactor, "listen-tls", name)
            self["endpoints"].append((name, self["tls"].endpoint(endpoint)))

    def _check_idle(self) -> None:
        """
        Nobody should believe of an option that it does what it cannot do.

        (A variable may be meant for the msglog command, which has some of the same names.)
        """
        for needed, options in self.parts.items():
            idle = [option for option in options if option in self.on_command_line]
            if idle and not self[needed]:
                raise usage.UsageError(f"--{idle[0]} does nothing without --{needed}")

    def _check_workers(self) -> None:
        count = self["workers"]
        if not count:
            return
        from ._workers import MAX_WORKERS

        if not 0 < count <= MAX_WORKERS:
            raise usage.UsageError(f"--workers {count}: not between 0 and {MAX_WORKERS}")
        if self["store"]:
            raise usage.UsageError(
                "--workers is for a log file; with --store, start several servers instead"
            )

    def _access(self) -> NatsAccess:
        given = [o for o in ("log", "sync", "rotate", "rotate-keep") if self[o] != self.defaults[o]]
        if given:
            raise usage.UsageError(f"--{given[0]} is about a log file, and --store keeps none")
        try:
            import nats  # noqa: F401 - to see whether it is there

            from ._nats_access import TLSFiles, parse_nats
            from ._shards import MAX_SHARDS, StreamShard
        except ImportError:
            raise usage.UsageError(
                "--store needs more than the server: pip install 'msglog[nats]'"
            ) from None
        try:
            access = parse_nats(self["store"])
        except ValueError as e:
            raise usage.UsageError(f"--store: {e}") from None
        if not self["store-stream"] or set(self["store-stream"]) & set(" \t\r\n.*>/\\"):
            raise usage.UsageError(f"--store-stream {self['store-stream']}: not a stream's name")
        if StreamShard.of_name(self["store-stream"]).count > 1:
            raise usage.UsageError(
                f"--store-stream {self['store-stream']}: the name of one shard; say that of all, "
                f"and --store-shards"
            )
        if not 0 < self["store-shards"] <= MAX_SHARDS:
            raise usage.UsageError(
                f"--store-shards {self['store-shards']}: not between 1 and {MAX_SHARDS}"
            )
        longest = STORE_MAX_MESSAGE_BYTES
        if self["limits"].max_message_bytes > longest:
            raise usage.UsageError(
                f"--max-message-bytes {self['limits'].max_message_bytes}: with --store at most "
                f"{longest}, or a message's line might be longer than what NATS takes"
            )
        tls = [self._file(f"store-tls-{part}") for part in ("ca", "certificate", "key")]
        if (tls[1] is None) != (tls[2] is None):
            raise usage.UsageError("--store-tls-certificate and --store-tls-key go together")
        if any(tls):
            access = access.with_tls(TLSFiles(*tls))
        user, password = self["store-user"], self._secret("store-password-file")
        if (user is None) != (password is None):
            raise usage.UsageError("--store-user and --store-password-file go together")
        return evolve(
            access,
            credentials=self._file("store-credentials"),
            user=user or access.user,
            password_file=password,
            token_file=self._secret("store-token-file"),
        )

    def _file(self, option: str) -> Path | None:
        # twistd changes its folder when it becomes a daemon; the names are meant from here.
        return None if self[option] is None else Path(self[option]).absolute()

    def _secret(self, option: str) -> Path | None:
        """The file with a secret, which can be read now."""
        path = self._file(option)
        if path is not None:
            from ._nats_access import read_secret

            try:
                read_secret(path)
            except StartError as e:
                raise usage.UsageError(f"--{option}: {e}") from None
        return path

    def _tls(self) -> ServerTLS:
        for option in ("tls-certificate", "tls-key"):
            if self[option] is None:
                raise usage.UsageError(f"--listen-tls needs --{option} FILE")
        try:
            from ._tls import ServerTLS
        except ImportError:
            raise usage.UsageError(
                "--listen-tls needs more than the server: pip install 'msglog[tls]'"
            ) from None
        # twistd changes its folder when it becomes a daemon; the names are meant from here.
        authority = self["tls-client-ca"]
        return ServerTLS(
            Path(self["tls-certificate"]).absolute(),
            Path(self["tls-key"]).absolute(),
            None if authority is None else Path(authority).absolute(),
        )

    def _limit(self, field: Attribute[Any]) -> Any:
        """One limit's value, checked alone, so that an error can name its option."""
        text = self[_option(field.name)]
        try:
            return getattr(Limits(**{field.name: text}), field.name)
        except ValueError as e:
            reason = str(e).rpartition(f"{field.name}: ")[2]
            raise usage.UsageError(f"--{_option(field.name)} {text}: {reason}") from None


def _endpoint(reactor: Any, option: str, name: str) -> tuple[str, IStreamServerEndpoint]:
    try:
        return name, endpoint_of(reactor, name)
    except Exception as e:
        # Whatever an endpoint's own parser raises: that is the user's word, not a defect.
        raise usage.UsageError(f"--{option} {name}: not an endpoint: {e}") from None


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


def _rotation(rotate: str, keep: str) -> RotationRule:
    try:
        kept = int(keep)
    except ValueError:
        kept = -1
    if kept < 0:
        raise usage.UsageError(f"--rotate-keep {keep}: the number of files, or 0 for all")
    if kept and rotate == "never":
        raise usage.UsageError(f"--rotate-keep {keep}: nothing is rotated without --rotate")
    try:
        return RotationRule.parse(rotate, kept)
    except ValueError as e:
        raise usage.UsageError(f"--rotate {rotate}: {e}") from None


class _Program(MessageLogService):
    """The service as a whole process: its signals, its descriptors and its exit status."""

    _log = Logger()

    def __init__(self, reactor: Any, options: Options) -> None:
        limits = options["limits"]
        store = self._make_store(reactor, options)
        self._tls: ServerTLS | None = options["tls"]
        self._pool = self._make_pool(reactor, store, options)
        super().__init__(
            store,
            self._pool or self._make_factory(reactor, store, limits),
            options["endpoints"],
            allow_plain=bool(options["allow-plain"]),
        )
        self._reactor = reactor
        self._sync = options["sync"]
        self._supervision = Supervision.of_environment(reactor, self.health, self._waiting)
        self._status: StatusServer | None = None
        if options["http"]:
            from ._status import StatusServer

            self._status = StatusServer(
                reactor,
                self,
                options["http-endpoint"],
                options["http-host"],
                anyone=bool(options["http-anyone"]),
                bodies=bool(options["http-bodies"]),
            )

    def _make_pool(self, reactor: Any, store: IStoreService, options: Options) -> WorkerPool | None:
        if not options["workers"]:
            return None
        from ._workers import WorkerPool

        assert isinstance(store, FileStore)
        return WorkerPool(reactor, store, options["limits"], options["workers"], self._tls)

    def _make_factory(
        self, reactor: Any, store: IStoreService, limits: Limits
    ) -> MessageLogFactory:
        permits = None
        if self._tls is not None and self._tls.asks_clients:
            from ._tls import CertificatePermits

            permits = CertificatePermits()
        return MessageLogFactory(reactor, store, limits, permits)

    def _make_store(self, reactor: Any, options: Options) -> IStoreService:
        if options["access"] is not None:
            from ._nats_store import NatsStore

            return NatsStore(
                reactor,
                options["access"],
                options["store-stream"],
                options["limits"],
                shards=options["store-shards"],
            )
        return FileStore(
            reactor,
            # twistd changes its folder when it becomes a daemon; the name is meant from here.
            Path(options["log"]).absolute(),
            options["limits"],
            options["sync-seconds"],
            self._failed,
            rotation=options["rotation"],
        )

    def certificate_expires(self) -> float | None:
        expires = self._tls.expires if self._tls is not None else None
        return expires.timestamp() if expires is not None else None

    def health(self) -> Health:
        health = super().health()
        if self._pool is not None and self.running:
            serving, count = self._pool.serving, self._pool.count
            if not serving:
                return evolve(health, not_ready=(*health.not_ready, "no worker process serves"))
            if serving < count:
                warning = f"only {serving} of {count} worker processes serve"
                return evolve(health, warnings=(*health.warnings, warning))
        return health

    def _waiting(self) -> Health | None:
        """How the server is while its reactor waits for the disk; asked in another thread."""
        store = self.store
        seconds = store.in_place_seconds if isinstance(store, FileStore) else 0.0
        return judge_waiting(seconds, self.factory.limits)

    def _listening(self, name: str, port: IListeningPort) -> None:
        if self._pool is not None:
            self._pool.accept_from(name, port)

    def privilegedStartService(self) -> None:
        super().privilegedStartService()
        if self._status is not None:
            self._status.listen()

    def startService(self) -> None:
        self._allow_descriptors()
        if self._sync != "always":
            self._log.warn(
                "--sync {sync}: a message is acknowledged before it is on disk; a power cut may "
                "lose the last {sync} s of acknowledged messages",
                sync=self._sync,
            )
        if self._supervision is not None:
            self._supervision.recovering()
        if self._status is not None:
            # Before the log is in use: a port that is taken is found out without touching it.
            self._status.listen()
        super().startService()
        if self._status is not None:
            self._status.start()
        collect_seldom()
        # The reactor installs its own handlers when it begins to run, and ends the process by the
        # signal it got; a stop that went well should say so with its exit status.
        self._reactor.callWhenRunning(signal.signal, signal.SIGTERM, self._on_stop_signal)
        # A shell's background job is not ended by the Ctrl-C that is meant for another.
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            self._reactor.callWhenRunning(signal.signal, signal.SIGINT, self._on_stop_signal)
        self._reactor.callWhenRunning(signal.signal, signal.SIGHUP, self._on_sighup)
        self._reactor.callWhenRunning(self._begin_serving)

    def _begin_serving(self) -> None:
        begun: Deferred[None] = succeed(None) if self._pool is None else self._pool.start()
        supervision = self._supervision
        if supervision is not None:
            begun.addCallback(lambda _: supervision.ready())

    def _on_stop_signal(self, number: int, frame: object) -> None:
        self._reactor.callFromThread(self._stop)

    def _on_sighup(self, number: int, frame: object) -> None:
        self._reactor.callFromThread(self._hang_up)

    def _hang_up(self) -> None:
        supervision = self._supervision
        if supervision is not None:
            supervision.reloading()
        reopened = self.store.reopen()
        if self._tls is not None:
            self._tls.reload()
            if self._pool is not None:
                self._pool.reload()
        if supervision is not None:
            reopened.addCallback(lambda _: supervision.reloaded())

    def stopService(self) -> Deferred[None]:
        supervision, status = self._supervision, self._status
        if supervision is not None:
            supervision.stopping()
        if self._pool is not None:
            self._pool.stop_accepting()
        stopped = super().stopService()
        if status is not None:
            # The last to go: it says that the server stops.
            stopped.addCallback(lambda _: status.stop())
        if supervision is not None:
            stopped.addCallback(lambda _: supervision.stop())
        return stopped

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


def _end_at_once(number: int, frame: object) -> None:
    """End as without a handler for the signal: a start can be cut short anywhere."""
    os._exit(128 + number)


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
    elif isinstance(error, KeyboardInterrupt):
        print("msglog: interrupted while it started", file=sys.__stderr__)
    else:
        sys.__excepthook__(kind, error, traceback)


def makeService(options: Options) -> MessageLogService:
    """The service for parsed options.  Opens and locks nothing yet."""
    from twisted.internet import reactor

    steady(reactor)
    sys.excepthook = _excepthook
    # Until the reactor runs: a rotation that is told in the middle of a long recovery must not
    # end it.  What it asks for is done then anyway.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if os.getpid() == 1:
        # The kernel keeps a signal from a container's first process that it has no handler for, and
        # a long recovery could be ended by nothing but a kill.
        signal.signal(signal.SIGTERM, _end_at_once)
    return _Program(reactor, options)
