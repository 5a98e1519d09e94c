"""The CUDA sources compiled for every architecture CuPy 13 serves: no spills, few registers, nothing forbidden.

NVRTC, the compiler that CuPy itself calls, comes from pip and needs neither a driver nor a GPU. Nothing is executed
here.
"""
from __future__ import annotations

import ctypes
import importlib.util
import re
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path

import pytest
from conftest import REQUIRE_OPTIONAL, _missing

from localrefine_plugin.engine.kernels import cuda
from localrefine_plugin.engine.kernels.cuda import SOURCES

ARCHITECTURES = (60, 61, 70, 75, 80, 86, 89, 90, 100, 120)  # Pascal … Blackwell
KERNELS = {"extract_slices", "slices_and_power", "gradient_sums", "curvature_sums", "insert_slices",
           "insert_slices_fixed", "exact_sums", "shell_sums", "density_sums", "sum_of_moved",
           "place_modes", "sample_modes", "begin_newton", "propose_steps", "accept_steps", "mark_modes", "weigh_modes",
           "pose_errors", "make_insertions", "add_grid_prior", "sum_shells", "nearest_along", "cell_sums"}
# 128 threads of 96 registers: five blocks on a multiprocessor of 65,536 registers, 31 % of its threads at the least
MOST_REGISTERS = 96
# One thread for a pose: there are a few thousand of them, which fit in any number of registers. CUDA's sine and cosine
# of float64 keep an array for large angles.
POSES, MOST_REGISTERS_OF_POSES, STACK_OF_SINE = ("newton.cu", "posterior.cu"), 255, 40


@lru_cache(maxsize=None)
def nvrtc():
    """NVRTC from the package nvidia-cuda-nvrtc-cu12, or None."""
    spec = importlib.util.find_spec("nvidia")
    folders = spec.submodule_search_locations if spec else ()
    files = [path for folder in folders for path in Path(folder).glob("cuda_nvrtc/lib/libnvrtc.so.*")]
    return ctypes.CDLL(str(files[0])) if files else None


def compile_log(code: str, architecture: int) -> str:
    """What ptxas says of a source compiled with CuPy's options; RuntimeError with the log if it does not compile."""
    library = nvrtc()
    if library is None:
        _missing("NVRTC is not installed (pip install nvidia-cuda-nvrtc-cu12)", REQUIRE_OPTIONAL)
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    library.nvrtcCreateProgram(ctypes.byref(program), code.encode("ascii"), b"kernel.cu", 0, None, None)
    options = [b"--std=c++11", b"--device-as-default-execution-space", b"--ptxas-options=-v",
               f"--gpu-architecture=sm_{architecture}".encode()]
    status = library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    library.nvrtcDestroyProgram(ctypes.byref(program))
    if status:
        raise RuntimeError(log.value.decode())
    return log.value.decode()


def usage(log: str):
    """{kernel: (registers, spilled bytes, stack)} from the compiler's own words."""
    found = re.findall(r"entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill "
                       r"loads.*?Used (\d+) registers", log, re.DOTALL)
    return {name: (int(registers), int(stores) + int(loads), int(stack))
            for name, stack, stores, loads, registers in found}


def assert_lean(log: str, kernels, most_registers=MOST_REGISTERS, most_stack=0):
    used = usage(log)
    assert set(used) == set(kernels)
    for name, (registers, spilled, stack) in used.items():
        assert registers <= most_registers and spilled == 0 and stack <= most_stack, (name, registers, spilled, stack)


def limits(source: str):
    return (MOST_REGISTERS_OF_POSES, STACK_OF_SINE) if source in POSES else (MOST_REGISTERS, 0)


def kernels_of(source: str):
    return set(re.findall(r'extern "C" __global__ void (\w+)\(', cuda.source_text(source)))


def test_all_kernels_are_known():
    assert set().union(*(kernels_of(source) for source in SOURCES)) == KERNELS
    assert {path.name for path in Path(cuda.__file__).parent.glob("*.cu")} == set(SOURCES)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES)
def test_compiles_without_spills(source, architecture):
    assert_lean(compile_log(cuda.source_text(source), architecture), kernels_of(source), *limits(source))


@pytest.mark.parametrize("source", SOURCES)
def test_compiles_with_nvcc_as_well(source, tmp_path):
    """A second compiler, of another CUDA release, where it is installed; it is not one of the optional programs."""
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    done = subprocess.run(["nvcc", "-std=c++11", "-arch=sm_75", "-cubin", "-Xptxas", "-v", "-o", str(tmp_path / "out"),
                           str(Path(cuda.__file__).parent / source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_lean(done.stderr, kernels_of(source), *limits(source))


@pytest.mark.parametrize("source", SOURCES)
def test_nothing_that_makes_threads_depend_on_each_other(source):
    """What the CPU's execution of a kernel, one thread after the other, could not judge."""
    forbidden = r"__syncthreads|__shared__|__shfl|__ballot|__syncwarp|cooperative|tex[123]D|surf[123]D|volatile|asm"
    assert not re.search(forbidden, cuda.source_text(source))


def test_a_spilling_kernel_is_noticed():
    """A planted bug: an array that is indexed at run time lives in local memory."""
    code = """extern "C" __global__ void hungry(float* a, int n) {
        float t[64];
        for (int i = 0; i < 64; i++) t[i] = a[i];
        for (int i = 0; i < n; i++) t[(i * i) % 64] += a[i];
        for (int i = 0; i < 64; i++) a[i] = t[i];
    }"""
    with pytest.raises(AssertionError):
        assert_lean(compile_log(code, 80), {"hungry"})


def test_a_mistake_in_a_source_is_noticed():
    with pytest.raises(RuntimeError, match="error"):
        compile_log(cuda.source_text("slices.cu").replace("float2 p;", "float2 p", 1), 80)
