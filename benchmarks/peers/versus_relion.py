"""Our engine and RELION on the same simulated data, on the same cores, one after the other.

    python -m benchmarks.peers.versus_relion --preset mid --write        (or --data FOLDER)

Our runs are repeated between RELION's, so that a load of the machine meets both. Every job leaves its cost in the
work folder and is not run again; figures against the truth are worked out anew. The assertions at the end are on
correctness, not on speed.

Data: a preset of the benchmark's make_dataset.py (`mid`), or without it a small set of
examples/simulate.py.
"""
from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np

from examples.evaluate import read_map, read_poses
from examples.simulate import Poses
from localrefine_plugin.engine.io.run_folder import RunFolder, read_json, write_json
from localrefine_plugin.engine.io.run_store import load_poses

from ..measure import Cost, chained, commit, joined, machine, run_measured
from ..page import IMAGES, PAGE, table, write_section
from ..truth import Truth
from . import relion

ROOT = Path(__file__).resolve().parents[2]
MAKER = ROOT.parent / "shared" / "bench" / "make_dataset.py"
SETTINGS = {"ours, prior 7° / 4 Å": dict(prior="gaussian", prior_rotation_deg=7.0, prior_shift_angstrom=4.0),
            "ours, learned prior": dict(prior="learned")}
MASKED, SUBTRACTED = "RELION 3.1.3, whole box, masked", "RELION 3.1.3, subtracted and recentred"
COLUMNS = ("", "CPU s", "CPU ms per particle and iteration", "iterations", "wall s", "peak MB", "angle of B",
           "centroid of B", "FSC 0.5 to truth", "mean FSC to truth", "half-map FSC 0.143", "resolution to report")
# one run each on another machine, on the same files: (name, CPU s, iterations, wall s, figures)
ELSEWHERE = {
    ("mid", 0.08, 1): [("RELION 5, accelerated CPU path, masked", 2237, 11, 1140, (2.18, 0.68, 5.56, 0.856, 5.59))],
    ("mid", 0.02, 2): [("RELION 5, accelerated CPU path, masked", 714, None, None, (5.74, 2.20, 10.25, 0.541, 9.38))],
}


@dataclass(frozen=True)
class Row:
    """One program's result: costs of its repeats, figures against the truth, (CPU s, angle) by iteration."""

    name: str
    costs: List[Cost]
    iterations: int
    figures: Dict[str, float]
    trajectory: List[Tuple[float, float]]
    note: str = ""

    def median(self, attribute: str) -> float:
        return float(np.median([getattr(cost, attribute) for cost in self.costs]))


def once(path: Path, job: Callable[[], Cost]) -> Cost:
    """The cost of a job, from its file if it was done before."""
    if path.exists():
        return Cost(**read_json(path))
    cost = job()
    write_json(path, dataclasses.asdict(cost))
    return cost


def make_data(preset: str, extra: Sequence[str], folder: Path) -> Path:
    """The data set of a preset, made if it is not there; a small one of our own without the benchmark's maker."""
    if not (folder / "truth.json").exists():
        command = [sys.executable, str(MAKER), str(folder), "--preset", preset, *extra] if MAKER.exists() else [
            sys.executable, "-m", "examples.simulate", str(folder), *extra]
        subprocess.run(command, check=True, cwd=ROOT)
    return folder


def run_engine(data: Path, work: Path, settings: Dict[str, object], cores: str) -> Cost:
    work.mkdir(parents=True, exist_ok=True)
    write_json(work / "settings.json", settings)
    command = [sys.executable, "-m", "localrefine_plugin.engine", "refine",
               "--particles", str(data / "particles.star"), "--half-map-1", str(data / "half1.mrc"),
               "--half-map-2", str(data / "half2.mrc"), "--mask", str(data / "mask_B.mrc"), "--output",
               str(work / "run"), "--settings", str(work / "settings.json"), "--device", "cpu", "--overwrite"]
    return run_measured(command, work / "log.txt", cores, ROOT)


