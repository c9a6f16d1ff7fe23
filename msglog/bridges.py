"""
The logs of programs as they are, into a msglog server: one message for each event.

C{LogHandler} is for the standard library's C{logging} (docs/logging.md), C{LogObserver} for
C{twisted.logger} (docs/twisted-logging.md).
"""

from ._log_handler import LogHandler
from ._log_observer import LogObserver

__all__ = ["LogHandler", "LogObserver"]
