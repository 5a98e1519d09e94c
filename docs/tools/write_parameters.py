"""docs/reference/parameters.md from the settings of the engine:  python docs/tools/write_parameters.py"""
from __future__ import annotations

from pathlib import Path
from typing import List

from localrefine_plugin.engine.records.settings import SettingInfo, Settings
from localrefine_plugin.protocols.form_local_refine import param_name

PAGE = Path(__file__).resolve().parents[1] / "reference" / "parameters.md"
HEAD = """# Parameters

**Who should read this:** users who look up one parameter. For advice on which parameters to change, read
[Choose parameters](../how-to/choose-parameters.md). For the measurements behind the defaults, read
[How the defaults were chosen](../explanation/defaults.md).

`python docs/tools/write_parameters.py` writes this page from `localrefine_plugin/engine/records/settings.py`. The form
of the protocol and `python -m localrefine_plugin.engine settings` use the same file.
"""


def page() -> str:
    """The whole page."""
    described = Settings.describe()
    groups = list(dict.fromkeys(entry.group for entry in described))
    parts = [HEAD]
    for group in groups:
        parts.append(f"\n## {group}\n")
        parts += [section(entry) for entry in described if entry.group == group]
    return "".join(parts)


def section(entry: SettingInfo) -> str:
    """One setting."""
    rows: List[str] = [f"`{entry.name}` in settings.json, `{param_name(entry.name)}` in the protocol",
                       f"default: {default_of(entry)}"]
    if entry.choices:
        rows.append("choices: " + ", ".join(entry.choices) + (" or x, y, z" if entry.kind == "fulcrum" else ""))
    if entry.low is not None:
        top = "any" if entry.high is None else f"{entry.high:g}"
        rows.append(f"range: {entry.low:g} … {top} {entry.unit}".rstrip())
    if entry.expert:
        rows.append("expert")
    return f"\n### {entry.label}\n\n{entry.help}\n\n" + "".join(f"- {row}\n" for row in rows)


def default_of(entry: SettingInfo) -> str:
    value = entry.default
    if value is None:
        return entry.empty_means
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value} {entry.unit}".rstrip() if entry.kind in ("int", "float") else str(value)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
