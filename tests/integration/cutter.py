"""A TCP proxy that does to connections what networks do: it cuts, stalls, and delivers halves."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading

LINGER_NOT = struct.pack("ii", 1, 0)


class Cutter:
    """
    @param port: where to forward to.
    @param seconds: how long a connection lives at most.
    @ivar port: where it listens.
    @ivar cuts: how many connections it has cut.
    """

    def __init__(self, port: int, seconds: float, rng: random.Random) -> None:
        self._target = port
        self._seconds = seconds
        self._rng = rng
        self.cuts = 0
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._stopped = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Cutter:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._forward, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stopped.wait()
        server.close()

    async def _forward(self, reader, writer) -> None:
        rng = self._rng
        try:
            try:
                up = await asyncio.open_connection("127.0.0.1", self._target)
            except OSError:
                return
            try:
                pipes = [
                    asyncio.ensure_future(self._pipe(reader, up[1])),
                    asyncio.ensure_future(self._pipe(up[0], writer)),
                ]
                lives = rng.uniform(0.1, 1) * self._seconds
                await asyncio.wait(pipes, timeout=lives, return_when=asyncio.FIRST_COMPLETED)
                self.cuts += 1
                for pipe in pipes:
                    pipe.cancel()
                await asyncio.wait(pipes)
            finally:
                self._cut(up[1])
        finally:
            self._cut(writer)

    def _cut(self, writer) -> None:
        """End a connection's half: with a reset, or in peace."""
        if self._rng.random() < 0.5 and not writer.is_closing():
            writer.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT
            )
            writer.transport.abort()
        else:
            writer.close()

    async def _pipe(self, reader, writer) -> None:
        """Forward, in pieces of any size, with a pause now and then."""
        rng = self._rng
        try:
            while data := await reader.read(rng.choice((1000, 65536, 1 << 20))):
                at = rng.randrange(len(data)) if rng.random() < 0.2 else 0
                if at:
                    # A piece of a frame arrives, and the connection may be cut before the rest.
                    writer.write(data[:at])
                    await writer.drain()
                    await asyncio.sleep(rng.choice((0, 0.01, 0.1)))
                writer.write(data[at:])
                await writer.drain()
        except (OSError, asyncio.CancelledError):
            pass
