"""The verb rigidity: which parts of the particle of a finished run move, and which of them together."""
from __future__ import annotations

from dataclasses import replace
from typing import Dict, List, Sequence, Tuple

import numpy as np

from ..align.static_part import outline_of
from ..bodies.finished import Body, open_body
from ..cells.divide import Cells, divide
from ..cells.evidence import CellEvidence, HalfTask, cell_evidence, cell_references
from ..cells.relative import Variance, about, cell_variances, learned
from ..inputs.changes import check_stacks
from ..io.mrc import ImageReader, read_map, write_map
from ..io.run_folder import write_atomic
from ..io.run_store import load_iteration, load_noise, save_record
from ..kernels.batches import evenly_spaced
from ..kernels.cells import MOTIONS
from ..maps.mask import dilate_soft
from ..merge.motion_report import summarise
from ..model.fourier import apply_shell_filter
from ..model.pixels import highest_shell, shell_of_resolution
from ..motion.motion_prior import along_first_axes, learning_error, mean_motion
from ..progress import ProgressBar, say
from ..records.cells import CELLS, FEWEST_CELLS, MOST_CELLS, PARTICLES
from ..records.errors import InputError
from ..records.motion import LearnedMotion, PrincipalMotion
from ..records.rigidity import CellMotion, RigidBody, Rigidity
from .bodies import Particle, bodies_of, pair
from .forecasts import with_forecasts
from .words import chimerax_script, table_of, words_of

LEAST_MOTION = 0.1  # of the resolution: less may be what the model leaves out
SURE = 4.0  # standard errors
LEAST_PARTICLES = 100  # of each half-set
BAND = 1.5  # times the resolution: finer detail is blurred by the motion that is looked for
COARSER = 2.5  # times that detail: where the motion of what moves is told from once more
LEAST_SHELL = 3
MOST_BYTES = 512 << 20  # of the curvatures; there are two copies of them
NEAR_ANGSTROM, EDGE = 3.0, 5.0  # of a mask: how far it is 1, and its edge in resolutions
LEVEL = 0.3  # of the density that a hundredth of the outline exceeds
Array = np.ndarray


