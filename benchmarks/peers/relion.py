"""RELION's two workflows for a local refinement, as commands, and what they leave behind.

Data: whatever versus_relion.py gives.
"""
from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Tuple

import mrcfile
import numpy as np
from scipy import ndimage

from examples.evaluate import read_map
from examples.imaging import rotation_from_euler
from examples.simulate import Poses

from ..measure import Cost, joined, run_measured
from ..truth import cropped

LACKS = ("double precision throughout (`Precision: BASE=double`), compiled for any x86-64 (SSE2) without RELION's "
         "accelerated CPU path (`--cpu`, single precision, vectorised), without GPU")


@dataclass(frozen=True)
class Inputs:
    """Of one refinement, paths relative to the data folder; diameter in Å."""

    star: str
    reference: str
    mask: str
    diameter: float


def version() -> str:
    text = subprocess.run(["relion_refine", "--version"], capture_output=True, text=True).stdout
    return " ".join(re.sub(r"(RELION version|Precision)", r"\1", text).split())


def refine_command(inputs: Inputs, output: Path) -> List[str]:
    """Gold-standard local refinement: a leader and one process per half-set.

    Version 3.1 needs --ctf_corrected_ref, or its first iteration wrecks good poses.
    """
    root = ["--allow-run-as-root"] if os.getuid() == 0 else []
    return ["mpirun", *root, "--oversubscribe", "--mca", "btl", "self,vader,tcp", "-n", "3", "relion_refine_mpi",
            "--o", str(output / "run"), "--auto_refine", "--split_random_halves", "--i", inputs.star,
            "--ref", inputs.reference, "--ini_high", "12", "--ctf", "--ctf_corrected_ref",
            "--particle_diameter", f"{inputs.diameter:g}", "--flatten_solvent", "--zero_mask",
            "--solvent_mask", inputs.mask, "--solvent_correct_fsc", "--oversampling", "1", "--healpix_order", "4",
            "--auto_local_healpix_order", "4", "--sigma_ang", "3", "--offset_range", "3", "--offset_step", "1.5",
            "--sym", "C1", "--low_resol_join_halves", "40", "--norm", "--scale", "--dont_combine_weights_via_disc",
            "--pool", "30", "--pad", "2", "--preread_images", "--j", "1", "--random_seed", "1"]


def continue_command(inputs: Inputs, output: Path) -> List[str]:
    """Go on after the last iteration of a refinement that was ended."""
    command = refine_command(inputs, output)
    last = str(iterations(output)[-1][1]).replace("_data.star", "_optimiser.star")
    reading = ["--pool", "30", "--preread_images", "--j", "1"]
    return command[:command.index("--auto_refine")] + ["--continue", last, *reading]


def consensus_command(inputs: Inputs, output: Path, threads: int) -> List[str]:
    """One iteration without alignment: the optimiser file that the subtraction starts from."""
    return ["relion_refine", "--o", str(output / "consensus"), "--i", inputs.star, "--ref", inputs.reference,
            "--skip_align", "--iter", "1", "--ctf", "--ctf_corrected_ref", "--ini_high", "8", "--particle_diameter",
            f"{inputs.diameter:g}", "--pad", "2", "--sym", "C1", "--norm", "--scale", "--tau2_fudge", "4",
            "--solvent_mask", "mask_full.mrc", "--flatten_solvent", "--zero_mask", "--preread_images",
            "--j", str(threads)]


def write_map(path: Path, volume: np.ndarray, pixel_size: float) -> None:
    with mrcfile.new(str(path), overwrite=True) as handle:
        handle.set_data(np.asarray(volume, np.float32))
        handle.voxel_size = pixel_size


def mask_centre(mask: np.ndarray) -> np.ndarray:
    """Centre of mass in px from the box centre, xyz: where --recenter_on_mask recentres."""
    return np.array(ndimage.center_of_mass(np.clip(mask, 0, None)))[::-1] - mask.shape[0] // 2


