"""Options from the environment, and the help in groups."""

from __future__ import annotations

import os
import re
from pathlib import Path

from twisted.python.usage import UsageError
from twisted.trial.unittest import SynchronousTestCase

from msglog import tap
from msglog._environment import variable_of
from msglog._limits import limits_table

SOURCE = Path(tap.__file__).parent


class Case(SynchronousTestCase):
    def parse(self, *words: str, **variables: str) -> tap.Options:
        kept = {n: v for n, v in os.environ.items() if not n.startswith("MSGLOG_")}
        self.patch(os, "environ", kept | {f"MSGLOG_{n}": v for n, v in variables.items()})
        options = tap.Options()
        options.parseOptions(list(words))
        return options

    def refused(self, *words: str, **variables: str) -> str:
        return str(self.assertRaises(UsageError, self.parse, *words, **variables))


class EnvironmentTest(Case):
    def test_every_limit(self) -> None:
        for name, default, *_ in limits_table():
            value = type(default)(default + 1)
            options = self.parse(**{name.upper(): str(value)})
            self.assertEqual(getattr(options["limits"], name), value)

    def test_the_command_line_comes_first(self) -> None:
        options = self.parse("--log", "a", LOG="b", SYNC="5", LISTEN="tcp:1 tcp:2")
        self.assertEqual((options["log"], options["sync-seconds"]), ("a", 5))
        self.assertEqual(options["listen"], ["tcp:1", "tcp:2"])
        options = self.parse("--listen", "tcp:3", LISTEN="tcp:1 tcp:2")
        self.assertEqual(options["listen"], ["tcp:3"])
        options = self.parse("--lo=a", LOG="b")  # abbreviated, as getopt lets one
        self.assertEqual(options["log"], "a")

    def test_empty_is_unset(self) -> None:
        """As a line of an EnvironmentFile that somebody left there."""
        self.assertEqual(self.parse(LOG="")["log"], "messages.jsonl")

    def test_flags(self) -> None:
        for text, value in [("yes", 1), ("True", 1), ("1", 1), ("no", 0), ("0", 0)]:
            self.assertEqual(self.parse(ALLOW_PLAIN=text)["allow-plain"], value)
        self.assertIn("MSGLOG_ALLOW_PLAIN perhaps", self.refused(ALLOW_PLAIN="perhaps"))

    def test_errors_name_the_variable(self) -> None:
        """It is what the operator has to mend."""
        for name, value in [
            ("WINDOW", "0"),
            ("WINDOW", "many"),
            ("SYNC", "never"),
            ("LISTEN", "nonsense:1"),
            ("ROTATE", "sometimes"),
            ("ROTATE_KEEP", "-1"),
        ]:
            said = self.refused(**{name: value})
            self.assertIn(f"MSGLOG_{name} {value}", said)
            self.assertNotIn(f"--{name.lower()}", said)
        # And an option is an option, whatever the environment says of others.
        self.assertIn("--window 0", self.refused("--window", "0", SYNC="1"))

    def test_unknown(self) -> None:
        """A typing error does not leave a limit where it was, unseen; what is none is no error."""
        for wrong, meant in [
            ("MAX_CONECTIONS", "MAX_CONNECTIONS"),
            ("LISTENS", "LISTEN"),
            ("ROTATION_KEEP", "ROTATE_KEEP"),
            ("IDLE_SECOND", "IDLE_SECONDS"),
        ]:
            said = self.refused(**{wrong: "5"})
            self.assertIn(f"MSGLOG_{wrong}: ", said)
            self.assertIn(f"MSGLOG_{meant}?", said)
        self.parse(IMAGE="msglog:1", VERSION="1", HELP="1")

    def test_variables_of_other_programs(self) -> None:
        """What the msglog command reads does not stop a server."""
        read = {
            name
            for path in SOURCE.rglob("*.py")
            for name in re.findall(r'envvar="(\w+)"', path.read_text())
        }
        self.assertIn("MSGLOG_SERVER", read)
        self.parse(**{name.removeprefix("MSGLOG_"): "x" for name in read})

    def test_help_in_any_environment(self) -> None:
        self.assertRaises(SystemExit, self.parse, "--version", LISTENS="1")

    def test_names(self) -> None:
        self.assertEqual(variable_of("max-connections"), "MSGLOG_MAX_CONNECTIONS")


class RotationOptions(Case):
    def test_rule(self) -> None:
        rule = self.parse("--rotate", "1GiB,daily", "--rotate-keep", "7")["rotation"]
        self.assertEqual((rule.max_bytes, rule.period, rule.keep), (1 << 30, "daily", 7))

    def test_nonsense(self) -> None:
        for words, named in [
            (("--rotate", "1GB"), "--rotate 1GB"),
            (("--rotate", "daily", "--rotate-keep", "few"), "--rotate-keep few"),
            (("--rotate-keep", "3"), "--rotate-keep 3"),
        ]:
            self.assertIn(named, self.refused(*words))


class HelpTest(SynchronousTestCase):
    def test_every_option_has_a_group(self) -> None:
        """And each group fits on a screen."""
        options = tap.Options()
        text = options.getUsage(80)
        self.assertNotIn("Others:", text)
        for option in options.longOpt:
            self.assertEqual(len(re.findall(rf"^ +--{option}(?!\S)", text, re.M)), 1, option)
        for group in text.split("\n\n"):
            self.assertLessEqual(len(group.splitlines()), 24)
        self.assertTrue(all(len(line) <= 80 for line in text.splitlines()))

    def test_an_option_without_a_group_is_shown(self) -> None:
        self.patch(tap.Options, "groups", tap.Options.groups[1:])
        self.assertRegex(tap.Options().getUsage(80), r"Others:\n(.*\n)* +--listen=")
