"""
Whether a server is alive, and whether it is ready for messages.

The two have different consequences, so they are judged apart.  Who is not I{ready} is sent no
traffic until it is.  Who is not I{alive} is killed and started again, so that must be what a start
mends.  A disk that stalls is not: a process that waits for it cannot even be killed, its successor
would wait for the same disk in its recovery, and all clients would have to come back.  So a stalled
commit, however long, is never a reason to kill.  Neither is a full disk.  A fail-stop is: the
process then ends by itself, and if it does not, somebody has to end it.

That a server turns is shown by its answering at all: no answer within a prober's time is what it
is killed for, and what takes C{WATCHDOG=1} away from systemd.  But while the reactor itself waits
for a commit, another thread stands in for it: see L{judge_waiting}.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from attrs import frozen

from ._counted import counted
from ._figures import Figures
from ._limits import Limits

__all__ = ["EXPIRY_WARNING", "NO_ROOM_SECONDS", "Health", "judge", "judge_waiting"]

# How long before its end a certificate is complained about: time enough to ask a person for one.
EXPIRY_WARNING = timedelta(days=14)

# How long a commit that found no room is held against a disk that has some again.  (A quota, or a
# limit on the file's size, is not seen in the disk's free space; only another commit can tell, and
# without traffic there would never be one.)
NO_ROOM_SECONDS = 30.0


@frozen(slots=True)
class Health:
    """
    A judgement.

    @ivar not_live: why the process should be killed; empty if it is alive.
    @ivar not_ready: why it should be sent no messages; empty if it is ready.
    @ivar warnings: what is well but will not be for long.
    """

    not_live: tuple[str, ...]
    not_ready: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def live(self) -> bool:
        """Whether it is alive."""
        return not self.not_live

    @property
    def ready(self) -> bool:
        """Whether it is ready."""
        return not self.not_ready

    @property
    def word(self) -> str:
        """The whole in one line."""
        if self.not_ready:
            return "not ready: " + "; ".join(self.not_ready)
        return "ready" + "".join(f"; {warning}" for warning in self.warnings)


def judge(figures: Figures, limits: Limits, *, listening: bool, now: float) -> Health:
    """
    Judge a server by its figures.

    @param listening: whether it accepts connections.
    @param now: seconds since 1970.
    """
    not_ready = []
    if figures.failed:
        not_ready.append("the disk has failed, and the server waits for a restart")
    elif figures.recovered is None:
        not_ready.append("the log is not recovered")
    elif not listening:
        not_ready.append("no connections are accepted")
    if figures.busy_seconds >= limits.stalled_seconds:
        not_ready.append(f"{figures.keeper} has not answered for {figures.busy_seconds:.0f} s")
    not_ready += figures.troubles
    if figures.no_room:
        since = now - figures.no_room_time
        if figures.disk_low or since < NO_ROOM_SECONDS:
            not_ready.append("the last commit found no room on the disk")
    warnings = []
    if figures.disk_low:
        warnings.append(
            f"{figures.disk_free} bytes are free {figures.room}, fewer than {limits.min_free_bytes}"
        )
    warnings += figures.store_warnings
    if figures.connections >= limits.max_connections:
        warnings.append(f"no room for more than {counted(figures.connections, 'connection')}")
    if figures.paused["undurable"]:
        warnings.append(f"nothing is read until {figures.keeper} has caught up")
    expires = figures.certificate_expires
    if expires is not None and expires - now < EXPIRY_WARNING.total_seconds():
        ends = "has expired" if expires <= now else "expires"
        day = datetime.fromtimestamp(expires, UTC).date()
        warnings.append(f"the server's certificate {ends} on {day}")
    not_live = (not_ready[0],) if figures.failed else ()
    return Health(not_live, tuple(not_ready), tuple(warnings))


def judge_waiting(seconds: float, limits: Limits) -> Health | None:
    """
    Judge a server whose reactor can say nothing, for it waits for a commit in its own thread.

    @param seconds: for how long.
    @return: L{None} if it does not wait.
    """
    if not seconds:
        return None
    stalled = seconds >= limits.stalled_seconds
    return Health((), (f"the disk has not answered for {seconds:.0f} s",) if stalled else (), ())