def subtract(data: Path, output: Path, new_box: int, pixel_size: float, inputs: Inputs, cores: str) -> Cost:
    """Subtract everything outside mask_B, recentre on it, crop; leaves reference.mrc, mask.mrc and subtracted/."""
    output.mkdir(parents=True, exist_ok=True)
    stack = output / "subtracted"
    threads = len(cores.split(","))
    steps = [consensus_command(inputs, output, threads),
             ["relion_particle_subtract", "--i", str(output / "consensus_it001_optimiser.star"), "--mask", inputs.mask,
              "--o", str(stack), "--recenter_on_mask", "--new_box", str(new_box)],
             ["relion_reconstruct", "--i", str(stack / "particles_subtracted.star"),
              "--o", str(output / "reference.mrc"), "--ctf", "--pad", "2"]]
    costs = [run_measured(step, output / f"step_{i}.log", cores, data) for i, step in enumerate(steps)]
    mask = read_map(data / inputs.mask)
    moved = np.clip(cropped(mask, mask_centre(mask), new_box), 0, 1)
    write_map(output / "mask.mrc", np.where(moved < 1e-3, 0, moved), pixel_size)
    return joined(costs)


def iterations(output: Path) -> List[Tuple[int, Path]]:
    """The data files of the iterations done, without iteration 0."""
    found = ((int(re.findall(r"_it(\d+)_data", path.name)[0]), path) for path in output.glob("run_it*_data.star"))
    return sorted((number, path) for number, path in found if number > 0)


def moments(output: Path) -> List[float]:
    """When each iteration was reached: its unfiltered half-maps, for --continue writes its tables anew."""
    maps = (Path(str(path).replace("_data.star", "_half1_class001_unfil.mrc")) for _, path in iterations(output))
    return [path.stat().st_mtime for path in maps]


def columns(star_file: Path) -> Dict[str, np.ndarray]:
    """Pose columns of a particles table by the number of the original image."""
    from emtable import Table
    table = Table(fileName=str(star_file), tableName="particles")
    labels = table.getColumnNames()
    name = "rlnImageOriginalName" if "rlnImageOriginalName" in labels else "rlnImageName"
    order = np.argsort([int(text.split("@")[0]) for text in table.getColumnValues(name)])
    wanted = ["rlnAngle" + a for a in ("Rot", "Tilt", "Psi")] + ["rlnOrigin" + a + "Angst" for a in "XY"]
    return {label: np.array(table.getColumnValues(label), float)[order] for label in wanted}


def poses_of(star_file: Path) -> Poses:
    """Poses in the frame of the images they belong to, ordered by the number of the original image."""
    c = columns(star_file)
    angles = np.stack([c["rlnAngle" + a] for a in ("Rot", "Tilt", "Psi")], axis=1)
    return Poses(rotation_from_euler(angles), -np.stack([c[f"rlnOrigin{a}Angst"] for a in "XY"], axis=1))


def in_whole_images(poses: Poses, cropped_start: Poses, start: Poses, centre_angstrom: np.ndarray,
                    pixel_size: float) -> Poses:
    """Poses of recentred, cropped images as poses of the whole ones.

    ``cropped_start`` and ``start`` are the same poses before refinement, of the cropped and the whole images; their
    difference is where each crop was taken, which must be whole pixels.
    """
    crop = start.position + (start.rotation @ centre_angstrom)[:, :2] - cropped_start.position
    pixels = crop / pixel_size
    if np.abs(pixels - np.rint(pixels)).max() > 0.1:
        raise RuntimeError("the crops of the subtracted images are not at whole pixels: wrong centre")
    return Poses(poses.rotation, poses.position + crop - (poses.rotation @ centre_angstrom)[:, :2])


@dataclass(frozen=True)
class Result:
    """What a refinement found: poses per iteration (moment, poses), final map and half-maps, whether it converged."""

    trajectory: List[Tuple[float, Poses]]
    poses: Poses
    map: np.ndarray
    half_maps: Tuple[np.ndarray, ...]
    converged: bool


def converged(output: Path) -> bool:
    return (output / "run_class001.mrc").exists()


def result(output: Path) -> Result:
    """The converged result or, without one, that of the last iteration, with its unfiltered half-maps."""
    steps = [(moment, poses_of(path)) for moment, (_, path) in zip(moments(output), iterations(output))]
    if converged(output):
        halves = tuple(read_map(output / f"run_half{half}_class001_unfil.mrc") for half in (1, 2))
        return Result(steps, poses_of(output / "run_data.star"), read_map(output / "run_class001.mrc"), halves, True)
    stem = str(iterations(output)[-1][1]).replace("_data.star", "")
    halves = tuple(read_map(Path(f"{stem}_half{half}_class001_unfil.mrc")) for half in (1, 2))
    return Result(steps, steps[-1][1], (halves[0] + halves[1]) / 2, halves, False)
