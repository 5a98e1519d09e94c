"""The settings of a refinement, and all that is known of each.

`Settings` is the one source of every parameter: the verb ``settings`` of the command line, the Scipion form and
docs/reference/parameters.md are drawn from it.
"""
from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Tuple, Union

import numpy as np

from .errors import InputError

PREPARE, ALIGN, MERGE, FINISH, STOP = "prepare", "align", "merge", "finish", "stop"


@dataclass(frozen=True)
class SettingInfo:
    """What a form, a command line and a page of documentation need to know of a setting.

    Attributes
    ----------
    kind : "bool", "int", "float", "choice", "symmetry" or "fulcrum".  unit, low, high : of numbers.
    choices : of a choice or fulcrum.  label, help, group, heading, expert : for the form; a heading is inside a group.
    optional : not empty if the value may be None; says what None stands for.
    step : the first step of a run that reads the setting (PREPARE, ALIGN, MERGE, FINISH, or STOP: it only says when to
        stop). If the setting changes before a run is continued, this step and all later ones are repeated.
    shown_when : (another setting, its values with which this one has an effect); () if it always has.
    """

    name: str
    default: Any
    help: str
    kind: str
    label: str
    group: str
    unit: str = ""
    low: Optional[float] = None
    high: Optional[float] = None
    choices: Tuple[str, ...] = ()
    optional: str = ""
    expert: bool = False
    step: str = PREPARE
    heading: str = ""
    shown_when: Tuple[Any, ...] = ()

    @property
    def empty_word(self) -> str:
        """What an empty value of an optional setting is, in a word or two."""
        return self.optional if self.optional.startswith("no ") else "automatic"

    @property
    def empty_means(self) -> str:
        """What an empty value of an optional setting stands for."""
        return self.optional if self.optional == self.empty_word else f"automatic: {self.optional}"

    @property
    def is_switch(self) -> bool:
        """A choice between "off" and one other thing."""
        return self.kind == "choice" and len(self.choices) == 2 and self.choices[0] == "off"


def setting(default: Any, help: str, *, kind: str, label: str, group: str, **more: Any) -> Any:
    """A dataclass field; the arguments are those of `SettingInfo`."""
    return field(default=default, metadata=dict(help=help, kind=kind, label=label, group=group, **more))


ALIGNMENT, REFINEMENT, MASK, COMPUTE = "Alignment", "Refinement", "Mask", "Computation"
PRIOR_AND_EXTENTS, FULCRUM, REFERENCE = "Prior and search extents", "Fulcrum", "Reference"
PRIORS = ("off", "gaussian", "learned", "learned-isotropic")
WITH_PRIOR, IF_DYNAMIC = ("prior", PRIORS[1:]), ("mask_mode", ("dynamic",))
POINT_GROUP = re.compile(r"[CD][1-9]\d?|T|O|I[1-4]?", re.IGNORECASE)


