"""RELION's programs as oracles."""
from __future__ import annotations

import subprocess

import numpy as np
from conftest import require_program
from oracles import full_frequencies


def relion(program, folder, *arguments):
    subprocess.run([require_program(program), *map(str, arguments)], cwd=folder, check=True, capture_output=True)


def inner(box, to_nyquist=1):
    kx, ky = full_frequencies(box)
    inside = (np.hypot(kx, ky) < box // 2 - to_nyquist) & (np.hypot(kx, ky) > 0)
    return kx[inside], ky[inside]
