"""What a refinement is expected to reach, before it is run."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Tuple

SAMPLE = 500  # particles of each half-set that are aligned for it


@dataclass(frozen=True)
class Forecast:
    """For one mask; docs/explanation/forecast.md says how good it is.

    Attributes
    ----------
    mask : its file.  particles : of both half-sets.  sample : how many of these it was made from.
    resolution_angstrom : FSC 0.143, corrected.  to_report_angstrom : the resolution to report.
    rotation_error_deg, shift_error_angstrom : s.d. per axis of the poses in the end, in the median.
    measured_to_angstrom : to where the sample itself shows signal; what lies beyond is extrapolated.
    seconds : of the whole run on this machine.  memory_mb : on the CPU; 0 where a GPU does the work.
    numbers, to_report_of_numbers : a quarter to 16 times as many particles, and the Å to report with each.
    wanted_angstrom, wanted_particles : a resolution that was asked for and the particles it takes; None where it was
        not asked for, or where no number reaches it.
    doubt : a sentence, where the sample does not show that all that is in the mask moves; "" where it does.
    finest_angstrom : that the pixels hold; 0 of an older version.
    """

    mask: str
    particles: int
    sample: int
    resolution_angstrom: float
    to_report_angstrom: float
    rotation_error_deg: float
    shift_error_angstrom: float
    measured_to_angstrom: float
    seconds: float
    memory_mb: float
    numbers: Tuple[int, ...]
    to_report_of_numbers: Tuple[float, ...]
    wanted_angstrom: Optional[float] = None
    wanted_particles: Optional[int] = None
    doubt: str = ""
    finest_angstrom: float = 0.0

    @property
    def end_of_pixels(self) -> str:
        """Words behind the resolutions, where the pixels end them."""
        ended = min(self.to_report_of_numbers) < 1.005 * self.finest_angstrom
        return " (the pixels hold no finer detail)" if ended else ""
