"""The table of what is executed: a line is only said to be executed when it was, on the GPU, by that test."""
from __future__ import annotations

import shutil
import subprocess

from conftest import require_program

from benchmarks.operators import gpu_coverage
from benchmarks.operators.gpu_coverage import functions_of, rows_of

MODULE = '''\
class Sums:
    """Text is no statement."""

    def add(self, value):
        """Nor is this."""
        if value:
            return 1
        return 2


def outer():
    def inner():
        return 3
    return inner


def never():
    return 4
'''
CUDA = """\
extern "C" __global__ void scaled(float* a, int n)
{
    const int i = (int)threadIdx.x;
    if (i >= n)
        return;
    if (a[i] > 100.0f)
        a[i] = 0.0f;
    a[i] *= 2.0f;
}
"""


def test_functions_have_the_lines_of_their_own_statements(tmp_path):
    (tmp_path / "sums.py").write_text(MODULE)
    assert {f.name: f.lines for f in functions_of(tmp_path / "sums.py", "sums.py")} == {
        "Sums.add": (6, 7, 8), "outer": (14,), "outer.inner": (13,), "never": (18,)}


def test_only_what_a_gpu_did_counts(tmp_path):
    (tmp_path / "sums.py").write_text(MODULE)
    contexts = {6: ["test_a", "test_b gpu"], 7: ["test_b gpu"], 8: ["test_a"], 14: ["test_a"], 13: []}
    rows = rows_of(functions_of(tmp_path / "sums.py", "sums.py"), contexts)
    assert [(r.function.name, r.executed, r.missing, r.tests) for r in rows] == [("Sums.add", 2, (8,), ("test_b",))]
    everything = rows_of(functions_of(tmp_path / "sums.py", "kernels/cuda.py"), contexts)
    assert [(r.function.name, r.executed) for r in everything] == [
        ("Sums.add", 3), ("outer", 1), ("outer.inner", 0), ("never", 0)]


def test_lines_of_a_kernel_are_those_gcov_saw(tmp_path, monkeypatch):
    """In a process of its own, for gcov writes at its end."""
    require_program("g++")
    require_program("gcov")
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "scaled.cu").write_text(CUDA)
    shim = gpu_coverage.ROOT / "tests" / "support" / "gpu" / "cuda_shim.h"
    program = tmp_path / "kernels" / "program"
    program.with_suffix(".cpp").write_text(shim.read_text() + CUDA + """
int main() { float a[2] = {1.0f, 2.0f}; over_grid({1, 1, 1}, {3, 1, 1}, 1, [&] { scaled(a, 2); }); return a[1] != 4; }
""")
    subprocess.run([str(shutil.which("g++")), "-pthread", "--coverage", "-o", str(program), str(program) + ".cpp"],
                   cwd=tmp_path / "kernels", check=True)
    subprocess.run([str(program)], cwd=tmp_path / "kernels", check=True)
    monkeypatch.setattr(gpu_coverage, "ENGINE", tmp_path)
    count, missing = gpu_coverage.cuda_lines(tmp_path, "scaled.cu")
    assert count >= 6 and missing == ["a[i] = 0.0f;"]
