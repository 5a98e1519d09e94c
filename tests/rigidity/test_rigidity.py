"""The verb rigidity on runs of a particle of two bodies, of which one turns about a hinge, or rests."""
from __future__ import annotations

import json

import numpy as np
import pytest
from relion_files import write_map
from two_bodies import ANGLE_DEG, AXIS, BOX, CENTRES, FULCRUM, PIXEL_SIZE, at_angle, bodies, whole_run

from localrefine_plugin.engine import __main__ as cli
from localrefine_plugin.engine.bodies.finished import open_body
from localrefine_plugin.engine.cells.relative import Variance
from localrefine_plugin.engine.io.mrc import read_map
from localrefine_plugin.engine.io.run_folder import read_json
from localrefine_plugin.engine.io.run_store import load_noise, load_tables
from localrefine_plugin.engine.records.errors import InputError
from localrefine_plugin.engine.rigidity import forecasts
from localrefine_plugin.engine.rigidity.outline import outline
from localrefine_plugin.engine.rigidity.rigidity import rigidity, where_larger
from localrefine_plugin.report.rigidity_picture import still, write_png
from localrefine_plugin.report.run_state import RunState


@pytest.fixture(scope="module")
def moving():
    run = whole_run(ANGLE_DEG)
    assert cli.main(["rigidity", str(run.path), "--cells", "8", "--threads", "1"]) == 0
    return run


@pytest.fixture(scope="module")
def rigid():
    run = whole_run(0.0)
    return run, rigidity(str(run.path), cells=8)


def truth_of(run, mask):
    """The share of the density of A and of B in a mask."""
    density = [np.maximum(body.density(BOX), 0) for body in bodies().values()]
    return [float((one * mask).sum() / one.sum()) for one in density]


def test_both_bodies_are_found_with_their_hinge_and_the_angle_that_was_planted(moving):
    found = RunState(str(moving.path)).rigidity
    assert len(found.bodies) == 2
    folder = moving.rigidity.parent
    shares = [truth_of(moving, read_map(folder / body.mask)[0] > 0.5) for body in found.bodies]
    of_a = int(shares[0][0] < shares[1][0])  # which of the bodies is A
    assert shares[of_a][0] > 0.9 and shares[1 - of_a][1] > 0.9
    motion = found.bodies[1].motion
    assert motion.rotation_widths_deg[0] == pytest.approx(ANGLE_DEG, rel=0.25)
    assert abs(np.array(motion.rotation_axes[0]) @ AXIS) > 0.95
    at = np.array(motion.hinge.point_px) - BOX // 2 - FULCRUM
    off_axis = at - (at @ AXIS) * AXIS  # a turn about one axis tells no point on it
    assert np.linalg.norm(off_axis) * PIXEL_SIZE < 5


def test_each_body_gets_the_forecast_of_its_refinement(moving):
    """With its mask; and the words say it."""
    found = RunState(str(moving.path)).rigidity
    assert [body.forecast.mask for body in found.bodies] == [
        str(moving.rigidity.with_name(body.mask)) for body in found.bodies]
    for body in found.bodies:
        assert body.forecast.particles == sum(len(table) for table in load_tables(moving, found.iteration))
        assert 2 * PIXEL_SIZE <= body.forecast.to_report_angstrom < 30
        assert any(f"with {body.mask} is expected to reach about {body.forecast.to_report_angstrom:.1f} Å" in text
                   for text in found.words)


def test_bodies_are_forecast_from_the_input_of_the_run(moving, monkeypatch):
    """Its half-maps hold the noise of the images at the poses found, with which images agree too well."""
    asked, of = [], open_body(moving.path)
    monkeypatch.setattr(forecasts, "forecast", lambda inputs, masks, device: asked.append(inputs) or masks)
    with_forecasts = forecasts.with_forecasts(of, RunState(str(moving.path)).rigidity.bodies)
    assert len(with_forecasts) == 2 and with_forecasts[0].forecast.name == "body_1.mrc"
    given = read_json(moving.input)
    assert asked[0][:3] == (given["particles"], given["half_map_1"], given["half_map_2"])
    assert asked[0].settings.fulcrum == "mask"


def test_cells_that_move_are_told_from_cells_that_rest(moving):
    found = RunState(str(moving.path)).rigidity
    assert not any(cell.moves for cell in found.cells if cell.body == 1)
    assert sum(cell.moves for cell in found.cells if cell.body == 2) >= 2  # of four; the others lie at the hinge
    motion, mask = read_map(moving.rigidity.with_name("motion.mrc"))[0], read_map(
        moving.rigidity.with_name(found.bodies[0].mask))[0]
    assert motion.max() == pytest.approx(max(cell.displacement_angstrom for cell in found.cells), rel=0.2)
    assert motion[mask > 0.9].mean() < 0.5 * motion.max()


