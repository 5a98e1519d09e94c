"""Reading beside computing: the same images, whoever asks for what; on a GPU, no buffer and no array too early."""
from __future__ import annotations

import threading
import time
from contextlib import nullcontext

import numpy as np
import pytest
from gpu.fixtures import install
from gpu.streams import Event, Stream
from particle_files import Inputs, write_mrc

from localrefine_plugin.engine.io.mrc import ImageReader
from localrefine_plugin.engine.io.relion_particles import read_particles
from localrefine_plugin.engine.kernels import prefetch
from localrefine_plugin.engine.kernels.device import CPU, Device, to_host
from localrefine_plugin.engine.kernels.prefetch import Prefetch, from_array
from localrefine_plugin.engine.records.errors import InputError

BOX, COUNT = 6, 23
IMAGES = np.random.default_rng(1).standard_normal((COUNT, BOX, BOX)).astype(np.float32)
GPU = Device("cuda:1", "second GPU of a stand-in")


@pytest.fixture
def cupy(monkeypatch):
    """Pinned buffers of two images, so that a batch takes several turns."""
    xp = install(monkeypatch)
    monkeypatch.setattr(prefetch, "PINNED_BYTES", 2 * 4 * BOX ** 2)
    xp.cuda.Device(1).use()
    return xp


read = from_array(IMAGES)


def all_batches(device, sizes, read=read):
    """Every image in batches of these sizes, used by a computation on the device while the next ones are read."""
    found, start = [], 0
    with Prefetch(read, COUNT, BOX, device) as ahead:
        for size in sizes:
            rows = np.arange(start, min(start + size, COUNT))
            images = ahead(rows)
            assert isinstance(images, device.xp.ndarray)
            found.append(to_host(device.xp.add(images, 0)))
            start += size
    return np.concatenate(found)


@pytest.mark.parametrize("sizes", [(23,), (7, 7, 7, 7), (1,) * 23, (8, 4, 4, 4, 4), (4, 8, 8, 8)], ids=str)
def test_images_are_those_read_in_order(cupy, sizes):
    """A batch that is not the one expected, as after a batch was halved, is read anew."""
    for device in (CPU, GPU):
        np.testing.assert_array_equal(all_batches(device, sizes), IMAGES)


def test_the_next_batch_is_being_read_while_this_one_is_computed_on():
    begun = threading.Event()

    def slow(rows, out=None):
        if rows[0] == 5:
            begun.set()
        return read(rows, out)
    with Prefetch(slow, COUNT, BOX, CPU) as ahead:
        ahead(np.arange(5))
        assert begun.wait(10)


def test_one_thread_reads_and_no_other(cupy):
    """An ImageReader keeps files open and is not to be shared."""
    threads = set()

    def who(rows, out=None):
        threads.add(threading.get_ident())
        return read(rows, out)
    all_batches(GPU, (8, 4, 4, 4, 4), who)
    assert len(threads) == 1 and threading.get_ident() not in threads


@pytest.mark.parametrize("device", [CPU, GPU], ids=["cpu", "cuda"])
def test_an_image_that_cannot_be_read_stops_its_own_batch_only(cupy, device):
    def broken(rows, out=None):
        if 9 in rows:
            raise InputError("image 10 is constant", "stack", "remove it")
        return read(rows, out)
    with Prefetch(broken, COUNT, BOX, device) as ahead:
        np.testing.assert_array_equal(to_host(ahead(np.arange(5))), IMAGES[:5])
        np.testing.assert_array_equal(to_host(ahead(np.arange(5, 9))), IMAGES[5:9])  # 5 … 9 were expected
        with pytest.raises(InputError, match="constant"):
            ahead(np.arange(9, 13))


def test_a_batch_takes_no_more_than_two_arrays_and_two_buffers(cupy):
    made = []
    empty = cupy.empty
    cupy.__dict__["empty"] = lambda *args: made.append(args[0]) or empty(*args)
    all_batches(GPU, (5, 5, 5, 5, 5))
    assert made == [(5, BOX, BOX)] * 2 and len(cupy.ledger.pinned) == 2


