"""The project of docs/tutorial: simulated data, imported, and a local refinement that waits to be executed.

    python -m examples.tutorial [FOLDER]      (FOLDER is tutorial_output; what is there already is kept)

Simulates the data of the demo, makes the Scipion project 'tutorial' from the plugin's template
'import_and_refine', runs its three imports, and opens the window of the project.
"""
from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path
from typing import Any, Dict

from . import simulate
from .headless import set_environment

OPTIONS = simulate.Options()
NAME = "tutorial"
RESULT = 4  # id of the local refinement in the template
LABELS = {"1": "import particles", "2": "import map and half-maps", "3": "import mask of the head",
          "4": "local refinement of the head"}


def main(folder: str = "tutorial_output") -> int:
    output = Path(folder).resolve()
    if not (output / "data" / "truth.json").exists():
        print("Simulating images of a ribosomal RNA whose head turns about its neck ...", flush=True)
        simulate.simulate(output / "data", OPTIONS)
    set_environment(output)
    os.environ["MPLBACKEND"] = "TkAgg"  # the windows of pwem's own viewers use pyplot
    open_window(project_of(output))
    return 0


def project_of(output: Path) -> Any:
    """The project, made if it is not there yet; becomes the working directory."""
    from pyworkflow.project import Manager
    manager = Manager()
    if manager.hasProject(NAME):
        project = manager.loadProject(NAME)
    else:
        project = manager.createProject(NAME)
        os.chdir(project.path)
        print("Importing the data ...", flush=True)
        import_data(project, output / "data")
    os.chdir(project.path)
    return project


def import_data(project: Any, data: Path, pixel_size: float = OPTIONS.pixel_size) -> Dict[str, Any]:
    """Protocols of the filled-in template by their number there; the imports have run."""
    made = project.loadProtocols(template_file(values_for(data, pixel_size)))
    for number, protocol in made.items():
        protocol.setObjLabel(LABELS[number])
        if int(number) == RESULT:
            protocol.numberOfThreads.set(2)
            protocol.useGpu.set(False)
            project.saveProtocol(protocol)
        else:
            run(project, protocol)
    return made


def run(project: Any, protocol: Any) -> Any:
    """The protocol, finished; RuntimeError with its message when it failed."""
    project.launchProtocol(protocol, wait=True)
    project._updateProtocol(protocol)
    if not protocol.isFinished():
        raise RuntimeError(f"{protocol.getObjLabel()}: {protocol.getErrorMessage()}")
    return protocol


def values_for(data: Path, pixel_size: float) -> Dict[str, str]:
    """What the template asks for, by alias."""
    pixel = str(pixel_size)
    return {"star": str(data / "particles.star"), "pixel": pixel, "voltage": "300", "cs": "2.7", "contrast": "0.1",
            "map": str(data / "consensus.mrc"), "half1": str(data / "half1.mrc"), "half2": str(data / "half2.mrc"),
            "mappixel": pixel, "mask": str(data / "mask_B.mrc"), "maskpixel": pixel}


def template_file(values: Dict[str, str], name: str = "import_and_refine") -> str:
    """A workflow file with the template's fields filled in, as `scipion template` writes it."""
    from pyworkflow import Config
    from pyworkflow.template import LocalTemplate

    import localrefine_plugin
    if "relion" not in Config.getDomain().getPlugins():
        raise RuntimeError("importing particles needs the plugin scipion-em-relion: pip install scipion-em-relion")
    folder = Path(localrefine_plugin.__file__).parent / "templates"
    template = LocalTemplate("localrefine_plugin", str(folder / f"{name}.json.template"))
    template.replaceEnvVariables()
    template.parseContent()
    with contextlib.redirect_stdout(io.StringIO()):  # pyworkflow prints every value
        for alias, value in values.items():
            template.setParamValue(alias, value)
        return str(template.createTemplateFile())


def open_window(project: Any) -> None:
    """Scipion's window on the project; returns when it is closed."""
    from pyworkflow.gui.project import ProjectWindow
    ProjectWindow(project.path).show()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
