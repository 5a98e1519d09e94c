"""Which array library and which GPU: the only place that knows both numpy and CuPy.

The device is a word at the edge ("auto", "cpu", "cuda", "cuda:1"); `choose_device` turns it into a
`Device`, which puts arrays where they belong. Inside the engine an array carries the device and
`array_module` asks the array.
"""
from __future__ import annotations

import ctypes
import importlib.util
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import numpy as np

from ..progress import say
from ..records.errors import InputError

Array = Any
OLDEST_DRIVER = 11020  # as cuDriverGetVersion counts: CUDA 11.2, the oldest that CuPy 13's wheels accept
# The pip packages of each library; CuPy wants the headers (cuda-runtime) of the same release as NVRTC.
PACKAGES: Dict[str, Dict[str, List[str]]] = {
    cuda: {"NVRTC": [f"nvidia-cuda-nvrtc{suffix}=={release}.*", f"nvidia-cuda-runtime{suffix}=={release}.*"],
           "cuFFT": [f"nvidia-cufft{suffix}"], "cuBLAS": [f"nvidia-cublas{suffix}"]}
    for cuda, suffix, release in (("11", "-cu11", "11.8"), ("12", "-cu12", "12.9"), ("13", "", "13.0"))}
LIBRARIES = ("cudart", "nvrtc", "nvJitLink", "cublasLt", "cublas", "cufft", "cusparse", "cusolver")  # load order
# How CUDA's runtime and driver, cuFFT and cuBLAS say that they found no memory
MEMORY_FULL = ("cudaErrorMemoryAllocation", "CUDA_ERROR_OUT_OF_MEMORY", "ALLOC_FAILED")
MEMORY_SHARE = 0.9  # of what is free when we start: the rest is for the driver and cuFFT's own needs
VOLUMES_AT_ONCE = 16  # maps, transforms and temporaries of the FSC with random phases
HOST_WORKING_BYTES = 1 << 26  # a few core caches
DEVICE_WORKING_BYTES = 1 << 30


def array_module(array: Any) -> Any:
    """numpy or cupy, whichever ``array`` belongs to (Python scalars count as numpy)."""
    if type(array).__module__.split(".")[0] == "cupy":
        import cupy
        return cupy
    return np


def to_host(array: Any) -> np.ndarray:
    """The array as numpy's; waits for the device."""
    return array if array_module(array) is np else array.get()


def to_host_at_once(*arrays: Any) -> List[np.ndarray]:
    """Arrays of numbers that float64 holds, as numpy's; one wait for all of them."""
    xp = array_module(arrays[0])
    if xp is np:
        return list(arrays)
    flat = xp.concatenate([array.ravel().astype(np.float64) for array in arrays]).get()
    parts = np.split(flat, np.cumsum([array.size for array in arrays])[:-1])
    return [part.reshape(array.shape).astype(array.dtype) for part, array in zip(parts, arrays)]


def stable_argsort(values: Any, axis: int = -1) -> Any:
    """The order that sorts values; equal ones keep theirs. CuPy always does, numpy when it is told to."""
    return np.argsort(values, axis=axis, kind="stable") if array_module(values) is np else array_module(
        values).argsort(values, axis=axis)


def blank(shape: Tuple[int, ...], dtype: Any = np.float32, xp: Any = np) -> Any:
    """Zeros. numpy 1 asks for large pages for empty arrays, but not for zeros: for volumes this is three times as
    fast."""
    array = xp.empty(shape, dtype)
    array.fill(0)
    return array


def working_bytes(array: Any) -> int:
    """How much a loop may hold in temporaries where ``array`` lives: caches, or a small part of a GPU."""
    return HOST_WORKING_BYTES if array_module(array) is np else DEVICE_WORKING_BYTES


