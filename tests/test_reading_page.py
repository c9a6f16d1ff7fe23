"""docs/reading.md: its examples show what the command prints."""

from __future__ import annotations

import gzip
import os
import re
import shlex
from pathlib import Path

from click.testing import CliRunner
from twisted.trial.unittest import SynchronousTestCase

from msglog.cli import _msglog
from tests.logs import sample

PAGE = Path(__file__).parent.parent / "docs" / "reading.md"


class Page(SynchronousTestCase):
    def setUp(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        self.addCleanup(os.chdir, Path.cwd())
        os.chdir(folder)
        oldest, older, log = sample()
        Path("messages.jsonl.2.gz").write_bytes(gzip.compress(oldest))
        Path("messages.jsonl.1").write_bytes(older)
        Path("messages.jsonl").write_bytes(log)
        # A copy in which a letter was changed and a line is missing.
        lines = log.splitlines(keepends=True)
        lines[3] = lines[3].replace(b"payment", b"Payment")
        del lines[8]
        Path("copy.jsonl").write_bytes(b"".join(lines))
        self.patch(os, "environ", {**os.environ, "COLUMNS": "80"})

    def test_examples(self) -> None:
        """Each command of the page, and all that it prints but the seconds it took."""
        blocks = re.findall(r"```console\n(.*?)```", PAGE.read_text(), re.DOTALL)
        commands = [part for block in blocks for part in re.split(r"^\$ ", block, flags=re.M)[1:]]
        self.assertGreater(len(commands), 6)
        for part in commands:
            command, _, expected = part.partition("\n")
            name, *arguments = shlex.split(command)
            self.assertEqual(name, "msglog")
            result = CliRunner().invoke(_msglog, arguments, standalone_mode=False)
            self.assertEqual(result.exception, None)
            self.assertEqual(_timeless(result.output), _timeless(expected), command)


def _timeless(text: str) -> str:
    # A slow machine has a rate to say, too.
    return re.sub(r"\d+\.\d s(, [\d,]+ records a second)?$", "0.0 s", text, flags=re.MULTILINE)
