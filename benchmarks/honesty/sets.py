"""Simulated sets as the benchmarks of this folder are given them: `--data FOLDER [--data FOLDER …] [--write]`."""
from __future__ import annotations

import argparse
from pathlib import Path
from typing import Sequence

from localrefine_plugin.engine.inputs.checks import CheckedInputs, check_inputs
from localrefine_plugin.engine.records.settings import Settings


def checked_set(data: Path) -> CheckedInputs:
    """Particles, half-maps and the mask of body B of a folder that the benchmark's make_dataset.py has made."""
    return check_inputs(*(str(data / name) for name in ("particles.star", "half1.mrc", "half2.mrc", "mask_B.mrc")),
                        Settings())


def parser_of(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--write", action="store_true")
    return parser


def words_of(sets: Sequence[Path]) -> str:
    """The sets as options of a command."""
    return " ".join(f"--data {data.resolve().name}" for data in sets)
