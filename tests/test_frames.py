"""Maps in another frame or of another hand than the poses: taken rightly, or refused or warned about with a reason."""
from __future__ import annotations

import mrcfile
import numpy as np
import pytest
from localrefine_plugin.engine.records.errors import InputError
from particle_files import PIXEL_SIZE, Inputs, radius, write_mrc

from examples import simulate
from localrefine_plugin.engine.inputs.checks import check_inputs
from localrefine_plugin.engine.io.run_folder import read_json
from localrefine_plugin.engine.io.star import read_star, write_star
from localrefine_plugin.engine.prepare.prepare import prepare
from localrefine_plugin.engine.records.settings import Settings


@pytest.fixture
def inputs(tmp_path):
    """Half-maps of 16 px, and a mask of 12 px with the same centre."""
    made = Inputs(tmp_path)
    t = np.clip((radius(12) - 1) / 3.5, 0, 1)
    write_mrc(made.mask, (0.5 + 0.5 * np.cos(np.pi * t)).astype(np.float32), PIXEL_SIZE)
    return made


def set_origin(path, origin, start=(0, 0, 0)):
    with mrcfile.open(str(path), mode="r+") as mrc:
        mrc.header.origin.x, mrc.header.origin.y, mrc.header.origin.z = origin
        mrc.header.nxstart, mrc.header.nystart, mrc.header.nzstart = start


def check(inputs):
    return check_inputs(inputs.star, inputs.half_1, inputs.half_2, inputs.mask, Settings(resample_maps=True))


CENTRED = (-6 * PIXEL_SIZE,) * 3       # the origin of Scipion: from the centre of the box
CUT_OUT = (2 * PIXEL_SIZE,) * 3        # of ChimeraX: cut from voxel 2 of the half-map on, 12 px wide


@pytest.mark.parametrize("origin, start", [((0, 0, 0), (0, 0, 0)), (CENTRED, (0, 0, 0)), (CUT_OUT, (0, 0, 0)),
                                           ((0, 0, 0), (2, 2, 2))])
def test_a_mask_of_another_box_with_the_same_centre_is_resampled_and_it_is_said(inputs, origin, start):
    set_origin(inputs.mask, origin, start)
    checked = check(inputs)
    assert any("mask" in text and "was resampled from 12 voxels" in text for text in checked.warnings)
    centre = [np.average(np.arange(16), weights=checked.mask.sum(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    np.testing.assert_allclose(centre, 8, atol=0.1)


@pytest.mark.parametrize("origin, start", [((5 * PIXEL_SIZE, 2 * PIXEL_SIZE, 2 * PIXEL_SIZE), (0, 0, 0)),
                                           ((0, 0, 0), (2, 4, 2))])
def test_a_mask_cut_out_elsewhere_is_refused_with_what_to_run(inputs, origin, start):
    set_origin(inputs.mask, origin, start)
    with pytest.raises(InputError, match="in another frame.*Å from the half-maps.*volume resample"):
        check(inputs)


# ---------------------------------------------------------------- the other hand

@pytest.fixture(scope="module")
def hands(tmp_path_factory):
    """Simulated data; maps inverted through the origin (the other hand); poses that belong to those (psi + 180°)."""
    folder = tmp_path_factory.mktemp("hands")
    simulate.simulate(folder, simulate.Options(particles=80, box_size=32, pixel_size=9.0, snr=2.0, threads=1))
    for name in ("half1", "half2", "mask_B"):
        with mrcfile.open(folder / f"{name}.mrc") as mrc:
            inverted = np.roll(np.array(mrc.data)[::-1, ::-1, ::-1], 1, axis=(0, 1, 2))
        write_mrc(folder / f"{name}_other.mrc", np.ascontiguousarray(inverted), 9.0)
    tables = read_star(folder / "particles.star")
    row = next(i for i, table in enumerate(tables) if table.name == "particles")
    psi = np.array(tables[row].texts(["rlnAnglePsi"])["rlnAnglePsi"], dtype=float)
    tables[row] = tables[row].with_columns({"rlnAnglePsi": psi + 180})
    write_star(folder / "particles_other.star", tables)
    return folder


def prepared(folder, star, maps):
    run = prepare(*(str(folder / name) for name in (f"particles{star}.star", f"half1{maps}.mrc", f"half2{maps}.mrc",
                                                    f"mask_B{maps}.mrc", f"run{star}{maps}")),
                  settings=Settings(), device="cpu", threads=1)
    return read_json(run.input)


def test_map_and_poses_of_the_other_hand_are_as_good(hands):
    """∫ V(−Aᵀx) dz is the image of V turned by 180°: the fitted grey scale is the same to 1 %."""
    ours, other = prepared(hands, "", ""), prepared(hands, "_other", "_other")
    np.testing.assert_allclose(other["grey_scale"], ours["grey_scale"], rtol=0.01)


def test_a_flipped_map_with_the_poses_of_the_other_hand_is_warned_about(hands):
    found = prepared(hands, "", "_other")
    assert max(found["grey_scale"]) < 0.3
    assert any("same hand" in text for text in found["warnings"])
