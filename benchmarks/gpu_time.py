"""What a particle asks of a GPU, counted while the engine works, and the least time that three cards could take.

    python -m benchmarks.gpu_time --write

Arithmetic, not a measurement on a GPU. A small refinement runs on the processor with a counter around each operator.
FLOP per pixel are those of the CUDA sources, counted by executing them (tests/test_gpu_time.py compares); bytes follow
from what a pixel reads. An operator takes as long as the slowest of arithmetic, L2 and memory at full data-sheet
speed, which no kernel reaches.
"""
from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Optional, Sequence

from examples import simulate
from localrefine_plugin.engine import align, refine, search
from localrefine_plugin.engine.records import Settings
from localrefine_plugin.engine.run_folder import read_json

from .measure import commit
from .page import PAGE, table, write_section

SIMULATED = simulate.Options(particles=400)
ITERATIONS = 3
CORNERS, COMPLEX, REAL = 8, 8, 4  # bytes of a complex64 and a float32
SECTOR = 32  # bytes of the L2 that one atomic addition is taken to occupy


@dataclass(frozen=True)
class PerPixel:
    """Bytes through L2, bytes to and from memory, FLOP."""

    l2: float
    memory: float
    flop: float


# The gather reads 8 corners, mostly out of L2. The grid's slices go to memory and back for the matrix product. A
# Gauss–Newton sum reads image and weight as well. The insertion makes 24 additions.
PER_PIXEL: Dict[str, PerPixel] = {
    "grid score": PerPixel(CORNERS * COMPLEX, 2 * COMPLEX, 61),
    "Gauss–Newton sums": PerPixel(CORNERS * COMPLEX + COMPLEX + REAL, 0, 235),
    "Gauss–Newton gradient only": PerPixel(CORNERS * COMPLEX + COMPLEX + REAL, 0, 168),
    "slice": PerPixel(CORNERS * COMPLEX, COMPLEX, 56),
    "insertion": PerPixel(24 * SECTOR, 0, 107),
}


@dataclass(frozen=True)
class Card:
    """Data-sheet figures (L2: published microbenchmarks): bytes/s from L2, from memory, over the bus, FLOP/s."""

    l2: float
    memory: float
    bus: float
    flop: float


CARDS = {"RTX 3090": Card(2.5e12, 0.936e12, 25e9, 35.6e12), "A100": Card(4e12, 1.555e12, 25e9, 19.5e12),
         "H100": Card(5.5e12, 3.35e12, 50e9, 67e12)}


@dataclass
class Count:
    """Of one operator: slices, pixels of slices, FLOP of the matrix product."""

    slices: float = 0
    pixels: float = 0
    product_flop: float = 0

    def add(self, slices: int, pixels: int, shifts: int = 0) -> None:
        self.slices += slices
        self.pixels += slices * pixels
        self.product_flop += 4 * shifts * slices * pixels


def counted_run(folder: Path, options: simulate.Options, iterations: int) -> Dict[str, Count]:
    """Means for a particle and iteration of a refinement of simulated particles; the engine is put back afterwards."""
    counts = {name: Count() for name in PER_PIXEL}
    kept = search.gauss_newton_sums, search.score_grid, align.extract_slices, align.insert_slices

    def sums(ft: Any, rows: Any, shift: Any, owner: Any, kx: Any, ky: Any, n_pixels: int, *rest: Any) -> Any:
        counts["Gauss–Newton sums" if rest[-1] else "Gauss–Newton gradient only"].add(len(rows), n_pixels)
        return kept[0](ft, rows, shift, owner, kx, ky, n_pixels, *rest)

    def grid(ft: Any, rows: Any, kx: Any, ky: Any, matched: Any, weight: Any) -> Any:
        counts["grid score"].add(rows.shape[0] * rows.shape[1], len(kx), matched.shape[1])
        return kept[1](ft, rows, kx, ky, matched, weight)

    def slices(ft: Any, rows: Any, kx: Any, ky: Any) -> Any:
        counts["slice"].add(len(rows), len(kx))
        return kept[2](ft, rows, kx, ky)

    def insert(accumulator: Any, rows: Any, *rest: Any) -> Any:
        counts["insertion"].add(len(rows), int((rest[4] + 1).sum()))
        return kept[3](accumulator, rows, *rest)

    simulate.simulate(folder / "data", options)
    inputs = [str(folder / "data" / name) for name in ("particles.star", "half1.mrc", "half2.mrc", "mask_B.mrc")]
    try:
        search.gauss_newton_sums, search.score_grid = sums, grid  # type: ignore[assignment]
        align.extract_slices, align.insert_slices = slices, insert  # type: ignore[assignment]
        run = refine.refine(*inputs, str(folder / "run"), Settings(max_iterations=iterations), device="cpu")
    finally:
        search.gauss_newton_sums, search.score_grid, align.extract_slices, align.insert_slices = kept
    visits = sum(read_json(run.half_done(k, half))["particles"]
                 for k in range(1, run.iterations_done() + 1) for half in (1, 2))
    return {name: Count(c.slices / visits, c.pixels / visits, c.product_flop / visits) for name, c in counts.items()}


def seconds_of(name: str, count: Count, card: Card) -> float:
    """Least seconds of one operator for one particle; the matrix product follows the slices of the grid."""
    per = PER_PIXEL[name]
    gather = max(count.pixels * per.l2 / card.l2, count.pixels * per.memory / card.memory,
                 count.pixels * per.flop / card.flop)
    return gather + count.product_flop / card.flop


def page(counts: Dict[str, Count], options: simulate.Options) -> str:
    image_bytes = 4 * options.box_size ** 2
    rows = [[name, f"{c.slices:.1f}", f"{c.pixels:.0f}", f"{1e-6 * c.pixels * PER_PIXEL[name].l2:.2f}",
             f"{1e-6 * c.pixels * PER_PIXEL[name].memory:.2f}",
             f"{1e-6 * (c.pixels * PER_PIXEL[name].flop + c.product_flop):.1f}",
             *(f"{1e6 * seconds_of(name, c, card):.2f}" for card in CARDS.values())] for name, c in counts.items()]
    rows.append(["image over the bus", "–", "–", "–", f"{1e-6 * image_bytes:.2f}", "–",
                 *(f"{1e6 * image_bytes / card.bus:.2f}" for card in CARDS.values())])
    totals = [1e6 * (sum(seconds_of(name, c, card) for name, c in counts.items()) + image_bytes / card.bus)
              for card in CARDS.values()]
    rows.append(["**together**", "", "", "", "", "", *(f"**{total:.1f}**" for total in totals)])
    head = ["for a particle and iteration", "slices", "pixels", "MB through L2", "MB memory", "MFLOP",
            *(f"{name}, µs" for name in CARDS)]
    return table(head, rows)


def main(arguments: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the section of gpu.md")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        text = page(counted_run(Path(folder), SIMULATED, ITERATIONS), SIMULATED)
    text += (f"\n\nCounted on {SIMULATED.particles} simulated particles of {SIMULATED.box_size}² px, mean of "
             f"{ITERATIONS} iterations with the default settings, commit {commit()}: "
             "`python -m benchmarks.gpu_time --write`.")
    print(text)
    if options.write:
        write_section("gpu time", text, PAGE.with_name("gpu.md"))


if __name__ == "__main__":
    main()
