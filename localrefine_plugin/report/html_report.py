"""One HTML file per run with pictures, settings, versions, warnings and the commands to reproduce it.

No network, no scripts, no other files: pictures are embedded as base64 PNGs.
"""
from __future__ import annotations

import base64
import html
import io
import json
import shlex
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..engine.io.run_folder import write_atomic
from ..engine.records.codec import as_json
from ..engine.records.iteration import CURVE_NAMES, FSC_THRESHOLD, TRUTH_THRESHOLD
from ..engine.records.results import Rung
from ..engine.records.run_input import RunInput
from ..engine.records.settings import DESCRIBED
from . import film_picture
from .plots import DPI
from .run_figures import PICTURES, NotThere, draw_if_there
from .run_state import RunState
from .run_summary import angstrom, summary_lines

REPORT_DPI = 140  # sharp on a screen, and the file stays below two megabytes
STYLE = """body{font-family:sans-serif;max-width:1320px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:.5em 0}td,th{border:1px solid #ccc;padding:.25em .6em;text-align:left}
img{max-width:100%}.warning{background:#fff3cd;padding:.4em .8em;margin:.3em 0}
.error{background:#f8d7da;padding:.4em .8em}
figure{display:inline-block;vertical-align:top;margin:.5em;width:620px}figcaption{font-size:85%;color:#555}
pre{background:#f4f4f4;padding:.6em;overflow-x:auto}"""


def write_report(run_path: Any, html_path: str, title: str = "Local refinement") -> None:
    """Write the report of a run in one step; a running or failed run gives a report of what there is."""
    text = report_html(RunState(run_path), title)

    def write(name: str) -> None:
        with open(name, "w", encoding="utf-8") as handle:
            handle.write(text)
    write_atomic(html_path, write)


def report_html(state: RunState, title: str) -> str:
    parts = [f"<!DOCTYPE html><html lang='en'><head><meta charset='utf-8'><title>{html.escape(title)}</title>"
             f"<style>{STYLE}</style></head><body><h1>{html.escape(title)}</h1>"]
    parts += _summary(state)
    parts += ["<h2>Resolution</h2>", _table(["Curve", "Input", f"Result, FSC {FSC_THRESHOLD}",
                                             f"Result, FSC {TRUTH_THRESHOLD}"],
                                            _resolution_rows(state))]
    if state.mask_ladder is not None:
        parts += ["<h2>The resolution in tighter masks</h2>",
                  _table(["Mask", "Volume (nm³)", "Corrected (Å)", "Not corrected (Å)", "The mask's own FSC"],
                         _ladder_rows(state.mask_ladder.rungs))]
    if state.null_tests():
        parts += ["<h2>Null tests</h2>", _table(["Test", "Found", "As expected"], _null_test_rows(state))]
    parts.append("<h2>Pictures</h2>")
    parts += _pictures(state)
    parts += _film(state)
    parts += ["<h2>Settings</h2>", _table(["Setting", "Value", "Unit"], _setting_rows(state)),
              "<h2>Inputs and versions</h2>", _table(["", ""], _input_rows(state.input)),
              "<h2>Time and memory</h2>", _table(["Iteration", "Half-set", "Particles", "Seconds", "CPU seconds",
                                                  "Peak memory (MB)", "Device"], _time_rows(state)),
              "<h2>To do it again</h2>", f"<pre>{html.escape(reproduce_commands(state))}</pre>", "</body></html>"]
    return "\n".join(parts)


def _pictures(state: RunState) -> Iterable[str]:
    for picture in PICTURES:
        try:
            yield _figure(draw_if_there(picture, state), picture.label, picture.help)
        except NotThere:
            continue


def _film(state: RunState) -> Iterable[str]:
    """The animated picture, where a film was made."""
    content = film_picture.gif(state)
    if content is not None:
        image = base64.b64encode(content).decode("ascii")
        yield (f"<h2>Film of the motion</h2><img alt='Film of the motion' src='data:image/gif;base64,{image}'>"
               f"<p>{html.escape(' '.join(state.film.words if state.film else ()))}</p>")


def _summary(state: RunState) -> List[str]:
    parts = []
    for line in summary_lines(state):
        text = html.escape(line.replace("*", ""))
        kind = "warning" if line.startswith("*Warning*") else "error" if line.startswith("*Stopped*") else ""
        parts.append(f"<p class='{kind}'>{text}</p>")
    return parts


