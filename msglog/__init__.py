"""
A message log server on Twisted whose ACK means: on disk, exactly once, in its client's order.

What an application needs is here: to send to a server (C{connect}, L{MessageLogClient}, the module
C{msglog.aio}; docs/clients.md), and to run one inside itself (L{FileStore}, L{MessageLogFactory},
L{Journal}; docs/embedding.md).

Each name is imported when it is first used: a script that sends a message needs no server, and
neither should wait for what it does not use (0.3 s for all of it).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._batch import Batch, NackCode, Receipt, Refusal, Verdict
    from ._blocking import BlockingClient, connect
    from ._client import MessageLogClient
    from ._client_tls import TLS
    from ._errors import (
        LedgerDamaged,
        LogDamaged,
        LogLocked,
        MsglogError,
        NotConnected,
        NotLogged,
        QueueFull,
        RecordError,
        SessionFailed,
        SpoolError,
        StartError,
        StoreFailed,
        TLSError,
        Unanswered,
    )
    from ._factory import MessageLogFactory
    from ._journal import Journal
    from ._limits import ClientLimits, Limits
    from ._records import Record, parse_line
    from ._rotation_rule import RotationRule
    from ._service import MessageLogService
    from ._store import FileStore
    from .interfaces import IStore

    __version__: str

__all__ = [
    "TLS",
    "Batch",
    "BlockingClient",
    "ClientLimits",
    "FileStore",
    "IStore",
    "Journal",
    "LedgerDamaged",
    "Limits",
    "LogDamaged",
    "LogLocked",
    "MessageLogClient",
    "MessageLogFactory",
    "MessageLogService",
    "MsglogError",
    "NackCode",
    "NotConnected",
    "NotLogged",
    "QueueFull",
    "Receipt",
    "Record",
    "RecordError",
    "Refusal",
    "RotationRule",
    "SessionFailed",
    "SpoolError",
    "StartError",
    "StoreFailed",
    "TLSError",
    "Unanswered",
    "Verdict",
    "__version__",
    "connect",
    "parse_line",
]

_HOMES = {
    "_batch": ("Batch", "NackCode", "Receipt", "Refusal", "Verdict"),
    "_blocking": ("BlockingClient", "connect"),
    "_client": ("MessageLogClient",),
    "_client_tls": ("TLS",),
    "_errors": (
        "LedgerDamaged",
        "LogDamaged",
        "LogLocked",
        "MsglogError",
        "NotConnected",
        "NotLogged",
        "QueueFull",
        "RecordError",
        "SessionFailed",
        "SpoolError",
        "StartError",
        "StoreFailed",
        "TLSError",
        "Unanswered",
    ),
    "_journal": ("Journal",),
    "_limits": ("ClientLimits", "Limits"),
    "_factory": ("MessageLogFactory",),
    "_records": ("Record", "parse_line"),
    "_rotation_rule": ("RotationRule",),
    "_service": ("MessageLogService",),
    "_store": ("FileStore",),
    "interfaces": ("IStore",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("msglog")
    elif name in _HOME:
        # Here, since the msglog command begins with this module: see msglog._command.
        from importlib import import_module

        value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
