"""
Run a program that the kernel kills when the process that started it is gone, however that went.

Run as a file, so that nothing of msglog is imported on the way::

    python -IS attached.py PID-OF-THE-STARTER PROGRAM [ARGUMENT]...

A program of its own, because between C{fork} and C{exec} Python must not run in a process that has
threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

__all__: list[str] = []

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>; it survives exec


def _main(starter: int, command: list[str]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != starter:  # it was gone before the kernel had been told
        sys.exit("whoever started this is gone")
    try:
        os.execv(command[0], command)
    except OSError as e:
        sys.exit(f"{command[0]}: {e.strerror}")


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2:])
