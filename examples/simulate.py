"""A hinged complex in RELION 3.1's format: noisy CTF-affected images of two bodies, of which B moves, or three.

    python -m examples.simulate OUTPUT [--particles 1200] [--box-size 80] [--model membrane] [--junk 0.2] ...

Body B turns about the neck by a random angle and shifts a little, each particle differently. The poses in
particles.star are those of body A, with errors: what a consensus refinement of the whole complex gives.

    x → H(x − p) + p + s  in the specimen      hence      R_B = R_A H,   c_B = c_A + P R_A (p + s − H p)

with p the fulcrum and c = −(rlnOriginXAngst, rlnOriginYAngst) the position of the particle in its image.

Written: particles.star particles.mrcs, half1.mrc half2.mrc (reconstructed from the input poses) and their mean
consensus.mrc, mask_A.mrc mask_B.mrc, and the truth: true_A.star true_B.star, gt_A.mrc gt_B.mrc gt_inB.mrc (what a
perfect refinement of B gives), truth.json. With --model two_hinges there is a body C as well, which moves like B about
a hinge of its own, and mask_C.mrc, true_C.star, gt_C.mrc, gt_inC.mrc.
"""
from __future__ import annotations

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

import mrcfile
import numpy as np
from scipy.spatial.transform import Rotation

from . import imaging, imperfections, membrane, phantom, two_hinges

BATCH = 50
SMEAR_SAMPLE = 100    # particles whose motion smears body A in gt_inB.mrc


MODELS = {"rna": phantom.Model.load, "membrane": membrane.model, "two_hinges": two_hinges.model}


@dataclass(frozen=True)
class Options(imperfections.Imperfections):
    """What is simulated; each field is an option of the command line."""

    model: str = "rna"                    # or membrane: a protein in a micelle; or two_hinges: bodies B and C move
    particles: int = 1200
    box_size: int = 80
    pixel_size: float = 3.6
    snr: float = 0.15                     # variance of the signal over that of the noise, where the particle is
    seed: int = 1
    hinge_rotation_deg: float = 7.0       # s.d. of the angle, about an axis of any direction
    hinge_shift_angstrom: float = 1.0     # s.d. per axis
    hinge_correlation: float = 0.0        # of body C's rotation and shift with body B's, axis by axis
    input_rotation_error_deg: float = 1.0  # r.m.s. angle
    input_shift_error_angstrom: float = 2.0  # s.d. per axis
    offset_px: float = 3.0                # particles are up to this far from the centre of their image
    defocus_low: float = 8000.0
    defocus_high: float = 22000.0
    astigmatism: float = 250.0
    voltage_kv: float = 300.0
    spherical_aberration_mm: float = 2.7
    amplitude_contrast: float = 0.1
    envelope_b_factor: float = 60.0       # of the imaging; the STAR file does not tell it
    amplitude_spread: float = 0.1
    particles_per_micrograph: int = 50
    threads: int = 2


@dataclass(frozen=True)
class Poses:
    """Rotations (n, 3, 3) and positions in the image (n, 2) in Å."""

    rotation: np.ndarray
    position: np.ndarray

    def __getitem__(self, rows: "slice | np.ndarray") -> "Poses":
        return Poses(self.rotation[rows], self.position[rows])


@dataclass(frozen=True)
class Motion:
    """x → H x + d of a body, particle by particle: rotation H (n, 3, 3) and displacement d (n, 3) in Å."""

    hinge: np.ndarray
    displacement: np.ndarray

    @classmethod
    def about(cls, fulcrum: np.ndarray, turn: np.ndarray, shift: np.ndarray) -> "Motion":
        """x → H (x − p) + p + s, of rotation vectors (n, 3) in radians and shifts s (n, 3) in Å."""
        hinge = Rotation.from_rotvec(turn).as_matrix()
        return cls(hinge, fulcrum + shift - hinge @ fulcrum)

    def of(self, poses: "Poses") -> "Poses":
        """Poses of the body that moves, from those of body A."""
        moved = np.einsum("nij,nj->ni", poses.rotation, self.displacement)[:, :2]
        return Poses(poses.rotation @ self.hinge, poses.position + moved)

    def inverse(self) -> "Motion":
        back = np.swapaxes(self.hinge, 1, 2)
        return Motion(back, -np.einsum("nij,nj->ni", back, self.displacement))

    def after(self, other: "Motion") -> "Motion":
        """x → H (H' x + d') + d, where the other one is H' and d'."""
        moved = np.einsum("nij,nj->ni", self.hinge, other.displacement)
        return Motion(self.hinge @ other.hinge, moved + self.displacement)

    def __getitem__(self, rows: slice) -> "Motion":
        return Motion(self.hinge[rows], self.displacement[rows])


