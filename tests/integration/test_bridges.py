"""The bridges against the real server, in programs as their guides show them."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import wire
from conftest import BIN, Server, wait_until

DOCS = Path(__file__).parents[2] / "docs"


def example(page: str, name: str, server: Server) -> str:
    found = re.search(
        rf"<!-- run: {name} -->\n```python\n(.*?)```\n", (DOCS / page).read_text(), re.S
    )
    assert found is not None
    return found[1].replace("7514", str(server.port))


def program(server: Server, script: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=server.folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(server: Server, script: str, status: int = 0) -> str:
    """Run a program to its end; what it said on stderr."""
    with program(server, script) as running:
        _, said = running.communicate(timeout=60)
    assert running.returncode == status, said
    return said


def events(server: Server) -> list[list[dict[str, Any]]]:
    """The events of each client, in order."""
    server.stop()
    clients = wire.read_logs(server.log)
    return [[json.loads(body) for body in bodies] for bodies in clients.values()]


def handler(server: Server, options: str = "") -> str:
    return f"""
import logging, os, sys, time
from msglog.bridges import LogHandler

handler = LogHandler("127.0.0.1:{server.port}"{options})
logging.basicConfig(level=logging.INFO, handlers=[handler])
log = logging.getLogger("app")
"""


@pytest.fixture
def server(make_server) -> Server:
    return make_server("--max-message-bytes", "4096").start()


class TestHandler:
    def test_guide(self, server: Server) -> None:
        """What the guide shows becomes what it shows; nothing is closed, and all is there."""
        assert run(server, example("logging.md", "handler", server)) == ""
        ((event,),) = events(server)
        shown = json.loads(re.findall(r"```json\n(.*?)\n```", (DOCS / "logging.md").read_text())[0])
        assert list(event) == list(shown)
        for key in ("time", "process", "where"):
            assert event.pop(key)
            shown.pop(key)
        assert event == shown

    def test_guide_configuration(self, server: Server) -> None:
        assert run(server, example("logging.md", "dictConfig", server)) == "configured\n"
        (found,) = events(server)
        assert [event["message"] for event in found] == ["configured"]
        assert (server.folder / "app.spool").exists()

    @pytest.mark.parametrize("count", [1, 3000])
    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
    def test_end_without_close(self, server: Server, host: str, count: int) -> None:
        """A program that ends at once has sent all, even if it had to find its server by name."""
        script = handler(server, ", max_body=4096").replace("127.0.0.1", host)
        said = run(server, script + f"for n in range({count}): log.info('%d', n)")
        assert said == ""
        (found,) = events(server)
        assert [event["message"] for event in found] == [str(n) for n in range(count)]

    def test_last_words(self, server: Server) -> None:
        """What is said by others in the program's last moment is sent too."""
        script = "import atexit, logging\natexit.register(lambda: log.info('bye'))\n" + handler(
            server
        )
        assert run(server, script) == ""
        ((event,),) = events(server)
        assert event["message"] == "bye"

    def test_threads(self, server: Server) -> None:
        """Each thread's events are in its order, and none is lost."""
        script = """
import threading
def work():
    for n in range(500): log.info("%d", n)
threads = [threading.Thread(target=work, name=f"w{t}") for t in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
        assert run(server, handler(server) + script) == ""
        (found,) = events(server)
        for thread in range(8):
            said = [event["message"] for event in found if event["thread"] == f"w{thread}"]
            assert said == [str(n) for n in range(500)]

    @pytest.mark.parametrize("options", [", limits={'pending_messages': 10**6}", ", spool='spool'"])
    def test_server_killed(self, server: Server, options: str) -> None:
        """A server that is killed and comes back misses nothing and has nothing twice."""
        script = """
n = 0
while not os.path.exists("enough"):
    log.info("%d", n)
    n += 1
    time.sleep(0.001)
