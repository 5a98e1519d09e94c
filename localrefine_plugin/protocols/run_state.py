"""A tolerant view of a run folder, finished, running or broken: for summaries, viewers and reports.

Whatever is missing, half-written or corrupt reads as "not there"; nothing here raises.
"""
from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, Dict, List, Optional

import numpy as np

from ..engine.io.run_folder import RunFolder

COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # Scipion's log is written for a terminal
CURVES = ("unmasked", "spherical", "loose", "tight", "corrected")


class RunState:
    """What is known of a run at this moment.

    Attributes
    ----------
    settings, input, error : content of settings.json, input.json, error.json ({} when not there).
    iterations : content of every iteration.json, in order, the input (0) first.
    """

    def __init__(self, path: Any):
        self.folder = RunFolder(path)
        self.settings = read_json(self.folder.settings)
        self.input = read_json(self.folder.input)
        self.error = read_json(self.folder.error)
        self.iterations = self._read_iterations()

    def _read_iterations(self) -> List[Dict[str, Any]]:
        """iteration.json of iterations 0, 1, …; a broken one is left out, the first missing one ends the list."""
        found = []
        k = 0
        while self.folder.iteration_done(k).exists():
            content = read_json(self.folder.iteration_done(k))
            if content:
                found.append(dict(content, iteration=k))
            k += 1
        return found

    @property
    def started(self) -> bool:
        return bool(self.settings or self.input)

    @property
    def finished(self) -> bool:
        return self.folder.final("fsc.star").exists() and self.folder.report.exists()

    @property
    def last(self) -> Dict[str, Any]:
        return self.iterations[-1] if self.iterations else {}

    @property
    def best(self) -> Dict[str, Any]:
        """The iteration whose maps are the result: the engine's choice, else the last one."""
        number = self.last.get("best_iteration")
        for content in self.iterations:
            if content["iteration"] == number:
                return content
        return self.last

    @property
    def resolved(self) -> Dict[str, Any]:
        value = self.input.get("resolved")
        return value if isinstance(value, dict) else {}

    def setting(self, key: str) -> Any:
        """The setting in use: what "auto" was resolved to where it was."""
        value = self.settings.get(key)
        return self.resolved.get(key) if value is None else value

    def poses(self, k: int, half: int) -> Optional[Dict[str, np.ndarray]]:
        return read_npz(self.folder.poses(k, half))

    def noise_power(self, k: int, half: int) -> Optional[np.ndarray]:
        """(groups, shells)."""
        content = read_npz(self.folder.noise(k, half)) or {}
        return content.get("power")

    def input_rotations(self) -> Optional[np.ndarray]:
        """(n, 3, 3) rotations of all input particles."""
        return (read_npz(self.folder.particles) or {}).get("rotation")

    def half_map(self, k: int, half: int) -> Optional[np.ndarray]:
        """The unfiltered half-map of an iteration; of iteration 0 the one the run was given."""
        if k == 0:
            return read_map(self.input.get(f"half_map_{half}") or "")
        return read_map(self.folder.half_map(k, half))

    def mask_in_use(self, k: int) -> Optional[np.ndarray]:
        """The mask of the FSC of an iteration, which is not the one given when it is dynamic."""
        return read_map(self.folder.mask_in_use(k))

    def motion(self, k: int, half: int) -> Optional[np.ndarray]:
        """(6, 6) covariance (rad, px) of the motion that a learned prior found in an iteration; or None."""
        found = (read_npz(self.folder.motion(k, half)) or {}).get("covariance") if k > 0 else None
        return found if found is not None and found.shape == (6, 6) and np.isfinite(found).all() else None

    def learned_hinge_px(self) -> Optional[List[float]]:
        """x, y, z (px from the corner) of the hinge of the motion learned by the best iteration, if it tells one."""
        motion = self.best.get("motion")
        hinge = motion["pooled"]["hinge"] if isinstance(motion, dict) and "pooled" in motion else None
        return hinge["point_px"] if hinge and hinge["determined"] >= 2 else None

    def learned_covariance(self, k: int) -> Optional[np.ndarray]:
        """(6, 6) covariance of the learned motion about the fulcrum, rad and Å, mean of the half-sets; or None."""
        from ..engine.align.motion_prior import about_point
        found = [motion for motion in (self.motion(k, half) for half in (1, 2)) if motion is not None]
        pixel_size, resolved = number(self.input.get("pixel_size")), self.resolved
        if not found or not pixel_size:
            return None
        covariance = np.mean(found, axis=0)
        if resolved.get("prior") == "learned":  # as engine.plan: learned about the mask centre, rounded to a voxel
            covariance = about_point(covariance, np.array(resolved["fulcrum_px"]) - np.rint(resolved["mask_centre_px"]))
        unit = np.array([1.0] * 3 + [pixel_size] * 3)
        return covariance * np.outer(unit, unit)

    def half(self, k: int, half: int) -> Dict[str, Any]:
        return read_json(self.folder.half_done(k, half))

    def fsc(self, k: int) -> Optional[Dict[str, np.ndarray]]:
        return read_fsc(self.folder.fsc(k))

    def map(self, path: Path) -> Optional[np.ndarray]:
        return read_map(path)

    def null_tests(self) -> List[Dict[str, Any]]:
        """What a validation of the results found, test by test ([] without one)."""
        tests = read_json(self.folder.final("validation.json")).get("tests")
        keys = {"title", "value", "low", "high", "unit", "passed", "verdict"}
        return [t for t in tests if isinstance(t, dict) and keys <= set(t)] if isinstance(tests, list) else []

    def warnings(self) -> List[str]:
        """What is to be said of the run as it stands: of its input, then the advice on its best iteration.

        What an earlier iteration was warned of, and the result no longer suffers from, is left out.
        """
        report = read_json(self.folder.report)
        advised = [content for content in self.iterations if isinstance(content.get("advice"), dict)]
        outdated = [text for content in advised if content["iteration"] > 0 for text in texts(content.get("warnings"))]
        found = texts(self.input.get("warnings"))
        for content in self.iterations:
            found += texts(content.get("warnings")) if content not in advised else []
        advice = self.best.get("advice")
        found += texts(list(advice.values()) if isinstance(advice, dict) else None) + texts(report.get("advice"))
        found += [text for text in texts(report.get("warnings")) if text not in outdated]
        return list(dict.fromkeys(found))