def engine_row(name: str, data: Path, run: RunFolder, costs: List[Cost], truth: Truth) -> Row:
    halves = [read_map(run.final(f"half_map_{half}.mrc")) for half in (1, 2)]
    final = read_poses(run.final("particles.star"))
    trajectory = []
    for k in range(1, run.iterations_done() + 1):
        cpu = costs[-1].cpu_at(run.iteration_done(k).stat().st_mtime)
        trajectory.append((cpu, truth.of_poses(engine_poses(run, k, truth.pixel_size))["angle_deg"]))
    figures = figures_of(truth, final, read_map(run.final("map.mrc")), halves, truth.mask)
    report = read_json(run.report)
    figures["reported_angstrom"] = report["resolution_to_report_angstrom"]
    figures["coarsest_angstrom"] = report["range_to_report_angstrom"][1]
    return Row(name, costs, len(trajectory), figures, trajectory)


def engine_poses(run: RunFolder, iteration: int, pixel_size: float) -> Poses:
    """Poses after an iteration, in the order of the input table."""
    tables = [load_poses(run, iteration, half) for half in (1, 2)]
    order = np.argsort(np.concatenate([t.row for t in tables]))
    rotation, shift = (np.concatenate([getattr(t, name) for t in tables])[order] for name in ("rotation", "shift_px"))
    return Poses(rotation, shift * pixel_size)


def figures_of(truth: Truth, poses: Poses, volume: np.ndarray, halves: Sequence[np.ndarray], mask: np.ndarray,
               centre_px: Optional[np.ndarray] = None) -> Dict[str, float]:
    return dict(truth.of_poses(poses), **truth.of_map(volume, poses, mask, centre_px),
                half_map_angstrom=truth.of_halves(halves[0], halves[1], mask))


def relion_row(name: str, data: Path, output: Path, cost: Cost, before: Optional[Cost], truth: Truth,
               start_star: Optional[Path] = None) -> Row:
    """``before`` is the cost of the subtraction and ``start_star`` its particles, for the second workflow."""
    found = relion.result(output)
    costs = [cost if before is None else joined([before, cost])]
    mask, centre, poses = truth.mask, None, found.poses
    whole = [(moment, p) for moment, p in found.trajectory]
    if start_star is not None:
        centre = relion.mask_centre(truth.mask)
        mask = read_map(start_star.parent.parent / "mask.mrc")
        start, cropped_start = read_poses(data / "particles.star"), relion.poses_of(start_star)

        def convert(p: Poses) -> Poses:
            return relion.in_whole_images(p, cropped_start, start, centre * truth.pixel_size, truth.pixel_size)
        poses, whole = convert(poses), [(moment, convert(p)) for moment, p in whole]
    offset = 0.0 if before is None else before.cpu_seconds
    trajectory = [(offset + cost.cpu_at(moment), truth.of_poses(p)["angle_deg"]) for moment, p in whole]
    figures = figures_of(truth, poses, found.map, found.half_maps, mask, centre)
    note = "" if found.converged else f"not converged: ended after iteration {len(trajectory)}"
    return Row(name, costs, len(trajectory), figures, trajectory, note)


def input_row(data: Path, truth: Truth) -> Row:
    halves = [read_map(data / f"half{half}.mrc") for half in (1, 2)]
    figures = figures_of(truth, read_poses(data / "particles.star"), (halves[0] + halves[1]) / 2, halves, truth.mask)
    return Row("input", [], 0, figures, [])


def run_all(options: argparse.Namespace, data: Path, work: Path, truth: Truth) -> List[Row]:
    """Our settings, RELION masked, ours again, RELION subtracted, ours again …"""
    peers = [name for name, wanted in ((MASKED, options.masked), (SUBTRACTED, options.subtracted)) if wanted]
    costs: Dict[str, List[Cost]] = {name: [] for name in SETTINGS}
    rows = [input_row(data, truth)]
    peer_rows = []
    for turn in range(max(options.repeat, len(peers))):
        if turn < options.repeat:
            for i, (name, settings) in enumerate(SETTINGS.items()):
                folder = work / f"ours_{i}_{turn}"
                costs[name].append(once(work / f"ours_{i}_{turn}.json",
                                        lambda f=folder, s=settings: run_engine(data, f, s, options.cores)))
        if turn < len(peers):
            peer_rows.append(run_peer(peers[turn], options, data, work, truth))
    for i, name in enumerate(SETTINGS):
        last = RunFolder(work / f"ours_{i}_{options.repeat - 1}" / "run")
        rows.append(engine_row(name, data, last, costs[name], truth))
    return rows + peer_rows


