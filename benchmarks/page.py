"""Pages of documentation of which each script writes its own section, between two comments."""
from __future__ import annotations

import argparse
from pathlib import Path
from typing import Optional, Sequence

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
IMAGES = DOCS / "images"  # a page names a picture as ../images/NAME.png
PAGE = DOCS / "reference" / "benchmarks.md"


def replace_section(text: str, name: str, content: str) -> str:
    """``text`` with the section of this name replaced, or added at the end."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    section = f"{begin}\n{content.strip()}\n{end}"
    if begin not in text:
        return text.rstrip() + "\n\n" + section + "\n"
    before, rest = text.split(begin, 1)
    return before + section + rest.split(end, 1)[1]


def write_section(name: str, content: str, page: Path = PAGE) -> None:
    page.write_text(replace_section(page.read_text(encoding="utf-8"), name, content), encoding="utf-8")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def arguments_of_sets(description: Optional[str]) -> argparse.ArgumentParser:
    """Of a script with a row for each data set: --data, --work, --threads, --write."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--write", action="store_true")
    return parser


def conclude(section: str, page: Optional[Path], text: str, problems: Sequence[str]) -> None:
    """Write the section, unless ``page`` is None, and fail where there are problems; "" is none."""
    if page is not None:
        write_section(section, text, page)
    wrong = [problem for problem in problems if problem]
    assert not wrong, "; ".join(wrong)


def path_of_test(file: str) -> Path:
    """Where "test_x.py" is; the names of test files are unique."""
    found, = (ROOT / "tests").rglob(file)
    return found
