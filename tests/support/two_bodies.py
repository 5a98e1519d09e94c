"""A particle of two bodies, of which B turns about one axis: images and densities in closed form, and their runs."""
from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import lru_cache

import mrcfile
import numpy as np
from experiments import contrast_of, inputs_of, make_particles
from oracles import Phantom, imaged, random_phantom, soft_ball
from relion_files import write_map, write_star
from run_results import temporary_folder
from scipy.spatial.transform import Rotation

from localrefine_plugin.engine import refine as engine
from localrefine_plugin.engine.bodies.film import film
from localrefine_plugin.engine.bodies.finished import open_body
from localrefine_plugin.engine.bodies.rigid import RigidPart
from localrefine_plugin.engine.io.run_folder import RunFolder, read_json, write_json
from localrefine_plugin.engine.records.settings import Settings

BOX, PIXEL_SIZE = 40, 4.0
AXIS = np.array([2.0, -1.0, 2.0]) / 3
FULCRUM = np.array([0.0, 1.0, -1.0])   # px from the centre of the box, xyz
ANGLE_DEG = 8.0                        # s.d. of the hinge
CENTRES = {"A": np.array([-7.0, 0.0, 0.0]), "B": np.array([7.0, 2.0, -1.0])}


def bodies():
    """Phantoms of A and B where B is at rest."""
    return {"A": random_phantom(45, 6.0, 1.2, seed=7, centre=CENTRES["A"]),
            "B": random_phantom(35, 5.5, 1.2, seed=8, centre=CENTRES["B"])}


def turned(phantom, rotation, about=FULCRUM, shift=(0.0, 0.0, 0.0)):
    """The phantom after x → H (x − p) + p + s."""
    return Phantom((phantom.points - about) @ rotation.T + about + np.array(shift), phantom.amplitudes, phantom.sigma)


def at_angle(degrees):
    """Density of the whole particle with B turned by so much about AXIS through FULCRUM."""
    both = bodies()
    return both["A"].density(BOX) + turned(both["B"], hinge(degrees)).density(BOX)


def hinge(degrees):
    return Rotation.from_rotvec(AXIS * np.deg2rad(degrees)).as_matrix()


@dataclass(frozen=True)
class TwoBodies:
    """angle (n,) degrees of each particle; particles hold the input poses: those of A, with errors."""

    particles: object
    images: np.ndarray
    angle: np.ndarray
    rotation: np.ndarray
    shift: np.ndarray


@lru_cache(maxsize=None)
def two_bodies(n=400, noise=0.35, error_deg=0.7, error_px=0.3, seed=4):
    rng = np.random.default_rng(seed)
    rotation, shift = Rotation.random(n, random_state=seed).as_matrix(), rng.uniform(-1.5, 1.5, (n, 2))
    angle = rng.normal(0, ANGLE_DEG, n)
    given = rotation @ Rotation.from_rotvec(rng.normal(0, error_deg, (n, 3)), degrees=True).as_matrix()
    particles = make_particles(n, BOX, PIXEL_SIZE, given, shift + rng.normal(0, error_px, (n, 2)), rng)
    both = bodies()
    clean = both["A"].projections(rotation, shift, BOX)
    for i, degrees in enumerate(angle):
        clean[i] += turned(both["B"], hinge(degrees)).projections(rotation[i:i + 1], shift[i:i + 1], BOX)[0]
    images = imaged(clean, contrast_of(particles)) + noise * rng.standard_normal(clean.shape)
    return TwoBodies(particles, images, angle, rotation, shift)


def mask_of(name):
    """The bodies are spheres; B's mask leaves room for its motion."""
    return soft_ball(BOX, 7.0, 9.5, CENTRES[name])


def write_two_bodies(folder, name, **star):
    """Inputs of a refinement of one body: the arguments of `refine` but the output and the settings."""
    folder.mkdir(parents=True, exist_ok=True)
    e, rng = two_bodies(), np.random.default_rng(5)
    blurred = np.mean([at_angle(degrees) for degrees in e.angle[:60]], axis=0)
    write_experiment(folder, e.particles, e.images, blurred, rng)
    write_map(folder / "mask.mrc", mask_of(name), PIXEL_SIZE)
    write_star(folder / "particles.star", e.particles, {1: "half_1.mrcs", 2: "half_2.mrcs"}, **star)
    return inputs_of(folder)


@lru_cache(maxsize=None)
def run_of(name):
    """A finished refinement of body "A" or "B"."""
    folder = temporary_folder()
    return engine.refine(*write_two_bodies(folder / f"two_bodies_{name}", name), str(folder / f"run_of_{name}"),
                         Settings(max_iterations=3), device="cpu", threads=1)


