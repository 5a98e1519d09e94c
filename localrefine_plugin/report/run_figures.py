"""Figures of a run folder: reads what is there (protocols.run_state) and draws it (plots, map_plots).

The same functions serve the windows of the viewer and the HTML report. What cannot be drawn becomes a
figure that says so: a running or damaged run never raises.
"""
from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from matplotlib.figure import Figure

from ..engine.model.pose import log_map, project
from ..engine.records.resolved import ResolvedSettings
from . import (
    direction_plots,
    film_picture,
    map_plots,
    motion_plots,
    plots,
    pose_plots,
    rigidity_picture,
    validation_plots,
    verdict_plots,
)
from .run_state import RunState, read_npz

logger = logging.getLogger(__name__)

POSE_TOPICS = ("rotation limit", "shift limit", "rotation peaks", "shift peaks", "fulcrum")  # of engine.advice


class NotThere(Exception):
    """The files of a picture are not there (yet); the message is for the user."""


class Picture(NamedTuple):
    """name : of the file and the parameter.  label : in the viewer.  help : what to look at."""

    name: str
    label: str
    help: str
    draw: Callable[..., Figure]
    of_one_iteration: bool = True


def draw(picture: Picture, state: RunState, iteration: Optional[int] = None,
         other: Optional[Tuple[str, RunState]] = None) -> Figure:
    """The picture of an iteration (None: the result's), or a figure with the reason why there is none."""
    try:
        return draw_if_there(picture, state, iteration, other)
    except NotThere as reason:
        return plots.message_figure(picture.label, str(reason))


def draw_if_there(picture: Picture, state: RunState, iteration: Optional[int] = None,
                  other: Optional[Tuple[str, RunState]] = None) -> Figure:
    """As `draw`, but raises NotThere when the run has no such data."""
    k = chosen_iteration(state) if iteration is None else iteration
    try:
        return picture.draw(state, k, other)
    except NotThere:
        raise
    except Exception as error:  # half-written or damaged files fail in many ways; the window must open all the same
        logger.debug("%s cannot be drawn", picture.name, exc_info=True)
        return plots.message_figure(picture.label, f"The files of iteration {k} cannot be read:\n{error}")


def chosen_iteration(state: RunState) -> int:
    """The best iteration so far; 0 while there is only the input."""
    return 0 if state.best is None else state.best.iteration


# ---------------------------------------------------------------- one function per picture

Other = Optional[Tuple[str, RunState]]


def fsc(state: RunState, k: int, other: Other) -> Figure:
    title = "Fourier shell correlation, " + ("input" if k == 0 else f"iteration {k}")
    before = state.fsc(0) if k > 0 else None
    overlay = None
    if other is not None:
        name, run = other
        overlay = (name, _fsc(run, chosen_iteration(run)), None if run.best is None else run.best.resolution())
    return plots.fsc_figure(_fsc(state, k), state.resolution_angstrom(k), before, title, overlay, _expected(state, k))


def _expected(state: RunState, k: int) -> Optional[Tuple[np.ndarray, Any, Sequence[float]]]:
    """The FSC that allows for the poses' uncertainty, its resolution and the range of that, of the iteration that the
    result is from."""
    blur = state.pose_blur
    if k != chosen_iteration(state) or blur is None or not blur.expected_fsc:
        return None
    return np.array(blur.expected_fsc), blur.resolution_to_report_angstrom, blur.range_to_report_angstrom


def fsc_history(state: RunState, _k: int, _other: Other) -> Figure:
    curves = [(record.iteration, state.fsc(record.iteration), record.resolution()) for record in state.iterations]
    curves = [curve for curve in curves if curve[1] is not None and plots.CORRECTED in curve[1]]
    if not curves:
        raise NotThere("No iteration has finished yet.")
    return plots.fsc_history_figure(curves)


