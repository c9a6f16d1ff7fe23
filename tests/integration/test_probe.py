"""C{msglog probe} as a user runs it: on this disk, on memory, and interrupted."""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest
from conftest import BIN, wait_until

MEMORY = Path("/dev/shm")


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [BIN / "msglog", "probe", "--seconds", "0.4", *options, folder]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_this_disk(tmp_path):
    """Everything is tried, and nothing is left."""
    done = run(tmp_path, "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0 if found["fit"] else 1, "")
    assert found["lock_excludes"] is True
    assert found["rename_and_folder_sync"] is True
    assert all(syncs["count"] >= 3 for syncs in found["syncs"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not MEMORY.is_dir(), reason="there is no /dev/shm")
def test_memory():
    """Memory is no place for a log, for two reasons."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        done = run(Path(folder))
        assert done.returncode == 1
        assert "DANGER" in done.stdout
        assert "memory" in done.stdout
        assert done.stdout.rstrip().splitlines()[-1].startswith("not fit for a log")
        assert list(Path(folder).iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted(tmp_path, number):
    """A signal in its middle leaves nothing behind."""
    process = subprocess.Popen([BIN / "msglog", "probe", "--seconds", "60", tmp_path])
    try:
        wait_until(lambda: list(tmp_path.glob(".msglog-probe-*/log")), "the trial")
        process.send_signal(number)
        assert process.wait(30) == (130 if number == signal.SIGINT else 128 + number)
    finally:
        process.kill()
    assert list(tmp_path.iterdir()) == []


def test_not_a_folder(tmp_path):
    """What cannot be tried is one line."""
    done = run(tmp_path / "nowhere")
    assert done.returncode == 2
    assert "does not exist" in done.stderr
    assert "Traceback" not in done.stderr
