"""Choosing a device: what is found, and what is said when something is missing, by a driver and a CuPy made up here."""
from __future__ import annotations

import importlib.util
import subprocess
import sys
import warnings

import numpy as np
import pytest
from gpu.driver import Driver
from gpu.fixtures import install

from localrefine_plugin.engine import refine as refine_module
from localrefine_plugin.engine.kernels import device as device_module
from localrefine_plugin.engine.kernels.batches import in_batches
from localrefine_plugin.engine.kernels.device import CPU, Device, array_module, choose_device, to_host
from localrefine_plugin.engine.records.errors import InputError
from localrefine_plugin.engine.records.settings import Settings


@pytest.fixture
def driver(monkeypatch):
    """Puts a driver into the machine."""
    def put(**kwargs):
        monkeypatch.setattr(device_module, "load_driver", lambda: Driver(**kwargs))
    return put


@pytest.fixture
def no_driver(monkeypatch):
    def load():
        raise OSError("libcuda.so.1: cannot open shared object file")
    monkeypatch.setattr(device_module, "load_driver", load)


@pytest.fixture
def cupy(monkeypatch):
    monkeypatch.setattr(device_module, "preload_libraries", lambda: [])
    return install(monkeypatch)


def refusal(word="cuda"):
    with pytest.raises(InputError) as caught:
        choose_device(word)
    return caught.value


def test_without_a_driver_auto_takes_the_cpu_and_says_why(no_driver):
    chosen = choose_device("auto")
    assert chosen.word == "cpu" and chosen.xp is np
    assert "no NVIDIA driver" in chosen.description and "\n" not in chosen.description


def test_without_a_driver_a_gpu_asked_for_is_an_error_with_a_remedy(no_driver):
    error = refusal("cuda:1")
    assert error.source == "device cuda:1" and "no NVIDIA driver" in error.problem and "install" in error.remedy


def test_the_cpu_asks_nobody(monkeypatch):
    monkeypatch.setattr(device_module, "open_gpu", None)
    assert choose_device("cpu").word == "cpu"


def test_without_a_driver_cupy_is_not_even_imported():
    """It takes a second to import."""
    code = ("from localrefine_plugin.engine.kernels import device\n"
            "def load(): raise OSError\n"
            "device.load_driver = load\n"
            "device.choose_device('auto')\n"
            "import sys; sys.exit('cupy' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("machine, word, said", [
    (dict(gpus=0), "cuda", "finds no GPU"),
    (dict(status=100), "cuda", "finds no GPU (status 100)"),
    (dict(gpus=2), "cuda:2", "there is no GPU 2 (the driver sees 2"),
    (dict(version=10020), "cuda", "too old (for CUDA 10.2)"),
])
def test_what_is_wrong_with_the_driver_is_said(driver, cupy, machine, word, said):
    driver(**machine)
    assert said in refusal(word).problem
    assert choose_device("auto").word == "cpu" or word == "cuda:2"


def test_what_cupy_calls_experimental_is_not_said_to_users(driver, cupy):
    """The sentence of cupy._util.experimental, which CuPy 12 and 13 say at every `Device.release`."""
    driver()
    experimental = "{} is experimental. The interface can change in the future."
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        choose_device("cuda")
        warnings.warn(experimental.format("cupy.fft.cache.clear_plan_cache"), FutureWarning, stacklevel=1)
        warnings.warn(experimental.format("cupy.other"), FutureWarning, stacklevel=1)
    assert [str(warning.message) for warning in caught] == [experimental.format("cupy.other")]


