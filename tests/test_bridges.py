"""The bridges from logging and twisted.logger without a server: what becomes of events."""

from __future__ import annotations

import io
import logging
import logging.config
import sys
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger, LogLevel, LogPublisher
from twisted.python import log as legacy
from twisted.python import threadable
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from msglog import (
    ClientLimits,
    MessageLogClient,
    NotConnected,
    NotLogged,
    QueueFull,
    SessionFailed,
    _log_handler,
    _log_observer,
)
from msglog._client_tls import TLS
from msglog._log_event import encode
from msglog.bridges import LogHandler, LogObserver

LONG = 1 << 20


def decoded(event: dict[str, Any], longest: int = LONG) -> dict[str, Any]:
    body = encode(event, longest)
    assert body is not None
    assert len(body) <= longest
    found: dict[str, Any] = orjson.loads(body)
    return found


class Nasty:
    """Whose text is not to be had."""

    def __repr__(self) -> str:
        raise RuntimeError("no text")


class Encoding(SynchronousTestCase):
    def fields(self, **fields: Any) -> Any:
        return decoded({"message": "m", "fields": fields})["fields"]

    def test_plain(self) -> None:
        """What JSON has stays what it is."""
        fields = {"a": 1, "b": [1.5, None, True], "c": {"d": "é\n"}}
        self.assertEqual(self.fields(**fields), fields)

    def test_what_json_has_not(self) -> None:
        """The rest is as near as it can be."""
        loop: list[Any] = []
        loop.append(loop)
        found = self.fields(
            path=Path("/a"),
            octets=b"a\xff",
            several={7},
            uuid=UUID(int=1),
            big=1 << 70,
            surrogate="caf\udce9",
            loop=loop,
            keys={1: 2, ("a",): 3},
            complex=1j,
            fine="fine",
        )
        self.assertEqual(found["path"], "/a")
        self.assertEqual(found["octets"], "a\\xff")
        self.assertEqual(found["several"], [7])
        self.assertEqual(found["uuid"], str(UUID(int=1)))
        self.assertEqual(found["big"], str(1 << 70))
        self.assertEqual(found["surrogate"], "caf\\udce9")
        self.assertEqual(found["loop"], "[[...]]")
        self.assertEqual(found["keys"], "{1: 2, ('a',): 3}")
        self.assertEqual(found["complex"], "1j")
        self.assertEqual(found["fine"], "fine")

    def test_no_text(self) -> None:
        """An event is logged, whatever its values' repr does."""
        self.assertIn("Nasty object at", self.fields(nasty=Nasty())["nasty"])
        self.assertIn("Nasty object at", self.fields(nasty=Nasty(), big=1 << 70)["nasty"])

    def test_text_that_is_no_text(self) -> None:
        """A message with what UTF-8 does not have (a file's name, say)."""
        self.assertEqual(decoded({"message": "\udcff"})["message"], "\\udcff")


texts = st.text(max_size=300)
values = st.one_of(texts, st.integers(), st.binary(max_size=50), st.lists(texts, max_size=4))
events = st.fixed_dictionaries(
    {"time": st.just("2026-11-24T12:01:07.532801Z"), "level": st.just("INFO"), "message": texts},
    optional={
        "logger": texts,
        "fields": st.dictionaries(texts, values, max_size=6),
        "exception": texts,
        "stack": texts,
        "where": texts,
        "process": st.integers(0, 1 << 22),
        "thread": texts,
    },
)