def rigidity(run: str, cells: int = CELLS, particles: int = PARTICLES) -> Rigidity:
    """Write RUN/final/rigidity: a map of the motion, masks of the bodies, rigidity.json.

    Parameters
    ----------
    cells : that the particle is divided into.  particles : how many are looked at, half of them of each half-set.

    Raises InputError where the run is not finished, or has too few particles, or its images are gone.
    """
    if not FEWEST_CELLS <= cells <= MOST_CELLS:
        raise InputError(f"{cells} is not {FEWEST_CELLS} to {MOST_CELLS}", "--cells", "give another number of cells")
    body = open_body(run)
    rows = sample_of(body, cells, particles)
    check_stacks(body.run, body.given, np.unique(body.particles.stack[np.concatenate(list(rows.values()))]))
    say("the motion inside the particle")
    maps = [read_map(body.run.half_map(body.iteration, half))[0] for half in (1, 2)]
    resolution = load_iteration(body.run, body.iteration).resolution_angstrom["corrected"]
    box, pixel_size = body.given.box_size, body.given.pixel_size
    last = min(int(shell_of_resolution(BAND * resolution, box, pixel_size)), highest_shell(box))
    mean, outline = shown(maps, last, resolution, pixel_size)
    divided = divide(mean, outline, cells, pixel_size)
    evidence = evidence_of(body, maps, divided, rows, last)
    found = bodies_of(Particle(evidence, divided.centres, divided.share, pixel_size,
                               LEAST_MOTION * resolution / pixel_size), say)
    variances = cell_variances(evidence, found, divided.centres)
    least = LEAST_MOTION * resolution / pixel_size
    if any(moves(one, least) for one in variances):
        some = {half: one[evenly_spaced(len(one), len(one) // 2)] for half, one in rows.items()}
        coarser = evidence_of(body, maps, divided, some, max(int(last / COARSER), LEAST_SHELL))
        variances = where_larger(variances, cell_variances(coarser, found, divided.centres), least)
    return written(body, divided, (evidence, variances), found, (mean, outline, resolution, box * pixel_size / last))


def moves(one: Variance, least: float) -> bool:
    """Whether a cell is sure to move, by ``least`` or more (px)."""
    return one.value > max(SURE * one.error, least ** 2)


def where_larger(fine: Sequence[Variance], coarse: Sequence[Variance], least: float) -> List[Variance]:
    """Of the cells that are sure to move the variance by coarser detail, where it is larger by two errors: a density
    that moves far is not in the map at fine detail, and what lies beside it and rests outweighs it there."""
    return [b._replace(predicted=a.predicted)
            if moves(a, least) and b.value - a.value > 2 * np.hypot(a.error, b.error) else a
            for a, b in zip(fine, coarse)]


def sample_of(body: Body, cells: int, particles: int) -> Dict[int, Array]:
    """Places, in the tables of poses, of the particles of each half-set that are looked at."""
    most = min(particles, MOST_BYTES // (4 * (MOTIONS * cells) ** 2)) // 2
    chosen = {half: evenly_spaced(len(table.row), most) for half, table in body.poses.items()}
    for half, rows in chosen.items():
        if len(rows) < LEAST_PARTICLES:
            raise InputError(f"only {len(rows)} particles of half-set {half} can be looked at", str(body),
                             f"use {LEAST_PARTICLES} of each half-set or more")
    return {half: body.poses[half].row[rows] for half, rows in chosen.items()}


def shown(maps: Sequence[Array], last: int, resolution: float, pixel_size: float) -> Tuple[Array, Array]:
    """The mean map up to a shell, and the outline of the particle in it."""
    mean = 0.5 * (maps[0] + maps[1])
    passed = (np.arange(len(mean) // 2 + 1) <= last).astype(np.float64)
    return apply_shell_filter(mean, passed), outline_of(mean, pixel_size, resolution, 1)


def evidence_of(body: Body, maps: Sequence[Array], cells: Cells, rows: Dict[int, Array], last: int) -> CellEvidence:
    """Of both half-sets, each against the map of the other."""
    found = []
    for half in (1, 2):
        table, particles = body.poses[half], body.particles.take(rows[half])
        at = np.searchsorted(table.row, rows[half])
        references = cell_references(cells, maps[2 - half], maps[half - 1], last)
        bar = ProgressBar(f"cells of half {half}", len(particles))
        with ImageReader(particles) as reader:
            task = HalfTask(particles, reader.read, table.rotation[at], table.shift_px[at],
                            load_noise(body.run, body.iteration, half))
            found.append(cell_evidence(task, references, last, bar.update))
    return CellEvidence(*(np.concatenate([getattr(one, name) for one in found]) for name in ("score", "curvature")))


# ---------------------------------------------------------------- results

def written(body: Body, cells: Cells, said: Tuple[CellEvidence, List[Variance]], found: List[Array],
            shown_as: Tuple[Array, Array, float, float]) -> Rigidity:
    mean, outline, resolution, band = shown_as
    pixel_size, record, evidence = body.given.pixel_size, body.run.rigidity, said[0]
    told = cells_told(cells, said[1], found, body, LEAST_MOTION * resolution)
    body.run.forget_rigidity()
    record.parent.mkdir(parents=True, exist_ok=True)
    bodies, names = [], ["motion.mrc", "motion_error.mrc", "rigidity.cxc"]
    for number, members in enumerate(found, 1):
        region = np.minimum(cells.paint(np.isin(np.arange(len(cells)), members)), 1)
        mask = dilate_soft(region, pixel_size, NEAR_ANGSTROM, EDGE * resolution)
        names.append(f"body_{number}.mrc")
        write_map(record.with_name(names[-1]), mask, pixel_size)
        share = float(cells.share[members].sum())
        motion, gain = (None, None) if number == 1 else motion_of(body, cells, evidence, found, number - 1)
        bodies.append(RigidBody(number, share, names[-1], motion, gain))
    for name, values in (("motion.mrc", [cell.displacement_angstrom for cell in told]),
                         ("motion_error.mrc", [cell.displacement_error_angstrom for cell in told])):
        write_map(record.with_name(name), cells.paint(np.array(values)), pixel_size)
    level = LEVEL * float(np.percentile(mean[outline > 0.5], 99))
    script = chimerax_script(bodies, level, max(1.0, *(cell.displacement_angstrom for cell in told)))

    def write(name: str) -> None:
        with open(name, "w", encoding="utf-8") as handle:
            handle.write(script)
    write_atomic(record.with_name("rigidity.cxc"), write)
    bodies = with_forecasts(body, bodies)
    words = words_of(told, bodies, len(evidence.score))
    made = Rigidity(body.iteration, len(evidence.score), band, tuple(told), tuple(bodies), words, level,
                    body.run.sizes(record.with_name(name) for name in names))
    save_record(record, made)
    for text in [*table_of(told), *words, f"maps, masks and rigidity.json are in {record.parent}"]:
        say(text)
    return made


def cells_told(cells: Cells, variances: Sequence[Variance], found: List[Array], body: Body,
               least: float) -> List[CellMotion]:
    told, px = [], body.given.pixel_size
    for c, variance in enumerate(variances):
        value, error, predicted = (v * px ** 2 for v in variance)
        moved = float(np.sqrt(max(value, 0)))
        told.append(CellMotion(
            tuple(float(v) for v in cells.centres[c] + body.given.box_size // 2), float(cells.share[c]),
            next(number for number, members in enumerate(found, 1) if c in members), value, error, moved,
            float(np.sqrt(moved ** 2 + error)) - moved, float(np.sqrt(2 * predicted)),
            moves(variance, least / px)))
    return told


def motion_of(body: Body, cells: Cells, evidence: CellEvidence, found: List[Array],
              k: int) -> Tuple[PrincipalMotion, float]:
    """How body k moves against the first, and what that gains in log likelihood."""
    pixel_size, members = body.given.pixel_size, found[k]
    centre = np.rint(cells.share[members] @ cells.centres[members] / cells.share[members].sum())
    covariance, step = learned(*about(*pair(evidence, found, k, 0), centre), pixel_size)
    count = np.ones(len(step.mean))
    mean, mean_error = mean_motion(step, count, covariance)
    motion = LearnedMotion(covariance, learning_error(step, count, covariance), mean, mean_error,
                           along_first_axes(step, covariance), count)
    radius = float(np.sqrt(5 / 3 * np.einsum("c,ci->", cells.share[members],
                                             (cells.centres[members] - centre) ** 2) / cells.share[members].sum()))
    resolved = replace(body.given.resolved, prior="learned", mask_radius_angstrom=radius * pixel_size,
                       mask_centre_px=tuple(float(v) for v in centre + body.given.box_size // 2))
    return summarise(motion, resolved, pixel_size), float(step.log_likelihood.sum())
