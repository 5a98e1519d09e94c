"""RUN/final: what a user takes away, from the best iteration."""
from __future__ import annotations

import shutil
from typing import Any, Dict

from .files import read_map, read_particles, write_map, write_particles
from .fsc import read_fsc
from .progress import say
from .report import build_report
from .run_folder import RunFolder, read_json, write_atomic, write_json
from .sharpen import sharpen
from .state import load_particles, load_poses


def write_results(run: RunFolder, workers: int) -> None:
    """Unfiltered half-maps, their mean, the sharpened map, poses, mask and FSC of the best iteration."""
    last = run.iterations_done()
    k = read_json(run.iteration_done(last))["best_iteration"]
    (run.path / "final").mkdir(exist_ok=True)
    for half in (1, 2):
        copy(run.half_map(k, half), run.final(f"half_map_{half}.mrc"))
    copy(run.mask, run.final("mask.mrc"))
    copy(run.fsc(k), run.final("fsc.star"))
    pixel_size = read_json(run.input)["pixel_size"]
    mean = 0.5 * (read_map(run.half_map(k, 1))[0] + read_map(run.half_map(k, 2))[0])
    write_map(run.final("map.mrc"), mean, pixel_size)
    curves = read_fsc(run.fsc(k))
    sharpened, _ = sharpen(mean, pixel_size, curves.corrected, curves.resolutions()["corrected"], workers=workers)
    write_map(run.final("map_sharpened.mrc"), sharpened, pixel_size)
    write_final_particles(run, k)
    write_json(run.report, build_report(run))
    say(f"results of iteration {k} are in {run.path / 'final'}")


def write_final_particles(run: RunFolder, iteration: int) -> None:
    """particles.star with every input column and row, new angles and origins."""
    described: Dict[str, Any] = read_json(run.input)
    particles = load_particles(run)
    rotation, shift = particles.rotation.copy(), particles.shift_px.copy()
    for half in (1, 2):
        poses = load_poses(run, iteration, half)
        if poses is not None:
            rotation[poses.row], shift[poses.row] = poses.rotation, poses.shift_px
    _, table = read_particles(described["particles"])
    write_particles(run.final("particles.star"), table, rotation, shift)


def copy(source: Any, target: Any) -> None:
    def write(name: str) -> None:
        shutil.copyfile(source, name)
    write_atomic(target, write)


