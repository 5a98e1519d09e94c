"""The wizard that forecasts a run: from Scipion's objects, for the mask chosen and others of the project."""

from dataclasses import replace

import pytest
from scipion_data import new_project, simulated_inputs, soft_ball, store_inputs, volume, write_map

from localrefine_plugin import wizard_computations
from localrefine_plugin.engine.records.forecast import Forecast
from localrefine_plugin.protocols import ProtLocalRefine


@pytest.fixture(scope="module")
def protocol(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    project = new_project("forecasts")
    inputs = simulated_inputs(project, folder, n=240)
    larger = write_map(folder / "larger.mrc", soft_ball(32, 11, 4))
    other_box = write_map(folder / "other_box.mrc", soft_ball(48, 11, 4))
    outside = write_map(folder / "outside.mrc", soft_ball(32, 2, 2, (12, 12, 12)))
    again = write_map(folder / "again.mrc", soft_ball(32, 0.28 * 32, 0.12 * 32))  # the mask chosen
    store_inputs(project, {"again": lambda p: volume(again, mask=True), "larger": lambda p: volume(larger, mask=True),
                           "outside": lambda p: volume(outside, mask=True),
                           "otherBox": lambda p: volume(other_box, mask=True)})
    project.getRuns()  # as the window of the project has done
    asking = project.newProtocol(ProtLocalRefine)
    asking.setProject(project)
    for name, output in (("inputParticles", "outputParticles"), ("inputVolume", "outputVolume"),
                         ("inputMask", "outputMask")):
        getattr(asking, name).set(inputs)
        getattr(asking, name).setExtended(output)
    asking.useGpu.set(False)
    return asking


def test_other_masks_of_this_grid_are_compared(protocol):
    names = [name for name, _ in wizard_computations.masks_to_compare(protocol)]
    assert names[0] == "the mask chosen" and [name.split(" of ")[0] for name in names[1:]] == ["larger", "outside"]


def test_each_mask_gets_its_lines(protocol):
    lines = wizard_computations.forecast_lines(protocol)
    first = [line for line in lines if line.startswith("With ")]
    last = first.pop()
    assert last.startswith("With outside of ") and "no forecast: the mask: covers no density" in last
    assert [line.split(" of ")[0].split(":")[0] for line in first] == ["With the mask chosen", "With larger"]
    assert all("Å to report" in line and "per axis" in line for line in first)
    assert sum("with 240 particles" in line for line in lines) == 2


def test_a_doubtful_mask_is_said_in_a_line_of_its_own():
    found = Forecast("mask.mrc", 100, 50, 6.0, 6.0, 1.0, 0.5, 7.0, 60.0, 0.0, (25, 100), (9.0, 6.0))
    assert len(wizard_computations.lines_of("it", found)) == 3
    assert wizard_computations.lines_of("it", replace(found, doubt="Look at the mask"))[2] == "Look at the mask."
    assert wizard_computations.lines_of("it", found)[1].endswith("6.0 Å with 100 particles.")
    ended = wizard_computations.lines_of("it", replace(found, finest_angstrom=6.0))
    assert ended[1].endswith("6.0 Å with 100 particles (the pixels hold no finer detail).")


def test_it_says_what_is_missing():
    with pytest.raises(wizard_computations.Missing, match="mask first"):
        wizard_computations.masks_to_compare(ProtLocalRefine())
