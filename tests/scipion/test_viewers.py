"""Plots, run states and the HTML report: artists in figures, and damaged folders that must not raise."""
from __future__ import annotations

import io
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fake_run import BOX, PIXEL, SHIFT_ADVICE, fake_run
from figures import NOT_IN_THE_FAKE_RUN, pixels
from scipion_data import new_project, soft_ball, write_map
from scipy.spatial.transform import Rotation

from localrefine_plugin import wizard_computations
from localrefine_plugin.engine.io.run_folder import write_json
from localrefine_plugin.engine.records.motion import HingeSummary
from localrefine_plugin.engine.records.resolved import ResolvedSettings
from localrefine_plugin.report import map_plots, motion_plots, plots, pose_plots
from localrefine_plugin.report.run_figures import (
    PICTURES,
    change_since_last,
    draw,
    picture_of,
)
from localrefine_plugin.report.run_state import RunState
from localrefine_plugin.report.run_summary import summary_lines


def texts(figure):
    from matplotlib.text import Text
    return " | ".join(t.get_text() for t in figure.findobj(Text) if t.get_text())


@pytest.mark.parametrize("picture", PICTURES, ids=lambda p: p.name)
def test_every_picture_draws_at_600_pixels(state, picture):
    figure = draw(picture, state)
    image = pixels(figure)
    assert 600 <= image.shape[1] <= 700
    assert image.std() > 5
    if picture.name not in NOT_IN_THE_FAKE_RUN:
        assert figure.axes and "cannot be read" not in texts(figure) and "not there" not in texts(figure)


@pytest.mark.parametrize("picture", PICTURES, ids=lambda p: p.name)
def test_text_stays_inside_the_figure(state, picture):
    figure = draw(picture, state)
    pixels(figure)
    written = list(figure.texts) + [text for legend in figure.legends for text in legend.get_texts()]
    for axes in figure.axes:
        legend = axes.get_legend()
        written += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
        written += legend.get_texts() if legend else []
    for text in written:
        box = text.get_window_extent()
        inside = box.x0 > -1 and box.y0 > -1 and box.x1 < figure.bbox.width + 1 and box.y1 < figure.bbox.height + 1
        assert inside or not text.get_text(), text.get_text()


def test_fsc_figure_shows_five_curves_threshold_band_and_resolutions(state):
    figure = plots.fsc_figure(state.fsc(3), state.last.resolution_angstrom, state.fsc(0))
    axes = figure.axes[0]
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert [n.split("  ")[0] for n in names] == [
        "Input, corrected", "No mask", "Spherical", "Loose", "Tight", "Corrected", "Standard error"]
    assert "7.40 Å" in names[5]
    assert any(np.allclose(line.get_ydata(), 0.143) for line in axes.get_lines())
    assert axes.get_xlabel() == "Resolution (Å)"


def test_fsc_figure_shows_what_to_report_in_the_iteration_of_the_result_only(state, tmp_path):
    run = shutil.copytree(state.folder.path, tmp_path / "run")
    curve = np.linspace(1, 0, len(state.fsc(3)["rlnResolution"]))
    write_json(run / "final" / "pose_blur.json", {
        "expected_resolution_angstrom": 8.6, "expected_fsc": curve.tolist(), "resolution_to_report_angstrom": 8.6,
        "range_to_report_angstrom": [8.1, 9.3]})
    copied = RunState(run)
    best = copied.best.iteration
    shown = {k: [text.get_text() for text in draw(picture_of("fsc"), copied, k).axes[0].get_legend().get_texts()]
             for k in (best, best - 1)}
    assert {"To report  8.60 Å", "its range  8.10 to 9.30 Å"} < set(shown[best])
    assert not any("report" in name or "range" in name for name in shown[best - 1])
    assert any("to report" in line and "8.60" in line and "(8.10 to 9.30 Å" in line for line in summary_lines(copied))


