"""The form of the protocol, drawn from engine.records.Settings, and the way back to settings.

Every setting of the engine appears: labels, help, units, ranges, defaults and expert level come from
its description. What is written here is only what a form adds: names, sub-headings and conditions.
"""
from __future__ import annotations

import math
import re
from typing import Any, Dict, List, Optional, Tuple

import pyworkflow.protocol.params as params
from pyworkflow.protocol.constants import GPU_LIST, LEVEL_ADVANCED, LEVEL_NORMAL, USE_GPU, VOID_GPU

from ..engine.records.errors import InputError
from ..engine.records.settings import DESCRIBED, REFINEMENT, SettingInfo, Settings

# Engine key → parameter where the rule of `param_name` would not give the field's word.
PARAM_NAMES = {"prior": "usePrior", "symmetry": "symmetryGroup", "per_particle_scale": "minimizeScale"}
UNIT_SUFFIX = re.compile(r"_(deg|angstrom|kv|px|mb|seconds)$")

VALIDATE = "validateResults"
VALIDATE_HELP = ("Null tests of the results, as a last step: noise in place of the images, random phases at high "
                 "resolution, the mask where there is no density, and the other half-set's reference. All of these "
                 "tests should come out negative; the summary and the report say what they found. They take 500 "
                 "particles of each half-set through five iterations, whatever the size of the data. That is a third "
                 "of the time of a run with 2,000 particles, and little beside a run with 100,000.")

PER_BODY, PER_BODY_LABEL = "settingsPerBody", "Settings per body"

FULCRUM_CHOICES = {"mask": "centre of mass of the mask", "box": "centre of the box"}
FULCRUM_COORDINATES = "coordinates"
FULCRUM_AXES = ("fulcrumX", "fulcrumY", "fulcrumZ")
AUTO = "auto"


def param_name(key: str) -> str:
    """Parameter of the protocol for a key of the engine: camelCase, without the unit.

    >>> param_name("max_align_resolution_angstrom")
    'maxAlignResolution'
    """
    if key in PARAM_NAMES:
        return PARAM_NAMES[key]
    first, *rest = UNIT_SUFFIX.sub("", key).split("_")
    return first + "".join(word.capitalize() for word in rest)


# ---------------------------------------------------------------- drawing

def define_params(form: Any) -> None:
    """The whole form of the protocol."""
    define_gpu(form)
    define_inputs(form)
    for section in sections():
        form.addSection(label=section)
        groups: Dict[str, Any] = {}
        for entry in DESCRIBED.values():
            if section_of(entry) != section:
                continue
            heading = entry.heading
            if heading and heading not in groups:
                groups[heading] = form.addGroup(heading)
            draw_setting(groups[heading] if heading else form, entry)
        if section == REFINEMENT:
            form.addParam(VALIDATE, params.BooleanParam, default=False, expertLevel=LEVEL_ADVANCED,
                          label="Validate results", help=VALIDATE_HELP)
    form.addParallelSection(threads=4, mpi=1)


def define_gpu(form: Any) -> None:
    """Whether a GPU is used, and which."""
    form.addHidden(USE_GPU, params.BooleanParam, default=gpu_present(), label="Use GPU for execution",
                   help="Yes: an NVIDIA GPU with CuPy does the alignment. If it cannot be used, the run stops and says "
                        "why. No: the CPU does it. The result is the same up to rounding.")
    form.addHidden(GPU_LIST, params.StringParam, default="0", label="GPU ID",
                   help="The number of the GPU as nvidia-smi shows it. With several numbers (0 1 2 3) the particles "
                        "are shared out among these GPUs. With more than one MPI process, the processes of a machine "
                        "take turns among them. The result is the same.")


