"""What is said of a run in the summary of the protocol, in the viewer and in the report."""
from __future__ import annotations

import os
import re
from typing import List, Optional, Sequence, Union

from ..engine.records.iteration import CURVE_NAMES, FSC_THRESHOLD, TRUTH_THRESHOLD, IterationRecord
from ..engine.records.settings import DESCRIBED
from .run_state import RunState

COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # Scipion's log is written for a terminal


def summary_lines(state: RunState) -> List[str]:
    """What the summary of the protocol says about this run."""
    if state.error:
        return [f"*Stopped*: {state.error}"] + progress_lines(state)
    return progress_lines(state)


def progress_lines(state: RunState) -> List[str]:
    lines = []
    best, last = state.best, state.last
    if best is not None:
        lines += [resolution_line(state, best)] + curve_lines(best) + map_lines(state) + pose_lines(best)
        lines += list(best.motion.words) if best.motion is not None else []
    if state.rest_control is not None and not state.rest_control.doubtful:
        lines.append(state.rest_control.sentence)  # of a doubtful one the advice tells
    lines += selection_lines(state)
    lines += auto_lines(state) + device_lines(state)
    if last is not None and last.stop_reason:
        lines.append(f"Stopped after iteration {last.iteration}: {last.stop_reason}")
    lines += validation_lines(state)
    lines += [f"*Warning*: {text}" for text in state.warnings()]
    return lines


def selection_lines(state: RunState) -> List[str]:
    """What keeping particles by their probability did, where it was asked for."""
    return [] if state.selection is None else [f"Selection: {state.selection.sentence}"]


def validation_lines(state: RunState) -> List[str]:
    """How the null tests came out: one line, and one for each that did not come out as expected."""
    tests = state.null_tests()
    done = [test for test in tests if test.passed is not None]
    lines = [f"Null tests: {sum(bool(test.passed) for test in done)} of {len(done)} as expected"] if done else []
    return lines + [f"*Warning*: {test.title}: {test.verdict}" for test in done if not test.passed]


def resolution_line(state: RunState, best: IterationRecord) -> str:
    text = f"Resolution (FSC {FSC_THRESHOLD}, corrected): input {angstrom(state.iterations[0].resolution())}"
    if best.iteration > 0:
        text += f", iteration {best.iteration}: {angstrom(best.resolution())}"
    if state.pose_blur is not None:
        text += ("; to report, with the uncertainty of the poses: "
                 f"*{angstrom(state.pose_blur.resolution_to_report_angstrom)}*")
        if len(state.pose_blur.range_to_report_angstrom) == 2:
            text += " ({:.2f} to {:.2f} Å by the error of the FSC)".format(*state.pose_blur.range_to_report_angstrom)
        if state.rest_control is not None:
            text += state.rest_control.remark
        if state.directions is not None:
            text += state.directions.beside
    return text


def curve_lines(record: IterationRecord) -> List[str]:
    """Resolution of each curve at both thresholds, and how far the corrected one is uncertain."""
    parts = [f"{curve} {angstrom(record.resolution(curve))} / {angstrom(record.resolution(curve, TRUTH_THRESHOLD))}"
             for curve in CURVE_NAMES if record.resolution(curve) is not None]
    lines = [f"FSC {FSC_THRESHOLD} / {TRUTH_THRESHOLD}: " + "; ".join(parts)] if parts else []
    if len(record.resolution_range_angstrom) == 2:
        finer, coarser = record.resolution_range_angstrom
        lines.append(f"One standard error of the corrected FSC: {finer:.2f} to {coarser:.2f} Å")
    return lines


def map_lines(state: RunState) -> List[str]:
    """The tightest mask and the B-factor, once there are final maps, and what the half-sets share."""
    lines = []
    ladder, sharp = state.mask_ladder, state.sharpening
    if ladder is not None and ladder.tightest:
        lines.append(f"In the tightest mask that adds no correlation of its own: {ladder.resolution_angstrom:.2f} Å "
                     "(this is the best part of the density; the resolution above is that of the mask in use)")
    if sharp is not None:
        how = (f"Guinier plot: {sharp.b_factor_guinier:.0f} Å²" if sharp.guinier_shells
               else "too few shells for a Guinier plot")
        lines.append(f"B-factor of the sharpened map: {sharp.b_factor_applied:.0f} Å² ({how})")
    if state.settings is not None:
        join = state.settings.join_halves_resolution_angstrom
        lines.append(f"The references of the two half-sets share their density coarser than {join:g} Å" if join > 0 else
                     "The references of the two half-sets share nothing")
    return lines


