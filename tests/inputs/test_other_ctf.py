"""A part of the images with another CTF, where the half-maps were made from it and one image tells little."""
from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import require_program
from experiments import write_inputs
from relion_files import reword
from relion_programs import relion
from test_belonging import found
from test_parts import N, chosen, good_set, imaged_anew, some_defocused, some_flipped

from localrefine_plugin.engine.inputs.other_ctf import Against, fitted
from localrefine_plugin.engine.records.errors import InputError


def noisy_set():
    """One image tells less than 2 in log L of its CTF."""
    return imaged_anew(replace(good_set(), noise=2.0), good_set().particles)


e = pytest.fixture(scope="module", name="e")(noisy_set)


def remade(folder, e):
    """Files of the set, with half-maps that relion_reconstruct makes from it."""
    require_program("relion_reconstruct")
    write_inputs(folder, e)
    for half in (1, 2):
        relion("relion_reconstruct", folder, "--i", "particles.star", "--o", f"input_{half}.mrc", "--ctf", "--subset",
               half)


@pytest.mark.parametrize("spoil, words", ((some_flipped, "fit with flipped phases"),
                                          (some_defocused(1.35), r"fit with about 0\.\d+.* times their defocus")))
def test_half_maps_made_from_the_wrong_ctf_do_not_hide_it(e, tmp_path, spoil, words):
    remade(tmp_path, spoil(e, chosen(0.3)))
    with pytest.raises(InputError, match=f"particles: do not all .*{words}"):
        found(tmp_path)


def test_half_maps_made_from_good_images_pass(e, tmp_path):
    remade(tmp_path, e)
    assert found(tmp_path).said == ()


def test_a_defocus_that_is_wrong_for_all_is_said(e, tmp_path):
    """Half-maps and images share the mistake."""
    remade(tmp_path, some_defocused(1.1)(replace(e, noise=1.0), np.ones(N, bool)))
    said = found(tmp_path).said
    assert len(said) == 1 and "fit the half-maps better with about 0.9" in said[0]


@pytest.mark.parametrize("kv, factor, source", ((200, 0.78, "particles: do not have the CTF of the particle file"),
                                                (120, 0.59, "half-maps and particles: do not fit each other")))
def test_the_voltage_of_another_microscope_is_named(e, tmp_path, kv, factor, source):
    """Images of 300 kV, in a file that says 200 or 120: λ differs by 0.785 or 0.588. At 120 kV the images have the
    opposite sign at fine detail, also against h₁ − h₂; the half-maps are not called exchanged."""
    one = replace(e, noise=1.0)
    write_inputs(tmp_path, imaged_anew(one, one.particles))
    reword(tmp_path / "particles.star", r"(?m)^(1 \S+) 300", rf"\1 {kv}")
    words = rf"about {factor} times their defocus \(as with 300 kV instead of {kv}\)"
    with pytest.raises(InputError, match=f"^{source}: .*{words}"):
        found(tmp_path)


def drawn(share, n, seed, other=-1.0):
    """n images of a slice of ones at 40 pixels of two shells, of CTF 1 or, by a share, another in half of the pixels;
    white noise of σ² = 1, so that Z = 2 C X and W = 2 C²."""
    rng = np.random.default_rng(seed)
    own = np.ones((n, 40))
    contrast = own.copy()
    contrast[:, ::2] = other
    x = 0.3 * np.where((rng.random(n) < share)[:, None], contrast, own)
    x = x + (rng.standard_normal(x.shape) + 1j * rng.standard_normal(x.shape)) / np.sqrt(2)
    packed = SimpleNamespace(matched=2 * x, weight=2 * own, pixels=SimpleNamespace(shell=np.repeat([1, 2], 20)))
    sample = SimpleNamespace(packed=packed, contrast=own, contrast_at=lambda _: contrast)
    return Against(sample, np.ones_like(x))


@pytest.mark.parametrize("share", (0.0, 0.1, 0.3, 0.8))
def test_the_share_and_its_error_are_those_of_many_draws(share):
    """The mean of the shares is right, and their scatter is the error that is given."""
    parts = [fitted([drawn(share, 100, seed)], 0.5) for seed in range(60)]
    shares = np.array([part.share for part in parts])
    assert shares.mean() == pytest.approx(share, abs=3 * shares.std() / np.sqrt(len(parts)) + 0.005)
    assert shares.std() == pytest.approx(np.mean([part.error for part in parts]), rel=0.3)
