"""How time and memory grow with the number of particles and with the size of the box.

    python -m benchmarks.scaling --write        (--large adds 100,000 particles)

Data are made by examples/simulate.py: 10³ to 10⁴ particles in a box of 64 px, and one number of particles of the
same complex at the same pixel size in boxes of 64 to 192 px. Two iterations each, so that every run does the same
work. The assertions at the end: the same sub-volume is found as well in any box, and better than in the input.
"""
from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np

from examples import simulate
from examples.evaluate import read_poses
from localrefine_plugin.engine.run_folder import RunFolder, read_json, write_json

from .measure import commit, machine, run_measured
from .page import PAGE, table, write_section
from .truth import Truth

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = dict(prior="gaussian", prior_rotation_deg=7.0, prior_shift_angstrom=4.0, max_iterations=2,
                initial_lowpass_angstrom=14.0, max_align_resolution_angstrom=10.0)  # the same shells in Å in every run
PIXEL_SIZE = 4.4
BOXES = (64, 96, 128, 192)
PHASES = ("read and transform", "search", "insert", "reconstruct")


@dataclass(frozen=True)
class Run:
    """Cost of a whole run of two iterations, seconds of its phases (both half-sets), and accuracy."""

    particles: int
    box: int
    cpu_seconds: float
    align_cpu_seconds: float
    peak_memory_mb: float
    phases: Dict[str, float]
    angle_deg: float
    input_angle_deg: float


def measured_run(particles: int, box: int, work: Path, cores: str) -> Run:
    """Simulate, refine, evaluate; the images are removed at the end. What was measured before is not run again."""
    folder = work / f"scaling_{box}_{particles}"
    data, measured = folder / "data", folder / "measured.json"
    if measured.exists():
        return Run(**read_json(measured))
    if not (data / "truth.json").exists():
        simulate.simulate(data, simulate.Options(particles=particles, box_size=box, pixel_size=PIXEL_SIZE))
    write_json(folder / "settings.json", SETTINGS)
    command = [sys.executable, "-m", "localrefine_plugin.engine", "refine",
               "--particles", str(data / "particles.star"), "--half-map-1", str(data / "half1.mrc"),
               "--half-map-2", str(data / "half2.mrc"), "--mask", str(data / "mask_B.mrc"), "--output",
               str(folder / "run"), "--settings", str(folder / "settings.json"), "--device", "cpu", "--overwrite"]
    cost = run_measured(command, folder / "log.txt", cores, ROOT)
    report, truth = read_json(RunFolder(folder / "run").report), Truth(data)
    (data / "particles.mrcs").unlink()
    (data / "truth.json").unlink()
    phases: Dict[str, float] = {}
    for half in report["halves"]:
        for name, seconds in half["phase_seconds"].items():
            phases[name] = phases.get(name, 0.0) + seconds
    final = RunFolder(folder / "run").final("particles.star")
    angles = [truth.of_poses(read_poses(star))["angle_deg"] for star in (final, data / "particles.star")]
    run = Run(particles, box, cost.cpu_seconds, sum(half["cpu_seconds"] for half in report["halves"]),
              cost.peak_memory_mb, phases, *angles)
    write_json(measured, asdict(run))
    return run


def rows_of(runs: Sequence[Run]) -> List[List[str]]:
    return [[f"{r.particles}", f"{r.box}", f"{r.cpu_seconds:.1f}", f"{1000 * r.cpu_seconds / r.particles / 2:.2f}",
             f"{1000 * r.align_cpu_seconds / r.particles / 2:.2f}", f"{r.peak_memory_mb:.0f}"]
            + [f"{r.phases.get(name, 0.0):.1f}" for name in PHASES]
            + [f"{r.input_angle_deg:.2f}° → {r.angle_deg:.2f}°"] for r in runs]


def growth(runs: Sequence[Run]) -> Tuple[float, float]:
    """Fixed CPU seconds and CPU ms per particle and iteration of t = a + b n, each run weighing the same."""
    n = np.array([run.particles for run in runs], float)
    t = np.array([run.cpu_seconds for run in runs])
    a, b = np.linalg.lstsq(np.stack([1 / t, n / t], axis=1), np.ones(len(t)), rcond=None)[0]
    return float(a), float(1000 * b / 2)


def draw(by_particles: Sequence[Run], by_box: Sequence[Run], path: Path) -> None:
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullLocator
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    for axis, runs, key, label in ((axes[0], by_particles, "particles", "particles (box 64)"),
                                   (axes[1], by_box, "box", f"box, px ({by_box[0].particles} particles)")):
        x = [getattr(run, key) for run in runs]
        axis.loglog(x, [run.cpu_seconds for run in runs], "o-", color="C0", label="CPU seconds, two iterations")
        axis.loglog(x, [run.peak_memory_mb / 10 for run in runs], "s--", color="C1", label="peak memory / 10 MB")
        axis.set(xlabel=label, xticks=x, xticklabels=[str(value) for value in x])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.grid(which="both", color="0.92")
        axis.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def check(by_particles: Sequence[Run], by_box: Sequence[Run]) -> None:
    for run in (*by_particles, *by_box):
        assert run.angle_deg < 0.9 * run.input_angle_deg, run
    angles = [run.angle_deg for run in by_box]
    assert max(angles) < 1.15 * min(angles), angles


def main(arguments: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("bench_data"))
    parser.add_argument("--cores", default="0,1", help="as taskset takes them")
    parser.add_argument("--particles", type=int, nargs="+", default=[1000, 3000, 10000])
    parser.add_argument("--large", action="store_true", help="100,000 particles as well (1.6 GB of images)")
    parser.add_argument("--boxes", type=int, nargs="+", default=list(BOXES))
    parser.add_argument("--box-particles", type=int, default=1000)
    parser.add_argument("--write", action="store_true", help=f"write the section of {PAGE.name} and its picture")
    options = parser.parse_args(arguments)
    work = options.work.resolve()
    counts = options.particles + ([100000] if options.large else [])
    done = {key: measured_run(*key, work, options.cores)
            for key in sorted({(n, 64) for n in counts} | {(options.box_particles, b) for b in options.boxes})}
    by_particles = [done[n, 64] for n in counts]
    by_box = [done[options.box_particles, b] for b in options.boxes]
    head = ["particles", "box", "CPU s", "CPU ms per particle and iteration", "of it align", "peak MB",
            *(f"{name}, wall s" for name in PHASES), "median angle of B"]
    fixed, slope = growth(by_particles)
    text = "\n\n".join([table(head, rows_of(by_particles)),
                        f"Box 64, CPU seconds of two iterations = {fixed:.1f} + 2 · {slope:.2f} ms · particles.",
                        table(head, rows_of(by_box))])
    print(text)
    if options.write:
        draw(by_particles, by_box, PAGE.parent / "images" / "scaling.png")
        where = f"Machine: {machine()}. Commit {commit()}."
        write_section("scaling", f"{text}\n\n![Growth](images/scaling.png)\n\n{where}\n\n"
                      f"    python -m benchmarks.scaling --write{' --large' if options.large else ''}")
    check(by_particles, by_box)


if __name__ == "__main__":
    main()