def pose_change(state: RunState, k: int, other: Other) -> Figure:
    overlay = None
    if other is not None:
        overlay = (other[0], _poses(other[1], chosen_iteration(other[1])))
    title = f"Change from the input poses, iteration {k}"
    return pose_plots.pose_change_figure(_poses(state, k), searched(state, k), title, overlay,
                                         _advice(state, k, POSE_TOPICS), learned_change(state, k),
                                         change_since_last(state, k) if other is None else None)


def learned_change(state: RunState, k: int) -> Optional[Dict[str, np.ndarray]]:
    """A sample of the changes of pose under the learned motion of iteration k; None where none was learned."""
    covariance = state.learned_covariance(k)
    if covariance is None:
        return None
    return pose_plots.learned_sample(covariance, _joined(_poses(state, k), "rotation"))


def change_since_last(state: RunState, k: int) -> Optional[Tuple[str, Dict[str, np.ndarray]]]:
    """Change of pose since iteration k − 1 of the particles that have both; None for the first iteration."""
    found = [(state.poses(k - 1, half), state.poses(k, half)) for half in (1, 2)] if k > 1 else []
    pairs = [(before, now) for before, now in found if before is not None and now is not None
             and np.array_equal(before["row"], now["row"])]
    if not pairs or state.input is None:
        return None
    given = state.input
    (r0, t0), (r, t) = ([np.concatenate([pair[i][name] for pair in pairs]) for name in ("rotation", "shift_px")]
                        for i in (0, 1))
    moved = t - t0 + project(r - r0, given.resolved.fulcrum_offset(given.box_size))
    change = {"rotation_change_deg": np.rad2deg(log_map(np.swapaxes(r0, 1, 2) @ r)),
              "shift_change_angstrom": given.pixel_size * moved}
    return f"Since iteration {k - 1}", change


def searched(state: RunState, k: int) -> Optional[ResolvedSettings]:
    """The settings in use, with the extents of the search of iteration k where a learned prior has narrowed them."""
    from ..engine.motion.prior_shapes import prior_shape
    motions = [motion for motion in (state.motion(k - 1, half) for half in (1, 2)) if motion is not None]
    if not motions or state.input is None:
        return state.resolved
    box_size, pixel_size, resolved = state.input.box_size, state.input.pixel_size, state.input.resolved
    to_fulcrum = resolved.fulcrum_offset(box_size) - resolved.mask_centre_offset(box_size)
    widest = np.deg2rad(resolved.rotation_extent_deg), resolved.shift_extent_angstrom / pixel_size
    found = [prior_shape(resolved.prior).narrowed(resolved, motion, to_fulcrum, widest) for motion in motions]
    rotation, shift = np.max(found, axis=0)
    return replace(resolved, rotation_extent_deg=float(np.rad2deg(rotation)),
                   shift_extent_angstrom=float(shift * pixel_size))


def pose_uncertainty(state: RunState, k: int, _other: Other) -> Figure:
    return pose_plots.uncertainty_figure(_poses(state, k), state.pixel_size,
                                         f"How well the poses of iteration {k} are known")


def particles(state: RunState, k: int, _other: Other) -> Figure:
    verdicts = {half: record.verdict for half in (1, 2)
                for record in [state.half(k, half)] if record is not None and record.verdict is not None}
    tables = _poses(state, k)
    found = {half: tables[half] for half in verdicts if "gain" in tables.get(half, {})}
    if not found:
        raise NotThere("The particles were not judged: a half-set has fewer than 100, or the run is of an old version.")
    return verdict_plots.verdict_figure(found, verdicts)


def axis_change(state: RunState, k: int, _other: Other) -> Figure:
    return pose_plots.axis_change_figure(_poses(state, k))


