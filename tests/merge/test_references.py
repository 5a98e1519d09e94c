"""What the merge step does with two half-maps: mask, filters, joining. Phantoms of closed form, settings one by one."""
from __future__ import annotations

import numpy as np
import pytest
from map_phantoms import atoms, ball, density, half_maps
from scipy.spatial import cKDTree

from localrefine_plugin.engine.align.search_plan import resolve
from localrefine_plugin.engine.io.mrc import read_map, write_map
from localrefine_plugin.engine.io.run_folder import RunFolder
from localrefine_plugin.engine.maps import reference_filter as refs
from localrefine_plugin.engine.maps.fsc import five_curves, fsc
from localrefine_plugin.engine.maps.half_maps import HalfMaps
from localrefine_plugin.engine.merge.merge import curves_in_mask
from localrefine_plugin.engine.model.fourier import apply_shell_filter
from localrefine_plugin.engine.records.errors import InputError
from localrefine_plugin.engine.records.settings import Settings

BOX, PIXEL = 48, 3.0
GIVEN = ball(BOX, 17, 5)


def settled(**values):
    return resolve(Settings(**values), GIVEN, 10.0, PIXEL)


def masks_after(path, maps, **values):
    """(curves, mask used, what lies in iter_001) of the merge step's first half."""
    run = RunFolder(path)
    run.iteration(1).mkdir(parents=True)
    write_map(run.mask, GIVEN, PIXEL)
    curves, mask = curves_in_mask(run, 1, HalfMaps(*maps), settled(**values), PIXEL)
    return curves, mask, run


def clear_ball():
    """Two nearly noise-free half-maps of a ball of 8 px: its low-passed density falls to a half at 24 Å."""
    rng = np.random.default_rng(0)
    return [ball(BOX, 8) + 1e-3 * rng.standard_normal((BOX,) * 3).astype(np.float32) for _ in range(2)]


DYNAMIC = dict(mask_mode="dynamic", mask_threshold=0.5)


def by_hand(maps, near, far, level):
    """Low-pass to 12 Å by numpy, what is above the level, distances by a tree of points, cosine near to far."""
    mean = 0.5 * (maps[0] + maps[1])
    k = np.fft.fftfreq(BOX, 1 / BOX)
    shell = np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k ** 2)
    edge = np.clip((shell - BOX * PIXEL / 12 + 1) / 2, 0, 1)  # two shells about 12 Å
    smooth = np.fft.ifftn(np.fft.fftn(mean) * (0.5 + 0.5 * np.cos(np.pi * edge))).real
    core = np.argwhere(smooth >= level * smooth[GIVEN >= 0.5].max())
    voxels = np.argwhere(np.ones((BOX,) * 3, bool))
    distance = PIXEL * cKDTree(core).query(voxels)[0].reshape((BOX,) * 3)
    return 0.5 + 0.5 * np.cos(np.pi * np.clip((distance - near) / (far - near), 0, 1))


def test_static_mask_is_the_input_bit_for_bit(tmp_path):
    _, mask, run = masks_after(tmp_path / "run", clear_ball())
    np.testing.assert_array_equal(mask, GIVEN)
    assert not run.iteration_mask(1).exists() and run.mask_in_use(1) == run.mask


@pytest.mark.parametrize("near, far", ((3.0, 12.0), (9.0, 12.0), (3.0, 21.0)))
def test_dynamic_mask_is_the_one_computed_by_hand(tmp_path, near, far):
    distances = dict(mask_near_angstrom=near, mask_far_angstrom=far)
    _, mask, run = masks_after(tmp_path / "run", clear_ball(), **DYNAMIC, **distances)
    np.testing.assert_allclose(mask, by_hand(clear_ball(), near, far, 0.5), atol=1e-5)
    np.testing.assert_array_equal(read_map(run.mask_in_use(1))[0], mask)
    assert run.mask_in_use(1) == run.iteration_mask(1) and run.mask_in_use(0) == run.mask


def test_dynamic_mask_waits_for_its_start_resolution(tmp_path):
    curves, mask, run = masks_after(tmp_path / "run", clear_ball(), **DYNAMIC, mask_start_resolution_angstrom=6.01)
    assert run.iteration_mask(1).exists()  # the ball is resolved to Nyquist, 6 Å
    _, late, _ = masks_after(tmp_path / "late", clear_ball(), **DYNAMIC, mask_start_resolution_angstrom=5.9)
    np.testing.assert_array_equal(late, GIVEN)
    np.testing.assert_allclose(curves.tight, five_curves(HalfMaps(*clear_ball()), mask, PIXEL).tight)


def test_threshold_relative_and_absolute(tmp_path):
    """The low-passed ball has a peak of about 1, so that the two meet; twice the density parts them."""
    def volume(name, factor, **values):
        return masks_after(tmp_path / name, [factor * m for m in clear_ball()], mask_mode="dynamic", **values)[1].sum()
    low, high = (volume(f"{t}", 1, mask_threshold=t) for t in (0.2, 0.8))
    assert low > 1.15 * high
    assert volume("twice", 2, mask_threshold=0.8) == pytest.approx(high, rel=1e-3)
    absolute = dict(mask_threshold=0.8, mask_threshold_type="absolute")
    assert volume("absolute", 1, **absolute) == pytest.approx(high, rel=0.1)
    assert volume("twice absolute", 2, **absolute) > 1.05 * high
    with pytest.raises(InputError, match="setting mask_threshold: 3 exceeds"):
        volume("too high", 1, mask_threshold=3.0, mask_threshold_type="absolute")