@dataclass(frozen=True)
class Truth:
    """Everything drawn at random except the noise; first axis: particles."""

    body_a: Poses
    moving: List[Poses]       # of body B and, where there is one, C
    motions: List[Motion]     # of the same
    given: Poses
    defocus: Dict[str, np.ndarray]
    given_defocus: Dict[str, np.ndarray]
    amplitude: np.ndarray
    micrograph: np.ndarray
    half_set: np.ndarray

    def __len__(self) -> int:
        return len(self.half_set)

    @property
    def body_b(self) -> Poses:
        return self.moving[0]


def draw(options: Options, fulcrums: Sequence[np.ndarray], rng: np.random.Generator) -> Truth:
    """Poses, motions, defoci and half-sets of all particles; ``fulcrums`` (3,) of body B and, if there is one, C."""
    n = options.particles
    rotation_a = Rotation.random(n, random_state=int(rng.integers(2 ** 31))).as_matrix()
    if options.preferred_view_deg:
        rotation_a = imperfections.preferred_views(options, options.seed, n)
    body_a = Poses(rotation_a, rng.uniform(-1, 1, (n, 2)) * options.offset_px * options.pixel_size)
    motions = draw_motions(options, fulcrums, rng)
    half_set = np.empty(n, int)
    half_set[rng.permutation(n)] = 1 + np.arange(n) % 2
    defocus, micrograph = draw_defocus(options, rng)
    return Truth(body_a, [motion.of(body_a) for motion in motions], motions, with_errors(body_a, options, rng), defocus,
                 imperfections.given_defocus(options, options.seed, defocus),
                 np.exp(rng.normal(0, options.amplitude_spread, n)), micrograph, half_set)


def draw_motions(options: Options, fulcrums: Sequence[np.ndarray], rng: np.random.Generator) -> List[Motion]:
    """Of body B, and of body C with random numbers of its own."""
    drawn = [draw_motion(options, rng)]
    if len(fulcrums) > 1:
        share, own = options.hinge_correlation, draw_motion(
            options, imperfections.stream(options.seed, imperfections.SECOND_HINGE))
        drawn.append([share * b + np.sqrt(1 - share ** 2) * c for b, c in zip(drawn[0], own)])
    return [Motion.about(fulcrum, turn, shift) for fulcrum, (turn, shift) in zip(fulcrums, drawn)]


def draw_motion(options: Options, rng: np.random.Generator) -> List[np.ndarray]:
    """Rotation vectors (n, 3) in radians and shifts (n, 3) in Å."""
    n = options.particles
    axis = rng.standard_normal((n, 3))
    axis /= np.linalg.norm(axis, axis=1, keepdims=True)
    angle = np.deg2rad(rng.normal(0, options.hinge_rotation_deg, (n, 1)))
    return [axis * angle, rng.normal(0, options.hinge_shift_angstrom, (n, 3))]


def draw_defocus(options: Options, rng: np.random.Generator) -> Tuple[Dict[str, np.ndarray], np.ndarray]:
    """Defocus per particle, near that of its micrograph, and the number of the micrograph."""
    n = options.particles
    micrograph = np.arange(n) // options.particles_per_micrograph
    count = micrograph[-1] + 1
    mean = rng.uniform(options.defocus_low, options.defocus_high, count)[micrograph] + rng.normal(0, 150, n)
    half_difference = np.abs(rng.normal(0, options.astigmatism, count))[micrograph]
    angle = rng.uniform(-90, 90, count)[micrograph]
    return dict(u=mean + half_difference, v=mean - half_difference, angle=angle), micrograph


def with_errors(poses: Poses, options: Options, rng: np.random.Generator) -> Poses:
    """Poses as a consensus refinement would give them."""
    n = options.particles
    error = np.deg2rad(rng.normal(0, options.input_rotation_error_deg / np.sqrt(3), (n, 3)))
    return Poses(Rotation.from_rotvec(error).as_matrix() @ poses.rotation,
                 poses.position + rng.normal(0, options.input_shift_error_angstrom, (n, 2)))


