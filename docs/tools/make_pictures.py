"""Most pictures of docs/tutorial and docs/how-to, made by doing what these pages say.

    .venv/bin/python docs/tools/make_pictures.py [FOLDER]     (FOLDER keeps data and project; tutorial_output)

Runs on a virtual screen (Xvfb, openbox, ImageMagick) and takes a few minutes. Writes docs/images/*.png.
"""
from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from examples import screen, simulate, tutorial  # noqa: E402
from examples.headless import set_environment  # noqa: E402

IMAGES = ROOT / "docs" / "images"
COLOURS = (128, 64, 32)  # of a palette: small files, and text stays sharp; the first that is small enough
LARGEST_BYTES = 150_000
NOISY = simulate.Options(snr=0.03, seed=2)
FREE = {"prior": "off", "rotation_extent_deg": 20.0, "shift_extent_angstrom": 10.0, "max_iterations": 5}


def main(folder: str = "tutorial_output") -> int:
    output = Path(folder).resolve()
    IMAGES.mkdir(exist_ok=True)
    if not (output / "data" / "truth.json").exists():
        simulate.simulate(output / "data", tutorial.OPTIONS)
    set_environment(output)
    with screen.virtual_screen() as display:
        os.environ["DISPLAY"] = display
        of_the_tutorial(tutorial.project_of(output), output / "data")
    of_the_parameters(output)
    of_the_recentring(output)
    for path in sorted(IMAGES.glob("*.png")):
        print(f"{path.stat().st_size / 1024:6.0f} kB  {path.name}")
    return 0


def shot(window: Any, name: str, geometry: str = "", seconds: float = 0.8) -> None:
    path = IMAGES / f"{name}.png"
    screen.photograph(window, path, geometry, seconds)
    shrink(path)


