"""What a particle asks of a GPU, counted while the engine works, and the least time that three GPUs could take.

    python -m benchmarks.operators.gpu_time --write

Arithmetic, not a measurement on a GPU. A small refinement runs on the CPU with a counter around each operator.
FLOP per pixel are those of the CUDA sources, counted by executing them (test_gpu_time.py compares); bytes follow
from what a pixel reads. Everything else is counted on the tests' stand-in for CuPy, in the last iteration. An operator
takes as long as the slowest of arithmetic, L2 and memory at full data-sheet speed, which no kernel reaches.

Data: 400 particles of examples/simulate.py.
"""
from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Optional, Sequence, Tuple

from examples import simulate
from localrefine_plugin.engine import refine
from localrefine_plugin.engine.align import half_alignment as align
from localrefine_plugin.engine.align import half_set, search
from localrefine_plugin.engine.io.run_folder import RunFolder, read_json
from localrefine_plugin.engine.kernels.device import Device
from localrefine_plugin.engine.records.settings import Settings

from ..measure import commit
from ..page import PAGE, table, write_section

SIMULATED = simulate.Options(particles=400)
ITERATIONS = 3
CORNERS, COMPLEX, REAL = 8, 8, 4  # bytes of a complex64 and a float32
CALL_SECONDS = 10e-6  # what Python and CuPy take for a call; published measurements say 5 to 20 µs
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
class Gpu:
    """Data-sheet figures (L2: published microbenchmarks): bytes/s from L2, from memory, over the bus, FLOP/s."""

    l2: float
    memory: float
    bus: float
    flop: float


GPUS = {"RTX 3090": Gpu(2.5e12, 0.936e12, 25e9, 35.6e12), "A100": Gpu(4e12, 1.555e12, 25e9, 19.5e12),
         "H100": Gpu(5.5e12, 3.35e12, 50e9, 67e12)}


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


def counted_run(folder: Path, options: simulate.Options, iterations: int) -> Tuple[Dict[str, Count], Work]:
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
        run = refine.prepare(*inputs, str(folder / "run"), Settings(max_iterations=iterations), device="cpu")
        for iteration in range(1, iterations + 1):  # without the end of a run, whose control aligns images again
            refine.align(str(run.path), iteration, (1, 2), "cpu")
            refine.merge(str(run.path), iteration, device="cpu")
    finally:
        search.gauss_newton_sums, search.score_grid, align.extract_slices, align.insert_slices = kept
    visits = sum(read_json(run.half_done(k, half))["particles"]
                 for k in range(1, run.iterations_done() + 1) for half in (1, 2))
    means = {name: Count(c.slices / visits, c.pixels / visits, c.product_flop / visits) for name, c in counts.items()}
    return means, array_work(run, run.iterations_done())


@dataclass
class Work:
    """Operations on arrays other than our kernels, in the alignment of a half-set: bytes they read and write for a
    particle, calls for a batch, bytes of the reconstruction, host's waits for a batch; calls and waits of its search.
    Launches of our kernels are calls, too."""

    bytes_per_particle: float
    calls: int
    reconstruction_bytes: float
    waits: int
    search_calls: int = 0
    search_waits: int = 0