def test_resolution_ticks_stand_where_they_say(state):
    axes = plots.fsc_figure(state.fsc(3), {}).axes[0]
    for position, label in zip(axes.get_xticks(), axes.get_xticklabels()):
        assert 1 / position == pytest.approx(float(label.get_text()))


@pytest.mark.parametrize("law, dimension", [(pose_plots.maxwell, 3), (pose_plots.rayleigh, 2)])
def test_prior_curves_are_the_densities_of_the_norm(law, dimension):
    norm = np.linalg.norm(np.random.default_rng(0).normal(0, 2.5, (200_000, dimension)), axis=1)
    counts, edges = np.histogram(norm, bins=30, range=(0, 10), density=True)
    assert np.abs(counts - law(0.5 * (edges[1:] + edges[:-1]), 2.5)).max() < 0.006


def poses(rng, n, at_limit, spread=3.0):
    return dict(row=np.arange(n), rotation_change_deg=rng.normal(0, spread, (n, 3)),
                shift_change_angstrom=rng.normal(0, 1, (n, 2)), at_rotation_limit=np.arange(n) < at_limit * n,
                at_shift_limit=np.zeros(n, bool))


def test_histograms_hold_all_particles_and_mark_the_limit():
    rng = np.random.default_rng(1)
    halves = {1: poses(rng, 300, 0.0), 2: poses(rng, 500, 0.0)}
    settings = ResolvedSettings(prior="gaussian", rotation_extent_deg=8.0, shift_extent_angstrom=12.0)
    figure = pose_plots.pose_change_figure(halves, settings)
    rotation = figure.axes[0]
    limit = [line for line in rotation.get_lines() if np.allclose(line.get_xdata(), 8.0)]
    assert limit, "the extent is drawn"
    heights = np.histogram(pose_plots.norms(halves[1]["rotation_change_deg"]), bins=np.linspace(0, 8.0 * 1.0001, 41))[0]
    assert rotation.patches[0].get_path().vertices[:, 1].max() == pytest.approx(100 * heights.max() / 300)


def test_the_advice_of_the_engine_stands_under_the_histograms(state, tmp_path):
    assert SHIFT_ADVICE in texts(draw(picture_of("pose_change"), state)).replace("\n", " ")
    assert "drift" not in texts(draw(picture_of("pose_change"), state))
    rng = np.random.default_rng(1)
    figure = pose_plots.pose_change_figure({1: poses(rng, 100, 0.0)}, None)
    assert "no problems found" in texts(figure).replace("\n", " ")


def test_the_learned_motion_is_drawn_with_its_hinge_and_widths(state):
    figure = draw(picture_of("learned_motion"), state)
    motion = state.last.motion.pooled
    assert "px from the corner of the box" in texts(figure).replace("\n", " ")
    rotation, _, _, xy, xz, yz = figure.axes
    drawn = [bars.lines[0].get_ydata()[-1] for bars in rotation.containers]
    np.testing.assert_allclose(sorted(set(np.round(drawn, 6))), sorted(np.round(motion.rotation_widths_deg, 6)))
    for axes, shown in ((xy, (0, 1)), (xz, (0, 2)), (yz, (1, 2))):
        crosses = [line.get_xydata()[0] for line in axes.get_lines() if line.get_marker() == "+"]
        np.testing.assert_allclose(crosses, [[motion.hinge.point_px[i] for i in shown]])


def test_the_histogram_of_the_motion_holds_both_halves():
    from matplotlib.figure import Figure
    axes = Figure().subplots()
    z = np.random.default_rng(0).standard_normal((100, 2))
    motion_plots.draw_shape(axes, {1: z[:40], 2: z[40:] + 9})
    heights = axes.patches[0].get_path().vertices[:, 1]
    assert heights.max() == pytest.approx(60.0)  # what lies beyond the picture is counted at its end


