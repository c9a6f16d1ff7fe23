"""
Load against a server, and what it measures: the part of C{msglog bench} that draws nothing.

======================  =========================================================================
L{_load.histogram}      latencies, counted in buckets
L{_load.blocks}         a client's frames and the receipts that they must get, made many at a time
L{_load.sender}         one connection in any protocol: births, sending, latencies
L{_load.connection}     one of ours: checks every receipt
L{_load.arrivals}       when messages come that do not wait for receipts
L{_load.loop}           one process: all its connections, one epoll, one clock
L{_load.processes}      several processes that begin together, and their results as one
======================  =========================================================================
"""

from .histogram import Histogram
from .loop import Measurement, Plan, ServerAddress
from .processes import Run

__all__ = ["Histogram", "Measurement", "Plan", "Run", "ServerAddress"]