def learned_motion(state: RunState, k: int, _other: Other) -> Figure:
    history = [(record.iteration, record.motion) for record in state.iterations
               if record.iteration <= k and record.motion is not None]
    if not history or history[-1][0] != k:
        raise NotThere("No motion has been learned: the prior is not a learned one, or no iteration has finished yet.")
    stored = {half: read_npz(state.folder.motion(k, half)) or {} for half in (1, 2)}
    along_axes = {half: columns["along_axes"] for half, columns in stored.items() if "along_axes" in columns}
    return motion_plots.motion_figure(history, _mean_map(state, k), state.mask_in_use(k), along_axes,
                                      state.pixel_size, state.fulcrum_px)


def film(state: RunState, _k: int, _other: Other) -> Figure:
    found = film_picture.still(state)
    if found is None:
        raise NotThere(film_picture.NO_FILM)
    return found


def rigidity(state: RunState, _k: int, _other: Other) -> Figure:
    found = rigidity_picture.still(state)
    if found is None:
        raise NotThere(rigidity_picture.NO_RIGIDITY)
    return found


def progress(state: RunState, _k: int, _other: Other) -> Figure:
    if not state.iterations:
        raise NotThere("No iteration has finished yet.")
    return plots.progress_figure(state.iterations)


def orientations(state: RunState, k: int, _other: Other) -> Figure:
    before = state.input_rotations()
    if before is None:
        raise NotThere("The input of the run has not been read yet.")
    return map_plots.orientation_figure(before, before if k == 0 else _joined(_poses(state, k), "rotation"))


def directions(state: RunState, _k: int, _other: Other) -> Figure:
    arrays, found = read_npz(state.folder.final("directions.npz")), state.directions
    if arrays is None or found is None or state.input is None:
        raise NotThere("The directions are measured at the end of a run.")
    return direction_plots.direction_figure(arrays, found, state.input.box_size, state.pixel_size)


def map_slices(state: RunState, k: int, _other: Other) -> Figure:
    before, after = _mean_map(state, 0), _mean_map(state, k)
    return map_plots.map_slices_figure(before, after, state.mask_in_use(k), state.fulcrum_px,
                                       state.pixel_size)


def filter_resolution(state: RunState, k: int, _other: Other) -> Figure:
    cutoff = state.map(state.folder.filter_resolution(k))
    if cutoff is None:
        raise NotThere("The references of this iteration were not filtered non-uniformly.")
    return map_plots.filter_resolution_figure(cutoff, state.mask_in_use(k), state.fulcrum_px)


def noise(state: RunState, k: int, _other: Other) -> Figure:
    found = {half: state.noise_power(k, half) for half in (1, 2)}
    spectra = {half: power for half, power in found.items() if power is not None}
    if not spectra:
        raise NotThere(f"There is no noise estimate of iteration {k} yet.")
    if state.input is None:
        raise NotThere("The input of the run has not been read yet.")
    return map_plots.noise_figure(spectra, state.input.box_size, state.input.pixel_size)


def scale(state: RunState, k: int, _other: Other) -> Figure:
    scales = {half: table["scale"] for half, table in _poses(state, k).items() if "scale" in table}
    if not scales:
        raise NotThere("The scale of the particles was not refined in this run.")
    return map_plots.scale_figure(scales)


def validation(state: RunState, _k: int, _other: Other) -> Figure:
    tests = state.null_tests()
    if not tests:
        raise NotThere("The results have not been validated: switch 'Validate results' on (expert level) and continue.")
    return validation_plots.validation_figure(tests)


