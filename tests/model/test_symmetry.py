"""Point groups: order, closure, axes, and the maps of relion_image_handler --sym."""
from __future__ import annotations

import subprocess

import mrcfile
import numpy as np
import pytest
from map_phantoms import atoms, ball, density

from localrefine_plugin.engine.model import symmetry
from localrefine_plugin.engine.records.errors import InputError

ORDERS = {"C1": 1, "C2": 2, "c7": 7, "C13": 13, "D1": 2, "D2": 4, "D3": 6, "D11": 22, "T": 12, "O": 24,
          "I": 60, "I1": 60, "I2": 60, "I3": 60, "I4": 60}


def holds(group, rotation):
    return np.abs(group - rotation).max(axis=(1, 2)).min() < 1e-9


@pytest.mark.parametrize("name, order", ORDERS.items())
def test_operators_are_a_group_of_rotations_of_the_known_order(name, order):
    group = symmetry.operators(name)
    assert group.shape == (order, 3, 3)
    np.testing.assert_array_equal(group[0], np.eye(3))
    np.testing.assert_allclose(group @ group.transpose(0, 2, 1), np.broadcast_to(np.eye(3), group.shape), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(group), 1, atol=1e-12)
    distance = np.abs(group[:, None] - group[None]).max(axis=(2, 3)) + np.eye(order)
    assert distance.min() > 1e-3  # no operator twice
    for left in group:
        products = left @ group
        assert all(holds(group, product) for product in products)


@pytest.mark.parametrize("name, fold, axis", (
    ("D5", 5, (0, 0, 1)), ("D5", 2, (1, 0, 0)), ("T", 3, (0, 0, 1)), ("T", 2, (0, 0.816496, 0.577350)),
    ("O", 4, (0, 0, 1)), ("O", 4, (1, 0, 0)), ("O", 3, (1, 1, 1)),
    ("I1", 2, (1, 0, 0)), ("I1", 5, (0.85065081, 0, -0.52573111)), ("I1", 3, (0.93417236, 0.35682208, 0)),
    ("I2", 2, (0, 0, 1)), ("I2", 5, (0.52573111, 0, 0.85065081)), ("I2", 3, (0, 0.35682208, 0.93417236)),
    ("I3", 5, (0, 0, 1)), ("I3", 2, (-0.52573111, 0, 0.85065081)),
    ("I3", 3, (-0.49112348, 0.35682208, 0.79465448)),
    ("I4", 2, (0.52573111, 0, 0.85065081)), ("I4", 5, (0.89442719, 0, 0.44721360)),
    ("I4", 3, (0.49112348, 0.35682208, 0.79465448)),
))
def test_axes_are_those_of_the_convention(name, fold, axis):
    rotation = symmetry.rotation_about(axis, 360 / fold)
    assert np.abs(symmetry.operators(name) - rotation).max(axis=(1, 2)).min() < 1e-5


@pytest.mark.parametrize("name", ("", "C0", "C100", "D", "Q3", "I9", "C2v"))
def test_unknown_groups_are_refused_by_name(name):
    with pytest.raises(InputError, match=f"'{name}' is not a point group"):
        symmetry.operators(name)


@pytest.mark.parametrize("n", (40, 41))
def test_symmetrised_map_is_the_density_of_the_moved_atoms(n):
    group = symmetry.operators("D3")
    points = atoms(3, 10, seed=2) + [3.0, 1.0, 2.0]
    moved = np.concatenate([points @ rotation.T for rotation in group])
    np.testing.assert_allclose(symmetry.symmetrise_map(density(points, n, 2.5), group) * len(group),
                               density(moved, n, 2.5), atol=0.04)  # h²/8 · 2/σ² per axis and atom: trilinear


@pytest.mark.parametrize("n", (40, 41))
def test_mask_symmetry(n):
    group = symmetry.operators("C4")
    one = ball(n, 5, 4, centre=(8, 0, 0))
    ring = np.max([ball(n, 5, 4, centre=tuple(rotation @ [8, 0, 0])) for rotation in group], axis=0)
    assert symmetry.mask_symmetry_error(ring, group) < 0.01
    assert symmetry.mask_symmetry_error(one, group) > 0.9
    assert symmetry.mask_symmetry_error(one, symmetry.operators("C1")) == 0
    assert symmetry.mask_symmetry_error(ball(n, 8, 5), symmetry.operators("I2")) < 0.03


def test_mask_symmetry_in_a_large_box():
    group = symmetry.operators("D2")
    rod = np.maximum(ball(96, 12, 8, centre=(20, 0, 0)), ball(96, 12, 8, centre=(-20, 0, 0)))
    assert symmetry.mask_symmetry_error(rod, group) < 0.02
    assert symmetry.mask_symmetry_error(np.roll(rod, 6, axis=2), group) > 0.1


@pytest.mark.parametrize("name", ("C5", "D3", "T", "O", "I1", "I2", "I3", "I4"))
def test_symmetrised_map_is_that_of_relion(tmp_path, require_program, name):
    require_program("relion_image_handler")
    n = 40
    volume = density(atoms(25, 12, seed=5), n, 2.0)
    with mrcfile.new(tmp_path / "map.mrc", volume) as handle:
        handle.voxel_size = 1.0
    subprocess.run(["relion_image_handler", "--i", "map.mrc", "--o", "symmetric.mrc", "--sym", name],
                   cwd=tmp_path, check=True, capture_output=True, timeout=120)
    with mrcfile.open(tmp_path / "symmetric.mrc") as handle:
        theirs = np.array(handle.data)
    ours = symmetry.symmetrise_map(volume, symmetry.operators(name))
    inside = ball(n, n / 2 - 2) > 0.5
    assert np.corrcoef(ours[inside], theirs[inside])[0, 1] > 0.999
    assert np.abs(ours - theirs)[inside].max() < 0.03 * np.abs(theirs).max()