def run_peer(name: str, options: argparse.Namespace, data: Path, work: Path, truth: Truth) -> Row:
    inputs = relion.Inputs("particles.star", "consensus.mrc", "mask_B.mrc", options.diameter)
    before, start = None, None
    output = work / ("relion_masked" if name == MASKED else "relion_subtracted")
    output.mkdir(parents=True, exist_ok=True)
    if name == SUBTRACTED:
        second = relion.Inputs(str(output / "subtracted/particles_subtracted.star"), str(output / "reference.mrc"),
                               str(output / "mask.mrc"), options.diameter_of_b)
        before = once(work / "relion_subtraction.json", lambda: relion.subtract(
            data, output, options.new_box, truth.pixel_size, inputs, options.cores))
        inputs, start = second, Path(second.star)
    legs = [Cost(**read_json(path)) for path in sorted(work.glob(f"{output.name}_leg*.json"))]
    if not legs or (options.go_on and not relion.converged(output)):
        command = relion.continue_command(inputs, output) if legs else relion.refine_command(inputs, output)
        number = len(legs) + 1
        legs.append(once(work / f"{output.name}_leg{number}.json", lambda: run_measured(
            command, output / f"log_{number}.txt", options.cores, data, 60 * options.limit_minutes)))
    cost = chained(legs, relion.moments(output))
    return relion_row(name, data, output, cost, before, truth, start)


def cells(row: Row, particles: int) -> List[str]:
    f = row.figures
    accuracy = [f"{f['angle_deg']:.2f}°", f"{f['centroid_angstrom']:.2f} Å", f"{f['fsc_half_angstrom']:.2f} Å",
                f"{f['mean_fsc']:.3f}", f"{f['half_map_angstrom']:.2f} Å",
                f"{f['reported_angstrom']:.2f} Å" if "reported_angstrom" in f else "–"]
    if not row.costs:
        return [row.name] + ["–"] * 5 + accuracy
    cpu, leader = row.median("cpu_seconds"), row.median("leader_cpu_seconds")
    per = f"{1000 * cpu / particles / row.iterations:.1f}"
    spread = [cost.cpu_seconds for cost in row.costs]
    text = f"{cpu:.0f}" + (f" ({min(spread):.0f} – {max(spread):.0f})" if len(spread) > 1 else "")
    if leader > 1:
        text += f", of which the leader's waiting {leader:.0f}"
        per += f" (without the leader {1000 * (cpu - leader) / particles / row.iterations:.1f})"
    return [row.name + (f" ({row.note})" if row.note else ""), text, per, str(row.iterations),
            f"{row.median('wall_seconds'):.0f}", f"{row.median('peak_memory_mb'):.0f}", *accuracy]


def quoted(data: Path, particles: int) -> List[List[str]]:
    """Rows measured on another machine, if this is the data set they were measured on."""
    facts = read_json(data / "truth.json").get("args", {})
    rows = []
    for name, cpu, count, wall, (angle, shift, half, mean, own) in ELSEWHERE.get(
            (facts.get("preset"), facts.get("snr"), facts.get("seed")), []):
        per = f"{1000 * cpu / particles / count:.0f}" if count else "–"
        rows.append([f"{name} (measured elsewhere, one run)", f"{cpu}", per, str(count or "–"), str(wall or "–"), "–",
                     f"{angle:.2f}°", f"{shift:.2f} Å", f"{half:.2f} Å", f"{mean:.3f}", f"{own:.2f} Å", "–"])
    return rows


def describe(data: Path, particles: int) -> str:
    facts = read_json(data / "truth.json")
    a = facts.get("args") or facts["options"]
    box, pixel = a.get("box", a.get("box_size")), a.get("apix", a.get("pixel_size"))
    return f"{particles} particles, box {box} px, {pixel} Å/px, SNR {a['snr']}, seed {a['seed']}"


