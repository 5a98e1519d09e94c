"""Damaged input files by the thousand: each is read and computed with, or refused in one sentence.

    python -m benchmarks.faults.fuzz --cases 100000 --write

In one process, on one thread. A case is a valid set of input files with one of them damaged; it goes through every
check of the engine, and each 100th that passes them through a whole refinement from the command line. A case fails
with any exception but InputError, a warning of numpy, a message of several lines, more than `SECONDS`, anything
written outside the run folder, or NaN in a map.

Data: a valid set of small input files (tests/support), made anew in the work folder.
"""
from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence, Tuple

import mrcfile
import numpy as np

from localrefine_plugin.engine.__main__ import main as engine
from localrefine_plugin.engine.inputs.checks import check_inputs
from localrefine_plugin.engine.io.run_folder import RunFolder
from localrefine_plugin.engine.prepare.arguments import read_settings
from localrefine_plugin.engine.records.errors import InputError

from ..page import PAGE, table, write_section
from .damage import damaged_mrc, damaged_settings, damaged_star

RELIABILITY = PAGE.with_name("reliability.md")
SECONDS = 60
WHOLE_RUN_EVERY = 100
WRITING = {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod",
           "shutil.rmtree"}
# what is damaged: share of the cases
SHARES = {"STAR 3.0": 0.15, "STAR 3.1": 0.15, "STAR 5.0": 0.15, "stack": 0.1, "half-map": 0.08, "mask": 0.07,
          "settings.json": 0.3}


class TooLong(BaseException):
    """Not an Exception, so that nothing but the fuzzer catches it."""


class Watch:
    """What is written, removed or renamed outside one folder, from Python's audit events; in `found`."""

    def __init__(self, folder: Path):
        self.folder, self.active = os.path.realpath(folder), False
        self.found: List[str] = []
        sys.addaudithook(self._event)

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        self.active = True
        try:
            yield
        finally:
            self.active = False

    def _event(self, name: str, arguments: Tuple[Any, ...]) -> None:
        if not self.active:
            return
        writes = name in WRITING or (name == "open" and isinstance(arguments[2], int)
                                     and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        relative = name in ("os.remove", "os.rmdir") and arguments[1] != -1  # within shutil.rmtree, which has its event
        if writes and not relative and isinstance(arguments[0], (str, bytes, os.PathLike)):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            # apart from compiled kernels, the process's own counter of its memory, and nothing (/dev/null)
            if not (path.startswith((self.folder, "/proc/")) or "__pycache__" in path or path == os.devnull):
                self.found.append(f"{name} {path}")


class Fuzzer:
    """Valid input files in ``folder``, and one damaged copy at a time."""

    def __init__(self, folder: Path, inputs: Any, dialects: Dict[str, str]):
        self.folder, self.inputs = folder, inputs
        self.sources = {f"STAR {name}": text.encode() for name, text in dialects.items()}
        self.sources.update({name: Path(path).read_bytes() for name, path in (
            ("stack", inputs.stacks[0]), ("half-map", inputs.half_1), ("mask", inputs.mask))})
        self.star, self.settings = folder / "damaged.star", folder / "damaged.json"
        self.mrc, self.run = folder / "damaged.mrc", folder / "run"
        self.star_of_stack = folder / "damaged_stack.star"
        self.star_of_stack.write_text(dialects["3.1"].replace("stacks/a.mrcs", self.mrc.name))
        self.watch = Watch(self.run)
        self.outcomes: Counter = Counter()
        self.failures: List[str] = []

    def undamaged(self) -> Dict[str, Path]:
        return dict(particles=self.inputs.star, half_map_1=self.inputs.half_1, half_map_2=self.inputs.half_2,
                    mask=self.inputs.mask)

    def damage(self, kind: str, rng: random.Random) -> Dict[str, Path]:
        """Write a damaged file; the inputs by name."""
        given = self.undamaged()
        if kind.startswith("STAR"):
            self.star.write_bytes(damaged_star(self.sources[kind], rng))
            given["particles"] = self.star
        elif kind == "settings.json":
            self.settings.write_bytes(damaged_settings(rng))
            given["settings"] = self.settings
        else:
            self.mrc.write_bytes(damaged_mrc(self.sources[kind], rng))
            given.update({"stack": dict(particles=self.star_of_stack), "half-map": dict(half_map_1=self.mrc),
                          "mask": dict(mask=self.mrc)}[kind])
        return given

    def case(self, kind: str, seed: int) -> None:
        given = self.damage(kind, random.Random(f"{kind} {seed}"))
        self.watch.found.clear()
        limit(SECONDS)
        try:
            outcome, problem = self.outcome(given)
            self.outcomes[kind, outcome] += 1
            if outcome == "passed" and self.outcomes[kind, "passed"] % WHOLE_RUN_EVERY == 1:
                self.outcomes[kind, "refined"] += 1
                problem = self.whole_run(given)
            problem = problem or ", ".join(self.watch.found)
        except TooLong:
            problem = f"took more than {SECONDS} s"
        finally:
            limit(0)
        if problem:
            self.outcomes[kind, "failed"] += 1
            self.failures.append(f"{kind} case {seed}: {problem}")

    def outcome(self, given: Dict[str, Path]) -> Tuple[str, str]:
        """("passed" or "refused", what is wrong with that)."""
        inputs = {name: path for name, path in given.items() if name != "settings"}
        try:
            settings = read_settings(given.get("settings"))
            with self.watch.on():
                check_inputs(*inputs.values(), settings)
        except InputError as error:
            complete = error.source and error.problem and error.remedy
            return "refused", "" if complete and "\n" not in str(error) else f"not one sentence: {error}"
        except Exception as error:
            return "refused", f"{type(error).__name__}: {error}"
        return "passed", ""

    def whole_run(self, given: Dict[str, Path]) -> str:
        """What is wrong with a refinement of one iteration."""
        settings = read_settings(given.get("settings")).as_dict()
        short = self.run.with_name("short.json")
        short.write_text(json.dumps(dict(settings, max_iterations=1, extra_final_passes=0)))
        words = [f"--{name.replace('_', '-')}={path}" for name, path in dict(given, settings=short).items()]
        said = io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said), self.watch.on():
            status = engine(["refine", *words, f"--output={self.run}", "--overwrite", "--device=cpu", "--threads=1"])
        text = said.getvalue()
        if status:
            fine = text.startswith("error: ") and text.count("\n") == 1 and "unexpected" not in text
            return "" if fine else f"refine says {text!r}"
        maps = [mrcfile.read(RunFolder(self.run).final(name)) for name in ("half_map_1.mrc", "map_sharpened.mrc")]
        return "" if all(np.isfinite(m).all() for m in maps) else "NaN in a map"


