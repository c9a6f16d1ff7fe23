"""The plugin's options."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

from twisted.application.service import IServiceMaker
from twisted.plugin import getPlugins
from twisted.python.usage import UsageError
from twisted.trial.unittest import SynchronousTestCase

import msglog
from msglog import tap
from msglog._limits import limits_table

MANUAL = Path(__file__).parent.parent / "tap.md"


def parse(*words: str) -> tap.Options:
    options = tap.Options()
    options.parseOptions(list(words))
    return options


class OptionsTest(SynchronousTestCase):
    def test_defaults(self) -> None:
        """Without options it listens on loopback only, waits for the disk, and has the limits."""
        options = parse()
        self.assertEqual([n for n, _ in options["endpoints"]], ["tcp:7514:interface=127.0.0.1"])
        self.assertEqual(options["log"], "messages.jsonl")
        self.assertEqual(options["sync-seconds"], 0)
        self.assertEqual(options["limits"], msglog.Limits())

    def test_every_limit_is_an_option(self) -> None:
        """Each limit can be set, in its own type."""
        for name, default, *_ in limits_table():
            value = type(default)(default + 1)
            options = parse(f"--{name.replace('_', '-')}", str(value))
            self.assertEqual(getattr(options["limits"], name), value)

    def test_listen_is_repeatable(self) -> None:
        """Every --listen counts, and none is added."""
        options = parse("--listen", "tcp:1", "--listen", "unix:/x")
        self.assertEqual([name for name, _ in options["endpoints"]], ["tcp:1", "unix:/x"])

    def test_bad_words(self) -> None:
        """What cannot be meant is a usage error that names the option."""
        for words, named in [
            (("--listen", "nonsense:1"), "--listen nonsense:1"),
            (("--listen", "tcp:port"), "--listen tcp:port"),
            (("--listen", ""), "--listen"),
            (("--sync", "never"), "--sync never"),
            (("--sync", "-1"), "--sync -1"),
            (("--sync", "nan"), "--sync nan"),
            (("--max-message-bytes", "-1"), "--max-message-bytes"),
            (("--max-message-bytes", "many"), "--max-message-bytes many: not a whole number of b"),
            (("--max-message-bytes", "inf"), "--max-message-bytes inf: not a whole number of b"),
            (("--idle-seconds", "soon"), "--idle-seconds soon: not a number of seconds"),
            (("--max-message-bytes", str(1 << 25)), "33554432: 33554432 is not between 0 and 1"),
            (("--window", "0"), "--window"),
            (("--max-commit-bytes", str(1 << 26)), "--max-commit-bytes 67108864"),
            (("--idle-seconds", "-0.1"), "--idle-seconds"),
            (("--frame-seconds", "nan"), "--frame-seconds"),
            (("--nonsense",), "nonsense"),
            (("extra",), ""),
        ]:
            error = self.assertRaises(UsageError, parse, *words)
            self.assertIn(named, str(error))

    def test_http(self) -> None:
        """Off by default; an endpoint that is none is a usage error."""
        self.assertNotIn("http-endpoint", parse())
        options = parse("--http", "tcp:0", "--http-host", "a", "--http-host", "b", "--http-bodies")
        self.assertEqual(options["http-endpoint"][0], "tcp:0")
        self.assertEqual(options["http-host"], ["a", "b"])
        error = self.assertRaises(UsageError, parse, "--http", "nonsense:1")
        self.assertIn("--http nonsense:1", str(error))

    def test_idle_options(self) -> None:
        """An option of what was not asked for is a usage error: it would do nothing, unseen."""
        for needed, options in tap.Options.parts.items():
            for option in options:
                flag = any(option == name for name, *_ in tap.Options.optFlags)
                words = [f"--{option}"] if flag else [f"--{option}", "2"]
                error = self.assertRaises(UsageError, parse, *words)
                self.assertEqual(str(error), f"--{option} does nothing without --{needed}")

    def test_version(self) -> None:
        """--version is msglog's, not Twisted's."""
        self.assertRaises(SystemExit, parse, "--version")

    def test_plugin(self) -> None:
        """Twisted finds the plugin, under one name."""
        found = [p for p in getPlugins(IServiceMaker) if p.tapname == "msglog"]
        self.assertEqual([p.module for p in found], ["msglog.tap"])

    def test_making_touches_nothing(self) -> None:
        """The service is made before twistd changes its folder and user: no file yet."""
        folder = Path(self.mktemp())
        tap.makeService(parse("--log", str(folder / "log")))
        self.assertFalse(folder.exists())


class StartTest(SynchronousTestCase):
    def test_interrupted(self) -> None:
        """Ctrl-C in the middle of a long recovery has one line, and no traceback."""
        said = io.StringIO()
        self.patch(sys, "__stderr__", said)
        self.patch(sys, "stderr", said)
        tap._excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
        self.assertEqual(said.getvalue(), "msglog: interrupted while it started\n")


class WorkersTest(SynchronousTestCase):
    def test_how_many(self) -> None:
        """None by default; a number that is none, too many, or what cannot be is a usage error."""
        self.assertEqual(parse()["workers"], 0)
        self.assertEqual(parse("--workers", "2")["workers"], 2)
        for text in ("-1", "65", "two"):
            error = self.assertRaises(UsageError, parse, "--workers", text)
            self.assertIn(f"--workers {text}: not", str(error))
        with self.assertRaisesRegex(UsageError, "several servers instead"):
            parse("--workers", "2", "--store", "nats://localhost:4222")


class ManualTest(SynchronousTestCase):
    def test_every_option_is_in_the_manual(self) -> None:
        """tap.md's table has every option with its default, and no other."""
        row = re.compile(r"^\| `--([a-z-]+)` \| (?:`([^`]*)`)? ?\|", re.M)
        rows = dict(row.findall(MANUAL.read_text()))
        expected = {
            "listen": tap.DEFAULT_LISTEN,
            "listen-tls": "",
            "http-host": "",
            **{
                name: "" if default is None else str(default)
                for name, _, default, *_ in tap.Options.optParameters
            },
            **{name: "" for name, *_ in tap.Options.optFlags},
        }
        self.assertEqual(rows, expected)

    def test_reasons(self) -> None:
        """tap.md gives each limit's unit and reason as the code has them."""
        text = MANUAL.read_text()
        for name, _, unit, _, reason in limits_table():
            (row,) = re.findall(rf"^\| `--{name.replace('_', '-')}` .*$", text, re.M)
            self.assertIn(f"| {unit} |", row)
            self.assertIn(reason, row)