def draw(rows: Sequence[Row], path: Path, title: str) -> None:
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    start = rows[0].figures
    for axis, key, label in ((left, "angle_deg", "median angle of B to the truth (°), by iteration"),
                             (right, "mean_fsc", "mean FSC of the final map to the truth")):
        axis.axhline(start[key], color="0.6", linestyle="--", linewidth=1)
        axis.text(0.99, start[key], "input", color="0.4", ha="right", va="bottom", transform=axis.get_yaxis_transform())
        axis.set(xscale="log", xlabel="CPU seconds", ylabel=label)
        axis.grid(which="both", color="0.92")
    for i, row in enumerate(rows[1:]):
        left.plot(*zip(*row.trajectory), marker="o", markersize=4, color=f"C{i}", label=row.name)
        right.plot(row.median("cpu_seconds"), row.figures["mean_fsc"], "o", color=f"C{i}")
    figure.suptitle(title, fontsize=10)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def check(rows: Sequence[Row]) -> None:
    """A fast wrong answer fails here: better than the input, no worse than RELION, no resolution without truth."""
    start = rows[0].figures
    peers = [row.figures for row in rows[1:] if row.name not in SETTINGS]
    for row in rows[1:]:
        if row.name not in SETTINGS:
            continue
        f = row.figures
        assert f["centroid_angstrom"] < start["centroid_angstrom"], (row.name, f)
        assert f["mean_fsc"] > start["mean_fsc"], (row.name, f)
        assert max(f["reported_angstrom"] / 0.95, f["coarsest_angstrom"]) > f["fsc_half_angstrom"], (row.name, f)
        for peer in peers:
            assert f["mean_fsc"] > peer["mean_fsc"] - 0.02, (row.name, f, peer)
    best = min(row.figures["angle_deg"] for row in rows if row.name in SETTINGS)
    assert best < start["angle_deg"], (best, start)


def section(rows: Sequence[Row], data: Path, particles: int, picture: str, command: str) -> str:
    lines = [f"### {describe(data, particles)}", "", table(COLUMNS, [cells(row, particles) for row in rows]
                                                        + quoted(data, particles)), "",
             f"![Accuracy against CPU seconds](../images/{picture})", "",
             f"Machine: {machine()}. Commit {commit()}. {relion.version()}: {relion.LACKS}. CPU seconds of ours are "
             "medians of the repeats (range in parentheses), first command to final maps.", "", f"    {command}"]
    return "\n".join(lines)


def main(arguments: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a data set with its truth; otherwise one is made")
    parser.add_argument("--preset", default="mid", help="of the data set to make")
    parser.add_argument("--make", nargs="*", default=[], help="further options of its maker")
    parser.add_argument("--work", type=Path, default=Path("bench_data"))
    parser.add_argument("--name", help="of the section and picture; the data's folder by default")
    parser.add_argument("--cores", default="0,1", help="as taskset takes them")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--masked", action="store_true", help="run RELION on the whole box")
    parser.add_argument("--subtracted", action="store_true", help="run RELION's subtract-and-recentre workflow")
    parser.add_argument("--diameter", type=float, default=210, help="of the particle, Å, for RELION")
    parser.add_argument("--diameter-of-b", type=float, default=150, help="the same after subtraction")
    parser.add_argument("--new-box", type=int, default=60, help="of the subtracted images, px")
    parser.add_argument("--limit-minutes", type=float, default=25, help="for each of RELION's refinements")
    parser.add_argument("--go-on", action="store_true", help="continue refinements of RELION's that reached the limit")
    parser.add_argument("--write", action="store_true", help=f"write the section of {PAGE.name} and its picture")
    options = parser.parse_args(arguments)
    data = (options.data or make_data(options.preset, options.make, options.work / options.preset)).resolve()
    name = options.name or data.name
    work = (options.work / f"{name}_runs").resolve()
    truth = Truth(data)
    rows = run_all(options, data, work, truth)
    particles = len(truth.poses.rotation)
    print(table(COLUMNS, [cells(row, particles) for row in rows]))
    if options.write:
        draw(rows, IMAGES / f"versus_relion_{name}.png", describe(data, particles))
        flags = "".join(f" --{flag}" for flag in ("masked", "subtracted") if getattr(options, flag))
        made = f"--preset {options.preset}" if options.data is None else f"--data {data.name}"
        command = (f"python -m benchmarks.peers.versus_relion {made} --repeat {options.repeat} --cores "
                   f"{options.cores}{flags} --write")
        write_section(f"versus_relion {name}", section(rows, data, particles, f"versus_relion_{name}.png", command))
    check(rows)


if __name__ == "__main__":
    main()