class Cutting(SynchronousTestCase):
    @given(events, st.integers(60, 2000))
    def test_any_event(self, event: dict[str, Any], longest: int) -> None:
        """It fits, is JSON, and says how long it was if it is not whole."""
        full = encode(event, LONG)
        assert full is not None
        found = decoded(event, longest)
        self.assertEqual(found.get("cut"), len(full) if len(full) > longest else None)
        self.assertIn("message", found)
        if len(full) <= longest:
            self.assertEqual(orjson.dumps(found), full)

    def test_exception(self) -> None:
        """What goes first is the middle of a traceback: its last line is the best of it."""
        traceback = "Traceback:\n" + "  File x\n" * 1000 + "ValueError: the last line"
        found = decoded({"message": "it failed", "fields": {"a": 1}, "exception": traceback}, 256)
        self.assertEqual((found["message"], found["fields"]), ("it failed", {"a": 1}))
        self.assertTrue(found["exception"].startswith("Traceback:"))
        self.assertIn("…", found["exception"])
        self.assertTrue(found["exception"].endswith("ValueError: the last line"))
        self.assertGreater(found["cut"], 9000)

    def test_message(self) -> None:
        """A message keeps its beginning, and as much of it as there is room for."""
        found = encode({"level": "INFO", "message": "begin" + "é" * 5000}, 256)
        assert found is not None
        self.assertIn(len(found), (254, 255, 256))
        self.assertTrue(orjson.loads(found)["message"].startswith("beginéé"))

    def test_message_and_exception(self) -> None:
        """Neither takes all of the room from the other."""
        found = decoded({"message": "m" * 5000, "exception": "e" * 5000}, 256)
        self.assertGreater(len(found["message"]), 50)
        self.assertGreater(len(found["exception"]), 50)

    def test_fields(self) -> None:
        """The largest go first, and only as many as must."""
        fields = {"small": 1, "large": "x" * 500, "medium": "y" * 20}
        found = decoded({"message": "m", "fields": fields}, 256)
        self.assertEqual(found["fields"], {"small": 1, "medium": "y" * 20})

    def test_tiny(self) -> None:
        """A server that takes nearly nothing gets nothing."""
        self.assertIsNone(encode({"level": "INFO", "message": "m" * 100}, 10))


class Client:
    """Stands for a L{BlockingClient}."""

    def __init__(self, made: list[Client], **options: Any) -> None:
        self.options = options
        self.client = UUID(int=len(made) + 1)
        made.append(self)
        self.max_body: int | None = 2000
        self.trouble = ""
        self.refused = 0
        self.fails: Exception | None = None
        self.taken: deque[tuple[dict[str, Any], Any, Any]] = deque()
        self.closed: list[float] = []
        self.flushes = 0
        self.unanswered = 0  # flushes that will be in vain
        self.handed_over: list[dict[str, Any]] = []

    def hand_over(self, body: bytes, receipt: Any, spooled: Any = None, block: bool = True) -> None:
        assert not block
        assert len(body) <= (self.max_body or 1000), body
        if self.fails is not None:
            raise self.fails
        event = orjson.loads(body)
        self.handed_over.append(event)
        self.taken.append((event, receipt, spooled))

    def answer(self, error: Exception | None = None) -> None:
        """Settle the first message."""
        _, receipt, spooled = self.taken.popleft()
        waiter = receipt or spooled
        waiter.set_result(None) if error is None else waiter.set_exception(error)

    @property
    def messages(self) -> list[str]:
        return [event["message"] for event in self.handed_over]

    def wait_connected(self, timeout: float) -> None:
        raise NotConnected("not yet")

    def flush(self, timeout: float) -> None:
        self.flushes += 1
        if self.unanswered:
            self.unanswered -= 1
            raise TimeoutError

    def close(self, timeout: float) -> None:
        self.closed.append(timeout)
        while self.taken:
            self.answer(NotLogged("the client was closed", False))


FULL = QueueFull("4096 messages wait", True)
FAILED = SessionFailed("CONFLICT", False)


class HandlerCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.made: list[Client] = []

        def connect(servers: Any, **options: Any) -> Client:
            return Client(self.made, servers=servers, **options)

        self.patch(_log_handler, "BlockingClient", connect)
        self.stderr = io.StringIO()
        self.patch(sys, "stderr", self.stderr)
        self.log = logging.Logger("app.orders")

    def handler(self, **options: Any) -> LogHandler:
        handler = LogHandler("log.example", **options)
        self.addCleanup(handler.close)
        self.log.addHandler(handler)
        self.client = self.made[-1]
        return handler


