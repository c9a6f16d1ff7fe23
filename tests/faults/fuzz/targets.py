"""All targets by name, and one attempt at one."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.logger import globalLogPublisher

from .connections import answers, frames, http, nats
from .files import ledger, line, log, spool

__all__ = ["CORPUS", "TARGETS", "attempt"]

CORPUS = Path(__file__).parent.parent / "corpus"

TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target for target in (answers, frames, http, ledger, line, log, nats, spool)
}

# What one attempt takes is milliseconds; a machine may be busy.
_TOO_LONG = 20.0


def attempt(name: str, data: bytes) -> None:
    """
    Try a target.

    @raise Exception: a promise was broken: it raised, logged a traceback, or took too long.
    """
    failures: list[Any] = []

    def observe(event: dict[str, Any]) -> None:
        if "log_failure" in event:
            failures.append(event["log_failure"])

    globalLogPublisher.addObserver(observe)
    began = time.monotonic()
    try:
        TARGETS[name](data)
    finally:
        globalLogPublisher.removeObserver(observe)
    assert not failures, failures[0].getTraceback()
    assert time.monotonic() - began < _TOO_LONG, "it took too long"
