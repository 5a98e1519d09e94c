"""How time and memory grow with the particles, the box and the resolution, beside what was predicted.

    python -m benchmarks.growth.scaling --write --large

Data are made by growth_data.py. Three series: 10³ to 10⁴ particles (--large: 10⁵) in a box of 64 px, two iterations;
one complex at one pixel size in boxes of 64 to 192 px (--large: 256 and 384); one box with ever finer maximum alignment
resolutions; the last two with one iteration. Seconds are CPU seconds of the process, in the phases of a step as well.
What was measured by the same commit in the same work folder is not run again.

Memory is predicted by the run itself (input.json). Time is predicted here from the smaller runs of each series:

    particles n     a + b n
    box N           for a particle a + b N² (pixels of an image and of its slices at one resolution),
                    for an iteration and for prepare and finish a + b N³ log₂ N (transforms of maps)
    resolution      the search a + b s² (pixels to shell s; a: the grid, which ends at 14 Å), insertions at their price

The assertions at the end: poses are better than the input's in every run, equally good in every box, and the memory is
within 20 % of the prediction and at most 10 % above it.

Data: growth_data.py, from examples/simulate.py.
"""
from __future__ import annotations

import argparse
import shutil
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np

from examples.simulate import Options
from localrefine_plugin.engine.io.run_folder import RunFolder, read_json, write_json

from ..measure import commit, machine, run_measured
from ..page import IMAGES, PAGE, table, write_section
from . import growth_data

ROOT = Path(__file__).resolve().parents[2]
PRIOR = dict(prior="gaussian", prior_rotation_deg=7.0, prior_shift_angstrom=4.0)
OF_PARTICLES = ("read and transform", "pack", "search", "noise", "insert")  # the other phases are once in an iteration
TOLERANCE, ABOVE = 0.2, 0.1


