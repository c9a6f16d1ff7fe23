"""
A program that logs numbered messages through one of the clients, and keeps a journal of it.

    drive_client.py KIND SERVERS COUNT JOURNAL [OPTIONS-AS-JSON]

Each message is its number, and what fills it up.  A line of the journal is one of::

    put NUMBER                               about to be handed over
    spooled NUMBER                           the spool has it
    receipt NUMBER CLIENT SEQUENCE CHECKSUM
    error NUMBER TYPE RETRY REASON
    full NUMBER                              no more is taken
    state TROUBLE                            at the end

Started again with the same journal it goes on behind the last number that was about to be handed
over.  Options: spool, client, limits, fill (bytes), first (what numbers begin with), long (every
so many messages one is of 1000 bytes), seconds (to run at most, then it closes what is left),
flood (hand over as fast as can be until no more is taken, and stay).
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import msglog
from msglog import aio

# How many messages are handed over and not settled, so that all have room.
AHEAD = 2000

Bodies = Iterator[tuple[int, bytes]]


class Journal:
    def __init__(self, path: Path) -> None:
        self.next = 0
        if path.exists():
            # The last line may be torn by a kill.
            for line in path.read_text().splitlines(keepends=True):
                if line.startswith("put ") and line.endswith("\n"):
                    self.next = int(line.split()[1]) + 1
        self._file = path.open("a", buffering=1)

    def put(self, number: int) -> None:
        self._file.write(f"put {number}\n")

    def spooled(self, number: int) -> None:
        self._file.write(f"spooled {number}\n")

    def receipt(self, number: int, receipt: msglog.Receipt) -> None:
        what = f"{receipt.client.hex} {receipt.sequence} {receipt.checksum:08x}"
        self._file.write(f"receipt {number} {what}\n")

    def error(self, number: int, error: BaseException) -> None:
        retry = getattr(error, "retry", "-")
        self._file.write(f"error {number} {type(error).__name__} {retry} {error}\n")

    def full(self, number: int) -> None:
        self._file.write(f"full {number}\n")

    def state(self, trouble: str) -> None:
        self._file.write(f"state {trouble}\n")

    def done(self, number: int, spooled: bool) -> Callable[[Any], None]:
        """What to call with a future that is done."""

        def take(future: Any) -> None:
            if future.exception() is not None:
                self.error(number, future.exception())
            elif spooled:
                self.spooled(number)
            else:
                self.receipt(number, future.result())

        return take


def body(number: int, fill: int, long: int | None) -> bytes:
    return b"%d %s" % (number, b"x" * (1000 if long and number % long == long - 1 else fill))


def is_spooled(number: int, spool: str | None) -> bool:
    """Of what goes through a spool, every seventh message is waited for, and the others not."""
    return spool is not None and number % 7 != 0


def blocking(servers: str, bodies: Bodies, journal: Journal, options: dict) -> None:
    spool = options.get("spool")
    seconds, flood = options.pop("seconds"), options.pop("flood")
    log = msglog.connect(servers, **options)
    if flood:
        for number, body in bodies:
            try:
                log.submit(body, block=False)
            except msglog.QueueFull:
                journal.full(number)
                time.sleep(seconds)
    for number, body in bodies:
        journal.put(number)
        try:
            hand_over = log.put if is_spooled(number, spool) else log.submit
            future = hand_over(body)
            future.add_done_callback(journal.done(number, is_spooled(number, spool)))
        except msglog.NotLogged as e:
            journal.error(number, e)
    try:
        log.flush(seconds)
    except TimeoutError:
        pass
    journal.state(log.trouble)
    log.close(0)


async def asynchronous(servers: str, bodies: Bodies, journal: Journal, options: dict) -> None:
    spool = options.get("spool")
    seconds, flood = options.pop("seconds"), options.pop("flood")
    log = await aio.connect(servers, **options)
    if flood:
        for number, body in bodies:
            try:
                log.send_nowait(body)
                if number % 100 == 0:
                    await asyncio.sleep(0)
            except msglog.QueueFull:
                journal.full(number)
                await asyncio.sleep(seconds)
    ahead = asyncio.Semaphore(AHEAD)

    async def hand_over(body: bytes, spooled: bool) -> msglog.Receipt | None:
        try:
            if spooled:
                return await log.put(body)
            return await log.send(body)
        finally:
            ahead.release()

    tasks = set()
    for number, body in bodies:
        await ahead.acquire()
        journal.put(number)
        spooled = is_spooled(number, spool)
        task = asyncio.ensure_future(hand_over(body, spooled))
        task.add_done_callback(journal.done(number, spooled))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    try:
        await asyncio.wait_for(log.flush(), seconds)
    except TimeoutError:
        pass
    if tasks:
        await asyncio.wait(tasks, timeout=1)
    journal.state(log.trouble)
    await log.close(0)
    await asyncio.sleep(0)


def twisted(servers: str, bodies: Bodies, journal: Journal, options: dict) -> None:
    from twisted.internet.defer import Deferred, ensureDeferred
    from twisted.internet.task import deferLater, react
    from twisted.logger import STDLibLogObserver, globalLogBeginner

    globalLogBeginner.beginLoggingTo([STDLibLogObserver()], redirectStandardIO=False)
    spool = options.get("spool")
    seconds, flood = options.pop("seconds"), options.pop("flood")
    options.pop("timeout")

    async def main(reactor: Any) -> None:
        client = msglog.MessageLogClient(reactor, servers, **options)
        client.startService()
        if flood:
            for number, body in bodies:
                receipt = client.send(body)
                if receipt.called:
                    receipt.addErrback(lambda f: f.trap(msglog.QueueFull))
                    journal.full(number)
                    await deferLater(reactor, seconds)
                elif number % 100 == 0:
                    await deferLater(reactor, 0)
        for number, body in bodies:
            await client.ready(len(body))
            journal.put(number)
            spooled = is_spooled(number, spool)
            deferred = (client.put if spooled else client.send)(body)
            if spooled:
                deferred.addCallback(lambda _, number=number: journal.spooled(number))
            else:
                deferred.addCallback(lambda r, number=number: journal.receipt(number, r))
            deferred.addErrback(lambda f, number=number: journal.error(number, f.value))
        flushed: Deferred[None] = client.flush()
        flushed.addTimeout(seconds, reactor, lambda result, timeout: None)
        await flushed
        journal.state(client.trouble)
        client._limits = msglog.ClientLimits(stop_seconds=0)
        await client.stopService()

    react(lambda reactor: ensureDeferred(main(reactor)))


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    kind, servers, count, path, *rest = sys.argv[1:]
    options = json.loads(rest[0]) if rest else {}
    journal = Journal(Path(path))
    fill, first, long = (options.pop(name, 0) for name in ("fill", "first", "long"))
    options.setdefault("seconds", 120)
    options.setdefault("timeout", None)
    options.setdefault("flood", False)
    options["limits"] = msglog.ClientLimits(**options.get("limits", {}))
    if "client" in options:
        options["client"] = UUID(options["client"])
    numbers = range(max(first, journal.next), first + int(count))
    bodies = ((number, body(number, fill, long)) for number in numbers)
    if kind == "asyncio":
        asyncio.run(asynchronous(servers, bodies, journal, options))
    else:
        {"blocking": blocking, "twisted": twisted}[kind](servers, bodies, journal, options)


if __name__ == "__main__":
    main()
