"""A client that sends 1, 2, 3 … in windows until it is killed, and says what is acknowledged."""

import sys
import uuid
from itertools import count

import msglog

port, client = sys.argv[1:]
with msglog.connect(f"127.0.0.1:{port}", client=uuid.UUID(hex=client)) as log:
    for first in count(1, 50):
        for receipt in log.send_all(b"%d" % n for n in range(first, first + 50)):
            print(receipt.sequence, flush=True)
