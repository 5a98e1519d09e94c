"""A local refinement as a job of the CCP-EM Pipeliner (Doppio), by its entry point ``ccpem_pipeliner.jobs``.

The Pipeliner loads this module in its own Python environment. It needs nothing of the engine but the description of the
settings; the engine is started as the program localrefine-relion (relion.py), which may belong to another environment,
with other versions of its dependencies. Source: ccpem-pipeliner 1.6.1 (pipeliner_job.py, job_options.py).
"""
from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any, Dict, List, Sequence

from pipeliner.data_structure import NODE_DENSITYMAP, NODE_LOGFILE, NODE_MASK3D, NODE_PARTICLEGROUPMETADATA
from pipeliner.display_tools import (
    create_results_display_object,
    graph_from_starfile_cols,
    make_maps_slice_montage_and_3d_display,
)
from pipeliner.job_options import (
    EXT_MRC_MAP,
    EXT_RELION_HALFMAP,
    EXT_STARFILE,
    BooleanJobOption,
    FileDescription,
    FloatJobOption,
    InputNodeJobOption,
    IntJobOption,
    JobOption,
    JobOptionCondition,
    MultipleChoiceJobOption,
    StringJobOption,
)
from pipeliner.pipeliner_job import ExternalProgram, PipelinerCommand, PipelinerJob
from pipeliner.results_display_objects import ResultsDisplayObject

from ..engine.io.run_folder import RunFolder
from ..engine.records.iteration import FSC_CURVES
from ..engine.records.settings import DESCRIBED, POINT_GROUP, SettingInfo
from . import relion
from .engine_job import missing_packages

DEVELOPERS = "The scipion-em-localrefine developers"
PROGRAM_VARIABLE = "LOCALREFINE_PROGRAM"  # the whole path of localrefine-relion, where it is not on the PATH
INPUTS = "in_parts", "in_3dref", "half_map_2", "in_mask", "device"  # options of the job and of the program
NODE_TYPES = {"ParticleGroupMetadata": NODE_PARTICLEGROUPMETADATA, "DensityMap": NODE_DENSITYMAP,
              "Mask3D": NODE_MASK3D, "LogFile": NODE_LOGFILE}


class LocalRefine(PipelinerJob):
    """Particles, half-maps and a mask in; the same files as of Refine3D out."""

    PROCESS_NAME = "localrefine.refine3d.local"
    OUT_DIR = "LocalRefine"
    CATEGORY_LABEL = "3D Refinement"

    def __init__(self) -> None:
        super().__init__()
        self.can_continue = True
        self.jobinfo.display_name = "Local refinement of a sub-volume"
        self.jobinfo.short_desc = "Refine the poses of a part that moves against the rest of the particle"
        self.jobinfo.long_desc = (
            "Aligns each image again, with the density inside a mask only, near the pose that it has. Takes the "
            "particles and half-maps of a 3D refinement, and a soft mask around the part. Half-sets stay apart.")
        self.jobinfo.job_author = DEVELOPERS
        self.jobinfo.programs = [ExternalProgram(program())]
        self.joboptions.update(input_options())
        self.joboptions.update({name: option_of(info) for name, info in DESCRIBED.items()})
        self.get_runtab_options(threads=True)

    def get_commands(self) -> List[PipelinerCommand]:
        words = [program(), "--o", self.output_dir, "--j", self.joboptions["nr_threads"].get_string()]
        for name in INPUTS:
            if not self.joboptions[name].is_blank:
                words += [f"--{name}", self.joboptions[name].get_string()]
        for name in DESCRIBED:
            option = self.joboptions[name]
            if option.value != option.default_value:
                words += [f"--{name}", option.get_string() or "auto"]
        return [PipelinerCommand(words)]

    def create_output_nodes(self) -> None:
        for node in relion.OUTPUTS:
            if node.name != KEPT.name:
                self.add_node(node)
        self.add_node(relion.LOGFILE)

    def create_post_run_output_nodes(self) -> None:
        """The selected particles, which there are on request only."""
        if (Path(self.output_dir) / KEPT.name).exists():
            self.add_node(KEPT)

    def add_node(self, node: relion.Node) -> None:
        kind, _, *words = node.label.split(".")
        self.add_output_node(node.name, NODE_TYPES[kind], list(dict.fromkeys(["relion", "localrefine", *words])))

    def gather_metadata(self) -> Dict[str, Any]:
        """The report of the run without names of files."""
        return {key: value for key, value in self.report().items() if key not in ("input", "files")}

    def create_results_display(self) -> Sequence[ResultsDisplayObject]:
        """Resolution and advice, FSC curves, the map."""
        folder = self.run_folder()
        report = self.report()
        rows = [["at FSC 0.143, corrected", angstrom(report["final_resolution_angstrom"].get("corrected"))],
                ["to report", angstrom(report["resolution_to_report_angstrom"])]]
        curves = str(folder.final("fsc.star"))
        shown = [create_results_display_object(
            "table", title="Resolution", headers=["", "Å"], table_data=rows, associated_data=[str(folder.report)])]
        if report["advice"]:
            shown.append(create_results_display_object("text", title="Advice", display_data="\n".join(report["advice"]),
                                                       associated_data=[str(folder.report)]))
        shown.append(graph_from_starfile_cols(
            title="Fourier shell correlation", starfile=curves, block="fsc", xlabel="1/Å", ylabel="FSC",
            xcols=["_rlnResolution"] * len(FSC_CURVES), ycols=[f"_{curve.label}" for curve in FSC_CURVES],
            data_series_labels=[curve.title for curve in FSC_CURVES]))
        return shown + list(make_maps_slice_montage_and_3d_display(
            in_maps={os.path.join(self.output_dir, "run_class001.mrc"): "Local refinement"},
            output_dir=self.output_dir))

    def run_folder(self) -> RunFolder:
        return RunFolder(Path(self.output_dir) / "refine")

    def report(self) -> Dict[str, Any]:
        return json.loads(self.run_folder().report.read_text(encoding="utf-8"))