class Records(HandlerCase):
    def event(self) -> dict[str, Any]:
        return self.client.handed_over[-1]

    def test_keys(self) -> None:
        """What a record says, and where it was said."""
        self.handler()
        self.log.warning("order %d", 17, extra={"order": 17, "items": ["a"]})
        event = self.event()
        self.assertEqual(len(event.pop("time")), 27)
        self.assertTrue(event.pop("where").startswith("test_bridges.py:"))
        self.assertIsInstance(event.pop("process"), int)
        self.assertEqual(
            event,
            {
                "level": "WARNING",
                "logger": "app.orders",
                "message": "order 17",
                "fields": {"order": 17, "items": ["a"]},
            },
        )

    def test_exception(self) -> None:
        self.handler()
        try:
            raise ValueError("odd")
        except ValueError:
            self.log.exception("it failed", stack_info=True)
        self.assertTrue(self.event()["exception"].startswith("Traceback (most recent call"))
        self.assertTrue(self.event()["exception"].endswith("ValueError: odd"))
        self.assertIn("test_exception", self.event()["stack"])

    def test_text_of_an_exception(self) -> None:
        """A record that came through a queue, or a pickle, has only the text."""
        self.handler()
        self.log.handle(
            logging.makeLogRecord({"msg": "m", "exc_text": "ValueError: odd", "levelno": 40})
        )
        self.assertEqual(self.event()["exception"], "ValueError: odd")

    def test_thread(self) -> None:
        """Any thread but the main one is named."""
        self.handler()
        thread = threading.Thread(target=self.log.error, args=("x",), name="worker")
        thread.start()
        thread.join()
        self.assertEqual(self.event()["thread"], "worker")

    def test_wrong_arguments(self) -> None:
        """A record without a text is told as logging tells it, is counted, and harms nobody."""
        handler = self.handler()
        self.log.error("%d", "x")
        self.assertIn("--- Logging error ---", self.stderr.getvalue())
        self.assertEqual(handler.dropped, 1)
        self.log.error("next")
        self.assertEqual(self.client.messages[-1], "next")
        self.assertIn("1 message was dropped: it could not be made", self.client.messages[0])

    def test_own_keys(self) -> None:
        """A subclass says what becomes of a record."""

        class Mine(LogHandler):
            def to_event(self, record: logging.LogRecord) -> dict[str, Any]:
                return {"message": record.getMessage(), "mine": 1}

        self.log.addHandler(Mine())
        self.log.info("x")
        self.assertEqual(self.made[-1].handed_over, [{"message": "x", "mine": 1}])


class Loops(HandlerCase):
    def test_own_loggers(self) -> None:
        """What msglog says of itself goes elsewhere."""
        handler = self.handler()
        for name in ("msglog", "msglog.client"):
            self.assertFalse(handler.handle(logging.makeLogRecord({"name": name})))
        self.assertTrue(handler.handle(logging.makeLogRecord({"name": "msglogger"})))
        self.assertEqual(len(self.client.handed_over), 1)

    def test_client_thread(self) -> None:
        """So does what others say in the client's thread (asyncio, say)."""
        self.handler()
        thread = threading.Thread(target=self.log.error, args=("x",), name="msglog client")
        thread.start()
        thread.join()
        self.assertEqual(self.client.handed_over, [])

    def test_filters_and_levels(self) -> None:
        """Both are logging's own."""
        handler = self.handler(level="ERROR")
        handler.addFilter(lambda record: "secret" not in record.msg)
        self.log.warning("low")
        self.log.error("secret")
        self.log.error("good")
        self.assertEqual(self.client.messages, ["good"])