def array_work(run: RunFolder, iteration: int) -> Work:
    """Counted by aligning half-set 1 of an iteration once more, on the stand-in for CuPy of the tests."""
    sys.path.append(str(Path(__file__).resolve().parents[2] / "tests" / "support"))
    from gpu.stand_in import make_cupy
    count: Dict[str, Dict[str, int]] = {}

    def counted(owner: Any, name: str) -> Any:
        kept = getattr(owner, name)

        def wrapped(*args: Any) -> Any:
            before = dict(vars(cupy.ledger.counts))
            result = kept(*args)
            count[name] = {key: value - before[key] for key, value in vars(cupy.ledger.counts).items()}
            return result
        return kept, wrapped
    with tempfile.TemporaryDirectory() as folder:
        cupy = make_cupy(Path(folder))
        owners = {"add": align.HalfAlignment, "search": align.HalfAlignment, "finished": half_set}
        functions = {name: counted(owner, name) for name, owner in owners.items()}
        choose, test = refine.choose_device, refine.ensure_tested
        try:
            sys.modules["cupy"] = cupy
            refine.choose_device, refine.ensure_tested = lambda word: Device("cuda:0", "stand-in"), lambda device: None
            for name, (_, wrapped) in functions.items():
                setattr(owners[name], name, wrapped)
            run.half_done(iteration, 1).unlink()
            refine.align(str(run.path), iteration, (1,), "cuda", 1)
        finally:
            del sys.modules["cupy"]
            refine.choose_device, refine.ensure_tested = choose, test
            for name, (kept, _) in functions.items():
                setattr(owners[name], name, kept)
    particles = read_json(run.half_done(iteration, 1))["particles"]
    add, of_search = count["add"], count["search"]
    return Work(add["traffic"] / particles, add["calls"] + add["launches"], count["finished"]["traffic"], add["waits"],
                of_search["calls"] + of_search["launches"], of_search["waits"])


def seconds_of(name: str, count: Count, gpu: Gpu) -> float:
    """Least seconds of one operator for one particle; the matrix product follows the slices of the grid."""
    per = PER_PIXEL[name]
    gather = max(count.pixels * per.l2 / gpu.l2, count.pixels * per.memory / gpu.memory,
                 count.pixels * per.flop / gpu.flop)
    return gather + count.product_flop / gpu.flop


def page(counts: Dict[str, Count], work: Work, options: simulate.Options) -> str:
    image_bytes = 4 * options.box_size ** 2
    rows = [[name, f"{c.slices:.1f}", f"{c.pixels:.0f}", f"{1e-6 * c.pixels * PER_PIXEL[name].l2:.2f}",
             f"{1e-6 * c.pixels * PER_PIXEL[name].memory:.2f}",
             f"{1e-6 * (c.pixels * PER_PIXEL[name].flop + c.product_flop):.1f}",
             *(f"{1e6 * seconds_of(name, c, gpu):.2f}" for gpu in GPUS.values())] for name, c in counts.items()]
    rows.append(["image over the bus", "–", "–", "–", f"{1e-6 * image_bytes:.2f}", "–",
                 *(f"{1e6 * image_bytes / gpu.bus:.2f}" for gpu in GPUS.values())])
    rows.append(["all other operations on arrays", "–", "–", "–", f"{1e-6 * work.bytes_per_particle:.2f}", "–",
                 *(f"{1e6 * work.bytes_per_particle / gpu.memory:.2f}" for gpu in GPUS.values())])
    totals = [1e6 * (sum(seconds_of(name, c, gpu) for name, c in counts.items()) + image_bytes / gpu.bus
                     + work.bytes_per_particle / gpu.memory)
              for gpu in GPUS.values()]
    rows.append(["**together**", "", "", "", "", "", *(f"**{total:.1f}**" for total in totals)])
    head = ["for a particle and iteration", "slices", "pixels", "MB through L2", "MB memory", "MFLOP",
            *(f"{name}, µs" for name in GPUS)]
    return table(head, rows) + (
        f"\n\nA batch of any size makes {work.calls} calls of CuPy and {work.waits} waits; {work.search_calls} of the "
        f"calls and {work.search_waits} of the waits are the search's. At {1e6 * CALL_SECONDS:.0f} µs a call, this is "
        f"{1e3 * CALL_SECONDS * work.calls:.0f} ms for all images of the batch together. A "
        f"reconstruction moves {1e-9 * work.reconstruction_bytes:.2f} GB, once for each "
        "half-set.")


def main(arguments: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the section of docs/reference/gpu.md")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        text = page(*counted_run(Path(folder), SIMULATED, ITERATIONS), SIMULATED)
    text += (f"\n\nCounted on {SIMULATED.particles} simulated particles of {SIMULATED.box_size}² px, mean of "
             f"{ITERATIONS} iterations with the default settings, commit {commit()}: "
             "`python -m benchmarks.operators.gpu_time --write`.")
    print(text)
    if options.write:
        write_section("gpu time", text, PAGE.with_name("gpu.md"))


if __name__ == "__main__":
    main()
