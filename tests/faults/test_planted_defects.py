"""
A checker that finds nothing may be one that cannot find anything: defects are planted in the real
code, one at a time, and each must be found among the first few histories of a kind.
"""

from __future__ import annotations

import inspect
import sys
from textwrap import dedent
from typing import Any

import pytest

from msglog import _ledger, _recovery, _writer
from msglog._checkpointer import Checkpointer
from msglog._ledger import Ledger
from msglog._recovery import Recovery
from msglog._writer import LogWriter

from .crash_states import Effort, explore, replay

# A hundredth of what is looked at otherwise: enough to find each.
EFFORT = Effort(every=300, others=60, after_kill=10, again=15)
# Most are found by the first or second; the order in which files go, in one history of thirty.
SEEDS = 150


def plant(monkeypatch: Any, owner: Any, name: str, old: str, new: str) -> None:
    """Change the source of a function, and put what it makes in the place of it."""
    function = getattr(owner, name)
    source = dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{name} has not once {old!r}"
    home = sys.modules[function.__module__]
    made: dict[str, Any] = {}
    exec(compile(source.replace(old, new), f"<planted in {name}>", "exec"), vars(home), made)
    monkeypatch.setattr(owner, name, made[name])


DEFECTS = [
    # what is wrong, histories that show it, where it is, what the code says, what it is made to say
    (
        "a message is acknowledged before the disk has it",
        "one_client",
        (LogWriter, "_sync", "self._disk.sync(self._fd)", "pass"),
    ),
    (
        "a first log's name is not synced",
        "one_client",
        (
            LogWriter,
            "_open",
            "self._disk.sync_folder(self.path.parent)\n    self._unsynced",
            "self._unsynced",
        ),
    ),
    (
        "a new log's name is not synced",
        "rotation_by_rename",
        (LogWriter, "_go_on_in", "self._sync_folder()", "pass"),
    ),
    (
        "a log gets its rotated name after another has its old one",
        "rotation_by_size",
        (_writer, "move_aside", "\n    sync_folder()\n", "\n"),
    ),
    (
        "the same when somebody else renames it",
        "rotation_by_rename",
        (LogWriter, "_reopen", "self._sync_folder()", "pass"),
    ),
    (
        "the same at a start",
        "rotation_by_rename",
        (
            LogWriter,
            "_open",
            "self._disk.sync_folder(self.path.parent)\n    self._fd",
            "self._fd",
        ),
    ),
    (
        "a rotation does not wait for the ledger",
        "rotation_by_size",
        (LogWriter, "_go_on_in", "durable=True", "durable=False"),
    ),
    (
        "a file is not made known to the ledger when it is begun",
        "rotation_by_rename",
        (LogWriter, "_begin_file", "self._save(durable=True, complete=False)", "pass"),
    ),
    (
        "a torn end is not cut off",
        "many_clients",
        (Recovery, "_replay", "self._disk.cut(fd, good)", "pass"),
    ),
    (
        "a torn end is cut off and not kept",
        "many_clients",
        (Recovery, "_replay", "self._keep_torn(fd, path, good)", "path"),
    ),
    (
        "a torn end is cut off before its copy is synced",
        "many_clients",
        (Recovery, "_copy", "disk.sync(copy)", "pass"),
    ),
    (
        "a torn end is cut off before the name of its copy is synced",
        "many_clients",
        (Recovery, "_keep_torn", "self._disk.sync_folder(self._path.parent)", "pass"),
    ),
    (
        "a torn end is not kept whole",
        "large_messages",
        (Recovery, "_copy", "1 << 22, offset", "512, offset if offset % 512 else 1 << 40"),
    ),
    (
        "a start takes the page cache's word",
        "one_client",
        (Recovery, "_make_durable", "self._disk.sync(fd)", "pass"),
    ),
    (
        "a start believes a sync after one that failed",
        "failing_sync",
        (Recovery, "_make_durable", "self._disk.forget(fd, ", "max(0, "),
    ),
    (
        "the ledger is ahead of the log",
        "lazy_sync",
        (Checkpointer, "_steps_of", "self._sync()", "pass"),
    ),
    (
        "the sync of --sync SECONDS is late",
        "lazy_sync",
        (LogWriter, "_sync_is_due", "self._lazy / 2", "self._lazy * 2"),
    ),
    (
        "the checksums of resends are lost in a restart",
        "many_clients",
        (Ledger, "replay", "checksums.append(checksum)", "checksums.append(0)"),
    ),
    (
        "a part of a resend is written again",
        "many_clients",
        (_ledger, "judge", "known = min(-ahead, count)", "known = min(-ahead - 1, count)"),
    ),
    (
        "a torn commit with a hole is taken for damage",
        "many_clients",
        (_recovery, "judge_damage", "len(times) > 1", "len(times) > 0"),
    ),
    (
        "damage before acknowledged commits is taken for a torn one",
        "many_clients",
        (_recovery, "judge_damage", "if len(times) > 1:", "if len(times) > 1000:"),
    ),
    (
        "what is taken back on a full disk stays in the ledger",
        "full_disk",
        (LogWriter, "_commit", "ledger.roll_back()", "ledger.settle()"),
    ),
    (
        "what is taken back on a full disk is not cut off",
        "full_disk",
        (LogWriter, "_cut_back", "self._disk.cut(self._fd, self._size)", "pass"),
    ),
    (
        "nor synced before the next write",
        "full_disk",
        (LogWriter, "_cut_back", "self._disk.sync(self._fd)", "pass"),
    ),
    (
        "a commit's time is the clock's, whatever came before",
        "many_clients",
        (
            LogWriter,
            "_moment",
            "max(int(self._clock() * 1e6), self._last_time + 1)",
            "int(self._clock() * 1e6)",
        ),
    ),
    (
        "the time of the last commit is forgotten in a restart",
        "many_clients",
        (LogWriter, "_open", "recovery.file, recovery.last_time", "recovery.file, 0"),
    ),
    (
        "a new log that a crash tore in its first commit is taken for the damaged old one",
        "rotation_by_size",
        (Recovery, "run", "not self._may_be_begun_anew(fd, size, coverage)", "True"),
    ),
    (
        "clients that the ledger lets go of are not in its file",
        "forgetful_ledger",
        (Ledger, "_let_go", "if client in self.dirty:", "if False:"),
    ),
    (
        "old files are deleted before it is sure which of them is gone",
        "rotation_by_size",
        (_writer, "delete_old", "disk.sync_folder(log.parent)", "pass"),
    ),
    (
        "records that a client's row has already are damage",
        "checkpoints",
        (Recovery, "run", "offset = coverage.offset", "offset = 0"),
    ),
]


@pytest.mark.parametrize(
    ("kind", "change"), [defect[1:] for defect in DEFECTS], ids=[defect[0] for defect in DEFECTS]
)
def test_is_found(monkeypatch, kind, change) -> None:
    plant(monkeypatch, *change)
    for seed in range(SEEDS):
        failure = explore(kind, seed, EFFORT).failure
        if failure is not None:
            break
    else:
        pytest.fail("the defect is not found")
    recipe, what = failure
    print(recipe, what)
    with pytest.raises(Exception):  # noqa: B017, PT011 - what it is depends on the defect
        replay(recipe)