@dataclass(frozen=True)
class Device:
    """Where arrays live. word: "cpu" or "cuda:N"; description: one line for a log; identity: GPU and software."""

    word: str
    description: str
    identity: str = ""

    @property
    def on_gpu(self) -> bool:
        return self.word != "cpu"

    @property
    def xp(self) -> Any:
        """numpy or cupy."""
        if not self.on_gpu:
            return np
        import cupy
        return cupy

    def current(self) -> Any:
        """A GPU made the current one of this thread, for a with statement."""
        return self.xp.cuda.Device(int(self.word.split(":")[1]))

    def to_device(self, array: Array) -> Array:
        """``array`` (numpy's, or here already) on this device."""
        return self.xp.asarray(array)

    def wait(self) -> None:
        """Until the device has done what it was told; so that a clock tells the truth."""
        if self.on_gpu:
            self.xp.cuda.get_current_stream().synchronize()

    def memory_bytes(self) -> int:
        """What a run may use of the GPU: free memory, or less if CuPy was given a limit."""
        pool = self.xp.get_default_memory_pool()
        free, _ = self.xp.cuda.runtime.memGetInfo()
        free += pool.free_bytes()
        return int(min(free, pool.get_limit() - pool.used_bytes()) if pool.get_limit() else MEMORY_SHARE * free)

    def release(self) -> None:
        """Give back what nobody uses: pooled blocks and the work space of FFT plans."""
        if self.on_gpu:
            self.xp.fft.config.clear_plan_cache()
            self.xp.get_default_memory_pool().free_all_blocks()

    def says_full(self, error: Exception) -> bool:
        """Whether an exception says that memory for the GPU's work is full: CuPy's pool, a library, or the host's."""
        of_library = type(error).__module__.startswith("cupy") and any(word in str(error) for word in MEMORY_FULL)
        return self.on_gpu and (isinstance(error, MemoryError) or of_library)


CPU = Device("cpu", "CPU")


def device_for_volumes(device: Device, box_size: int) -> Device:
    """Where maps (N, N, N) are filtered and compared: the GPU if its memory holds VOLUMES_AT_ONCE of them, or the CPU,
    which is said."""
    need = VOLUMES_AT_ONCE * 4 * box_size ** 3
    if not device.on_gpu or device.memory_bytes() >= need:
        return device
    say(f"the GPU's free memory ({device.memory_bytes() / 2 ** 30:.1f} GiB) does not hold {VOLUMES_AT_ONCE} maps of "
        f"{box_size} px ({need / 2 ** 30:.1f} GiB): they are filtered and compared on the CPU")
    return CPU


class Unusable(Exception):
    """Why a GPU cannot be used, and what to do."""

    def __init__(self, problem: str, remedy: str):
        self.problem, self.remedy = problem, remedy
        super().__init__(problem, remedy)


def choose_device(word: str) -> Device:
    """The device of "auto", "cpu", "cuda" or "cuda:N"; N counts the GPUs that CUDA_VISIBLE_DEVICES leaves.

    Without a driver this takes microseconds. On a GPU, NVRTC, cuFFT and cuBLAS are each called once, so that a missing
    library is found here and not in the middle of a run.

    Raises
    ------
    InputError : a GPU was asked for by name and cannot be used.
    """
    if word == "cpu":
        return Device("cpu", f"CPU ({available_threads()} threads)")
    try:
        return open_gpu(int(word.split(":")[1]) if ":" in word else 0)
    except Unusable as reason:
        if word == "auto":
            return Device("cpu", f"CPU ({available_threads()} threads), because {reason.problem}; {reason.remedy}")
        raise InputError(reason.problem, f"device {word}", reason.remedy) from None


def ignore_experimental() -> None:
    """Silence CuPy where it says of fft.cache.clear_plan_cache, which `Device.release` calls, that it may change."""
    warnings.filterwarnings("ignore", r".*clear_plan_cache is experimental", FutureWarning)


def available_threads() -> int:
    import numba
    return int(numba.get_num_threads())


