"""Simulated sets as the benchmarks of this folder are given them: `--data FOLDER [--data FOLDER …] [--write]`."""
from __future__ import annotations

import argparse
from pathlib import Path
from typing import Callable, List, Optional, Sequence, Tuple

import numpy as np

from localrefine_plugin.engine.inputs.checks import CheckedInputs, check_inputs
from localrefine_plugin.engine.io.mrc import read_map
from localrefine_plugin.engine.io.run_folder import RunFolder
from localrefine_plugin.engine.io.run_store import load_iteration
from localrefine_plugin.engine.records.settings import Settings
from localrefine_plugin.engine.refine import align, merge, prepare

from ..page import table, write_section


def checked_set(data: Path) -> CheckedInputs:
    """Particles, half-maps and the mask of body B of a folder that the benchmark's make_dataset.py has made."""
    return check_inputs(*(str(data / name) for name in ("particles.star", "half1.mrc", "half2.mrc", "mask_B.mrc")),
                        Settings())


def iterated(data: Path, output: Path, threads: int, particles: Optional[Path] = None, **settings: object) -> RunFolder:
    """A set refined until it has converged, without the results and the controls of the end; not again what has been
    refined. ``particles``: another particles file."""
    run, given = RunFolder(output), Settings(**settings)  # type: ignore[arg-type]
    inputs = [str(particles or data / "particles.star"),
              *(str(data / name) for name in ("half1.mrc", "half2.mrc", "mask_B.mrc"))]
    if not run.input.exists():
        prepare(*inputs, str(output), given, "cpu", threads, "overwrite")
    for k in range(run.iterations_done() + 1, given.max_iterations + given.extra_final_passes + 1):
        if run.stopped_before(k):
            break
        align(str(output), k, (1, 2), "cpu", threads)
        merge(str(output), k, threads)
    return run


def best_of(run: RunFolder) -> int:
    """The iteration that is the result."""
    return load_iteration(run, run.iterations_done()).best_iteration


def half_maps_of(run: RunFolder) -> List[np.ndarray]:
    return [read_map(run.half_map(best_of(run), half))[0] for half in (1, 2)]


def parser_of(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--write", action="store_true")
    return parser


def table_of_sets(description: str, head: Sequence[str], rows_of: Callable[[Path], List[List[str]]],
                  where: Tuple[str, Path], before: str) -> None:
    """The whole of a benchmark whose table has some rows for each set: ``where``, section and page, it goes with
    --write, and what stands ``before`` it, with {} for the options."""
    options = parser_of(description).parse_args()
    text = table(head, [row for data in options.data for row in rows_of(data)])
    if options.write:
        section, page = where
        write_section(section, f"{before.format(words_of(options.data) + ' --write')}\n\n{text}", page)


def words_of(sets: Sequence[Path]) -> str:
    """The sets as options of a command."""
    return " ".join(f"--data {data.resolve().name}" for data in sets)