def test_randomise_threshold_reaches_the_fsc(tmp_path):
    _, first, second = half_maps(BOX, noise=2.0)
    early, late = (masks_after(tmp_path / str(t), (first, second), fsc_randomise_below=t)[0] for t in (0.9, 0.4))
    assert early.randomise_shell < late.randomise_shell


def test_seed_reaches_the_random_phases(tmp_path):
    _, first, second = half_maps(BOX, noise=2.0)
    one, same, other = (masks_after(tmp_path / name, (first, second), seed=seed)[0].randomised
                        for name, seed in (("one", 2), ("same", 2), ("other", 3)))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_symmetry_widens_the_error_of_the_fsc(tmp_path):
    """n mates make n times fewer independent coefficients."""
    _, first, second = half_maps(BOX, noise=2.0)
    one, four = (masks_after(tmp_path / s, (first, second), symmetry=s)[0].corrected_error for s in ("C1", "C4"))
    np.testing.assert_allclose(four, 2 * one)


# ------------------------------------------------------------- references

def made(maps, **values):
    halves, resolved = HalfMaps(*maps), settled(**dict(dict(non_uniform=False), **values))
    curves = five_curves(halves, GIVEN, PIXEL)
    return refs.next_references(halves, GIVEN, curves, resolved), curves


def test_global_filter_is_the_fsc():
    _, *maps = half_maps(BOX, noise=2.0)
    result, curves = made(maps, join_halves_resolution_angstrom=0.0)
    weights = np.clip(curves.corrected, 0, 1)
    weights[refs.first_below(curves.corrected, 0.143) + 1:] = 0
    for given, filtered in zip(maps, result.maps):
        np.testing.assert_allclose(filtered, apply_shell_filter(given, weights), atol=1e-6)
    assert result.cutoff_angstrom is None


def test_joined_below_the_resolution_and_apart_beyond():
    _, *maps = half_maps(BOX, noise=2.0)
    apart, together = (made(maps, join_halves_resolution_angstrom=d)[0].maps for d in (0.0, 24.0))
    before, after = fsc(*apart), fsc(*together)  # shell 6 is 24 Å
    assert np.all(before[1:5] < 0.9999) and np.all(after[1:5] > 0.999999)
    np.testing.assert_allclose(after[9:14], before[9:14], atol=1e-6)


def test_non_negative_references():
    _, *maps = half_maps(BOX)
    plain, clipped = (made(maps, non_negativity=value)[0].maps for value in (False, True))
    assert plain[0].min() < 0 and clipped[0].min() == 0
    np.testing.assert_array_equal(clipped[1], np.maximum(plain[1], 0))


def belt_phantom(noise, seed=4):
    """An ordered core with a shell around it that is another cloud of atoms in each half: a membrane-like belt."""
    core = density(atoms(500, 9, seed=1), BOX)
    belts = []
    for half in (1, 2):
        points = atoms(2500, 17, seed=10 + half)
        belts.append(density(points[np.linalg.norm(points, axis=1) > 12], BOX))
    rng = np.random.default_rng(seed)
    amplitude = noise * core[ball(BOX, 9) > 0.5].std()
    return core, [core + belt + amplitude * rng.standard_normal(core.shape).astype(np.float32) for belt in belts]


def fsc_to(truth, volume, mask):
    return np.mean(fsc(truth * mask, volume * mask)[2:17])


def test_non_uniform_beats_the_global_filter_where_a_belt_is_disordered():
    core, maps = belt_phantom(1.5)
    inside = ball(BOX, 9, 3)
    errors = []
    for switch in (False, True):
        filtered = made(maps, non_uniform=switch)[0].maps[0]
        errors.append(np.square((filtered - core) * inside).sum())
    assert errors[1] < 0.9 * errors[0]


def test_non_uniform_costs_nothing_on_a_homogeneous_phantom():
    truth, *maps = half_maps(BOX, radius_px=15, noise=1.5)
    one, other = (fsc_to(truth, made(maps, non_uniform=switch)[0].maps[0], GIVEN) for switch in (False, True))
    assert other > 0.99 * one


def test_non_uniform_filter_is_the_same_for_both_halves_and_ends_at_the_mask():
    _, maps = belt_phantom(1.5)
    apart = dict(join_halves_resolution_angstrom=0.0)
    (uniform, curves), (result, _) = (made(maps, non_uniform=switch, **apart) for switch in (False, True))
    swapped = refs.next_references(HalfMaps(*maps[::-1]), GIVEN, curves, settled(non_uniform=True, **apart))
    np.testing.assert_allclose(swapped.maps[0], result.maps[1], atol=1e-5)
    assert result.cutoff_angstrom.shape == (BOX,) * 3
    core, belt = (result.cutoff_angstrom[m > 0.5].mean() for m in (ball(BOX, 7), ball(BOX, 16) - ball(BOX, 13)))
    assert belt > 1.3 * core  # Å
    outside = GIVEN == 0
    np.testing.assert_array_equal(result.maps[0][outside], uniform.maps[0][outside])
    assert not np.allclose(result.maps[0][~outside], uniform.maps[0][~outside])
