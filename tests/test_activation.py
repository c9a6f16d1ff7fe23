"""Sockets that were passed to the process: which, and what is said when there are none."""

from __future__ import annotations

import os
import socket

from twisted.internet import endpoints, reactor
from twisted.python.systemd import ListenFDs
from twisted.trial.unittest import SynchronousTestCase

from msglog._activation import endpoint_of


class ActivationTest(SynchronousTestCase):
    def passed(self, **sockets: int) -> None:
        """As if these were passed by these names."""
        self.patch(
            endpoints._SystemdParser,
            "_sddaemon",
            ListenFDs(list(sockets.values()), list(sockets)),
        )
        names = {"LISTEN_FDNAMES": ":".join(sockets)} if sockets else {}
        kept = {n: v for n, v in os.environ.items() if not n.startswith("LISTEN_")}
        self.patch(os, "environ", kept | names)

    def test_other_endpoints(self) -> None:
        self.assertIsInstance(endpoint_of(reactor, "tcp:0"), endpoints.TCP4ServerEndpoint)

    def test_by_name_and_index(self) -> None:
        self.passed(one=101, two=102)
        for words, fd in [("name=two", 102), ("index=0", 101)]:
            endpoint = endpoint_of(reactor, f"systemd:domain=INET6:{words}")
            self.assertEqual((endpoint.fileno, endpoint.addressFamily), (fd, socket.AF_INET6))

    def test_unknown_name(self) -> None:
        """The error says which there are."""
        self.passed(one=101)
        for words in ("name=two", "index=1"):
            error = self.assertRaises(
                ValueError, endpoint_of, reactor, f"systemd:domain=INET:{words}"
            )
            self.assertIn("'one'", str(error))

    def test_nothing_passed(self) -> None:
        """The error says what would pass one."""
        self.passed()
        for words in ("name=two", "index=0"):
            error = self.assertRaises(
                ValueError, endpoint_of, reactor, f"systemd:domain=INET:{words}"
            )
            self.assertIn("LISTEN_FDS", str(error))
            self.assertIn("--fdname", str(error))