class Dropping(HandlerCase):
    def test_no_room(self) -> None:
        """It is counted; the log says so as soon as there is room, and says it once."""
        handler = self.handler()
        self.log.info("a")
        self.client.fails = FULL
        for _ in range(3):
            self.log.info("b")
        self.assertEqual(handler.dropped, 3)
        self.client.answer()  # there is still no room
        self.client.fails = None
        self.log.info("c")
        self.assertEqual(
            self.client.messages, ["a", "3 messages were dropped: 4096 messages wait", "c"]
        )
        remark = self.client.handed_over[1]
        self.assertEqual(remark["level"], "WARNING")
        self.assertEqual(remark["logger"], "msglog.client")
        self.assertEqual(remark["fields"], {"dropped": 3})
        handler.close()
        self.assertNotIn("3 messages", self.stderr.getvalue())

    def test_said_by_a_receipt(self) -> None:
        """A program that falls silent has it said too."""
        self.handler()
        self.log.info("a")
        self.log.info("b")
        self.client.fails = FULL
        self.log.info("c")
        self.client.fails = None
        self.client.answer()
        self.assertEqual(self.client.messages[-1], "1 message was dropped: 4096 messages wait")

    def test_refused(self) -> None:
        """What the server refuses, or what never gets an answer, is dropped too."""
        handler = self.handler()
        self.log.info("a")
        self.client.answer(NotLogged("too long", False))
        self.assertEqual(handler.dropped, 1)

    def test_said_at_the_end(self) -> None:
        """What the log does not say is said on stderr."""
        handler = self.handler()
        self.log.info("a")
        self.log.info("b")
        handler.close()
        self.assertEqual(
            self.stderr.getvalue(),
            "msglog: 2 messages were not logged, as far as is known: the client was closed\n",
        )

    def test_silent_end(self) -> None:
        """Unless logging is to be silent about its own errors."""
        self.patch(logging, "raiseExceptions", False)
        handler = self.handler()
        self.log.info("a")
        handler.close()
        self.assertEqual(self.stderr.getvalue(), "")

    def test_closed(self) -> None:
        """To log after the end harms nobody, and is counted."""
        handler = self.handler()
        handler.close()
        self.log.info("late")
        self.assertEqual(handler.dropped, 1)
        self.assertEqual(len(self.made), 1)


class Lengths(HandlerCase):
    def sent(self) -> dict[str, Any]:
        self.log.info("x" * 3000)
        return self.client.handed_over[-1]

    def test_by_the_server(self) -> None:
        """The server's terms say how long a message may be."""
        self.handler()
        self.assertIn(len(self.sent()["message"]), range(1700, 2000))

    def test_before_the_server_says(self) -> None:
        """Until then it is what a server takes that nobody has configured."""
        self.patch(_log_handler, "_GREETING_SECONDS", 0)
        self.handler()
        self.client.max_body = None
        self.assertLess(len(self.sent()["message"]), 256)

    def test_said_by_the_program(self) -> None:
        """Or what the program says, which then waits for nobody."""
        waited: list[object] = []
        self.patch(LogHandler, "_await_terms", waited.append)
        self.handler(max_body=1000)
        self.client.max_body = None
        self.assertIn(len(self.sent()["message"]), range(700, 1000))
        self.assertEqual(waited, [])

    def test_nothing_fits(self) -> None:
        handler = self.handler()
        self.client.max_body = 5
        self.log.info("x")
        self.assertEqual(handler.dropped, 1)


class Failing(HandlerCase):
    def test_new_client(self) -> None:
        """What can be sent no more under one client id goes on under another, which it says."""
        self.handler()
        self.client.fails = FAILED
        self.log.info("a")
        self.log.info("b")
        old, new = self.made
        self.assertEqual(new.messages[1:], ["a", "b"])
        self.assertEqual(new.messages[0], f"going on as client {new.client}: CONFLICT")
        self.assertEqual(new.handed_over[0]["fields"], {"was": str(old.client)})
        self.assertIsNone(new.options.get("client"))
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and thread.daemon:
                thread.join(1)
        self.assertEqual(old.closed, [0])

    def test_not_too_often(self) -> None:
        """A server that takes no client is not asked once for each record."""
        handler = self.handler()
        self.client.fails = FAILED
        self.log.info("a")
        self.made[1].fails = FAILED
        for _ in range(5):
            self.log.info("b")
        self.assertEqual(len(self.made), 2)
        self.assertEqual(handler.dropped, 5)

    def test_spool(self) -> None:
        """With a spool there is nobody who waits, and no other client."""
        self.handler(spool="s")
        self.log.info("a")
        _, receipt, spooled = self.client.taken[-1]
        self.assertIsNone(receipt)
        self.assertIsNotNone(spooled)
        self.assertEqual(self.client.options["spool"], "s")

    def test_spool_full(self) -> None:
        """What the spool cannot take is counted, and so is what the server refuses."""
        handler = self.handler(spool="s")
        self.log.info("a")
        self.client.answer(NotLogged("disk full", True))
        self.client.refused = 2
        self.assertEqual(handler.dropped, 3)


