"""Several processes of a load: they begin together, and what they measure is one measurement."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

from attrs import evolve

from .loop import UNCOUNTED, Loop, Measurement, Plan
from .sender import LoadError

__all__ = ["Run"]

# From everybody being ready to the start, so that all have heard of it.
_START_SECONDS = 0.05

# Children are forked: there are no threads yet that a fork could tear, and it takes 2 ms where a
# new interpreter takes 300.
_fork = multiprocessing.get_context("fork")

_READY = "ready"
_STOP = "stop"


def _share(total: int, processes: int) -> list[int]:
    """Split into parts that differ by one at most."""
    each, more = divmod(total, processes)
    return [each + (number < more) for number in range(processes)]


def _work(plan: Plan, pipe: Pipe, parent: Pipe) -> None:
    """What a process does: connect, say so, wait for the start, load, and report."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which asks us
    parent.close()  # so that its end is seen
    loop = Loop(plan, pipe, pipe.send)
    try:
        loop.connect()
        pipe.send(_READY)
        begin = pipe.recv()
        if begin != _STOP:
            time.sleep(max(0.0, begin - time.monotonic()))
            loop.run()
    except LoadError as e:
        loop.measured.problem = str(e)
    except (EOFError, BrokenPipeError):
        return  # the parent is gone: nobody wants to know
    pipe.send(loop.measured)


class Run:
    """
    One run of a load.

    @param plan: what all processes do together.
    @param processes: how many share it; not more than there are connections.
    """

    def __init__(self, plan: Plan, processes: int) -> None:
        connections = _share(plan.connections, processes)
        messages = _share(plan.messages, processes)
        self._plans = [
            evolve(
                plan,
                connections=c,
                rate=plan.rate * c / plan.connections,
                messages=UNCOUNTED if plan.messages == UNCOUNTED else m,
            )
            for c, m in zip(connections, messages, strict=True)
        ]
        self._pipes: dict[Pipe, BaseProcess] = {}

    def measure(self, progress: Callable[[int], object]) -> Measurement:
        """
        Load the server, and return what was measured, however the run ended.

        @param progress: told a few times a second how many messages were acknowledged so far.
        """
        for plan in self._plans:
            ours, theirs = _fork.Pipe()
            process: BaseProcess = _fork.Process(
                target=_work, args=(plan, theirs, ours), daemon=True
            )
            process.start()
            theirs.close()
            self._pipes[ours] = process
        try:
            return self._gather(progress)
        finally:
            for process in self._pipes.values():
                process.terminate()
                process.join()

    def stop(self) -> None:
        """End soon: send no more, await what is unanswered.  For a signal handler as well."""
        for pipe in self._pipes:
            try:
                pipe.send(_STOP)
            except OSError:
                pass  # it has ended by itself

    def _gather(self, progress: Callable[[int], object]) -> Measurement:
        measured = Measurement()
        waiting, ready = set(self._pipes), set()
        acked = dict.fromkeys(self._pipes, 0)
        while waiting:
            for pipe in wait(waiting):
                assert isinstance(pipe, Pipe)
                said = self._hear(pipe)
                if said == _READY:
                    ready.add(pipe)
                    if ready == waiting:
                        begin = time.monotonic() + _START_SECONDS
                        for each in ready:
                            each.send(begin)
                elif isinstance(said, Measurement):
                    measured.add(said)
                    waiting.discard(pipe)
                    if said.problem:
                        self.stop()
                elif isinstance(said, int):
                    acked[pipe] = said
                    progress(sum(acked.values()))
        return measured

    def _hear(self, pipe: Pipe) -> Measurement | int | str:
        try:
            said: Measurement | int | str = pipe.recv()
        except (EOFError, OSError):
            process = self._pipes[pipe]
            process.join()
            return Measurement(
                problem=f"a process of the load ended by itself (status {process.exitcode})"
            )
        return said
