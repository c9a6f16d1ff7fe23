"""
Four other ways to build the server: its design's options, each whole and as small as it can be.

The project began as a comparison of ways to serve many clients that write to one file.  These are
the other ways, to be measured beside the one that was taken (docs/benchmarks.md).  They speak the
same protocol, write the same lines, and say ACK when a message is on the disk; they use the
server's own parsing, formatting and ledger, so that what differs is who waits for whom.

=============================  ===================================================================
L{one_thread<seed.one_thread>}  option 1: one thread and C{select}
L{lock<seed.lock>}              option 2: a thread for each client, and a lock around the file
L{queue<seed.queue>}            option 3: threads, a bounded queue, one thread that writes
L{files<seed.files>}            option 4: threads that write temporary files, one that joins them
L{wire<seed.wire>}              what they have in common
=============================  ===================================================================

None is a server to run: they begin with an empty log, recover nothing, bound little, and end at the
first error of the disk.
"""
