"""
Send messages to msglog and print their receipts.  A whole client, without resending.

    python send.py MESSAGE [MESSAGE ...]

Everything it does is described in docs/protocol.md.
"""

import socket
import struct
import sys
import uuid

from google_crc32c import value as crc32c

HEADER = struct.Struct(">IB16sQ")  # checksum, type, client id, sequence
MESSAGE, ACK = 0x01, 0x06


def frame(client: bytes, sequence: int, body: bytes) -> bytes:
    checked = struct.pack(">B16sQ", MESSAGE, client, sequence) + body
    payload = struct.pack(">I", crc32c(checked)) + checked
    return struct.pack(">I", len(payload)) + payload


client = uuid.uuid4()
with socket.create_connection(("127.0.0.1", 7514), timeout=10) as server:
    answers = server.makefile("rb")
    for sequence, text in enumerate(sys.argv[1:], 1):
        sent = frame(client.bytes, sequence, text.encode())
        server.sendall(sent)
        (length,) = struct.unpack(">I", answers.read(4))
        answer = answers.read(length)
        checksum, kind, _, answered = HEADER.unpack_from(answer)
        if kind != ACK:
            code, expected = struct.unpack_from(">BQ", answer, HEADER.size)
            sys.exit(f"NACK code={code} expected={expected}: {answer[38:].decode()}")
        if answer[:4] != sent[4:8] or answered != sequence:
            sys.exit("this is not a receipt for what was sent")
        print(f"ACK client={client} sequence={answered} crc={checksum:08x}")
