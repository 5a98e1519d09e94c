"""What the wizards of the form compute, from the protocol's inputs; no windows here."""
from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
from pwem.objects import VolumeMask
from pyworkflow.object import Pointer

from .engine.io.run_folder import read_json, write_json
from .engine.records.codec import from_json
from .engine.records.forecast import Forecast
from .engine.records.rigidity import RigidBody
from .protocols.form_local_refine import FULCRUM_AXES, FULCRUM_CHOICES, FULCRUM_COORDINATES, settings_values
from .protocols.protocol_find_bodies import ProtLocalFindBodies
from .protocols.protocol_local_refine import ProtLocalRefine, half_map_files
from .report.run_state import RunState

MASK_CENTRE, BOX_CENTRE = "Mask centre", "Box centre"
PRIOR_SETTINGS = ("prior", "prior_rotation_deg", "prior_shift_angstrom")
SAME_PIXEL = 0.01  # relative difference of pixel sizes
MOST_OTHER_MASKS = 2  # that are forecast beside the one chosen
MOST_HINGES = 3  # buttons side by side: the latest runs


class Missing(Exception):
    """An input the wizard needs is not chosen yet."""


def map_and_mask(protocol: Any) -> Tuple[np.ndarray, Any]:
    """The map [z, y, x] and the mask, or None while no mask is chosen."""
    from .convert import read_map
    volume, mask = protocol.inputVolume.get(), protocol.inputMask.get()
    if volume is None:
        raise Missing("Choose the volume first.")
    return read_map(volume.getFileName()), None if mask is None else read_map(mask.getFileName())


def half_maps(protocol: Any) -> Tuple[np.ndarray, np.ndarray]:
    from .convert import read_map
    volume = protocol.inputVolume.get()
    if volume is None or len(half_map_files(volume)) != 2:
        raise Missing("Choose a volume with two half-maps first.")
    first, second = (read_map(name) for name in half_map_files(volume))
    return first, second


def read_mask(pointer: Any) -> np.ndarray:
    from .convert import read_map
    return read_map(pointer.get().getFileName())


def the_mask(protocol: Any) -> np.ndarray:
    from .convert import read_map
    if protocol.inputMask.get() is None:
        raise Missing("Choose the mask first.")
    return read_map(protocol.inputMask.get().getFileName())


def pixel_size(protocol: Any) -> float:
    return float(protocol.inputVolume.get().getSamplingRate())


# ---------------------------------------------------------------- fulcrum