class Microscope:
    """Makes images of the bodies, batch by batch; the noise depends on seed and batch alone."""

    def __init__(self, options: Options, bodies: Sequence[np.ndarray], radius: float, truth: Truth):
        self.options, self.truth = options, truth
        self.radius, self.junk = radius, imperfections.junk_rows(options, options.seed, len(truth))
        self.pixels = imaging.Pixels(options.box_size, options.pixel_size)
        self.true_pixels = imaging.Pixels(options.box_size, options.pixel_size * (1 + options.pixel_size_error))
        self.bodies = [imaging.VolumeTransform(body) for body in bodies]
        self.noise_amplitude = imaging.noise_amplitude(self.pixels)
        self.inside = self._circle(radius)
        first = self.signal(slice(0, BATCH))[:, self.inside]
        self.grey_scale = float(np.sqrt(options.snr / first.var(axis=1).mean()))

    def _circle(self, radius: float) -> np.ndarray:
        n = self.options.box_size
        axis = np.arange(n) - n // 2
        limit = min(0.47 * n, (radius + 8) / self.options.pixel_size + 1)
        return axis[:, None] ** 2 + axis ** 2 < limit ** 2

    def signal(self, rows: slice) -> np.ndarray:
        """Noise-free images (b, N, N) of these particles on the maps' own grey scale."""
        total = 0
        for body, poses in zip(self.bodies, (self.truth.body_a, *self.truth.moving)):
            total = total + body.extract(poses[rows].rotation, self.pixels) * self.shift(poses[rows])
        return self.pixels.images(total * self.ctf(rows)) * self.truth.amplitude[rows, None, None]

    def shift(self, poses: Poses) -> np.ndarray:
        return self.pixels.shift(poses.position / self.options.pixel_size)

    def ctf(self, rows: slice) -> np.ndarray:
        """Of the microscope."""
        return imaging.ctf(self.true_pixels, {k: v[rows] for k, v in self.truth.defocus.items()}, asdict(self.options))

    def given_ctf(self, rows: slice) -> np.ndarray:
        """As the STAR file has it."""
        optics = asdict(replace(self.options, envelope_b_factor=0.0))
        return imaging.ctf(self.pixels, {k: v[rows] for k, v in self.truth.given_defocus.items()}, optics)

    def specimens(self, rows: slice, rng: np.random.Generator) -> np.ndarray:
        """Noise-free images (b, N, N) of what is there: the particle, if any, and neighbours."""
        images = self.signal(rows)
        images[self.junk[rows]] = 0
        if self.options.neighbours:
            rotation, position = imperfections.neighbour_poses(rng, len(images), self.radius)
            others = Poses(rotation, position)
            seen = sum(body.extract(rotation, self.pixels) for body in self.bodies) * self.shift(others)
            there = rng.random(len(images)) < self.options.neighbours
            images += there[:, None, None] * self.pixels.images(seen * self.ctf(rows))
        return images

    def noise(self, rows: slice, rng: np.random.Generator) -> np.ndarray:
        """Images (b, N, N) of noise alone, the background of the ice included."""
        n, count, share = self.options.box_size, rows.stop - rows.start, self.options.structured_noise
        white = self.white(np.random.default_rng([self.options.seed, rows.start]), count)
        transforms = white * self.noise_amplitude
        if share:
            structured = imperfections.specimen_noise(self.pixels, self.white(rng, count), self.noise_amplitude,
                                                      self.ctf(rows))
            transforms = np.sqrt(1 - share) * transforms + np.sqrt(share) * structured
        return self.pixels.images(transforms) + imperfections.ramps(self.options, rng, count, n)

    def white(self, rng: np.random.Generator, count: int) -> np.ndarray:
        n = self.options.box_size
        return self.pixels.transforms(rng.standard_normal((count, n, n), dtype=np.float32))

    def images(self, rows: slice) -> np.ndarray:
        """Noisy images, normalised to mean 0 and s.d. 1 outside the particle as RELION expects them."""
        rng = imperfections.stream(self.options.seed, imperfections.BATCHES, rows.start)
        images = self.specimens(rows, rng) * self.grey_scale + self.noise(rows, rng)
        outside = images[:, ~self.inside]
        mean, spread = outside.mean(axis=1), outside.std(axis=1)
        return ((images - mean[:, None, None]) / spread[:, None, None]).astype(np.float32)

    def all_images(self) -> np.ndarray:
        with ThreadPoolExecutor(self.options.threads) as pool:
            return np.concatenate(list(pool.map(self.images, batches(len(self.truth)))))


def batches(n: int) -> Iterator[slice]:
    return (slice(start, min(start + BATCH, n)) for start in range(0, n, BATCH))


def half_maps(microscope: Microscope, images: np.ndarray) -> List[np.ndarray]:
    """The two half-maps that the given poses yield."""
    def one(half: int) -> np.ndarray:
        sums = imaging.Reconstruction(microscope.options.box_size)
        for rows in batches(len(images)):
            mine = microscope.truth.half_set[rows] == half
            given = microscope.truth.given[rows]
            centred = microscope.pixels.transforms(images[rows][mine]) * microscope.shift(given)[mine].conj()
            sums.insert(given.rotation[mine], microscope.pixels, centred, microscope.given_ctf(rows)[mine])
        return sums.map()
    with ThreadPoolExecutor(microscope.options.threads) as pool:
        return list(pool.map(one, (1, 2)))


OPTICS_COLUMNS = ("OpticsGroup", "OpticsGroupName", "AmplitudeContrast", "SphericalAberration", "Voltage",
                  "ImagePixelSize", "ImageSize", "ImageDimensionality")
