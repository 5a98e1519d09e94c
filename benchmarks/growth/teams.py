"""What several processes or MPI ranks gain, whether they leave the same bits, and what passes between them.

    python -m benchmarks.growth.teams --members 1 2 3 --write
    python -m benchmarks.growth.teams --data mid --members 1 2 3 --write

Each member has one thread. One iteration is aligned again and again from the same prepared run, or with --data the
whole refinement is done: alone, by processes of one command, by ranks of mpirun. Efficiency is the time alone over the
time of n members times n, as wall time, which needs n free cores, and as CPU time, which does not. A large set has more
work for one start, so the CPU time of the start is measured, too: that of the same command where all is done before.
The model of a cluster takes its bytes from here.

Data: growth_data.py, from examples/simulate.py; or a folder of simulated particles with its consensus half-maps.
"""
from __future__ import annotations

import argparse
import hashlib
import pickle
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Sequence

from examples.simulate import Options
from localrefine_plugin.engine.align.half_alignment import HalfAlignment
from localrefine_plugin.engine.io.run_folder import RunFolder, read_json, write_json
from localrefine_plugin.engine.io.run_store import load_particles
from localrefine_plugin.engine.maps.reconstruct import accumulator_shape
from localrefine_plugin.engine.team import spans

from ..measure import commit, machine, run_measured
from ..page import PAGE, table, write_section
from . import growth_data

ROOT = Path(__file__).resolve().parents[2]
ENGINE = [sys.executable, "-m", "localrefine_plugin.engine"]
SETTINGS = dict(prior="gaussian", prior_rotation_deg=7.0, prior_shift_angstrom=4.0, max_iterations=1)
SHARED = ("read and transform", "pack", "search", "noise", "insert", "judge")  # phases that are shared out
HEAD = ("way", "members", "wall s", "predicted", "CPU s", "of it the start", "efficiency by wall time", "by CPU time",
        "without the start", "same bits")
Digests = Dict[str, str]
ROOT_MAY = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


@dataclass(frozen=True)
class Row:
    """One way to align an iteration: wall and CPU seconds, CPU seconds of the same with nothing to do, seconds that the
    first member spent on what is shared out and on what is not, and whether its maps and poses are those of one
    process."""

    way: str
    members: int
    wall_seconds: float
    cpu_seconds: float
    start_seconds: float
    shared_seconds: float
    other_seconds: float
    same: bool

    def predicted(self, members: int) -> float:
        """Wall seconds with so many members, from those of one: the second half-set begins while the first is
        reconstructed."""
        return self.wall_seconds - self.shared_seconds - self.other_seconds + self.shared_seconds / members \
            + self.other_seconds * (1.0 if members == 1 else 0.5 + 0.5 / members)


class Work:
    """What is done again and again in ``folder``: the first iteration, or all of the run."""

    def __init__(self, folder: Path, data: Path, everything: bool):
        words = ["--particles", "particles.star", "--half-map-1", "half1.mrc", "--half-map-2", "half2.mrc", "--mask",
                 "mask_B.mrc"]
        inputs = [str(data / word) if i % 2 else word for i, word in enumerate(words)]
        self.run, self.folder, self.expected = RunFolder(folder / "run"), folder, {}  # type: RunFolder, Path, Digests
        self.command = ["align", str(self.run.path), "--iteration", "1", "--half", "both"]
        if everything:
            self.command = ["refine", *inputs, "--output", str(self.run.path), "--continue"]
            return
        write_json(folder / "settings.json", SETTINGS)
        run_measured([*ENGINE, "prepare", *inputs, "--output", str(self.run.path), "--settings",
                      str(folder / "settings.json"), "--device", "cpu"], folder / "prepare.log", "0", ROOT)

    def forget(self) -> None:
        if self.command[0] == "refine":
            shutil.rmtree(self.run.path, ignore_errors=True)
        else:
            for half in (1, 2):
                self.run.forget_align(1, half)

    def digests(self) -> "Digests":
        """Of maps, poses and noise."""
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for folder in ("iter_*", "final")
                for path in self.run.path.glob(f"{folder}/*.*") if path.suffix in (".mrc", ".npz", ".star")}

    def done(self, way: str, members: int, cores: str) -> Row:
        """Once more."""
        self.forget()
        launcher = ["mpirun", "--oversubscribe", "--bind-to", "none", "-n", str(members)] if way == "MPI ranks" else []
        command = [*launcher, *ENGINE, *self.command, "--device", "cpu", "--threads", str(1 if launcher else members)]
        command += ["--processes", str(members)] if way == "processes" and members > 1 else []
        cost, start = (run_measured(command, self.folder / "log.txt", cores, ROOT, environment=ROOT_MAY)
                       for _ in range(2))
        self.expected = self.expected or self.digests()  # the first is alone
        records = [read_json(path) for path in self.run.path.glob("iter_*/half_*.json")]
        shared = sum(record["phase_seconds"].get(name, 0.0) for record in records for name in SHARED)
        other = sum(record["wall_seconds"] for record in records) - shared
        return Row(way, members, cost.wall_seconds, cost.cpu_seconds, start.cpu_seconds, shared, other,
                   self.digests() == self.expected)


