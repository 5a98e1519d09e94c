"""The picture of docs/how-to/run-in-relion.md: RELION's window with a finished local refinement.

    python docs/tools/photograph_relion.py

Simulates a complex into a project of RELION, runs the job with relion_pipeliner, and photographs RELION's window. It
needs RELION 3.1 with its window (Debian: relion, relion-gui), Xvfb, openbox, xdotool and ImageMagick.
"""
from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from examples import simulate  # noqa: E402

SCREEN, TITLE = "1280x900x24", "0x20"  # the title names a folder of this machine
FINISHED, PARAMS, DISPLAY_MENU = (85, 444), (280, 16), (680, 384)  # px from the corner below the title
FORM = {
    "External executable:": "localrefine-relion", "Input particles: ": "Refine3D/job001/run_data.star",
    "Input 3D reference: ": "Refine3D/job001/run_half1_class001_unfil.mrc",
    "Input 3D mask: ": "MaskCreate/job002/mask.mrc", "Param1 - label:": "prior_rotation_deg", "Param1 - value:": "6",
    "Param2 - label:": "marginalize", "Param2 - value:": "yes", "Number of threads:": "2"}


def write_project(project: Path) -> None:
    """The complex of the demo where Extract, Refine3D and MaskCreate would have left it."""
    for name in ("Refine3D/job001", "MaskCreate/job002"):
        (project / name).mkdir(parents=True)
    simulate.simulate(project / "Extract", simulate.Options())
    text = (project / "Extract/particles.star").read_text()
    (project / "Refine3D/job001/run_data.star").write_text(text.replace("@particles.mrcs", "@Extract/particles.mrcs"))
    for half in (1, 2):
        os.rename(project / f"Extract/half{half}.mrc", project / f"Refine3D/job001/run_half{half}_class001_unfil.mrc")
    os.rename(project / "Extract/mask_B.mrc", project / "MaskCreate/job002/mask.mrc")
    (project / ".gui_projectdir").touch()
    (project / "default_pipeline.star").write_text("\n\ndata_pipeline_general\n\n_rlnPipeLineJobCounter 3\n\n")


def photograph(project: Path, environment: dict, target: Path) -> None:
    """The form's parameters and the menu of what can be displayed, with the job chosen in the list."""
    window = subprocess.Popen(["relion"], cwd=project, env=environment)
    time.sleep(6)
    number = subprocess.run(["xdotool", "search", "--name", "RELION"], env=environment, capture_output=True, text=True,
                            check=True).stdout.split()[0]

    def mouse(place: tuple, *action: str) -> None:
        command = ["xdotool", "mousemove", "--window", number, *map(str, place), *action]
        subprocess.run(command, env=environment, check=True)
        time.sleep(2)
    mouse(FINISHED, "click", "1")
    mouse(PARAMS, "click", "1")
    mouse(DISPLAY_MENU, "mousedown", "1")
    screen = project / "screen.png"
    subprocess.run(["import", "-window", "root", str(screen)], env=environment, check=True)
    window.kill()
    subprocess.run(["convert", str(screen), "-trim", "+repage", "-gravity", "North", "-chop", TITLE, str(target)],
                   check=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        project, binaries = Path(folder) / "my_project", Path(folder) / "bin"
        write_project(project)
        binaries.mkdir()
        (binaries / "localrefine-relion").write_text(
            f"#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m localrefine_plugin.doors.relion \"$@\"\n")
        (binaries / "localrefine-relion").chmod(0o755)
        environment = dict(os.environ, DISPLAY=":93", PATH=f"{binaries}:{os.environ['PATH']}")
        screen = [subprocess.Popen(["Xvfb", ":93", "-screen", "0", SCREEN]), None]
        time.sleep(2)
        screen[1] = subprocess.Popen(["openbox"], env=environment)
        options = ";".join(f"{label} == {value}" for label, value in FORM.items())
        for arguments in (["--addJob", "External", "--addJobOptions", options],
                          ["--RunJobs", "External/job003/", "--schedule", "one", "--sec_wait_after", "0"]):
            subprocess.run(["relion_pipeliner", *arguments], cwd=project, env=environment, check=True)
        photograph(project, environment, ROOT / "docs" / "images" / "relion_job.png")
        for process in screen:
            process.terminate()


if __name__ == "__main__":
    main()
