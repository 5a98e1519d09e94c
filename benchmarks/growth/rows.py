"""Time and memory of reading and writing a STAR file of a million particles.

    python -m benchmarks.growth.rows --rows 1000000 --write

Data: a STAR file of random numbers, made here.
"""
from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Sequence

import numpy as np

from localrefine_plugin.engine.io.relion_particles import read_particles, write_particles

from ..page import PAGE, write_section

MORE = dict(rlnCtfMaxResolution="4.5", rlnCtfFigureOfMerit="0.05", rlnNormCorrection="0.98", rlnGroupNumber="1",
            rlnLogLikeliContribution="1.2e+05", rlnMaxValueProbDistribution="0.5", rlnNrOfSignificantSamples="7",
            rlnCoordinateX="1234.5", rlnCoordinateY="2345.6", rlnAutopickFigureOfMerit="0.1", rlnBeamTiltClass="1")


def write_table(folder: Path, count: int) -> Path:
    """A table of 25 columns, as a refinement writes it; the images are 12, again and again."""
    from tests.support.particle_files import OPTICS, Inputs, particle_rows, table_text
    Inputs(folder)
    row = dict(particle_rows()[0], **MORE)
    angles = np.random.default_rng(1).uniform(0, 180, (count, 3))
    path = folder / "many.star"
    with open(path, "w", encoding="utf-8") as handle:
        handle.write(OPTICS + table_text([row]).rsplit("000001@", 1)[0])
        for i, (rot, tilt, psi) in enumerate(angles):
            row.update(rlnImageName=f"{i % 6 + 1:06d}@stacks/{'ab'[i // 6 % 2]}.mrcs", rlnAngleRot=f"{rot:.6f}",
                       rlnAngleTilt=f"{tilt:.6f}", rlnAnglePsi=f"{psi:.6f}", rlnRandomSubset=str(i % 2 + 1),
                       rlnMicrographName=f"MotionCorr/job002/Micrographs/micrograph_{i // 200:06d}.mrc")
            handle.write(" ".join(row.values()) + "\n")
    return path


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(folder: Path, count: int) -> str:
    path = write_table(folder, count)
    start = time.process_time()
    particles, table = read_particles(path)
    read_seconds, read_mb = time.process_time() - start, peak_mb()
    start = time.process_time()
    again = folder / "again.star"
    write_particles(again, table, particles.rotation, particles.shift_px, {"lrScale": np.ones(count)})
    write_seconds, write_mb = time.process_time() - start, peak_mb()
    with open(again, encoding="utf-8") as handle:
        rows = sum("@" in line for line in handle)
    if not len(particles) == rows == count:
        raise AssertionError(f"{len(particles)} particles read, {rows} written, of {count}")
    columns, size = len(table.particles.labels), path.stat().st_size / 1e6
    return (f"A table of {count:,} particles and {columns} columns ({size:.0f} MB): read in {read_seconds:.0f} s of "
            f"CPU time, at most {read_mb:.0f} MB of memory; written with new poses in {write_seconds:.0f} s, at most "
            f"{write_mb:.0f} MB (`python -m benchmarks.growth.rows --rows {count} --write`).")


def main(arguments: Sequence[str] = ()) -> int:
    parser = argparse.ArgumentParser(description="Time and memory of a STAR file of many particles.")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--write", action="store_true", help="put the sentence into docs/reference/reliability.md")
    options = parser.parse_args(arguments or None)
    with tempfile.TemporaryDirectory() as folder:
        text = measure(Path(folder), options.rows)
    print(text)
    if options.write:
        write_section("many-rows", text, PAGE.with_name("reliability.md"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
