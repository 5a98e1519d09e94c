"""Which test executes which line of what runs on a GPU: the table of docs/reference/gpu-coverage.md.

    python -m benchmarks.operators.gpu_coverage --write

The tests of the GPU's layers run under `coverage`, the CUDA sources compiled for gcov. A function is below the device
boundary when a half-set aligned on the stand-in for CuPy runs through it; what of it no such run executes is listed.

Data: that of the tests it runs.
"""
from __future__ import annotations

import argparse
import ast
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Set, Tuple

from localrefine_plugin.engine.kernels.cuda import SOURCES

from ..measure import commit
from ..page import DOCS, path_of_test, table, write_section

ROOT = Path(__file__).resolve().parents[2]
ENGINE = ROOT / "localrefine_plugin" / "engine"
PAGE = DOCS / "reference" / "gpu-coverage.md"
TESTS = ("test_cuda_source", "test_fixed_point", "test_prefetch", "test_device", "test_selftest", "test_cupy_engine",
         "test_gpu_cost", "test_gpu_check", "test_half_sums", "test_images", "test_volume_kernels", "test_pose_kernels",
         "test_distance")
# Not entered by the alignment of a half-set, and about a GPU nevertheless
ALWAYS = ("kernels/cuda.py", "kernels/poses.py", "kernels/device.py", "kernels/prefetch.py", "kernels/batches.py",
          "kernels/fixed_point.py", "workers/selftest.py", "align/memory.py")
HOST = ("io/mrc.py", "io/other_formats.py", "io/run_folder.py", "records/particles.py")  # files: the same for both
WHY = {**dict.fromkeys((f"align/{name}.py" for name in ("marginalize", "prior", "reference_errors", "search")),
                       "CPU version"),
       "kernels/distance.py": "in merge and finish", "kernels/slices.py": "CPU version",
       "kernels/insert.py": "CPU version",
       "kernels/device.py": "needs a driver", "workers/selftest.py": "where the cache cannot be written",
       "kernels/background.py": "CPU version", "kernels/combined.py": "CPU version",
       "kernels/fixed_point.py": "CPU version", "kernels/shells.py": "CPU version", "kernels/moved.py": "CPU version",
       "maps/mask.py": "on the CPU", "align/half_sums.py": "on the CPU",
       "align/memory.py": "on the CPU", "io/image_problems.py": "on the CPU", "io/stored.py": "on the CPU",
       "records/poses.py": "on the CPU"}
GPU = "gpu"


@dataclass(frozen=True)
class Function:
    """A function of a module and its lines that hold statements."""

    module: str
    name: str
    lines: Tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """A function below the boundary. missing: its lines that no run on the stand-in executed."""

    function: Function
    executed: int
    missing: Tuple[int, ...]
    tests: Tuple[str, ...]


def functions_of(path: Path, module: str) -> List[Function]:
    """Functions and methods, each without those inside it."""
    tree, found = ast.parse(path.read_text(encoding="utf-8")), []

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
                name = prefix + child.name
                if isinstance(child, ast.FunctionDef):
                    found.append(Function(module, name, tuple(sorted(statements(child)))))
                visit(child, name + ".")
    visit(tree, "")
    return found


def statements(function: ast.FunctionDef) -> Set[int]:
    """First lines of the statements of a body, without docstrings and nested functions."""
    lines: Set[int] = set()
    for child in ast.walk(function):
        inner = child is not function and isinstance(child, (ast.FunctionDef, ast.ClassDef))
        if isinstance(child, ast.stmt) and child is not function and not inner and not is_text(child):
            lines.add(child.lineno)
    nested = [c for c in ast.walk(function) if isinstance(c, ast.FunctionDef) and c is not function]
    return lines - {line for n in nested for line in range(n.lineno, (n.end_lineno or n.lineno) + 1)}


def is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def rows_of(functions: Sequence[Function], contexts: Dict[int, List[str]]) -> List[Row]:
    """Functions below the boundary; ``contexts`` says of a line what executed it, as "test_x" or "test_x gpu"."""
    always = bool(functions) and functions[0].module in ALWAYS
    rows = []
    for f in functions:
        hits = {line: {c for c in contexts.get(line, []) if c and (always or c.endswith(GPU))} for line in f.lines}
        executed = [line for line in f.lines if hits[line]]
        if not executed and not always or not f.lines:
            continue
        tests = sorted({c.split()[0] for line in executed for c in hits[line]})
        rows.append(Row(f, len(executed), tuple(line for line in f.lines if not hits[line]), tuple(tests)))
    return rows


