"""Local refinement of cryo-EM sub-volumes: a Scipion plugin and the engine it runs.

The engine (``python -m localrefine_plugin.engine``) is a part of this package and must start
without Scipion: nothing here imports pyworkflow or pwem until somebody asks for ``Plugin``.
"""
from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

_logo = "localrefine_logo.png"
_references = ["LocalRefine"]


def _make_plugin() -> Any:
    """The class Scipion's discovery asks for.

    It is made inside this module because pyworkflow finds the folder of a plugin through the
    module that its class names as its own.
    """
    import importlib.util
    import os

    import pwem
    from pyworkflow.utils import Environ

    class Plugin(pwem.Plugin):
        """Local refinement needs no external program: the engine travels with the plugin."""

        _url = "https://pypi.org/project/scipion-em-localrefine"
        _processingField = ["SPA"]
        _required_modules = ("numba", "mrcfile", "emtable", "scipy")

        @classmethod
        def _defineVariables(cls) -> None:
            """No variables: nothing to configure."""

        @classmethod
        def defineBinaries(cls, env: Any) -> None:
            """No binaries to install."""

        @classmethod
        def getEnviron(cls) -> Any:
            """The environment of the engine's processes: this very package is on their path."""
            environ = Environ(os.environ)
            parent = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
            environ.update({"PYTHONPATH": parent}, position=Environ.BEGIN)
            return environ

        @classmethod
        def validateInstallation(cls) -> list:
            missing = [name for name in cls._required_modules if importlib.util.find_spec(name) is None]
            return [f"The Python module {name} is missing: install it with 'scipion3 pip install {name}'"
                    for name in missing]

    Plugin.__qualname__ = "Plugin"
    return Plugin


def __getattr__(name: str) -> Any:
    """``localrefine_plugin.Plugin`` on demand (PEP 562)."""
    if name == "Plugin":
        globals()["Plugin"] = _make_plugin()
        return globals()["Plugin"]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