def test_bytes_and_waits(cupy):
    """Each image goes up once; the computing thread waits for nothing but the images of its own batch."""
    all_batches(GPU, (8, 8, 8))
    counts = cupy.ledger.counts
    assert counts.bytes_to_device == IMAGES.nbytes
    assert counts.waits_of_reader == 3 and counts.waits == 3  # the three of `to_host` in this test


def halves_and_floats(folder, kinds):
    """An ImageReader of two stacks of these types, and the values of their images."""
    inputs = Inputs(folder)
    images = np.random.default_rng(2).standard_normal((12, 16, 16)).astype(np.float16)
    for path, part, kind in zip(inputs.stacks, np.split(images, 2), kinds):
        write_mrc(path, part.astype(kind))
    return ImageReader(read_particles(inputs.star)[0], 2), images.astype(np.float32)


@pytest.mark.parametrize("kinds, bytes_of_a_pixel", [((np.float16, np.float16), 2), ((np.float32, np.float32), 4),
                                                     ((">f2", ">f2"), 4)], ids=str)
def test_float16_is_sent_as_it_is_and_becomes_float32_there(cupy, tmp_path, kinds, bytes_of_a_pixel):
    reader, images = halves_and_floats(tmp_path, kinds)
    with reader, Prefetch(reader, 12, 16, GPU) as ahead:
        for rows in np.split(np.arange(12), 3):
            found = to_host(ahead(rows))
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, images[rows])
    assert cupy.ledger.counts.bytes_to_device == bytes_of_a_pixel * images.size


def test_stacks_of_both_kinds_are_sent_as_float32_from_where_they_meet(cupy, tmp_path):
    reader, images = halves_and_floats(tmp_path, (np.float16, np.float32))
    with reader, Prefetch(reader, 12, 16, GPU) as ahead:
        for rows in np.split(np.arange(12), 3):
            np.testing.assert_array_equal(to_host(ahead(rows)), images[rows])
    # images 0 to 3 as float16; 4 and 5 as float16 before 6 turned out to be another kind; all from 4 on as float32
    assert 2 * 4 * 256 + 4 * 8 * 256 <= cupy.ledger.counts.bytes_to_device <= 2 * 6 * 256 + 4 * 8 * 256


# planted bugs: what happens when a line of Transfer is missing

@pytest.mark.parametrize("owner, name", [(Event, "synchronize"), (Stream, "synchronize")])
def test_a_missing_wait_gives_other_images(cupy, monkeypatch, owner, name):
    """A pinned buffer is written to before it has been sent, or the array read before the images are there."""
    monkeypatch.setattr(owner, name, lambda self: None)
    assert not np.array_equal(all_batches(GPU, (8, 8, 8)), IMAGES)


def test_writing_to_an_array_in_use_is_a_race(cupy, monkeypatch):
    monkeypatch.setattr(Stream, "wait_event", lambda self, event: None)
    with pytest.raises(RuntimeError, match="race"):
        all_batches(GPU, (4, 4, 4, 4, 4, 4))


def test_one_array_instead_of_two_is_a_race(cupy, monkeypatch):
    """The next images overwrite those that are still computed on (which takes less than the reading here)."""
    def slow(rows, out=None):
        time.sleep(0.05)
        return read(rows, out)
    monkeypatch.setattr(prefetch.Transfer, "order", one_array)
    with pytest.raises(RuntimeError, match="race"):
        all_batches(GPU, (4, 4, 4, 4, 4, 4), slow)


def one_array(self, rows, order=prefetch.Transfer.order):
    self.targets = self.targets[:1] * 2
    return order(self, rows)


def test_a_thread_that_forgets_its_device_is_refused(cupy, monkeypatch):
    monkeypatch.setattr(Device, "current", lambda self: nullcontext())
    with pytest.raises(RuntimeError, match="stream of device 1 in a thread whose device is 0"):
        all_batches(GPU, (8, 8, 8))


def test_memory_that_is_not_pinned_is_refused(cupy, monkeypatch):
    monkeypatch.setattr(cupy.cuda, "alloc_pinned_memory", lambda size: np.zeros(size, np.uint8))
    with pytest.raises(RuntimeError, match="not pinned"):
        all_batches(GPU, (8, 8, 8))
