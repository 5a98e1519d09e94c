"""A GPU tried before it is trusted: kernels, transforms, matrices and one tiny iteration against the CPU.

It takes a second or two and is done once for each GPU, driver, CuPy and version of the kernels.
"""
from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional

import numpy as np

from ..align.half_alignment import HalfSet
from ..align.half_set import HalfResult, align_half
from ..align.marginalize import posterior_insertions, weigh
from ..align.modes import Modes, best_modes
from ..align.reference import Reference, make_reference, slice_rows
from ..align.reference_errors import ReferenceErrors, pose_error_covariance
from ..align.search_plan import resolve, search_plan
from ..io.run_folder import write_json
from ..kernels import cuda
from ..kernels.cones import cell_sums
from ..kernels.device import CPU, Device, to_host
from ..kernels.distance import connected_parts, squared_distances
from ..kernels.fft import irfftn, rfft2, rfftn
from ..kernels.fixed_point import FixedPointSums, exact_sums, exponents
from ..kernels.insert import insert_slices
from ..kernels.moved import sum_of_moved
from ..kernels.prefetch import Prefetch, from_array
from ..kernels.shells import density_sums, shell_sums
from ..kernels.slices import extract_slices, gauss_newton_sums, score_grid
from ..maps.directions import shells_and_places
from ..maps.reconstruct import accumulator_shape, enforce_hermitian, new_accumulator
from ..model.ctf import CtfOnPixels
from ..model.optics import aberration_phase, magnifications
from ..model.pixels import half_plane_frequencies, highest_shell, last_column, pixel_list
from ..model.pose import exp_map, random_rotations
from ..progress import say
from ..records.errors import InputError
from ..records.particles import OpticsGroup, Particles
from ..records.poses import PoseTable
from ..records.settings import Settings

BOX, PIXEL_SIZE, PARTICLES, RESOLUTION_ANGSTROM = 32, 4.0, 16, 12.0


@dataclass(frozen=True)
class Check:
    """What differed, by how much relative to the largest value, and how much may."""

    name: str
    difference: float
    limit: float

    @property
    def passed(self) -> bool:
        return self.difference <= self.limit  # False for NaN


def ensure_tested(device: Device) -> None:
    """Test a GPU unless it has been.

    Raises
    ------
    InputError : it computes something else than the CPU; the message names the report.
    """
    if device.on_gpu and key_of(device) not in passed_before():
        say("first use of this GPU: its kernels are compiled and compared with the CPU, once (40 s on an H200)")
        judge(device, selftest(device))


def report_lines(device: Device) -> Iterator[str]:
    """Test a GPU now and say what came out; InputError as `ensure_tested`."""
    yield device.description
    if not device.on_gpu:
        yield "no GPU: nothing to compare"
        return
    checks = selftest(device)
    for check in checks:
        yield (f"{'ok     ' if check.passed else 'DIFFERS'} {check.name}: {check.difference:.1e} "
               f"(at most {check.limit:.0e})")
    judge(device, checks)


def judge(device: Device, checks: List[Check]) -> None:
    """Remember that a GPU passed, or raise InputError."""
    failed = [check for check in checks if not check.passed]
    if failed:
        report = cache_folder() / "selftest_failed.json"
        written = write_report(report, device, checks)
        worst = ", ".join(f"{check.name} by {check.difference:.1e}" for check in failed)
        raise InputError(f"computes something else than the CPU ({worst}); {written}", device.description,
                         "update the NVIDIA driver and CuPy, or use --device cpu, and please report it")
    remember(dict(passed_before(), **{key_of(device): time.strftime("%Y-%m-%d")}))


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "localrefine"


def key_of(device: Device) -> str:
    """Changes with GPU, driver, CuPy and CUDA sources."""
    sources = "".join(cuda.source_text(name) for name in cuda.SOURCES)
    return f"{device.identity} sources {hashlib.sha256(sources.encode()).hexdigest()[:12]}"


def passed_before() -> Dict[str, str]:
    """{key: date} of the tests passed; none if there is no readable record."""
    try:
        content = json.loads((cache_folder() / "selftest.json").read_text())
        return dict(content)
    except (OSError, ValueError, TypeError):
        return {}


def remember(known: Dict[str, str]) -> None:
    """Where no cache can be written the test is done every time."""
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        write_json(cache_folder() / "selftest.json", known)
    except OSError:
        pass


