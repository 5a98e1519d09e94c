"""Images for benchmarks.growth.scaling: those of examples/simulate.py, for large boxes and many images at little cost.

The complex fills a core of CORE_ANGSTROM. Its projections are made in a box of that size and put into images of any
box, where CTF, shift and noise are applied in full, so that a larger box holds the same particle at the same noise per
frequency. The CTF-free projections of at most DISTINCT particles are made; further particles have the same poses and
other noise. The half-maps are the complex as the input poses smear it, with noise of the power that a
reconstruction from half of the images has,

    |F(k)|² = σ²(k) / D(k),     D = ⟨C²⟩ n / (2k)  for n images with ⟨C²⟩ = ½.

Data: made here, from the phantom of examples/.
"""
from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Dict, Iterator, Sequence

import mrcfile
import numpy as np
import scipy.fft
from scipy.spatial.transform import Rotation

from examples import imaging, phantom, simulate
from examples.evaluate import pose_errors, read_poses
from examples.simulate import Options, Poses

CORE_ANGSTROM = 281.6  # 64 px of 4.4 Å
DISTINCT = 5000
SMEARED = 60  # motions that smear body B in the half-maps
POSE_ERROR_LOWPASS = np.pi * np.sqrt(2 / np.log(2))  # Å of phantom.lowpass for an error of 1 Å in the shifts


@dataclass(frozen=True)
class Complex:
    """Both bodies in the core's box, where their centre is, and the radius of the whole in Å."""

    body_a: np.ndarray
    body_b: np.ndarray
    fulcrum: np.ndarray
    centroid_b: np.ndarray
    radius: float

    @classmethod
    def load(cls, pixel_size: float) -> "Complex":
        model = phantom.Model.load()
        bodies = model.bodies(2 * int(round(CORE_ANGSTROM / pixel_size / 2)), pixel_size)
        return cls(*bodies, model.fulcrum, model.centroid_b, model.radius)


def embedded(core: np.ndarray, box: int) -> np.ndarray:
    """The map with its central voxel at that of a larger box, zeros around."""
    out = np.zeros((box,) * 3, np.float32)
    out[(middle(len(core), box),) * 3] = core
    return out