def test_hidden_gpus_are_explained(driver, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    driver(gpus=0)
    assert "CUDA_VISIBLE_DEVICES is '-1'" in refusal().remedy


@pytest.mark.parametrize("version, extra", [(11040, "cuda11"), (12080, "cuda12"), (13000, "cuda13"), (14000, "cuda13")])
def test_without_cupy_the_extra_for_this_driver_is_named(driver, monkeypatch, version, extra):
    driver(version=version)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    error = refusal()
    assert "CuPy is not installed" in error.problem and f"scipion-em-localrefine[{extra}]" in error.remedy


def test_a_gpu_in_order_is_described_in_one_line(driver, cupy):
    driver(gpus=2)
    chosen = choose_device("cuda:1")
    assert chosen.word == "cuda:1" and chosen.xp is cupy
    for part in ("GPU 1: GPU 1", "4.0 of 8.0 GiB", "capability 8.6", "driver for CUDA 12.8", "CUDA 12",
                 f"CuPy {cupy.__version__}"):
        assert part in chosen.description
    assert "\n" not in chosen.description


def test_auto_takes_the_first_gpu(driver, cupy):
    driver(gpus=2)
    assert choose_device("auto").word == "cuda:0"


@pytest.mark.parametrize("library, package, broken", [
    ("NVRTC", "nvidia-cuda-runtime-cu12==12.9.*", "RawModule"),
    ("cuFFT", "nvidia-cufft-cu12", "fft.rfft2"),
    ("cuBLAS", "nvidia-cublas-cu12", "matmul"),
])
def test_a_missing_library_is_named_with_the_package_that_brings_it(driver, cupy, library, package, broken):
    def fail(*_, **__):
        raise RuntimeError(f"{library} is not\nthere")
    module, _, name = broken.rpartition(".")
    (getattr(cupy, module) if module else cupy).__dict__[name] = fail
    driver()
    error = refusal()
    assert f"{library} does not work ({library} is not there)" in error.problem and package in error.remedy
    assert error.problem.count("does not work") == 1
    assert choose_device("auto").word == "cpu"


def test_cupy_that_cannot_be_imported_is_an_error_not_a_crash(driver, cupy):
    driver()

    def broken(index):
        raise ImportError("CuPy failed to load libnvrtc")
    cupy.cuda.Device = broken
    assert "CuPy does not work here (CuPy failed to load libnvrtc)" in refusal().problem


def test_memory_is_capped_so_that_others_have_room(driver, cupy):
    driver()
    chosen = choose_device("cuda")
    pool = cupy.get_default_memory_pool()
    assert pool.get_limit() == int(0.9 * (4 << 30))
    assert chosen.memory_bytes() == pool.get_limit()
    pool.set_limit(size=1 << 30)  # as CUPY_GPU_MEMORY_LIMIT does
    assert choose_device("cuda").memory_bytes() == 1 << 30


def test_libraries_of_pip_are_loaded_in_the_order_of_their_needs(monkeypatch, tmp_path):
    for package, library in (("cublas", "libcublas.so.12"), ("cublas", "libcublasLt.so.12"),
                             ("cufft", "libcufft.so.11"), ("cu13", "libcudart.so.13"),
                             ("cuda_nvrtc", "libnvrtc.so.12")):
        path = tmp_path / package / "lib" / library
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    spec = importlib.util.spec_from_loader("nvidia", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    loaded = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(device_module.ctypes, "CDLL",
                        lambda path, mode: loaded.append((path.rsplit("/", 1)[1], mode)))
    device_module.preload_libraries()
    assert [name for name, _ in loaded] == ["libcudart.so.13", "libnvrtc.so.12", "libcublasLt.so.12",
                                            "libcublas.so.12", "libcufft.so.11"]
    assert {mode for _, mode in loaded} == {device_module.ctypes.RTLD_GLOBAL}


def test_a_library_that_cannot_be_loaded_is_left_to_the_system(monkeypatch, tmp_path):
    (tmp_path / "cufft" / "lib").mkdir(parents=True)
    (tmp_path / "cufft" / "lib" / "libcufft.so.11").write_text("not a library")
    spec = importlib.util.spec_from_loader("nvidia", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert device_module.preload_libraries() == []


def test_the_array_carries_the_device(cupy):
    a = np.arange(3.0)
    on_gpu = Device("cuda:0", "").to_device(a)
    assert array_module(on_gpu) is cupy and array_module(a) is np and array_module(1.0) is np
    np.testing.assert_array_equal(to_host(on_gpu), a)
    assert CPU.to_device(a) is a


def test_a_run_that_cannot_have_its_gpu_writes_nothing(no_driver, tmp_path):
    with pytest.raises(InputError, match="no NVIDIA driver"):
        refine_module.refine("particles", "map", "map", "mask", str(tmp_path / "run"), Settings(), device="cuda")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("count, size", [(0, 4), (1, 4), (4, 4), (9, 4)])
def test_batches_cover_every_row_once_and_in_order(count, size):
    rows = []
    in_batches(lambda batch: rows.append(batch), (3, 3 + count), size, CPU, str)
    assert all(len(batch) <= size for batch in rows)
    np.testing.assert_array_equal(np.concatenate(rows or [np.zeros(0)]), 3 + np.arange(count))


def test_the_hosts_own_lack_of_memory_is_not_hidden():
    def do(rows):
        raise MemoryError
    with pytest.raises(MemoryError):
        in_batches(do, (0, 64), 32, CPU, str)
