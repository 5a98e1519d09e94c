"""The contrast transfer function against its formula in float64 and against relion_project."""

from __future__ import annotations

import subprocess

import mrcfile
import numpy as np
import pytest
from conftest import require_program
from oracles import at_frequencies, centred_transform, ctf_formula, full_frequencies
from relion_files import write_map, write_star

from localrefine_plugin.engine.model import ctf
from localrefine_plugin.engine.model.pixels import half_plane_frequencies
from localrefine_plugin.engine.records.particles import OpticsGroup, Particles

BOX, PIXEL_SIZE = 32, 3.0
OPTICS = (OpticsGroup("a", 300.0, 2.7, 0.1, PIXEL_SIZE, BOX), OpticsGroup("b", 200.0, 1.4, 0.07, PIXEL_SIZE, BOX))


def some_particles(n=24, optics=OPTICS):
    rng = np.random.default_rng(5)
    u = rng.uniform(8000, 25000, n)
    return Particles(
        rotation=np.broadcast_to(np.eye(3), (n, 3, 3)).copy(),
        shift_px=np.zeros((n, 2)),
        half_set=np.ones(n, np.int8),
        defocus_u=u,
        defocus_v=u - rng.uniform(0, 4000, n),
        defocus_angle=rng.uniform(0, 180, n),
        phase_shift=np.where(np.arange(n) % 3 == 0, rng.uniform(0, 120, n), 0.0),
        optics_group=(np.arange(n) % 2).astype(np.int32),
        stack=np.zeros(n, np.int32),
        slice=np.arange(n),
        optics=optics,
        stacks=("none",),
    )


def engine_ctf(particles, kx, ky):
    basis = ctf.phase_basis(kx.ravel(), ky.ravel(), particles.box_size, particles.pixel_size)
    coefficients = ctf.phase_coefficients(particles, np.arange(len(particles)))
    return ctf.ctf(coefficients, basis).reshape((len(particles),) + kx.shape)


def formula(particles, i, kx, ky):
    group = particles.optics[particles.optics_group[i]]
    return ctf_formula(
        kx,
        ky,
        particles.box_size,
        particles.pixel_size,
        voltage_kv=group.voltage_kv,
        spherical_aberration_mm=group.spherical_aberration_mm,
        amplitude_contrast=group.amplitude_contrast,
        **{name: getattr(particles, name)[i] for name in ("defocus_u", "defocus_v", "defocus_angle", "phase_shift")},
    )


@pytest.mark.parametrize("box", [32, 33])
def test_ctf_is_the_formula_for_every_optics_group(box):
    """Astigmatism, phase plates and two microscopes. RELION's constant 12.2643247 is 5.3e-6 above CODATA's, and χ
    reaches 110 rad in the corners: they may differ by 6e-4."""
    particles = some_particles(
        optics=tuple(
            OpticsGroup(g.name, g.voltage_kv, g.spherical_aberration_mm, g.amplitude_contrast, PIXEL_SIZE, box)
            for g in OPTICS
        )
    )
    kx, ky = half_plane_frequencies((box - 1) // 2)
    ours = engine_ctf(particles, kx, ky)
    expected = [formula(particles, i, kx.astype(float), ky.astype(float)) for i in range(len(particles))]
    np.testing.assert_allclose(ours, expected, atol=7e-4)


@pytest.mark.parametrize("voltage_kv, expected", [(300, 0.0196875), (200, 0.0250793), (100, 0.0370144)])
def test_wavelength(voltage_kv, expected):
    """Reimer & Kohl, Transmission Electron Microscopy (2008), table 2.1: 1.96875, 2.50793 and 3.70144 pm."""
    assert ctf.electron_wavelength(voltage_kv) == pytest.approx(expected, rel=2e-5)


def test_underfocus_of_white_particles_is_positive_at_low_frequency():
    particles = some_particles()
    kx, ky = (np.full((1, 1), k, np.float32) for k in (0, 1))
    assert (engine_ctf(particles, kx, ky) > 0).all()
    zero = engine_ctf(particles, 0 * kx, 0 * ky)[:, 0, 0]
    np.testing.assert_allclose(
        zero,
        np.sin(np.deg2rad(particles.phase_shift) + np.arcsin(np.array([0.1, 0.07])[particles.optics_group])),
        atol=1e-6,
    )


def test_defocus_u_lies_along_the_astigmatism_angle():
    """With U ≠ V the CTF along the angle is that of defocus U, and across it that of V."""
    group = (OpticsGroup("a", 300.0, 2.7, 0.1, 2.0, 256),)
    one = {
        name: np.array([value])
        for name, value in dict(defocus_u=14000.0, defocus_v=9000.0, defocus_angle=90.0, phase_shift=0.0).items()
    }
    base = dict(
        rotation=np.eye(3)[None],
        shift_px=np.zeros((1, 2)),
        half_set=np.ones(1, np.int8),
        optics_group=np.zeros(1, np.int32),
        stack=np.zeros(1, np.int32),
        slice=np.zeros(1, np.int64),
        optics=group,
        stacks=("none",),
    )
    k = np.arange(1, 100, dtype=np.float32)[:, None]
    along = engine_ctf(Particles(**one, **base), 0 * k, k)
    across = engine_ctf(Particles(**one, **base), k, 0 * k)
    round_u, round_v = (
        engine_ctf(Particles(**dict(one, defocus_u=np.array([d]), defocus_v=np.array([d])), **base), k, 0 * k)
        for d in (14000.0, 9000.0)
    )
    np.testing.assert_allclose(along, round_u, atol=1e-4)
    np.testing.assert_allclose(across, round_v, atol=1e-4)
    assert np.abs(along - across).max() > 0.5


def test_ctf_and_its_sign_are_those_of_relion_project(tmp_path):
    """A point at the centre projects to a constant: its image's transform under --ctf is the CTF itself."""
    program = require_program("relion_project")
    particles = some_particles()
    point = np.zeros((BOX,) * 3, np.float32)
    point[(BOX // 2,) * 3] = 1
    write_map(tmp_path / "point.mrc", point, PIXEL_SIZE)
    write_star(tmp_path / "poses.star", particles, "none.mrcs")
    subprocess.run(
        [program, "--i", "point.mrc", "--ang", "poses.star", "--o", "images", "--ctf"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    theirs = centred_transform(mrcfile.read(tmp_path / "images.mrcs").astype(float))
    kx, ky = full_frequencies(BOX)
    inside = (np.hypot(kx, ky) < BOX // 2 - 1) & (np.hypot(kx, ky) > 0)  # the background is RELION's to choose
    ours = engine_ctf(particles, kx[inside].astype(np.float32), ky[inside].astype(np.float32))
    theirs = at_frequencies(theirs, kx[inside], ky[inside])
    np.testing.assert_allclose(theirs.imag, 0, atol=1e-3)
    np.testing.assert_allclose(theirs.real, ours, atol=2e-3)  # RELION's images are float32, its 1/asin ac approximate