@dataclass(frozen=True)
class Settings:
    """Every parameter of a local refinement; the keys of settings.json.

    Lengths are in Å and angles in degrees unless the name says otherwise. ``None`` means "chosen
    from the data"; the value chosen is written to the run folder and to the report.
    """

    prior: str = setting(
        "learned", "How poses far from the input pose are penalised. off: not at all, within the search extents. "
        "gaussian: by a Gaussian with the two standard deviations below. learned: by the motion found in the "
        "particles; it starts from those two and becomes a covariance of rotation and displacement in all directions. "
        "learned-isotropic: the same, but only the two standard deviations are learned. At low signal a prior protects "
        "best against overfitting.",
        kind="choice", label="Prior on pose and shift", group=ALIGNMENT,
        choices=PRIORS, heading=PRIOR_AND_EXTENTS)
    prior_rotation_deg: float = setting(
        7.0, "Standard deviation of the rotation, per axis, about the fulcrum.", kind="float",
        label="Prior: rotation s.d.", group=ALIGNMENT, unit="deg", low=0.05, high=60,
        heading=PRIOR_AND_EXTENTS, shown_when=WITH_PRIOR)
    prior_shift_angstrom: float = setting(
        4.0, "Standard deviation of the in-plane displacement of the fulcrum, per axis.", kind="float",
        label="Prior: shift s.d.", group=ALIGNMENT, unit="Å", low=0.05, high=100,
        heading=PRIOR_AND_EXTENTS, shown_when=WITH_PRIOR)
    rotation_extent_deg: Optional[float] = setting(
        None, "No pose further than this from the input pose (or from the last one, if re-centred) is "
        "ever considered.", kind="float", label="Rotation search extent", group=ALIGNMENT, unit="deg",
        low=0.1, high=90, optional="three prior standard deviations; 20 without a prior", heading=PRIOR_AND_EXTENTS)
    shift_extent_angstrom: Optional[float] = setting(
        None, "No displacement of the fulcrum larger than this is ever considered.", kind="float",
        label="Shift search extent", group=ALIGNMENT, unit="Å", low=0.1, high=200,
        optional="three prior standard deviations; 10 without a prior", heading=PRIOR_AND_EXTENTS)
    fulcrum: Union[str, List[float]] = setting(
        "mask", "The point the sub-volume turns about: centre of mass of the mask (mask), centre of "
        "the box (box), or x, y, z in pixels from the corner of the box.", kind="fulcrum",
        label="Fulcrum", group=ALIGNMENT, unit="px", choices=("mask", "box"), heading=FULCRUM)
    recenter_rotations: bool = setting(
        False, "Search and prior are centred on the rotation found in the previous iteration instead of "
        "the input rotation. Use with a prior: the poses can drift.", kind="bool",
        label="Re-centre rotations each iteration", group=ALIGNMENT, heading=PRIOR_AND_EXTENTS)
    recenter_shifts: bool = setting(
        False, "Search and prior are centred on the shift found in the previous iteration instead of the "
        "input shift. Use with a prior: the poses can drift.", kind="bool",
        label="Re-centre shifts each iteration", group=ALIGNMENT, heading=PRIOR_AND_EXTENTS)
    initial_lowpass_angstrom: Optional[float] = setting(
        None, "Low-pass of the half-maps at the first iteration. 12 is conservative; the resolution of the "
        "sub-volume plus 1–2 Å keeps good poses good.", kind="float", label="Initial low-pass",
        group=ALIGNMENT, unit="Å", low=2, high=100,
        optional="FSC 0.143 of the input half-maps inside the mask, plus 1.5 Å", heading=REFERENCE)
    max_align_resolution_angstrom: Optional[float] = setting(
        None, "Information beyond this resolution is not used for alignment (it is for the map).",
        kind="float", label="Maximum alignment resolution", group=ALIGNMENT, unit="Å", low=1, high=100,
        optional="the resolution reached so far", expert=True, heading=REFERENCE)
    marginalize: bool = setting(
        True, "Insert each image at several poses weighted by their posterior probability instead of at "
        "the best pose only.", kind="bool", label="Marginalise over poses", group=ALIGNMENT, step=ALIGN)
    subtract: bool = setting(
        False, "While searching, take out of each image what the half-map shows outside the mask, at the input pose "
        "(the map is made of the images as they are). Helps where one image alone shows much, i.e. large particles "
        "with good contrast; with usual noise it changes nothing (measured).", kind="bool",
        label="Subtract the rest of the particle", group=ALIGNMENT, expert=True)
    subtract_bodies: bool = setting(
        True, "In a run of several masks, take the other bodies out of each image, where they were found in the last "
        "iteration; density in two masks goes to the one it moves with. Without it the others pull at the poses, and "
        "each body has the bits of a run of its own. With one mask it changes nothing.",
        kind="bool", label="Subtract the other bodies", group=ALIGNMENT, expert=True, step=ALIGN)
    join_halves_resolution_angstrom: float = setting(
        20.0, "Below this resolution both references share the average of the two half-maps, so that the "
        "halves stay in one frame. 0 = never.", kind="float", label="Half-map join resolution",
        group=REFINEMENT, unit="Å", low=0, high=100, expert=True)
    max_iterations: int = setting(
        8, "The refinement stops earlier once resolution and poses have converged.", kind="int",
        label="Maximum iterations", group=REFINEMENT, low=1, high=100, step=STOP)
    extra_final_passes: int = setting(
        0, "Iterations after convergence.", kind="int", label="Extra final passes", group=REFINEMENT,
        low=0, high=20, expert=True, step=STOP)
    non_uniform: bool = setting(
        True, "Non-uniform regularisation: the references are low-passed at every voxel at the cut-off with which "
        "each half-map best predicts the other (the same cut-off for both), instead of everywhere alike by the "
        "FSC. For sub-volumes with parts of very different order; the FSC is always that of the unfiltered half-maps.",
        kind="bool", label="Non-uniform regularisation", group=REFINEMENT, step=MERGE)
    symmetry: str = setting(
        "C1", "Point group about the centre of the box, wherever the fulcrum is: Cn or Dn (n-fold on z), T, O, I1, "
        "I2 (= I), I3 or I4 in RELION's axes. The parts of a symmetric complex seldom move together: C1 on "
        "symmetry-expanded particles with a mask on one part is usually better.",
        kind="symmetry", label="Symmetry group", group=REFINEMENT)
    allow_asymmetric_mask: bool = setting(
        False, "Continue even if the mask breaks the symmetry. Masked density is then averaged with unaligned symmetry "
        "copies.", kind="bool",
        label="Allow a mask that breaks the symmetry", group=REFINEMENT, expert=True)
    per_particle_scale: bool = setting(
        False, "Fit the grey scale of each particle, for particles under ice of different thickness. Off, since "
        "in normalised particles it fits mostly noise: a particle in a wrong pose gets a low scale.",
        kind="bool", label="Minimise over per-particle scale", group=REFINEMENT, step=ALIGN)
    weight_by_probability: bool = setting(
        True, "Each particle counts in the map as much as it was probably aligned in the iteration before. Noise "
        "images, other particles and those in a wrong pose then spoil the map less.",
        kind="bool", label="Weight particles by probability", group=REFINEMENT, expert=True, step=ALIGN)
    keep_probability: Optional[float] = setting(
        None, "At the end the particles whose probability to be aligned is at least this become an output of their "
        "own, and all others another. The refinement itself uses all of them.", kind="float",
        label="Keep particles with probability ≥", group=REFINEMENT, low=0, high=1, expert=True, step=FINISH,
        optional="no selection")
    false_discovery_rate: Optional[float] = setting(
        None, "The same, but as many of the most probable particles are kept as leave this share of wrong ones among "
        "them. With both settings, particles must meet both.", kind="float",
        label="Keep particles at a false discovery rate of", group=REFINEMENT, low=0, high=1, expert=True, step=FINISH,
        optional="no selection")
    non_negativity: bool = setting(
        False, "Set negative density of the references to zero. Off, since the zero level of a map is arbitrary and "
        "low density is lost.", kind="bool", label="Non-negative references", group=REFINEMENT, expert=True, step=MERGE)
    resplit_half_sets: bool = setting(
        False, "Split the particles into half-sets anew, at random. All copies of one image (symmetry expansion) and "
        "all segments of one filament (rlnHelicalTubeID) stay together. The half-maps given share particles with both "
        "new half-sets, so the references are no longer independent and the first FSCs are too good.",
        kind="bool", label="Re-split half-sets", group=REFINEMENT, expert=True)
    exchange_half_maps: bool = setting(
        False, "Take half-map 1 as half-map 2, and half-map 2 as half-map 1. For input that was refused because its "
        "half-maps are exchanged, where the files or the volume cannot be given in the other order.",
        kind="bool", label="Exchange the half-maps", group=REFINEMENT, expert=True)
    resample_maps: bool = setting(
        False, "Half-maps and mask that have another pixel size than the particles are resampled to theirs, about the "
        "centre of the box, instead of being refused. Half-maps of another box, wider or narrower in Å, are refused "
        "nevertheless.", kind="bool", label="Resample half-maps and mask", group=REFINEMENT, expert=True)
    fsc_randomise_below: float = setting(
        0.8, "The phases are randomised from the shell where the unmasked FSC first falls below this, to measure "
        "what the mask adds to the FSC.", kind="float", label="FSC: randomise phases below", group=REFINEMENT,
        low=0.15, high=0.99, expert=True)
    sharpen_bfactor: Optional[float] = setting(
        None, "B-factor applied to the sharpened map; negative sharpens.", kind="float", label="Sharpening B-factor",
        group=REFINEMENT, unit="Å²", low=-2000, high=500, expert=True,
        optional="slope of the Guinier plot between 10 Å and the resolution", step=FINISH)
    mask_mode: str = setting(
        "static", "static: the mask as it was given, which is what protects best against fitting noise at its "
        "surface. dynamic: once the resolution is good enough, the mask follows the density found, near the "
        "mask given.", kind="choice", label="Mask mode", group=MASK, choices=("static", "dynamic"), step=MERGE)
    honour_mask_origin: bool = setting(
        False, "Move the mask to where the origin in its header puts it relative to half-map 1, by a whole number of "
        "voxels. Off, voxels of the mask are those of the half-maps, and a difference is warned of.",
        kind="bool", label="Honour the mask's origin", group=MASK, expert=True)
    mask_threshold: float = setting(
        0.2, "Density that belongs to the sub-volume, in the map low-passed to 12 Å or 1.5 times its resolution.",
        kind="float", label="Threshold", group=MASK, low=0, step=MERGE, shown_when=IF_DYNAMIC)
    mask_threshold_type: str = setting(
        "relative", "relative: a fraction of the greatest low-passed density inside the mask; absolute: a value of "
        "the low-passed map.", kind="choice", label="Threshold type", group=MASK, choices=("relative", "absolute"),
        expert=True, step=MERGE, shown_when=IF_DYNAMIC)
    mask_near_angstrom: float = setting(
        3.0, "The dynamic mask is 1 up to this distance from the density.", kind="float", label="Near distance",
        group=MASK, unit="Å", low=0, high=100, step=MERGE, shown_when=IF_DYNAMIC)
    mask_far_angstrom: float = setting(
        12.0, "The dynamic mask falls to 0 at this distance from the density, and it never leaves the given mask by "
        "more than this.", kind="float", label="Far distance", group=MASK, unit="Å", low=0.1, high=200, step=MERGE,
        shown_when=IF_DYNAMIC)
    mask_start_resolution_angstrom: float = setting(
        12.0, "The mask follows the density only once the resolution is better than this.", kind="float",
        label="Start at resolution", group=MASK, unit="Å", low=1, high=100, step=MERGE, shown_when=IF_DYNAMIC)
    seed: int = setting(
        1, "Seed of everything random (phase randomisation of the FSC, re-splitting of half-sets).", kind="int",
        label="Random seed", group=COMPUTE, low=0, high=2**31 - 1, expert=True)

    def __post_init__(self) -> None:
        for name, info in DESCRIBED.items():
            check_setting(info, getattr(self, name))

    @classmethod
    def from_dict(cls, values: Dict[str, Any]) -> "Settings":
        """Settings from the content of a settings.json; an unknown key is an error that names it."""
        known = {f.name for f in dataclasses.fields(cls)}
        values = {key: value for key, value in values.items() if key not in GONE}
        for key in values:
            if key not in known:
                raise InputError(f"there is no setting '{key}'", "settings",
                                 "run 'python -m localrefine_plugin.engine settings' for the list")
        return cls(**values)

    def as_dict(self) -> Dict[str, Any]:
        return dataclasses.asdict(self)

    def of_steps(self, *steps: str) -> Dict[str, Any]:
        """The settings that these steps are the first to read."""
        return {name: getattr(self, name) for name, info in DESCRIBED.items() if info.step in steps}

    @classmethod
    def describe(cls) -> Tuple[SettingInfo, ...]:
        """Every setting, in the order of the form."""
        return tuple(DESCRIBED.values())


