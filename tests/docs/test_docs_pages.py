"""The pages of documentation: links lead somewhere, every page is in the index, figures said twice are the same."""
from __future__ import annotations

import re

import pytest

from benchmarks.page import DOCS

ROOT = DOCS.parent
PAGES = sorted(DOCS.rglob("*.md"))
FILES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *PAGES]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def prose(path):
    """The text without code, whose brackets are no links."""
    text = re.sub(r"(?m)^ {4}.*$", "", path.read_text(encoding="utf-8"))
    return re.sub(r"`[^`\n]*`", "", text)


def anchors(path):
    """What GitHub calls the headings: small letters, digits and hyphens."""
    headings = re.findall(r"(?m)^#+ (.+)$", path.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(path):
    broken = []
    for link in LINK.findall(prose(path)):
        if link.startswith(("https://", "http://")):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if not target.exists() or anchor and anchor not in anchors(target):
            broken.append(link)
    return broken


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_links_lead_to_files_and_headings(path):
    assert broken_links(path) == []


def test_a_broken_link_is_found(tmp_path):
    (tmp_path / "there.md").write_text("# A heading, or two\n")
    (tmp_path / "page.md").write_text("[a](there.md#a-heading-or-two) [b](gone.md) [c](there.md#other) `[d](code)`\n")
    assert broken_links(tmp_path / "page.md") == ["gone.md", "there.md#other"]


def test_every_page_is_in_the_index():
    index = DOCS / "README.md"
    linked = {(DOCS / link).resolve() for link in LINK.findall(index.read_text(encoding="utf-8"))}
    assert [name_of(page) for page in PAGES if page != index and page.resolve() not in linked] == []


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_a_page_begins_with_its_readers(path):
    assert re.match(r"# .+\n\n\*\*Who should read this:\*\* \w", path.read_text(encoding="utf-8"))


def test_every_picture_is_shown_somewhere():
    shown = {(path.parent / link).resolve() for path in FILES
             for link in LINK.findall(path.read_text(encoding="utf-8"))}
    assert [picture.name for picture in sorted((DOCS / "images").iterdir()) if picture.resolve() not in shown] == []


# Rows of the table in README.md, in their order, and the rows of docs/reference/benchmarks.md that they repeat.
SAME_ROWS = (("mid", "input"), ("mid", "ours, learned prior"), ("mid", "RELION 3.1.3, whole box, masked"),
             ("mid", "RELION 3.1.3, subtracted and recentred"), ("mid", "RELION 5"), ("mid02", "input"),
             ("mid02", "ours, learned prior"), ("mid02", "RELION 3.1.3, whole box, masked"),
             ("mid02", "RELION 3.1.3, subtracted and recentred"), ("mid02", "RELION 5"))
SAME_COLUMNS = ("angle of B", "centroid of B", "FSC 0.5 to truth", "half-map FSC 0.143", "resolution to report",
                "CPU s")


def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def benchmark_row(data, name):
    """Column → figure."""
    page = (DOCS / "reference" / "benchmarks.md").read_text(encoding="utf-8")
    lines = page.split(f"<!-- begin versus_relion {data} -->")[1].split("<!-- end")[0].splitlines()
    head = next(cells(line) for line in lines if line.startswith("|  | CPU s"))
    row, = (cells(line) for line in lines if line.startswith(f"| {name}"))
    return dict(zip(head, row))


def test_the_readme_repeats_the_benchmarks():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = [cells(line) for line in text.split("| SNR |")[1].split("\n\n")[0].splitlines()[2:]]
    assert len(rows) == len(SAME_ROWS)
    for (data, name), row in zip(SAME_ROWS, rows):
        measured = benchmark_row(data, name)
        expected = [measured[column] for column in SAME_COLUMNS]
        expected[-1] = re.split(r"[ ,]", expected[-1])[0]  # without the range of the repeats
        assert row[2:] == expected, (data, name)


def test_the_layout_names_every_package_of_the_engine():
    page = (DOCS / "explanation" / "developer.md").read_text(encoding="utf-8")
    engine = ROOT / "localrefine_plugin" / "engine"
    packages = [path.parent.name for path in engine.glob("*/__init__.py")]
    assert len(packages) > 10 and [name for name in packages if f" {name}/ " not in page] == []