def bytes_per_particle(run: RunFolder) -> float:
    """What a member sends of each particle it aligned: its part of the findings, as it is sent."""
    from localrefine_plugin.engine import refine
    sent: List[int] = []
    kept = HalfAlignment.drop_references

    def counted(self: HalfAlignment) -> None:
        parts = dict(vars(self.findings), noise=None, weight_sum=None)
        sent.append(len(pickle.dumps(parts, protocol=5)) // len(self.particles))
        kept(self)
    HalfAlignment.drop_references = counted  # type: ignore[method-assign]
    try:
        run.forget_align(1, 1)
        refine.align(str(run.path), 1, (1,), "cpu", 1)
    finally:
        HalfAlignment.drop_references = kept  # type: ignore[method-assign]
    return float(sent[0])


def text_of(rows: Sequence[Row], run: RunFolder, words: str, what: str) -> str:
    given, alone, per_particle = load_particles(run), rows[0], bytes_per_particle(run)
    particles, box = len(given), given.box_size
    lines = []
    for row in rows:
        wall = 100 * alone.wall_seconds / row.wall_seconds / row.members
        cpu = 100 * alone.cpu_seconds / row.cpu_seconds
        work = 100 * (alone.cpu_seconds - alone.start_seconds) / (row.cpu_seconds - row.start_seconds)
        lines.append([row.way if row.members > 1 else "alone", str(row.members), f"{row.wall_seconds:.1f}",
                      f"{alone.predicted(row.members):.1f}", f"{row.cpu_seconds:.1f}", f"{row.start_seconds:.1f}",
                      f"{wall:.0f} %", f"{cpu:.0f} %", f"{work:.0f} %", "yes" if row.same else "NO"])
    sums = 8 * float(accumulator_shape((box - 1) // 2)[0]) * accumulator_shape((box - 1) // 2)[1] ** 2 * 3
    shares = len(spans(particles // 2, 2))
    return (f"{what} of {particles:,} particles of {box} px, one thread a member, on {machine()}, commit "
            f"{commit()} (`python -m benchmarks.growth.teams {words} --write`):\n\n"
            + table(HEAD, lines)
            + f"\n\nEach member sends {per_particle:.0f} bytes for a particle it aligned, and {sums / 1e6:.0f} MB for "
            f"the sums of each half-set. Two members share a half-set in {shares} spans of images.")


def main(arguments: Sequence[str] = ()) -> int:
    parser = argparse.ArgumentParser(description="What several processes or MPI ranks gain.")
    parser.add_argument("--data", type=Path, help="folder of simulated particles, in place of those made here")
    parser.add_argument("--particles", type=int, default=6000)
    parser.add_argument("--box", type=int, default=96)
    parser.add_argument("--members", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--repeats", type=int, default=3, help="the fastest counts")
    parser.add_argument("--cores", default="0-1", help="as taskset takes them")
    parser.add_argument("--write", action="store_true", help="put the table into docs/reference/benchmarks.md")
    options = parser.parse_args(arguments or None)
    ways = [("processes", n) for n in options.members]
    ways += [("MPI ranks", n) for n in options.members if n > 1 and shutil.which("mpirun")]
    with tempfile.TemporaryDirectory() as folder:
        data, rows = options.data, []
        words = f"--data {data.name}" if data else f"--particles {options.particles} --box {options.box}"
        if data is None:
            data = Path(folder) / "data"
            growth_data.write(data, Options(particles=options.particles, box_size=options.box,
                                            pixel_size=281.6 / options.box, snr=0.1))
        work = Work(Path(folder), data.resolve(), everything=options.data is not None)
        for way, members in ways:
            tries = [work.done(way, members, options.cores) for _ in range(options.repeats)]
            rows.append(min(tries, key=lambda row: row.wall_seconds))
            if not all(row.same for row in tries):
                raise AssertionError(f"{members} {way}: other bits than alone")
        text = text_of(rows, work.run, words, "A refinement" if options.data else "One iteration")
    print(text)
    if options.write:
        write_section("teams-of-data" if options.data else "teams", text, PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
