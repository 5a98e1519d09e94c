"""Maps in another frame or of another hand than the poses: taken rightly, or refused or warned about with a reason."""
from __future__ import annotations

import struct
from types import SimpleNamespace

import mrcfile
import numpy as np
import pytest
from particle_files import PIXEL_SIZE, Inputs, radius, write_mrc

from examples import simulate
from localrefine_plugin import convert
from localrefine_plugin.engine.inputs.checks import check_inputs
from localrefine_plugin.engine.io.run_folder import read_json
from localrefine_plugin.engine.io.star import read_star, write_star
from localrefine_plugin.engine.prepare.prepare import prepare
from localrefine_plugin.engine.prepare.recentre import recentre
from localrefine_plugin.engine.records.errors import InputError
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


# ---------------------------------------------------------------- a mask of the same grid, saved at another place

BALL = np.array([9, 6, 8])  # x, y, z of the centre of the mask that is right


def ball(centre):
    """A soft ball of 16 px about x, y, z."""
    z, y, x = np.meshgrid(*[np.arange(16)] * 3, indexing="ij")
    distance = np.sqrt((x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2)
    return (0.5 + 0.5 * np.cos(np.pi * np.clip((distance - 1) / 3, 0, 1))).astype(np.float32)


def same_grid(inputs, centre=BALL, **settings):
    write_mrc(inputs.mask, ball(centre), PIXEL_SIZE)

    def after(mask_origin, mask_start=(0, 0, 0), half_map_origin=(0, 0, 0), flags=None):
        set_origin(inputs.mask, mask_origin, mask_start)
        for path in (inputs.half_1, inputs.half_2):
            set_origin(path, half_map_origin)
        if flags is not None:
            with open(inputs.mask, "r+b") as handle:
                handle.seek(108)
                handle.write(struct.pack("<i", 0))  # NVERSION
                handle.seek(152)
                handle.write(struct.pack("<2i", 1146047817, flags))
        return check_inputs(inputs.star, inputs.half_1, inputs.half_2, inputs.mask, Settings(**settings))
    return after


def said_of_place(checked):
    return [text for text in checked.warnings if "its header puts it" in text]


FROM_CENTRE, TO_CENTRE = (-8 * PIXEL_SIZE,) * 3, (8 * PIXEL_SIZE,) * 3


@pytest.mark.parametrize("mask, half_map", [
    ((0, 0, 0), (0, 0, 0)), ((24, 24, 24), (24, 24, 24)), (FROM_CENTRE, (0, 0, 0)), ((0, 0, 0), FROM_CENTRE),
    (FROM_CENTRE, FROM_CENTRE), (TO_CENTRE, (0, 0, 0)), ((0, 0, 0), TO_CENTRE), (TO_CENTRE, FROM_CENTRE),
    ((0.1, 0, 0), (0, 0, 0)), ((1e12,) * 3, (0, 0, 0))])
def test_usual_origins_say_nothing(inputs, mask, half_map):
    for honour in (False, True):
        checked = same_grid(inputs, honour_mask_origin=honour)(mask, half_map_origin=half_map)
        assert not said_of_place(checked) and not any("was moved" in text for text in checked.warnings)
        np.testing.assert_array_equal(checked.mask, ball(BALL))


SHIFT = np.array([2, -1, 1])  # px
ELSEWHERE = {  # name: what `same_grid` is given for a mask whose first voxel lies SHIFT from that of the half-maps
    "origin": dict(mask_origin=SHIFT * PIXEL_SIZE),
    "start": dict(mask_origin=(0, 0, 0), mask_start=SHIFT),
    "origin before start": dict(mask_origin=SHIFT * PIXEL_SIZE, mask_start=(7, 7, 7)),
    "of a half-map that is elsewhere too": dict(mask_origin=(SHIFT + 12) * PIXEL_SIZE,
                                                half_map_origin=(12 * PIXEL_SIZE,) * 3),
    "of a half-map counted from the centre": dict(mask_origin=(SHIFT - 8) * PIXEL_SIZE, half_map_origin=FROM_CENTRE),
    "beside a half-map counted from the centre": dict(mask_origin=SHIFT * PIXEL_SIZE, half_map_origin=FROM_CENTRE),
    "of IMOD before MRC2014": dict(mask_origin=-SHIFT * PIXEL_SIZE, flags=1),
    "of IMOD with the standard's sign": dict(mask_origin=SHIFT * PIXEL_SIZE, flags=1 + 4)}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_mask_saved_elsewhere_is_said_and_used_unmoved_or_moved_as_set(inputs, name):
    as_it_is = same_grid(inputs, BALL - SHIFT)(**ELSEWHERE[name])
    text, = said_of_place(as_it_is)
    assert "4.0, -2.0, 2.0 Å (2, -1, 1 px)" in text and "honour_mask_origin" in text
    np.testing.assert_array_equal(as_it_is.mask, ball(BALL - SHIFT))
    moved = same_grid(inputs, BALL - SHIFT, honour_mask_origin=True)(**ELSEWHERE[name])
    assert not said_of_place(moved) and any("was moved by 4.0, -2.0, 2.0 Å" in text for text in moved.warnings)
    np.testing.assert_allclose(moved.mask, ball(BALL), atol=1e-6)


def test_24_angstrom_are_said(inputs):
    text, = said_of_place(same_grid(inputs)((24, 0, 0)))
    assert "24.0, 0.0, 0.0 Å (12, 0, 0 px)" in text


def test_a_part_of_a_voxel_is_refused_only_where_it_is_honoured(inputs):
    assert said_of_place(same_grid(inputs)((3.0, 0, 0)))
    with pytest.raises(InputError, match=r"3.0, 0.0, 0.0 Å \(1.5, 0, 0 px\).*no whole number.*volume resample"):
        same_grid(inputs, honour_mask_origin=True)((3.0, 0, 0))


@pytest.mark.parametrize("far", [12, 400])
def test_a_mask_that_would_leave_the_box_is_refused(inputs, far):
    with pytest.raises(InputError, match="of it outside of the box"):
        same_grid(inputs, honour_mask_origin=True)((far * PIXEL_SIZE, 0, 0))


def test_half_maps_at_two_places_are_said(inputs):
    set_origin(inputs.half_2, (24, 0, 0))
    write_mrc(inputs.mask, ball(BALL), PIXEL_SIZE)
    text, = said_of_place(check(inputs))
    assert text.startswith("half-map 2") and "24.0, 0.0, 0.0 Å" in text


def test_re_centring_says_it_too(inputs):
    write_mrc(inputs.mask, ball(BALL), PIXEL_SIZE)
    maps = {"half_map_1": inputs.half_1, "half_map_2": inputs.half_2, "mask": inputs.mask}
    assert not said_of_place(SimpleNamespace(warnings=recentre(inputs.star, inputs.folder / "a", maps)["warnings"]))
    set_origin(inputs.mask, (24, 0, 0))
    done = recentre(inputs.star, inputs.folder / "b", maps)
    text, = said_of_place(SimpleNamespace(warnings=done["warnings"]))
    assert text.startswith("mask ") and "24.0, 0.0, 0.0 Å" in text and "from half_map_1" in text


def test_a_copy_of_a_map_of_a_scipion_set_keeps_the_voxel_of_its_origin(inputs):
    """The header is left at 1 Å in a set of 2 Å: 3 voxels are 3 Å there and 6 Å in the copy."""
    write_mrc(inputs.mask, ball(BALL), 1.0)
    set_origin(inputs.mask, (3.0, 0, -2.0))
    copy = convert.mrc_map(str(inputs.mask), PIXEL_SIZE, str(inputs.folder / "copy.mrc"))
    with mrcfile.open(copy) as mrc:
        assert [float(mrc.header.origin[axis]) for axis in "xyz"] == [6.0, 0.0, -4.0]
        np.testing.assert_array_equal(mrc.data, ball(BALL))


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


def test_a_flipped_map_with_the_poses_of_the_other_hand_is_refused(hands):
    with pytest.raises(InputError, match="the images fit the mirrored half-maps"):
        prepared(hands, "", "_other")