class Ends(HandlerCase):
    def test_flush(self) -> None:
        """It waits for receipts, and not for ever."""
        handler = self.handler(flush_seconds=0.02)
        self.client.unanswered = 2
        handler.flush()
        self.assertEqual(self.client.flushes, 3)
        self.client.unanswered = 1 << 30
        handler.flush()

    def test_once(self) -> None:
        """Who was flushed in vain is closed without another wait."""
        handler = self.handler(flush_seconds=0.001)
        self.client.unanswered = 1 << 30
        handler.flush()
        flushes = self.client.flushes
        handler.close()
        self.assertEqual(self.client.flushes, flushes)
        self.assertEqual(self.client.closed, [0])

    def test_again(self) -> None:
        """But what came since is waited for."""
        handler = self.handler(flush_seconds=0.001)
        self.client.unanswered = 1 << 30
        handler.flush()
        self.log.info("a")
        self.client.unanswered = 0
        flushes = self.client.flushes
        handler.close()
        self.assertEqual(self.client.flushes, flushes + 1)

    def test_spool(self) -> None:
        """With a spool nobody waits for a server that is away."""
        handler = self.handler(spool="s", flush_seconds=3600)
        self.client.unanswered, self.client.trouble = 1 << 30, "no connection"
        handler.flush()
        self.assertEqual(self.client.flushes, 1)

    def test_nobody_waits_for_a_flush(self) -> None:
        """There is no lock that one who logs could have to wait for."""
        handler = self.handler()
        handler.acquire()
        done = threading.Thread(target=self.log.info, args=("x",), daemon=True)
        done.start()
        done.join(10)
        handler.release()
        self.assertEqual(self.client.messages, ["x"])


class Configuring(HandlerCase):
    def configured(self) -> dict[str, Any]:
        root = logging.getLogger()
        (handler,) = (each for each in root.handlers if isinstance(each, LogHandler))
        self.addCleanup(root.removeHandler, handler)
        self.addCleanup(handler.close)
        return self.made[-1].options

    def test_dict(self) -> None:
        """All of it in words, as in a file of YAML or JSON."""
        handler = {
            "class": "msglog.bridges.LogHandler",
            "level": "INFO",
            "servers": "a:1,b:2",
            "client": "019ac1f2-7b3c-7d4e-8f50-61728394a5b6",
            "limits": {"pending_messages": 10},
            "tls": {"ca": "ca.pem"},
            "flush_seconds": 1,
        }
        logging.config.dictConfig(
            {
                "version": 1,
                "incremental": False,
                "disable_existing_loggers": False,
                "handlers": {"msglog": handler},
                "root": {"handlers": ["msglog"]},
            }
        )
        options = self.configured()
        self.assertEqual(options["servers"], "a:1,b:2")
        self.assertEqual(options["client"], UUID(handler["client"]))  # type: ignore[arg-type]
        self.assertEqual(options["limits"], ClientLimits(pending_messages=10))
        self.assertEqual(options["tls"], TLS(ca="ca.pem"))

    def test_file(self) -> None:
        """The older kind of file."""
        config = """
[loggers]
keys=root
[handlers]
keys=msglog
[formatters]
keys=
[logger_root]
handlers=msglog
[handler_msglog]
class=msglog.bridges.LogHandler
args=("a:1",)
kwargs={"spool": "s"}
"""
        logging.config.fileConfig(io.StringIO(config), disable_existing_loggers=False)
        options = self.configured()
        self.assertEqual((options["servers"], options["spool"]), ("a:1", "s"))

    def test_wrong(self) -> None:
        """What is wrong with it is said where it is configured."""
        self.assertRaises(ValueError, LogHandler, client="me")
        self.assertRaises(ValueError, LogHandler, limits={"pending_messages": 0})


# --- twisted.logger ----------------------------------------------------------------------------


