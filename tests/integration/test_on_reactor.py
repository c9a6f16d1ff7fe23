"""The embedded store on a real reactor, with its real thread."""

from __future__ import annotations

import contextlib
import uuid

import pytest
import pytest_twisted
import wire
from twisted.internet import reactor
from twisted.internet.defer import gatherResults
from twisted.internet.threads import deferToThread

from msglog import FileStore, Journal, MessageLogFactory, NotLogged
from msglog._protocol import MessageLogProtocol
from msglog.testing import MemoryStore


@pytest_twisted.ensureDeferred
async def test_journal_on_a_real_store(tmp_path) -> None:
    """Messages logged from the reactor's thread are in the file when their receipts fire."""
    store = FileStore(reactor, tmp_path / "log")
    store.startService()
    client = uuid.uuid4()
    journal = Journal(store, client)
    bodies = [b"message %d" % n for n in range(2000)]
    first = await journal.log(bodies[0])
    assert wire.read_logs(tmp_path / "log") == {client.bytes: bodies[:1]}
    receipts = await gatherResults([journal.log(body) for body in bodies[1:]])
    assert [r.sequence for r in (first, *receipts)] == list(range(1, 2001))
    last = journal.log(b"last")
    await store.stopService()
    assert (await last).sequence == 2001
    assert wire.read_logs(tmp_path / "log") == {client.bytes: [*bodies, b"last"]}
    with pytest.raises(NotLogged) as caught:
        await journal.log(b"too late")
    assert caught.value.retry


@pytest_twisted.ensureDeferred
async def test_stop_while_busy(tmp_path) -> None:
    """A store can be stopped and started again; what was appended before the stop is kept."""
    store = FileStore(reactor, tmp_path / "log")
    client = uuid.uuid4()
    for turn in range(3):
        store.startService()
        journal = Journal(store, client)
        receipts = [journal.log(b"%d" % n) for n in range(10)]
        await receipts[0]
        await store.stopService()
        await gatherResults(receipts)
        assert store.failed is None
        assert len(wire.read_logs(tmp_path / "log")[client.bytes]) == 10 * (turn + 1)


@pytest_twisted.ensureDeferred
async def test_one_broken_connection(tmp_path, monkeypatch) -> None:
    """A defect that one connection meets costs the others nothing, and a stop leaves nothing."""
    before = set(map(id, reactor.getReaders()))
    store = MemoryStore()
    factory = MessageLogFactory(reactor, store)
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    take = MessageLogProtocol.dataReceived

    def take_or_break(self: MessageLogProtocol, data: bytes) -> None:
        if b"break" in data:
            raise ZeroDivisionError
        take(self, data)

    monkeypatch.setattr(MessageLogProtocol, "dataReceived", take_or_break)
    a, b = uuid.uuid4().bytes, uuid.uuid4().bytes

    def talk() -> None:
        with (
            wire.Connection(port.getHost().port) as good,
            wire.Connection(port.getHost().port) as bad,
        ):
            good.log(a, 1, b"before")
            bad.send(wire.message(b, 1, b"break"))
            with contextlib.suppress(ConnectionResetError):
                assert bad.receive() is None
            good.log(a, 2, b"after")

    await deferToThread(talk)
    await port.stopListening()
    await factory.stop()
    assert [body for _, _, body in store.messages] == [b"before", b"after"]
    assert set(map(id, reactor.getReaders())) <= before
