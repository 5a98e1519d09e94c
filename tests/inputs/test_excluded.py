"""One bad particle among many is left out, counted and listed; the run is the one without it."""
from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from experiments import experiment, inputs_of, write_inputs
from relion_files import write_star

from localrefine_plugin.engine import refine
from localrefine_plugin.engine.inputs.checks import check_inputs
from localrefine_plugin.engine.io.run_folder import read_json
from localrefine_plugin.engine.records.errors import InputError
from localrefine_plugin.engine.records.settings import Settings

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:mrcfile", "ignore:invalid value:RuntimeWarning")

COUNT = 500
REASONS = {10: "holds NaN", 11: "holds NaN or infinite", 42: "defocus of 0", 200: "is constant \\(3 ",
           301: "grey values that span"}
STACKS = {1: "half_1.mrcs", 2: "half_2.mrcs"}


def spoil(folder, row, value):
    """Put the value into an image of `write_inputs`, whose half-sets alternate; 3 fills it."""
    with mrcfile.open(str(folder / STACKS[1 + row % 2]), "r+") as mrc:
        where = (row // 2,) if value == 3 else (row // 2, 3, 5)
        mrc.data[where] = value


def without_defocus(particles, *rows):
    defocus = [np.array(values) for values in (particles.defocus_u, particles.defocus_v)]
    for values in defocus:
        values[list(rows)] = 0
    return replace(particles, defocus_u=defocus[0], defocus_v=defocus[1])


def check(folder, **settings):
    return check_inputs(*inputs_of(folder), Settings(**settings))


@pytest.fixture(scope="module")
def data():
    return experiment(COUNT, box=16, pixel_size=4.0, noise=1.0, centre=(1.0, -1.0, 1.0))


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """The run with five bad particles, and the run whose STAR file lacks them."""
    folder = tmp_path_factory.mktemp("excluded")
    write_inputs(folder, data)
    write_star(folder / "particles.star", without_defocus(data.particles, 42), STACKS)
    for row, value in {10: np.nan, 11: np.inf, 200: 3, 301: 1e30}.items():
        spoil(folder, row, value)
    lines = (folder / "particles.star").read_text().splitlines(True)
    first = next(i for i, line in enumerate(lines) if "@" in line)
    (folder / "without.star").write_text("".join(line for i, line in enumerate(lines) if i - first not in REASONS))
    return [refine.refine(str(folder / star), *inputs_of(folder)[1:], str(folder / star[:-5]),
                          Settings(max_iterations=1), device="cpu", threads=1)
            for star in ("particles.star", "without.star")]


def test_the_run_is_the_one_without_them(runs):
    for name in ("half_map_1.mrc", "half_map_2.mrc", "map_sharpened.mrc"):
        first, second = (run.final(name) for run in runs)
        assert first.read_bytes() == second.read_bytes()
        assert np.isfinite(mrcfile.read(str(first))).all()
    rows = [run.final("particles.star").read_text().split("data_particles")[1] for run in runs]
    assert rows[0] == rows[1] and rows[0].count("@") == COUNT - len(REASONS)


def test_they_are_counted_listed_and_named(runs):
    report = read_json(runs[0].report)
    listed = report["input"]["excluded"]
    assert [particle["row"] for particle in listed] == [row + 1 for row in REASONS]
    for particle, (row, reason) in zip(listed, REASONS.items()):
        assert re.search(reason, particle["reason"]), particle
        number, stack = particle["image"].split("@")
        assert int(number) == row // 2 + 1 and Path(stack).name == STACKS[1 + row % 2]
    said = [text for text in report["warnings"] if "left out" in text]
    assert len(said) == 1 and "5 of 500 particles" in said[0] and "row 11 " in said[0] and "and 2 more" in said[0]
    assert sum(half["particles"] for half in report["halves"]) == COUNT - len(REASONS)
    assert read_json(runs[1].input)["excluded"] == []


def test_more_than_one_in_a_hundred_is_refused_with_the_first_and_the_count(data, tmp_path):
    write_inputs(tmp_path, data)
    for row in range(40, 46):
        spoil(tmp_path, row, np.nan)
    with pytest.raises(InputError, match="particles.star: row 41 \\(image 21 of .*half_1.mrcs\\) .* NaN .*6 of 500 .* "
                                         "more than 1 %"):
        check(tmp_path)


def test_all_copies_of_a_bad_image_are_left_out(data, tmp_path):
    write_inputs(tmp_path, data)
    spoil(tmp_path, 20, 3)
    text = (tmp_path / "particles.star").read_text()
    row = next(line for line in text.splitlines() if line.startswith("000011@half_1"))
    words = row.split()
    words[10] = "12.5"  # another first angle
    (tmp_path / "particles.star").write_text(text.rstrip("\n") + "\n" + " ".join(words) + "\n")
    checked = check(tmp_path)
    assert [e.row for e in checked.excluded] == [21, COUNT + 1]
    assert np.flatnonzero(checked.particles.half_set == 0).tolist() == [20, COUNT]


def test_split_anew_they_are_left_out_all_the_same(data, tmp_path):
    write_inputs(tmp_path, data)
    spoil(tmp_path, 20, np.inf)
    checked = check(tmp_path, resplit_half_sets=True)
    assert np.flatnonzero(checked.particles.half_set == 0).tolist() == [20]


@pytest.mark.parametrize("factor", [1e-25, 1e20])
def test_grey_values_out_of_all_proportion_are_refused(data, tmp_path, factor):
    write_inputs(tmp_path, data)
    for name in STACKS.values():
        with mrcfile.open(str(tmp_path / name), "r+") as mrc:
            mrc.data[:] *= factor
    with pytest.raises(InputError, match="half_1.mrcs: the grey values of most images span .*; normalise them"):
        check(tmp_path)
