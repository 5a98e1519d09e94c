"""A copy of a simulated set in which some of the images are pure noise.

    python -m benchmarks.honesty.noise_images --data FOLDER --output FOLDER [--share 0.3] [--seed 1]

The noise is that of the benchmark's make_dataset.py. The half-maps are made again of the images at the input poses
(relion_reconstruct). truth.json lists the rows as "junk".

Data: FOLDER, simulated: a set of the benchmark's make_dataset.py.
"""
from __future__ import annotations

import argparse
import json
import shutil
import subprocess
from pathlib import Path

import mrcfile
import numpy as np

from examples.evaluate import read_map

from ..peers.relion import write_map

MADE_ANEW = "particles.mrcs", "half1.mrc", "half2.mrc", "consensus.mrc", "truth.json"


def simulated_noise(rng: np.random.Generator, box: int, pixel_size: float) -> np.ndarray:
    """(N, N) of standard deviation 1 with the power 0.35 + exp(−(12 s)²) + 3 exp(−(60 s)²) at frequency s in 1/Å."""
    frequency = np.hypot(np.fft.fftfreq(box, pixel_size)[:, None], np.fft.rfftfreq(box, pixel_size))
    power = 0.35 + np.exp(-(12 * frequency) ** 2) + 3 * np.exp(-(60 * frequency) ** 2)
    found = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((box, box))) * np.sqrt(power), (box, box))
    scaled: np.ndarray = (found / found.std()).astype(np.float32)
    return scaled


def with_noise_images(data: Path, output: Path, share: float, seed: int) -> None:
    output.mkdir(parents=True)
    for path in data.iterdir():
        if path.name not in MADE_ANEW:
            shutil.copy(path, output)
    facts = json.loads((data / "truth.json").read_text(encoding="utf-8"))
    rng, pixel_size = np.random.default_rng(seed), float(facts["args"]["apix"])
    junk = np.flatnonzero(rng.random(len(facts["particle"])) < share)
    shutil.copy(data / "particles.mrcs", output)
    with mrcfile.mmap(str(output / "particles.mrcs"), "r+") as stack:
        for row in junk:
            stack.data[row] = simulated_noise(rng, stack.data.shape[1], pixel_size)
    (output / "truth.json").write_text(json.dumps(dict(facts, junk=junk.tolist())), encoding="utf-8")
    for half in "12":
        subprocess.run(["relion_reconstruct", "--i", "particles.star", "--o", f"half{half}.mrc", "--subset", half,
                        "--ctf", "--pad", "2"], cwd=output, check=True, stdout=subprocess.DEVNULL)
    halves = [read_map(output / f"half{half}.mrc") for half in "12"]
    write_map(output / "consensus.mrc", (halves[0] + halves[1]) / 2, pixel_size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--share", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with_noise_images(options.data, options.output, options.share, options.seed)


if __name__ == "__main__":
    main()