PARTICLE_COLUMNS = ("ImageName", "MicrographName", "OpticsGroup", "RandomSubset", "DefocusU", "DefocusV",
                    "DefocusAngle", "AngleRot", "AngleTilt", "AnglePsi", "OriginXAngst", "OriginYAngst", "ClassNumber")


def write_star(path: Path, options: Options, truth: Truth, poses: Poses) -> None:
    """A RELION 3.1 particles file with these poses."""
    optics = [f"1 opticsGroup1 {options.amplitude_contrast} {options.spherical_aberration_mm} {options.voltage_kv} "
              f"{options.pixel_size} {options.box_size} 2"]
    angles, origin, defocus = imaging.euler_from_rotation(poses.rotation), -poses.position, truth.given_defocus
    rows = [f"{i + 1:06d}@particles.mrcs mic{truth.micrograph[i]:04d}.mrc 1 {truth.half_set[i]} "
            f"{defocus['u'][i]:.2f} {defocus['v'][i]:.2f} {defocus['angle'][i]:.3f} "
            + " ".join(f"{value:.5f}" for value in (*angles[i], *origin[i])) + " 1" for i in range(len(truth))]
    with open(path, "w", encoding="utf-8") as handle:
        for name, columns, lines in (("optics", OPTICS_COLUMNS, optics), ("particles", PARTICLE_COLUMNS, rows)):
            header = "".join(f"_rln{column} #{j}\n" for j, column in enumerate(columns, 1))
            handle.write(f"\n# version 30001\n\ndata_{name}\n\nloop_\n{header}" + "\n".join(lines) + "\n\n")


def write_mrc(path: Path, data: np.ndarray, pixel_size: float, stack: bool = False) -> None:
    with mrcfile.new(str(path), overwrite=True) as handle:
        handle.set_data(np.asarray(data, np.float32))
        if stack:
            handle.set_image_stack()
        handle.voxel_size = pixel_size


def seen_from(own: int, bodies: Sequence[np.ndarray], truth: Truth, pixel_size: float) -> np.ndarray:
    """The map that a perfect refinement of body ``own`` (1: B, 2: C) gives: it is sharp, the others are smeared.

    In its frame lies at x what body j, which moves by x → H' x + d', has at H'⁻¹ (H x + d − d').
    """
    total, motion = bodies[own], truth.motions[own - 1][:SMEAR_SAMPLE]
    for j, body in enumerate(bodies):
        if j != own:
            relative = motion if j == 0 else truth.motions[j - 1][:SMEAR_SAMPLE].inverse().after(motion)
            total = total + phantom.smeared(body, relative.hinge, relative.displacement, pixel_size)
    return total


def simulate(output: Path, options: Optional[Options] = None) -> None:
    """Write the whole data set into a folder."""
    options = options or Options()
    output.mkdir(parents=True, exist_ok=True)
    model = MODELS[options.model]()
    bodies = model.bodies(options.box_size, options.pixel_size)
    truth = draw(options, model.fulcrums, np.random.default_rng(options.seed))
    microscope = Microscope(options, bodies, model.radius, truth)
    images = microscope.all_images()
    write_mrc(output / "particles.mrcs", images, options.pixel_size, stack=True)
    half_1, half_2 = half_maps(microscope, images)
    maps = dict(half1=half_1, half2=half_2, consensus=(half_1 + half_2) / 2)
    for name, body in zip("ABC", bodies):
        maps[f"mask_{name}"] = phantom.soft_mask(body, options.pixel_size)
        maps[f"gt_{name}"] = body * microscope.grey_scale
    for own, (name, poses) in enumerate(zip("BC", truth.moving), 1):
        maps[f"gt_in{name}"] = seen_from(own, bodies, truth, options.pixel_size) * microscope.grey_scale
        write_star(output / f"true_{name}.star", options, truth, poses)
    for name, volume in maps.items():
        write_mrc(output / f"{name}.mrc", volume, options.pixel_size)
    write_star(output / "particles.star", options, truth, truth.given)
    write_star(output / "true_A.star", options, truth, truth.body_a)
    facts = dict(options=asdict(options), grey_scale=microscope.grey_scale,
                 fulcrum_angstrom=model.fulcrum.tolist(), centroid_b_angstrom=model.centroid_b.tolist(),
                 junk=np.flatnonzero(microscope.junk).tolist())
    if model.in_body_c is not None:
        facts.update(fulcrum_c_angstrom=model.fulcrum_c.tolist(), centroid_c_angstrom=model.centroid_c.tolist())
    (output / "truth.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def main(arguments: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    for field in fields(Options):
        parser.add_argument("--" + field.name.replace("_", "-"), type=type(field.default), default=field.default,
                            choices=MODELS if field.name == "model" else None)
    given = vars(parser.parse_args(arguments))
    simulate(given.pop("output"), Options(**given))


if __name__ == "__main__":
    main()
