"""What a refinement must not do: find signal in noise, or let one half-set know of the other."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import lru_cache

import mrcfile
import numpy as np
import pytest
from experiments import experiment, inputs_of, write_inputs
from run_results import accept_changed_files

from localrefine_plugin.engine.io.run_folder import RunFolder, read_json
from localrefine_plugin.engine.records.errors import InputError
from localrefine_plugin.engine.records.settings import Settings
from localrefine_plugin.engine.refine import align, merge, prepare, refine

LOWPASS_EDGE = 1.0  # shells; the cosine edge of the initial low-pass is two shells wide, centred on its resolution


def noise_like(e, seed):
    return replace(e, images=e.noise * np.random.default_rng([seed, 9]).standard_normal(e.images.shape))


def corrected_shells(run):
    """Shell of the corrected resolution after each iteration, from 1; and the shell of the initial low-pass."""
    box_angstrom = read_json(run.input)["box_size"] * read_json(run.input)["pixel_size"]
    lowpass = box_angstrom / read_json(run.input)["resolved"]["initial_lowpass_angstrom"]
    return [
        box_angstrom / read_json(run.iteration_done(k))["resolution_angstrom"]["corrected"]
        for k in range(1, run.iterations_done() + 1)
    ], lowpass


@pytest.mark.parametrize(
    "seed, changes",
    [(seed, dict(marginalize=marginalize)) for seed in (1, 2, 3) for marginalize in (True, False)]
    + [(1, dict(prior="off"))],
)
def test_pure_noise_gains_no_resolution(tmp_path, seed, changes):
    """The half-maps and the grey scale are real, the images are replaced by noise before the first alignment.

    Aligned noise looks like the reference (Henderson 2013, doi:10.1073/pnas.1314449110): both halves started from the
    same structure, so they agree up to the initial low-pass, and must not agree beyond, in this iteration or any other.
    """
    e = experiment(400, box=40, noise=4.0, seed=seed)
    arguments = write_inputs(tmp_path, e, half_map_noise=1.0, seed=seed)
    settings = Settings(**changes)
    prepared_run = prepare(*arguments, str(tmp_path / "run"), settings, threads=1)
    write_inputs(tmp_path, noise_like(e, seed), half_map_noise=1.0, seed=seed)
    accept_changed_files(prepared_run)
    run = refine(*arguments, str(tmp_path / "run"), settings, threads=1, mode="continue")
    shells, lowpass = corrected_shells(run)
    assert lowpass < 0.75 * e.box / 2  # there is room to gain
    assert len(shells) >= 3 or "no longer agree" in read_json(run.iteration_done(len(shells)))["stop_reason"]
    assert max(shells) <= lowpass + LOWPASS_EDGE


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_noise_from_the_start_is_refused_or_gains_nothing(tmp_path, seed):
    """Here the grey scale is fitted to the noise as well, and the images belong to no pose."""
    e = noise_like(experiment(400, box=40, noise=4.0, seed=seed), seed)
    for sign in (1, -1):  # the fit is linear in the images: one of the two signs is accepted by a half, or both refused
        arguments = write_inputs(tmp_path, replace(e, images=sign * e.images), half_map_noise=1.0, seed=seed)
        try:
            run = refine(*arguments, str(tmp_path / "run"), Settings(), threads=1, mode="overwrite")
        except InputError as refusal:
            assert "contrast" in str(refusal) or "do not belong together" in str(refusal)
            continue
        shells, lowpass = corrected_shells(run)
        assert max(shells) <= lowpass + LOWPASS_EDGE


@lru_cache(maxsize=None)
def two_halves():
    return experiment(200, noise=1.0, seed=6)


def outputs_of(run, half):
    return {path.name: path.read_bytes() for path in (run.half_map(1, half), run.poses(1, half), run.noise(1, half))}


def prepared(folder, e):
    """A run folder made from these images, half 1 aligned; and what that wrote."""
    arguments = write_inputs(folder, e)
    prepare(*arguments, str(folder / "run"), Settings(), threads=1)
    align(str(folder / "run"), 1, (1,), threads=1)
    return outputs_of(RunFolder(folder / "run"), 1)


def test_half_1_does_not_know_the_images_of_half_2(tmp_path):
    """Half 2's images replaced by others (noise on a tenth of the signal, so that the grey scale stays positive), from
    the very start: bit-identical to the first shared decision. Input half-maps are shared below the join resolution by
    design and stay the same here."""
    e = two_halves()
    images = e.images.copy()
    second = e.particles.half_set == 2
    images[second] = 0.1 * images[second] + np.random.default_rng(7).standard_normal(images[second].shape)
    assert prepared(tmp_path / "a", e) == prepared(tmp_path / "b", replace(e, images=images))


def make_unreadable(path):
    """The images are gone; a file of the run, whose size tells that its step has finished, is nonsense of that size."""
    if path.suffix == ".mrcs":
        path.unlink()
    else:
        path.write_bytes(bytes(path.stat().st_size))


def test_half_1_is_aligned_without_any_file_of_half_2(tmp_path):
    folder = tmp_path / "data"
    expected = prepared(folder, two_halves())
    run = RunFolder(folder / "run")
    shutil.rmtree(run.iteration(1))
    for path in (
        folder / "half_2.mrcs",
        folder / "input_2.mrc",
        folder / "input_1.mrc",
        run.reference(0, 2),
        run.noise(0, 2),
    ):
        make_unreadable(path)
    align(str(run.path), 1, (1,), threads=1)
    assert outputs_of(run, 1) == expected


def test_without_joining_the_half_maps_of_the_input_stay_apart(tmp_path):
    """Join resolution 0: half 1 does not depend on half-map 2 either, at the same initial low-pass."""
    e, written = two_halves(), []
    settings = Settings(join_halves_resolution_angstrom=0, initial_lowpass_angstrom=14.0)
    for name, factor in (("a", 1.0), ("b", 0.7)):
        arguments = write_inputs(tmp_path / name, e)
        with mrcfile.open(arguments[2], mode="r+") as mrc:
            mrc.data[:] *= factor
            mrc.data[:] += np.float32(factor - 1) * np.roll(mrc.data, 3, axis=0)
        prepare(*arguments, str(tmp_path / name / "run"), settings, threads=1)
        align(str(tmp_path / name / "run"), 1, (1,), threads=1)
        written.append(outputs_of(RunFolder(tmp_path / name / "run"), 1))
    assert written[0] == written[1]


def test_poses_of_one_half_do_not_reach_the_other_in_later_iterations(tmp_path):
    """After the first merge the references share what is below the join resolution and the FSC, nothing else: with the
    same references and noise, half 1 of iteration 2 does not look at half 2's poses, maps or images."""
    folder = tmp_path / "data"
    arguments = write_inputs(folder, two_halves())
    run = RunFolder(folder / "run")
    prepare(*arguments, str(run.path), Settings(), threads=1)
    for half in (1, 2):
        align(str(run.path), 1, (half,), threads=1)
    merge(str(run.path), 1, threads=1)
    align(str(run.path), 2, (1,), threads=1)
    expected = [path.read_bytes() for path in (run.half_map(2, 1), run.poses(2, 1), run.noise(2, 1))]
    shutil.rmtree(run.iteration(2))
    for path in (folder / "half_2.mrcs", run.half_map(1, 2), run.poses(1, 2), run.noise(1, 2), run.reference(1, 2)):
        make_unreadable(path)
    align(str(run.path), 2, (1,), threads=1)
    assert [path.read_bytes() for path in (run.half_map(2, 1), run.poses(2, 1), run.noise(2, 1))] == expected


def test_inputs_of_the_noise_test_would_gain_with_signal(tmp_path):
    """The same experiment with its images left in place does go beyond the low-pass: the tests above could fail."""
    e = experiment(400, box=40, noise=1.0, seed=1)
    run = refine(
        *write_inputs(tmp_path, e, half_map_noise=1.0, seed=1),
        str(tmp_path / "run"),
        Settings(max_iterations=3),
        threads=1,
    )
    shells, lowpass = corrected_shells(run)
    assert max(shells) > lowpass + LOWPASS_EDGE


def test_helpers_write_what_they_say(tmp_path):
    e = two_halves()
    arguments = write_inputs(tmp_path, e)
    assert arguments == inputs_of(tmp_path)
    np.testing.assert_array_equal(mrcfile.read(tmp_path / "half_2.mrcs"), e.images[1::2].astype(np.float32))