def define_inputs(form: Any) -> None:
    form.addSection(label="Input")
    form.addParam("inputParticles", params.PointerParam, pointerClass="SetOfParticles",
                  pointerCondition="hasAlignmentProj", important=True, label="Particles",
                  help="Particles aligned by a 3D refinement with independent half-sets. Each particle keeps its "
                       "half-set (the attribute _rlnRandomSubset).")
    form.addParam("inputVolume", params.PointerParam, pointerClass="Volume", important=True,
                  label="Volume with half-maps",
                  help="The map of the same refinement, at the particles' box and pixel size. Its two unfiltered "
                       "half-maps are the starting references: half-set 1 is aligned to half-map 1 only, half-set 2 "
                       "to half-map 2 only.")
    form.addParam("inputMask", params.PointerParam, pointerClass="VolumeMask", important=True,
                  label="Mask of the sub-volume",
                  help="Values from 0 to 1, around the part that moves as one body, with a soft edge: at least five "
                       "times the resolution (in pixels) wide. The wizard measures it.")
    form.addParam("moreMasks", params.MultiPointerParam, pointerClass="VolumeMask", allowsNull=True,
                  label="More masks (bodies)",
                  help="Leave empty to refine one sub-volume. With more masks the protocol refines several bodies in "
                       "one run: body 1 is that of the mask above, bodies 2, 3, ... are those of this list. All have "
                       "the same particles, and each turns about the centre of its own mask. Each body has its own "
                       "results (outputVolume_body2, outputParticles_body2, ...), and is refined with the others taken "
                       "out of the images. outputComposite is one map of all bodies, in the frame of body 1. Let "
                       "masks touch with their soft edges and share no more: the wizard shows how they lie.")
    form.addParam(PER_BODY, params.TextParam, default="", height=3, width=58, expertLevel=LEVEL_ADVANCED,
                  label=PER_BODY_LABEL,
                  help="Settings of single bodies that differ from those of the form, a line for each body: its "
                       "number, a colon, and settings with their values, for instance\n"
                       "  2: rotation_extent_deg = 10; fulcrum = [60, 48, 31]\n"
                       "  3: prior = gaussian; prior_rotation_deg = 4; prior_shift_angstrom = 2\n"
                       "Names are those of the page Parameters of the documentation, values as in settings.json "
                       "(automatic: as an empty field). Leave empty if all bodies have the settings of the form.")


def sections() -> List[str]:
    """Sections of the settings, in the order they first appear."""
    return list(dict.fromkeys(section_of(entry) for entry in DESCRIBED.values()))


def section_of(entry: SettingInfo) -> str:
    """The group of a setting; a group for experts only, whose tab would look empty, stands under Refinement."""
    alone = all(other.expert for other in DESCRIBED.values() if other.group == entry.group)
    return REFINEMENT if alone else str(entry.group)


def draw_setting(parent: Any, entry: SettingInfo) -> None:
    """One setting as one parameter (a fulcrum as a choice and a line of coordinates)."""
    key, kind = entry.name, entry.kind
    common = dict(label=label_of(entry), help=help_of(entry),
                  expertLevel=LEVEL_ADVANCED if entry.expert else LEVEL_NORMAL)
    condition = condition_of(entry)
    if condition:
        common["condition"] = condition
    name = param_name(key)
    if kind == "fulcrum":
        draw_fulcrum(parent, name, entry, common)
    elif kind == "bool" or entry.is_switch:
        default = entry.default if kind == "bool" else entry.default != entry.choices[0]
        parent.addParam(name, params.BooleanParam, default=default, **common)
    elif kind == "choice":
        parent.addParam(name, params.EnumParam, choices=list(entry.choices),
                        default=list(entry.choices).index(entry.default), **common)
    elif kind in ("int", "float"):
        make = params.IntParam if kind == "int" else params.FloatParam
        parent.addParam(name, make, default=entry.default, allowsNull=bool(entry.optional), **common)
    else:
        parent.addParam(name, params.StringParam, default=entry.default, **common)


def draw_fulcrum(parent: Any, name: str, entry: SettingInfo, common: Dict[str, Any]) -> None:
    texts = [FULCRUM_CHOICES[choice] for choice in entry.choices] + [FULCRUM_COORDINATES]
    parent.addParam(name, params.EnumParam, choices=texts, default=list(entry.choices).index(entry.default),
                    **dict(common, label="Fulcrum"))
    line = parent.addLine("Fulcrum (px)", condition=f"{name} == {len(texts) - 1}",
                          help="x, y and z in pixels from the corner of the box (the first voxel is 0; the centre of "
                               "a box of N is N // 2). The wizard shows the map: click where the hinge is.")
    for axis, text in zip(FULCRUM_AXES, "xyz"):
        line.addParam(axis, params.FloatParam, allowsNull=True, default=None, label=text)


def label_of(entry: SettingInfo) -> str:
    """The setting's name, its unit, and that an empty field is a choice."""
    notes = [entry.unit] * bool(entry.unit) + [f"empty: {entry.empty_word}"] * bool(entry.optional)
    return f"{entry.label} ({', '.join(notes)})" if notes else entry.label


