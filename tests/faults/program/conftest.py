"""The zygote, and servers from it that end with their test."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from . import shim
from .servers import Program
from .zygote import Zygote

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def zygote(tmp_path_factory):
    if shutil.which("cc") is None:
        assert not os.environ.get("CI"), "needs a C compiler"
        pytest.skip("needs a C compiler: apt install gcc libc6-dev")
    zygote = Zygote(shim.build(tmp_path_factory.mktemp("shim")), ROOT)
    yield zygote
    zygote.close()


@pytest.fixture
def make(zygote, tmp_path):
    """Make servers, in the test's folder or another one."""
    servers = []

    def make(*options: str, folder: Path = tmp_path) -> Program:
        server = Program(zygote, folder, *options)
        servers.append(server)
        return server

    yield make
    for server in servers:
        server.kill()


@pytest.fixture
def rounds() -> int:
    """How often what is left to chance is done: 1, or more in the long form."""
    return int(os.environ.get("FAULT_ROUNDS", "1"))
