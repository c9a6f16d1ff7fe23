"""What reads and fills a stream, on a stream in memory."""

from __future__ import annotations

import asyncio

from msglog._jetstream import EngineError, Reply, info_subject, read_info
from msglog.testing import MemoryStream


class MemoryReader:
    """
    As a C{StreamReader}, which also sends.

    @ivar silent: how many of the next fetches fail.
    """

    def __init__(self, stream: MemoryStream) -> None:
        self.stream = stream
        self.silent = 0
        self.bunch = 3

    @property
    def max_payload(self) -> int:
        return self.stream.max_payload or 0

    async def send(self, subject, payload, headers=None) -> asyncio.Future[Reply]:
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self.stream.request(
            subject, payload, headers, lambda reply: answer.done() or answer.set_result(reply)
        )
        return answer

    async def info(self) -> dict:
        info = read_info(self.stream._do(info_subject("MSGLOG"), b"", None))
        messages = len(self.stream.messages)
        return {**info, "state": {"first_seq": 1, "last_seq": messages}}

    async def fetch(self, sequence: int, most: int = 500) -> list[tuple[int, bytes]]:
        if self.silent or self.stream.away:
            self.silent = max(self.silent - 1, 0)
            raise EngineError("no answer")
        end = sequence - 1 + min(most, self.bunch)
        return [
            (sequence + n, data)
            for n, (_, _, data) in enumerate(self.stream.messages[sequence - 1 : end])
        ]
