"""
Look for bytes that break a promise, for as long as wanted.

    python -m tests.faults.fuzz TARGET --seconds 60

What is found is kept in C{fuzz-TARGET-….bin}, as small as it could be made; to see it again, give
the file's name after the target.  With atheris (C{pip install atheris}) it is guided by which code
is reached, without it it is by chance alone.  What reaches new code goes to C{--corpus}.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

try:
    import atheris
except ImportError:
    atheris = None

# Of what is imported here, atheris sees which code is reached.
with atheris.instrument_imports(include=["msglog"]) if atheris else nullcontext():
    from tests.faults.fuzz.targets import CORPUS, TARGETS, attempt

# Before what was found is kept as it is.
_SHRINK_SECONDS = 20.0
_LONGEST = 2048


def fails(target: str, data: bytes) -> bool:
    """Whether a promise is broken."""
    try:
        attempt(target, data)
    except Exception:
        return True
    return False


def shrink(broken: Callable[[bytes], bool], data: bytes) -> bytes:
    """Data that does the same, with no part that can be left out."""
    deadline = time.monotonic() + _SHRINK_SECONDS
    size = len(data) // 2
    while size and time.monotonic() < deadline:
        at = 0
        while at < len(data) and time.monotonic() < deadline:
            less = data[:at] + data[at + size :]
            if broken(less):
                data = less
            else:
                at += size
        size //= 2
    return data


def keep(target: str, data: bytes) -> None:
    """Keep what was found, and say so."""
    least = shrink(lambda less: fails(target, less), data)
    path = Path(f"fuzz-{target}-{hashlib.sha256(least).hexdigest()[:12]}.bin")
    path.write_bytes(least)
    print(f"\nfound: {len(least)} bytes, kept in {path}", file=sys.stderr, flush=True)


def by_chance(target: str, seconds: float, seeds: list[bytes]) -> int:
    """Try changes of what is in the corpus, and anything."""
    rng = random.Random()
    began = said = time.monotonic()
    tried = 0
    while time.monotonic() - began < seconds:
        data = bytearray(rng.choice(seeds) if seeds and rng.random() < 0.5 else b"")
        data += rng.randbytes(rng.randrange(1, 300))
        for _ in range(rng.randrange(8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        tried += 1
        if fails(target, bytes(data)):
            keep(target, bytes(data))
            return 1
        if time.monotonic() - said > 5:
            said = time.monotonic()
            print(f"{tried} tried in {said - began:.0f} s", file=sys.stderr, flush=True)
    print(f"{tried} tried in {seconds:g} s, nothing found", file=sys.stderr)
    return 0


def guided(target: str, seconds: float, corpus: Path) -> int:
    """Let atheris look."""

    def once(data: bytes) -> None:
        try:
            attempt(target, data)
        except Exception:
            traceback.print_exc()
            keep(target, data)
            raise

    arguments = [
        *(
            f"-max_total_time={int(seconds)}",
            f"-max_len={_LONGEST}",
            "-timeout=30",
            "-len_control=0",
        ),
        *("-rss_limit_mb=1024", f"-artifact_prefix=fuzz-{target}-", str(corpus)),
    ]
    atheris.Setup([sys.argv[0], *arguments], once)
    atheris.Fuzz()
    return 0


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.faults.fuzz")
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("file", nargs="*", type=Path, help="only try what is in these files")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--corpus", type=Path, help="a folder of what reached new code")
    parser.add_argument("--by-chance", action="store_true", help="without atheris")
    given = parser.parse_args()
    for path in given.file:
        attempt(given.target, path.read_bytes())
    if given.file:
        return 0
    corpus = given.corpus or CORPUS / given.target
    corpus.mkdir(parents=True, exist_ok=True)
    if atheris and not given.by_chance:
        return guided(given.target, given.seconds, corpus)
    seeds = [path.read_bytes() for path in sorted(corpus.iterdir())]
    return by_chance(given.target, given.seconds, seeds)


if __name__ == "__main__":
    sys.exit(main())
