"""Values of the particle table that no microscope and no refinement gives: named before anything is computed."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from experiments import experiment, inputs_of, write_inputs

from localrefine_plugin.engine.inputs.checks import check_inputs
from localrefine_plugin.engine.records.errors import InputError
from localrefine_plugin.engine.records.settings import Settings

N = 200


@pytest.fixture(scope="module")
def e():
    return experiment(N, box=24, pixel_size=4.0, noise=0.5, seed=8)


def checked(folder, e, **columns):
    write_inputs(folder, replace(e, particles=replace(e.particles, **columns)))
    return check_inputs(*inputs_of(folder), Settings())


def said(found, words):
    return [text for text in found.warnings if words in text]


def test_negative_defocus_is_refused(e, tmp_path):
    p = e.particles
    with pytest.raises(InputError, match="every defocus is negative; give underfocus as positive"):
        checked(tmp_path, e, defocus_u=-p.defocus_u, defocus_v=-p.defocus_v)


@pytest.mark.parametrize("degrees, seems", ((np.rad2deg(1.6), False), (1.6, True), (0.0, False), (0.01, False)))
def test_phase_shifts_in_radians_are_said(e, tmp_path, degrees, seems):
    """90° of a phase plate, written as 1.6; no phase plate; the rounding error of none."""
    rng = np.random.default_rng(1)
    found = checked(tmp_path, e, phase_shift=degrees * rng.uniform(0.9, 1.1, N))
    assert bool(said(found, "These seem to be radians")) == seems


@pytest.mark.parametrize("label, value, words", (
    ("amplitude_contrast", 0.0, "rlnAmplitudeContrast 0; usual is 0.01 to 0.4"),
    ("amplitude_contrast", 0.07, ""), ("voltage_kv", 300.0, ""), ("spherical_aberration_mm", 0.01, ""),
    ("voltage_kv", 30.0, "rlnVoltage 30; usual is 60 to 1250 kV"),
    ("spherical_aberration_mm", -2.7, "rlnSphericalAberration -2.7; usual is 0 to 8 mm")))
def test_unusual_optics_are_said(e, tmp_path, label, value, words):
    optics = tuple(replace(group, **{label: value}) for group in e.particles.optics)
    found = said(checked(tmp_path, e, optics=optics), "a wrong CTF limits the resolution")
    assert (len(found) == 1 and words in found[0]) if words else not found


def test_amplitude_contrast_in_per_cent_is_refused(e, tmp_path):
    optics = tuple(replace(group, amplitude_contrast=7.0) for group in e.particles.optics)
    with pytest.raises(InputError, match=r"rlnAmplitudeContrast 7, not within 0 … 1 .a fraction, not per cent"):
        checked(tmp_path, e, optics=optics)


def with_one_pose(e, rows):
    rotation, shift = e.particles.rotation.copy(), e.particles.shift_px.copy()
    rotation[rows], shift[rows] = np.eye(3), 0
    return dict(rotation=rotation, shift_px=shift)


def test_many_particles_with_one_pose_are_refused(e, tmp_path):
    """30 % of null poses: particles that were not aligned."""
    rows = np.random.default_rng(2).permutation(N)[:60]
    with pytest.raises(InputError, match="has the same pose as 59 others. It was not aligned, and 60 of 200 particles"):
        checked(tmp_path, e, **with_one_pose(e, rows))


def test_few_particles_that_share_a_pose_pass(e, tmp_path):
    assert not checked(tmp_path, e, **with_one_pose(e, np.arange(4))).excluded