def _resolution_rows(state: RunState) -> Iterable[Tuple[str, ...]]:
    first, best = state.iterations[0] if state.iterations else None, state.best
    columns = (first, FSC_THRESHOLD), (best, FSC_THRESHOLD), (best, TRUTH_THRESHOLD)
    for curve in CURVE_NAMES:
        yield (curve, *(angstrom(None if record is None else record.resolution(curve, threshold))
                        for record, threshold in columns))


def _ladder_rows(rungs: Sequence[Rung]) -> Iterable[Tuple[str, ...]]:
    for rung in rungs:
        yield (rung.mask, f"{rung.volume_angstrom3 / 1000:.0f}", f"{rung.resolution_angstrom:.2f}",
               f"{rung.uncorrected_angstrom:.2f}", f"{rung.mask_correlation:.3f}")


def _null_test_rows(state: RunState) -> Iterable[Tuple[str, ...]]:
    for test in state.null_tests():
        yield test.title, test.verdict, "not done" if test.passed is None else _words(test.passed)


def _setting_rows(state: RunState) -> Iterable[Tuple[str, ...]]:
    for info in DESCRIBED.values() if state.settings is not None else ():
        value = getattr(state.settings, info.name)
        chosen = getattr(state.resolved, "fulcrum_px" if info.name == "fulcrum" else info.name, None)
        text = _words(value)
        if value is None:
            text = info.empty_means if chosen is None else f"{_words(chosen)} (automatic)"
        elif info.name == "fulcrum" and chosen is not None:
            text = f"{text}: {_words(chosen)}" if isinstance(value, str) else _words(chosen)
        yield info.label, text, info.unit


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_words(item) for item in value)
    return "automatic" if value is None else str(value)


def _input_rows(given: Optional[RunInput]) -> Iterable[Tuple[str, ...]]:
    if given is not None:
        for key in ("particles", "half_map_1", "half_map_2", "mask", "box_size", "pixel_size", "grey_scale"):
            yield key.replace("_", " "), _words(getattr(given, key))
    versions = dict((given.versions if given is not None else None) or {}, **face_versions())
    for name, version in sorted(versions.items()):
        yield f"version of {name}", version


def face_versions() -> Dict[str, str]:
    """Versions of what stands around the engine; those that cannot be told are left out."""
    from importlib.metadata import PackageNotFoundError, version
    found = {}
    for name in ("scipion-pyworkflow", "scipion-em", "matplotlib"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _time_rows(state: RunState) -> Iterable[Tuple[str, ...]]:
    for iteration in state.iterations:
        for half in (1, 2):
            record = state.half(iteration.iteration, half)
            if record is not None:
                yield tuple(_words(value).split(", because")[0] for value in (
                    record.iteration, record.half, record.particles, record.wall_seconds, record.cpu_seconds,
                    record.peak_memory_mb, record.device))


def _table(header: List[str], rows: Iterable[Tuple[str, ...]]) -> str:
    head = "".join(f"<th>{html.escape(text)}</th>" for text in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _figure(figure: Figure, label: str, caption: str) -> str:
    image = base64.b64encode(png(figure, REPORT_DPI)).decode("ascii")
    return (f"<figure><img alt='{html.escape(label)}' src='data:image/png;base64,{image}'>"
            f"<figcaption>{html.escape(caption)}</figcaption></figure>")


def png(figure: Figure, dpi: float = DPI) -> bytes:
    """The figure as PNG, drawn without a window."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def reproduce_commands(state: RunState) -> str:
    """Shell commands that repeat the run outside Scipion."""
    def quoted(name: str, missing: str) -> str:
        return shlex.quote(missing if state.input is None else str(getattr(state.input, name)))
    settings = json.dumps({} if state.settings is None else as_json(state.settings), indent=1, ensure_ascii=False)
    return (f"cat > settings.json <<'END'\n{settings}\nEND\n"
            "python -m localrefine_plugin.engine refine \\\n"
            f"  --particles {quoted('particles', 'particles.star')} \\\n"
            f"  --half-map-1 {quoted('half_map_1', 'half_map_1.mrc')} \\\n"
            f"  --half-map-2 {quoted('half_map_2', 'half_map_2.mrc')} \\\n"
            f"  --mask {quoted('mask', 'mask.mrc')} --settings settings.json --output RUN")
