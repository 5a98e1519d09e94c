"""The film in pictures: still, animated, in the report, and from Analyze Results."""
from __future__ import annotations

import io
import re

import numpy as np
import pytest
from figures import pixels
from matplotlib.text import Text
from oracles import soft_ball
from PIL import Image, ImageSequence
from two_bodies import AXIS, BOX, CENTRES, FULCRUM, PIXEL_SIZE, copy_of, films

from localrefine_plugin.report import film_picture, film_plots
from localrefine_plugin.report.html_report import write_report
from localrefine_plugin.report.run_figures import draw, picture_of
from localrefine_plugin.report.run_state import RunState
from localrefine_plugin.viewers import film_entry


def test_the_view_is_the_one_in_which_the_motion_is_seen():
    """The mask turns about AXIS, its centre far from it: it moves to the right, and the axis points to the reader."""
    mask = soft_ball(BOX, 4, 6, CENTRES["B"])
    w = np.deg2rad(10.0) * AXIS
    motion = np.concatenate([w, np.cross(w, CENTRES["B"] - FULCRUM)])
    turn = film_plots.facing(mask, CENTRES["B"], motion)
    assert np.linalg.det(turn) == pytest.approx(1)
    to_the_right = np.cross(AXIS, CENTRES["B"] - FULCRUM)
    assert np.abs(turn[0] @ to_the_right) > 0.98 * np.linalg.norm(to_the_right)
    assert np.abs(turn[2] @ AXIS) > 0.98


def test_a_projection_is_the_density_along_the_last_row():
    """A bead at v is at (row 1 · v, row 2 · v) of the picture; a box above 96 voxels is drawn smaller."""
    volume = np.zeros((120,) * 3, np.float32)
    v = np.array([20, -8, 14])
    volume[tuple(60 + v[::-1])] = 1
    turn = film_plots.facing(soft_ball(40, 4, 6), np.zeros(3), np.array([0.1, 0.2, -0.1, 1, 2, 3.0]))
    picture = film_plots.projected(volume, turn)
    assert picture.shape == (96, 96)
    y, x = np.unravel_index(picture.argmax(), picture.shape)
    np.testing.assert_allclose((x - 48, y - 48), turn[:2] @ v * 96 / 120, atol=1.0)


@pytest.mark.parametrize("rest", [False, True])
def test_the_animated_picture_goes_to_and_fro(rest, tmp_path):
    run, made = films()[rest]
    path = film_picture.write_gif(run.path, tmp_path / "film.gif")
    frames = [np.asarray(frame.convert("RGB")).astype(int) for frame in ImageSequence.Iterator(Image.open(path))]
    assert len(frames) == 2 * len(made.axes[0].frames) - 2
    assert (frames[0] != frames[8]).any(axis=2).mean() > 0.02
    np.testing.assert_array_equal(frames[1], frames[-1])  # on the way back


def test_the_still_picture_shows_both_ends_and_the_words():
    run, made = films()[False]
    figure = draw(picture_of("film"), RunState(run.path))
    image = pixels(figure)
    assert 600 <= image.shape[1] <= 700 and len(figure.axes) == 12
    said = " ".join(text.get_text() for text in figure.findobj(Text))
    assert f"{made.axes[1].rotation_sd_deg:.2f}" in said and "input poses" in said
    bars = [patch for patch in figure.axes[3].patches]
    assert sum(patch.get_height() for patch in bars) == made.particles
    for text in figure.texts:
        box = text.get_window_extent()
        assert box.x0 > -1 and box.y0 > -1 and box.x1 < figure.bbox.width + 1


def test_a_run_without_a_film_says_how_to_make_one(capsys):
    run = copy_of("A", "no_film")
    text = draw(picture_of("film"), RunState(run.path)).axes[0].texts[0].get_text()
    assert "No film has been made" in text and "engine film RUN" in text
    assert film_picture.main([str(run.path)]) == 1 and "No film has been made" in capsys.readouterr().err
    assert film_picture.main([]) == 2


def test_the_report_holds_the_film(tmp_path):
    run, made = films()[False]
    write_report(run.path, str(tmp_path / "report.html"))
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.count("data:image/gif;base64,") == 1 and "Axis 1 (" in text
    assert not re.search(r"(src|href)=['\"](?!data:)", text)
    assert Image.open(io.BytesIO(film_picture.gif(RunState(run.path)))).n_frames == 16


def test_analyze_results_makes_the_film_that_is_asked_for_and_no_other():
    run, rest = copy_of("B", "viewer"), copy_of("A", "viewer")
    assert film_entry.made(run, None) == ""
    assert RunState(run.path).film.rest == ""
    before = run.film.stat().st_mtime_ns
    assert film_entry.made(run, None) == "" and run.film.stat().st_mtime_ns == before
    assert film_entry.made(run, rest.path) == ""
    assert RunState(run.path).film.rest == str(rest.path)
    assert "is not finished" in film_entry.made(run, run.path / "nowhere")
    run.report.unlink()
    assert "when the protocol has finished" in film_entry.made(run, None)
    assert PIXEL_SIZE == RunState(run.path).pixel_size
