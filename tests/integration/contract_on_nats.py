"""
The contract of a store against a real nats-server; run by trial, so that it can be any reactor's.

C{MSGLOG_TEST_NATS} says where the server is.
"""

from __future__ import annotations

import asyncio
import json
import os
import time

import nats
from twisted.internet import reactor
from twisted.trial.unittest import SynchronousTestCase

from msglog import Limits, parse_line
from msglog._nats_access import parse_nats
from msglog._nats_store import NatsStore
from msglog.testing import StoreContract

URL = os.environ["MSGLOG_TEST_NATS"]


def turn(done, what: str, seconds: float = 20.0) -> None:
    """Let the reactor turn until something is so."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        reactor.iterate(0.01)


def talk(what):
    async def talking():
        connection = await nats.connect(URL)
        try:
            return await what(connection.jetstream())
        finally:
            await connection.close()

    return asyncio.run(talking())


class NatsStoreContract(StoreContract, SynchronousTestCase):
    """A store on a real stream keeps the promises."""

    def make_store(self) -> NatsStore:
        self.stream = f"TEST{time.time_ns()}"
        from msglog._stream_settings import stream_config

        async def create(stream):
            config = stream_config(self.stream, 1)
            answer = await stream._nc.request(
                f"$JS.API.STREAM.CREATE.{self.stream}", json.dumps(config).encode(), timeout=5
            )
            assert b'"error"' not in answer.data, answer.data

        talk(create)
        store = NatsStore(reactor, parse_nats(URL), self.stream, Limits())
        store.startService()
        self.addCleanup(self.close, store)
        return store

    def close(self, store: NatsStore) -> None:
        stopped = []
        store.stopService().addCallback(stopped.append)
        turn(lambda: stopped, "the end")

        async def delete(stream):
            await stream.delete_stream(self.stream)

        talk(delete)

    def settle(self, store: NatsStore) -> None:
        turn(lambda: store.idle, "a verdict")

    def stored(self, store: NatsStore) -> list:
        async def read(stream):
            found = []
            last = (await stream.stream_info(self.stream)).state.last_seq
            for sequence in range(1, last + 1):
                message = await stream.get_msg(self.stream, sequence)
                found += map(parse_line, message.data.splitlines())
            return [(record.client, record.sequence, record.body) for record in found]

        return talk(read)

    def fill_up(self, store: NatsStore, full: bool) -> None:
        async def bound(stream):
            info = await stream.stream_info(self.stream)
            limit = info.state.bytes if full else -1
            await stream.update_stream(info.config.evolve(max_bytes=limit))

        talk(bound)