def open_gpu(index: int) -> Device:
    """GPU ``index`` made current, its libraries tried, its memory capped; Unusable if anything is missing."""
    driver = ask_driver(index)
    install = f"pip install 'scipion-em-localrefine[cuda{min(13, driver['version'] // 1000)}]'"
    if importlib.util.find_spec("cupy") is None:
        raise Unusable("CuPy is not installed", install)
    preload_libraries()
    ignore_experimental()
    try:
        import cupy
        cupy.cuda.Device(index).use()
        cuda = str(cupy.cuda.runtime.runtimeGetVersion() // 1000)  # what this CuPy was built for
    except Exception as error:
        raise Unusable(f"CuPy does not work here ({one_line(error)})", install) from None
    failed = failing_libraries(cupy)
    if failed:
        problem = "; ".join(f"{library} does not work ({why})" for library, why in failed.items())
        packages = " ".join(f"'{package}'" for library in failed for package in PACKAGES[cuda][library])
        raise Unusable(problem, f"install a CUDA {cuda} toolkit, or its parts: pip install {packages}")
    pool = cupy.get_default_memory_pool()
    free, total = cupy.cuda.runtime.memGetInfo()
    if not pool.get_limit():  # CUPY_GPU_MEMORY_LIMIT was not set
        pool.set_limit(size=int(MEMORY_SHARE * free))
    software = (f"compute capability {driver['capability']}, driver for CUDA {driver['version'] // 1000}."
                f"{driver['version'] % 1000 // 10}, CUDA {cuda}, CuPy {cupy.__version__}")
    memory = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    name = driver["name"]
    return Device(f"cuda:{index}", f"GPU {index}: {name}, {memory}, {software}", f"{name}, {software}")


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def gpu_count() -> int:
    """GPUs that the driver sees."""
    count = ctypes.c_int(0)
    try:
        driver = load_driver()
    except OSError:
        return 0
    return count.value if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0


def load_driver() -> Any:
    """The driver's library; OSError without one."""
    return ctypes.CDLL("libcuda.so.1")


def ask_driver(index: int) -> Dict[str, Any]:
    """Driver version, name and compute capability of a GPU, from the driver alone; Unusable if there is none."""
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # GPUs counted as nvidia-smi shows them
    try:
        driver = load_driver()
    except OSError:
        raise Unusable("there is no NVIDIA driver (libcuda.so.1)",
                       "install NVIDIA's driver, or run where there is a GPU") from None
    count, version = ctypes.c_int(0), ctypes.c_int(0)
    status = driver.cuInit(0)
    if status != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        raise Unusable(f"the NVIDIA driver finds no GPU (status {status})",
                       "try nvidia-smi" if visible is None else f"CUDA_VISIBLE_DEVICES is '{visible}'")
    if index >= count.value:
        raise Unusable(f"there is no GPU {index} (the driver sees {count.value}, counted from 0)",
                       f"choose cuda:0 … cuda:{count.value - 1}")
    driver.cuDriverGetVersion(ctypes.byref(version))
    if version.value < OLDEST_DRIVER:
        raise Unusable(f"the NVIDIA driver is too old (for CUDA {version.value // 1000}.{version.value % 1000 // 10})",
                       "install one for CUDA 11.2 or newer")
    name, handle = ctypes.create_string_buffer(128), ctypes.c_int(0)
    major, minor = ctypes.c_int(0), ctypes.c_int(0)
    driver.cuDeviceGet(ctypes.byref(handle), index)
    driver.cuDeviceGetName(name, len(name), handle)
    driver.cuDeviceGetAttribute(ctypes.byref(major), 75, handle)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
    driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, handle)
    return dict(version=version.value, name=name.value.decode("ascii", "replace"),
                capability=f"{major.value}.{minor.value}")


def library_calls(cupy: Any) -> Dict[str, Callable[[], Any]]:
    """One small call into each CUDA library that the engine needs."""
    def compiled() -> Any:
        module = cupy.RawModule(code='extern "C" __global__ void nothing(int n) {}')
        module.get_function("nothing")((1,), (1,), (np.int32(0),))
        return cupy.arange(4).sum().get()
    return {
        "NVRTC": compiled,
        "cuFFT": lambda: cupy.fft.rfft2(cupy.zeros((1, 8, 8), np.float32)).get(),
        "cuBLAS": lambda: cupy.matmul(cupy.ones((8, 8), np.float32), cupy.ones((8, 8), np.float32)).get(),
    }


def failing_libraries(cupy: Any) -> Dict[str, str]:
    """{library: why it does not work}."""
    failed = {}
    for library, call in library_calls(cupy).items():
        try:
            call()
        except Exception as error:
            failed[library] = one_line(error)
    return failed


def preload_libraries() -> List[str]:
    """Load the CUDA libraries of pip's nvidia-* packages, which CuPy 13 does not look for; the paths loaded.

    What is not there is left to the system's loader (a CUDA toolkit, LD_LIBRARY_PATH).
    """
    spec = importlib.util.find_spec("nvidia")
    loaded = []
    for stem in LIBRARIES if spec is not None else ():
        for path in library_files(tuple(spec.submodule_search_locations or ()), stem):  # type: ignore[union-attr]
            try:
                ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
                loaded.append(str(path))
            except OSError:
                continue
    return loaded


def library_files(folders: Tuple[str, ...], stem: str) -> List[Path]:
    """lib<stem>.so.N in nvidia/*/lib, whatever package it belongs to."""
    return [path for folder in folders for path in sorted(Path(folder).glob(f"*/lib/lib{stem}.so.*"))]