@dataclass(frozen=True)
class Case:
    """What is run. first_angstrom: initial low-pass; angstrom: maximum alignment resolution."""

    particles: int
    box: int
    pixel_size: float
    snr: float
    first_angstrom: float
    angstrom: float
    iterations: int

    @property
    def name(self) -> str:
        return f"{self.box}_{self.particles}_{self.pixel_size:g}_{self.angstrom:g}"

    @property
    def shell(self) -> int:
        """Last shell of the alignment."""
        return min(int(self.box * self.pixel_size / self.angstrom), (self.box - 1) // 2)

    def settings(self) -> Dict[str, Any]:
        return dict(PRIOR, max_iterations=self.iterations, initial_lowpass_angstrom=self.first_angstrom,
                    max_align_resolution_angstrom=self.angstrom)


ANY_NUMBER = Case(1000, 64, 4.4, 0.15, 14.0, 10.0, 2)
ANY_BOX = Case(300, 64, 4.4, 0.3, 10.0, 10.0, 1)
ANY_RESOLUTION = Case(1000, 128, 2.2, 1.0, 14.0, 14.0, 1)
NUMBERS, LARGE_NUMBERS = (1000, 3000, 10000), (100000,)
BOXES, LARGE_BOXES = (64, 96, 128, 192), (256, 384)
RESOLUTIONS = (14.0, 10.0, 7.0, 5.0)
FITTED_BOX = 128  # the largest box that predicts


@dataclass(frozen=True)
class Run:
    """A case and what it cost: CPU seconds of the whole, of all align and all merge steps, and of the phases of align
    (both half-sets, all iterations); memory in MB; insertions of an image; median angle of body B."""

    case: Case
    cpu_seconds: float
    align_seconds: float
    merge_seconds: float
    phases: Dict[str, float]
    peak_memory_mb: float
    predicted_memory_mb: float
    insertions: float
    angle_deg: float
    input_angle_deg: float

    @property
    def visits(self) -> int:
        return self.case.particles * self.case.iterations

    def milliseconds(self, *phases: str) -> float:
        """For a particle and iteration."""
        return 1000 * sum(self.phases.get(name, 0.0) for name in phases) / self.visits

    @property
    def iteration_seconds(self) -> float:
        """What an iteration takes whatever the number of particles: reconstruction, merge, maps read and written."""
        of_particles = sum(self.phases.get(name, 0.0) for name in OF_PARTICLES)
        return (self.align_seconds - of_particles + self.merge_seconds) / self.case.iterations

    @property
    def once_seconds(self) -> float:
        """Start-up, prepare, finish."""
        return self.cpu_seconds - self.align_seconds - self.merge_seconds

    @property
    def memory_off(self) -> float:
        return self.peak_memory_mb / self.predicted_memory_mb - 1


def measured_run(case: Case, work: Path, cores: str) -> Run:
    """Simulate, refine, evaluate; only what was measured is kept."""
    folder, version = work / "scaling" / case.name, commit()
    measured, data = folder / "measured.json", folder / "data"
    if measured.exists():
        found = read_json(measured)
        if found.pop("commit") == version and found["case"] == asdict(case):
            return Run(**dict(found, case=case))
    shutil.rmtree(folder, ignore_errors=True)
    growth_data.write(data, Options(particles=case.particles, box_size=case.box, pixel_size=case.pixel_size,
                                    snr=case.snr))
    run = refined(case, folder, cores)
    shutil.rmtree(data)
    shutil.rmtree(folder / "run")
    write_json(measured, dict(asdict(run), commit=version))
    return run


def refined(case: Case, folder: Path, cores: str) -> Run:
    data, run = folder / "data", RunFolder(folder / "run")
    write_json(folder / "settings.json", case.settings())
    command = [sys.executable, "-m", "benchmarks.growth.clocked", "refine", "--particles", str(data / "particles.star"),
               "--half-map-1", str(data / "half1.mrc"), "--half-map-2", str(data / "half2.mrc"), "--mask",
               str(data / "mask_B.mrc"), "--output", str(run.path), "--settings", str(folder / "settings.json"),
               "--device", "cpu", "--overwrite"]
    log = folder / "log.txt"
    cost = run_measured(command, log, cores, ROOT)
    report = read_json(run.report)
    phases: Dict[str, float] = {}
    for half in report["halves"]:
        for name, seconds in half["phase_seconds"].items():
            phases[name] = phases.get(name, 0.0) + seconds
    after = report["iterations"][1:]
    stars = [run.final("particles.star"), data / "particles.star"]
    angles = growth_data.angles(data, stars)
    return Run(case, cost.cpu_seconds, sum(half["cpu_seconds"] for half in report["halves"]),
               sum(step["cpu_seconds"] for step in after), phases,
               max(report["peak_memory_mb"], float(log.read_text(encoding="utf-8").split()[-1])),
               read_json(run.input)["predicted_memory_mb"], after[-1]["insertions_mean"],
               *(angles[str(star)] for star in stars))


def line(x: Sequence[float], y: Sequence[float]) -> Tuple[float, float]:
    """a ≥ 0 and b of y = a + b x, each point weighing the same in relation to y."""
    values, scale = np.array(x, float), np.array(y, float)
    a, b = np.linalg.lstsq(np.stack([1 / scale, values / scale], axis=1), np.ones(len(scale)), rcond=None)[0]
    if a < 0:
        ratio = values / scale
        a, b = 0.0, ratio.sum() / np.square(ratio).sum()
    return float(a), float(b)


Value = Callable[[Run], float]


def predicted(runs: Sequence[Run], from_runs: Sequence[Run], x: Value, y: Value) -> List[float]:
    """y of each run by the line a + b x through some of them."""
    a, b = line([x(run) for run in from_runs], [y(run) for run in from_runs])
    return [a + b * x(run) for run in runs]


def number(run: Run) -> float:
    return float(run.case.particles)


def area(run: Run) -> float:
    return float(run.case.box ** 2)


def transform(run: Run) -> float:
    return float(run.case.box ** 3 * np.log2(run.case.box))


def pixels(run: Run) -> float:
    return float(run.case.shell ** 2)


def insertion_ms(run: Run) -> float:
    return run.milliseconds("insert") / run.insertions


def beside(found: float, expected: float, form: str = ".1f") -> List[str]:
    return [f"{found:{form}}", f"{expected:{form}}"]


def memory(run: Run) -> List[str]:
    return [f"{run.peak_memory_mb:.0f}", f"{run.predicted_memory_mb:.0f}", f"{100 * run.memory_off:+.0f} %"]


def angle(run: Run) -> str:
    return f"{run.input_angle_deg:.2f}° → {run.angle_deg:.2f}°"


MEMORY_HEAD = ["peak MB", "predicted", "off by"]


def by_number(runs: Sequence[Run]) -> str:
    few = [run for run in runs if run.case.particles <= max(NUMBERS)] or runs
    expected = predicted(runs, few, number, lambda run: run.cpu_seconds)
    a, b = line([number(run) for run in few], [run.cpu_seconds for run in few])
    head = ["particles", "CPU s", "predicted", "CPU ms per particle and iteration", "of it the particle's own",
            *MEMORY_HEAD, "median angle of B"]
    rows = [[f"{run.case.particles}", *beside(run.cpu_seconds, seconds),
             f"{1000 * run.cpu_seconds / run.visits:.2f}", f"{run.milliseconds(*OF_PARTICLES):.2f}", *memory(run),
             angle(run)] for run, seconds in zip(runs, expected)]
    return (f"**Particles.** Box {ANY_NUMBER.box}, {ANY_NUMBER.pixel_size} Å per pixel, {ANY_NUMBER.iterations} "
            f"iterations to at most {ANY_NUMBER.angstrom:g} Å. CPU seconds = {a:.1f} + "
            f"{ANY_NUMBER.iterations} · {1000 * b / ANY_NUMBER.iterations:.2f} ms · particles, by the runs to "
            f"{max(run.case.particles for run in few)} particles.\n\n" + table(head, rows))


def by_box(runs: Sequence[Run]) -> str:
    small = [run for run in runs if run.case.box <= FITTED_BOX] or runs
    own = predicted(runs, small, area, lambda run: run.milliseconds(*OF_PARTICLES))
    fixed = predicted(runs, small, transform, lambda run: run.iteration_seconds)
    once = predicted(runs, small, transform, lambda run: run.once_seconds)
    head = ["box", "CPU ms of a particle", "predicted", "CPU s of an iteration besides", "predicted",
            "CPU s of prepare and finish", "predicted", "CPU s in all", "predicted", *MEMORY_HEAD,
            "insertions of an image", "median angle of B"]
    rows = []
    for run, of_particle, of_iteration, of_ends in zip(runs, own, fixed, once):
        total = of_ends + run.case.iterations * of_iteration + run.visits * of_particle / 1000
        rows.append([f"{run.case.box}", *beside(run.milliseconds(*OF_PARTICLES), of_particle, ".2f"),
                     *beside(run.iteration_seconds, of_iteration), *beside(run.once_seconds, of_ends),
                     *beside(run.cpu_seconds, total), *memory(run), f"{run.insertions:.1f}", angle(run)])
    return (f"**Box.** {ANY_BOX.particles} particles, {ANY_BOX.pixel_size} Å per pixel, {ANY_BOX.iterations} iteration "
            f"to {ANY_BOX.angstrom:g} Å. Predicted from the boxes to {FITTED_BOX} px: a particle a + b N², the rest "
            "a + b N³ log N.\n\n" + table(head, rows))


def by_resolution(runs: Sequence[Run]) -> str:
    coarse = sorted(runs, key=pixels)[:-1] or runs
    searched = predicted(runs, coarse, pixels, lambda run: run.milliseconds("search"))
    price = float(np.mean([insertion_ms(run) for run in coarse]))
    head = ["to, Å", "shells", "CPU ms of a search", "predicted", "insertions of an image", "CPU ms of them",
            "predicted", "CPU ms of a particle in all", *MEMORY_HEAD, "median angle of B"]
    rows = [[f"{run.case.angstrom:g}", f"{run.case.shell}", *beside(run.milliseconds("search"), ms, ".2f"),
             f"{run.insertions:.1f}", *beside(run.milliseconds("insert"), price * run.insertions, ".2f"),
             f"{run.milliseconds(*OF_PARTICLES):.2f}", *memory(run), angle(run)] for run, ms in zip(runs, searched)]
    case = ANY_RESOLUTION
    return (f"**Resolution.** {case.particles} particles, box {case.box}, {case.pixel_size} Å per pixel, "
            f"{case.iterations} iteration. The finest is predicted from the others: a search a + b s² at shell s, an "
            "insertion at the price it has there.\n\n" + table(head, rows))


def draw(series: Sequence[Tuple[str, str, Callable[[Run], float], Sequence[Run]]], path: Path) -> None:
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullLocator
    figure, axes = pyplot.subplots(1, len(series), figsize=(5 * len(series), 4), constrained_layout=True)
    for axis, (label, cost, x, runs) in zip(axes, series):
        at = [x(run) for run in runs]
        axis.loglog(at, [run.cpu_seconds for run in runs], "o-", color="C0", label=cost)
        axis.loglog(at, [run.peak_memory_mb / 10 for run in runs], "s-", color="C1", label="peak memory / 10 MB")
        axis.loglog(at, [run.predicted_memory_mb / 10 for run in runs], ":", color="0.3", label="predicted / 10 MB")
        axis.set(xlabel=label, xticks=at, xticklabels=[f"{value:g}" for value in at])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.grid(which="both", color="0.92")
        axis.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def check(runs: Sequence[Run], boxes: Sequence[Run]) -> None:
    for run in runs:
        assert run.angle_deg < 0.9 * run.input_angle_deg, run
        assert -TOLERANCE < run.memory_off < ABOVE, run
    angles = [run.angle_deg for run in boxes]
    assert not angles or max(angles) < 1.25 * min(angles), angles


def main(arguments: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("bench_data"))
    parser.add_argument("--cores", default="0,1", help="as taskset takes them")
    parser.add_argument("--particles", type=int, nargs="*", default=list(NUMBERS))
    parser.add_argument("--boxes", type=int, nargs="*", default=list(BOXES))
    parser.add_argument("--resolutions", type=float, nargs="*", default=list(RESOLUTIONS))
    parser.add_argument("--large", action="store_true",
                        help="100,000 particles (1.6 GB of images) and boxes of 256 and 384 px (12 GiB of memory) too")
    parser.add_argument("--write", action="store_true", help=f"write the section of {PAGE.name} and its picture")
    options = parser.parse_args(arguments)
    large = options.large
    series = [[replace(ANY_NUMBER, particles=n) for n in options.particles + large * list(LARGE_NUMBERS)],
              [replace(ANY_BOX, box=box) for box in options.boxes + large * list(LARGE_BOXES)],
              [replace(ANY_RESOLUTION, first_angstrom=d, angstrom=d) for d in options.resolutions]]
    work = options.work.resolve()
    if any(series):
        measured_run(replace(ANY_BOX, particles=100), work, options.cores)  # compiles the kernels
    numbers, boxes, resolutions = ([measured_run(case, work, options.cores) for case in cases] for cases in series)
    parts = [say(runs) for say, runs in ((by_number, numbers), (by_box, boxes), (by_resolution, resolutions)) if runs]
    text = "\n\n".join(parts)
    print(text)
    if options.write:
        draw([("particles (box 64)", "CPU seconds, two iterations", number, numbers),
              (f"box, px ({ANY_BOX.particles} particles)", "CPU seconds", lambda run: float(run.case.box), boxes),
              ("shells of the alignment (box 128)", "CPU seconds", lambda run: float(run.case.shell), resolutions)],
             IMAGES / "scaling.png")
        where = f"Machine: {machine()}. Commit {commit()}."
        write_section("scaling", f"{text}\n\n![Growth](../images/scaling.png)\n\n{where}\n\n"
                      f"    python -m benchmarks.growth.scaling --write{' --large' if large else ''}")
    check([*numbers, *boxes, *resolutions], boxes)


if __name__ == "__main__":
    main()