print(n)
"""
        with program(server, handler(server, options) + script) as running:
            for _ in range(3):
                size = server.log.stat().st_size if server.log.exists() else 0
                wait_until(
                    lambda size=size: server.log.exists() and server.log.stat().st_size > size,
                    "progress",
                )
                server.kill()
                time.sleep(0.2)
                server.start()
            (server.folder / "enough").touch()
            out, said = running.communicate(timeout=60)
        assert running.returncode == 0, said
        # While a server is away a program with a spool ends at once, and the rest is in there.
        if "spool" in options:
            address = f"127.0.0.1:{server.port}"
            drain = [BIN / "msglog", "send", "--server", address, "--spool", "spool"]
            subprocess.run(
                drain, cwd=server.folder, check=True, timeout=60, stdin=subprocess.DEVNULL
            )
        (found,) = events(server)
        assert [event["message"] for event in found] == [str(n) for n in range(int(out))]

    def test_start_without_server(self, make_server) -> None:
        """A program starts without its server; what it said is there when the server is."""
        server = make_server("--max-message-bytes", "4096")
        script = (
            handler(server, ", max_body=4096") + "log.info('early'); print(1, flush=True); input()"
        )
        begun = time.monotonic()
        with program(server, script) as running:
            assert running.stdout is not None
            assert running.stdout.readline() == "1\n"
            assert time.monotonic() - begun < 5
            server.start()
            wait_until(lambda: server.log.exists() and server.log.stat().st_size, "the message")
            running.communicate("\n", timeout=30)
        ((event,),) = events(server)
        assert event["message"] == "early"

    def test_end_without_server(self, make_server) -> None:
        """A program ends without its server, in time, and says what it could not send."""
        server = make_server()
        begun = time.monotonic()
        said = run(server, handler(server, ", flush_seconds=0.5") + "log.info('x')")
        assert time.monotonic() - begun < 5
        assert "msglog: 1 message was not logged, as far as is known: " in said

    def test_drops(self, make_server) -> None:
        """What is dropped while the server is away is said in the log when it is back."""
        server = make_server("--max-message-bytes", "4096")
        script = (
            handler(server, ", limits={'pending_messages': 10}, max_body=4096")
            + """
for n in range(100): log.info("%d", n)
print(handler.dropped, flush=True)
input()
"""
        )
        with program(server, script) as running:
            assert running.stdout is not None
            assert running.stdout.readline() == "90\n"
            server.start()
            wait_until(
                lambda: server.log.exists() and b"were dropped" in server.log.read_bytes(),
                "the remark",
            )
            running.communicate("\n", timeout=30)
        (found,) = events(server)
        assert [event["message"] for event in found[:10]] == [str(n) for n in range(10)]
        assert found[10]["fields"] == {"dropped": 90}
        assert len(found) == 11

    def test_cut(self, make_server) -> None:
        """Against a server as it is by default, long events are there, cut, and say so."""
        server = make_server().start()
        script = (
            handler(server)
            + """
try: raise ZeroDivisionError("why, " * 50 + "well")
except ZeroDivisionError: log.exception("it failed")
log.info("x" * 10000)
"""
        )
        assert run(server, script) == ""
        ((first, second),) = events(server)
        assert first["message"] == "it failed"
        assert first["exception"].endswith("why, well")
        assert first["cut"] > 256
        assert second["cut"] > 10000

    def test_killed_with_spool(self, server: Server) -> None:
        """What a killed program had in its spool is sent by the next one with it."""
        server.kill()
        script = (
            handler(server, ", spool='spool', max_body=4096")
            + """
for n in range(100): log.info("%d", n)
handler.flush()
os.kill(os.getpid(), 9)
"""
        )
        run(server, script, status=-signal.SIGKILL)
        server.start()
        run(server, handler(server, ", spool='spool'") + "log.info('next')")
        (found,) = events(server)
        assert [event["message"] for event in found] == [*map(str, range(100)), "next"]

    def test_log_was_lost(self, server: Server) -> None:
        """A server with an empty log is told apart, and the program goes on under a new id."""
        script = (
            handler(server)
            + """
log.info("first"); handler.flush(); print(1, flush=True); input()
for n in range(200):
    log.info("%d", n)
    handler.flush()
"""
        )
        with program(server, script) as running:
            assert running.stdout is not None
            running.stdout.readline()
            server.stop()
            for file in server.folder.glob("messages.jsonl*"):
                file.unlink()
            server.start()
            _, said = running.communicate("\n", timeout=60)
        assert running.returncode == 0, said
        (found,) = events(server)
        remarks = [event for event in found if event["logger"] == "msglog.client"]
        assert "going on as client" in remarks[0]["message"]
        dropped = sum(
            event["fields"]["dropped"] for event in remarks if "dropped" in event["fields"]
        )
        assert len(found) - len(remarks) == 200 - dropped
        assert found[-1]["message"] == "199"


class TestForks:
    SCRIPT = """
log.info("parent before")
for number in range(3):
    if not os.fork():
        log.info("child %d", number)
        sys.exit()  # as a child of one's own ends, with what Python does at its end
for _ in range(3):
    assert os.wait()[1] == 0
