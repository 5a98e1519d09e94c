"""The settings a run goes by: "chosen from the data" is filled in."""
from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Dict, Optional, Tuple

import numpy as np

from .settings import ALIGN, FINISH, MERGE, STOP, Settings

ORIGIN = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class ResolvedSettings(Settings):
    """`Settings` without None where a value is chosen from the data, and what was measured of the mask.

    Attributes
    ----------
    rotation_extent_deg, shift_extent_angstrom, initial_lowpass_angstrom : numbers; those of `Settings` may be None.
    rotation_extent_fixed, shift_extent_fixed : whether the user gave the extent. A learned prior narrows the others.
    fulcrum_px, mask_centre_px : (3,) x, y, z in px from the corner of the box.
    mask_radius_angstrom : effective radius of the mask about its centre.
    mask_mass_kda : the most protein that fits into the mask; None in runs of old versions, like the next two.
    expected_rotation_sd_deg, expected_shift_sd_angstrom : s.d. per axis of the poses after the first iteration.
    """

    rotation_extent_deg: float = 20.0
    shift_extent_angstrom: float = 10.0
    initial_lowpass_angstrom: float = 20.0
    rotation_extent_fixed: bool = False
    shift_extent_fixed: bool = False
    fulcrum_px: Tuple[float, ...] = ORIGIN
    mask_centre_px: Tuple[float, ...] = ORIGIN
    mask_radius_angstrom: float = 0.0
    mask_mass_kda: Optional[float] = None
    expected_rotation_sd_deg: Optional[float] = None
    expected_shift_sd_angstrom: Optional[float] = None

    def __post_init__(self) -> None:
        """Nothing is checked: the settings were, when they were given."""

    @property
    def selects(self) -> bool:
        """Whether particles are to be kept by their probability to be aligned."""
        return self.keep_probability is not None or self.false_discovery_rate is not None

    @property
    def counted_density(self) -> str:
        """What the expected error of the poses is that of; "" in runs of old versions."""
        if self.mask_mass_kda is None:
            return ""
        return (f"; all density in the mask counts for it (room for at most {self.mask_mass_kda:.0f} kDa), also what "
                "does not move with the domain. If a part does not, a mask of the domain alone shows what its images "
                "tell")

    def fulcrum_offset(self, box_size: int) -> np.ndarray:
        """(3,) x, y, z in px from the centre of the box."""
        return np.array(self.fulcrum_px) - box_size // 2

    def mask_centre_offset(self, box_size: int) -> np.ndarray:
        """(3,) x, y, z in whole px from the centre of the box: the point that poses are searched about.

        It is that of the mask given, also where a dynamic mask is in use: what was learned about a point stays true.
        """
        centre: np.ndarray = np.rint(np.array(self.mask_centre_px) - box_size // 2)
        return centre

    def with_settings(self, settings: Settings) -> "ResolvedSettings":
        """The same once ``settings`` are in use; only those may differ that iteration 0 does not depend on."""
        return dataclasses.replace(self, **settings.of_steps(ALIGN, MERGE, FINISH, STOP))

    @classmethod
    def of(cls, settings: Settings, **chosen: Any) -> "ResolvedSettings":
        """From the settings as given and what was chosen for them."""
        given: Dict[str, Any] = {f.name: getattr(settings, f.name) for f in dataclasses.fields(Settings)}
        return cls(**dict(given, **chosen))
