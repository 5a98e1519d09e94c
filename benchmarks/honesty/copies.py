"""How many particles that were extracted twice are found without coordinates, and how many others are taken for copies.

    python -m benchmarks.honesty.copies --data FOLDER [--data FOLDER …] [--write]

A share of the images is added once more, moved by some pixels: what comes in at the edges is taken from another image,
and each copy has a grey scale of its own. It ends with the assertion that no pair was found that is none.

Data: FOLDER, simulated: a set of the benchmark's make_dataset.py or make_hard.py, of one stack without copies.
"""
from __future__ import annotations

from pathlib import Path
from time import process_time
from typing import List, Tuple

import mrcfile
import numpy as np

from localrefine_plugin.engine.inputs.copies import Marker, pairs_of_marks

from ..page import DOCS, table, write_section
from .sets import parser_of, words_of

PAGE = DOCS / "reference" / "reliability.md"
MOVED = (1, 0), (1, 1), (3, -3), (5, 5), (8, 8)  # px
SHARE = 0.05
HEAD = ("data", "images", "box, px", *(f"found at {x}, {y} px" for x, y in MOVED), "false pairs", "CPU ms per image")


def moved(images: np.ndarray, edge: np.ndarray, by: Tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Images (m, N, N) as extracted elsewhere; ``edge`` (m, N, N) gives what comes in."""
    again = np.roll(images, by, axis=(1, 2))
    for axis, step in zip((1, 2), by):
        new = [slice(None)] * 3
        new[axis] = slice(0, step) if step >= 0 else slice(step, None)
        again[tuple(new)] = edge[tuple(new)]
    gain = rng.uniform(0.5, 2.0, (len(images), 1, 1)).astype(np.float32)
    result: np.ndarray = gain * (again - again.mean(axis=(1, 2), keepdims=True)) / again.std(axis=(1, 2), keepdims=True)
    return result


def row_of(data: Path) -> List[str]:
    images = mrcfile.read(str(data / "particles.mrcs")).astype(np.float32)
    n, rng, marker = len(images), np.random.default_rng(0), Marker(images.shape[1])
    start = process_time()
    marks, _ = marker(images)
    false = len(pairs_of_marks(marks, marker.rounds))
    cost = (process_time() - start) / n
    cells = []
    for by in MOVED:
        source = rng.permutation(n)[:max(20, int(SHARE * n))]
        copies = moved(images[source], images[rng.permutation(n)[:len(source)]], by, rng)
        pairs = np.sort(pairs_of_marks(np.concatenate([marks, marker(copies)[0]]), marker.rounds), axis=1)
        right = sum(int(b >= n and source[b - n] == a) for a, b in pairs)
        false += len(pairs) - right
        cells.append(f"{100 * right / len(source):.0f} %")
    assert not false, f"{data}: {false} pairs that are no copies"
    return [data.resolve().name, str(n), str(images.shape[1]), *cells, str(false), f"{1e3 * cost:.3f}"]


def main() -> None:
    options = parser_of(__doc__).parse_args()
    text = table(HEAD, [row_of(data) for data in options.data])
    print(text)
    if options.write:
        write_section("copies", f"`python -m benchmarks.honesty.copies {words_of(options.data)} --write`, "
                      f"{100 * SHARE:.0f} % of the images again at another place:\n\n{text}", PAGE)


if __name__ == "__main__":
    main()