def test_a_hinge_that_is_open_along_an_axis_is_drawn_as_a_line():
    from matplotlib.figure import Figure
    axes = Figure().subplots()
    hinge = HingeSummary((5, 6, 7), (10, 12, 14), (1, 1, 1), 2, (1.0, 0.0, 0.0), 0.9, (1, 1, 1))
    motion_plots.mark_hinge(axes, (0, 1), hinge, 2.0)
    line = axes.get_lines()[-1].get_xydata()
    np.testing.assert_allclose(line[:, 1], 6)
    assert np.ptp(line[:, 0]) > 100


def asking_beside(run, pixel_size, mask=None):
    """The protocol of a form in a project in which ``run`` is a run named first."""
    from localrefine_plugin.protocols import ProtLocalRefine

    class Done(ProtLocalRefine):
        def run_state(self):
            return RunState(run.path)

    done = Done()
    done.setObjLabel("first")
    volume = SimpleNamespace(getXDim=lambda: BOX, getSamplingRate=lambda: pixel_size)
    project = SimpleNamespace(getRuns=lambda refresh: [SimpleNamespace(), done])
    return SimpleNamespace(inputVolume=SimpleNamespace(get=lambda: volume), getProject=lambda: project,
                           inputMask=SimpleNamespace(get=lambda: mask))


@pytest.mark.parametrize("pixel_size, offered", ((PIXEL, 1), (2 * PIXEL, 0)))
def test_the_fulcrum_wizard_offers_the_hinges_of_earlier_runs(run, pixel_size, offered):
    found = wizard_computations.learned_hinges(asking_beside(run, pixel_size))
    assert len(found) == offered
    if offered:
        np.testing.assert_allclose(found["Hinge of first"], [19, 15, 16], atol=1e-6)


@pytest.mark.parametrize("centre, learned", (((0, 0, 0), True), ((0, 9, 0), False)))
def test_the_prior_wizard_takes_what_a_run_of_this_part_learned(run, tmp_path, centre, learned):
    """5, 4 and 2° about a hinge at (19, 15, 16): at the fulcrum (18, 15.5, 17) the displacement is 0.5 px and w × r."""
    mask = write_map(tmp_path / "mask.mrc", soft_ball(BOX, 6, 3, centre), PIXEL)
    asking = asking_beside(run, PIXEL, SimpleNamespace(getFileName=lambda: mask))
    (rotation, shift), reason = wizard_computations.prior_widths(asking)
    assert ("As the run 'first' learned it" in reason) == learned
    if not learned:
        assert (rotation, shift) == (7.0, 4.0)
        return
    variance = np.deg2rad([5.0, 4.0, 2.0]) ** 2
    x, y, z = np.array([18.0, 15.5, 17.0]) - [19, 15, 16]
    turned = variance @ [y * y + z * z, x * x + z * z, x * x + y * y]  # E|w × r|²
    assert rotation == pytest.approx(np.rad2deg(np.sqrt(variance.mean())))
    assert shift == pytest.approx(PIXEL * np.sqrt((3 * 0.25 + turned) / 3))


def test_the_summary_tells_the_motion(state):
    lines = summary_lines(state)
    assert any("5.0, 4.0 and 2.0° of rotation" in line for line in lines)
    assert any("Hinge: 19.0, 15.0, 16.0 px" in line for line in lines)


