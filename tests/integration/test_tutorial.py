"""The tutorial's commands, in order, as they stand; only the port is another one."""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path

import pytest
import wire
from conftest import BIN, Server, wait_until

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
STEPS = re.findall(r"<!-- run(.*?) -->\n```sh\n(.*?)```\n", PAGE.read_text(), re.S)


@pytest.fixture
def shell(tmp_path):
    """Run a step as a person does: in the folder, with the environment's commands."""
    path = f"{BIN}:{os.environ['PATH']}"

    def run(step: str, port: int) -> subprocess.Popen:
        environment = {**os.environ, "PATH": path, "MSGLOG_SERVER": f"127.0.0.1:{port}"}
        return subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", step],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return run


def test_every_step(make_server, shell) -> None:
    kinds = [kind.strip(", ") for kind, _ in STEPS]
    assert kinds.count("") >= 5
    server: Server = make_server()
    for kind, step in STEPS:
        if "background" in kind:
            assert step.strip() == "twistd -n --pidfile= msglog"
            server.start()
            continue
        process = shell(step, server.port)
        if "killed" in kind:
            # Somewhere in the middle: when some of it is in the log.
            begun = server.log.stat().st_size
            wait_until(lambda begun=begun: server.log.stat().st_size > begun, "messages")
            server.kill()
            time.sleep(0.2)
            server.start()
        out, err = process.communicate(timeout=120)
        expected = 1 if "status 1" in kind else 0
        assert process.returncode == expected, (step, out, err)
        assert "Traceback" not in err
    server.stop()
    logged = sorted(wire.read_logs(server.log).values(), key=len)
    assert [len(bodies) for bodies in logged] == [1, 10_000, 200_000]
    assert out.strip().endswith("1")
