"""C{msglog cat} and C{tail}: what is shown of logs, and how."""

from __future__ import annotations

import gzip
from pathlib import Path

from click.testing import CliRunner, Result
from twisted.trial.unittest import SynchronousTestCase

from msglog._nats_access import parse_nats
from msglog._records import client_text
from msglog.cli import _cat, _remarks, _tail
from msglog.cli._nats_options import complete_access
from tests.logs import TEN, A, B, C, commit, minutes

COMMANDS = {"cat": _cat.command, "tail": _tail.command}


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.log = self.write("log", minutes(60))

    def write(self, name: str, data: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(data)
        return path

    def run_it(self, name: str, *args: object, status: int = 0, **more: object) -> Result:
        result = CliRunner().invoke(
            COMMANDS[name],
            [str(arg) for arg in args],
            standalone_mode=False,
            **more,  # type: ignore[arg-type]
        )
        if result.exception is None:
            self.assertEqual(result.return_value, status, result.output)
        else:
            self.assertEqual(getattr(result.exception, "exit_code", None), status, result)
        return result

    def bodies(self, name: str, *args: object, status: int = 0) -> list[str]:
        """The last word of each line."""
        result = self.run_it(name, *args, status=status)
        return [line.split(" ")[-1] for line in result.stdout.splitlines()]

    def numbers(self, first: int, last: int) -> list[str]:
        return [str(n) for n in range(first, last + 1)]


class Shown(Case):
    def test_line(self) -> None:
        """Time, the end of the client's id, sequence, message."""
        self.write("log", commit(TEN, (A, 7, [b"hello there"])))
        result = self.run_it("cat", self.log)
        self.assertEqual(result.stdout, "2026-11-24T10:00:00.000000Z aaaaaaaaaaaa 7 hello there\n")
        full = self.run_it("cat", "--full-ids", self.log)
        self.assertIn(f" {client_text(A)} 7 ", full.stdout)

    def test_harmless(self) -> None:
        """No message steers the terminal, turns the text around, or breaks a line."""
        body = "\x1b[2J\r\n\t\x07\x9b31m\u202etxt\u2028é\\".encode() + b"\xff\xfe"
        self.write("log", commit(TEN, (A, 1, [body])))
        result = self.run_it("cat", self.log)
        self.assertTrue(
            result.stdout.endswith(
                "1 \\x1b[2J\\r\\n\\t\\x07\\x9b31m\\u202etxt\\u2028é\\\\xff\\xfe\n"
            ),
            result.stdout,
        )

    def test_colours(self) -> None:
        """Escapes stand out from what was written so; there are none of ours in a pipe."""
        self.write("log", commit(TEN, (A, 1, [b"a\x1b[31mb"])))
        self.assertNotIn("\x1b", self.run_it("cat", self.log).stdout)
        coloured = self.run_it("cat", "--color", "always", self.log, color=True).stdout
        self.assertIn("a\x1b[7m\\x1b\x1b[0m[31mb", coloured)

    def test_other_encodings(self) -> None:
        """A terminal that has no é gets an escape."""
        self.write("log", commit(TEN, (A, 1, ["é".encode()])))
        result = CliRunner(charset="ascii").invoke(_cat.command, [str(self.log)])
        self.assertTrue(result.stdout.endswith("1 \\xe9\n"), result)

    def test_json(self) -> None:
        """The log's own lines, to the byte."""
        result = self.run_it("cat", "--json", self.log)
        self.assertEqual(result.stdout_bytes, self.log.read_bytes())

    def test_raw(self) -> None:
        """Bodies, to the byte."""
        self.write("log", commit(TEN, (A, 1, [b"\x00\xff\n", b"", "é".encode()])))
        self.assertEqual(
            self.run_it("cat", "--raw", self.log).stdout_bytes, b"\x00\xff\n\n\n\xc3\xa9\n"
        )
        self.assertEqual(
            self.run_it("cat", "-r0", self.log).stdout_bytes, b"\x00\xff\n\0\0\xc3\xa9\0"
        )

    def test_wrong_together(self) -> None:
        """Options that exclude each other are a wrong command line."""
        for args in (["--json", "--raw"], ["--null"]):
            self.run_it("cat", *args, self.log, status=2)
        self.run_it("tail", "-f", "--until", "10:00", self.log, status=2)

    def test_who(self) -> None:
        """A secret from a file is who reads a stream; two of them, or one for a file, are wrong."""
        secret = self.write("secret", b"s3cret\n")
        files = {"credentials": None, "password_file": None, "token_file": None}
        tls = {"tls_ca": None, "tls_certificate": None, "tls_key": None}

        def login(url: str, **named: Path) -> dict[str, str]:
            return complete_access(parse_nats(url), **{**files, **named}, **tls).login("")

        self.assertEqual(
            login("nats://me@n1", password_file=secret), {"user": "me", "pass": "s3cret"}
        )
        self.assertEqual(login("nats://n1", token_file=secret), {"auth_token": "s3cret"})
        for url, *options in (
            ("nats://n1", "--password-file"),
            ("nats://me:s3cret@n1", "--password-file"),
            ("nats://me:s3cret@n1", "--token-file"),
            ("nats://me:s3cret@n1", "--credentials"),
            ("nats://n1", "--token-file", secret, "--credentials"),
            (self.log, "--token-file"),
        ):
            result = self.run_it("tail", url, *options, secret, status=2)
            self.assertNotIn("s3cret", str(result.exception))
        self.run_it("tail", "--api", "logs.>", "nats://n1", status=2)
        self.run_it("tail", "--api", "logs.api", self.log, status=2)


class Selected(Case):
    def test_times(self) -> None:
        """From a time on, and before a time: together they overlap nowhere."""
        since = ["--since", "2026-11-24T10:10"]
        until = ["--until", "2026-11-24T10:20:00Z"]
        self.assertEqual(self.bodies("cat", *since, self.log), self.numbers(11, 60))
        self.assertEqual(self.bodies("cat", *until, self.log), self.numbers(1, 20))
        self.assertEqual(self.bodies("cat", *since, *until, self.log), self.numbers(11, 20))
        packed = self.write("log.gz", gzip.compress(self.log.read_bytes()))
        self.assertEqual(self.bodies("cat", *since, *until, packed), self.numbers(11, 20))

    def test_nothing_found(self) -> None:
        """What was understood is said when nothing is found."""
        result = self.run_it("cat", "--since", "2026-11-25T01:00+01:00", self.log)
        self.assertEqual(result.stdout, "")
        self.assertEqual(result.stderr, "msglog: nothing found from 2026-11-25T00:00:00Z on\n")

    def test_clients(self) -> None:
        """By the id, its beginning, or the end that is shown; several."""
        self.write("log", commit(TEN, (A, 1, [b"a"]), (B, 1, [b"b"]), (C, 1, [b"c"])))
        for part in (client_text(A), A.hex(), A.hex().upper(), "aaaa", "a" * 12, "aaaaaaaa-aa"):
            self.assertEqual(self.bodies("cat", "--client", part, self.log), ["a"], part)
        self.assertEqual(self.bodies("cat", "-c", "aaaa", "-c", "cccc", self.log), ["a", "c"])
        for part in ("aaa", "nobody", ""):
            self.run_it("cat", "--client", part, self.log, status=2)

    def test_text(self) -> None:
        """A text as it is written, not a pattern, in what was sent."""
        self.write("log", commit(TEN, (A, 1, [b"a.c", b"abc", "é\n".encode(), b"\xff.c"])))
        self.assertEqual(self.bodies("cat", "--grep", "a.c", self.log), ["a.c"])
        self.assertEqual(self.bodies("cat", "--grep", ".c", self.log), ["a.c", "\\xff.c"])
        self.assertEqual(self.bodies("cat", "--grep", "é\n", self.log), ["é\\n"])

    def test_written_otherwise(self) -> None:
        """Lines with other white space are selected by what they say."""
        other = self.log.read_bytes().replace(b'","', b'", "')
        self.write("log", other)
        since = ["--since", "2026-11-24T10:58", "--client", client_text(A)]
        self.assertEqual(self.bodies("cat", *since, self.log), ["59", "60"])
        self.assertEqual(self.bodies("cat", "--client", "bbbb", self.log), [])


class Several(Case):
    def setUp(self) -> None:
        super().setUp()
        self.log = self.write("log", minutes(10, first=21))
        self.write("log.1", minutes(10, first=11))
        self.write("log.2.gz", gzip.compress(minutes(10)))

    def test_rotated(self) -> None:
        """What was rotated away comes first."""
        self.assertEqual(self.bodies("cat", self.log), self.numbers(21, 30))
        self.assertEqual(self.bodies("cat", "--rotated", self.log), self.numbers(1, 30))

    def test_in_the_order_given(self) -> None:
        one, two = self.folder / "log.1", self.folder / "log.2.gz"
        expected = self.numbers(11, 20) + self.numbers(1, 10)
        self.assertEqual(self.bodies("cat", one, two), expected)
        times = ["--since", "2026-11-24T10:05", "--until", "2026-11-24T10:12"]
        self.assertEqual(self.bodies("cat", *times, one, two), ["11", "12", *self.numbers(6, 10)])

    def test_files_that_cannot_hold_it(self) -> None:
        """A file whose successor begins before --since is not read, not even if it is damaged."""
        (self.folder / "log.1").unlink()
        self.write("log.1.gz", gzip.compress(minutes(1, first=11) + b"damage\n"))
        since = ["--since", "2026-11-24T10:25"]
        self.assertEqual(self.bodies("cat", "-a", *since, self.log), self.numbers(26, 30))

    def test_tail_reaches_back(self) -> None:
        """As many records as are asked for, from as many files as that takes."""
        for count in (0, 1, 9, 10, 11, 20, 25, 30, 99):
            expected = self.numbers(max(1, 31 - count), 30)
            self.assertEqual(self.bodies("tail", "-n", count, self.log), expected, count)
        self.assertEqual(self.bodies("tail", self.log), self.numbers(21, 30))

    def test_tail_counts_what_is_selected(self) -> None:
        for count in (1, 2, 5, 9):
            found = self.bodies("tail", "-n", count, "--grep", "3", self.log)
            self.assertEqual(found, ["3", "13", "23", "30"][-count:])

    def test_tail_since(self) -> None:
        """All of it, or the last of it."""
        for minute in (0, 5, 10, 12, 19, 20, 25):
            since = ["--since", f"2026-11-24T10:{minute:02}"]
            expected = self.numbers(minute + 1, 30)
            self.assertEqual(self.bodies("tail", *since, self.log), expected)
            self.assertEqual(self.bodies("tail", "-n", 12, *since, self.log), expected[-12:])

    def test_tail_until(self) -> None:
        until = ["--until", "2026-11-24T10:15"]
        self.assertEqual(self.bodies("tail", "-n", 7, *until, self.log), self.numbers(9, 15))

    def test_tail_of_compressed(self) -> None:
        path = self.folder / "log.2.gz"
        self.assertEqual(self.bodies("tail", "-n", 3, path), ["8", "9", "10"])
        result = self.run_it("tail", "-f", path, status=1)
        self.assertIn("nothing more comes", str(result.exception))

    def test_tail_between_files(self) -> None:
        """Just after a rotation, when the new file is not there yet, or is empty."""
        self.log.unlink()
        self.assertEqual(self.bodies("tail", "-n", 2, self.log), ["19", "20"])
        self.log.touch()
        self.assertEqual(self.bodies("tail", "-n", 2, self.log), ["19", "20"])


class Damaged(Case):
    def test_left_out(self) -> None:
        """Damage is said with its offset, the rest is shown, and the status tells."""
        data = minutes(5)
        at = data.index(b'{"time', data.index(b'"seq":3') - 100)
        log = self.write("log", data.replace(b'"message":"3"', b'"message":"4"'))
        for name in COMMANDS:
            result = self.run_it(name, log, status=1)
            self.assertEqual(len(result.stdout.splitlines()), 4)
            self.assertEqual(
                result.stderr,
                f"msglog: {log} is damaged at byte {at} (the checksum is not that of the "
                f"content); that line is left out\n",
            )

    def test_no_log_at_all(self) -> None:
        """A file that is no log is not a thousand remarks."""
        self.patch(_remarks, "_MOST", 3)
        result = self.run_it("cat", self.write("log", b"x\n" * 1000), status=1)
        said = result.stderr.splitlines()
        self.assertEqual(len(said), 5)
        self.assertIn("1,000; msglog verify", said[-1])

    def test_no_end(self) -> None:
        """Half a line at the end is said, not shown, and no damage."""
        log = self.write("log", minutes(3)[:-8])
        for name in COMMANDS:
            result = self.run_it(name, log)
            self.assertEqual(len(result.stdout.splitlines()), 2)
            self.assertIn("in the middle of a line", result.stderr)

    def test_cut_compressed(self) -> None:
        """What is before the cut is shown, then the next file."""
        cut = self.write("cut.gz", gzip.compress(minutes(9000))[:-20])
        result = self.run_it("cat", cut, self.log, status=1)
        self.assertGreater(len(result.stdout.splitlines()), 5000)
        self.assertTrue(result.stdout.splitlines()[-1].endswith(" 60"))
        self.assertIn("cannot read", result.stderr)

    def test_not_there(self) -> None:
        """No log of that name: a line that says so."""
        for name in COMMANDS:
            result = self.run_it(name, self.folder / "none", status=1)
            self.assertIn("cannot open", str(result.exception))