def middle(edge: int, box: int) -> slice:
    """Where ``edge`` voxels lie whose voxel edge // 2 is at box // 2."""
    return slice(box // 2 - edge // 2, box // 2 - edge // 2 + edge)


def projections(particle: Complex, truth: simulate.Truth, pixel_size: float) -> np.ndarray:
    """CTF-free images (n, c, c) of both bodies at their true poses."""
    pixels = imaging.Pixels(len(particle.body_a), pixel_size)
    images = np.zeros((len(truth),) + (len(particle.body_a),) * 2, np.float32)
    for body, poses in ((particle.body_a, truth.body_a), (particle.body_b, truth.body_b)):
        transform = imaging.VolumeTransform(body)
        for rows in simulate.batches(len(truth)):
            part = poses[rows]
            images[rows] += pixels.images(transform.extract(part.rotation, pixels)
                                          * pixels.shift(part.position / pixel_size))
    return images


class Camera:
    """Noisy images, with the CTF, of projections; normalised to mean 0 and s.d. 1 outside the particle."""

    def __init__(self, options: Options, radius: float, images: np.ndarray, truth: simulate.Truth):
        self.options, self.projections, self.truth = options, images, truth
        self.pixels = imaging.Pixels(options.box_size, options.pixel_size)
        self.noise_amplitude = imaging.noise_amplitude(self.pixels)
        axis = np.arange(options.box_size) - options.box_size // 2
        self.inside = axis[:, None] ** 2 + axis ** 2 < ((radius + 8) / options.pixel_size + 1) ** 2
        first = self.signal(np.arange(min(simulate.BATCH, len(images))))[:, self.inside]
        self.grey_scale = float(np.sqrt(options.snr / first.var(axis=1).mean()))

    def signal_ft(self, rows: np.ndarray) -> np.ndarray:
        options, n = self.options, self.options.box_size
        images = np.zeros((len(rows), n, n), np.float32)
        part = middle(self.projections.shape[-1], n)
        images[:, part, part] = self.projections[rows]
        c = imaging.ctf(self.pixels, {k: v[rows] for k, v in self.truth.defocus.items()}, asdict(options))
        return self.pixels.transforms(images) * c * self.truth.amplitude[rows, None]

    def signal(self, rows: np.ndarray) -> np.ndarray:
        return self.pixels.images(self.signal_ft(rows))

    def noise_ft(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Transforms (count, K) of noise of unit variance; the column kx = 0 holds both of its Friedel mates."""
        white = rng.standard_normal((count, len(self.pixels.kx), 2), dtype=np.float32).view(np.complex64)[..., 0]
        factor = np.where(self.pixels.kx == 0, 1.0, np.sqrt(0.5)).astype(np.float32)
        return white * (factor * self.noise_amplitude * self.options.box_size)

    def images(self, rows: np.ndarray, copy: int) -> np.ndarray:
        """Images of these projections with the noise of this copy of them."""
        rng = np.random.default_rng([self.options.seed, int(rows[0]), copy])
        images = self.pixels.images(self.signal_ft(rows) * self.grey_scale + self.noise_ft(len(rows), rng))
        outside = images[:, ~self.inside]
        mean, spread = outside.mean(axis=1), outside.std(axis=1)
        return ((images - mean[:, None, None]) / spread[:, None, None]).astype(np.float32)


def smeared(particle: Complex, truth: simulate.Truth, options: Options) -> np.ndarray:
    """The core as the input poses show it: body B smeared by its motion, all by the errors of the shifts."""
    back = truth.motions[0][:SMEARED].inverse()
    moved = phantom.smeared(particle.body_b, back.hinge, back.displacement, options.pixel_size)
    return phantom.lowpass(particle.body_a + moved, options.pixel_size,
                           POSE_ERROR_LOWPASS * options.input_shift_error_angstrom)


def noise_map(options: Options, rng: np.random.Generator) -> np.ndarray:
    """Noise (N, N, N) of a reconstruction from half of the images."""
    n = options.box_size
    pixels = imaging.Pixels(n, options.pixel_size)
    on_axis = (pixels.kx > 0) & (pixels.ky == 0)
    variance = np.interp(np.arange(n // 2), pixels.kx[on_axis],
                         (imaging.noise_amplitude(pixels)[on_axis] * n) ** 2)  # σ²(k) of the images' transforms
    shells = np.arange(n // 2)
    table = np.sqrt(variance * 4 * np.maximum(shells, 1) / (options.particles / 2) / n ** 3)
    table[-1] = 0
    spectrum = scipy.fft.rfftn(rng.standard_normal((n,) * 3, dtype=np.float32), workers=options.threads)
    k = np.fft.fftfreq(n, 1 / n).astype(np.float32)
    for z in range(n):
        radius = np.sqrt(k[z] ** 2 + k[:, None] ** 2 + np.arange(n // 2 + 1, dtype=np.float32) ** 2)
        spectrum[z] *= np.interp(radius, shells, table)
    noise: np.ndarray = scipy.fft.irfftn(spectrum, s=(n,) * 3, workers=options.threads, overwrite_x=True)
    return noise


def repeated(truth: simulate.Truth, count: int) -> simulate.Truth:
    """The first ``count`` of the particles said over and over; repeats are given poses 0.3° apart, for many particles
    of one pose are refused as not aligned."""
    rows, again = np.arange(count) % len(truth), np.arange(count) >= len(truth)
    turn = Rotation.from_rotvec(np.deg2rad(0.3) * again[:, None] * np.random.default_rng(1).standard_normal((count, 3)))
    given = replace(truth.given[rows], rotation=truth.given.rotation[rows] @ turn.as_matrix())
    defocus, given_defocus = ({name: values[rows] for name, values in of.items()}
                              for of in (truth.defocus, truth.given_defocus))
    return replace(truth, body_a=truth.body_a[rows], moving=[truth.body_b[rows]], given=given, defocus=defocus,
                   given_defocus=given_defocus, micrograph=truth.micrograph[rows], half_set=truth.half_set[rows])


def parts(count: int, distinct: int) -> Iterator[np.ndarray]:
    """Rows 0 … count − 1 in runs that do not cross a multiple of ``distinct``."""
    for start in range(0, count, distinct):
        for rows in simulate.batches(min(distinct, count - start)):
            yield np.arange(start + rows.start, start + rows.stop)


def write(output: Path, options: Options) -> None:
    """particles.star, particles.mrcs, half1.mrc, half2.mrc, mask_B.mrc, true_B.star and truth.json."""
    output.mkdir(parents=True, exist_ok=True)
    particle = Complex.load(options.pixel_size)
    distinct = min(options.particles, DISTINCT)
    truth = simulate.draw(replace(options, particles=distinct), [particle.fulcrum], np.random.default_rng(options.seed))
    camera = Camera(options, particle.radius, projections(particle, truth, options.pixel_size), truth)
    n = options.box_size
    with mrcfile.new_mmap(str(output / "particles.mrcs"), (options.particles, n, n), 2, overwrite=True) as mrc:
        for rows in parts(options.particles, distinct):
            mrc.data[rows[0]:rows[-1] + 1] = camera.images(rows % distinct, int(rows[0]) // distinct)
        mrc.set_image_stack()
        mrc.voxel_size = options.pixel_size
    density = embedded(camera.grey_scale * smeared(particle, truth, options), n)
    rng = np.random.default_rng(options.seed)
    for half in (1, 2):
        simulate.write_mrc(output / f"half{half}.mrc", density + noise_map(options, rng), options.pixel_size)
    mask = embedded(phantom.soft_mask(particle.body_b, options.pixel_size), n)
    simulate.write_mrc(output / "mask_B.mrc", mask, options.pixel_size)
    everything = repeated(truth, options.particles)
    simulate.write_star(output / "particles.star", options, everything, everything.given)
    simulate.write_star(output / "true_B.star", options, everything, everything.body_b)
    (output / "truth.json").write_text(json.dumps({"centroid_b_angstrom": particle.centroid_b.tolist()}) + "\n",
                                       encoding="utf-8")


def angles(data: Path, stars: Sequence[Path]) -> Dict[str, float]:
    """Median angle of body B from the truth in degrees, by STAR file, without the common rotation."""
    centroid = np.array(json.loads((data / "truth.json").read_text(encoding="utf-8"))["centroid_b_angstrom"])
    true: Poses = read_poses(data / "true_B.star")
    return {str(star): float(np.median(pose_errors(read_poses(star), true, centroid)[0])) for star in stars}
