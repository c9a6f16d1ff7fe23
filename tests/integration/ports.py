"""Ports in a row that nobody has."""

from __future__ import annotations

import random
import socket

__all__ = ["free_ports"]


def free_ports(count: int) -> int:
    """The first of so many: below those that the kernel gives to connections."""
    while True:
        first = random.randrange(20_000, 32_000 - count)
        try:
            for port in range(first, first + count):
                with socket.create_server(("127.0.0.1", port)):
                    pass
        except OSError:
            continue
        return first