PICTURES: List[Picture] = [
    Picture("fsc", "FSC, five curves", "Trust the corrected curve. It should fall to zero and stay there; a tail "
            "that does not comes from the mask or from particles that are in both half-sets. The curve to report "
            "allows for the blur by uncertain poses, which both half-maps share.", fsc),
    Picture("fsc_history", "FSC over the iterations", "The curve should move to the right and then stand still.",
            fsc_history, of_one_iteration=False),
    Picture("pose_change", "Change of pose", "Most particles should move by less than the prior widths and few should "
            "sit at the search limit. Both half-sets must look alike.", pose_change),
    Picture("pose_uncertainty", "Uncertainty of the poses", "The standard deviation of the error of each pose. "
            "The motion is believable where it is larger than this.", pose_uncertainty),
    Picture("particles", "Aligned and other particles", "How well each particle fits, beside what the search finds in "
            "noise and at the pose of another particle. A second peak at the place of these curves are particles that "
            "are not aligned.", particles),
    Picture("axis_change", "Rotation about each axis", "A hinge shows as one axis that turns more than the others.",
            axis_change),
    Picture("learned_motion", "Learned motion", "Only with a learned prior: how far the sub-volume moves, about which "
            "point, and whether one Gaussian describes it. Both half-sets must agree.", learned_motion),
    Picture("film", "Frames of the film", "Only after a film was made: the refined part at both ends of its motion, "
            "and where the particles are. Dotted: its place in the middle.", film, of_one_iteration=False),
    Picture("rigidity", "Motion inside the particle", "Only after the verb rigidity: how far every part moves against "
            "the largest body, and which parts move together. Cells below the dotted line say nothing.", rigidity,
            of_one_iteration=False),
    Picture("progress", "Resolution and poses over the iterations", "Both should settle. Poses that keep changing "
            "while the resolution does not improve are being fitted to noise.", progress, of_one_iteration=False),
    Picture("orientations", "Viewing directions", "Local refinement should leave the distribution as it was.",
            orientations),
    Picture("directions", "Resolution by direction", "Whether all directions are seen, and equally well resolved. "
            "An even map has one colour, a cFAR above 0.5 and an SCF* above 0.81.", directions, of_one_iteration=False),
    Picture("map_slices", "Slices of the map", "Detail should appear inside the mask. Streaks or ripples that end at "
            "the mask are a sign of overfitting.", map_slices),
    Picture("filter_resolution", "Resolution of the filter", "Only with non-uniform regularisation: where the "
            "reference keeps detail and where it is low-passed. It should be finest in the ordered core.",
            filter_resolution),
    Picture("noise", "Noise spectra", "Smooth, and the same for both half-sets.", noise),
    Picture("validation", "Null tests", "Only after a validation. Each dot should lie in its green range: a dot "
            "outside means that something was found where there is nothing to find.", validation,
            of_one_iteration=False),
    Picture("scale", "Scale of the particles", "One narrow peak at 1 (only when the scale is refined).", scale),
]


def picture_of(name: str) -> Picture:
    return next(picture for picture in PICTURES if picture.name == name)


# ---------------------------------------------------------------- reading, with reasons

def _fsc(state: RunState, k: int) -> Dict[str, np.ndarray]:
    columns = state.fsc(k)
    if columns is None:
        raise NotThere(f"The FSC of iteration {k} is not there yet.")
    return columns


def _advice(state: RunState, k: int, topics: Sequence[str]) -> List[str]:
    """The engine's sentences on these topics."""
    record = state.iteration(k)
    return [] if record is None else [record.advice[topic] for topic in topics if topic in record.advice]


def _poses(state: RunState, k: int) -> Dict[int, Dict[str, np.ndarray]]:
    """Pose tables of the half-sets that are there."""
    if k == 0:
        raise NotThere("No iteration has finished yet: the poses are still those of the input.")
    tables = {half: state.poses(k, half) for half in (1, 2)}
    found = {half: table for half, table in tables.items() if table is not None and len(table["row"])}
    if not found:
        raise NotThere(f"The poses of iteration {k} are not there yet.")
    return found


def _joined(tables: Dict[int, Dict[str, np.ndarray]], name: str) -> np.ndarray:
    return np.concatenate([table[name] for table in tables.values()])


def _mean_map(state: RunState, k: int) -> np.ndarray:
    """The sum map is the mean of the two half-maps."""
    halves = [state.half_map(k, half) for half in (1, 2)]
    found = [volume for volume in halves if volume is not None]
    if not found:
        raise NotThere(f"The half-maps of iteration {k} are not there yet.")
    return np.mean(found, axis=0)
