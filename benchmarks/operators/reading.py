"""How fast images come from files in the page cache into one buffer, as they go to a GPU, beside a copy in memory.

    python -m benchmarks.operators.reading --data FOLDER [--data FOLDER …] [--write]

FOLDER holds a particles.star with 32-bit images. It ends with the assertion that every way gives the same images.
"""
from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, Callable, Dict, List

import numpy as np

from localrefine_plugin.engine.io.mrc import ImageReader
from localrefine_plugin.engine.io.relion_particles import read_particles
from localrefine_plugin.engine.kernels.prefetch import PINNED_BYTES

from ..measure import commit, machine
from ..page import DOCS, table, write_section
from .operators import best_seconds

THREADS = (1, 2, 4)
TURNS = 5


def row(data: Path) -> List[str]:
    particles, _ = read_particles(data / "particles.star")
    box, count = particles.box_size, len(particles)
    piece = max(1, PINNED_BYTES // (4 * box ** 2))
    buffer, other = (np.zeros((min(piece, count), box, box), np.float32) for _ in range(2))
    parts = [np.arange(start, min(start + piece, count)) for start in range(0, count, piece)]
    readers = [ImageReader(particles, threads) for threads in THREADS]
    found: Dict[str, np.ndarray] = {}

    def way(name: str, read: Callable[[np.ndarray], Any]) -> Callable[[], None]:
        def run() -> None:
            for part in parts:
                read(part)
            found[name] = buffer[:len(parts[-1])].copy()
        return run

    def copied(part: np.ndarray) -> None:
        buffer[:len(part)] = reader.read(part)

    def moved(part: np.ndarray) -> None:
        other[:len(part)] = buffer[:len(part)]
    reader = readers[0]
    ways = {"through an array of its own": way("copied", copied),
            **{str(r): way(str(r), lambda part, r=r: r.read(part, buffer[:len(part)])) for r in readers},
            "memory": lambda: [moved(part) for part in parts]}
    seconds = best_seconds(ways, TURNS, time.perf_counter)
    for r in readers:
        r.close()
    assert all(np.array_equal(images, found["copied"]) for images in found.values())
    return [f"{count} × {box}²", *(f"{1e-9 * 4 * count * box ** 2 / value:.1f}" for value in seconds.values())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    head = ["images, px", "one thread, into a new array and copied", *(f"into the buffer, {t} thread{'s' * (t > 1)}"
                                                                       for t in THREADS), "copy in memory"]
    text = table(head, [row(data) for data in options.data]) + (
        f"\n\nGB/s, the best of {TURNS} turns, checks of the pixels included. {machine()}, commit {commit()}: "
        "`python -m benchmarks.operators.reading --data FOLDER --write`.")
    print(text)
    if options.write:
        write_section("reading", text, DOCS / "reference" / "gpu.md")


if __name__ == "__main__":
    main()
