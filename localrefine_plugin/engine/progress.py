"""Lines and bars on standard output: what a person, or a framework's log, sees of a run."""
from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import Iterator

REFRESH_SECONDS = 2.0  # a summary made from the last line is never more than a few seconds old
WIDTH = 24


_heard = True
_spoken_of = ""


def say(text: str) -> None:
    if _heard:
        print(_spoken_of + text, flush=True)


@contextmanager
def speaking_of(name: str) -> Iterator[None]:
    """What is said meanwhile begins with a name: one of several bodies."""
    global _spoken_of  # noqa: PLW0603
    before, _spoken_of = _spoken_of, f"{name}: "
    try:
        yield
    finally:
        _spoken_of = before


def be_silent() -> None:
    """Say nothing more in this process: it is one of several, of which another one speaks."""
    global _heard  # noqa: PLW0603
    _heard = False


class ProgressBar:
    """One line per refresh: phase, bar, count, particles per second, time left."""

    def __init__(self, phase: str, total: int):
        self.phase, self.total = _spoken_of + phase, total
        self.start = self.shown = time.perf_counter()

    def update(self, done: int, total: int) -> None:
        now = time.perf_counter()
        last = done >= total
        if not last and now - self.shown < REFRESH_SECONDS:
            return
        self.shown = now
        if not _heard:
            return
        rate = done / max(now - self.start, 1e-9)
        filled = WIDTH * done // max(total, 1)
        line = (f"{self.phase} [{'#' * filled}{'.' * (WIDTH - filled)}] {done}/{total}, "
                f"{rate:.0f} particles/s, {(total - done) / max(rate, 1e-9):.0f} s left")
        if sys.stdout.isatty():
            print("\r" + line, end="\n" if last else "", flush=True)
        else:
            print(line, flush=True)


def silent(done: int, total: int) -> None:
    """Progress that nobody is told."""
