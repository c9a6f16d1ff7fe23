"""A question to NATS that is asked once, and waited for."""

from __future__ import annotations

import asyncio

from nats import errors
from twisted.trial.unittest import SynchronousTestCase

from msglog import _nats_admin
from msglog._jetstream import Reply
from msglog._nats_access import parse_nats


class AskOnceTest(SynchronousTestCase):
    def ask(self, *complaints: str) -> Reply:
        """Of servers that complain, and go on not answering."""

        async def request(access, subject, payload, told: list[str]) -> Reply:
            told += complaints
            await asyncio.sleep(60)
            raise AssertionError("it was waited for")

        self.patch(_nats_admin, "_request", request)
        return _nats_admin.ask_once(parse_nats("nats://a"), "subject", b"", 0.01)

    def test_silence(self) -> None:
        self.assertEqual(self.ask().trouble, "no answer within 0.01 s")

    def test_complaint(self) -> None:
        """Who is let in nowhere is told so, however long all attempts would take."""
        self.assertEqual(self.ask("Connection refused", "not let in").trouble, "not let in")

    def test_words_before_an_end(self) -> None:
        """What a server said is not forgotten for the connection's end that followed."""

        class Refused:
            is_connected = False

            def __init__(self, access) -> None:
                pass

            async def connect(self, *, error_cb, **options) -> None:
                await error_cb(ConnectionRefusedError("of another server"))
                await error_cb(errors.Error("nats: 'Authorization Violation'"))
                await error_cb(ConnectionResetError("reset"))
                raise errors.NoServersError

        self.patch(_nats_admin, "NatsClient", Refused)
        reply = _nats_admin.ask_once(parse_nats("nats://a"), "subject", b"", 5)
        self.assertEqual(reply.trouble, "'Authorization Violation'")
