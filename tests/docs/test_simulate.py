"""The simulator of the examples, against programs and sums that share no code with it."""
from __future__ import annotations

import dataclasses
import json
import subprocess

import mrcfile
import numpy as np
import pytest
from conftest import require_program
from scipy.spatial.transform import Rotation

from examples import evaluate, imaging, phantom, simulate, two_hinges

BOX, PIXEL_SIZE = 64, 4.4
OPTIONS = simulate.Options(particles=600, box_size=BOX, pixel_size=PIXEL_SIZE, seed=4, astigmatism=1500.0)


@pytest.fixture(scope="module")
def model():
    return phantom.Model.load()


@pytest.fixture(scope="module")
def bodies(model):
    return model.bodies(BOX, PIXEL_SIZE)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated")
    simulate.simulate(folder, OPTIONS)
    return folder


def rigid(model, bodies):
    """A microscope without hinge motion, envelope or spread of amplitudes, and the truth it draws."""
    options = dataclasses.replace(OPTIONS, particles=20, hinge_rotation_deg=0.0, hinge_shift_angstrom=0.0,
                                  envelope_b_factor=0.0, amplitude_spread=0.0)
    truth = simulate.draw(options, model.fulcrums, np.random.default_rng(2))
    return simulate.Microscope(options, bodies, model.radius, truth)


def test_images_are_those_of_relion_project(model, bodies, tmp_path):
    """Euler angles, sign and size of shifts, CTF with its sign and astigmatism, and grey scale, all at once."""
    program = require_program("relion_project")
    microscope = rigid(model, bodies)
    simulate.write_mrc(tmp_path / "map.mrc", bodies[0] + bodies[1], PIXEL_SIZE)
    simulate.write_star(tmp_path / "poses.star", microscope.options, microscope.truth, microscope.truth.body_a)
    subprocess.run([program, "--i", "map.mrc", "--ang", "poses.star", "--o", "relion", "--ctf"], cwd=tmp_path,
                   check=True, capture_output=True)
    theirs = mrcfile.read(tmp_path / "relion.mrcs").astype(float)
    ours = microscope.signal(slice(0, 20)).astype(float)
    theirs -= theirs.mean(axis=(1, 2), keepdims=True)
    ours -= ours.mean(axis=(1, 2), keepdims=True)
    cross, own, other = (np.sum(a * b, axis=(1, 2)) for a, b in ((ours, theirs), (ours, ours), (theirs, theirs)))
    assert np.min(cross / np.sqrt(own * other)) > 0.99
    np.testing.assert_allclose(cross / other, 1, atol=0.02)