def copy_of(name, suffix):
    run = RunFolder(temporary_folder() / f"run_of_{name}_{suffix}")
    shutil.copytree(run_of(name).path, run.path)
    return run


@lru_cache(maxsize=None)
def whole_run(angle_deg, n=700, noise=2.0, seed=4):
    """A run in a mask of the whole particle, of images with the CTF, white noise and input poses 0.7° off."""
    folder = temporary_folder() / f"whole_{angle_deg}"
    rng = np.random.default_rng(seed)
    rotation, shift = Rotation.random(n, random_state=seed).as_matrix(), rng.uniform(-1.5, 1.5, (n, 2))
    angle = rng.normal(0, 1, n) * angle_deg
    given = rotation @ Rotation.from_rotvec(rng.normal(0, 0.7, (n, 3)), degrees=True).as_matrix()
    particles = make_particles(n, BOX, PIXEL_SIZE, given, shift + rng.normal(0, 0.3, (n, 2)), rng)
    both = bodies()
    clean = both["A"].projections(rotation, shift, BOX)
    for i, degrees in enumerate(angle):
        clean[i] += turned(both["B"], hinge(degrees)).projections(rotation[i:i + 1], shift[i:i + 1], BOX)[0]
    images = imaged(clean, contrast_of(particles)) + noise * rng.standard_normal(clean.shape)
    blurred = np.mean([at_angle(degrees) for degrees in angle[:60]], axis=0)
    folder.mkdir(parents=True)
    write_experiment(folder, particles, images, blurred, rng)
    write_map(folder / "mask.mrc", soft_ball(BOX, 15, 18), PIXEL_SIZE)
    write_star(folder / "particles.star", particles, {1: "half_1.mrcs", 2: "half_2.mrcs"})
    return engine.refine(*inputs_of(folder), str(folder / "run"), Settings(max_iterations=2), device="cpu", threads=1)


def write_experiment(folder, particles, images, density, rng):
    """The stack and the half-map, with noise, of each half-set."""
    for half in (1, 2):
        write_map(folder / f"input_{half}.mrc", density + 0.05 * density.std() * rng.standard_normal(density.shape),
                  PIXEL_SIZE)
        with mrcfile.new(str(folder / f"half_{half}.mrcs"), overwrite=True) as mrc:
            mrc.set_data(images[particles.half_set == half].astype(np.float32))
            mrc.set_image_stack()
            mrc.voxel_size = PIXEL_SIZE


@lru_cache(maxsize=None)
def films():
    """The film of body B against the input poses, and against the run of body A."""
    runs = copy_of("B", "film"), copy_of("B", "film_rest")
    return {rest: (run, film(str(run.path), str(run_of("A").path) if rest else None, frames=9, threads=1))
            for rest, run in zip((False, True), runs)}


TURNED_MAPS = ("map.mrc", "map_sharpened.mrc", "half_map_1.mrc", "half_map_2.mrc", "mask.mrc")


def turned_run(name, gauge, suffix):
    """A copy of a run whose maps, mask and poses are turned by ``gauge`` G about the mask's centre c: what was at v is
    at Gᵀ (v − c) + c, and R is R G. Its search counts as one without a prior, which would tie poses to the input's."""
    run = copy_of(name, suffix)
    for path in run.path.glob("iter_*/half_*_motion.npz"):
        path.unlink()
        done = path.with_name(path.name.replace("_motion.npz", ".json"))
        record = read_json(done)
        del record["files"][path.relative_to(run.path).as_posix()]
        write_json(done, record)
    content = read_json(run.input)
    content["resolved"]["prior"] = "off"
    write_json(run.input, content)
    write_json(run.settings, dict(read_json(run.settings), prior="off"))
    body = open_body(run.path)
    w = Rotation.from_matrix(gauge.T).as_rotvec()
    for file_name in TURNED_MAPS if w.any() else ():
        with mrcfile.open(run.final(file_name), mode="r+") as mrc:
            part = RigidPart(np.array(mrc.data), soft_ball(BOX, 14, 17, body.centre), body.centre)
            mrc.set_data(part.moved(w, np.zeros(3)))
    both = np.eye(5)
    both[:3, :3] = gauge.T
    for half in (1, 2):
        path = run.poses(body.iteration, half)
        with np.load(path) as stored:
            columns = dict(stored)
        rotation = columns["rotation"] @ gauge
        columns["shift_px"] = columns["shift_px"] + (columns["rotation"] - rotation)[:, :2] @ body.centre
        covariance = both @ columns["covariance"] @ both.T
        columns["rotation"], columns["covariance"] = rotation, covariance.astype(columns["covariance"].dtype)
        np.savez(path, **columns)
    return run
