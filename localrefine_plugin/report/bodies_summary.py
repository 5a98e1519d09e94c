"""What the summary of the protocol says about a run of several masks: each body, all together, the composite."""
from __future__ import annotations

from typing import Dict, List, Sequence

from ..engine.io.run_folder import BodiesFolder, RunFolder
from ..engine.records.bodies import Bodies
from ..engine.records.composite import Composite
from ..engine.records.iteration import FSC_THRESHOLD
from .run_state import RunState, read_json, read_record
from .run_summary import resolution_line, selection_lines, validation_lines


def bodies_lines(folder: BodiesFolder, bodies: int) -> List[str]:
    """Of a run of so many masks as it stands; never raises."""
    states = [RunState(folder.body(number).path) for number in range(1, bodies + 1)]
    error = read_json(RunFolder(folder.path).error).get("message")
    lines = [f"*Stopped*: {error}"] if error else []
    for number, state in enumerate(states, 1):
        if state.best is not None:
            lines.append(f"*Body {number}*: {resolution_line(state, state.best)}")
    together = read_record(folder.record, Bodies)
    composite = read_record(folder.composite / "composite.json", Composite)
    warnings: List[str] = []
    if composite is not None and together is not None:  # without the record it is that of an earlier attempt
        value = composite.resolution_angstrom["corrected"]
        lines.append(f"*Composite*: {value:.2f} Å (FSC {FSC_THRESHOLD}, corrected)")
        warnings += composite.warnings
    if together is not None:
        lines += together.motion.words if together.motion is not None else ()
        lines += [text[:1].upper() + text[1:] for text in together.words]
        warnings += together.warnings
    for number, state in enumerate(states, 1):
        lines += [f"Body {number}: {text}" for text in selection_lines(state) + validation_lines(state)]
    return lines + [f"*Warning*: {text}" for text in dict.fromkeys([*warnings, *warnings_of(states)])]


def warnings_of(states: Sequence[RunState]) -> List[str]:
    """Of the bodies; what is said of all of them, once and without a name."""
    said: Dict[str, List[str]] = {}
    for number, state in enumerate(states, 1):
        for text in state.warnings():
            said.setdefault(text, []).append(str(number))
    return [text if len(numbers) == len(states) else f"body {', '.join(numbers)}: {text}"
            for text, numbers in said.items()]
