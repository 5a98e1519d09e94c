"""The first step: check everything, settle what "auto" means, write the input as iteration 0."""
from __future__ import annotations

import platform
import shutil
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np

from .align import HalfSetImages, pack
from .arguments import check_output, check_same_run
from .checks import CheckedInputs, check_inputs
from .files import ImageReader, write_map
from .fourier import lowpass
from .fsc import FscCurves, five_curves, write_fsc
from .kernels.gather import extract_slices
from .noise import NoiseSums
from .pixels import highest_shell, pixel_list
from .plan import resolve, search_plan
from .pose import project
from .progress import say
from .records import InputError, Particles, Settings
from .reference import make_reference, slice_rows
from .references import joined
from .run_folder import RunFolder, write_json
from .state import measured, save_arrays, save_particles, worker_count

NOISE_IMAGES = 500  # per half-set: shells of a few hundred pixels times this many images
GREY_SCALE_USUAL = 0.3, 3.0


def prepare(particles: str, half_map_1: str, half_map_2: str, mask: str, output: str, settings: Settings,
            device: str = "auto", threads: int = 0, mode: str = "new") -> RunFolder:
    """Check the inputs and write RUN with iteration 0; see refine.refine for the arguments."""
    run = RunFolder(output)
    paths = {name: str(Path(path).resolve()) for name, path in dict(
        particles=particles, half_map_1=half_map_1, half_map_2=half_map_2, mask=mask).items()}
    if open_run(run, paths, settings, mode):
        return run
    workers = worker_count(threads)
    with measured() as cost:
        say("checking particles, maps and mask")
        inputs = check_inputs(particles, half_map_1, half_map_2, mask, settings)
        curves = five_curves(*inputs.maps, inputs.mask, inputs.pixel_size, settings.seed, settings.fsc_randomise_below,
                             workers=workers)
        resolved = resolve(settings, inputs.mask, curves.resolutions()["corrected"], inputs.pixel_size)
        scales, noise, references = first_references(inputs, resolved, workers)
        warnings = list(inputs.warnings) + grey_scale_warnings(scales)
    run.iteration(0).mkdir(parents=True, exist_ok=True)
    write_map(run.mask, inputs.mask, inputs.pixel_size)
    for half in (1, 2):
        write_map(run.reference(0, half), references[half - 1] * scales[half - 1], inputs.pixel_size)
        save_arrays(run.noise(0, half), power=noise[half - 1])
    write_fsc(run.fsc(0), curves)
    stored = save_particles(run, inputs.particles)
    write_json(run.settings, settings.as_dict())
    write_json(run.input, dict(
        paths, versions=versions(), box_size=inputs.particles.box_size, pixel_size=inputs.pixel_size,
        resolved=resolved, grey_scale=scales, warnings=warnings, **stored))
    write_json(run.iteration_done(0), dict(first_decision(curves, resolved, warnings), **cost))
    for text in warnings:
        say(f"warning: {text}")
    return run


def open_run(run: RunFolder, paths: Dict[str, str], settings: Settings, mode: str) -> bool:
    """Make the run folder ready; True if it holds a prepared run to continue. Never touches foreign files."""
    check_output(run.path, mode, paths)
    if mode == "continue" and run.iterations_done() >= 0:
        check_same_run(run, paths, settings)
        write_json(run.settings, settings.as_dict())
        return True
    if mode == "overwrite" and run.path.exists():
        clear(run)
    run.path.mkdir(parents=True, exist_ok=True)
    return False


def clear(run: RunFolder) -> None:
    """Remove what an earlier run wrote, and only that."""
    for name in (run.settings, run.input, run.error, run.report, run.particles, run.mask):
        if name.exists():
            name.unlink()
    for folder in list(run.path.glob("iter_[0-9][0-9][0-9]")) + [run.path / "final"]:
        if folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder)


