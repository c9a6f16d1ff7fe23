"""
A message log server on Twisted whose ACK means: on disk, exactly once, in its client's order.

What an application needs to run it inside itself is here; docs/embedding.md shows how.
"""

from importlib.metadata import version

__version__ = version("msglog")

from ._batch import Batch, NackCode, Receipt, Refusal, Verdict
from ._errors import (
    LedgerDamaged,
    LogDamaged,
    LogLocked,
    MsglogError,
    NotLogged,
    RecordError,
    StartError,
    StoreFailed,
)
from ._journal import Journal
from ._limits import Limits
from ._protocol import MessageLogFactory
from ._records import Record, parse_line
from ._service import MessageLogService
from ._store import FileStore
from .interfaces import IStore

__all__ = [
    "Batch",
    "FileStore",
    "IStore",
    "Journal",
    "LedgerDamaged",
    "Limits",
    "LogDamaged",
    "LogLocked",
    "MessageLogFactory",
    "MessageLogService",
    "MsglogError",
    "NackCode",
    "NotLogged",
    "Receipt",
    "Record",
    "RecordError",
    "Refusal",
    "StartError",
    "StoreFailed",
    "Verdict",
    "__version__",
    "parse_line",
]
