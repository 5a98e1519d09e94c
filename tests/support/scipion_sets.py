"""Sets of particles of Scipion, and the converter of scipion-em-relion."""
from __future__ import annotations

import importlib.util

from conftest import REQUIRE_OPTIONAL, _missing


def new_set(tmp_path, name="particles.sqlite"):
    from pwem.objects import SetOfParticles
    return SetOfParticles(filename=str(tmp_path / name))


def relion_converter():
    if importlib.util.find_spec("relion") is None:
        _missing("the Scipion plugin scipion-em-relion is not installed", REQUIRE_OPTIONAL)
    from relion.convert import convert31
    return convert31
