"""How often input that belongs together is refused, and how often mixed-up input is not: by the number of particles.

    python -m benchmarks.honesty.belonging --data FOLDER [--data FOLDER …] [--repeats 10] [--write]

Each trial takes particles at random, with the half-maps of all of them, spoils one thing in memory, and asks
inputs/belonging.py. It ends with the assertion that no good input was refused, and no mixed-up input of 500 particles
was accepted without a word.

Data: FOLDER, simulated: a set of the benchmark's make_dataset.py (`mid`, `tiny` and variants) or of make_hard.py.
"""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Dict, List

import numpy as np

from localrefine_plugin.engine.align.search_plan import resolve
from localrefine_plugin.engine.inputs.belonging import check_belonging
from localrefine_plugin.engine.inputs.checks import CheckedInputs
from localrefine_plugin.engine.kernels.host import worker_count
from localrefine_plugin.engine.maps.fsc import five_curves
from localrefine_plugin.engine.maps.half_maps import HalfMaps
from localrefine_plugin.engine.records.errors import InputError
from localrefine_plugin.engine.records.settings import Settings

from ..page import DOCS, table, write_section
from .sets import checked_set, parser_of, words_of

PAGE = DOCS / "explanation" / "belonging.md"
NUMBERS = 40, 100, 500
HEAD = ("data", "what was done to it", *(f"{n} particles" for n in NUMBERS))
Spoil = Callable[[CheckedInputs, np.random.Generator], CheckedInputs]


def with_poses(inputs: CheckedInputs, **columns: Any) -> CheckedInputs:
    return replace(inputs, particles=replace(inputs.particles, **columns))


def with_maps(inputs: CheckedInputs, change: Callable[[np.ndarray], np.ndarray]) -> CheckedInputs:
    first, second, mask = (np.ascontiguousarray(change(v)) for v in (*inputs.maps, inputs.mask))
    return replace(inputs, halves=HalfMaps(first, second), mask=mask)


def permuted(inputs: CheckedInputs, rng: np.random.Generator) -> CheckedInputs:
    order = rng.permutation(len(inputs.particles))
    return with_poses(inputs, rotation=inputs.particles.rotation[order], shift_px=inputs.particles.shift_px[order])


SPOILS: Dict[str, Spoil] = {
    "nothing": lambda inputs, rng: inputs,
    "poses permuted": permuted,
    "origins in px": lambda inputs, rng: with_poses(inputs,
                                                    shift_px=inputs.particles.shift_px / inputs.pixel_size),
    "half-maps and mask mirrored": lambda inputs, rng: with_maps(inputs, lambda v: v[:, :, ::-1]),
    "half-maps and mask moved by 3 px": lambda inputs, rng: with_maps(inputs, lambda v: np.roll(v, 3, 0)),
    "half-maps turned by 90°": lambda inputs, rng: with_maps(inputs, lambda v: np.rot90(v, 1, (1, 2))),
    "half-maps exchanged": lambda inputs, rng: replace(inputs, halves=HalfMaps(*inputs.maps[::-1])),
    "half-sets drawn anew": lambda inputs, rng: with_poses(
        inputs, half_set=rng.permutation(inputs.particles.half_set))}


def subset(inputs: CheckedInputs, count: int, rng: np.random.Generator) -> CheckedInputs:
    some = np.sort(rng.permutation(len(inputs.particles))[:count])
    return replace(inputs, particles=inputs.particles.take(some))


def outcome(inputs: CheckedInputs) -> str:
    """"refused", "said" or "passed"."""
    curves = five_curves(inputs.halves, inputs.mask, inputs.pixel_size)
    resolved = resolve(Settings(), inputs.mask, curves.resolutions()["corrected"], inputs.pixel_size)
    try:
        return "said" if check_belonging(inputs, resolved, worker_count(0)).said else "passed"
    except InputError:
        return "refused"


def rows_of(data: Path, repeats: int) -> List[List[str]]:
    given = checked_set(data)
    rows = []
    for name, spoil in SPOILS.items():
        cells = []
        for count in NUMBERS:
            found = []
            for seed in range(repeats):
                rng = np.random.default_rng(seed)
                found.append(outcome(spoil(subset(given, count, rng), rng)))
            cells.append(", ".join(f"{found.count(word)} {word}" for word in ("refused", "said", "passed")
                                   if found.count(word)))
            assert name != "nothing" or "refused" not in found, f"{data}: good input was refused"
            assert name == "nothing" or count < max(NUMBERS) or "passed" not in found, f"{data}: {name} was not seen"
        rows.append([data.resolve().name, name, *cells])
        print(*rows[-1], flush=True)
    return rows


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    text = table(HEAD, [row for data in options.data for row in rows_of(data, options.repeats)])
    if options.write:
        write_section("belonging", f"`python -m benchmarks.honesty.belonging {words_of(options.data)} "
                      f"--repeats {options.repeats} --write`\n\n{text}", PAGE)


if __name__ == "__main__":
    main()
