"""The verb film: the learned motion as series of maps, from a finished run."""
from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Iterable, List, Optional, Sequence, Tuple

import numpy as np

from ..io.mrc import write_map
from ..io.run_folder import remove_temporary, write_atomic
from ..io.run_store import save_record
from ..kernels.host import worker_count
from ..merge.motion_report import STILL_ANGSTROM, STILL_DEG, pooled
from ..progress import say
from ..records.errors import InputError
from ..records.film import AXES, FRAMES, Film, FilmAxis
from .amplitude import amplitude_of, known_by_parts
from .axes import (
    PERCENTILES,
    Axes,
    Places,
    Route,
    along_axis,
    joined_places,
    mean_path,
    places_along,
    principal_axes_of,
    shares_before,
    size_of_motion,
)
from .finished import Body, open_body
from .relative import first_motion, learned_motions, motion_evidence
from .scene import Scene

MOST_FRAMES, MOST_AXES = 200, 6
BINS = np.linspace(-4, 4, 41)  # standard deviations
LEVEL = 0.3  # of the density that a hundredth of the mask exceeds
SPARE_BYTES = 64 << 20  # of the disk


def film(run: str, rest: Optional[str] = None, frames: int = FRAMES, axes: int = AXES, threads: int = 0) -> Film:
    """Write RUN/final/film: maps along the mean path of the particles and along the principal axes of the motion.

    Parameters
    ----------
    rest : a finished run of the rest of the particle, of the same particles: the motion is then against its poses,
        without the errors of the input poses, and its map is the rest. None: against the input poses.
    frames : of each series.  axes : how many principal axes, 1 to 6.

    Raises InputError where a run is not finished, the two runs have other particles or half-sets, or the disk is full.
    """
    if not 2 <= frames <= MOST_FRAMES:
        raise InputError(f"{frames} is not 2 to {MOST_FRAMES}", "--frames", "give another number of frames")
    if not 1 <= axes <= MOST_AXES:
        raise InputError(f"{axes} is not 1 to {MOST_AXES}", "--axes", "give another number of axes")
    body, other = open_body(run), None if rest is None else open_body(rest)
    check_disk(body, frames * (axes + 1))
    found, places = axes_and_places(body, other)
    if len(places.place) < frames:
        raise InputError(f"has {len(places.place)} particles that move with the others, too few for {frames} frames",
                         str(body), "ask for fewer frames")
    routes = [mean_path(found, places, frames), *(along_axis(found, places, k, frames) for k in range(axes))]
    body.run.forget_film()
    written = write_frames(body, Scene(body, other, found.mean, worker_count(threads)), routes)
    told = [described(body, found, places, route, number - 1) for number, route in enumerate(routes)]
    return write_record(body, other, found, told, written, len(places.place))


def axes_and_places(body: Body, rest: Optional[Body]) -> Tuple[Axes, Places]:
    """The principal axes of the motion, tails included, and where the particles are along them."""
    evidence = {half: motion_evidence(body, half, rest) for half in (1, 2)}
    cores, floor = learned_motions(body, evidence, rest), first_motion(body)
    judged = all(table.probability_aligned is not None for table in body.poses.values())
    motions, seen = zip(*(amplitude_of(evidence[half], judged, cores[half], floor) for half in (1, 2)))
    motion = pooled(motions)
    axes = principal_axes_of(motion, size_of_motion(body.map("mask.mrc"), body.centre))
    if judged:
        axes = known_by_parts(axes, seen, motion)
    return axes, joined_places([places_along(axes, part, one.covariance) for part, one in zip(seen, motions)])


def check_disk(body: Body, maps: int) -> None:
    """InputError unless so many maps fit on the disk."""
    need = maps * 4 * body.given.box_size ** 3 + SPARE_BYTES
    free = shutil.disk_usage(body.run.path).free
    if need > free:
        raise InputError(f"would take {need / 2 ** 30:.1f} GiB, {free / 2 ** 30:.1f} GiB are free",
                         f"film of {body.run.path}", "ask for fewer frames or axes, or make room")


def name_of(number: int) -> str:
    return f"axis_{number + 1}" if number >= 0 else "path"


def write_frames(body: Body, scene: Scene, routes: Sequence[Route]) -> List[str]:
    """Write the maps of all series; their names relative to film.json."""
    folder, names = body.run.film.parent, []
    for number, route in enumerate(routes):
        series = folder / name_of(number - 1)
        series.mkdir(parents=True, exist_ok=True)
        remove_temporary(series)
        for frame, motion in enumerate(route.motions, 1):
            names.append(f"{series.name}/frame_{frame:03d}.mrc")
            write_map(folder / names[-1], scene.frame(motion), body.given.pixel_size)
        say(f"{series.name}: {len(route.motions)} maps")
    return names


def described(body: Body, axes: Axes, places: Places, route: Route, k: int) -> FilmAxis:
    """The record of a series; k is that of its axis, −1 of the path."""
    pixel_size, along = body.given.pixel_size, max(k, 0)
    unit = np.array([np.rad2deg(1)] * 3 + [pixel_size] * 3)
    ends = route.motions[[0, -1]] - axes.mean
    sizes = np.linalg.norm(ends @ axes.to_z.T * np.sqrt(axes.variances), axis=1)
    counts, _ = np.histogram(np.clip(places.place[:, along], BINS[0], BINS[-1]), BINS)
    sign = np.sign(route.positions[[0, -1]])
    record = FilmAxis(
        name=name_of(k), frames=tuple(f"{name_of(k)}/frame_{i + 1:03d}.mrc" for i in range(len(route.motions))),
        motions=tuple(numbers(motion * unit) for motion in route.motions), positions=numbers(route.positions),
        percentiles=numbers(shares_before(places, along, route.positions)), cut=route.cut,
        rotation_range_deg=numbers(sign * np.rad2deg(np.linalg.norm(ends[:, :3], axis=1))),
        displacement_range_angstrom=numbers(sign * sizes * pixel_size),
        bins=numbers(BINS), counts=tuple(int(n) for n in counts))
    return record if k < 0 else with_axis(record, body, axes, k)