class Reactor:
    """Calls in its thread what other threads hand it."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], object]] = []

    def callFromThread(self, call: Callable[[], object]) -> None:
        self.calls.append(call)

    def turn(self) -> None:
        calls, self.calls = self.calls, []
        for call in calls:
            call()


class TwistedClient:
    """Stands for a L{MessageLogClient}."""

    running = 1
    spool: str | None = None
    max_body: int | None = 2000
    refused = 0
    fails: Exception | None = None

    def __init__(self) -> None:
        self.handed_over: list[dict[str, Any]] = []
        self.waiters: list[Deferred[Any]] = []
        self.room: list[Deferred[None]] = []
        self.put_in_spool = 0

    def send(self, body: bytes) -> Deferred[Any]:
        if self.fails is not None:
            return fail(self.fails)
        self.handed_over.append(orjson.loads(body))
        self.waiters.append(Deferred())
        return self.waiters[-1]

    def put(self, body: bytes) -> Deferred[Any]:
        self.put_in_spool += 1
        return self.send(body)

    def ready(self, size: int) -> Deferred[None]:
        if self.fails is None:
            return succeed(None)
        self.room.append(Deferred())
        return self.room[-1]

    @property
    def messages(self) -> list[str]:
        return [event["message"] for event in self.handed_over]


class ObserverCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.client, self.reactor = TwistedClient(), Reactor()
        self.observer = LogObserver(self.reactor, self.client)  # type: ignore[arg-type]
        self.log = Logger("app.orders", observer=self.observer)
        self.patch(threadable, "ioThread", threadable.getThreadID())

    def event(self) -> dict[str, Any]:
        return self.client.handed_over[-1]


class Events(ObserverCase):
    def test_keys(self) -> None:
        """What an event says, its own keys as they are, and text for what JSON has not."""
        self.log.warn("order {order}", order=17, factory=Nasty())
        event = self.event()
        self.assertEqual(len(event.pop("time")), 27)
        self.assertIsInstance(event.pop("process"), int)
        self.assertIn("Nasty object at", event["fields"].pop("factory"))
        self.assertEqual(
            event,
            {
                "level": "WARNING",
                "logger": "app.orders",
                "message": "order 17",
                "fields": {"order": 17},
            },
        )

    def test_failure(self) -> None:
        try:
            raise ValueError("odd")
        except ValueError:
            self.log.failure("it failed")
        self.assertEqual(self.event()["level"], "CRITICAL")
        self.assertEqual(self.event()["message"], "it failed")
        self.assertIn("ValueError: odd", self.event()["exception"])

    def test_legacy(self) -> None:
        """Events of twisted.python.log, whose text has the traceback in it."""
        publisher = legacy.LogPublisher(LogPublisher(self.observer), LogPublisher(self.observer))
        publisher.msg("hello", order=17)
        event = self.event()
        self.assertEqual((event["message"], event["fields"]), ("hello", {"order": 17}))
        publisher.msg(failure=Failure(ValueError("odd")), why="it failed", isError=1)
        event = self.event()
        self.assertEqual(event["message"], "it failed")
        self.assertIn("odd", event["exception"])
        self.assertNotIn("fields", event)

    def test_among_legacy_observers(self) -> None:
        """What Twisted adds to an event for them is no field of it."""
        publisher = LogPublisher(legacy.LegacyLogObserverWrapper(lambda event: None))
        publisher.addObserver(self.observer)
        Logger("app", observer=publisher).info("x {order}", order=17)
        self.assertEqual(self.event()["fields"], {"order": 17})

    def test_loops(self) -> None:
        """What msglog says of itself goes elsewhere, and what Twisted says of its connecting."""
        for namespace in ("msglog", "msglog._client.MessageLogClient"):
            Logger(namespace, observer=self.observer).info("x")
        client = MessageLogClient(None, [None])  # type: ignore[list-item]
        failover = _log_observer.Failover(client._endpoints, lambda failure: None)
        self.log.info("Scheduling retry {attempt} to connect {endpoint}", endpoint=failover)
        self.assertEqual(self.client.handed_over, [])
        Logger("msglogger", observer=self.observer).info("x")
        self.assertEqual(self.client.messages, ["x"])


class Holding(ObserverCase):
    def test_before_the_start(self) -> None:
        """What is said before the client is started is held, and sent in order."""
        self.client.running = 0
        self.log.info("a")
        self.log.info("b")
        self.assertEqual(self.client.handed_over, [])
        self.client.running = 1
        self.log.info("c")
        self.assertEqual(self.client.messages, ["a", "b", "c"])

    def test_twice_told(self) -> None:
        """What Twisted tells again when its own log begins is in the log once."""
        self.client.running = 0
        event = {"log_time": 1.0, "log_format": "a", "log_level": LogLevel.info}
        self.observer(event)
        self.observer(event)
        self.client.running = 1
        self.log.info("b")
        self.assertEqual(self.client.messages, ["a", "b"])

    def test_other_threads(self) -> None:
        """The client is used in the reactor's thread alone."""
        self.patch(threadable, "ioThread", -1)
        self.log.info("a")
        self.log.info("b")
        self.assertEqual(self.client.handed_over, [])
        self.assertEqual(len(self.reactor.calls), 1)
        self.reactor.turn()
        self.assertEqual(self.client.messages, ["a", "b"])
        self.log.info("c")
        self.reactor.turn()
        self.assertEqual(self.client.messages, ["a", "b", "c"])

    def test_before_the_reactor_runs(self) -> None:
        """The main thread is the one that will run it, and need not wait for that."""
        self.patch(threadable, "ioThread", None)
        self.log.info("a")
        self.assertEqual(self.client.messages, ["a"])
        thread = threading.Thread(target=self.log.info, args=("b",))
        thread.start()
        thread.join()
        self.assertEqual(self.client.messages, ["a"])
        self.reactor.turn()
        self.assertEqual(self.client.messages, ["a", "b"])

    def test_too_many(self) -> None:
        """Not more are held than may be."""
        self.patch(_log_observer, "HELD_EVENTS", 2)
        self.client.running = 0
        for name in "abc":
            self.log.info(name)
        self.assertEqual(self.observer.dropped, 1)
        self.client.running = 1
        self.log.info("d")  # there is room again when those before it are gone
        self.log.info("e")
        remark = "2 messages were dropped: 2 events wait for the reactor, or for the client"
        self.assertEqual(self.client.messages, [remark, "a", "b", "e"])


