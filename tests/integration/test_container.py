"""
The container's recipe without a container engine: its steps are run in folders of the test's own,
without capabilities, with the installed program read-only, and as the first of a PID namespace.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from uuid import UUID

import pytest
import wire
from conftest import free_port, wait_until

from msglog._frames import message_checksum
from msglog._records import Record, format_line

PROJECT = Path(__file__).parent.parent.parent

# Root may write anywhere, unless it is without its capabilities.
POWERLESS = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.getuid() == 0 else []


def instructions() -> list[tuple[str, str]]:
    """The recipe's instructions, with continued lines joined, without comments."""
    text = (PROJECT / "deploy" / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


RECIPE = instructions()
STAGE = max(n for n, (word, _) in enumerate(RECIPE) if word == "FROM")


def said(word: str) -> str:
    """What the last stage says once."""
    (text,) = [text for name, text in RECIPE[STAGE:] if name == word]
    return re.sub(r"\s+", " ", text)


def environment() -> dict[str, str]:
    return dict(pair.partition("=")[::2] for pair in shlex.split(said("ENV")))


def test_recipe() -> None:
    """Who it runs as, and what it is asked by, stopped by, and keeps."""
    assert [word for word, _ in RECIPE].count("FROM") == 2
    assert said("USER") == "10001"
    assert said("STOPSIGNAL") == "SIGTERM"
    assert said("VOLUME") == said("WORKDIR") == "/var/lib/msglog"
    assert environment()["MSGLOG_LOG"].startswith("/var/lib/msglog/")
    assert float(environment()["MSGLOG_STOP_SECONDS"]) < 10
    # The exec form: no shell is the first process, which would keep signals from the server.
    assert json.loads(said("ENTRYPOINT"))[0] == "twistd"
    assert json.loads(said("HEALTHCHECK").partition("CMD ")[2])[:2] == ["msglog", "ping"]


def test_what_is_copied() -> None:
    """All that the build needs is there, and let through to it."""
    ignored = (PROJECT / ".dockerignore").read_text().splitlines()
    for word, text in RECIPE[:STAGE]:
        if word == "COPY":
            for name in text.split()[:-1]:
                assert (PROJECT / name).exists()
                assert f"!{name}" in ignored


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Path:
    """Where the recipe's steps have put the program, read-only; its folder is the root."""
    root = tmp_path_factory.mktemp("image")
    source = root / "src"
    source.mkdir()
    leave = shutil.ignore_patterns("__pycache__", "dropin.cache")
    for word, text in RECIPE[:STAGE]:
        if word == "COPY":
            *names, target = text.split()
            for name in names:
                if (PROJECT / name).is_dir():
                    shutil.copytree(PROJECT / name, source / target, ignore=leave)
                else:
                    shutil.copy(PROJECT / name, source)
        elif word == "RUN":
            command = text.replace("/opt/msglog", f"{root}/opt/msglog")
            command = re.sub(r"^python ", f"{sys.executable} ", command)
            # What was downloaded once is enough here.
            command = command.replace("--no-cache-dir", "")
            done = subprocess.run(
                command, shell=True, cwd=source, capture_output=True, text=True, timeout=300
            )
            assert done.returncode == 0, done
    shutil.rmtree(source)
    program = root / "opt"
    subprocess.run(["chmod", "-R", "a+rX,a-w", program], check=True)
    yield root
    subprocess.run(["chmod", "-R", "u+w", program], check=True)
    shutil.rmtree(program)


class Container:
    """The image's command with its environment, at a port and in a folder of the test's own."""

    def __init__(self, image: Path, volume: Path) -> None:
        self.volume = volume
        self.port = free_port()
        self.output = volume.parent / "output"
        self.environ = {
            name: value.replace("/opt/msglog", f"{image}/opt/msglog")
            .replace("/var/lib/msglog", str(volume))
            .replace("$PATH", os.environ["PATH"])
            .replace(":7514", f":{self.port}")
            for name, value in environment().items()
        }
        # The network is not the container's own here.
        self.environ["MSGLOG_LISTEN"] += ":interface=127.0.0.1"
        self.log = Path(self.environ["MSGLOG_LOG"])

    def start(self, *under: str) -> subprocess.Popen:
        with self.output.open("ab") as output:
            return subprocess.Popen(
                [*under, *POWERLESS, *self.path_of(json.loads(said("ENTRYPOINT")))],
                cwd=self.volume,
                env=self.environ,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def path_of(self, command: list[str]) -> list[str]:
        """A command with its program found in the image's path."""
        found = shutil.which(command[0], path=self.environ["PATH"])
        assert found is not None
        assert "/image" in found
        return [found, *command[1:]]

    def healthy(self) -> bool:
        command = json.loads(said("HEALTHCHECK").partition("CMD ")[2])
        done = subprocess.run(
            [*POWERLESS, *self.path_of(command)], env=self.environ, capture_output=True, timeout=30
        )
        assert done.stdout == b""
        return done.returncode == 0


@pytest.fixture
def container(image, tmp_path):
    volume = tmp_path / "volume"
    volume.mkdir()
    return Container(image, volume)


def test_it_runs(container, image) -> None:
    """Healthy when it is, stopped by its signal, and nothing is written but to the volume."""
    before = {p: p.stat().st_mtime_ns for p in (image / "opt").rglob("*")}
    assert any(path.name == "dropin.cache" for path in before)
    assert not container.healthy()
    process = container.start()
    try:
        wait_until(container.healthy, "health")
        with wire.Connection(container.port) as connection:
            connection.log(bytes(15) + b"x", 1, b"hello")
        process.send_signal(getattr(signal, said("STOPSIGNAL")))
        assert process.wait(30) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)
    assert wire.read_logs(container.log) == {bytes(15) + b"x": [b"hello"]}
    assert {p: p.stat().st_mtime_ns for p in (image / "opt").rglob("*")} == before
    output = container.output.read_text()
    assert "cache" not in output, output
    assert "Traceback" not in output
    names = {path.name for path in container.volume.iterdir()}
    assert names == {"messages.jsonl", "messages.jsonl.ledger"}


def namespaces() -> bool:
    """Whether a process may be made the first of a namespace of its own here."""
    return (
        shutil.which("unshare") is not None
        and subprocess.run(["unshare", "--pid", "--fork", "true"], check=False).returncode == 0
    )


@pytest.mark.skipif(not namespaces(), reason="needs a PID namespace")
def test_first_process(container) -> None:
    """As the first process of its namespace it ends by SIGTERM, while it recovers as well."""
    unshare = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    process = container.start(*unshare)
    try:
        wait_until(container.healthy, "health")
        os.kill(first(process.pid), signal.SIGTERM)
        assert process.wait(30) == 0, container.output.read_text()
        grow(container.log)
        container.log.with_name("messages.jsonl.ledger").unlink()
        process = container.start(*unshare)
        wait_until(lambda: "no ledger beside" in container.output.read_text(), "recovery")
        began = time.monotonic()
        os.kill(first(process.pid), signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
        assert time.monotonic() - began < 2
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)


def first(pid: int) -> int:
    """The process that unshare has made the first of its namespace."""
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


def grow(log: Path) -> None:
    """Make a log that takes a few seconds to recover."""
    records, client = 600_000, UUID(int=1)
    with log.open("wb") as file:
        for sequence in range(1, records + 1):
            checksum = message_checksum(client.bytes, sequence, b"x")
            file.write(format_line(Record(10**15, client.bytes, sequence, checksum, b"x")))
