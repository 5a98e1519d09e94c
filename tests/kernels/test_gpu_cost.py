"""What the engine asks of a GPU: bytes over the bus, waits, memory; and what happens where memory is full."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from gpu.fixtures import STAND_IN, install
from small_experiments import BOX, RESOLUTION, aligned, assert_same, small_experiment

from localrefine_plugin.engine.align import half_set as align_module
from localrefine_plugin.engine.align.half_alignment import HalfAlignment
from localrefine_plugin.engine.align.half_set import align_half
from localrefine_plugin.engine.align.memory import MemoryNeed, check_fits, need_of, prediction
from localrefine_plugin.engine.align.other_bodies import OtherBody
from localrefine_plugin.engine.align.reference_errors import ReferenceErrors
from localrefine_plugin.engine.align.search_plan import grid_of
from localrefine_plugin.engine.kernels import batches
from localrefine_plugin.engine.kernels.device import CPU
from localrefine_plugin.engine.kernels.prefetch import from_array
from localrefine_plugin.engine.model.pixels import pixel_list
from localrefine_plugin.engine.records.errors import InputError


@pytest.fixture
def cupy(monkeypatch):
    return install(monkeypatch)


def cost(cupy, e, monkeypatch, batch, **settings):
    monkeypatch.setattr(align_module, "LARGEST_BATCH", batch)
    before = dict(vars(cupy.ledger.counts))
    aligned(e, STAND_IN, **dict(dict(prior="gaussian", marginalize=True), **settings))
    return {name: value - before[name] for name, value in vars(cupy.ledger.counts).items()}


def test_bytes_moved_per_particle_are_its_image_and_little_more(cupy, monkeypatch):
    """Up: the image (4 N² bytes), pose, CTF and prior; down: the row of the pose table."""
    few, many = (cost(cupy, small_experiment(n), monkeypatch, 100) for n in (8, 24))
    up = (many["bytes_to_device"] - few["bytes_to_device"]) / 16
    down = (many["bytes_to_host"] - few["bytes_to_host"]) / 16
    assert 4 * BOX ** 2 <= up < 4 * BOX ** 2 + 700
    assert down < 1500


def test_waits_are_per_batch_and_not_per_particle(cupy, monkeypatch):
    one = cost(cupy, small_experiment(24), monkeypatch, 100)["waits"]
    two = cost(cupy, small_experiment(24), monkeypatch, 12)["waits"]
    assert one <= 25 and two <= 2 * one


def cost_of_a_batch(cupy, e, previous, resolution, **of_half):
    """Calls (kernels among them) and waits of the second iteration's one batch, of its search alone, and of images that
    show nothing (verdicts)."""
    plan = e.plan(resolution, prior="learned", marginalize=True)
    errors = ReferenceErrors(np.full((BOX - 1) // 2 + 1, 0.8), np.full((BOX - 1) // 2 + 1, 0.01), 20 * np.eye(3))
    half = e.half_set(previous=previous, reference_errors=errors, **of_half)
    work, found = HalfAlignment(half, plan, STAND_IN, 1), {}

    def counted(name, do):
        def wrapped(*arguments):
            before = dict(vars(cupy.ledger.counts))
            result = do(*arguments)
            count = {key: value - before[key] for key, value in vars(cupy.ledger.counts).items()}
            found[name] = count["calls"] + count["launches"], count["waits"]
            return result
        return wrapped
    work.search = counted("search", work.search)
    counted("batch", work.add)(np.arange(len(e.particles)))
    counted("nulls", work.add_nulls)(np.arange(4))
    return found


def test_calls_and_waits_of_a_batch_have_bounds(cupy):
    """Whatever is optional in it, from known poses and from the grid, with self-noise. A wait: one for the candidates,
    one for each level, one each for the number of insertions, the range of the sums, the noise and the poses; and six
    that end the clock's phases. A level more costs 41 calls and a wait. Images that show nothing are a batch
    of their own."""
    e = small_experiment(24)
    previous = replace(aligned(e, CPU, prior="learned", marginalize=True).poses, modes=1 + np.arange(24) % 2)
    two = cost_of_a_batch(cupy, e, previous, RESOLUTION)
    three = cost_of_a_batch(cupy, e, previous, 8.8)
    assert two["batch"][0] <= 370 and two["batch"][1] <= 13
    assert two["search"][0] <= 130 and two["search"][1] <= 3
    assert 0 < three["search"][0] - two["search"][0] <= 41 and three["search"][1] - two["search"][1] == 1
    assert two["nulls"][0] <= 230 and two["nulls"][1] <= 4
    body = OtherBody(e.half_set().reference_map, e.mask, e.particles.rotation, e.particles.shift_px)
    both = cost_of_a_batch(cupy, e, previous, RESOLUTION, others=[body] * 2)
    for part, (calls, waits) in two.items():  # each of two other bodies costs 23
        more = 0 if part == "search" else 46
        assert both[part][0] <= calls + more and both[part][1] == waits
    more = small_experiment(48)
    previous = replace(aligned(more, CPU, prior="learned", marginalize=True).poses, modes=1 + np.arange(48) % 2)
    assert cost_of_a_batch(cupy, more, previous, RESOLUTION) == two


def watched(e, after_batch, **settings):
    align_half(e.half_set(), e.plan(RESOLUTION, **settings), STAND_IN, progress=lambda *_: after_batch())


def need(e, **settings):
    plan = e.plan(RESOLUTION, **settings)
    return need_of(plan, e.particles, (BOX - 1) // 2, e.mask, STAND_IN)


@pytest.mark.parametrize("settings", [dict(), dict(prior="gaussian", marginalize=True)],
                         ids=str)
def test_memory_is_at_most_what_was_predicted(cupy, settings):
    """And not much less: all arrays alive at a time, but what a library takes inside its functions."""
    e, peaks = small_experiment(48), []
    watched(e, lambda: peaks.append(cupy.ledger.peak), **settings)
    predicted = need(e, **settings)
    batch = predicted.sums + predicted.reference + 48 * (predicted.image + predicted.temporaries)
    assert 0.5 * batch < max(peaks) <= batch
    assert cupy.ledger.peak - max(peaks) <= predicted.reconstruction


def test_double_precision_is_for_poses_and_phases(cupy):
    """In the batches: nothing larger than the grid's rotation matrices or the phases of the pixels in use."""
    e, doubles = small_experiment(48), []
    plan = e.plan(RESOLUTION)
    pixels = len(pixel_list(BOX, plan.align_shell, (BOX - 1) // 2))
    rotations = len(grid_of(plan, BOX, e.particles.pixel_size)[0].rotations)
    watched(e, lambda: doubles.append(cupy.ledger.largest_double))
    assert max(doubles) <= 48 * 8 * max(pixels, 9 * rotations)


def with_limit(cupy, e, share):
    """Aligned with so little memory that no more than this share of a whole batch's is there."""
    ledger, sizes, peaks, limits = cupy.ledger, [], [], [1 << 40]

    in_memory = from_array(e.images.astype(np.float32))

    def read(rows, out=None):
        sizes.append(len(rows))
        ledger.peak, ledger.limit = ledger.held, limits[0]
        return in_memory(rows, out)

    def progress(*_):
        peaks.append(ledger.peak)
        ledger.limit = 1 << 40

    def run():
        sizes.clear()
        return align_half(e.half_set(read=read), e.plan(RESOLUTION), STAND_IN, progress=progress)

    run()
    limits[0] = int(share * max(peaks))
    return run(), sizes


def test_full_memory_halves_the_batch_and_goes_on_with_the_same_bits(cupy, monkeypatch):
    e = small_experiment(48)
    monkeypatch.setattr(batches, "SMALLEST_BATCH", 4)
    halved, sizes = with_limit(cupy, e, 0.8)
    assert sizes[0] == 48 and sizes[1] == 24
    assert_same(halved, aligned(e, CPU))
    cupy.ledger.limit = 1 << 40
    whole = aligned(e, STAND_IN)
    assert halved.half_map.tobytes() == whole.half_map.tobytes()
    assert halved.noise_power.tobytes() == whole.noise_power.tobytes()
    for name, column in whole.poses.columns().items():
        np.testing.assert_array_equal(getattr(halved.poses, name), column)


def test_memory_too_small_for_the_smallest_batch_is_an_error(cupy, monkeypatch):
    monkeypatch.setattr(batches, "SMALLEST_BATCH", 8)
    with pytest.raises(InputError, match="memory is full with 8 images at a time.* use a GPU with .* GiB free"):
        with_limit(cupy, small_experiment(24), 0.3)


@pytest.mark.parametrize("module, text, full", [
    ("cupy_backends.cuda.api.runtime", "cudaErrorMemoryAllocation: out of memory", True),
    ("cupy_backends.cuda.api.driver", "CUDA_ERROR_OUT_OF_MEMORY: out of memory", True),
    ("cupy.cuda.cufft", "CUFFT_ALLOC_FAILED", True),
    ("cupy_backends.cuda.libs.cublas", "CUBLAS_STATUS_ALLOC_FAILED", True),
    ("cupy_backends.cuda.api.runtime", "cudaErrorIllegalAddress: an illegal memory access was encountered", False),
    ("builtins", "CUFFT_ALLOC_FAILED", False)])
def test_every_way_to_say_that_memory_is_full_is_understood(module, text, full):
    error = type("SomeError", (RuntimeError,), {"__module__": module})(text)
    assert STAND_IN.says_full(error) == full and not CPU.says_full(error)


# before the run

BIG = MemoryNeed(box_size=512, half_plane=130816, sums=6e9, reference=4e9, image=12e6, temporaries=15e6,
                 reconstruction=34e9)


def test_a_gpu_that_cannot_hold_the_run_is_refused_with_what_would_fit(cupy):
    """The stand-in has 3.6 GiB for a run; the volumes of 512 px take 10 GB, those of 336 px 28 % of it."""
    with pytest.raises(InputError) as caught:
        check_fits(STAND_IN, BIG)
    assert "particles of 512 px take (9.7 GiB)" in caught.value.problem and "3.6 GiB" in caught.value.problem
    box = BIG.largest_box(STAND_IN.memory_bytes())
    assert f"bin the particles to {box} px or fewer" in caught.value.remedy and "10.8 GiB free" in caught.value.remedy
    check_fits(STAND_IN, BIG.binned(box))
    with pytest.raises(InputError):
        check_fits(STAND_IN, BIG.binned(box + 2))
    check_fits(CPU, BIG)


def test_where_nothing_fits_no_binning_is_offered():
    assert BIG.largest_box(1e6) == 0 and "bin" not in BIG.remedy(1e6)


def test_the_prediction_is_one_line(cupy):
    line = prediction(STAND_IN, BIG)
    assert "9.3 GiB for sums and reference" in line and "for which the CPU is taken" in line
    assert "CPU" not in prediction(STAND_IN, BIG.binned(64)) and "\n" not in line