log.info("parent after")
"""

    def test_child(self, server: Server) -> None:
        """Each child has a client of its own; the parent's is not disturbed."""
        assert run(server, handler(server) + self.SCRIPT) == ""
        found = sorted([event["message"] for event in each] for each in events(server))
        assert found == [["child 0"], ["child 1"], ["child 2"], ["parent before", "parent after"]]

    def test_silent_child(self, server: Server) -> None:
        """A child that does not log ends at once, and sends nothing of its parent's."""
        script = (
            handler(server)
            + """
log.info("before")
begun = time.monotonic()
if not os.fork(): sys.exit()
os.wait()
print(time.monotonic() - begun)
"""
        )
        with program(server, script) as running:
            out, said = running.communicate(timeout=30)
        assert running.returncode == 0, said
        assert float(out) < 2
        ((event,),) = events(server)
        assert event["message"] == "before"

    def test_spool(self, server: Server) -> None:
        """The spool stays the parent's; a child logs without it, and says so."""
        assert run(server, handler(server, ", spool='spool'") + self.SCRIPT) == ""
        found = [[event["message"] for event in each] for each in events(server)]
        found.remove(["parent before", "parent after"])
        assert len(found) == 3
        for number, (remark, said) in enumerate(sorted(found, key=lambda each: each[1])):
            assert said == f"child {number}"
            assert "was forked from one that has the spool spool, and logs without it" in remark

    def test_multiprocessing(self, server: Server) -> None:
        """Workers that end in their own way have sent all too."""
        script = (
            handler(server)
            + """
import multiprocessing
def work(n):
    for m in range(200): log.info("%d", n + m)
workers = [multiprocessing.get_context("fork").Process(target=work, args=(n,)) for n in (0, 200)]
for worker in workers: worker.start()
for worker in workers: worker.join()
"""
        )
        assert run(server, script) == ""
        found = [
            int(event["message"]) for each in sorted(events(server), key=str) for event in each
        ]
        assert sorted(found) == list(range(400))

    def test_client_alone(self, make_server) -> None:
        """A child does not wait, when it ends, for what its parent's client could not send."""
        script = f"""
import msglog, os, sys, time
client = msglog.connect("127.0.0.1:{make_server().port}", timeout=None)
client.submit(b"x")
begun = time.monotonic()
if not os.fork(): sys.exit()
os.wait()
print(time.monotonic() - begun, flush=True)
os._exit(0)
"""
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60)
        assert float(done.stdout) < 5, done.stderr


class TestObserver:
    def test_guide(self, server: Server) -> None:
        """What the guide shows becomes what it shows, among what else Twisted says."""
        run(server, example("twisted-logging.md", "observer", server))
        (found,) = events(server)
        page = (DOCS / "twisted-logging.md").read_text()
        shown = json.loads(re.findall(r"```json\n(.*?)\n```", page)[0])
        (event,) = (each for each in found if each["logger"] == "app.orders")
        assert list(event) == list(shown)
        for key in ("time", "process"):
            assert event.pop(key)
            shown.pop(key)
        assert event == shown

    def test_guide_tac(self, server: Server) -> None:
        """An application of twistd's, whose first words are from before the client's start."""
        tac = server.folder / "shop.tac"
        tac.write_text(
            example("twisted-logging.md", "tac", server)
            + """
from twisted.internet import threads
from twisted.logger import Logger

log = Logger("app")
log.info("early")
reactor.callWhenRunning(threads.deferToThread, log.info, "in a thread")
reactor.callWhenRunning(log.info, "running")
"""
        )
        with subprocess.Popen(
            [BIN / "twistd", "-n", "--pidfile=", "-l", "twistd.log", "-y", tac], cwd=server.folder
        ) as running:
            wait_until(
                lambda: server.log.exists() and b"in a thread" in server.log.read_bytes(),
                "the last message",
            )
            running.terminate()
            assert running.wait(30) in (0, -signal.SIGTERM)  # which depends on Twisted's version
        (found,) = events(server)
        messages = [event["message"] for event in found if event["logger"] == "app"]
        assert messages[0] == "early"
        assert sorted(messages[1:]) == ["in a thread", "running"]
        assert any("starting up" in event["message"] for event in found)

    def test_server_killed(self, server: Server) -> None:
        """A server that is killed and comes back misses nothing, and hears nothing of itself."""
        script = f"""
import sys
from twisted.internet import reactor, task
from twisted.logger import Logger, globalLogBeginner
from msglog import MessageLogClient
from msglog.bridges import LogObserver
import os

client = MessageLogClient(reactor, "127.0.0.1:{server.port}")
globalLogBeginner.beginLoggingTo([LogObserver(reactor, client)], redirectStandardIO=False)
client.startService()
reactor.addSystemEventTrigger("before", "shutdown", client.stopService)
log, numbers = Logger("app"), iter(range(1 << 30))


def say():
    if os.path.exists("enough"):
        print(next(numbers))
        saying.stop()
        reactor.stop()
    else:
        log.info("{{n}}", n=next(numbers))


saying = task.LoopingCall(say)
saying.start(0.002)
reactor.run()
"""
        with program(server, script) as running:
            for _ in range(2):
                size = server.log.stat().st_size if server.log.exists() else 0
                wait_until(
                    lambda size=size: server.log.exists() and server.log.stat().st_size > size,
                    "progress",
                )
                server.kill()
                time.sleep(0.5)
                server.start()
            (server.folder / "enough").touch()
            out, said = running.communicate(timeout=60)
        assert running.returncode == 0, said
        (found,) = events(server)
        numbers = [event["fields"]["n"] for event in found if event["logger"] == "app"]
        assert numbers == list(range(int(out)))
        assert not [event for event in found if "retry" in event["message"]]
