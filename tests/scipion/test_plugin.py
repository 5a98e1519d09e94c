"""Discovery of the plugin by Scipion, and what importing the package must not cost."""
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PROBE = """
import sys
import localrefine_plugin.engine.records.settings
import localrefine_plugin.engine.io.run_folder
heavy = {"pyworkflow", "pwem", "matplotlib", "cupy", "tkinter"} & {name.split(".")[0] for name in sys.modules}
sys.exit(",".join(sorted(heavy)) or 0)
"""


def test_importing_the_engine_does_not_import_scipion():
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_domain_discovers_protocol_viewer_wizards_and_citations():
    from pyworkflow import Config
    domain = Config.getDomain()
    domain.registerPlugin("localrefine_plugin")
    module = domain._plugins["localrefine_plugin"]
    assert module._pluginInstance.getPath().endswith("localrefine_plugin")
    assert module._pluginInstance.validateInstallation() == []
    assert "LocalRefine" in module._bibtex and "Punjani2020" in module._bibtex


def test_nothing_in_the_face_imports_a_compiler_or_a_gpu_library():
    """A broken GPU or Numba installation must not make the protocol vanish from the menu."""
    code = """
import sys, json
for name in ("cupy", "numba"):
    sys.modules[name] = None        # any import of these raises
from examples.headless import set_environment
import tempfile, pathlib
set_environment(pathlib.Path(tempfile.mkdtemp()))
import localrefine_plugin.protocols, localrefine_plugin.viewers, localrefine_plugin.wizards, localrefine_plugin.convert
from localrefine_plugin.protocols import ProtLocalRefine
prot = ProtLocalRefine()
print(json.dumps(sorted(prot.getDefinition()._paramsDict)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "inputParticles" in json.loads(done.stdout.strip().splitlines()[-1])


def test_an_empty_field_of_the_form_says_what_it_stands_for():
    from localrefine_plugin.engine.records.settings import DESCRIBED
    from localrefine_plugin.protocols.form_local_refine import help_of, label_of
    assert label_of(DESCRIBED["keep_probability"]) == "Keep particles with probability ≥ (empty: no selection)"
    assert help_of(DESCRIBED["keep_probability"]).endswith("Leave empty (or -1) for no selection.")
    assert label_of(DESCRIBED["rotation_extent_deg"]) == "Rotation search extent (deg, empty: automatic)"
    assert "for automatic: three prior standard deviations" in help_of(DESCRIBED["rotation_extent_deg"])
