"""Send one message to a server that may still be starting; check its receipt and the log."""

import json
import socket
import sys
import time
import uuid

from google_crc32c import value as crc32c

port, log = int(sys.argv[1]), sys.argv[2]
deadline = time.monotonic() + 20
while True:
    try:
        server = socket.create_connection(("127.0.0.1", port), timeout=10)
        break
    except ConnectionRefusedError:
        if time.monotonic() > deadline:
            raise
        time.sleep(0.05)
client = uuid.uuid4()
checked = b"\x01" + client.bytes + (1).to_bytes(8, "big") + b"hello"
checksum = crc32c(checked).to_bytes(4, "big")
server.sendall((len(checked) + 4).to_bytes(4, "big") + checksum + checked)
answer = server.makefile("rb").read(33)
assert answer == b"\x00\x00\x00\x1d" + checksum + b"\x06" + checked[1:25], answer
with open(log) as lines:
    (record,) = map(json.loads, lines)
assert (record["client"], record["seq"], record["message"]) == (str(client), 1, "hello"), record
print("one message: acknowledged and in the log")