def test_a_rigid_particle_is_one_body_and_no_cell_moves(rigid):
    run, found = rigid
    assert len(found.bodies) == 1 and not any(cell.moves for cell in found.cells)
    assert "one rigid body" in found.words[0]
    excess = [cell.variance_angstrom2 / cell.variance_error_angstrom2 for cell in found.cells]
    assert abs(np.mean(excess)) < 1.5
    errors = [cell.variance_error_angstrom2 for cell in found.cells]
    predicted = [0.5 * cell.detectable_angstrom ** 2 for cell in found.cells]
    np.testing.assert_allclose(errors, predicted, rtol=0.35)


def test_coarser_detail_tells_the_motion_only_of_a_cell_that_is_sure_to_move_and_moves_further_there():
    """Variance, its error, and the error that was predicted."""
    fine = [Variance(1.0, 0.1, 0.1), Variance(1.0, 0.1, 0.1), Variance(0.3, 0.1, 0.1), Variance(0.2, 0.01, 0.01)]
    coarse = [Variance(3.0, 0.5, 0.4), Variance(1.9, 0.5, 0.4), Variance(3.0, 0.5, 0.4), Variance(3.0, 0.5, 0.4)]
    told = where_larger(fine, coarse, least=0.5)
    assert told == [Variance(3.0, 0.5, 0.1), *fine[1:]]  # the second within its error, the others not sure to move


def test_a_wrong_noise_spectrum_is_put_right(rigid, monkeypatch):
    run, first = rigid
    module = "localrefine_plugin.engine.rigidity.rigidity.load_noise"
    monkeypatch.setattr(module, lambda *which: 1.3 * load_noise(*which))
    again = rigidity(str(run.path), cells=8)
    for before, after in zip(first.cells, again.cells):
        assert after.variance_angstrom2 == pytest.approx(before.variance_angstrom2,
                                                         abs=0.2 * before.variance_error_angstrom2)


def test_the_script_and_the_record_name_what_was_written(moving):
    folder = moving.rigidity.parent
    script, record = (folder / "rigidity.cxc").read_text(), json.loads(moving.rigidity.read_text())
    opened = [line.split()[1] for line in script.splitlines() if line.startswith("open ")]
    assert all((folder / name).exists() for name in opened) and len(opened) == 4
    assert moving.complete(moving.rigidity) and len(record["files"]) == 5
    assert not list(folder.glob(".*.tmp*"))


def test_the_picture_shows_both_bodies_and_nothing_where_nobody_looked(moving, tmp_path):
    figure = still(RunState(str(moving.path)))
    named = [text.get_text() for axes in figure.axes if axes.get_legend() for text in axes.get_legend().get_texts()]
    assert {"body 1", "body 2"} <= {text.split(",")[0] for text in named}
    written = write_png(str(moving.path), tmp_path / "picture.png")
    assert written.stat().st_size > 10_000
    assert still(RunState(str(tmp_path))) is None


def test_a_second_call_replaces_what_the_first_wrote(rigid):
    run, first = rigid
    (run.rigidity.with_name("body_7.mrc")).write_bytes(b"of an earlier call")
    again = rigidity(str(run.path), cells=8)
    assert again.cells == first.cells  # the same numbers from the same run
    assert not run.rigidity.with_name("body_7.mrc").exists()


def test_what_cannot_be_looked_at_is_said_before_any_computing(moving, tmp_path):
    with pytest.raises(InputError, match="not 4 to 60"):
        rigidity(str(moving.path), cells=2)
    with pytest.raises(InputError, match="particles of half-set 1 can be looked at"):
        rigidity(str(moving.path), particles=60)
    with pytest.raises(InputError, match="is not finished"):
        rigidity(str(tmp_path))
    assert CENTRES["A"][0] < 0 < CENTRES["B"][0]


def test_the_outline_holds_the_whole_particle_and_replaces_no_file(tmp_path):
    density = at_angle(0.0)
    for half in (1, 2):
        noise = 0.05 * density.std() * np.random.default_rng(half).standard_normal(density.shape)
        write_map(tmp_path / f"half_{half}.mrc", density + noise, PIXEL_SIZE)
    arguments = ["outline", "--half-map-1", str(tmp_path / "half_1.mrc"), "--half-map-2", str(tmp_path / "half_2.mrc"),
                 "--mask", str(tmp_path / "mask.mrc")]
    assert cli.main(arguments) == 0
    mask, pixel_size = read_map(tmp_path / "mask.mrc")
    assert pixel_size == pytest.approx(PIXEL_SIZE) and mask.min() == 0 and mask.max() == pytest.approx(1)
    assert (density * mask).sum() > 0.98 * density.sum()
    assert mask.mean() < 0.5
    before = (tmp_path / "mask.mrc").read_bytes()
    assert cli.main(arguments) == 1 and (tmp_path / "mask.mrc").read_bytes() == before
    write_map(tmp_path / "half_2.mrc", density, 2 * PIXEL_SIZE)
    with pytest.raises(InputError, match="give the two half-maps of one refinement"):
        outline(*(str(tmp_path / name) for name in ("half_1.mrc", "half_2.mrc", "new.mrc")))
