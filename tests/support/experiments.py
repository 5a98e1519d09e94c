"""Simulated experiments with known poses: a phantom's images by real-space projection, CTF and white noise.

`Experiment` holds one in memory, for the align step alone; `write_inputs` puts it into RELION files for a whole run.
Everything is made from the oracles; the engine's own projector is not used.
"""

from __future__ import annotations

from dataclasses import dataclass

import mrcfile
import numpy as np
from oracles import (
    Phantom,
    at_frequencies,
    centred_transform,
    ctf_formula,
    full_frequencies,
    imaged,
    random_phantom,
    soft_ball,
)
from relion_files import write_map, write_star
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from localrefine_plugin.engine.align.half_alignment import HalfSet
from localrefine_plugin.engine.align.half_set import align_half
from localrefine_plugin.engine.align.search_plan import resolve, search_plan
from localrefine_plugin.engine.kernels.prefetch import from_array
from localrefine_plugin.engine.model.pose import random_rotations
from localrefine_plugin.engine.records.particles import OpticsGroup, Particles
from localrefine_plugin.engine.records.settings import Settings

OPTICS = dict(voltage_kv=300.0, spherical_aberration_mm=2.7, amplitude_contrast=0.1)


@dataclass(frozen=True)
class Experiment:
    """Images (n, N, N) of a phantom at ``truth`` poses; ``particles`` hold the perturbed input poses.

    ``centre`` of the sub-volume and its mask, px from the box centre; ``noise`` s.d. per pixel.
    """

    phantom: Phantom
    particles: Particles
    rotation: np.ndarray
    shift: np.ndarray
    images: np.ndarray
    mask: np.ndarray
    centre: np.ndarray
    noise: float

    @property
    def box(self) -> int:
        return self.particles.box_size

    @property
    def noise_power(self) -> np.ndarray:
        """E|N(k)|² of white noise (1, M + 1); a floor where there is none."""
        return np.full((1, (self.box - 1) // 2 + 1), (max(self.noise, 1e-2) * self.box) ** 2)

    def settings(self, **changes) -> Settings:
        return Settings(
            **dict(
                dict(prior="off", rotation_extent_deg=15.0, shift_extent_angstrom=15.0, marginalize=False), **changes
            )
        )

    def plan(self, resolution, **changes):
        resolved = resolve(self.settings(**changes), self.mask, resolution, self.particles.pixel_size)
        return search_plan(resolved, self.particles, resolution)

    def align(self, resolution, plan=None, previous=None, **changes):
        """The engine's align step with the noise-free phantom as reference."""
        return align_half(self.half_set(previous=previous), plan or self.plan(resolution, **changes))

    def half_set(self, **changes):
        """What the align step is given: the noise-free phantom as reference, true noise; or something else."""
        given = dict(
            particles=self.particles,
            index=np.arange(len(self.particles)),
            read=from_array(self.images.astype(np.float32)),
            reference_map=self.phantom.density(self.box),
            mask=self.mask,
            noise_power=self.noise_power,
        )
        return HalfSet(**dict(given, **changes))

    def errors(self, poses):
        """Rotation vectors (n, 3) in degrees and displacements (n, 2) in px of the centre from the truth."""
        w = Rotation.from_matrix(np.swapaxes(self.rotation, 1, 2) @ poses.rotation).as_rotvec(degrees=True)
        moved = (poses.rotation - self.rotation)[:, :2] @ self.centre + poses.shift_px - self.shift
        return w, moved

    def contrast(self):
        """CTFs (n, N, N) on `full_frequencies`."""
        return contrast_of(self.particles)

    def best_near_truth(self, resolution):
        """What maximum likelihood can do: errors (w in degrees, displacement in px) of least squares started at the
        truth, with the phantom's exact transform and no grid, interpolation or mask."""
        shell = self.box * self.particles.pixel_size / resolution
        kx, ky = full_frequencies(self.box)
        used = (np.hypot(kx, ky) < int(shell) + 0.5) & ((kx > 0) | ((kx == 0) & (ky > 0)))
        kx, ky = kx[used], ky[used]
        data, c = at_frequencies(centred_transform(self.images), kx, ky), at_frequencies(self.contrast(), kx, ky)
        results = []
        for i in range(len(self.images)):

            def residual(x, i=i):
                rotation = self.rotation[i] @ Rotation.from_rotvec(x[:3]).as_matrix()
                shift = self.shift[i] + x[3:] - (rotation - self.rotation[i])[:2] @ self.centre
                model = self.phantom.slices(rotation[None], shift[None], kx, ky, self.box)[0]
                r = data[i] - c[i] * model
                return np.concatenate([r.real, r.imag])

            results.append(least_squares(residual, np.zeros(5), method="lm", x_scale=(0.05, 0.05, 0.05, 0.3, 0.3)).x)
        results = np.array(results)
        return np.rad2deg(results[:, :3]), results[:, 3:]


def contrast_of(particles):
    kx, ky = full_frequencies(particles.box_size)
    return np.array(
        [
            ctf_formula(
                kx,
                ky,
                particles.box_size,
                particles.pixel_size,
                phase_shift=p,
                defocus_u=u,
                defocus_v=v,
                defocus_angle=a,
                **OPTICS,
            )
            for u, v, a, p in zip(
                particles.defocus_u, particles.defocus_v, particles.defocus_angle, particles.phase_shift
            )
        ]
    )


def make_particles(n, box, pixel_size, rotation, shift, rng):
    """Particles of one optics group, half-sets alternating; stacks are those of `write_inputs`."""
    u = rng.uniform(8000, 20000, n)
    half_set = (1 + np.arange(n) % 2).astype(np.int8)
    return Particles(
        rotation=rotation,
        shift_px=shift,
        half_set=half_set,
        defocus_u=u,
        defocus_v=u - rng.uniform(0, 1000, n),
        defocus_angle=rng.uniform(0, 180, n),
        phase_shift=np.zeros(n),
        optics_group=np.zeros(n, np.int32),
        stack=(half_set - 1).astype(np.int32),
        slice=np.arange(n) // 2,
        optics=(OpticsGroup("one", pixel_size=pixel_size, box_size=box, **OPTICS),),
        stacks=("half_1.mrcs", "half_2.mrcs"),
    )


def experiment(
    n,
    box=32,
    pixel_size=4.0,
    noise=0.0,
    seed=1,
    centre=(3.0, -2.0, 2.0),
    rotation_deg=3.0,
    displacement_px=0.8,
    sigma=1.2,
    count=30,
    shift_px=1.5,
    phantom=None,
):
    """n images of a sub-volume of radius 5.5 px about ``centre``; input poses off by these s.d. per axis."""
    rng = np.random.default_rng(seed)
    centre = np.array(centre)
    phantom = phantom or random_phantom(count, 5.5, sigma, seed=100, centre=centre)
    rotation, shift = random_rotations(n, rng), rng.uniform(-shift_px, shift_px, (n, 2))
    turned = rotation @ Rotation.from_rotvec(rng.normal(0, rotation_deg, (n, 3)), degrees=True).as_matrix()
    moved = shift - (turned - rotation)[:, :2] @ centre + rng.normal(0, displacement_px, (n, 2))
    particles = make_particles(n, box, pixel_size, turned, moved, rng)
    clean = imaged(phantom.projections(rotation, shift, box), contrast_of(particles))
    images = clean + noise * rng.standard_normal(clean.shape)
    return Experiment(phantom, particles, rotation, shift, images, soft_ball(box, 8, 11, centre), centre, noise)


def write_inputs(folder, e, half_map_noise=0.05, seed=5, **star):
    """particles.star, a stack per half-set, two half-maps (the phantom with noise of this share of its s.d.) and mask.

    ``star``: more for `relion_files.write_star`. Returns the arguments of `refine` but the output and the settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pixel_size, rng = e.particles.pixel_size, np.random.default_rng(seed)
    truth = e.phantom.density(e.box)
    for half in (1, 2):
        noisy = truth + half_map_noise * truth.std() * rng.standard_normal(truth.shape)
        write_map(folder / f"input_{half}.mrc", noisy, pixel_size)
        with mrcfile.new(str(folder / f"half_{half}.mrcs"), overwrite=True) as mrc:
            mrc.set_data(e.images[e.particles.half_set == half].astype(np.float32))
            mrc.set_image_stack()
            mrc.voxel_size = pixel_size
    write_map(folder / "mask.mrc", e.mask, pixel_size)
    write_star(folder / "particles.star", e.particles, {1: "half_1.mrcs", 2: "half_2.mrcs"}, **star)
    return inputs_of(folder)


def inputs_of(folder):
    return [str(folder / name) for name in ("particles.star", "input_1.mrc", "input_2.mrc", "mask.mrc")]
