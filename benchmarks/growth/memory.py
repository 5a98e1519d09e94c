"""Peak memory of a run beside what it predicted before it began, and against the number of particles.

    python -m benchmarks.growth.memory --write

Images are noise with a ball in the middle: what they show does not change how much memory they take. Every verb is
a process of its own; its peak is VmHWM. The assertions at the end: the peak of the whole run is within 20 % of the
prediction in every box, and twice as many particles add nothing to it but their rows in tables, at most 250 bytes in
each step.

Data: noise with a ball in the middle, made here.
"""
from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import mrcfile
import numpy as np

from localrefine_plugin.engine.io.run_folder import RunFolder, read_json, write_json
from localrefine_plugin.engine.io.run_store import load_particles
from localrefine_plugin.engine.io.star import StarTable, write_star
from localrefine_plugin.engine.model.pose import euler_deg_from_rotation, random_rotations

from ..page import DOCS, replace_section, table

PAGE = DOCS / "reference" / "reliability.md"
BOXES = {64: 8000, 96: 3600, 128: 2000}  # px: particles, enough for full batches
GROWTH = (100_000, 200_000)  # beyond what is only taken of a sample of the particles
GROWTH_BOX = 32
TOLERANCE = 0.2
ROW_BYTES = 250  # of a particle in tables
VERBS = ("prepare", "align", "merge", "finish")
PIXEL_SIZE, CHUNK = 3.0, 1000


