"""Where servers are, and when they are tried again."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from msglog import ClientLimits
from msglog._servers import DEFAULT_PORT, Backoff, address_text, parse_servers


class Addresses(SynchronousTestCase):
    def test_forms(self) -> None:
        """Names and addresses, with a port and without."""
        for text, host, port in (
            ("host", "host", DEFAULT_PORT),
            ("host:", "host", DEFAULT_PORT),
            ("host:1", "host", 1),
            ("127.0.0.1:65535", "127.0.0.1", 65535),
            ("[::1]:7", "::1", 7),
            ("[::1]", "::1", DEFAULT_PORT),
            ("[::1]:", "::1", DEFAULT_PORT),
            ("::1", "::1", DEFAULT_PORT),
            ("  host:1 ", "host", 1),
        ):
            with self.subTest(text=text):
                self.assertEqual(parse_servers(text), [(host, port)])

    def test_several(self) -> None:
        """With commas, as a list, and as a list of several each: in order."""
        expected = [("a", 1), ("b", DEFAULT_PORT), ("c", 3)]
        for servers in ("a:1,b,c:3", "a:1, b , c:3", ["a:1", "b", "c:3"], ["a:1,b", "c:3"]):
            self.assertEqual(parse_servers(servers), expected)

    def test_text(self) -> None:
        """What is shown of an address can be given again."""
        for address in (("a", 1), ("127.0.0.1", 2), ("::1", 3)):
            self.assertEqual(parse_servers(address_text(address)), [address])
        self.assertEqual(address_text(("::1", 3)), "[::1]:3")

    def test_none(self) -> None:
        """What is no address is named; nothing is no address either."""
        for text in (
            *("", "a,", ",a", ":1", "a:0", "a:65536", "a:x", "a:-1", "a:1.5", "[::1", "[::1]7"),
            *("[]:1", "a..b:1", "a" * 64 + ":1"),
        ):
            with self.subTest(text=text):
                error = self.assertRaises(ValueError, parse_servers, text)
                self.assertIn("name it as HOST:PORT", str(error))
        error = self.assertRaises(ValueError, parse_servers, [])
        self.assertIn("no server is named", str(error))


class Waits(SynchronousTestCase):
    def test_longer_each_time(self) -> None:
        """Doubled each time, up to the limit, whatever the number of attempts."""
        limits = ClientLimits(first_backoff_seconds=0.5, max_backoff_seconds=3)
        backoff = Backoff(limits, lambda: 1.0)
        self.assertEqual([backoff.failed() for _ in range(5)], [0.5, 1, 2, 3, 3])
        backoff._attempt = 10_000
        self.assertEqual(backoff.failed(), 3)

    def test_progress(self) -> None:
        """After progress the next failure is the first again."""
        backoff = Backoff(ClientLimits(first_backoff_seconds=0.5), lambda: 1.0)
        backoff.failed()
        backoff.failed()
        backoff.succeeded()
        self.assertEqual(backoff.failed(), 0.5)

    def test_not_as_long_as_everybody_else(self) -> None:
        """Between half of it and all of it, not always the same."""
        limits = ClientLimits(first_backoff_seconds=1, max_backoff_seconds=1)
        backoff = Backoff(limits)
        waits = [backoff.failed() for _ in range(100)]
        self.assertTrue(all(0.5 <= wait <= 1 for wait in waits))
        self.assertGreater(len(set(waits)), 50)