def shrink(path: Path) -> None:
    from PIL import Image
    picture = Image.open(path).convert("RGB")
    for colours in COLOURS:
        # this method keeps colours that only a few pixels have, as a cross-hair's
        picture.quantize(colours, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(path, optimize=True)
        if path.stat().st_size < LARGEST_BYTES:
            return


# ---------------------------------------------------------------- tutorial

def of_the_tutorial(project: Any, data: Path) -> None:
    from pyworkflow import Config
    from pyworkflow.gui.project import ProjectWindow
    Config.getDomain().getViewers()
    protocol = next(run for run in project.getRuns() if run.getClassName() == "ProtLocalRefine")
    window = ProjectWindow(project.path)
    shot(window.root, "project", "1150x700+0+0", 3)
    window.root.withdraw()
    if not protocol.isFinished():  # else the project is one of an earlier time: only its results are pictured
        of_the_form(protocol)
        of_the_recentring_form(project, protocol)
        of_the_form_of_several_bodies(project, protocol, data)
        project.launchProtocol(protocol, wait=False)
        wait_until(lambda: len(protocol.run_state().iterations) > 1)
        shot_of_the_run(window, protocol, "running")
        wait_until(lambda: not updated(project, protocol).isActive())
    shot_of_the_run(window, protocol, "finished")
    of_the_viewer(project, protocol)
    window.root.destroy()


def wait_until(done: Callable[[], bool], seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            raise TimeoutError("the run of the tutorial does not get on")
        time.sleep(1)


def updated(project: Any, protocol: Any) -> Any:
    project._updateProtocol(protocol)
    return protocol


def shot_of_the_run(window: Any, protocol: Any, name: str) -> None:
    """The project window with the run selected: its box and its summary."""
    view = window.getViewWidget()
    view.updateRunsGraph(refresh=True)
    view._selectItemProtocol(next(run for run in window.project.getRuns() if run.getObjId() == protocol.getObjId()))
    view._updateSelection()
    shot(window.root, name, "1150x940+0+0", 2)
    window.root.withdraw()


def of_the_form(protocol: Any) -> None:
    """Two tabs of the form, each wizard, and what the wizards filled in."""
    import pyworkflow.gui.project  # noqa: F401  (first: pyworkflow.gui.form alone cannot be imported)
    from pyworkflow.gui.form import FormWindow
    form = FormWindow("local refinement", protocol, lambda *args: None, None)
    form.adjustSize()
    tabs = screen.notebooks(form.root)[0]

    def show(number: int, name: str) -> None:
        tabs.select(tabs.tabs()[number])
        shot(form.root, name, "820x720+0+0")
    show(0, "form_input")
    of_the_wizards(form)
    show(1, "form_alignment")
    form.root.destroy()


def of_the_recentring_form(project: Any, protocol: Any) -> None:
    """The form of the other protocol, with the inputs of the local refinement; it is not stored."""
    from pyworkflow.gui.form import FormWindow

    from localrefine_plugin.protocols import ProtLocalRecentre
    other = project.newProtocol(ProtLocalRecentre, newBox=56)
    for name in ("inputParticles", "inputVolume", "inputMask"):
        getattr(other, name).copy(getattr(protocol, name))
    other.setObjLabel("re-centre on the head")
    form = FormWindow("re-centre particles", other, lambda *args: None, None)
    form.adjustSize()
    shot(form.root, "form_recentre", "760x520+0+0")
    form.root.destroy()


def of_the_form_of_several_bodies(project: Any, protocol: Any, data: Path) -> None:
    """The first tab of a refinement of both bodies, and its wizard; nothing of it stays in the project."""
    from pwem.protocols import ProtImportMask
    from pyworkflow.gui.form import FormWindow
    from pyworkflow.object import Pointer
    from pyworkflow.protocol.constants import LEVEL_ADVANCED

    from localrefine_plugin import wizards
    source = tutorial.run(project, project.newProtocol(
        ProtImportMask, maskPath=str(data / "mask_A.mrc"), samplingRate=tutorial.OPTIONS.pixel_size,
        objLabel="import mask of the body"))
    other = project.copyProtocol(protocol)
    other.moreMasks.set([Pointer(source, extended="outputMask")])
    other.setObjLabel("local refinement of head and body")
    other.settingsPerBody.set("2: rotation_extent_deg = 10; shift_extent_angstrom = 8")
    other.expertLevel.set(LEVEL_ADVANCED)
    form = FormWindow("local refinement", other, lambda *args: None, None)
    form.adjustSize()
    shot(form.root, "form_bodies", "820x780+0+0")
    photograph_dialog(wizards.MoreMasksWizard(), form, "wizard_masks")
    form.root.destroy()
    for made in (other, source):
        project.deleteProtocol(made)


def of_the_wizards(form: Any) -> None:
    from localrefine_plugin import wizards

    class Driven(wizards.FulcrumDialog):
        def wait_window(self, *_args: Any) -> None:
            shot(self, "wizard_fulcrum")
            self._handleResult(wizards.RESULT_YES)
    original, wizards.FulcrumDialog = wizards.FulcrumDialog, Driven
    before = form.protocol.fulcrum.get()
    wizards.FulcrumWizard().show(form)
    form.setVar("fulcrum", before)  # the tutorial keeps the centre of the mask
    wizards.FulcrumDialog = original
    wizards.InitialLowpassWizard().show(form)
    photograph_dialog(wizards.MaskWizard(), form, "wizard_mask")


def photograph_dialog(wizard: Any, form: Any, name: str) -> None:
    """A message of a wizard, closed after its photograph."""
    from pyworkflow.gui import dialog
    original = dialog.Dialog.wait_window

    def wait_window(self: Any, *_args: Any) -> None:
        shot(self, name)
        self.destroy()
    dialog.Dialog.wait_window = wait_window
    wizard.show(form)
    dialog.Dialog.wait_window = original


def of_the_viewer(project: Any, protocol: Any) -> None:
    from localrefine_plugin.viewers import LocalRefineViewer
    viewer = LocalRefineViewer(project=project, protocol=protocol)
    with screen.forms_without_loop() as opened:
        viewer.visualize(protocol)
    window = opened[0]
    window.adjustSize()
    shot(window.root, "viewer", "700x840+0+0")
    for name in ("fsc", "fsc_history", "progress", "pose_change", "pose_uncertainty", "learned_motion", "orientations",
                 "map_slices", "filter_resolution"):
        picture = viewer._getVisualizeDict()[name](name)[0].show()
        shot(picture, f"viewer_{name}")
        picture.destroy()
    window.root.destroy()


# ---------------------------------------------------------------- choosing parameters

def of_the_parameters(output: Path) -> None:
    """The same noisy particles refined with the defaults, and without a prior within wide extents."""
    data = output / "noisy"
    if not (data / "truth.json").exists():
        simulate.simulate(data, NOISY)
    runs = {name: refine(data, output / name, settings)
            for name, settings in (("good", {"max_iterations": 5}), ("overfitted", FREE))}
    from localrefine_plugin.report.run_figures import draw, picture_of
    other = ("no prior, 20°, 10 Å", runs["overfitted"])
    save(draw(picture_of("fsc"), runs["good"], None, other), "compared_fsc")
    for run, state in runs.items():
        for name in ("pose_change", "map_slices", "pose_uncertainty"):
            save(draw(picture_of(name), state), f"{run}_{name}")
    print(json.dumps({name: truth_of(data, output / name) for name in runs}, indent=1))


def refine(data: Path, run: Path, settings: Dict[str, Any]) -> Any:
    from localrefine_plugin.report.run_state import RunState
    if not (run / "report.json").exists():
        (run.parent / f"{run.name}.json").write_text(json.dumps(settings))
        words: List[Any] = [sys.executable, "-m", "localrefine_plugin.engine", "refine", "--particles",
                            data / "particles.star", "--half-map-1", data / "half1.mrc", "--half-map-2",
                            data / "half2.mrc", "--mask", data / "mask_B.mrc", "--output", run, "--settings",
                            run.parent / f"{run.name}.json", "--overwrite", "--threads", 2]
        subprocess.run([str(word) for word in words], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return RunState(run)


def truth_of(data: Path, run: Path) -> Dict[str, float]:
    """How far the poses and the map are from the truth."""
    from examples import evaluate
    evaluation = evaluate.Evaluation(data)
    poses = evaluate.read_poses(run / "final" / "particles.star")
    halves = [evaluate.read_map(run / "final" / f"half_map_{half}.mrc") for half in (1, 2)]
    found = dict(evaluation.of_poses(poses),
                 **evaluation.of_map(evaluate.read_map(run / "final" / "map.mrc"), poses))
    found["half_maps_angstrom"] = evaluation.of_halves(*halves)
    return {name: round(float(value), 3) for name, value in found.items()}


# ---------------------------------------------------------------- re-centring

def of_the_recentring(output: Path) -> None:
    """The head of the tutorial's data in the middle of a smaller box: docs/how-to/recentre-particles.md."""
    import shutil
    data, folder = output / "data", output / "recentred"
    shutil.rmtree(folder, ignore_errors=True)
    words = ["recentre", "--particles", data / "particles.star", "--map", data / "consensus.mrc", "--mask",
             data / "mask_B.mrc", "--box", 56, "--output", folder]
    subprocess.run([sys.executable, "-m", "localrefine_plugin.engine", *map(str, words)], check=True, cwd=ROOT,
                   stdout=subprocess.DEVNULL)
    before = [data / name for name in ("consensus.mrc", "mask_B.mrc", "particles.mrcs")]
    after = [folder / name for name in ("map.mrc", "mask.mrc", "particles.mrcs")]
    save(recentring_figure({"before": before, "after": after}), "recentring")


def recentring_figure(files: Dict[str, Any]) -> Any:
    """A row per frame: three slices of the map through the box centre, and the mean of the images."""
    import mrcfile

    from localrefine_plugin.report.map_plots import outline, slice_of
    from localrefine_plugin.report.plots import VERMILION, new_figure
    figure = new_figure("Slices through the centre of the box, and the mean of all images", height=3.9)
    for row, (name, (volume, mask, stack)) in zip(figure.subplots(2, 4), files.items()):
        volume, mask = mrcfile.read(str(volume)), mrcfile.read(str(mask))
        centre = [n // 2 for n in volume.shape]
        for axes, axis, plane in zip(row, range(3), ("xy", "xz", "yz")):
            axes.imshow(slice_of(volume, axis, centre), cmap="gray", origin="lower")
            outline(axes, slice_of(mask, axis, centre))
            axes.set_title(f"{name}, {plane}", fontsize=9)
        row[3].imshow(mrcfile.read(str(stack)).mean(axis=0), cmap="gray", origin="lower")
        row[3].set_title(f"{name}, images", fontsize=9)
        for axes in row:
            axes.plot(centre[2], centre[1], "+", color=VERMILION, ms=10)
            axes.set_xticks([])
            axes.set_yticks([])
    figure.supxlabel("blue: mask of the head at 0.5; cross: centre of the box", fontsize=9)
    return figure


def save(figure: Any, name: str) -> None:
    from localrefine_plugin.report.html_report import png
    path = IMAGES / f"{name}.png"
    path.write_bytes(png(figure))
    shrink(path)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