def places(density: np.ndarray, mask: Any) -> Dict[str, Sequence[float]]:
    """x, y, z (px from the corner) of the places the buttons go to."""
    from .engine.maps.mask import mask_centre
    found: Dict[str, Sequence[float]] = {}
    if mask is not None:
        found[MASK_CENTRE] = [float(v) for v in mask_centre(mask)]
    found[BOX_CENTRE] = [float(n // 2) for n in density.shape[::-1]]
    return found


def runs_of_this_frame(protocol: Any) -> List[Tuple[str, RunState]]:
    """(name, state) of the local refinements of the project at this box and pixel size."""
    volume, project = protocol.inputVolume.get(), protocol.getProject()
    runs = project.getRuns(refresh=False) if project is not None and volume is not None else []
    found = [(run.getRunName(), run.run_state()) for run in runs if isinstance(run, ProtLocalRefine)]
    return [(name, state) for name, state in found if state.input is not None
            and state.input.box_size == volume.getXDim()
            and abs(state.input.pixel_size / volume.getSamplingRate() - 1) < SAME_PIXEL]


def learned_hinges(protocol: Any) -> Dict[str, Sequence[float]]:
    """x, y, z (px from the corner) of the hinges learned by earlier runs."""
    hinges = {f"Hinge of {name}": state.learned_hinge_px() for name, state in runs_of_this_frame(protocol)}
    return dict([(name, hinge) for name, hinge in hinges.items() if hinge][-MOST_HINGES:])


def current_fulcrum(protocol: Any, known: Dict[str, Sequence[float]]) -> Sequence[float]:
    """What the form says now, in px; coordinates that are not given count as the mask centre."""
    choice, values = protocol.getEnumText("fulcrum"), [protocol.getAttributeValue(axis) for axis in FULCRUM_AXES]
    if choice == FULCRUM_CHOICES["box"]:
        return known[BOX_CENTRE]
    if choice == FULCRUM_COORDINATES and None not in values:
        return [float(value) for value in values]
    return known.get(MASK_CENTRE, known[BOX_CENTRE])


# ---------------------------------------------------------------- forecast

def masks_to_compare(protocol: Any) -> List[Tuple[str, Any]]:
    """(name, mask) of the mask chosen, then of the latest others of the project at its box and pixel size; the same one
    under another name, such as the output of a refinement with it, is no other."""
    mask, project = protocol.inputMask.get(), protocol.getProject()
    if mask is None:
        raise Missing("Choose the mask first.")
    found, known = [("the mask chosen", mask)], {content_of(mask)}
    for run in reversed(project.getRuns(refresh=False) if project is not None else []):
        for name, output in run.iterOutputAttributes(VolumeMask):
            same = output.getXDim() == mask.getXDim() and abs(
                output.getSamplingRate() / mask.getSamplingRate() - 1) < SAME_PIXEL
            if not same or len(found) > MOST_OTHER_MASKS or not os.path.exists(output.getFileName()):
                continue
            content = content_of(output)
            if content not in known:
                known.add(content)
                found.append((f"{name} of {run.getRunName()}", output))
    return found


def content_of(mask: VolumeMask) -> bytes:
    """A digest of the values of a mask, to one in a hundred; whatever its header says."""
    from .convert import read_map
    return hashlib.sha1(np.rint(100 * read_map(mask.getFileName())).astype(np.int16).tobytes()).digest()


def forecast_lines(protocol: Any) -> List[str]:
    """What the engine forecasts for each mask; lines for a person. Takes about a minute for each."""
    from .convert import mrc_map, write_particles
    particles, volume = protocol.inputParticles.get(), protocol.inputVolume.get()
    if particles is None:
        raise Missing("Choose the particles first.")
    half_maps(protocol)  # says which is missing
    named = masks_to_compare(protocol)
    with tempfile.TemporaryDirectory() as folder:
        star, settings = (os.path.join(folder, name) for name in ("particles.star", "settings.json"))
        write_particles(particles, star, os.path.join(folder, "stacks"))
        write_json(settings, settings_values(protocol))
        pixel = particles.getSamplingRate()
        maps = [mrc_map(name, item.getSamplingRate() or pixel, os.path.join(folder, f"{number}.mrc"))
                for number, (name, item) in enumerate([(name, volume) for name in half_map_files(volume)]
                                                      + [(mask.getFileName(), mask) for _, mask in named])]
        words = ["--particles", star, "--half-map-1", maps[0], "--half-map-2", maps[1], "--settings", settings,
                 "--device", "cuda:0" if protocol.usesGpu() else "cpu",
                 "--threads", str(max(1, protocol.numberOfThreads.get() or 1))]
        lines = lines_of(named[0][0], forecast_of(maps[2], words, folder))
        for (name, _), mask in zip(named[1:], maps[3:]):  # one that cannot be used is no reason to say nothing
            try:
                lines += lines_of(name, forecast_of(mask, words, folder))
            except Missing as error:
                lines += [f"With {name}: no forecast: {error}", ""]
    return lines


def forecast_of(mask: str, words: Sequence[str], folder: str) -> Forecast:
    """Of one mask, by the engine's verb with these words; Missing, with the engine's sentence, where it stops."""
    target = os.path.join(folder, "forecast.json")
    done = subprocess.run([sys.executable, "-m", "localrefine_plugin.engine", "forecast", *words, "--mask", mask,
                           "--json", target], stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True,
                          check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "the engine stopped"
        raise Missing(said.replace("error: ", "", 1).replace(f"mask {mask}", "the mask", 1))  # its file is a copy
    return from_json(Forecast, read_json(target)["forecasts"][0])


def lines_of(name: str, found: Forecast) -> List[str]:
    numbers = "; ".join(f"{resolution:.1f} Å with {count:,} particles" for count, resolution in zip(
        found.numbers, found.to_report_of_numbers))
    memory = f" and {found.memory_mb / 1024:.1f} GiB" if found.memory_mb else ""
    return [f"With {name}: about {found.to_report_angstrom:.1f} Å to report, poses known to "
            f"{found.rotation_error_deg:.1f}° and {found.shift_error_angstrom:.1f} Å per axis, in about "
            f"{max(found.seconds / 60, 1):.0f} min{memory}.", f"{numbers}{found.end_of_pixels}.",
            *([f"{found.doubt}."] if found.doubt else []), ""]


# ---------------------------------------------------------------- prior, mask, low-pass, extents

def prior_widths(protocol: Any) -> Tuple[Tuple[float, float], str]:
    """(degrees, Å) per axis at the fulcrum as the latest run with a mask about here learned them, and whence they come.

    The root mean square over the axes; the defaults of the form where no run has learned any.
    """
    from .engine.maps.mask import mask_centre, mask_radius
    from .engine.records.settings import Settings
    mask = the_mask(protocol)
    centre = mask_centre(mask)
    near = 0.5 * mask_radius(mask, centre).effective
    for name, state in reversed(runs_of_this_frame(protocol)):
        covariance = state.learned_covariance(state.best.iteration) if state.best and state.input else None
        if covariance is not None and np.linalg.norm(state.input.resolved.mask_centre_px - centre) < near:
            variance = np.diagonal(covariance).reshape(2, 3).mean(axis=1)
            rotation, shift = float(np.rad2deg(np.sqrt(variance[0]))), float(np.sqrt(variance[1]))
            return (rotation, shift), (f"As the run '{name}' learned it: {rotation:.1f}° and {shift:.1f} Å per axis. "
                                       "With a learned prior they are where it begins; with a Gaussian one they stay.")
    rotation, shift = Settings().prior_rotation_deg, Settings().prior_shift_angstrom
    return (rotation, shift), (f"No run of this project has learned the motion of this part yet. {rotation:g}° and "
                               f"{shift:g} Å suit most; with a learned prior they are only where it begins.")


def resolution_in_mask(protocol: Any, mask: Optional[np.ndarray] = None) -> float:
    """Å at FSC 0.143 of the half-maps inside a mask, that of the form if none is given; corrected by phase
    randomisation."""
    from .engine.maps.fsc import five_curves
    from .engine.maps.half_maps import HalfMaps
    inside = the_mask(protocol) if mask is None else mask
    curves = five_curves(HalfMaps(*half_maps(protocol)), inside, pixel_size(protocol))
    return float(curves.resolutions()["corrected"])


def initial_lowpass(protocol: Any) -> float:
    """Å; what "automatic" means for the initial low-pass."""
    return initial_lowpass_of(resolution_in_mask(protocol), pixel_size(protocol))


def initial_lowpass_of(resolution: float, pixel: float) -> float:
    from .engine.align.search_plan import automatic_lowpass
    return automatic_lowpass(resolution, pixel)


def masks_to_choose(protocol: Any) -> List[Tuple[str, Pointer]]:
    """(what it is, pointer) of the mask chosen, then of the bodies that *find moving bodies* found in this project at
    the volume's box and pixel size, of the latest run first."""
    volume, project = protocol.inputVolume.get(), protocol.getProject()
    found = [] if protocol.inputMask.get() is None else [("the mask chosen", protocol.inputMask)]
    for run in reversed(project.getRuns(refresh=False) if None not in (project, volume) else []):
        record = run.run_state().rigidity if isinstance(run, ProtLocalFindBodies) else None
        for body in record.bodies if record is not None else ():
            name = f"outputMask_body{body.number}"
            mask = getattr(run, name, None)
            if mask is not None and mask.getXDim() == volume.getXDim() and abs(
                    mask.getSamplingRate() / volume.getSamplingRate() - 1) < SAME_PIXEL:
                label = f"body {body.number} of {run.getRunName()}, {moves_by(body)}"
                found.append((label, Pointer(run, extended=name)))
    return found


def moves_by(body: RigidBody) -> str:
    """The share of a body, and how it moves."""
    share = f"{100 * body.share:.0f} % of the density"
    if body.motion is None:
        return f"{share}: the others move against it"
    turned, moved = (float(np.sqrt(np.mean(np.square(widths)))) for widths in (
        body.motion.rotation_widths_deg, body.motion.displacement_widths_angstrom))
    return f"{share}: moves by {turned:.1f}° and {moved:.1f} Å per axis"


def mask_report(protocol: Any, mask: np.ndarray) -> List[str]:
    """Size, edge and fit of a mask, with the engine's warnings; lines for a person."""
    from .engine.maps import mask as geometry
    from .engine.maps.half_maps import HalfMaps
    pixel, resolution = pixel_size(protocol), resolution_in_mask(protocol, mask)
    dense = geometry.dense_region(HalfMaps(*half_maps(protocol)), pixel)
    warnings = geometry.check_mask(mask, len(dense), pixel, resolution, dense)
    radius = geometry.mask_radius(mask, geometry.mask_centre(mask)).effective
    lines = [f"Volume: {geometry.volume_angstrom3(mask, pixel):.3g} Å³, room for at most "
             f"{geometry.mass_kda(mask, pixel):.0f} kDa of protein (with what does not move with the domain)",
             f"Radius: {radius * pixel:.0f} Å",
             f"Soft edge: {geometry.soft_edge_width_px(mask):.1f} px",
             f"Density of the map (at {geometry.DENSITY_LOWPASS_ANGSTROM:g} Å) fills "
             f"{100 * geometry.density_inside(mask, dense):.0f} % of it",
             f"Resolution of the half-maps inside it: {resolution:.2f} Å (FSC 0.143, corrected)"]
    return lines + [f"Warning: {text}" for text in warnings] + ([] if warnings else ["No problems found."])


def mask_layout(protocol: Any) -> Tuple[np.ndarray, List[np.ndarray], List[str]]:
    """The density of the particle [z, y, x], the masks of all bodies, and how they lie on it: the sentences that the
    log of a run begins with, warnings marked."""
    from .convert import read_map
    from .engine.bodies.layout import density_of, layout_words, shares_of
    from .engine.maps.fsc import five_curves
    from .engine.maps.half_maps import HalfMaps
    from .engine.model.fourier import lowpass
    first, others = the_mask(protocol), [pointer.get() for pointer in protocol.moreMasks]
    if not others or None in others:
        raise Missing("Choose more masks first: this wizard shows how the masks of several bodies lie.")
    halves, pixel = half_maps(protocol), pixel_size(protocol)
    masks = [first, *(read_map(mask.getFileName()) for mask in others)]
    for number, mask in enumerate(masks, 1):
        if mask.shape != halves[0].shape:
            raise Missing(f"The mask of body {number} has another box than the volume: resample it first.")
    resolution = five_curves(HalfMaps(*halves), first, pixel).resolutions()
    cutoff = settings_values(protocol)["initial_lowpass_angstrom"] or initial_lowpass_of(resolution["corrected"], pixel)
    density = density_of(lowpass(0.5 * (halves[0] + halves[1]), pixel, cutoff), pixel, resolution["unmasked"], 1)
    said = layout_words(shares_of(density, masks))
    return density, masks, [f"{text[0].upper()}{text[1:]}." for text in said.words] + [
        f"Warning: {text}." for text in said.warnings]


def search_extents(protocol: Any) -> Tuple[float, float]:
    """Degrees and Å: what "automatic" means for the extents."""
    from .engine.motion.prior_shapes import prior_shape
    from .engine.records.settings import Settings
    values = settings_values(protocol)
    settings = Settings(**{name: values[name] for name in PRIOR_SETTINGS})
    return prior_shape(settings.prior).extents(settings)