def texts(value: Any) -> List[str]:
    """The strings of a list; none of anything else."""
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []


def read_json(path: Path) -> Dict[str, Any]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_npz(path: Path) -> Optional[Dict[str, np.ndarray]]:
    try:
        with np.load(path, allow_pickle=False) as content:
            return {name: content[name] for name in content.files}
    except Exception:  # zipfile, numpy and zlib raise a dozen classes for damaged files
        return None


def read_fsc(path: Path) -> Optional[Dict[str, np.ndarray]]:
    from ..convert import read_fsc as read
    try:
        columns = read(str(path))
    except Exception:  # a table being damaged in any way reads as absent
        return None
    return columns if "rlnResolution" in columns else None


def read_map(path: Path) -> Optional[np.ndarray]:
    from ..engine.io.mrc import read_map as read
    try:
        return read(path)[0]
    except Exception:  # as above: truncated header, truncated data, wrong file
        return None


def resolution(content: Dict[str, Any], curve: str = "corrected", threshold: str = "0.143") -> Optional[float]:
    """Resolution in Å of an iteration at a threshold ("0.143" or "0.5"); None when not known."""
    key = "resolution_angstrom" if threshold == "0.143" else "resolution_0.5_angstrom"
    values = content.get(key)
    return number(values.get(curve)) if isinstance(values, dict) else None


