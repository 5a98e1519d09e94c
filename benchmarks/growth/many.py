"""A million particles in one piece, and a hundred thousand stacks: memory and CPU seconds of every step.

    python -m benchmarks.growth.many --write
    python -m benchmarks.growth.many --particles 100000 --per-stack 1 --files 256 --write

One iteration, one thread, every verb a process of its own, which may have --files files open. A million images of 32 px
take 4 GB of disk in --work. The assertions: the step that takes most is within 20 % of the prediction, and a particle
takes at most 250 bytes, by a run of a tenth of the particles. Where there are many stacks, their names are more.

Data: growth/memory.py's, noise with a ball in the middle.
"""
from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import List, Optional, Sequence

from localrefine_plugin.engine.io.run_folder import write_json

from ..measure import commit, machine
from ..page import table, write_section
from .memory import PAGE, ROW_BYTES, TOLERANCE, VERBS, Peaks, of_verbs, write_data

FEWER = 10  # times less particles, beside which the others are counted


def run(particles: int, box: int, per_stack: int, files: int, work: Optional[Path]) -> Peaks:
    with tempfile.TemporaryDirectory(dir=work) as folder:
        data = write_data(Path(folder) / "data", particles, box, per_stack=per_stack)
        print(f"{particles} particles written", flush=True)
        write_json(Path(folder) / "settings.json", {"max_iterations": 1})
        return of_verbs(data, Path(folder), 1, files)


def added(few: Peaks, many: Peaks) -> List[float]:
    """Bytes of a particle more, by verb."""
    return [(many.verbs[name] - few.verbs[name]) * 2 ** 20 / (many.particles - few.particles) for name in VERBS]


def text_of(few: Peaks, many: Peaks, per_stack: int, files: int, command: str) -> str:
    rows = [["peak memory, MB", *(f"{many.verbs[name]:.0f}" for name in VERBS)],
            [f"the same for {few.particles:,} particles", *(f"{few.verbs[name]:.0f}" for name in VERBS)],
            ["bytes for a particle more", *(f"{value:.0f}" for value in added(few, many))],
            ["CPU s (align: both half-sets)", *(f"{many.seconds[name]:.1f}" for name in VERBS)],
            [f"the same for {few.particles:,} particles", *(f"{few.seconds[name]:.1f}" for name in VERBS)]]
    where = f"{-(-many.particles // per_stack):,} stacks" if per_stack else "one stack"
    limit = f", each verb with at most {files} open files" if files else ""
    return (f"{many.particles:,} particles of {many.box} px in {where}, one iteration, one thread{limit} "
            f"(`{command}`); predicted: {many.predicted:.0f} MB; {machine()}, commit {commit()}:\n\n"
            + table(["", *VERBS], rows))


def check(few: Peaks, many: Peaks) -> None:
    assert abs(many.largest / many.predicted - 1) < TOLERANCE, many
    for name, value in zip(VERBS, added(few, many)):
        assert value < ROW_BYTES, f"{name}: {value:.0f} bytes for each particle"


def main(arguments: Sequence[str] = ()) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--particles", type=int, default=1_000_000)
    parser.add_argument("--box", type=int, default=32)
    parser.add_argument("--per-stack", type=int, default=0, help="images in a file; 0: all in one")
    parser.add_argument("--files", type=int, default=0, help="open files of a verb at the most; 0: as it is")
    parser.add_argument("--work", type=Path, help="folder for the images; default: that of temporary files")
    parser.add_argument("--write", action="store_true", help=f"write the section of {PAGE.name}")
    options = parser.parse_args(arguments or None)
    few, many = (run(count, options.box, options.per_stack, options.files, options.work)
                 for count in (options.particles // FEWER, options.particles))
    command = "python -m benchmarks.growth.many" + "".join(
        f" --{name} {value}" for name, value in (
            ("particles", options.particles), ("per-stack", options.per_stack), ("files", options.files))
        if value and value != parser.get_default(name)) + " --write"
    text = text_of(few, many, options.per_stack, options.files, command)
    print(text)
    if options.write:
        write_section("many-stacks" if options.per_stack else "many-particles", text, PAGE)
    if not options.per_stack:
        check(few, many)
    return 0


if __name__ == "__main__":
    sys.exit(main())