def with_axis(record: FilmAxis, body: Body, axes: Axes, k: int) -> FilmAxis:
    """The record with what one standard deviation along axis k is: a turn about an axis in space, and a displacement.

    d + w × (p − c) is along w for p = c + (w × d) / |w|², the point of that axis next to the centre c.
    """
    w, d, pixel_size = axes.axes[k, :3], axes.axes[k, 3:], body.given.pixel_size
    angle, size = float(np.linalg.norm(w)), float(np.sqrt(axes.variances[k])) * pixel_size
    direction = w / max(angle, 1e-12)
    error = float(axes.relative_error[k])
    through = np.cross(w, d) / max(angle ** 2, 1e-12) + body.centre + body.given.box_size // 2
    return replace(
        record, rotation_sd_deg=float(np.rad2deg(angle)), rotation_sd_deg_error=error * float(np.rad2deg(angle)),
        displacement_sd_angstrom=size, displacement_sd_angstrom_error=error * size, turns_about=numbers(direction),
        through_px=numbers(through), along_angstrom=float(direction @ d) * pixel_size,
        share=float(axes.variances[k] / axes.variances.sum()))


def numbers(values: Iterable[float]) -> Tuple[float, ...]:
    return tuple(float(v) for v in values)


def write_record(body: Body, rest: Optional[Body], axes: Axes, told: Sequence[FilmAxis], written: Sequence[str],
                 particles: int) -> Film:
    """film.cxc and film.json, and what is said of them."""
    run, given = body.run, body.given
    level = LEVEL * float(np.percentile(body.map("map_sharpened.mrc")[body.map("mask.mrc") > 0.5], 99))
    script = run.film.with_name("film.cxc")

    def write(name: str) -> None:
        with open(name, "w", encoding="utf-8") as handle:
            handle.write(chimerax_script(told, level))
    write_atomic(script, write)
    files = run.sizes(run.film.parent / name for name in [*written, script.name])
    words = film_words(told, rest)
    made = Film(body.iteration, "" if rest is None else str(rest.run.path), given.box_size, given.pixel_size,
                numbers(body.centre + given.box_size // 2), PERCENTILES, particles,
                numbers(axes.mean * np.array([np.rad2deg(1)] * 3 + [given.pixel_size] * 3)), tuple(told), words, level,
                files)
    save_record(run.film, made)
    for text in words:
        say(text)
    say(f"the film is in {run.film.parent}; open film.cxc with ChimeraX")
    return made


def film_words(told: Sequence[FilmAxis], rest: Optional[Body]) -> Tuple[str, ...]:
    """What the film shows, in sentences."""
    axes = [axis for axis in told if axis.share is not None]
    origin = ("the input poses, whose errors are part of it" if rest is None else f"the poses of {rest.run.path}")
    words = [f"Motion of the sub-volume against {origin}. The frames go from the {PERCENTILES[0]:g}th to the "
             f"{PERCENTILES[1]:g}th percentile of the particles, corrected for the errors of their poses"]
    if (axes[0].rotation_sd_deg or 0) < STILL_DEG and (axes[0].displacement_sd_angstrom or 0) < STILL_ANGSTROM:
        words.append("The images show no motion of the sub-volume: the frames differ by less than a degree and 1 Å")
    words += [axis_words(axis) for axis in axes]
    cut = [axis.name.replace("_", " ") for axis in told if axis.cut]
    if cut:
        words.append(f"One image tells little of the motion along {' and '.join(cut)}: these frames end before the "
                     "percentiles, where the outermost hundredth of the particles was found")
    return tuple(words)


def axis_words(axis: FilmAxis) -> str:
    turns = ", ".join(f"{v:+.2f}" for v in axis.turns_about or ())
    through = ", ".join(f"{v:.0f}" for v in axis.through_px or ())
    first, last = axis.rotation_range_deg
    begin, end = axis.displacement_range_angstrom
    return (f"{axis.name.replace('_', ' ').capitalize()} ({100 * (axis.share or 0):.0f} % of the motion): "
            f"{axis.rotation_sd_deg:.2f} ± {axis.rotation_sd_deg_error:.2f}° about ({turns}) through ({through}) px, "
            f"{axis.displacement_sd_angstrom:.2f} ± {axis.displacement_sd_angstrom_error:.2f} Å in the mask (standard "
            f"deviations); shown from {first:+.1f} to {last:+.1f}°, {begin:+.1f} to {end:+.1f} Å")


def chimerax_script(told: Sequence[FilmAxis], level: float) -> str:
    """Commands of ChimeraX that play the first series and hold the others ready."""
    lines = ["# The motion of a sub-volume, for ChimeraX. Each model is a series of maps:"]
    lines += [f"#   model {number}: {axis.name}" for number, axis in enumerate(told, 1)]
    lines += ["# To play another one:  hide #1 models; show #2 models; "
              "vseries play #2 loop true direction oscillate maxFrameRate 8", "set bgColor white"]
    for number, axis in enumerate(told, 1):
        lines += [f"open {' '.join(axis.frames)} vseries true name {axis.name}",
                  f"volume #{number} style surface level {level:.5g} color #d9a441"]
    lines += [f"hide #{number} models" for number in range(2, len(told) + 1)]
    return "\n".join([*lines, "view", "vseries play #1 loop true direction oscillate maxFrameRate 8"]) + "\n"