class ObserverDropping(ObserverCase):
    def test_no_room(self) -> None:
        """It is counted, and said when there is room."""
        self.client.fails = FULL
        self.log.info("a")
        self.log.info("b")
        self.assertEqual(self.observer.dropped, 2)
        self.assertEqual(len(self.client.room), 1)
        self.client.fails = None
        self.client.room[0].callback(None)
        self.assertEqual(self.client.messages, ["2 messages were dropped: 4096 messages wait"])

    def test_stopped(self) -> None:
        """A client that is stopped while room is waited for is no error."""
        self.client.fails = FULL
        self.log.info("a")
        self.client.room[0].errback(NotLogged("stopped", False))
        self.assertEqual(self.client.handed_over, [])

    def test_refused(self) -> None:
        self.log.info("a")
        self.client.waiters[0].errback(NotLogged("too long", False))
        self.assertEqual(self.observer.dropped, 1)
        self.log.info("b")
        self.assertEqual(self.client.messages, ["a", "1 message was dropped: too long", "b"])

    def test_spool(self) -> None:
        """With a spool nobody waits for the receipt."""
        self.client.spool = "s"
        self.log.info("a")
        self.assertEqual(self.client.put_in_spool, 1)
        self.client.refused = 3
        self.assertEqual(self.observer.dropped, 3)

    def test_length(self) -> None:
        for longest, expected in ((None, 256), (1000, 1000)):
            self.client.max_body = longest
            self.log.info("x" * 3000)
            self.assertIn(len(orjson.dumps(self.event())), range(expected - 5, expected + 1))

    def test_level_without(self) -> None:
        """An event without a level, as some bridges make it."""
        self.observer({"log_time": 1.0, "log_format": "x", "log_level": None})
        self.assertEqual(self.event()["level"], "INFO")
        self.observer({"log_time": 1.0, "log_format": "x", "log_level": LogLevel.error})
        self.assertEqual(self.event()["level"], "ERROR")