def test_a_learned_prior_is_drawn_as_the_distribution_of_its_norm():
    rng = np.random.default_rng(1)
    covariance = np.diag([np.deg2rad(3.0) ** 2] * 3 + [0.8 ** 2] * 3)
    sample = pose_plots.learned_sample(covariance, Rotation.random(50, random_state=0).as_matrix())
    figure = pose_plots.pose_change_figure({1: poses(rng, 300, 0.0)}, ResolvedSettings(), learned=sample)
    for axes, law, width in zip(figure.axes, (pose_plots.maxwell, pose_plots.rayleigh), (3.0, 0.8)):
        x, y = next(line for line in axes.get_lines() if line.get_label() == "Learned prior").get_data()
        assert np.abs(y - 100 * law(x, width) * (x[1] - x[0])).max() < 0.5
    assert "Learned prior" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_change_since_the_last_iteration_stands_behind_the_histograms(state, tmp_path):
    """Planted: every particle of iteration 3 turned by 2° about the fulcrum and shifted by 1 px since iteration 2."""
    folder = fake_run(tmp_path / "run")
    centre = np.array(state.fulcrum_px) - BOX // 2
    turn = Rotation.from_rotvec([0, 2, 0], degrees=True).as_matrix()
    for half in (1, 2):
        before = dict(np.load(folder.poses(2, half)))
        after = dict(before, rotation=before["rotation"] @ turn)
        after["shift_px"] = before["shift_px"] - ((after["rotation"] - before["rotation"])[:, :2] @ centre) + [1, 0]
        np.savez(folder.poses(3, half), **after)
    name, change = change_since_last(RunState(folder.path), 3)
    np.testing.assert_allclose(change["rotation_change_deg"], np.tile([0, 2, 0], (400, 1)), atol=1e-9)
    np.testing.assert_allclose(change["shift_change_angstrom"], np.tile([PIXEL, 0], (400, 1)), atol=1e-9)
    figure = draw(picture_of("pose_change"), RunState(folder.path))
    assert name == "Since iteration 2" and "since iteration 2: 2.00°" in texts(figure)
    assert change_since_last(state, 1) is None


