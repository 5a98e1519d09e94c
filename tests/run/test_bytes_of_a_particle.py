"""What a step of a run holds in memory for each particle: at most 250 bytes, whatever their number.

Each step is done with two numbers of particles, in one process, and the peaks of what Python and numpy have allocated
are compared. All that is done to a part of the particles at a time is done to small parts here, so that what grows is
what is held of all of them.
"""
from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from benchmarks.growth.memory import write_data, write_particles
from localrefine_plugin.engine import progress, refine
from localrefine_plugin.engine.align import half_set, verdicts
from localrefine_plugin.engine.finish import cross_half, selection
from localrefine_plugin.engine.finish.results import write_final_particles
from localrefine_plugin.engine.inputs import copies, exclude, half_sets
from localrefine_plugin.engine.io import relion_particles, rows, star
from localrefine_plugin.engine.io.relion_particles import read_particles
from localrefine_plugin.engine.io.run_folder import RunFolder
from localrefine_plugin.engine.io.run_store import load_particles
from localrefine_plugin.engine.merge import hinge, merge
from localrefine_plugin.engine.motion import motion_prior
from localrefine_plugin.engine.records.settings import Settings

MOST_BYTES = 250  # issue: bounded memory for millions of particles
BOX, FEW, MANY = 16, 1000, 4000
PART = 100


def peak(do):
    """(bytes at most while it was done, what it returned)."""
    tracemalloc.start()
    try:
        result = do()
        return tracemalloc.get_traced_memory()[1], result
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def in_small_parts():
    """Everything that goes by parts goes by small ones."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((rows, "CHUNK"), (relion_particles, "CHUNK"), (star, "KEPT_ROWS"), (hinge, "ROWS_AT_ONCE"),
                             (merge, "ROWS_AT_ONCE"), (copies, "KEYS_AT_ONCE"), (exclude, "KEYS_AT_ONCE"),
                             (copies, "MANY_IMAGES"), (motion_prior, "MOST_PARTICLES"), (selection, "IMAGES_AT_ONCE"),
                             (cross_half, "PARTICLES_PER_HALF"), (cross_half, "IMAGES_AT_ONCE"),
                             (verdicts, "MOST_FITTED")):
            patch.setattr(module, name, PART)
        patch.setattr(exclude, "BATCH_BYTES", 4 * PART * BOX ** 2)
        patch.setattr(half_set, "BATCH_BYTES", 2 << 20)
        patch.setattr(progress, "_heard", False)
        yield


@pytest.fixture(scope="module")
def bytes_of(tmp_path_factory, in_small_parts):
    """Peak of each step by number of particles."""
    path = tmp_path_factory.mktemp("bytes")
    steps(path / "warm", 200)  # what is compiled and imported is no particle's
    return {count: steps(path / str(count), count) for count in (FEW, MANY)}


def steps(path, count):
    data = write_data(path / "data", count, BOX)
    inputs, run = [data[name] for name in ("--particles", "--half-map-1", "--half-map-2", "--mask")], path / "run"
    found = checks(inputs[0])
    refine.prepare(*inputs, str(run), Settings(max_iterations=2, per_particle_scale=True), "cpu", 1)
    for k in (1, 2):
        found["align"], _ = peak(lambda k=k: refine.align(str(run), k, (1, 2), "cpu", 1))
        found["merge"], _ = peak(lambda k=k: refine.merge(str(run), k, 1, "cpu"))
    (run / "final").mkdir()
    found["finish"], _ = peak(lambda: write_final_particles(RunFolder(run), 2))
    kept = {half: np.flatnonzero(load_particles(RunFolder(run)).half_set == half)[::2] for half in (1, 2)}
    found["selection"], _ = peak(lambda: selection.effect(RunFolder(run), 2, kept, 1))
    return found


def checks(particles_star):
    """What prepare does with all particles, one after the other beside the table it holds."""
    found = {}
    found["prepare: read"], (particles, table) = peak(lambda: read_particles(particles_star))
    held = bytes_held(particles, table)
    for name, do in {"poses": lambda: exclude._unaligned_rows(particles),
                     "images": lambda: exclude._unusable_images(particles),
                     "relatives": lambda: half_sets.relatives_of(particles, table),
                     "duplicates": lambda: half_sets.check_duplicates(particles, particles_star)}.items():
        found[f"prepare: {name}"] = held + peak(do)[0]
    return found


def bytes_held(particles, table):
    """Of what prepare holds while it looks at the images."""
    return sum(getattr(particles, name).nbytes for name in particles.column_names()) + table.pixel_size.nbytes


@pytest.mark.parametrize("step", ("prepare: read", "prepare: poses", "prepare: images", "prepare: relatives",
                                  "prepare: duplicates", "align", "merge", "finish", "selection"))
def test_a_step_holds_at_most_so_many_bytes_of_a_particle(bytes_of, step):
    found = (bytes_of[MANY][step] - bytes_of[FEW][step]) / (MANY - FEW)
    print(f"{step}: {found:.0f} bytes for each particle")
    assert found < MOST_BYTES


@pytest.mark.parametrize("box", (64, 192))  # the marks of the noise are longest from these on
def test_prepare_holds_as_many_in_a_large_box(in_small_parts, tmp_path, monkeypatch, box):
    monkeypatch.setattr(exclude, "BATCH_BYTES", 8 * 4 * box ** 2)
    found = {}
    for count in (PART, 2 * PART):
        particles, table = read_particles(write_particles(tmp_path, count, box, np.random.default_rng(1)))
        found[count] = bytes_held(particles, table) + peak(lambda of=particles: exclude._unusable_images(of))[0]
    assert (found[2 * PART] - found[PART]) / PART < MOST_BYTES
