"""The environment that Scipion needs to run without its launcher and without a screen.

pyworkflow reads its configuration from the environment when it is imported, so `set_environment`
must be called before anything imports pyworkflow, pwem or a plugin.
"""
from __future__ import annotations

import os
import sys
from pathlib import Path


def set_environment(folder: Path) -> None:
    """Point Scipion's home, projects and settings into ``folder``; write a basic hosts file."""
    if any(name.split(".")[0] == "pyworkflow" for name in sys.modules):
        raise RuntimeError("pyworkflow was imported before its environment was set")
    home = Path(folder) / "scipion_home"
    (home / "config").mkdir(parents=True, exist_ok=True)
    os.environ.update(
        SCIPION_HOME=str(home),
        SCIPION_USER_DATA=str(Path(folder) / "scipion_data"),
        SCIPION_DOMAIN="pwem",
        SCIPION_PYTHON=sys.executable,   # protocols run in child processes; the default is python3 of the PATH
        SCIPION_NOTIFY="False",          # by default pyworkflow reports its use to a server
        SCIPION_TEST_NOSYNC="True",
        MPLBACKEND="Agg",
    )
    from pyworkflow import Config
    from pyworkflow.protocol import HostConfig
    HostConfig.writeBasic(Config.SCIPION_HOSTS)