@pytest.mark.parametrize("kind, start", [("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_a_picture_can_be_saved_as_vectors(state, kind, start):
    buffer = io.BytesIO()
    draw(picture_of("fsc"), state).savefig(buffer, format=kind)
    assert buffer.getvalue().startswith(start) and b"<image" not in buffer.getvalue()


def test_error_spread_is_in_degrees_and_angstrom():
    rng = np.random.default_rng(0)
    sample = rng.normal(size=(200_000, 5)) * [0.01, 0.02, 0.02, 0.3, 0.4]
    rotation, shift = pose_plots.error_spread(np.cov(sample.T)[None], 1.5)
    assert rotation[0] == pytest.approx(np.rad2deg(0.03), rel=0.01)
    assert shift[0] == pytest.approx(1.5 * 0.5, rel=0.01)
    broken = pose_plots.error_spread(-np.eye(5)[None], 1.5)
    assert np.isnan(broken).all()


def test_the_change_stands_beside_its_uncertainty():
    table = dict(poses(np.random.default_rng(0), 5000, 0.0, spread=2.0),
                 pose_error_covariance=np.tile(np.diag([np.deg2rad(1.0) ** 2] * 3 + [1.0, 1.0]), (5000, 1, 1)))
    assert "median rotation is 3.1°, and a rotation is known to 1.7°" in texts(
        pose_plots.uncertainty_figure({1: table}, 1.0))


def test_the_filter_resolution_is_shown_inside_the_mask(run, state):
    cutoff = np.full((BOX,) * 3, 20.0)
    cutoff[BOX // 2, BOX // 2, BOX // 2] = 6.0
    folder = RunState(run.path).folder
    assert "not filtered" in texts(draw(picture_of("filter_resolution"), state))
    write_map(folder.filter_resolution(3), cutoff, PIXEL)
    figure = draw(picture_of("filter_resolution"), RunState(run.path))
    folder.filter_resolution(3).unlink()
    shown = figure.axes[0].images[0].get_array()
    assert np.isnan(np.ma.filled(shown, np.nan)).any() and np.nanmin(np.ma.filled(shown, np.nan)) >= 6.0
    assert "Resolution (Å)" in texts(figure)


def test_two_runs_can_be_laid_over_each_other(state, tmp_path):
    other = RunState(fake_run(tmp_path / "wide", spread_deg=9.0).path)
    for name in ("pose_change", "fsc"):
        figure = draw(picture_of(name), state, other=("the other run", other))
        assert "the other run" in texts(figure)


def test_principal_axis_of_a_hinge():
    rng = np.random.default_rng(0)
    w = rng.normal(size=(5000, 1)) * [0.0, 6.0, 8.0] + rng.normal(size=(5000, 3))
    text = pose_plots.principal_axis_text(w)
    numbers = [float(v) for v in re.findall(r"[+-]\d\.\d+", text)]
    assert np.abs(np.abs(numbers) - [0, 0.6, 0.8]).max() < 0.03
    assert "s.d. 10." in text


def test_uniform_directions_look_uniform():
    counts = map_plots.direction_counts(Rotation.random(200_000, random_state=0).as_matrix())
    assert counts.mean() == pytest.approx(1) and counts.std() < 0.08
    one = map_plots.direction_counts(np.tile(np.eye(3), (10, 1, 1)))
    assert one[-1].max() > 0 and one[:-1].max() == 0  # the identity looks along z: the top row


def test_slices_go_through_the_fulcrum_and_keep_their_axes():
    volume = np.zeros((9, 9, 9), np.float32)
    volume[2, 4, 7] = 1.0  # z 2, y 4, x 7
    figure = map_plots.map_slices_figure(volume, volume, None, (7, 4, 2), 1.0)
    shown = [axes.images[0].get_array() for axes in figure.axes[3:]]
    assert shown[0][4, 7] == shown[1][2, 7] == shown[2][2, 4] == 1.0
    crosses = [tuple(float(v[0]) for v in line.get_data()) for axes in figure.axes[3:] for line in axes.get_lines()
               if line.get_marker() == "+"]
    assert crosses == [(7, 4), (7, 2), (4, 2)]


# ---------------------------------------------------------------- Scipion's own windows

@pytest.fixture
def project(monkeypatch):
    monkeypatch.chdir(Path.cwd())
    return new_project("test_viewers")


def test_pwem_shows_our_fsc_without_an_error(project, run):
    from pwem.objects import SetOfFSCs
    from pwem.viewers import FscViewer

    from localrefine_plugin.convert import fsc_objects
    from localrefine_plugin.report.run_state import fsc_columns
    curves = SetOfFSCs.create(project.path)
    for curve in fsc_objects(fsc_columns(str(run.final("fsc.star")))):
        curves.append(curve)
    curves.write()
    viewer = FscViewer(project=project, protocol=SimpleNamespace(getRunName=lambda: "run"))
    viewer.show = lambda block=True: None
    viewer.visualize(curves)
    lines = viewer.plotter.figure.axes[-1].get_lines()
    assert len(lines) == 6  # five curves and the threshold
    names = {line.get_label().split(" (")[0] for line in lines[1:]}
    assert names == {"No mask", "Spherical", "Loose", "Tight", "Corrected"}


def test_the_viewer_is_found_for_the_protocol_and_offers_every_picture(project):
    from pyworkflow import Config
    from pyworkflow.viewer import DESKTOP_TKINTER

    from localrefine_plugin.protocols import ProtLocalRefine
    from localrefine_plugin.viewers import LocalRefineViewer
    domain = Config.getDomain()
    protocol = project.newProtocol(ProtLocalRefine)
    project.saveProtocol(protocol)
    protocol.makePathsAndClean()
    for target in (protocol, "ProtLocalRefine"):  # pyworkflow 3.9 knows the second only
        found = domain.findViewers(target, DESKTOP_TKINTER)
        assert found[:1] in ([LocalRefineViewer], []), target
    assert found
    viewer = LocalRefineViewer(project=project, protocol=protocol)
    viewer.setProtocol(protocol)
    handlers = viewer._getVisualizeDict()
    assert {picture.name for picture in PICTURES} <= set(handlers)
    for name in handlers:
        assert viewer.getParam(name) is not None, name
    figure = viewer.figure("fsc")
    assert "not there" in texts(figure)
    fake_run(Path(protocol._getExtraPath("run")))
    assert "iteration 2" in texts(viewer.figure("fsc", 2))
    assert viewer._iterations() == (3, 3)
    script = Path(viewer.write_chimera_script()).read_text()
    assert script.count("open ") == 5 and "map_sharpened.mrc" in script
    assert BOX * PIXEL == 96
