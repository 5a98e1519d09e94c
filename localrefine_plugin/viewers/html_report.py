"""One HTML file per run with pictures, settings, versions, warnings and the commands to reproduce it.

No network, no scripts, no other files: pictures are embedded as base64 PNGs.
"""
from __future__ import annotations

import base64
import html
import io
import json
import shlex
from typing import Any, Dict, Iterable, List, Tuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..engine.io.run_folder import write_atomic
from ..engine.records.settings import Settings
from ..protocols.run_state import CURVES, RunState, angstrom, read_json, resolution, summary_lines
from .plots import DPI
from .run_figures import PICTURES, NotThere, draw_if_there

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
    parts += ["<h2>Resolution</h2>", _table(["Curve", "Input", "Result, FSC 0.143", "Result, FSC 0.5"],
                                            _resolution_rows(state))]
    ladder = read_json(state.folder.final("mask_ladder.json")).get("rungs")
    if ladder:
        parts += ["<h2>The resolution in tighter masks</h2>",
                  _table(["Mask", "Volume (nm³)", "Corrected (Å)", "Not corrected (Å)", "The mask's own FSC"],
                         _ladder_rows(ladder))]
    if state.null_tests():
        parts += ["<h2>Null tests</h2>", _table(["Test", "Found", "As expected"], _null_test_rows(state))]
    parts.append("<h2>Pictures</h2>")
    parts += _pictures(state)
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


def _summary(state: RunState) -> List[str]:
    parts = []
    for line in summary_lines(state):
        text = html.escape(line.replace("*", ""))
        kind = "warning" if line.startswith("*Warning*") else "error" if line.startswith("*Stopped*") else ""
        parts.append(f"<p class='{kind}'>{text}</p>")
    return parts


def _resolution_rows(state: RunState) -> Iterable[Tuple[str, ...]]:
    first = state.iterations[0] if state.iterations else {}
    for curve in CURVES:
        yield (curve, angstrom(resolution(first, curve)), angstrom(resolution(state.best, curve)),
               angstrom(resolution(state.best, curve, "0.5")))


def _ladder_rows(rungs: List[Dict[str, Any]]) -> Iterable[Tuple[str, ...]]:
    for rung in rungs:
        yield (str(rung["mask"]), f"{rung['volume_angstrom3'] / 1000:.0f}", f"{rung['resolution_angstrom']:.2f}",
               f"{rung['uncorrected_angstrom']:.2f}", f"{rung['mask_correlation']:.3f}")


def _null_test_rows(state: RunState) -> Iterable[Tuple[str, ...]]:
    for test in state.null_tests():
        yield test["title"], test["verdict"], "not done" if test["passed"] is None else _words(bool(test["passed"]))


def _setting_rows(state: RunState) -> Iterable[Tuple[str, ...]]:
    for entry in Settings.describe():
        value = state.settings.get(entry["name"])
        text = _words(value)
        chosen = state.resolved.get("fulcrum_px" if entry["name"] == "fulcrum" else entry["name"])
        if value is None:
            text = f"automatic: {entry['optional']}" if chosen is None else f"{_words(chosen)} (automatic)"
        elif entry["name"] == "fulcrum" and chosen is not None:
            text = f"{text}: {_words(chosen)}" if isinstance(value, str) else _words(chosen)
        yield entry["label"], text, entry["unit"]


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(_words(item) for item in value)
    return "automatic" if value is None else str(value)


def _input_rows(content: Dict[str, Any]) -> Iterable[Tuple[str, ...]]:
    for key in ("particles", "half_map_1", "half_map_2", "mask", "box_size", "pixel_size", "grey_scale"):
        if key in content:
            yield key.replace("_", " "), _words(content[key])
    for name, version in sorted({**(content.get("versions") or {}), **face_versions()}.items()):
        yield f"version of {name}", str(version)


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
    for content in state.iterations:
        for half in (1, 2):
            record = state.half(content["iteration"], half)
            if record:
                yield tuple(_words(record.get(key, "")).split(", because")[0] for key in (
                    "iteration", "half", "particles", "wall_seconds", "cpu_seconds", "peak_memory_mb", "device"))


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
        return shlex.quote(str(state.input.get(name, missing)))
    settings = json.dumps(state.settings, indent=1, ensure_ascii=False)
    return (f"cat > settings.json <<'END'\n{settings}\nEND\n"
            "python -m localrefine_plugin.engine refine \\\n"
            f"  --particles {quoted('particles', 'particles.star')} \\\n"
            f"  --half-map-1 {quoted('half_map_1', 'half_map_1.mrc')} \\\n"
            f"  --half-map-2 {quoted('half_map_2', 'half_map_2.mrc')} \\\n"
            f"  --mask {quoted('mask', 'mask.mrc')} --settings settings.json --output RUN")
