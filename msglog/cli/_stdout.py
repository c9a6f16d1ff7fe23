"""Whether anybody still reads what goes to stdout."""

from __future__ import annotations

import select
import sys
import time

__all__ = ["wait_while_read"]


def wait_while_read(seconds: float) -> bool:
    """
    Wait.

    @return: whether stdout is still read: false as soon as it is a pipe whose other end was closed,
        as after C{| head}.
    """
    try:
        fd = sys.stdout.fileno()
    except OSError:  # no file at all, as in tests
        time.sleep(seconds)
        return True
    poll = select.poll()
    poll.register(fd, 0)  # only what cannot be left out: errors and hang-ups
    return not poll.poll(seconds * 1000)
