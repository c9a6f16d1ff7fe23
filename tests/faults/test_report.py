"""The report: what a part left is read rightly, and whatever is missing is no success."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest

from tests.faults import report
from tests.faults.report import BEGIN, END, Effort, Part, Row, put_into, run, section


def seeds(tmp_path: Path, broken: list[object], status: int = 0) -> Row:
    numbers = json.dumps({"seeds": 5, "counts": {"ACK": 7}, "broken": broken})
    script = tmp_path / "part.py"
    lines = ("import pathlib, sys", f"pathlib.Path(sys.argv[1]).write_text({numbers!r})")
    script.write_text("\n".join([*lines, f"sys.exit({status})"]))
    words = lambda effort, folder: [str(script), str(folder / "report.json")]  # noqa: E731
    return run(Part("seeds", words, report._read_seeds), Effort(1), tmp_path)


def test_kept_and_broken(tmp_path):
    """Numbers are taken over; a broken promise is one, with its words; nothing is left behind."""
    row = seeds(tmp_path, [])
    assert (row.result, row.tried, row.acked, row.lost) == ("kept", "5 seeds", 7, 0)
    row = seeds(tmp_path, [[3, "lost"]], 1)
    assert (row.result, row.why, row.lost) == ("broken", "seed 3: lost", None)
    assert list(tmp_path.iterdir()) == [tmp_path / "part.py"]


def test_failed(tmp_path):
    """A part that ends badly, or leaves no result, has failed, whatever it says."""
    assert seeds(tmp_path, [], 1).result == "failed"
    words = lambda effort, folder: ["-m", "platform"]  # noqa: E731
    row = run(Part("nothing", words, report._read_seeds), Effort(1), tmp_path)
    assert row.result == "failed"
    assert "no result" in row.why


def test_not_run(tmp_path):
    """What it lacks is said, and it is not counted."""
    part = Part("x", lambda effort, folder: [], report._read_seeds, lambda effort: "no compiler")
    assert (run(part, Effort(1), tmp_path).result, run(part, Effort(1), tmp_path).why) == (
        "not run",
        "no compiler",
    )


def test_page():
    """It takes the place of the last one, and of nothing else."""
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    text = section([Row("a", "kept", "1|2")], "about")
    put = put_into(page, text)
    assert put.startswith("before\n")
    assert put.endswith("after\n")
    assert "old" not in put
    assert "1\\|2" in put
    assert put_into(put, text) == put
    with pytest.raises(click.ClickException):
        put_into("no marks", text)
