"""Whether what is in the mask moves against the rest of the particle, asked of a sample before the run.

Density that does not move with the domain counts in a forecast as the domain's, as it does in the FSC of a run. The
control at the end of a run (control/) finds it out, and does so after one alignment as well, where there is signal: it
is given the sample as a run of one iteration. Where there is little, the parts of the mask tell.
"""
from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Sequence

from ..control.parts import before_a_run
from ..control.words import of_parts_before, seen_from, still_share
from ..inputs.checks import CheckedInputs
from ..io.mrc import write_map
from ..io.run_folder import RunFolder
from ..io.run_store import save_arrays, save_particles, save_record
from ..kernels.device import Device
from ..progress import say
from ..records.resolved import ResolvedSettings
from ..records.results import PartOfMask, RestControl
from ..records.run_input import RunInput
from ..records.settings import Settings
from .sample import SampleRun

DOUBT = ("The sample does not show that all of the density in this mask moves against the rest of the particle. Either "
         "the domain does not move, or the mask holds too much of the rest: then the domain will be known less well "
         "than the forecast says")
TOO_MUCH = 0.4  # of the density in the mask that stays with the rest; near a hinge a domain moves little as well


def doubt(inputs: CheckedInputs, settings: Settings, resolved: ResolvedSettings, sample: SampleRun,
          where: "tuple[Device, int]") -> str:
    """DOUBT and what the parts of the mask say, or "" where the mask moves by itself, or where that cannot be told;
    ``where``: device and threads."""
    with TemporaryDirectory() as folder:
        run = as_run(Path(folder), inputs, settings, resolved, sample)
        control, parts = before_a_run(run, *where)
    if control.verdict == "not done":
        say(control.sentence)
    if parts is None:
        return DOUBT if control.doubtful else ""
    if not (control.doubtful or contradicted(control, parts)):
        return ""
    return f"{DOUBT}. By its parts, {of_parts_before(parts)}"


def contradicted(control: RestControl, parts: Sequence[PartOfMask]) -> bool:
    """Whether the parts, which are asked at the poses of the rest, say that too much of the mask stays with it, or do
    not show a motion that they would show.

    With little signal an alignment of a rigid particle makes as much motion as there is in one that moves: 2.6 and
    2.7 Å at SNR .02.
    """
    share = still_share(parts)
    if share is not None:
        return share > TOO_MUCH
    return seen_from(parts) < (control.displacement_angstrom or 0.0)


def as_run(folder: Path, inputs: CheckedInputs, settings: Settings, resolved: ResolvedSettings,
           sample: SampleRun) -> RunFolder:
    """The sample as a run folder after its first iteration, with what the control asks of one."""
    run, pixel_size = RunFolder(folder), inputs.pixel_size
    for k in (0, 1):
        run.iteration(k).mkdir()
    given = [str(folder / f"half_map_{half}.mrc") for half in (1, 2)]
    for half, one in enumerate(sample.halves, 1):
        write_map(given[half - 1], inputs.maps[half - 1], pixel_size)
        write_map(run.reference(0, half), sample.references[half - 1], pixel_size)
        write_map(run.half_map(1, half), one.half_map, pixel_size)
        assert one.poses is not None  # of a sample that is no run's
        save_arrays(run.poses(1, half), **one.poses.columns())
        for k in (0, 1):
            save_arrays(run.noise(k, half), power=one.noise_power, accumulator_mean=one.accumulator_mean)
    write_map(run.mask, inputs.mask, pixel_size)
    save_particles(run, inputs.particles)
    save_record(run.settings, settings)
    save_record(run.input, RunInput(
        "", given[0], given[1], str(run.mask), inputs.particles.box_size, pixel_size, resolved,
        inputs.particles.optics, inputs.particles.stacks, sample.scales))
    for k in (0, 1):
        save_record(run.iteration_done(k), sample.curves.record(k, resolved.initial_lowpass_angstrom))
    return run
