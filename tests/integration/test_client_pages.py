"""What the clients' page shows works as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import wire
from conftest import Server

PAGE = Path(__file__).parents[2] / "docs" / "clients.md"
EXAMPLES = dict(re.findall(r"<!-- run: (\w+) -->\n```python\n(.*?)```\n", PAGE.read_text(), re.S))


@pytest.mark.parametrize(
    ("kind", "messages"), [("blocking", 1002), ("asyncio", 1002), ("twisted", 1)]
)
def test_example(server: Server, kind: str, messages: int) -> None:
    script = EXAMPLES[kind].replace("7514", str(server.port))
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=server.folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    server.stop()
    ((_, bodies),) = wire.read_logs(server.log).items()
    assert len(bodies) == messages
    assert bodies[0] == b"one message"