def first_references(inputs: CheckedInputs, resolved: Dict[str, Any],
                     workers: int) -> Tuple[List[float], List[np.ndarray], List[np.ndarray]]:
    """Grey scale, noise power and low-passed map of each half, each from its own half alone (but for the join)."""
    references = [lowpass(m, inputs.pixel_size, resolved["initial_lowpass_angstrom"], workers=workers)
                  for m in joined(inputs.maps, resolved["join_halves_resolution_angstrom"], inputs.pixel_size, workers)]
    scales, noise = [], []
    for half in (1, 2):
        rows = np.flatnonzero(inputs.particles.half_set == half)
        rows = rows[np.unique(np.linspace(0, len(rows) - 1, NOISE_IMAGES).astype(int))]
        some = inputs.particles.take(rows)
        scale, power = scale_and_noise(some, references[half - 1], inputs.mask, resolved, workers)
        scales.append(scale)
        noise.append(power)
    return scales, noise, references


def scale_and_noise(particles: Particles, volume: np.ndarray, mask: np.ndarray, resolved: Dict[str, Any],
                    workers: int) -> Tuple[float, np.ndarray]:
    """α = Σ Re(X* C Y / σ²) / Σ C² |Y|² / σ² at the input poses, and σ² (groups, M + 1), the images' mean power."""
    max_shell = highest_shell(particles.box_size)
    plan = search_plan(resolved, particles, resolved["initial_lowpass_angstrom"])
    reference = make_reference(volume, mask, plan.centre, plan.align_shell, workers)
    pixels = pixel_list(particles.box_size, plan.align_shell, max_shell)
    sums = np.zeros(2)
    with ImageReader(particles) as reader:
        noise_power = mean_power(particles, reader, max_shell, workers)
        images = HalfSetImages(particles, reader.read, noise_power, max_shell, workers)
        for start in range(0, len(particles), 100):
            rows = np.arange(start, min(start + 100, len(particles)))
            rotation = particles.rotation[rows]
            packed = pack(images.batch(rows), pixels, particles.shift_px[rows] + project(rotation, plan.centre))
            slices = extract_slices(reference.ft, slice_rows(rotation, reference.scale), pixels.kx, pixels.ky)
            sums[0] += (packed.matched.conj() * slices).real.sum(dtype=np.float64)
            sums[1] += (packed.weight * np.abs(slices) ** 2).sum(dtype=np.float64)
    scale = float(sums[0] / max(sums[1], 1e-30))
    if scale <= 0:
        raise InputError("have the opposite contrast of the particles (or the poses do not belong to them)",
                         "half-maps", "invert the contrast of particles or maps, so that both are white on black")
    return scale, noise_power


def mean_power(particles: Particles, reader: ImageReader, max_shell: int, workers: int) -> np.ndarray:
    """Mean power of the images by group and shell: the noise, as long as no model explains any of it."""
    blank = np.ones((len(particles.optics), max_shell + 1))
    sums = NoiseSums(particles, blank)
    images = HalfSetImages(particles, reader.read, blank, max_shell, workers)
    for start in range(0, len(particles), 100):
        rows = np.arange(start, min(start + 100, len(particles)))
        sums.add(rows, images.batch(rows).power, np.zeros((len(rows), 0)), np.zeros(0, int))
    return sums.power()


def grey_scale_warnings(scales: List[float]) -> List[str]:
    """What the fitted grey scale says about the input."""
    low, high = GREY_SCALE_USUAL
    if all(low <= s <= high for s in scales):
        return []
    return [f"the grey scale of the half-maps is {scales[0]:.3g} and {scales[1]:.3g} times too small for the "
            "particles; it was fitted and corrected, but check that the particles are normalised and are those the "
            "maps came from"]


def first_decision(curves: FscCurves, resolved: Dict[str, Any], warnings: List[str]) -> Dict[str, Any]:
    """iteration.json of iteration 0."""
    return {"iteration": 0, "resolution_angstrom": curves.resolutions(),
            "resolution_0.5_angstrom": curves.resolutions(0.5),
            "align_resolution_angstrom": resolved["initial_lowpass_angstrom"], "converged": False, "stop_reason": "",
            "best_iteration": 0, "pose_change": {}, "at_rotation_limit": 0.0, "at_shift_limit": 0.0,
            "insertions_mean": 0.0, "warnings": warnings}


def versions() -> Dict[str, str]:
    """Versions of what computes, for the record."""
    import numba
    import scipy
    return {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__,
            "numba": numba.__version__}