GONE = {"deterministic"}  # settings of older versions that change nothing any more: a GPU's sums are integers
DESCRIBED = {f.name: SettingInfo(f.name, f.default, **f.metadata) for f in dataclasses.fields(Settings)}


def check_setting(info: SettingInfo, value: Any) -> None:
    """Raise InputError unless ``value`` is of the setting's kind and inside its range."""
    name = f"setting {info.name}"
    if value is None:
        if not info.optional:
            raise InputError("is null", name, f"give a {info.kind}")
        return
    if info.kind == "bool":
        if not isinstance(value, bool):
            raise InputError(f"{value!r} is not true or false", name, "use true or false")
        return
    if info.kind == "choice":
        if value not in info.choices:
            raise InputError(f"{value!r} is not offered", name, "choose one of " + ", ".join(info.choices))
        return
    if info.kind == "fulcrum":
        _check_fulcrum(name, value, info.choices)
        return
    if info.kind == "symmetry":
        if not isinstance(value, str) or not POINT_GROUP.fullmatch(value):
            raise InputError(f"{value!r} is not a point group known here", name,
                             "use Cn or Dn with n from 1 to 99, T, O, I1, I2 (= I), I3 or I4")
        return
    numeric = (int,) if info.kind == "int" else (int, float)
    if isinstance(value, bool) or not isinstance(value, numeric) or not np.isfinite(value):
        raise InputError(f"{value!r} is not a number of kind {info.kind}", name, "give a plain number")
    low, high = info.low, info.high
    if (low is not None and value < low) or (high is not None and value > high):
        raise InputError(f"{value} is outside {low} … {high} {info.unit}".rstrip(), name, "choose a value inside")


def _check_fulcrum(name: str, value: Any, choices: Tuple[str, ...]) -> None:
    if isinstance(value, str):
        if value not in choices:
            raise InputError(f"{value!r} is not offered", name, "use mask, box or [x, y, z] in px")
        return
    numbers = (isinstance(value, (list, tuple)) and len(value) == 3
               and all(isinstance(v, (int, float)) and not isinstance(v, bool) and np.isfinite(v) for v in value))
    if not numbers:
        raise InputError(f"{value!r} is not a point", name, "use mask, box or [x, y, z] in px")