KEPT = next(node for node in relion.OUTPUTS if node.source == "particles_kept.star")


def program() -> str:
    """localrefine-relion as it is named, or of the PATH; not that of the Pipeliner's own environment where this lacks
    the engine's packages. Where there is none, the Pipeliner shows what is returned as missing."""
    named = os.environ.get(PROGRAM_VARIABLE)
    if named or not missing_packages():
        return named or relion.PROGRAM
    own, folders = str(Path(sys.executable).parent), os.environ.get("PATH", "").split(os.pathsep)
    found = shutil.which(relion.PROGRAM, path=os.pathsep.join(folder for folder in folders if folder != own))
    return found or f"{relion.PROGRAM} of an environment with the engine ({PROGRAM_VARIABLE})"


def angstrom(value: Any) -> str:
    return "not known" if value is None else f"{value:.2f}"


# ---------------------------------------------------------------- the form

def input_options() -> Dict[str, JobOption]:
    return {
        "in_parts": InputNodeJobOption(
            label="Particles:", node_type=NODE_PARTICLEGROUPMETADATA, node_kwds=["relion"], is_required=True,
            pattern=FileDescription("Particles STAR file", EXT_STARFILE),
            help_text="Of a 3D refinement with half-sets (run_data.star)."),
        "in_3dref": InputNodeJobOption(
            label="Half-map 1:", node_type=NODE_DENSITYMAP, node_kwds=["halfmap"], is_required=True,
            pattern=FileDescription("Unfiltered half-map", EXT_RELION_HALFMAP),
            help_text="Of the same refinement. The other half-map is found by its name: half1, half2."),
        "half_map_2": InputNodeJobOption(
            label="Half-map 2:", node_type=NODE_DENSITYMAP, node_kwds=["halfmap"],
            pattern=FileDescription("Unfiltered half-map", EXT_MRC_MAP),
            help_text="Only if its name does not say which half it is of."),
        "in_mask": InputNodeJobOption(
            label="Mask of the part to refine:", node_type=NODE_MASK3D, is_required=True,
            pattern=FileDescription("Mask", EXT_MRC_MAP), help_text="Soft, with values from 0 to 1."),
        "device": StringJobOption(
            label="Device:", default_value="auto", in_continue=True, jobop_group="Running options",
            help_text="auto, cpu, cuda:0, or cuda:0,cuda:1 for two GPUs.",
            validation_regex=r"^(auto|cpu|cuda(:\d+)?(,cuda:\d+)?)$",
            regex_error_message="auto, cpu, cuda:N or two GPUs")}


def option_of(info: SettingInfo) -> JobOption:
    """A setting of the engine as an option of the job."""
    common: Dict[str, Any] = dict(
        label=f"{info.label} ({info.unit}):" if info.unit else f"{info.label}:", in_continue=True,
        help_text=info.help + (f" Empty: {info.optional}." if info.optional else ""),
        jobop_group=f"{info.group}, advanced" if info.expert else info.group, deactivate_if=hidden_when(info))
    if info.kind == "bool":
        return BooleanJobOption(default_value=info.default, **common)
    if info.kind == "choice":
        return MultipleChoiceJobOption(choices=list(info.choices), default_value=info.default, **common)
    if info.kind in ("int", "float"):
        make = IntJobOption if info.kind == "int" else FloatJobOption
        return make(default_value=info.default, hard_min=info.low, hard_max=info.high, is_required=not info.optional,
                    **common)
    regex = POINT_GROUP.pattern if info.kind == "symmetry" else rf"{'|'.join(info.choices)}|[\d.]+,[\d.]+,[\d.]+"
    return StringJobOption(default_value=info.default, is_required=True, validation_regex=f"^(?i:{regex})$",
                           regex_error_message="is not of the form that the help gives", **common)


def hidden_when(info: SettingInfo) -> Any:
    if not info.shown_when:
        return None
    other, values = info.shown_when
    return JobOptionCondition([(other, "!=", value) for value in values], operation="ALL")