def help_of(entry: SettingInfo) -> str:
    """The setting's help with its range, and what an empty field stands for."""
    parts = [entry.help]
    if entry.low is not None and entry.high is not None and entry.kind in ("int", "float"):
        parts.append(f"From {entry.low:g} to {entry.high:g} {entry.unit}".rstrip() + ".")
    if entry.optional:
        parts.append(f"Leave empty (or -1) for {entry.empty_means}.")
    if entry.is_switch:
        parts.append(f"Yes: {entry.choices[1]}.")
    return "\n".join(parts)


def condition_of(entry: SettingInfo) -> Optional[str]:
    """The condition of Scipion's form for ``shown_when``; None where the setting is always shown."""
    if not entry.shown_when:
        return None
    other, values = DESCRIBED[entry.shown_when[0]], entry.shown_when[1]
    if other.kind == "bool" or other.is_switch:
        return param_name(other.name)
    return " or ".join(f"{param_name(other.name)} == {other.choices.index(value)}" for value in values)


def gpu_present() -> bool:
    """Whether the NVIDIA driver shows a device; asks the file system only, loads no library."""
    import os
    return os.path.exists("/dev/nvidia0")


# ---------------------------------------------------------------- reading

def device_of(protocol: Any) -> str:
    """cpu, or the GPUs of the slot that a protocol was given.

    The executor knows the slot, and counts from 0 what a queue has assigned; 99 is its word for no GPU.
    """
    if not protocol.usesGpu():
        return "cpu"
    executor = protocol._stepsExecutor
    given = protocol.getGpuList() if executor is None else executor.getGpuList()
    gpus = list(dict.fromkeys(gpu for gpu in given or [] if gpu != VOID_GPU))
    return ",".join(f"cuda:{gpu}" for gpu in gpus) or "cuda:0"


def settings_values(protocol: Any) -> Dict[str, Any]:
    """The content of settings.json for the values in the form."""
    return {key: setting_value(protocol, entry) for key, entry in DESCRIBED.items()}


def setting_value(protocol: Any, entry: SettingInfo) -> Any:
    value = protocol.getAttributeValue(param_name(entry.name))
    if entry.kind == "fulcrum":
        choices = entry.choices
        if value < len(choices):
            return choices[value]
        return [protocol.getAttributeValue(axis) for axis in FULCRUM_AXES]
    if entry.is_switch:
        return entry.choices[1 if value else 0]
    if entry.kind == "choice":
        return entry.choices[value]
    if entry.optional and is_auto(value, entry):
        return None
    return value


def is_auto(value: Any, entry: SettingInfo) -> bool:
    """Empty, or -1 as people of Scipion write it (unless -1 is a value of the setting)."""
    if value is None or (isinstance(value, float) and math.isnan(value)) or value == "":
        return True
    return isinstance(value, (int, float)) and value == -1 and (entry.low is None or entry.low > -1)


def settings_errors(protocol: Any) -> List[str]:
    """One sentence per setting out of its range, with the label of the form."""
    errors = []
    for key, value in settings_values(protocol).items():
        try:
            Settings.from_dict({key: value})
        except InputError as error:
            errors.append(f"*{DESCRIBED[key].label}*: {error.problem}; {error.remedy}.")
    return errors


def prior_errors(values: Dict[str, Any]) -> List[str]:
    """Re-centring under a prior that cannot have it; ``values`` as `settings_values` gives them."""
    from ..engine.motion.prior_shapes import prior_shape
    settings = Settings.from_dict(values)
    refused = prior_shape(settings.prior).refusal(settings)
    return [f"*Re-centre*: {refused[0]}. {refused[1]}."] if refused else []


def prior_warnings(protocol: Any) -> List[str]:
    """Combinations of prior, extents and re-centring that go wrong in practice."""
    from ..engine.motion.prior_shapes import prior_shape
    if settings_errors(protocol):
        return []
    settings = Settings.from_dict(settings_values(protocol))
    return [f"{text}." for text in prior_shape(settings.prior).warnings(settings)]


def changed_settings(values: Dict[str, Any]) -> List[Tuple[str, Any]]:
    """(label, value) of the settings that are not at their default."""
    return [(entry.label, values[key]) for key, entry in DESCRIBED.items()
            if key in values and values[key] != entry.default]