def limit(seconds: float) -> None:
    def stop(*_: Any) -> None:
        raise TooLong()
    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def fuzz(folder: Path, cases: int, seed: int = 1) -> Fuzzer:
    """Run so many cases over all kinds of files; `outcomes` counts them, `failures` names them."""
    from tests.support.particle_files import Inputs, dialects
    fuzzer = Fuzzer(folder, Inputs(folder), dialects())
    problem = fuzzer.whole_run(fuzzer.undamaged())  # compiles what is not in the cache yet
    if problem:
        raise AssertionError(f"files that are not damaged: {problem}")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        for kind, share in SHARES.items():
            for number in range(round(share * cases)):
                fuzzer.case(kind, seed * 10 ** 7 + number)
            print(f"{kind}: {sum(fuzzer.outcomes[kind, name] for name in ('passed', 'refused'))} cases, "
                  f"{len(fuzzer.failures)} failures so far", file=sys.stderr, flush=True)
    return fuzzer


def section(fuzzer: Fuzzer, cases: int, seed: int, seconds: float) -> str:
    names = ("passed", "refused", "refined", "failed")
    rows = [[kind] + [str(sum(fuzzer.outcomes[kind, name] for name in names[:2]))]
            + [str(fuzzer.outcomes[kind, name]) for name in names] for kind in SHARES]
    rows.append(["all"] + [str(sum(int(row[j]) for row in rows)) for j in range(1, 6)])
    head = ["damaged file", "cases", "read and passed all checks", "refused in one sentence",
            "of those passed, refined to the end", "failed"]
    return (f"`python -m benchmarks.faults.fuzz --cases {cases} --seed {seed} --write` ({seconds:.0f} s of CPU time on "
            f"one thread)\n\n{table(head, rows)}")


def main(arguments: Sequence[str] = ()) -> int:
    parser = argparse.ArgumentParser(description="Damaged input files by the thousand.")
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="put the table into docs/reference/reliability.md")
    options = parser.parse_args(arguments or None)
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        fuzzer = fuzz(Path(folder), options.cases, options.seed)
    text = section(fuzzer, options.cases, options.seed, time.process_time() - start)
    print(text, *fuzzer.failures, sep="\n")
    if options.write and not fuzzer.failures:
        write_section("bad-input", text, RELIABILITY)
    return 1 if fuzzer.failures else 0


if __name__ == "__main__":
    sys.exit(main())