def ball(box: int) -> np.ndarray:
    """(N, N, N) float32, a soft ball of a fifth of the box, 1 inside."""
    square = np.square(np.arange(box) - box // 2)
    radius = np.sqrt(square[:, None, None] + square[:, None] + square)
    return (0.5 - 0.5 * np.tanh((radius - 0.2 * box) / 2)).astype(np.float32)


def soft_mask(box: int) -> np.ndarray:
    square = np.square(np.arange(box) - box // 2)
    radius = np.sqrt(square[:, None, None] + square[:, None] + square)
    return (0.5 + 0.5 * np.cos(np.pi * np.clip((radius - 0.22 * box) / (0.12 * box), 0, 1))).astype(np.float32)


def write_map(path: Path, data: np.ndarray) -> None:
    with mrcfile.new(str(path), overwrite=True) as mrc:
        mrc.set_data(data.astype(np.float32))
        mrc.voxel_size = PIXEL_SIZE


def noisy(shadow: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Images (count, N, N) float32 of the ball."""
    noise = rng.standard_normal((count,) + shadow.shape, dtype=np.float32)
    return np.asarray(shadow + shadow.std() * noise, np.float32)


def write_stack(path: Path, count: int, shadow: np.ndarray, rng: np.random.Generator) -> None:
    with mrcfile.new_mmap(str(path), (count,) + shadow.shape, 2, overwrite=True) as mrc:
        for start in range(0, count, CHUNK):
            mrc.data[start:start + CHUNK] = noisy(shadow, min(CHUNK, count - start), rng)
        mrc.set_image_stack()
        mrc.voxel_size = PIXEL_SIZE


def write_particles(folder: Path, particles: int, box: int, rng: np.random.Generator, per_stack: int = 0) -> Path:
    """particles.star and its stacks, of ``per_stack`` images; 0: of all."""
    folder.mkdir(parents=True, exist_ok=True)
    number, per_stack, shadow = np.arange(particles), per_stack or particles, ball(box).sum(axis=0)
    names = ["images.mrcs"] + [f"images_{i:06d}.mrcs" for i in range(1, -(-particles // per_stack))]
    for i, name in enumerate(names):
        count = min(per_stack, particles - i * per_stack)
        if i == 0 or count < per_stack:
            write_stack(folder / name, count, shadow, rng)
        else:  # the same header, without a library that takes a millisecond for each of many files
            images = noisy(shadow, count, rng)
            (folder / name).write_bytes((folder / names[0]).read_bytes()[:-images.nbytes] + images.tobytes())
    angles = euler_deg_from_rotation(random_rotations(particles, rng))
    defocus = rng.uniform(2000, 3000, particles)  # without a sign change where the ball has signal
    write_star(folder / "particles.star", [
        StarTable.from_columns("optics", {
            "rlnOpticsGroup": [1], "rlnOpticsGroupName": ["one"], "rlnVoltage": [300.0], "rlnImageSize": [box],
            "rlnSphericalAberration": [2.7], "rlnAmplitudeContrast": [0.1], "rlnImagePixelSize": [PIXEL_SIZE]}),
        StarTable.from_columns("particles", {
            "rlnImageName": [f"{i % per_stack + 1:06d}@{names[i // per_stack]}" for i in number],
            "rlnOpticsGroup": number * 0 + 1,
            "rlnRandomSubset": 1 + number % 2, "rlnDefocusU": defocus, "rlnDefocusV": defocus,
            "rlnDefocusAngle": number * 0.0, "rlnOriginXAngst": number * 0.0, "rlnOriginYAngst": number * 0.0,
            "rlnAngleRot": angles[:, 0], "rlnAngleTilt": angles[:, 1], "rlnAnglePsi": angles[:, 2]})])
    return folder / "particles.star"


def write_data(folder: Path, particles: int, box: int, seed: int = 1, per_stack: int = 0) -> Dict[str, str]:
    """Inputs of a run; the arguments by name."""
    rng, density = np.random.default_rng(seed), ball(box)
    star = write_particles(folder, particles, box, rng, per_stack)
    for half in (1, 2):
        write_map(folder / f"half_{half}.mrc", density + 0.02 * rng.standard_normal(density.shape))
    write_map(folder / "mask.mrc", soft_mask(box))
    return {"--particles": str(star), "--half-map-1": str(folder / "half_1.mrc"),
            "--half-map-2": str(folder / "half_2.mrc"), "--mask": str(folder / "mask.mrc")}


@dataclass(frozen=True)
class Peaks:
    """MB and CPU seconds by verb (align: of the half-set that takes more, and of both), and what prepare said the run
    would take."""

    particles: int
    box: int
    predicted: float
    verbs: Dict[str, float]
    seconds: Dict[str, float]

    @property
    def largest(self) -> float:
        return max(self.verbs.values())


def verb(*words: str, most_files: int = 0) -> Tuple[float, float]:
    """Run a verb of the engine, with so many open files at the most; the peak of its memory in MB, CPU seconds."""
    watched = ("import sys, time; from localrefine_plugin.engine.__main__ import main; status = main(sys.argv[1:]); "
               "from localrefine_plugin.engine.kernels.host import peak_memory_mb; "
               "print(peak_memory_mb(), time.process_time()); sys.exit(status)")
    limit = ["prlimit", f"--nofile={most_files}"] if most_files else []
    command = [*limit, sys.executable, "-c", watched, *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    peak, seconds = done.stdout.splitlines()[-1].split()
    return float(peak), float(seconds)


def measured(particles: int, box: int, work: Path, iterations: int = 2,
             settings: Optional[Dict[str, object]] = None) -> Peaks:
    data = write_data(work / "data", particles, box)
    write_json(work / "settings.json", dict(settings or {}, max_iterations=iterations))
    return of_verbs(data, work, iterations)


def of_verbs(data: Dict[str, str], work: Path, iterations: int, most_files: int = 0) -> Peaks:
    """Every verb of a run of these inputs with ``work``'s settings.json."""
    run, threads = RunFolder(work / "run"), ["--threads", "1"]
    peaks: Dict[str, float] = dict.fromkeys(VERBS, 0.0)
    seconds = dict(peaks)

    def do(name: str, *words: str) -> None:
        peak, cpu = verb(name, *words, *threads, most_files=most_files)
        peaks[name], seconds[name] = max(peak, peaks[name]), cpu + seconds[name]
        print(f"{name}: {peak:.0f} MB, {cpu:.0f} CPU s", flush=True)
    do("prepare", *(word for pair in data.items() for word in pair), "--output", str(run.path), "--settings",
       str(work / "settings.json"), "--device", "cpu")
    for k in range(1, iterations + 1):
        for half in ("1", "2"):
            do("align", str(run.path), "--iteration", str(k), "--half", half, "--device", "cpu")
        do("merge", str(run.path), "--iteration", str(k))
    do("finish", str(run.path))
    rows = load_particles(run)
    return Peaks(len(rows), rows.box_size, read_json(run.input)["predicted_memory_mb"], peaks, seconds)


def row(peaks: Peaks) -> List[str]:
    return [str(peaks.particles), str(peaks.box)] + [f"{peaks.verbs[name]:.0f}" for name in VERBS] + [
        f"{peaks.predicted:.0f}", f"{100 * (peaks.largest / peaks.predicted - 1):+.0f} %"]


def check(boxes: Sequence[Peaks], growth: Sequence[Peaks]) -> None:
    for peaks in list(boxes) + list(growth):
        assert abs(peaks.largest / peaks.predicted - 1) < TOLERANCE, peaks
    for name, added in added_bytes(growth).items():
        assert added < ROW_BYTES, f"{name}: {added:.0f} bytes for each particle"


def added_bytes(growth: Sequence[Peaks]) -> Dict[str, float]:
    """Of each verb, for each particle more."""
    few, many = growth
    return {name: (many.verbs[name] - few.verbs[name]) * 2 ** 20 / (many.particles - few.particles) for name in VERBS}


def text(boxes: Sequence[Peaks], growth: Sequence[Peaks]) -> str:
    few, many = growth
    head = ["particles", "box, px", *VERBS, "predicted", "off by"]
    added = ["each particle more, bytes", str(many.box), *(f"{value:.0f}" for value in added_bytes(growth).values()),
             "", ""]
    return ("`python -m benchmarks.growth.memory --write`, peak of each verb (VmHWM) and prediction of the run in "
            f"MB:\n\n{table(head, [row(p) for p in list(boxes) + list(growth)] + [added])}\n\n"
            f"What a particle more takes are rows of tables. An image has {4 * many.box ** 2} bytes; only one batch of "
            "images is in memory.")


def main(arguments: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the section of docs/reference/reliability.md")
    options = parser.parse_args(arguments)
    boxes, growth = [], []
    for particles, box, found in [(n, box, boxes) for box, n in BOXES.items()] + [
            (n, GROWTH_BOX, growth) for n in GROWTH]:
        with tempfile.TemporaryDirectory() as work:
            found.append(measured(particles, box, Path(work), iterations=1))
        print(*row(found[-1]), flush=True)
    if options.write:
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(replace_section(page, "memory", text(boxes, growth)), encoding="utf-8")
    check(boxes, growth)
    return 0


if __name__ == "__main__":
    sys.exit(main())
