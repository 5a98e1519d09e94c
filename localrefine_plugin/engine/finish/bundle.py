"""What may leave the house: what a run measured, without images, maps, single poses, or any name of a file.

For people who ask others why a refinement went as it did. It is text, to be read before it is sent.
"""
from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path
from typing import Any, Dict, List, Set, Tuple

import numpy as np

from ..io.run_folder import RunFolder, read_json
from ..io.run_store import load_input, load_particles, load_tables
from ..io.star import read_star
from ..maps.fsc import FscCurves, read_fsc
from ..records.codec import as_json
from ..records.iteration import CURVE_NAMES
from ..records.particles import Particles
from ..records.poses import PoseTable
from ..records.run_input import INPUT_NAMES, RunInput
from .report import build_report
from .results import pose_uncertainty

ABOUT = ("What a local refinement measured: versions, settings, curves, histograms and sentences. It holds no image, "
         "no map and no pose of a single particle. Names of files, folders, micrographs and optics groups are replaced "
         "by <name>. Read it before you send it.")
HIDDEN = "<name>"
BINS = 40
NOT_SENT = ("input", "settings", "files")
"""Keys of the report: names of files; the settings come from the record of the input."""
WORD = r"[^\s:;,'\"()@]"
PATH = re.compile(rf"(?<![\w/.])(?:~|\.{{1,2}})?/{WORD}+|{WORD}+\.(?:mrcs?|star|cs|tiff?|eer|json|npz|st|ccp4|map)\b",
                  re.IGNORECASE)
TOKEN = re.compile(rf"{WORD}+")


def bundle(run: RunFolder) -> Dict[str, Any]:
    """The bundle of a run, finished or not, as JSON."""
    given, particles, report = load_input(run), load_particles(run), build_report(run)
    last = run.iterations_done()
    content = dict(
        about=ABOUT, versions=given.versions, device=given.device, settings=as_json(given.resolved),
        particles=of_particles(particles, given),
        report=as_json(report),
        fsc={str(k): of_curves(read_fsc(run.fsc(k))) for k in range(last + 1)},
        histograms=[of_poses(table, given.pixel_size) for table in load_tables(run, last)],
        pose_blur=read_json(run.final("pose_blur.json")) if run.final("pose_blur.json").exists() else None,
        error=read_json(run.error) if run.error.exists() else None)
    names = names_of(run, given)
    return {key: cleaned(value, names, NOT_SENT if key == "report" else ()) for key, value in content.items()}


def of_particles(particles: Particles, given: RunInput) -> Dict[str, Any]:
    """Numbers: of particles by half-set, stacks and reasons of those left out; optics and defocus."""
    halves = [int((particles.half_set == half).sum()) for half in (1, 2)]
    optics = [{key: value for key, value in as_json(group).items() if key != "name"} for group in given.optics]
    used = particles.half_set > 0
    return dict(box_size=given.box_size, pixel_size=given.pixel_size, halves=halves, stacks=len(given.stacks),
                left_out=dict(Counter(e.reason for e in given.excluded)), optics=optics,
                optics_group_sizes=np.bincount(particles.optics_group[used], minlength=len(optics)).tolist(),
                grey_scale=list(given.grey_scale),
                defocus_angstrom=histogram(0.5 * (particles.defocus_u + particles.defocus_v)[used]),
                tilt_cosine=histogram(particles.rotation[used, 2, 2]))


def of_curves(curves: FscCurves) -> Dict[str, List[float]]:
    """Every curve (N // 2 + 1,) to four decimals."""
    return {name: np.round(getattr(curves, name), 4).tolist() for name in CURVE_NAMES + ("corrected_error",)}


def of_poses(table: PoseTable, pixel_size: float) -> Dict[str, Any]:
    """Of a half-set: how far poses moved, how well they are known, and the verdict."""
    uncertainty = pose_uncertainty(table.pose_error_covariance, pixel_size)
    values = dict(rotation_change_deg=np.linalg.norm(table.rotation_change_deg, axis=1),
                  shift_change_angstrom=np.linalg.norm(table.shift_change_angstrom, axis=1),
                  rotation_uncertainty_deg=uncertainty[:, 0], shift_uncertainty_angstrom=uncertainty[:, 1],
                  log_likelihood=table.log_likelihood, modes=table.modes, insertions=table.insertions,
                  scale=table.scale, gain=table.gain, probability_aligned=table.probability_aligned,
                  probability_empty=table.probability_empty)
    return {name: histogram(column) for name, column in values.items() if column is not None}


def histogram(values: np.ndarray) -> Dict[str, Any]:
    """Counts in BINS equal bins from the 0.5th to the 99.5th percentile; what lies outside counts in the outer bins."""
    values = np.asarray(values, np.float64)
    if not len(values):
        return dict(counts=[], low=None, high=None, median=None)
    low, high = np.percentile(values, (0.5, 99.5))
    counts = np.histogram(np.clip(values, low, high), BINS, (low, high if high > low else low + 1.0))[0]
    return dict(counts=counts.tolist(), low=float(low), high=float(high), median=float(np.median(values)))


def names_of(run: RunFolder, given: RunInput) -> Set[str]:
    """Whatever names something of the user's: files, the user, the computer, and the name columns of the particles.

    A name that is nothing but letters stays: it is a word of our sentences as well (*mask*, *particles*).
    """
    paths = {*(getattr(given, name) for name in INPUT_NAMES), *given.stacks, str(run.path.resolve())}
    names = {part for path in paths for part in _parts(path)}
    names.update(group.name for group in given.optics)
    if run.given_particles.exists():
        for table in read_star(run.given_particles):
            for texts in table.texts([label for label in table.labels if label.endswith("Name")]).values():
                stacks = {text.rpartition("@")[2] for text in texts}  # far fewer than images
                names.update(part for stack in stacks for part in _parts(stack))
    return {name for name in names if not name.isalpha()} | {Path.home().name, os.uname().nodename}


def _parts(name: str) -> Tuple[str, ...]:
    """A path, its last part, and that without its ending."""
    path = Path(name)
    return str(path), path.name, path.stem


def cleaned(content: Any, names: Set[str], without: Tuple[str, ...] = ()) -> Any:
    """``content`` of JSON with names hidden in its texts, and some keys left out wherever they are."""
    if isinstance(content, dict):
        return {key: cleaned(value, names, without) for key, value in content.items() if key not in without}
    if isinstance(content, (list, tuple)):
        return [cleaned(value, names, without) for value in content]
    return hide(content, names) if isinstance(content, str) else content


def hide(text: str, names: Set[str]) -> str:
    """The text with each of the names, and whatever looks like a path, replaced."""
    for name in names:
        if " " in name and name in text:  # what follows takes texts apart at spaces
            text = text.replace(name, HIDDEN)
    text = re.sub(f"(?:{HIDDEN})+", HIDDEN, PATH.sub(HIDDEN, text))
    return TOKEN.sub(lambda found: HIDDEN if found.group().rstrip(".") in names else found.group(), text)