def test_relion_reconstruct_agrees_with_the_half_maps(data):
    program = require_program("relion_reconstruct")
    for half in (1, 2):
        subprocess.run([program, "--i", "particles.star", "--o", f"relion{half}.mrc", "--subset", str(half), "--ctf"],
                       cwd=data, check=True, capture_output=True)
        ours, theirs = (evaluate.read_map(data / name) for name in (f"half{half}.mrc", f"relion{half}.mrc"))
        curve = evaluate.fsc(ours, theirs, evaluate.read_map(data / "mask_B.mrc"))
        assert curve[1:BOX // 4].min() > 0.97
        assert np.vdot(ours, theirs) / np.vdot(theirs, theirs) == pytest.approx(1, abs=0.05)


def test_slices_are_direct_sums_over_voxels(bodies):
    """F(Rᵀ(kx, ky, 0)) = Σ_v ρ(v) exp(−2πi k·P R v / N) in float64: interpolation errs by 1.7 %."""
    rotation = imaging.rotation_from_euler(np.array([[30., 70., -50.]]))
    pixels = imaging.Pixels(BOX, PIXEL_SIZE)
    fast = imaging.VolumeTransform(bodies[1]).extract(rotation, pixels)[0]
    z, y, x = np.indices(bodies[1].shape).reshape(3, -1) - BOX // 2
    landed = rotation[0, :2] @ np.stack([x, y, z])
    chosen = np.arange(1, len(pixels.kx), 73)  # the mean, which normalisation removes anyway, is off by 6 %
    phase = np.outer(pixels.kx[chosen], landed[0]) + np.outer(pixels.ky[chosen], landed[1])
    slow = np.exp(-2j * np.pi / BOX * phase) @ bodies[1].ravel().astype(float)
    assert np.linalg.norm(fast[chosen] - slow) < 0.02 * np.linalg.norm(slow)


def test_insertion_is_the_adjoint_of_extraction():
    """⟨S V, Y⟩ = ⟨V, Sᵀ Y⟩ for random V and Y."""
    rng = np.random.default_rng(1)
    pixels, rotation = imaging.Pixels(16, 1.0), imaging.rotation_from_euler(rng.uniform(0, 180, (5, 3)))
    volume = imaging.VolumeTransform(rng.standard_normal((16, 16, 16)).astype(np.float32))
    images = rng.standard_normal((5, len(pixels.kx))) + 1j * rng.standard_normal((5, len(pixels.kx)))
    sums = imaging.Reconstruction(16)
    sums.insert(rotation, pixels, images, np.ones(images.shape))
    left, right = np.vdot(images, volume.extract(rotation, pixels)), np.vdot(sums.numerator, volume.values)
    assert abs(left - right) < 1e-5 * np.linalg.norm(images) * np.linalg.norm(volume.values)


def test_beads_become_gaussians(model):
    """The transform of one bead against w exp(−B s²/4) exp(−2πi s·r); the fine grid errs by 2.4 % near Nyquist."""
    where, box, pixel_size = np.array([7.3, -11.9, 20.4]), 48, 2.5
    volume = phantom.density(where[None], np.array([3.0]), box, pixel_size)
    transform = np.fft.fftn(np.fft.ifftshift(volume))[:box // 2, :box // 2, :box // 2] * pixel_size ** 3
    s = np.fft.fftfreq(box, pixel_size)[:box // 2]
    z, y, x = np.meshgrid(s, s, s, indexing="ij")
    envelope = np.exp(-phantom.BEAD_B_FACTOR / 4 * (x ** 2 + y ** 2 + z ** 2))
    expected = 3 * envelope * np.exp(-2j * np.pi * (x * where[0] + y * where[1] + z * where[2]))
    np.testing.assert_allclose(transform, expected, atol=0.025 * 3)


def test_body_b_turns_about_the_fulcrum(model):
    """Where a point of body B lands: R_B b + c_B = R_A (H (b − p) + p + s) + c_A; without shift p stays."""
    options = dataclasses.replace(OPTIONS, hinge_shift_angstrom=0.0)
    truth = simulate.draw(options, model.fulcrums, np.random.default_rng(3))
    at_a, at_b = (evaluate.centroid_position(poses, model.fulcrum) for poses in (truth.body_a, truth.body_b))
    np.testing.assert_allclose(at_a, at_b, atol=1e-9)
    moved = np.einsum("nij,j->ni", truth.motions[0].hinge, model.centroid_b - model.fulcrum) + model.fulcrum
    expected = np.einsum("nij,nj->ni", truth.body_a.rotation, moved)[:, :2] + truth.body_a.position
    np.testing.assert_allclose(evaluate.centroid_position(truth.body_b, model.centroid_b), expected, atol=1e-9)


def test_the_second_domain_turns_about_its_own_hinge_and_with_the_first_as_much_as_said():
    model = two_hinges.model()
    options = dataclasses.replace(OPTIONS, particles=4000, hinge_shift_angstrom=0.0, hinge_correlation=0.8)
    truth = simulate.draw(options, model.fulcrums, np.random.default_rng(3))
    at_a, at_c = (evaluate.centroid_position(poses, model.fulcrum_c) for poses in (truth.body_a, truth.moving[1]))
    np.testing.assert_allclose(at_a, at_c, atol=1e-9)
    turn_b, turn_c = (Rotation.from_matrix(motion.hinge).as_rotvec() for motion in truth.motions)
    for axis in range(3):
        assert np.corrcoef(turn_b[:, axis], turn_c[:, axis])[0, 1] == pytest.approx(0.8, abs=0.03)
    assert turn_c.std() == pytest.approx(turn_b.std(), rel=0.03)


@pytest.mark.parametrize("own", [1, 2])
def test_the_map_of_a_perfect_refinement_has_the_other_bodies_where_its_frame_sees_them(own):
    """One particle: points y of the moved specimen lie at H⁻¹ (y − d) in the frame of a body that moved by H, d."""
    model = two_hinges.model()
    few = dataclasses.replace(OPTIONS, particles=1, hinge_rotation_deg=20.0, hinge_shift_angstrom=5.0)
    truth = simulate.draw(few, model.fulcrums, np.random.default_rng(5))
    found = simulate.seen_from(own, model.bodies(48, 5.0), truth, 5.0)
    moved = np.copy(model.position)
    for inside, motion in zip((model.in_body_b, model.in_body_c), truth.motions):
        moved[inside] = moved[inside] @ motion.hinge[0].T + motion.displacement[0]
    mine = truth.motions[own - 1]
    expected = phantom.density((moved - mine.displacement[0]) @ mine.hinge[0], model.weight, 48, 5.0)
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.985
    nowhere = sum(model.bodies(48, 5.0))
    assert np.corrcoef(nowhere.ravel(), expected.ravel())[0, 1] < 0.9


def test_signal_to_noise_and_background(data, model):
    """Images are normalised outside the particle, and the poses read back are the poses written."""
    images = mrcfile.read(data / "particles.mrcs")
    axis = np.arange(BOX) - BOX // 2
    corner = axis[:, None] ** 2 + axis ** 2 > (0.47 * BOX) ** 2
    np.testing.assert_allclose(images[:, corner].std(axis=1), 1, atol=0.15)
    truth = simulate.draw(OPTIONS, model.fulcrums, np.random.default_rng(OPTIONS.seed))
    read = evaluate.read_poses(data / "true_B.star")
    np.testing.assert_allclose(read.rotation, truth.body_b.rotation, atol=1e-6)
    np.testing.assert_allclose(read.position, truth.body_b.position, atol=1e-5)


def test_evaluation_ignores_a_common_motion_and_sees_errors(data):
    """All poses moved by one rigid motion of the specimen: no error. The input poses: the hinge is the error."""
    evaluation = evaluate.Evaluation(data)
    common = imaging.rotation_from_euler(np.array([[8., 3., -2.]]))[0]
    displacement = np.array([1.5, -2.0, 3.0])
    turned = evaluation.poses.rotation @ common
    shifted = evaluation.poses.position + (turned @ displacement)[:, :2]
    figures = evaluation.of_poses(simulate.Poses(turned, shifted))
    assert figures["angle_deg"] < 1e-3 and figures["centroid_angstrom"] < 1e-3
    given = evaluation.of_poses(evaluate.read_poses(data / "particles.star"))
    assert 1.5 < given["angle_deg"] < 8 and 1 < given["centroid_angstrom"] < 8


def test_gauge_moves_the_true_map_with_the_poses(data, bodies):
    """Projections of the moved map at the moved poses equal those of the true map at the true poses."""
    evaluation = evaluate.Evaluation(data)
    common = imaging.rotation_from_euler(np.array([[5., 4., -3.]]))[0]
    poses = simulate.Poses(evaluation.poses.rotation @ common,
                           evaluation.poses.position + (evaluation.poses.rotation @ common)[:, :2] @ [2.0, 1.0, -3.0])
    gauge = evaluate.pose_errors(poses, evaluation.poses, evaluation.centroid)[2]
    pixels = imaging.Pixels(BOX, PIXEL_SIZE)
    moved, still = (imaging.VolumeTransform(volume).extract(p.rotation[:5], pixels)
                    * pixels.shift(p.position[:5] / PIXEL_SIZE)
                    for volume, p in ((gauge.moved(bodies[1], PIXEL_SIZE), poses), (bodies[1], evaluation.poses)))
    assert np.vdot(moved, still).real > 0.99 * np.linalg.norm(moved) * np.linalg.norm(still)


def test_same_seed_same_files(data, tmp_path):
    simulate.simulate(tmp_path, dataclasses.replace(OPTIONS, threads=1))
    for name in ("particles.star", "particles.mrcs", "half1.mrc"):
        ours, other = tmp_path / name, data / name
        if name.endswith("star"):
            assert ours.read_text() == other.read_text()
        else:
            np.testing.assert_array_equal(mrcfile.read(ours), mrcfile.read(other))
    assert json.loads((tmp_path / "truth.json").read_text())["options"]["threads"] == 1