def pose_lines(record: IterationRecord) -> List[str]:
    change = record.pose_change
    if change is None:
        return []
    lines = [f"Change from the input poses (median): {change.rotation_median_deg:.2f}°, "
             f"{change.shift_median_angstrom:.2f} Å at the fulcrum",
             f"At the search limit: {100 * record.at_rotation_limit:.1f} % in rotation, "
             f"{100 * record.at_shift_limit:.1f} % in shift"]
    if record.insertions_mean:
        lines.append(f"Poses at which an image was inserted, on average: {record.insertions_mean:.1f}")
    return lines


def auto_lines(state: RunState) -> List[str]:
    """What the program chose where the user left a setting to it."""
    settings, resolved = state.settings, state.resolved
    if settings is None or resolved is None:
        return []
    chosen = [info for name, info in DESCRIBED.items()
              if info.optional and getattr(settings, name) is None and getattr(resolved, name) is not None]
    parts = [f"{info.label.lower()} {getattr(resolved, info.name):.4g} {info.unit}".rstrip() for info in chosen]
    if isinstance(settings.fulcrum, str):
        parts.append("fulcrum " + ", ".join(f"{v:.1f}" for v in resolved.fulcrum_px) + " px")
    lines = ["Chosen automatically: " + "; ".join(parts)] if parts else []
    rotation, shift = resolved.expected_rotation_sd_deg, resolved.expected_shift_sd_angstrom
    if rotation is not None and shift is not None:
        lines.append(f"Expected error of the poses after the first iteration, per axis: {rotation:.1f}°, "
                     f"{shift:.1f} Å; it falls as the resolution improves{resolved.counted_density}")
    return lines


def device_lines(state: RunState) -> List[str]:
    """What the alignment runs on, and why if nobody chose it."""
    return [f"Runs on {state.input.device}"] if state.input is not None and state.input.device else []


def angstrom(value: Optional[float]) -> str:
    return "not known" if value is None else f"{value:.2f} Å"


STEPS = {"convertInputStep": "writing the input", "prepareStep": "checking the input", "alignStep": "aligning",
         "mergeStep": "FSC and next references", "finishStep": "writing the results",
         "refineBodiesStep": "refining all bodies", "validateStep": "null tests", "createOutputStep": "outputs"}
OF_BODIES = re.compile(r"^bod(y|ies) [\d, and]+: ")  # what the engine says of one, or some, of several bodies
ENGINE_WORDS = ("iteration ", "checking ", "alignment will ", "results ", "validating ", "null test: ", "control: ")


def live_line(path: Optional[str], tail: int = 8192) -> List[str]:
    """What a running engine is doing, from the end of its log: its last line, or the step that has begun since.

    Scipion's own lines (commands, colours) are left out; a progress bar on a terminal rewrites its line with a
    carriage return.
    """
    try:
        with open(path or "", "rb") as handle:
            handle.seek(0, os.SEEK_END)
            handle.seek(max(0, handle.tell() - tail))
            text = handle.read().decode("utf-8", "replace")
    except OSError:
        return []
    for line in reversed(text.replace("\r", "\n").split("\n")):
        words = COLOUR.sub("", line).strip()
        if OF_BODIES.sub("", words).startswith(ENGINE_WORDS):
            return [f"Now: {words}"]
        step = words[len("STARTED: "):].split(",")[0] if words.startswith("STARTED: ") else ""
        if step in STEPS:
            return [f"Now: {STEPS[step]}"]
    return []


def prior_sentence(state: RunState) -> str:
    """For the methods section of a paper."""
    from ..engine.motion.prior_shapes import prior_shape
    return "" if state.settings is None else prior_shape(state.settings.prior).sentence(state.settings)


def methods_text(states: Sequence[RunState], particles: Union[int, str]) -> str:
    """The methods of a paper, for finished runs of one body or several; ``particles`` : how many."""
    several = len(states) > 1
    what = (f"{len(states)} parts of the map, each inside a soft mask of its own" if several
            else "the part of the map inside a soft mask")
    text = (f"The poses of {particles} particles were refined locally against {what} [LocalRefine], keeping "
            f"independent half-sets throughout [ScheresChen2012]. {prior_sentence(states[0])}")
    for number, state in enumerate(states, 1):
        text += resolution_sentence(state, f" of body {number}" if several else "")
    if several:
        text += " The maps were placed at the mean of their relative poses and joined to one map."
    return text


def resolution_sentence(state: RunState, of: str) -> str:
    value = None if state.best is None else state.best.resolution()
    if value is None:
        return ""
    text = (f" The resolution{of} is {value:.2f} Å at FSC {FSC_THRESHOLD} between masked half-maps, corrected for the "
            "effect of the mask by phase randomisation [Chen2013] [RosenthalHenderson2003].")
    honest = None if state.pose_blur is None else state.pose_blur.resolution_to_report_angstrom
    if honest is not None and honest > 1.01 * value:
        text += (" The uncertainty of the poses blurs both half-maps alike. With this blur the resolution is "
                 f"{honest:.2f} Å.")
    return text