def run_tests(folder: Path) -> None:
    """The tests under coverage and gcov; what they leave is in ``folder``."""
    environment = dict(os.environ, GPU_COVERAGE=str(folder), NUMBA_NUM_THREADS="1")
    tests = [str(path_of_test(f"{name}.py")) for name in TESTS]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "gpu.coverage_plugin", *tests]
    subprocess.run(command, cwd=ROOT, check=True, env=dict(environment, PYTHONPATH=os.pathsep.join(
        [str(ROOT / "tests" / "support"), str(ROOT)])))


def python_rows(folder: Path) -> List[Row]:
    from coverage import CoverageData
    data = CoverageData(str(folder / "data"))
    data.read()
    rows = []
    for path in sorted(map(Path, data.measured_files())):
        module = path.relative_to(ENGINE).as_posix()
        if module in HOST:
            continue
        rows += rows_of(functions_of(path, module), data.contexts_by_lineno(str(path)))
    return rows


def cuda_lines(folder: Path, source: str) -> Tuple[int, List[str]]:
    """Number of executable lines of a .cu file, and those that no launch executed (text). By their text, for gcov sees
    the file inside another one."""
    wanted = [line.strip() for line in (ENGINE / "kernels" / source).read_text(encoding="ascii").splitlines()]
    executed: Set[str] = set()
    seen: Set[str] = set()
    for data in folder.glob("kernels/*.gcda"):
        done = subprocess.run(["gcov", "-t", str(data)], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                              universal_newlines=True)
        for line in done.stdout.splitlines():
            found = re.match(r"\s*([^:]+):\s*\d+:(.*)", line)
            if found and found.group(1).strip() != "-":
                text = found.group(2).strip()
                seen.add(text)
                if not found.group(1).strip().startswith(("#", "=")):
                    executed.add(text)
    executable = [text for text in wanted if text in seen and re.search(r"\w", text)]
    return len(executable), [text for text in executable if text not in executed]


def page(rows: Sequence[Row], cuda: Dict[str, Tuple[int, List[str]]]) -> str:
    modules: Dict[str, List[Row]] = {}
    for row in rows:
        modules.setdefault(row.function.module, []).append(row)
    head = ["file", "functions", "statements", "executed on the stand-in"]
    summary = [[f"`{name}`", str(len(mine)), str(sum(len(r.function.lines) for r in mine)),
                str(sum(r.executed for r in mine))] for name, mine in modules.items()]
    summary += [[f"`kernels/{name}`", "", str(count), str(count - len(missing))]
                for name, (count, missing) in cuda.items()]
    details = [[f"`{r.function.module}` {r.function.name}", f"{r.executed} of {len(r.function.lines)}",
                " ".join(t.replace("test_", "") for t in r.tests)] for r in rows]
    return "\n\n".join(["## By file", table(head, summary), "## Statements that none of these tests executes on it",
                        not_executed(rows, cuda), "## By function",
                        table(["function", "statements", "tests"], details)])


def not_executed(rows: Sequence[Row], cuda: Dict[str, Tuple[int, List[str]]]) -> str:
    lines = []
    for row in rows:
        text = (ENGINE / row.function.module).read_text(encoding="utf-8").splitlines()
        lines += [[f"`{row.function.module}` {row.function.name}", f"`{text[n - 1].strip()}`".replace("|", "\\|"),
                   WHY.get(row.function.module, "")] for n in row.missing]
    lines += [[f"`kernels/{name}`", f"`{text}`", ""] for name, (_, missing) in cuda.items() for text in missing]
    return table(["where", "statement", "why"], lines) if lines else "None."


def main(arguments: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the table of gpu-coverage.md")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run_tests(folder)
        text = page(python_rows(folder), {source: cuda_lines(folder, source) for source in (*SOURCES, "poses.cuh")})
    text += f"\n\nCommit {commit()}: `python -m benchmarks.operators.gpu_coverage --write`."
    print(text)
    if options.write:
        write_section("gpu coverage", text, PAGE)


if __name__ == "__main__":
    main()
