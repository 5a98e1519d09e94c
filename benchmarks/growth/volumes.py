"""What prepare, one merge and finish cost, beside one transform of a volume in the same run.

    python -m benchmarks.growth.volumes --against OTHER_CHECKOUT --write

The steps are the verbs of the command line, each a process: its start is in it. CPU seconds are user and system of the
process, the least of --repeats runs of each checkout, in turns; the unit is one real transform of a volume of the same
box by SciPy with one thread. The maps of both checkouts are those of their own align step.

Data: growth_data.py, from examples/simulate.py.
"""
from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path
from typing import Dict, List, Optional, Sequence

import numpy as np
import scipy.fft

from examples.simulate import Options
from localrefine_plugin.engine.io.run_folder import write_json

from ..measure import Cost, commit, machine, run_measured
from ..page import table, write_section
from . import growth_data

ROOT = Path(__file__).resolve().parents[2]
STEPS = ("prepare", "merge", "finish")
PIXEL_SIZE, PARTICLES = 1.4, 1000


def transform_seconds(box: int) -> float:
    """CPU seconds of one real transform (N, N, N), the median of five after one that does not count."""
    volume, seconds = np.random.default_rng(0).standard_normal((box,) * 3, dtype=np.float32), []
    for _ in range(6):
        start = time.process_time()
        scipy.fft.rfftn(volume)
        seconds.append(time.process_time() - start)
    return float(np.median(seconds[1:]))


def steps_of(engine: Path, data: Path, work: Path, cores: str) -> Dict[str, Cost]:
    """The cost of each step with the engine of a checkout."""
    run = work / "run"
    shutil.rmtree(run, ignore_errors=True)
    write_json(work / "settings.json", dict(max_iterations=1))
    verb = [sys.executable, "-m", "localrefine_plugin.engine"]
    commands = {
        "prepare": [*verb, "prepare", "--particles", str(data / "particles.star"), "--half-map-1",
                    str(data / "half1.mrc"), "--half-map-2", str(data / "half2.mrc"), "--mask",
                    str(data / "mask_B.mrc"), "--output", str(run), "--settings", str(work / "settings.json"),
                    "--device", "cpu"],
        "align": [*verb, "align", "--iteration", "1", "--half", "both", "--device", "cpu", str(run)],
        "merge": [*verb, "merge", "--iteration", "1", str(run)],
        "finish": [*verb, "finish", str(run)]}
    return {step: run_measured(command, work / f"{step}.txt", cores, engine, environment={"PYTHONPATH": str(engine)})
            for step, command in commands.items()}


def least(costs: Sequence[Cost]) -> Cost:
    return min(costs, key=lambda cost: cost.cpu_seconds)


def report(found: Dict[str, List[Dict[str, Cost]]], box: int, unit: float) -> str:
    best = {name: {step: least([run[step] for run in runs]) for step in STEPS} for name, runs in found.items()}
    total = {name: sum(steps[step].cpu_seconds for step in STEPS) for name, steps in best.items()}
    rows = [[name, *(f"{steps[step].cpu_seconds:.1f}" for step in STEPS), f"{total[name]:.1f}",
             f"{total[name] / unit:.0f}", f"{max(steps[step].peak_memory_mb for step in STEPS):.0f}"]
            for name, steps in best.items()]
    text = (f"**Volumes.** Box {box}, {PARTICLES} particles, two cores. CPU seconds of prepare, one merge and finish, "
            f"in all, and in real transforms of a volume of that box ({unit:.3f} s).\n\n")
    text += table(["engine", *STEPS, "in all", "in transforms", "peak MB"], rows)
    if len(total) == 2:
        here, other = total.values()
        text += f"\n\nThe first takes {here / other:.2f} of the CPU seconds of the second."
    return text


def main(arguments: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("bench_data"))
    parser.add_argument("--cores", default="0,1", help="as taskset takes them")
    parser.add_argument("--box", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--against", type=Path, help="another checkout, to be measured in turns with this one")
    parser.add_argument("--name", default="the other checkout", help="what the table calls it")
    parser.add_argument("--write", action="store_true", help="write the section of the benchmarks' page")
    options = parser.parse_args(arguments)
    work = (options.work / "volumes").resolve()
    data = work / f"data_{options.box}"
    if not (data / "truth.json").exists():
        growth_data.write(data, Options(particles=PARTICLES, box_size=options.box, pixel_size=PIXEL_SIZE))
    engines = {f"commit {commit()}": ROOT}
    if options.against:
        engines[options.name] = options.against.resolve()
    found: Dict[str, List[Dict[str, Cost]]] = {name: [] for name in engines}
    for repeat in range(options.repeats + 1):  # the first compiles the kernels
        for name, engine in engines.items():
            steps = steps_of(engine, data, work, options.cores)
            if repeat:
                found[name].append(steps)
    text = report(found, options.box, transform_seconds(options.box))
    print(text)
    if options.write:
        again = f"python -m benchmarks.growth.volumes{' --against OTHER_CHECKOUT' if options.against else ''} --write"
        write_section("volumes", f"{text}\n\nMachine: {machine()}.\n\n    {again}")
    least_finish = least([run["finish"] for run in next(iter(found.values()))])
    assert least_finish.finished and least_finish.cpu_seconds > 0


if __name__ == "__main__":
    main()
