"""Clients of all kinds that send without end while servers fail."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

from twisted.internet.asyncioreactor import AsyncioSelectorReactor

import msglog
from msglog import NotConnected, NotLogged, SessionFailed, aio

from .hoppers import Hopper
from .record import Record, body_of

_AT_A_TIME = 25
_PAUSE_SECONDS = 0.1


class Own:
    """
    One of msglog's own clients, which knows all servers and sends to the first that answers.

    It ends only if it is told that its log was set back; then the next one begins, with an id of
    its own, as the error says.
    """

    def __init__(self, servers: str) -> None:
        self.servers = servers
        self.records: list[Record] = []
        self.done = False

    @property
    def record(self) -> Record:
        return self.records[-1]

    def _begin(self, client) -> None:
        self.records.append(Record(client.bytes))

    def _bodies(self) -> list[bytes]:
        record = self.record
        first = record.sent + 1
        record.sent += _AT_A_TIME
        return [body_of(record.id, sequence) for sequence in range(first, first + _AT_A_TIME)]

    def _take(self, receipt) -> None:
        if receipt.sequence != self.record.acked + 1:
            self.record.wrong.append(f"receipt {receipt.sequence} behind {self.record.acked}")
        self.record.acknowledged(receipt.sequence)

    def _failed(self, error: Exception) -> None:
        if isinstance(error, SessionFailed) and "set back" in str(error):
            self.record.set_back += 1
        else:
            self.record.wrong.append(repr(error))


class Blocking(Own):
    """The client for threads, in one."""

    def run(self, ended: threading.Event) -> None:
        while not ended.is_set():
            try:
                with msglog.connect(self.servers, timeout=60) as log:
                    self._begin(log.client)
                    while not ended.is_set():
                        for receipt in log.send_all(self._bodies()):
                            self._take(receipt)
                        ended.wait(_PAUSE_SECONDS)
            except NotConnected:
                pass  # none has answered yet; try again
            except Exception as e:
                self._failed(e)
        self.done = True


class Asyncio(Own):
    """The client for asyncio."""

    async def run(self, ended: asyncio.Event) -> None:
        while not ended.is_set():
            try:
                async with aio.connect(self.servers, timeout=60) as log:
                    self._begin(log.client)
                    while not ended.is_set():
                        sending = [log.send(body) for body in self._bodies()]
                        for receipt in await asyncio.gather(*sending):
                            self._take(receipt)
                        await asyncio.sleep(_PAUSE_SECONDS)
            except NotConnected:
                pass
            except Exception as e:
                self._failed(e)
        self.done = True


class Twisted(Own):
    """The client for Twisted."""

    def __init__(self, servers: str, reactor: AsyncioSelectorReactor) -> None:
        super().__init__(servers)
        self.reactor = reactor

    async def run(self, ended: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        while not ended.is_set():
            log = msglog.MessageLogClient(self.reactor, self.servers)
            log.startService()
            assert log.client is not None
            self._begin(log.client)
            try:
                while not ended.is_set():
                    sent = [log.send(body).asFuture(loop) for body in self._bodies()]
                    for receipt in await asyncio.gather(*sent):
                        self._take(receipt)
                    await asyncio.sleep(_PAUSE_SECONDS)
            except NotLogged as e:
                self._failed(e)
            await log.stopService().asFuture(loop)
        self.done = True


class Load:
    """
    Hoppers and own clients, in threads of their own, while C{with} lasts.

    @param addresses: of the servers, each a host and a port.
    @param hoppers: how many L{Hopper}s.
    @param own: how many of msglog's own clients, of each kind in turn.
    """

    def __init__(self, addresses: list[tuple[str, int]], hoppers: int, own: int, seed: int) -> None:
        self.hoppers = [Hopper(addresses, seed + n) for n in range(hoppers)]
        self._loop = asyncio.new_event_loop()
        self._reactor = AsyncioSelectorReactor(self._loop)
        servers = [f"{host}:{port}" for host, port in addresses]
        self.own: list[Blocking | Asyncio | Twisted] = []
        for n in range(own):
            at = n % len(servers)
            order = ",".join(servers[at:] + servers[:at])
            kinds = (
                lambda order=order: Blocking(order),
                lambda order=order: Asyncio(order),
                lambda order=order: Twisted(order, self._reactor),
            )
            self.own.append(kinds[n % len(kinds)]())
        self._ended = asyncio.Event()
        self._ended_threads = threading.Event()
        self._threads = [
            threading.Thread(target=own.run, args=(self._ended_threads,), daemon=True)
            for own in self.own
            if isinstance(own, Blocking)
        ]
        self._threads.append(threading.Thread(target=self._run, daemon=True))
        self.failure: BaseException | None = None

    def _run(self) -> None:
        self._working = self._loop.create_task(self._work())
        self._reactor.run(installSignalHandlers=False)

    async def _work(self) -> None:
        tasks = [*self.hoppers, *(own for own in self.own if not isinstance(own, Blocking))]
        try:
            await asyncio.gather(*(one.run(self._ended) for one in tasks))
        except BaseException as e:  # a defect of this program
            self.failure = e
        finally:
            self._reactor.stop()

    def start(self) -> None:
        """Begin to send."""
        for thread in self._threads:
            thread.start()

    def finish(self, seconds: float) -> bool:
        """Send no more, and wait for all receipts; whether they came in time."""
        self._ended_threads.set()
        self._loop.call_soon_threadsafe(self._ended.set)
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0))
        return not any(thread.is_alive() for thread in self._threads)

    def records(self) -> Iterator[Record]:
        """Of all client ids that were ever used."""
        for client in (*self.hoppers, *self.own):
            yield from client.records

    def sending(self) -> list[Record]:
        """Of those that are used now."""
        return [c.record for c in (*self.hoppers, *self.own) if c.records]

    @property
    def acked(self) -> int:
        """How many messages were acknowledged."""
        return sum(record.acked for record in self.records())

    def worst_wait(self) -> float:
        """
        The longest time that a client was without progress since this was asked last, seconds.

        One that waits still counts with what it has waited.
        """
        now = time.monotonic()
        waits = []
        for record in self.sending():
            waits.append(max(record.longest, now - record.since))
            record.longest = 0.0
        return max(waits, default=0.0)