def write_report(path: Path, device: Device, checks: List[Check]) -> str:
    """Where the report is, or why there is none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, dict(device=device.description, identity=device.identity, checks=[asdict(c) for c in checks]))
    except OSError as error:
        return f"no report: {error}"
    return f"report: {path}"


def selftest(device: Device) -> List[Check]:
    """All checks, in order. Float32 sums in another order differ by about 1e-6 of the largest term, poses by more.

    Where an operator is wrong no iteration is tried.
    """
    checks = [compared(name, call, device, 1e-4) for name, call in operators().items()]
    return checks + (iteration(device) if all(check.passed for check in checks) else [])


def compared(name: str, call: Callable[[Device], Any], device: Device, limit: float) -> Check:
    return Check(name, difference(to_host(call(device)), to_host(call(CPU))), limit)


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30))


def operators() -> Dict[str, Callable[[Device], Any]]:
    """Every operator of the engine on made-up input."""
    rng = np.random.default_rng(1)
    e = Example()
    pixels, shell, ft = e.pixels, e.shell, e.reference.ft
    rows, owner = slice_rows(random_rotations(40, rng), e.reference.scale), np.arange(40) % PARTICLES
    z = complex_noise(rng, (PARTICLES, len(pixels)))
    grid_z = complex_noise(rng, (4, 6, len(pixels)))
    w = rng.uniform(0.1, 1, (PARTICLES, len(pixels))).astype(np.float32)
    image = complex_noise(rng, (PARTICLES, 2 * shell + 1, shell + 1))
    power = (np.abs(image) ** 2).astype(np.float32)
    shift, variance = rng.uniform(-3, 3, (40, 2)), rng.uniform(0, 0.5, 40)
    spectra, turns = [rfftn(e.map), rfftn(e.map[::-1].copy())], random_rotations(3, rng)
    symmetric = rng.standard_normal((9, 5, 5))
    symmetric = symmetric @ np.swapaxes(symmetric, 1, 2) + np.eye(5)
    modes = Modes.of(np.arange(9, dtype=np.int32) // 3, rotation=random_rotations(9, rng), precision=symmetric,
                     score=-rng.uniform(0, 1, 9))

    def sums(d: Device, part: int) -> Any:
        on = d.to_device
        return gauss_newton_sums(on(ft), on(rows), on(shift), on(owner), on(pixels.kx), on(pixels.ky), len(pixels),
                                 on(z), on(w), BOX)[part]

    def insert(d: Device, fixed: bool = False) -> Any:
        on, shape, scale = d.to_device, accumulator_shape(shell), exponents(float(power.max()), 40)
        accumulator = FixedPointSums(shape, scale, d.xp) if fixed else new_accumulator(shell, d.xp)
        insert_slices(accumulator, on(rows), on(owner), on(np.ones(40)), on(shift), on(variance),
                      on(last_column(shell)), on(image), on(power), BOX)
        accumulator = accumulator.to_float() if fixed else accumulator
        enforce_hermitian(accumulator)
        return accumulator

    def slices(d: Device) -> Any:
        on = d.to_device
        return extract_slices(on(ft), on(rows), on(pixels.kx), on(pixels.ky))

    def scores(d: Device) -> Any:
        on = d.to_device
        return score_grid(on(ft), on(rows.reshape(4, 10, 2, 3)), on(pixels.kx), on(pixels.ky), on(grid_z), on(w[:4]))

    def read_ahead(d: Device) -> Any:
        with Prefetch(from_array(e.images), PARTICLES, BOX, d) as ahead:
            return d.xp.concatenate([ahead(np.arange(i, i + 4)) + 0 for i in range(0, PARTICLES, 4)])

    def insertions(d: Device) -> Any:
        there = Modes(d.to_device(modes.owner), d.to_device(modes.table))
        weights, _ = weigh(there, best_modes(there, 3), 3)
        found = posterior_insertions(there, weights, 4.0, 3)
        return found.rotation * found.weight[:, None, None]

    return {
        "extract_slices": slices, "score_grid": scores,
        "log likelihood": lambda d: sums(d, 0), "gradient": lambda d: sums(d, 1), "curvature": lambda d: sums(d, 2),
        "insert_slices": insert, "insert_slices, fixed point": lambda d: insert(d, fixed=True),
        "sums of images": lambda d: exact_sums(d.to_device(power), d.to_device(np.full(power[0].size, 1024.0))),
        "sums over shells": lambda d: d.to_device(shell_sums(*(d.to_device(f) for f in spectra))),
        "density over shells": lambda d: d.to_device(density_sums(d.to_device(power))),
        "moved copies": lambda d: sum_of_moved(d.to_device(e.map), turns, turns @ np.ones(3), d.to_device(e.map)),
        "images read ahead": read_ahead, "rfft2": lambda d: rfft2(d.to_device(e.images)),
        "rfftn and irfftn": lambda d: irfftn(rfftn(d.to_device(e.map)), e.map.shape),
        "matrix product": lambda d: d.xp.matmul(d.to_device(w), d.to_device(w.T.copy())),
        "distances": lambda d: squared_distances(d.to_device(e.mask >= 0.5), 5),
        "parts of a region": lambda d: connected_parts(d.to_device(e.mask >= 0.5)),
        "sums over cells": lambda d: cell_sums(d.to_device(shells_and_places(BOX)[0]), d.to_device(spectra[0]),
                                               d.to_device(spectra[1]), BOX // 2)[0],
        "errors of poses": lambda d: pose_error_covariance(
            d.to_device(symmetric), d.to_device(symmetric + np.eye(5)), d.to_device(np.full(9, 0.5))),
        "insertions": insertions,
    }


def complex_noise(rng: np.random.Generator, shape: Any) -> np.ndarray:
    noise: np.ndarray = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)
    return noise


def iteration(device: Device) -> List[Check]:
    """A second iteration on the GPU and on the CPU: half of the images from the grid, half from their last poses."""
    e = Example()
    settings = Settings(prior="learned", prior_rotation_deg=4.0, prior_shift_angstrom=4.0)
    plan = search_plan(resolve(settings, e.mask, RESOLUTION_ANGSTROM, PIXEL_SIZE), e.particles, RESOLUTION_ANGSTROM)
    noise = np.full((2, e.shell + 1), 1.0)
    errors = ReferenceErrors(np.full(e.shell + 1, 0.8), np.full(e.shell + 1, 0.01), 20 * np.eye(3))

    def aligned(d: Device, previous: Optional[PoseTable]) -> HalfResult:
        half = HalfSet(e.particles, np.arange(PARTICLES), from_array(e.images), e.map, e.mask, noise, previous,
                       errors)
        return align_half(half, plan, d)
    first = aligned(CPU, None).poses
    first = replace(first, modes=1 + np.arange(PARTICLES) % 2)
    ours, theirs = aligned(device, first), aligned(CPU, first)
    turned = np.swapaxes(theirs.poses.rotation, 1, 2) @ ours.poses.rotation
    moved = ours.poses.shift_px - theirs.poses.shift_px
    return [Check("rotations of an iteration (rad)", float(np.abs(turned - np.eye(3)).max()), 1e-3),
            Check("shifts of an iteration (px)", float(np.abs(moved).max()), 1e-2),
            Check("half-map of an iteration", difference(ours.half_map, theirs.half_map), 1e-2)]


class Example:
    """Images of a made-up map at poses a little off those given: map, mask (N, N, N), images (n, N, N), particles."""

    def __init__(self) -> None:
        rng = np.random.default_rng(2)
        axis = np.arange(BOX) - BOX // 2
        at = rng.uniform(-5, 5, (30, 3))
        x, y, z = (np.exp(-(axis - at[:, i:i + 1]) ** 2 / 3.0) for i in range(3))
        self.map = np.einsum("gz,gy,gx->zyx", z, y, x).astype(np.float32)
        radius = np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis ** 2)
        self.mask = np.clip((12 - radius) / 3, 0, 1).astype(np.float32)
        self.shell = highest_shell(BOX)
        self.pixels = pixel_list(BOX, self.shell, self.shell)
        self.reference: Reference = make_reference(self.map, self.mask, np.zeros(3), self.shell)
        rotation = random_rotations(PARTICLES, rng)
        plain = OpticsGroup("plain", 300.0, 2.7, 0.1, PIXEL_SIZE, BOX)
        aberrated = replace(plain, name="aberrated", odd_zernike=(0.0, 0.0, 100.0, -50.0, 80.0, 100.0),
                            even_zernike=(0.0, 0.0, 0.0, 0.0, 900.0), magnification=(1.02, 0.01, -0.01, 0.99))
        flat, everyone = np.zeros(PARTICLES), np.arange(PARTICLES)
        self.particles = Particles(
            rotation=rotation, shift_px=np.zeros((PARTICLES, 2)), half_set=np.ones(PARTICLES, np.int8),
            defocus_u=np.full(PARTICLES, 12000.0), defocus_v=np.full(PARTICLES, 11500.0), defocus_angle=flat,
            phase_shift=flat, optics_group=(everyone % 2).astype(np.int32),
            stack=np.zeros(PARTICLES, np.int32), slice=everyone, optics=(plain, aberrated), stacks=("none",))
        self.images = self.project(rotation @ exp_map(rng.normal(0, 0.03, (PARTICLES, 3))))

    def project(self, rotation: np.ndarray) -> np.ndarray:
        """Images (n, N, N) float32 with CTF and aberrations, by slices."""
        kx, ky = (k.ravel() for k in half_plane_frequencies(self.shell))
        p, everyone = self.particles, np.arange(PARTICLES)
        matrices = magnifications(p)
        distorted = None if matrices is None else matrices[p.optics_group]
        slices = extract_slices(self.reference.ft, slice_rows(rotation, self.reference.scale, distorted), kx, ky)
        phases = np.array([aberration_phase(group, True, kx, ky) for group in p.optics])[p.optics_group]
        slices = slices * CtfOnPixels(p, kx, ky, CPU.to_device)(everyone) * np.exp(1j * phases)
        spectrum = np.zeros((PARTICLES, BOX, BOX // 2 + 1), np.complex64)
        rows = np.arange(-self.shell, self.shell + 1) % BOX
        spectrum[:, rows, :self.shell + 1] = slices.reshape(PARTICLES, 2 * self.shell + 1, self.shell + 1)
        images: np.ndarray = np.fft.fftshift(np.fft.irfft2(spectrum, s=(BOX, BOX)), axes=(1, 2)).astype(np.float32)
        return images
