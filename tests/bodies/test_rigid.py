"""A part of a map as a rigid body, beside densities in closed form and RELION's projections."""
from __future__ import annotations

import subprocess

import mrcfile
import numpy as np
import pytest
from conftest import require_program
from experiments import make_particles
from oracles import random_phantom, shell_correlation, soft_ball
from relion_files import write_map, write_star
from scipy.spatial.transform import Rotation
from two_bodies import turned

from localrefine_plugin.engine.bodies.rigid import RigidPart
from localrefine_plugin.engine.model.pose import project

CENTRE = np.array([4.0, -2.0, 3.0])
W, D = np.deg2rad([14.0, -9.0, 20.0]), np.array([1.3, -2.2, 0.6])


def phantom():
    return random_phantom(40, 6.0, 1.2, seed=3, centre=CENTRE)


@pytest.mark.parametrize("box", [40, 41])
def test_a_moved_part_is_the_density_of_the_moved_phantom(box):
    """x → Exp(w)(x − c) + c + d. Beads of 1.2 px are band-limited to 1e-3 at the Nyquist frequency."""
    density = phantom().density(box)
    part = RigidPart(density, soft_ball(box, 10, 13, CENTRE), CENTRE)
    expected = turned(phantom(), Rotation.from_rotvec(W).as_matrix(), CENTRE, D).density(box)
    moved = part.moved(W, D)
    assert moved.dtype == np.float32
    assert np.abs(moved - expected).max() < 4e-3 * expected.max()
    assert shell_correlation(moved, expected)[1:box // 2 - 2].min() > 0.999
    np.testing.assert_allclose(part.moved(np.zeros(3), np.zeros(3)), density * soft_ball(box, 10, 13, CENTRE),
                               atol=4e-3 * density.max())


def test_a_map_without_fine_detail_is_read_as_it_is():
    """Beads of 2.4 px: at a third of a cycle per pixel 3e-6 of their amplitude is left."""
    smooth = random_phantom(40, 6.0, 2.4, seed=3, centre=CENTRE)
    density, mask = smooth.density(40), np.ones((40,) * 3)
    expected = turned(smooth, Rotation.from_rotvec(W).as_matrix(), CENTRE, D).density(40)
    part = RigidPart(density, mask, CENTRE, 3.0)
    moved = part.moved(W, D)
    assert part.finer == 1 and RigidPart(density, mask, CENTRE, 2.9).finer == 2
    assert np.abs(moved - expected).max() < 4e-3 * expected.max()


def test_what_leaves_the_box_is_cut_off():
    part = RigidPart(phantom().density(40), soft_ball(40, 10, 13, CENTRE), CENTRE)
    moved = part.moved(np.zeros(3), np.array([14.0, 0, 0]))
    expected = turned(phantom(), np.eye(3), CENTRE, (14.0, 0, 0)).density(40)
    assert np.abs(moved - expected).max() < 4e-3 * expected.max()
    assert not part.moved(np.zeros(3), np.array([80.0, 0, 0])).any()


def test_relion_sees_the_moved_part_as_the_part_at_the_moved_pose(tmp_path):
    """A body at v → Exp(w)(v − c) + c + d, seen at (R0, t0), is the body itself seen at R = R0 Exp(w) and the shift for
    which its centre c lands where c + d does: what a local refinement finds."""
    require_program("relion_project")
    density = phantom().density(40)
    moved = RigidPart(density, np.ones_like(density) * soft_ball(40, 13, 15, CENTRE), CENTRE).moved(W, D)
    r0 = Rotation.from_rotvec([0.4, -1.1, 0.7]).as_matrix()
    r = r0 @ Rotation.from_rotvec(W).as_matrix()
    shift = project(r0, CENTRE + D) - project(r, CENTRE)
    images, rng = [], np.random.default_rng(1)
    for name, volume, rotation, t in (("moved", moved, r0, np.zeros(2)), ("still", density, r, shift)):
        write_map(tmp_path / f"{name}.mrc", volume, 1.0)
        write_star(tmp_path / f"{name}.star", make_particles(1, 40, 1.0, rotation[None], t[None], rng), "none.mrcs")
        subprocess.run([require_program("relion_project"), "--i", f"{name}.mrc", "--ang", f"{name}.star", "--o", name],
                       cwd=tmp_path, check=True, capture_output=True)
        images.append(mrcfile.read(tmp_path / f"{name}.mrcs").astype(float).squeeze())
    assert np.corrcoef(images[0].ravel(), images[1].ravel())[0, 1] > 0.999
    assert np.abs(images[0] - images[1]).max() < 0.03 * images[1].max()