def number(value: Any) -> Optional[float]:
    """A finite float or None."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and np.isfinite(value):
        return float(value)
    return None


# ---------------------------------------------------------------- words

def summary_lines(state: RunState) -> List[str]:
    """What the summary of the protocol says about this run."""
    if state.error:
        return [f"*Stopped*: {state.error.get('message', 'see the log')}"] + progress_lines(state)
    return progress_lines(state)


def progress_lines(state: RunState) -> List[str]:
    lines = []
    if state.iterations:
        lines.append(resolution_line(state))
        lines += curve_lines(state.best) + map_lines(state)
    if len(state.iterations) > 1:
        lines += pose_lines(state.best) + motion_lines(state.best)
    lines += auto_lines(state) + device_lines(state)
    if state.last.get("stop_reason"):
        lines.append(f"Stopped after iteration {state.last['iteration']}: {state.last['stop_reason']}")
    lines += validation_lines(state)
    lines += [f"*Warning*: {text}" for text in state.warnings()]
    return lines


def validation_lines(state: RunState) -> List[str]:
    """How the null tests came out: one line, and one for each that did not come out as expected."""
    tests = state.null_tests()
    done = [test for test in tests if test["passed"] is not None]
    lines = [f"Null tests: {sum(bool(test['passed']) for test in done)} of {len(done)} as expected"] if done else []
    return lines + [f"*Warning*: {test['title']}: {test['verdict']}" for test in done if not test["passed"]]


def resolution_to_report(state: RunState) -> Optional[float]:
    """The resolution that allows for the blur by uncertain poses, once the run has finished."""
    return number(read_json(state.folder.final("pose_blur.json")).get("resolution_to_report_angstrom"))


def resolution_line(state: RunState) -> str:
    before, now = resolution(state.iterations[0]), resolution(state.best)
    text = f"Resolution (FSC 0.143, corrected): input {angstrom(before)}"
    if len(state.iterations) > 1:
        text += f", iteration {state.best['iteration']}: {angstrom(now)}"
    honest = resolution_to_report(state)
    if honest is not None:
        text += f"; to report, with the uncertainty of the poses: *{angstrom(honest)}*"
    return text


def curve_lines(content: Dict[str, Any]) -> List[str]:
    """Resolution of each curve at both thresholds, and how far the corrected one is uncertain."""
    parts = [f"{curve} {angstrom(resolution(content, curve))} / {angstrom(resolution(content, curve, '0.5'))}"
             for curve in CURVES if resolution(content, curve) is not None]
    lines = ["FSC 0.143 / 0.5: " + "; ".join(parts)] if parts else []
    limits = content.get("resolution_range_angstrom")
    if isinstance(limits, list) and len(limits) == 2 and None not in [number(v) for v in limits]:
        lines.append(f"One standard error of the corrected FSC: {limits[0]:.2f} to {limits[1]:.2f} Å")
    return lines


def map_lines(state: RunState) -> List[str]:
    """The tightest mask and the B-factor, once there are final maps, and what the half-sets share."""
    lines = []
    ladder, sharp = (read_json(state.folder.final(name)) for name in ("mask_ladder.json", "sharpening.json"))
    tightest = number(ladder.get("resolution_angstrom"))
    if tightest is not None and ladder.get("tightest"):
        lines.append(f"In the tightest mask that adds no correlation of its own: {tightest:.2f} Å (of the best part of "
                     "the density; the resolution above is that of the mask in use)")
    applied, fitted = number(sharp.get("b_factor_applied")), number(sharp.get("b_factor_guinier"))
    if applied is not None and fitted is not None:
        how = f"Guinier plot: {fitted:.0f} Å²" if sharp.get("guinier_shells") else "too few shells for a Guinier plot"
        lines.append(f"B-factor of the sharpened map: {applied:.0f} Å² ({how})")
    join = number(state.setting("join_halves_resolution_angstrom"))
    if join is not None:
        lines.append(f"The half-sets' references share what is coarser than {join:g} Å" if join > 0 else
                     "The half-sets' references share nothing")
    return lines


def pose_lines(content: Dict[str, Any]) -> List[str]:
    change = content.get("pose_change")
    change = change if isinstance(change, dict) else {}
    rotation, shift = number(change.get("rotation_median_deg")), number(change.get("shift_median_angstrom"))
    lines = []
    if rotation is not None and shift is not None:
        lines.append(f"Change from the input poses (median): {rotation:.2f}°, {shift:.2f} Å at the fulcrum")
    limits = [number(content.get(name)) for name in ("at_rotation_limit", "at_shift_limit")]
    if None not in limits:
        lines.append(f"At the search limit: {100 * limits[0]:.1f} % in rotation, {100 * limits[1]:.1f} % in shift")
    insertions = number(content.get("insertions_mean"))
    if insertions:
        lines.append(f"Poses at which an image was inserted, on average: {insertions:.1f}")
    return lines


def motion_lines(content: Dict[str, Any]) -> List[str]:
    """What a learned prior found out about the motion: the engine's sentences."""
    motion = content.get("motion")
    words = motion.get("words") if isinstance(motion, dict) else None
    return [text for text in words if isinstance(text, str)] if isinstance(words, list) else []


def auto_lines(state: RunState) -> List[str]:
    from .form_local_refine import describe
    known = describe()
    parts = []
    for key, value in state.resolved.items():
        if key == "fulcrum_px" and isinstance(value, list) and isinstance(state.settings.get("fulcrum"), str):
            parts.append("fulcrum " + ", ".join(f"{v:.1f}" for v in value) + " px")
        elif key in known and number(value) is not None and state.settings.get(key) is None:
            parts.append(f"{known[key]['label'].lower()} {value:.4g} {known[key]['unit']}".rstrip())
    lines = ["Chosen automatically: " + "; ".join(parts)] if parts else []
    expected = [number(state.resolved.get(f"expected_{name}")) for name in ("rotation_sd_deg", "shift_sd_angstrom")]
    if None not in expected:
        lines.append(f"Expected error of the poses after the first iteration, per axis: {expected[0]:.1f}°, "
                     f"{expected[1]:.1f} Å; it falls as the resolution improves")
    return lines


def device_lines(state: RunState) -> List[str]:
    """What the alignment runs on, and why if nobody chose it."""
    device = state.input.get("device")
    return [f"Runs on {device}"] if isinstance(device, str) else []


def angstrom(value: Optional[float]) -> str:
    return "not known" if value is None else f"{value:.2f} Å"


STEPS = {"convertInputStep": "writing the input", "prepareStep": "checking the input", "alignStep": "aligning",
         "mergeStep": "FSC and next references", "finishStep": "writing the results", "validateStep": "null tests",
         "createOutputStep": "outputs"}
ENGINE_WORDS = ("iteration ", "checking ", "alignment will ", "results ", "validating ", "null test: ")


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
        if words.startswith(ENGINE_WORDS):
            return [f"Now: {words}"]
        step = words[len("STARTED: "):].split(",")[0] if words.startswith("STARTED: ") else ""
        if step in STEPS:
            return [f"Now: {STEPS[step]}"]
    return []
