"""The blocking and the asyncio client in this process, against the real server."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import wait

import pytest
import wire

import msglog
from msglog import ClientLimits, NotLogged, QueueFull, SessionFailed, Unanswered, aio

LONG = bytes(1000)


def address(server) -> str:
    return f"127.0.0.1:{server.port}"


def bodies_of(server, client) -> list[bytes]:
    return wire.read_logs(server.log).get(client.bytes, [])


def test_send_all_yields_as_it_goes(server) -> None:
    """Receipts of a long input are there while it is read, and not kept until its end."""
    given = 0

    def bodies():
        nonlocal given
        while True:
            given += 1
            yield b"%d" % given

    limits = ClientLimits(pending_messages=100, window=50)
    with msglog.connect(address(server), limits=limits) as log:
        receipts = log.send_all(bodies())
        for number in range(1, 5001):
            assert next(receipts).sequence == number
            assert given - number <= 200
        receipts.close()


def test_in_the_middle_of_itself(server) -> None:
    """What a finaliser or a signal handler hands over while the client is at work is sent too."""
    with msglog.connect(address(server)) as log:
        put = log._outbox.put
        inner = []

        def put_and_collect(body, *others) -> None:
            put(body, *others)
            if body == b"outer":
                inner.append(log.submit(b"inner"))

        log._outbox.put = put_and_collect
        assert log.send(b"outer", timeout=10).sequence == 1
        assert inner[0].result(timeout=10).sequence == 2


def test_an_exception_before_the_thread_is_woken(server) -> None:
    """As a signal handler may raise it: the next message wakes the thread all the same."""
    with msglog.connect(address(server)) as log:
        wake = log._wake

        def interrupted() -> None:
            log._wake = wake
            raise KeyboardInterrupt

        log._wake = interrupted
        with pytest.raises(KeyboardInterrupt):
            log.submit(b"first")
        assert log.send(b"second", timeout=10).sequence == 2


def test_send_all_without_room_of_its_own(server) -> None:
    """Another thread's messages take all the room for a while."""
    limits = ClientLimits(pending_messages=2, window=2)
    with msglog.connect(address(server), limits=limits) as log:
        stop = threading.Event()

        def take_room() -> None:
            while not stop.is_set():
                log.submit(b"another's")

        threads = [threading.Thread(target=take_room) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            receipts = list(log.send_all(b"%d" % n for n in range(200)))
        finally:
            stop.set()
            for thread in threads:
                thread.join(10)
        log.flush(10)
        logged = bodies_of(server, log.client)
    assert [logged[r.sequence - 1] for r in receipts] == [b"%d" % n for n in range(200)]


def test_send_all_up_to_what_is_refused(server) -> None:
    """The receipts of what came before a refused message come before its error."""
    with msglog.connect(address(server)) as log:
        receipts = log.send_all([b"a", b"b", LONG, b"c"])
        assert [next(receipts).sequence, next(receipts).sequence] == [1, 2]
        with pytest.raises(NotLogged, match="over the server's maximum"):
            next(receipts)
        assert log.send(b"d").sequence == 3


def test_blocking_waits(server) -> None:
    """What is not taken at once, and what does not come in time."""
    limits = ClientLimits(pending_messages=1, first_backoff_seconds=0.01)
    log = msglog.connect(address(server), limits=limits)
    server.kill()
    waiting = log.submit(b"a")
    with pytest.raises(QueueFull):
        log.submit(b"b", block=False)
    with pytest.raises(TimeoutError, match="no room within"):
        log.submit(b"b", timeout=0.05)
    with pytest.raises(TimeoutError):
        log.send(b"b", timeout=0.05)
    with pytest.raises(TimeoutError, match="not everything was answered"):
        log.flush(0.05)
    with pytest.raises(TypeError):
        log.send("text")
    server.start()
    began = time.monotonic()
    log.flush(10)
    assert time.monotonic() - began < 5  # who waits is told, and does not find out at the end
    assert waiting.result(0).sequence == 1
    assert log.unsettled == 0
    log.close()
    with pytest.raises(NotLogged, match="closed"):
        log.submit(b"c")


def test_closing_while_others_send(server) -> None:
    """Threads that send while the client is closed are told, and none waits for ever."""
    limits = ClientLimits(pending_messages=10)
    ended = []
    for _ in range(20):
        log = msglog.connect(address(server), limits=limits)
        futures = []

        def send(log=log, futures=futures) -> None:
            try:
                while True:
                    futures.append(log.submit(b"a"))
            except NotLogged as e:
                ended.append(e)

        threads = [threading.Thread(target=send) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.01)
        log.close(0)
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
        done, pending = wait(futures, 10)
        assert not pending
        logged = bodies_of(server, log.client)
        receipts = [f.result() for f in done if f.exception() is None]
        assert all(r.sequence <= len(logged) for r in receipts)
        assert all(isinstance(f.exception(), Unanswered | None) for f in done)
    assert len(ended) == 60


def test_no_server() -> None:
    """Nobody is there: said in time, with the reason."""
    limits = ClientLimits(first_backoff_seconds=0.01)
    with pytest.raises(msglog.NotConnected, match=r"127\.0\.0\.1:1 within 0\.1 s: no connection"):
        msglog.connect("127.0.0.1:1", limits=limits, timeout=0.1)

    async def connect() -> None:
        async with aio.connect("127.0.0.1:1", limits=limits, timeout=0.1):
            raise AssertionError("it is connected")

    with pytest.raises(msglog.NotConnected, match=r"127\.0\.0\.1:1 within 0\.1 s: no connection"):
        asyncio.run(connect())


def test_an_error_for_each(server) -> None:
    """An error that many are told has no traceback that grows with them."""
    with msglog.connect(address(server)) as first:
        first.send(b"a")
        log = msglog.connect(address(server), client=first.client)
        log.send(b"b")
        with pytest.raises(SessionFailed):
            first.send(b"c")
        depths = []
        for _ in range(20):
            with pytest.raises(SessionFailed) as caught:
                first.send(b"d")
            depths.append(len(caught.traceback))
        assert len(set(depths)) == 1
        log.close()


def test_more_tasks_than_room(server) -> None:
    """Tasks by the thousand wait for room in turn; to wait costs the others nothing."""

    async def main() -> float:
        limits = ClientLimits(pending_messages=100)
        async with aio.connect(address(server), limits=limits) as log:
            began = time.process_time()
            sends = [asyncio.ensure_future(log.send(b"%d" % n)) for n in range(20_000)]
            await asyncio.sleep(0)
            sends[10_000].cancel()
            late = asyncio.ensure_future(log.send(LONG))
            text = asyncio.ensure_future(log.send("text"))
            results = await asyncio.gather(*sends, late, text, return_exceptions=True)
            spent = time.process_time() - began
            assert isinstance(results.pop(), TypeError)
            assert isinstance(results.pop(), NotLogged)
            assert isinstance(results.pop(10_000), asyncio.CancelledError)
            assert [r.sequence for r in results] == list(range(1, 20_000))
            expected = [b"%d" % n for n in range(20_000) if n != 10_000]
            assert bodies_of(server, log.client) == expected
            with pytest.raises(TypeError):
                await log.send(None)
            assert (await log.send(b"last")).sequence == 20_000
            return spent

    # A second of work. When each receipt woke all who waited it was a minute.
    assert asyncio.run(main()) < 10


def test_asyncio_closes(server) -> None:
    """Who waits for room when the client closes is told."""

    async def main() -> None:
        limits = ClientLimits(pending_messages=1)
        log = await aio.connect(address(server), limits=limits)
        server.kill()
        sends = [asyncio.ensure_future(log.send(b"%d" % n)) for n in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull):
            log.send_nowait(b"now")
        await log.close(0.05)
        results = await asyncio.gather(*sends, return_exceptions=True)
        assert isinstance(results[0], Unanswered)
        assert all("closed" in str(result) for result in results[1:])

    asyncio.run(main())
