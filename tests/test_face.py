"""The names that applications may import; to change them is to break somebody."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import msglog
from msglog import aio

PUBLIC = """
    Batch BlockingClient ClientLimits FileStore IStore Journal LedgerDamaged Limits LogDamaged
    LogLocked MessageLogClient MessageLogFactory MessageLogService MsglogError NackCode
    NotConnected NotLogged QueueFull Receipt Record RecordError Refusal RotationRule SessionFailed
    SpoolError StartError StoreFailed TLS TLSError Unanswered Verdict __version__ connect
    parse_line
"""


class FaceTest(SynchronousTestCase):
    def test_public_names(self) -> None:
        """Each is there, and listed in C{dir}."""
        self.assertEqual(sorted(msglog.__all__), sorted(PUBLIC.split()))
        for name in msglog.__all__:
            self.assertTrue(hasattr(msglog, name), name)
            self.assertIn(name, dir(msglog))
        self.assertEqual(aio.__all__, ["AsyncClient", "connect"])

    def test_no_other_names(self) -> None:
        """What is not there says so as any module does."""
        with self.assertRaises(AttributeError) as caught:
            msglog.Broker  # noqa: B018
        self.assertIn("Broker", str(caught.exception))

    def test_type_checkers_see_the_same(self) -> None:
        """What is imported for type checkers is what is found when it is used."""
        tree = ast.parse(Path(msglog.__file__).read_text())
        seen = {
            (node.module, alias.name)
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.level == 1
            for alias in node.names
        }
        self.assertEqual(seen, {(home, name) for name, home in msglog._HOME.items()})

    def test_import_is_cheap(self) -> None:
        """To import msglog imports no Twisted, and to use a client imports no reactor."""
        script = (
            "import sys, msglog; assert 'twisted' not in sys.modules; msglog.connect;"
            "import msglog.aio; assert 'twisted.internet.reactor' not in sys.modules"
        )
        subprocess.run([sys.executable, "-c", script], check=True, timeout=30)
